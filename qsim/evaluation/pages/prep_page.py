"""The page of a `prep_robustness` study: ranking, heat maps, curves, hard against finite pulses, methods."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from qsim.evaluation.pages.figures import nice
from qsim.evaluation.pages.heat_figures import (
    Curve,
    Panel,
    Plot,
    Scale,
    curve_figure,
    heat_figure,
    heat_legend,
)
from qsim.evaluation.pages.heat_report import Block, Grid, Heading, Picture, Points, Section, Text
from qsim.evaluation.pages.summary import number
from qsim.evaluation.studies.apparent import FITS, TOLERANCE, Fit, TissueTimes
from qsim.evaluation.studies.prep_robustness import Central, FieldPreparation, Figures, Robustness, figures, nominal
from qsim.signals.preparations import SpinLockPreparation

FAMILIES = {"spin_lock": "Spin-lock", "t2_prep": "T2 preparation"}
SYMBOLS = {"T1RHO": Markup("T<sub>1ρ</sub>"), "T2": Markup("T<sub>2</sub>"), "T1": Markup("T<sub>1</sub>")}
MATH = {"T1RHO": "T_{1\\rho}", "T2": "T_2", "T1": "T_1"}
FIT_NAMES: dict[Fit, str] = {"2p": "two-parameter fit", "3p": "three-parameter fit"}
_SERIES = {"spin_lock": "spin-lock times", "t2_prep": "echo times"}
# columns of the ranking where one is best, and whether that is the largest
_COMPARED = {4: False, 6: True, 7: False, 8: True, 10: False, 11: True, 12: True}
# maps side by side
_COLUMNS = 6
# what is named beside the best: within a tenth of it
_CLOSE = 1.1


@dataclass(frozen=True, slots=True)
class PrepStudy:
    """What the page is made from: every preparation on every tissue, in the order of the config."""

    results: Sequence[Robustness]
    tissues: Sequence[TissueTimes]
    central: Central

    def of(self, tissue: str, family: str, pulses: str | None = None) -> list[Robustness]:
        """Results of one tissue and kind of preparation, and of one kind of pulses."""
        return [
            r
            for r in self.results
            if r.tissue == tissue and r.family == family and (pulses is None or r.pulses == pulses)
        ]

    @property
    def families(self) -> list[str]:
        return [family for family in FAMILIES if any(r.family == family for r in self.results)]

    @property
    def pulses(self) -> list[str]:
        """Kinds of pulses, hard ones first."""
        return sorted({r.pulses for r in self.results}, key=lambda name: (name != "hard", name))

    def over(self, result: Robustness, which: Fit, *, central: bool = False) -> Figures:
        """Figures over the whole grid, or the central region."""
        region = self.central.inside(result.delta_b0, result.rel_b1) if central else None
        return figures(result, which, region)


def lead(study: PrepStudy) -> list[Markup]:
    """The most and the least robust preparation of each kind, on the first tissue."""
    first = study.tissues[0].name
    sentences = []
    for family in study.families:
        ranked = _ranked(study, first, family)
        best, last = ranked[0], ranked[-1]
        inner, whole = study.over(best, "2p", central=True), study.over(best, "2p")
        close = [r for r in ranked[1:] if study.over(r, "2p", central=True).abs_p95 <= _CLOSE * inner.abs_p95]
        text = Markup(
            "{kind}, {tissue}: in a shimmed and calibrated field ({centre}) the {symbol} of a two-parameter fit is "
            "most robust with <b>{best}</b> ({pulses}): |bias| under {size} % in 95 % of the points{close}. Over the "
            "whole grid it is within {limit:g} % of the truth in {share} % of them"
        ).format(
            kind=FAMILIES[family],
            tissue=first,
            centre=_centre(study),
            symbol=SYMBOLS[best.parameter],
            best=best.name,
            pulses=_pulse_words(best.pulses),
            size=number(inner.abs_p95),
            close="".join(f", {r.name} ({_pulse_words(r.pulses)})" for r in close).replace(", ", " (next: ", 1)
            + (")" if close else ""),
            limit=TOLERANCE,
            share=number(whole.share_within),
        )
        if last is not best:
            text += Markup("; last is {name} ({pulses}): {size} % in the centre").format(
                name=last.name,
                pulses=_pulse_words(last.pulses),
                size=number(study.over(last, "2p", central=True).abs_p95),
            )
        sentences.append(text + ".")
    return sentences


def _ranked(study: PrepStudy, tissue: str, family: str) -> list[Robustness]:
    """By the 95th percentile of the size of the bias in the central region; what has none comes last."""

    def key(result: Robustness) -> float:
        size = study.over(result, "2p", central=True).abs_p95
        return size if np.isfinite(size) else np.inf

    return sorted(study.of(tissue, family), key=key)


def sections(study: PrepStudy) -> list[Section]:
    """The page in order; tissues after the first are folded."""
    limit = colour_limit(study)
    parts: list[Section] = []
    for i, tissue in enumerate(study.tissues):
        for family in study.families:
            title = f"{FAMILIES[family]} on {tissue.name}"
            parts.append(Section(title, _family(study, tissue.name, family, limit), folded=i > 0))
    if len(study.pulses) > 1:
        parts.append(Section("Hard against finite pulses", _pulses(study)))
    parts.append(Section("How to read this page", [Points(_reading(study, limit))]))
    return parts


def colour_limit(study: PrepStudy) -> float:
    """One scale for every map of the page: most biases on it, and the small ones still told apart [%]."""
    sizes = np.concatenate([np.abs(r.bias("2p")).ravel() for r in study.results])
    sizes = sizes[np.isfinite(sizes)]
    return min(max(nice(float(np.percentile(sizes, 85))), 10.0), 30.0) if sizes.size else 10.0


def _family(study: PrepStudy, tissue: str, family: str, limit: float) -> list[Block]:
    results = study.of(tissue, family)
    symbol = SYMBOLS[results[0].parameter]
    blocks: list[Block] = [
        Heading("Ranking"),
        Text(
            Markup(
                "Relative bias of the apparent {} (truth {:g} ms) without noise. Centre: {}; whole grid: {}. Ranked by "
                "p95 in the centre: |bias| of the two-parameter fit that 95 % of the points stay under. Green: best of "
                "the column."
            ).format(symbol, 1e3 * results[0].true, _centre(study), _extent(results[0])),
            soft=True,
        ),
        _ranking(study, tissue, family),
        Heading("Bias over B0 and B1"),
        Picture(heat_legend(f"central region ({_centre(study)})"), "marks of the maps"),
    ]
    # the page stays one that can be mailed: further tissues show the fit that is ranked
    for which in FITS if tissue == study.tissues[0].name else FITS[:1]:
        for pulses in study.pulses:
            chosen = study.of(tissue, family, pulses)
            if chosen:
                words = f"{FIT_NAMES[which].capitalize()}, {_pulse_words(pulses)}"
                blocks += [Text(words, soft=True), Picture(_maps(study, chosen, which, limit), f"heat maps: {words}")]
    blocks += [
        Heading("Along each field"),
        Text("Cuts through the maps at nominal B1 and on resonance. Grey: within 5 %.", soft=True),
        Picture(_cuts(study, tissue, family), f"bias of {family} over each field"),
    ]
    return blocks


def _ranking(study: PrepStudy, tissue: str, family: str) -> Grid:
    rows = []
    for place, result in enumerate(_ranked(study, tissue, family), 1):
        two, three = study.over(result, "2p"), study.over(result, "3p")
        inner, inner_three = (study.over(result, which, central=True) for which in FITS)
        rows.append(
            [
                *(str(place), result.name, result.pulses),
                number(nominal(result, "2p")),
                number(inner.abs_p95),
                number(inner.median),
                number(inner.share_within),
                number(two.abs_p95),
                number(two.share_within),
                f"{number(two.max_abs)} ({number(two.worst[0], 3)} Hz, {two.worst[1]:.2f})",
                *(number(inner_three.abs_p95), number(inner_three.share_within), number(three.share_within)),
                number(three.failed + three.at_bound),
                number(two.negative),
            ]
        )
    size, share = "|bias| p95 [%]", "within 5 % [% of points]"
    return Grid(
        heads=[
            *("", "preparation", "pulses", "bias [%]"),
            *(size, "median bias [%]", share),
            *(size, share, "largest |bias| [%] (ΔB0, B1)"),
            *(size, share, share, "at bound, failed [%]"),
            "sign lost [%]",
        ],
        groups=[
            ("", 3),
            ("nominal", 1),
            ("two parameters, centre", 3),
            ("two parameters, whole grid", 3),
            ("three parameters, centre", 2),
            ("whole grid", 2),
            ("", 1),
        ],
        rows=rows,
        names=3,
        best=_best(rows),
    )


def _best(rows: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
    """Cells with the largest or smallest printed size of a column; dashes are none."""
    found = []
    for column, most in _COMPARED.items():
        sizes = {i: float(row[column]) for i, row in enumerate(rows) if row[column][:1].isdigit()}
        if sizes:
            best = (max if most else min)(sizes.values())
            found += [(i, column) for i, size in sizes.items() if size == best]
    return found


def _maps(study: PrepStudy, results: Sequence[Robustness], which: Fit, limit: float) -> str:
    first, central = results[0], study.central
    x = Scale("ΔB0 [Hz]", first.delta_b0, (-central.delta_b0, central.delta_b0))
    y = Scale("relative B1", first.rel_b1, (1 - central.rel_b1, 1 + central.rel_b1))
    panels = [Panel(r.name, r.bias(which), r.fits[which].failed) for r in results]
    return heat_figure(panels, x, y, limit, _COLUMNS, f"relative bias of ${MATH[first.parameter]}$ [%]")


def _cuts(study: PrepStudy, tissue: str, family: str) -> str:
    names = list(dict.fromkeys(r.name for r in study.of(tissue, family)))
    curves: tuple[list[Curve], list[Curve]] = ([], [])
    styles = dict(zip(study.pulses, ("-", "--", ":", "-."), strict=False))
    for result in study.of(tissue, family):
        y, x = int(np.abs(result.rel_b1 - 1).argmin()), int(np.abs(result.delta_b0).argmin())
        colour, style = names.index(result.name), styles.get(result.pulses, ":")
        bias = result.bias("2p")
        curves[0].append(Curve(result.name, result.delta_b0, bias[y], colour, style))
        curves[1].append(Curve(result.name, result.rel_b1, bias[:, x], colour, style))
    shown = np.concatenate([curve.y[np.isfinite(curve.y)] for part in curves for curve in part])
    ends = min(nice(1.05 * float(np.percentile(np.abs(shown), 97))), 50.0) if shown.size else 10.0
    symbol = MATH[study.of(tissue, family)[0].parameter]
    plots = [
        Plot(title, axis, f"relative bias of ${symbol}$ [%]", part, limits=(-ends, ends), zero=True)
        for title, axis, part in (("B1 nominal", "ΔB0 [Hz]", curves[0]), ("On resonance", "relative B1", curves[1]))
    ]
    return curve_figure(plots, 2, [(styles[p], _pulse_words(p)) for p in study.pulses if p in styles])


def _pulses(study: PrepStudy) -> list[Block]:
    """What finite pulses change: a table over all preparations, tissue by tissue."""
    hard, *finite = study.pulses
    blocks: list[Block] = [
        Text(
            "Finite pulses take time: relaxation and off-resonance act during them, and the lock or the first echo "
            "starts late. Two-parameter fit; nominal: bias at ΔB0 0 and B1 1.",
            soft=True,
        )
    ]
    rows = []
    for family in study.families:
        for tissue in study.tissues:
            found = {(r.name, r.pulses): r for r in study.of(tissue.name, family)}
            for name in dict.fromkeys(name for name, _ in found):
                cells = [FAMILIES[family], tissue.name, name]
                for pulses in (hard, *finite):
                    result = found.get((name, pulses))
                    if result is None:
                        cells += ["–", "–", "–"]
                        continue
                    inner, whole = study.over(result, "2p", central=True), study.over(result, "2p")
                    cells += [number(nominal(result, "2p")), number(inner.abs_p95), number(whole.share_within)]
                rows.append(cells)
    heads = ["", "tissue", "preparation"] + [
        "nominal bias [%]",
        "centre: |bias| p95 [%]",
        "grid: within 5 % [%]",
    ] * (1 + len(finite))
    groups: list[tuple[str | Markup, int]] = [("", 3), *((_pulse_words(p), 3) for p in study.pulses)]
    blocks.append(Grid(heads, rows, names=3, groups=groups))
    return blocks


def _reading(study: PrepStudy, limit: float) -> list[Markup]:
    return [
        Markup(
            "<b>Relative bias</b>: 100 (apparent − true) / true. Apparent: least squares of A exp(−t / T) (two "
            "parameters) or A exp(−t / T) + C (three) to the magnitude of the noise-free images, the global minimum "
            "over T from 1 ms to 4 s. White is no bias; every map of the page has one scale, ±{:g} %, and what lies "
            "beyond has the colour of its end."
        ).format(limit),
        Markup(
            "<b>Within 5 %</b> counts the points whose fit ended inside its range and whose apparent time is within "
            "{:g} % of the truth. <b>At bound or failed</b>: the fit found no decay, or a time of 1 ms or 4 s, or did "
            "not converge; such points are grey, and their value stays in medians and percentiles."
        ).format(TOLERANCE),
        Markup(
            "<b>Sign lost</b>: points where an image is negative before the modulus. Magnitude images fold it up, "
            "which no decay follows."
        ),
        Markup(
            "The ranking depends on the grid: <b>it weighs all fields alike</b>. Read the map at the fields of the "
            "scanner and organ in question; the central region ({}) stands for a shimmed and calibrated scan. Maps of "
            "the three-parameter fit are drawn for the first tissue; grid.csv holds all."
        ).format(_centre(study)),
    ]


def methods(study: PrepStudy, preparations: Sequence[FieldPreparation]) -> list[tuple[str, Markup | str]]:
    """Equations, assumptions and sources."""
    times = dict.fromkeys(
        f"{_SERIES[p.kind]} " + ", ".join(f"{1e3 * t:g}" for t in p.times) + " ms" for p in preparations
    )
    locks = dict.fromkeys(str(p.fsl) for p in preparations if isinstance(p, SpinLockPreparation))
    entries: list[tuple[str, Markup | str]] = [
        (
            "magnetisation",
            "Bloch equation along every list of events in closed form, T1rho along and T2rho across the effective "
            "field while a lock is on; T2rho is that of the Bloch equation. B1 scales pulses and lock alike. Each "
            "cluster has one constant sign.",
        ),
        ("series", "; ".join(times) + (f"; lock {', '.join(locks)} Hz nominal" if locks else "")),
        (
            "left out",
            "readout (the signal is Mz after a crusher), noise, diffusion, gradients during preparations, exchange "
            "unless a preparation names it, incomplete recovery: full Mz before each.",
        ),
        (
            "fit",
            "voxel-wise least squares by variable projection to the global minimum, A ≥ 0, T from 1 ms to 4 s, C free "
            "(Golub and Pereyra 1973, doi:10.1137/0710036); of magnitudes.",
        ),
        (
            "sources",
            "clusters: PMC10078184, PMC2877388, doi:10.1002/mrm.28585, PMC2859035; T2 preparation: "
            "doi:10.1002/mrm.1910330513; the third parameter: PMC4320682; colours: doi:10.1038/s41467-020-19160-7.",
        ),
    ]
    for tissue in study.tissues:
        rho = "" if tissue.t1rho is None else f", T1rho {1e3 * tissue.t1rho:g} ms"
        entries.append((tissue.name, f"T1 {1e3 * tissue.t1:g} ms, T2 {1e3 * tissue.t2:g} ms{rho}. {tissue.source}"))
    return entries


def _pulse_words(pulses: str) -> str:
    return "hard pulses" if pulses == "hard" else f"rectangular pulses of {pulses}"


def _centre(study: PrepStudy) -> str:
    return f"|ΔB0| ≤ {study.central.delta_b0:g} Hz, B1 within {100 * study.central.rel_b1:g} %"


def _extent(result: Robustness) -> str:
    b0, b1 = result.delta_b0, result.rel_b1
    return f"ΔB0 {b0[0]:g} to {b0[-1]:g} Hz, B1 {b1[0]:g} to {b1[-1]:g}, {len(b0)} × {len(b1)} points".replace("-", "−")
