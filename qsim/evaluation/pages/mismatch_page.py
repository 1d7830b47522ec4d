"""The page of a `mismatch` study: for each case the bias without noise, and bias, SD and RMSE with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from qsim.evaluation.pages.content import plain, symbol
from qsim.evaluation.pages.grid_figures import bias_limit, chosen, error_limits
from qsim.evaluation.pages.grid_page import precision, snr_heads
from qsim.evaluation.pages.heat_figures import Curve, Plot, curve_figure
from qsim.evaluation.pages.heat_report import Block, Grid, Page, Picture, Points, Section, Text
from qsim.evaluation.pages.summary import number
from qsim.evaluation.studies.grid import NOISE_FREE_SNR, Statistics
from qsim.evaluation.studies.mismatch import Case, Fit
from qsim.kspace.noise import sigma_of
from qsim.parameters import PARAMETERS

_PLACES = (0, 1, 2, 3, 4, 5, 7, 8, 9)
# a bias under this is not spoken of as one [%]
_NO_BIAS = 0.5


@dataclass(frozen=True, slots=True)
class MismatchStudy:
    """What the page is made from.

    Attributes:
        cases: in the order of the config.
        snrs: of the config.
        seed: of the noise.
        found, bounds: by (case, fit, SNR): statistics of `grid.run`, and the bound of the fitted model [%].
    """

    cases: Sequence[Case]
    snrs: Sequence[float]
    seed: int
    found: Mapping[tuple[str, str, float], Statistics]
    bounds: Mapping[tuple[str, str, float], Float[np.ndarray, " p"]]

    @property
    def ascending(self) -> list[float]:
        return sorted(self.snrs)

    def of(self, case: Case, fit: Fit, snr: float, metric: str) -> Float[np.ndarray, " p"]:
        """A statistic of all repeats together, by point [%]."""
        return self.found[case.name, fit.name, snr][metric][0]

    def clean(self, case: Case, fit: Fit) -> Float[np.ndarray, " p"]:
        """Relative bias without noise, by point [%]."""
        return self.found[case.name, fit.name, self.ascending[-1]]["noise_free"]

    def bound(self, case: Case, fit: Fit, snr: float) -> Float[np.ndarray, " p"]:
        return self.bounds[case.name, fit.name, snr]


def page(study: MismatchStudy) -> Page:
    """The page, without config, versions and digest."""
    sections = [Section(case.name, _case(study, case)) for case in study.cases]
    sections.append(Section("How to read this page", [Points(_READING)]))
    first = study.cases[0].truth
    return Page(
        title="Simulated with one model, fitted with another",
        meta=f"{len(study.cases)} cases · {first.voxels} voxels × {first.repeats} repeats at {len(study.snrs)} SNRs · "
        f"seed {study.seed}",
        lead=[_lead(study, case) for case in study.cases],
        sections=sections,
        methods=_methods(study),
        versions={},
        files="results.csv (every figure with its interval) and grid.csv (one line for each case, fit, SNR and point)",
        config="",
        digest="",
        warnings=_warnings(study),
    )


def _warnings(study: MismatchStudy) -> list[str]:
    """How well the figures are known, said once where it is the same in several cases."""
    return list(
        dict.fromkeys(w for case in study.cases for w in precision(case.truth, [f.contender for f in case.fits]))
    )


def _lead(study: MismatchStudy, case: Case) -> Markup:
    """Worst bias without noise, what noise adds, and who has the smallest error at the lowest and the highest SNR."""
    text = Markup("<b>{}</b>: ").format(case.name)
    sizes = {fit.name: _largest(study.clean(case, fit)) for fit in case.fits}
    known = [fit for fit in case.fits if np.isfinite(sizes[fit.name])]
    if not known:
        text += Markup("without noise no fit gives an estimate.")
    elif sizes[(worst := max(known, key=lambda fit: sizes[fit.name])).name] < _NO_BIAS:
        text += Markup("without noise no fit is off by {:g} % or more.").format(_NO_BIAS)
    else:
        text += Markup("without noise “{}” is off by ").format(worst.name) + _extent(study, case, worst)
    low, high = study.ascending[0], study.ascending[-1]
    shifts = {fit.name: shift for fit in case.fits if np.isfinite(shift := _shift(study, case, fit)).any()}
    if shifts:
        moved = max(shifts, key=lambda name: _largest(shifts[name]))
        text += Markup(" Noise of SNR {:g} moves the median of “{}” {}by {} %.").format(
            low, moved, "most, " if len(shifts) > 1 else "", _span(shifts[moved])
        )
    best = {snr: _best(study, case, snr) for snr in dict.fromkeys((low, high))}
    if len(case.fits) > 1 and any(best.values()):
        if not all(best.values()):
            there, at = next((name, snr) for snr, name in best.items() if name)
            text += Markup(" “{}” has the smallest RMSE (median over the axis) at SNR {:g}.").format(there, at)
        elif best[low] == best[high]:
            where = f"SNR {low:g}" if low == high else f"SNR {low:g} and at SNR {high:g}"
            text += Markup(" “{}” has the smallest RMSE (median over the axis) at {}.").format(best[low], where)
        else:
            text += Markup(" Smallest RMSE (median over the axis): “{}” at SNR {:g}, “{}” at SNR {:g}.").format(
                best[low], low, best[high], high
            )
    return text


def _extent(study: MismatchStudy, case: Case, fit: Fit) -> Markup:
    """Range of the bias of one fit without noise, which has an estimate."""
    clean = study.clean(case, fit)
    i = int(np.nanargmax(np.abs(clean)))
    return Markup("{} % over the axis, most at {} ({} %).").format(_span(clean), _point(case, i), number(clean[i]))


def _span(values: Float[np.ndarray, " p"], digits: int = 2) -> str:
    """Smallest and largest in words, or the one number that both print as."""
    if not np.isfinite(values).any():
        return number(np.nan)
    low, high = (number(float(v), digits) for v in (np.nanmin(values), np.nanmax(values)))
    return low if low == high else f"{low} to {high}"


def _largest(values: Float[np.ndarray, " p"]) -> float:
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size else float("inf")


def _shift(study: MismatchStudy, case: Case, fit: Fit) -> Float[np.ndarray, " p"]:
    """What noise of the lowest SNR adds to the median, by point [%]."""
    return study.of(case, fit, study.ascending[0], "relative_bias_median") - study.clean(case, fit)


def _best(study: MismatchStudy, case: Case, snr: float) -> str:
    """The fit with the smallest RMSE; empty if none has one."""
    errors = {fit.name: _typical(study.of(case, fit, snr, "rmse")) for fit in case.fits}
    known = {name: error for name, error in errors.items() if np.isfinite(error)}
    return min(known, key=lambda name: known[name]) if known else ""


def _typical(values: Float[np.ndarray, " p"], none: float = np.nan) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else none


def _point(case: Case, i: int) -> str:
    value, parameter = float(case.points[i]), PARAMETERS[case.axis]
    if parameter.unit == "s":
        return f"{plain(case.axis)} {1e3 * value:.4g} ms"
    return f"{plain(case.axis)} {value:.4g}" + ("" if parameter.unit == "1" else f" {parameter.unit}")


def _case(study: MismatchStudy, case: Case) -> list[Block]:
    blocks: list[Block] = []
    if case.text:
        blocks.append(Text(case.text))
    blocks.append(Points([_verdict(study, case, fit) for fit in case.fits]))
    blocks += [Text(_CAPTION, soft=True), _table(study, case), _figure(study, case)]
    return blocks


def _verdict(study: MismatchStudy, case: Case, fit: Fit) -> Markup:
    """Bias without noise, what noise adds to it, and from which SNR on the bias is more than the SD."""
    clean = study.clean(case, fit)
    text = Markup("<b>{}</b> ({}): ").format(fit.name, getattr(fit.model, "kind", type(fit.model).__name__))
    if not np.isfinite(clean).any():
        text += Markup("it gives no estimate without noise.")
    elif _largest(clean) < _NO_BIAS:
        text += Markup("within {:g} % without noise.").format(_NO_BIAS)
    else:
        text += Markup("without noise off by ") + _extent(study, case, fit)
    held = int(study.found[case.name, fit.name, study.ascending[-1]]["noise_free_held"].sum())
    if held:
        text += Markup(" At {} of {} points a row ends at a bound of its range even so.").format(held, len(clean))
    low = study.ascending[0]
    added = _shift(study, case, fit)
    if np.isfinite(added).any():
        text += Markup(" Noise of SNR {:g} moves the median by {} %.").format(low, _span(added))
    over = [
        snr
        for snr in study.ascending
        if _typical(np.abs(study.of(case, fit, snr, "relative_bias")) - study.of(case, fit, snr, "sd"), -1.0) > 0
    ]
    if over and over == study.ascending[-len(over) :]:
        text += Markup(" From SNR {:g} on the bias is more than the SD (median over the axis).").format(over[0])
    elif not over:
        text += Markup(" At no SNR of the study is the bias more than the SD (median over the axis).")
    covered = study.of(case, fit, study.ascending[-1], "coverage")
    if np.isfinite(covered).any():
        text += Markup(" Its 95 % intervals cover the truth in {} % at SNR {:g}.").format(
            _span(covered, 3), study.ascending[-1]
        )
    return text


_CAPTION = (
    "Without noise: range of the relative bias over the axis [%]. With noise, medians over the axis: RMSE, below it "
    "mean bias · SD · Cramér-Rao bound of the fitted model, and the median size of the error, which a few lost voxels "
    "do not move; all in % of the truth. Green: smallest RMSE at that SNR."
)


def _table(study: MismatchStudy, case: Case) -> Grid:
    rows: list[list[str | Markup]] = []
    best = []
    errors = [[_typical(study.of(case, fit, snr, "rmse")) for snr in study.ascending] for fit in case.fits]
    for i, fit in enumerate(case.fits):
        clean = study.clean(case, fit)
        cells: list[str | Markup] = [
            fit.name,
            _span(clean),
        ]
        for s, snr in enumerate(study.ascending):
            column = [line[s] for line in errors if np.isfinite(line[s])]
            if column and errors[i][s] == min(column):
                best.append((i, s + 2))
            bias, sd = (_typical(study.of(case, fit, snr, metric)) for metric in ("relative_bias", "sd"))
            cell = Markup("{}<small>{} · {} · {}</small><small>|error| {}</small>").format(
                number(errors[i][s]),
                number(bias),
                number(sd),
                number(_typical(study.bound(case, fit, snr))),
                number(_typical(study.of(case, fit, snr, "abs_error_median"))),
            )
            for metric, text in (("at_bound_rate", "at bound"), ("failure_rate", "failed")):
                rate = float(study.of(case, fit, snr, metric).mean())
                if rate >= 0.5:
                    cell += Markup("<small>{} % {}</small>").format(number(rate), text)
            cells.append(cell)
        rows.append(cells)
    return Grid(["fit", "without noise", *snr_heads(study.ascending)], rows, best=best)


def _figure(study: MismatchStudy, case: Case) -> Picture:
    name, axis = PARAMETERS[case.measured].symbol, PARAMETERS[case.axis]
    time = axis.unit == "s"
    x = 1e3 * case.points if time else case.points
    unit = " [ms]" if time else "" if axis.unit == "1" else f" [{axis.unit}]"
    snrs = chosen(study.ascending)
    plots = []
    for metric, label in (("relative_bias", "bias"), ("sd", "SD"), ("rmse", "RMSE")):
        for snr in snrs:
            curves = []
            for place, fit in zip(_PLACES * 4, case.fits, strict=False):
                curves.append(Curve(fit.name, x, study.of(case, fit, snr, metric), place))
                if metric == "relative_bias":
                    curves.append(Curve(fit.name, x, study.clean(case, fit), place, ":"))
                else:
                    curves.append(Curve(fit.name, x, study.bound(case, fit, snr), place, "--"))
            size = metric != "relative_bias"
            reach = bias_limit([curve.y for curve in curves])
            plots.append(
                Plot(
                    f"SNR {snr:g} (σ {sigma_of(snr):.3g})",
                    f"true ${axis.symbol}${unit}",
                    f"{label} of ${name}$ [%]",
                    curves,
                    limits=error_limits(curves) if size else (-reach, reach),
                    log=(case.log, size),
                    zero=not size,
                )
            )
    styles = [(":", "bias without noise"), ("--", "Cramér-Rao bound of the fitted model")]
    return Picture(curve_figure(plots, len(snrs), styles), f"bias, SD and RMSE of {plain(case.measured)}: {case.name}")


_READING = [
    Markup(
        "<b>Relative bias</b>: 100 (estimate − truth) / truth; RMSE² = bias² + SD², over voxels and repeats together. "
        "Estimates that are not finite are left out and counted as failures."
    ),
    Markup(
        "<b>Without noise</b>: the same fit of noise-free images, told the σ of SNR {:,.0f}: a correction for noise is "
        "nothing there, and what is left is the model's."
    ).format(NOISE_FREE_SNR),
    Markup("<b>Triangle at the edge of a figure</b>: that point lies beyond the axis."),
    Markup(
        "<b>SNR</b> = 0.65 / σ. Where the config gives no A, A is such that the brightest noise-free image of the case "
        "is 0.65: SNR is then that of the brightest image, whatever the sequence makes of M0."
    ),
    Markup(
        "<b>Bound</b>: of an unbiased estimate in the model that is <i>fitted</i>, at its noise-free fit, relative to "
        "the truth. A wrong model with fewer parameters has a small bound and a bias."
    ),
]


def _methods(study: MismatchStudy) -> list[tuple[str, Markup | str]]:
    entries: list[tuple[str, Markup | str]] = []
    for case in study.cases:
        model = case.truth.model
        rows = [parameter.name for parameter in model.parameters]
        fixed = ", ".join(
            f"{plain(row)} {float(case.truth.kappa[i, 0]):.4g}" for i, row in enumerate(rows) if row != case.axis
        )
        noise = getattr(case.truth.noise, "kind", "own")
        text = f"simulated: {getattr(model, 'kind', type(model).__name__)}, {noise} noise; {fixed} (SI)."
        entries.append((case.name, text))
    entries.append(
        (
            "sources",
            Markup(
                "{} of a Look-Locker train: doi:10.1063/1.1684482; constant behind a readout: PMC4320682; Rician "
                "floor: doi:10.1002/mrm.1910340618; Cramér-Rao bound: doi:10.1002/mrm.10728."
            ).format(symbol(PARAMETERS["T1"])),
        )
    )
    return entries
