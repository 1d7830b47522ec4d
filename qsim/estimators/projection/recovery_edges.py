"""Recoveries on the edges of what they may be: B at its upper bound, or a signal that is zero exactly at a time.

Each is a family with one amplitude, smooth in T1 but for the kinks of the modulus. `recovery_search` asks for an edge
where the solution of a sign pattern runs into it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qsim.estimators.projection.separable import ray_moments, refine, zero_times
from qsim.parameters import T1

# voxels of one piece of work: less is overhead, more leaves the cache
PIECE = 8192
# a kink on the edge of B is not found by more steps, but as a corner
_EDGE_STEPS = 8


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


def largest(fit: Float[Tensor, "g c"]) -> Int[Tensor, " c"]:
    """Row of the largest of each column, or of one that is 2^-18 g smaller; none is negative.

    The row's number replaces the lowest bits of the float32: `max` with indices takes ten times longer.
    """
    low = (1 << (len(fit) - 1).bit_length()) - 1
    rows = torch.arange(len(fit), dtype=torch.int32, device=fit.device)[:, None]
    numbered = (fit.view(torch.int32) & ~low) | rows
    return (numbered.amax(0) & low).long()


def parabola(
    fit: Float[Tensor, "g c"], u: Float[Tensor, " g"]
) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"], Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Vertex of the parabola at the best grid point, its bracket, and what a grid point may lose at most."""
    grid = largest(fit)
    low, high = (grid - 1).clamp_min(0), (grid + 1).clamp_max(len(u) - 1)
    left, middle, right = (fit.gather(0, i[None])[0].double().square() for i in (low, grid, high))
    fall = (2 * middle - left - right).clamp_min(1e-30)
    offset = torch.where((low < grid) & (high > grid), 0.5 * (right - left) / fall, 0.0)
    return u[grid] + (u[1] - u[0]) * offset.clamp(-0.9, 0.9), u[low], u[high], 0.25 * fall


class EdgeSearch:
    """Tables of the edges of one series of times.

    Args:
        ti: ascending [s].
        u: grid of log T1, ends included [log s].
        signed: the series keeps its sign; then there is the edge of B only.
        deepest: upper bound of B [1].
        tr: finite repetition time; None: TR >> T1 [s].
    """

    def __init__(
        self, ti: Float[Tensor, "n 1"], u: Float[Tensor, " g"], signed: bool, deepest: float, tr: float | None
    ) -> None:
        self.ti, self.u, self.signed, self.deepest, self.tr = ti, u, signed, deepest, tr
        n, t1 = len(ti), u.exp()
        # from this T1 on a zero of the signal at each time needs no B beyond its bound; inf: never
        self.zero = zero_times(ti, ti.new_tensor([deepest]), tr, (float(u[0]), float(u[-1])))[:, 0]
        edges = [self._deepest_atom(u, False)]
        if not signed:
            edges += [1 - torch.exp((ti[k] - ti) / t1) for k in range(n)]
        rays = torch.stack(edges)
        rays = rays if signed else rays.abs()
        rays = rays / rays.norm(dim=1, keepdim=True).clamp_min(1e-300)
        for k in range(len(edges) - 1):
            rays[k + 1][:, self.zero[k] > t1] = 0
        self.ray_of = rays.permute(0, 2, 1).float()
        self.corner = self.zero.clamp(T1.lower, T1.upper)
        corners = self._deepest_atom(self.corner.log(), True).T
        self.corner_norm = corners.norm(dim=1)
        outside = (self.zero < T1.lower) | (self.zero > T1.upper)
        self.corner_of = torch.where(outside[:, None], 0.0, corners / self.corner_norm.clamp_min(1e-300)[:, None])

    def _deepest_atom(self, u: Float[Tensor, " c"], rectify: bool) -> Float[Tensor, "n c"]:
        """Signal of A = 1 with B at its upper bound."""
        rate = torch.exp(-u)
        atom = 1 - self.deepest * torch.exp(-self.ti * rate)
        atom = atom if self.tr is None else atom + (self.deepest - 1) * torch.exp(-self.tr * rate)
        return atom.abs() if rectify else atom

    def natural(
        self, a: Float[Tensor, " c"], b: Float[Tensor, " c"], u: Float[Tensor, " c"]
    ) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """A and B of a (1 - b exp(-TI / T1)), B within its bounds."""
        if self.tr is None:
            return a, b.clamp(0, self.deepest)
        rest = torch.exp(-self.tr * torch.exp(-u))
        left = (1 - b * rest) / -torch.expm1(-self.tr * torch.exp(-u))
        return a * left, (b / left).clamp(0, self.deepest)

    def __call__(
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
        fit = torch.cat([*fits, single.new_zeros(len(self.u), 0)], 1).clamp_min_(0)
        start, lower, upper, loss = parabola(fit, self.u)
        # kinks of the modulus, and zeros that B allows on a part of the grid only, may lose more than the parabola says
        promising = fit.amax(0).square() + 4 * loss > energy[at] - best.objective[at]
        at, edge, start, lower, upper = (x[promising] for x in (at, edge, start, lower, upper))
        for piece in zip(*(x.split(PIECE) for x in (at, edge, start, lower, upper)), strict=True):
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
        bound = torch.nonzero(edge == 0)[:, 0]
        if bound.numel():
            self._deepest(y[:, bound], energy, best, at[bound], start[bound], lower[bound], upper[bound])
        inner = torch.nonzero(edge > 0)[:, 0]
        y, at, start, lower, upper = y[:, inner], at[inner], start[inner], lower[inner], upper[inner]
        k = edge[inner] - 1
        zero_at = self.ti[k, 0]
        # B stays within its bound
        lower = torch.maximum(lower, self.zero[k].clamp(T1.lower, T1.upper).log())
        start, upper = torch.maximum(start, lower), torch.maximum(upper, lower)
        times, one = self.ti - zero_at, self.ti.new_ones(1)
        # the signal turns positive at the zero, whatever T1: no kinks
        z = torch.where(times < 0, -y, y)
        u, ok = refine(
            lambda i, u: ray_moments(z[:, i], times[:, i], u, 1.0, one, False),
            start,
            lower,
            upper,
            energy[at],
            _EDGE_STEPS,
        )
        d = 1 - torch.exp(-times * torch.exp(-u))
        a = ((z * d).sum(0) / (d * d).sum(0)).clamp_min(0)
        objective = (a * d - z).square().sum(0)
        a, b = self.natural(a, torch.exp(zero_at * torch.exp(-u)), u)
        best.improve(Solution(a, b, torch.exp(u), torch.nan_to_num(objective, nan=torch.inf), ok), at)

    def _deepest(
        self,
        y: Float[Tensor, "n c"],
        energy: Float[Tensor, " v"],
        best: Solution,
        at: Int[Tensor, " c"],
        start: Float[Tensor, " c"],
        lower: Float[Tensor, " c"],
        upper: Float[Tensor, " c"],
    ) -> None:
        """Refine T1 with B at its upper bound; of magnitudes also the corners of that edge, zeros at the times (kinks),
        and from starts between them.
        """
        rectify = not self.signed
        depth = self.ti.new_full((1,), self.deepest)

        def climb(start: Tensor, lower: Tensor, upper: Tensor) -> None:
            u, ok = refine(
                lambda i, u: ray_moments(y[:, i], self.ti, u, 1.0, depth, rectify, self.tr),
                start,
                lower,
                upper,
                energy[at],
                _EDGE_STEPS,
            )
            d = self._deepest_atom(u, rectify)
            a = ((y * d).sum(0) / (d * d).sum(0)).clamp_min(0)
            objective = torch.nan_to_num((a * d - y).square().sum(0), nan=torch.inf)
            best.improve(Solution(a, depth.expand_as(a), torch.exp(u), objective, ok), at)

        climb(start, lower, upper)
        if self.signed:
            return
        fit, k = (self.corner_of @ y).clamp_min(0).max(0)
        a = fit / self.corner_norm[k].clamp_min(1e-300)
        best.improve(Solution(a, depth.expand_as(a), self.corner[k], energy[at] - fit.square(), fit > 0), at)
        corner = self.corner[k].log()
        low, high = (self.corner[i.clamp(0, len(self.corner) - 1)].log() for i in (k - 1, k + 1))
        climb((low + corner) / 2, low, corner)
        climb((high + corner) / 2, corner, high)
