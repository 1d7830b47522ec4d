"""The command `qsim phantom`; heavy imports stay inside."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from phantoms.base import Split
    from phantoms.brains.brainweb import BrainWeb
    from phantoms.brains.label_schemes import Scheme
    from phantoms.brains.mni import MNI
    from phantoms.heart import Heart
    from phantoms.liver import Liver
    from phantoms.shapes.geometry import Geometry
    from phantoms.system_phantom import SystemPhantom
    from phantoms.system_phantom.spec import Arrays


# options of a label model
_OF_LABELS = ("labels", "block", "voxel-mm")


def phantom(
    name: Annotated[
        str,
        typer.Argument(
            help="mni, geometry (balls, a box), system_phantom (T1 array), liver, heart, heart-preclinical, or a file "
            "of labels."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to make; must not exist.")],
    split: Annotated[
        str, typer.Option(help="train or test: whose subject is written, and named in the JSON.")
    ] = "train",
    slice_axis: Annotated[int, typer.Option(help="Axis across which 2D patches are cut.")] = 2,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Of a label model: discrete (if not given), vessel-gm-wm, twelve, twelve-komamri, "
            "twelve-raw-short, freesurfer or synthseg."
        ),
    ] = None,
    block: Annotated[int | None, typer.Option(help="Of a label model: average block^3 voxels into one.")] = None,
    voxel_mm: Annotated[
        float | None,
        typer.Option(metavar="MM", help="Of a label model whose file does not say (MATLAB): edge of a voxel."),
    ] = None,
    array: Annotated[str | None, typer.Option(help="Of system_phantom: t1 (if not given), t2, pd or all.")] = None,
) -> None:
    """Write a phantom's fractions (4D) and labels as NIfTI, its description as JSON, and a picture.

    Raises: InputError if NAME is unknown or unreadable, or OUT exists.
    """
    from phantoms.files.export import write
    from qsim.errors import InputError

    if split not in ("train", "test"):
        raise InputError(f"--split: got {split}, wanted train or test")
    if out.exists():
        raise InputError(f"--out: {out} exists already; name a new folder or remove it")
    spec = _spec(name, labels, block, voxel_mm, array)
    part: Split = "train" if split == "train" else "test"
    loaded = spec.load(part, slice_axis)
    write(loaded, spec, part, out)
    typer.echo(f"{out}: fractions of {', '.join(loaded.tissues)}. {loaded.description}")


def _spec(
    name: str, labels: str | None, block: int | None, voxel_mm: float | None, array: str | None
) -> "MNI | Geometry | SystemPhantom | Liver | Heart | BrainWeb":
    """Return the phantom that NAME means."""
    from phantoms import MNI, BrainWeb, Geometry, Heart, Liver, SystemPhantom
    from phantoms.brains.blocks import check_block
    from phantoms.brains.label_schemes import LABEL_SCHEMES
    from phantoms.heart import clinical_t1, preclinical_t1rho
    from phantoms.shapes.geometry import Ball, Box
    from qsim.errors import InputError

    # few subjects: all of a split are drawn to write one
    drawn: dict[str, Liver | Heart] = {
        "liver": Liver(subjects=2, test_subjects=1),
        "heart": replace(clinical_t1(), subjects=2, test_subjects=1),
        "heart-preclinical": replace(preclinical_t1rho(), subjects=2, test_subjects=1),
    }
    named = ("mni", "geometry", *drawn)
    own = ("array",) if name == "system_phantom" else () if name in named else _OF_LABELS
    given = {"labels": labels, "block": block, "voxel-mm": voxel_mm, "array": array}
    for option, value in given.items():
        if value is not None and option not in own:
            whose = "system_phantom" if option == "array" else "label models"
            raise InputError(f"--{option}: belongs to {whose}, not to {name}; leave it out")
    if name == "mni":
        return MNI()
    if name in drawn:
        return drawn[name]
    if name == "system_phantom":
        array = array or "t1"
        if array not in ("t1", "t2", "pd", "all"):
            raise InputError(f"--array: got {array}, wanted t1, t2, pd or all")
        return SystemPhantom(array=cast("Arrays", array))
    if name == "geometry":
        return Geometry(
            size=(96, 96, 96),
            spacing_mm=(2.0, 2.0, 2.0),
            shapes=(
                Ball(tissue="csf", radius_mm=85.0),
                Ball(tissue="gm", radius_mm=75.0),
                Ball(tissue="wm", radius_mm=55.0),
                Box(tissue="csf", extent_mm=(40.0, 25.0, 12.0)),
            ),
            subjects=2,
            test_subjects=1,
        )
    # a MATLAB file may name its variable
    if not Path(name).exists() and not Path(name.rpartition(":")[0]).is_file():
        raise InputError(
            f"NAME: {name} is none of {', '.join(named)}, system_phantom, nor a file or folder that exists"
        )
    labels, block = labels or "discrete", 1 if block is None else block
    if labels not in LABEL_SCHEMES:
        raise InputError(f"--labels: got {labels}, wanted one of {', '.join(LABEL_SCHEMES)}")
    try:
        check_block(block)
    except ValueError as error:
        raise InputError(f"--{error}") from None
    if voxel_mm is not None and not 0 < voxel_mm < float("inf"):
        raise InputError(f"--voxel-mm: got {voxel_mm}, wanted a positive number of millimetres")
    edges = None if voxel_mm is None else (voxel_mm,) * 3
    return BrainWeb(path=name, labels=cast("Scheme", labels), block=block, voxel_mm=edges)
