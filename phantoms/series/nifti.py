"""Volumes of NIfTI files, as stored: z y x, with their place in space.

    value = slope x stored + intercept

Whole numbers without a slope stay what they are, so that a series takes the memory of its file; with one they become
single precision, which holds 16 bits (double for more). An array (x, y, z, images) is turned to one array (z, y, x) for
each image without a copy; voxels are not reordered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from phantoms.files.images import reading
from qsim.errors import InputError

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, eq=False)
class Volumes:
    """Images of a file or of several, and where they lie.

    Attributes:
        affine: voxel index (x, y, z) to world [mm].
        spacing_mm: of z, y, x [mm].
        header: of NIfTI, 348 bytes (NIfTI-2: 540); empty if there is none.
        notes: what was taken for granted.
        sized: whether the file says how large its voxels are.
    """

    volumes: tuple[Shaped[np.ndarray, "z y x"], ...]
    affine: Float[np.ndarray, "4 4"]
    spacing_mm: tuple[float, ...]
    header: bytes = b""
    notes: tuple[str, ...] = ()
    sized: bool = True


def load(path: Path) -> Any:
    """An open NIfTI image.

    Raises: InputError naming the file.
    """
    import nibabel

    if not path.is_file():
        raise InputError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    image = reading(str(path), lambda: nibabel.load(path))
    if not isinstance(image, nibabel.Nifti1Image):
        raise InputError(f"{path}: is {type(image).__name__}, wanted NIfTI")
    kind = image.get_data_dtype()  # type: ignore[no-untyped-call]
    if kind.kind not in "cfiu" or kind.itemsize > (16 if kind.kind == "c" else 8):
        what = "colours (RGB)" if kind.names else str(kind)
        raise InputError(f"{path}: holds {what}, wanted real numbers of at most double precision")
    return image


def shape_of(path: Path) -> tuple[int, ...]:
    """Shape of the array in a file."""
    return tuple(int(size) for size in load(path).shape)


def read_volumes(path: Path, *, magnitude: bool = False) -> Volumes:
    """The images of one file: the last of four axes; a file of three holds one.

    Raises: InputError naming the file.
    """
    image = load(path)
    shape = tuple(int(size) for size in image.shape)
    if len(shape) not in (3, 4) or 0 in shape:
        raise InputError(f"{path}: has shape {shape}, wanted (x, y, z, images) or one volume (x, y, z)")
    notes: list[str] = []
    raw = reading(str(path), lambda: np.asanyarray(image.dataobj.get_unscaled()))
    raw = raw if raw.ndim == 4 else raw[..., None]
    slope, inter = float(image.dataobj.slope), float(image.dataobj.inter)
    if not (np.isfinite(slope) and np.isfinite(inter)):
        raise InputError(f"{path}: scl_slope is {slope:g} and scl_inter {inter:g}, wanted finite numbers")
    volumes = tuple(
        _scaled(path, real(str(path), raw[..., n].T, magnitude, notes), slope, inter) for n in range(raw.shape[3])
    )
    header = image.header
    unit = header.get_xyzt_units()[0]
    factor = {"meter": 1000.0, "micron": 1e-3}.get(unit, 1.0)
    zooms = [float(zoom) * factor for zoom in header.get_zooms()[:3]]
    if not all(np.isfinite(zoom) and zoom > 0 for zoom in zooms):
        notes.append(f"{path}: its voxel size is {zooms} mm; 1 mm is taken instead")
        zooms = [1.0, 1.0, 1.0]
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all():
        raise InputError(f"{path}: its affine holds NaN or infinity; mend the header (sform, qform)")
    return Volumes(volumes, affine, tuple(zooms[::-1]), bytes(header.binaryblock), tuple(notes))


def real(name: str, volume: Shaped[np.ndarray, "..."], magnitude: bool, notes: list[str]) -> Shaped[np.ndarray, "..."]:
    """Real values; of complex ones the modulus, if it was asked for.

    Raises: InputError naming the file if it was not.
    """
    if volume.dtype.kind != "c":
        return volume
    if not magnitude:
        raise InputError(f"{name}: holds complex numbers, wanted real ones; ask for their magnitude, or save a part")
    note = f"{name}: the modulus of its complex numbers was taken"
    if note not in notes:
        notes.append(note)
    return np.asarray(np.abs(volume))


def _scaled(path: Path, stored: Shaped[np.ndarray, "z y x"], slope: float, inter: float) -> Shaped[np.ndarray, "z y x"]:
    if slope == 1 and inter == 0:
        return stored
    fits = stored.dtype.itemsize <= (2 if stored.dtype.kind in "iu" else 4)
    with np.errstate(over="ignore", invalid="ignore"):
        values = stored.astype(np.float64) * slope + inter
    span = values[np.isfinite(stored)] if stored.dtype.kind == "f" else values
    if span.size and not float(np.abs(span).max()) <= _LARGEST:
        raise InputError(f"{path}: values times scl_slope {slope:g} are larger than single precision holds")
    return values.astype(np.float32) if fits else values


def check_values(name: str, volumes: Sequence[Shaped[np.ndarray, "z y x"]]) -> tuple[str, ...]:
    """Notes about voxels that cannot be computed, negative ones, and digits that are lost.

    Raises: InputError naming the file if values are larger than single precision holds.
    """
    wrong = negative = total = 0
    rounded = False
    for volume in volumes:
        total += volume.size
        negative += int((volume < 0).sum()) if volume.dtype.kind != "u" else 0
        if volume.dtype.kind == "f":
            bad = ~np.isfinite(volume)
            wrong += int(bad.sum())
            if volume.dtype.itemsize > 4 and volume.size:
                top = float(np.abs(np.where(bad, 0, volume)).max())
                if top > _LARGEST:
                    raise InputError(f"{name}: values up to {top:g} are larger than single precision holds")
        elif volume.dtype.itemsize > 2 and volume.size:
            rounded |= max(abs(int(volume.min())), int(volume.max())) > 1 << 24
    notes = []
    if wrong:
        notes.append(f"{name}: NaN or infinity in {wrong} of {total} voxels; they are not computed")
    if negative:
        notes.append(f"{name}: {negative} of {total} values are negative")
    if rounded:
        notes.append(f"{name}: whole numbers above 2^24 are rounded to single precision")
    return tuple(notes)


def check_place(
    path: Path, shape: tuple[int, ...], affine: Float[np.ndarray, "4 4"], first: Path, like: Volumes
) -> None:
    """Refuse a file that does not lie where another does.

    Raises: InputError naming both files.
    """
    wanted = like.volumes[0].shape
    if shape != wanted:
        raise InputError(f"{path}: has shape {shape[::-1]} (x, y, z), {first.name} has {wanted[::-1]}")
    if not np.allclose(affine, like.affine, rtol=1e-4, atol=1e-3):
        raise InputError(f"{path}: lies in another place than {first.name} (their affines differ)")
