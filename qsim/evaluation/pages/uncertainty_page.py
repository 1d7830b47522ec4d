"""The page of an `uncertainty` study: which intervals hold, how wide they are, and whether an SD tells anything."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from qsim.evaluation.metrics import Interval
from qsim.evaluation.pages.content import plain
from qsim.evaluation.pages.heat_report import Block, Grid, Heading, Picture, Points, Section, Text
from qsim.evaluation.pages.summary import number
from qsim.evaluation.pages.uncertainty_curves import (
    NARROW,
    OFF_LEVEL,
    WIDEST,
    coverage_over_snr,
    errors_over_sd,
    maps,
    quantiles_over_snr,
    sparsification_over_snr,
)
from qsim.evaluation.studies.uncertainty_study import GROUPS
from qsim.evaluation.studies.uncertainty_table import Uncertainty

# milliseconds in pictures, as everywhere
_MILLI = 1e-3
# shares below this need no word [%]
_FEW = 0.05
Cell = tuple[float, int]


def lead(found: Uncertainty) -> list[Markup]:
    """Whether the targets are met, what the intervals do where no target applies, and what the SD tell."""
    sentences = [Markup("<b>{}</b>").format(_verdict(found)), *map(Markup.escape, (_elsewhere(found), _scores(found)))]
    if found.silent:
        said = "; ".join(f"{name} ({why})" for name, why in found.silent.items())
        sentences.append(Markup("State no uncertainty, and are not judged: {}.").format(said))
    return [sentence for sentence in sentences if sentence]


def _cells(found: Uncertainty, method: str, narrow: bool) -> list[Cell]:
    """SNRs and tissues whose bound of the CV is under 10 %, or those where it is not."""
    tissues = [region for region in found.regions if region < len(found.tissues)]
    return [
        (snr, region)
        for snr in found.snrs
        for region in tissues
        if (found.bound(method, snr, region).value < NARROW) == narrow
    ]


def _kinds(found: Uncertainty, method: str) -> list[str]:
    return [kind for kind in found.kinds if (method, kind) not in found.refusals]


def _verdict(found: Uncertainty) -> str:
    """How many combinations meet both targets, and which misses the coverage by most."""
    asked = [
        (method, kind, cell)
        for method in found.methods
        for kind in _kinds(found, method)
        for cell in _cells(found, method, narrow=True)
    ]
    if not asked:
        name = plain(found.parameter)
        return f"The Cramér-Rao bound's CV of {name} is {NARROW:g} % or more everywhere: no target applies."
    level = 100 * found.level
    missed = [one for one in asked if not _meets(found, *one)]
    text = (
        f"{len(asked) - len(missed)} of {len(asked)} combinations of method, interval, SNR and tissue whose bound's CV "
        f"is under {NARROW:g} % meet both targets: {level - OFF_LEVEL:g} to {level + OFF_LEVEL:g} % of the {level:g} % "
        f"intervals hold the true {plain(found.parameter)}, at a median width of at most {WIDEST:g} times that of the "
        "bound."
    )
    if not missed:
        return text
    method, kind, (snr, region) = max(missed, key=lambda one: abs(_held(found, *one) - level))
    width = found.of(method, snr, region, f"width_over_bound_{kind}").value
    return (
        f"{text} Farthest off: {kind} of {method}, {found.regions[region]}, SNR {snr:g}, "
        f"{number(_held(found, method, kind, (snr, region)), 3)} % at {number(width)} times the width."
    )


def _held(found: Uncertainty, method: str, kind: str, cell: Cell) -> float:
    return found.of(method, *cell, f"coverage_{kind}").value


def _meets(found: Uncertainty, method: str, kind: str, cell: Cell) -> bool:
    width = found.of(method, *cell, f"width_over_bound_{kind}").value
    return abs(_held(found, method, kind, cell) - 100 * found.level) <= OFF_LEVEL and width <= WIDEST


def _elsewhere(found: Uncertainty) -> str:
    """Coverage of each kind of interval where the bound is wide."""
    said = []
    for kind in found.kinds:
        held = [
            value
            for method in found.methods
            if kind in _kinds(found, method)
            for cell in _cells(found, method, narrow=False)
            if (value := _held(found, method, kind, cell)) == value
        ]
        if held:
            said.append(f"{kind} {_span(held, 3)} %")
    return f"Where the bound's CV is {NARROW:g} % or more, the truth is held by: {'; '.join(said)}." if said else ""


def _scores(found: Uncertainty) -> str:
    """CRPS against a constant width, and the largest share of voxels without an SD."""
    cells = [
        (method, *cell)
        for method in found.methods
        for narrow in (True, False)
        for cell in _cells(found, method, narrow)
    ]
    scores = {cell: found.of(*cell, "crps_over_constant").value for cell in cells}
    known = {cell: score for cell, score in scores.items() if score == score}
    parts = []
    if known:
        worse = {cell: score for cell, score in known.items() if score > 1}
        text = (
            f"The stated SD score better (CRPS) than the best constant SD in {len(known) - len(worse)} of {len(known)}"
        )
        if worse:
            (method, snr, region), most = max(worse.items(), key=lambda item: item[1])
            text += f"; worst {number(most)} times it ({method}, {found.regions[region]}, SNR {snr:g})"
        parts.append(f"{text}.")
    shares = {cell: found.of(*cell, "undefined_rate").value for cell in cells}
    (method, snr, region), most = max(shares.items(), key=lambda item: item[1])
    if most > 0:
        share = number(most) if most >= _FEW else f"under {_FEW:g}"
        parts.append(f"No finite SD: up to {share} % of voxels ({method}, {found.regions[region]}, SNR {snr:g}).")
    return " ".join(parts)


def _span(values: Sequence[float], digits: int = 2) -> str:
    low, high = number(min(values), digits), number(max(values), digits)
    return low if low == high else f"{low} to {high}"


def _summary(found: Uncertainty) -> Grid:
    """Ranges over SNRs and tissues, for each method and kind of interval."""
    lines = []
    both = ("coverage", "width_over_bound")
    for method in found.methods:
        narrow, wide = (_cells(found, method, which) for which in (True, False))
        for kind in _kinds(found, method):
            cells = [method, kind]
            cells.append(f"{sum(_meets(found, method, kind, cell) for cell in narrow)} of {len(narrow)}")
            for part, names in ((narrow, both), (wide, (*both, "one_sided_rate"))):
                cells += [_range(found, method, part, f"{metric}_{kind}") for metric in names]
            metrics = ("crps_over_constant", "undefined_rate", "at_bound_rate")
            cells += [_range(found, method, [*narrow, *wide], metric) for metric in metrics]
            lines.append(cells)
    heads = ["method", "interval", "meet both targets", *("coverage [%]", "width / bound's") * 2]
    heads += ["one-sided [%]", "CRPS / constant", "no finite SD [%]", "at bound [%]"]
    groups = [("", 2), (f"bound's CV under {NARROW:g} %", 3), (f"{NARROW:g} % or more", 3), ("SD, all", 3)]
    return Grid(heads, lines, names=2, groups=groups)


def _range(found: Uncertainty, method: str, cells: Sequence[Cell], metric: str) -> str:
    values = [found.of(method, *cell, metric).value for cell in cells]
    known = [value for value in values if value == value]
    return _span(known, 3 if metric.startswith("coverage") else 2) if known else "–"


def sections(found: Uncertainty, views: Mapping[float, Mapping[str, Float[np.ndarray, "2 y x"]]]) -> list[Section]:
    """Figures, then tables.

    Args:
        views: error and SD of one realisation, by SNR and method [SI]; empty if the images are no slices.
    """
    caption = Text("Ranges over SNRs and tissues.", soft=True)
    parts = [Section("In short", [_summary(found), caption]), Section("Coverage and width", _coverage(found))]
    told: list[Block] = [
        Picture(sparsification_over_snr(found), "sparsification curves"),
        Text(
            "Error of what is left when the voxels of the largest SD are removed. The oracle removes the largest "
            "errors first; random order leaves the error as it is. Voxels of one tissue differ little in SD, "
            "so that no honest SD comes near the oracle there; and an SD that is worked out at the estimate is too "
            "small where the estimate is too small, so that the error rises again on the right. Mean over draws.",
            soft=True,
        ),
    ]
    parts.append(Section("Does the SD find the errors?", told))
    law: list[Block] = [
        Picture(quantiles_over_snr(found), "quantiles of the stated law against the share of voxels below"),
        Text(
            "Below the diagonal on the left and above it on the right: the SD is too large. Mean over draws.", soft=True
        ),
        Picture(errors_over_sd(found), "RMSE over stated SD"),
        Text(
            "Above the line the SD is too small. Mean over draws of bins of equal number. An SD that is worked out at "
            "the estimate moves with its error: a V, the errors large at both ends of the SD.",
            soft=True,
        ),
    ]
    parts.append(Section("Calibration", law))
    if views:
        blocks: list[Block] = []
        for snr, firsts in views.items():
            blocks += [Heading(f"SNR {snr:g}"), Picture(maps(firsts, _MILLI), f"|error| and SD at SNR {snr:g}")]
        text = f"Pure voxels of the first draw; |error| and SD of {plain(found.parameter)} on one scale;"
        blocks.append(Text(f"{text} red: beyond the scale, or infinite; light: no value.", soft=True))
        parts.append(Section("One realisation", blocks))
    folded = len(found.snrs) > 3
    parts += [Section(f"Figures, SNR {snr:g} (σ {0.65 / snr:.3g})", _tables(found, snr), folded) for snr in found.snrs]
    return parts


def _coverage(found: Uncertainty) -> list[Block]:
    blocks: list[Block] = []
    for kind in found.kinds:
        if all((method, kind) in found.refusals for method in found.methods):
            continue
        blocks += [Heading(kind), Picture(coverage_over_snr(found, kind), f"coverage and width of {kind} intervals")]
    level = 100 * found.level
    blocks.append(
        Text(
            f"Green: the targets, {level - OFF_LEVEL:g} to {level + OFF_LEVEL:g} % at no more than {WIDEST:g} × the "
            "width of the Cramér-Rao bound of the problem that the method solves, demanded where that bound's CV is "
            f"under {NARROW:g} % (full marks). Upright lines: 95 % over draws. An interval that ends where the range "
            f"of {plain(found.parameter)} ends is one-sided there, and its width is the distance to that end. "
            "Widths below 1 come of a prior, or of a range that ends.",
            soft=True,
        )
    )
    reasons: dict[str, dict[str, list[str]]] = {}
    for (method, kind), why in found.refusals.items():
        reasons.setdefault(why, {}).setdefault(kind, []).append(method)
    said = [
        f"No {kind} interval of {', '.join(methods)}: {why}."
        for why, kinds in reasons.items()
        for kind, methods in kinds.items()
    ]
    if said:
        blocks.append(Points(said))
    return blocks


def _tables(found: Uncertainty, snr: float) -> list[Block]:
    of_intervals: list[list[str]] = []
    of_sd: list[list[str]] = []
    lines_of_terciles: list[list[str]] = []
    marked = set()
    for region, name in found.regions.items():
        for method in found.methods:
            bound = number(found.bound(method, snr, region).value)
            for kind in _kinds(found, method):
                at = (method, snr, region)
                held = found.of(*at, f"coverage_{kind}")
                cells = [name, method, kind, bound, _with_interval(held)]
                cells += [
                    number(found.of(*at, f"{metric}_{kind}").value)
                    for metric in ("width", "width_over_bound", "one_sided_rate", "undefined_rate")
                ]
                if found.bound(*at).value < NARROW and _meets(found, method, kind, (snr, region)):
                    marked.add((len(of_intervals), 4))
                of_intervals.append(cells)
                thirds = [number(found.of(*at, f"coverage_{kind}", group).value, 3) for group in (1, 2, 3)]
                widths = [number(found.of(*at, f"width_{kind}", group).value) for group in (1, 2, 3)]
                lines_of_terciles.append([name, method, kind, *thirds, *widths])
            metrics = ["sd_over_bound", "crps", "crps_over_constant", "calibration_error", "ence"]
            metrics += ["spearman", "ause", "aurg", "undefined_rate", "at_bound_rate"]
            of_sd.append([name, method, *(number(found.of(method, snr, region, metric).value) for metric in metrics)])
    interval_heads = ["tissue", "method", "interval", "bound's CV [%]", "coverage [%] (95 %)", "width [%]"]
    interval_heads += ["width / bound's", "one-sided [%]", "no interval [%]"]
    sd_heads = ["tissue", "method", "SD / bound's", "CRPS [%]", "CRPS / constant", "quantile error [%]", "ENCE [%]"]
    sd_heads += ["Spearman", "AUSE", "AURG", "no finite SD [%]", "at bound [%]"]
    third = [group.removeprefix("tercile ") for group in GROUPS[1:]] * 2
    return [
        Heading("Intervals"),
        Grid(interval_heads, of_intervals, names=3, best=marked),
        Heading("SD"),
        Grid(sd_heads, of_sd, names=2),
        Heading("By tercile of |error|"),
        Grid(
            ["tissue", "method", "interval", *third],
            lines_of_terciles,
            names=3,
            groups=[("", 3), ("coverage [%]", 3), ("median width [%]", 3)],
        ),
    ]


def _with_interval(held: Interval) -> str:
    if held.low != held.low:
        return number(held.value, 3)
    return f"{number(held.value, 3)} ({number(held.low, 3)} to {number(held.high, 3)})"
