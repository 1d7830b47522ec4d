"""Tables 2 to 5 of huang2022 with the figures found here, and the order of both; what both papers' tables share."""

import re
from collections.abc import Sequence

from qsim.evaluation.pages.cohort_order import cell, known, mean, order_sentence, ratio, smallest
from qsim.evaluation.pages.cohort_published import (
    ABLATION_2022,
    INPUTS_2022,
    METHODS_2022,
    REGIONS_2022,
    Printed,
)
from qsim.evaluation.pages.content import plain
from qsim.evaluation.pages.heat_report import Block, Grid, Points, Section, Text, Words
from qsim.evaluation.studies.cohort_results import ALL_IMAGES, CohortResults

TWO_POINT = "two-point"
CONSTANT = "population-constant"
WEIGHTS = re.compile(r"weights ([\d.]+)/([\d.]+)")
# a method that learned from a corrupted contrast: its name, what was done
CORRUPTED = re.compile(r"(.+), (T2 (?:x\d+|motion))")
REFERENCES = {"truth": "truth", "fit": "fit of all images"}
_STEPS = {"baseline", "baseline + epistemic", "baseline + aleatoric"}


def against(results: CohortResults) -> list[str]:
    """What errors of this study are held against: the truth first, where there is one."""
    return [name for name in REFERENCES if any(figure.metric == f"rmae_{name}" for figure in results.values)]


def unperturbed(results: CohortResults) -> list[str]:
    """Methods without those whose training was disturbed or weighed by hand."""
    return [name for name in results.methods if not (WEIGHTS.fullmatch(name) or CORRUPTED.fullmatch(name))]


def single_sections(results: CohortResults) -> list[Section]:
    """The tables of huang2022, without those that hold nothing."""
    found = [part(results) for part in (_methods_2022, _inputs_2022, _ablation_2022)]
    return [section for section in found if section is not None]


def table(
    results: CohortResults, methods: Sequence[str], parameters: Sequence[str], printed: Printed
) -> tuple[Grid, list[Words]]:
    """RMAE of every parameter beside the paper's, and the sentences about the order."""
    kinds = against(results)
    lines: list[list[Words]] = [[name] for name in methods]
    columns: dict[int, list[float]] = {}
    heads: list[Words] = ["method"]
    groups: list[tuple[Words, int]] = [("", 1)]
    said: list[Words] = []
    for parameter in parameters:
        paper = printed.column(parameter)
        for kind in kinds:
            here = {name: results.get(name, parameter, f"rmae_{kind}") for name in methods}
            if kind == kinds[0]:
                columns[len(heads)] = [mean(here[name]) for name in methods]
            heads.append(f"against {REFERENCES[kind]}")
            for line, name in zip(lines, methods, strict=True):
                line.append(cell(here[name]))
            label = f"{plain(parameter)}, RMAE against {REFERENCES[kind]} [{printed.unit}]"
            said.append(order_sentence(here, paper, label, results.runs))
        heads.append("paper, against fit")
        for line, name in zip(lines, methods, strict=True):
            line.append(f"{paper[name]:.2f}" if name in paper else "–")
        groups.append((f"RMAE of {plain(parameter)} [ms]", len(kinds) + 1))
    return Grid(heads, lines, groups=groups, best=smallest(columns)), said


def with_errors(results: CohortResults, methods: Sequence[str]) -> list[str]:
    """Those that have an error."""
    kinds = against(results)
    return [
        name
        for name in methods
        if any(known(results.get(name, p, f"rmae_{kind}")) for p in results.parameters for kind in kinds)
    ]


def caption_of(results: CohortResults, printed: Printed) -> Text:
    best = REFERENCES[against(results)[0]]
    return Text(
        f"ROI, mean over the inputs. Second line: ± half-width of the 95 % interval over runs (number of runs). "
        f"Marked: smallest against {best}. Paper: {printed.source}; one number, no interval.",
        soft=True,
    )


def _methods_2022(results: CohortResults) -> Section | None:
    others = [name for name in unperturbed(results) if name not in METHODS_2022.numbers and name not in _STEPS]
    methods = with_errors(results, [*(n for n in METHODS_2022.numbers if n in results.methods), *others])
    if len(methods) < 2:
        return None
    grid, said = table(results, methods, results.parameters, METHODS_2022)
    return Section("Methods (huang2022 Table 2)", [grid, caption_of(results, METHODS_2022), Points(said)])


def _ablation_2022(results: CohortResults) -> Section | None:
    methods = with_errors(results, [name for name in ABLATION_2022.numbers if name in results.methods])
    if len(methods) < 2:
        return None
    grid, said = table(results, methods, results.parameters, ABLATION_2022)
    return Section("Ablation (huang2022 Table 4)", [grid, caption_of(results, ABLATION_2022), Points(said)])


def second(shown: str) -> str:
    """The second time of an input, as the paper's columns are named; empty if there is none."""
    times = re.findall(r"\d+(?:\.\d+)?", shown)
    return f"{float(times[1]):g}" if len(times) > 1 else ""


def _inputs_2022(results: CohortResults) -> Section | None:
    kinds = against(results)
    parameter = results.parameters[0]
    if len(results.inputs) < 2:
        return None
    methods = [n for n in with_errors(results, unperturbed(results)) if n not in _STEPS]
    methods = [n for n in methods if not known(results.get(n, parameter, f"rmae_{kinds[0]}", shown=ALL_IMAGES))]
    if not methods:
        return None
    beside = TWO_POINT in methods
    heads: list[Words] = ["method"]
    lines: list[list[Words]] = [[name] for name in methods]
    groups: list[tuple[Words, int]] = [("", 1)]
    columns: dict[int, list[float]] = {}
    said: list[Words] = []
    for shown in results.inputs:
        start = len(heads)
        paper = INPUTS_2022.column(second(shown))
        for kind in kinds:
            here = {name: results.get(name, parameter, f"rmae_{kind}", shown=shown) for name in methods}
            if kind == kinds[0]:
                columns[len(heads)] = [mean(here[name]) for name in methods]
            heads.append(f"{kind} [ms]")
            for line, name in zip(lines, methods, strict=True):
                line.append(cell(here[name]))
            if beside and kind == kinds[0]:
                heads.append("/ two-point")
                for line, name in zip(lines, methods, strict=True):
                    line.append(cell(ratio(here[name], here[TWO_POINT], results.runs)))
            if paper:
                label = f"Input {shown}, RMAE against {REFERENCES[kind]} [ms]"
                said.append(order_sentence(here, paper, label, results.runs))
        if paper:
            heads.append("paper [ms]")
            for line, name in zip(lines, methods, strict=True):
                line.append(f"{paper[name]:.2f}" if name in paper else "–")
        groups.append((f"input {shown}", len(heads) - start))
    caption = (
        "RMAE in the ROI by input, against truth or the fit of all images, and the ratio of the first of them to that "
        "of the limited two-point estimate of the same images, each run for itself. Second line: ± half-width of the "
        f"95 % interval over runs (number of runs). Paper: {INPUTS_2022.source}, against its fit, which shares the "
        "noise of the input images: its two-point estimate of the longest time is held against a fit that hangs on the "
        "same two images."
    )
    blocks: list[Block] = [Grid(heads, lines, groups=groups, best=smallest(columns)), Text(caption, soft=True)]
    blocks += [Points(said)] if said else []
    return Section("By input (huang2022 Table 3)", blocks)


def region_blocks(results: CohortResults, parameter: str, methods: Sequence[str]) -> list[Block]:
    """Mean uncertainty by region, beside huang2022 Table 5."""
    regions = [r for r in ("left", "right", "inside", "outside") if any(
        known(results.get(m, parameter, "sd_mean", r)) for m in methods
    )]  # fmt: skip
    if not regions:
        return []
    paper = REGIONS_2022.numbers["proposed"]
    lines: list[list[Words]] = [
        [name, *(cell(results.get(name, parameter, "sd_mean", region)) for region in regions)] for name in methods
    ]
    printed = parameter == "T1RHO"
    if printed:
        lines.append([f"paper, proposed [{REGIONS_2022.unit}]", *(f"{paper[region]:.2f}" for region in regions)])
    heads = ["method", *(f"{r} half [ms]" if r in ("left", "right") else f"{r} the ROI [ms]" for r in regions)]
    caption = (
        "Mean total SD; halves of the body as the image shows them. Second line: ± half-width of the 95 % interval "
        "over runs (number of runs)."
    )
    if printed:
        caption += (
            f" Paper: {REGIONS_2022.source}, whose unit is its own: variances of the signal and of the map are added "
            "(Eq. 9), so that only the order of the regions compares."
        )
    blocks: list[Block] = [Grid(heads, lines), Text(caption, soft=True)]
    if printed:
        said: list[Words] = []
        for name in methods:
            here = {region: results.get(name, parameter, "sd_mean", region) for region in regions}
            said.append(order_sentence(here, paper, f"{name}, mean total SD [ms]", results.runs))
        blocks.append(Points(said))
    return blocks
