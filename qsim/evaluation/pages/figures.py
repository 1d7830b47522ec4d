"""Figures of a report: box plots and slopes as SVG, maps as small palette PNGs, all as data URIs."""

import base64
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from io import BytesIO, StringIO
from math import ceil, floor, isfinite, log10
from typing import Any

import matplotlib as mpl
import numpy as np
from cmcrameri import cm
from jaxtyping import Bool, Float, Shaped, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from qsim.evaluation.table import Table

# Okabe and Ito's colours, told apart by colour-blind readers; blue and vermilion for the two fits of every study
_FITS = {"least-squares": "#0072B2", "shared-b": "#D55E00"}
# then darker and lighter ones; no study holds more methods than can be told apart
_OTHERS = (
    *("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D1F"),
    *("#004D40", "#B71C1C", "#1A237E", "#7CB342", "#F48FB1", "#546E7A"),
)
_PAINTERS = {
    "population-constant": ("#8a8a8a", ":"),
    "tissue-prior-mean": ("#8a8a8a", "--"),
    "true-tissue-mean": ("#5a5a5a", "-"),
}
_BOUNDS = {"free": ":", "shared": "-", "known": "--"}
INK = "#222222"
_FONT = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', Arial, sans-serif"
STYLE: Any = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.linewidth": 0.7,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.major.size": 0.0,
    "ytick.major.size": 3.0,
    "ytick.minor.size": 0.0,
    # text stays text: the page's own font, selectable and small
    "svg.fonttype": "none",
    "svg.hashsalt": "qsim",
}
_BIAS_LINEAR = 10.0
_WIDTH = 0.8
# a painter that knows a parameter exactly has an error of rounding only: not drawn [%]
_LEAST_DRAWN = 0.05
# axes end here, and on logarithmic ones what is 0 is drawn far below [%]
_LEAST_SHOWN, _MOST_SHOWN, _OFF_AXIS = 0.02, 3000.0, 1e-6
_FIVE = ("p5", "p25", "median", "p75", "p95")


def colours(methods: Sequence[str]) -> dict[str, str]:
    """One colour for each method that is not a painter, the same over the whole report."""
    others = iter(_OTHERS * 8)
    return {name: _FITS[name] if name in _FITS else next(others) for name in methods if name not in _PAINTERS}


def box_figure(
    table: Table,
    parameter: str,
    symbol: str,
    tissues: Mapping[str, str],
    methods: Sequence[str],
    snrs: Sequence[float],
    *,
    with_status: bool,
) -> str:
    """Bias, CV and RMSE over SNR, a column for each tissue, as an SVG data URI.

    Boxes 25 to 75 % of the voxels of all draws, whiskers 5 to 95 %, line at the median.

    Args:
        parameter: row of kappa.
        symbol: of that row, as mathtext.
        tissues: titles by region.
        methods: in the order of the boxes; painters are drawn as lines in the RMSE panels.
        with_status: a fourth row with the share of voxels on a bound.
    """
    rows = ["relative_bias", "cv", "rmse"] + (["at_bound_rate"] if with_status else [])
    palette = colours(methods)
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(1.2 + 3.1 * len(tissues), 2.25 * 3 + 0.8 + (1.2 if with_status else 0.0)), layout="constrained"
        )
        heights = [1.0, 1.0, 1.0, 0.5][: len(rows)]
        shown: dict[str, list[float]] = {metric: [] for metric in rows}
        axes = figure.subplots(
            len(rows), len(tissues), sharex=True, sharey="row", squeeze=False, gridspec_kw={"height_ratios": heights}
        )
        for column, (tissue, title) in enumerate(tissues.items()):
            axes[0, column].set_title(title, loc="left", fontweight="bold")
            for line, metric in enumerate(rows):
                axis = axes[line, column]
                _dress(axis, snrs)
                if metric == "at_bound_rate":
                    _bars(axis, table, tissue, palette, snrs)
                    continue
                shown[metric] += _boxes(axis, table, tissue, parameter, metric, palette, snrs)
                if metric != "relative_bias":
                    shown[metric] += _bound_lines(axis, table, tissue, parameter, snrs)
                if metric == "rmse":
                    _painter_lines(axis, table, tissue, parameter, snrs)
        for line, metric in enumerate(rows):
            _scale(axes[line, 0], metric, symbol, shown[metric] or [1.0])
        for axis in axes[-1]:
            axis.set_xlabel("SNR (σ below)")
        _legend(figure, table, parameter, list(tissues), palette, snrs)
        return svg_uri(figure)


def _dress(axis: Axes, snrs: Sequence[float]) -> None:
    axis.set_xlim(-0.5, len(snrs) - 0.5)
    axis.xaxis.set_major_locator(FixedLocator(list(range(len(snrs)))))
    axis.set_xticklabels([f"{snr:g}\n{0.65 / snr:.3g}" for snr in snrs])
    for i in range(1, len(snrs), 2):
        axis.axvspan(i - 0.5, i + 0.5, color="#f5f5f5", lw=0, zorder=0)


def _boxes(
    axis: Axes,
    table: Table,
    tissue: str,
    parameter: str,
    metric: str,
    palette: Mapping[str, str],
    snrs: Sequence[float],
) -> list[float]:
    """All boxes of a method as one path: a figure of a thousand pieces would be a megabyte. Returns what it shows."""
    slot = _slot(palette)
    floor = -np.inf if metric == "relative_bias" else _OFF_AXIS
    ends: list[float] = []
    if metric == "relative_bias":
        axis.axhline(0, color="#bbbbbb", lw=0.7, zorder=1)
    for k, (method, colour) in enumerate(palette.items()):
        boxes: list[Outline] = []
        whiskers: list[tuple[float, float]] = []
        medians: list[tuple[float, float]] = []
        for i, snr in enumerate(snrs):
            found = [table.value(method, tissue, parameter, snr, f"{metric}_{name}") for name in _FIVE]
            if not all(isfinite(v) for v in found):
                continue
            # a voxel that is always on the same bound has no spread, and no place on a logarithmic axis
            p5, p25, p50, p75, p95 = (max(v, floor) for v in found)
            ends += [v for v in found if v > floor]
            x = i + slot * (k - (len(palette) - 1) / 2)
            half = 0.36 * slot
            corners = [(x - half, p25), (x + half, p25), (x + half, p75), (x - half, p75), (x - half, p25)]
            boxes.append(Outline(corners, closed=True))
            whiskers += [(x, p5), (x, p25), (np.nan, np.nan), (x, p75), (x, p95), (np.nan, np.nan)]
            medians += [(x - half, p50), (x + half, p50), (np.nan, np.nan)]
        if not boxes:
            continue
        axis.add_patch(
            PathPatch(Outline.make_compound_path(*boxes), facecolor=colour + "55", edgecolor=colour, lw=0.8, zorder=3)
        )
        axis.plot(*np.array(whiskers).T, color=colour, lw=0.8, zorder=2)
        axis.plot(*np.array(medians).T, color=colour, lw=1.8, zorder=4, solid_capstyle="butt")
    return ends


def _slot(palette: Mapping[str, str]) -> float:
    """Width of a method's place; one method alone does not fill the panel."""
    return _WIDTH / max(len(palette), 3)


def _steps(snrs: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """One horizontal piece per SNR."""
    x: list[float] = []
    y: list[float] = []
    for i, value in enumerate(values):
        x += [i - 0.46, i + 0.46, np.nan]
        y += [value, value, np.nan]
    return x[: 3 * len(snrs)], y


def _bound_lines(axis: Axes, table: Table, tissue: str, parameter: str, snrs: Sequence[float]) -> list[float]:
    drawn: list[float] = []
    for bound, style in _BOUNDS.items():
        values = [table.value(f"bound-{bound}", tissue, parameter, snr, "bound_median") for snr in snrs]
        if any(isfinite(v) for v in values):
            axis.plot(*_steps(snrs, values), color="black", lw=1.1, ls=style, zorder=5)
            drawn += [v for v in values if isfinite(v)]
    return drawn


def _painter_lines(axis: Axes, table: Table, tissue: str, parameter: str, snrs: Sequence[float]) -> None:
    for method, (colour, style) in _PAINTERS.items():
        values = [table.value(method, tissue, parameter, snr, "rmse_median") for snr in snrs]
        # exact for a parameter that is one number: nothing to draw on a logarithmic axis
        if any(isfinite(v) and v > _LEAST_DRAWN for v in values):
            # one SNR alone has no line between its values
            line = (range(len(snrs)), values) if len(snrs) > 1 else _steps(snrs, values)
            axis.plot(*line, color=colour, lw=0.9, ls=style, zorder=1.5)


def _bars(axis: Axes, table: Table, tissue: str, palette: Mapping[str, str], snrs: Sequence[float]) -> None:
    slot = _slot(palette)
    for k, (method, colour) in enumerate(palette.items()):
        x = [i + slot * (k - (len(palette) - 1) / 2) for i in range(len(snrs))]
        values = [table.value(method, tissue, "", snr, "at_bound_rate") for snr in snrs]
        axis.bar(x, values, width=0.72 * slot, color=colour + "aa", lw=0)


def _scale(axis: Axes, metric: str, symbol: str, shown: Sequence[float]) -> None:
    """Scale, limits and ticks of a row of panels."""
    if metric == "at_bound_rate":
        axis.set_ylabel("on a bound\n[% of voxels]")
        axis.set_ylim(0, max(axis.get_ylim()[1], 1.0))
        return
    if metric == "relative_bias":
        low, high = min(1.25 * min(shown), -_BIAS_LINEAR), max(1.25 * max(shown), _BIAS_LINEAR)
        axis.set_yscale("symlog", linthresh=_BIAS_LINEAR, linscale=1.0)
        high = min(high, _MOST_SHOWN)
        sizes = (0.0, 5.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
        axis.yaxis.set_major_locator(
            FixedLocator(sorted({s * t + 0.0 for t in sizes if t <= max(-low, high) for s in (-1, 1)}))
        )
        axis.set_ylabel(f"relative bias of ${symbol}$ [%]")
    else:
        low, high = max(min(shown), _LEAST_SHOWN) / 1.25, min(1.25 * max(*shown, 10 * _LEAST_SHOWN), _MOST_SHOWN)
        axis.set_yscale("log")
        decades = range(floor(log10(low)), ceil(log10(high)) + 1)
        axis.yaxis.set_major_locator(FixedLocator([m * 10.0**d for d in decades for m in (1, 3)]))
        axis.set_ylabel(f"{'CV' if metric == 'cv' else 'RMSE'} of ${symbol}$ [%]")
    axis.set_ylim(low, high)
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}".replace("-", "−")))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _legend(
    figure: Figure,
    table: Table,
    parameter: str,
    tissues: Sequence[str],
    palette: Mapping[str, str],
    snrs: Sequence[float],
) -> None:
    handles: list[Patch | Line2D] = [Patch(facecolor=c + "55", edgecolor=c, label=name) for name, c in palette.items()]
    for bound, style in _BOUNDS.items():
        if any(isfinite(table.value(f"bound-{bound}", t, parameter, s, "bound_median")) for t in tissues for s in snrs):
            handles.append(Line2D([], [], color="black", lw=1.1, ls=style, label=f"bound, {bound}"))
    for name, (colour, style) in _PAINTERS.items():
        handles.append(Line2D([], [], color=colour, lw=0.9, ls=style, label=name))
    columns = max(2, 5 * len(tissues) // 3)
    figure.legend(handles=handles, loc="outside lower left", ncols=columns, frameon=False, fontsize=8.5)


def slope_figure(
    table: Table, parameter: str, symbol: str, tissues: Mapping[str, str], methods: Sequence[str], snrs: Sequence[float]
) -> str:
    """Slope of estimate on truth within each tissue over SNR, with the interval over draws, as an SVG data URI."""
    palette = colours(methods)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 3.1 * len(tissues), 3.0), layout="constrained")
        axes = figure.subplots(1, len(tissues), sharey=True, squeeze=False)[0]
        for axis, (tissue, title) in zip(axes, tissues.items(), strict=True):
            axis.set_title(title, loc="left", fontweight="bold")
            _dress(axis, snrs)
            axis.axhline(1, color="#bbbbbb", lw=0.8)
            axis.axhline(0, color="#bbbbbb", lw=0.8)
            axis.axhline(0.8, color="#999999", lw=0.8, ls="--")
            for k, (method, colour) in enumerate(palette.items()):
                found = [
                    (i + 0.12 * (k - (len(palette) - 1) / 2), row)
                    for i, snr in enumerate(snrs)
                    if (row := table.get(method, tissue, parameter, snr, "slope_within"))
                ]
                if not found:
                    continue
                x, y = [p for p, _ in found], [row.value for _, row in found]
                axis.plot(x, y, color=colour, lw=1.2, marker="o", ms=3.5, label=method)
                ends = [(p, v) for p, row in found for v in (row.low, row.high, np.nan)]
                axis.plot(*np.array(ends).T, color=colour, lw=0.8)
            axis.set_xlabel("SNR (σ below)")
            axis.set_ylim(-0.6, 1.9)
        axes[0].set_ylabel(f"slope of ${symbol}$ on the truth [1]")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=6, frameon=False, fontsize=8.5)
        return svg_uri(figure)


def svg_uri(figure: Figure, digits: int | None = None) -> str:
    """A figure as an SVG data URI, its text in the font of the page.

    Args:
        digits: of the coordinates of paths, in points; None: as drawn. Contours have thousands of them.
    """
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    # laid out in the slightly wider DejaVu, shown in the font of the page
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", _FONT.replace('"', "'"), text.getvalue())
    svg = svg[svg.index("<svg") :]
    if digits is not None:
        long = re.compile(rf"(\.\d{{{digits}}})\d+")
        svg = re.sub(r' d="[^"]*"', lambda path: long.sub(r"\1", path[0]), svg)
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


# maps


def sequential(parameter: str) -> Float[np.ndarray, "256 3"]:
    """Colours of a parameter: lipari for T1, navia for the other relaxation times, grey for what is no time.

    Source: colour maps of Crameri et al. 2020, doi:10.1038/s41467-020-19160-7; which for what: doi:10.1002/mrm.30290.
    """
    name = "lipari" if parameter == "T1" else "navia" if parameter.startswith("T") else "grayC"
    return np.asarray(cm.cmaps[name](np.linspace(0, 1, 256)))[:, :3]


def diverging() -> Float[np.ndarray, "256 3"]:
    """Colours of an error: vik, white at 0."""
    return np.asarray(cm.cmaps["vik"](np.linspace(0, 1, 256)))[:, :3]


def css_gradient(colours: Float[np.ndarray, "256 3"]) -> str:
    """A colour bar as a CSS background."""
    stops = np.rint(255 * colours[np.linspace(0, 255, 24).round().astype(int)]).astype(int)
    return "linear-gradient(to right, " + ", ".join(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in stops) + ")"


def map_png(
    values: Float[np.ndarray, "y x"],
    mask: Bool[np.ndarray, "y x"],
    low: float,
    high: float,
    colours: Float[np.ndarray, "256 3"],
) -> str:
    """A map as a palette PNG data URI, one pixel per voxel; black outside the mask and where there is no value.

    Args:
        low, high: ends of the colour scale [unit of `values`]; what lies beyond has the colour of the end.
    """
    valid = mask & np.isfinite(values)
    scaled = (np.where(valid, values, low) - low) / (high - low)
    # entry 0 is black: invalid
    index = np.where(valid, 1 + np.rint(254 * np.minimum(np.maximum(scaled, 0), 1)), 0).astype(np.uint8)
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[1:] = np.rint(255 * colours[np.linspace(0, 255, 255).round().astype(int)])
    return "data:image/png;base64," + base64.b64encode(_png(index, palette)).decode()


def _png(index: UInt8[np.ndarray, "y x"], palette: UInt8[np.ndarray, "256 3"]) -> bytes:
    """Indexed-colour PNG of 8 bits. Source: W3C PNG specification, third edition, sections 5 and 11."""
    height, width = index.shape
    lines: Shaped[np.ndarray, "y x1"] = np.zeros((height, width + 1), dtype=np.uint8)
    lines[:, 1:] = index
    out = BytesIO()
    out.write(b"\x89PNG\r\n\x1a\n")
    for kind, data in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", palette.tobytes()),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    ):
        out.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return out.getvalue()


def nice(limit: float) -> float:
    """The next larger 1, 1.5, 2, 3, 5 times a power of ten: ends of colour scales that read well."""
    if not (isfinite(limit) and limit > 0):
        return 1.0
    decade = 10.0 ** floor(log10(limit))
    return float(next(m * decade for m in (1, 1.5, 2, 3, 5, 10) if m * decade >= limit * (1 - 1e-9)))
