"""Rank correlations of a `quality` study, as its page prints them."""

from collections.abc import Mapping, Sequence
from math import nan

import numpy as np
from markupsafe import Markup

from qsim.evaluation.pages.heat_report import Grid, Words
from qsim.evaluation.pages.quality_figures import WORDS
from qsim.evaluation.pages.summary import number
from qsim.evaluation.studies.quality_results import ALL_KINDS, Against, Correlation, QualityResults

# by model, group, figure, what it is held against, and scope
Held = Mapping[tuple[str, str, str, Against, str], Correlation]


def by_name(found: Sequence[Correlation]) -> Held:
    """Every correlation by what it is of."""
    return {(c.model, c.group, c.figure, c.against, c.scope): c for c in found}


def with_interval(each: Correlation) -> str:
    """rho, and its interval where it has one."""
    if not np.isfinite(each.low):
        return number(each.rho)
    return f"{number(each.rho)} ({number(each.low)} to {number(each.high)})"


def p_value(value: float) -> str:
    """Three decimals, or a power of ten below 0.001."""
    if not np.isfinite(value):
        return "–"
    if value >= 0.001:
        return f"{value:.3f}"
    digits, power = f"{value:.1e}".split("e")
    return f"{digits}e−{abs(int(power))}" if value > 0 else "< 1e−300"


def rank_table(results: QualityResults, held: Held, group: str, columns: Sequence[tuple[str, Against, str]]) -> Grid:
    """rho, its interval, p and n of every figure; the strongest of a model in the right direction is marked.

    Args:
        group: digital or measured images.
        columns: (head, against, scope).
    """
    lines: list[list[Words]] = []
    best = []
    for model in results.models:
        start = len(lines)
        sizes = np.full((len(WORDS), len(columns)), nan)
        names = [name for name in WORDS if (model, group, name, "dice", ALL_KINDS) in held]
        for i, name in enumerate(names):
            cells: list[Words] = [model, WORDS[name]]
            for j, (_, against, scope) in enumerate(columns):
                one = held.get((model, group, name, against, scope))
                if one is None or not np.isfinite(one.rho):
                    cells.append("–")
                    continue
                sizes[i, j] = one.rho if name.startswith(("snr", "cnr")) else -one.rho
                cells.append(_cell(one))
            lines.append(cells)
        best += [(start + int(np.nanargmax(column)), 2 + j) for j, column in enumerate(sizes.T) if (column > 0).any()]
    return Grid(["model", "figure", *(head for head, _, _ in columns)], lines, names=2, best=best)


def _cell(each: Correlation) -> Markup:
    cell = Markup("{}").format(number(each.rho))
    if np.isfinite(each.low):
        cell += Markup("<small>{} to {}</small>").format(number(each.low), number(each.high))
    if np.isfinite(each.p):
        cell += Markup("<small>p {} · n {}</small>").format(p_value(each.p), each.n)
    return cell
