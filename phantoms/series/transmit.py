"""A measured map of the transmit field, on the voxels of a series, as a ratio to the nominal field.

BIDS leaves the unit of a TB1map open: a map whose median lies from 20 to 300 is in percent, from 0.2 to 3 a ratio.
A map of other voxels is interpolated linearly between its own, through the affines of both files.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from phantoms.series.nifti import Volumes, read_volumes
from qsim.errors import InputError

_RATIO, _PERCENT = (0.2, 3.0), (20.0, 300.0)
# a voxel of the series further outside of the map than this has no value [voxels of the map]
_OUTSIDE = 0.5


def read_transmit(path: Path, like: Volumes) -> tuple[Float[np.ndarray, "z y x"], tuple[str, ...]]:
    """The map on the voxels of a series [1], NaN where it says nothing, and notes.

    Raises: InputError naming the file.
    """
    held = read_volumes(path)
    if len(held.volumes) != 1:
        raise InputError(f"{path}: holds {len(held.volumes)} volumes, wanted one map of the transmit field")
    values: Float[np.ndarray, "c b a"] = held.volumes[0].astype(np.float32)
    good = np.isfinite(values) & (values > 0)
    notes: list[str] = []
    if not good.any():
        raise InputError(f"{path}: no value of this map of the transmit field is above 0")
    middle = float(np.median(values[good]))
    if _PERCENT[0] <= middle <= _PERCENT[1]:
        values = values / 100
        notes.append(f"{path}: the map of the transmit field is in percent (median {middle:.3g}): divided by 100")
    elif not _RATIO[0] <= middle <= _RATIO[1]:
        raise InputError(
            f"{path}: the median of this map of the transmit field is {middle:.4g}, wanted actual over nominal angle, "
            "about 1, or percent, about 100"
        )
    values = np.where(good, values, np.float32("nan"))
    same = values.shape == like.volumes[0].shape and np.allclose(held.affine, like.affine, rtol=1e-4, atol=1e-3)
    if not same:
        values = _placed(values, held, like)
        notes.append(f"{path}: the map of the transmit field was interpolated linearly on the voxels of the series")
    missing = int(np.isnan(values).sum())
    if missing == values.size:
        raise InputError(f"{path}: this map of the transmit field does not lie where the series does")
    if missing:
        notes.append(f"{path}: the map of the transmit field has no value in {missing} of {values.size} voxels")
    return values, tuple(notes)


def _placed(values: Float[np.ndarray, "c b a"], held: Volumes, like: Volumes) -> Float[np.ndarray, "z y x"]:
    """Values at the voxels of the series: index there -> world -> index in the map."""
    from scipy.ndimage import map_coordinates  # type: ignore[attr-defined]

    to_map = np.linalg.inv(held.affine) @ like.affine
    z, y, x = np.indices(like.volumes[0].shape, dtype=np.float64)
    places = np.stack([row[0] * x + row[1] * y + row[2] * z + row[3] for row in to_map[:3]])[::-1]
    top = np.array(values.shape, dtype=np.float64).reshape(3, 1, 1, 1) - 1
    outside = ((places < -_OUTSIDE) | (places > top + _OUTSIDE)).any(axis=0)
    # the mean of the neighbours that have a value, by their weights
    known = np.isfinite(values)
    inside = [np.where(known, values, 0).astype(np.float64), known.astype(np.float64)]
    total, weight = (map_coordinates(part, places, order=1, mode="nearest") for part in inside)
    lost = outside | (weight < 0.5)
    return np.where(lost, np.nan, total / np.where(lost, 1, weight)).astype(np.float32)
