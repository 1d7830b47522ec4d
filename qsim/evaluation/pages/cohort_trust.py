"""Whether the stated uncertainty can be trusted: order of voxels, coverage, regions, noise, unseen structures."""

from collections.abc import Sequence

import numpy as np

from qsim.evaluation.metrics import over_draws
from qsim.evaluation.pages.cohort_figures import (
    before_after_figure,
    noise_figure,
    sparsification_figure,
    uncertainty_figure,
)
from qsim.evaluation.pages.cohort_order import Runs, cell, known, mean, ratio, smallest, spread
from qsim.evaluation.pages.cohort_papers import against, region_blocks
from qsim.evaluation.pages.content import plain
from qsim.evaluation.pages.heat_report import Block, Grid, Heading, Picture, Section, Text, Words
from qsim.evaluation.studies.cohort_results import CohortResults

CALIBRATED = "calibrated"
_RANKED = {"roi": "ROI", "body": "body"}
_INTERVAL = "Second line: ± half-width of the 95 % interval over runs (number of runs)."


def uncertain(results: CohortResults, parameter: str) -> list[str]:
    """Methods that state an SD."""
    return [m for m in results.methods if any(known(results.get(m, parameter, "sd_mean", r)) for r in ("roi", "body"))]


def noise_levels(results: CohortResults) -> list[float]:
    """SNRs at which noise was added, the lowest first."""
    return sorted({float(f.condition.split()[1]) for f in results.values if f.condition.startswith("snr ")})


def perturbed(results: CohortResults) -> list[str]:
    """What was put into images, besides noise."""
    conditions = dict.fromkeys(f.condition for f in results.values)
    other = [c for c in conditions if c not in ("plain", CALIBRATED) and not c.startswith("snr ")]
    return [c for c in other if not c.endswith(" before")]


def trust_sections(results: CohortResults) -> list[Section]:
    """All of them for every parameter; without those that hold nothing."""
    parts = []
    for parameter in results.parameters:
        methods = uncertain(results, parameter)
        of = f", {plain(parameter)}" if len(results.parameters) > 1 else ""
        named = (
            ("Does the uncertainty find the errors? (huang2022 Fig. 6)", _sparsification(results, parameter)),
            ("Coverage, width and score", _calibration(results, parameter, methods)),
            ("Uncertainty by region (huang2022 Table 5)", region_blocks(results, parameter, methods)),
            ("Maps of the uncertainty (huang2022 Fig. 7)", _maps(results, parameter)),
            ("Uncertainty and noise (huang2022 Fig. 8)", _noise(results, parameter, methods)),
            ("Structures never seen (huang2022 Figs. 9 and 10)", _structures(results, parameter)),
        )
        parts += [Section(name + of, blocks) for name, blocks in named if blocks]
    return parts


def _sparsification(results: CohortResults, parameter: str) -> list[Block]:
    curves = {m: results.curves[m, parameter] for m in results.methods if (m, parameter) in results.curves}
    if not curves:
        return []
    kind = against(results)[0]
    ratios = {m: spread(results.get(m, parameter, f"ause_ratio_{kind}")) for m in curves}
    text = (
        "Mean |error| of the voxels of the ROI that are left when the most uncertain are taken out in steps of 5 %, "
        "all runs together. AUSE ratio, mean ± half-width of the 95 % interval over runs: area between the curve "
        "and the oracle's over that between the random curve and the oracle's. 0: voxels stand in the order of their "
        "errors; 1: the order says nothing."
    )
    source = sparsification_figure(curves, parameter, ratios)
    return [Picture(source, "error of the voxels left over the share taken out"), Text(text, soft=True)]


def _calibration(results: CohortResults, parameter: str, methods: Sequence[str]) -> list[Block]:
    if not methods:
        return []
    kind = against(results)[0]
    after = any(figure.condition == CALIBRATED for figure in results.values)
    twice = [""] + ([CALIBRATED] if after else [])
    heads: list[Words] = ["region", "method", "Spearman [1]", "AUSE ratio [1]"]
    groups: list[tuple[Words, int]] = [("", 2), ("order of the voxels", 2)]
    for text in ("coverage [%]", "median width [ms]"):
        heads += ["as stated", "calibrated"][: len(twice)]
        groups.append((text, len(twice)))
    heads += [*["as stated", "calibrated"][: len(twice)], "one width"]
    groups.append(("CRPS [ms]", len(twice) + 1))
    lines: list[list[Words]] = []
    best: set[tuple[int, int]] = set()
    for region, title in _RANKED.items():
        first = len(lines)
        sizes: dict[int, list[float]] = {3: []}
        for name in methods:

            def runs(metric: str, condition: str = "") -> Runs:
                return results.get(name, parameter, metric, region, condition=condition or "plain")  # noqa: B023

            line: list[Words] = [title, name, cell(runs(f"spearman_{kind}")), cell(runs(f"ause_ratio_{kind}"))]
            line += [cell(runs(f"coverage_95_{kind}", c), 100.0) for c in twice]
            line += [cell(runs("width_median", c)) for c in twice]
            sizes[3].append(mean(runs(f"ause_ratio_{kind}")))
            for condition in twice:
                sizes.setdefault(len(line), []).append(mean(runs(f"crps_{kind}", condition)))
                line.append(cell(runs(f"crps_{kind}", condition)))
            line.append(cell(runs(f"crps_constant_{kind}")))
            lines.append(line)
        best |= {(first + row, column) for row, column in smallest(sizes)}
    text = (
        f"Total SD against |estimate − {kind}|, mean over the inputs. Coverage: share of voxels within 1.96 SD, 95 % "
        "if the SD are honest; width: of that interval. One width: CRPS of the single SD that is best for all voxels "
        "together, chosen with the errors known. "
    )
    text += "Calibrated: SD times their factor, found on subjects held out of the training. " if after else ""
    blocks: list[Block] = [Grid(heads, lines, names=2, groups=groups, best=best), Text(f"{text}{_INTERVAL}", soft=True)]
    thirds = _thirds(results, parameter, methods, kind, CALIBRATED if after else "plain")
    return [*blocks, *thirds]


def _thirds(results: CohortResults, parameter: str, methods: Sequence[str], kind: str, condition: str) -> list[Block]:
    """Coverage where the errors are small, middling and large."""
    lines: list[list[Words]] = []
    for region, title in _RANKED.items():
        for name in methods:
            held = [
                results.get(name, parameter, f"coverage_95_tercile_{i}_{kind}", region, condition=condition)
                for i in (1, 2, 3)
            ]
            if any(known(each) for each in held):
                lines.append([title, name, *(cell(each, 100.0) for each in held)])
    if not lines:
        return []
    heads = ["region", "method", "smallest errors [%]", "middle [%]", "largest errors [%]"]
    when = "calibrated SD" if condition == CALIBRATED else "SD as stated"
    return [Heading(f"Coverage by tercile of |error|, {when}"), Grid(heads, lines, names=2), Text(_INTERVAL, soft=True)]


def _maps(results: CohortResults, parameter: str) -> list[Block]:
    maps = results.maps.get(("plain", parameter))
    if maps is None or not any("aleatoric" in m or "epistemic" in m for m in maps.methods.values()):
        return []
    text = (
        "SD as stated, each column on one scale; light: at or beyond its end; dark blue-grey: no value. White outline: "
        "ROI. The paper scales each map to 0 to 1, so that sizes cannot be read from it."
    )
    source = uncertainty_figure(maps, parameter, results.methods)
    return [Picture(source, "error, aleatoric and epistemic SD side by side"), Text(text, soft=True)]


def _noise(results: CohortResults, parameter: str, methods: Sequence[str]) -> list[Block]:
    levels = noise_levels(results)
    if not levels:
        return []

    def runs(name: str, region: str, snr: float) -> Runs:
        return results.get(name, parameter, "sd_mean", region, condition=f"snr {snr:g}")

    lines: list[list[Words]] = []
    panels = {}
    for region, title in _RANKED.items():
        drawn = {
            name: {snr: over_draws(runs(name, region, snr)) for snr in levels if known(runs(name, region, snr))}
            for name in methods
        }
        drawn = {name: held for name, held in drawn.items() if held}
        if not drawn:
            continue
        panels[title] = drawn
        for name, held in drawn.items():
            means = [held[snr].value for snr in sorted(held)]
            falls = "–" if len(means) < 2 else "yes" if bool(np.all(np.diff(means) < 0)) else "no"
            lines.append([title, name, *(cell(runs(name, region, snr)) for snr in levels), falls])
    if not lines:
        return []
    heads = ["region", "method", *(f"SNR {snr:g} [ms]" for snr in levels), "falls at every step"]
    text = f"Mean total SD with Gaussian noise added to the images. Bars: 95 % interval over runs. {_INTERVAL}"
    source = noise_figure(panels, parameter)
    return [Picture(source, "mean total SD over SNR"), Grid(heads, lines, names=2), Text(text, soft=True)]


def epistemic(results: CohortResults, name: str, parameter: str, region: str, condition: str) -> Runs:
    return results.get(name, parameter, "sd_mean_epistemic", region, condition=condition)


def region_of(results: CohortResults, what: str) -> str:
    """Where something was put: the region of its own name if there is one, else the ROI."""
    return what if any(f.condition == what and f.region == what for f in results.values) else "roi"


def _structures(results: CohortResults, parameter: str) -> list[Block]:
    lines: list[list[Words]] = []
    blocks: list[Block] = []
    for what in perturbed(results):
        region = region_of(results, what)
        for name in results.methods:
            now = epistemic(results, name, parameter, region, what)
            if not known(now):
                continue
            before = epistemic(results, name, parameter, region, f"{what} before")
            around = epistemic(results, name, parameter, "roi", what)
            over_roi: Words = "–" if region == "roi" else cell(ratio(now, around, results.runs))
            lines.append(
                [what, region, name, cell(before), cell(now), cell(ratio(now, before, results.runs)), over_roi]
            )
        maps = results.maps.get((what, parameter))
        if maps is not None and any("epistemic" in held for held in maps.methods.values()):
            first = results.maps.get((f"{what} before", parameter))
            source = before_after_figure(first, maps, results.methods, what)
            blocks += [Heading(what.capitalize()), Picture(source, f"epistemic SD before and with the {what}")]
    if not lines and not blocks:
        return []
    heads = ["what", "region", "method", "before [ms]", "with it [ms]", "with / before", "region / rest of ROI"]
    text = f"Mean epistemic SD where the structure lies, before and with it in the images. {_INTERVAL}"
    table: list[Block] = [Grid(heads, lines, names=3), Text(text, soft=True)] if lines else []
    if blocks:
        blocks.append(Text("One scale for all maps. Outlined: where the structure lies.", soft=True))
    return [*table, *blocks]
