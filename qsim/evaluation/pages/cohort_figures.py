"""Figures of a `self_supervised` study: maps with their errors and uncertainties, sparsification, noise, weights."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from cmcrameri import cm
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from qsim.evaluation.metrics import Interval
from qsim.evaluation.pages.figures import STYLE, colours, diverging, nice, sequential, svg_uri
from qsim.evaluation.pages.phantom_figures import MATHTEXT
from qsim.evaluation.studies.cohort_results import Curve, Maps

# of what is drawn as pixels within a vector figure
_DPI = 160
_BACKGROUND = "#20242b"
_ROI, _OTHER = "#ffffff", "#ffb000"
_GRAY = "#777777"
_COLUMNS = 6
_WIDTH = 10.6
_PAINTER = "#8a8a8a"

Map = Float[np.ndarray, "y x"]


def mathtext(parameter: str) -> str:
    return MATHTEXT.get(parameter, parameter)


def map_figure(maps: Maps, parameter: str, methods: Sequence[str]) -> str:
    """Anatomy, reference maps and every method's map; below each method's map its error.

    The errors are against the truth, or against the fit where nobody knows the truth.
    """
    shared = maps.shared
    against = "truth" if "truth" in shared else "fit"
    panels: list[tuple[str, Map | None]] = [("image", shared["image"])] if "image" in shared else []
    panels += [
        (label, shared[name]) for name, label in (("fit", "fit of all images"), ("truth", "truth")) if name in shared
    ]
    panels += [(name, maps.methods[name]["estimate"]) for name in methods if "estimate" in maps.methods.get(name, {})]
    reference = shared.get(against)
    errors = [
        None if reference is None or name == "image" or values is reference else values - reference
        for name, values in panels
        if values is not None
    ]
    low, high = _ends([values for name, values in panels if name != "image" and values is not None], maps)
    reach = _reach([error for error in errors if error is not None], maps)
    columns = min(_COLUMNS, len(panels))
    blocks = -(-len(panels) // columns)
    with mpl.rc_context(STYLE):
        figure, axes = _grid(2 * blocks, columns, maps, blocks)
        picture = difference = None
        for i, ((name, values), error) in enumerate(zip(panels, errors, strict=True)):
            top, below = axes[2 * (i // columns), i % columns], axes[2 * (i // columns) + 1, i % columns]
            top.set_title(name, fontsize=8.0, loc="left")
            assert values is not None
            if name == "image":
                _show(top, values, maps, mpl.colormaps["gray"], None, None)
            else:
                picture = _show(top, values, maps, ListedColormap(sequential(parameter)), low, high)
            _outline(top, maps)
            if error is not None:
                difference = _show(below, error, maps, ListedColormap(diverging()), -reach, reach)
                _outline(below, maps)
        if picture is not None:
            _bar(figure, picture, axes, f"{mathtext(parameter)} [ms]", "both")
        if difference is not None:
            _bar(figure, difference, axes, f"estimate − {against} [ms]", "both")
        return svg_uri(figure, digits=2)


def uncertainty_figure(maps: Maps, parameter: str, methods: Sequence[str]) -> str:
    """Size of the error and SD of both sources side by side, a row for each method, each column on one scale."""
    reference = maps.shared.get("truth", maps.shared.get("fit"))
    lines: list[tuple[str, list[Map | None]]] = []
    for name in methods:
        held = maps.methods.get(name, {})
        aleatoric, epistemic = held.get("aleatoric"), held.get("epistemic")
        if aleatoric is None and epistemic is None:
            continue
        size = None if reference is None or "estimate" not in held else np.abs(held["estimate"] - reference)
        both = aleatoric if epistemic is None else epistemic if aleatoric is None else np.hypot(aleatoric, epistemic)
        lines.append((name, [held.get("estimate"), size, aleatoric, epistemic, both]))
    symbol = mathtext(parameter)
    heads = [f"{symbol} [ms]", "|error| [ms]", "aleatoric SD [ms]", "epistemic SD [ms]", "total SD [ms]"]
    with mpl.rc_context(STYLE):
        figure, axes = _grid(len(lines), len(heads), maps, len(lines) + 3)
        for column, head in enumerate(heads):
            shown = [each[column] for _, each in lines]
            there = [values for values in shown if values is not None]
            if not there:
                continue
            low, high = _ends(there, maps) if column == 0 else (0.0, _reach(there, maps, 97.0))
            palette = ListedColormap(sequential(parameter)) if column == 0 else cm.cmaps["lipari"]
            picture = None
            for line, values in enumerate(shown):
                if values is not None:
                    picture = _show(axes[line, column], values, maps, palette, low, high)
                    _outline(axes[line, column], maps)
            assert picture is not None
            extend = "both" if column == 0 else "max"
            bar = figure.colorbar(
                picture, ax=list(axes[:, column]), location="bottom", fraction=0.05, pad=0.02, extend=extend
            )
            bar.set_label(head, fontsize=8)
            bar.ax.tick_params(labelsize=7.5)
            bar.outline.set_linewidth(0.4)
        for line, (name, _) in enumerate(lines):
            axes[line, 0].set_title(name, fontsize=8.0, loc="left")
        return svg_uri(figure, digits=2)


def before_after_figure(before: Maps | None, after: Maps, methods: Sequence[str], mark: str) -> str:
    """Image and epistemic SD without and with what was put into the images, on one scale.

    Args:
        before: the same slice without it; None: there is no such slice.
        mark: which of the shared masks outlines it; `roi` where it is not among them.
    """
    sides = [("before", before), ("with it", after)] if before is not None else [("", after)]
    names = [name for name in methods if "epistemic" in after.methods.get(name, {})]
    everything = [
        held.methods[name]["epistemic"] for _, held in sides if held for name in names if name in held.methods
    ]
    high = _reach(everything, after, 99.5)
    mark = mark if mark in after.shared else "roi"
    with mpl.rc_context(STYLE):
        figure, axes = _grid(len(sides), 1 + len(names), after, len(sides))
        picture = None
        bright = float(np.nanpercentile(after.shared["image"], 99.8)) if "image" in after.shared else 1.0
        for line, (side, held) in zip(axes, sides, strict=True):
            assert held is not None
            if "image" in held.shared:
                _show(line[0], held.shared["image"], held, mpl.colormaps["gray"], 0.0, bright)
                _outline(line[0], after, _OTHER, mark)
            line[0].set_title(f"image {side}".strip(), fontsize=8.0, loc="left")
            for axis, name in zip(line[1:], names, strict=True):
                if "epistemic" in held.methods.get(name, {}):
                    picture = _show(axis, held.methods[name]["epistemic"], held, cm.cmaps["lipari"], 0.0, high)
                    _outline(axis, after, _OTHER, mark)
                    axis.set_title(name, fontsize=8.0, loc="left")
        if picture is not None:
            _bar(figure, picture, axes, "epistemic SD [ms]", "max")
        return svg_uri(figure, digits=2)


def sparsification_figure(curves: Mapping[str, Curve], parameter: str, ratios: Mapping[str, str]) -> str:
    """Error of what is left when the most uncertain voxels are taken out, a panel for each method.

    Args:
        ratios: AUSE over the random curve's, as text, by method.
    """
    columns = min(4, len(curves))
    rows = -(-len(curves) // columns)
    palette = colours(list(curves))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH * columns / 4 + 0.4, 2.3 * rows + 0.5), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axis, (name, curve) in zip(axes.flat, curves.items(), strict=False):
            x, colour = 100 * curve.fractions, palette.get(name, _PAINTER)
            axis.plot(x, curve.random, color=_GRAY, lw=1.0, ls=":")
            axis.plot(x, curve.oracle, color=_GRAY, lw=1.0, ls="--")
            axis.plot(x, curve.method, color=colour, lw=1.8)
            axis.set_title(f"{name}\nAUSE ratio {ratios[name]}", loc="left", fontsize=8.5)
            axis.set_xlim(0, 100)
        for axis in axes.flat[len(curves) :]:
            axis.set_visible(False)
        axes[0, 0].set_ylim(0, None)
        for i in range(max(0, len(curves) - columns), len(curves)):
            axes.flat[i].set_xlabel("voxels taken out [%]")
            axes.flat[i].tick_params(labelbottom=True)
        for axis in axes[:, 0]:
            axis.set_ylabel(f"mean |error| of {mathtext(parameter)} [ms]")
        handles = [
            Line2D([], [], color=_GRAY, lw=1.8, label="by uncertainty (colour of the method)"),
            Line2D([], [], color=_GRAY, lw=1.0, ls="--", label="oracle: by the error itself"),
            Line2D([], [], color=_GRAY, lw=1.0, ls=":", label="random"),
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=8.5)
        return svg_uri(figure)


Lines = Mapping[str, Mapping[float, Interval]]


def noise_figure(panels: Mapping[str, Lines], parameter: str) -> str:
    """Mean total SD over SNR: by region, then by method, with intervals over runs."""
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    palette = colours(names)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(0.6 + 4.4 * len(panels), 3.3), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (region, lines) in zip(axes, panels.items(), strict=True):
            for name, held in lines.items():
                _line(axis, held, palette.get(name, _PAINTER))
            axis.set_title(region, loc="left", fontweight="bold")
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(FixedLocator(sorted({x for held in lines.values() for x in held})))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axis.set_ylim(0, None)
            axis.set_xlabel("SNR")
        axes[0].set_ylabel(f"mean total SD of {mathtext(parameter)} [ms]")
        handles = [Line2D([], [], color=palette.get(n, _PAINTER), marker="o", ms=3.5, lw=1.4, label=n) for n in names]
        figure.legend(handles=handles, loc="outside lower left", ncols=5, frameon=False, fontsize=8.5)
        return svg_uri(figure)


def weights_figure(manual: Mapping[str, Mapping[float, Interval]], learned: Mapping[str, Lines], against: str) -> str:
    """RMAE of each parameter against the weight of the first one, and of learned weights as horizontal lines.

    Args:
        manual: by parameter, then by weight.
        learned: by parameter, then by method; the one number is under weight 0.
    """
    names = list(dict.fromkeys(name for lines in learned.values() for name in lines))
    palette = colours(names)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(0.6 + 4.4 * len(manual), 3.4), layout="constrained")
        axes = figure.subplots(1, len(manual), squeeze=False)[0]
        first = mathtext(next(iter(manual)))
        for axis, (parameter, points) in zip(axes, manual.items(), strict=True):
            _line(axis, points, "#222222")
            for name, held in learned[parameter].items():
                one = held[0.0]
                axis.axhline(one.value, color=palette.get(name, _PAINTER), lw=1.4)
                if one.low == one.low:
                    axis.axhspan(one.low, one.high, color=palette.get(name, _PAINTER), alpha=0.13, lw=0)
            axis.set_title(mathtext(parameter), loc="left", fontweight="bold")
            axis.set_xlabel(f"weight λ of the images of {first}")
            axis.set_ylabel(f"RMAE against {against} [ms]")
            axis.set_xlim(0, 1)
        handles = [Line2D([], [], color="#222222", marker="o", ms=3.5, lw=1.4, label="weights by hand")]
        handles += [
            Line2D([], [], color=palette.get(name, _PAINTER), lw=1.4, label=f"learned: {name}") for name in names
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=5, frameon=False, fontsize=8.5)
        return svg_uri(figure)


def _line(axis: Axes, held: Mapping[float, Interval], colour: str) -> None:
    x = sorted(held)
    y = np.array([held[at].value for at in x])
    half = np.array([held[at].high - held[at].value for at in x])
    axis.errorbar(
        x, y, np.where(np.isfinite(half), half, 0.0), color=colour, lw=1.4, marker="o", ms=3.5, elinewidth=0.9
    )


def _grid(rows: int, columns: int, maps: Maps, titles: int) -> tuple[Figure, np.ndarray]:
    """Axes for maps: a column as wide as fits the page, rows as high as the slice is, and lines of titles."""
    y, x = next(iter([*maps.shared.values(), *(m for held in maps.methods.values() for m in held.values())])).shape
    tall = y * maps.spacing_mm[0] / (x * maps.spacing_mm[1])
    width = min(2.1, (_WIDTH - 0.8) / columns)
    size = width * columns + 0.8, width * tall * rows + 0.22 * titles + 0.2
    tight = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    figure = Figure(figsize=size, layout=tight, dpi=_DPI)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, axes


def _show(
    axis: Axes, values: Map, maps: Maps, palette: mpl.colors.Colormap, low: float | None, high: float | None
) -> AxesImage:
    return axis.imshow(
        np.ma.masked_invalid(values), cmap=palette.with_extremes(bad=_BACKGROUND), vmin=low, vmax=high,
        interpolation="none", aspect=maps.spacing_mm[0] / maps.spacing_mm[1],
    )  # fmt: skip


def _outline(axis: Axes, maps: Maps, colour: str = _ROI, name: str = "roi") -> None:
    mask = maps.shared.get(name)
    if mask is not None and 0 < np.count_nonzero(mask) < mask.size:
        # a dark rim, seen on light maps
        axis.contour(mask > 0, levels=[0.5], colors=["black"], linewidths=1.8, alpha=0.6)
        axis.contour(mask > 0, levels=[0.5], colors=[colour], linewidths=0.8)


def _bar(figure: Figure, picture: AxesImage, axes: np.ndarray, label: str, extend: str) -> None:
    bar = figure.colorbar(picture, ax=axes.ravel().tolist(), fraction=0.02, pad=0.01, aspect=30, extend=extend)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7.5)
    bar.outline.set_linewidth(0.4)


def _inside(values: Map, maps: Maps) -> Float[np.ndarray, " v"]:
    """What the scale is of: finite values where the reference has one."""
    reference = maps.shared.get("truth", maps.shared.get("fit"))
    there = np.isfinite(values) & (np.isfinite(reference) if reference is not None else True)
    return values[there]


def _usual(maps: Maps) -> float | None:
    """Median of the reference in the region of interest [ms]; None if there is none."""
    reference, roi = maps.shared.get("truth", maps.shared.get("fit")), maps.shared.get("roi")
    if reference is None or roi is None:
        return None
    values = reference[(roi > 0) & np.isfinite(reference)]
    return float(np.median(values)) if values.size else None


def _ends(each: Sequence[Map], maps: Maps) -> tuple[float, float]:
    """0 and 2.5 times the usual value of the region of interest, so that tissue is told apart and fluid is bright.

    Without a region: 2nd and 98th percentile of the reference, or of all maps if there is none.
    """
    usual = _usual(maps)
    if usual is not None and usual > 0:
        return 0.0, nice(2.5 * usual)
    reference = maps.shared.get("truth", maps.shared.get("fit"))
    values = np.concatenate([_inside(v, maps) for v in ([reference] if reference is not None else each)])
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, (2, 98))
    return float(low), float(high) if high > low else float(low) + 1.0


def _reach(each: Sequence[Map], maps: Maps, percent: float = 90.0) -> float:
    """Where a scale of errors ends: half the usual value of the region of interest, or a percentile of all."""
    usual = _usual(maps)
    if usual is not None and usual > 0:
        return nice(0.5 * usual)
    values = [_inside(np.abs(v), maps) for v in each]
    values = [v for v in values if v.size]
    return nice(float(np.percentile(np.concatenate(values), percent))) if values else 1.0


__all__ = [
    "before_after_figure",
    "map_figure",
    "mathtext",
    "noise_figure",
    "sparsification_figure",
    "uncertainty_figure",
    "weights_figure",
]
