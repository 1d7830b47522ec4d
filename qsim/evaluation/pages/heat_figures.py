"""Figures of studies over grids: heat maps of a bias, and curves, as SVG data URIs."""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from qsim.evaluation.pages.figures import INK, STYLE, diverging, svg_uri
from qsim.evaluation.studies.apparent import TOLERANCE

# Okabe and Ito's colours, without yellow, which white paper hides; then two of Tol's
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7A5195", "#8C6D1F", "#882255")
# letters of a title on one line
_TITLE = 24
# of points without an estimate that can be trusted; on no place of the scale
_NO_VALUE = "#8c8c8c"


@dataclass(frozen=True, slots=True)
class Panel:
    """One heat map.

    Attributes:
        title: above it.
        values: relative bias [%].
        failed: points whose fit failed; they and NaN are grey.
    """

    title: str
    values: Float[np.ndarray, "y x"]
    failed: Bool[np.ndarray, "y x"]


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis of a heat map.

    Attributes:
        label: with its unit.
        values: equally spaced points of the grid, in the unit of the label.
        central: ends of the central region, if there is one.
    """

    label: str
    values: Float[np.ndarray, " p"]
    central: tuple[float, float] | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """Outer edges of the first and the last point."""
        half = (self.values[-1] - self.values[0]) / (2 * max(len(self.values) - 1, 1)) or 0.5
        return float(self.values[0] - half), float(self.values[-1] + half)


def heat_figure(panels: Sequence[Panel], x: Scale, y: Scale, limit: float, columns: int, bar: str) -> str:
    """Maps on one diverging scale, with the contour of +-5 % and the failed points in grey.

    Args:
        limit: ends of the colour scale [%].
        columns: panels side by side.
        bar: label of the colour bar.
    """
    columns, lines = _layout(len(panels), columns)
    colours = ListedColormap(diverging()).with_extremes(bad=_NO_VALUE)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 1.72 * columns, 0.8 + 1.72 * lines), layout="constrained")
        axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        picture = None
        for axis, panel in zip(axes.flat, panels, strict=False):
            picture = axis.imshow(
                np.ma.masked_invalid(np.where(panel.failed, np.nan, panel.values)),
                extent=(*x.ends, *y.ends),
                origin="lower",
                aspect="auto",
                cmap=colours,
                vmin=-limit,
                vmax=limit,
                interpolation="none",
            )
            _annotate(axis, panel, x, y)
            axis.set_title(fill(panel.title, _TITLE), loc="left", fontsize=8.0)
        for i, axis in enumerate(axes.flat):
            if i >= len(panels):
                axis.set_visible(False)
            elif i + columns >= len(panels):
                # the last map of each column: below it there is none
                axis.set_xlabel(x.label, fontsize=8.5)
                axis.tick_params(labelbottom=True)
        for axis in axes[:, 0]:
            axis.set_ylabel(y.label, fontsize=8.5)
        largest = max((float(np.nanmax(np.abs(p.values))) for p in panels if np.isfinite(p.values).any()), default=0.0)
        assert picture is not None
        scale = figure.colorbar(
            picture, ax=axes, extend="both" if largest > limit else "neither", fraction=0.03, pad=0.015, aspect=25
        )
        scale.set_label(bar)
        scale.outline.set_linewidth(0.5)
        scale.ax.yaxis.set_major_formatter(lambda v, _: f"{v:+g}".replace("-", "−") if v else "0")
        return svg_uri(figure, digits=1)


def _layout(n: int, columns: int) -> tuple[int, int]:
    """Columns and lines that `n` panels fill best, with at most so many columns."""
    lines = -(-n // columns)
    return -(-n // lines), lines


def _annotate(axis: Axes, panel: Panel, x: Scale, y: Scale) -> None:
    """Contour of the tolerance, central region."""
    grid = np.where(panel.failed, np.nan, panel.values)
    if min(grid.shape) > 1 and np.isfinite(grid).any():
        inside = np.nanmin(np.abs(grid)) < TOLERANCE
        outside = np.nanmax(np.abs(grid)) > TOLERANCE
        # matplotlib warns of levels that no value reaches
        levels = [v for v in (-TOLERANCE, TOLERANCE) if np.nanmin(grid) < v < np.nanmax(grid)]
        if inside and outside and levels:
            axis.contour(x.values, y.values, grid, levels=levels, colors=INK, linewidths=0.8, linestyles="solid")
    if x.central and y.central:
        corner, size = (x.central[0], y.central[0]), (x.central[1] - x.central[0], y.central[1] - y.central[0])
        axis.add_patch(Rectangle(corner, *size, fill=False, ec=INK, lw=0.7, ls=(0, (3, 2))))
    axis.set_xlim(*x.ends)
    axis.set_ylim(*y.ends)
    axis.tick_params(labelsize=8, length=2.0)


def heat_legend(central: str | None = None) -> str:
    """What the marks of a heat map mean, as a small figure of its own."""
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=INK, lw=0.8, label=f"bias of −{TOLERANCE:g} or +{TOLERANCE:g} %"),
        Patch(facecolor=_NO_VALUE, label="fit at a bound, or failed"),
    ]
    if central:
        handles.append(Line2D([], [], color=INK, lw=0.7, ls=(0, (3, 2)), label=central))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 0.3))
        figure.legend(handles=handles, loc="center left", ncols=len(handles), frameon=False, fontsize=8.5)
        return svg_uri(figure)


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of a plot.

    Attributes:
        name: in the legend, once for all curves of that name.
        x, y: points.
        colour: number in the palette.
        style: of the line; `""` draws points only.
        band: lower and upper ends of a band around it.
    """

    name: str
    x: Float[np.ndarray, " p"]
    y: Float[np.ndarray, " p"]
    colour: int
    style: str = "-"
    band: tuple[Float[np.ndarray, " p"], Float[np.ndarray, " p"]] | None = None


@dataclass(frozen=True, slots=True)
class Plot:
    """Axes with curves.

    Attributes:
        title, x_label, y_label: texts.
        curves: of it.
        limits: of y; None: what the curves need.
        log: scales of x and y.
        zero: draw the line y = 0 and the tolerance around it.
    """

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    limits: tuple[float, float] | None = None
    log: tuple[bool, bool] = (False, False)
    zero: bool = False


def curve_figure(plots: Sequence[Plot], columns: int, styles: Sequence[tuple[str, str]] = ()) -> str:
    """Plots side by side with one legend.

    Args:
        columns: plots side by side.
        styles: (line style, meaning) that the legend explains after the names.
    """
    columns = min(columns, len(plots))
    lines = -(-len(plots) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(0.4 + 10.6 / 3 * columns, 2.75 * lines + 0.5), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False)
        named: dict[str, int] = {}
        beyond = False
        for axis, plot in zip(axes.flat, plots, strict=False):
            axis.set_title(plot.title, loc="left", fontweight="bold")
            if plot.zero:
                axis.axhspan(-TOLERANCE, TOLERANCE, color="#eeeeee", lw=0, zorder=0)
                axis.axhline(0, color="#bbbbbb", lw=0.8)
            for curve in plot.curves:
                named.setdefault(curve.name, curve.colour)
                colour = PALETTE[curve.colour % len(PALETTE)]
                mark = "o" if len(curve.x) <= 8 else ""
                axis.plot(curve.x, curve.y, color=colour, ls=curve.style, lw=1.3, marker=mark, ms=3)
                if curve.band is not None:
                    axis.fill_between(curve.x, *curve.band, color=colour, alpha=0.15, lw=0)
            axis.set_xlabel(plot.x_label)
            axis.set_ylabel(plot.y_label)
            for which, on in zip(("x", "y"), plot.log, strict=True):
                if on:
                    _logarithmic(axis, which)
            if plot.limits:
                axis.set_ylim(*plot.limits)
                for curve in plot.curves:
                    beyond |= _beyond(axis, curve, plot.limits)
        for axis in axes.flat[len(plots) :]:
            axis.set_visible(False)
        handles = [Line2D([], [], color=PALETTE[c % len(PALETTE)], lw=1.6, label=name) for name, c in named.items()]
        handles += [Line2D([], [], color="#555555", lw=1.3, ls=style, label=text) for style, text in styles]
        if beyond:
            handles.append(Line2D([], [], color="#555555", ls="", marker="^", ms=4, label="beyond the axis"))
        figure.legend(handles=handles, loc="outside lower left", ncols=2 * columns, frameon=False, fontsize=8.5)
        return svg_uri(figure)


def _beyond(axis: Axes, curve: Curve, limits: tuple[float, float]) -> bool:
    """A small triangle at the edge for each point that the axis does not reach; whether there is one."""
    colour, found = PALETTE[curve.colour % len(PALETTE)], False
    for out, edge, mark in ((curve.y > limits[1], limits[1], "^"), (curve.y < limits[0], limits[0], "v")):
        if out.any():
            found = True
            x = curve.x[out]
            axis.plot(x, np.full(x.shape, edge), color=colour, ls="", marker=mark, ms=3.5, clip_on=False, zorder=6)
    return found


def _logarithmic(axis: Axes, which: str) -> None:
    """A logarithmic axis with plain numbers at 1 and 3 times the powers of ten."""
    if which == "x":
        axis.set_xscale("log")
    else:
        axis.set_yscale("log")
    line = axis.xaxis if which == "x" else axis.yaxis
    line.set_major_locator(mpl.ticker.LogLocator(base=10, subs=(1.0, 3.0)))
    line.set_minor_locator(mpl.ticker.NullLocator())
    line.set_major_formatter(lambda v, _: f"{v:g}")
