"""Variable projection: fits that are linear in the amplitudes and nonlinear in one relaxation time.

For a given time T the amplitudes follow in closed form, and what is left is one function of u = log T, smooth with
known derivatives. A *family* is such a function: two free amplitudes (`refine_plane`) or one (`refine_ray`). The
searches hand in one candidate per column and get back the maximum of what the family explains of the series.

Source: Golub and Pereyra 1973, doi:10.1137/0710036.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qsim.parameters import Parameter

_STEPS = 40
# a Newton step h that gains g leaves an error of the order h^2, worth g h^2: the last if that is less than this part of
# the objective
_RELATIVE = 1e-8
_STEP = 1e-7

Moments = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def log_grid(parameter: Parameter, n: int) -> Float[Tensor, " g"]:
    """`n` values of log T over the bounds of a relaxation time, ends included [log s]."""
    ends = torch.tensor([parameter.lower, parameter.upper], dtype=torch.float64).log()
    return torch.lerp(ends[0], ends[1], torch.linspace(0, 1, n, dtype=torch.float64))


def plane_moments(z: Float[Tensor, "n c"], times: Float[Tensor, "n 1"], u: Float[Tensor, " c"]) -> Moments:
    """Moments of the family z ~ x1 + x2 E, E = exp(-t / T), with the constant projected out.

    Returns: p = z.d and q = d.d of d = E - mean(E), each with its first and second derivative in u = log T.
    """
    tau = times * torch.exp(-u)
    e = torch.exp(-tau)
    first = e * tau
    second = first * (tau - 1)
    e = e - e.mean(0)
    first = first - first.mean(0)
    second = second - second.mean(0)
    return (
        (z * e).sum(0),
        (z * first).sum(0),
        (z * second).sum(0),
        (e * e).sum(0),
        2 * (e * first).sum(0),
        2 * ((first * first).sum(0) + (e * second).sum(0)),
    )


def ray_moments(
    y: Float[Tensor, "n c"],
    times: Float[Tensor, "n c_or_1"],
    u: Float[Tensor, " c"],
    constant: float,
    b: Float[Tensor, " depths"],
    rectify: bool,
) -> Moments:
    """Moments of the family y ~ A |constant - b exp(-t / T)| (without the modulus unless `rectify`).

    Returns: p = y.d and q = d.d, each with its first and second derivative in u = log T.
    """
    tau = times * torch.exp(-u)
    e = b * torch.exp(-tau)
    d = constant - e
    first = -e * tau
    second = first * (tau - 1)
    z = torch.where(d < 0, -y, y) if rectify else y
    return (
        (z * d).sum(0),
        (z * first).sum(0),
        (z * second).sum(0),
        (d * d).sum(0),
        2 * (d * first).sum(0),
        2 * ((first * first).sum(0) + (d * second).sum(0)),
    )


def refine(
    moments: Callable[[Int[Tensor, " k"] | slice, Float[Tensor, " k"]], Moments],
    u: Float[Tensor, " c"],
    lower: Float[Tensor, " c"],
    upper: Float[Tensor, " c"],
    unexplained: Float[Tensor, " c"],
    steps: int = _STEPS,
) -> tuple[Float[Tensor, " c"], Bool[Tensor, " c"]]:
    """Maximise p^2 / q over u in [lower, upper] by Newton steps on its logarithm, kept in a shrinking bracket.

    Args:
        moments: of the candidates `index` at `u`.
        u: starts.
        lower, upper: brackets; an end may be the answer.
        unexplained: sum of squares, less the constant that `plane_moments` projects out; sets the scale of convergence.
        steps: at most.
    Returns: u and whether each candidate converged.
    """
    u, lower, upper = u.clone(), lower.clone(), upper.clone()
    done = torch.zeros_like(u, dtype=torch.bool)
    active: Int[Tensor, " k"] | slice = slice(None)
    for iteration in range(steps):
        here, low, high = u[active], lower[active], upper[active]
        p, p1, p2, q, q1, q2 = moments(active, here)
        slope = 2 * p1 / p - q1 / q
        curvature = 2 * (p2 / p - (p1 / p) ** 2) - q2 / q + (q1 / q) ** 2
        low = torch.where(slope > 0, here, low)
        high = torch.where(slope > 0, high, here)
        newton = here - slope / curvature
        inside = (newton > low) & (newton < high)
        # beyond the bracket or convex: its end at first, since bounds are frequent answers, then its middle
        other = torch.minimum(torch.maximum(newton, low), high) if iteration < 3 else (low + high) / 2
        if iteration < 3:
            other = torch.where(curvature < 0, other, torch.where(slope > 0, high, low))
        inside &= curvature < 0
        target = torch.where(inside, newton, other)
        step = target - here
        explained = p * p / q
        gain = 0.5 * explained * (slope * step).abs()
        left = (unexplained[active] - explained).clamp_min(0)
        ended = (step.abs() < _STEP) | (inside & (gain * step * step < _RELATIVE * left))
        # nothing left to gain in the whole bracket, or no information on T at all
        ended |= (explained * slope.abs() * (high - low) < _RELATIVE * left) | ~torch.isfinite(slope)
        u[active] = torch.where(torch.isfinite(target), target, here)
        lower[active], upper[active] = low, high
        if isinstance(active, slice):
            done = ended
        else:
            done[active] = ended
        if bool(done.all()):
            break
        active = torch.nonzero(~done).squeeze(1)
    return u, done
