"""The tables of a report, as text ready for the page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from math import isfinite, isinf

import numpy as np
from markupsafe import Markup

from qsim.distributions import Constant, Distribution, HalfNormal, LogUniform, Normal, Truncated, Uniform
from qsim.evaluation.pages.content import Method, Report, symbol
from qsim.evaluation.pages.summary import SLOPE, number
from qsim.evaluation.table import Table
from qsim.parameters import Parameter

_TIMES = ("ti", "te", "te_prep", "tsl", "tr", "ts", "esp", "rr", "ti_first", "duration", "recovery", "train")


@dataclass(frozen=True, slots=True)
class Cell:
    """One method at one SNR in one tissue."""

    rmse: str
    interval: str
    bias: str
    cv: str
    ratio: str
    best: bool
    paints: bool


@dataclass(frozen=True, slots=True)
class KeyRows:
    """The part of the main table that belongs to one tissue."""

    title: str
    n: int
    rows: list[tuple[Method, list[Cell | None]]]


def key_rows(
    table: Table,
    report: Report,
    tissue: str,
    title: str,
    parameter: Parameter,
    references: Mapping[str, str],
    snrs: Sequence[float],
) -> KeyRows:
    best = {}
    for snr in snrs:
        values = {
            m.name: table.value(m.name, tissue, parameter.name, snr, "rmse_median")
            for m in report.methods
            if m.role != "painter"
        }
        finite = {name: v for name, v in values.items() if isfinite(v)}
        best[snr] = min(finite, key=lambda name: finite[name]) if finite else ""
    rows = []
    for method in report.methods:
        cells: list[Cell | None] = []
        for snr in snrs:
            rmse = table.get(method.name, tissue, parameter.name, snr, "rmse_median")
            if rmse is None or not isfinite(rmse.value):
                cells.append(None)
                continue
            bias = table.value(method.name, tissue, parameter.name, snr, "relative_bias_median")
            cv = table.value(method.name, tissue, parameter.name, snr, "cv_median")
            ratio = table.value(method.name, tissue, parameter.name, snr, f"rmse_over_bound_{references[method.name]}")
            slope = table.value(method.name, tissue, parameter.name, snr, "slope_within")
            cells.append(
                Cell(
                    rmse=number(rmse.value),
                    interval=f"{number(rmse.low)} – {number(rmse.high)}" if isfinite(rmse.low) else "",
                    bias=("+" if bias > 0 and number(bias) != "0" else "") + number(bias),
                    cv=number(cv),
                    ratio=number(ratio) if isfinite(ratio) else "",
                    best=method.name == best[snr],
                    paints=method.role != "painter" and slope < SLOPE,
                )
            )
        if any(cells):
            rows.append((method, cells))
    first = table.get("truth", tissue, parameter.name, snrs[0], "truth_mean")
    return KeyRows(title, first.n if first else 0, rows)


def slope_rows(
    table: Table, tissue: str, parameter: str, names: Sequence[str], snrs: Sequence[float]
) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Slope within the tissue with its interval, and between draws."""
    rows = []
    for name in names:
        cells = []
        for snr in snrs:
            within = table.get(name, tissue, parameter, snr, "slope_within")
            interval = f"{number(within.low)} to {number(within.high)}" if within and isfinite(within.low) else ""
            between = number(table.value(name, tissue, parameter, snr, "slope_between_draws"))
            cells.append((number(within.value) if within else "–", interval, between))
        rows.append((name, cells))
    return rows


def status_rows(
    table: Table, tissue: str, names: Sequence[str], snrs: Sequence[float]
) -> list[tuple[str, list[tuple[str, str]]]]:
    return [
        (
            name,
            [
                (
                    number(table.value(name, tissue, "", s, "failure_rate")),
                    number(table.value(name, tissue, "", s, "at_bound_rate")),
                )
                for s in snrs
            ],
        )
        for name in names
    ]


def bound_rows(
    table: Table,
    tissues: Mapping[str, str],
    parameters: Sequence[Parameter],
    bounds: Sequence[str],
    snrs: Sequence[float],
) -> list[tuple[str, list[tuple[Markup, list[list[str]]]]]]:
    """Median bound of each parameter in each tissue, one list of bounds per SNR."""

    def cell(bound: str, tissue: str, parameter: str, snr: float) -> str:
        row = table.get(f"bound-{bound}", tissue, parameter, snr, "bound_median")
        if row is None:
            return ""
        return "∞" if isinf(row.value) else number(row.value)

    return [
        (title, [(symbol(p), [[cell(b, t, p.name, s) for b in bounds] for s in snrs]) for p in parameters])
        for t, title in tissues.items()
    ]


def time_rows(table: Table, names: Sequence[str], snrs: Sequence[float]) -> list[tuple[str, str, str]]:
    """Seconds per image of each method: mean over SNRs, and the range over them."""
    found = []
    for name in names:
        values = [v for s in snrs if isfinite(v := table.value(name, "", "", s, "cpu_seconds_per_image"))]
        if values:
            found.append((name, f"{np.mean(values):.3g}", f"{min(values):.3g} to {max(values):.3g}"))
    return found


def _scaled(value: float, parameter: Parameter) -> str:
    return f"{1000 * value:.0f}" if parameter.unit == "s" else f"{value:.3g}"


def _say(distribution: Distribution, parameter: Parameter) -> str:
    """A distribution in words, times in ms."""

    def text(value: float) -> str:
        return _scaled(value, parameter)

    match distribution:
        case Constant():
            return text(distribution.value)
        case Normal():
            return f"{text(distribution.mean)} ± {text(distribution.sd)}"
        case Uniform():
            return f"uniform {text(distribution.low)} to {text(distribution.high)}"
        case LogUniform():
            return f"log-uniform {text(distribution.low)} to {text(distribution.high)}"
        case HalfNormal():
            sign = "−" if distribution.below else "+"
            return f"{text(distribution.origin)} {sign} |N(0, {text(distribution.scale)}²)|"
        case Truncated():
            low, high = distribution.support
            return f"{_say(distribution.of, parameter)}, cut to {text(low)} to {text(high)}"
    return type(distribution).__name__


def tissue_rows(
    table: Table, report: Report, tissues: Mapping[str, str], snrs: Sequence[float]
) -> list[tuple[str, int, list[tuple[str, str]], str]]:
    """Distribution of each parameter by the table, what this study drew from it, and the source."""
    found = []
    for tissue, title in tissues.items():
        cells = []
        n = 0
        for p in report.parameters:
            source = report.table.per_sample.get(p.name) or report.table[tissue].values[p.name]
            mean = table.get("truth", tissue, p.name, snrs[0], "truth_mean")
            spread = table.value("truth", tissue, p.name, snrs[0], "truth_sd")
            n = mean.n if mean else 0
            drawn = f"{_scaled(mean.value, p)}, within {_scaled(spread, p)}" if mean else "–"
            cells.append((_say(source, p), drawn))
        found.append((title, n, cells, report.table[tissue].source))
    return found


def variation(report: Report) -> str:
    """Variation within a tissue, in words."""
    said = []
    for p in report.parameters:
        within = report.table.within.get(p.name)
        if within is None or (within.relative == 0 and within.absolute == 0):
            said.append(f"{p.name} none")
            continue
        parts = [f"{100 * within.relative:g} % of the tissue's value"] if within.relative else []
        unit = " ms" if p.unit == "s" else ""
        parts += [f"{_scaled(within.absolute, p)}{unit}"] if within.absolute else []
        said.append(f"{p.name} {' and '.join(parts)}")
    return "; ".join(said)


def protocol(report: Report) -> list[tuple[str, str]]:
    """Settings of the signal model and of its parts, times in ms; what is not set is left out."""
    return list(_settings(report.model, "")) if is_dataclass(report.model) else []


def _settings(part: object, path: str) -> Iterator[tuple[str, str]]:
    for item in fields(part):  # type: ignore[arg-type]
        content, name = getattr(part, item.name), path + item.name
        if content is None:
            continue
        if is_dataclass(content):
            yield from _settings(content, f"{name}.")
        elif item.name in _TIMES:
            times = content if isinstance(content, tuple) else (content,)
            yield f"{name} [ms]", ", ".join(f"{1000 * t:g}" for t in times)
        else:
            yield name, ", ".join(map(str, content)) if isinstance(content, tuple) else str(content)
