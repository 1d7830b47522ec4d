"""The first sentences of a page of `segmentation`, its aims with what was found, what limits it, and its methods."""

import re
from math import isfinite
from typing import Literal, NamedTuple

from markupsafe import Markup

from qsim.evaluation.metrics import Interval
from qsim.evaluation.pages.heat_report import Words
from qsim.evaluation.pages.summary import number
from qsim.evaluation.studies.segmentation_compared import Closed, closure, difference, gap
from qsim.evaluation.studies.segmentation_ranks import followed
from qsim.evaluation.studies.segmentation_results import TEST, SegmentationResults, cell

# Dice lost, share of the gap closed, rank correlation that are asked for
LOSS, SHARE, RHO = 0.15, 0.25, -0.5
SCORE_WORDS = {
    "disagreement": "disagreement of members [1]",
    "entropy_per_target": "entropy / target [nats]",
    "mutual_per_target": "mutual information / target [nats]",
}
# under these, percentile intervals are too narrow
_FEW_IMAGES, _FEW_DRAWS = 20, 400
Verdict = Literal["met", "not met", "open"]


class Aim(NamedTuple):
    """What was asked for, in words, and what came: `open` where an interval does not tell, or there is no figure."""

    domain: str
    wanted: str
    found: str
    verdict: Verdict
    why: str


def shown_name(name: str) -> str:
    """A domain as it is printed: T1rho as T1ρ."""
    return re.sub(r"(?<=T[12])rho\b", "ρ", name, flags=re.IGNORECASE)


def ends(low: float, high: float, digits: int = 2) -> str:
    """An interval within brackets; empty without one."""
    return f" ({number(low, digits)} to {number(high, digits)})" if isfinite(low) and isfinite(high) else ""


def signed(value: float, digits: int = 3) -> str:
    """A difference, with its sign."""
    return ("+" if value > 0 else "") + number(value, digits)


def percent(closed: Closed) -> str:
    """A share of the gap with its interval."""
    if not isfinite(closed.value):
        return "–"
    return f"{number(100 * closed.value)} %{ends(100 * closed.low, 100 * closed.high)}"


def lead(results: SegmentationResults) -> list[Words]:
    """What came out in the first domain: the gap, what closes it, and whether uncertainty tells."""
    base, domain = results.baseline, results.domains[0]
    named = shown_name(domain)
    lost = gap(results, base, domain)
    lines: list[Words] = [
        Markup(
            "With <b>{}</b>, networks that learnt on {} images reach a mean Dice of {} on unseen images of that kind "
            "and of {} on {}: they lose {}{}."
        ).format(
            *(base, shown_name(results.train_domain), number(cell(results, base, TEST).mean, 3)),
            *(number(cell(results, base, domain).mean, 3), named, number(lost.value, 3)),
            ends(lost.crossed.low, lost.crossed.high, 3),
        )
    ]
    if others := _others(results):
        parts = [
            Markup("<b>{}</b> closes {} of this gap, to a Dice of {}").format(
                name, percent(closure(results, name, domain)), number(cell(results, name, domain).mean, 3)
            )
            for name in others
        ]
        text = Markup("; ").join(parts) + Markup(".")
        lines.append(text if lost.value > 0 else Markup("There is no gap to close on {}.").format(named))
    b, c = results.role("B"), results.role("C")
    if b is not None and c is not None:
        found = difference(results, c, b, domain)
        lines.append(
            Markup(
                "<b>{}</b> against <b>{}</b> in the same folds and seeds: {} Dice{}, better in {} of {} pairs."
            ).format(
                c, b, signed(found.value), ends(found.crossed.low, found.crossed.high, 3), found.favour, found.runs
            )
        )
    ranks = [
        Markup("{}{} in <b>{}</b>").format(number(each.mean.value), ends(each.mean.low, each.mean.high), name)
        for name in results.sets
        if (each := followed(results, name, domain, "disagreement")) and isfinite(each.mean.value)
    ]
    if ranks:
        lines.append(
            Markup("How far the members of an ensemble disagree follows Dice on {} with Spearman ρ = {}.").format(
                named, Markup("; ").join(ranks)
            )
        )
    return lines


def aims(results: SegmentationResults) -> list[Aim]:
    """Every aim in every domain, judged by the figures of this study alone."""
    return [aim for domain in results.domains for aim in _of_domain(results, domain)]


def _of_domain(results: SegmentationResults, domain: str) -> list[Aim]:
    base = results.baseline
    lost = gap(results, base, domain)
    found = [
        Aim(
            domain,
            f"{base} loses at least {LOSS:g} Dice from {TEST} to the domain",
            number(lost.value, 3) + ends(lost.crossed.low, lost.crossed.high, 3),
            *(("met", _sure(lost.crossed, LOSS)) if lost.value >= LOSS else ("not met", "the domains are too close")),
        )
    ]
    b, c = results.role("B"), results.role("C")
    if b is not None and b != base:
        found.append(_share(domain, b, closure(results, b, domain)))
    if b is not None and c is not None:
        found.append(_more(results, domain, b, c))
    return found + [aim for name in results.sets if (aim := _tells(results, domain, name))]


def _share(domain: str, b: str, closed: Closed) -> Aim:
    wanted = f"{b} closes at least {100 * SHARE:g} % of the gap"
    if not isfinite(closed.value):
        return Aim(domain, wanted, "–", "open", "there is no gap to close")
    interval = Interval(closed.value, closed.low, closed.high)
    met = closed.value >= SHARE
    return Aim(domain, wanted, percent(closed), "met" if met else "not met", _sure(interval, SHARE))


def _more(results: SegmentationResults, domain: str, b: str, c: str) -> Aim:
    """Whether C closes more than B: both shares have one denominator, so their Dice is compared."""
    found = difference(results, c, b, domain)
    low, high = found.crossed.low, found.crossed.high
    said = f"{signed(found.value)}{ends(low, high, 3)} Dice, {found.favour} of {found.runs} pairs"
    verdict: Verdict
    if found.value <= 0:
        verdict, why = "not met", f"{b} has the higher Dice" if high < 0 else "no gain; the interval holds 0"
    elif low > 0:
        verdict, why = "met", "the interval holds no 0"
        if found.over_folds.low <= 0:
            why += f", though that of {found.folds} fold means does" + ends(
                found.over_folds.low, found.over_folds.high, 3
            )
    else:
        verdict, why = "open", "a gain, but the interval holds 0" if isfinite(low) else "a gain without an interval"
    return Aim(domain, f"{c} closes more than {b}", said, verdict, why)


def _tells(results: SegmentationResults, domain: str, name: str) -> Aim | None:
    each = followed(results, name, domain, "disagreement")
    if each is None or not isfinite(each.mean.value):
        return None
    met = each.mean.value <= RHO
    return Aim(
        domain,
        f"{name}: ρ of disagreement with Dice at most {number(RHO, 1)}",
        number(each.mean.value) + ends(each.mean.low, each.mean.high),
        "met" if met else "not met",
        _sure(each.mean, RHO),
    )


def _sure(found: Interval, limit: float) -> str:
    """Whether an interval lies on one side of a limit."""
    if not isfinite(found.low):
        return "no interval"
    one_side = (found.low - limit) * (found.high - limit) > 0
    return "by its whole interval" if one_side else "its interval reaches to the other side of that"


def _others(results: SegmentationResults) -> list[str]:
    return [name for name in results.sets if name != results.baseline and results.of_set(name)]


def limits(results: SegmentationResults) -> list[str]:
    """What few folds, seeds and images do to the figures."""
    found = []
    if len(results.folds) < results.n_folds:
        folds = ", ".join(map(str, results.folds))
        found.append(f"Fold{'s' if len(results.folds) > 1 else ''} {folds} of {results.n_folds} only.")
    if len(results.folds) < 2:
        found.append("One fold: there is no SD over folds, and nothing is said of other training images.")
    if results.seeds > 1 and len(results.folds) < 3:
        found.append(
            "The seeds of a fold share their training images: intervals over runs are too narrow for a claim on "
            "networks that were trained on other images."
        )
    missing = len(results.sets) * len(results.folds) * results.seeds - len(results.runs)
    if missing > 0:
        found.append(f"{missing} of the runs are missing; pairs are those that both sets have.")
    for domain in results.domains:
        n = min((run.dice[domain].size for run in results.runs), default=0)
        if n < _FEW_IMAGES:
            found.append(f"{shown_name(domain)}: {n} images; intervals that are drawn from so few are too narrow.")
    if results.draws < _FEW_DRAWS:
        found.append(f"{results.draws} draws of the bootstrap: the ends of its intervals are rough.")
    return found


def methods(results: SegmentationResults) -> list[tuple[str, Words]]:
    """Equations and sources."""
    said: list[tuple[str, Words]] = [
        (
            "study",
            "jacobs2025: a network that segments the left ventricle learns on clinical T1-weighted images alone and is "
            "used on images of another contrast. Cross-validation by folds; every set of augmentations, fold and seed "
            "is a network of its own.",
        ),
        (
            "Dice",
            "2 |A ∩ B| / (|A| + |B|), per image, of the voxels whose probability is at least 0.5; then the mean over "
            "images (Dice 1945, doi:10.2307/1932409).",
        ),
        (
            "mean ± SD",
            "mean over runs of a run's mean Dice; SD (n − 1) over folds, of the mean over a fold's seeds, as the paper "
            "has one network per fold. The SD over runs, below, mixes folds and seeds. The paper's A (scaling and "
            "rotation) and B (these and more) stand beside the sets whose names begin with A and B, or the first two.",
        ),
        (
            "gap, closure",
            "gap: mean Dice on test images less that on the domain. Closure: (Dice of a set − Dice of the baseline) on "
            "the domain over the baseline's gap, paired by fold and seed, a ratio of means over runs.",
        ),
        (
            "intervals",
            "95 %. Crossed: percentiles of a bootstrap that draws runs (folds, then seeds within each) and, "
            "independently, images (Owen 2007, doi:10.1214/07-AOAS122; Davison and Hinkley 1997, "
            "doi:10.1017/CBO9780511802843, section 3.8); for gaps, the test images within each fold too. t over runs: "
            "takes runs for independent, which the seeds of one fold, with the same training images, are not, and "
            "folds share most "
            f"of theirs. t over folds: of fold means, from three folds on. {results.draws} draws, seed {results.seed}. "
            "Images are taken for independent.",
        ),
        (
            "ensemble",
            f"mean probability of the networks of a fold, {results.members} of them"
            + (f", {results.samples} passes with dropout of each" if results.samples > 1 else "")
            + " (Lakshminarayanan et al. 2017, arXiv:1612.01474).",
        ),
        (
            "uncertainty",
            "disagreement: 1 − mean over pairs of members of the Dice of their masks (p ≥ 0.5), the pairwise Dice of "
            "Roy et al. 2019, doi:10.1016/j.neuroimage.2019.03.042. Entropy: of the mean probability; mutual "
            "information: that less the members' mean entropy; both summed over the image, over the sum of the mean "
            "probability. At most ln 2 = 0.69 nats in a voxel.",
        ),
        (
            "ρ",
            "Spearman's, of a score with the ensemble's Dice: of each fold, then the mean over folds weighted by their "
            "images; intervals are drawn over images, the networks are fixed. Averaged: score and Dice of an image are "
            "first averaged over folds; of test images, where each fold has its own, all are taken together.",
        ),
    ]
    if results.seconds:
        cost = [
            f"{words} {number(1000 * results.seconds[key])} ms"
            for key, words in (("loader_per_image", "loading and augmenting"), ("step_per_image", "training step"))
            if key in results.seconds
        ]
        said.append(("cost", f"CPU time per training image: {', '.join(cost)}."))
    return said
