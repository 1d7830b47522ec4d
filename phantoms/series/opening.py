"""`open_series`: a measured series from whatever files hold it.

One NIfTI file of four axes, a group of BIDS files (any one of them, a folder or a pattern), or an array of NumPy,
MATLAB or HDF5. Images stay in the order of the file, those of a group in the order of their numbers; times stay in the
order of the images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from glob import has_magic
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from phantoms.files.images import NIFTI
from phantoms.files.raw import suffix_of
from phantoms.series import bids
from phantoms.series.arrays import ARRAYS, read_arrays, sized, split
from phantoms.series.base import Series
from phantoms.series.nifti import Volumes, check_place, check_values, read_volumes, shape_of
from phantoms.series.sidecars import SUFFIXES, timing
from phantoms.series.transmit import read_transmit
from qsim.errors import InputError

_DICOM = (".dcm", ".ima", ".dicom")


@dataclass(frozen=True, slots=True)
class _Found:
    """The files of a series, before they are read.

    Attributes:
        files: one, or one for each image.
        name, suffix: of the series.
        grouped: whether every file is one image.
        notes: about files that were left out.
    """

    files: tuple[Path, ...]
    name: str
    suffix: str
    grouped: bool
    notes: tuple[str, ...] = ()


def open_series(
    path: Path,
    *,
    times: Sequence[float] | None = None,
    key: str | None = None,
    b1: Path | None = None,
    dataset: str | None = None,
    axes: str | None = None,
    voxel_mm: Sequence[float] | None = None,
    magnitude: bool = False,
    kspace: bool = False,
) -> Series:
    """A measured series.

    Args:
        path: NIfTI file, NumPy, MATLAB or HDF5 file (`FILE.mat:variable`), folder, or pattern with * of NIfTI files.
        times: of the images, instead of those of the sidecar [s; degrees with the key FlipAngle].
        key: of the sidecar that holds the times; None: found by the name of the files and by what differs.
        b1: NIfTI map of the transmit field [1, or percent]; None: the TB1map beside a BIDS series of flip angles.
        dataset: name of the array inside of a MATLAB, HDF5 or .npz file.
        axes: letters (n c z y x) of the array of such a file or of .npy.
        voxel_mm: z, y, x of an array whose file does not say it, instead of VoxelSize of its JSON file [mm].
        magnitude: take the modulus of complex images.
        kspace: an array of NumPy or MATLAB is k-space, of which images are made; one of HDF5 always is if complex.
    Raises: InputError naming the file and the field.
    """
    inner, inside = split(path)
    if inside and dataset and inside != dataset:
        raise InputError(f"{path}: names {inside} inside, and {dataset} is asked for; name one")
    found = _find(inner if inside else path)
    arrays = suffix_of(found.files[0]) in ARRAYS
    for option, given in (("--axes", axes is not None), ("--kspace", kspace), ("--dataset", bool(dataset or inside))):
        if given and not arrays:
            raise InputError(f"{option}: does not go with NIfTI, which holds images of known axes: {found.files[0]}")
    if arrays:
        volumes = read_arrays(found.files[0], dataset or inside, axes, magnitude=magnitude, kspace=kspace)
    else:
        volumes = _group(found.files, magnitude) if found.grouped else _plain(found.files[0], magnitude)
    notes = [*found.notes, *check_values(str(found.files[0].parent / found.name), volumes.volumes)]
    if found.grouped:
        content, where = bids.combined(found.files, needed=times is None)
    else:
        content, used = bids.inherited(found.files[0])
        where = str(used[-1] if used else found.files[0])
        if not used and times is None:
            raise bids.no_sidecar(found.files[0])
    volumes = sized(found.files[0], volumes, content, voxel_mm)
    notes = [*found.notes, *volumes.notes, *notes[len(found.notes) :]]
    told = timing(where, content, len(volumes.volumes), suffix=found.suffix, key=key, times=times)
    if b1 is None and told.key == "FlipAngle":
        b1 = bids.transmit_field(found.files[0])
    field = None
    notes.extend(told.notes)
    if b1 is not None:
        field, said = read_transmit(b1, volumes)
        notes.extend((f"{b1}: is the map of the transmit field", *said))
    return Series(
        found.name,
        found.files,
        volumes.volumes,
        told.key,
        told.times,
        told.protocol,
        found.suffix,
        volumes.affine,
        volumes.spacing_mm,
        field,
        tuple(notes),
        volumes.header,
        told.te_prep,
    )


def _find(path: Path) -> _Found:
    """The files that a path means.

    Raises: InputError if there are none, or those of several series.
    """
    if path.is_dir():
        return _in_folder(path)
    if not path.exists() and has_magic(str(path)):
        files = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        return _among([file for file in files if file.name.lower().endswith(NIFTI)], str(path), strict=True)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    suffix = suffix_of(path)
    if suffix in _DICOM or _is_dicom(path):
        raise _dicom(path, path.parent)
    if suffix not in (*NIFTI, *ARRAYS):
        known = ", ".join((*NIFTI, *ARRAYS))
        raise InputError(f"{path}: unknown suffix {suffix or '(none)'!r}, wanted one of {known}")
    if suffix in NIFTI:
        bids.check_part(path)
        if bids.member_of(path) is not None and shape_of(path)[3:] in ((), (1,)):
            return _as_group(bids.group_of(path))
    return _Found((path,), _title(path), _suffix(path), False)


def _in_folder(folder: Path) -> _Found:
    files = bids.images_in(folder)
    if not files and (folder / "anat").is_dir():
        return _in_folder(folder / "anat")
    if not files:
        for file in sorted(folder.iterdir()):
            if file.is_file() and (file.suffix.lower() in _DICOM or _is_dicom(file)):
                raise _dicom(file, folder)
        raise InputError(f"{folder}: holds no NIfTI file; name the file of the series")
    return _among(files, str(folder), strict=False)


def _among(files: Sequence[Path], where: str, strict: bool) -> _Found:
    """The one series among files.

    Args:
        strict: files that belong to no series are an error, not other images of the folder.
    """
    if not files:
        raise InputError(f"{where}: no NIfTI file matches")
    series: dict[str, list[Path]] = {}
    notes: list[str] = []
    for title, members in bids.groups(files).items():
        part = _part(members[0])
        if part in (None, "mag", "real"):
            series[title] = members
        else:
            notes.append(f"{where}: {len(members)} files of part-{part} were left out")
    if len(series) > 1:
        listed = ", ".join(Path(title).name for title in series)
        raise InputError(f"{where}: holds {len(series)} series ({listed}); name a file of the one that is meant")
    if series:
        members = next(iter(series.values()))
        others = [file for file in files if bids.member_of(file) is None]
        if strict and others:
            raise InputError(f"{others[0]}: matches, but is no image of the series of {members[0].name}")
        found = _as_group(members)
        return replace(found, notes=(*found.notes, *notes))
    if len(files) == 1:
        return _find(files[0])
    if not strict:
        listed = ", ".join(file.name for file in files[:4])
        raise InputError(f"{where}: holds {len(files)} NIfTI files ({listed}); name the one that is the series")
    told = f"{where}: the {len(files)} files are taken as one series, in the order of their names"
    return _Found(tuple(files), _title(files[0]), _suffix(files[0]), True, (told,))


def _part(file: Path) -> str | None:
    name = bids.name_of(file)
    return None if name is None else name.entities.get("part")


def _as_group(files: Sequence[Path]) -> _Found:
    name = bids.member_of(files[0])
    assert name is not None
    return _Found(tuple(files), name.title() or name.suffix, name.suffix, True, bids.gaps(files))


def _title(path: Path) -> str:
    """Stem without a suffix that says what kind of series it is."""
    stem = bids.stem_of(path)
    suffix = _suffix(path)
    return stem.removesuffix(suffix).rstrip("_") or stem


def _suffix(path: Path) -> str:
    last = bids.stem_of(path).rpartition("_")[2]
    return last if last in SUFFIXES else ""


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _dicom(path: Path, folder: Path) -> InputError:
    return InputError(
        f"{path}: DICOM is not read; turn it into NIfTI and JSON first: dcm2niix -b y -z y -o OUT {folder}"
    )


def _plain(path: Path, magnitude: bool) -> Volumes:
    """The images of one file."""
    shape = shape_of(path)
    if len(shape) != 4:
        raise InputError(
            f"{path}: has shape {shape}, wanted (x, y, z, images); z is 1 for a slice, and images that are files of "
            "their own are named by a pattern or as BIDS names them"
        )
    return read_volumes(path, magnitude=magnitude)


def _group(files: Sequence[Path], magnitude: bool) -> Volumes:
    """One image of each file.

    Raises: InputError naming the file that is not one image, or lies elsewhere.
    """
    found: Volumes | None = None
    volumes: list[Shaped[np.ndarray, "z y x"]] = []
    notes: list[str] = []
    for file in files:
        held = read_volumes(file, magnitude=magnitude)
        if len(held.volumes) != 1:
            raise InputError(f"{file}: holds {len(held.volumes)} images, each file of a group holds one")
        found = held if found is None else found
        check_place(file, held.volumes[0].shape, held.affine, files[0], found)
        volumes.append(held.volumes[0])
        notes.extend(held.notes)
    assert found is not None
    return replace(found, volumes=tuple(volumes), notes=tuple(notes))
