"""The quick-look picture of `qsim map`: one slice of every map, and what became of its voxels."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from generators.preview_figures import colour_map
from qsim.estimators import Status
from qsim.parameters import Parameter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# ok, at bound, not converged, not computed
_STATUS_COLOURS = ("0.55", "C1", "C3", "black")
_STATUS_NAMES = ("ok", "at bound", "not\nconverged", "not\ncomputed")
_COLUMNS = 4
# opacity of what is not the object
_OUTSIDE = 0.35
# fields are shown about these values
_NOMINAL = {"DELTA_B0": 0.0, "REL_B1": 1.0, "C": 0.0}


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        parameter: of the map; None: the status.
        values: one slice, NaN where there is none [unit of the parameter].
        top: upper end of the colours [unit].
        inside: the object or the mask; all else is drawn dark, so that fits of air do not hide it.
    """

    parameter: Parameter | None
    values: Float[np.ndarray, "y x"]
    top: float
    inside: Bool[np.ndarray, "y x"]


def picture(panels: Sequence[Panel], spacing_mm: tuple[float, float], title: str, file: Path) -> None:
    """Draw the panels on black; x to the right, y upwards, as the voxels lie in the file.

    Args:
        spacing_mm: of y and x [mm].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = panels[0].values.shape
    steep = min(max(rows * spacing_mm[0] / (columns * spacing_mm[1]), 0.4), 2.0)
    across = min(len(panels), _COLUMNS)
    down = ceil(len(panels) / across)
    figure = Figure(figsize=(3.1 * across, down * (2.9 * steep + 0.8) + 0.4), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
        axis.set_facecolor("black")
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw(figure, axis, panel, spacing_mm[0] / spacing_mm[1])
    figure.suptitle(drawable(title), color="white", fontsize=9)
    # no name of the program and its version: the same maps give the same picture
    figure.savefig(file, format="png", dpi=110, facecolor="black", metadata={"Software": None})


def drawable(text: str) -> str:
    """A text as plain characters: what the font lacks as escapes of ASCII, $ as itself rather than as maths."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties())).get_charmap()
    plain = "".join(c if ord(c) in known else c.encode("ascii", "backslashreplace").decode() for c in text)
    return plain.replace("$", r"\$")


def _draw(figure: "Figure", axis: "Axes", panel: Panel, aspect: float) -> None:
    settings: dict[str, Any] = {"origin": "lower", "aspect": aspect, "interpolation": "nearest"}
    settings["alpha"] = np.where(panel.inside, 1.0, _OUTSIDE)
    if panel.parameter is None:
        from matplotlib.colors import BoundaryNorm, ListedColormap

        colours, count = ListedColormap(list(_STATUS_COLOURS)), len(Status)
        norm = BoundaryNorm(np.arange(-0.5, count).tolist(), count)
        shade = axis.imshow(panel.values, cmap=colours, norm=norm, **settings)
        bar = figure.colorbar(shade, ax=axis, location="bottom", ticks=list(range(count)))
        bar.ax.set_xticklabels(_STATUS_NAMES)
        text, label = "status", ""
    else:
        parameter = panel.parameter
        factor, unit = (1000.0, "ms") if parameter.unit == "s" else (1.0, parameter.unit)
        low, high = _window(parameter, panel.top)
        shade = axis.imshow(
            factor * panel.values, cmap=colour_map(parameter.name), vmin=factor * low, vmax=factor * high, **settings
        )
        ends = "max" if low == 0 else "both"
        bar = figure.colorbar(shade, ax=axis, location="bottom", extend=ends)
        bar.ax.locator_params(nbins=5)
        text = f"${parameter.symbol}$"
        label = {"1": "units of the images" if parameter.name in ("A", "M0", "C") else ""}.get(unit, unit)
    axis.set_title(text, color="white", fontsize=11)
    bar.set_label(label, color="white", fontsize=8)
    bar.ax.tick_params(colors="white", labelsize=7)
    for side in bar.ax.spines.values():
        side.set_color("white")


def _window(parameter: Parameter, top: float) -> tuple[float, float]:
    """Ends of the colours: fields about their nominal value, B from 1, all else from 0 [unit]."""
    if parameter.name == "B":
        # no inversion to a whole one
        return 1.0, max(top, 2.0)
    if parameter.name in _NOMINAL:
        middle = _NOMINAL[parameter.name]
        reach = max(abs(top - middle), 1e-3)
        return middle - reach, middle + reach
    return 0.0, max(top, 1e-6)
