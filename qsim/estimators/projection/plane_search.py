"""Fits of a decay on a constant: two amplitudes and one relaxation time.

    minimise sum_n (A exp(-t_n / T) + C - S_n)^2   over A >= 0, any C and T within its bounds

For one T the amplitudes follow in closed form: with the constant projected out of both,

    A = p / q,    C = mean(S) - A mean(E),    p = S.d,    q = d.d,    d = E - mean(E),    E = exp(-t / T)

and p^2 / q is what T explains of the series. T is searched on a grid, and its best local maxima are refined.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qsim.estimators.projection.separable import Fitted, Moments, hills, joined, log_grid, plane_moments, refine
from qsim.parameters import Parameter

_GRID = 96
_CANDIDATES = 3
_VOXELS = 4096
# a decay that is over before the second image leaves nothing to divide by
_SMALLEST = 1e-200
# what a series without any decay leaves once its mean is taken off, as part of its sum of squares
_ROUNDING = 1e-28


class PlaneSearch:
    """Tables of one list of times.

    Args:
        times: [s].
        parameter: the relaxation time; its bounds are searched.
        device: of the series.
    """

    def __init__(self, times: tuple[float, ...], parameter: Parameter, device: torch.device | str = "cpu") -> None:
        self.times = torch.tensor(times, dtype=torch.float64, device=device)[:, None]
        self.u = log_grid(parameter, _GRID, device)
        atoms = torch.exp(-self.times * torch.exp(-self.u))
        atoms = atoms - atoms.mean(0)
        self._atoms = atoms / atoms.norm(dim=0).clamp_min(_SMALLEST)

    def __call__(self, y: Float[Tensor, "n v"]) -> Fitted:
        """Returns: A, T and C of every voxel."""
        return joined([self._chunk(part.double()) for part in y.split(_VOXELS, dim=1)])

    def _chunk(self, y: Float[Tensor, "n v"]) -> Fitted:
        mean = y.mean(0)
        z = y - mean
        energy = z.square().sum(0)
        # only A > 0 counts
        explained = (self._atoms.T @ z).clamp_min_(0).square_()
        explained *= energy > _ROUNDING * y.square().sum(0)
        top, grid = hills(explained, _CANDIDATES)
        # no decay at all: A = 0, the lower bound, and any T
        best_a, best_c = torch.zeros_like(energy), mean.clone()
        best_t = torch.full_like(energy, float(self.u[0].exp()))
        best, converged = energy.clone(), torch.ones_like(energy, dtype=torch.bool)
        for candidate in range(_CANDIDATES):
            at = torch.nonzero(top[candidate] > 0).squeeze(1)
            if at.numel() == 0:
                continue
            g, series = grid[candidate, at], z[:, at]

            def moments(i: Int[Tensor, " k"] | slice, u: Tensor, series: Tensor = series) -> Moments:
                return plane_moments(series[:, i], self.times, u)

            lower, upper = self.u[(g - 1).clamp_min(0)], self.u[(g + 1).clamp_max(_GRID - 1)]
            u, ok = refine(moments, self.u[g], lower, upper, energy[at])
            atom = torch.exp(-self.times * torch.exp(-u))
            level = atom.mean(0)
            d = atom - level
            a = ((series * d).sum(0) / (d * d).sum(0).clamp_min(_SMALLEST)).clamp_min(0)
            objective = (a * d - series).square().sum(0)
            better = objective < best[at]
            where = at[better]
            best_a[where], best_t[where] = a[better], u.exp()[better]
            best_c[where] = (mean[at] - a * level)[better]
            best[where], converged[where] = objective[better], ok[better]
        return Fitted(torch.stack((best_a, best_t, best_c)), best, converged)
