"""Figures of an `uncertainty` study, a column for each tissue or SNR, as SVG data URIs."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from cmcrameri import cm
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from qsim.evaluation.pages.figures import STYLE, colours, svg_uri
from qsim.evaluation.studies.uncertainty_study import LEVELS, STEPS
from qsim.evaluation.studies.uncertainty_table import Uncertainty

_RULE, _BAND, _GRAY = "#bbbbbb", "#e3efe3", "#777777"
_MARKERS = "osD^vP"
# the targets: coverage within 2 % of its level at widths up to 1.5 times that of the bound, where the bound's CV is
# under 10 % (an interval of an SD needs a likelihood that is a parabola)
OFF_LEVEL, WIDEST, NARROW = 2.0, 1.5, 10.0
_ROUND = [step * 10.0**power for power in range(-4, 6) for step in (1, 2, 5)]
# small panels side by side
_COLUMNS = 4


def some(snrs: Sequence[float]) -> list[float]:
    """Up to four SNRs, the ends among them."""
    places = np.linspace(0, len(snrs) - 1, min(len(snrs), _COLUMNS)).round().astype(int)
    return [snrs[i] for i in places]


def coverage_over_snr(found: Uncertainty, kind: str) -> str:
    """Coverage and width of one kind of interval, a column for each tissue; hollow: the bound's CV is 10 % or more.

    The axis of the coverage is stretched around the level: log of the distance to 102 %.
    """
    methods = [name for name in found.methods if (name, kind) not in found.refusals]
    palette, level = colours(found.methods), 100 * found.level
    tissues = {r: name for r, name in found.regions.items() if r < len(found.tissues)}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 3.1 * max(len(tissues), 2), 4.4), layout="constrained")
        axes = figure.subplots(2, len(tissues), sharex=True, sharey="row", squeeze=False)
        for column, (region, name) in enumerate(tissues.items()):
            above, below = axes[:, column]
            above.set_title(name, loc="left", fontweight="bold")
            above.axhspan(level - OFF_LEVEL, min(level + OFF_LEVEL, 100), color=_BAND, lw=0, zorder=0)
            above.axhline(level, color=_RULE, lw=0.9, zorder=1)
            below.axhspan(1e-6, WIDEST, color=_BAND, lw=0, zorder=0)
            below.axhline(1, color=_RULE, lw=0.9, zorder=1)
            for m, method in enumerate(methods):
                marker = _MARKERS[list(found.methods).index(method) % len(_MARKERS)]
                for axis, metric in ((above, "coverage"), (below, "width_over_bound")):
                    aside = 0.1 * (m - (len(methods) - 1) / 2)
                    _over_snr(axis, found, method, region, f"{metric}_{kind}", palette[method], marker, aside)
            below.set_xticks(range(len(found.snrs)), [f"{snr:g}\n{0.65 / snr:.3g}" for snr in found.snrs])
            below.set_xlabel("SNR (σ below)")
        shown = [found.of(m, snr, r, f"coverage_{kind}") for m in methods for snr in found.snrs for r in tissues]
        least = min([level - 2 * OFF_LEVEL, *(v for each in shown for v in (each.value, each.low) if v == v)])
        axes[0, 0].set_yscale(
            "function", functions=(lambda c: -np.log(np.maximum(102 - c, 0.1)), lambda s: 102 - np.exp(-s))
        )
        axes[0, 0].set_ylim(max(least - 2, 0), 100.4)
        axes[0, 0].yaxis.set_major_locator(FixedLocator([0, 50, 70, 80, 85, 90, 93, 95, 97, 99, 100]))
        axes[0, 0].yaxis.set_minor_locator(NullLocator())
        axes[0, 0].set_ylabel(f"{level:g} % intervals that\nhold the truth [%]")
        axes[1, 0].set_yscale("log")
        _plain(axes[1, 0], "y")
        widths = [
            found.of(m, snr, r, f"width_over_bound_{kind}").value
            for m in methods
            for snr in found.snrs
            for r in tissues
        ]
        finite = [v for v in widths if np.isfinite(v) and v > 0]
        axes[1, 0].set_ylim(0.9 * min(0.8, *finite), 1.1 * max(2.0, *finite))
        low, high = axes[1, 0].get_ylim()
        axes[1, 0].yaxis.set_major_locator(FixedLocator(_ROUND if high > 15 * low else [*_ROUND, 0.7, 1.5, 3.0]))
        axes[1, 0].set_ylabel("median width /\nthat of the bound [1]")
        handles = [
            Line2D([], [], color=palette[name], marker=_MARKERS[m % len(_MARKERS)], ms=4.5, lw=1.0, label=name)
            for m, name in enumerate(found.methods)
            if name in methods
        ]
        hollow = Line2D([], [], color=_GRAY, marker="o", mfc="white", lw=0, ms=4.5, label="bound's CV ≥ 10 %")
        columns = max(1, int(figure.get_figwidth() / 2.0))
        figure.legend(handles=[*handles, hollow], loc="outside lower left", ncols=columns, frameon=False, fontsize=8.5)
        return svg_uri(figure)


def _over_snr(
    axis: Axes, found: Uncertainty, method: str, region: int, metric: str, colour: str, marker: str, aside: float
) -> None:
    x = np.arange(len(found.snrs)) + aside
    figures = [found.of(method, snr, region, metric) for snr in found.snrs]
    axis.plot(x, [each.value for each in figures], color=colour, lw=0.9)
    for place, each, snr in zip(x, figures, found.snrs, strict=True):
        if each.value != each.value:
            continue
        narrow = found.bound(method, snr, region).value < NARROW
        axis.plot(place, each.value, color=colour, marker=marker, ms=4.5, mfc=colour if narrow else "w")
        # a t-interval that reaches below 0 has no place on the logarithmic axis of widths
        if each.low == each.low and (metric.startswith("coverage") or each.low > 0):
            axis.plot([place, place], [each.low, each.high], color=colour, lw=0.9, alpha=0.6)


def sparsification_over_snr(found: Uncertainty) -> str:
    """RMSE of the rest over that of all when the most uncertain voxels are removed, tissues by SNRs."""
    share = 100 * np.arange(STEPS) / STEPS
    figure, axes, palette = _panels(found)
    with mpl.rc_context(STYLE):
        for axis, region, snr in axes:
            axis.axhline(1, color=_GRAY, lw=0.8, ls=":")
            for name in found.methods:
                curve, oracle = found.mean_curve(name, snr, region, "sparsification")
                axis.plot(share, oracle, color=palette[name], lw=0.9, ls="--")
                axis.plot(share, curve, color=palette[name], lw=1.5)
            axis.set_xlim(0, 100)
            axis.set_xticks([0, 50, 100])
        # one axis for all panels
        axes[0][0].set_ylim(0, None)
        extra = [("oracle (removed by the error itself)", "--"), ("random", ":")]
        return _finish(figure, palette, "most uncertain removed [%]", "RMSE of the rest / of all", extra)


def quantiles_over_snr(found: Uncertainty) -> str:
    """How often the truth lies below each quantile of the stated Gaussian, tissues by SNRs."""
    levels = 100 * np.arange(1, LEVELS + 1) / (LEVELS + 1)
    figure, axes, palette = _panels(found)
    with mpl.rc_context(STYLE):
        for axis, region, snr in axes:
            axis.plot([0, 100], [0, 100], color=_RULE, lw=0.9)
            for m, name in enumerate(found.methods):
                observed = 100 * found.mean_curve(name, snr, region, "observed")
                axis.plot(levels, observed, color=palette[name], lw=1.1, marker=_MARKERS[m % len(_MARKERS)], ms=2.2)
            axis.set_xlim(0, 100)
            axis.set_ylim(0, 100)
            axis.set_xticks([0, 50, 100])
            axis.set_yticks([0, 50, 100])
        return _finish(figure, palette, "quantile of the law [%]", "truths below it [%]", [])


def errors_over_sd(found: Uncertainty) -> str:
    """RMSE of bins of ascending SD over that SD, tissues by SNRs."""
    figure, axes, palette = _panels(found, sharey=False)
    with mpl.rc_context(STYLE):
        for axis, region, snr in axes:
            ends = []
            for m, name in enumerate(found.methods):
                sd, rmse = found.mean_curve(name, snr, region, "bins")
                axis.plot(sd, rmse, color=palette[name], lw=1.1, marker=_MARKERS[m % len(_MARKERS)], ms=2.6)
                ends += [float(v) for v in (*sd, *rmse) if np.isfinite(v) and v > 0]
            low, high = (0.8 * min(ends), 1.25 * max(ends)) if ends else (1.0, 10.0)
            axis.plot([low, high], [low, high], color=_RULE, lw=0.9, zorder=0)
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_xlim(low, high)
            axis.set_ylim(low, high)
            for which in ("x", "y"):
                _plain(axis, which)
                steps = (1, 2, 5) if high < 100 * low else (1,)
                ticks = [step * 10.0**power for power in range(-4, 9) for step in steps]
                (axis.xaxis if which == "x" else axis.yaxis).set_major_locator(FixedLocator(ticks))
        return _finish(figure, palette, "stated SD [%]", "RMSE of the bin [%]", [])


def maps(firsts: Mapping[str, Float[np.ndarray, "2 y x"]], unit: float) -> str:
    """|error| and SD of one realisation, a column for each method, on one colour scale [ms].

    Args:
        firsts: error and SD by method [SI].
        unit: one of the units shown [SI].
    """
    inside = np.any([np.isfinite(each).any(0) for each in firsts.values()], axis=0)
    window = tuple(slice(int(places.min()), int(places.max()) + 1) for places in np.nonzero(inside))
    high, wide = inside[window].shape
    rows_per_column = min(high / wide, 2.0)
    known = np.concatenate([np.abs(each[0][np.isfinite(each[0])]) for each in firsts.values()]) / unit
    # lost voxels do not take the scale
    top = float(np.percentile(known, 90)) if known.size else 1.0
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(0.9 + 1.9 * max(len(firsts), 2), 0.5 + 3.8 * rows_per_column), layout="constrained")
        axes = figure.subplots(2, len(firsts), squeeze=False)
        shades = cm.cmaps["imola"].with_extremes(bad="#ffffff", over="#b71c1c")
        picture = None
        for column, (name, each) in enumerate(firsts.items()):
            for line, values in enumerate((np.abs(each[0]), each[1])):
                axis = axes[line, column]
                # an infinite SD has the colour of what lies beyond the scale
                shown = np.where(np.isinf(values), np.finfo(np.float32).max, values / unit)
                picture = axis.imshow(np.ma.masked_invalid(shown[window]), cmap=shades, vmin=0, vmax=max(top, 1e-12))
                axis.set_xticks([])
                axis.set_yticks([])
                axis.spines[:].set_visible(False)
            axes[0, column].set_title(name, fontsize=8, loc="left")
        for line, text in enumerate(("|error|", "stated SD")):
            axes[line, 0].set_ylabel(text)
        assert picture is not None
        bar = figure.colorbar(picture, ax=axes, fraction=0.02, pad=0.01, extend="max")
        bar.set_label("ms", fontsize=8)
        bar.outline.set_linewidth(0.4)
        return svg_uri(figure)


def _panels(found: Uncertainty, sharey: bool = True) -> tuple[Figure, list[tuple[Axes, int, float]], dict[str, str]]:
    """A row of panels for each tissue, a column for some of the SNRs."""
    tissues = {r: name for r, name in found.regions.items() if r < len(found.tissues)}
    snrs = some(found.snrs)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.0 + 2.3 * max(len(snrs), 3), 0.9 + 1.75 * len(tissues)), layout="constrained")
        axes = figure.subplots(len(tissues), len(snrs), squeeze=False, sharex=sharey, sharey=sharey)
        for line, name in enumerate(tissues.values()):
            for column, snr in enumerate(snrs):
                axes[line, column].set_title(f"{name}, SNR {snr:g}", loc="left", fontsize=8.5)
    panels = [(axes[i, j], r, snr) for i, r in enumerate(tissues) for j, snr in enumerate(snrs)]
    return figure, panels, colours(found.methods)


def _finish(figure: Figure, palette: Mapping[str, str], x: str, y: str, extra: Sequence[tuple[str, str]]) -> str:
    axes = figure.axes
    last = axes[0].get_subplotspec()
    assert last is not None
    lines, columns = last.get_gridspec().get_geometry()
    for axis in axes[(lines - 1) * columns :]:
        axis.set_xlabel(x)
    axes[(lines - 1) // 2 * columns].set_ylabel(y)
    handles = [Line2D([], [], color=colour, lw=1.5, label=name) for name, colour in palette.items()]
    handles += [Line2D([], [], color=_GRAY, lw=0.9, ls=style, label=text) for text, style in extra]
    columns = max(1, int(figure.get_figwidth() / 2.2))
    figure.legend(handles=handles, loc="outside lower left", ncols=columns, frameon=False, fontsize=8.5)
    return svg_uri(figure)


def _plain(axis: Axes, which: str) -> None:
    one = axis.xaxis if which == "x" else axis.yaxis
    one.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    one.set_minor_locator(NullLocator())
