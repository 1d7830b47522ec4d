"""The quick-look picture of `qsim segment`: what was segmented, and where which source makes it uncertain.

Three slices through the middle of the segmentation, one a row; the image with the outline of the segmentation, then the
variance of all artefacts together, then that of each source. All variances share one scale of colours, so that a dark
map beside a bright one is the smaller one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from trainers.mapping.quick_look import drawable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# axis that a slice is across, the one to the right and the one upwards in the picture
_VIEWS = ((2, 0, 1), (1, 0, 2), (0, 1, 2))
_SIDES = (("L", "R"), ("P", "A"), ("I", "S"))
_CONTOURS = ("#3fd0ff", "#ff5c5c", "#7dff6b", "#ffd23f")
# ends of the grey values and of the colours: the share of voxels below [%]
_BRIGHTEST, _LARGEST = 99.5, 99.8
_TALL = 2.1


def quick_look(
    file: Path,
    title: str,
    image: Float[np.ndarray, "x y z"],
    spacing_mm: tuple[float, float, float],
    inside: Mapping[str, Bool[np.ndarray, "x y z"]],
    variances: Mapping[str, Float[np.ndarray, "x y z"]],
) -> None:
    """Draw the picture on black.

    Args:
        image: axes to right, anterior, superior [units of the file].
        inside: of each class of the target, on the same axes.
        variances: of the logits by name, in the order of the columns [1].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    middle = _middle(np.any(list(inside.values()), axis=0))
    extent = [size * step for size, step in zip(image.shape, spacing_mm, strict=True)]
    heights = [_TALL * extent[up] / max(extent) for _, _, up in _VIEWS]
    width = _TALL * max(extent[right] for _, right, _ in _VIEWS) / max(extent)
    columns = 1 + len(variances)
    figure = Figure(
        figsize=(max(columns * (width + 0.15), 6.0), sum(heights) + 1.5), facecolor="black", layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    shown = np.concatenate([_slice(v, view, middle).ravel() for v in variances.values() for view in _VIEWS])
    top = max(float(np.percentile(shown, _LARGEST)), 1e-6)
    for row, view in zip(axes, _VIEWS, strict=True):
        _grey(row[0], image, view, middle, spacing_mm, inside)
        for axis, values in zip(row[1:], variances.values(), strict=True):
            _colour(axis, values, view, middle, spacing_mm, top)
    for axis, text in zip(axes[0], ("image", *variances), strict=True):
        axis.set_title(drawable(text), color="white", fontsize=9)
    _bar(figure, axes[:, 0], "units of the image")
    _bar(figure, axes[:, 1:], "variance of the logits [1]")
    figure.suptitle(drawable(title), color="white", fontsize=9)
    # no name of the program and its version: the same maps give the same picture
    figure.savefig(file, format="png", dpi=110, facecolor="black", metadata={"Software": None})


def _middle(inside: Bool[np.ndarray, "x y z"]) -> tuple[int, ...]:
    """Voxel in the middle of the segmentation; of the image where there is none."""
    if not inside.any():
        return tuple(size // 2 for size in inside.shape)
    return tuple(int(np.median(where)) for where in np.nonzero(inside))


def _slice(
    values: Float[np.ndarray, "x y z"] | Bool[np.ndarray, "x y z"], view: tuple[int, int, int], middle: tuple[int, ...]
) -> np.ndarray:
    """Upwards in rows, to the right in columns."""
    across, right, up = view
    plane = np.take(values, middle[across], axis=across)
    # the axis across is gone: of the other two the first is always to the right
    assert right < up
    return plane.T


def _aspect(view: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> float:
    _, right, up = view
    return spacing_mm[up] / spacing_mm[right]


def _grey(
    axis: "Axes",
    image: Float[np.ndarray, "x y z"],
    view: tuple[int, int, int],
    middle: tuple[int, ...],
    spacing_mm: tuple[float, float, float],
    inside: Mapping[str, Bool[np.ndarray, "x y z"]],
) -> None:
    top = float(np.percentile(image[image > 0], _BRIGHTEST))
    axis.imshow(
        _slice(image, view, middle),
        cmap="gray",
        vmin=0,
        vmax=top,
        origin="lower",
        aspect=_aspect(view, spacing_mm),
        interpolation="nearest",
    )
    for colour, mask in zip(_CONTOURS * len(inside), inside.values(), strict=False):
        plane = _slice(mask, view, middle)
        # no outline: contour would warn
        if plane.any() and not plane.all():
            axis.contour(plane, levels=[0.5], colors=[colour], linewidths=0.6)
    axis.axis("off")
    for letter, (x, y) in zip(
        (*_SIDES[view[1]], *_SIDES[view[2]]), ((0.03, 0.5), (0.97, 0.5), (0.5, 0.04), (0.5, 0.96)), strict=True
    ):
        axis.text(x, y, letter, color="white", fontsize=7, ha="center", va="center", transform=axis.transAxes)


def _colour(
    axis: "Axes",
    values: Float[np.ndarray, "x y z"],
    view: tuple[int, int, int],
    middle: tuple[int, ...],
    spacing_mm: tuple[float, float, float],
    top: float,
) -> None:
    from cmcrameri import cm

    axis.imshow(
        _slice(values, view, middle),
        cmap=cm.cmaps["lipari"],
        vmin=0,
        vmax=top,
        origin="lower",
        aspect=_aspect(view, spacing_mm),
        interpolation="nearest",
    )
    axis.axis("off")


def _bar(figure: "Figure", axes: np.ndarray, label: str) -> None:
    """A colour bar below columns that share their colours."""
    shade = axes.flat[0].images[0]
    several = axes.ndim > 1 and axes.shape[1] > 1
    bar = figure.colorbar(
        shade, ax=axes.ravel().tolist(), location="bottom", extend="max", shrink=0.4 if several else 0.9, aspect=30
    )
    bar.ax.locator_params(nbins=4)
    bar.set_label(label, color="white", fontsize=8)
    bar.ax.tick_params(colors="white", labelsize=7)
    for side in bar.ax.spines.values():
        side.set_color("white")
