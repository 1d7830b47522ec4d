"""Fits with one amplitude and one relaxation time: decays, and recoveries whose B is known.

    minimise sum_n (A |c - b exp(-t_n / T) + (b - 1) exp(-tr / T)| - S_n)^2   over A >= 0 and T within its bounds

c = 0, b = -1 is a decay; c = 1 a recovery; the last term is there with a finite TR only. For one T the amplitude
follows in closed form; T is searched on a grid, and the best local maxima are refined. Where the signal is zero at a
time (T = t_k / log b without TR) the modulus has a kink, which is a minimum of its own if S_k < 0: these points are
tried as they are.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qsim.estimators.projection.separable import Moments, hills, log_grid, ray_moments, refine, zero_times
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
        tr: finite repetition time; None: TR >> T [s].
        device: of the series.
    """

    def __init__(
        self,
        times: tuple[float, ...],
        parameter: Parameter,
        constant: float,
        rectify: bool,
        tr: float | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.times = torch.tensor(times, dtype=torch.float64, device=device)[:, None]
        self.u = log_grid(parameter, _GRID, device)
        self.constant, self.rectify, self.tr = constant, rectify, tr

    def __call__(self, y: Float[Tensor, "n v"], b: Float[Tensor, " depths"]) -> Found:
        """Returns: A, T, the objective and whether the refinement converged, per voxel."""
        if y.shape[1] == 0:
            empty = y.new_zeros(0, dtype=torch.float64)
            return empty, empty, empty, empty.bool()
        uniform = bool((b == b[:1]).all())
        grid = self._grid(b[:1] if uniform else None)
        pieces = []
        for start in range(0, y.shape[1], _VOXELS):
            series = y[:, start : start + _VOXELS]
            depth = b[:1] if uniform else b[start : start + _VOXELS]
            pieces.append(self._chunk(series.double(), depth, grid))
        a, t, objective, converged = (torch.cat(column) for column in zip(*pieces, strict=True))
        return a, t, objective, converged

    def _zeros(self, k: slice, b: Float[Tensor, " depths"]) -> Float[Tensor, "k depths"]:
        """T at which the signal is zero at the times `k` [s]."""
        return zero_times(self.times[k], b, self.tr, (float(self.u[0]), float(self.u[-1])))

    def _atom(self, u: Float[Tensor, " *c"], b: Float[Tensor, " depths"]) -> Float[Tensor, "n c"]:
        """Signal of A = 1 at u = log T, before the modulus."""
        rate = torch.exp(-u)
        atom = self.constant - b * torch.exp(-self.times * rate)
        return atom if self.tr is None else atom + (b - 1) * torch.exp(-self.tr * rate)

    def _grid(self, b: Float[Tensor, " 1"] | None) -> Float[Tensor, " g"]:
        """log T: even steps, and where all voxels share their kinks, those and the middles between them."""
        if not self.rectify:
            return self.u
        if b is None:
            # every voxel has its kinks elsewhere: steps finer than their spacing
            fine = torch.linspace(0, 1, 4 * _GRID, dtype=torch.float64, device=self.u.device)
            return torch.lerp(self.u[0], self.u[-1], fine)
        kinks = self._zeros(slice(None), b)[:, 0].sort().values.clamp_min(1e-9).log()
        kinks = kinks[torch.isfinite(kinks)]
        extra = torch.cat((kinks, (kinks[1:] + kinks[:-1]) / 2))
        return torch.cat((self.u, extra[(extra > self.u[0]) & (extra < self.u[-1])])).unique()

    def _chunk(self, y: Float[Tensor, "n v"], b: Float[Tensor, " depths"], nodes: Float[Tensor, " g"]) -> Found:
        top, grid = hills(self._explained(y.float(), b, nodes), _CANDIDATES)
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
                return ray_moments(series[:, i], self.times, u, self.constant, own, self.rectify, self.tr)

            lower, upper = nodes[(g - 1).clamp_min(0)], nodes[(g + 1).clamp_max(len(nodes) - 1)]
            # a node may be a kink with a maximum on either side: each side is climbed by itself
            sides = ((lower, nodes[g]), (nodes[g], upper)) if self.rectify else ((lower, upper),)
            for low, high in sides:
                start = (low + high) / 2 if self.rectify else nodes[g]
                u, ok = refine(moments, start, low, high, energy[at], _KINK_STEPS if self.rectify else 40)
                atom = self._atom(u, depth)
                atom = atom.abs() if self.rectify else atom
                a = ((series * atom).sum(0) / (atom * atom).sum(0)).clamp_min(0)
                objective = (a * atom - series).square().sum(0)
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
        t = self._zeros(slice(k, k + 1), b)[0].expand(y.shape[1])
        inside = (t >= torch.exp(self.u[0])) & (t <= torch.exp(self.u[-1]))
        atom = self._atom(t.clamp_min(1e-300).log(), b).abs()
        a = ((y * atom).sum(0) / (atom * atom).sum(0)).clamp_min(0)
        objective = (a * atom - y).square().sum(0)
        return a, t, torch.where(inside & torch.isfinite(objective), objective, torch.inf)

    def _explained(
        self, y: Float[Tensor, "n v"], b: Float[Tensor, " depths"], nodes: Float[Tensor, " g"]
    ) -> Float[Tensor, "g v"]:
        """p^2 / q where A > 0, else 0, for every T of the grid."""
        if b.numel() == 1:
            atoms = self._atom(nodes, b)
            atoms = atoms.abs() if self.rectify else atoms
            atoms = (atoms / atoms.norm(dim=0).clamp_min(1e-30)).float()
            return (atoms.T @ y).clamp_min_(0).square_()
        rows = []
        for node in nodes:
            atom = self._atom(node, b).float()
            atom = atom.abs_() if self.rectify else atom
            p, q = (y * atom).sum(0).clamp_min_(0), (atom * atom).sum(0)
            rows.append(p * p / q.clamp_min(1e-30))
        return torch.stack(rows)
