"""The profile likelihood of B over many voxels: for each B the best T1 and A of every voxel.

What a voxel explains, phi(B, T1) = (S.d)^2 / d.d with d = |1 - B exp(-TI / T1)|, has a kink in T1 wherever the signal
crosses zero at a time, T1 = TI_k / log B. Where the image there is negative (noise) phi may have a peak at the kink:
the voxel is then *pinned* to it, and as B changes T1 follows as TI_k / log B. Pinned voxels are held just above their
kink, where the slope from below is known too: it differs by the jump of the modulus.

T1 is found by a dictionary, with an atom on every kink, and two Newton steps: one leaves errors that are small per
voxel but alike in many, and with 1e5 voxels B sees them. When B moves a little, T1 follows it to first order and makes
one more step.
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
# how far above its kink a pinned voxel is held [log s]: far less than any error of T1, far more than float32 rounds
_SIDE = 1e-5
# voxels of one chunk: the work on 31 float32 images then stays in the cache
_VOXELS = 8192
# voxels that the grid search of B looks at, and its step
_SEARCHED = 4096
_B_STEP = 0.1
# largest step of the climb
_REACH = 0.1
# T1 follows a step of B as small as this to first order; after a larger one it is searched again
_NEAR = 0.03
# B has converged when a step, which is still made, is this small a part of its own standard error: where the curvature
# is known from these voxels alone, and where a sample of them has given it
_STEP = 0.1
_LAST_STEP = 4.0
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


# where a climb ended, whether it converged, and the curvature per voxel
_Ascent = tuple[Point, bool, float]


def _distinct(found: list[_Ascent]) -> list[_Ascent]:
    """One of those climbs that ended together."""
    kept: list[_Ascent] = []
    for climb in found:
        if all(abs(climb[0].b - other[0].b) > _NEAR for other in kept):
            kept.append(climb)
    return kept


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

    def at(self, b: float, u: Float[Tensor, " v"] | None = None) -> Point:
        """Every voxel at one B.

        Args:
            b: the common B [1].
            u: log T1 at a B close by, from which one Newton step is made [log s]; None: T1 is searched.
        """
        table = self._dictionary(b)
        near = None if u is None else u.split(_VOXELS)
        pieces, explained, slope, curvature = [], 0.0, 0.0, 0.0
        for i, y in enumerate(self.y.split(_VOXELS, dim=1)):
            start = self._step(y, table, self._search(y, table))[1] if near is None else near[i]
            a, log_t1, phi, first, second, *follow = self._step(y, table, start)
            pieces.append((a, log_t1, *follow))
            explained += float(phi.sum(dtype=torch.float64))
            slope += float(first.sum(dtype=torch.float64))
            curvature += float(second.sum(dtype=torch.float64))
        a, log_t1, a_b, u_b = (torch.cat(column) for column in zip(*pieces, strict=True))
        return Point(b, a, log_t1, a_b, u_b, explained, slope, curvature)

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
        found = [first._ascend(start, None) for start in first._starts(sampled=bool(samples))]
        if later:
            found = [(point, converged, first._bend(point, bend)) for point, converged, bend in found]
        for level in later:
            found = [level._ascend(point.b, curvature) for point, _, curvature in _distinct(found)]
        point, converged, _ = max(found, key=lambda result: result[0].explained)
        return point, converged

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

    @staticmethod
    def _search(y: Float[Tensor, "n v"], table: _Dictionary) -> Float[Tensor, " v"]:
        """Log T1 near the largest phi: just above the kink, if the best atom lies on one, else the vertex of the
        parabola through it and its neighbours.
        """
        fit = (table.atoms @ y).clamp_min_(0)
        # the largest atom: its number replaces the lowest bits (max() with indices takes ten times longer); what that
        # costs in precision the Newton steps make good
        low = (1 << (len(fit) - 1).bit_length()) - 1
        numbered = fit.view(torch.int32).bitwise_and_(~low)
        numbered |= torch.arange(len(fit), dtype=torch.int32)[:, None]
        best = numbered.amax(0).bitwise_and_(low).long()
        u = table.u
        inner = best.clamp(1, len(u) - 2)
        left, middle, right = (fit.gather(0, inner[None] + i)[0].square() for i in (-1, 0, 1))
        down, up = (u[1:-1] - u[:-2])[inner - 1], (u[2:] - u[1:-1])[inner - 1]
        rise, fall = (middle - left) / down, (middle - right) / up
        vertex = u[inner] + 0.5 * (rise * up - fall * down) / (rise + fall).clamp_min(1e-20)
        vertex = torch.minimum(torch.maximum(vertex, u[inner - 1]), u[inner + 1])
        return torch.where(table.image[best] >= 0, u[best] + _SIDE, vertex)

    def _step(self, y: Float[Tensor, "n v"], table: _Dictionary, u: Float[Tensor, " v"]) -> tuple[Tensor, ...]:
        """A Newton step in log T1.

        Returns: A and log T1 after it, phi before it, slope in B (after it) and expected curvature of the profile, and
        how A and log T1 follow B.
        """
        b, ends = table.b, (float(table.u[0]), float(table.u[-1]))
        a, phi, f_u, f_uu, f_b, f_ub, expected, au, ab = self._derivatives(y, b, u)
        bend = torch.where(f_uu < 0, f_uu, -1.0)
        # where phi is convex: uphill
        newton = torch.where(f_uu < 0, -f_u / bend, f_u.sign() * _GAP)
        target = u + newton.clamp(-_GAP, _GAP)
        # T1 follows B as the stationary point moves, if there is one near; at an end of the range it stays
        free = (f_uu < 0) & (newton.abs() < _GAP) & (target > ends[0]) & (target < ends[1])
        follow = -f_ub / bend * free
        target = target.clamp(*ends)

        if (on_kink := table.image >= 0).any():
            kinks, images = (torch.nn.functional.pad(x[on_kink], (1, 1)) for x in (table.u, table.image))
            kinks[0], kinks[-1] = -torch.inf, torch.inf
            piece = torch.bucketize(u, kinks[1:-1])
            below, above = kinks[piece], kinks[piece + 1]
            # the first kink on the way, or the one that the voxel stands on
            upwards = target > above
            stands, meets = (u - below < 2 * _SIDE) & ~upwards, upwards | (target < below)
            kink = torch.where(upwards, above, below)
            behind = y.gather(0, images[piece + upwards][None])[0]
            jump = 4 * a * behind
            beneath = f_u - jump * log(b)
            # down, if phi rises that way, and in a valley if it rises faster than upwards
            released = stands & (beneath < 0) & (-beneath > f_u)
            # a peak holds what comes from either side
            pinned = (behind < 0) & meets & ~released
            down = kink + (-beneath / bend).clamp(-_GAP, -2 * _SIDE)
            target = torch.where(released, down, torch.where(pinned, kink + _SIDE, target)).clamp(*ends)
            follow = torch.where(pinned, -1 / (b * log(b)), follow)
            f_u = torch.where(released, beneath, f_u)
            f_b = torch.where(released, f_b - jump / b, f_b)

        step = target - u
        slope = f_b + f_ub * step + follow * (f_u + f_uu * step)
        return (a + au * step).clamp_min(0), target, phi, slope, expected, ab + au * follow, follow

    def _derivatives(self, y: Float[Tensor, "n v"], b: float, u: Float[Tensor, " v"]) -> tuple[Tensor, ...]:
        """A, phi = p^2 / q with p = S.d, q = d.d; derivatives u, uu, b, ub of phi, its expected
        curvature in B with A and T1 following; derivatives u, b of A.
        """
        tau = self.ti * torch.exp(-u)
        e = torch.exp(-tau)
        # one buffer for all products: fresh memory costs more than the arithmetic
        buffer = torch.empty_like(e)

        def total(left: Tensor, right: Tensor) -> Tensor:
            return count(torch.mul(left, right, out=buffer))

        def count(terms: Tensor) -> Tensor:
            # twice as fast as sum(0)
            return (ones @ terms)[0]

        z, ones, one = y, torch.ones(1, len(y)), torch.ones(())
        if not self.signed:
            torch.add(one, e, alpha=-b, out=buffer).mul_(y)
            z = torch.copysign(y, buffer)
        e1 = e * tau
        ze, ze1, s, s1 = total(z, e), total(z, e1), count(e), count(e1)
        # second derivative of e in log T1: tau e1 - e1
        tau_e1 = tau.mul_(e1)
        ze2, s2 = total(z, tau_e1) - ze1, count(tau_e1) - s1
        ee, ee1, e1e1 = total(e, e), total(e, e1), total(e1, e1)
        # e e2 = e1 e1 - e e1
        ee2 = 2 * e1e1 - ee1
        p, pu, puu, pb, pbu = (count(z) - b * ze).clamp_min(0), -b * ze1, -b * ze2, -ze, -ze1
        # not n - 2 b s + b^2 ee: float32 rounds b^2 otherwise than b, which shifts q alike in all voxels
        q = (y.shape[0] + b * (b * ee - 2 * s)).clamp_min(1e-12)
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

    def _error(self, point: Point, curvature: float) -> float:
        """Standard error of B, with the noise that the residuals show; 0 if the profile is convex."""
        energy = sum(float(torch.dot(image, image)) for image in self.y)
        freedom = max(1, self.y.numel() - 2 * self.y.shape[1] - 1)
        residual = max(energy - point.explained, 0.0) / freedom
        return (2 * residual / -curvature) ** 0.5 if curvature < 0 else 0.0

    def _bend(self, point: Point, curvature_per_voxel: float) -> float:
        """Curvature of the profile per voxel, measured over two standard errors on either side.

        The expected one, that of an endless series of draws about a regular maximum, is right to a few per cent at SNR
        30 and above, but wrong by about 2 at SNR 3, where voxels cross kinks.
        """
        n = self.y.shape[1]
        reach = 2 * self._error(point, curvature_per_voxel * n)
        if reach == 0:
            return curvature_per_voxel
        low, high = (self.at(point.b + step, point.u + step * point.u_b).slope for step in (-reach, reach))
        bend = (high - low) / (2 * reach * n)
        return bend if bend < 0 else curvature_per_voxel

    def _ascend(self, b: float, curvature_per_voxel: float | None) -> _Ascent:
        """Climb the profile from `b`: Newton steps, later regula falsi between slopes of opposite sign.

        Args:
            curvature_per_voxel: of the profile, measured on a sample of these voxels.
        Returns: the point, whether it converged, and the curvature per voxel.
        """
        n = self.y.shape[1]
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
            step = -here.slope / curvature if curvature < 0 else (_REACH if here.slope > 0 else -_REACH)
            target = min(max(here.b + min(max(step, -_REACH), _REACH), left[0]), right[0])
            step = target - here.b
            error = self._error(here, curvature)
            # A and T1 follow a short step to first order
            a, u = here.a + step * here.a_b, here.u + step * here.u_b
            if abs(step) <= max((_STEP if curvature_per_voxel is None else _LAST_STEP) * error, 1e-7):
                return replace(here, b=target, a=a, u=u), True, curvature / n
            here = self.at(target, u if abs(step) < _NEAR else None)
        return here, False, curvature / n
