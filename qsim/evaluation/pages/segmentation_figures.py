"""Figures of a `segmentation` study: Dice by run and by image, uncertainty, images with outlines, training curves."""

from collections.abc import Sequence
from math import log

import matplotlib as mpl
import numpy as np
from cmcrameri import cm
from jaxtyping import Bool
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from qsim.evaluation.pages.figures import INK, STYLE, svg_uri
from qsim.evaluation.pages.heat_figures import PALETTE
from qsim.evaluation.pages.segmentation_lead import shown_name
from qsim.evaluation.pages.segmentation_tables import split_name
from qsim.evaluation.pages.summary import number
from qsim.evaluation.studies.segmentation_ranks import ensembles_of, followed
from qsim.evaluation.studies.segmentation_results import TEST, SegmentationResults, Shown, run_means

_WIDTH = 10.6
_DPI = 100
# shades of an image: few, so that its pixels take less space
_SHADES = 64
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
_TRUTH, _PREDICTED = "#56B4E9", "#E69F00"
# least side of a cut-out, as a share of the image, and its margin around the target
_LEAST, _MARGIN = 0.35, 0.15


def colour_of(results: SegmentationResults, name: str) -> str:
    """Of a set, the same over the whole page."""
    return PALETTE[results.sets.index(name) % len(PALETTE)]


def run_figure(results: SegmentationResults) -> str:
    """Dice of every run by set, a panel for each split; lines join the same fold and seed, bars are means."""
    splits = results.splits
    with mpl.rc_context(STYLE):
        wide = min(_WIDTH, 0.8 + len(splits) * (0.9 + 0.6 * len(results.sets)))
        figure = Figure(figsize=(wide, 3.5), layout="constrained")
        axes = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
        for axis, split in zip(axes, splits, strict=True):
            means = [run_means(results, name, split) for name in results.sets]
            keys = sorted({key for each in means for key in each})
            # spread by a fixed sequence, so that the page is the same each time
            aside = {key: 0.34 * (((i + 1) * 0.618) % 1 - 0.5) for i, key in enumerate(keys)}
            for key in keys:
                line = [(x + aside[key], each.get(key, np.nan)) for x, each in enumerate(means)]
                axis.plot(*np.array(line).T, color="#cfcfcf", lw=0.7, zorder=1)
            for x, (name, each) in enumerate(zip(results.sets, means, strict=True)):
                colour = colour_of(results, name)
                for key, value in each.items():
                    mark = _mark(results, key[0])
                    axis.plot(x + aside[key], value, ls="", marker=mark, ms=4.5, mew=0, alpha=0.8, color=colour)
                if each:
                    middle = float(np.mean(list(each.values())))
                    axis.plot((x - 0.3, x + 0.3), (middle, middle), color=colour, lw=2.6, solid_capstyle="butt")
                    # above all points, whatever their heights
                    axis.annotate(
                        number(middle, 3), (x, 1.0), xycoords=("data", "axes fraction"), fontsize=8, ha="center",
                        va="top", color=INK,
                    )  # fmt: skip
            axis.set_title(split_name(results, split), loc="left", fontweight="bold")
            axis.set_xlim(-0.5, len(results.sets) - 0.5)
            _names(axis, results.sets)
            axis.grid(axis="y", color="#eeeeee", lw=0.6)
            axis.set_axisbelow(True)
        low, high = axes[0].get_ylim()
        axes[0].set_ylim(low, high + 0.07 * (high - low))
        axes[0].set_ylabel("mean Dice of a run [1]")
        _fold_legend(figure, results)
        return svg_uri(figure, digits=2)


def _names(axis: Axes, names: Sequence[str]) -> None:
    """Names of the sets below an axis, a word on each line."""
    axis.xaxis.set_major_locator(FixedLocator(list(range(len(names)))))
    axis.set_xticklabels([name.replace(" ", "\n") for name in names], fontsize=8.5)


def image_figure(results: SegmentationResults) -> str:
    """Dice of every image of the domains by set: mean over runs, and the span of the runs; worst images first."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 0.6 + 2.7 * len(results.domains)), layout="constrained")
        axes = figure.subplots(len(results.domains), 1, squeeze=False)[:, 0]
        for axis, domain in zip(axes, results.domains, strict=True):
            each = {
                name: np.stack([run.dice[domain] for run in runs.values()])
                for name in results.sets
                if (runs := results.of_set(name))
            }
            order = np.argsort(each.get(results.baseline, next(iter(each.values()))).mean(axis=0), kind="stable")
            slot = 0.66 / len(each)
            for k, (name, dice) in enumerate(each.items()):
                x = np.arange(order.size) + slot * (k - (len(each) - 1) / 2)
                middle, low, high = (f(dice, axis=0)[order] for f in (np.mean, np.min, np.max))
                ends = np.stack([low, high, np.full_like(low, np.nan)], 1).ravel()
                axis.plot(np.repeat(x, 3), ends, color=colour_of(results, name), lw=0.9, alpha=0.45)
                size = 4.5 if order.size <= 40 else 2.8
                axis.plot(x, middle, ls="", marker="o", ms=size, mew=0, color=colour_of(results, name))
            for i in range(1, order.size, 2):
                axis.axvspan(i - 0.5, i + 0.5, color="#f5f5f5", lw=0, zorder=0)
            axis.set_xlim(-0.6, order.size - 0.4)
            axis.set_ylim(-0.02, 1.02)
            axis.set_xticks([])
            axis.set_title(f"{shown_name(domain)}, {order.size} images", loc="left", fontweight="bold")
            axis.set_ylabel("Dice [1]")
        axes[-1].set_xlabel(f"image, in the order of its mean Dice with {results.baseline}")
        _legend(figure, results)
        return svg_uri(figure, digits=2)


def scatter_figure(results: SegmentationResults, score: str, label: str) -> str:
    """A score against the Dice of the ensemble, by set (columns) and images (rows), a mark for each fold."""
    splits = [
        s for s in (TEST, *results.domains) if any(e.domain == s and score in e.scores for e in results.ensembles)
    ]
    sets = [name for name in results.sets if any(e.set == name for e in results.ensembles)]
    with mpl.rc_context(STYLE):
        wide = min(_WIDTH, 0.9 + 3.0 * len(sets))
        figure = Figure(figsize=(wide, 0.8 + 2.3 * len(splits)), layout="constrained")
        axes = figure.subplots(len(splits), len(sets), sharex=True, sharey=True, squeeze=False)
        for line, split in zip(axes, splits, strict=True):
            for axis, name in zip(line, sets, strict=True):
                for each in ensembles_of(results, name, split):
                    if score in each.scores:
                        axis.plot(
                            each.scores[score], each.dice, ls="", marker=_mark(results, each.fold), ms=4, mew=0,
                            alpha=0.7, color=colour_of(results, name),
                        )  # fmt: skip
                found = followed(results, name, split, score)
                rho = found.mean.value if found else np.nan
                axis.set_title(f"{name}, {split_name(results, split)}\nρ = {number(rho)}", loc="left", fontsize=8.8)
                axis.grid(color="#f0f0f0", lw=0.6)
                axis.set_axisbelow(True)
            line[0].set_ylabel("Dice of the ensemble [1]")
        for axis in axes[-1]:
            axis.set_xlabel(label)
        _fold_legend(figure, results)
        return svg_uri(figure, digits=2)


def shown_figure(results: SegmentationResults, domain: str) -> str:
    """Best and worst image of every set: image with both outlines, and the entropy beside it."""
    held = {(one.set, one.which): one for one in results.shown if one.domain == domain}
    sets = [name for name in results.sets if any(of == name for of, _ in held)]
    side = (_WIDTH - 0.9) / 4
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(_WIDTH, (side + 0.25) * len(sets) + 0.7),
            layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.01, hspace=0.01),
            dpi=_DPI,
        )
        axes = figure.subplots(len(sets), 4, squeeze=False)
        picture = None
        for line, name in zip(axes, sets, strict=True):
            for axis in line:
                axis.set_xticks([])
                axis.set_yticks([])
                axis.spines[:].set_visible(False)
            line[0].set_ylabel(name, fontsize=9, fontweight="bold")
            for pair, which in ((line[:2], "best"), (line[2:], "worst")):
                one = next((o for o in held.values() if (o.set, o.which) == (name, which)), None)
                if one is None:
                    continue
                picture = _show(pair[0], pair[1], one)
                pair[0].set_title(f"{which}, Dice {number(one.dice)}\n{one.name}", fontsize=8.5, loc="left")
                pair[1].set_title("\nentropy", fontsize=8.5, loc="left")
        if picture is not None:
            bar = figure.colorbar(picture, ax=axes.ravel().tolist(), fraction=0.02, pad=0.015, aspect=30, shrink=0.8)
            bar.set_label("entropy of the mean probability [nats]; ln 2 at most", fontsize=8.5)
            bar.outline.set_linewidth(0.4)
        handles = [
            Line2D([], [], color=_TRUTH, lw=2, label="truth"),
            Line2D([], [], color=_PREDICTED, lw=2, label="predicted"),
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=2, frameon=False, fontsize=8.5)
        return svg_uri(figure, digits=1)


def _show(left: Axes, right: Axes, one: Shown) -> mpl.image.AxesImage:
    window = window_of(one.truth | one.predicted)
    image = one.image[window].astype(np.float64)
    low, high = (float(v) for v in np.percentile(image, (0.5, 99.5)))
    grey, shades = mpl.colormaps["gray"].resampled(_SHADES), cm.cmaps["lipari"].resampled(_SHADES)
    left.imshow(image, cmap=grey, vmin=low, vmax=max(high, low + 1e-9), interpolation="none")
    for mask, colour in ((one.truth[window], _TRUTH), (one.predicted[window], _PREDICTED)):
        # a mask that is empty or full has no outline
        if mask.any() and not mask.all():
            left.contour(mask.astype(np.float64), levels=[0.5], colors=[colour], linewidths=1.5)
    return right.imshow(one.entropy[window], cmap=shades, vmin=0, vmax=log(2), interpolation="none")


def window_of(mask: Bool[np.ndarray, "y x"]) -> tuple[slice, slice]:
    """A square around a mask with a margin, at least a third of the image, within it; all of it without a mask."""
    if not mask.any():
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    spans = [np.flatnonzero(mask.any(axis=1 - axis)) for axis in (0, 1)]
    widest = max(int(s[-1] - s[0] + 1) for s in spans)
    side = max(round(widest * (1 + 2 * _MARGIN)), round(_LEAST * max(mask.shape)))
    found = []
    for span, n in zip(spans, mask.shape, strict=True):
        start = max(0, min((int(span[0]) + int(span[-1]) + 1 - side) // 2, n - side))
        found.append(slice(start, min(start + side, n)))
    return found[0], found[1]


def curve_figure(results: SegmentationResults) -> str:
    """Mean training loss of every set by epoch."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.0), layout="constrained")
        axis = figure.subplots()
        known = [values[np.isfinite(values)] for values in results.curves.values()]
        for name, values in results.curves.items():
            colour = colour_of(results, name) if name in results.sets else "#777777"
            mark = "o" if values.size < 3 else ""
            axis.plot(np.arange(1, values.size + 1), values, color=colour, lw=1.4, marker=mark, ms=4)
        if known and all((values > 0).all() for values in known):
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(FixedLocator([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("epoch")
        axis.set_ylabel("training loss, 1 − Dice [1]")
        axis.grid(color="#eeeeee", lw=0.6)
        _legend(figure, results)
        return svg_uri(figure, digits=2)


def _legend(figure: Figure, results: SegmentationResults) -> None:
    handles = [
        Line2D([], [], ls="", marker="o", ms=5, mew=0, color=colour_of(results, name), label=name)
        for name in results.sets
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=5, frameon=False, fontsize=8.5)


def _fold_legend(figure: Figure, results: SegmentationResults) -> None:
    """Marks of the folds, if there is more than one."""
    if len(results.folds) < 2:
        return
    handles = [
        Line2D([], [], ls="", marker=_mark(results, fold), ms=4.5, mew=0, color="#777777", label=f"fold {fold}")
        for fold in results.folds
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=8, frameon=False, fontsize=8.5)


def _mark(results: SegmentationResults, fold: int) -> str:
    return _MARKS[results.folds.index(fold) % len(_MARKS)] if fold in results.folds else "o"
