"""Motion between the images of a series that is mapped: registered if asked for, else looked for and told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

from phantoms.files.derivatives import Derivatives, Json
from phantoms.registration import Registered, register
from phantoms.series.base import Series
from phantoms.series.motion import Movement, movement
from qsim.errors import InputError

_MEANING: dict[str, Json] = {
    "Description": "how the object has moved from the reference image to each image; the reference is the row of "
    "zeros whose registered_to is itself",
    "image": {"Description": "number of the image in the series, from 1"},
    "time": {"Description": "of the sidecar key that tells the images apart", "Units": "s (flip angles: rad)"},
    "trans_x": {"Description": "shift along the columns of the voxel grid", "Units": "mm"},
    "trans_y": {"Description": "shift along the rows of the voxel grid", "Units": "mm"},
    "trans_z": {"Description": "shift along the slices", "Units": "mm"},
    "rot_x": {"Description": "rotation about the centre of the volume, vector along the axis", "Units": "degrees"},
    "rot_y": {"Description": "as rot_x", "Units": "degrees"},
    "rot_z": {"Description": "as rot_x", "Units": "degrees"},
    "registered_to": {"Description": "image that it was registered to, the neighbour in time on the reference's side"},
    "information_before": {"Description": "mutual information with that image as they lie", "Units": "nat"},
    "information_after": {"Description": "mutual information with that image once registered", "Units": "nat"},
}


@dataclass(frozen=True, slots=True)
class Steadied:
    """A series, and what is known of motion in it.

    Attributes:
        series: registered, if that was asked for.
        record: for the sidecars.
        notes: a sentence each.
        table: rows of the motion table; empty: there is none.
    """

    series: Series
    record: Mapping[str, Json]
    notes: tuple[str, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()


def steadied(series: Series, slices: range, *, wanted: bool) -> Steadied:
    """Register a series, or look whether it should be.

    Args:
        slices: that are mapped; motion is looked for in them.
        wanted: registration is asked for.
    Raises: InputError, naming --register, if it cannot be done.
    """
    if wanted:
        if len(series.volumes) < 2:
            raise InputError("--register: one image has nothing to be registered to")
        return _registered(series, register(series.volumes, _lengths(series), series.spacing_mm))
    volumes = [volume[slices.start : slices.stop] for volume in series.volumes]
    return _told(series, movement(volumes, _lengths(series), series.spacing_mm))


def _lengths(series: Series) -> tuple[float, ...]:
    """How long each image was prepared: images of like times look alike [s]."""
    if not series.te_prep:
        return series.times
    return tuple(tsl + te for tsl, te in zip(series.times, series.te_prep, strict=True))


def _registered(series: Series, found: Registered) -> Steadied:
    how = "in the plane of the slices" if found.planar else "in space"
    note = (
        f"registered to image {found.reference + 1} of 1 to {len(found.volumes)} (the highest signal), {how}; "
        "interpolated once, linearly"
    )
    notes = [note]
    if found.unplaced:
        some, left = ("share", "lie") if len(found.unplaced) > 1 else ("shares", "lies")
        notes.append(
            f"motion: {_numbers(found.unplaced)} (of 1 to {len(found.volumes)}) {some} nothing with the neighbour, and "
            f"{left} where that does"
        )
    record: dict[str, Json] = {
        "MotionCorrection": {
            "Description": "rigid, maximal mutual information (Mattes) of magnitudes of neighbours in time, composed",
            "Reference": found.reference + 1,
            "InPlaneOnly": found.planar,
            "Interpolation": "linear",
            "OutsideVoxels": found.outside,
            "Unplaced": [i + 1 for i in found.unplaced],
            "Software": f"SimpleITK {found.version}",
            "Translations": [list(each.shift_mm) for each in found.motions],
            "Rotations": [list(each.rotation_deg) for each in found.motions],
        }
    }
    table = tuple(
        (
            str(i + 1),
            f"{series.times[i]:.9g}",
            *(f"{value:.4f}" for value in (*each.shift_mm, *each.rotation_deg)),
            str(each.against + 1),
            f"{each.before:.5f}",
            f"{each.after:.5f}",
        )
        for i, each in enumerate(found.motions)
    )
    return Steadied(replace(series, volumes=found.volumes), record, tuple(notes), table)


def _told(series: Series, found: Movement | None) -> Steadied:
    count = len(series.volumes)
    if found is None:
        told = "not looked for: the images are too small or too few"
        return Steadied(series, {"MotionEstimate": {"Description": told}})
    record: dict[str, Json] = {
        "MotionEstimate": {
            "Description": "displacement of each image, root mean square over the object, and its standard error "
            "[mm]; null: cannot be told",
            "Reference": found.reference + 1,
            "Displacement": [_rounded(each) for each in found.displacement_mm],
            "StandardError": [_rounded(each) for each in found.uncertainty_mm],
        }
    }
    notes = []
    moved = found.moved
    if moved:
        far = max(found.displacement_mm[i] for i in moved)
        some = _numbers(moved)
        notes.append(
            f"motion: {some} (of 1 to {count}) {'seem' if len(moved) > 1 else 'seems'} moved by "
            f"{'up to ' if len(moved) > 1 else ''}about {far:.2g} mm (more than half a voxel); consider --register"
        )
    unknown = [i for i in found.unknown if i not in moved]
    if unknown:
        show, have = ("show", "they have") if len(unknown) > 1 else ("shows", "it has")
        notes.append(f"motion: {_numbers(unknown)} (of 1 to {count}) {show} too little to tell whether {have} moved")
    return Steadied(series, record, tuple(notes))


def _rounded(value: float) -> float | None:
    return round(value, 3) if isfinite(value) else None


def _numbers(images: Sequence[int]) -> str:
    """`images 1, 3 and 5`."""
    listed = [str(i + 1) for i in images]
    if len(listed) == 1:
        return f"image {listed[0]}"
    return f"images {', '.join(listed[:-1])} and {listed[-1]}"


def write_table(made: Derivatives, file: Path, table: Sequence[Sequence[str]]) -> None:
    """The motions as TSV, and a JSON file that says what its columns are."""
    columns = [key for key in _MEANING if key != "Description"]
    lines = ["\t".join(columns), *("\t".join(row) for row in table)]
    made.path(file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    made.sidecar(file.with_suffix(".json"), _MEANING)
