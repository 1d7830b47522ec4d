"""Figures of the sharpness of a boundary: where the profiles lie, fits along them, widths by method; SVG data URIs."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from qsim.evaluation.pages.figures import INK, STYLE, colours, sequential, svg_uri
from qsim.evaluation.sharpness.fits import EdgeFit, Quantity, Sharpness
from qsim.evaluation.sharpness.profiles import Profile

# milliseconds in pictures, as everywhere
_SHOWN = {"s": ("ms", 1e3)}
_GRAY = "#777777"
# Okabe and Ito's sky blue would vanish in the maps; this stands out of lipari, navia and grey alike
_LINE = "#00E5FF"
_NAMES = {"log width": "10–90 % width", "slope": "slope 1/w", "steepness": "steepness"}


def profiles_figure(
    values: Float[np.ndarray, "y x"],
    profiles: Sequence[Profile],
    parameter: str,
    unit: str,
    low: float,
    high: float,
    spacing_mm: tuple[float, float],
) -> str:
    """A map with the profiles drawn on it, cropped to where it has values.

    Args:
        values: a map [SI]; NaN is black.
        profiles: on it, numbered in this order; of a volume: those of the slice, drawn as they lie in its plane.
        parameter: row of kappa, such as T1.
        unit: of the map: SI, shown in ms if it is seconds.
        low, high: ends of the colour scale [unit of the map].
        spacing_mm: voxel size along y and x [mm].
    """
    shown, factor = _SHOWN.get(unit, (unit, 1.0))
    rows, columns = (np.flatnonzero(np.isfinite(values).any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        raise ValueError("values holds no finite value")
    ends = [p.coordinates[-2:, [0, -1]] * np.array(spacing_mm)[:, None] for p in profiles]
    height = (rows[-1] - rows[0] + 1) * spacing_mm[0]
    width = (columns[-1] - columns[0] + 1) * spacing_mm[1]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, min(max(4.6 * height / width, 2.0), 7.5)), layout="constrained")
        axis = figure.subplots()
        picture = axis.imshow(
            factor * np.ma.masked_invalid(values),
            extent=(
                -0.5 * spacing_mm[1],
                (values.shape[1] - 0.5) * spacing_mm[1],
                (values.shape[0] - 0.5) * spacing_mm[0],
                -0.5 * spacing_mm[0],
            ),
            cmap=ListedColormap(sequential(parameter)).with_extremes(bad="black"),
            vmin=factor * low,
            vmax=factor * high,
            interpolation="none",
        )
        axis.add_collection(LineCollection([end.T[:, ::-1] for end in ends], colors=_LINE, linewidths=1.4))
        for i, end in enumerate(ends):
            # beside the outer end, in the direction of the line
            away = end[:, 1] + 1.6 * (end[:, 1] - end[:, 0]) / max(float(np.hypot(*(end[:, 1] - end[:, 0]))), 1e-9)
            box = {"boxstyle": "round,pad=0.12", "facecolor": "#000000aa", "linewidth": 0}
            axis.text(away[1], away[0], str(i + 1), color="white", fontsize=6.5, ha="center", va="center", bbox=box)
        margin = 3.0
        axis.set_xlim(columns[0] * spacing_mm[1] - margin, columns[-1] * spacing_mm[1] + margin)
        axis.set_ylim(rows[-1] * spacing_mm[0] + margin, rows[0] * spacing_mm[0] - margin)
        axis.set_facecolor("black")
        axis.set_xticks([])
        axis.set_yticks([])
        _bare(axis)
        scale = figure.colorbar(picture, ax=axis, fraction=0.04, pad=0.02, aspect=28)
        scale.set_label(f"{parameter} [{shown}]")
        scale.outline.set_linewidth(0.5)
        return svg_uri(figure, digits=1)


def examples_figure(found: Sharpness, symbol: str, unit: str, which: Sequence[int] | None = None) -> str:
    """Samples and fitted sigmoids along some profiles, a panel each, all methods in it.

    Args:
        symbol: of the parameter, as mathtext.
        unit: of the maps: SI, shown in ms if it is seconds.
        which: numbers of the profiles, from 0; None: six, spread over the ranks of the first method's width.
    """
    shown, factor = _SHOWN.get(unit, (unit, 1.0))
    palette = colours(list(found.fits))
    numbers = _spread(next(iter(found.fits.values()))) if which is None else list(which)
    if not numbers:
        raise ValueError("which is empty; name at least one profile")
    columns = min(3, len(numbers))
    lines = -(-len(numbers) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(0.6 + 2.7 * columns, 2.2 * lines + 0.6), layout="constrained")
        axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for axis, i in zip(axes.flat, numbers, strict=False):
            s = found.profiles[i].positions
            axis.axvline(0, color="#dddddd", lw=0.8, zorder=0)
            for name, fits in found.fits.items():
                colour = palette.get(name, _GRAY)
                axis.plot(s, factor * found.values[name][i], color=colour, ls="", marker="o", ms=2.2, alpha=0.55, mew=0)
                if np.isfinite(fits[i].w_mm):
                    fine = np.linspace(s[0], s[-1], 120)
                    style = "-" if fits[i].ok else ":"
                    axis.plot(fine, factor * fits[i].at(fine), color=colour, lw=1.4, ls=style)
            axis.set_title(f"profile {i + 1}", loc="left", fontsize=8.5)
            axis.yaxis.set_major_locator(MaxNLocator(4))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}".replace("-", "−")))
        for axis in axes.flat[len(numbers) :]:
            axis.set_visible(False)
        for axis in axes.flat[max(len(numbers) - columns, 0) : len(numbers)]:
            axis.set_xlabel("distance from the boundary [mm]")
            axis.tick_params(labelbottom=True)
        for axis in axes[:, 0]:
            axis.set_ylabel(f"${symbol}$ [{shown}]")
        handles = [Line2D([], [], color=palette.get(n, _GRAY), lw=1.4, marker="o", ms=3, label=n) for n in found.fits]
        if any(not found.fits[name][i].ok for name in found.fits for i in numbers):
            handles.append(Line2D([], [], color=INK, lw=1.4, ls=":", label="fit left out"))
        figure.legend(handles=handles, loc="outside lower left", ncols=4, frameon=False, fontsize=8.5)
        return svg_uri(figure, digits=1)


def widths_figure(found: Sharpness, quantity: Quantity = "log width", unit: str = "s") -> str:
    """One dot per profile and method, a line through the dots of a profile; box of the quartiles, line at the median.

    Dots without a line: the profile is left out of another method, whose fit there is not sensible.

    Args:
        quantity: drawn; the width on a logarithmic axis in mm.
        unit: of the maps, for the steepness: SI, shown in ms if it is seconds.
    """
    shown, factor = _SHOWN.get(unit, (unit, 1.0))
    labels = {"log width": "[mm]", "slope": "[1/mm]", "steepness": f"[{shown}/mm]"}
    names = list(found.fits)
    palette = colours(names)
    drawn = {name: [_drawn(fit, quantity, factor) for fit in fits] for name, fits in found.fits.items()}
    grid = np.array([drawn[name] for name in names])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.3 + 1.25 * len(names), 3.6), layout="constrained")
        axis = figure.subplots()
        whole = np.isfinite(grid).all(axis=0)
        places = np.arange(len(names))
        if len(names) > 1:
            strands = [np.stack([places, column], axis=1) for column in grid[:, whole].T]
            axis.add_collection(LineCollection(strands, colors="#cccccc", linewidths=0.7, zorder=1))
        for k, name in enumerate(names):
            colour, seen = palette.get(name, _GRAY), grid[k][np.isfinite(grid[k])]
            if not seen.size:
                axis.text(k, 0.5, "no fit", transform=axis.get_xaxis_transform(), ha="center", color=_GRAY)
                continue
            axis.plot(np.full(seen.size, k), seen, color=colour, ls="", marker="o", ms=3.5, mew=0, alpha=0.75, zorder=3)
            quarter, middle, three = np.percentile(seen, (25, 50, 75))
            axis.bar(
                k, three - quarter, 0.44, bottom=quarter, facecolor=colour + "33", edgecolor=colour, lw=0.8, zorder=2
            )
            axis.plot([k - 0.22, k + 0.22], [middle, middle], color=colour, lw=1.8, solid_capstyle="butt", zorder=4)
        ends = grid[np.isfinite(grid)]
        if ends.size:
            if quantity == "log width":
                axis.set_yscale("log")
                axis.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
                axis.yaxis.set_minor_locator(NullLocator())
                axis.yaxis.set_minor_formatter(NullFormatter())
                axis.set_ylim(ends.min() / 1.15, ends.max() * 1.15)
            else:
                axis.set_ylim(0, 1.08 * ends.max())
            axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        counts = [f"{name}\nn = {int(np.isfinite(row).sum())}" for name, row in zip(names, grid, strict=True)]
        axis.set_xticks(places, counts)
        axis.set_xlim(-0.5, len(names) - 0.5)
        axis.set_ylabel(f"{_NAMES[quantity]} {labels[quantity]}")
        return svg_uri(figure, digits=1)


def _drawn(fit: EdgeFit, quantity: Quantity, factor: float) -> float:
    if not fit.ok:
        return float("nan")
    if quantity == "log width":
        return fit.width_mm
    return fit.slope if quantity == "slope" else factor * fit.steepness


def _spread(fits: Sequence[EdgeFit], most: int = 6) -> list[int]:
    """Numbers of profiles at equal steps of the ranks of the width, sensible fits first."""
    ranked = sorted((not fit.ok, fit.w_mm if fit.ok else 0.0, i) for i, fit in enumerate(fits))
    sound = [i for bad, _, i in ranked if not bad] or [i for _, _, i in ranked]
    return sorted({sound[int(r)] for r in np.linspace(0, len(sound) - 1, min(most, len(sound))).round()})


def _bare(axis: Axes) -> None:
    for spine in axis.spines.values():
        spine.set_visible(False)
