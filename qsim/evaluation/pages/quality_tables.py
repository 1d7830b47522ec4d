"""Tables of a `quality` study: Dice and areas under the ROC curve, intervals of volumes, measured images."""

from math import nan

import numpy as np

from qsim.evaluation.pages.heat_report import Grid, Words
from qsim.evaluation.pages.quality_figures import WORDS
from qsim.evaluation.pages.summary import number
from qsim.evaluation.studies.quality_results import ALL_KINDS, CLEAN, TOTAL, QualityResults, aucs, coverage


def dice_table(results: QualityResults, model: str, group: str) -> Grid:
    """By artefact: Dice and what of it was lost, and how well the mean variances tell clean from corrupted."""
    found = aucs(results, model, group)
    rows: list[list[Words]] = []
    figures, there = results.figures[model], results.groups[group]
    for number_of, kind in enumerate((CLEAN, *results.kinds)):
        of = there & (results.seen.kind == number_of)
        dice = figures["dice"][of]
        if not dice.size:
            continue
        own, total = (number(value) for value in found.get(kind, (nan, nan)))
        low, middle, high = (number(float(v), 3) for v in np.percentile(dice, (25, 50, 75)))
        lost = number(float(-figures["dice_change"][of].mean()), 3) if number_of else "–"
        rows.append(
            [kind, str(dice.size), number(float(dice.mean()), 3), f"{middle} ({low} to {high})", lost, own, total]
        )
    return Grid(
        ["images", "n", "mean Dice", "median (quartiles)", "mean loss", "AUC, own head", "AUC, all heads"], rows
    )


def interval_table(results: QualityResults, model: str, group: str) -> Grid:
    """By artefact: how many intervals hold the true volume, and how wide they are."""
    forms = {"paper": "paper, ± 1.96 σ", "calibrated": "calibrated"}
    each = {form: coverage(results, model, group, form) for form in forms}
    rows: list[list[Words]] = []
    for kind in (CLEAN, *results.kinds, ALL_KINDS):
        cells: list[Words] = [kind]
        for form in forms:
            one = each[form].get(kind)
            cells += ["–", "–", "–"] if one is None else [number(one.held, 3), number(one.width, 3), str(one.n)]
        rows.append(cells)
    return Grid(
        ["images", "held [%]", "width [%]", "n", "held [%]", "width [%]", "n"],
        rows,
        groups=[("", 1), *((words, 3) for words in forms.values())],
    )


def measured_table(results: QualityResults) -> Grid:
    """By measured image and artefact: means over draws."""
    rows: list[list[Words]] = []
    seen = results.seen
    for model in results.models:
        figures = results.figures[model]
        for image in np.flatnonzero(results.measured).tolist():
            for kind in range(len(results.kinds) + 1):
                of = (seen.image == image) & (seen.kind == kind)
                values = [float(figures[name][of].mean()) for name in ("dice", TOTAL, "entropy", "snr_predicted")]
                predicted = float(figures["volume_predicted"][of].mean() / figures["volume_true"][of].mean())
                rows.append(
                    [
                        *(model, results.names[image], results.kind_name(kind), str(int(of.sum()))),
                        *(number(value, 3) for value in (*values, 100 * (predicted - 1))),
                    ]
                )
    return Grid(
        ["model", "image", "artefact", "n", "Dice", WORDS[TOTAL], WORDS["entropy"], WORDS["snr_predicted"],
         "volume error [%]"],
        rows,
        names=3,
    )  # fmt: skip
