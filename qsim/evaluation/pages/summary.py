"""What a study found, in sentences made from its table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, isinf, sqrt

from markupsafe import Markup, escape
from scipy.special import chdtri

from qsim.evaluation.study import BOUNDS, PAINTERS
from qsim.evaluation.table import OPPONENTS, Table

# slope of the estimate on the truth under which a method is said to paint means, at this SNR and above
SLOPE, SLOPE_SNR = 0.8, 30.0
# under this it is plainly said; between the two a method leans towards means
_PAINTS = 0.4
# an honest estimator: RMSE / bound in this range, |bias| under this share of the bound, where that is under this [%]
EFFICIENT, BIAS_SHARE, BOUND_LIMIT = (0.95, 1.1), 0.2, 12.0
# without an interval over draws, differences under 5 % are not called one
_NO_INTERVAL = 0.05
# a slope whose 95 % interval is wider says nothing about painting
_RESOLVED = 0.6
# share of voxels on a bound above which a small slope is the bound's doing [%]
_HELD = 10.0
_CALLED = {
    "least-squares": "the least-squares fit",
    "shared-b": "the shared-B fit",
    "empirical-bayes": "empirical Bayes",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """What sentences are about.

    Attributes:
        table: the figures.
        parameter, symbol: row of kappa, and how it is printed (HTML).
        tissues: titles by region, the largest first.
        snrs: in rising order.
        repeats: of the noise.
        methods: every method but the painters.
        networks: those that are networks.
        references: bound that each method is held against.
        given: rows that every bound takes as known.
    """

    table: Table
    parameter: str
    symbol: Markup
    tissues: Mapping[str, str]
    snrs: tuple[float, ...]
    repeats: int
    methods: tuple[str, ...]
    networks: tuple[str, ...]
    references: Mapping[str, str]
    given: tuple[str, ...] = ()


def number(value: float, digits: int = 2) -> str:
    """Two significant digits below 100, whole numbers above, hundredths below 1; a true minus sign."""
    if not isfinite(value):
        return "–"
    size = abs(value)
    if size >= 99.5:
        text = f"{value:.0f}"
    elif size >= 9.95:
        text = f"{value:.{digits - 2}f}"
    elif size >= 0.995:
        text = f"{value:.{digits - 1}f}"
    else:
        text = f"{value:.{digits}f}"
    if float(text) == 0:
        return "0" if value == 0 else f"{0:.{digits}f}"
    return text.replace("-", "−")


def few_repeats(repeats: int) -> float:
    """RMSE over true RMSE, median over voxels, of Gaussian errors: under 1 with few repeats C.

    sqrt(median(chi^2_C) / C)
    """
    return sqrt(float(chdtri(repeats, 0.5)) / repeats)


def few_repeats_warning(repeats: int, shared: str = "") -> list[str]:
    """What few noise realisations do to the figures; nothing from 50 on.

    SD of an SD of C Gaussian errors: 1 / sqrt(2 (C - 1)) of it

    Args:
        shared: a sentence on what the voxels of an image have in common.
    """
    if repeats >= 50:
        return []
    if repeats < 2:
        return [f"{repeats} noise realisation: a CV needs at least two."]
    error = 100 / sqrt(2 * (repeats - 1))
    text = (
        f"{repeats} noise realisations: the CV and RMSE of a single voxel or region carry a relative error of about "
        f"{error:.0f} %."
    )
    return [f"{text} {shared}" if shared else text]


def headline(about: Subject, artefacts: Sequence[str] = ()) -> Markup:
    """The first paragraph: who has the smallest error where, and how the fits stand to the bound.

    Args:
        artefacts: kinds that the images carry.
    """
    sentences = [_best(about)]
    if "bound-free" in _bounds(about):
        sentences.append(_identifiable(about))
    if artefacts:
        kinds = ", ".join(dict.fromkeys(kind.replace("_", " ") for kind in artefacts))
        sentences.append(Markup("The images carry artefacts ({}); the bound does not know them.").format(kinds))
    return Markup(" ").join(sentences)


def verdicts(about: Subject) -> list[tuple[str, list[Markup]]]:
    """Sentences about each method, networks first: where it beats and loses, its efficiency, whether it paints."""
    found = []
    for name in (*about.networks, *(m for m in about.methods if m not in about.networks)):
        against = [o for o in reversed(OPPONENTS) if o in about.methods and OPPONENTS.index(o) < _rank(name)]
        sentences = [_against(about, name, opponent) for opponent in against]
        if name not in about.networks:
            sentences.append(_efficiency(about, name))
        sentences += [_slopes(about, name), _painting(about, name)]
        found.append((name, [s for s in sentences if s]))
    return found


def _rank(name: str) -> int:
    """A pair is compared once, on the side of the method with the higher rank."""
    return OPPONENTS.index(name) if name in OPPONENTS else len(OPPONENTS)


def _bounds(about: Subject) -> set[str]:
    return {
        f"bound-{name}"
        for name in BOUNDS
        if any(
            about.table.get(f"bound-{name}", t, about.parameter, s, "bound_median")
            for t in about.tissues
            for s in about.snrs
        )
    }


def _best(about: Subject) -> Markup:
    """Method with the smallest median RMSE over all pure voxels at each SNR."""
    winners: list[tuple[float, str, float]] = []
    for snr in about.snrs:
        # one that is told the truth of a row wins what it was given
        values = {
            m: about.table.value(m, "pure", about.parameter, snr, "rmse_median")
            for m in about.methods
            if about.references[m] != "known"
        }
        finite = {m: v for m, v in values.items() if isfinite(v)}
        if finite:
            best = min(finite, key=lambda m: finite[m])
            winners.append((snr, best, finite[best]))
    parts = [
        Markup("{} at {} ({})").format(
            Markup("<b>{}</b>").format(name),
            _span([snr for snr, _, _ in run], about.snrs),
            _and([f"{number(value)} %" for _, _, value in run]),
        )
        for name, run in _runs(winners)
    ]
    return Markup(
        "Smallest median RMSE of {} over all tissues, painters of means and methods that are told a true row left "
        "aside: {}."
    ).format(about.symbol, Markup("; ").join(parts))


def _runs(winners: Sequence[tuple[float, str, float]]) -> list[tuple[str, list[tuple[float, str, float]]]]:
    runs: list[tuple[str, list[tuple[float, str, float]]]] = []
    for winner in winners:
        if runs and runs[-1][0] == winner[1]:
            runs[-1][1].append(winner)
        else:
            runs.append((winner[1], [winner]))
    return runs


def _identifiable(about: Subject) -> Markup:
    """Where the protocol itself does not hold enough information."""
    poor = []
    for tissue, title in about.tissues.items():
        bad = [
            s
            for s in about.snrs
            if about.table.value("bound-free", tissue, about.parameter, s, "bound_median") > BOUND_LIMIT
        ]
        if bad:
            worst = about.table.value("bound-free", tissue, about.parameter, bad[0], "bound_median")
            said = "not identifiable" if isinf(worst) else f"{number(worst)} %"
            where = f"up to SNR {max(bad):g} ({said} at SNR {bad[0]:g})"
            poor.append(f"{_low(title)} {where if len(bad) > 1 else f'at SNR {bad[0]:g} ({said})'}")
    free = f"all but {_and(about.given)}" if about.given else "every parameter"
    if not poor:
        return Markup("With {} free in each voxel the Cramér-Rao bound of {} stays under {} % everywhere.").format(
            free, about.symbol, f"{BOUND_LIMIT:g}"
        )
    return Markup(
        "With {} free in each voxel, no unbiased method can do better than a CV of {} % in {}: "
        "there the protocol, not the method, is the limit."
    ).format(free, f"{BOUND_LIMIT:g}", _and(poor))


def _efficiency(about: Subject, name: str) -> Markup:
    """RMSE over the bound of the same problem, where that bound is small enough for the comparison to mean much."""
    bound = about.references[name]
    low, high = EFFICIENT[0] * few_repeats(about.repeats), EFFICIENT[1]
    ratios: list[float] = []
    off: list[tuple[float, str]] = []
    for tissue, title in about.tissues.items():
        for snr in about.snrs:
            limit = about.table.value(f"bound-{bound}", tissue, about.parameter, snr, "bound_median")
            ratio = about.table.value(name, tissue, about.parameter, snr, f"rmse_over_bound_{bound}")
            bias = about.table.value(name, tissue, about.parameter, snr, "relative_bias_median")
            if not (limit < BOUND_LIMIT and isfinite(ratio)):
                continue
            ratios.append(ratio)
            if not (low <= ratio <= high and abs(bias) < BIAS_SHARE * limit):
                floor = about.table.value(name, tissue, about.parameter, snr, "noise_free_error")
                where = (
                    f"{_low(title)} at SNR {snr:g}: RMSE / bound {number(ratio)}, bias {number(bias / limit)} bound, "
                    f"median error without any noise {number(floor / limit)} bound"
                )
                # how far beyond the limit that it breaks
                off.append((max(ratio / high, low / ratio, abs(bias) / (BIAS_SHARE * limit)), where))
    if not ratios:
        return Markup()
    text = Markup(
        "RMSE over bound ({}) {} to {} in the {} combinations of tissue and SNR whose bound is under {} %"
    ).format(bound, number(min(ratios)), number(max(ratios)), len(ratios), f"{BOUND_LIMIT:g}")
    if not off:
        return text + Markup(", with a median bias under {} bound: it is efficient.").format(f"{BIAS_SHARE:g}")
    return text + Markup(
        "; {} of them lie outside the range of an efficient estimator ({} to {}, bias under {} bound), farthest {}."
    ).format(len(off), number(low), number(high), f"{BIAS_SHARE:g}", max(off)[1])


def _against(about: Subject, name: str, opponent: str) -> Markup:
    """Where a method has the smaller error, tissue by tissue, with the ratio of the median RMSE."""
    parts = []
    for tissue, title in about.tissues.items():
        groups: dict[str, list[tuple[float, float]]] = {"smaller": [], "no clear difference": [], "larger": []}
        for snr in about.snrs:
            row = about.table.get(name, tissue, about.parameter, snr, f"rmse_over_{opponent}")
            if row is None or not isfinite(row.value):
                continue
            low = row.low if isfinite(row.low) else row.value * (1 - _NO_INTERVAL)
            high = row.high if isfinite(row.high) else row.value * (1 + _NO_INTERVAL)
            verdict = "smaller" if high < 1 else "larger" if low > 1 else "no clear difference"
            groups[verdict].append((snr, row.value))
        if any(groups.values()):
            said = [
                Markup('<span class="{}">{}</span> at {} ({})').format(
                    verdict.split()[0], verdict, _span([s for s, _ in found], about.snrs), _times([r for _, r in found])
                )
                for verdict, found in groups.items()
                if found
            ]
            parts.append(Markup("<i>{}</i>: {}").format(title, Markup("; ").join(said)))
    if not parts:
        return Markup()
    return Markup("Median RMSE against {} in the same images. {}.").format(
        _CALLED.get(opponent, opponent), Markup(". ").join(parts)
    )


def _slopes(about: Subject, name: str) -> Markup:
    """Whether the estimate follows the voxels of a tissue."""
    lines, weak, held, open_ = [], [], [], []
    least = 1.0
    for tissue, title in about.tissues.items():
        rows = {s: about.table.get(name, tissue, about.parameter, s, "slope_within") for s in about.snrs}
        known = {s: row for s, row in rows.items() if row is not None and isfinite(row.value)}
        if not known:
            continue
        ends = sorted({min(known), max(known)} | {s for s in known if s == SLOPE_SNR})
        lines.append(f"{_low(title)} {', '.join(f'{number(known[s].value)} at SNR {s:g}' for s in ends)}")
        high = {s: row for s, row in known.items() if s >= SLOPE_SNR}
        unclear = [s for s, row in high.items() if row.high - row.low > _RESOLVED]
        under = [s for s, row in high.items() if row.value < SLOPE and s not in unclear]
        bound = {s: about.table.value(name, tissue, "", s, "at_bound_rate") for s in under}
        paints = [s for s in under if not bound[s] > _HELD]
        least = min([least, *(high[s].value for s in paints)])
        weak += [f"{_low(title)} ({_span(paints, about.snrs)})"] if paints else []
        held += [f"{_low(title)} at SNR {s:g} ({number(bound[s])} %)" for s in under if s not in paints]
        open_ += [f"{_low(title)} ({_span(unclear, about.snrs)})"] if unclear else []
    if not lines:
        return Markup()
    if weak:
        verb = "paints" if least < _PAINTS else "leans towards"
        end = f"It {verb} means: under {SLOPE:g} at SNR ≥ {SLOPE_SNR:g} in {_and(weak)}."
    elif open_ or held:
        end = "It is not seen to paint means."
    elif max(about.snrs) >= SLOPE_SNR:
        end = f"At SNR ≥ {SLOPE_SNR:g} it is at least {SLOPE:g} in every tissue: it does not paint means."
    else:
        end = f"No SNR of this study reaches {SLOPE_SNR:g}, where a slope of at least {SLOPE:g} is asked for."
    if held:
        end += f" Under {SLOPE:g} because voxels lie on a bound of the search: {_and(held)}."
    if open_:
        end += f" Too noisy to tell (interval wider than {_RESOLVED:g}) in {_and(open_)}."
    return Markup("Slope on the true {} within a tissue (1 follows every voxel, 0 paints its mean): {}. {}").format(
        about.symbol, "; ".join(lines), end
    )


def _painting(about: Subject, name: str) -> Markup:
    """Whether someone who paints the tissue's mean, without looking at the images, has a smaller error.

    By the RMSE over voxels and repeats together, not by the median over voxels: the error of a painter has one value
    in a voxel, that of a fit one for every repeat, so of two Gaussian errors of one SD the painter's has a median over
    voxels of 0.67 SD and the fit's one of 1 SD.
    """
    said = []
    for painter in PAINTERS[1:]:
        where = []
        for tissue, title in about.tissues.items():
            errors = {
                snr: [about.table.value(m, tissue, about.parameter, snr, "rmse_rms") for m in (painter, name)]
                for snr in about.snrs
            }
            lost = [snr for snr, (painted, own) in errors.items() if painted < own]
            if lost:
                where.append(f"{_low(title)} at {_span(lost, about.snrs)}")
        if where:
            said.append(Markup("<i>{}</i> has a smaller one in {}").format(painter, "; ".join(where)))
    if not said:
        return Markup("No painter of tissue means has a smaller RMSE (over voxels and repeats together) anywhere.")
    return Markup("RMSE over voxels and repeats together against painters of means, who look at no image: {}.").format(
        Markup("; ").join(said)
    )


def _and(items: Sequence[str]) -> str:
    if len(items) < 2:
        return "".join(items)
    return ", ".join(items[:-1]) + " and " + items[-1]


def _span(chosen: Sequence[float], snrs: Sequence[float]) -> str:
    """Some of the SNRs of the study in words: "every SNR", "SNR 3 to 30", "SNR 3, 10 and 60"."""
    places = [snrs.index(snr) for snr in chosen]
    if len(chosen) == len(snrs) > 1:
        return "every SNR"
    if len(chosen) > 2 and places[-1] - places[0] == len(places) - 1:
        return f"SNR {chosen[0]:g} to {chosen[-1]:g}"
    return "SNR " + _and([f"{n:g}" for n in chosen])


def _times(ratios: Sequence[float]) -> str:
    low, high = number(min(ratios)), number(max(ratios))
    return f"×{low}" if low == high else f"×{low} to ×{high}"


def _low(title: str) -> str:
    """A tissue's name inside a sentence."""
    return str(escape(title if title.isupper() else title[0].lower() + title[1:]))
