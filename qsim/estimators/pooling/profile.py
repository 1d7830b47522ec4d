"""The profile likelihood of B over many voxels: for each B the best T1 and A of every voxel (`pieces`).

B is searched on a grid with some voxels, climbed with those, then with more, then with all: each level starts within
its own standard errors, so that all voxels are mostly looked at once. When B moves a little, A and T1 follow it to
first order.
"""

from dataclasses import dataclass, replace
from math import log

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.estimators.pooling.pieces import peaks, pieces
from qsim.parameters import T1, B

# voxels that the first level climbs with, and the next; of the first the share that the grid looks at
_SEARCHED = 4096
_LEVELS = (_SEARCHED, 8 * _SEARCHED)
_ON_GRID = 2048
_B_STEP = 0.1
# atoms of the grid: only the basin matters
_ATOMS = 48
# largest step of the climb
_REACH = 0.1
# climbs that end this close have ended together
_NEAR = 0.03
# B has converged when a step, which is still made, is this small a part of its own standard error: where the curvature
# is known from these voxels alone, and where a sample of them has given it
_STEP = 0.1
_LAST_STEP = 8.0
_PASSES = 20


@dataclass(frozen=True, slots=True)
class Point:
    """All voxels at one B.

    Attributes:
        b: the common B [1].
        a: amplitudes [units of the series].
        u: log T1 [log s].
        a_b, u_b: how both follow B.
        ended: the search of T1 came to an end.
        explained: sum of phi.
        slope, curvature: derivatives of that sum in B, with A and T1 of every voxel following.
    """

    b: float
    a: Float[Tensor, " v"]
    u: Float[Tensor, " v"]
    a_b: Float[Tensor, " v"]
    u_b: Float[Tensor, " v"]
    ended: Bool[Tensor, " v"]
    explained: float
    slope: float
    curvature: float


# where a climb ended, whether it converged, and the curvature per voxel
_Ascent = tuple[Point, bool, float]


def _height(climb: _Ascent) -> float:
    return climb[0].explained


def _distinct(found: list[_Ascent]) -> list[_Ascent]:
    """One of those climbs that ended together."""
    kept: list[_Ascent] = []
    for climb in found:
        if all(abs(climb[0].b - other[0].b) > _NEAR for other in kept):
            kept.append(climb)
    return kept


def sample(y: Float[Tensor, "n v"], size: int) -> Float[Tensor, "n s"]:
    """Some of the voxels, always the same ones of as many; at random: a stride may hit one tissue only."""
    if size >= y.shape[1]:
        return y
    index = torch.randint(y.shape[1], (size,), generator=torch.Generator().manual_seed(0))
    # in order: the series lie far apart in memory
    return y[:, index.sort().values.to(y.device)]


@dataclass(frozen=True, slots=True)
class Begun:
    """Climbs of the first level.

    Attributes:
        profile: of its voxels.
        found: where they ended.
    """

    profile: "Profile"
    found: list[_Ascent]

    @property
    def point(self) -> Point:
        """The highest."""
        return max(self.found, key=_height)[0]


class Profile:
    """The profile likelihood of B of the voxels `y`.

    Args:
        ti: inversion times [s].
        signed: the series keeps its sign; there are no kinks then.
        y: series of the voxels, each over its own sigma if these differ [any unit].
    """

    def __init__(self, ti: tuple[float, ...], signed: bool, y: Float[Tensor, "n v"]) -> None:
        self.signed, self.y = signed, y.float()
        self._times = ti
        self._energy = sum(float(torch.dot(image, image)) for image in self.y)

    def at(self, b: float) -> Point:
        """Every voxel at one B."""
        found = peaks(pieces(self._times, self.signed, b, self.y.device), self.y)
        sums = (float(x.sum(dtype=torch.float64)) for x in (found.explained, found.slope, found.curvature))
        return Point(b, found.a, found.u, found.a_b, found.u_b, found.ended, *sums)

    def glance(self) -> Point:
        """Some of the voxels at the best B of a coarse grid."""
        few = Profile(self._times, self.signed, sample(self.y, _ON_GRID))
        return few.at(few._highest())

    def begin(self) -> "Begun":
        """The maxima that a sample of the voxels cannot tell apart: a look at B that costs little."""
        n = self.y.shape[1]
        small = n // 2 > _LEVELS[0]
        first = Profile(self._times, self.signed, sample(self.y, _LEVELS[0])) if small else self
        found = _distinct([first._ascend(start, None) for start in first._starts(sampled=small)])
        if small:
            found = [(point, converged, first._bend(point, bend)) for point, converged, bend in found]
        return Begun(first, found)

    def maximise(self, begun: "Begun | None" = None) -> tuple[Point, bool]:
        """The voxels at the B that maximises the profile, and whether the climb converged."""
        begun = begun or self.begin()
        found, n = begun.found, self.y.shape[1]
        levels = [Profile(self._times, self.signed, sample(self.y, m)) for m in _LEVELS[1:] if m < n // 2]
        for level in [*levels, *([self] if begun.profile is not self else [])]:
            found = _distinct([level._ascend(point.b, curvature) for point, _, curvature in found])
        point, converged, _ = max(found, key=_height)
        return point, converged

    def residual(self, point: Point) -> float:
        """Variance of the noise that the residuals show [unit of the series^2]."""
        freedom = max(1, self.y.numel() - 2 * self.y.shape[1] - 1)
        return max(self._energy - point.explained, 0.0) / freedom

    def _highest(self) -> float:
        total = self._grid(self.y).sum(1)
        return _B_STEP * (1 + int(total.argmax()))

    def _grid(self, y: Float[Tensor, "n s"]) -> Float[Tensor, "g s"]:
        """What is explained of each voxel at B = .1, .2 ... 3."""
        u = torch.linspace(log(T1.lower), log(T1.upper), _ATOMS)
        decay = torch.exp(-torch.tensor(self._times) * torch.exp(-u)[:, None])
        depths = [_B_STEP * (1 + i) for i in range(round(B.upper / _B_STEP))]
        return torch.stack([(self._atoms(1 - b * decay) @ y).amax(0).clamp_min(0).square() for b in depths]).double()

    def _starts(self, sampled: bool) -> list[float]:
        """Local maxima of the profile on a grid of B that these voxels cannot tell from the best one."""
        y = self.y[:, :: max(1, self.y.shape[1] // _ON_GRID)].contiguous()
        sampled = sampled or y.shape[1] < self.y.shape[1]
        phi = self._grid(y)
        total = phi.sum(1)
        best = int(total.argmax())
        # sampling error of the difference between two values of B, if only some of the voxels are here
        spread = (phi - phi[best]).std(1) * y.shape[1] ** 0.5 if sampled else torch.zeros_like(total)
        # the atoms lose a part of what a refined T1 explains
        slack = 4 * spread + 0.01 * (float(y.square().sum(dtype=torch.float64)) - float(total[best]))
        padded = torch.nn.functional.pad(total, (1, 1), value=-torch.inf)
        top = (total >= padded[:-2]) & (total >= padded[2:]) & (total >= total[best] - slack)
        return [_B_STEP * (1 + i) for i in torch.nonzero(top)[:, 0].tolist()]

    def _atoms(self, signal: Float[Tensor, "g n"]) -> Float[Tensor, "g n"]:
        rows = signal if self.signed else signal.abs()
        return (rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)).to(self.y.device)

    def _error(self, point: Point, curvature: float) -> float:
        """Standard error of B, with the noise that the residuals show; 0 if the profile is convex."""
        return (2 * self.residual(point) / -curvature) ** 0.5 if curvature < 0 else 0.0

    def _bend(self, point: Point, curvature_per_voxel: float) -> float:
        """Curvature of the profile per voxel, measured over two standard errors on either side.

        The expected one, that of an endless series of draws about a regular maximum, is right to a few per cent at SNR
        30 and above, but wrong by about 2 at SNR 3, where voxels cross kinks.
        """
        n = self.y.shape[1]
        reach = 2 * self._error(point, curvature_per_voxel * n)
        if reach == 0:
            return curvature_per_voxel
        low, high = (self.at(min(max(point.b + step, 0.0), B.upper)) for step in (-reach, reach))
        bend = (high.slope - low.slope) / ((high.b - low.b) * n)
        return bend if bend < 0 else curvature_per_voxel

    def _ascend(self, b: float, curvature_per_voxel: float | None) -> _Ascent:
        """Climb the profile from `b`: Newton steps, later regula falsi between slopes of opposite sign.

        Args:
            curvature_per_voxel: of the profile, measured on a sample of these voxels.
        Returns: the point, whether it converged, and the curvature per voxel.
        """
        n = self.y.shape[1]
        left, right = (0.0, 0.0), (B.upper, 0.0)
        here, stays = self.at(b), ""
        curvature = here.curvature if curvature_per_voxel is None else curvature_per_voxel * n
        for _ in range(_PASSES):
            # Illinois: an end that stays a second time counts half, or regula falsi crawls
            if here.slope > 0:
                left, right = (here.b, here.slope), (right[0], right[1] * (0.5 if stays == "right" else 1.0))
                stays = "right"
            else:
                left, right = (left[0], left[1] * (0.5 if stays == "left" else 1.0)), (here.b, here.slope)
                stays = "left"
            if left[1] > 0 > right[1]:
                # the slope of a sum over voxels is nearly straight between two values of B
                curvature = (right[1] - left[1]) / (right[0] - left[0])
            step = -here.slope / curvature if curvature < 0 else (_REACH if here.slope > 0 else -_REACH)
            target = min(max(here.b + min(max(step, -_REACH), _REACH), left[0]), right[0])
            step = target - here.b
            error = self._error(here, curvature)
            if abs(step) <= max((_STEP if curvature_per_voxel is None else _LAST_STEP) * error, 1e-7):
                return moved(here, target), True, curvature / n
            here = self.at(target)
        return here, False, curvature / n


def moved(here: Point, b: float) -> Point:
    """The point at a B close by: A and T1 follow a short step to first order."""
    step = b - here.b
    u = (here.u + step * here.u_b).clamp(log(T1.lower), log(T1.upper))
    return replace(here, b=b, a=(here.a + step * here.a_b).clamp_min(0), u=u)
