"""A picture of what a network will be shown: the first views of a training, with the outlines of their masks."""

from pathlib import Path

from trainers.segmentation.views import Views

_ROWS, _COLUMNS = 4, 8
_OUTLINE = "#3fd0ff"
_SIDE = 1.2


def views_picture(file: Path, views: Views, title: str) -> None:
    """Draw the first views in the order of their positions, on black.

    Args:
        file: PNG.
        title: above them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_COLUMNS * _SIDE, _ROWS * _SIDE + 0.3), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    for position, axis in enumerate(figure.subplots(_ROWS, _COLUMNS).flat):
        axis.axis("off")
        shown = views.view(position)
        image, mask = shown.images[0, 0].numpy(), shown.masks[0].numpy()
        axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        # no outline: contour would warn
        if mask.any() and not mask.all():
            axis.contour(mask, levels=[0.5], colors=[_OUTLINE], linewidths=0.7)
    figure.suptitle(title, color="white", fontsize=9)
    partial = file.with_name(file.name + ".partial")
    # no name of the program and its version: the same views give the same picture
    figure.savefig(partial, format="png", dpi=100, facecolor="black", metadata={"Software": None})
    partial.replace(file)
