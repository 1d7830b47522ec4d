"""Volumes on disk as arrays: NIfTI (and FreeSurfer's MGH), MINC 1 and 2, MATLAB (v5 and v7.3), raw numbers.

Axes. NIfTI and MATLAB arrays keep the order of the file. MINC files name their axes and mostly store z, y, x: they are
turned to x, y, z, so that a slice axis means the same as in NIfTI; directions stay. Raw files are laid out by `Raw`.

Numbers. NIfTI's scale and MINC's image range are applied: a MINC file stores integers n of a valid range, and slice by
slice the real range that it stands for,

    value = image_min + (n - valid_min) (image_max - image_min) / (valid_max - valid_min).
"""

import gzip
import zlib
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Shaped, UInt8, UInt16

from qsim.errors import InputError
from qsim.values import value

VOLUMES = (".nii", ".nii.gz", ".mgz", ".mnc", ".mnc.gz")
"""Files that know their own voxel size; those of a folder are taken."""
RAW = tuple(name + packed for name in (".rawb", ".raws", ".raw", ".bin") for packed in ("", ".gz"))
EXTENSIONS = (*VOLUMES, ".mat", *RAW)
Voxel = tuple[float, float, float]
# the arithmetic of an image range moves a whole number by less [1]
_ROUNDING = 1e-3
_WIDTHS = (8, 16, 32, 64)
_MATLAB_NUMBERS = ("double", "single", "logical", *(f"{sign}int{bits}" for sign in ("", "u") for bits in _WIDTHS))


@value
class Raw:
    """How the numbers of a raw file lie.

    Attributes:
        shape: voxels along each axis of the volume, [181, 217, 181] for BrainWeb's x, y, z at 1 mm.
        dtype: of the stored numbers.
        big_endian: byte order of numbers of two bytes.
        offset: is subtracted from every stored number; 128 for files that shift signed numbers into unsigned bytes.
        fastest: the axis along which neighbours lie side by side in the file: the first (BrainWeb's x) or the last.
    """

    shape: tuple[int, int, int]
    dtype: Literal["uint8", "int8", "uint16", "int16"] = "uint8"
    big_endian: bool = False
    offset: int = 0
    fastest: Literal["first", "last"] = "first"

    def __post_init__(self) -> None:
        if any(n < 1 for n in self.shape):
            raise ValueError(f"shape must be at least 1 along every axis, got {list(self.shape)}")
        if abs(self.offset) >= 2**16:
            raise ValueError(f"offset must be smaller than 65536, got {self.offset}")


@dataclass(frozen=True, slots=True)
class Stored:
    """A volume as it is on disk, scales applied.

    Attributes:
        data: the numbers.
        spacing_mm: voxel size [mm].
        affine: voxel index to world [mm]; the scale only where the file knows no more.
        nearly: whether whole numbers may have passed through the arithmetic of an image range.
    """

    data: Shaped[np.ndarray, "x y z"]
    spacing_mm: tuple[float, ...]
    affine: Shaped[np.ndarray, "4 4"]
    nearly: bool = False


def check_voxel(voxel_mm: Voxel | None) -> None:
    """Refuse sizes that no voxel has.

    Raises: ValueError.
    """
    if voxel_mm is not None and not all(isfinite(size) and size > 0 for size in voxel_mm):
        raise ValueError(f"voxel_mm must be finite and above 0, got {list(voxel_mm)}")


def split_variable(source: Path) -> tuple[Path, str | None]:
    """`FILE.mat:variable` as file and variable."""
    head, colon, variable = source.name.rpartition(":")
    return (source.with_name(head), variable) if colon and head.lower().endswith(".mat") else (source, None)


def find_files(names: tuple[str, ...], field: str) -> tuple[Path, ...]:
    """Every file that the names mean: files, `FILE.mat:variable`, folders, patterns with *.

    Args:
        field: of the config, for messages.
    Raises: InputError naming what does not exist, or is named twice.
    """
    files: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            found = sorted(f for f in path.iterdir() if f.name.lower().endswith(VOLUMES))
        elif "*" in path.name:
            found = sorted(f for f in path.parent.glob(path.name) if f.name.lower().endswith(EXTENSIONS))
        elif split_variable(path)[0].is_file():
            found = [path]
        else:
            raise InputError(f"{field}: {name} does not exist; name a NIfTI label file or a folder of them")
        if not found:
            raise InputError(f"{field}: {name} holds no {' or '.join(VOLUMES)} file")
        files += found
    on_disk = [split_variable(file)[0] for file in files]
    if len(set(on_disk)) < len(on_disk):
        twice = next(f for i, f in enumerate(on_disk) if f in on_disk[:i])
        raise InputError(f"{field}: {twice} is named twice, so train and test could share it")
    return tuple(files)


def read_volume(source: Path, field: str, raw: Raw | None = None, voxel_mm: Voxel | None = None) -> Stored:
    """Read a volume of one of the formats.

    Args:
        source: the file, with `:variable` where a MATLAB file holds several arrays.
        field: of the config, for messages.
        raw: layout of raw files.
        voxel_mm: voxel size, for MATLAB and raw files, which hold none [mm].
    Raises: InputError naming the file, and the field at fault.
    """
    file, variable = split_variable(source)
    name = file.name.lower()
    # other images of nibabel, such as Analyze, know theirs too
    known = not name.endswith((".mat", *RAW))
    if known and voxel_mm is not None:
        raise InputError(f"phantom.voxel_mm: {file} holds its own voxel size; leave voxel_mm out")
    if not known and voxel_mm is None:
        raise InputError(f"phantom.voxel_mm: {file} holds no voxel size; give it, such as voxel_mm: [1, 1, 1]")
    try:
        if name.endswith(".gz"):
            _check_gzip(file)
        if known:
            stored = _read_image(file, field)
        else:
            data = _read_matlab(file, variable, field) if name.endswith(".mat") else _read_raw(file, raw)
            assert voxel_mm is not None
            stored = Stored(data, tuple(float(size) for size in voxel_mm), np.diag([*voxel_mm, 1.0]))
    except InputError:
        raise
    # what the readers of damaged files raise
    except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError, IndexError, NotImplementedError) as error:
        what = "MINC" if ".mnc" in name else "NIfTI" if known else "MATLAB" if ".mat" in name else "raw bytes"
        raise InputError(
            f"{field}: {file} cannot be read as {what} ({_one_line(error)}); it may be truncated, get it again"
        ) from error
    if stored.data.dtype.kind not in "buif" or not stored.data.size:
        what = f"numbers of type {stored.data.dtype}" if stored.data.size else "no voxel"
        raise InputError(f"{field}: {source} holds {what}, wanted one real number per voxel")
    return stored


def read_labels(
    source: Path, raw: Raw | None = None, voxel_mm: Voxel | None = None, field: str = "phantom.path"
) -> tuple[UInt8[np.ndarray, "x y z"] | UInt16[np.ndarray, "x y z"], tuple[float, ...], np.ndarray]:
    """Read an integer label model.

    Returns:
        labels; voxel size [mm]; affine.
    Raises: InputError naming the file.
    """
    stored = read_volume(source, field, raw, voxel_mm)
    data = stored.data
    if stored.nearly:
        whole = np.rint(data)
        # `not`: NaN fails every comparison
        if not float(np.abs(data - whole).max()) <= _ROUNDING:
            raise InputError(
                f"{field}: {source} holds values that are not whole numbers, wanted labels; a fuzzy model is "
                "kind: brainweb_fuzzy"
            )
        data = whole
    low, high = data.min(), data.max()
    if not (low >= 0 and high < 2**16):
        shifted = "; is raw.offset right?" if raw is not None else ""
        raise InputError(f"{field}: {source} holds values from {low} to {high}, wanted labels from 0 to 65535{shifted}")
    labels = data.astype(np.uint8 if high < 2**8 else np.uint16, copy=False)
    if not np.issubdtype(data.dtype, np.integer) and not np.array_equal(labels, data):
        raise InputError(f"{field}: {source} holds values that are not whole numbers, wanted labels")
    return labels, stored.spacing_mm, stored.affine


def _read_image(file: Path, field: str) -> Stored:
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.minc1 import Minc1Image
    from nibabel.orientations import io_orientation
    from nibabel.spatialimages import SpatialImage

    try:
        image = nibabel.load(file)
    except ImageFileError as error:
        raise ValueError(_one_line(error)) from error
    if not isinstance(image, SpatialImage):
        raise InputError(f"{field}: {file} is no image but {type(image).__name__}; give a NIfTI label model")
    data = np.asarray(image.dataobj)
    affine = np.asarray(image.affine, dtype=float)
    zooms = [float(z) for z in image.header.get_zooms()]
    if data.ndim == 4 and data.shape[3] == 1 and not isinstance(image, Minc1Image):
        data = data[..., 0]
    if data.ndim != 3:
        raise InputError(f"{field}: {file} has {data.ndim} dimensions, wanted a 3D label model")
    # Minc2Image is a Minc1Image
    if not isinstance(image, Minc1Image):
        return Stored(data, tuple(zooms[:3]), affine)
    order = [int(axis) for axis in np.argsort(io_orientation(affine)[:, 0])]  # type: ignore[no-untyped-call]
    return Stored(data.transpose(order), tuple(abs(zooms[axis]) for axis in order), affine[:, [*order, 3]], nearly=True)


def _read_matlab(file: Path, variable: str | None, field: str) -> Shaped[np.ndarray, "x y z"]:
    import h5py

    v73 = h5py.is_hdf5(file)  # type: ignore[attr-defined, no-untyped-call]
    data = _read_hdf5(file, variable, field) if v73 else _read_mat5(file, variable, field)
    if data.ndim == 2:
        # a slice is a volume one voxel deep
        data = data[..., None]
    if data.ndim != 3:
        raise InputError(f"{field}: {file} has {data.ndim} dimensions, wanted a slice or a 3D label model")
    return data


def _read_mat5(file: Path, variable: str | None, field: str) -> np.ndarray:
    from scipy.io import loadmat, whosmat  # type: ignore[attr-defined]
    from scipy.io.matlab import MatReadError

    try:
        content = whosmat(file)  # type: ignore[no-untyped-call]
        # a number by itself is no volume
        held = [name for name, shape, kind in content if kind in _MATLAB_NUMBERS and prod(shape) > 1]
        chosen = _choose(file, variable, held, field)
        return np.asarray(loadmat(file, variable_names=[chosen])[chosen])  # type: ignore[no-untyped-call]
    except MatReadError as error:
        raise ValueError(_one_line(error)) from error


def _read_hdf5(file: Path, variable: str | None, field: str) -> np.ndarray:
    import h5py

    with h5py.File(file, "r") as content:  # type: ignore[attr-defined, no-untyped-call]
        datasets = {name: item for name, item in content.items() if hasattr(item, "dtype")}
        # texts are stored as numbers, too
        held = [
            name
            for name, item in datasets.items()
            if item.dtype.kind in "uif" and item.size > 1 and item.attrs.get("MATLAB_class") not in (b"char", "char")
        ]
        # MATLAB writes its first axis fastest, HDF5 reads the last one so
        return np.asarray(content[_choose(file, variable, held, field)]).T


def _choose(file: Path, variable: str | None, held: list[str], field: str) -> str:
    names = ", ".join(held) or "no array of numbers"
    if variable is not None:
        if variable not in held:
            raise InputError(f"{field}: {file} has no array {variable}; it holds {names}")
        return variable
    if len(held) != 1:
        hint = f"; name one, as in {file.name}:{held[0]}" if held else ""
        raise InputError(f"{field}: {file} holds {names}{hint}")
    return held[0]


def _read_raw(file: Path, raw: Raw | None) -> Shaped[np.ndarray, "x y z"]:
    if raw is None:
        raise InputError(f"phantom.raw: {file} needs a layout, such as raw: {{shape: [181, 217, 181]}}")
    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    dtype = np.dtype(raw.dtype).newbyteorder(">" if raw.big_endian else "<")
    wanted = prod(raw.shape) * dtype.itemsize
    if len(content) != wanted:
        raise InputError(
            f"phantom.raw.shape: {file} holds {len(content)} bytes, {' x '.join(map(str, raw.shape))} numbers of "
            f"{raw.dtype} are {wanted}"
        )
    data = np.frombuffer(content, dtype=dtype)
    data = data.reshape(raw.shape, order="F" if raw.fastest == "first" else "C")
    # wide enough for every difference
    return data.astype(np.int32) - raw.offset if raw.offset else data.astype(dtype.newbyteorder("="), copy=False)


def _check_gzip(file: Path) -> None:
    """Read to the end, where the checksum is: nibabel stops before it, and a damaged stream can decode to labels.

    Raises: OSError, EOFError or zlib.error.
    """
    with gzip.open(file) as stream:
        while stream.read(2**20):
            pass


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
