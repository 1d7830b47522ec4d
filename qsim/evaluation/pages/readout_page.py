"""The page of a `readout_bias` study: both fits without noise, with noise, over T1 and the readout, methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log, pi

import numpy as np
from markupsafe import Markup

from qsim.evaluation.pages.figures import nice
from qsim.evaluation.pages.heat_figures import Curve, Panel, Plot, Scale, curve_figure, heat_figure, heat_legend
from qsim.evaluation.pages.heat_report import Block, Grid, Heading, Picture, Points, Section, Text
from qsim.evaluation.pages.prep_page import MATH, SYMBOLS
from qsim.evaluation.pages.summary import number
from qsim.evaluation.studies.apparent import FITS, TOLERANCE, Fit, TissueTimes
from qsim.evaluation.studies.readout_bias import Case, Errors, NoiseFree, Sweep
from qsim.kspace.noise import sigma_of
from qsim.signals.preparations import Inversion

_AXES = {
    "flip_angle": "flip angle [°]",
    "echoes": "echoes before the centre",
    "rel_b1": "relative B1",
}
_SWEEP_TITLES = {
    "flip_angle": "T1 and flip angle",
    "echoes": "T1 and echoes before the centre of a linear order",
    "rel_b1": "T1 and B1",
}
_ROWS: dict[Fit, str] = {"2p": "two", "3p": "three"}
_MAPS, _CURVES = 5, 4
# axis of RMSE: what lies beyond says only that the fit is lost [%]
_MOST, _LEAST = 300.0, 0.3


@dataclass(frozen=True, slots=True)
class Outcome:
    """All of one case.

    Attributes:
        case: what was played.
        clean: fits without noise.
        noisy: errors with noise.
        sweeps: over T1 and each property; none of an ideal readout or beyond the first tissue.
    """

    case: Case
    clean: NoiseFree
    noisy: Mapping[Fit, Errors]
    sweeps: Sequence[Sweep]

    def bias(self, which: Fit) -> float:
        """Relative bias without noise [%]."""
        return float(self.clean.fits[which].relative_bias(self.case.true)[0])

    def mean(self, which: Fit, field: str) -> list[float]:
        """A figure at each SNR, over the draws [%]."""
        return [float(v) for v in getattr(self.noisy[which], field).mean(0)]


@dataclass(frozen=True, slots=True)
class ReadoutStudy:
    """What the page is made from, in the order of the config."""

    outcomes: Sequence[Outcome]
    tissues: Sequence[TissueTimes]
    snrs: Sequence[float]
    draws: int
    repeats: int
    spread: float
    tr: float | None

    def of(self, preparation: str, tissue: str) -> list[Outcome]:
        """Outcomes of one preparation on one tissue, readout by readout."""
        return [o for o in self.outcomes if o.case.names[0] == preparation and o.case.tissue.name == tissue]

    @property
    def preparations(self) -> list[str]:
        return list(dict.fromkeys(o.case.names[0] for o in self.outcomes))


def crossing(outcome: Outcome, snrs: Sequence[float]) -> float | None:
    """SNR from which on the RMSE of three parameters is the smaller one, between two of the study on a logarithmic
    scale; 0 if it is at every SNR, None if it is at none.
    """
    ascending = sorted(range(len(snrs)), key=lambda i: snrs[i])
    lead = [log(outcome.mean("3p", "rmse")[i] / outcome.mean("2p", "rmse")[i]) for i in ascending]
    if lead[-1] >= 0:
        return None
    behind = [k for k, value in enumerate(lead) if value >= 0]
    if not behind:
        return 0.0
    k = behind[-1]
    low, high = (log(snrs[ascending[i]]) for i in (k, k + 1))
    return float(np.exp(low + (high - low) * lead[k] / (lead[k] - lead[k + 1])))


def lead(study: ReadoutStudy) -> list[Markup]:
    """What the readouts do to the first tissue."""
    first = study.tissues[0].name
    sentences = []
    for preparation in study.preparations:
        outcomes = study.of(preparation, first)
        worst = max(outcomes, key=lambda o: abs(o.bias("2p")))
        right = max(abs(o.bias("3p")) for o in outcomes)
        case = worst.case
        text = Markup(
            "{prep}, {tissue}: without noise the two-parameter {symbol} behind <b>{readout}</b> is {found:.2f} ms for "
            "a true {true:g} ms (bias {bias} %), the three-parameter one {three:.3f} ms; over all readouts the latter "
            "is off by at most {right} %."
        ).format(
            prep=preparation,
            tissue=first,
            symbol=SYMBOLS[case.parameter],
            readout=case.names[1],
            found=1e3 * float(worst.clean.fits["2p"].time[0]),
            true=1e3 * case.true,
            bias=number(worst.bias("2p")),
            three=1e3 * float(worst.clean.fits["3p"].time[0]),
            right=number(right),
        )
        at = crossing(worst, study.snrs)
        if at is None:
            text += f" With noise the two-parameter fit has the smaller RMSE up to SNR {max(study.snrs):g}."
        elif at > 0:
            text += f" With noise the third parameter pays from SNR {number(at)} on."
        else:
            text += " With noise the third parameter pays at every SNR of the study."
        sentences.append(text)
    return sentences


def sections(study: ReadoutStudy) -> list[Section]:
    """The page in order; tissues after the first are folded."""
    parts: list[Section] = []
    for i, tissue in enumerate(study.tissues):
        folded = i > 0
        parts.append(Section(f"Without noise: {tissue.name}", _clean(study, tissue.name), folded))
        parts.append(Section(f"With noise: {tissue.name}", _noisy(study, tissue.name), folded))
        if any(o.sweeps for o in study.outcomes if o.case.tissue.name == tissue.name):
            parts.append(Section(f"Bias over tissue and readout: {tissue.name}", _sweeps(study, tissue.name), folded))
    parts.append(Section("How to read this page", [Points(_reading(study))]))
    return parts


def _clean(study: ReadoutStudy, tissue: str) -> list[Block]:
    rows = []
    for preparation in study.preparations:
        for outcome in study.of(preparation, tissue):
            two, three = (outcome.clean.fits[which] for which in FITS)
            rows.append(
                [
                    preparation,
                    outcome.case.names[1],
                    f"{1e3 * outcome.case.true:g}",
                    f"{1e3 * float(two.time[0]):.2f}",
                    number(outcome.bias("2p")),
                    number(float(two.residual[0])),
                    f"{1e3 * float(three.time[0]):.2f}",
                    number(outcome.bias("3p")),
                    number(outcome.clean.constant),
                    f"{outcome.clean.signal:.3f}",
                ]
            )
    heads = [
        *("preparation", "readout", "truth [ms]"),
        *("apparent [ms]", "bias [%]", "residual [%]"),
        *("apparent [ms]", "bias [%]", "constant [%]"),
        "signal [M0]",
    ]
    groups = [("", 3), ("two parameters", 3), ("three parameters", 3), ("unprepared", 1)]
    return [
        Text(
            "Constant: C of the fitted A exp(−t / T) + C, of its value at time 0. Residual: root mean square of images "
            "minus fit, of that of the images. Signal: of the image without preparation.",
            soft=True,
        ),
        Grid(heads, rows, names=2, groups=groups),
    ]


def _noisy(study: ReadoutStudy, tissue: str) -> list[Block]:
    blocks: list[Block] = [
        Text(
            f"Mean over {study.draws} draw{'s' if study.draws > 1 else ''} of tissue values, {study.repeats} noise "
            "realisations each. SNR is that of the readout's own image without preparation.",
            soft=True,
        )
    ]
    for preparation in study.preparations:
        outcomes = study.of(preparation, tissue)
        symbol = MATH[outcomes[0].case.parameter]
        plots = [_plot(outcome, study.snrs, symbol) for outcome in outcomes]
        styles = [("-", "RMSE"), ("--", "Cramér-Rao bound of that fit"), (":", "|bias| without noise")]
        blocks += [
            Heading(preparation),
            Picture(curve_figure(plots, _CURVES, styles), f"RMSE over SNR of {preparation}"),
            _noise_table(study, outcomes),
        ]
    return blocks


def _plot(outcome: Outcome, snrs: Sequence[float], symbol: str) -> Plot:
    order = np.argsort(snrs)
    x = np.array(snrs)[order]
    curves = []
    for colour, which in enumerate(FITS):
        name = f"{_ROWS[which]} parameters"
        for field, style in (("rmse", "-"), ("bound", "--")):
            curves.append(Curve(name, x, np.array(outcome.mean(which, field))[order], colour, style))
        size = np.abs(outcome.noisy[which].noise_free).mean(0)[order]
        # what is below the axis is no bias
        if size.min() > _LEAST:
            curves.append(Curve(name, x, size, colour, ":"))
    return Plot(
        outcome.case.names[1], "SNR", f"error of ${symbol}$ [%]", curves, limits=(_LEAST, _MOST), log=(True, True)
    )


def _noise_table(study: ReadoutStudy, outcomes: Sequence[Outcome]) -> Grid:
    rows: list[list[str | Markup]] = []
    best = []
    for outcome in outcomes:
        at = crossing(outcome, study.snrs)
        both = {which: outcome.mean(which, "rmse") for which in FITS}
        for which in FITS:
            bias, sd, bound = (outcome.mean(which, field) for field in ("bias", "sd", "bound"))
            ends = outcome.mean(which, "at_bound")
            cells: list[str | Markup] = [outcome.case.names[1] if which == "2p" else "", _ROWS[which]]
            for s in range(len(study.snrs)):
                if both[which][s] == min(both["2p"][s], both["3p"][s]):
                    best.append((len(rows), s + 2))
                cell = Markup("{}<small>{} · {} · {}</small>").format(
                    number(both[which][s]), number(bias[s]), number(sd[s]), number(bound[s])
                )
                if ends[s] >= 0.5:
                    cell += Markup("<small>{} % at bound</small>").format(number(ends[s]))
                cells.append(cell)
            cells.append("" if which == "2p" else "never" if at is None else "always" if at == 0 else number(at))
            rows.append(cells)
    heads: list[str | Markup] = ["readout", "parameters"]
    heads += [Markup("{:g}<small>σ {:.3g}</small>").format(snr, sigma_of(snr)) for snr in study.snrs]
    return Grid([*heads, "three pay from"], rows, names=2, best=best)


def _sweeps(study: ReadoutStudy, tissue: str) -> list[Block]:
    blocks: list[Block] = [Picture(heat_legend(), "marks of the maps")]
    for preparation in study.preparations:
        outcomes = [o for o in study.of(preparation, tissue) if o.sweeps]
        if not outcomes:
            continue
        blocks.append(Heading(preparation))
        for axis in dict.fromkeys(s.axis for o in outcomes for s in o.sweeps):
            chosen = [(o, s) for o in outcomes for s in o.sweeps if s.axis == axis]
            worst = max(float(np.nanmax(np.abs(s.bias("3p")))) for _, s in chosen)
            text = (
                f"{_SWEEP_TITLES[axis]}: two-parameter fit. Largest |bias| of the three-parameter one: "
                f"{number(worst)} %. Readouts that differ in nothing else share the map of the first."
            )
            blocks += [Text(text, soft=True), Picture(_maps(chosen, axis), f"heat maps over {_SWEEP_TITLES[axis]}")]
    return blocks


def _maps(chosen: Sequence[tuple[Outcome, Sweep]], axis: str) -> str:
    sizes = np.concatenate([np.abs(s.bias("2p")).ravel() for _, s in chosen])
    limit = min(max(nice(float(np.nanpercentile(sizes, 90))), 10.0), 50.0)
    first = chosen[0][1]
    factor = 180 / pi if axis == "flip_angle" else 1.0
    panels = [Panel(o.case.names[1], s.bias("2p"), s.fits["2p"].failed) for o, s in chosen]
    symbol = MATH[chosen[0][0].case.parameter]
    x, y = Scale(_AXES[axis], factor * first.values), Scale("T1 [s]", first.t1)
    return heat_figure(panels, x, y, limit, _MAPS, f"relative bias of ${symbol}$ [%]")


def _reading(study: ReadoutStudy) -> list[Markup]:
    return [
        Markup(
            "<b>Relative bias</b>: 100 (apparent − true) / true. Two parameters: A exp(−t / T), or |A (1 − 2 exp(−TI / "
            "T))| after an inversion; three: A exp(−t / T) + C, or B free. The global minimum of least squares, T from "
            "1 ms to 4 s (T1: 10 ms to 6 s)."
        ),
        Markup(
            "<b>SNR</b> = 0.65 / σ on images scaled so that the image without preparation (Mz = M0 before the readout, "
            "nominal fields, mean tissue) of the same readout is 0.65: every readout is compared at the SNR of its own "
            "image without preparation, not at one scanner's noise. The last column of the first table converts: at "
            "one σ in units of M0 the SNR of a readout goes as its signal."
        ),
        Markup(
            "<b>In each cell</b>: RMSE, then bias · SD · bound, all in % of the true value; RMSE² = bias² + SD². "
            "Green: the smaller RMSE of the two fits. <b>Bound</b>: Cramér-Rao bound of an unbiased estimate in the "
            "model that is fitted, at its noise-free fit. It is no bound of the true problem where two parameters are "
            "too few, and where it is tens of percent a fit may be under it (its range is prior knowledge) or far over "
            "it: the errors then have a long tail, up to the end of the range. RMSE shows the tail; results.csv also "
            "holds the median size of the error (abs_error_median)."
        ),
        Markup(
            "<b>Draws</b>: T1, T2 and T1rho apart from each other, uniform within ±{:g} % of the tissue's. Noise, "
            "draws and repeats are the same for every readout, fit and SNR, so that differences between them are "
            "paired; results.csv holds every draw, and means with 95 % t-intervals over draws."
        ).format(100 * study.spread),
        Markup("<b>Maps</b>: white is no bias; lines at ±{:g} %; the scale is that of the figure.").format(TOLERANCE),
    ]


def methods(study: ReadoutStudy) -> list[tuple[str, Markup | str]]:
    """Equations, assumptions and sources."""
    cases = {o.case.names[0]: o.case for o in study.outcomes}
    times = "; ".join(
        f"{name}: {'TI' if isinstance(c.preparation, Inversion) else 'times'} "
        + ", ".join(f"{1e3 * t:g}" for t in c.preparation.times)
        + " ms"
        for name, c in cases.items()
    )
    entries: list[tuple[str, Markup | str]] = [
        (
            "signal",
            "preparation by the Bloch equation, then the readout, affine in Mz: echo e sees gain Mz + offset. The "
            "image has the contrast of the echo at the centre of k-space; blur along the phase axis is left out. "
            "Magnitude, on resonance, B1 nominal unless swept.",
        ),
        ("series", times),
        (
            "repetition",
            "full recovery before each preparation"
            if study.tr is None
            else f"steady state, {1e3 * study.tr:g} ms from one preparation to the next",
        ),
        (
            "why a constant",
            "spoiled gradient echoes: M after n pulses is M0* + (M − M0*) (E1 cos a)^n with M0* = (1 − E1) / (1 − E1 "
            "cos a): the centre of k-space sees a share (E1 cos a)^n of the prepared magnetisation, and the constant "
            "M0* (1 − (E1 cos a)^n) beside it. A train of refocused spin echoes adds none.",
        ),
        (
            "noise",
            "real Gaussian added to the magnitude (values may be negative).",
        ),
        (
            "sources",
            "PMC4320682 (three parameters behind T2 preparation); Look and Locker 1970, doi:10.1063/1.1684482; "
            "Cramér-Rao bound in MRI: doi:10.1002/mrm.10728; fits: doi:10.1137/0710036; colours: "
            "doi:10.1038/s41467-020-19160-7.",
        ),
    ]
    for tissue in study.tissues:
        rho = "" if tissue.t1rho is None else f", T1rho {1e3 * tissue.t1rho:g} ms"
        entries.append((tissue.name, f"T1 {1e3 * tissue.t1:g} ms, T2 {1e3 * tissue.t2:g} ms{rho}. {tissue.source}"))
    return entries
