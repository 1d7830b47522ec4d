"""Global least squares of mono-exponential decays, many voxels at a time.

    minimise sum_n (A exp(-t_n / T) - S_n)^2   over A >= 0 and T within its bounds

With the atom d(T) = exp(-(t - t_0) / T), t_0 the shortest time, A exp(-t_0 / T) = p / q, p = S.d, q = d.d, and what is
explained, phi = p^2 / q, is maximised over T:

1.  A dictionary of unit atoms d / |d|, so close along their path that the best one loses a few parts in a thousand of
    |S| at most; one small matrix product per chunk of voxels that stays in the cache. The vertex of the parabola
    through the best atom and its neighbours is the start.
2.  Newton steps in u = log T. The slope is written with the residual r = S - a d, a = p / q, because p and q nearly
    cancel in phi' where a decay is slow against the times, and float32 would lose it there:

        phi' / 2 = a r.d',   phi'' / 2 = a r.d'' - a^2 d'.d' + (r.d' - a d.d')^2 / q

3.  A voxel may have several local maxima (few images, much noise). Between atoms a unit atom v turns so little that the
    height of a hill exceeds its best atom's by at most max |v''| / 8 |S|, with derivatives in the number of the atom.
    Voxels with another hill that close, those where many atoms are alike to seven digits (T short against the times),
    and those whose steps do not settle are searched again in float64, finely: every hill is climbed by the bracketed
    iteration of `separable.refine`, and the highest wins.

Source: variable projection: Golub and Pereyra 1973, doi:10.1137/0710036.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qsim.estimators.projection.separable import Moments, log_grid, ray_moments, refine, units
from qsim.parameters import Parameter

# atoms: at most this far apart on the unit sphere [rad], and in log T
_ARC = 0.05
_GAP = 0.5
_FINE = 4001
# voxels of one chunk: the products with the atoms then stay in the cache
_VOXELS = 8192
_DEVICE_VOXELS = 1 << 20
# Newton steps of all voxels; those left are iterated by themselves
_STEPS = 3
# a Newton step h that gains g leaves an error of the order h^2, worth g h^2 times a number that
# the third derivative sets: the last if less than this part of the objective
_RELATIVE = 1e-9
# rounding of the products and of the numbers in the lowest bits of the fits, as a part of |S|
_ROUNDING = 2e-5
# where p about the best atom bends less than this part of |S|, float32 may have taken the wrong atom: T is then so
# short against the times, or so long, that many atoms are alike
_FLAT = 1e-4
# the safe search: step in log T, voxels of a chunk
_FINE_GAP = 0.05
_SAFE_VOXELS = 1024

Found = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class _Table:
    """The dictionary of one list of times.

    Attributes:
        times: from the shortest one on [s].
        shortest: the shortest time [s].
        u: log T of the atoms, ascending [log s].
        atoms: unit vectors.
        slope, bend: of log T as a parabola in the number of the atom, about each atom.
        loss: by how much a hill may rise above its best atom, as a part of |S|.
        fine_u, fine: finer atoms, for the safe search.
    """

    times: Float[Tensor, "n 1"]
    shortest: Float[Tensor, ""]
    u: Float[Tensor, " g"]
    atoms: Float[Tensor, "g n"]
    slope: Float[Tensor, " g"]
    bend: Float[Tensor, " g"]
    loss: Float[Tensor, ""]
    fine_u: Float[Tensor, " f"]
    fine: Float[Tensor, "f n"]

    def to(self, device: torch.device) -> "_Table":
        return _Table(*(getattr(self, field.name).to(device) for field in fields(self)))


class DecaySearch:
    """Dictionary of one list of times.

    Args:
        times: [s].
        parameter: the relaxation time; its bounds are searched.
    """

    def __init__(self, times: tuple[float, ...], parameter: Parameter) -> None:
        self.bounds = parameter.lower, parameter.upper
        self.table = _table(torch.tensor(times, dtype=torch.float64)[:, None], parameter)

    def __call__(self, y: Float[Tensor, "n v"]) -> Found:
        """Fit every column.

        Args:
            y: series, finite [units of A].
        Returns: A, T, the objective and whether the iteration converged, in the dtype of `y`.
        """
        table = self.table.to(y.device)
        size = _VOXELS if y.device.type == "cpu" else _DEVICE_VOXELS
        a, t, objective = (y.new_empty(y.shape[1]) for _ in range(3))
        converged = torch.empty(y.shape[1], dtype=torch.bool, device=y.device)
        for start in range(0, y.shape[1], size):
            here = slice(start, start + size)
            a[here], t[here], objective[here], converged[here] = _fit(y[:, here].contiguous(), table)
        # 1 / (1 / T) may miss an end by its last digit
        return a, t.clamp_(*self.bounds), objective, converged


def _table(times: Float[Tensor, "n 1"], parameter: Parameter) -> _Table:
    shortest = times.min()
    later = times - shortest
    fine = log_grid(parameter, _FINE)
    unit = _unit(later, fine)
    # path along the sphere and log T, each in units of its largest step
    run = (unit[:, 1:] - unit[:, :-1]).norm(dim=0) / _ARC + (fine[1:] - fine[:-1]) / _GAP
    path = torch.nn.functional.pad(run.cumsum(0), (1, 0))
    n = int(path[-1].ceil()) + 1
    # log T over the number of the atom, finely
    even = torch.linspace(0, float(path[-1]), 16 * (n - 1) + 1, dtype=torch.float64)
    after = torch.searchsorted(path, even).clamp(1, _FINE - 1)
    share = ((even - path[after - 1]) / (path[after] - path[after - 1])).clamp(0, 1)
    u16 = torch.lerp(fine[after - 1], fine[after], share)
    u = u16[::16].clone()
    dense = _unit(later, u16)
    # curvature of the atoms in steps of one atom: v(16 i + 16) - 2 v(16 i) + v(16 i - 16) at every sixteenth
    turn = (dense[:, 32:] - 2 * dense[:, 16:-16] + dense[:, :-32]).norm(dim=0).max()
    inner = torch.nn.functional.pad(u, (1, 1))
    slope, bend = (inner[2:] - inner[:-2]) / 2, inner[2:] - 2 * u + inner[:-2]
    atoms = _unit(later, u).T.float().contiguous()
    steps = int((fine[-1] - fine[0]) / _FINE_GAP) + 2
    fine_u = torch.cat((log_grid(parameter, steps), u)).unique()
    safe = _unit(later, fine_u).T.contiguous()
    return _Table(later, shortest, u, atoms, slope, bend, 1.5 * turn / 8, fine_u, safe)


def _unit(times: Float[Tensor, "n 1"], u: Float[Tensor, " g"]) -> Float[Tensor, "n g"]:
    atoms = torch.exp(-times * torch.exp(-u))
    return atoms / atoms.norm(dim=0)


def _fit(y: Float[Tensor, "n v"], table: _Table) -> Found:
    """One chunk."""
    scale = units(y)
    y = y / scale
    fit = (table.atoms @ y.float()).clamp_min_(0)
    best, top = highest(fit)
    energy = total(y * y)
    size = energy.sqrt().float()
    start, bend = _vertex(fit, best, table)
    rate, settled = _climb(y, best, start, table)
    dead = top <= 0
    careful = torch.nonzero((~settled | (bend < _FLAT * size) | _several(fit, top, size, table)) & ~dead)[:, 0]
    if careful.numel() > 0:
        safe, settled[careful] = _safe(y[:, careful].double(), table)
        rate[careful] = safe.to(y.dtype)
    a, objective = _amplitude(y, table.times.to(y.dtype), rate)
    # no decay of any T points the way of the series
    a = torch.where(dead, 0.0, a * torch.exp(table.shortest.to(y.dtype) * rate) * scale)
    t = torch.where(dead, table.u[0].exp().to(y.dtype), 1 / rate)
    objective = torch.where(dead, energy, objective)
    # where T is a small part of the shortest time, A may be beyond the largest number
    return a, t, objective * scale * scale, dead | (settled & torch.isfinite(a))


def highest(fit: Float[Tensor, "g v"]) -> tuple[Int[Tensor, " v"], Float[Tensor, " v"]]:
    """Number and height of the best atom, the height without its lowest bits, which hold the number: `max` with indices
    takes ten times longer.
    """
    low = (1 << (len(fit) - 1).bit_length()) - 1
    numbered = fit.view(torch.int32).bitwise_and(~low)
    numbered |= torch.arange(len(fit), dtype=torch.int32, device=fit.device)[:, None]
    largest = numbered.amax(0)
    return largest.bitwise_and(low).long(), largest.bitwise_and(~low).view(torch.float32)


def total(terms: Float[Tensor, "n v"]) -> Float[Tensor, " v"]:
    """Sum over the first axis; the product with ones is the faster on a CPU."""
    if terms.device.type != "cpu":
        return terms.sum(0)
    return (terms.new_ones(1, len(terms)) @ terms)[0]


def _vertex(
    fit: Float[Tensor, "g v"], best: Int[Tensor, " v"], table: _Table
) -> tuple[Float[Tensor, " v"], Float[Tensor, " v"]]:
    """log T at the vertex of the parabola through p of an atom and its neighbours [log s], and how far that bends."""
    g, v = fit.shape
    inner = best.clamp(1, g - 2)
    flat, place = fit.view(-1), inner * v + torch.arange(v, device=fit.device)
    left, middle, right = (flat.index_select(0, place + i * v) for i in (-1, 0, 1))
    down = 2 * middle - left - right
    shift = (0.5 * (right - left) / down.clamp_min(1e-30)).clamp(-1, 1)
    slope, bend = table.slope.float().index_select(0, inner), table.bend.float().index_select(0, inner)
    return table.u.float().index_select(0, inner) + shift * (slope + 0.5 * shift * bend), down


def _climb(
    y: Float[Tensor, "n v"], node: Int[Tensor, " v"], start: Float[Tensor, " v"], table: _Table
) -> tuple[Float[Tensor, " v"], Bool[Tensor, " v"]]:
    """Maximise phi between the neighbours of an atom by Newton steps.

    Returns: 1 / T, and whether it settled.
    """
    times, last = table.times.to(y.dtype), len(table.u) - 1
    # 1 / T and not log T is kept: float32 rounds log T to less than seven digits of T
    rates = torch.exp(-table.u).to(y.dtype)
    lowest = rates.index_select(0, (node + 1).clamp_max(last))
    highest = rates.index_select(0, (node - 1).clamp_min(0))
    rate = torch.exp(-start.to(y.dtype)).clamp(lowest, highest)
    settled = torch.zeros_like(node, dtype=torch.bool)
    # |h| that is rounding
    least = 4 * torch.finfo(y.dtype).eps
    for step in range(_STEPS):
        slope, curvature, left = _derivatives(y, times, rate)
        h = torch.where(curvature < 0, -slope / curvature, slope.sign())
        target = rate * torch.exp(-h.clamp(-1, 1))
        new = target.clamp(lowest, highest)
        if step == _STEPS - 1:
            h = torch.where(new == target, h, new / rate - 1)
            still = (slope * h).abs() * h * h <= _RELATIVE * left
            settled = (h.abs() <= least) | ((curvature < 0) & still)
            # held by a neighbouring atom, which is no maximum, or by an end of the range, which is one
            settled &= (new == target) | (new == rates[0]) | (new == rates[last])
        rate = new
    return rate, settled


def _derivatives(
    y: Float[Tensor, "n v"], times: Float[Tensor, "n 1"], rate: Float[Tensor, " v"]
) -> tuple[Tensor, Tensor, Tensor]:
    """phi' / 2 and phi'' / 2 in u = log T, and the objective."""
    tau = times * rate
    d = torch.exp(-tau)
    # one buffer for all products: fresh memory costs more than the arithmetic
    buffer = torch.empty_like(d)

    def dot(left: Tensor, right: Tensor) -> Tensor:
        return total(torch.mul(left, right, out=buffer))

    q = dot(d, d)
    a = (dot(y, d) / q).clamp_min_(0)
    r = torch.mul(d, a).neg_().add_(y)
    d1 = d * tau
    d2 = tau.sub_(1).mul_(d1)
    r1, dd1 = dot(r, d1), dot(d, d1)
    turn = r1 - a * dd1
    curvature = a * (dot(r, d2) - a * dot(d1, d1)) + turn * turn / q
    return a * r1, curvature, dot(r, r)


def _amplitude(
    y: Float[Tensor, "n v"], times: Float[Tensor, "n 1"], rate: Float[Tensor, " v"]
) -> tuple[Float[Tensor, " v"], Float[Tensor, " v"]]:
    """a = p / q, not negative, and the objective."""
    d = torch.exp(times * -rate)
    a = (total(d * y) / total(d * d)).clamp_min(0)
    r = d.mul_(a).sub_(y)
    return a, total(r.mul_(r))


def _several(
    fit: Float[Tensor, "g v"], top: Float[Tensor, " v"], size: Float[Tensor, " v"], table: _Table
) -> Bool[Tensor, " v"]:
    """Where more than one hill could be the highest."""
    # up and down once is a path of 2 top - first - last; more is another hill, or rounding
    path = total((fit[1:] - fit[:-1]).abs_()) - (2 * top - fit[0] - fit[-1])
    found = path > _ROUNDING * size
    at = torch.nonzero(found)[:, 0]
    if at.numel() > 0:
        own = fit[:, at]
        rising = torch.nn.functional.pad(own, (0, 0, 1, 0), value=-1.0)[:-1] < own
        falling = torch.nn.functional.pad(own, (0, 0, 0, 1), value=-1.0)[1:] <= own
        near = own >= top[at] - (table.loss.float() + _ROUNDING) * size[at]
        found[at] = (rising & falling & near).sum(0) > 1
    return found


def _safe(y: Float[Tensor, "n k"], table: _Table) -> tuple[Float[Tensor, " k"], Bool[Tensor, " k"]]:
    """1 / T by the bracketed iteration from every local maximum of fine atoms, all in float64; whether it converged."""
    pieces = [_highest_hill(part, table) for part in y.split(_SAFE_VOXELS, 1)]
    rate, done = (torch.cat(column) for column in zip(*pieces, strict=True))
    return rate, done


def _highest_hill(y: Float[Tensor, "n k"], table: _Table) -> tuple[Float[Tensor, " k"], Bool[Tensor, " k"]]:
    fit = (table.fine @ y).clamp_min_(0)
    rising = torch.nn.functional.pad(fit, (0, 0, 1, 0), value=-1.0)[:-1] < fit
    falling = torch.nn.functional.pad(fit, (0, 0, 0, 1), value=-1.0)[1:] <= fit
    energy = total(y * y)
    near = fit >= fit.amax(0) - table.loss * energy.sqrt()
    column, node = torch.nonzero((rising & falling & near).T, as_tuple=True)
    series, minus = y[:, column], y.new_full((1,), -1.0)

    def moments(i: Int[Tensor, " k"] | slice, u: Tensor) -> Moments:
        return ray_moments(series[:, i], table.times, u, 0.0, minus, False)

    last = len(table.fine_u) - 1
    lower, upper = table.fine_u[(node - 1).clamp_min(0)], table.fine_u[(node + 1).clamp_max(last)]
    u, done = refine(moments, table.fine_u[node], lower, upper, energy[column])
    rates = torch.exp(-u)
    objective = _amplitude(series, table.times, rates)[1]
    # the lowest of each column; the shortest T of equal ones
    lowest = torch.full_like(energy, torch.inf).scatter_reduce_(0, column, objective, "amin")
    chosen = torch.nonzero(objective == lowest[column])[:, 0].flip(0)
    rate, settled = torch.zeros_like(energy), torch.zeros_like(energy, dtype=torch.bool)
    rate[column[chosen]], settled[column[chosen]] = rates[chosen], done[chosen]
    return rate, settled
