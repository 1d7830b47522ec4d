"""NumPy and HDF5 arrays in and out: k-space, and complex or magnitude images of NumPy.

K-space is centred, k = 0 at sample N // 2 of every axis (`qsim.kspace.fourier`), as fastMRI and ISMRMRD keep it. The
axes of an array are named by letters: n images (or slices), c coils, z, y, x. Without them an array of two, three, four
axes is yx, zyx, nzyx; a fastMRI file is known by its header and is ncyx (slices, coils) or nyx.
"""

import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Complex, Inexact, Shaped

from phantoms.files.images import (
    LETTERS,
    NIFTI,
    ZERO_PHASE,
    Layout,
    NiftiFile,
    Scan,
    ScanFile,
    as_complex,
    check_finite,
    layout_of,
    reading,
)
from phantoms.files.ismrmrd import IsmrmrdFile, hdf5_file, ismrmrd_groups
from qsim.errors import InputError

NUMPY, HDF5 = (".npy", ".npz"), (".h5", ".hdf5")
_BY_NUMBER = {2: "yx", 3: "zyx", 4: "nzyx"}
# a measured sample is 0 by chance now and then; more zeros than this were not measured [share]
_CHANCE_ZEROS = 0.01
Domain = Literal["image", "kspace"]


def suffix_of(path: Path) -> str:
    """The suffix that says the format; `.nii.gz` in full."""
    return ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix.lower()


def open_scan(
    image: str, *, kspace: bool = False, axes: str | None = None, phase: Path | None = None, signed: bool = False
) -> ScanFile:
    """The file that a command names, by its suffix.

    Args:
        image: path; `FILE.h5:dataset` and `FILE.npz:array` name what is meant inside.
        kspace: a NumPy file holds k-space; HDF5 always does, NIfTI never.
        axes: letters of the array's axes, for NumPy and HDF5.
        phase: NIfTI of the phase of a NIfTI magnitude.
        signed: real values may be negative.
    Raises: InputError if there is no such file or format, or an option does not go with it.
    """
    path, inside = _split(image)
    suffix = suffix_of(path)
    if suffix not in (*NIFTI, *NUMPY, *HDF5):
        known = ", ".join((*NIFTI, *NUMPY, *HDF5))
        raise InputError(f"{path}: unknown suffix {suffix or '(none)'!r}, wanted one of {known}")
    if not path.is_file():
        raise InputError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    if axes is not None:
        _check_letters(axes)
    if phase is not None and suffix not in NIFTI:
        raise InputError(f"--phase: goes with a NIfTI magnitude, {path} is none")
    if suffix in NIFTI:
        for option, given in (("--kspace", kspace), ("--axes", axes is not None)):
            if given:
                raise InputError(f"{option}: does not go with NIfTI, which holds images of known axes: {path}")
        if inside:
            raise InputError(f"{path}: NIfTI holds one image, there is no {inside} inside")
        if phase is not None and not (phase.is_file() and suffix_of(phase) in NIFTI):
            raise InputError(f"--phase: {phase} is no NIfTI file that exists")
        return NiftiFile(path, phase, signed)
    if suffix in NUMPY:
        return NumpyFile(path, inside, axes, "kspace" if kspace else "image", signed)
    groups = reading(str(path), lambda: ismrmrd_groups(path))
    if inside in groups or (not inside and len(groups) == 1):
        if axes is not None:
            raise InputError(f"--axes: does not go with ISMRMRD, whose lines say where they belong: {path}")
        return IsmrmrdFile(path, inside or groups[0])
    return Hdf5File(path, inside, axes)


def _split(image: str) -> tuple[Path, str]:
    """Path, and what is named inside of it."""
    head, colon, tail = image.rpartition(":")
    if colon and head.lower().endswith((".h5", ".hdf5", ".npz")):
        return Path(head), tail.strip("/")
    return Path(image), ""


def _check_letters(axes: str) -> None:
    if not set(axes) <= set(LETTERS) or len(set(axes)) < len(axes) or not {"y", "x"} <= set(axes):
        raise InputError(f"--axes: got {axes!r}, wanted letters of n c z y x, each once, y and x among them")


def _layout(name: str, shape: Sequence[int], axes: str | None) -> tuple[Layout, str]:
    """The layout, and a sentence about it if it was not given."""
    extent = tuple(int(size) for size in shape)
    letters = axes or _BY_NUMBER.get(len(extent))
    count = "1 axis" if len(extent) == 1 else f"{len(extent)} axes"
    if letters is None:
        raise InputError(
            f"{name}: its array of shape {extent} has {count}; name them with --axes, such as ncyx for slices, "
            "coils, y, x"
        )
    if len(letters) != len(extent):
        raise InputError(f"{name}: --axes {letters} names {len(letters)} axes, its array of shape {extent} has {count}")
    told = f"the axes of shape {extent} are {' '.join(letters)}; --axes says otherwise"
    return layout_of(name, extent, letters), "" if axes or len(extent) == 2 else told


@dataclass(frozen=True, slots=True)
class NumpyFile:
    """An array in .npy or .npz.

    Attributes:
        name: of the array in .npz; may be left out if there is one.
        axes: letters of its axes.
        domain: what it holds.
        signed: real values may be negative.
    """

    path: Path
    name: str
    axes: str | None
    domain: Domain
    signed: bool = False

    @property
    def _zipped(self) -> bool:
        return suffix_of(self.path) == ".npz"

    def _arrays(self) -> dict[str, Shaped[np.ndarray, "..."]]:
        """All arrays of the file by name."""
        loaded: Any = reading(str(self.path), lambda: np.load(self.path, allow_pickle=False))
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            return reading(str(self.path), lambda: {name: loaded[name] for name in loaded.files})

    def _chosen(self, names: Sequence[str]) -> str:
        if self.name in names:
            return self.name
        if not self.name and len(names) == 1:
            return names[0]
        listed = ", ".join(names) or "none"
        raise InputError(f"{self.path}: name one array as {self.path.name}:NAME; it holds {listed}")

    def _array(self) -> Shaped[np.ndarray, "..."]:
        arrays = self._arrays()
        return arrays[self._chosen(list(arrays))]

    def layout(self) -> Layout:
        """From the letters, or the number of axes."""
        return _layout(str(self.path), self._array().shape, self.axes)[0]

    def read(self) -> Scan:
        name, array = str(self.path), self._array()
        layout, told = _layout(name, array.shape, self.axes)
        if self.domain == "kspace":
            return _kspace(name, array, layout, told)
        values, real = as_complex(name, array, self.signed)
        phase = "the sign is taken as a phase of 0 or pi" if self.signed else ZERO_PHASE
        assumed = tuple(line for line in (told, phase if real else "") if line)
        return Scan(layout.arranged(values), "image", layout.space, real=real, assumed=assumed)

    def write(self, values: Inexact[np.ndarray, "n c *space"], file: Path) -> None:
        if not self._zipped:
            with file.open("wb") as stream:
                np.save(stream, self.layout().restored(values))
            return
        arrays = self._arrays()
        arrays[self._chosen(list(arrays))] = self.layout().restored(values)
        # members without a time of day: the same arrays are the same bytes
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in arrays.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)


def _kspace(name: str, array: Shaped[np.ndarray, "..."], layout: Layout, told: str) -> Scan:
    """Measured k-space; what is 0 in all coils of all images was not measured, if it is more than chance.

    Raises: InputError naming the file if it is real or not finite.
    """
    if array.dtype.kind != "c" or array.dtype.itemsize > 16:
        raise InputError(f"{name}: k-space must be complex64 or complex128, got {array.dtype}")
    check_finite(name, array, "samples")
    # big-endian files come in the order of this machine
    values = layout.arranged(array.astype(np.complex64 if array.dtype.itemsize == 8 else np.complex128))
    measured = (values != 0).any(axis=1, keepdims=True)
    zeros = int(measured.size - measured.sum())
    scan = Scan(values, "kspace", layout.space, assumed=(told,) if told else ())
    if zeros == measured.size:
        raise InputError(f"{name}: every sample of k-space is 0")
    return scan if zeros <= _CHANCE_ZEROS * measured.size else with_gaps(scan, measured)


def with_gaps(scan: Scan, measured: Bool[np.ndarray, "n 1 *space"]) -> Scan:
    """A scan some of whose samples were not measured."""
    zeros = int(measured.size - measured.sum())
    told = f"{zeros} of {measured.size} samples of k-space were not measured (0 in every coil): they stay 0"
    return replace(scan, sampled=measured, assumed=(*scan.assumed, told))


@dataclass(frozen=True, slots=True)
class Hdf5File:
    """Complex k-space in a dataset of an HDF5 file.

    Attributes:
        dataset: its name; may be left out if one dataset is complex.
        axes: letters of its axes.
    """

    path: Path
    dataset: str
    axes: str | None

    def _name(self) -> str:
        """Name of the dataset, after a check that it lies in this file.

        Raises: InputError naming the file, and what it holds instead.
        """
        found: dict[str, str] = {}

        def note(name: str, thing: Any) -> None:
            if hasattr(thing, "dtype"):
                found[name] = f"{name} {thing.shape} {thing.dtype}"

        def look() -> str:
            with hdf5_file(self.path) as file:
                file.visititems(note)
                kspace = [name for name in found if file[name].dtype.kind == "c"]
                name = self.dataset or (kspace[0] if len(kspace) == 1 else "")
                if name not in found:
                    listed = "; ".join(found.values()) or "no dataset"
                    raise InputError(f"{self.path}: name a dataset as {self.path.name}:NAME; it holds {listed}"[:400])
                chosen = file[name]
                if chosen.is_virtual or chosen.external:
                    raise InputError(f"{self.path}: {name} keeps its values in other files; copy them into one first")
            return name

        return str(reading(str(self.path), look))

    def _fastmri(self, name: str) -> str | None:
        """Letters of a fastMRI file."""
        with hdf5_file(self.path) as file:
            known = name == "kspace" and "ismrmrd_header" in file
            return {3: "nyx", 4: "ncyx"}.get(file[name].ndim) if known else None

    def _placed(self, shape: tuple[int, ...], name: str) -> tuple[Layout, str]:
        known = None if self.axes else self._fastmri(name)
        layout, told = _layout(str(self.path), shape, self.axes or known)
        return layout, f"the axes are those of fastMRI: {' '.join(known)}" if known else told

    def layout(self) -> Layout:
        """From the letters, fastMRI's header, or the number of axes."""
        name = self._name()
        with hdf5_file(self.path) as file:
            return self._placed(file[name].shape, name)[0]

    def read(self) -> Scan:
        name = self._name()

        def load() -> Shaped[np.ndarray, "..."]:
            with hdf5_file(self.path) as file:
                return np.asarray(file[name][()])

        array = reading(str(self.path), load)
        if array.dtype.kind in "fiu":
            raise InputError(
                f"{self.path}:{name}: k-space must be complex64 or complex128, got {array.dtype}; images in HDF5 are "
                "not read, save them as NumPy or NIfTI"
            )
        layout, told = self._placed(array.shape, name)
        return _kspace(f"{self.path}:{name}", array, layout, told)

    def write(self, values: Complex[np.ndarray, "n c *space"], file: Path) -> None:
        """A copy of this file with other values in the dataset; all else stays as it is."""
        name, array = self._name(), self.layout().restored(values)
        shutil.copyfile(self.path, file)
        with hdf5_file(file, "r+") as opened:
            opened[name][...] = array
