"""Images of other sequences, made from the maps of a series of its own: physics as an augmentation (set C).

    series -> A, T1 (`own_maps`) -> T1 of another field strength, T2 and T1RHO drawn, B0 and B1 drawn
           -> one image of one sequence -> artefacts, noise, modulus

Nothing but the images of a series and their times goes in: no label, no mask, nothing of another domain.

What T1 does not tell is drawn anew for every copy: T2, T1RHO and a factor of A, which holds the readout of the series,
are functions of T1 through knots whose values are drawn, so that two tissues of one T1 have one T2. That is wrong for
any one body and is not meant to be right: it spans what contrast a network must not rely on.

Not: partial volume (a voxel has one T1), and what else the series never measured (magnetisation transfer, flow, its
own B0 and B1, the phase of the receiver). A keeps the coil of the series, and its noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from generators.acquisition import split
from generators.config import Seed
from phantoms.fields.base import Place
from phantoms.fields.smooth import Waves
from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.kspace.artefacts.base import Artefact
from qsim.kspace.chain import apply_chain, draw_chain, with_spacing
from qsim.kspace.fourier import magnitude
from qsim.signals import AnyModel, Bloch, SpinLockPreparation, T2Preparation
from trainers.segmentation.physics_config import Physics, SpatialFields
from trainers.segmentation.physics_maps import T1_RANGE, Maps, between_knots, own_maps, smoothed

# smallest T2 and T1RHO; the smooth variation goes no further [s]
_SHORTEST = 0.002
# of the image without noise, over which the noise is stated [1]
_BRIGHT = 0.99


def synthesised(
    series: Float[Tensor, "n y x"],
    times: Sequence[float] | None,
    spacing_mm: tuple[float, float],
    physics: Physics,
    streams: Streams,
) -> Float[Tensor, "copies y x"]:
    """Images of other contrasts of the slice that a series shows.

    Copy k takes its numbers from streams `physics/<k>/...` and does not depend on how many there are.

    Args:
        series: magnitudes of an inversion recovery.
        times: inversion time of each image [s].
        spacing_mm: of a voxel, y and x [mm].
        physics: what is simulated.
        streams: of this series.
    Raises: InputError if the series has no T1 (see `own_maps`) or shows nothing.
    """
    maps = own_maps(series, times)
    if not bool(maps.body.any()):
        raise InputError("series: no voxel is brighter than the rest; physics needs a recovery of something")
    seen = _Slice(maps, smoothed(maps.t1, maps.body, maps.body), spacing_mm)
    return torch.stack([_copy(seen, physics, _Copy(streams, k)) for k in range(physics.copies)])


def bank(
    series: Sequence[Float[Tensor, "..."]],
    times: Sequence[Sequence[float] | None],
    spacing_mm: Sequence[tuple[float, float]],
    physics: Physics,
    seed: Seed,
    names: Sequence[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Float[Tensor, "..."]]:
    """Synthetic images of every series, each of its own size; a series' do not depend on the others.

    Args:
        series: magnitudes (n, y, x) of each.
        times: inversion times of each [s].
        spacing_mm: of a voxel of each, y and x [mm].
        physics: what is simulated.
        seed: of all that is drawn; series i has `Streams(seed, i)`.
        names: of the series, for messages; None: their numbers.
        progress: called with the number of series that are done.
    Returns: (copies, y, x) of each.
    Raises: InputError naming the series that has no T1.
    """
    if not len(series) == len(times) == len(spacing_mm):
        raise ValueError(f"{len(series)} series, {len(times)} lists of times and {len(spacing_mm)} spacings")
    made = []
    for number, (images, ti, spacing) in enumerate(zip(series, times, spacing_mm, strict=True)):
        try:
            made.append(synthesised(images, ti, spacing, physics, Streams(seed, number)))
        except InputError as error:
            name = f"series {number}" if names is None else names[number]
            raise InputError(f"{name}: {error}") from None
        if progress is not None:
            progress(number + 1)
    return made


# --- one copy ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Slice:
    """What all copies share: maps, the T1 by which fat is told, size of a voxel [mm]."""

    maps: Maps
    of_tissue: Float[Tensor, "y x"]
    spacing_mm: tuple[float, float]

    @property
    def place(self) -> Place:
        y, x = self.maps.t1.shape
        return Place((0, 0), (y, x), self.spacing_mm, None, None, (y, x))


@dataclass(frozen=True, slots=True)
class _Copy:
    """Streams of one copy."""

    streams: Streams
    number: int

    def rng(self, stage: str) -> np.random.Generator:
        return self.streams.rng(self._name(stage))

    def noise(self) -> torch.Generator:
        return self.streams.torch_generator(self._name("noise"))

    def _name(self, stage: str) -> str:
        return f"physics/{self.number}/{stage}"


def _copy(seen: _Slice, physics: Physics, copy: _Copy) -> Float[Tensor, "y x"]:
    rng = copy.rng("sequence")
    models = physics.sequences
    model, number = one_image(models[int(rng.integers(len(models)))], float(rng.random()))
    rows = _tissue_rows(seen, physics, copy)
    signal = _signal(model, number, rows, seen.maps)
    return _acquired(signal, seen.spacing_mm, physics, copy)


def one_image(model: AnyModel, u: float) -> tuple[AnyModel, int]:
    """The model of one image of its series, where it can be had alone, and the number of that image.

    Args:
        model: of a series.
        u: chooses the image, from 0 to 1.
    """
    number = min(int(u * model.n_images), model.n_images - 1)
    if not isinstance(model, Bloch):
        return model, number
    preparation = model.preparation
    if isinstance(preparation, SpinLockPreparation):
        fsl = preparation.fsl[number] if isinstance(preparation.fsl, tuple) else preparation.fsl
        return replace(model, preparation=replace(preparation, tsl=(preparation.tsl[number],), fsl=fsl)), 0
    if isinstance(preparation, T2Preparation):
        return replace(model, preparation=replace(preparation, te=(preparation.te[number],))), 0
    return replace(model, preparation=replace(preparation, ti=(preparation.ti[number],))), 0


def _tissue_rows(seen: _Slice, physics: Physics, copy: _Copy) -> dict[str, Float[Tensor, "y x"]]:
    """Every row but B of one copy [SI]."""
    maps = seen.maps
    rng = copy.rng("tissue")
    read = maps.t1.double().numpy()
    t1 = np.clip(read * _log_uniform(physics.t1_factor, rng), *T1_RANGE)
    t2, t1rho, factor = (
        between_knots(read, [knot.t1 for knot in knots], [_log_uniform((knot.low, knot.high), rng) for knot in knots])
        for knots in (physics.relations.t2, physics.relations.t1rho, physics.relations.a)
    )
    size = _uniform(physics.variation, rng)
    t2, t1rho = (t * np.exp(size * _smooth(seen.place, physics.variation_mm, rng)) for t in (t2, t1rho))
    t1rho = np.clip(t1rho, _SHORTEST, t1)
    t2 = np.clip(t2, _SHORTEST, t1rho)
    delta_b0, rel_b1 = _fields(seen, physics.fields, copy.rng("fields"))
    if physics.fat is not None:
        delta_b0 = delta_b0 + physics.fat.shift * (seen.of_tissue.numpy() < physics.fat.below)
    drawn = {
        "A": maps.a.double().numpy() * factor,
        "T1": t1,
        "T2": t2,
        "T1RHO": t1rho,
        "DELTA_B0": delta_b0,
        "REL_B1": rel_b1,
    }
    return {name: torch.from_numpy(row).float() for name, row in drawn.items()}


def _fields(seen: _Slice, fields: SpatialFields, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    mean, sd, length = (_uniform(pair, rng) for pair in (fields.b0_mean, fields.b0_sd, fields.b0_length_mm))
    delta_b0 = mean + sd * _smooth(seen.place, length, rng)
    median, sd, length = (_uniform(pair, rng) for pair in (fields.b1_median, fields.b1_sd, fields.b1_length_mm))
    return delta_b0, median * np.exp(sd * _smooth(seen.place, length, rng))


def _signal(model: AnyModel, number: int, rows: dict[str, Float[Tensor, "y x"]], maps: Maps) -> Complex[Tensor, "y x"]:
    """The chosen image, without noise, 0 outside of the body; only the body is simulated unless voxels mix."""
    # B of a perfect pulse is where its estimators start
    filled = [rows.get(row.name, torch.full_like(maps.a, row.start)) for row in model.parameters]
    kappa = torch.stack(filled)
    if getattr(model, "mixes_voxels", False):
        # A is 0 outside
        return model.coherent(kappa)[number].to(torch.complex64)
    image = torch.zeros(maps.a.shape, dtype=torch.complex64)
    image[maps.body] = model.coherent(kappa[:, maps.body])[number].to(torch.complex64)
    return image


def _acquired(
    signal: Complex[Tensor, "y x"], spacing_mm: tuple[float, float], physics: Physics, copy: _Copy
) -> Float[Tensor, "y x"]:
    """Artefacts, noise of the receiver before samples are thrown away, modulus."""
    snr = _log_uniform(physics.snr, copy.rng("snr"))
    sigma = float(np.quantile(magnitude(signal).numpy(), _BRIGHT)) / snr
    artefacts = tuple(with_spacing(artefact, spacing_mm) for artefact in physics.chain)
    before, after = split(artefacts, draw_chain(artefacts, (1, *signal.shape), copy.rng))
    images = _through(signal[None], before)
    generator = copy.noise()
    real, imaginary = (torch.empty(images.shape).normal_(generator=generator) for _ in range(2))
    return magnitude(_through(images + sigma * torch.complex(real, imaginary), after))[0]


def _through(images: Complex[Tensor, "1 y x"], chosen: Sequence[tuple[Artefact[Any], Any]]) -> Complex[Tensor, "1 y x"]:
    return apply_chain(images, [each for each, _ in chosen], [drawn for _, drawn in chosen]).images


def _smooth(place: Place, length_mm: float, rng: np.random.Generator) -> Float[np.ndarray, "y x"]:
    return Waves.draw(rng, len(place.block), length_mm).at(place)


def _uniform(pair: tuple[float, float], rng: np.random.Generator) -> float:
    return pair[0] + (pair[1] - pair[0]) * float(rng.random())


def _log_uniform(pair: tuple[float, float], rng: np.random.Generator) -> float:
    return exp(_uniform((log(pair[0]), log(pair[1])), rng))
