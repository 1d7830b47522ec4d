"""The profile likelihood of B over many voxels: for each B the best T1 and A of every voxel.

What a voxel explains, phi(B, T1) = (S.d)^2 / d.d with d = |1 - B exp(-TI / T1)|, has a kink in T1 wherever the signal
crosses zero at a time, T1 = TI_k / log B. Where the image there is negative (noise) phi has a peak at the kink: the
voxel is then *pinned* to it, and as B changes T1 follows as TI_k / log B. The dictionary has an atom on every kink, so
that pinned voxels are found exactly and Newton steps stay on smooth pieces.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, log

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qsim.parameters import T1, B

# largest step of the dictionary in log T1
_GAP = 0.11
# where a kink is approached from above [log s]
_SIDE = 1e-4
# voxels of one chunk: the work on 31 float32 images then stays in the cache
_VOXELS = 8192
# voxels that the grid search of B looks at, and its step
_SEARCHED = 4096
_B_STEP = 0.1
# B has converged when a step, which is still made, is this small a part of its own standard error: where the curvature
# is known from these voxels alone, and where a sample of them has given it
_STEP = 0.1
_LAST_STEP = 5.0
_PASSES = 20


@dataclass(frozen=True, slots=True)
class Point:
    """All voxels at one B.

    Attributes:
        b: the common B [1].
        a: amplitudes [units of the images].
        u: log T1 [log s].
        a_b, u_b: how both follow B.
        explained: sum of phi.
        slope, curvature: derivatives of that sum in B, with A and T1 of every voxel following.
    """

    b: float
    a: Float[Tensor, " v"]
    u: Float[Tensor, " v"]
    a_b: Float[Tensor, " v"]
    u_b: Float[Tensor, " v"]
    explained: float
    slope: float
    curvature: float


@dataclass(frozen=True, slots=True)
class _Dictionary:
    """Atoms of one B.

    Attributes:
        b: the inversion depth [1].
        u: log T1 of the atoms, ascending [log s].
        image: the image whose zero crossing the atom lies on, else -1.
        atoms: unit vectors.
    """

    b: float
    u: Float[Tensor, " g"]
    image: Int[Tensor, " g"]
    atoms: Float[Tensor, "g n"]


class Profile:
    """The profile likelihood of B of the voxels `y`.

    Args:
        ti: inversion times [s].
        signed: the series keeps its sign; there are no kinks then.
        y: series of the voxels [units of A].
    """

    def __init__(self, ti: tuple[float, ...], signed: bool, y: Float[Tensor, "n v"]) -> None:
        self.signed, self.y = signed, y.float()
        self.ti = torch.tensor(ti, dtype=torch.float32)[:, None]
        self._times = ti

    def at(self, b: float) -> Point:
        """Every voxel at one B."""
        dictionary = self._dictionary(b)
        pieces, explained, slope, curvature = [], 0.0, 0.0, 0.0
        for y in self.y.split(_VOXELS, dim=1):
            a, u, phi, first, second, *follow = self._chunk(y, dictionary)
            pieces.append((a, u, *follow))
            explained += float(phi.sum(dtype=torch.float64))
            slope += float(first.sum(dtype=torch.float64))
            curvature += float(second.sum(dtype=torch.float64))
        a, u, a_b, u_b = (torch.cat(column) for column in zip(*pieces, strict=True))
        return Point(b, a, u, a_b, u_b, explained, slope, curvature)

    def maximise(self) -> tuple[Point, bool]:
        """The voxels at the B that maximises the profile, and whether the climb converged."""
        n = self.y.shape[1]
        # at random: a regular stride may hit one tissue only
        generator = torch.Generator().manual_seed(0)
        # in order: the series lie far apart in memory
        sizes = [m for m in (_SEARCHED, 8 * _SEARCHED) if m < n // 2]
        chosen = [torch.randint(n, (m,), generator=generator).sort().values for m in sizes]
        samples = [Profile(self._times, self.signed, self.y[:, index]) for index in chosen]
        first, *later = [*samples, self]
        found = []
        for start in first._starts(sampled=bool(samples)):
            point, converged, curvature = first._ascend(start, _B_STEP, None)
            for level in later:
                point, converged, curvature = level._ascend(point.b, _B_STEP / 4, curvature)
            found.append((point, converged))
        return max(found, key=lambda result: result[0].explained)

    def _dictionary(self, b: float) -> _Dictionary:
        low, high = log(T1.lower), log(T1.upper)
        kinks: dict[float, int] = {}
        if not self.signed and b > 1 + 1e-6:
            for k, time in enumerate(self._times):
                if time > 0 and low < (u := log(time / log(b))) < high:
                    kinks[u] = k
        stops = [low, *sorted(kinks), high]
        nodes, image = [low], [-1]
        for below, above in pairwise(stops):
            pieces = max(1, ceil((above - below) / _GAP))
            nodes += [below + (above - below) * i / pieces for i in range(1, pieces)] + [above]
            image += [-1] * (pieces - 1) + [kinks.get(above, -1)]
        grid = torch.tensor(nodes, dtype=torch.float64)
        atoms = 1 - b * torch.exp(-torch.tensor(self._times, dtype=torch.float64) * torch.exp(-grid)[:, None])
        atoms = atoms if self.signed else atoms.abs()
        atoms = atoms / atoms.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return _Dictionary(b, grid.float(), torch.tensor(image), atoms.float())

    def _chunk(self, y: Float[Tensor, "n v"], table: _Dictionary) -> tuple[Tensor, ...]:
        """A, log T1, phi, the slope and expected curvature of its profile in B, and how A and log T1 follow B."""
        b = table.b
        fit = (table.atoms @ y).clamp_min_(0)
        # the largest atom: its number replaces the lowest bits (max() with indices takes ten times longer); what that
        # costs in precision the Newton step below makes good
        low = (1 << (len(fit) - 1).bit_length()) - 1
        numbered = fit.view(torch.int32).bitwise_and_(~low)
        numbered |= torch.arange(len(fit), dtype=torch.int32)[:, None]
        best = numbered.amax(0).bitwise_and_(low).long()
        last = len(table.u) - 1
        lower, upper = table.u[(best - 1).clamp_min(0)], table.u[(best + 1).clamp_max(last)]
        u = self._vertex(fit, best, table.u)
        image = table.image[best]
        peaked = (image >= 0) & (y.gather(0, image.clamp_min(0)[None])[0] < 0)
        pinned = torch.zeros_like(peaked)

        # a peak: approached from above; the slope from below is larger by the jump of the modulus
        some = torch.nonzero(peaked)[:, 0]
        if some.numel():
            node = table.u[best[some]]
            series = y[:, some]
            a, _, slope, bend, *_ = self._derivatives(series, b, node + _SIDE)
            behind = series.gather(0, image[some][None])[0]
            below = slope - 4 * a * behind * log(b)
            pinned[some] = (slope <= 0) & (below >= 0)
            # beside a peak phi is smooth: a Newton step on the side that rises
            step = (-torch.where(below < 0, below, slope) / bend.clamp_max(-1e-12)).clamp(-_GAP, _GAP)
            lower[some] = torch.where(below < 0, lower[some], node + _SIDE)
            upper[some] = torch.where(below < 0, node - _SIDE, upper[some])
            u[some] = torch.where(pinned[some], node + _SIDE, node + step)
        u = torch.minimum(torch.maximum(u, lower), upper)

        a, phi, f_u, f_uu, f_b, f_ub, expected, au, ab = self._derivatives(y, b, u)
        # T1 follows B: as the stationary point moves, along the kink, or not at all at a bound
        bend = torch.where(f_uu < 0, f_uu, -1.0)
        target = u - f_u / bend
        smooth = ((f_uu < 0) & (target > table.u[0]) & (target < table.u[-1])).float()
        follow = -smooth * f_ub / bend
        first = f_b + follow * f_u
        target = torch.minimum(torch.maximum(target, lower), upper)
        if some.numel():
            along = -1 / (b * log(b))
            first = torch.where(pinned, f_b + along * f_u, first)
            follow = torch.where(pinned, along, follow)
            target = torch.where(pinned, u - _SIDE, target)
        a = (a + au * (target - u)).clamp_min(0)
        return a, target, phi, first, expected, ab + au * follow, follow

    @staticmethod
    def _vertex(fit: Float[Tensor, "g v"], best: Int[Tensor, " v"], u: Float[Tensor, " g"]) -> Float[Tensor, " v"]:
        """Vertex of the parabola through phi at the best atom and its neighbours."""
        inner = best.clamp(1, len(u) - 2)
        left, middle, right = (fit.gather(0, inner[None] + i)[0].square() for i in (-1, 0, 1))
        down, up = (u[1:-1] - u[:-2])[inner - 1], (u[2:] - u[1:-1])[inner - 1]
        rise, fall = (middle - left) / down, (middle - right) / up
        return u[inner] + 0.5 * (rise * up - fall * down) / (rise + fall).clamp_min(1e-20)

    def _derivatives(self, y: Float[Tensor, "n v"], b: float, u: Float[Tensor, " v"]) -> tuple[Tensor, ...]:
        """A, phi = p^2 / q with p = S.d, q = d.d; derivatives u, uu, b, ub of phi, its expected
        curvature in B with A and T1 following; derivatives u, b of A.
        """
        tau = self.ti * torch.exp(-u)
        e = torch.exp(-tau)
        # one buffer for all products: fresh memory costs more than the arithmetic
        buffer = torch.empty_like(e)

        def total(left: Tensor, right: Tensor) -> Tensor:
            return torch.mul(left, right, out=buffer).sum(0)

        z = y
        if not self.signed:
            torch.add(buffer.fill_(1.0), e, alpha=-b, out=buffer).mul_(y)
            z = torch.copysign(y, buffer)
        e1 = e * tau
        e2 = tau.sub_(1).mul_(e1)
        ze, ze1, ze2 = total(z, e), total(z, e1), total(z, e2)
        s, s1, s2 = e.sum(0), e1.sum(0), e2.sum(0)
        ee, ee1, e1e1 = total(e, e), total(e, e1), total(e1, e1)
        ee2 = e1e1 + total(e, e2)
        p, pu, puu, pb, pbu = (z.sum(0) - b * ze).clamp_min(0), -b * ze1, -b * ze2, -ze, -ze1
        q = (y.shape[0] - 2 * b * s + b * b * ee).clamp_min(1e-12)
        qu, quu = 2 * b * (b * ee1 - s1), 2 * b * (b * ee2 - s2)
        qb, qbu = 2 * (b * ee - s), 4 * b * ee1 - 2 * s1
        a = p / q
        # with a = p / q:  phi' = 2 a p' - a^2 q',  a' = (p' - a q') / q
        au, ab = (pu - a * qu) / q, (pb - a * qb) / q
        f_u = a * (2 * pu - a * qu)
        f_uu = 2 * au * pu + a * (2 * puu - 2 * au * qu - a * quu)
        f_b = a * (2 * pb - a * qb)
        f_ub = 2 * ab * pu + a * (2 * pbu - 2 * ab * qu - a * qbu)
        # Gram-Schmidt of the derivatives of d in B and log T1 against d: what the series says about B, A and T1 free
        uu, bb, ub = b * b * e1e1 - qu * qu / (4 * q), ee - qb * qb / (4 * q), b * ee1 - qu * qb / (4 * q)
        expected = 2 * a * a * (ub * ub / uu.clamp_min(1e-12) - bb).clamp_max(0)
        return a, a * p, f_u, f_uu, f_b, f_ub, expected, au, ab

    def _starts(self, sampled: bool) -> list[float]:
        """Local maxima of the profile on a grid of B that these voxels cannot tell from the best one."""
        grid = torch.arange(_B_STEP, B.upper + 1e-9, _B_STEP).tolist()
        phi = torch.stack([(self._dictionary(b).atoms @ self.y).amax(0).clamp_min(0).square() for b in grid]).double()
        total = phi.sum(1)
        best = int(total.argmax())
        # sampling error of the difference between two values of B, if only some of the voxels are here
        spread = (phi - phi[best]).std(1) * self.y.shape[1] ** 0.5 if sampled else torch.zeros_like(total)
        # the atoms lose a part of what a refined T1 explains
        slack = 4 * spread + 0.01 * (sum(float(torch.dot(image, image)) for image in self.y) - float(total[best]))
        padded = torch.nn.functional.pad(total, (1, 1), value=-torch.inf)
        top = (total >= padded[:-2]) & (total >= padded[2:]) & (total >= total[best] - slack)
        return [grid[i] for i in torch.nonzero(top)[:, 0].tolist()]

    def _ascend(self, b: float, reach: float, curvature_per_voxel: float | None) -> tuple[Point, bool, float]:
        """Climb the profile from `b`: Newton steps, later regula falsi between slopes of opposite sign.

        Args:
            reach: largest step.
            curvature_per_voxel: of the profile, from a sample of these voxels; better than that of a point, which
                knows nothing of the kinks that voxels cross.
        Returns: the point, whether it converged, and the curvature per voxel.
        """
        n = self.y.shape[1]
        energy = sum(float(torch.dot(image, image)) for image in self.y)
        freedom = max(1, self.y.numel() - 2 * n - 1)
        left, right = (0.0, 0.0), (B.upper, 0.0)
        here, stays = self.at(b), ""
        curvature = here.curvature if curvature_per_voxel is None else curvature_per_voxel * n
        for _ in range(_PASSES):
            # Illinois: an end that stays a second time counts half, or regula falsi crawls
            if here.slope > 0:
                left, right = (here.b, here.slope), (right[0], right[1] * (0.5 if stays == "right" else 1.0))
                stays = "right"
            else:
                left, right = (left[0], left[1] * (0.5 if stays == "left" else 1.0)), (here.b, here.slope)
                stays = "left"
            if left[1] > 0 > right[1]:
                # the slope of a sum over voxels is nearly straight between two values of B
                curvature = (right[1] - left[1]) / (right[0] - left[0])
            step = -here.slope / curvature if curvature < 0 else (reach if here.slope > 0 else -reach)
            target = min(max(here.b + min(max(step, -reach), reach), left[0]), right[0])
            step = target - here.b
            residual = max(energy - here.explained, 0.0) / freedom
            error = (2 * residual / -curvature) ** 0.5 if curvature < 0 else 0.0
            # A and T1 follow a short step to first order
            if abs(step) <= max((_STEP if curvature_per_voxel is None else _LAST_STEP) * error, 1e-7):
                a, u = here.a + step * here.a_b, here.u + step * here.u_b
                return replace(here, b=target, a=a, u=u), True, curvature / n
            here = self.at(target)
        return here, False, curvature / n
