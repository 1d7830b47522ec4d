"""What every voxel of an inversion recovery says about its own B: the profile likelihood with A and T1 following.

    phi(B) = max over T1 of (S.d)^2 / d.d,   d = |1 - B exp(-TI / T1)|

is what a voxel explains of its energy |S|^2 (`profile` has its sum over voxels of one B). T1 is searched in a
dictionary of voxels whose B is alike, and then follows by Newton steps in u = log T1.

The signal crosses zero at a time where u = log TI_k - log log B: in u + log log B the kinks of the modulus are the
same for all voxels. Where the image there is negative, phi may have its peak on the kink: such a voxel is *pinned* to
it, and held just above, where the slope from below is known too: it differs by the jump of the modulus.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import ceil, log

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.parameters import T1, B

# largest step of the dictionary in log T1
_GAP = 0.11
# voxels whose B lies in one interval of this width share a dictionary
_B_WIDTH = 0.02
# how far above its kink a pinned voxel is held [log s]
_SIDE = 1e-7
# voxels of one chunk: the work on 31 images then stays in the cache
_VOXELS = 4096


@dataclass(frozen=True, slots=True)
class Following:
    """Every voxel at its own B, after a Newton step.

    Attributes:
        a: amplitudes [units of the images].
        u: log T1 [log s].
        explained: phi before the step.
        slope: derivative of phi in B, with A and T1 following.
        expected: its second derivative, as expected of an endless series of draws; not positive. Where T1 lies at an
            end of its range, that with T1 held.
        observed: its second derivative as it is.
        a_b, u_b: how A and log T1 follow B.
        step: length of the Newton step in log T1.
    """

    a: Float[Tensor, " v"]
    u: Float[Tensor, " v"]
    explained: Float[Tensor, " v"]
    slope: Float[Tensor, " v"]
    expected: Float[Tensor, " v"]
    observed: Float[Tensor, " v"]
    a_b: Float[Tensor, " v"]
    u_b: Float[Tensor, " v"]
    step: Float[Tensor, " v"]


class DepthProfile:
    """The profile likelihoods of the voxels `y`, in float64 on their device.

    Args:
        ti: inversion times [s].
        signed: the series keeps its sign; there are no kinks then.
        y: series of the voxels [units of A].
    """

    def __init__(self, ti: tuple[float, ...], signed: bool, y: Float[Tensor, "n v"]) -> None:
        self.signed, self.y = signed, y
        self.times = ti
        self.ti = torch.tensor(ti, dtype=torch.float64, device=y.device)[:, None]
        # a kink at every different time above 0, ascending; which images lie on it
        distinct = sorted({time for time in ti if time > 0})
        members = [[float(time == kink) for time in ti] for kink in distinct]
        self.kinks = torch.tensor(distinct, dtype=torch.float64, device=y.device).log()
        self.on_kink = torch.tensor(members, dtype=torch.float64, device=y.device).reshape(len(distinct), len(ti))

    def search(self, b: Float[Tensor, " v"]) -> Float[Tensor, " v"]:
        """Log T1 of the largest phi of a dictionary, every voxel at its own B [log s]."""
        interval = (b / _B_WIDTH).floor().clamp_max(ceil(B.upper / _B_WIDTH) - 1).long()
        order = interval.argsort(stable=True)
        counts = torch.bincount(interval).tolist()
        u = torch.empty_like(b)
        start = 0
        for number, count in enumerate(counts):
            if count:
                table = self._dictionary((number + 0.5) * _B_WIDTH)
                for chosen in order[start : start + count].split(_VOXELS):
                    u[chosen] = self._lookup(self.y.index_select(1, chosen), b[chosen], *table)
                start += count
        return u

    def follow(self, b: Float[Tensor, " v"], u: Float[Tensor, " v"]) -> Following:
        """A Newton step in log T1 from `u`, every voxel at its own B."""
        pieces = zip(*(x.split(_VOXELS, dim=-1) for x in (self.y, b, u)), strict=True)
        columns = zip(*(self._step(y.double(), depth, log_t1) for y, depth, log_t1 in pieces), strict=True)
        return Following(*(torch.cat(column) for column in columns))

    def explained(self, b: Float[Tensor, " v"], u: Float[Tensor, " v"]) -> Float[Tensor, " v"]:
        """Phi at T1 as it is."""
        found = []
        for y, depth, log_t1 in zip(*(x.split(_VOXELS, dim=-1) for x in (self.y, b, u)), strict=True):
            d = 1 - depth * torch.exp(-self.ti * torch.exp(-log_t1))
            d = d if self.signed else d.abs_()
            found.append((y.double() * d).sum(0).clamp_min(0).square() / (d * d).sum(0).clamp_min(1e-12))
        return torch.cat(found)

    def settle(self, b: Float[Tensor, " v"], u: Float[Tensor, " v"], steps: int = 8) -> Following:
        """Newton steps until T1 stands."""
        here = self.follow(b, u)
        for _ in range(steps):
            if float(here.step.abs().amax()) < 1e-7:
                break
            here = self.follow(b, here.u)
        return here

    def _dictionary(self, b: float) -> tuple[Tensor, Tensor, Tensor]:
        """Log T1 of the atoms, ascending, the kink that each lies on or -1, and the unit vectors."""
        low, high = log(T1.lower), log(T1.upper)
        on: dict[float, int] = {}
        if not self.signed and b > 1:
            for k, kink in enumerate(self.kinks.tolist()):
                if low < (place := kink - log(log(b))) < high:
                    on[place] = k
        nodes, kinks = [low], [-1]
        for below, above in pairwise([low, *sorted(on), high]):
            parts = max(1, ceil((above - below) / _GAP))
            nodes += [below + (above - below) * i / parts for i in range(1, parts)] + [above]
            kinks += [-1] * (parts - 1) + [on.get(above, -1)]
        u = torch.tensor(nodes, dtype=torch.float64, device=self.y.device)
        atoms = 1 - b * torch.exp(-self.ti.T * torch.exp(-u)[:, None])
        atoms = atoms if self.signed else atoms.abs()
        atoms = atoms / atoms.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return u, torch.tensor(kinks, device=u.device), atoms.float()

    def _lookup(
        self,
        y: Float[Tensor, "n c"],
        b: Float[Tensor, " c"],
        u: Float[Tensor, " g"],
        kink: Tensor,
        atoms: Float[Tensor, "g n"],
    ) -> Float[Tensor, " c"]:
        """Just above the voxel's own kink, if the best atom lies on one, else the vertex of the parabola through it."""
        fit = (atoms @ y.float()).clamp_min_(0)
        # the largest atom: its number replaces the lowest bits (max() with indices takes ten times longer)
        low = (1 << (len(fit) - 1).bit_length()) - 1
        numbered = fit.view(torch.int32).bitwise_and_(~low)
        numbered |= torch.arange(len(fit), dtype=torch.int32, device=y.device)[:, None]
        best = numbered.amax(0).bitwise_and_(low).long()
        inner = best.clamp(1, len(u) - 2)
        left, middle, right = (fit.gather(0, inner[None] + i)[0].double().square() for i in (-1, 0, 1))
        down, up = (u[1:-1] - u[:-2])[inner - 1], (u[2:] - u[1:-1])[inner - 1]
        rise, fall = (middle - left) / down, (middle - right) / up
        vertex = u[inner] + 0.5 * (rise * up - fall * down) / (rise + fall).clamp_min(1e-20)
        vertex = torch.minimum(torch.maximum(vertex, u[inner - 1]), u[inner + 1])
        if len(self.kinks) == 0:
            return vertex
        own = self.kinks[kink[best].clamp_min(0)] - b.clamp_min(1 + 1e-9).log().log() + _SIDE
        return torch.where(kink[best] >= 0, own.clamp(u[0], u[-1]), vertex)

    def _step(self, y: Float[Tensor, "n c"], b: Float[Tensor, " c"], u: Float[Tensor, " c"]) -> tuple[Tensor, ...]:
        """The fields of `Following`."""
        ends = (log(T1.lower), log(T1.upper))
        a, phi, f_u, f_uu, f_b, f_ub, f_bb, expected, held, au, ab = self._derivatives(y, b, u)
        bend = torch.where(f_uu < 0, f_uu, -1.0)
        # where phi is convex: uphill
        newton = torch.where(f_uu < 0, -f_u / bend, f_u.sign() * _GAP)
        target = u + newton.clamp(-_GAP, _GAP)
        moves = (f_uu < 0) & (newton.abs() < _GAP)
        follow = torch.where(moves, -f_ub / bend, 0.0)
        # second derivative of log T1 in B, which counts where phi has a slope in u
        turn = torch.zeros_like(u)
        if not self.signed and len(self.kinks):
            depth = b.clamp_min(1 + 1e-9).log()
            shift = torch.where(b > 1, depth.log(), -torch.inf)
            piece = torch.bucketize(u + shift, self.kinks)
            padded = torch.nn.functional.pad(self.kinks, (1, 1), value=torch.inf)
            padded[0] = -torch.inf
            below = torch.where(b > 1, padded[piece] - shift, -torch.inf)
            above = torch.where(b > 1, padded[piece + 1] - shift, torch.inf)
            # the first kink on the way, or the one that the voxel stands on
            upwards = target > above
            stands, meets = (u - below < 2 * _SIDE) & ~upwards, upwards | (target < below)
            kink = torch.where(upwards, above, below)
            at_kink = torch.nn.functional.pad(self.on_kink @ y, (0, 0, 1, 1))
            jump = 4 * a * at_kink.gather(0, (piece + upwards)[None])[0]
            beneath = f_u - jump * depth
            # down, if phi rises that way, and in a valley if it rises faster than upwards
            released = stands & (beneath < 0) & (-beneath > f_u)
            # a peak holds what comes from either side
            pinned = (jump < 0) & meets & ~released
            lower = kink + (-beneath / bend).clamp(-_GAP, -2 * _SIDE)
            target = torch.where(released, lower, torch.where(pinned, kink + _SIDE, target))
            moves = (moves | pinned) & ~released
            follow = torch.where(pinned, -1 / (b * depth), torch.where(released, 0.0, follow))
            turn = torch.where(pinned, (1 + depth) / (b * depth).square(), turn)
            f_u = torch.where(released, beneath, f_u)
            f_b = torch.where(released, f_b - jump / b, f_b)
        # at an end of its range T1 stays
        inside = (target > ends[0]) & (target < ends[1])
        moves &= inside
        expected = torch.where(inside, expected, held)
        follow = follow * moves
        target = target.clamp(*ends)
        step = target - u
        slope = f_b + f_ub * step + follow * (f_u + f_uu * step)
        observed = f_bb + follow * (2 * f_ub + follow * f_uu) + torch.where(moves, f_u * turn, 0.0)
        return (a + au * step).clamp_min(0), target, phi, slope, expected, observed, ab + au * follow, follow, step

    def _derivatives(
        self, y: Float[Tensor, "n c"], b: Float[Tensor, " c"], u: Float[Tensor, " c"]
    ) -> tuple[Tensor, ...]:
        """A, phi = p^2 / q with p = S.d, q = d.d; derivatives u, uu, b, ub, bb of phi, its expected curvature in B
        with A and T1 following, and with A alone; derivatives u, b of A.
        """
        tau = self.ti * torch.exp(-u)
        e = torch.exp(-tau)
        # one buffer for all products: fresh memory costs more than the arithmetic
        buffer = torch.empty_like(e)
        ones = torch.ones(1, len(y), dtype=y.dtype, device=y.device)

        def count(terms: Tensor) -> Tensor:
            # twice as fast as sum(0)
            return (ones @ terms)[0]

        def total(left: Tensor, right: Tensor) -> Tensor:
            return count(torch.mul(left, right, out=buffer))

        z = y
        if not self.signed:
            torch.mul(e, -b, out=buffer).add_(1).mul_(y)
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
        q = (y.shape[0] + b * (b * ee - 2 * s)).clamp_min(1e-12)
        qu, quu = 2 * b * (b * ee1 - s1), 2 * b * (b * ee2 - s2)
        qb, qbu, qbb = 2 * (b * ee - s), 4 * b * ee1 - 2 * s1, 2 * ee
        a = p / q
        # with a = p / q:  phi' = 2 a p' - a^2 q',  a' = (p' - a q') / q
        au, ab = (pu - a * qu) / q, (pb - a * qb) / q
        f_u = a * (2 * pu - a * qu)
        f_uu = 2 * au * pu + a * (2 * puu - 2 * au * qu - a * quu)
        f_b = a * (2 * pb - a * qb)
        f_ub = 2 * ab * pu + a * (2 * pbu - 2 * ab * qu - a * qbu)
        f_bb = 2 * ab * pb - a * (2 * ab * qb + a * qbb)
        # Gram-Schmidt of the derivatives of d in B and log T1 against d: what the series says about B, A and T1 free
        uu, bb, ub = b * b * e1e1 - qu * qu / (4 * q), ee - qb * qb / (4 * q), b * ee1 - qu * qb / (4 * q)
        expected = 2 * a * a * (ub * ub / uu.clamp_min(1e-12) - bb).clamp_max(0)
        held = -2 * a * a * bb.clamp_min(0)
        return a, a * p, f_u, f_uu, f_b, f_ub, f_bb, expected, held, au, ab
