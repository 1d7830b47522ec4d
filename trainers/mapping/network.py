"""A trained network as the method of `qsim map`: its options, the unit of its images, and what its sidecars say."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from phantoms.files.derivatives import Json
from qsim.errors import InputError
from qsim.estimators import Estimate, Estimator, rehearse
from qsim.evaluation.calibration import factor_json
from qsim.parameters import Parameter
from qsim.signals.base import SignalModel
from trainers.mapping.inputs import MapJob, Mapper, as_option, device_of, found_from_all, notes_of_common

# images up to this factor outside the range of a network's training are still mapped, as `NetworkEstimator` does
_SCALE_MARGIN = 4.0


def network_mapper(job: MapJob, model: SignalModel, told: Sequence[str], brightest: Callable[[], float]) -> Mapper:
    """Load the network, and let it map a small image.

    Args:
        told: rows that are known.
        brightest: 99th percentile over the object of the largest image [units of the images].
    Raises: InputError naming the option.
    """
    from trainers.infer import find_network, load_estimator
    from trainers.mixture_estimator import MixtureEstimator
    from trainers.relaxation.loading import TrainedRelaxation
    from trainers.studies.methods import pools
    from trainers.studies.network_options import network_name, network_options, of_option, runs_of

    given = dict(job.options)
    unit = given.pop("images_unit", None)
    if unit is not None and not (isinstance(unit, int | float) and not isinstance(unit, bool) and unit > 0):
        raise InputError(f"--option images_unit: must be a positive number, got {unit!r}")
    unit = None if unit is None else float(unit)
    options = network_options(given, "--option ", ("images_unit",))
    if job.tissues:
        raise InputError("--tissues: a network is told nothing of tissues, it learned them; leave it out")
    maps = [name for name, value in job.known.items() if isinstance(value, Path)]
    if maps:
        raise InputError(
            f"--known {maps[0]}: a network takes one number, not a map; give that, or take a fit (--method)"
        )
    place = device_of(job, network=True)
    notes: tuple[str, ...] = ()
    try:
        files = [find_network(run) for run in (job.network, *options.ensemble)]
        network = load_estimator(
            runs_of(job.network, options),
            model,
            str(place),
            contrast=options.contrast,
            noise=options.noise,
            **options.of_relaxation,
        )
        if not isinstance(network, TrainedRelaxation):
            unit, notes = _unit(network.scale, isinstance(network, MixtureEstimator), unit, brightest)
        elif unit is not None:
            raise InputError(
                f"--option images_unit: is no option of {network.name}, which divides each slice by its own "
                "brightness; leave it out"
            )
    except InputError as error:
        text = str(error)
        if of_option(text):
            raise InputError(f"--option {text}") from None
        raise InputError(text if text.startswith("--") else f"--model: {text.removeprefix('model: ')}") from None
    kind, name = network.name, network_name(job.network, network.name)
    used: dict[str, Json] = dict(given)
    from_all, said, mixture = "", dict[str, Json](), isinstance(network, MixtureEstimator)
    if isinstance(network, TrainedRelaxation):
        network, inner = network.renamed(name), network.estimator
        used |= {"samples": inner.samples, "units": inner.units, "images": list(network.images)}
        notes, said = (
            network.notes,
            {"Calibration": {row: factor_json(factor) for row, factor in inner.calibration.items()}},
        )
    else:
        # the scale was looked at above, on the slice that shows most: one at the edge of the object may be dark
        network = replace(network, name=name, images_unit=float(unit or 1), scale=None)
        used = {"images_unit": float(unit or 1), **used}
    answer = _small_answer(network, model, told)
    if job.std and not answer.variances:
        raise InputError(f"--std: {name} gives no standard deviations")
    rows = [p.name for p in network.parameters if p.name not in told]
    common = tuple(row for row in (("B",) if mixture else pools(network)) if row in rows)
    from_all = found_from_all(common)
    if isinstance(network, MixtureEstimator):
        used = {**given, "noise": "rician" if network.rician else "gaussian"}
        from_all = from_all or f"the histogram that {name} starts from counts every voxel"
    record: dict[str, Json] = {
        "EstimationAlgorithm": f"{name}: a network trained with qsim" + (f" ({kind})" if kind != name else ""),
        "Method": name,
        "MethodOptions": used,
        "Network": _digest(files[0]) if len(files) == 1 else [_digest(file) for file in files],
        **said,
    }
    return Mapper(network, False, torch.device("cpu"), record, (*notes, *notes_of_common(common)), common, from_all)


def _digest(file: Path) -> dict[str, Json]:
    return {"File": file.name, "SHA256": hashlib.sha256(file.read_bytes()).hexdigest()}


def _unit(
    scale: tuple[float, float] | None, mixture: bool, unit: float | None, brightest: Callable[[], float]
) -> tuple[float | None, tuple[str, ...]]:
    """What the images are divided by, and a note where that was not asked for.

    Args:
        scale: lowest and highest brightness of the training; None: unknown, or of no use to the network.
        unit: that was asked for.
    Raises: InputError if the images are then not those of the training, or the network has no unit.
    """
    if scale is None:
        if unit is not None and mixture:
            raise InputError("--option images_unit: a mixture network sees nothing that has a unit; leave it out")
        return unit, ()
    low, high = scale
    top = brightest()
    if unit is None and not low / _SCALE_MARGIN <= top <= high * _SCALE_MARGIN:
        # scanners count in units of their own
        unit = top / high
        said = f"images divided by {unit:.4g}, so that they are as bright as those of the training"
        return unit, (f"{said} (--option images_unit=... sets it)",)
    if unit is not None and not low / _SCALE_MARGIN <= top / unit <= high * _SCALE_MARGIN:
        raise InputError(
            f"--option images_unit: the 99th percentile of the images is then {top / unit:.3g}, and was "
            f"{low:.2g} to {high:.2g} in the training; {top / high:.3g} would fit"
        )
    return unit, ()


@dataclass(frozen=True, slots=True)
class _Overheard:
    """An estimator whose answers are kept."""

    estimator: Estimator
    answers: list[Estimate]

    @property
    def name(self) -> str:
        return self.estimator.name

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.estimator.parameters

    def __call__(
        self,
        images: Tensor,
        sigma: float | Tensor | None = None,
        mask: Tensor | None = None,
        known: Mapping[str, Tensor] | None = None,
    ) -> Estimate:
        self.answers.append(self.estimator(images, sigma=sigma, mask=mask, known=known))
        return self.answers[-1]


def _small_answer(network: Estimator, model: SignalModel, told: Sequence[str]) -> Estimate:
    """What the network says of a small image, so that what it cannot do is said at once.

    Raises: InputError naming the option.
    """
    overheard = _Overheard(network, [])
    try:
        rehearse(overheard, model, tuple(told))
    except InputError as error:
        text = as_option(str(error))
        raise InputError(text if text.startswith("--known") else f"--model: {text}") from None
    return overheard.answers[0]
