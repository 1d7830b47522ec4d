"""One B from many noisy voxels: the likelihood of B with the distribution of T1 fitted to the image itself.

    maximise over B   max_p sum_v log sum_k p_k exp(F_vk^2 / 2),   F_vk = max(0, S_v . d_k(B))

S is a series in units of its noise, d_k(B) the atom |1 - B exp(-TI / T1_k)| scaled to length 1, p the histogram of T1
over the atoms. The profile likelihood takes the best T1 of each voxel as the truth; where T1 is uncertain it then
follows the noise over the kinks of the modulus, alike in all voxels, and pulls B along, however many there are
(Neyman and Scott 1948, doi:10.2307/1914288). Here T1 is summed over, and what the voxels have in common, a few tissues,
is known from all of them. p is fitted by EM at each B (Laird 1978, doi:10.1080/01621459.1978.10480103), so that the
maximum over p is a profile likelihood of B again, whose curvature gives its variance.

The amplitude. F^2 / 2 is the log-likelihood at the best A. Integrating over A instead with a flat prior gives
exp(F^2 / 2) / |d_k(B)|, d_k not scaled: each voxel then pulls by the change of log |d| towards the B whose signals are
small, since more amplitudes fit there, and that does not average out (B came out .46 to .63 too low). It is a flat
prior of A |d|, the strength of the signal, or of log A, that has no such pull: the factor is then 1 or 1 / F, and what
an image holds of signal does not depend on B. With it the integral is the profile to the order of 1 / F^2.

The atoms. A voxel whose T1 no atom has takes the nearest, and B makes up for the rest, alike in all such voxels. So the
atoms must reach wherever the series can tell T1: down to a tenth of its first time, below which every atom is the same.
And they must lie closer than the noise: a T1 half-way between two atoms h apart shows as a distribution of SD h / 2,
which N voxels of SD s tell from a single T1 if N (h / 2s)^4 / 4 is above 1; B then moves until the T1 is an atom's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf, log

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.estimators.pooling.profile import sample
from qsim.parameters import T1, B

# T1 of the atoms [s]: exp(-10) of the recovery is left at the first time of the series; never less than tissues need
_DECAYED, _TISSUE = 10, 0.1
# step of the atoms in log T1: the kinks of the modulus wander over them as B changes, which makes the likelihood rough
# if they lie too far apart (with .065 by 10, with .021 by less than 1); and of the levels that only say where to look
_STEP, _FINEST, _WIDER = 0.021, 0.0105, 0.032
# part of the SD of log T1 of the sharper voxels that the last step is at most
_RESOLVED = 0.4
# voxels and step of the atoms of the grid of B, its step, and voxels of the levels after it
_ON_GRID, _GRID_ATOMS = 1024, 0.043
_B_STEP = 0.1
_LEVELS = (4096, 16384)
# EM steps, each made this much longer (they converge for any factor below 2)
_SWEEPS, _OVER = 16, 1.8
# what EM has driven to nothing stays countable in float32
_LEAST = 1e-9
# voxels of one block, whose likelihood stays in the cache; weights that no voxel of a block sees are left out, with
# this many atoms more on either side, until B has moved this far
_BLOCK, _NOTHING, _ROOM, _NEAR = 2048, 1e-7, 6, 0.05
# values of B of one parabola, on either side; their distance in standard errors of B at most, and as it is chosen
_SIDE = 3
_WIDEST, _WIDTH = 1.5, 0.7
# parabolas of one level, at most
_WALK = 8
# RMS distance from B over the whole range above which the likelihood is no peak about B: two steps of the grid
_WIDE = 2 * _B_STEP


@dataclass(frozen=True, slots=True)
class PooledB:
    """The maximum.

    Attributes:
        b: inversion depth [1].
        variance: from the curvature, or, where the likelihood is no peak about B, the mean square of the distance to B
            under it (`mean_square`). What is left of the bias of the profile over A is not in it, and the
            Cramér-Rao bound is no larger: on brain-like images of 31 times the RMS error of ten draws was 1.6, 1.9 and
            2.0 times its root at sigma .072, .149 and .255 with 8000 voxels, 1.7 and 2.9 times at the last two with
            16 384 (of ten draws: to a quarter) [1].
        u: log T1 of the atoms [log s].
        histogram: share of each; adds up to 1.
        converged: the search ended inside its steps.
    """

    b: float
    variance: float
    u: Float[Tensor, " k"]
    histogram: Float[Tensor, " k"]
    converged: bool


class Atoms:
    """Unit vectors of a recovery on an even grid of log T1.

    Args:
        times: inversion times [s].
        signed: no modulus.
        step: of log T1 at most.
    """

    def __init__(self, times: tuple[float, ...], signed: bool, step: float, device: torch.device) -> None:
        first = min((time for time in times if time > 0), default=0.0)
        low, high = log(max(min(first / _DECAYED, _TISSUE), T1.lower)), log(T1.upper)
        number = ceil((high - low) / step) + 1
        self.u = torch.linspace(low, high, number, dtype=torch.float64, device=device)
        self._decay = torch.exp(-torch.tensor(times, dtype=torch.float64, device=device) * torch.exp(-self.u)[:, None])
        self._signed = signed

    def at(self, b: float) -> Float[Tensor, "k n"]:
        rows = 1 - b * self._decay
        rows = rows if self._signed else rows.abs()
        return (rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)).float()


@dataclass(frozen=True, slots=True)
class Block:
    """Some voxels, and the atoms that say anything about them: from `first` on.

    Attributes:
        likelihood: exp(F^2 / 2 - top).
        top: largest F^2 / 2 of each voxel.
    """

    first: int
    likelihood: Float[Tensor, "k v"]
    top: Float[Tensor, " v"]


def evidence(atoms: Float[Tensor, "k n"], y: Float[Tensor, "n v"], band: tuple[int, int]) -> Block:
    """The likelihood of the atoms of a band.

    Args:
        y: series in units of their noise.
    """
    fit = (atoms[slice(*band)] @ y).clamp_min_(0)
    top = fit.amax(0).square_().div_(2)
    return Block(band[0], fit.square_().div_(2).sub_(top).exp_(), top)


def band_of(atoms: Float[Tensor, "k n"], y: Float[Tensor, "n v"]) -> tuple[int, int]:
    """First and last of the atoms that weigh more than 1e-7 in any of these voxels, with room for B to move."""
    block = evidence(atoms, y, (0, len(atoms)))
    counts = torch.nonzero(block.likelihood.amax(1) > _NOTHING)[:, 0]
    return max(int(counts[0]) - _ROOM, 0), min(int(counts[-1]) + 1 + _ROOM, len(atoms))


def fit_histogram(blocks: Sequence[Block], k: int, sweeps: int) -> Float[Tensor, " k"]:
    """EM steps of a histogram of k atoms, from an even one."""
    p = blocks[0].likelihood.new_full((k,), 1 / k)
    n = sum(len(block.top) for block in blocks)
    for _ in range(sweeps):
        share = torch.zeros_like(p)
        for block in blocks:
            stop = block.first + len(block.likelihood)
            total = (p[block.first : stop] @ block.likelihood).reciprocal_()
            share[block.first : stop] += block.likelihood @ total
        p = (p * (share / n).pow_(_OVER)).clamp_min_(_LEAST)
        p = p / p.sum()
    return p


def log_evidence(blocks: Sequence[Block], p: Float[Tensor, " k"]) -> Float[Tensor, " v"]:
    """log sum_k p_k exp(F_vk^2 / 2) of every voxel."""
    means = [p[block.first : block.first + len(block.likelihood)] @ block.likelihood for block in blocks]
    return torch.cat([mean.double().log() + block.top for mean, block in zip(means, blocks, strict=True)])


def pool_b(
    times: tuple[float, ...],
    signed: bool,
    y: Float[Tensor, "n v"],
    log_prior: Callable[[float], float] | None = None,
    spread: float = 0.0,
) -> PooledB:
    """The B in [0, 3] of the largest likelihood.

    With more than 16384 voxels, that many of them, always the same ones.

    Args:
        times: inversion times [s].
        signed: the series keeps its sign.
        y: series of the voxels, each over its own sigma [1].
        log_prior: logarithm of what is known of B before the images, up to a constant; None: flat.
        spread: SD of log T1 of the sharper voxels at known B, if that is known: much noise needs fewer atoms [1].
    """
    grid = torch.arange(0.0, B.upper + 1e-9, _B_STEP).tolist()
    coarse = _Level(Atoms(times, signed, _GRID_ATOMS, y.device), sample(y, _ON_GRID), log_prior, B.start)
    heights = [coarse.value(depth) for depth in grid]
    b, step = grid[heights.index(max(heights))], _B_STEP / 2
    fine = min(max(_RESOLVED * spread, _FINEST), _WIDER) if spread > 0 else _STEP
    sizes = [size for size in _LEVELS[:-1] if size < y.shape[1]]
    for size in [*sizes, _LEVELS[-1]]:
        wide = _WIDER if size < _LEVELS[-1] else fine
        found = _Level(Atoms(times, signed, wide, y.device), sample(y, size), log_prior, b).climb(b, step)
        b, step = found.b, min(_WIDTH * found.variance**0.5, step)
    wide = _mean_square(grid, heights, found.b)
    if wide > _WIDE**2 and y.shape[1] > _ON_GRID:
        wide = mean_square(times, signed, sample(y, _LEVELS[-1]), found.b, log_prior)
    return replace(found, variance=max(found.variance, wide)) if wide > _WIDE**2 else found


def mean_square(
    times: tuple[float, ...],
    signed: bool,
    y: Float[Tensor, "n v"],
    b: float,
    log_prior: Callable[[float], float] | None = None,
) -> float:
    """Mean of (B - b)^2 over all B in [0, 3], weighed by the likelihood.

    Where the series says next to nothing about B, its likelihood is flat but for small bumps. One of them is the
    maximum, and neither the curvature there nor the Cramér-Rao bound there shows how far from the truth it may be.

    Args: as `pool_b`.
    """
    grid = torch.arange(0.0, B.upper + 1e-9, _B_STEP).tolist()
    level = _Level(Atoms(times, signed, _GRID_ATOMS, y.device), y, log_prior, B.start)
    return _mean_square(grid, [level.value(depth) for depth in grid], b)


def _mean_square(grid: Sequence[float], heights: Sequence[float], b: float) -> float:
    weights = torch.softmax(torch.tensor(heights, dtype=torch.float64), 0)
    return float(weights @ (torch.tensor(grid, dtype=torch.float64) - b).square())


class _Level:
    """The likelihood of B of some voxels, sorted by their T1, so that a block of them needs few atoms."""

    def __init__(
        self, atoms: Atoms, y: Float[Tensor, "n v"], log_prior: Callable[[float], float] | None, start: float
    ) -> None:
        self.atoms, self.log_prior = atoms, log_prior
        rows = atoms.at(start)
        best = torch.cat([(rows @ chunk).argmax(0) for chunk in y.split(_BLOCK, dim=1)])
        self._series = [chunk.contiguous() for chunk in y[:, best.argsort(stable=True)].split(_BLOCK, dim=1)]
        self._bands: list[tuple[int, int]] = []
        self._bands_of = inf
        self._known: dict[float, float] = {}

    def value(self, b: float) -> float:
        if b not in self._known:
            prior = self.log_prior(b) if self.log_prior is not None else 0.0
            self._known[b] = float(self._voxels(b).sum()) + prior
        return self._known[b]

    def histogram(self, b: float) -> Float[Tensor, " k"]:
        return fit_histogram(self._blocks(b), len(self.atoms.u), _SWEEPS)

    def _voxels(self, b: float) -> Float[Tensor, " v"]:
        blocks = self._blocks(b)
        return log_evidence(blocks, fit_histogram(blocks, len(self.atoms.u), _SWEEPS))

    def _blocks(self, b: float) -> list[Block]:
        rows = self.atoms.at(b)
        if abs(b - self._bands_of) > _NEAR:
            self._bands, self._bands_of = [band_of(rows, y) for y in self._series], b
        return [evidence(rows, y, band) for y, band in zip(self._series, self._bands, strict=True)]

    def climb(self, b: float, step: float) -> PooledB:
        """The vertex of a parabola near the values about it: by least squares, since they are a little rough."""
        converged, variance = False, inf
        for _ in range(_WALK):
            half = _SIDE * step
            middle = min(max(b, half), B.upper - half)
            x = torch.arange(-_SIDE, _SIDE + 1, dtype=torch.float64)
            heights = torch.tensor([self.value(middle + float(i) * step) for i in x], dtype=torch.float64)
            highest = float(x[int(heights.argmax())])
            heights = heights - heights.max()
            bend, slope, _ = torch.linalg.lstsq(torch.stack((x * x, x, torch.ones_like(x)), dim=1), heights).solution
            vertex = float(-slope / (2 * bend)) if bend < 0 else inf
            if not abs(vertex) < _SIDE:
                # not a peak, or beyond these values; at an end of the range of B there is nothing beyond
                b = middle + highest * step
                if b in (0.0, B.upper):
                    break
                continue
            b, error = middle + vertex * step, float(step / (-2 * bend) ** 0.5)
            variance = error**2
            if step <= _WIDEST * error:
                converged = True
                break
            step = max(_WIDTH * error, step / 4)
        return PooledB(b, variance, self.atoms.u, self.histogram(b), converged)
