"""Figures of a `test_retest` study: maps and their CV, Bland-Altman plots, agreement with a reference."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from cmcrameri import cm
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure

from qsim.evaluation.pages.figures import STYLE, colours, nice, sequential, svg_uri
from qsim.evaluation.pages.test_retest_content import labelled
from qsim.evaluation.repeatability import bland_altman, voxel_cv
from qsim.evaluation.studies.test_retest_table import Repeats

# of what is drawn as pixels within a vector figure
_DPI = 160
_BACKGROUND = "#20242b"
# hexagons across a panel
_CELLS = 60

Map = Float[np.ndarray, "y x"]


def slice_of(setting: Repeats, at: int | None) -> int | None:
    """The slice that is shown: the given one, else the one with most voxels; None: the object is one slice."""
    if setting.mask.ndim == 2:
        return None
    return at if at is not None else int(np.argmax(_inside(setting).sum((1, 2))))


def _inside(setting: Repeats) -> Bool[np.ndarray, "*space"]:
    """The labelled voxels of scans, else the mask: what scales are of."""
    own = labelled(setting)
    return setting.mask if own is None else setting.placed(own.astype(np.float64)) == 1


def map_figure(setting: Repeats, parameter: str, at: int | None, bound: str) -> str:
    """First repeat of every method above, CV over the repeats below, each row on one scale.

    Args:
        parameter: the relaxation time.
        at: slice shown; None: the object is one slice.
        bound: which one is shown beside the CV, if the truth is known.
    """

    def cut(values: Float[np.ndarray, " v"]) -> Map:
        placed = setting.placed(values)
        return placed if at is None else placed[at]

    above: dict[str, Map] = {name: 1e3 * cut(maps[0].astype(np.float64)) for name, maps in setting.maps.items()}
    below: dict[str, Map] = {name: cut(voxel_cv(maps)) for name, maps in setting.maps.items()}
    if setting.truth is not None:
        above = {"truth": 1e3 * cut(setting.truth), **above}
        below = {"Cramér-Rao bound" if bound == "free" else f"bound, {bound}": cut(setting.bounds[bound]), **below}
    inside = _inside(setting) if at is None else _inside(setting)[at]
    if not any(np.isfinite(m[inside]).any() for m in above.values()):
        inside = np.ones_like(inside)
    ends = [np.nanpercentile(np.concatenate([m[np.isfinite(m) & inside] for m in above.values()]), p) for p in (1, 98)]
    medians = [np.median(m[np.isfinite(m) & inside]) for m in below.values() if np.isfinite(m[inside]).any()]
    shown = _cropped([list(above.values()), list(below.values())])
    limit = nice(2.0 * float(np.max(medians))) if medians else 1.0
    y, x = shown[0][0].shape
    with mpl.rc_context(STYLE):
        # a column as wide as fits the page; the rows follow from the shape of the slice
        width = min(2.1, 10.6 / len(above))
        figure = Figure(figsize=(width * len(above) + 0.9, 2 * width * y / x + 0.75), layout="constrained", dpi=_DPI)
        axes = figure.subplots(2, len(above), squeeze=False)
        for line, (names, maps, palette, scale, label) in enumerate(
            (
                (list(above), shown[0], sequential(parameter), ends, f"{_mathtext(parameter)} of the first scan [ms]"),
                (
                    list(below),
                    shown[1],
                    np.asarray(cm.cmaps["batlow"](np.linspace(0, 1, 256)))[:, :3],
                    [0, limit],
                    "CV [%]",
                ),
            )
        ):
            colour = ListedColormap(palette).with_extremes(bad=_BACKGROUND)
            picture = None
            for axis, name, values in zip(axes[line], names, maps, strict=True):
                picture = axis.imshow(
                    np.ma.masked_invalid(values), cmap=colour, vmin=scale[0], vmax=scale[1], interpolation="none"
                )
                axis.set_xticks([])
                axis.set_yticks([])
                axis.spines[:].set_visible(False)
                axis.set_title(name, fontsize=8.0, loc="left")
            assert picture is not None
            bar = figure.colorbar(picture, ax=list(axes[line]), fraction=0.02, pad=0.01, extend="max")
            bar.set_label(label, fontsize=8)
            bar.outline.set_linewidth(0.4)
        return svg_uri(figure)


def bland_altman_figure(setting: Repeats) -> str:
    """Second scan minus first over their mean, one panel for each method, on common axes; of labelled voxels alone."""
    own = labelled(setting)
    pairs = {name: 1e3 * maps[:2].astype(np.float64) for name, maps in setting.maps.items()}
    pairs = {name: p if own is None else p[:, own] for name, p in pairs.items()}
    pairs = {name: p[:, np.isfinite(p).all(0)] for name, p in pairs.items()}
    spreads = [np.percentile(np.abs(p[1] - p[0]), 97) for p in pairs.values() if p.size]
    reach = nice(1.2 * float(np.max(spreads))) if spreads else 1.0
    everything = np.concatenate([p.mean(0) for p in pairs.values()])
    low, high = _ends(everything)
    palette = colours(list(pairs))
    with mpl.rc_context(STYLE):
        figure, axes = _panels(len(pairs))
        for axis, (name, pair) in zip(axes.flat, pairs.items(), strict=False):
            mean, difference = pair.mean(0), pair[1] - pair[0]
            _density(axis, mean, difference, (low, high, -reach, reach))
            found = bland_altman(*pair)
            for line, style in ((found.low, "--"), (found.difference, "-"), (found.high, "--")):
                axis.axhline(line.value, color=palette[name], lw=1.4, ls=style)
                if line.low == line.low:
                    axis.axhspan(line.low, line.high, color=palette[name], alpha=0.25, lw=0)
            axis.axhline(0, color="#888888", lw=0.6)
            outside = 100 * float(np.mean(np.abs(difference) > reach)) if difference.size else 0.0
            axis.set_title(name, loc="left")
            if outside >= 0.1:
                axis.text(0.98, 0.02, f"{outside:.1f} % beyond", transform=axis.transAxes, ha="right", fontsize=7.5)
            axis.set_xlabel("mean of the two [ms]")
        for axis in axes[:, 0]:
            axis.set_ylabel("second − first [ms]")
        return svg_uri(figure)


def agreement_figure(setting: Repeats, reference: str) -> str:
    """Every other method over the reference, first scan, voxel by voxel."""
    others = [name for name in setting.maps if name != reference]
    own = 1e3 * setting.maps[reference][0].astype(np.float64)
    values = {name: 1e3 * setting.maps[name][0].astype(np.float64) for name in others}
    low, high = _ends(np.concatenate([own, *values.values()]))
    with mpl.rc_context(STYLE):
        figure, axes = _panels(len(others))
        for axis, (name, mine) in zip(axes.flat, values.items(), strict=False):
            known = np.isfinite(own) & np.isfinite(mine)
            _density(axis, own[known], mine[known], (low, high, low, high))
            axis.plot([low, high], [low, high], color="#D55E00", lw=1.0)
            axis.set_title(name, loc="left")
            axis.set_xlabel(f"{reference} [ms]")
            axis.set_aspect("equal")
        for axis in axes[:, 0]:
            axis.set_ylabel("method [ms]")
        return svg_uri(figure)


def _mathtext(parameter: str) -> str:
    names = {"T1": "$T_1$", "T2": "$T_2$", "T2STAR": "$T_2^*$", "T1RHO": r"$T_{1\rho}$", "T2RHO": r"$T_{2\rho}$"}
    return names.get(parameter, parameter)


def _panels(n: int) -> tuple[Figure, np.ndarray]:
    columns = min(n, 4)
    lines = -(-n // columns)
    figure = Figure(figsize=(0.5 + 2.55 * columns, 0.3 + 2.5 * lines), layout="constrained", dpi=_DPI)
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for axis in list(axes.flat)[n:]:
        axis.set_visible(False)
    for axis in list(axes.flat)[:n]:
        axis.tick_params(labelbottom=True)
    return figure, axes


def _density(
    axis: Axes, x: Float[np.ndarray, " v"], y: Float[np.ndarray, " v"], ends: tuple[float, float, float, float]
) -> None:
    """Voxels per hexagon, logarithmic; a cloud of points would hide where most of them are."""
    inside = (x >= ends[0]) & (x <= ends[1]) & (y >= ends[2]) & (y <= ends[3])
    if inside.any():
        drawn = axis.hexbin(
            x[inside],
            y[inside],
            gridsize=_CELLS,
            extent=ends,
            mincnt=1,
            norm=LogNorm(),
            cmap=ListedColormap(np.asarray(cm.cmaps["devon_r"](np.linspace(0.12, 1, 256)))),
            linewidths=0.0,
        )
        drawn.set_rasterized(True)
    axis.set_xlim(ends[0], ends[1])
    axis.set_ylim(ends[2], ends[3])


def _ends(values: Float[np.ndarray, " v"]) -> tuple[float, float]:
    """Ends of an axis that leave out half a per cent of the voxels on either side."""
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    low, high = (float(e) for e in np.percentile(known, (0.5, 99.5)))
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _cropped(rows: Sequence[Sequence[Map]]) -> list[list[Float[np.ndarray, "y1 x1"]]]:
    """Maps without the border that none of them fills."""
    known = np.any([np.isfinite(m) for row in rows for m in row], axis=0)
    lines, columns = np.flatnonzero(known.any(1)), np.flatnonzero(known.any(0))
    if not lines.size:
        return [list(row) for row in rows]
    box = slice(lines[0], lines[-1] + 1), slice(columns[0], columns[-1] + 1)
    return [[m[box] for m in row] for row in rows]


__all__ = ["agreement_figure", "bland_altman_figure", "map_figure", "slice_of"]
