"""The first sentences of a page of `test_retest`, and its equations and sources."""

from collections.abc import Sequence
from dataclasses import replace
from math import exp, inf, isfinite

from markupsafe import Markup

from qsim.evaluation.pages.content import title
from qsim.evaluation.pages.heat_report import Words
from qsim.evaluation.pages.summary import number
from qsim.evaluation.pages.test_retest_content import Retest, in_pairs, labelled, p_value
from qsim.evaluation.studies.boundary_sharpness import Sharp
from qsim.evaluation.studies.test_retest_table import EVERYWHERE, Found, rows

# a within-subject CV under this share of the bound is none of an unbiased method
_BELOW = 0.95
_LEVEL = 0.05
# voxels without a value of a method that is still ranked [%]
_LACKS = 1.0
# fewer paired profiles say nothing of sharpness
_FEW_PAIRS = 6


def lead(about: Retest) -> list[Words]:
    """Who repeats best at each SNR, whether below the bound, with what bias, and what the boundary says."""
    sentences: list[Words] = []
    if not about.twin:
        sentences.append(
            "No truth is known here: a small CV may be a repeated bias. A twin of the protocol shows which."
        )
    told = _of_labelled(about)
    for setting in about.firsts:
        sentences.append(_repeating(told, setting.snr, "voxels" if told is about else "labelled voxels"))
        sharp = next((s for s in about.sharp if f"{s.snr:g}" == f"{setting.snr:g}"), None)
        if sharp is not None:
            sentences.append(_verdict(about, sharp))
    return sentences


def _of_labelled(about: Retest) -> Retest:
    """The study with "all voxels" meaning all that have a label: air within the mask is no headline."""
    inside = [(setting, labelled(setting)) for setting in about.settings]
    whole = [replace(setting, regions={EVERYWHERE: own}) for setting, own in inside if own is not None]
    if len(whole) < len(inside):
        return about
    kind = about.found.rows[0].study
    kept = [row for row in about.found.rows if row.tissue != EVERYWHERE]
    return replace(about, found=Found([*kept, *rows(kind, about.parameter, whole, about.reference)]))


def _repeating(about: Retest, snr: float, which: str = "voxels") -> Words:
    """The smallest CV of the methods that give a value everywhere, and what lies below its bound."""
    value = about.found.value
    cv = {m: value(m, EVERYWHERE, snr, "within_cv") for m in about.methods}
    whole = {m: v for m, v in cv.items() if isfinite(v) and not _lacks(about, m, EVERYWHERE, snr)}
    part = [
        f"{m} in {number(value(m, EVERYWHERE, snr, 'failed'))} %"
        for m in about.methods
        if _lacks(about, m, EVERYWHERE, snr)
    ]
    signed = [m for m in about.methods if m not in whole and not _lacks(about, m, EVERYWHERE, snr)]
    lacking = Markup(" No value in every repeat: {} of the voxels.").format("; ".join(part)) if part else Markup("")
    if signed:
        lacking += Markup(" No CV, as the mean of a voxel is not positive: {}.").format(", ".join(signed))
    if not whole:
        return Markup("{}no method has a value in every voxel.").format(_at(snr)) + lacking
    best = min(whole, key=lambda m: whole[m])
    others = "; ".join(f"{m} {number(v)} %" for m, v in whole.items() if m != best)
    text = Markup("{}the smallest within-subject CV over all {} is {} %, of <b>{}</b>{}.").format(
        _at(snr), which, number(whole[best]), best, f" ({others})" if others else ""
    )
    alike = _overlapping(about, best, list(whole), snr)
    if alike:
        text += Markup(" Its interval meets that of {}: the order may be chance.").format(", ".join(alike))
    said = []
    for method in about.methods:
        lower = [r for r in about.regions if r != EVERYWHERE and _below(about, method, r, snr)]
        parts = [
            f"{number(value(method, r, snr, 'within_cv'))} % against {number(about.bound(method, r, snr))} % in "
            f"{_in_words(r)} (RMSE {number(value(method, r, snr, 'rmse'))} %)"
            for r in lower
        ]
        said += [f"{method}: {', '.join(parts)}"] if parts else []
    if said:
        text += Markup(
            " Below the bound of an unbiased method{}: {}. A prior, smoothing or the limits of a search hold estimates "
            "together: a bias that repeats, which no CV shows."
        ).format(" in every draw" if len({s.draw for s in about.settings}) > 1 else "", "; ".join(said))
    return text + lacking


def _at(snr: float) -> str:
    return f"At SNR {snr:g} " if isfinite(snr) else "Here "


def _in_words(region: str) -> str:
    return title(region) if title(region).isupper() else title(region).lower()


def _lacks(about: Retest, method: str, region: str, snr: float) -> bool:
    """Whether a method leaves out so many voxels that its figures are of an easier set."""
    return about.found.value(method, region, snr, "failed") > _LACKS


def _overlapping(about: Retest, best: str, methods: Sequence[str], snr: float) -> list[str]:
    """Methods whose 95 % interval of the CV meets that of the smallest."""
    own = about.found.get(best, EVERYWHERE, snr, "within_cv")
    rows = {m: about.found.get(m, EVERYWHERE, snr, "within_cv") for m in methods if m != best}
    return [m for m, row in rows.items() if own is not None and row is not None and row.low <= own.high]


def _below(about: Retest, method: str, region: str, snr: float) -> bool:
    """Whether the CV lies under the bound in every draw: in all of them together a few voxels decide both."""
    if _lacks(about, method, region, snr):
        return False
    within = about.of_draws(method, region, snr, "within_cv")
    bound = about.of_draws(f"bound-{about.bound_of.get(method)}", region, snr, "bound_within_cv")
    return bool(bound) and all(within.get(draw, inf) < _BELOW * own for draw, own in bound.items())


def _verdict(about: Retest, sharp: Sharp) -> str:
    differing = [t for t in sharp.tests if t.p_holm < _LEVEL]
    where = f"{about.sides} boundary"
    if not sharp.tests:
        return f"{where}: one method, nothing to compare."
    if not differing:
        n = [t.n for t in sharp.tests]
        pairs = f"{min(n)}" if min(n) == max(n) else f"{min(n)} to {max(n)}"
        if min(n) < _FEW_PAIRS:
            return f"{where}: {pairs} profiles have a width in both maps of a pair, too few to tell blur."
        return f"{where}, {pairs} paired profiles: no difference in sharpness shows (paired t-test, Holm, p ≥ 0.05)."
    said = "; ".join(
        f"{t.first} {'wider' if t.difference > 0 else 'narrower'} than {t.second} by a factor "
        f"{number(exp(abs(t.difference)), 3)} (p {p_value(t.p_holm)}, {t.n} profiles)"
        for t in differing
    )
    decided = [pair for pair in sharp.unlike if pair in [(t.first, t.second) for t in differing]]
    doubt = f" Noise differs in {in_pairs(decided)} and narrows the noisier: no proof of blur." if decided else ""
    return f"{where}: {said}; paired t-test on log widths, Holm.{doubt}"


def methods_text(about: Retest) -> list[tuple[str, str]]:
    """Equations and sources."""
    return [
        ("CV", "100 SD / mean over the scans of a voxel, SD with C − 1 in the denominator (sabidussi2021, Eq. 8)."),
        (
            "wSD, RC",
            "wSD² = mean of the variances over voxels; RC = 1.96 √2 wSD (Bland and Altman 1996, "
            "doi:10.1136/bmj.312.7047.1654). Chi-square intervals with Satterthwaite's degrees of freedom.",
        ),
        (
            "wCV",
            "root of the mean over voxels of (SD / mean)²; results.csv has the logarithmic form as well, "
            "√(exp(mean variance of ln) − 1).",
        ),
        (
            "limits of agreement",
            "mean difference ∓ 1.96 SD, with intervals (Bland and Altman 1999, doi:10.1177/096228029900800204).",
        ),
        (
            "ICC",
            "ICC(A,1): two-way random, absolute agreement, single scan (McGraw and Wong 1996, "
            "doi:10.1037/1082-989X.1.1.30).",
        ),
        ("concordance", "Lin 1989, doi:10.2307/2532051."),
        *(
            [
                (
                    "sharpness",
                    "v(s) = inside + (outside − inside) / (1 + exp(−ν (s − s₀))), least squares; 10 to 90 % width "
                    "2 ln 9 / ν; cubic interpolation (the paper: linear, which adds width). Paired t-test of log "
                    "widths, Holm.",
                )
            ]
            if about.sharp
            else []
        ),
        ("source", "sabidussi2021, section 5.3, Figs. 5 to 8."),
    ]
