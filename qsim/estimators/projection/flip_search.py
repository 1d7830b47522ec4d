"""Fits of spoiled gradient echoes at several flip angles, the transmit field known: one amplitude and T1.

    minimise sum_n (A d_n(T1) - S_n)^2   over A >= 0 and T1 within its bounds
    d_n = sin x_n (1 - E) / (1 - E cos x_n),    x_n = b1 alpha_n,    E = exp(-TR / T1)

For one T1 the amplitude follows in closed form; T1 is searched on a grid, and the best local maxima are refined.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qsim.estimators.projection.separable import Fitted, Moments, hills, joined, log_grid, refine
from qsim.parameters import T1

_GRID = 96
_CANDIDATES = 3
_VOXELS = 2048


class FlipSearch:
    """Tables of one list of flip angles.

    Args:
        flip_angles: nominal [rad].
        tr: between pulses [s].
        device: of the series.
    """

    def __init__(self, flip_angles: tuple[float, ...], tr: float, device: torch.device | str = "cpu") -> None:
        self.nominal = torch.tensor(flip_angles, dtype=torch.float64, device=device)[:, None]
        self.tr = tr
        self.u = log_grid(T1, _GRID, device)

    def __call__(self, y: Float[Tensor, "n v"], rel_b1: Float[Tensor, " v"]) -> Fitted:
        """Returns: A, T1 and REL_B1 of every voxel, the last as given."""
        pieces = zip(y.split(_VOXELS, dim=1), rel_b1.split(_VOXELS), strict=True)
        return joined([self._chunk(part.double(), scale) for part, scale in pieces])

    def _chunk(self, y: Float[Tensor, "n v"], rel_b1: Float[Tensor, " v"]) -> Fitted:
        angle = self.nominal * rel_b1
        sine, turned = torch.sin(angle), 2 * torch.sin(angle / 2) ** 2
        rows = []
        for node in self.u:
            d = self._atom(sine, turned, node)
            p = (y * d).sum(0).clamp_min(0)
            rows.append(p * p / (d * d).sum(0))
        explained = torch.stack(rows)
        top, grid = hills(explained, _CANDIDATES)
        energy = y.square().sum(0)
        # nothing but negative images: A = 0, the lower bound, and any T1
        best_a, best_t1 = torch.zeros_like(energy), torch.full_like(energy, float(self.u[0].exp()))
        best, converged = energy.clone(), torch.ones_like(energy, dtype=torch.bool)
        for candidate in range(_CANDIDATES):
            at = torch.nonzero(top[candidate] > 0).squeeze(1)
            if at.numel() == 0:
                continue
            g, series, own_sine, own_turned = grid[candidate, at], y[:, at], sine[:, at], turned[:, at]

            def moments(
                i: Int[Tensor, " k"] | slice,
                u: Tensor,
                series: Tensor = series,
                sine: Tensor = own_sine,
                turned: Tensor = own_turned,
            ) -> Moments:
                return self._moments(series[:, i], sine[:, i], turned[:, i], u)

            lower, upper = self.u[(g - 1).clamp_min(0)], self.u[(g + 1).clamp_max(_GRID - 1)]
            u, ok = refine(moments, self.u[g], lower, upper, energy[at])
            d = self._atom(own_sine, own_turned, u)
            a = ((series * d).sum(0) / (d * d).sum(0)).clamp_min(0)
            objective = (a * d - series).square().sum(0)
            better = objective < best[at]
            where = at[better]
            best_a[where], best_t1[where] = a[better], u.exp()[better]
            best[where], converged[where] = objective[better], ok[better]
        return Fitted(torch.stack((best_a, best_t1, rel_b1)), best, converged)

    def _atom(
        self, sine: Float[Tensor, "n c"], turned: Float[Tensor, "n c"], u: Float[Tensor, " *c"]
    ) -> Float[Tensor, "n c"]:
        """Signal of A = 1; `turned` is 1 - cos x."""
        lost = -torch.expm1(-self.tr * torch.exp(-u))
        return sine * lost / (lost + (1 - lost) * turned)

    def _moments(
        self, y: Float[Tensor, "n c"], sine: Float[Tensor, "n c"], turned: Float[Tensor, "n c"], u: Float[Tensor, " c"]
    ) -> Moments:
        """p = y.d and q = d.d, each with its first and second derivative in u = log T1."""
        tau = self.tr * torch.exp(-u)
        lost = -torch.expm1(-tau)
        e = 1 - lost
        below = lost + e * turned
        d = sine * lost / below
        # derivatives in E, then of E in u: E tau, E tau (tau - 1)
        to_e = -sine * turned / below**2
        bend = 2 * to_e * (1 - turned) / below
        first = to_e * (e * tau)
        second = bend * (e * tau) ** 2 + to_e * (e * tau * (tau - 1))
        return (
            (y * d).sum(0),
            (y * first).sum(0),
            (y * second).sum(0),
            (d * d).sum(0),
            2 * (d * first).sum(0),
            2 * ((first * first).sum(0) + (d * second).sum(0)),
        )
