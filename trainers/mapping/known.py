"""Volumes that `qsim map` is given beside the series: masks, maps of sigma, and rows that are known."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Shaped

from phantoms.files.derivatives import Json
from phantoms.files.images import NIFTI, reading
from phantoms.series.base import Series
from qsim.errors import InputError
from qsim.parameters import PARAMETERS
from qsim.signals import VariableFlipAngle
from qsim.signals.base import SignalModel
from trainers.mapping.inputs import MapJob, Volume

# a field relative to the nominal one above this is percent, a time [s] above it milliseconds
_PERCENT = 10.0


def read_volume(option: str, file: Path, series: Series) -> Shaped[np.ndarray, "z y x"]:
    """A map on the grid of the series.

    Raises: InputError naming option and file if it cannot be read or lies elsewhere.
    """
    import nibabel

    name = f"{option}: {file}"
    if not file.is_file():
        raise InputError(f"{name} does not exist")
    if not file.name.lower().endswith(NIFTI):
        raise InputError(f"{name} is no NIfTI file (.nii, .nii.gz)")
    image = reading(name, lambda: nibabel.load(file))
    array = reading(name, lambda: np.asanyarray(image.dataobj))
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name} holds {array.dtype}, wanted real numbers")
    shape = tuple(size for size in array.shape[3:] if size != 1)
    wanted = series.space[::-1]
    if shape or tuple((*array.shape, 1, 1)[:3]) != wanted:
        raise InputError(f"{name} has shape {array.shape}, the images of the series {wanted}")
    if not np.allclose(image.affine, series.affine, rtol=1e-4, atol=1e-2):
        raise InputError(f"{name} and the series lie in different places (their affines differ); resample it first")
    return array.reshape(wanted).transpose(2, 1, 0)


def read_mask(file: Path, series: Series) -> Bool[np.ndarray, "z y x"]:
    """Raises: InputError if it is no mask, or empty."""
    values = read_volume("--mask", file, series)
    found = np.unique(values)
    if found.size > 2 or not np.isin(found, (0, found.max())).all() or not np.isfinite(found).all():
        raise InputError(f"--mask: {file} holds more than 0 and one other number; a mask says yes or no")
    if not values.any():
        raise InputError(f"--mask: {file} holds no voxel")
    return values != 0


@dataclass(frozen=True, slots=True)
class KnownRows:
    """Rows that are not fitted.

    Attributes:
        values: by row [SI].
        record: what sidecars say of them.
        usable: voxels where every map has a value in the range of its row; None: all.
        notes: a sentence each.
    """

    values: Mapping[str, float | Volume]
    record: Mapping[str, Json]
    usable: Bool[np.ndarray, "z y x"] | None = None
    notes: tuple[str, ...] = ()


def read_known(job: MapJob, series: Series, model: SignalModel, slices: range) -> KnownRows:
    """Known rows, as given, as the series brings them, or REL_B1 = 1 for flip angles without a map.

    Args:
        slices: where voxels without a value are counted.
    Raises: InputError naming the row.
    """
    known: dict[str, float | Volume] = {}
    rows = [p.name for p in model.parameters]
    for name, value in job.known.items():
        option = f"--known {name}"
        if name not in rows:
            raise InputError(f"{option}: is no row of the model, which has {', '.join(rows)}")
        if isinstance(value, Path):
            known[name] = read_volume(option, value, series).astype(np.float32)
        else:
            known[name] = float(value)
        top = float(np.nanquantile(known[name], 0.5))
        if name == "REL_B1" and top > _PERCENT:
            raise InputError(f"{option}: its median is {top:.4g}; wanted the field over the nominal one, not percent")
        unit = PARAMETERS[name].unit
        if unit == "s" and top > _PERCENT:
            raise InputError(f"{option}: its median is {top:.4g} s; divide by 1000 if these are milliseconds")
    record: dict[str, Json] = {
        name: value.name if isinstance(value, Path) else value for name, value in job.known.items()
    }
    notes: list[str] = []
    if "REL_B1" not in known and series.b1 is not None:
        if "REL_B1" in rows and not job.network:
            known["REL_B1"] = np.asarray(series.b1, dtype=np.float32)
            record["REL_B1"] = "the map of the transmit field that Notes name"
            notes.append("REL_B1 as measured: the series brings its map")
        else:
            notes.append("the B1 map beside the series is not used: the signal model or the method does not take it")
    elif "REL_B1" not in known and isinstance(model, VariableFlipAngle) and not job.network:
        # flip angles alone cannot tell it from T1
        known["REL_B1"] = record["REL_B1"] = 1.0
        notes.append("no map of the transmit field: REL_B1 = 1 is taken, and T1 is off by about twice its error (--b1)")
    usable = np.ones(series.space, dtype=bool)
    for name, held in known.items():
        if isinstance(held, np.ndarray):
            usable &= _in_range(name, held, slices, notes)
    return KnownRows(known, record, None if usable.all() else usable, tuple(notes))


def _in_range(name: str, values: Volume, slices: range, notes: list[str]) -> Bool[np.ndarray, "z y x"]:
    """Where a known map has a value that its row can have; a note counts the other voxels.

    Raises: InputError naming the row if there is none.
    """
    lower, upper = PARAMETERS[name].lower, PARAMETERS[name].upper
    good: Bool[np.ndarray, "z y x"] = np.isfinite(values) & (values >= lower) & (values <= upper)
    inside = good[slices.start : slices.stop]
    if not inside.any():
        raise InputError(f"--known {name}: no voxel of its map holds a value from {lower:g} to {upper:g}")
    missing = inside.size - int(inside.sum())
    if missing:
        unit = "" if PARAMETERS[name].unit == "1" else f" {PARAMETERS[name].unit}"
        notes.append(
            f"{name} has no value from {lower:g} to {upper:g}{unit} in {missing} of {inside.size} voxels: not computed"
        )
    return good
