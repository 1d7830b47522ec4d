"""Levenberg-Marquardt for any signal model, likelihood and prior, one problem per voxel, all voxels at once.

Each step solves, with gradient and H of `voxel_problem`,

    (H + lambda diag H) delta = -grad F

and is taken if F falls. A step that would leave a range ends on its bound exactly; a row on its bound whose gradient
points outwards rests (projected Newton, Bertsekas 1982, doi:10.1137/0320018). Everything runs in float64 and in chunks,
out of which voxels that have converged are taken. Results do not depend on the chunks but for last bits.

Source: Marquardt 1963, doi:10.1137/0111030; Madsen, Nielsen and Tingleff 2004, Methods for non-linear least squares.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qsim.estimators.descent.voxel_problem import Problem, gradient

# numbers of the Jacobian of one chunk, which stays in the processor's cache
_BLOCK = 60_000
_STEPS = 100
# a step that gains less than this part of one unit of the objective (log-likelihood) is the last: 5e-6 SD
_GAIN = 1e-11
_STALLED = 1e12
_WEAK = 1e-4


@dataclass(frozen=True, slots=True)
class Minimum:
    """Where the search ended.

    Attributes:
        theta: there.
        objective: F there, without constants.
        converged: whether no step was left that gains anything.
    """

    theta: Float[Tensor, "q v"]
    objective: Float[Tensor, " v"]
    converged: Bool[Tensor, " v"]


def minimise(
    problem: Problem,
    images: Float[Tensor, "n v"],
    sigma: Float[Tensor, " v_or_1"] | None,
    start: Float[Tensor, "q v"],
    steps: int = _STEPS,
) -> Minimum:
    """Descend from `start` in every voxel.

    Args:
        images: float64 [units of A].
        sigma: noise SD; None (Gaussian only): 1, and the residual says what a negligible gain is [units of A].
        start: theta, inside its range; rows that are not free hold what is known.
        steps: at most.
    """
    q, voxels = start.shape
    size = max(64, _BLOCK // (images.shape[0] * q))
    pieces = []
    for first in range(0, voxels, size):
        part = slice(first, first + size)
        own = None if sigma is None else sigma if sigma.numel() == 1 else sigma[part]
        pieces.append(_descend(problem, images[:, part], own, start[:, part], steps))
    if not pieces:
        return Minimum(start, start.new_zeros(0), torch.zeros(0, dtype=torch.bool, device=start.device))
    theta, objective, converged = (torch.cat(column, -1) for column in zip(*pieces, strict=True))
    return Minimum(theta, objective, converged)


def _descend(
    problem: Problem,
    images: Float[Tensor, "n v"],
    sigma: Float[Tensor, " v_or_1"] | None,
    start: Float[Tensor, "q v"],
    steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    free = list(problem.free)
    lower, upper = (end[free] for end in problem.coordinates.bounds(start.device))
    scale = start.new_ones(1) if sigma is None else sigma
    # without sigma the unit of the objective is the noise that the residual shows, or else rounding
    floor = 1e-24 * images.square().sum(0) + 1e-300
    n = images.shape[0]

    found, lowest = start.clone(), start.new_full(start.shape[1:], torch.inf)
    converged = torch.zeros_like(lowest, dtype=torch.bool)
    active = torch.arange(start.shape[1], device=start.device)
    theta, y, s, least = start, images, scale, floor
    objective, slope, hessian = gradient(problem, y, s, theta)
    damping = torch.full_like(objective, 1e-3)
    growth = torch.full_like(objective, 2.0)
    for _ in range(steps):
        here = theta[free]
        resting = ((here <= lower) & (slope > 0)) | ((here >= upper) & (slope < 0))
        downhill = torch.where(resting, 0.0, -slope)
        step = _solve(hessian, downhill, damping, resting)
        gain = (downhill * step).sum(0) * (1 + damping) / 2
        unit = torch.maximum(2 * objective / n, least) if sigma is None else torch.ones_like(objective)
        trial = theta.clone()
        trial[free] = torch.minimum(torch.maximum(here + step, lower), upper)
        moved = (trial[free] - here).abs().amax(0) if free else torch.zeros_like(objective)
        # nothing to gain (as a damped step shows only where the damping is weak), or as far as the digits reach
        done = (gain <= _GAIN * unit) & ((damping <= _WEAK) | (gain <= 0))
        ended = (done | (moved <= 1e-13) | (damping > _STALLED)) & torch.isfinite(objective)
        ended |= ~torch.isfinite(objective)
        new, new_slope, new_hessian = gradient(problem, y, s, trial)
        better = new <= objective
        # a last step is taken too where it does not raise F
        theta = torch.where(better, trial, theta)
        ratio = (objective - new) / gain.clamp_min(1e-300)
        eased = (1 - (2 * ratio.clamp(0, 1) - 1) ** 3).clamp_min(0.05)
        damping = torch.where(better, (damping * eased).clamp_min(1e-12), damping * growth)
        growth = torch.where(better, 2.0, 2 * growth)
        objective = torch.where(better, new, objective)
        slope, hessian = torch.where(better, new_slope, slope), torch.where(better, new_hessian, hessian)
        if bool(ended.any()):
            out = active[ended]
            found[:, out], lowest[out] = theta[:, ended], objective[ended]
            converged[out] = torch.isfinite(objective[ended])
            left = torch.nonzero(~ended).squeeze(1)
            if left.numel() == 0:
                return found, lowest, converged
            active, theta, y, least = active[left], theta[:, left], y[:, left], least[left]
            s = s if s.numel() == 1 else s[left]
            objective, slope, hessian = objective[left], slope[:, left], hessian[:, :, left]
            damping, growth = damping[left], growth[left]
    found[:, active], lowest[active] = theta, objective
    return found, lowest, converged


def _solve(
    hessian: Float[Tensor, "f f v"],
    right: Float[Tensor, "f v"],
    damping: Float[Tensor, " v"],
    resting: Bool[Tensor, "f v"],
) -> Float[Tensor, "f v"]:
    """(H + damping diag H)^-1 right by Cholesky, on a unit diagonal; resting rows stay 0."""
    size = right.shape[0]
    diagonal = torch.einsum("iiv->iv", hessian)
    usable = (diagonal > 0) & ~resting
    root = torch.where(usable, diagonal, 1.0).rsqrt()
    root = torch.where(usable, root, 0.0)
    lower: list[list[Tensor]] = []
    x: list[Tensor] = []
    for i in range(size):
        row: list[Tensor] = []
        for j in range(i):
            entry = hessian[i, j] * root[i] * root[j]
            for k in range(j):
                entry = entry - row[k] * lower[j][k]
            row.append(entry / lower[j][j])
        pivot = 1 + damping
        for k in range(i):
            pivot = pivot - row[k] * row[k]
        row.append(pivot.clamp_min(1e-14).sqrt())
        lower.append(row)
        value = right[i] * root[i]
        for k in range(i):
            value = value - row[k] * x[k]
        x.append(value / row[i])
    for i in reversed(range(size)):
        for k in range(i + 1, size):
            x[i] = x[i] - lower[k][i] * x[k]
        x[i] = x[i] / lower[i][i]
    return torch.stack(x) * root if size else right


def replaced(best: Minimum, tried: Minimum, at: Int[Tensor, " k"]) -> Minimum:
    """`best` with the minima `tried` of the voxels `at` where these are lower by more than rounding."""
    held = best.objective[at]
    # a descent that never got anywhere gives way to any other
    lower = (tried.objective < held - 1e-9 * held.abs()) | (torch.isfinite(tried.objective) & ~torch.isfinite(held))
    theta, objective, converged = best.theta.clone(), best.objective.clone(), best.converged.clone()
    where = at[lower]
    theta[:, where], objective[where] = tried.theta[:, lower], tried.objective[lower]
    converged[where] = tried.converged[lower]
    return Minimum(theta, objective, converged)


def join(pieces: list[Minimum], rows: int, like: Tensor) -> Minimum:
    """Chunks one after the other."""
    if not pieces:
        empty = torch.zeros(0, dtype=torch.float64, device=like.device)
        return Minimum(empty.new_zeros(rows, 0), empty, empty.bool())
    return Minimum(
        torch.cat([p.theta for p in pieces], 1),
        torch.cat([p.objective for p in pieces]),
        torch.cat([p.converged for p in pieces]),
    )
