"""Maximum likelihood of a mono-exponential decay under Rician or non-central chi noise: two parameters, Newton steps.

    minimise sum_n (z_n - nu_n)^2 / 2 - g(z_n nu_n),   nu_n = a exp(-t_n / T),  a = A / sigma >= 0,  u = log T

with z = m / sigma and g of `qsim.kspace.magnitude_likelihood`. With the score s = z r - nu, its slope
-w = z^2 r' - 1 and E = exp(-t / T), tau = t / T, the derivatives are sums over the images:

    dF/da = -sum s E                       dF/du = -a sum s E tau
    d2F/da2 = sum w E^2                    d2F/dadu = sum (w a E - s) E tau
    d2F/du2 = a sum (w a E tau - s (tau - 1)) E tau

Starts: the best of a grid in T after least squares, once of the magnitudes and once of sqrt(m^2 - 2 L sigma^2), the
floor taken off; of the two the more likely one is followed, and where that ends on a bound the other as well.
"""

from math import inf, log

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qsim.estimators.projection.separable import log_grid
from qsim.kspace.magnitude_likelihood import bessel_terms
from qsim.parameters import Parameter

_GRID = 32
# voxels whose numbers stay in the processor's cache
_VOXELS = 2048
_STEPS = 80
# most voxels need fewer; the others are gathered from all chunks
_FEW = 8
# A / sigma below which a second maximum is looked for, where the log-likelihood of its start comes as near as this;
# and how far in log T it must stay from the first
_WEAK = 12.0
_NEAR = 1.0
_APART = 0.4
# in units of log-likelihood: 1e-5 SD before the last Newton step, which squares that
_GAIN = 1e-10

Found = tuple[Tensor, Tensor, Tensor, Tensor]


class MagnitudeDecay:
    """Tables of one list of times.

    Args:
        times: [s].
        parameter: the relaxation time; its bounds are searched.
        coils: L.
    """

    def __init__(self, times: tuple[float, ...], parameter: Parameter, coils: int) -> None:
        self.times, self.coils = times, coils
        self.u = log_grid(parameter, _GRID)

    def __call__(self, y: Float[Tensor, "n v"], sigma: Float[Tensor, " v_or_1"]) -> Found:
        """Returns: A, T, the objective F and whether the search converged, per voxel."""
        z = [part.double() / own for part, own in self._parts(y, sigma)]
        if not z:
            empty = y.new_zeros(0, dtype=torch.float64)
            return empty, empty, empty, empty.bool()
        starts = [self._starts(part) for part in z]
        pieces = [self._newton(part, a, u, _FEW) for part, (a, u, _, _) in zip(z, starts, strict=True)]
        found: Found = tuple(torch.cat(column) for column in zip(*pieces, strict=True))  # type: ignore[assignment]
        everything = torch.cat(z, 1)
        # the slow ones of all chunks together
        left = torch.nonzero(~found[3]).squeeze(1)
        _replace(found, self._follow(everything, found[0], found[1], left), left, torch.ones_like(left).bool())
        self._look_elsewhere(everything, found)
        a, u, objective, converged = found
        return a * sigma, u.exp(), objective, converged

    def _look_elsewhere(self, z: Float[Tensor, "n v"], found: Found) -> None:
        """Where the signal is weak, try a decay that is over before the second time, and one beyond the last.

        A first image above the others is either: the end of a fast decay in a floor of noise, or a slow one. Both can
        be maxima of the likelihood.
        """
        weak = torch.nonzero(found[0] < _WEAK).squeeze(1)
        ordered = sorted(set(self.times))
        gap = ordered[1] - ordered[0] if len(ordered) > 1 else ordered[0]
        for time, low, high in ((gap / 2, gap, inf), (2 * ordered[-1], 0.0, 3 * gap)):
            node = min(max(time, float(self.u[0].exp())), float(self.u[-1].exp()))
            here = found[1][weak].exp()
            for index in weak[(here >= low) & (here <= high)].split(_VOXELS):
                own = z[:, index]
                u = torch.full_like(own[0], log(node))
                e = torch.exp(-own.new_tensor(self.times)[:, None] / node)
                e = e / e.norm().clamp_min(1e-30)
                total = (e * (own.square() - 2 * self.coils).clamp_min(0).sqrt()).sum(0)
                a = (total / torch.exp(-own.new_tensor(self.times) / node).norm().clamp_min(1e-30)).clamp_min(0.3)
                near = self._value(own, a, u) < found[2][index] + _NEAR
                at = torch.nonzero(near).squeeze(1)
                if not at.numel():
                    continue
                other = self._newton(own[:, at], a[at], u[at], _FEW)
                # those that are on their way back to where the search has been are let go
                held = index[at]
                away = (other[1] - found[1][held]).abs() > _APART
                left = torch.nonzero(away & ~other[3] & (other[2] < found[2][held] + _NEAR / 2)).squeeze(1)
                _replace(other, self._follow(own[:, at], other[0], other[1], left), left, torch.ones_like(left).bool())
                _replace(found, other, held, other[2] < found[2][held] - 1e-9)

    def _parts(self, y: Tensor, sigma: Tensor) -> list[tuple[Tensor, Tensor]]:
        pieces = y.split(_VOXELS, 1) if y.shape[1] else ()
        owns = sigma.split(_VOXELS) if sigma.numel() > 1 else [sigma] * len(pieces)
        return list(zip(pieces, owns, strict=True))

    def _follow(self, z: Tensor, a: Tensor, u: Tensor, index: Int[Tensor, " k"]) -> Found:
        """The search of the voxels of `index`, to its end."""
        pieces = [self._newton(z[:, part], a[part], u[part], _STEPS) for part in index.split(_VOXELS)]
        if not pieces:
            return a[:0], u[:0], a[:0], torch.zeros_like(a[:0], dtype=torch.bool)
        return tuple(torch.cat(column) for column in zip(*pieces, strict=True))  # type: ignore[return-value]

    def _starts(self, z: Float[Tensor, "n c"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The more likely of the two starts, then the other."""
        a, u = self._start(z)
        a2, u2 = self._start((z.square() - 2 * self.coils).clamp_min(0).sqrt())
        second = self._value(z, a2, u2) < self._value(z, a, u)
        return (
            torch.where(second, a2, a),
            torch.where(second, u2, u),
            torch.where(second, a, a2),
            torch.where(second, u, u2),
        )

    def _start(self, z: Float[Tensor, "n c"]) -> tuple[Tensor, Tensor]:
        nodes = self.u.to(z.device)
        times = z.new_tensor(self.times)
        atoms = torch.exp(-times[:, None] * torch.exp(-nodes))
        norm = atoms.norm(dim=0).clamp_min(1e-30)
        best, at = ((atoms / norm).T.float() @ z.float()).max(0)
        return (best.double() / norm[at]).clamp_min(0.1), nodes[at]

    def _value(self, z: Float[Tensor, "n c"], a: Float[Tensor, " c"], u: Float[Tensor, " c"]) -> Float[Tensor, " c"]:
        return self._derivatives(z, a, u)[0]

    def _derivatives(self, z: Float[Tensor, "n c"], a: Float[Tensor, " c"], u: Float[Tensor, " c"]) -> list[Tensor]:
        """F, its gradient, its Hessian (aa, au, uu), and the Hessian that weighs every image fully (aa, au, uu)."""
        rate = torch.exp(-u)
        times = z.new_tensor(self.times)[:, None]
        tau = times * rate
        e = torch.exp(-tau)
        nu = a * e
        g, short, slope = bessel_terms(z * nu, self.coils)
        residual = z - nu
        score = residual - z * short
        w = 1 - z.square() * slope
        et = e * tau
        se = score * et
        ones = z.new_ones(1, z.shape[0])
        total = [
            residual.square() / 2 - g,
            -score * e,
            -se,
            w * e * e,
            w * e * et,
            w * et * et,
            se * tau,
            e * e,
            e * et,
            et * et,
        ]
        f, da, du, aa, au, uu, bent, full_aa, full_au, full_uu = ((ones @ term)[0] for term in total)
        # sum s E tau = -du;  d2F/dadu = a sum w E^2 tau + du;  d2F/du2 = a^2 sum w E^2 tau^2 - a (bent - sum s E tau)
        return [f, da, a * du, aa, a * au + du, a * a * uu - a * (bent + du), full_aa, a * full_au, a * a * full_uu]

    def _newton(self, z: Float[Tensor, "n c"], a: Float[Tensor, " c"], u: Float[Tensor, " c"], steps: int) -> Found:
        lower, upper = float(self.u[0]), float(self.u[-1])
        result: Found = (a.clone(), u.clone(), torch.full_like(a, torch.inf), torch.zeros_like(a, dtype=torch.bool))
        active = torch.arange(a.shape[0], device=z.device)
        here = self._derivatives(z, a, u)
        damping = torch.zeros_like(a)
        ended = torch.zeros_like(result[3])
        for _ in range(steps):
            f = here[0]
            step_a, step_u, gain = _step(here, a, u, lower, upper, damping)
            # far from the minimum the parabola is good for a factor of e in T at most
            trial_u = (u + step_u.clamp(-1.0, 1.0)).clamp(lower, upper)
            trial_a = (a + step_a).clamp_min(0)
            new = self._derivatives(z, trial_a, trial_u)
            better = new[0] <= f
            a, u = torch.where(better, trial_a, a), torch.where(better, trial_u, u)
            damping = torch.where(better, torch.where(damping < 1e-2, 0.0, damping * 0.1), (damping * 8).clamp_min(0.1))
            here = [torch.where(better, n, o) for n, o in zip(new, here, strict=True)]
            ended = (gain <= _GAIN) | (damping > 1e12)
            # taking voxels out costs about a step
            if int(ended.sum()) > 0.3 * ended.numel():
                out = active[ended]
                for held, now in zip(result, (a, u, here[0], ended), strict=True):
                    held[out] = now[ended]
                left = torch.nonzero(~ended).squeeze(1)
                if left.numel() == 0:
                    return result
                active, z, a, u, damping = active[left], z[:, left], a[left], u[left], damping[left]
                ended = ended[left]
                here = [part[left] for part in here]
        for held, now in zip(result, (a, u, here[0], ended), strict=True):
            held[active] = now
        return result


def _replace(found: Found, new: Found, index: Int[Tensor, " k"], which: Bool[Tensor, " k"]) -> None:
    """Write the results of the voxels `index` in place, where `which`."""
    for held, now in zip(found, new, strict=True):
        held[index[which]] = now[which]


def _step(
    here: list[Tensor],
    a: Float[Tensor, " c"],
    u: Float[Tensor, " c"],
    lower: float,
    upper: float,
    damping: Float[Tensor, " c"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Damped Newton step and what it gains; by the full weights where the Hessian is not positive definite."""
    _, da, du, aa, au, uu, full_aa, full_au, full_uu = here
    fixed_a = (a <= 0) & (da >= 0)
    fixed_u: Bool[Tensor, " c"] = ((u <= lower) & (du > 0)) | ((u >= upper) & (du < 0)) | (a <= 0)
    convex = (aa > 1e-3 * full_aa) & (uu > 1e-3 * full_uu) & (aa * uu - au * au > 1e-3 * aa * uu)
    aa, au, uu = (torch.where(convex, one, two) for one, two in ((aa, full_aa), (au, full_au), (uu, full_uu)))
    free = ~(fixed_a | fixed_u)
    au = torch.where(free, au, 0.0)
    da, du = torch.where(fixed_a, 0.0, da), torch.where(fixed_u, 0.0, du)
    tiny = 1e-300
    aa, uu = aa * (1 + damping) + tiny, uu * (1 + damping) + tiny
    determinant = (aa * uu - au * au).clamp_min(1e-12 * aa * uu + tiny)
    step_a = torch.where(free, -(uu * da - au * du) / determinant, -da / aa)
    step_u = torch.where(free, -(aa * du - au * da) / determinant, -du / uu)
    gain = -(da * step_a + du * step_u) * (1 + damping) / 2
    return step_a, step_u, gain
