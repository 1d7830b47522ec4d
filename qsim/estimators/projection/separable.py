"""Variable projection: fits that are linear in the amplitudes and nonlinear in one relaxation time.

For a given time T the amplitudes follow in closed form, and what is left is one function of u = log T, smooth with
known derivatives. A *family* is such a function: two free amplitudes (`refine_plane`) or one (`refine_ray`). The
searches hand in one candidate per column and get back the maximum of what the family explains of the series.

Source: Golub and Pereyra 1973, doi:10.1137/0710036.
"""

from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Fitted:
    """Where a search ended, per voxel.

    Attributes:
        kappa: rows of the model [SI].
        objective: sum of squared residuals there [units of A squared].
        converged: whether the refinement of the chosen candidate ended by itself.
        computed: False where the model has no meaning at the best fit; None: everywhere.
        at_bound: bounds that `kappa` itself does not show; None: none.
    """

    kappa: Float[Tensor, "q v"]
    objective: Float[Tensor, " v"]
    converged: Bool[Tensor, " v"]
    computed: Bool[Tensor, " v"] | None = None
    at_bound: Bool[Tensor, " v"] | None = None


def joined(pieces: list[Fitted]) -> Fitted:
    """The pieces of one series, one after the other."""
    kappa = torch.cat([piece.kappa for piece in pieces], 1)
    objective = torch.cat([piece.objective for piece in pieces])
    return Fitted(kappa, objective, torch.cat([piece.converged for piece in pieces]))


def units(y: Float[Tensor, "n v"]) -> Float[Tensor, " v"]:
    """The power of two in each voxel's largest image, so that y / units lies within -2 and 2 and no bit changes.

    The searches compare sums of squares with constants and take them in float32: without this the result would depend
    on the unit of the images, and in dark voxels on how bright others are.
    """
    largest = y.abs().amax(0).clamp_min(torch.finfo(y.dtype).tiny)
    # exact, which exp2 of the exponent need not be
    return largest / (2 * torch.frexp(largest).mantissa)


def log_grid(parameter: Parameter, n: int, device: torch.device | str = "cpu") -> Float[Tensor, " g"]:
    """`n` values of log T over the bounds of a relaxation time, ends included [log s]."""
    ends = torch.tensor([parameter.lower, parameter.upper], dtype=torch.float64).log()
    return torch.lerp(ends[0], ends[1], torch.linspace(0, 1, n, dtype=torch.float64)).to(device)


def hills(explained: Float[Tensor, "g v"], count: int) -> tuple[Float[Tensor, "k v"], Int[Tensor, "k v"]]:
    """The best local maxima over a grid, ends included, best first, and where they lie; -1 where there are fewer."""
    rising = torch.nn.functional.pad(explained, (0, 0, 1, 0), value=-1.0)[:-1] <= explained
    falling = torch.nn.functional.pad(explained, (0, 0, 0, 1), value=-1.0)[1:] <= explained
    top, grid = torch.where(rising & falling, explained, -1.0).topk(count, dim=0)
    return top, grid


def plane_moments(z: Float[Tensor, "n c"], times: Float[Tensor, "n 1"], u: Float[Tensor, " c"]) -> Moments:
    """Moments of the family z ~ x1 + x2 E, E = exp(-t / T), with the constant projected out.

    Args:
        z: series less their mean.

    Returns: p = z.d and q = d.d of d = E - mean(E), each with its first and second derivative in u = log T.
    """
    tau = times * torch.exp(-u)
    e = torch.exp(-tau)
    first = e * tau
    second = first * (tau - 1)
    e = e - e.mean(0)
    # of the others, less their mean, only the product with themselves shows it: z and e have none
    return (
        (z * e).sum(0),
        (z * first).sum(0),
        (z * second).sum(0),
        (e * e).sum(0),
        2 * (e * first).sum(0),
        2 * ((first * first).sum(0) - first.shape[0] * first.mean(0).square() + (e * second).sum(0)),
    )


def ray_moments(
    y: Float[Tensor, "n c"],
    times: Float[Tensor, "n c_or_1"],
    u: Float[Tensor, " c"],
    constant: float,
    b: Float[Tensor, " depths"],
    rectify: bool,
    tr: float | None = None,
) -> Moments:
    """Moments of the family y ~ A |constant - b exp(-t / T) + (b - 1) exp(-tr / T)| (without the modulus unless
    `rectify`, without the last term unless `tr`).

    Returns: p = y.d and q = d.d, each with its first and second derivative in u = log T.
    """
    rate = torch.exp(-u)
    tau = times * rate
    e = b * torch.exp(-tau)
    d = constant - e
    first = -e * tau
    second = first * (tau - 1)
    if tr is not None:
        tau = tr * rate
        rest = (b - 1) * torch.exp(-tau)
        d, first, second = d + rest, first + rest * tau, second + rest * tau * (tau - 1)
    z = torch.where(d < 0, -y, y) if rectify else y
    return (
        (z * d).sum(0),
        (z * first).sum(0),
        (z * second).sum(0),
        (d * d).sum(0),
        2 * (d * first).sum(0),
        2 * ((first * first).sum(0) + (d * second).sum(0)),
    )


def zero_times(
    times: Float[Tensor, "n 1"],
    b: Float[Tensor, " depths"],
    tr: float | None,
    u: tuple[float, float],
) -> Float[Tensor, "n depths"]:
    """T at which the signal 1 - b exp(-t / T) + (b - 1) exp(-tr / T) is zero at each time; above it is negative [s].

    Without `tr` T = t / log b, wherever that lies. With `tr` there is at most one such T (a sum of three exponentials
    in 1 / T of which T = inf is another zero): the lower end of `u` where it is negative throughout.
    Returns: inf where there is no such T.
    """
    if tr is None:
        return torch.where(b > 1, times / torch.log(b.clamp_min(1 + 1e-12)), torch.inf)
    low, high = (times.new_full((times.shape[0], b.shape[0]), end) for end in u)

    def signal(at: Tensor) -> Tensor:
        rate = torch.exp(-at)
        return 1 - b * torch.exp(-times * rate) + (b - 1) * torch.exp(-tr * rate)

    never, always = signal(high) >= 0, signal(low) <= 0
    # halved to the last bit of log T
    for _ in range(52):
        middle = (low + high) / 2
        negative = signal(middle) < 0
        high, low = torch.where(negative, middle, high), torch.where(negative, low, middle)
    return torch.where(never, torch.inf, torch.where(always, low.new_tensor(u[0]).exp(), high.exp()))


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
