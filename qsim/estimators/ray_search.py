"""Fits with one amplitude and one relaxation time: decays, and recoveries whose B is known.

    minimise sum_n (A |c - b exp(-t_n / T)| - S_n)^2   over A >= 0 and T within its bounds

c = 0, b = -1 is a decay; c = 1 a recovery. For one T the amplitude follows in closed form; T is searched on a grid, and
the best local maxima are refined. Where the signal is zero at a time, T = t_k / log b, the modulus has a kink, which is
a minimum of its own if S_k < 0: these points are tried as they are.
"""

from math import log

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qsim.estimators.separable import Moments, log_grid, ray_moments, refine
from qsim.parameters import Parameter

_GRID = 96
_CANDIDATES = 5
# a kink is not found by more steps, but tried by itself
_KINK_STEPS = 10
_VOXELS = 1024

Found = tuple[Tensor, Tensor, Tensor, Tensor]


class RaySearch:
    """Tables of one list of times.

    Args:
        times: [s].
        parameter: the relaxation time; its bounds are searched.
        constant: c above.
        rectify: take the modulus.
    """

    def __init__(self, times: tuple[float, ...], parameter: Parameter, constant: float, rectify: bool) -> None:
        self.times = torch.tensor(times, dtype=torch.float64)[:, None]
        self.u = log_grid(parameter, _GRID)
        self.constant, self.rectify = constant, rectify

    def __call__(self, y: Float[Tensor, "n v"], b: Float[Tensor, " depths"]) -> Found:
        """Returns: A, T, the objective and whether the refinement converged, per voxel."""
        uniform = bool((b == b[:1]).all())
        grid = self._grid(float(b[0]) if uniform else None)
        pieces = []
        for start in range(0, y.shape[1], _VOXELS):
            series = y[:, start : start + _VOXELS]
            depth = b[:1] if uniform else b[start : start + _VOXELS]
            pieces.append(self._chunk(series.double(), depth, grid))
        if not pieces:
            empty = y.new_zeros(0, dtype=torch.float64)
            return empty, empty, empty, empty.bool()
        a, t, objective, converged = (torch.cat(column) for column in zip(*pieces, strict=True))
        return a, t, objective, converged

    def _grid(self, b: float | None) -> Float[Tensor, " g"]:
        """log T: even steps, and where all voxels share their kinks, those and the middles between them."""
        if b is None and self.rectify:
            # every voxel has its kinks elsewhere: steps finer than their spacing
            return torch.lerp(self.u[0], self.u[-1], torch.linspace(0, 1, 4 * _GRID, dtype=torch.float64))
        if b is None or b <= 1 or not self.rectify:
            return self.u
        kinks = (self.times[:, 0].sort().values / log(b)).clamp_min(1e-9).log()
        extra = torch.cat((kinks, (kinks[1:] + kinks[:-1]) / 2))
        return torch.cat((self.u, extra[(extra > self.u[0]) & (extra < self.u[-1])])).unique()

    def _chunk(self, y: Float[Tensor, "n v"], b: Float[Tensor, " depths"], nodes: Float[Tensor, " g"]) -> Found:
        explained = self._explained(y.float(), b.float(), nodes)
        # local maxima of the grid, ends included
        rising = torch.nn.functional.pad(explained, (0, 0, 1, 0), value=-1.0)[:-1] <= explained
        falling = torch.nn.functional.pad(explained, (0, 0, 0, 1), value=-1.0)[1:] <= explained
        top, grid = torch.where(rising & falling, explained, -1.0).topk(_CANDIDATES, dim=0)
        energy = y.square().sum(0)
        best_a, best_t = torch.zeros_like(energy), torch.full_like(energy, float(self.u[0].exp()))
        best, converged = energy.clone(), torch.ones_like(energy, dtype=torch.bool)
        for candidate in range(_CANDIDATES):
            at = torch.nonzero(top[candidate] > 0).squeeze(1)
            if at.numel() == 0:
                continue
            g, series = grid[candidate, at], y[:, at]
            depth = b if b.numel() == 1 else b[at]

            def moments(
                i: Int[Tensor, " k"] | slice, u: Tensor, series: Tensor = series, depth: Tensor = depth
            ) -> Moments:
                own = depth if depth.numel() == 1 else depth[i]
                return ray_moments(series[:, i], self.times, u, self.constant, own, self.rectify)

            lower, upper = nodes[(g - 1).clamp_min(0)], nodes[(g + 1).clamp_max(len(nodes) - 1)]
            # a node may be a kink with a maximum on either side: each side is climbed by itself
            sides = ((lower, nodes[g]), (nodes[g], upper)) if self.rectify else ((lower, upper),)
            for low, high in sides:
                start = (low + high) / 2 if self.rectify else nodes[g]
                u, ok = refine(moments, start, low, high, energy[at], _KINK_STEPS if self.rectify else 40)
                p, _, _, q, _, _ = ray_moments(series, self.times, u, self.constant, depth, self.rectify)
                a = (p / q).clamp_min(0)
                signal = a * (self.constant - depth * torch.exp(-self.times * torch.exp(-u)))
                objective = ((signal.abs() if self.rectify else signal) - series).square().sum(0)
                better = objective < best[at]
                where = at[better]
                best_a[where], best_t[where], best[where] = a[better], u.exp()[better], objective[better]
                converged[where] = ok[better]
        if self.rectify:
            for k in range(len(self.times)):
                at = torch.nonzero(y[k] <= 0)[:, 0]
                if at.numel():
                    a, t, objective = self._kink(y[:, at], b if b.numel() == 1 else b[at], k)
                    better = objective < best[at]
                    where = at[better]
                    best_a[where], best_t[where], best[where] = a[better], t[better], objective[better]
                    converged[where] = True
        return best_a, best_t, best, converged

    def _kink(self, y: Float[Tensor, "n c"], b: Float[Tensor, " depths"], k: int) -> tuple[Tensor, Tensor, Tensor]:
        """A, T and the objective where the signal is zero at time k; infinite where that T is out of bounds."""
        t = (self.times[k] / torch.log(b.clamp_min(1 + 1e-12))).expand(y.shape[1])
        inside = (t >= torch.exp(self.u[0])) & (t <= torch.exp(self.u[-1]))
        atom = (self.constant - b * torch.exp(-self.times / t)).abs()
        a = ((y * atom).sum(0) / (atom * atom).sum(0)).clamp_min(0)
        objective = (a * atom - y).square().sum(0)
        return a, t, torch.where(inside & torch.isfinite(objective), objective, torch.inf)

    def _explained(
        self, y: Float[Tensor, "n v"], b: Float[Tensor, " depths"], nodes: Float[Tensor, " g"]
    ) -> Float[Tensor, "g v"]:
        """p^2 / q where A > 0, else 0, for every T of the grid."""
        decay = torch.exp(-self.times * torch.exp(-nodes)).float()
        if b.numel() == 1:
            atoms = self.constant - b * decay
            atoms = atoms.abs() if self.rectify else atoms
            atoms = atoms / atoms.norm(dim=0).clamp_min(1e-30)
            return (atoms.T @ y).clamp_min_(0).square_()
        rows = []
        for column in decay.T:
            atom = self.constant - b * column[:, None]
            atom = atom.abs_() if self.rectify else atom
            p, q = (y * atom).sum(0).clamp_min_(0), (atom * atom).sum(0)
            rows.append(p * p / q.clamp_min(1e-30))
        return torch.stack(rows)
