"""The best that any number of images at any candidate times could do: a design whose counts may be fractions.

The information left on a parameter is the smallest of linear functions of the counts w,

    p(w) = min over c with c_r = 1 of  sum_i w_i (c . g_i)^2,

so the largest worst-tissue precision is a linear program with infinitely many rows, of which those are added that the
last solution breaks (Kelley 1960). It has no false optima, unlike the choice of whole images: its solution is a start
for that choice, and its value a bound of what that choice can reach.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import linprog  # type: ignore[attr-defined]

_ROUNDS = 80
# share of the largest precision that the solution may lack
_GAP = 2e-3


@dataclass(frozen=True, slots=True)
class Relaxed:
    """Solution of the relaxed problem.

    Attributes:
        counts: images at each candidate, not whole.
        bound: smallest (value / SD)^2 that no design on the candidates exceeds.
    """

    counts: Float[np.ndarray, " c"]
    bound: float

    def spread(self, times: Float[np.ndarray, " c"], n: int, offset: float) -> Float[np.ndarray, " n"]:
        """Whole images in these proportions: the times at equal steps of the cumulated counts."""
        cumulated = np.cumsum(self.counts) / self.counts.sum()
        places = np.searchsorted(cumulated, (np.arange(n) + offset) / n)
        return times[np.minimum(places, len(times) - 1)]


def relaxed_design(
    information: Float[np.ndarray, "q q c t"],
    times: Float[np.ndarray, " c"],
    targets: tuple[tuple[int, Float[np.ndarray, " t"]], ...],
    local: int,
    alone: float,
    n: int,
    total: float,
) -> Relaxed:
    """Maximise the smallest precision over counts that add up to n, and whose times add up to at most `total`.

    Args:
        information: of one image at each candidate time, in each tissue.
        targets: index among the rows, and value in each tissue, of each wanted parameter.
        local: how many rows are not shared; the shared ones come after them.
        alone: share of what a shared parameter adds to the variance.
    """
    # rows scaled to a like size, so that one ridge fits all
    size = np.sqrt(np.maximum(np.einsum("iict->i", information), 1e-300))
    scaled = information / size[:, None, None, None] / size[None, :, None, None]
    wanted = [(row, value * size[row]) for row, value in targets]
    n_times = len(times)
    budget = np.append(times, 0.0) if total < n * times.max() else None
    even = np.full(n_times, n / n_times)
    # as many images at the lowest time as the sum asks for
    lowest = np.zeros(n_times)
    lowest[times.argmin()] = n
    excess = float(even @ times) - n * times.min()
    part = 1.0 if budget is None else min(1.0, (total - n * times.min()) / max(excess, 1e-300))
    best = part * even + (1 - part) * lowest
    counts, least, bound, cuts = best, -np.inf, np.inf, []
    for _ in range(_ROUNDS):
        found, more = _cuts(scaled, counts, wanted, local, alone)
        if found > least:
            best, least = counts, found
        cuts.append(more)
        rows = np.concatenate(cuts)
        # unknowns: the counts and z, in units in which z is near 1
        unit = max(least, 1e-300)
        above = np.column_stack([-rows / unit, np.ones(len(rows))])
        limits = np.zeros(len(rows))
        if budget is not None:
            above, limits = np.vstack([above, budget]), np.append(limits, total)
        solved = linprog(  # type: ignore[no-untyped-call]
            np.append(np.zeros(n_times), -1.0),
            A_ub=above,
            b_ub=limits,
            A_eq=np.append(np.ones(n_times), 0.0)[None],
            b_eq=[n],
            bounds=[(0, None)] * n_times + [(None, None)],
        )
        if solved.status != 0:
            break
        bound = min(bound, -solved.fun * unit)
        if least >= (1 - _GAP) * bound:
            break
        # a little of the best so far keeps the next matrix regular
        counts = 0.8 * np.maximum(solved.x[:-1], 0) + 0.2 * best
    return Relaxed(best, float(bound))


def _cuts(
    information: Float[np.ndarray, "q q c t"],
    counts: Float[np.ndarray, " c"],
    targets: list[tuple[int, Float[np.ndarray, " t"]]],
    local: int,
    alone: float,
) -> tuple[float, Float[np.ndarray, "k c"]]:
    """Precision at these counts, and linear functions of the counts that are nowhere below it and touch it there."""
    worst, cuts = np.inf, []
    whole = np.einsum("ijct,c->tij", information, counts)
    for row, value in targets:
        own, own_cut = _left(whole, information, row)
        if row >= local:
            left, cut = own / alone, own_cut / alone
        elif alone < 1:
            pooled, pooled_cut = _left(whole[:, :local, :local], information[:local, :local], row)
            # 1 / (alone / own + (1 - alone) / pooled) is concave and homogeneous: its tangent has no constant
            left = 1 / (alone / own + (1 - alone) / pooled)
            cut = alone * (left / own) ** 2 * own_cut + (1 - alone) * (left / pooled) ** 2 * pooled_cut
        else:
            left, cut = own, own_cut
        worst = min(worst, float((left * value**2).min()))
        cuts.append((cut * value**2).T)
    return worst, np.concatenate(cuts)


def _left(
    whole: Float[np.ndarray, "t q q"], information: Float[np.ndarray, "q q c t"], row: int
) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, "c t"]]:
    """Information left on one parameter, and what each candidate gives of it, sum_i w_i (c . g_i)^2."""
    q = whole.shape[1]
    others = [i for i in range(q) if i != row]
    block = whole[:, others][:, :, others]
    ridge = 1e-13 * (np.einsum("tii->t", block) + 1e-300)
    c = np.zeros(whole.shape[:2])
    c[:, row] = 1
    if others:
        coupling = whole[:, others, row, None]
        c[:, others] = -np.linalg.solve(block + ridge[:, None, None] * np.eye(q - 1), coupling)[..., 0]
    each = np.einsum("ti,ijct,tj->ct", c, information, c)
    left = np.einsum("ti,tij,tj->t", c, whole, c)
    return np.maximum(left, 1e-300), each
