"""Maxima over T1 at one B, of many voxels at once: log T1 cut into pieces in which the signal keeps its signs.

What a voxel explains, phi(B, u) = (S.d)^2 / d.d with d = |1 - B exp(-TI / T1)| and u = log T1, has a kink in u wherever
the signal crosses zero at a time, T1 = TI_k / log B. Between two kinks it is smooth, and

    d = s (1 - B e(u)),   e = exp(-TI exp(-u)),   e(c + x) = e(c) + e'(c) x + e''(c) x^2 / 2 + ...

with signs s that stay, so that S.d is a polynomial in x whose coefficients are a few products of the series with one
small matrix per piece, and d.d one that all voxels of the piece share. A voxel is put into the piece next to its best
atom of a dictionary; there Newton steps cost a few operations, not one per image. A voxel that leaves its piece is
put into the next. Where two pieces send it back to the kink between them, phi has a peak there: the voxel is *pinned*,
and as B changes T1 follows as TI_k / log B.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, factorial, log

import torch
from jaxtyping import Bool, Float, Int, Int16
from torch import Tensor

from qsim.parameters import T1

# widest piece [log s]
_GAP = 0.11
# order of the polynomials: the next term of e is less than (_GAP / 2)^5 / 5! = 4e-9, far below float32
_ORDER = 4
# voxels of one product with the dictionary: the work on 31 float32 images stays in the cache
_SEARCHED = 8192
# sorted voxels of one block
_BLOCK = 16384
# voxels that are sorted together: bounds the memory
_SORTED = 1 << 18
# a node from which F rises on both sides, on the flatter one at least this part as fast: both are tried
_VALLEY = 0.5
# Newton steps in a piece, and pieces that a voxel may wander through
_STEPS = 3
_ROUNDS = 6


@dataclass(frozen=True, slots=True)
class Pieces:
    """Tables of one B.

    Attributes:
        b: the inversion depth [1].
        nodes: ends of the pieces, ascending [log s].
        kink: whether a node is the zero crossing of an image.
        atoms: unit vectors at the nodes.
        steps: from each node to the one below and above [log s], and |d'|^2 of the unit vector there.
        moments: per piece the matrix whose products with a series are S.s, then S.(s e^(j)(c)) / j! .
        middle, half: of each piece, and half its width [log s].
        decay, square: coefficients of sum(e) and sum(e^2) about the middle of each piece.
    """

    b: float
    nodes: Float[Tensor, " g"]
    kink: Bool[Tensor, " g"]
    atoms: Float[Tensor, "g n"]
    steps: Float[Tensor, "3 g"]
    moments: Float[Tensor, "k m n"]
    middle: Float[Tensor, " k"]
    half: Float[Tensor, " k"]
    decay: Float[Tensor, "j k"]
    square: Float[Tensor, "j k"]


def pieces(times: tuple[float, ...], signed: bool, b: float, device: torch.device) -> Pieces:
    """Cut log T1 at one B."""
    low, high = log(T1.lower), log(T1.upper)
    kinks: set[float] = set()
    if not signed and b > 1 + 1e-6:
        kinks = {u for time in times if time > 0 and low < (u := log(time / log(b))) < high}
    stops = [low, *sorted(kinks), high]
    nodes = [low]
    for below, above in pairwise(stops):
        count = max(1, ceil((above - below) / _GAP))
        nodes += [below + (above - below) * i / count for i in range(1, count)] + [above]
    grid, ti = torch.tensor(nodes, dtype=torch.float64), torch.tensor(times, dtype=torch.float64)
    signal = 1 - b * torch.exp(-ti * torch.exp(-grid)[:, None])
    length = signal.norm(dim=1, keepdim=True).clamp_min(1e-12)
    atoms = (signal if signed else signal.abs()) / length
    tau = ti * torch.exp(-grid)[:, None]
    turn = b * tau * torch.exp(-tau) / length
    turn = turn - (turn * signal).sum(1, keepdim=True) * signal / length**2
    gap = grid.diff()
    steps = torch.stack((torch.cat((gap[:1], gap)), torch.cat((gap, gap[-1:])), turn.square().sum(1)))

    centre, half = (grid[1:] + grid[:-1]) / 2, (grid[1:] - grid[:-1]) / 2
    tau = ti * torch.exp(-centre)[:, None]
    e = _taylor(tau)
    sign = torch.ones_like(tau) if signed else torch.where(1 - b * e[0] < 0, -1.0, 1.0).double()
    moments = torch.stack((sign, *(sign * term for term in e)), dim=1)
    on_kink = torch.tensor([u in kinks for u in nodes])
    decay, square = torch.stack([t.sum(1) for t in e]), torch.stack([t.sum(1) for t in _taylor(2 * tau)])
    moved = (
        x.to(device)
        for x in (grid, on_kink, atoms.float(), steps.float(), moments.float(), centre, half.float(), decay, square)
    )
    return Pieces(b, *moved)


def _taylor(tau: Float[Tensor, "k n"]) -> list[Float[Tensor, "k n"]]:
    """Derivatives of exp(-tau) in u over j!, where tau falls as exp(-u).

    e^(j) = P_j(tau) e,   P_j+1 = tau (P_j - P_j')
    """
    e, polynomial, terms = torch.exp(-tau), [1.0], []
    for j in range(_ORDER + 1):
        value = sum(c * tau**i for i, c in enumerate(polynomial)) * e
        terms.append(value / factorial(j))
        slope = [*(i * c for i, c in enumerate(polynomial) if i), 0.0]
        polynomial = [0.0, *(c - s for c, s in zip(polynomial, slope, strict=True))]
    return terms


@dataclass(frozen=True, slots=True)
class Peaks:
    """The best T1 of every voxel at one B.

    Attributes:
        a: amplitudes [units of the images].
        u: log T1 [log s].
        a_b, u_b: how both follow B.
        explained: phi.
        slope: of phi in B, with A and T1 following.
        curvature: the one expected of an endless series of draws.
        ended: the search of T1 came to an end.
    """

    a: Float[Tensor, " v"]
    u: Float[Tensor, " v"]
    a_b: Float[Tensor, " v"]
    u_b: Float[Tensor, " v"]
    explained: Float[Tensor, " v"]
    slope: Float[Tensor, " v"]
    curvature: Float[Tensor, " v"]
    ended: Bool[Tensor, " v"]


def peaks(table: Pieces, y: Float[Tensor, "n v"]) -> Peaks:
    """Maximise phi over T1 of each voxel.

    Args:
        y: series of the voxels, float32 [units of A].
    """
    parts = [_sorted(table, part) for part in y.split(_SORTED, dim=1)]
    rows, ended = (torch.cat(column, dim=-1) for column in zip(*parts, strict=True))
    a, u, a_b, u_b, explained, slope, curvature = rows
    return Peaks(a, u, a_b, u_b, explained, slope, curvature, ended)


def _sorted(table: Pieces, y: Float[Tensor, "n v"]) -> tuple[Float[Tensor, "7 v"], Bool[Tensor, " v"]]:
    """Rows of `Peaks`: a, u, a_b, u_b, phi, slope, curvature; and which voxels ended."""
    chunks = [_search(table, chunk) for chunk in y.split(_SEARCHED, dim=1)]
    piece, other = (torch.cat(column) for column in zip(*chunks, strict=True))
    # a series side by side in memory: three times faster to put into another order
    series = y.T.contiguous()
    rows, ended = _wander(table, series, piece)
    both = torch.nonzero(other >= 0)[:, 0]
    if both.numel():
        second, ends = _wander(table, series.index_select(0, both), other[both])
        better = second[4] > rows[4, both]
        where = both[better]
        rows[:, where], ended[where] = second[:, better], ends[better]
    return rows, ended


def _wander(
    table: Pieces, series: Float[Tensor, "v n"], piece: Int16[Tensor, " v"]
) -> tuple[Float[Tensor, "7 v"], Bool[Tensor, " v"]]:
    """From those pieces to the maxima."""
    rows = series.new_empty(7, len(series))
    ended = torch.ones(len(series), dtype=torch.bool, device=series.device)
    left, came = torch.arange(len(series), device=series.device), torch.zeros_like(piece)
    for _ in range(_ROUNDS):
        # voxels of one piece side by side, in the order in which they lie in memory; short numbers sort faster
        own, order = piece.sort(stable=True)
        at, came = left[order], came[order]
        blocks = zip(at.split(_BLOCK), own.split(_BLOCK), came.split(_BLOCK), strict=True)
        leaves = torch.cat([_climb(table, series, voxels, here, before, rows) for voxels, here, before in blocks])
        again = torch.nonzero(leaves)[:, 0]
        left, came = at[again], leaves[again]
        piece = own[again] + came
        if again.numel() == 0:
            break
    ended[left] = False
    return rows, ended


def _search(table: Pieces, y: Float[Tensor, "n v"]) -> tuple[Int16[Tensor, " v"], Int16[Tensor, " v"]]:
    """The piece next to the best atom into which F = S.d / |d| rises faster, and the other if it rises there nearly as
    fast (a valley), else -1.

    F is a parabola on either side, of curvature F |d'|^2 (d of length 1); its value at the next node gives the slope.
    """
    fit = (table.atoms @ y).clamp_min_(0)
    # the largest atom: its number replaces the lowest bits (max() with indices takes ten times longer); what that costs
    # in precision is 1e-5 of F
    low = (1 << (len(fit) - 1).bit_length()) - 1
    numbered = fit.view(torch.int32).bitwise_and_(~low)
    numbered |= torch.arange(len(fit), dtype=torch.int32, device=y.device)[:, None]
    top = numbered.amax(0)
    best = top.bitwise_and(low)
    last = len(fit) - 1
    # values of the neighbours, still as floating point numbers (their lowest bits are off by 1e-5)
    index = best.long()
    below, above = (fit.gather(0, (index + side).clamp_(0, last)[None])[0] for side in (-1, 1))
    here = top.view(torch.float32)
    down, up, bend = (row.index_select(0, best) for row in table.steps)
    curvature = here * bend
    rises = (above - here) / up + curvature * up / 2
    falls = (below - here) / down + curvature * down / 2
    # at an end of the range there is one side only
    upwards = ((rises >= falls) & (best < last)) | (best == 0)
    piece = best - 1 + upwards
    valley = torch.minimum(rises, falls) > _VALLEY * torch.maximum(rises, falls)
    valley &= (best > 0) & (best < last)
    return piece.short(), torch.where(valley, best - upwards.int(), -1).short()


def _climb(
    table: Pieces,
    y: Float[Tensor, "v n"],
    voxels: Int[Tensor, " k"],
    piece: Int16[Tensor, " k"],
    came: Int16[Tensor, " k"],
    rows: Float[Tensor, "7 v"],
) -> Int16[Tensor, " k"]:
    """Maximise phi in one piece per voxel, and write what was found into `rows`.

    Args:
        voxels: their rows in `y` and columns in `rows`.
        piece: of each, ascending.
        came: +1 from the piece below, -1 from the one above, 0 from the dictionary.
    Returns: +1 if phi still rises at the upper end of the piece, -1 at the lower, 0 if the voxel stays.
    """
    series = y.index_select(0, voxels)
    own = y.new_empty(_ORDER + 2, len(voxels))
    start = 0
    of, counts = piece.unique_consecutive(return_counts=True)
    for k, count in zip(of.tolist(), counts.tolist(), strict=True):
        torch.mm(table.moments[k], series[start : start + count].T, out=own[:, start : start + count])
        start += count
    number = piece.int()
    shared = [row.index_select(0, number) for row in (*table.decay, *table.square)]
    half = table.half.index_select(0, number)
    b, n = table.b, y.shape[1]
    x = _newton(b, n, own.unbind(0), [row.float() for row in shared], half)

    # what the slope is made of in float64: a rounding that many voxels share would move B
    upright, *e = own.double().unbind(0)
    decay, decay_u, decay_uu = _polynomial(e, x.double())
    s, s_u, s_uu = _polynomial(shared[: _ORDER + 1], x.double())
    ee, ee_u, ee_uu = _polynomial(shared[_ORDER + 1 :], x.double())
    p, q, qb = upright - b * decay, (n + b * (b * ee - 2 * s)).clamp_min_(1e-12), 2 * (b * ee - s)
    # an amplitude is not negative
    a = p.clamp_min(0) / q
    explained, f_b = a * p, -a * (2 * decay + a * qb)
    decay, decay_u, decay_uu, s_u, s_uu, ee, ee_u, ee_uu, p, q, qb, a = (
        v.float() for v in (decay, decay_u, decay_uu, s_u, s_uu, ee, ee_u, ee_uu, p, q, qb, a)
    )
    pu, puu = -b * decay_u, -b * decay_uu
    qu, quu, qbu = b * (b * ee_u - 2 * s_u), b * (b * ee_uu - 2 * s_uu), 2 * (b * ee_u - s_u)
    seen = a > 0
    # with a = p / q:  phi' = 2 a p' - a^2 q',  a' = (p' - a q') / q
    au, ab = (pu - a * qu) / q * seen, (-decay - a * qb) / q * seen
    f_u = a * (2 * pu - a * qu)
    f_uu = 2 * au * pu + a * (2 * puu - 2 * au * qu - a * quu)
    f_ub = 2 * ab * pu + a * (-2 * decay_u - 2 * ab * qu - a * qbu)

    ends = (x <= -half * (1 - 1e-6), x >= half * (1 - 1e-6))
    slope = 2 * pu * q - p * qu
    leaves = (ends[1] & (slope > 0)).short() - (ends[0] & (slope < 0)).short()
    node = number + (leaves > 0)
    # back to where it came from: phi has its peak at that end
    back = leaves == -came
    last = (node == 0) | (node == len(table.nodes) - 1)
    stays = (leaves != 0) & (back | last)
    pinned = stays & ~last & table.kink[node]
    leaves = leaves * ~stays
    # T1 follows B as the stationary point moves; at an end of the range it stays
    free = (f_uu < 0) & ~(stays & (last | pinned))
    u_b = torch.where(free, -f_ub / torch.where(f_uu < 0, f_uu, -1.0), 0.0)
    if pinned.any():
        u_b = torch.where(pinned, -1 / (b * log(b)), u_b)
        f_b = f_b + torch.where(pinned, u_b * f_u, 0.0)

    # Gram-Schmidt of the derivatives of d in B and log T1 against d: what the series says about B, A and T1 free;
    # sum(e'^2) = (sum(e^2)'' + sum(e^2)') / 4
    uu, bb, ub = (
        b * b * (ee_uu + ee_u) / 4 - qu * qu / (4 * q),
        ee - qb * qb / (4 * q),
        b * ee_u / 2 - qu * qb / (4 * q),
    )
    expected = 2 * a * a * (ub * ub / uu.clamp_min(1e-12) - bb).clamp_max(0)
    u = table.middle.index_select(0, number) + x
    for row, values in zip(rows, (a, u, ab + au * u_b, u_b, explained, f_b, expected), strict=True):
        row.scatter_(0, voxels, values.to(rows.dtype))
    return leaves


def _newton(
    b: float, n: int, series: Sequence[Tensor], shared: Sequence[Tensor], half: Float[Tensor, " k"]
) -> Float[Tensor, " k"]:
    """Where (p^2 / q)' = 0, which is h = 2 p' q - p q' = 0, or the end of the piece towards which phi rises."""
    upright, *e = series
    # q = n + b (b sum(e^2) - 2 sum(e)): one polynomial
    c = [b * (b * square - 2 * decay) for decay, square in zip(shared[: _ORDER + 1], shared[_ORDER + 1 :], strict=True)]
    c[0] = c[0] + n
    d = [-b * term for term in e]
    d[0] = d[0] + upright
    x = torch.zeros_like(half)
    for step in range(_STEPS):
        p, pu, puu = _polynomial(d, x) if step else (d[0], d[1], 2 * d[2])
        q, qu, quu = _polynomial(c, x) if step else (c[0], c[1], 2 * c[2])
        h, bend = 2 * pu * q - p * qu, 2 * puu * q + pu * qu - p * quu
        # where phi is convex: uphill, to the end
        x = torch.where(bend < 0, x - h / bend, h.sign() * half)
        x = torch.minimum(torch.maximum(x, -half), half)
    return x


def _polynomial(c: Sequence[Tensor], x: Float[Tensor, " k"]) -> tuple[Tensor, Tensor, Tensor]:
    """A polynomial and its first two derivatives, by Horner's rule."""
    value = torch.addcmul(c[3], c[4], x)
    first = torch.addcmul(value, c[4], x)
    value = torch.addcmul(c[2], value, x)
    second = torch.addcmul(first, c[4], x)
    first = torch.addcmul(value, first, x)
    value = torch.addcmul(c[1], value, x)
    second = torch.addcmul(first, second, x)
    first = torch.addcmul(value, first, x)
    return torch.addcmul(c[0], value, x), first, second.mul_(2)
