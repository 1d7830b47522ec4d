"""The page of a `test_retest` study: how well repeats agree, whether at the price of bias or of sharp boundaries."""

from math import exp, isfinite

import numpy as np
from markupsafe import Markup

from qsim.evaluation.metrics import PERCENTILES
from qsim.evaluation.pages.content import plain, title
from qsim.evaluation.pages.heat_report import Block, Grid, Heading, Picture, Section, Text, Words
from qsim.evaluation.pages.sharpness_figures import examples_figure, profiles_figure, widths_figure
from qsim.evaluation.pages.summary import number
from qsim.evaluation.pages.test_retest_content import Retest, in_pairs, labelled, p_value
from qsim.evaluation.pages.test_retest_figures import agreement_figure, bland_altman_figure, map_figure, slice_of
from qsim.evaluation.pages.test_retest_paper import beside_the_paper
from qsim.evaluation.repeatability import expected_cv
from qsim.evaluation.studies.boundary_sharpness import NOISY, TRUTH, Sharp
from qsim.evaluation.studies.test_retest_table import EVERYWHERE, Repeats
from qsim.evaluation.table import Row


def sections(about: Retest) -> list[Section]:
    """Figures and tables, one SNR after the other, then the paper's figures."""
    parts = []
    for setting in about.firsts:
        sharp = next((s for s in about.sharp if f"{s.snr:g}" == f"{setting.snr:g}"), None)
        name = f"SNR {setting.snr:g} (σ {setting.sigma:.3g})" if isfinite(setting.snr) else "The scans"
        parts.append(Section(name, [*_repeatability(about, setting, sharp), *_agreement(about, setting)]))
        if sharp is not None:
            at = f", SNR {setting.snr:g}" if isfinite(setting.snr) else ""
            parts.append(
                Section(f"Sharpness of the {about.sides.lower()} boundary{at}", _sharpness(about, setting, sharp))
            )
    if not about.sharp:
        parts.append(Section("Sharpness", [Text(f"The {about.sides.lower()} boundary: {about.no_sharpness}.")]))
    parts.append(Section("Beside the paper", beside_the_paper(
        about.found, [s.snr for s in about.firsts], about.methods, about.networks, about.reference, about.parameter,
        twin=about.twin,
    )))  # fmt: skip
    return parts


def _repeatability(about: Retest, setting: Repeats, sharp: Sharp | None) -> list[Block]:
    symbol = plain(about.parameter)
    at = slice_of(setting, sharp.placed.at if sharp else None)
    names = list(setting.bounds)
    shown = next((n for n in ("shared", "free") if n in names), names[0] if names else "")
    caption = (
        f"Above: {symbol} of the first scan. Below: CV over the {about.repeats} scans of each voxel; all on one scale, "
        "dark where a method gives no value."
    )
    labels = labelled(setting) is not None
    which = "labelled voxels" if labels else "voxels of the mask"
    if labels:
        caption += " The scales are those of the labelled voxels."
    if about.twin:
        caption += " Leftmost: the truth, and the CV that the Cramér-Rao bound allows an unbiased method."
    if about.repeats == 2:
        caption += (
            " Of two scans the CV of a voxel is |difference| / √2 / mean: it scatters by itself, whatever the method."
        )
    return [
        Picture(map_figure(setting, about.parameter, at, shown), "maps of the first scan, and of the CV over scans"),
        Text(caption, soft=True),
        Heading("Repeatability"),
        _table(about, setting.snr),
        Text(_reading(about), soft=True),
        Heading("Bland–Altman, second scan against first"),
        Picture(bland_altman_figure(setting), "difference of two scans over their mean, every voxel"),
        Text(
            f"All {which}{_of_first(about)}, per hexagon on a logarithmic scale. Solid: mean difference; "
            "dashed: limits of agreement, mean ∓ 1.96 SD, with their 95 % intervals as bands. Differences do not "
            "spread alike over the range of values: the limits of each tissue, in the table, are the ones to use.",
            soft=True,
        ),
    ]


def _reading(about: Retest) -> str:
    text = (
        f"CV: SD over scans / mean of each voxel, median and mean over voxels; the mean of {about.repeats} scans reads "
        f"{expected_cv(about.repeats):.2f} of the true CV. wCV: root of the mean squared CV, which does not, and which "
        "a few voxels at a bound of the search can carry: the median shows the others. "
        "RC: two scans of a voxel differ by less in 95 % of cases. ICC(A,1): share of the variance that is between "
        "voxels; small within a tissue that hardly varies, however well it repeats. Intervals are 95 %: "
    )
    draws = len({s.draw for s in about.settings})
    text += (
        f"over {draws} draws" + (", wide because these are few." if draws < 6 else ".")
        if draws > 1
        else "voxels taken as independent, too narrow where a method or the images mix neighbours."
    )
    if about.twin:
        text += (
            " bound: wCV that the Cramér-Rao bound allows for what the method knows. Bias and RMSE are against truth "
            "(the majority tissue's, in voxels that hold several): a method may repeat its own bias perfectly."
        )
    return text


def _table(about: Retest, snr: float) -> Grid:
    lines: list[list[Words]] = []
    best = set()
    lost = any(about.found.value(m, r, snr, "failed") > 0 for m in about.methods for r in about.regions)
    for region in about.regions:
        start = len(lines)
        for method in about.methods:

            def row(metric: str) -> Row | None:
                return about.found.get(method, region, snr, metric)  # noqa: B023  used before the next method

            def value(metric: str, factor: float = 1.0) -> str:
                found = row(metric)
                return "–" if found is None else number(factor * found.value)

            def ranged(metric: str, factor: float = 1.0, digits: int = 2) -> Words:
                found = row(metric)
                if found is None or not isfinite(found.value):
                    return "–"
                low, high = factor * found.low, factor * found.high
                text = number(factor * found.value, digits)
                if not (isfinite(low) and isfinite(high)):
                    return text
                return Markup("{}<small>{} to {}</small>").format(text, number(low, digits), number(high, digits))

            cells: list[Words] = [_region(region), method, str(row("within_cv").n) if row("within_cv") else "–"]  # type: ignore[union-attr]
            cells += [value("cv_median"), value("cv_mean"), ranged("within_cv")]
            if about.twin:
                cells.append(number(about.bound(method, region, snr)))
            cells += [ranged("repeatability_coefficient", 1e3), ranged("icc", 1.0, 3), ranged("difference", 1e3)]
            cells.append(f"{value('limit_low', 1e3)} to {value('limit_high', 1e3)}")
            if about.twin:
                cells += [value("bias_mean"), value("rmse")]
            if lost:
                cells.append(value("failed"))
            lines.append(cells)
        own = [about.found.value(m, region, snr, "within_cv") for m in about.methods]
        if len(own) > 1 and np.isfinite(own).any():
            best.add((start + int(np.nanargmin(own)), 5))
    heads = ["tissue", "method", "voxels", "median", "mean", "wCV [%]"]
    heads += ["bound [%]"] if about.twin else []
    heads += ["RC [ms]", "ICC", "mean [ms]", "limits [ms]"]
    heads += ["bias [%]", "RMSE [%]"] if about.twin else []
    heads += ["no value [%]"] if lost else []
    groups = [("", 3), ("CV [%]", 2), ("", 3 + about.twin), ("second − first", 2)]
    groups += [("against truth", 2)] if about.twin else []
    groups += [("", 1)] if lost else []
    return Grid(heads, lines, names=2, groups=groups, best=best)


def _of_first(about: Retest) -> str:
    return " of the first draw" if len({s.draw for s in about.settings}) > 1 else ""


def _region(region: str) -> str:
    return "all voxels" if region == EVERYWHERE else title(region)


def _agreement(about: Retest, setting: Repeats) -> list[Block]:
    others = [m for m in about.methods if m != about.reference]
    if not others:
        return []
    lines: list[list[Words]] = []
    for region in about.regions:
        for method in others:
            row = about.found.get(method, region, setting.snr, "reference_difference")
            if row is None:
                continue

            def value(metric: str, factor: float = 1e3, digits: int = 2) -> str:
                name = f"reference_{metric}"
                return number(factor * about.found.value(method, region, setting.snr, name), digits)  # noqa: B023

            limits = f"{value('limit_low')} to {value('limit_high')}"
            lines.append(
                [_region(region), method, str(row.n), value("difference"), limits, value("concordance", 1.0, 3)]
            )
    heads = ["tissue", "method", "voxels", "mean difference [ms]", "limits of agreement [ms]", "Lin's concordance"]
    return [
        Heading(f"Agreement with {about.reference}"),
        Picture(agreement_figure(setting, about.reference), "each method over the reference, every voxel"),
        Text(
            f"First scan{_of_first(about)}, all voxels of the mask, per hexagon on a logarithmic scale; the line is "
            "identity. Both maps come from the same images, so their errors go together: agreement with a reference "
            "is not accuracy.",
            soft=True,
        ),
        Grid(heads, lines, names=2),
    ]


def _sharpness(about: Retest, setting: Repeats, sharp: Sharp) -> list[Block]:
    picture = sharp.placed.cut(setting.placed(setting.maps[about.reference][0].astype(np.float64)))
    low, high = (float(np.nanpercentile(picture, p)) for p in (PERCENTILES[0], PERCENTILES[-1]))
    blocks: list[Block] = [
        Picture(
            profiles_figure(picture, sharp.first.profiles, about.parameter, "s", low, high, sharp.placed.spacing_mm),
            "profiles on the map of the reference",
        ),
        Picture(examples_figure(sharp.first, about.symbol, "s"), "samples and sigmoids along profiles"),
        Picture(widths_figure(sharp.together), "widths of all profiles by method"),
    ]
    lines: list[list[Words]] = []
    for test, slope in zip(sharp.tests, sharp.slopes, strict=True):
        ratio, least, most = (number(exp(v), 3) for v in (test.difference, test.low, test.high))
        interval = Markup("{}<small>{} to {}</small>").format(ratio, least, most)
        lines.append(
            [
                f"{test.first} / {test.second}",
                str(test.n),
                interval if isfinite(test.low) else ratio,
                p_value(test.p).removeprefix("= "),
                p_value(test.p_holm).removeprefix("= "),
                number(slope.difference),
                p_value(slope.p).removeprefix("= "),
            ]
        )
    widths = [
        [
            name,
            str(sharp.widths(name).size),
            number(_median(sharp.widths(name))),
            number(_median(sharp.slope_values(name))),
            number(sharp.noise(name)),
        ]
        for name in sharp.fits
    ]
    blocks += [
        Grid(["method", "profiles", "median width [mm]", "median slope ν [1/mm]", "noise / step"], widths),
        Grid(
            ["methods", "pairs", "ratio of widths (95 %)", "p", "p, Holm", "difference of slopes ν [1/mm]", "p"],
            lines,
            groups=[("", 2), ("paired t-test of log widths", 3), ("of slopes, as in the paper", 2)],
        ),
        Text(
            f"{sharp.together.describe()}. {sharp.offered} were placed, by the labels alone and at random, in one "
            f"slice{' of each draw' if about.twin else ''}, perpendicular to the boundary; width from 10 to 90 % of "
            "the sigmoid, in the map of one scan; noise / step: of the residuals of the fits, median. "
            "Noise makes single widths uncertain and, by fits that follow it, some too narrow: a method of little "
            "noise is not blurred because a noisy one has narrower fits."
            + (
                f" “{TRUTH}” is the true map of majority tissues, whose steps are as narrow as voxels; partial volume, "
                "where the twin has it, blurs what any method can see."
                if TRUTH in sharp.fits
                else ""
            ),
            soft=True,
        ),
    ]
    if sharp.unlike:
        blocks.append(
            Text(
                f"Noise over step differs in {in_pairs(sharp.unlike)} and is above {NOISY:g} for one of them: along "
                "profiles this short the noisy map then looks sharper than it is, by widths and more so by slopes. "
                "A p-value of such a pair does not tell blur from noise."
            )
        )
    return blocks


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if values.size else float("nan")
