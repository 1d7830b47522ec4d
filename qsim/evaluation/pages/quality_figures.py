"""Figures of a `quality` study: scatter plots, boxes, heat maps of leakage, slices, volumes with their error bars."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from cmcrameri import cm
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from qsim.evaluation.pages.figures import INK, STYLE, diverging, svg_uri
from qsim.evaluation.pages.heat_figures import PALETTE
from qsim.evaluation.pages.summary import number
from qsim.evaluation.studies.quality_results import (
    ALL_KINDS,
    CLEAN,
    TOTAL,
    WITHIN,
    Against,
    Correlation,
    Example,
    QualityResults,
)

WORDS = {
    TOTAL: "artefact variance (Eq. 9)",
    f"body_{TOTAL}": "artefact variance in the body",
    f"ratio_{TOTAL}": "artefact variance / target share",
    "variance_task": "task variance",
    "entropy": "softmax entropy",
    "ratio_entropy": "softmax entropy / target share",
    "dropout_variance": "dropout variance",
    "dropout_mutual": "dropout mutual information",
    "ensemble_entropy": "entropy of the ensemble",
    "ensemble_mutual": "mutual information of the ensemble",
    "ensemble_variance": "variance between members",
    "snr_predicted": "SNR, predicted labels",
    "cnr_pooled_predicted": "CNR pooled, predicted labels",
    "cnr_difference_predicted": "CNR difference, predicted labels",
    "snr_true": "SNR, true labels",
    "cnr_pooled_true": "CNR pooled, true labels",
    "cnr_difference_true": "CNR difference, true labels",
}
_CLEAN = "#8a8a8a"
_WIDTH = 10.6
# of what is drawn as pixels within a vector figure
_DPI = 100
# shades of a slice: few, so that its pixels take a fifth of the space
_SHADES = 32
_MARKS = ("o", "s", "^", "D", "v", "P")
_WRONG, _MISSED = "#D55E00", "#0072B2"
_NO_VALUE = "#bbbbbb"


def colour_of(results: QualityResults, kind: str) -> str:
    """The same over the whole page."""
    return _CLEAN if kind == CLEAN else PALETTE[results.kinds.index(kind) % len(PALETTE)]


def forest_figure(results: QualityResults, found: Sequence[Correlation], group: str) -> str:
    """Rank correlations with their intervals: pooled, within the artefacts, and with the change of Dice."""
    panels: tuple[tuple[str, Against, str], ...] = (
        ("with Dice, all images", "dice", ALL_KINDS),
        ("with Dice, within artefacts", "dice", WITHIN),
        ("with the change of Dice", "dice_change", ALL_KINDS),
    )
    held = {(c.model, c.figure, c.against, c.scope): c for c in found if c.group == group}
    names = [name for name in WORDS if any((model, name, "dice", ALL_KINDS) in held for model in results.models)]
    slot = 0.7 / len(results.models)
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(_WIDTH, 0.9 + len(names) * max(0.24, 0.13 * len(results.models))), layout="constrained"
        )
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, (title, against, scope) in zip(axes, panels, strict=True):
            axis.set_title(title, loc="left", fontweight="bold")
            axis.axvline(0, color="#999999", lw=0.8)
            for m, model in enumerate(results.models):
                shown = [(y, held.get((model, name, against, scope))) for y, name in enumerate(names)]
                points = [(y + slot * (m - (len(results.models) - 1) / 2), c) for y, c in shown if c is not None]
                shade = f"{0.55 * m / max(len(results.models) - 1, 1):.2f}"
                for y, c in points:
                    if np.isfinite(c.low):
                        axis.plot((c.low, c.high), (y, y), color=shade, lw=1.0)
                mark = _MARKS[m % len(_MARKS)]
                axis.plot([c.rho for _, c in points], [y for y, _ in points], ls="", marker=mark, ms=4, color=shade)
            axis.set_xlim(-1.03, 1.03)
            axis.set_xlabel("Spearman ρ")
            axis.grid(axis="x", color="#eeeeee", lw=0.6)
        axes[0].yaxis.set_major_locator(FixedLocator(list(range(len(names)))))
        axes[0].set_yticklabels([WORDS[name] for name in names])
        axes[0].set_ylim(len(names) - 0.4, -0.6)
        if len(results.models) > 1:
            handles = [
                Line2D(
                    [], [], ls="", ms=4, label=model, marker=_MARKS[m % len(_MARKS)],
                    color=f"{0.55 * m / (len(results.models) - 1):.2f}",
                )
                for m, model in enumerate(results.models)
            ]  # fmt: skip
            figure.legend(handles=handles, loc="outside lower left", ncols=6, frameon=False, fontsize=8.5)
        return svg_uri(figure, digits=2)


def scatter_figure(
    results: QualityResults,
    model: str,
    group: str,
    shown: Sequence[str],
    against: Against,
    rho: Mapping[str, float],
) -> str:
    """Dice, or its change, against some figures, a panel each, coloured by artefact."""
    rows, kind = results.groups[group], results.seen.kind
    y = results.figures[model][against]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH / 4 * max(len(shown), 2) + 0.3, 3.1), layout="constrained")
        axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axis, name in zip(axes, shown, strict=True):
            x = results.figures[model][name]
            for k in range(0 if against == "dice" else 1, len(results.kinds) + 1):
                of = rows & (kind == k) & np.isfinite(x)
                colour = colour_of(results, results.kind_name(k))
                axis.plot(x[of], y[of], ls="", marker="o", ms=3.4, mew=0, alpha=0.75, color=colour, zorder=2 + (k > 0))
            axis.set_title(f"{_capital(WORDS[name])}\nρ = {number(rho.get(name, np.nan))}", loc="left", fontsize=8.8)
            inside = x[rows & np.isfinite(x)]
            if inside.size and inside.min() > 0 and inside.max() > 20 * inside.min():
                _logarithmic(axis, "x")
            axis.set_xlabel("[nats]" if "entropy" in name or "mutual" in name else "[1]")
            axis.grid(color="#f0f0f0", lw=0.6)
        axes[0].set_ylabel("Dice" if against == "dice" else "Dice − Dice of the clean image")
        _legend(figure, results, clean=against == "dice")
        return svg_uri(figure, digits=2)


def box_figure(results: QualityResults, model: str, group: str) -> str:
    """Artefact variance, entropy and Dice of clean images and of each artefact."""
    rows, kind = results.groups[group], results.seen.kind
    panels = [name for name in (TOTAL, "entropy", "dice") if results.has(model, name)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 3.0), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, name in zip(axes, panels, strict=True):
            values = results.figures[model][name]
            each = [values[rows & (kind == k) & np.isfinite(values)] for k in range(len(results.kinds) + 1)]
            for k, held in enumerate(each):
                if held.size:
                    _box(axis, float(k), held, colour_of(results, results.kind_name(k)))
            inside = np.concatenate(each)
            if name != "dice" and inside.size and inside.min() > 0 and inside.max() > 20 * inside.min():
                _logarithmic(axis, "y")
            if each[0].size:
                axis.axhline(float(np.median(each[0])), color=_CLEAN, lw=0.7, ls=":", zorder=1)
            axis.xaxis.set_major_locator(FixedLocator(list(range(len(each)))))
            axis.set_xticklabels([CLEAN, *results.kinds], rotation=0 if len(each) < 7 else 30)
            title = "Dice" if name == "dice" else _capital(WORDS[name])
            unit = " [nats]" if name == "entropy" else "" if name == "dice" else " [1]"
            axis.set_title(title + unit, loc="left", fontweight="bold")
        return svg_uri(figure, digits=2)


def _box(axis: Axes, x: float, values: Float[np.ndarray, " i"], colour: str) -> None:
    """Quartiles with the median, whiskers at 5 and 95 %, and the images themselves."""
    parts = axis.boxplot(
        values, positions=[x], widths=0.55, whis=(5, 95), showfliers=False, patch_artist=True, manage_ticks=False
    )
    for box in parts["boxes"]:
        box.set(facecolor=colour + "44", edgecolor=colour, lw=0.9)
    for part in (*parts["whiskers"], *parts["caps"]):
        part.set(color=colour, lw=0.8)
    for line in parts["medians"]:
        line.set(color=colour, lw=2.0)
    # spread by a fixed sequence, so that the page is the same each time
    aside = (np.arange(values.size) * 0.618) % 1 - 0.5
    axis.plot(x + 0.4 * aside, values, ls="", marker="o", ms=1.8, mew=0, color=colour, alpha=0.6)


def leakage_figure(
    results: QualityResults, panels: Mapping[str, tuple[tuple[str, ...], Float[np.ndarray, "s k"]]]
) -> str:
    """Matrices of leakage on one symmetric scale, with their numbers; the own artefact of a head is framed.

    Args:
        panels: by title, the heads (rows) and the matrix (columns: artefacts of the test).
    """
    top = max((float(np.nanmax(np.abs(m))) for _, m in panels.values() if np.isfinite(m).any()), default=1.0)
    top = max(top, 1.0)
    heads = max(len(names) for names, _ in panels.values())
    with mpl.rc_context(STYLE):
        wide = min(_WIDTH, len(panels) * (1.4 + 0.62 * len(results.kinds)) + 0.9)
        figure = Figure(figsize=(wide, 1.3 + 0.42 * heads), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        colours = ListedColormap(diverging()).with_extremes(bad=_NO_VALUE)
        scale = SymLogNorm(linthresh=1.0, vmin=-top, vmax=top)
        picture = None
        for axis, (title, (names, matrix)) in zip(axes, panels.items(), strict=True):
            picture = axis.imshow(np.ma.masked_invalid(matrix), cmap=colours, norm=scale, aspect="auto")
            for i, line in enumerate(matrix):
                for j, value in enumerate(line):
                    dark = np.isfinite(value) and abs(float(scale(value)) - 0.5) > 0.27
                    axis.text(
                        j, i, number(float(value), 2), ha="center", va="center", fontsize=8.5,
                        color="white" if dark else INK,
                    )  # fmt: skip
                    if names[i] == results.kinds[j]:
                        axis.add_patch(mpl.patches.Rectangle((j - 0.48, i - 0.46), 0.96, 0.92, fill=False, lw=1.6))
            axis.set_xticks(range(len(results.kinds)), results.kinds)
            axis.set_yticks(range(len(names)), names)
            axis.set_title(title, loc="left", fontweight="bold")
            axis.set_xlabel("artefact of the image")
            axis.spines[:].set_visible(False)
        axes[0].set_ylabel("head")
        assert picture is not None
        bar = figure.colorbar(picture, ax=list(axes), fraction=0.04, pad=0.02)
        bar.set_label("rise [SD of clean images]")
        bar.outline.set_linewidth(0.5)
        sizes = [float(f"{step}e{power}") for power in range(4) for step in (1, 2, 5) if step == 1 or top < 30]
        ticks = [sign * size for sign in (-1, 1) for size in sizes if size <= top]
        ticks = sorted([0.0, *ticks])
        bar.ax.yaxis.set_major_locator(FixedLocator(ticks))
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.ax.set_yticklabels([f"{t:g}".replace("-", "−") for t in ticks])
        return svg_uri(figure)


def example_figure(examples: Sequence[Example]) -> str:
    """A slice clean and with each artefact: image, error of the segmentation, task variance, each artefact variance."""
    sources = list(examples[0].variances)
    heads = ["image", "error", *sources]
    y, x = examples[0].image.shape
    wide = min(1.6, (_WIDTH - 0.5) / len(heads))
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(wide * len(heads) + 0.5, wide * y / x * len(examples) + 0.9),
            layout=ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01),
            dpi=_DPI,
        )
        axes = figure.subplots(len(examples), len(heads), squeeze=False)
        bright = float(np.percentile(examples[0].image, 99.8))
        task = _reach([e.variances[sources[0]] for e in examples])
        others = _reach([e.variances[s] for e in examples for s in sources[1:]])
        pictures = {}
        grey, shades = (mpl.colormaps["gray"].resampled(_SHADES), cm.cmaps["lipari"].resampled(_SHADES))
        for line, example in zip(axes, examples, strict=True):
            for axis in line:
                axis.set_xticks([])
                axis.set_yticks([])
                axis.spines[:].set_visible(False)
            line[0].set_ylabel(example.kind, fontsize=8.5)
            pictures["image"] = line[0].imshow(example.image, cmap=grey, vmin=0, vmax=bright, interpolation="none")
            line[1].imshow(_error(example, bright), interpolation="none")
            for axis, source in zip(line[2:], sources, strict=True):
                top = task if source == sources[0] else others
                pictures[source] = axis.imshow(
                    example.variances[source], cmap=shades, vmin=0, vmax=top, interpolation="none"
                )
        for axis, head in zip(axes[0], heads, strict=True):
            axis.set_title(head, fontsize=8.5, loc="left")
        groups = [("image", axes[:, :1], "[1]"), (sources[0], axes[:, 2:3], "task variance [1]")]
        if len(sources) > 1:
            groups.append((sources[1], axes[:, 3:], "artefact variance, all heads [1]"))
        for name, over, label in groups:
            bar = figure.colorbar(
                pictures[name], ax=over.ravel().tolist(), location="bottom", fraction=0.04, pad=0.01, shrink=0.9,
                aspect=9 if over.shape[1] == 1 else 40, extend="max",
            )  # fmt: skip
            bar.set_label(label, fontsize=8)
            bar.ax.tick_params(labelsize=7.5)
            bar.outline.set_linewidth(0.4)
        return svg_uri(figure, digits=1)


def _error(example: Example, bright: float) -> Float[np.ndarray, "y x 3"]:
    """The image, pale, with voxels that are wrongly in the target and those that are missed."""
    grey = 0.25 + 0.6 * np.round(_SHADES * np.clip(example.image / bright, 0, 1)) / _SHADES
    shown = np.repeat(grey[..., None], 3, axis=2).astype(np.float64)
    marks: tuple[tuple[Bool[np.ndarray, "y x"], str], ...] = (
        (example.predicted & ~example.truth, _WRONG),
        (~example.predicted & example.truth, _MISSED),
    )
    for mask, colour in marks:
        shown[mask] = mpl.colors.to_rgb(colour)
    return shown


def _reach(maps: Sequence[Float[np.ndarray, "y x"]]) -> float:
    """Where a scale of variances ends."""
    if not maps:
        return 1.0
    return max(float(np.percentile(np.concatenate([each.ravel() for each in maps]), 99.5)), 1e-6)


def ladder_figure(results: QualityResults, model: str) -> str:
    """Predicted volume of the first image against the severity of each artefact, with both error bars and the truth."""
    seen, figures = results.ladder_seen, results.ladder[model]
    kinds = [k for k in range(1, len(results.kinds) + 1) if (seen.kind == k).any()]
    ml = 1e-3
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(min(_WIDTH, 0.6 + 3.5 * len(kinds)), 3.1), layout="constrained")
        axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for axis, k in zip(axes, kinds, strict=True):
            of = np.flatnonzero((seen.kind == k) | (seen.kind == 0))
            of = of[np.argsort(seen.severity[of], kind="stable")]
            x, colour = seen.severity[of], colour_of(results, results.kind_name(k))
            volume, sd = ml * figures["volume_predicted"][of], ml * figures["volume_paper_sd"][of]
            axis.axhline(ml * float(figures["volume_true"][0]), color=INK, lw=1.0, ls="--")
            if "volume_low" in figures:
                low, high = (ml * figures[f"volume_{end}"][of] for end in ("low", "high"))
                axis.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
            axis.errorbar(x, volume, sd, color=colour, lw=1.3, marker="o", ms=4, elinewidth=1.2, capsize=3)
            axis.set_title(results.kind_name(k), loc="left", fontweight="bold")
            axis.set_xlabel("severity of the artefact [its own]")
        axes[0].set_ylabel(f"volume of {results.target} [ml]")
        handles = [
            Line2D([], [], color=INK, lw=1.0, ls="--", label="true volume"),
            Line2D([], [], color="#555555", marker="o", ms=4, label="predicted, ± σ of the paper (Eq. 8)"),
        ]
        if "volume_low" in figures:
            handles.append(Line2D([], [], color="#555555", lw=7, alpha=0.3, label="calibrated interval"))
        figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=8.5)
        return svg_uri(figure, digits=2)


def _legend(figure: Figure, results: QualityResults, *, clean: bool) -> None:
    names = [CLEAN, *results.kinds] if clean else list(results.kinds)
    handles = [
        Line2D([], [], ls="", marker="o", ms=5, mew=0, color=colour_of(results, name), label=name) for name in names
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=len(names), frameon=False, fontsize=8.5)


def _logarithmic(axis: Axes, which: str) -> None:
    getattr(axis, f"set_{which}scale")("log")
    of = axis.xaxis if which == "x" else axis.yaxis
    of.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
    of.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    of.set_minor_formatter(NullFormatter())


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
