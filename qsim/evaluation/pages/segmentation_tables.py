"""Tables of a `segmentation` study: Dice beside the paper's, gaps and differences, aims, rank correlations."""

from collections.abc import Mapping
from itertools import combinations
from typing import Literal

import numpy as np
from markupsafe import Markup

from qsim.evaluation.metrics import Interval
from qsim.evaluation.pages.heat_report import Grid, Words
from qsim.evaluation.pages.segmentation_lead import SCORE_WORDS, ends, shown_name, signed
from qsim.evaluation.pages.summary import number
from qsim.evaluation.studies.segmentation_compared import Compared, closure, difference, gap
from qsim.evaluation.studies.segmentation_ranks import ensembles_of, followed, images_of
from qsim.evaluation.studies.segmentation_results import SCORES, TEST, TRAIN, Cell, SegmentationResults, cell

# jacobs2025 Table 1: mean and SD over five folds of the Dice on T1 train, T1 test, T1rho validation
PAPER: Mapping[Literal["A", "B"], tuple[tuple[float, str], ...]] = {
    "A": ((0.96, "0.002"), (0.80, "0.041"), (0.56, "0.042")),
    "B": ((0.90, "0.011"), (0.83, "0.021"), (0.64, "0.049")),
}


def split_name(results: SegmentationResults, split: str) -> str:
    """A split as heads of tables and figures name it."""
    if split in (TRAIN, TEST):
        return f"{shown_name(results.train_domain)} {split}"
    return shown_name(split)


def dice_table(results: SegmentationResults) -> Grid:
    """Table C6: every set on every split, beside the paper's numbers; the best of a split is marked."""
    rows: list[list[Words]] = []
    means = np.array([[cell(results, name, split).mean for split in results.splits] for name in results.sets])
    for name in results.sets:
        cells: list[Words] = [name, *(_cell(cell(results, name, split)) for split in results.splits)]
        printed = next((numbers for letter, numbers in PAPER.items() if results.role(letter) == name), None)
        cells += ["–"] * 3 if printed is None else [f"{mean:.2f} ± {sd}" for mean, sd in printed]
        rows.append(cells)
    best = [(int(np.nanargmax(column)), 1 + j) for j, column in enumerate(means.T) if np.isfinite(column).any()]
    return Grid(
        ["set", *(split_name(results, split) for split in results.splits), "T1 train", "T1 test", "T1ρ"],
        rows,
        groups=[("", 1), ("this study", len(results.splits)), ("the paper (jacobs2025 Table 1)", 3)],
        best=best if len(results.sets) > 1 else (),
    )


def _cell(of: Cell) -> Markup:
    if not of.runs:
        return Markup("–")
    low, high = of.images
    spread = f" ± {number(of.sd_folds, 3)}" if of.folds > 1 else ""
    text = Markup("{}{}").format(number(of.mean, 3), spread)
    if of.runs > 1:
        text += Markup("<small>SD over runs {}</small>").format(number(of.sd_runs, 3))
    images = str(low) if low == high else f"{low}–{high}"
    return text + Markup("<small>{} run{} · {} images</small>").format(of.runs, "s" if of.runs > 1 else "", images)


def gap_table(results: SegmentationResults) -> Grid:
    """Every set's gap to every domain, and how much of the baseline's it closes."""
    rows: list[list[Words]] = []
    for domain in results.domains:
        for name in _trained(results):
            lost = gap(results, name, domain)
            cells: list[Words] = [shown_name(domain), name]
            cells += [number(cell(results, name, split).mean, 3) for split in (TEST, domain)]
            cells += [_with(lost.crossed), _interval(lost.over_runs), _interval(lost.over_folds)]
            if name == results.baseline:
                cells.append("baseline")
            else:
                closed = closure(results, name, domain)
                value = Interval(100 * closed.value, 100 * closed.low, 100 * closed.high)
                cells.append(_with(value, 2))
            rows.append(cells)
    return Grid(
        [
            "domain", "set", "Dice, test", "Dice, domain", "gap, crossed interval", "t over runs", "t over folds",
            "closes of the baseline's gap [%]",
        ],
        rows,
        names=2,
    )  # fmt: skip


def difference_table(results: SegmentationResults) -> Grid:
    """Every pair of sets in every domain."""
    rows: list[list[Words]] = []
    for domain in results.domains:
        for other, name in combinations(_trained(results), 2):
            found: Compared = difference(results, name, other, domain)
            rows.append(
                [
                    *(shown_name(domain), f"{name} − {other}", signed(found.value)),
                    *(_interval(each) for each in (found.crossed, found.over_runs, found.over_folds)),
                    f"{found.favour} of {found.runs}",
                ]
            )
    heads = ["domain", "difference of Dice", "mean", "crossed", "t over runs", "t over folds", "pairs in favour"]
    return Grid(heads, rows, names=2, groups=[("", 3), ("95 % intervals", 3), ("", 1)])


def rank_table(results: SegmentationResults) -> Grid:
    """Rank correlation of every score with Dice, and the Dice of ensembles beside that of single networks."""
    rows: list[list[Words]] = []
    for split in (TEST, *results.domains):
        for name in results.sets:
            of = ensembles_of(results, name, split)
            if not of:
                continue
            dice = float(np.mean([each.dice.mean() for each in of]))
            single = cell(results, name, split).mean
            cells: list[Words] = [split_name(results, split), name, str(images_of(of))]
            cells += [number(single, 3), number(dice, 3)]
            for score in SCORES:
                found = followed(results, name, split, score)
                if found is None or not np.isfinite(found.mean.value):
                    cells.append("–")
                    continue
                averaged = f"averaged {number(found.averaged.value)}{ends(found.averaged.low, found.averaged.high)}"
                cells.append(_with(found.mean, 2) + Markup("<small>{}</small>").format(averaged))
            rows.append(cells)
    return Grid(
        ["images", "set", "n", "single network", "ensemble", *(SCORE_WORDS[score] for score in SCORES)],
        rows,
        names=2,
        groups=[("", 3), ("mean Dice", 2), ("Spearman ρ with the ensemble's Dice", len(SCORES))],
    )


def _trained(results: SegmentationResults) -> list[str]:
    return [name for name in results.sets if results.of_set(name)]


def _with(of: Interval, digits: int = 3) -> Markup:
    """A value with its interval below."""
    text = Markup("{}").format(number(of.value, digits))
    if np.isfinite(of.low):
        text += Markup("<small>{} to {}</small>").format(number(of.low, digits), number(of.high, digits))
    return text


def _interval(of: Interval) -> str:
    return f"{number(of.low, 3)} to {number(of.high, 3)}" if np.isfinite(of.low) else "–"
