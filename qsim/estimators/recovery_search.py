"""The free-B inversion recovery: global least squares over A >= 0, B in its bounds, T1 in its bounds.

    minimise sum_n (|A (1 - B exp(-TI_n / T1))| - S_n)^2

With the times ascending the signed signal turns positive once, so its sign pattern is "the first m images are
negative". For one T1 and one m the problem is a linear least squares in (x1, x2) = (A, -A B) over a cone; the cones
of all m tile the half-plane A >= 0, and the objective is convex inside each. Its minimum is therefore either the
interior solution of a cone that holds it, or lies on an edge: the signal is zero exactly at a time (then
B = exp(TI_k / T1)), B is at a bound, or A is 0. An edge at TI_k between two cones can only hold a minimum if S_k <= 0:
elsewhere the modulus makes a ridge there. Interiors and edges are the families of `separable`, smooth in T1.

The search is branch and bound. Without its constraints a pattern explains at least as much as with them, so the grid
of T1 gives an upper bound for every pattern with one matrix product. The most promising pattern of each voxel is
refined first, then every one whose bound lies above what was found. A pattern whose solution leaves its cone is
replaced by the edge that it crossed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qsim.estimators.separable import log_grid, plane_moments, ray_moments, refine
from qsim.parameters import T1, B

_GRID = 32
# voxels of one chunk, whose late rounds are shared, and of one piece of work, which stays in the cache
_VOXELS = 32768
_PIECE = 2048
_BOUNDED = 4096
# images that a zero crossing may lie beside its pattern before the pattern is dropped
_MARGIN = 2
# a kink on the edge of B is not found by more steps, but as a corner
_EDGE_STEPS = 8
# rounding of the float32 bounds, relative to the sum of squares of the series
_ROUNDING = 2e-6


@dataclass(frozen=True)
class Solution:
    """Best point of each voxel.

    Attributes:
        a, b, t1: estimates [units of the images, 1, s].
        objective: sum of squares there.
        converged: whether the refinement of the chosen candidate ended by itself.
    """

    a: Float[Tensor, " v"]
    b: Float[Tensor, " v"]
    t1: Float[Tensor, " v"]
    objective: Float[Tensor, " v"]
    converged: Bool[Tensor, " v"]

    def fields(self) -> Iterator[Tensor]:
        return iter((self.a, self.b, self.t1, self.objective, self.converged))

    def improve(self, found: "Solution", at: Int[Tensor, " c"]) -> None:
        """Take over what is better; a voxel may stand in `at` more than once."""
        before = self.objective[at]
        self.objective.scatter_reduce_(0, at, found.objective, "amin")
        better = (found.objective < before) & (found.objective == self.objective[at])
        where = at[better]
        for mine, new in zip(self.fields(), found.fields(), strict=True):
            mine[where] = new[better]


class RecoverySearch:
    """Tables of one series of inversion times, and the search that uses them.

    Args:
        ti: inversion times, in any order [s].
        signed: the series keeps its sign.
    """

    def __init__(self, ti: tuple[float, ...], signed: bool) -> None:
        self.signed = signed
        self.order = sorted(range(len(ti)), key=lambda i: ti[i])
        self.ti = torch.tensor(ti, dtype=torch.float64)[self.order][:, None]
        self.u = log_grid(T1, _GRID)
        n, t1 = len(ti), self.u.exp()
        e = torch.exp(-self.ti / t1)
        plane = (e - e.mean(0)) / (e - e.mean(0)).norm(dim=0).clamp_min(1e-300)
        self.plane = plane.T.float()
        # patterns: the first m images are negative
        self.n_patterns = 1 if signed else n + 1
        signs = torch.ones(self.n_patterns, n, dtype=torch.float64)
        for m in range(self.n_patterns):
            signs[m, :m] = -1
        self.mean_of = (signs / n).float()
        self.tables = [self._table(signs, plane[:, g], e[:, g], float(t1[g])) for g in range(_GRID)]
        self.negative = (signs < 0).T

        # edges: B at its upper bound, then a zero at each time
        edges = [1 - B.upper * e]
        if not signed:
            edges += [1 - torch.exp((self.ti[k] - self.ti) / t1) for k in range(n)]
        rays = torch.stack(edges)
        rays = rays if signed else rays.abs()
        rays = rays / rays.norm(dim=1, keepdim=True).clamp_min(1e-300)
        for k in range(len(edges) - 1):
            rays[k + 1][:, self.ti[k] > t1 * log(B.upper)] = 0
        self.ray_of = rays.permute(0, 2, 1).float()
        corners = (1 - B.upper ** (1 - self.ti.T / self.ti.clamp_min(1e-12))).abs()
        self.corner_norm = corners.norm(dim=1)
        outside = (self.ti[:, 0] < T1.lower * log(B.upper)) | (self.ti[:, 0] > T1.upper * log(B.upper))
        self.corner_of = torch.where(outside[:, None], 0.0, corners / self.corner_norm.clamp_min(1e-300)[:, None])

    def _table(
        self, signs: Float[Tensor, "m n"], plane: Float[Tensor, " n"], e: Float[Tensor, " n"], t1: float
    ) -> tuple[Float[Tensor, "k n"], Float[Tensor, "k 1"], Float[Tensor, "k 1"]]:
        """For one T1: the products that give the slope of each pattern, and where its zero crossing may lie.

        The crossing of the solution lies where slope * height equals the mean of the signed images; a pattern is kept
        while it is within `_MARGIN` images of its own place, since the refined T1 lies beside the grid.
        """
        n = len(e)
        # B <= 3 puts the zero crossing below T1 log 3; one step of the grid wider
        feasible = 1 + int((self.ti[:, 0] <= 1.25 * t1 * log(B.upper)).sum()) if not self.signed else 1
        # as if an image at TI = infinity followed: A >= 0
        height = torch.cat((plane, plane[:1] - e[:1] / (e - e.mean()).norm().clamp_min(1e-300)))
        members = torch.arange(feasible)
        last, first = members - 1 - _MARGIN, members + _MARGIN
        highest = torch.where(last >= 0, height[last.clamp_min(0)], 1e30)
        lowest = height[first.clamp_max(n)]
        return (
            (-signs[:feasible] * plane).float().contiguous(),
            highest.float()[:, None].clamp_max(1e30),
            lowest.float()[:, None].clamp_min(-1e30),
        )

    def __call__(self, images: Float[Tensor, "n v"]) -> Solution:
        in_order = self.order == sorted(self.order)
        ordered = images if in_order else images[self.order]
        pieces = [self._chunk(piece.double()) for piece in ordered.split(_VOXELS, dim=1)]
        return Solution(*(torch.cat(column) for column in zip(*(p.fields() for p in pieces), strict=True)))

    def _chunk(self, y: Float[Tensor, "n v"]) -> Solution:
        n, v = y.shape
        single = y.float()
        energy = y.square().sum(0)
        # B = 0: a constant, whatever T1
        a = y.mean(0).clamp_min(0)
        best = Solution(
            a,
            torch.zeros_like(a),
            torch.full_like(a, T1.start),
            energy - n * a.square(),
            torch.ones_like(a, dtype=torch.bool),
        )
        bounds = torch.cat([self._bounds(piece) for piece in single.split(_BOUNDED, dim=1)])
        slack = _ROUNDING * energy
        # the most promising pattern of every voxel, then all that are left above what was found
        first = bounds.max(1).indices
        self._try_patterns(y, single, energy, best, slack, torch.arange(v), first)
        bounds[torch.arange(v), first] = -1.0
        at, member = torch.nonzero(bounds > (energy - best.objective - slack)[:, None]).T
        self._try_patterns(y, single, energy, best, slack, at, member)
        return best

    def _try_patterns(
        self,
        y: Float[Tensor, "n v"],
        single: Float[Tensor, "n v"],
        energy: Float[Tensor, " v"],
        best: Solution,
        slack: Float[Tensor, " v"],
        at: Int[Tensor, " c"],
        member: Int[Tensor, " c"],
    ) -> None:
        """Refine pattern `member` of voxel `at` and the edges that it runs into; updates `best` and `slack`."""
        requests = []
        for some, which in zip(at.split(_PIECE), member.split(_PIECE), strict=True):
            found, edges, relaxed, loss = self._planes(y[:, some], single[:, some], which)
            best.improve(found, some)
            slack.scatter_reduce_(0, some, loss + _ROUNDING * energy[some], "amax")
            # an edge explains less than the pattern without its constraints
            useful = relaxed > energy[some] - best.objective[some]
            requests += [edge[keep] * y.shape[1] + some[keep] for edge in edges for keep in [useful & (edge >= 0)]]
        if requests:
            # sorted by edge, each voxel once per edge
            request = torch.cat(requests).unique()
            self._edges(y, single, request % y.shape[1], request // y.shape[1], best, energy)

    def _bounds(self, y: Float[Tensor, "n v"]) -> Float[Tensor, "v m"]:
        """What each pattern explains at most, on the grid of T1."""
        mean = self.mean_of @ y
        below = -mean
        best = torch.zeros_like(mean)
        # T by T: a block of patterns x voxels stays in the cache
        for product, highest, lowest in self.tables:
            m = len(product)
            slope = (product @ y).clamp_min_(0)
            if self.signed:
                torch.maximum(best, slope, out=best)
                continue
            # negative where the zero crossing is far from the pattern's: that T is not its own
            inside = torch.addcmul(below[:m], slope, highest)
            torch.minimum(inside, torch.addcmul(mean[:m], slope, lowest, value=-1), out=inside)
            torch.maximum(best[:m], torch.copysign(slope, inside, out=inside), out=best[:m])
        total = best.square() + y.shape[0] * mean.square()
        return (total.add_(1.0) * (best > 0)).sub_(1.0).T.contiguous()

    def _start(self, fit: Float[Tensor, "g c"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Vertex of the parabola at the best grid point, its bracket, and what a grid point may lose at most."""
        grid = fit.T.max(1).indices
        low, high = (grid - 1).clamp_min(0), (grid + 1).clamp_max(_GRID - 1)
        left, middle, right = (fit.gather(0, i[None])[0].double().square() for i in (low, grid, high))
        fall = (2 * middle - left - right).clamp_min(1e-30)
        step = float(self.u[1] - self.u[0])
        offset = torch.where((low < grid) & (high > grid), 0.5 * (right - left) / fall, 0.0)
        return self.u[grid] + step * offset.clamp(-0.9, 0.9), self.u[low], self.u[high], 0.25 * fall

    def _planes(
        self, y: Float[Tensor, "n c"], single: Float[Tensor, "n c"], member: Int[Tensor, " c"]
    ) -> tuple[Solution, list[Tensor], Tensor, Tensor]:
        """Interior solutions of pattern `member`, the edges to try where they leave their cone, what was explained
        without the constraints, and the loss of the grid.
        """
        n = y.shape[0]
        flip = self.negative[:, member]
        z = torch.where(flip, -y, y)
        fit = (self.plane @ torch.where(flip, -single, single)).neg_().clamp_min_(0)
        start, lower, upper, loss = self._start(fit)
        mean = z.mean(0)
        u, ok = refine(
            lambda i, at: plane_moments(z[:, i], self.ti, at), start, lower, upper, z.square().sum(0) - n * mean**2
        )
        e = torch.exp(-self.ti * torch.exp(-u))
        centre = e.mean(0)
        d = e - centre
        x2 = (z * d).sum(0) / (d * d).sum(0)
        a = mean - x2 * centre
        b = -x2 / a
        signal = a + x2 * e
        objective = ((signal if self.signed else signal.abs()) - y).square().sum(0)
        deep = (a <= 0) | (b > B.upper)
        # rounding of B at its bound is not a violation
        feasible = (a >= 0) & (b >= 0) & (b <= B.upper * (1 + 1e-12)) & torch.isfinite(objective)
        objective = torch.where(feasible, objective, torch.inf)
        found = Solution(a, b.clamp(0, B.upper), torch.exp(u), objective, ok)
        edges = [torch.where(deep, 0, -1)]
        if not self.signed:
            # which of the two images beside the crossing has the wrong sign, if any
            last, first = (member - 1).clamp_min(0), member.clamp_max(n - 1)
            late = (member > 0) & (signal.gather(0, last[None])[0] > 0)
            early = (member < n) & (signal.gather(0, first[None])[0] < 0)
            k = torch.where(late, last, first)
            kink = (late | early) & (y.gather(0, k[None])[0] <= 0)
            edges.append(torch.where(kink, k + 1, -1))
        relaxed = n * mean**2 + x2**2 * (d * d).sum(0)
        return found, edges, relaxed, loss

    def _edges(
        self,
        y: Float[Tensor, "n v"],
        single: Float[Tensor, "n v"],
        at: Int[Tensor, " c"],
        edge: Int[Tensor, " c"],
        best: Solution,
        energy: Float[Tensor, " v"],
    ) -> None:
        """Try an edge of the voxels `at`, ascending: 0 is B at its bound, k + 1 a zero of the signal at time k."""
        counts = torch.bincount(edge, minlength=len(self.ray_of)).tolist()
        fits = [self.ray_of[k] @ single[:, some] for k, some in enumerate(at.split(counts)) if counts[k]]
        fit = torch.cat([*fits, single.new_zeros(_GRID, 0)], 1).clamp_min_(0)
        start, lower, upper, loss = self._start(fit)
        # kinks of the modulus may make a ray lose more than its parabola says
        promising = fit.amax(0).square() + 4 * loss > energy[at] - best.objective[at]
        at, edge, start, lower, upper = (x[promising] for x in (at, edge, start, lower, upper))
        for piece in zip(*(x.split(_PIECE) for x in (at, edge, start, lower, upper)), strict=True):
            self._refine_edges(y, energy, best, *piece)

    def _refine_edges(
        self,
        y: Float[Tensor, "n v"],
        energy: Float[Tensor, " v"],
        best: Solution,
        at: Int[Tensor, " c"],
        edge: Int[Tensor, " c"],
        start: Float[Tensor, " c"],
        lower: Float[Tensor, " c"],
        upper: Float[Tensor, " c"],
    ) -> None:
        """Refine T1 on an edge of the voxels `at`."""
        y = y[:, at]
        zero_at = torch.where(edge > 0, self.ti[(edge - 1).clamp_min(0), 0], 0.0)
        depth = torch.where(edge > 0, 1.0, B.upper).double()
        # B = exp(TI_k / T1) stays within its bound
        lower = torch.maximum(lower, torch.where(edge > 0, (zero_at / log(B.upper)).clamp_min(T1.lower).log(), lower))
        start, upper = torch.maximum(start, lower), torch.maximum(upper, lower)
        times = self.ti - zero_at
        u, ok = refine(
            lambda i, at: ray_moments(y[:, i], times[:, i], at, 1.0, depth[i], not self.signed),
            start,
            lower,
            upper,
            energy[at],
            _EDGE_STEPS,
        )
        d = 1 - depth * torch.exp(-times * torch.exp(-u))
        d = d if self.signed else d.abs()
        a = ((y * d).sum(0) / (d * d).sum(0)).clamp_min(0)
        b = (depth * torch.exp(zero_at * torch.exp(-u))).clamp(0, B.upper)
        objective = (a * d - y).square().sum(0)
        best.improve(Solution(a, b, torch.exp(u), torch.nan_to_num(objective, nan=torch.inf), ok), at)

        bound = torch.nonzero(edge == 0)[:, 0]
        if self.signed or not bound.numel():
            return
        # the corners of that edge, a zero at time k with B at its bound: kinks, and starts between them
        at, series = at[bound], y[:, bound]
        fit, k = (self.corner_of @ series).clamp_min(0).max(0)
        corners = (self.ti[:, 0] / log(B.upper)).clamp(T1.lower, T1.upper)
        depth = torch.full_like(fit, B.upper)
        a = fit / self.corner_norm[k]
        best.improve(Solution(a, depth, corners[k], energy[at] - fit.square(), fit > 0), at)
        low, high = corners[(k - 1).clamp_min(0)].log(), corners[(k + 1).clamp_max(len(corners) - 1)].log()
        for start, lower, upper in (
            ((low + corners[k].log()) / 2, low, corners[k].log()),
            ((high + corners[k].log()) / 2, corners[k].log(), high),
        ):
            u, ok = refine(
                lambda i, at: ray_moments(series[:, i], self.ti, at, 1.0, depth[i], True),
                start,
                lower,
                upper,
                energy[at],
                _EDGE_STEPS,
            )
            d = (1 - depth * torch.exp(-self.ti * torch.exp(-u))).abs()
            a = ((series * d).sum(0) / (d * d).sum(0)).clamp_min(0)
            objective = (a * d - series).square().sum(0)
            best.improve(Solution(a, depth, torch.exp(u), torch.nan_to_num(objective, nan=torch.inf), ok), at)
