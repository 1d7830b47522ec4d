"""A phantom as files: NIfTI, JSON, and a picture to look at."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from phantoms.base import PhantomSpec, Split, VolumePhantom, WithRegions, as_fractions
from qsim.errors import InputError

# nothing is black, as in every map here; one hue per tissue; those that are not here: `_colours`
_COLOURS = {
    "csf": (0.25, 0.55, 1.0),
    "gm": (0.75, 0.75, 0.75),
    "wm": (1.0, 0.95, 0.8),
    "fat": (1.0, 0.8, 0.2),
    "muscle": (0.8, 0.25, 0.25),
    "skin": (0.9, 0.6, 0.5),
    "skull": (0.55, 0.45, 0.3),
    "vessel": (1.0, 0.1, 0.1),
    "marrow": (0.9, 0.5, 0.1),
    "water": (0.15, 0.3, 0.45),
}
# sRGB light to Oklab, where equal distances look equally different (Ottosson 2020, bottosson.github.io/posts/oklab)
_TO_CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_TO_LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)
# a stack of so many slices is looked at slice by slice
_FEW_SLICES = 8
# lightness of the darkest that is given out; white is 1
_DARKEST = 0.42


def write(phantom: VolumePhantom, spec: PhantomSpec, split: Split, out: Path) -> None:
    """Write the first subject of a split into a new folder: all of it, or nothing.

    fractions.nii.gz (x, y, z, tissue), labels.nii.gz (0 background, 1 + t where tissue t is the largest share and
    background is not), phantom.json, phantom.png; of a phantom that has regions of interest, regions.nii.gz.

    Raises: InputError if `out` exists or cannot be written.
    """
    partial = out.with_name(out.name + ".partial")
    if out.exists():
        raise InputError(f"{out} exists already; name a new folder or remove it")
    try:
        if partial.exists():
            # left by a run that was killed
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        fractions = as_fractions(phantom.volumes[0])
        _write_images(phantom, fractions, partial)
        (partial / "phantom.json").write_text(json.dumps(_description(phantom, spec, split), indent=2) + "\n")
        picture(fractions, phantom.tissues, phantom.spacing_mm, partial / "phantom.png", phantom.slice_axis)
        partial.replace(out)
    except InputError:
        # a phantom that cannot tell its regions
        shutil.rmtree(partial, ignore_errors=True)
        raise
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise InputError(f"{out} cannot be written: {error}") from error


def labels_of(fractions: Float[np.ndarray, "t *space"]) -> UInt8[np.ndarray, "*space"]:
    """Majority label: 0 where background is the largest share, else 1 + t."""
    background = 1 - fractions.sum(axis=0)
    return np.where(fractions.max(axis=0) >= background, 1 + fractions.argmax(axis=0), 0).astype(np.uint8)


def _write_images(phantom: VolumePhantom, fractions: Float[np.ndarray, "t *space"], folder: Path) -> None:
    import nibabel

    affine = np.diag([*phantom.spacing_mm, *[1.0] * (4 - len(phantom.spacing_mm))])
    if phantom.affine is not None:
        affine = phantom.affine
    labels = labels_of(fractions)
    # a slice is a volume one voxel deep
    deep = fractions if fractions.ndim == 4 else fractions[..., None]
    images = {"fractions": np.moveaxis(deep, 0, -1), "labels": labels if labels.ndim == 3 else labels[..., None]}
    if isinstance(phantom, WithRegions):
        regions = phantom.regions(phantom.ids[0])
        images["regions"] = regions if regions.ndim == 3 else regions[..., None]
    for name, data in images.items():
        image = nibabel.Nifti1Image(data, affine)  # type: ignore[no-untyped-call]
        image.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
        nibabel.save(image, folder / f"{name}.nii.gz")


def _description(phantom: VolumePhantom, spec: PhantomSpec, split: Split) -> dict[str, object]:
    return {
        "kind": spec.kind,
        "parameters": asdict(spec),  # type: ignore[call-overload]
        "tissues": list(phantom.tissues),
        "labels": {"0": "background"} | {str(1 + t): name for t, name in enumerate(phantom.tissues)},
        **(
            {"regions": {str(1 + i): name for i, name in enumerate(phantom.region_names)}}
            if isinstance(phantom, WithRegions)
            else {}
        ),
        "spacing_mm": list(phantom.spacing_mm),
        "split": split,
        "slice_axis": phantom.slice_axis,
        "subjects": list(phantom.ids),
        "subject_written": phantom.ids[0],
        "slabs": [[list(slab) for slab in slabs] for slabs in phantom.slabs],
        "description": phantom.description,
    }


def picture(
    fractions: Float[np.ndarray, "t *space"],
    tissues: tuple[str, ...],
    spacing_mm: tuple[float, ...],
    file: Path,
    slice_axis: int = 2,
) -> None:
    """Draw tissues mixed by their shares, background black.

    Of a volume its three central slices, the first axis to the right and the second up; of a stack of at most eight
    slices three of these as images are looked at, the first axis down and the second to the right.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    colours = _colours(tissues)
    views = list(_views(fractions.shape[1:], slice_axis))
    fontsize, width = (10.0 if len(views) > 1 else 8.0), 4.2 * len(views)
    columns, legend_height = _columns(tissues, fontsize, width)
    figure = Figure(figsize=(width, 4.6 + legend_height), facecolor="black", dpi=110)
    # room above, which titles outgrow
    figure.set_layout_engine("constrained", h_pad=0.1)
    FigureCanvasAgg(figure)
    panels = np.atleast_1d(figure.subplots(1, len(views)))
    for panel, (axis, at, as_image) in zip(panels, views, strict=True):
        shown = [a for a in range(fractions.ndim - 1) if a != axis]
        piece = fractions if axis is None else np.take(fractions, at, axis=1 + axis)
        colour = np.clip(np.einsum("tij,tc->ijc" if as_image else "tij,tc->jic", piece, colours), 0, 1)
        right, up = shown[::-1] if as_image else shown
        # in mm, so that the panels are to scale
        height, width = colour.shape[0] * spacing_mm[up], colour.shape[1] * spacing_mm[right]
        panel.imshow(
            colour,
            origin="upper" if as_image else "lower",
            extent=(0, width, height, 0) if as_image else (0, width, 0, height),
            interpolation="nearest",
        )
        arrow = "\N{DOWNWARDS ARROW}" if as_image else "\N{UPWARDS ARROW}"
        where = "" if axis is None else f", slice {at} of axis {axis}"
        panel.set_title(f"axis {right} \N{RIGHTWARDS ARROW}, axis {up} {arrow}{where}", color="white", fontsize=9)
        panel.axis("off")
    handles = [Patch(color=colour, label=tissue) for tissue, colour in zip(tissues, colours, strict=True)]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        fontsize=fontsize,
        facecolor="black",
        edgecolor="black",
        labelcolor="white",
    )
    figure.savefig(file, facecolor="black")


def _columns(labels: tuple[str, ...], fontsize: float, width: float) -> tuple[int, float]:
    """In how many columns a legend of that font fits into a figure of that width, and its height [inches]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    # one of its own, to measure: what is measured in a figure stays in its layout
    figure = Figure(figsize=(width, 1), dpi=110)
    FigureCanvasAgg(figure)
    handles = [Patch(label=label) for label in labels]
    for columns in range(min(len(labels), 9), 0, -1):
        box = figure.legend(handles=handles, ncols=columns, fontsize=fontsize).get_window_extent()
        if columns == 1 or box.width < 0.96 * figure.bbox.width:
            break
    return columns, box.height / figure.dpi


def _views(extent: tuple[int, ...], slice_axis: int) -> Iterator[tuple[int | None, int, bool]]:
    """Axis across which a panel is cut, where, and whether it is drawn as an image is looked at."""
    if len(extent) == 2:
        yield None, 0, False
    elif 1 < extent[slice_axis] <= _FEW_SLICES:
        n = extent[slice_axis]
        for at in sorted({0, n // 2, n - 1}):
            yield slice_axis, at, True
    elif 1 in extent:
        # the side views of a single slice are thin lines
        yield extent.index(1), 0, extent.index(1) == slice_axis
    else:
        for axis, n in enumerate(extent):
            yield axis, n // 2, False


def _colours(tissues: tuple[str, ...]) -> Float[np.ndarray, "t 3"]:
    """One colour per tissue, no two alike: those that have none get, one by one, what looks least like all others."""
    levels = np.linspace(0, 1, 9)
    choice = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    # background is black
    choice = choice[_oklab(choice)[:, 0] >= _DARKEST]
    look = _oklab(choice)
    there = [_oklab(np.zeros(3)), *(_oklab(np.array(_COLOURS[tissue])) for tissue in tissues if tissue in _COLOURS)]
    nearest = np.min([np.linalg.norm(look - one, axis=1) for one in there], axis=0)
    colours = np.empty((len(tissues), 3))
    for t, tissue in enumerate(tissues):
        if tissue in _COLOURS:
            colours[t] = _COLOURS[tissue]
            continue
        best = int(nearest.argmax())
        colours[t] = choice[best]
        nearest = np.minimum(nearest, np.linalg.norm(look - look[best], axis=1))
    return colours


def _oklab(rgb: Float[np.ndarray, "*points 3"]) -> Float[np.ndarray, "*points 3"]:
    light = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lab: Float[np.ndarray, "*points 3"] = np.cbrt(light @ np.transpose(_TO_CONES)) @ np.transpose(_TO_LAB)
    return lab
