"""Small structures, and what a method makes of them: do they survive, and what do they do to their neighbours?

A structure is a few voxels of one tissue whose relaxation time is changed. Every method maps the same anatomy without
structures (scenario E1) and with them (E2), under independent noise; what it gets in the structure and in the ring of
voxels around it is compared.

Source: sabidussi2021 section 5.1.2 and Fig. 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.ndimage import binary_dilation  # type: ignore[attr-defined]
from scipy.stats import ttest_ind

from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.estimators.base import Estimator
from qsim.evaluation.study import Case, Design, noisy_images, relative_bounds, rows_by_name, told
from qsim.kspace.noise import sigma_of
from qsim.signals.base import CoherentModel, real_signal
from qsim.values import value

SCENARIOS = ("E1", "E2")
REGIONS = ("structure", "neighbourhood")
# voxels around a structure that belong to its neighbourhood, and how far apart two structures lie
_RING = 1
_APART = 4
# relative errors that vary by less are the same [%]
_STILL = 1e-3


@value
class Structure:
    """A block of voxels of one tissue with another relaxation time.

    Attributes:
        name: as in tables.
        tissue: in which it lies, with all of its neighbourhood.
        extent: voxels along each axis of the image.
        value: of the relaxation time [s].
    """

    name: str
    tissue: str
    extent: tuple[int, ...]
    value: float

    def __post_init__(self) -> None:
        if not self.extent or min(self.extent) < 1:
            raise ValueError(f"extent: wanted at least 1 voxel along every axis, got {list(self.extent)}")


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a structure lies.

    Attributes:
        structure: which.
        inside: its voxels.
        ring: the voxels around it.
    """

    structure: Structure
    inside: Bool[np.ndarray, "*space"]
    ring: Bool[np.ndarray, "*space"]


@dataclass(frozen=True, slots=True)
class Errors:
    """What one method made of the structures of one truth at one SNR.

    Attributes:
        error: relative error of the mean over a region, of each scenario, structure, region and repeat [%].
        spread: CV of each voxel over the repeats, mean over the region, by scenario, structure, region [%].
        recovery: contrast of structure against ring in E2 over the true one, of each structure and repeat [1].
        first: map of the first repeat of E2 [SI].
    """

    error: Float[np.ndarray, "2 s 2 c"]
    spread: Float[np.ndarray, "2 s 2"]
    recovery: Float[np.ndarray, "s c"]
    first: Float[np.ndarray, "*space"]


def place(case: Case, structures: Sequence[Structure], seed: int) -> tuple[Placed, ...]:
    """Choose a place for each structure: it and its ring within pure voxels of its tissue, apart from the others.

    Args:
        case: the truth.
        seed: of the study; each draw chooses anew.
    Raises: InputError if the anatomy has no room for one.
    """
    labels = case.labels.numpy()
    free = np.ones(labels.shape, dtype=bool)
    rng = Streams(seed, case.draw).rng("blurriness, places")
    found = []
    for i, structure in enumerate(structures):
        if len(structure.extent) != labels.ndim:
            raise InputError(f"structures[{i}].extent: has {len(structure.extent)} axes, the images {labels.ndim}")
        if structure.tissue not in case.tissues:
            raise InputError(
                f"structures[{i}].tissue: the anatomy has no {structure.tissue}; it has {', '.join(case.tissues)}"
            )
        pure = (labels == 1 + case.tissues.index(structure.tissue)) & (case.purity.numpy() >= 1)
        extent = tuple(n + 2 * _RING for n in structure.extent)
        corners = _corners(pure & free, extent)
        if not len(corners):
            raise InputError(
                f"structures[{i}]: draw {case.draw} has no {' x '.join(map(str, extent))} voxels of pure "
                f"{structure.tissue} left for {structure.name} and its surroundings; enlarge the crop, or make it "
                "smaller"
            )
        corner = corners[rng.integers(len(corners))]
        inside, around = np.zeros_like(free), np.zeros_like(free)
        around[tuple(slice(c, c + n) for c, n in zip(corner, extent, strict=True))] = True
        inside[tuple(slice(c + _RING, c + n - _RING) for c, n in zip(corner, extent, strict=True))] = True
        found.append(Placed(structure, inside, around & ~inside))
        free &= ~binary_dilation(around, np.ones((3,) * labels.ndim, dtype=bool), _APART)
    return tuple(found)


def _corners(room: Bool[np.ndarray, "*space"], extent: tuple[int, ...]) -> Int[np.ndarray, "p axes"]:
    """First voxels of the places where a block of this extent lies wholly in the room."""
    if any(n > whole for n, whole in zip(extent, room.shape, strict=True)):
        return np.empty((0, room.ndim), dtype=np.int64)
    axes = tuple(range(room.ndim, 2 * room.ndim))
    return np.argwhere(np.lib.stride_tricks.sliding_window_view(room, extent).all(axes))


def with_structures(case: Case, model: CoherentModel, parameter: str, placed: Sequence[Placed]) -> Case:
    """The same truth with the structures in it."""
    row = [p.name for p in model.parameters].index(parameter)
    kappa, signal = case.kappa.clone(), case.signal.clone()
    for each in placed:
        inside = torch.from_numpy(each.inside)
        kappa[row, inside] = each.structure.value
        signal[:, inside] = real_signal(model, model.coherent(kappa[:, inside])).to(signal.dtype)
    return replace(case, kappa=kappa, signal=signal)


def run(
    pair: tuple[Case, Case],
    placed: Sequence[Placed],
    parameter: str,
    methods: Sequence[Estimator],
    design: Design,
    snr: float,
) -> dict[str, Errors]:
    """Map both scenarios `design.repeats` times with every method.

    Args:
        pair: E1 and E2.
        parameter: the relaxation time that the structures change.
    Returns: by name of the method.
    """
    row = [p.name for p in design.model.parameters].index(parameter)
    count, repeats = len(placed), design.repeats
    regions = [[each.inside, each.ring] for each in placed]
    truth = [case.kappa[row].numpy().astype(np.float64) for case in pair]
    maps = {method.name: np.empty((2, repeats, *truth[0].shape), dtype=np.float32) for method in methods}
    for s, case in enumerate(pair):
        known = {method.name: told(case, design.model, design.told.get(method.name, ())) for method in methods}
        for repeat in range(repeats):
            # independent noise in the two scenarios, as an independent t-test asks for
            images = noisy_images(case.signal, design.noise, snr, design.seed, case.draw, 2 * repeat + s)
            for method in methods:
                estimate = method(images.clone(), sigma=sigma_of(snr), mask=case.mask, known=known[method.name])
                rows = rows_by_name(method, estimate.kappa.detach().cpu(), design.model)
                maps[method.name][s, repeat] = rows[row].numpy()
    found = {}
    for method in methods:
        error, spread = np.full((2, count, 2, repeats), np.nan), np.full((2, count, 2), np.nan)
        recovery = np.full((count, repeats), np.nan)
        for k in range(count):
            for s in range(2):
                for r, where in enumerate(regions[k]):
                    estimates = maps[method.name][s][:, where].astype(np.float64)
                    true = truth[s][where]
                    error[s, k, r] = 100 * (estimates.mean(1) / true.mean() - 1)
                    spread[s, k, r] = (100 * estimates.std(0, ddof=1) / np.abs(estimates.mean(0))).mean()
            inner, outer = (maps[method.name][1][:, where].astype(np.float64).mean(1) for where in regions[k])
            recovery[k] = (inner - outer) / (truth[1][regions[k][0]].mean() - truth[1][regions[k][1]].mean())
        found[method.name] = Errors(error, spread, recovery, maps[method.name][1, 0])
    return found


def bounds(
    pair: tuple[Case, Case], placed: Sequence[Placed], parameter: str, design: Design, snr: float
) -> dict[str, Float[np.ndarray, "2 s 2"]]:
    """Cramér-Rao bounds, mean over the voxels of each region, by scenario, structure and region [%]."""
    row = [p.name for p in design.model.parameters].index(parameter)
    found: dict[str, Float[np.ndarray, "2 s 2"]] = {}
    for s, case in enumerate(pair):
        mask = case.mask.numpy()
        for name, bound in relative_bounds(case, design, snr).items():
            means = found.setdefault(name, np.full((2, len(placed), 2), np.nan))
            for k, each in enumerate(placed):
                for r, where in enumerate((each.inside, each.ring)):
                    means[s, k, r] = bound[row, where[mask]].mean()
    return found


def p_value(one: Float[np.ndarray, " c"], other: Float[np.ndarray, " c"]) -> float:
    """Of an independent t-test with unequal variances (Welch): the chance of such a difference if there is none."""
    one, other = one[np.isfinite(one)], other[np.isfinite(other)]
    # a painter of means does not vary but for rounding: there is nothing to test
    if min(len(one), len(other)) < 2 or max(np.ptp(one), np.ptp(other)) < _STILL:
        return float("nan")
    return float(ttest_ind(one, other, equal_var=False).pvalue)
