"""The figures of a `phantom` study: nominal against measured, bias and CV of every region, maps with their regions."""

from collections.abc import Mapping
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from qsim.evaluation.pages.figures import STYLE, colours, sequential, svg_uri
from qsim.evaluation.studies.phantom_rois import Phantom

MATHTEXT = {"T1": "$T_1$", "T2": "$T_2$", "T2STAR": "$T_2^*$", "T1RHO": r"$T_{1\rho}$"}
# beyond this bias the axis is logarithmic [%]
_LINEAR = 5.0
_TICKS = [sign * size for size in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500) for sign in (-1, 1)]
_BOUNDS = {"free": (":", "every row free"), "shared": ("-", "B shared"), "known": ("--", "B known")}
# of regions that are not covered
_FAINT = 0.3
# voxels around the regions in the picture
_MARGIN = 6
_MARKERS = "osD^vP*X"


@dataclass(frozen=True, slots=True)
class View:
    """One slice of the first repeat, its last row on top.

    Attributes:
        labels: of the regions; 0: none.
        names: by label.
        maps: estimates by method, NaN where there is none [SI].
    """

    labels: Int[np.ndarray, "y x"]
    names: Mapping[int, str]
    maps: Mapping[str, Float[np.ndarray, "y x"]]


def agreement_figure(found: Phantom, snr: int) -> str:
    """Nominal against measured on logarithmic axes, and the relative bias beside it."""
    palette = colours(found.methods)
    nominal = 1e3 * found.nominal
    symbol = MATHTEXT.get(found.parameter, found.parameter)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.6, 4.5), layout="constrained")
        line, bias = figure.subplots(1, 2, gridspec_kw={"width_ratios": (1.0, 1.35)})
        low, high = 0.8 * nominal.min(), 1.25 * nominal.max()
        line.plot([low, high], [low, high], color="#999999", lw=0.8, zorder=0)
        for axis in (line, bias):
            _band(axis, found)
        reach = _reach(found, snr)
        for m, name in enumerate(found.methods):
            measured = 1e3 * found.each(name, snr, "mean")
            spread = found.each(name, snr, "sd") * nominal / 100
            shift = _shift(m, len(found.methods))
            value = found.each(name, snr, "bias")
            ends = [np.clip(found.each(name, snr, s), -reach, reach) for s in ("bias_low", "bias_high")]
            for covered, shade in ((True, 1.0), (False, _FAINT)):
                marker = _MARKERS[m % len(_MARKERS)]
                kind = {"color": palette[name], "alpha": shade}
                chosen = np.array([region.covered == covered for region in found.regions])
                here = chosen & (measured > 0)
                # a bar that reached 0 would have no lower end on a logarithmic axis
                bars = [np.fmin(spread, 0.9 * measured)[here], spread[here]]
                bars = [np.where(np.isfinite(bar), bar, 0.0) for bar in bars]
                line.errorbar(
                    nominal[here], measured[here], bars, ms=4.2, fmt=marker, capsize=0, lw=0, elinewidth=0.9, **kind
                )
                here, x = chosen & (np.abs(value) <= reach), nominal * shift
                bias.vlines(x[here], ends[0][here], ends[1][here], lw=3.5, color=palette[name], alpha=0.45 * shade)
                bias.plot(x[here], value[here], marker=marker, ms=4.2, ls="", **kind)
                for sign, arrow in ((1.0, "^"), (-1.0, "v")):
                    far = chosen & (sign * value > reach)
                    bias.plot(x[far], np.full(int(far.sum()), 0.97 * sign * reach), marker=arrow, ls="", **kind)
        for axis in (line, bias):
            _log_times(axis, low, high, "x")
            axis.set_xlabel(f"nominal {symbol} [ms]")
        shown = [line.dataLim.y0, line.dataLim.y1]
        _log_times(line, min(low, 0.9 * shown[0]), max(high, 1.1 * shown[1]), "y")
        line.set_ylabel(f"measured {symbol} [ms]")
        bias.axhline(0, color="#999999", lw=0.8, zorder=0)
        _bias_axis(bias, reach)
        bias.set_ylabel("relative bias [%]")
        handles: list[Line2D | Patch] = [
            Line2D([], [], color=palette[name], marker=_MARKERS[m % len(_MARKERS)], ms=4.5, ls="", label=name)
            for m, name in enumerate(found.methods)
        ]
        handles.append(Line2D([], [], color="#999999", lw=0.8, label="identity"))
        figure.legend(handles=handles, loc="outside lower left", ncols=6, frameon=False, fontsize=8.5)
        return svg_uri(figure)


def cv_figure(found: Phantom, snr: int) -> str:
    """CV over repeats of every region, with the bound of the problem that the methods solve."""
    palette = colours(found.methods)
    nominal = 1e3 * found.nominal
    symbol = MATHTEXT.get(found.parameter, found.parameter)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.6, 3.6), layout="constrained")
        axis = figure.subplots()
        _band(axis, found)
        shown: list[float] = []
        for m, name in enumerate(found.methods):
            shift = _shift(m, len(found.methods))
            middle = found.each(name, snr, "cv")
            low, high = found.each(name, snr, "cv_low"), found.each(name, snr, "cv_high")
            for covered, shade in ((True, 1.0), (False, _FAINT)):
                here = np.array([region.covered == covered for region in found.regions]) & (middle > 0)
                x = nominal[here] * shift
                shown += middle[here].tolist()
                axis.vlines(
                    x, np.maximum(low[here], 1e-3), high[here], color=palette[name], lw=3.5, alpha=0.45 * shade
                )  # fmt: skip
                marker = _MARKERS[m % len(_MARKERS)]
                axis.plot(x, middle[here], color=palette[name], marker=marker, ms=4.2, alpha=shade, ls="")
        handles: list[Line2D] = [
            Line2D([], [], color=palette[name], marker=_MARKERS[m % len(_MARKERS)], ms=4.5, ls="", label=name)
            for m, name in enumerate(found.methods)
        ]
        order = np.argsort(nominal)
        for name in dict.fromkeys(found.bound_of.values()):
            bound = found.bound(name, snr)
            known = np.isfinite(bound) & (bound > 0)
            if known.any():
                style, text = _BOUNDS[name]
                axis.plot(nominal[order], np.where(known, bound, np.nan)[order], color="black", ls=style, lw=1.1)
                handles.append(Line2D([], [], color="black", ls=style, lw=1.1, label=f"bound, {text}"))
        _log_times(axis, 0.8 * nominal.min(), 1.25 * nominal.max(), "x")
        _percent_axis(axis, shown)
        axis.set_xlabel(f"nominal {symbol} [ms]")
        axis.set_ylabel("CV over repeats [%]")
        figure.legend(handles=handles, loc="outside lower left", ncols=6, frameon=False, fontsize=8.5)
        return svg_uri(figure)


def map_figure(found: Phantom, view: View) -> str:
    """The map of every method in one slice, regions outlined; their numbers in the first."""
    window = _window(view.labels)
    labels = view.labels[window]
    nominal = 1e3 * found.nominal
    columns = min(len(view.maps), 3)
    lines = -(-len(view.maps) // columns)
    wide = labels.shape[1] / labels.shape[0]
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(min(10.6, 0.6 + 3.3 * columns * max(wide, 0.6)), 3.3 * lines + 0.2), layout="constrained"
        )
        axes = figure.subplots(lines, columns, squeeze=False)
        scale = mpl.colors.LogNorm(0.8 * nominal.min(), 1.25 * nominal.max())
        picture = None
        for axis in axes.ravel():
            axis.set_axis_off()
        for number, (axis, (name, values)) in enumerate(zip(axes.ravel(), view.maps.items(), strict=False)):
            shown = np.ma.masked_less_equal(np.ma.masked_invalid(1e3 * values[window]), 0)
            picture = axis.imshow(
                shown, norm=scale, cmap=ListedColormap(sequential(found.parameter)), origin="lower",
                interpolation="nearest",
            )  # fmt: skip
            axis.set_title(name, loc="left", fontsize=9)
            for region in found.regions:
                inside = labels == region.label
                if not inside.any():
                    continue
                _outline(axis, inside, "-" if region.covered else ":")
                if number == 0:
                    y, x = np.argwhere(inside).max(0)[0] + 0.8, np.argwhere(inside).mean(0)[1]
                    axis.text(
                        x, y, str(region.label), color="white", fontsize=7.5, ha="center", va="bottom",
                        bbox={"boxstyle": "round,pad=0.12", "fc": "#00000088", "ec": "none"},
                    )  # fmt: skip
        assert picture is not None
        bar = figure.colorbar(picture, ax=axes.ravel().tolist(), fraction=0.03, pad=0.01)
        bar.set_label(f"{MATHTEXT.get(found.parameter, found.parameter)} [ms]")
        ticks = _nice(0.8 * nominal.min(), 1.25 * nominal.max())
        bar.ax.yaxis.set_major_locator(FixedLocator(ticks))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.outline.set_linewidth(0.4)
        return svg_uri(figure)


def _outline(axis: Axes, inside: np.ndarray, style: str) -> None:
    """Borders of a region along the edges of its voxels."""
    padded = np.pad(inside, 1)
    lines: list[tuple[list[float], list[float]]] = []
    for y, x in np.argwhere(padded[1:-1, 1:-1]):
        if not padded[y, x + 1]:
            lines.append(([x - 0.5, x + 0.5], [y - 0.5, y - 0.5]))
        if not padded[y + 2, x + 1]:
            lines.append(([x - 0.5, x + 0.5], [y + 0.5, y + 0.5]))
        if not padded[y + 1, x]:
            lines.append(([x - 0.5, x - 0.5], [y - 0.5, y + 0.5]))
        if not padded[y + 1, x + 2]:
            lines.append(([x + 0.5, x + 0.5], [y - 0.5, y + 0.5]))
    xs = [x for across, _ in lines for x in (*across, np.nan)]
    ys = [y for _, up in lines for y in (*up, np.nan)]
    axis.plot(xs, ys, color="black", lw=2.0, alpha=0.55)
    axis.plot(xs, ys, color="white", lw=0.9, ls=style)


def _window(labels: Int[np.ndarray, "y x"]) -> tuple[slice, slice]:
    """All regions of the slice, and a margin."""
    found = np.argwhere(labels > 0)
    margin = max(_MARGIN, int(0.12 * float((found.max(0) - found.min(0)).max())))
    low, high = np.maximum(found.min(0) - margin, 0), found.max(0) + margin + 1
    return slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))


def _band(axis: Axes, found: Phantom) -> None:
    """Where the covered regions lie."""
    covered = 1e3 * found.nominal[found.covered]
    if len(covered) < len(found.regions):
        axis.axvspan(0.93 * covered.min(), 1.07 * covered.max(), color="#f3f3f3", lw=0, zorder=-1)


def _shift(number: int, of: int) -> float:
    """Methods beside each other on a logarithmic axis."""
    return float(1.028 ** (number - (of - 1) / 2))


def _nice(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten."""
    ticks = [m * 10.0**e for e in range(-1, 6) for m in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high] or [float((low * high) ** 0.5)]


def _log_times(axis: Axes, low: float, high: float, which: str) -> None:
    scale, limit = (axis.set_xscale, axis.set_xlim) if which == "x" else (axis.set_yscale, axis.set_ylim)
    scale("log")
    limit(low, high)
    ruler = axis.xaxis if which == "x" else axis.yaxis
    ruler.set_major_locator(FixedLocator(_nice(low, high)))
    ruler.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ruler.set_minor_locator(NullLocator())


def _reach(found: Phantom, snr: int) -> float:
    """Largest bias that the axis shows: regions that are not covered may be further off [%]."""
    sizes = np.abs([found.each(name, snr, s) for name in found.methods for s in ("bias", "bias_low", "bias_high")])
    covered = sizes[:, found.covered]
    known = covered[np.isfinite(covered)]
    return float(max(2.0 * known.max(), 2.0)) if known.size else 10.0


def _bias_axis(axis: Axes, reach: float) -> None:
    if reach > 4 * _LINEAR:
        axis.set_yscale("symlog", linthresh=_LINEAR)
        axis.yaxis.set_major_locator(FixedLocator([t for t in _TICKS if abs(t) <= reach]))
    axis.set_ylim(-reach, reach)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}".replace("-", "−")))


def _percent_axis(axis: Axes, shown: list[float]) -> None:
    """Logarithmic, over what the methods show; bounds may leave it."""
    low, high = (min(shown) / 1.6, max(shown) * 1.6) if shown else (0.1, 10.0)
    axis.set_yscale("log")
    axis.set_ylim(low, high)
    axis.yaxis.set_major_locator(FixedLocator([t for t in (0.01, 0.02, 0.05, *_nice(0.1, high)) if t >= low]))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.yaxis.set_minor_locator(NullLocator())


__all__ = ["MATHTEXT", "View", "agreement_figure", "cv_figure", "map_figure"]
