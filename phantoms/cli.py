"""The command `qsim phantom`; heavy imports stay inside."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from phantoms.brains.label_schemes import BACKGROUND, LABEL_SCHEMES

if TYPE_CHECKING:
    from phantoms.base import PhantomSpec, Split, VolumePhantom
    from phantoms.brains.brainweb import BrainWeb
    from phantoms.brains.label_schemes import Scheme
    from phantoms.heart import Heart
    from phantoms.shapes.geometry import Geometry
    from phantoms.system_phantom.spec import Arrays

# which names an option belongs to, and how a refusal calls these
_HEARTS = ("heart", "heart-preclinical")
_DRAWN = ("liver", *_HEARTS)
_NAMED = ("mni", "geometry", *_DRAWN, "system_phantom")
_WHOSE = {
    "array": "system_phantom",
    "labels": "label models",
    "block": "label models",
    "voxel-mm": "label models",
    "from": "heart and heart-preclinical",
    "subject": "liver and heart",
    "seed": "liver and heart",
}
# fewer numbers than that can be those of any scheme
_TELLING = 6


@dataclass(frozen=True, slots=True)
class _Options:
    """What was given besides NAME; None: not given."""

    labels: str | None
    block: int | None
    voxel_mm: float | None
    array: str | None
    maps: str | None
    subject: int | None
    seed: int | None


def phantom(
    name: Annotated[
        str,
        typer.Argument(
            help="mni, geometry (balls, a box), system_phantom, liver, heart, heart-preclinical, a generator config "
            "(.yaml: its phantom), a file of labels, or a folder of such files (its first subject)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to make; must not exist.")],
    split: Annotated[
        str | None,
        typer.Option(
            help="train or test: whose first subject is written, and named in the JSON. If not given: what the config "
            "says, the split of --subject, else train where there is one."
        ),
    ] = None,
    slice_axis: Annotated[
        int | None, typer.Option(help="Axis across which 2D patches are cut (2, or what the config says).")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help=f"Of label files, what the numbers mean: {', '.join(LABEL_SCHEMES)}. If not given, discrete is "
            "taken, and said, where the numbers can tell."
        ),
    ] = None,
    block: Annotated[int | None, typer.Option(help="Of label files: average block^3 voxels into one.")] = None,
    voxel_mm: Annotated[
        float | None,
        typer.Option(metavar="MM", help="Of a label file that does not say (MATLAB): edge of a voxel, one number."),
    ] = None,
    array: Annotated[str | None, typer.Option(help="Of system_phantom: t1 (if not given), t2, pd or all.")] = None,
    maps: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="PATH",
            help="Of heart: a file or folder of label maps that give the ventricles (1 LV blood, 2 RV blood, 3 LV "
            "myocardium, 4 RV myocardium).",
        ),
    ] = None,
    subject: Annotated[
        int | None, typer.Option(help="Of liver and heart: number of the subject in its cohort, from 0.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of liver and heart: of the cohort (0 if not given).")] = None,
) -> None:
    """Write a phantom's fractions (4D) and labels as NIfTI, its description as JSON, and a picture.

    Raises: InputError if NAME is unknown or unreadable, an option does not belong to it, or OUT exists.
    """
    from phantoms.brains.brainweb import BrainWeb
    from phantoms.files.export import write
    from phantoms.files.of_config import phantom_of_config
    from qsim.errors import InputError

    if split not in (None, "train", "test"):
        raise InputError(f"--split: got {split}, wanted train or test")
    if out.exists():
        raise InputError(f"--out: {out} exists already; name a new folder or remove it")
    part = cast("Split | None", split)
    options = _Options(labels, block, voxel_mm, array, maps, subject, seed)
    if name.lower().endswith((".yaml", ".yml")):
        spec, its_part, its_axis = phantom_of_config(Path(name))
        _check_options(name, options, _of_config(spec))
        part, axis = part or (None if subject is not None else its_part), its_axis if slice_axis is None else slice_axis
        loaded, part, spec = _load(spec, part, axis, options)
    else:
        axis = 2 if slice_axis is None else slice_axis
        try:
            spec = _spec(name, options)
            if isinstance(spec, BrainWeb):
                if labels is None:
                    # before they are read with that scheme
                    typer.echo(_scheme_taken(spec, part or "train", name), err=True)
                spec, part = _fitting(spec, part, axis)
            loaded, part, spec = _load(spec, part, axis, options)
        except InputError as error:
            raise InputError(_as_flags(str(error), hearts=name in _HEARTS)) from None
    write(loaded, spec, part, out)
    typer.echo(
        f"{out}: subject {loaded.ids[0]} ({part}), fractions of {', '.join(loaded.tissues)}. {loaded.description}"
    )


def _load(
    spec: "PhantomSpec", split: "Split | None", slice_axis: int, options: _Options
) -> "tuple[VolumePhantom, Split, PhantomSpec]":
    """Read or draw what is written; of a cohort only the one subject."""
    from phantoms.files.one_subject import one_subject
    from phantoms.heart import Heart
    from phantoms.liver import Liver
    from qsim.errors import InputError

    if not isinstance(spec, Liver | Heart):
        split = split or "train"
        return cast("VolumePhantom", spec.load(split, slice_axis)), split, spec
    if options.seed is not None:
        if options.seed < 0:
            raise InputError(f"--seed: got {options.seed}, wanted at least 0")
        spec = replace(spec, seed=options.seed)
    n_train = spec.subjects - spec.test_subjects
    subject = options.subject
    if subject is None:
        subject = n_train if split == "test" else 0
        if split is not None and (n_train if split == "train" else spec.test_subjects) == 0:
            other = "test" if split == "train" else "train"
            raise InputError(f"--split: all {spec.subjects} subjects are {other}; ask for --split {other}")
    if not 0 <= subject < spec.subjects:
        raise InputError(f"--subject: got {subject}, the cohort has 0 to {spec.subjects - 1}")
    its: Split = "train" if subject < n_train else "test"
    if split not in (None, its):
        raise InputError(f"--split: subject {subject} is {its}; leave --split out, or ask for another --subject")
    return one_subject(spec, subject, slice_axis), its, spec


def _of_config(spec: "PhantomSpec") -> tuple[str, ...]:
    """Options that a phantom of a config may have; all others are fields of the config."""
    from phantoms.heart import Heart
    from phantoms.liver import Liver

    return ("subject", "seed") if isinstance(spec, Liver | Heart) else ()


def _check_options(name: str, options: _Options, own: tuple[str, ...]) -> None:
    """Refuse options that would change nothing."""
    from qsim.errors import InputError

    given = {
        "labels": options.labels,
        "block": options.block,
        "voxel-mm": options.voxel_mm,
        "array": options.array,
        "from": options.maps,
        "subject": options.subject,
        "seed": options.seed,
    }
    for option, value in given.items():
        if value is not None and option not in own:
            raise InputError(f"--{option}: belongs to {_WHOSE[option]}, not to {name}; leave it out")


def _spec(name: str, options: _Options) -> "PhantomSpec":
    """Return the phantom that NAME means."""
    from phantoms import MNI, Liver, SystemPhantom
    from phantoms.heart import clinical_t1, preclinical_t1rho
    from qsim.errors import InputError

    own: tuple[str, ...] = () if name in _NAMED else ("labels", "block", "voxel-mm")
    if name in _DRAWN:
        own = ("subject", "seed", "from") if name in _HEARTS else ("subject", "seed")
    _check_options(name, options, ("array",) if name == "system_phantom" else own)
    if name == "mni":
        return MNI()
    if name == "liver":
        return Liver()
    if name in _HEARTS:
        heart: Heart = clinical_t1() if name == "heart" else preclinical_t1rho()
        return replace(heart, labels=options.maps) if options.maps else heart
    if name == "system_phantom":
        array = options.array or "t1"
        if array not in ("t1", "t2", "pd", "all"):
            raise InputError(f"--array: got {array}, wanted t1, t2, pd or all")
        return SystemPhantom(array=cast("Arrays", array))
    if name == "geometry":
        return _geometry()
    return _label_files(name, options)


def _geometry() -> "Geometry":
    from phantoms.shapes.geometry import Ball, Box, Geometry

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


def _label_files(name: str, options: _Options) -> "BrainWeb":
    from phantoms import BrainWeb
    from phantoms.brains.blocks import check_block
    from qsim.errors import InputError

    # a MATLAB file may name its variable
    if not Path(name).exists() and not Path(name.rpartition(":")[0]).is_file():
        raise InputError(f"NAME: {name} is none of {', '.join(_NAMED)}, nor a file or folder that exists")
    labels, block = options.labels or "discrete", 1 if options.block is None else options.block
    if labels not in LABEL_SCHEMES:
        raise InputError(f"--labels: got {labels}, wanted one of {', '.join(LABEL_SCHEMES)}")
    try:
        check_block(block)
    except ValueError as error:
        raise InputError(f"--{error}") from None
    if options.voxel_mm is not None and not 0 < options.voxel_mm < float("inf"):
        raise InputError(f"--voxel-mm: got {options.voxel_mm}, wanted a positive number of millimetres")
    edges = None if options.voxel_mm is None else (options.voxel_mm,) * 3
    return BrainWeb(path=name, labels=cast("Scheme", labels), block=block, voxel_mm=edges)


def _scheme_taken(spec: "BrainWeb", split: "Split", name: str) -> str:
    """Say what the numbers are taken to mean.

    Raises: InputError if they cannot tell: they are too few, or the scheme does not name all of them.
    """
    import numpy as np

    from phantoms.brains.label_files import read_labels
    from qsim.errors import InputError

    files = spec.files()
    file = files[len(files) - spec.test_subjects if split == "test" and len(files) > 1 else 0]
    present = [int(label) for label in np.unique(read_labels(file, spec.raw, spec.voxel_mm)[0]) if label]
    if len(present) >= _TELLING and set(present) <= set(LABEL_SCHEMES["discrete"]):
        return (
            f"note: no --labels given, the numbers of {file.name} are taken as discrete (BrainWeb's normal brain): "
            f"{_say('discrete')}"
        )
    held = f"{', '.join(map(str, present[:12]))}{' ...' if len(present) > 12 else ''}" or "none but 0"
    fit = [scheme for scheme, means in LABEL_SCHEMES.items() if set(present) <= set(means)]
    heart = f"; ventricles of hearts are `qsim phantom heart --from {name}`" if set(present) <= {1, 2, 3, 4} else ""
    means = "; ".join(f"{scheme} ({_say(scheme, present)})" for scheme in fit) or "none"
    raise InputError(
        f"--labels: {file.name} holds the labels {held}, which do not tell what they mean; give --labels, one of "
        f"{', '.join(LABEL_SCHEMES)}. Those that name all of these labels: {means}{heart}"
    )


def _say(scheme: str, only: list[int] | None = None) -> str:
    """The numbers of a scheme and what they mean: all of them, or the first dozen of some."""
    means = LABEL_SCHEMES[scheme]
    shown = list(means) if only is None else only[:12]
    said = ", ".join(f"{label} {means[label] if means[label] != BACKGROUND else 'left out'}" for label in shown)
    return said + (" ..." if only is not None and len(only) > len(shown) else "")


def _fitting(spec: "BrainWeb", split: "Split | None", slice_axis: int) -> "tuple[BrainWeb, Split]":
    """A split that exists: all of the volume is written, whichever it is.

    A single slice is test only; of a volume too short to leave slices out between train and test, none are.
    """
    from qsim.errors import InputError

    if len(spec.files()) > 1:
        return spec, split or "train"
    try:
        slabs = spec.slabs(slice_axis)
    except InputError as error:
        if not str(error).startswith("phantom.gap"):
            raise
        spec = replace(spec, gap=0)
        try:
            slabs = spec.slabs(slice_axis)
        except InputError:
            axes = " or ".join(f"--slice-axis {axis}" for axis in range(3) if axis != slice_axis)
            raise InputError(
                f"--slice-axis: {Path(str(spec.path)).name} has too few slices with tissue along axis {slice_axis} "
                f"to hold train and test; give {axes}"
            ) from None
    return spec, split or ("train" if slabs["train"] else "test")


def _as_flags(message: str, hearts: bool) -> str:
    """A message about a config as one about this command."""
    named = {
        "phantom.path": "NAME",
        "phantom.labels": "--from" if hearts else "--labels",
        "phantom.voxel_mm": "--voxel-mm",
        "give it, such as voxel_mm: [1, 1, 1]": "give it, such as --voxel-mm 1",
        "leave voxel_mm out": "leave --voxel-mm out",
        "ask for split: test": "ask for --split test",
        "choose another scheme or give a mapping": "choose another --labels, or write a config with a mapping",
        "needs a layout, such as raw": "needs a layout, in a config that is given as NAME, such as raw",
    }
    for key, flag in named.items():
        message = message.replace(key, flag)
    return "--slice-axis" + message.removeprefix("slice_axis") if message.startswith("slice_axis:") else message
