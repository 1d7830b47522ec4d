"""The climb to a smooth map of B: Newton steps whose curvature cannot be negative, each shortened until it gains.

    maximise sum_v l_v(B_v) - w sum_v (L B)_v^2   over 0 <= B <= 3

Near a map, l_v has the slope g_v and the curvature -D_v; the step solves (D + d + 2 w L L) step = g - 2 w L L B.
An infinite weight means one B per connected piece.

The damping d_v >= 0 is each voxel's own (Levenberg 1944, doi:10.1090/qam/10666): a voxel whose l_v bends more sharply
than its parabola, such as one whose T1 meets the end of its range, would shorten the step of all. It is chosen so that
no voxel's own step g / (D + d) is longer than what a parabola is good for; and where over the last step s a voxel fell
short of its parabola, d_v takes up the curvature that was met,

    D_v + d_v = 2 (g_v s_v - (l_v(B + s) - l_v(B))) / s_v^2.

Where the parabola is right again d_v falls by a factor 4 each step. The maximum is that without d.
"""

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.estimators.pooling.depth_profile import DepthProfile
from qsim.estimators.pooling.laplacian import Blocks, Domain, Solver
from qsim.estimators.pooling.smoothing_weight import evident_weight
from qsim.parameters import B

# longest step of any voxel
_REACH = 0.3
_HALVINGS = 8
# a voxel that gained less than this part of what it promised is damped, where the shortfall is more than this part of
# the tolerance of the sum; a step that the damping does not mend is shortened
_SHORT, _TRIFLE = 0.5, 1e-4
# of shorter moves the gain is one of T1, which goes on moving
_STILL = 1e-6
# the damping falls by this factor where a parabola was right
_RELAX = 0.25
# steps that move T1 more than this deserve a second Newton step of T1
_FAR = 0.01
# curvature of a voxel that says nothing about its B, relative to the mean
_FLOOR = 1e-3
# beyond this ratio of the two parts of the system, 64-bit numbers cannot tell its weight from an infinite one
_INFINITE = 1e15
# of sums of 64-bit numbers over many voxels
_ROUNDING = 1e-14
# a voxel whose B a further step would move by less has settled: 5e-4 of B, about as much of T1 [1]
_SETTLED = 1e-3
# the rounds in which the weight is chosen anew, and the change of its logarithm that ends them
_ROUNDS = 6
_SAME = 0.25


@dataclass(frozen=True, slots=True)
class Local:
    """The likelihood of a map of B and its neighbourhood.

    Attributes:
        b: the map [1].
        value: sum of the log-likelihoods, up to a constant.
        slope: of each voxel's.
        curvature: of each voxel's, turned positive; what is expected, not what it is.
        u: log T1 that belongs to the map, where T1 follows it [log s].
        u_b: how it follows.
        rounding: error of `value`.
        own: the log-likelihood of each voxel, where it is at hand.
        damping: d of each voxel; None: none.
    """

    b: Float[np.ndarray, " v"]
    value: float
    slope: Float[np.ndarray, " v"]
    curvature: Float[np.ndarray, " v"]
    u: Float[Tensor, " v"] | None = None
    u_b: Float[Tensor, " v"] | None = None
    rounding: float = 0.0
    own: Float[np.ndarray, " v"] | None = None
    damping: Float[np.ndarray, " v"] | None = None


@runtime_checkable
class Likelihood(Protocol):
    """What voxels say about their B."""

    def start(self, b: Float[np.ndarray, " v"]) -> Local:
        """Anywhere."""
        ...

    def move(self, here: Local, b: Float[np.ndarray, " v"]) -> Local:
        """Close to `here`."""
        ...


class Profiled:
    """Likelihood with A and T1 of each voxel at their best: phi_v(B) / 2 sigma_v^2.

    Args:
        profile: the voxels.
        sigma: noise SD, one or per voxel [units of the images].
    """

    def __init__(self, profile: DepthProfile, sigma: Float[Tensor, " v_or_1"]) -> None:
        self.profile, self.scale = profile, 0.5 / sigma.double().square()

    def start(self, b: Float[np.ndarray, " v"]) -> Local:
        depth = self._tensor(b)
        return self._local(b, self.profile.settle(depth, self.profile.search(depth)).u)

    def move(self, here: Local, b: Float[np.ndarray, " v"]) -> Local:
        assert here.u is not None and here.u_b is not None  # noqa: PT018
        depth, moved = self._tensor(b), self._tensor(b - here.b)
        u = here.u + here.u_b * moved
        if float(moved.abs().amax()) > _FAR:
            u = self.profile.follow(depth, u).u
        return self._local(b, u)

    def best(self, here: Local) -> Local:
        """The same map, with the better of two T1: as followed, or searched anew."""
        assert here.u is not None
        depth = self._tensor(here.b)
        new = self.profile.settle(depth, self.profile.search(depth)).u
        old = self.profile.settle(depth, here.u).u
        better = self.profile.explained(depth, new) > self.profile.explained(depth, old)
        return self._local(here.b, torch.where(better, new, old))

    def _local(self, b: Float[np.ndarray, " v"], u: Float[Tensor, " v"]) -> Local:
        found = self.profile.follow(self._tensor(b), u)
        slope, curvature = (self.scale * x for x in (found.slope, -found.expected))
        own = self.scale * found.explained
        value = float(own.sum())
        d = _floored(curvature.cpu().numpy())
        g = slope.cpu().numpy()
        return Local(b, value, g, d, found.u, found.u_b, _ROUNDING * value, own.cpu().numpy())

    def _tensor(self, b: Float[np.ndarray, " v"]) -> Float[Tensor, " v"]:
        return torch.from_numpy(b).to(self.profile.y.device)


def _floored(d: Float[np.ndarray, " v"]) -> Float[np.ndarray, " v"]:
    mean = float(d.mean())
    return np.maximum(d, _FLOOR * mean if mean > 0 else 1.0)


class Climb:
    """Climbs of one mask.

    Args:
        domain: voxels.
        blocks: for the choice of the weight.
        tolerance: the climb ends where a step gains less than this [log-likelihood].
        steps: at most, per weight.
    """

    def __init__(self, domain: Domain, blocks: Blocks, tolerance: float, steps: int) -> None:
        self.domain, self.blocks = domain, blocks
        self.aggregates = domain.aggregates()
        self.tolerance, self.steps = tolerance, steps

    def solver(self, weight: float, d: Float[np.ndarray, " v"]) -> Solver:
        return Solver(self.domain, self.aggregates, weight, d)

    def effective(self, weight: float, d: Float[np.ndarray, " v"]) -> float:
        """The weight, infinite where numbers cannot tell it from that."""
        most = 2 * weight * (4 * self.domain.axes) ** 2
        return np.inf if most > _INFINITE * float(d.mean()) or self.domain.pairs.shape[1] == 0 else weight

    def choose(self, likelihood: Likelihood, here: Local) -> tuple[Local, float]:
        """The weight of largest evidence, and a map close to its own."""
        weight = 0.0
        for _ in range(_ROUNDS):
            before = weight
            weight = evident_weight(self.blocks, here.b, here.slope, here.curvature, self.domain.n_pieces)
            weight = self.effective(weight, here.curvature)
            if weight == before or abs(np.log(weight) - np.log(max(before, 1e-300))) < _SAME:
                break
            here, _, _, _ = self.step(likelihood, here, weight)
        return here, weight

    def climb(self, likelihood: Likelihood, here: Local, weight: float) -> tuple[Local, Bool[np.ndarray, " v"]]:
        """The map of this weight, and which voxels have settled.

        All have where the climb ended by itself. Where it did not, a few voxels between two minima of T1 may hold up
        the common step: settled are those that would hardly move in it.
        """
        weight = self.effective(weight, here.curvature)
        move = np.full(here.b.shape, np.inf)
        for _ in range(self.steps):
            here, gain, moved, move = self.step(likelihood, here, weight)
            if gain < max(self.tolerance, here.rounding):
                return here, np.ones(here.b.shape, dtype=bool)
            if not moved:
                break
        return here, np.abs(move) < _SETTLED

    def step(
        self, likelihood: Likelihood, here: Local, weight: float
    ) -> tuple[Local, float, bool, Float[np.ndarray, " v"]]:
        """One step: where it led, what a parabola promised, whether it was made, and where the parabola pointed."""
        if np.isinf(weight):
            # from here on constant on each piece, whatever it was
            here = self._level(likelihood, here)
        now, shorter = self._objective(here, weight), 1.0
        for _ in range(_HALVINGS):
            d, (step, gain) = _damped(here), self._newton(here, weight)
            longest = float(np.abs(step).max())
            if longest == 0.0 or not np.isfinite(longest):
                return here, 0.0 if longest == 0.0 else np.inf, False, step
            part = shorter * min(1.0, _REACH / longest)
            there = likelihood.move(here, np.clip(here.b + part * step, 0.0, B.upper))
            damping = self._damping(here, there, d)
            risen = self._objective(there, weight) - now
            if risen >= -here.rounding or part * gain < self.tolerance:
                return replace(there, damping=damping), gain, True, step
            if damping is None or np.array_equal(damping, d - here.curvature):
                shorter /= 2
            else:
                here = replace(here, damping=np.maximum(damping, d - here.curvature))
        return here, gain, False, step

    def _newton(self, here: Local, weight: float) -> tuple[Float[np.ndarray, " v"], float]:
        """Where the parabola points, and what it promises."""
        d, uphill = _damped(here), here.slope
        if np.isinf(weight):
            step = self._means(uphill / d, d)
        else:
            laplacian = self.domain.laplacian
            uphill = uphill - 2 * weight * (laplacian @ (laplacian @ here.b))
            free = _free(here.b, uphill)
            step, _ = self.solver(weight, d).solve(d, uphill, free, 0.01, 100)
        return step, 0.5 * float(uphill @ step)

    def _damping(self, here: Local, there: Local, d: Float[np.ndarray, " v"]) -> Float[np.ndarray, " v"] | None:
        """What the voxels' own gains say about their curvature."""
        if here.own is None or there.own is None:
            return None
        moved = there.b - here.b
        linear = here.slope * moved
        gained, promised = there.own - here.own, linear - 0.5 * d * moved**2
        short = promised - gained > np.maximum(_SHORT * np.abs(promised), _TRIFLE * self.tolerance)
        short &= np.abs(moved) > _STILL
        met = 2 * (linear - gained) / np.where(short, moved**2, 1.0)
        return np.where(short, np.maximum(met, d) - here.curvature, _RELAX * (d - here.curvature))

    def _objective(self, here: Local, weight: float) -> float:
        return here.value - (0.0 if np.isinf(weight) else weight * self.domain.roughness(here.b))

    def _means(self, x: Float[np.ndarray, " v"], d: Float[np.ndarray, " v"]) -> Float[np.ndarray, " v"]:
        piece = self.domain.piece
        return (np.bincount(piece, d * x) / np.bincount(piece, d))[piece]

    def _level(self, likelihood: Likelihood, here: Local) -> Local:
        level = self._means(here.b, here.curvature)
        return here if np.abs(level - here.b).max() < 1e-12 else likelihood.move(here, np.clip(level, 0.0, B.upper))


def _damped(here: Local) -> Float[np.ndarray, " v"]:
    """Curvature with the damping, and with a floor that keeps the voxel's own step short."""
    d = here.curvature if here.damping is None else here.curvature + here.damping
    return d if here.own is None else np.maximum(d, np.abs(here.slope) / _REACH)


def _free(b: Float[np.ndarray, " v"], uphill: Float[np.ndarray, " v"]) -> Bool[np.ndarray, " v"] | None:
    """Voxels that may move; None: all."""
    held = ((b <= 0) & (uphill < 0)) | ((b >= B.upper) & (uphill > 0))
    return ~held if held.any() else None
