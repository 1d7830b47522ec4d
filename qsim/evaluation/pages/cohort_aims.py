"""What methods were to reach, and whether they do."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from math import inf, isfinite
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from qsim.evaluation.metrics import over_draws
from qsim.evaluation.pages.cohort_joint import corrupted, loss_of, manual_weights
from qsim.evaluation.pages.cohort_order import Runs, cell, mean, ratio
from qsim.evaluation.pages.cohort_papers import CONSTANT, TWO_POINT, against, second
from qsim.evaluation.pages.cohort_trust import CALIBRATED, epistemic, noise_levels, perturbed, region_of
from qsim.evaluation.pages.content import plain
from qsim.evaluation.pages.heat_report import Grid, Words
from qsim.evaluation.pages.summary import number
from qsim.evaluation.studies.cohort_results import CohortResults

# RMAE over that of the limited two-point estimate, by second time [ms]
TWO_POINT_SHARES = {"10": 0.35, "30": 0.75, "50": 0.85}
CONSTANT_SHARE = 0.7
_JUDGED = ("proposed", "qsim")


class Aim(NamedTuple):
    """One number that is to lie in a range.

    Attributes:
        method: judged.
        what: the number.
        runs: its values.
        low, high: ends of the range.
        factor: to the unit of the table.
    """

    method: str
    what: str
    runs: Runs
    low: float
    high: float
    factor: float = 1.0

    @property
    def met(self) -> bool:
        """Whether the mean over runs lies in the range."""
        return self.low <= mean(self.runs) <= self.high


def aims(results: CohortResults) -> list[Aim]:
    """Those whose numbers this study holds."""
    single = list(_single(results)) if len(results.parameters) == 1 else list(_several(results))
    return [aim for aim in single if isfinite(mean(aim.runs))]


def aims_table(found: Sequence[Aim]) -> Grid:
    """A line for each number, a column for each method; the aims that the mean meets are marked."""
    methods = list(dict.fromkeys(aim.method for aim in found))
    numbers = {aim.what: aim for aim in found}
    lines: list[list[Words]] = []
    met = set()
    for row, (what, like) in enumerate(numbers.items()):
        line: list[Words] = [what, _range(like)]
        for column, method in enumerate(methods):
            own = next((aim for aim in found if (aim.method, aim.what) == (method, what)), None)
            if own is None:
                line.append("–")
                continue
            over = over_draws(own.runs)
            unsettled = over.low < own.low <= over.high or over.low <= own.high < over.high
            word = f"{'met' if own.met else 'missed'}{', unsettled' if unsettled else ''}"
            line.append(Markup("{}<small>{}</small>").format(cell(own.runs, own.factor), word))
            if own.met:
                met.add((row, column + 2))
        lines.append(line)
    return Grid(["number", "aim", *methods], lines, best=met)


def _range(aim: Aim) -> str:
    low, high = aim.factor * aim.low, aim.factor * aim.high
    if not isfinite(high):
        return f"at least {low:g}"
    return f"{low:g} to {high:g}" if isfinite(low) else f"at most {high:g}"


def _single(results: CohortResults) -> Iterator[Aim]:
    (parameter,) = results.parameters
    kind = against(results)[0]
    for name in results.methods:
        if name.removesuffix(", ensemble") not in _JUDGED:
            continue
        runs = partial(results.get, name, parameter)
        for shown in results.inputs:
            if share := TWO_POINT_SHARES.get(second(shown)):
                other = results.get(TWO_POINT, parameter, f"rmae_{kind}", shown=shown)
                yield Aim(
                    name,
                    f"RMAE / two-point's, input {shown} [1]",
                    ratio(runs(f"rmae_{kind}", shown=shown), other, results.runs),
                    -inf,
                    share,
                )
        constant = results.get(CONSTANT, parameter, f"rmae_{kind}")
        yield Aim(
            name,
            "RMAE / population-constant's [1]",
            ratio(runs(f"rmae_{kind}"), constant, results.runs),
            -inf,
            CONSTANT_SHARE,
        )
        yield Aim(name, f"slope of subjects' means on {kind} [1]", runs(f"slope_subjects_{kind}"), 0.9, 1.1)
        yield Aim(name, "concordance of subjects' means [1]", runs(f"concordance_subjects_{kind}"), 0.8, inf)
        yield Aim(name, "contrast recovery of lesions [1]", runs(f"lesion_recovery_{kind}", "lesion"), 0.8, inf)
        yield Aim(name, "Spearman of total SD and |error|, body [1]", runs(f"spearman_{kind}", "body"), 0.5, inf)
        yield Aim(name, "AUSE ratio, body [1]", runs(f"ause_ratio_{kind}", "body"), -inf, 0.5)
        covered = runs(f"coverage_95_{kind}", "body", condition=CALIBRATED)
        yield Aim(name, "coverage of calibrated 95 % intervals, body [%]", covered, 0.9, 0.98, 100.0)
        crps = ratio(
            runs(f"crps_{kind}", "body", condition=CALIBRATED), runs(f"crps_constant_{kind}", "body"), results.runs
        )
        yield Aim(name, "CRPS of calibrated SD / one width's, body [1]", crps, -inf, 1.0)
        if len(levels := noise_levels(results)) > 1:
            sd = [runs("sd_mean", condition=f"snr {snr:g}") for snr in levels]
            worst = np.max([ratio(after, before, results.runs) for before, after in pairwise(sd)], 0)
            yield Aim(name, "largest mean SD / that at the next lower SNR [1]", worst, -inf, 1.0)
        for what in perturbed(results):
            if what not in ("square", "lesion"):
                continue
            region = region_of(results, what)
            now = epistemic(results, name, parameter, region, what)
            before = epistemic(results, name, parameter, region, f"{what} before")
            if np.isnan(before).all() and region != "roi":
                before = epistemic(results, name, parameter, "roi", what)
                yield Aim(name, f"epistemic SD in the {what} / ROI's [1]", ratio(now, before, results.runs), 1.0, inf)
                continue
            yield Aim(
                name,
                f"epistemic SD with {what} / before [1]",
                ratio(now, before, results.runs),
                2.0 if what == "square" else 1.0,
                inf,
            )


def _several(results: CohortResults) -> Iterator[Aim]:
    kind = against(results)[0]
    manual = manual_weights(results)
    done = corrupted(results)
    for name in ("HOMOU", "HETEU"):
        for p in results.parameters if manual else ():
            best = min(manual, key=lambda one: mean(results.get(one, p, f"rmae_{kind}")))
            over = ratio(results.get(name, p, f"rmae_{kind}"), results.get(best, p, f"rmae_{kind}"), results.runs)
            yield Aim(name, f"RMAE of {plain(p)} / that of the best weights by hand [1]", over, -inf, 1.05)
        for what in ("T2 x10000", "T2 motion"):
            methods = done.get(what, {})
            if name not in methods:
                continue
            lost = loss_of(results, name, methods[name], "T1RHO")
            yield Aim(name, f"growth of the RMAE of {plain('T1RHO')}, {what} [%]", lost, -inf, 5.0)
            if "baseline" in methods:
                base = loss_of(results, "baseline", methods["baseline"], "T1RHO")
                beside = f"growth of the RMAE of {plain('T1RHO')} less half of baseline's, {what} [%]"
                yield Aim(name, beside, lost - base / 2, -inf, 0.0)


def verdict(found: Sequence[Aim]) -> str:
    """How many aims each method meets; empty if none applies."""
    said = []
    for method in dict.fromkeys(aim.method for aim in found):
        own = [aim for aim in found if aim.method == method]
        missed = [
            f"{aim.what.rpartition(' [')[0]} {number(aim.factor * mean(aim.runs), 3)}" for aim in own if not aim.met
        ]
        text = f"{method} meets {len(own) - len(missed)} of {len(own)} aims"
        said.append(text + (f" (missed: {'; '.join(missed)})" if missed else ""))
    return ". ".join(said) + "." if said else ""
