"""The picture of `qsim corrupt`: a slice and its k-space before, after, and what lies between."""

from math import ceil
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Complex, Float

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# how far below its maximum k-space is shown [dB]
_DEPTH = 80.0
# height over width of a panel; voxels of thinner slices are drawn stretched, or nothing would be seen
_FLATTEST, _STEEPEST = 0.5, 1.6
# points of k-space along an axis that a panel shows at most; a single sample of more would not be seen
_POINTS = 96


def picture(
    before: Complex[np.ndarray, "c y x"],
    after: Complex[np.ndarray, "c y x"],
    title: str,
    axes: str,
    spacing_mm: tuple[float, float],
    file: Path,
) -> None:
    """Draw magnitudes (of coils the root of the sum of squares), their difference, and log k-space of the same three.

    Args:
        before, after: a slice.
        axes: letters of its rows and columns.
        spacing_mm: of rows and columns [mm].
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from qsim.evaluation.pages.figures import INK, STYLE

    with mpl.rc_context({**STYLE, "axes.titlesize": 9.0}):
        rows, columns = before.shape[1] * spacing_mm[0], before.shape[2] * spacing_mm[1]
        flat = min(max(rows / columns, _FLATTEST), _STEEPEST)
        height = 3.0 * flat
        if flat != rows / columns:
            title += "; voxels are drawn stretched"
        figure = Figure(figsize=(10.4, 2 * height + 1.5), facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(2, 3)
        _images(figure, panels[0], _combined(before), _combined(after), flat)
        _kspaces(figure, panels[1], before, after, flat)
        for panel, (down, across) in zip(
            panels[:, 0], ((axes[0], axes[1]), (f"k{axes[0]}", f"k{axes[1]}")), strict=True
        ):
            panel.set_xlabel(f"{across} \N{RIGHTWARDS ARROW}")
            panel.set_ylabel(f"{down} \N{RIGHTWARDS ARROW}")
        figure.suptitle(fill(title, 120), x=0.01, ha="left", fontsize=9.5, color=INK)
        figure.savefig(file, format="png", dpi=120, facecolor="white", metadata={"Software": None})


def _combined(images: Complex[np.ndarray, "c y x"]) -> Float[np.ndarray, "y x"]:
    return np.sqrt((np.abs(images) ** 2).sum(0))


def _images(
    figure: "Figure",
    panels: "Any",
    before: Float[np.ndarray, "y x"],
    after: Float[np.ndarray, "y x"],
    shape: float,
) -> None:
    from cmcrameri import cm

    aspect = shape * before.shape[1] / before.shape[0]
    # one window for both: that of the image before, wider only if the artefact is brighter than all of it
    high = max(float(np.quantile(before, 0.998)), float(np.quantile(after, 0.98))) or 1.0
    for panel, image, name in ((panels[0], before, "before"), (panels[1], after, "after")):
        shade = panel.imshow(image, cmap="gray", vmin=0, vmax=high, aspect=aspect, origin="lower", interpolation="none")
        panel.set_title(name)
        _bare(panel)
        if name == "after":
            figure.colorbar(shade, ax=panels[:2].tolist(), shrink=0.9, pad=0.01, extend="max").set_label("magnitude")
    difference = after - before
    reach = float(np.quantile(np.abs(difference), 0.998)) or float(np.abs(difference).max()) or 1.0
    shade = panels[2].imshow(
        difference,
        cmap=cm.cmaps["vik"],
        vmin=-reach,
        vmax=reach,
        aspect=aspect,
        origin="lower",
        interpolation="none",
    )
    panels[2].set_title("after \N{MINUS SIGN} before")
    _bare(panels[2])
    figure.colorbar(shade, ax=panels[2], shrink=0.9, pad=0.01, extend="both").set_label("change of magnitude")


def _kspaces(
    figure: "Figure",
    panels: "Any",
    before: Complex[np.ndarray, "c y x"],
    after: Complex[np.ndarray, "c y x"],
    shape: float,
) -> None:
    from cmcrameri import cm

    block = ceil(max(before.shape[1:]) / _POINTS)
    spectra = [_largest(_spectrum(images), block) for images in (before, after, after - before)]
    top = float(spectra[0].max()) or 1.0
    # dB over the maximum before; a spike may be above it
    levels = [20 * np.log10(np.maximum(spectrum / top, 1e-12)) for spectrum in spectra]
    high = max(0.0, *(float(level.max()) for level in levels))
    names = ("k-space before", "k-space after", "k-space of the difference (complex)")
    for panel, level, name in zip(panels, levels, names, strict=True):
        shade = panel.imshow(
            level,
            cmap=cm.cmaps["batlow"],
            vmin=high - _DEPTH,
            vmax=high,
            aspect=shape * level.shape[1] / level.shape[0],
            origin="lower",
            interpolation="none",
        )
        panel.set_title(name)
        _bare(panel)
    bar = figure.colorbar(shade, ax=panels.tolist(), shrink=0.9, pad=0.005, extend="min")
    per = f"\nlargest of {block} x {block} samples" if block > 1 else ""
    bar.set_label(f"dB over the maximum before{per}")


def _spectrum(images: Complex[np.ndarray, "c y x"]) -> Float[np.ndarray, "y x"]:
    """Magnitude of centred k-space of a slice, coils combined."""
    axes = (-2, -1)
    kspace = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(images, axes), axes=axes, norm="ortho"), axes)
    return _combined(kspace)


def _largest(spectrum: Float[np.ndarray, "y x"], block: int) -> Float[np.ndarray, "v u"]:
    """The largest of each block of samples, so that a spike of one sample is still seen; blocks at the end are cut."""
    rows, columns = (-(-size // block) for size in spectrum.shape)
    padded = np.zeros((rows * block, columns * block), spectrum.dtype)
    padded[: spectrum.shape[0], : spectrum.shape[1]] = spectrum
    return padded.reshape(rows, block, columns, block).max(axis=(1, 3))


def _bare(panel: "Axes") -> None:
    panel.set_xticks([])
    panel.set_yticks([])
    for spine in panel.spines.values():
        spine.set_visible(False)
