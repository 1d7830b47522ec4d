"""The picture of `qsim segment` for networks of kind segmentation: slices with their outlines, and the entropy beside.

Slices look like the array: x to the right, y downwards. All are cut to the same window around the target.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from trainers.mapping.quick_look import drawable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

    from trainers.segmentation.segment_figures import HeartRecord, Maps, SliceFigures
    from trainers.segmentation.segment_files import Series

# of Okabe and Ito, who chose colours that all eyes tell apart
_MASK, _TRUTH = "#E69F00", "#56B4E9"
_SHOWN = 12
# ends of the grey values: the share of voxels below [%]
_DARKEST, _BRIGHTEST = 0.5, 99.5
# longest side of a panel [inch]
_SIDE = 1.9


def montage(
    file: Path,
    title: str,
    series: "Series",
    maps: "Maps",
    record: "HeartRecord",
    truth: Bool[np.ndarray, "z y x"] | None,
) -> None:
    """Draw at most twelve slices on black.

    Args:
        truth: outlined too; None: unknown.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from qsim.evaluation.pages.segmentation_figures import window_of

    inside = maps.inside
    marked = inside if truth is None else inside | truth
    window = window_of(np.asarray(marked.any(0)))
    shown = _slices(record, marked)
    pairs = min(len(shown), 1 if len(shown) == 1 else 2 if len(shown) <= 4 else 3)
    rows = -(-len(shown) // pairs)
    _, dy, dx = series.place.spacing_mm
    # the last two axes of a volume, cut
    height, width = (n * step for n, step in zip(marked[0][window].shape, (dy, dx), strict=True))
    tall, wide = (_SIDE * side / max(height, width) for side in (height, width))
    figure = Figure(
        figsize=(max(2 * pairs * (wide + 0.08) + 0.3, 5.0), rows * (tall + 0.3) + 1.3),
        facecolor="black",
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 2 * pairs, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    shades = []
    for number, of in enumerate(shown):
        row, column = divmod(number, pairs)
        left, right = axes[row, 2 * column : 2 * column + 2]
        z = of.slice
        outlines = [] if truth is None else [(_TRUTH, truth[z][window])]
        _grey(left, series.values[of.image or 0, z][window], [*outlines, (_MASK, inside[z][window])], dy / dx)
        left.set_title(drawable(_over(of, record.images)), color="white", fontsize=8, loc="left", pad=3)
        shades.append(_colour(right, maps.entropy[z][window], dy / dx))
    bar = figure.colorbar(shades[0], ax=axes.ravel().tolist(), location="bottom", shrink=0.4, aspect=30, pad=0.02)
    bar.ax.locator_params(nbins=4)
    bar.set_label("entropy [nats]; ln 2 at most", color="white", fontsize=8)
    bar.ax.tick_params(colors="white", labelsize=7)
    bar.outline.set_visible(False)
    drawn = {"segmentation": _MASK} if truth is None else {"segmentation": _MASK, "truth": _TRUTH}
    figure.legend(
        handles=[Line2D([], [], color=colour, lw=2, label=name) for name, colour in drawn.items()],
        loc="outside lower left",
        ncols=2,
        frameon=False,
        fontsize=8,
        labelcolor="white",
    )
    figure.suptitle(drawable(_title(title, shown, record, marked, window)), color="white", fontsize=9)
    # no name of the program and its version: the same maps give the same picture
    figure.savefig(file, format="png", dpi=110, facecolor="black", metadata={"Software": None})


def _slices(record: "HeartRecord", marked: Bool[np.ndarray, "z y x"]) -> list["SliceFigures"]:
    """Slices with a target, of too many evenly some; those that were segmented where none has one."""
    found = [each for each in record.slices if marked[each.slice].any()]
    found = found or [each for each in record.slices if each.image is not None]
    kept = np.unique(np.linspace(0, len(found) - 1, min(len(found), _SHOWN)).round().astype(int))
    return [found[i] for i in kept]


def _title(
    title: str,
    shown: list["SliceFigures"],
    record: "HeartRecord",
    marked: Bool[np.ndarray, "z y x"],
    window: tuple[slice, slice],
) -> str:
    said = []
    if len(shown) < len(record.slices):
        said.append(f"{len(shown)} of {len(record.slices)} slices")
    (whole_y, whole_x), (y, x) = marked.shape[1:], marked[0][window].shape
    if (y, x) != (whole_y, whole_x):
        said.append(f"{x} x {y} of {whole_x} x {whole_y} voxels")
    return "\n".join([title, *([f"shown: {', '.join(said)}"] if said else [])])


def _over(of: "SliceFigures", images: int) -> str:
    words = [f"slice {of.slice}"]
    if images > 1 and of.image is not None:
        words.append(f"image {of.image}")
    if of.dice is not None:
        words.append(f"Dice {of.dice:.2f}")
    return ", ".join(words)


def _grey(
    axis: "Axes",
    image: Float[np.ndarray, "y x"],
    outlines: list[tuple[str, Bool[np.ndarray, "y x"]]],
    aspect: float,
) -> None:
    low, high = (float(value) for value in np.percentile(image, (_DARKEST, _BRIGHTEST)))
    axis.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-9), aspect=aspect, interpolation="nearest")
    for colour, mask in outlines:
        # no outline: contour would warn
        if mask.any() and not mask.all():
            axis.contour(mask.astype(np.float64), levels=[0.5], colors=[colour], linewidths=1.2)


def _colour(axis: "Axes", entropy: Float[np.ndarray, "y x"], aspect: float) -> "AxesImage":
    from cmcrameri import cm

    top = float(np.log(2))
    return axis.imshow(entropy, cmap=cm.cmaps["lipari"], vmin=0, vmax=top, aspect=aspect, interpolation="nearest")
