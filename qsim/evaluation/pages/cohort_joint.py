"""Tables II to IV and Fig. 3 of huang2023 with the figures found here, and the order of both."""

from collections.abc import Callable, Mapping

import numpy as np

from qsim.evaluation.metrics import over_draws
from qsim.evaluation.pages.cohort_figures import weights_figure
from qsim.evaluation.pages.cohort_order import Runs, cell, known, mean, order_sentence, ratio, smallest, spread
from qsim.evaluation.pages.cohort_papers import (
    CORRUPTED,
    REFERENCES,
    WEIGHTS,
    against,
    caption_of,
    table,
    unperturbed,
    with_errors,
)
from qsim.evaluation.pages.cohort_published import CORRUPTED_2023, METHODS_2023, SECONDS_2023
from qsim.evaluation.pages.content import plain
from qsim.evaluation.pages.heat_report import Block, Grid, Picture, Points, Section, Text, Words
from qsim.evaluation.pages.summary import number
from qsim.evaluation.studies.cohort_results import CohortResults

# CPU time of one thread
SECONDS = "cpu_seconds_per_slice"


def joint_sections(results: CohortResults) -> list[Section]:
    """The tables of huang2023, without those that hold nothing."""
    found = [part(results) for part in (_methods_2023, _weights_2023, _corrupted_2023, _seconds_2023)]
    return [section for section in found if section is not None]


def _methods_2023(results: CohortResults) -> Section | None:
    others = [name for name in unperturbed(results) if name not in METHODS_2023.numbers]
    methods = with_errors(results, [*(n for n in METHODS_2023.numbers if n in results.methods), *others])
    if len(methods) < 2:
        return None
    grid, said = table(results, methods, results.parameters, METHODS_2023)
    return Section("Methods (huang2023 Table II)", [grid, caption_of(results, METHODS_2023), Points(said)])


def manual_weights(results: CohortResults) -> dict[str, float]:
    """Methods that weigh the contrasts by hand, with the weight of the first."""
    found = {name: WEIGHTS.fullmatch(name) for name in with_errors(results, results.methods)}
    return {name: float(match[1]) for name, match in found.items() if match}


def _weights_2023(results: CohortResults) -> Section | None:
    manual = dict(sorted(manual_weights(results).items(), key=lambda item: item[1]))
    if not manual:
        return None
    kind = against(results)[0]
    learned = with_errors(results, [name for name in ("HOMOU", "HETEU") if name in results.methods])

    def error(name: str, parameter: str) -> Runs:
        return results.get(name, parameter, f"rmae_{kind}")

    picture = weights_figure(
        {p: {weight: over_draws(error(n, p)) for n, weight in manual.items()} for p in results.parameters},
        {p: {n: {0.0: over_draws(error(n, p))} for n in learned} for p in results.parameters},
        REFERENCES[kind],
    )
    names = [*manual, *learned]
    heads: list[Words] = ["method", *(f"RMAE of {plain(p)} [ms]" for p in results.parameters)]
    heads += [f"{plain(p)} / best by hand" for p in results.parameters]
    best = {p: min(manual, key=lambda name: mean(error(name, p))) for p in results.parameters}
    lines: list[list[Words]] = [
        [
            name,
            *(cell(error(name, p)) for p in results.parameters),
            *(cell(ratio(error(name, p), error(best[p], p), results.runs)) for p in results.parameters),
        ]
        for name in names
    ]
    marked = smallest({1 + i: [mean(error(n, p)) for n in names] for i, p in enumerate(results.parameters)})
    said = "; ".join(
        f"{plain(p)}: best by hand {best[p]} ({spread(error(best[p], p), 3)} ms)"
        + "".join(
            f", {name} {spread(ratio(error(name, p), error(best[p], p), results.runs), 3)} times that"
            for name in learned
        )
        for p in results.parameters
    )
    caption = (
        f"ROI, against {REFERENCES[kind]}, mean over the inputs; bars, bands and second lines: 95 % interval over runs "
        "(number of runs). weights a/b: a of the images of the first contrast, b of the other; each parameter is held "
        "against its own best weights, which no single choice need reach together. The paper prints no numbers of its "
        "Fig. 3."
    )
    blocks: list[Block] = [
        Picture(picture, "RMAE over the weight of the spin-lock images, with learned weights as lines"),
        Grid(heads, lines, best=marked),
        Text(caption, soft=True),
        Text(f"{said}."),
    ]
    return Section("Weights by hand and learned ones (huang2023 Fig. 3)", blocks)


def corrupted(results: CohortResults) -> dict[str, dict[str, str]]:
    """By what was done, the name of each method that learned from it, by the method's plain name."""
    found: dict[str, dict[str, str]] = {}
    for name in with_errors(results, results.methods):
        if match := CORRUPTED.fullmatch(name):
            found.setdefault(match[2], {})[match[1]] = name
    return found


def _corrupted_2023(results: CohortResults) -> Section | None:
    done = corrupted(results)
    if not done:
        return None
    kind, changed = against(results)[0], _change(results, against(results)[0])
    heads: list[Words] = ["in the loss", "method"]
    groups: list[tuple[Words, int]] = [("", 2)]
    for p in results.parameters:
        kinds = against(results)
        heads += [f"against {REFERENCES[one]} [ms]" for one in kinds]
        heads += [f"change, {kind} [%]", "paper, fit [ms]", "change, paper [%]"]
        groups.append((f"RMAE of {plain(p)}", len(kinds) + 3))
    lines: list[list[Words]] = []
    best: set[tuple[int, int]] = set()
    said: list[Words] = []
    for what, methods in done.items():
        printed = CORRUPTED_2023.get(what)
        first = len(lines)
        for base, name in methods.items():
            line: list[Words] = [what, base]
            for p in results.parameters:
                line += [cell(results.get(name, p, f"rmae_{one}")) for one in against(results)]
                paper = printed.numbers.get(base, {}).get(p) if printed else None
                before = METHODS_2023.numbers.get(base, {}).get(p)
                theirs = number(100 * (paper / before - 1)) if paper and before else "–"
                line += [cell(changed(base, name, p), digits=2), f"{paper:.2f}" if paper else "–", theirs]
            lines.append(line)
        for i, p in enumerate(results.parameters):
            errors = [mean(results.get(name, p, f"rmae_{kind}")) for name in methods.values()]
            column = 2 + i * (len(against(results)) + 3)
            best |= {(first + row, at) for row, at in smallest({column: errors})}
            if printed and (theirs_all := printed.column(p)):
                here = {base: results.get(name, p, f"rmae_{kind}") for base, name in methods.items()}
                label = f"{what}, {plain(p)}, RMAE against {REFERENCES[kind]} [ms]"
                said.append(order_sentence(here, theirs_all, label, results.runs))
    caption = (
        "What was done to the images of T2 in the loss alone; the images that the networks see are as they were. "
        "Change: against the same method with nothing done, each run for itself. ROI, mean over the inputs. "
        "Second line: ± half-width of the 95 % interval over runs (number of runs). Marked: smallest of its kind. "
        "Paper: huang2023 Tables II and III; it leaves out T2 under motion."
    )
    grid = Grid(heads, lines, names=2, groups=groups, best=best)
    return Section(
        "A disturbed contrast in the loss (huang2023 Table III)", [grid, Text(caption, soft=True), Points(said)]
    )


def _change(results: CohortResults, kind: str) -> Callable[[str, str, str], Runs]:
    """By how much the RMAE of a method grew over its undisturbed one's, run by run [%]."""

    def changed(base: str, name: str, parameter: str) -> Runs:
        before = results.get(base, parameter, f"rmae_{kind}")
        after = results.get(name, parameter, f"rmae_{kind}")
        return 100 * (ratio(after, before, results.runs) - 1)

    return changed


def loss_of(results: CohortResults, base: str, name: str, parameter: str) -> Runs:
    """By how much the RMAE of `name` exceeds that of `base`, run by run [%]."""
    return _change(results, against(results)[0])(base, name, parameter)


def _seconds_2023(results: CohortResults) -> Section | None:
    timed = [figure for figure in results.values if figure.metric == SECONDS and figure.condition == "plain"]
    if not timed:
        return None
    held: dict[str, Runs] = {}
    for name in results.methods:
        own = [results.values[figure] for figure in timed if figure.method == name]
        if any(known(each) for each in own):
            held[name] = np.mean(own, 0)
    paper: Mapping[str, float] = SECONDS_2023.column("seconds")
    lines: list[list[Words]] = [
        [name, cell(1e3 * runs), f"{1e3 * paper[name]:.0f}" if name in paper else "–"] for name, runs in held.items()
    ]
    caption = (
        "CPU time of one slice, mean over slices and inputs, on one machine for all. Second line: ± half-width of the "
        f"95 % interval over runs (number of runs). Paper: {SECONDS_2023.source}, slices of 256 × 256: least squares "
        "of four images for one map, one pass of its network, here beside HOMOU, for both."
    )
    said = Points(
        [order_sentence({n: 1e3 * runs for n, runs in held.items()}, paper, "Time of a slice [ms]", results.runs)]
    )
    grid = Grid(["method", "here [ms]", "paper [ms]"], lines, best=smallest({1: [mean(r) for r in held.values()]}))
    return Section("Time (huang2023 Table IV)", [grid, Text(caption, soft=True), said])
