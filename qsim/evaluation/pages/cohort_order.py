"""Numbers over runs as cells of a table, and how an order found here differs from a paper's.

Kendall's tau-b of two lists of the same methods, over all pairs:

    tau = (agreeing - opposed) / sqrt(pairs not tied here x pairs not tied there)

1: the same order, -1: the opposite one. Source: Kendall 1945, doi:10.1093/biomet/33.3.239.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from math import isfinite, nan, sqrt

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from qsim.evaluation.metrics import over_draws
from qsim.evaluation.pages.heat_report import Words
from qsim.evaluation.pages.summary import number

Runs = Float[np.ndarray, " r"]


def kendall(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Tau-b of the names that both have; NaN if a list orders nothing [1]."""
    names = [name for name in first if name in second]
    agreeing = here = there = 0
    for a, b in combinations(names, 2):
        one, other = np.sign(first[a] - first[b]), np.sign(second[a] - second[b])
        agreeing += int(one * other)
        here += int(one != 0)
        there += int(other != 0)
    return agreeing / sqrt(here * there) if here and there else nan


def mean(runs: Runs) -> float:
    """Over the runs that have a value; NaN if none has."""
    return over_draws(runs).value


def known(runs: Runs) -> bool:
    return bool(np.isfinite(runs).any())


def paired(first: Runs, second: Runs, names: Sequence[str]) -> tuple[Runs, Runs]:
    """Both in the runs that either has: what has one value in a fold has it for every seed of that fold.

    Args:
        names: of the runs, as "fold 0, seed 1".
    """
    either = np.isfinite(first) | np.isfinite(second)
    folds = np.array([name.partition(",")[0] for name in names])
    both = []
    for runs in (first, second):
        filled = runs.copy()
        for fold in dict.fromkeys(folds.tolist()):
            here = folds == fold
            own = runs[here & np.isfinite(runs)]
            if own.size == 1:
                filled[here & either] = own[0]
        both.append(filled)
    return both[0], both[1]


def ratio(above: Runs, below: Runs, names: Sequence[str]) -> Runs:
    """Run by run, as `paired`; NaN where the denominator is 0."""
    above, below = paired(above, below, names)
    return np.divide(above, below, out=np.full(above.shape, nan), where=below != 0)


def spread(runs: Runs, digits: int = 2) -> str:
    """Value with the half-width of its interval, in a sentence."""
    held = over_draws(runs)
    if not isfinite(held.high):
        return number(held.value, digits)
    return f"{number(held.value, digits)} ± {number(held.high - held.value)}"


def cell(runs: Runs, factor: float = 1.0, digits: int = 3) -> Words:
    """Mean over runs, below it the half-width of its 95 % interval and the number of runs."""
    held = over_draws(factor * runs)
    if not isfinite(held.value):
        return "–"
    n = int(np.isfinite(runs).sum())
    wide = f"± {number(held.high - held.value)} ({n})" if isfinite(held.high) else f"({n})"
    return Markup("{}<small>{}</small>").format(number(held.value, digits), wide)


def smallest(columns: Mapping[int, list[float]]) -> set[tuple[int, int]]:
    """(row, column) of the smallest numbers of each column."""
    found = set()
    for column, values in columns.items():
        if not np.isfinite(values).any():
            continue
        # what is equal but for rounding shares the mark; where all are, there is nothing to mark
        same = np.isclose(values, np.nanmin(values), rtol=1e-9)
        if same.sum() < np.isfinite(values).sum():
            found |= {(int(row), column) for row in np.flatnonzero(same)}
    return found


def order_sentence(here: Mapping[str, Runs], paper: Mapping[str, float], what: str, names: Sequence[str]) -> str:
    """Both orders, smallest first, how alike they are, and every pair that stands the other way round.

    Args:
        here: numbers over the same runs, by method.
        paper: the paper's, by method.
        what: is ordered, with its unit in brackets.
        names: of the runs.
    """
    both = [name for name in paper if name in here and known(here[name])]
    lost = [name for name in paper if name not in both]
    missing = f" No figure here of {', '.join(lost)}." if lost else ""
    if len(both) < 2:
        return (
            f"{what}: fewer than two of the paper's rows have a figure here, so there is no order to compare.{missing}"
        )
    ours = {name: mean(here[name]) for name in both}
    theirs = {name: paper[name] for name in both}
    text = f"{what}: here {_ranks(ours)}; in the paper {_ranks(theirs)}. "
    tau = kendall(ours, theirs)
    pairs = len(both) * (len(both) - 1) // 2
    text += (
        f"Kendall's τ {number(tau)} ({pairs} pair{'s' if pairs > 1 else ''})." if isfinite(tau) else "No τ: all tied."
    )
    turned = []
    for a, b in combinations(sorted(both, key=lambda name: theirs[name]), 2):
        if theirs[a] < theirs[b] and ours[a] > ours[b]:
            turned.append(f"{b} before {a} (by {_difference(*paired(here[a], here[b], names))})")
    if turned:
        text += f" The other way round here: {'; '.join(turned)}."
    elif isfinite(tau):
        text += " No pair stands the other way round."
    return text + missing


def _difference(larger: Runs, smaller: Runs) -> str:
    runs = larger - smaller
    held = over_draws(runs)
    text = spread(runs)
    return f"{text}, not told apart over runs" if held.low <= 0 <= held.high else text


def _ranks(values: Mapping[str, float]) -> str:
    names = sorted(values, key=lambda name: values[name])
    text = names[0]
    for before, name in pairwise(names):
        text += f" {'=' if values[name] == values[before] else '<'} {name}"
    return text
