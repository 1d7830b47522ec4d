"""Figures of the uncertainty of estimates, as SVG data URIs."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MultipleLocator, NullLocator

from qsim.evaluation.pages.figures import STYLE, colours, svg_uri
from qsim.evaluation.uncertainty import Calibration, Coverage, Sparsification

_RULE = "#bbbbbb"
_GRAY = "#777777"
# milliseconds in pictures, as everywhere
_SHOWN = {"s": ("ms", 1e3)}
_MARKERS = "osD^vP"


def sparsification_figure(curves: Mapping[str, Sparsification], symbol: str, unit: str) -> str:
    """Error of what is left against the share removed, with each method's own oracle and the random curve.

    Args:
        curves: by method, all of one metric.
        symbol: of the parameter, as mathtext.
        unit: of the errors: SI, shown in ms if it is seconds; "1" or "%" as they are.
    """
    shown, factor = _SHOWN.get(unit, (unit, 1.0))
    palette = colours(list(curves))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3.7), layout="constrained")
        axis = figure.subplots()
        handles = []
        for name, curve in curves.items():
            colour = palette.get(name, _GRAY)
            x = 100 * curve.fraction
            axis.plot(x, factor * curve.random, color=colour, lw=0.8, ls=":")
            axis.plot(x, factor * curve.oracle, color=colour, lw=1.0, ls="--")
            axis.plot(x, factor * curve.curve, color=colour, lw=1.7)
            label = f"{name}: AUSE {_signed(curve.ause)}, AURG {_signed(curve.aurg)}"
            handles.append(Line2D([], [], color=colour, lw=1.7, label=label))
        handles += [
            Line2D([], [], color=_GRAY, lw=1.0, ls="--", label="oracle (removed by the error itself)"),
            Line2D([], [], color=_GRAY, lw=0.8, ls=":", label="random"),
        ]
        metric = "RMSE" if all(curve.metric == "rmse" for curve in curves.values()) else "mean absolute error"
        axis.set_xlim(0, 100)
        axis.set_ylim(0, None)
        axis.set_xlabel("voxels removed, the most uncertain first [%]")
        axis.set_ylabel(f"{metric} of ${symbol}$ of the rest [{shown}]")
        figure.legend(handles=handles, loc="outside lower left", ncols=1, frameon=False, fontsize=8.5)
        return svg_uri(figure)


def calibration_figure(calibrations: Mapping[str, Calibration], symbol: str, unit: str) -> str:
    """Left: how often the truth lies below each quantile. Right: RMSE against predicted SD, by bins of the SD.

    Args:
        calibrations: by method.
        symbol: of the parameter, as mathtext.
        unit: of the errors: SI, shown in ms if it is seconds; "1" or "%" as they are.
    """
    shown, factor = _SHOWN.get(unit, (unit, 1.0))
    palette = colours(list(calibrations))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        handles = []
        left.plot([0, 100], [0, 100], color=_RULE, lw=0.9)
        ends: list[float] = []
        for i, (name, found) in enumerate(calibrations.items()):
            colour, marker = palette.get(name, _GRAY), _MARKERS[i % len(_MARKERS)]
            left.plot(100 * found.levels, 100 * found.observed, color=colour, lw=1.2, marker=marker, ms=3)
            right.plot(factor * found.sd, factor * found.rmse, color=colour, lw=1.2, marker=marker, ms=3.5)
            ends += [float(v) for v in (*(factor * found.sd), *(factor * found.rmse)) if np.isfinite(v) and v > 0]
            label = f"{name}: quantile error {100 * found.quantile_error:.1f} %, ENCE {100 * found.ence:.0f} %"
            handles.append(Line2D([], [], color=colour, lw=1.2, marker=marker, ms=3.5, label=label))
        _square(left, 0.0, 100.0)
        left.xaxis.set_major_locator(MultipleLocator(25))
        left.yaxis.set_major_locator(MultipleLocator(25))
        left.set_xlabel("quantile of the predicted law [%]")
        left.set_ylabel("truth lies below it [% of voxels]")
        low, high = (0.8 * min(ends), 1.25 * max(ends)) if ends else (0.1, 1.0)
        right.plot([low, high], [low, high], color=_RULE, lw=0.9, zorder=1)
        right.set_xscale("log")
        right.set_yscale("log")
        _square(right, low, high)
        for one in (right.xaxis, right.yaxis):
            one.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            one.set_minor_locator(NullLocator())
        right.set_xlabel(f"predicted SD of ${symbol}$ [{shown}]")
        right.set_ylabel(f"RMSE of ${symbol}$ [{shown}]")
        figure.legend(handles=handles, loc="outside lower left", ncols=1, frameon=False, fontsize=8.5)
        return svg_uri(figure)


def coverage_figure(rows: Mapping[str, Sequence[Coverage]], symbol: str, unit: str) -> str:
    """Left: share of the intervals that hold the truth, by group. Right: their median width.

    Args:
        rows: by method, the same groups for all.
        symbol: of the parameter, as mathtext.
        unit: of the widths: SI, shown in ms if it is seconds; "1" or "%" as they are.
    """
    shown, factor = _SHOWN.get(unit, (unit, 1.0))
    palette = colours(list(rows))
    groups = [row.group for row in next(iter(rows.values()))]
    nominal = 100 * next(iter(rows.values()))[0].nominal
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 1.3 + 0.34 * len(groups) + 0.18 * len(rows)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        left.axvline(nominal, color=_RULE, lw=0.9)
        handles = []
        for i, (name, found) in enumerate(rows.items()):
            colour, marker = palette.get(name, _GRAY), _MARKERS[i % len(_MARKERS)]
            y = np.arange(len(groups)) + 0.16 * (i - (len(rows) - 1) / 2)
            left.plot([100 * row.observed for row in found], y, color=colour, lw=0, marker=marker, ms=4.5)
            right.plot([factor * row.median_width for row in found], y, color=colour, lw=0, marker=marker, ms=4.5)
            handles.append(Line2D([], [], color=colour, lw=0, marker=marker, ms=4.5, label=name))
        for axis in (left, right):
            for line in range(1, len(groups), 2):
                axis.axhspan(line - 0.5, line + 0.5, color="#f5f5f5", lw=0, zorder=0)
        left.set_yticks(range(len(groups)), groups)
        for axis in (left, right):
            axis.tick_params(axis="y", length=0)
        left.set_ylim(len(groups) - 0.5, -0.5)
        left.set_xlim(min(80.0, left.get_xlim()[0]), 101)
        left.set_xlabel(f"{nominal:g} % intervals that hold the truth [% of voxels]")
        right.set_xlim(0, None)
        right.set_xlabel(f"median width, ${symbol}$ [{shown}]")
        figure.legend(handles=handles, loc="outside lower left", ncols=6, frameon=False, fontsize=8.5)
        return svg_uri(figure)


def _square(axis: Axes, low: float, high: float) -> None:
    axis.set_xlim(low, high)
    axis.set_ylim(low, high)
    axis.set_aspect("equal")


def _signed(value: float) -> str:
    # + 0.0: no minus sign on zero
    return f"{round(value, 3) + 0.0:.3f}".replace("-", "−")
