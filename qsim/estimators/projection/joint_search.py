"""Global least squares of a decay under two preparations: one amplitude, T1rho and T2.

    minimise sum_n (A exp(-TSL_n / T1rho - TE_n / T2) - S_n)^2   over A >= 0 and both times within their bounds

With the rates R = 1 / T1rho, 1 / T2 and the atom d(R) = exp(-TSL R_1 - TE R_2), A = p / q follows in closed form,
p = S.d, q = d.d, and p^2 / q is what is explained.

1.  A grid of unit atoms over both log T, so close along each axis that the best node loses a few parts in a hundred of
    |S| at most; one small matrix product per chunk of voxels that stays in the cache. Every local maximum of the grid
    that could still be the highest hill is a start: between nodes a unit atom v turns so little that a hill exceeds its
    node by at most (|v_11| + 2 |v_12| + |v_22|) / 8 |S|, with derivatives in the numbers of the node.
2.  Newton steps in the rates with A eliminated, damped where they do not descend, held at the bounds. Scaling an atom
    changes nothing, so times may be counted from their mean weighted with d^2, t = TIME - (d^2).TIME / q; then, with
    the residual r = S - A d,

        gradient_i = A r.(t_i d),    H_ij = A^2 (t_i d).(t_j d) - A r.(t_i t_j d) - (r.t_i d) (r.t_j d) / q

Source: variable projection: Golub and Pereyra 1973, doi:10.1137/0710036.
"""

from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qsim.estimators.projection.separable import Fitted, joined, log_grid
from qsim.parameters import T1RHO, T2, Parameter

_ROWS = (T1RHO, T2)
# nodes: at most this far apart on the unit sphere along each axis [rad], and in log T
_ARC, _GAP = 0.1, 1.0
_FINE, _ACROSS = 801, 33
# voxels that descend together, and that are compared with the grid together, which stays in the cache
_VOXELS, _PART = 8192, 512
_DEVICE_VOXELS = 1 << 15
# rounding of the products with the nodes, as a part of |S|
_ROUNDING = 2e-5
_STEPS = 150
# a Newton step that gains less than this part of the objective, or of the sum of squares (rounding), is the last
_RELATIVE, _EXACT = 1e-11, 1e-28
# damping: the first, below which there is none, and beyond which no step descends
_DAMPED, _UNDAMPED, _LARGEST = 1e-2, 1e-5, 1e12


@dataclass(frozen=True, slots=True)
class _Table:
    """The grid of one protocol.

    Attributes:
        times: TSL and TE [s].
        rates: 1 / T1rho and 1 / T2 of the nodes [1 / s].
        atoms: unit vectors.
        shape: nodes along T1rho and T2.
        loss: by how much a hill may rise above its best node, as a part of |S|.
    """

    times: Float[Tensor, "2 n 1"]
    rates: Float[Tensor, "2 g"]
    atoms: Float[Tensor, "g n"]
    shape: tuple[int, int]
    loss: float


@dataclass(frozen=True, slots=True)
class _Point:
    """Both rates of each candidate, A eliminated.

    Attributes:
        rate: [1 / s].
        objective: half the sum of squared residuals.
        gradient, hessian: of the objective in the rates.
        positive: the same without the curvature of the model (Gauss-Newton).
        log_a: of the amplitude; -inf where it is 0.
    """

    rate: Float[Tensor, "2 c"]
    objective: Float[Tensor, " c"]
    gradient: Float[Tensor, "2 c"]
    hessian: Float[Tensor, "3 c"]
    positive: Float[Tensor, "3 c"]
    log_a: Float[Tensor, " c"]

    def select(self, which: Tensor) -> "_Point":
        """Some of the candidates."""
        return _Point(*(getattr(self, field.name)[..., which] for field in fields(self)))

    def where(self, better: Bool[Tensor, " c"], other: "_Point") -> "_Point":
        """The other point where it is better."""
        names = [field.name for field in fields(self)]
        return _Point(*(torch.where(better, getattr(other, name), getattr(self, name)) for name in names))


class JointSearch:
    """The grid of one protocol.

    Args:
        tsl, te_prep: of each image [s].
        device: of the series.
    """

    def __init__(
        self,
        tsl: tuple[float, ...],
        te_prep: tuple[float, ...],
        device: torch.device | str = "cpu",
    ) -> None:
        self.table = _table(tsl, te_prep, torch.device(device))
        ends = [[1 / row.upper, 1 / row.lower] for row in _ROWS]
        self.low, self.high = torch.tensor(ends, dtype=torch.float64, device=device).T[..., None].unbind(0)

    def __call__(self, y: Float[Tensor, "n v"]) -> Fitted:
        """Returns: A, T1rho and T2 of every voxel.

        Args:
            y: series, finite, the largest image of each voxel about 1.
        """
        size = _VOXELS if y.device.type == "cpu" else _DEVICE_VOXELS
        return joined([self._chunk(part.double()) for part in y.split(size, dim=1)])

    def _chunk(self, y: Float[Tensor, "n v"]) -> Fitted:
        energy = y.square().sum(0)
        column, node = self._starts(y, energy)
        rate, left, log_a, done = self._descend(y[:, column], self.table.rates[:, node], energy[column])
        # no decay points the way of the series: A = 0, the lower bound, and any times
        a, objective = torch.zeros_like(energy), energy.clone()
        times = torch.stack([torch.full_like(energy, row.lower) for row in _ROWS])
        converged = torch.ones_like(energy, dtype=torch.bool)
        lowest = torch.full_like(energy, torch.inf).scatter_reduce_(0, column, left, "amin")
        # of equal ones the first
        chosen = torch.nonzero(left == lowest[column])[:, 0].flip(0)
        where = column[chosen]
        a[where], objective[where] = torch.exp(log_a[chosen]), 2 * left[chosen]
        converged[where] = done[chosen]
        ends = torch.tensor([[row.lower, row.upper] for row in _ROWS], dtype=y.dtype, device=y.device)
        # 1 / (1 / T) may miss an end by its last digit
        times[:, where] = (1 / rate[:, chosen]).clamp(ends[:, :1], ends[:, 1:])
        # where times are a small part of the shortest preparation, A may be beyond the largest number
        return Fitted(torch.cat((a[None], times)), objective, converged & torch.isfinite(a))

    def _starts(
        self, y: Float[Tensor, "n v"], energy: Float[Tensor, " v"]
    ) -> tuple[Int[Tensor, " c"], Int[Tensor, " c"]]:
        """Voxel and node of each start."""
        columns, nodes = [], []
        size = _PART if y.device.type == "cpu" else y.shape[1]
        series, allowed = y.float(), ((self.table.loss + _ROUNDING) * energy.sqrt()).float()
        # once at least: no voxels have no starts
        for first in range(0, max(y.shape[1], 1), max(size, 1)):
            part = slice(first, first + size)
            fit = self.table.atoms @ series[:, part]
            top = fit.amax(0)
            near = (fit >= top - allowed[part]) & (fit > 0)
            shaped = fit.unflatten(0, self.table.shape)
            near &= (shaped >= _around(_around(shaped, 0), 1)).flatten(0, 1)
            node, column = torch.nonzero(near, as_tuple=True)
            columns.append(column + first)
            nodes.append(node)
        return torch.cat(columns), torch.cat(nodes)

    def _at(self, y: Float[Tensor, "n c"], rate: Float[Tensor, "2 c"]) -> _Point:
        """Everything about the candidates at `rate`."""
        tsl, te = self.table.times
        tau = tsl * rate[0] + te * rate[1]
        # from the image that decays least: where all of them have decayed no atom is 0
        least = tau.amin(0)
        d = torch.exp(least - tau)
        weight = d * d
        q = weight.sum(0)
        a = ((y * d).sum(0) / q).clamp_min(0)
        r = y - a * d
        one = (tsl - (weight * tsl).sum(0) / q) * d
        two = (te - (weight * te).sum(0) / q) * d
        pull = torch.stack(((r * one).sum(0), (r * two).sum(0)))
        positive = a * a * torch.stack(((one * one).sum(0), (one * two).sum(0), (two * two).sum(0)))
        # r / d of an atom that has underflowed is not wanted: t_i t_j d = (t_i d) (t_j d) / d
        part = r * (one / d.clamp_min(1e-150))
        rest = r * two * (two / d.clamp_min(1e-150))
        bent = torch.stack(((part * one).sum(0), (part * two).sum(0), rest.sum(0)))
        outer = torch.stack((pull[0] * pull[0], pull[0] * pull[1], pull[1] * pull[1])) / q
        hessian = positive - a * bent - outer
        return _Point(rate, 0.5 * (r * r).sum(0), a * pull, hessian, positive, a.log() + least)

    def _descend(
        self, y: Float[Tensor, "n c"], start: Float[Tensor, "2 c"], energy: Float[Tensor, " c"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rates, half the sum of squares and log A where each candidate ends, and whether it converged."""
        longest = self.table.times.amax(1)
        point = self._at(y, start)
        rate, objective, log_a = start.clone(), point.objective.clone(), point.log_a.clone()
        ok = torch.zeros_like(objective, dtype=torch.bool)
        at = torch.arange(len(objective), device=y.device)
        damping = torch.zeros_like(objective)
        for _ in range(_STEPS):
            if at.numel() == 0:
                break
            # one e-fold of the longest image at a time, and at most four times the rate
            step, sure = self._step(point, damping, self.low, torch.minimum(self.high, 4 * point.rate + 1 / longest))
            goal = torch.minimum(torch.maximum(point.rate + step, self.low), self.high)
            gain = -(point.gradient * (goal - point.rate)).sum(0) / 2
            least = _RELATIVE * point.objective + _EXACT * energy
            tried = self._at(y, goal)
            better = tried.objective <= point.objective
            ended = (gain.abs() <= least) & sure & (damping <= _UNDAMPED)
            # all has decayed: nothing to gain down to the bounds
            ended |= (point.gradient.abs() * (self.high - self.low)).sum(0) <= least
            ended |= (goal == point.rate).all(0) | (~better & (damping > _LARGEST))
            point = point.where(better, tried)
            ended |= point.objective <= _EXACT * energy
            raised = (10 * damping).clamp_min(_DAMPED)
            damping = torch.where(better, torch.where(damping > _UNDAMPED, damping / 10, 0.0), raised)
            if bool(ended.any()):
                out = at[ended]
                rate[:, out], objective[out] = point.rate[:, ended], point.objective[ended]
                log_a[out], ok[out] = point.log_a[ended], True
                left = torch.nonzero(~ended)[:, 0]
                at, y, energy, damping, point = at[left], y[:, left], energy[left], damping[left], point.select(left)
        rate[:, at], objective[at], log_a[at] = point.rate, point.objective, point.log_a
        return rate, objective, log_a, ok

    def _step(
        self, point: _Point, damping: Float[Tensor, " c"], low: Float[Tensor, "2 1"], high: Float[Tensor, "2 c"]
    ) -> tuple[Float[Tensor, "2 c"], Bool[Tensor, " c"]]:
        """Newton step, or Gauss-Newton where the Hessian is not positive, within `low` and `high`; a rate on its
        bound whose gradient points outwards stays.

        Returns: the step, and whether what it promises can be relied on.
        """
        g = point.gradient
        held = ((point.rate <= self.low) & (g > 0)) | ((point.rate >= self.high) & (g < 0))

        def reduced(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            h11, h12, h22 = h
            return torch.where(held[0], 1.0, h11), torch.where(held.any(0), 0.0, h12), torch.where(held[1], 1.0, h22)

        full, safe = reduced(point.hessian), reduced(point.positive)
        convex = (full[0] > 0) & (full[2] > 0) & (full[0] * full[2] - full[1] ** 2 > 1e-9 * full[0] * full[2])
        h11, h12, h22 = (torch.where(convex, a, b) for a, b in zip(full, safe, strict=True))
        # Gauss-Newton of two atoms that have decayed alike is singular
        damping = torch.where(convex, damping, damping.clamp_min(_DAMPED))
        h11, h22 = h11 * (1 + damping) + 1e-300, h22 * (1 + damping) + 1e-300
        g1, g2 = torch.where(held, 0.0, g)
        below = (h11 * h22 - h12 * h12).clamp_min(1e-300)
        step = torch.nan_to_num(-torch.stack((h22 * g1 - h12 * g2, h11 * g2 - h12 * g1)) / below)
        # a rate that would go too far goes as far as it may, and the other follows it
        down, up = low - point.rate, high - point.rate
        one, two = torch.minimum(torch.maximum(step, down), up)
        beyond = (one != step[0]) & ~held[0], (two != step[1]) & ~held[1]
        second = torch.where(beyond[0], -(g2 + h12 * one) / h22, two)
        first = torch.where(beyond[1] & ~beyond[0], -(g1 + h12 * two) / h11, one)
        step = torch.stack((torch.where(held[0], 0.0, first), torch.where(held[1], 0.0, second)))
        return torch.minimum(torch.maximum(step, down), up), convex | (g1.abs() + g2.abs() == 0)


def _around(fit: Float[Tensor, "i j v"], axis: int) -> Float[Tensor, "i j v"]:
    """The largest of each node and its two neighbours along an axis."""
    found = fit.clone()
    length = fit.shape[axis] - 1
    later, earlier = found.narrow(axis, 1, length), found.narrow(axis, 0, length)
    torch.maximum(later, fit.narrow(axis, 0, length), out=later)
    torch.maximum(earlier, fit.narrow(axis, 1, length), out=earlier)
    return found


@lru_cache(maxsize=8)
def _table(tsl: tuple[float, ...], te_prep: tuple[float, ...], device: torch.device) -> _Table:
    """Of one protocol: patches and repeats of a study share it."""
    times = torch.tensor([tsl, te_prep], dtype=torch.float64)
    nodes = _axis(times, T1RHO, T2), _axis(times.flip(0), T2, T1RHO)
    u, w = nodes
    atoms = _unit(times, u, w)
    # how atoms bend from node to node
    along = atoms[:, 2:] - 2 * atoms[:, 1:-1] + atoms[:, :-2]
    across = atoms[:, :, 2:] - 2 * atoms[:, :, 1:-1] + atoms[:, :, :-2]
    mixed = atoms[:, 1:, 1:] - atoms[:, 1:, :-1] - atoms[:, :-1, 1:] + atoms[:, :-1, :-1]
    bend = sum(factor * float(part.norm(dim=0).max()) for factor, part in ((1, along), (2, mixed), (1, across)))
    mesh = torch.meshgrid(u, w, indexing="ij")
    rates = torch.stack([torch.exp(-each.flatten()) for each in mesh])
    flat = atoms.flatten(1).T.float().contiguous()
    shape = len(u), len(w)
    return _Table(times[..., None].to(device), rates.to(device), flat.to(device), shape, 1.5 * bend / 8)


def _unit(times: Float[Tensor, "2 n"], u: Float[Tensor, " i"], w: Float[Tensor, " j"]) -> Float[Tensor, "n i j"]:
    """Unit atoms of all pairs of log T."""
    tau = times[0][:, None, None] * torch.exp(-u)[:, None] + times[1][:, None, None] * torch.exp(-w)
    atoms = torch.exp(tau.amin(0) - tau)
    return atoms / atoms.norm(dim=0)


def _axis(times: Float[Tensor, "2 n"], own: Parameter, other: Parameter) -> Float[Tensor, " g"]:
    """log T of the nodes along the first axis, ends included."""
    fine = log_grid(own, _FINE)
    unit = _unit(times, fine, log_grid(other, _ACROSS))
    # path along the sphere, at the other time where it is longest, and log T, each in units of its largest step
    run = (unit[:, 1:] - unit[:, :-1]).norm(dim=0).amax(1) / _ARC + (fine[1:] - fine[:-1]) / _GAP
    path = torch.nn.functional.pad(run.cumsum(0), (1, 0))
    even = torch.linspace(0, float(path[-1]), int(path[-1].ceil()) + 1, dtype=torch.float64)
    after = torch.searchsorted(path, even).clamp(1, _FINE - 1)
    share = ((even - path[after - 1]) / (path[after] - path[after - 1])).clamp(0, 1)
    return torch.lerp(fine[after - 1], fine[after], share)
