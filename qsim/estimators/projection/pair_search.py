"""Fits of two decays side by side: two amplitudes and two relaxation times.

    minimise sum_n (x1 exp(-t_n / T1) + x2 exp(-t_n / T2) - S_n)^2   over x1, x2 >= 0 and T1 < T2 within their bounds

For two times the amplitudes follow in closed form. All pairs of a grid are tried at once: with c = a1.S and w the
unit vector of a2 across a1 a pair explains c^2 + (w.S)^2, if both amplitudes are positive. The best local maxima are
climbed by Newton steps on the two logarithms with the amplitudes eliminated (the Schur complement of the full Hessian),
damped where they do not descend. So is the best single decay with a second one at every time that its residual r asks
for: if r.exp(-t / T) <= 0 for all T, no second decay of positive amplitude can help. Where no pair beats the best
single decay, that is the minimum: the second one is not to be seen, and the fraction 0 lies on its bound.

Source: variable projection: Golub and Pereyra 1973, doi:10.1137/0710036.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.estimators.projection.ray_search import RaySearch
from qsim.estimators.projection.separable import Fitted, hills, joined, log_grid
from qsim.parameters import Parameter

_GRID = 48
# starts: local maxima over the grid of pairs, and times beside the best single decay
_PAIRS, _SECOND = 4, 3
_STEPS = 60
_VOXELS = 512
# times closer than this in log T are one
_CLOSE = 1e-3
# a step that gains less than this part of the objective is the last
_RELATIVE = 1e-10
_SHORT = 1e-7
# a pair that gains no more than this part of the objective, or of the sum of squares (rounding), is one decay
_GAIN, _ROUNDING = 1e-8, 1e-16
_LEAST, _LARGEST = 1e-14, 1e8


@dataclass(frozen=True, slots=True)
class _Point:
    """Both times of each candidate, with the amplitudes that go with them.

    Attributes:
        u: log of the times, ascending [log s].
        x: amplitudes [units of the images].
        objective: half the sum of squared residuals; inf where an amplitude is not positive or the times coincide.
        gradient, hessian: of the objective in u, the amplitudes following.
        positive: the same with the curvature of the model left out, which makes it positive definite (Gauss-Newton).
    """

    u: Float[Tensor, "2 c"]
    x: Float[Tensor, "2 c"]
    objective: Float[Tensor, " c"]
    gradient: Float[Tensor, "2 c"]
    hessian: Float[Tensor, "3 c"]
    positive: Float[Tensor, "3 c"]

    def select(self, which: Tensor) -> "_Point":
        """Some of the candidates."""
        return _Point(*(getattr(self, field.name)[..., which] for field in fields(self)))

    def where(self, better: Bool[Tensor, " c"], other: "_Point") -> "_Point":
        """The other point where it is better."""
        names = [field.name for field in fields(self)]
        return _Point(*(torch.where(better, getattr(other, name), getattr(self, name)) for name in names))

    def put(self, which: Tensor, other: "_Point") -> None:
        """Write those candidates in place."""
        for field in fields(self):
            getattr(self, field.name)[..., which] = getattr(other, field.name)


class PairSearch:
    """Tables of one list of times.

    Args:
        times: [s].
        long: the longer relaxation time; its bounds are searched for both.
        device: of the series.
    """

    def __init__(self, times: tuple[float, ...], long: Parameter, device: torch.device | str = "cpu") -> None:
        self.times = torch.tensor(times, dtype=torch.float64, device=device)[:, None]
        self.single = RaySearch(times, long, 0.0, rectify=False, device=device)
        self.u = log_grid(long, _GRID, device)
        # from the first image on: a decay that is over by then would have no unit vector
        atoms = torch.exp(-(self.times - self.times.min()) * torch.exp(-self.u)).T
        atoms = atoms / atoms.norm(dim=1, keepdim=True)
        one, two = torch.triu_indices(_GRID, _GRID, 1, device=device)
        self.one, self.two = one, two
        self.atoms = atoms

        def across(a: Tensor, b: Tensor) -> Tensor:
            """Unit vectors of a orthogonal to b, the rounding of the first pass taken off by a second."""
            for _ in range(2):
                a = a - (a * b).sum(1, keepdim=True) * b
                a = a / a.norm(dim=1, keepdim=True).clamp_min(1e-300)
            return a

        self.across_one, self.across_two = across(atoms[two], atoms[one]), across(atoms[one], atoms[two])

    def __call__(self, y: Float[Tensor, "n v"]) -> Fitted:
        """Returns: A, the fraction of the short decay, and both times of every voxel."""
        return joined([self._chunk(part.double()) for part in y.split(_VOXELS, dim=1)])

    def _chunk(self, y: Float[Tensor, "n v"]) -> Fitted:
        a, t, objective, converged = self.single(y, y.new_tensor([-1.0]))
        if y.shape[1] == 0:
            return Fitted(y.new_zeros(4, 0), objective, converged)
        alone = (1 - _GAIN) * objective - _ROUNDING * y.square().sum(0)
        best = torch.stack((a, torch.zeros_like(a), t, t))
        starts = [*self._from_pairs(y), *self._from_single(y, a, t)]
        for sound, start in starts:
            at = torch.nonzero(sound).squeeze(1)
            if at.numel() == 0:
                continue
            point, ok = self._climb(y[:, at], start[:, at])
            better = 2 * point.objective < torch.minimum(objective, alone)[at]
            where = at[better]
            total = point.x.sum(0)
            rows = torch.stack((total, point.x[0] / total, point.u[0].exp(), point.u[1].exp()))
            best[:, where] = rows[:, better]
            objective[where], converged[where] = 2 * point.objective[better], ok[better]
        return Fitted(best, objective, converged)

    def _from_pairs(self, y: Float[Tensor, "n v"]) -> list[tuple[Bool[Tensor, " v"], Float[Tensor, "2 v"]]]:
        """The best local maxima over the grid of pairs: whether there is one, and log T of both."""
        alone = self.atoms @ y
        first, second = self.across_one @ y, self.across_two @ y
        explained = alone[self.one].square() + first.square()
        explained = torch.where((first > 0) & (second > 0), explained, -1.0)
        square = explained.new_full((_GRID, _GRID, y.shape[1]), -1.0)
        square[self.one, self.two] = explained
        around = torch.nn.functional.max_pool2d(square.permute(2, 0, 1), 3, stride=1, padding=1).permute(1, 2, 0)
        peaks = torch.where(explained >= around[self.one, self.two], explained, -1.0)
        top, pair = peaks.topk(_PAIRS, dim=0)
        return [
            (top[k] > 0, torch.stack((self.u[self.one[pair[k]]], self.u[self.two[pair[k]]]))) for k in range(_PAIRS)
        ]

    def _from_single(
        self, y: Float[Tensor, "n v"], a: Float[Tensor, " v"], t: Float[Tensor, " v"]
    ) -> list[tuple[Bool[Tensor, " v"], Float[Tensor, "2 v"]]]:
        """The best single decay and the times that explain most of its residual."""
        one = torch.exp(-self.times / t)
        residual = y - a * one
        one = torch.exp(-(self.times - self.times.min()) / t)
        one = one / one.norm(dim=0)
        # what is left of a unit atom across the single decay
        across = (1 - (self.atoms @ one).square()).clamp_min(1e-12).sqrt()
        top, grid = hills((self.atoms @ residual).clamp_min(0) / across, _SECOND)
        pairs = [torch.stack((t.log(), self.u[grid[k]])).sort(0).values for k in range(_SECOND)]
        return [((top[k] > 0) & (a > 0), pairs[k]) for k in range(_SECOND)]

    def _at(self, y: Float[Tensor, "n c"], u: Float[Tensor, "2 c"]) -> _Point:
        """Everything about the candidates at `u`."""
        tau = self.times * torch.exp(-u)[:, None]
        e = torch.exp(-tau)
        first = e * tau
        second = first * (tau - 1)
        # amplitudes by orthogonalisation of the second atom: the normal equations would square its smallness
        norm = e[0].norm(dim=0).clamp_min(1e-300)
        unit = e[0] / norm
        overlap = (unit * e[1]).sum(0)
        rest = e[1] - overlap * unit
        again = (unit * rest).sum(0)
        rest, overlap = rest - again * unit, overlap + again
        size = (rest * rest).sum(0).clamp_min(1e-300)
        x2 = (rest * y).sum(0) / size
        x1 = ((unit * y).sum(0) - overlap * x2) / norm
        x = torch.stack((x1, x2))
        residual = x1 * e[0] + x2 * e[1] - y
        sound = (x1 > 0) & (x2 > 0) & (u[1] - u[0] > _CLOSE)
        objective = torch.where(sound, 0.5 * (residual * residual).sum(0), torch.inf)
        slope = (residual * first).sum(1)
        gradient = x * slope

        def project(columns: Tensor) -> Tensor:
            """Off the plane of both atoms, which is what the amplitudes take over."""
            columns = columns - (unit * columns).sum(0) * unit
            return columns - (rest * columns).sum(0) / size * rest

        p1, p2 = project(x1 * first[0]), project(x2 * first[1])
        positive = torch.stack(((p1 * p1).sum(0), (p1 * p2).sum(0), (p2 * p2).sum(0)))
        # with h = H_xu = x_l a_k.a_l' + [k = l] r.a_l' the full complement is
        # H_uu - h^T H_xx^-1 h; H_xx^-1 from the same factors
        g = torch.stack([(e[k] * first[m]).sum(0) * x[m] for k in (0, 1) for m in (0, 1)])
        h = torch.stack((g[0] + slope[0], g[1], g[2], g[3] + slope[1]))
        low1 = h[0] / norm, h[1] / norm
        root = size.sqrt()
        low2 = (h[2] - overlap * low1[0]) / root, (h[3] - overlap * low1[1]) / root
        curved = x * (residual * second).sum(1)
        outer = x1 * x2 * (first[0] * first[1]).sum(0)
        full = [
            x1 * x1 * (first[0] * first[0]).sum(0) + curved[0],
            outer,
            x2 * x2 * (first[1] * first[1]).sum(0) + curved[1],
        ]
        pairs = ((0, 0), (0, 1), (1, 1))
        hessian = torch.stack(
            [f - low1[i] * low1[j] - low2[i] * low2[j] for f, (i, j) in zip(full, pairs, strict=True)]
        )
        return _Point(u, x, objective, gradient, hessian, positive)

    def _climb(self, y: Float[Tensor, "n c"], u: Float[Tensor, "2 c"]) -> tuple[_Point, Bool[Tensor, " c"]]:
        """Minimise from the starts `u`, and whether each candidate converged."""
        low, high = float(self.u[0]), float(self.u[-1])
        end = self._at(y, u)
        ok = torch.zeros_like(end.objective, dtype=torch.bool)
        at = torch.nonzero(torch.isfinite(end.objective)).squeeze(1)
        point, y = end.select(at), y[:, at]
        damping = torch.full_like(point.objective, 1e-3)
        for _ in range(_STEPS):
            if at.numel() == 0:
                break
            step, newton = self._step(point, damping, low, high)
            tried = self._at(y, (point.u + step).clamp(low, high))
            better = tried.objective <= point.objective
            gain = point.objective - tried.objective
            short = step.abs().amax(0) < _SHORT
            ended = (better & newton & (gain <= _RELATIVE * point.objective)) | short
            # no descent however short the step
            stuck = ~better & (damping > _LARGEST)
            point = point.where(better, tried)
            damping = torch.where(better, damping / 10, damping * 10).clamp_min(_LEAST)
            finished = ended | stuck
            if bool(finished.any()):
                end.put(at[finished], point.select(finished))
                ok[at[ended]] = True
                left = torch.nonzero(~finished).squeeze(1)
                at, y, damping, point = at[left], y[:, left], damping[left], point.select(left)
        end.put(at, point)
        return end, ok

    @staticmethod
    def _step(
        point: _Point, damping: Float[Tensor, " c"], low: float, high: float
    ) -> tuple[Float[Tensor, "2 c"], Bool[Tensor, " c"]]:
        """Newton step, or Gauss-Newton where the Hessian is not positive; a time that would leave its bound stays."""
        g = point.gradient
        held = ((point.u <= low) & (g > 0)) | ((point.u >= high) & (g < 0))
        h11, h12, h22 = point.hessian
        convex = (h11 > 0) & (h11 * h22 - h12 * h12 > 1e-12 * h11 * h22.abs())
        h11, h12, h22 = (torch.where(convex, a, b) for a, b in zip(point.hessian, point.positive, strict=True))
        h11, h22 = h11 * (1 + damping) + 1e-300, h22 * (1 + damping) + 1e-300
        g1, g2 = torch.where(held[0], 0.0, g[0]), torch.where(held[1], 0.0, g[1])
        h12 = torch.where(held.any(0), 0.0, h12)
        below = (h11 * h22 - h12 * h12).clamp_min(1e-300)
        step = -torch.stack((h22 * g1 - h12 * g2, h11 * g2 - h12 * g1)) / below
        return torch.nan_to_num(step).clamp(-1.0, 1.0), convex | held.any(0)
