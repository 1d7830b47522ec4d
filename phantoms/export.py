"""A phantom as files: NIfTI, JSON, and a picture to look at."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from phantoms.base import PhantomSpec, Split, VolumePhantom, as_fractions
from qsim.errors import InputError

# nothing is black, as in every map here; one hue per tissue
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
}
_OTHER = ((0.4, 0.9, 0.5), (0.7, 0.4, 0.9), (0.2, 0.8, 0.8), (0.9, 0.4, 0.7))


def write(phantom: VolumePhantom, spec: PhantomSpec, split: Split, out: Path) -> None:
    """Write the first subject of a split into a new folder: all of it, or nothing.

    fractions.nii.gz (x, y, z, tissue), labels.nii.gz (0 background, 1 + t where tissue t is the largest share and
    background is not), phantom.json, phantom.png.

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
        picture(fractions, phantom.tissues, phantom.spacing_mm, partial / "phantom.png")
        partial.replace(out)
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
        "spacing_mm": list(phantom.spacing_mm),
        "split": split,
        "slice_axis": phantom.slice_axis,
        "subjects": list(phantom.ids),
        "subject_written": phantom.ids[0],
        "slabs": [[list(slab) for slab in slabs] for slabs in phantom.slabs],
        "description": phantom.description,
    }


def picture(
    fractions: Float[np.ndarray, "t *space"], tissues: tuple[str, ...], spacing_mm: tuple[float, ...], file: Path
) -> None:
    """Draw the three central slices (one of a 2D phantom), tissues mixed by their shares, background black."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    spare = iter(_OTHER * len(tissues))
    colours = np.array([_COLOURS.get(tissue) or next(spare) for tissue in tissues])
    ndim = fractions.ndim - 1
    axes = range(ndim) if ndim == 3 else (None,)
    figure = Figure(figsize=(4.2 * len(axes), 4.6), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    panels = np.atleast_1d(figure.subplots(1, len(axes)))
    for panel, axis in zip(panels, axes, strict=True):
        shown = [a for a in range(ndim) if a != axis]
        piece = fractions if axis is None else np.take(fractions, fractions.shape[1 + axis] // 2, axis=1 + axis)
        colour = np.clip(np.einsum("tij,tc->jic", piece, colours), 0, 1)
        # in mm, so that the panels are to scale
        height, width = (colour.shape[i] * spacing_mm[shown[1 - i]] for i in range(2))
        panel.imshow(colour, origin="lower", extent=(0, width, 0, height), interpolation="nearest")
        where = "" if axis is None else f", slice {fractions.shape[1 + axis] // 2} of axis {axis}"
        panel.set_title(
            f"axis {shown[0]} \N{RIGHTWARDS ARROW}, axis {shown[1]} \N{UPWARDS ARROW}{where}", color="white", fontsize=9
        )
        panel.axis("off")
    handles = [Patch(color=colour, label=tissue) for tissue, colour in zip(tissues, colours, strict=True)]
    columns = min(len(tissues), 9)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        facecolor="black",
        edgecolor="black",
        labelcolor="white",
    )
    figure.savefig(file, dpi=110, facecolor="black")
