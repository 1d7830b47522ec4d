"""Recoveries with free B: global least squares over A >= 0, B and T1 in their bounds.

    minimise sum_n (|A (1 - B exp(-TI_n / T1) + (B - 1) exp(-TR / T1))| - S_n)^2      the last term with a finite TR

With R = exp(-TR / T1) (0 without TR) the signal is a (1 - b exp(-TI / T1)), a = A (1 + (B - 1) R), b = A B / a: the
same plane for every TR. Only B's upper bound is another, b <= D / (1 + (D - 1) R), and A = a (1 - b R) / (1 - R).

With the times ascending the signed signal turns positive once, so its sign pattern is "the first m images are
negative". For one T1 and one m the problem is a linear least squares in (x1, x2) = (A, -A B) over a cone; the cones
of all m tile the half-plane A >= 0, and the objective is convex inside each. Its minimum is therefore either the
interior solution of a cone that holds it, or lies on an edge: the signal is zero exactly at a time (then
b = exp(TI_k / T1)), B is at a bound, or A is 0. An edge at TI_k between two cones can only hold a minimum if S_k <= 0:
elsewhere the modulus makes a ridge there. Interiors and edges are the families of `separable`, smooth in T1.

The search is branch and bound. Without its constraints a pattern explains at least as much as with them, so the grid
of T1 gives an upper bound for every pattern with one matrix product. The most promising pattern of each voxel is
refined first, then every one whose bound lies above what was found. A pattern whose solution leaves its cone is
replaced by the edge that it crossed.
"""

from math import expm1

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qsim.estimators.projection.recovery_edges import PIECE, EdgeSearch, Solution, largest
from qsim.estimators.projection.separable import log_grid, plane_moments, refine, zero_times
from qsim.parameters import T1, B

_GRID = 32
# voxels of one chunk, whose late rounds are shared
_VOXELS = 32768
_BOUNDED = 4096
# images that a zero crossing may lie beside its pattern before the pattern is dropped
_MARGIN = 2
# rounding of the float32 bounds, relative to the sum of squares of the series
_ROUNDING = 2e-6


class RecoverySearch:
    """Tables of one series of inversion times, and the search that uses them.

    Args:
        ti: inversion (or saturation) times, in any order [s].
        signed: the series keeps its sign.
        deepest: upper bound of B [1].
        tr: finite repetition time; None: TR >> T1 [s].
        device: of the series.
    """

    def __init__(
        self,
        ti: tuple[float, ...],
        signed: bool,
        deepest: float = B.upper,
        tr: float | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.signed, self.deepest, self.tr = signed, deepest, tr
        self.order = sorted(range(len(ti)), key=lambda i: ti[i])
        self.ti = torch.tensor(ti, dtype=torch.float64)[self.order][:, None]
        self.u = log_grid(T1, _GRID)
        ends = float(self.u[0]), float(self.u[-1])
        zero = zero_times(self.ti, torch.tensor([deepest], dtype=torch.float64), tr, ends)[:, 0]
        n, t1 = len(ti), self.u.exp()
        # from the first image on: unit vectors do not depend on what has decayed before
        e = torch.exp(-(self.ti - self.ti[0]) / t1)
        self.cells = _cells(self.ti - self.ti[0], self.u)
        plane = self.cells[:_GRID].T.double()
        # patterns: the first m images are negative
        self.n_patterns = 1 if signed else n + 1
        signs = torch.ones(self.n_patterns, n, dtype=torch.float64)
        for m in range(self.n_patterns):
            signs[m, :m] = -1
        self.mean_of = (signs / n).float()
        self.tables = [
            self._table(signs, plane[:, g], e[:, g], 1 + int((zero <= 1.25 * t1[g]).sum())) for g in range(_GRID)
        ]
        self.negative, self.signs = (signs < 0).T.contiguous(), signs.T.float().contiguous()

        self.edges = EdgeSearch(self.ti.to(device), self.u.to(device), signed, deepest, tr)
        for name in ("ti", "u", "cells", "mean_of", "negative", "signs"):
            setattr(self, name, getattr(self, name).to(device))
        self.tables = [(a.to(device), b.to(device), c.to(device)) for a, b, c in self.tables]

    def _table(
        self, signs: Float[Tensor, "m n"], plane: Float[Tensor, " n"], e: Float[Tensor, " n"], feasible: int
    ) -> tuple[Float[Tensor, "k n"], Float[Tensor, "k 1"], Float[Tensor, "k 1"]]:
        """For one T1: the products that give the slope of each pattern, and where its zero crossing may lie.

        The crossing of the solution lies where slope * height equals the mean of the signed images; a pattern is kept
        while it is within `_MARGIN` images of its own place, since the refined T1 lies beside the grid.

        Args:
            feasible: patterns whose crossing the bound of B allows; one step of the grid wider.
        """
        n = len(e)
        feasible = 1 if self.signed else feasible
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
        full = 1.0 if self.tr is None else -expm1(-self.tr / T1.start)
        best = Solution(
            a / full,
            torch.zeros_like(a),
            torch.full_like(a, T1.start),
            energy - n * a.square(),
            torch.ones_like(a, dtype=torch.bool),
        )
        bounds = torch.cat([self._bounds(piece) for piece in single.split(_BOUNDED, dim=1)])
        slack = _ROUNDING * energy
        # the most promising pattern of every voxel, then all that are left above what was found
        first, every = bounds.max(1).indices, torch.arange(v, device=y.device)
        self._try_patterns(y, single, energy, best, slack, every, first)
        bounds[every, first] = -1.0
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
        for some, which in zip(at.split(PIECE), member.split(PIECE), strict=True):
            start, loss, kept = self._starts(single[:, some], which, (energy - best.objective)[some])
            slack.scatter_reduce_(0, some, loss + _ROUNDING * energy[some], "amax")
            some, which, start = some[kept], which[kept], start[:, kept]
            found, edges, relaxed = self._planes(y[:, some], which, start)
            best.improve(found, some)
            # an edge explains less than the pattern without its constraints
            useful = relaxed > energy[some] - best.objective[some]
            requests += [edge[keep] * y.shape[1] + some[keep] for edge in edges for keep in [useful & (edge >= 0)]]
        if requests:
            # sorted by edge, each voxel once per edge
            request = torch.cat(requests).unique()
            self.edges(y, single, request % y.shape[1], request // y.shape[1], best, energy)

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
        # in the units of the images squared, of which no number is small: nothing may be added to it
        return total.masked_fill_(best <= 0, -1.0).T.contiguous()

    def _starts(
        self, single: Float[Tensor, "n c"], member: Int[Tensor, " c"], explained: Float[Tensor, " c"]
    ) -> tuple[Float[Tensor, "3 c"], Float[Tensor, " c"], Int[Tensor, " k"]]:
        """Of pattern `member`: start and bracket of log T1, the loss of the grid, and which explain more than
        `explained` without their constraints.
        """
        n = single.shape[0]
        z = single * self.signs.index_select(1, member)
        start, loss, fit = _vertex(self.cells @ z, self.u)
        most = fit.square() + n * z.mean(0).double().square()
        return start, loss, torch.nonzero(most * (1 + _ROUNDING) >= explained).squeeze(1)

    def _planes(
        self, y: Float[Tensor, "n c"], member: Int[Tensor, " c"], start: Float[Tensor, "3 c"]
    ) -> tuple[Solution, list[Tensor], Tensor]:
        """Interior solutions of pattern `member`, the edges to try where they leave their cone, and what was explained
        without the constraints.
        """
        n = y.shape[0]
        z = torch.where(self.negative.index_select(1, member), -y, y)
        mean = z.mean(0)
        z = z - mean
        u, ok = refine(
            lambda i, at: plane_moments(z[:, i], self.ti, at), start[0], start[1], start[2], z.square().sum(0)
        )
        e = torch.exp(-self.ti * torch.exp(-u))
        centre = e.mean(0)
        d = e - centre
        size = (d * d).sum(0)
        x2 = (z * d).sum(0) / size
        a = mean - x2 * centre
        b = -x2 / a
        signal = torch.addcmul(mean, x2, d)
        objective = (signal if self.signed else signal.abs()).sub(y).square_().sum(0)
        deepest: float | Tensor = self.deepest
        if self.tr is not None:
            deepest = self.deepest / (1 + (self.deepest - 1) * torch.exp(-self.tr * torch.exp(-u)))
        deep = (a <= 0) | (b > deepest)
        # rounding of B at its bound is not a violation
        feasible = (a >= 0) & (b >= 0) & (b <= deepest * (1 + 1e-12)) & torch.isfinite(objective)
        objective = torch.where(feasible, objective, torch.inf)
        found = Solution(*self.edges.natural(a, b, u), torch.exp(u), objective, ok)
        edges = [torch.where(deep, 0, -1)]
        if not self.signed:
            # which of the two images beside the crossing has the wrong sign, if any
            last, first = (member - 1).clamp_min(0), member.clamp_max(n - 1)
            late = (member > 0) & (signal.gather(0, last[None])[0] > 0)
            early = (member < n) & (signal.gather(0, first[None])[0] < 0)
            k = torch.where(late, last, first)
            kink = (late | early) & (y.gather(0, k[None])[0] <= 0)
            edges.append(torch.where(kink, k + 1, -1))
        relaxed = n * mean**2 + x2**2 * size
        return found, edges, relaxed


def _cells(times: Float[Tensor, "n 1"], u: Float[Tensor, " g"]) -> Float[Tensor, "k n"]:
    """Unit vectors d / |d| of d = E - mean(E), and their first and second derivative in steps of the grid of
    u = log T1: 3 g rows.
    """
    tau = times * torch.exp(-u)
    e = torch.exp(-tau)
    d = torch.stack((e, e * tau, e * tau * (tau - 1)))
    d, d1, d2 = d - d.mean(1, keepdim=True)
    size = d.norm(dim=0).clamp_min(1e-150)
    # |d| and its derivatives
    size1 = (d * d1).sum(0) / size
    size2 = ((d1 * d1).sum(0) + (d * d2).sum(0) - size1**2) / size
    unit = d / size
    unit1 = (d1 - unit * size1) / size
    unit2 = (d2 - 2 * unit1 * size1 - unit * size2) / size
    step = u[1] - u[0]
    return torch.cat((unit, step * unit1, step**2 * unit2), 1).T.float().contiguous()


def _vertex(
    fit: Float[Tensor, "k c"], u: Float[Tensor, " g"]
) -> tuple[Float[Tensor, "3 c"], Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Where f = -fit is largest: in the cell beside the best grid point, by the polynomial of degree 5 that has the
    values and derivatives of both ends. Its error is of the order 1e-8 of |z|: one exact Newton step is left to do.

    Returns: log T1 and its bracket, what a grid point may lose at most, and the largest f.
    """
    g, c = len(u), fit.shape[1]
    node = largest(fit[:g].neg().clamp_min_(0))
    flat, column = fit.reshape(-1), torch.arange(c, device=fit.device)

    def at(derivative: int, node: Int[Tensor, " c"]) -> Float[Tensor, " c"]:
        return flat.index_select(0, (node + derivative * g) * c + column).neg_().double()

    # uphill from the best grid point
    cell = torch.where(at(1, node) > 0, node, node - 1).clamp_(0, g - 2)
    f0, f1, d0, d1, s0, s1 = (at(derivative, cell + end) for derivative in range(3) for end in range(2))
    rise = f1 - f0
    c3 = 10 * rise - 6 * d0 - 4 * d1 - 1.5 * s0 + 0.5 * s1
    c4 = -15 * rise + 8 * d0 + 7 * d1 + 1.5 * s0 - s1
    c5 = 6 * rise - 3 * (d0 + d1) - 0.5 * (s0 - s1)
    # the slope of a hill falls from one end of the cell to the other
    x = torch.where((d0 > 0) & (d1 < 0), d0 / (d0 - d1), (node - cell).double())
    for _ in range(3):
        slope = d0 + x * (s0 + x * (3 * c3 + x * (4 * c4 + x * (5 * c5))))
        curvature = s0 + x * (6 * c3 + x * (12 * c4 + x * (20 * c5)))
        x = torch.where(curvature < 0, x - slope / curvature, x).clamp_(0, 1)
    top = torch.maximum(
        f0 + x * (d0 + x * (0.5 * s0 + x * (c3 + x * (c4 + x * c5)))), torch.maximum(f0, f1)
    ).clamp_min_(0)
    best = (u[0] + (u[1] - u[0]) * (cell + x)).clamp(u[0], u[-1])
    # twice what the squared fit falls by in half a step
    loss = -0.5 * torch.minimum(d0.square() + f0 * s0, d1.square() + f1 * s1).clamp_max_(0)
    return torch.stack((best, u[(node - 1).clamp_min(0)], u[(node + 1).clamp_max(g - 1)])), loss, top
