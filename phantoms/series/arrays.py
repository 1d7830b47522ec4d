"""Series in files without a header of space: NumPy, MATLAB, HDF5; k-space becomes magnitude images.

Axes by letters: n images, c coils, z, y, x. NumPy and HDF5: n y x or n z y x. MATLAB shows rows y, columns x, slices z
and images last: y x n or y x z n; version 7.3 stores the same array with its axes turned round. K-space is centred
(`qsim.kspace.fourier`), transformed along z, y and x, and its coils are combined:

    image = sqrt(sum over coils |m_c|^2)
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex, Float, Shaped

from phantoms.files.images import LETTERS, Scan, reading
from phantoms.files.ismrmrd import IsmrmrdFile, hdf5_file, ismrmrd_groups
from phantoms.files.raw import HDF5, NUMPY, open_scan
from phantoms.series.nifti import Volumes, real
from phantoms.series.sidecars import number, sidecar_of
from qsim.errors import InputError

MATLAB = (".mat",)
ARRAYS = (*NUMPY, *MATLAB, *HDF5)
_NUMPY_AXES = {3: "nyx", 4: "nzyx"}
_MATLAB_AXES = {3: "yxn", 4: "yxzn"}
# voxel sizes outside of this are metres or micrometres [mm]
_SIZES = (0.01, 100.0)
_MAGIC = b"\x89HDF\r\n\x1a\n"


def split(path: Path) -> tuple[Path, str]:
    """File, and what is named inside of it as `FILE.mat:variable`."""
    head, colon, tail = str(path).rpartition(":")
    if colon and head.lower().endswith((*MATLAB, *HDF5, ".npz")):
        return Path(head), tail.strip("/")
    return path, ""


def read_arrays(path: Path, dataset: str, axes: str | None, *, magnitude: bool, kspace: bool) -> Volumes:
    """The images of a file.

    Args:
        dataset: name inside of the file; may be empty if only one array can be meant.
        axes: letters of the array's axes.
        magnitude: take the modulus of complex images.
        kspace: complex numbers of NumPy or MATLAB are k-space; those of HDF5 always are.
    Raises: InputError naming the file.
    """
    suffix = path.suffix.lower()
    if axes is not None and (
        not set(axes) <= set(LETTERS) or len(set(axes)) < len(axes) or not {"y", "x"} <= set(axes)
    ):
        raise InputError(f"--axes: got {axes!r}, wanted letters of n c z y x, each once, y and x among them")
    if suffix in HDF5:
        groups = reading(str(path), lambda: ismrmrd_groups(path))
        if dataset in groups or (not dataset and len(groups) == 1):
            return _ismrmrd(path, dataset or groups[0])
        dataset, raw = _hdf5_name(path, dataset)
        if raw:
            with hdf5_file(path) as file:
                # a series, where nothing says so: three axes are not one volume
                letters = axes or ("nyx" if file[dataset].ndim == 3 else None)
            return _reconstructed(path, open_scan(f"{path}:{dataset}", axes=letters).read(), 1)
    array, usual = _array(path, dataset, axes)
    name = f"{path}:{dataset}" if dataset else str(path)
    letters = axes or usual.get(array.ndim)
    if letters is None or len(letters) != array.ndim:
        wanted = f"--axes {axes} names {len(axes)}" if axes else "name them with --axes, such as ncyx"
        raise InputError(f"{name}: its array of shape {array.shape} has {array.ndim} axes; {wanted}")
    notes = [] if axes else [f"{name}: the axes of shape {_shown(array, letters)} are {' '.join(_shown_axes(letters))}"]
    _check_numbers(name, array)
    placed = _arranged(array, letters)
    if kspace:
        return _from_kspace(name, placed, notes)
    if placed.shape[1] > 1:
        raise InputError(f"{name}: images of {placed.shape[1]} coils cannot be fitted; combine them first")
    volumes = tuple(real(name, volume, magnitude, notes) for volume in placed[:, 0])
    return _unplaced(volumes, None, tuple(notes))


def _shown(array: Shaped[np.ndarray, "..."], letters: str) -> tuple[int, ...]:
    """The shape as its owner knows it: MATLAB's own order for an array that version 7.3 turned round."""
    return array.shape[::-1] if letters in ("nxy", "nzxy") else array.shape


def _shown_axes(letters: str) -> str:
    return letters[::-1] if letters in ("nxy", "nzxy") else letters


def _check_numbers(name: str, array: Shaped[np.ndarray, "..."]) -> None:
    if array.dtype.kind not in "cfiu" or array.dtype.itemsize > (16 if array.dtype.kind == "c" else 8):
        raise InputError(f"{name}: holds {array.dtype}, wanted numbers of at most double precision")
    if 0 in array.shape:
        raise InputError(f"{name}: has an empty axis, its shape is {array.shape}")


def _arranged(array: Shaped[np.ndarray, "..."], letters: str) -> Shaped[np.ndarray, "n c z y x"]:
    present = [letter for letter in LETTERS if letter in letters]
    turned = array.transpose([letters.index(letter) for letter in present])
    for place, letter in enumerate(LETTERS):
        if letter not in letters:
            turned = np.expand_dims(turned, place)
    return turned


def _unplaced(
    volumes: tuple[Shaped[np.ndarray, "z y x"], ...], spacing: tuple[float, float, float] | None, notes: tuple[str, ...]
) -> Volumes:
    """Volumes with a place in space that nothing says: the origin, along the axes."""
    known = spacing or (1.0, 1.0, 1.0)
    return Volumes(volumes, np.diag([*known[::-1], 1.0]), known, b"", notes, spacing is not None)


def sized(path: Path, volumes: Volumes, content: Mapping[str, object], given: Sequence[float] | None) -> Volumes:
    """Volumes with the voxel size that --voxel-mm gives, else VoxelSize of the JSON file beside them, else 1 mm.

    Args:
        content: of the JSON file; VoxelSize is a list of z, y, x [mm].
        given: z, y, x [mm].
    Raises: InputError naming option or file and key.
    """
    if volumes.sized:
        if given is not None:
            said = " x ".join(f"{each:g}" for each in volumes.spacing_mm)
            raise InputError(f"--voxel-mm: {path} says its own voxel size, {said} mm (z, y, x)")
        if "VoxelSize" in content:
            told = f"VoxelSize of {sidecar_of(path)} is not used: the images say their own voxel size"
            return replace(volumes, notes=(*volumes.notes, told))
        return volumes
    held = given if given is not None else content.get("VoxelSize")
    if held is None:
        return replace(volumes, notes=(*volumes.notes, "the voxel size is not in the file: 1 mm is taken"))
    where, key = ("--voxel-mm", "the list") if given is not None else (f"{sidecar_of(path)}", "VoxelSize")
    listed = list(held) if isinstance(held, list | tuple) else [held]
    notes: list[str] = []
    sizes = [number(where, key, each, notes) for each in listed]
    if len(sizes) != 3 or not all(_SIZES[0] <= size <= _SIZES[1] for size in sizes):
        got = ", ".join(f"{size:g}" for size in sizes) or "nothing"
        raise InputError(
            f"{where}: {key} holds {got}; wanted three sizes z, y, x in mm, from {_SIZES[0]:g} to {_SIZES[1]:g}"
        )
    z, y, x = sizes
    if given is not None and "VoxelSize" in content:
        notes.append(f"--voxel-mm replaces VoxelSize of {sidecar_of(path)}")
    affine = np.diag([x, y, z, 1.0])
    return replace(volumes, affine=affine, spacing_mm=(z, y, x), notes=(*volumes.notes, *notes))


def _pick(path: Path, dataset: str, listed: Mapping[str, str]) -> str:
    """The name that is meant among those that can be a series.

    Raises: InputError naming the file, and what it holds.
    """
    if dataset in listed:
        return dataset
    if not dataset and len(listed) == 1:
        return next(iter(listed))
    told = "; ".join(listed.values()) or "no array of numbers"
    missing = f"holds no {dataset}" if dataset else "name one array"
    raise InputError(f"{path}: {missing}, as {path.name}:NAME; it holds {told}"[:400])


def _array(path: Path, dataset: str, axes: str | None) -> tuple[Shaped[np.ndarray, "..."], Mapping[int, str]]:
    """An array as stored, and the usual letters by its number of axes."""
    suffix = path.suffix.lower()
    if suffix in NUMPY:
        return _numpy(path, dataset), _NUMPY_AXES
    if suffix in HDF5:
        return _hdf5(path, dataset), _NUMPY_AXES
    with path.open("rb") as stream:
        new = stream.read(520)
    if _MAGIC in new:
        name = _pick(path, dataset, _hdf5_arrays(path))
        array = _hdf5(path, name)
        return (array.transpose() if axes else array), {number: a[::-1] for number, a in _MATLAB_AXES.items()}
    return _matlab(path, dataset), _MATLAB_AXES


def _numpy(path: Path, dataset: str) -> Shaped[np.ndarray, "..."]:
    loaded: Any = reading(str(path), lambda: np.load(path, allow_pickle=False))
    if isinstance(loaded, np.ndarray):
        if dataset:
            raise InputError(f"{path}: holds one array, there is no {dataset} inside")
        return loaded
    with loaded:
        held = reading(str(path), lambda: {name: loaded[name] for name in loaded.files})
    images = {name: f"{name} {array.shape} {array.dtype}" for name, array in held.items()}
    if not dataset and len(images) > 1:
        images = {name: text for name, text in images.items() if held[name].ndim > 2} or images
    return held[_pick(path, dataset, images)]


def _matlab(path: Path, dataset: str) -> Shaped[np.ndarray, "..."]:
    from scipy.io import loadmat, whosmat  # type: ignore[attr-defined]

    held = reading(str(path), lambda: whosmat(path))  # type: ignore[no-untyped-call]
    listed = {name: f"{name} {shape} {kind}" for name, shape, kind in held}
    if not dataset:
        numbers = [name for name, shape, kind in held if len(shape) > 2 and kind not in ("cell", "struct", "char")]
        listed = {name: listed[name] for name in numbers} or listed
    name = _pick(path, dataset, listed)
    array = reading(str(path), lambda: loadmat(path, variable_names=[name])[name])  # type: ignore[no-untyped-call]
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}:{name}: is {type(array).__name__}, wanted an array of numbers")
    return array


def _hdf5_arrays(path: Path) -> dict[str, str]:
    """Datasets of three axes or more by name, as text."""
    found: dict[str, str] = {}

    def note(name: str, thing: Any) -> None:
        if hasattr(thing, "dtype") and thing.ndim > 2 and not name.startswith("#"):
            found[name] = f"{name} {thing.shape} {thing.dtype}"

    def look() -> None:
        with hdf5_file(path) as file:
            file.visititems(note)

    reading(str(path), look)
    return found


def _hdf5_name(path: Path, dataset: str) -> tuple[str, bool]:
    """The dataset that is meant, and whether it is k-space."""
    listed = _hdf5_arrays(path)
    with hdf5_file(path) as file:
        raw = {name for name in listed if file[name].dtype.kind == "c"}
    if not dataset and len(raw) == 1:
        return next(iter(raw)), True
    name = _pick(path, dataset, listed)
    return name, name in raw


def _hdf5(path: Path, name: str) -> Shaped[np.ndarray, "..."]:
    def load() -> Shaped[np.ndarray, "..."]:
        with hdf5_file(path) as file:
            held = file[name]
            if held.is_virtual or held.external:
                raise InputError(f"{path}: {name} keeps its values in other files; copy them into one first")
            return np.asarray(held[()])

    array = reading(str(path), load)
    if array.dtype.names == ("real", "imag"):
        # MATLAB's complex numbers
        array = array["real"] + 1j * array["imag"]
    return array


def _ismrmrd(path: Path, group: str) -> Volumes:
    """Images of ISMRMRD: slices, if there are several, become z."""

    def load() -> tuple[int, int]:
        with hdf5_file(path) as file:
            counters = file[group]["data"].fields("head")[()]["idx"]
            return len(np.unique(counters["slice"])), len(np.unique(counters["average"]))

    slices, averages = reading(str(path), load)
    if slices > 1 and averages > 1:
        raise InputError(f"{path}: holds {averages} averages of {slices} slices; average them first")
    return _reconstructed(path, IsmrmrdFile(path, group).read(), slices)


def _reconstructed(path: Path, scan: Scan, slices: int) -> Volumes:
    """Magnitude images of k-space.

    Args:
        slices: of each image; images of one slice after another then are one volume.
    """
    values = _arranged(scan.values, "nc" + scan.axes)
    if values.shape[0] % slices or (slices > 1 and values.shape[2] > 1):
        raise InputError(f"{path}: its {values.shape[0]} images of {slices} slices are no series of whole volumes")
    volumes = tuple(_combined(kspace) for kspace in values)
    if slices > 1:
        volumes = tuple(np.concatenate(volumes[n : n + slices]) for n in range(0, len(volumes), slices))
    sizes = dict(zip(scan.axes, scan.spacing_mm or (), strict=False))
    spacing = (sizes.get("z", 1.0), sizes.get("y", 1.0), sizes.get("x", 1.0)) if scan.spacing_mm else None
    told = f"{path}: images were made from its k-space, coils combined by the root of the sum of squares"
    return _unplaced(volumes, spacing, (told, *(f"{path}: {line}" for line in scan.assumed)))


def _from_kspace(name: str, array: Shaped[np.ndarray, "n c z y x"], notes: list[str]) -> Volumes:
    if array.dtype.kind != "c":
        raise InputError(f"{name}: k-space must be complex, got {array.dtype}")
    if not np.isfinite(array).all():
        raise InputError(f"{name}: NaN or infinity in k-space; mend it first")
    notes.append(f"{name}: images were made from k-space, coils combined by the root of the sum of squares")
    return _unplaced(tuple(_combined(kspace) for kspace in array), None, tuple(notes))


def _combined(kspace: Complex[np.ndarray, "c z y x"]) -> Float[np.ndarray, "z y x"]:
    """Root of the sum of squares of the coils; an axis of one sample stays."""
    from qsim.kspace.fourier import magnitude, to_image

    held = kspace.astype(np.complex64 if kspace.dtype.itemsize == 8 else np.complex128)
    coils = magnitude(to_image(torch.from_numpy(np.ascontiguousarray(held)), (-3, -2, -1))).numpy()
    # one coil is its own magnitude, to the bit
    return coils[0] if len(coils) == 1 else np.sqrt((coils**2).sum(axis=0))
