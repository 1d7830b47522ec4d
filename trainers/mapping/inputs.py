"""What `qsim map` is given beside the series: the method, known maps and numbers, the mask, the noise level."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phantoms.files.derivatives import Json
from phantoms.series.base import Series
from qsim.errors import InputError
from qsim.estimators import ESTIMATORS, Estimator, TissuePrior, build_estimator, installed, method_options, rehearse
from qsim.estimators.least_squares import LeastSquares
from qsim.estimators.noise_level import NoiseLevel, noise_level
from qsim.parameters import RELAXATION_TIMES
from qsim.signals import ClosedForm
from qsim.signals.base import SignalModel, real_signal

Option = bool | int | float | str
Volume = Float[np.ndarray, "z y x"]

# methods whose voxels know nothing of each other; what is not named here gets slice after slice
VOXELWISE = ("two-point", "log-linear", "least-squares", "rician", "map", "dictionary")
# voxels of which the residual noise is estimated: of a closed form, and of any other model, whose fits take long
_RESIDUAL_VOXELS, _FEW_VOXELS = 20_000, 500
# bins of the histogram that tells air from the object
_BINS = 256
# voxels outside of the object over those of it above which air is looked for; air is darker than the object by this
# factor, or its mean square differs between the images by less than this one [1]
_AIR, _DARKER, _EVEN = 0.05, 3.0, 1.5
# what methods say of known rows: known.B: ..., known: B: ..., known: B cannot be used ...
_SAID = re.compile(r"known(?:\.(\w+):|: (\w+(?:, \w+)*)(?::|(?= cannot)))")


@dataclass(frozen=True, slots=True)
class MapJob:
    """One call of `qsim map`, without the series.

    Attributes:
        out: folder of the maps.
        method, network, own: exactly one: a name of `qsim.estimators`; a run or shipped network; "module:object".
        options: of the method.
        tissues: kind of the table whose distributions a method is told.
        std: standard deviations are wanted.
        sigma: noise SD, a number or a NIfTI map [units of the images]; None: estimated.
        mask: NIfTI file, "auto", or None for every voxel.
        known: rows that are known, as numbers or NIfTI files [SI].
        slices: first, and one after the last; None: all.
        device: cpu, cuda, auto.
        register: images are brought to the place of one of them first.
        subject, session: labels instead of those of the series.
    """

    out: Path
    method: str = ""
    network: str = ""
    own: str = ""
    options: Mapping[str, Option] = field(default_factory=dict)
    tissues: str = ""
    std: bool = False
    sigma: float | Path | None = None
    mask: Path | Literal["auto"] | None = None
    known: Mapping[str, float | Path] = field(default_factory=dict)
    slices: tuple[int, int] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    register: bool = False
    subject: str = ""
    session: str = ""
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class Mapper:
    """The method, ready to map.

    Attributes:
        estimator: the method.
        voxelwise: whether slices may be handed over together.
        device: where the images are put.
        record: what sidecars say of it.
        notes: a sentence each.
        common: rows that it takes as common to voxels, if they are not known.
        from_all: what it finds from all voxels together, so that air would shift it: the start of a sentence.
    """

    estimator: Estimator
    voxelwise: bool
    device: torch.device
    record: Mapping[str, Json]
    notes: tuple[str, ...] = ()
    common: tuple[str, ...] = ()
    from_all: str = ""


def mapper(job: MapJob, model: SignalModel, told: Sequence[str], brightest: Callable[[], float]) -> Mapper:
    """Build the method, and let it map a small image first, so that what it cannot do is said at once.

    Args:
        told: rows that are known.
        brightest: 99th percentile over the object of the largest image, for networks [units of the images].
    Raises: InputError naming the option.
    """
    given = [
        name for name, value in (("--method", job.method), ("--model", job.network), ("--estimator", job.own)) if value
    ]
    if len(given) != 1:
        said = " and ".join(given) or "none"
        raise InputError(f"--method: give one of --method, --model and --estimator, got {said}")
    if job.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: there is no CUDA device here")
    if job.network:
        from trainers.mapping.network import network_mapper

        return network_mapper(job, model, told, brightest)
    if job.own:
        return _own(job, model, told)
    return _built(job, model, told)


def as_option(message: str) -> str:
    """What a method says of a known row, as the command names it; other messages as they are."""
    said = _SAID.match(message)
    if said is None:
        return f"--{message}" if message.startswith("known: ") else message
    return f"--known {said[1] or said[2]}:{message[said.end() :]}"


def device_of(job: MapJob, *, network: bool) -> torch.device:
    """Networks run on CUDA if there is one, fits only if told so."""
    auto = "cuda" if network and torch.cuda.is_available() else "cpu"
    return torch.device(auto if job.device == "auto" else job.device)


def _built(job: MapJob, model: SignalModel, told: Sequence[str]) -> Mapper:
    name = job.method
    if name == "rician" and getattr(model, "signed", False):
        raise InputError(
            "--method: rician fits magnitudes, and the series is signed; use least-squares, or another method "
            "(--signed no, if its negative values are noise)"
        )
    options = dict(job.options)
    if job.std:
        if name in ESTIMATORS and "covariance" not in method_options(name):
            raise InputError(f"--std: {name} gives no standard deviations")
        if name in installed():
            raise InputError(f"--std: {name} is a method of another package; ask it by its --option")
        options["covariance"] = True
    prior = _prior(job, model)
    try:
        estimator = build_estimator(name, model, options, prior)
        rehearse(estimator, model, tuple(told))
    except InputError as error:
        text = as_option(str(error).removeprefix("estimators: "))
        if text.startswith("--known REL_B1") and "REL_B1" not in told:
            text += " (--b1 FILE, or --known REL_B1=1)"
        raise InputError(text if text.startswith("--known") else f"--method: {text}") from None
    said = ESTIMATORS[name].text if name in ESTIMATORS else "of an installed package"
    rows = [p.name for p in model.parameters]
    common = tuple(row for row in getattr(estimator, "pools", ()) if row in rows and row not in told)
    record: dict[str, Json] = {
        "EstimationAlgorithm": f"{estimator.name}: {said}",
        "Method": estimator.name,
        "MethodOptions": dict(options),
    }
    if job.tissues:
        record["Tissues"] = job.tissues
    place, notes, shared = device_of(job, network=False), notes_of_common(common), found_from_all(common)
    return Mapper(estimator, name in VOXELWISE, place, record, notes, common, shared)


def notes_of_common(rows: Sequence[str]) -> tuple[str, ...]:
    """What is said of rows that a method takes as common to voxels: it is given one slice at a time."""
    return (
        (f"{', '.join(rows)} is common to the voxels of a slice, and found for each slice by itself",) if rows else ()
    )


def air_of(power: Float[np.ndarray, "2 n"], inside: int, outside: int) -> int:
    """Voxels of air: 0 where what lies outside of the object looks like tissue, as in images whose background is zero.

    Args:
        power: of each image, sum of squares of the object, and of what lies outside of it and is not zero.
        inside, outside: how many voxels these are.
    """
    if outside <= _AIR * inside:
        return 0
    tissue, air = power[0] / max(inside, 1), power[1] / outside
    found = air.mean() * _DARKER**2 < tissue.mean() or air.max() < _EVEN * air.min()
    return outside if found else 0


def found_from_all(rows: Sequence[str]) -> str:
    """The start of the sentence about rows that are common to voxels."""
    return f"{', '.join(rows)} is found from every voxel" if rows else ""


def air_shifts(rows: Sequence[str], air: int) -> str:
    """What is said where rows are found from every voxel, air among them."""
    return shifted(found_from_all(rows), air)


def shifted(from_all: str, air: int) -> str:
    """As `air_shifts`, of what a sentence begins with."""
    return f"{from_all}, {air} of them outside of the object, where air would shift it"


def _prior(job: MapJob, model: SignalModel) -> TissuePrior | None:
    """Of the rows that do not depend on the unit of the images.

    Raises: InputError if the method asks for one and there is no table, or a table is given to one that does not.
    """
    from generators.fitting import completed
    from qsim.tissues import Sabidussi2021, Stanisz2005, TissueSource

    asks = job.method in ESTIMATORS and ESTIMATORS[job.method].takes_prior
    # those that need no settings
    kinds: dict[str, TissueSource] = {"sabidussi2021": Sabidussi2021(), "stanisz2005": Stanisz2005()}
    if not asks:
        if job.tissues:
            raise InputError(f"--tissues: {job.method} is told nothing of tissues")
        return None
    if job.tissues not in kinds:
        got = f"got {job.tissues!r}" if job.tissues else "missing"
        raise InputError(f"--tissues: {got}; {job.method} needs the distributions of the tissues: {' or '.join(kinds)}")
    rows = [p.name for p in model.parameters if p.name in (*RELAXATION_TIMES, "B")]
    return TissuePrior.from_table(completed(kinds[job.tissues].table(), rows, ()), rows)


def _own(job: MapJob, model: SignalModel, told: Sequence[str]) -> Mapper:
    from trainers.studies.methods import choose

    if job.options or job.std or job.tissues:
        raise InputError(
            "--estimator: a method of your own has no --option, --std or --tissues; set them in its build()"
        )
    chosen = choose((), (job.own,), model, given=tuple(told))[0]
    record: dict[str, Json] = {
        "EstimationAlgorithm": f"{chosen.name} ({job.own})",
        "Method": chosen.name,
        "Code": dict(chosen.source),
    }
    return Mapper(chosen.estimator, False, device_of(job, network=False), record)


def foreground(series: Series, slices: range, depth: int) -> Bool[np.ndarray, "z y x"]:
    """Where the object is: root mean square over the images above Otsu's threshold of its square root.

    The square root lets dark tissue count as object beside bright fat. No holes are filled.

    Args:
        slices: looked at; outside of them all is background.
        depth: slices at a time.
    Source: Otsu 1979, doi:10.1109/TSMC.1979.4310076.
    """
    root = np.zeros(series.space, dtype=np.float32)
    for first in range(slices.start, slices.stop, depth):
        last = min(first + depth, slices.stop)
        images = series.slab(first, last)
        with np.errstate(over="ignore", invalid="ignore"):
            level = np.sqrt(np.sqrt(np.mean(np.square(images, dtype=np.float64), axis=0)))
        root[first:last] = np.where(np.isfinite(level), level, 0)
    present = root[root > 0]
    if present.size == 0:
        return root > 0
    counts, edges = np.histogram(np.minimum(present, np.quantile(present, 0.99)), _BINS)
    centres = (edges[1:] + edges[:-1]) / 2
    # between-class variance for a cut after each bin
    below, moment = np.cumsum(counts), np.cumsum(counts * centres)
    above = below[-1] - below
    there = (below > 0) & (above > 0)
    if not there.any():
        return root > 0
    w, v = below[there], above[there]
    between = (moment[-1] * w / below[-1] - moment[there]) ** 2 / (w.astype(np.float64) * v)
    cut = edges[1:][there][int(np.argmax(between))]
    return root > cut


def find_sigma(
    images: Float[Tensor, "n *space"],
    where: Bool[Tensor, "*space"],
    model: SignalModel,
    known: Mapping[str, Tensor],
    usable: Bool[Tensor, "*space"] | None = None,
) -> NoiseLevel:
    """One sigma from the air outside `where`, else from the residuals of least squares inside.

    Args:
        usable: voxels that can be fitted; the others of `where` are no air either.
    Raises: InputError with the reason if neither shows it.
    """

    def residual() -> tuple[Float[Tensor, " v"], int]:
        fitting = where if usable is None else where & usable
        inside = fitting.flatten().nonzero()[:, 0]
        if inside.numel() == 0:
            return images.new_zeros(0), 0
        most = _RESIDUAL_VOXELS if isinstance(model, ClosedForm) else _FEW_VOXELS
        inside = inside[:: -(-len(inside) // most)]
        series = images.flatten(1)[:, inside]
        own = {name: value if value.ndim == 0 else value.flatten()[inside] for name, value in known.items()}
        found = LeastSquares(model)(series, known=own or None)
        fitted = found.status == 0
        kappa = found.kappa[:, fitted].double()
        difference = series[:, fitted].double() - real_signal(model, model(kappa))
        return difference.square().sum(0), len(series) - (len(kappa) - len(own))

    return noise_level(images, None, where, residual)
