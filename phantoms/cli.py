"""The command `qsim phantom`; heavy imports stay inside."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from phantoms.base import Split
    from phantoms.brainweb import BrainWeb
    from phantoms.geometry import Geometry
    from phantoms.mni import MNI


def phantom(
    name: Annotated[str, typer.Argument(help="mni, geometry (a ball in a ball, with a box), or a NIfTI label model.")],
    out: Annotated[Path, typer.Option(help="Folder to make; must not exist.")],
    split: Annotated[
        str, typer.Option(help="train or test: whose subject is written, and named in the JSON.")
    ] = "train",
    slice_axis: Annotated[int, typer.Option(help="Axis across which 2D patches are cut.")] = 2,
    labels: Annotated[str, typer.Option(help="Of a label model: discrete or vessel-gm-wm.")] = "discrete",
    block: Annotated[int, typer.Option(help="Of a label model: average block^3 voxels into one.")] = 1,
) -> None:
    """Write a phantom's fractions (4D) and labels as NIfTI, its description as JSON, and a picture.

    Raises: InputError if NAME is unknown or unreadable, or OUT exists.
    """
    from phantoms.export import write
    from qsim.errors import InputError

    if split not in ("train", "test"):
        raise InputError(f"--split: got {split}, wanted train or test")
    if out.exists():
        raise InputError(f"--out: {out} exists already; name a new folder or remove it")
    spec = _spec(name, labels, block)
    part: Split = "train" if split == "train" else "test"
    loaded = spec.load(part, slice_axis)
    write(loaded, spec, part, out)
    typer.echo(f"{out}: fractions of {', '.join(loaded.tissues)}. {loaded.description}")


def _spec(name: str, labels: str, block: int) -> "MNI | Geometry | BrainWeb":
    """Return the phantom that NAME means."""
    from phantoms import MNI, BrainWeb, Geometry
    from phantoms.brainweb import SCHEMES
    from phantoms.geometry import Ball, Box
    from qsim.errors import InputError

    if name == "mni":
        return MNI()
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
    if not Path(name).exists():
        raise InputError(f"NAME: {name} is neither mni nor geometry, nor a file or folder that exists")
    if labels not in SCHEMES:
        raise InputError(f"--labels: got {labels}, wanted {' or '.join(SCHEMES)}")
    if block < 1:
        raise InputError(f"--block: got {block}, wanted at least 1")
    return BrainWeb(path=name, labels="discrete" if labels == "discrete" else "vessel-gm-wm", block=block)
