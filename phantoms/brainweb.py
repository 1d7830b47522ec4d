"""Label models on disk (BrainWeb and the like) as fuzzy tissue fractions."""

import gzip
import zlib
from collections.abc import Mapping
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Shaped, UInt8, UInt16

from phantoms.base import (
    TISSUE_ORDER,
    Slab,
    Split,
    VolumePhantom,
    check_slice_axis,
    quantise,
    say_slabs,
    slice_first,
    split_slabs,
    tissue_extent,
)
from phantoms.closing import closed_brain
from qsim.errors import InputError
from qsim.values import value

BACKGROUND = "background"
# BrainWeb's own simulator gives glial matter the values of grey matter (T1 833 ms, T2 83 ms at 1.5 T). Connective
# tissue (500 ms, 70 ms there) is fat here: of the soft tissues of the head that our tables name it is nearest in T1 and
# T2, and KomaMRI calls it fat2.
DISCRETE = {1: "csf", 2: "gm", 3: "wm", 4: "fat", 5: "muscle", 6: "skin", 7: "skull", 8: "gm", 9: "fat"}
VESSEL_GM_WM = {1: "vessel", 2: "gm", 3: "wm"}
SCHEMES: dict[str, dict[int, str]] = {"discrete": DISCRETE, "vessel-gm-wm": VESSEL_GM_WM}
_EXTENSIONS = (".nii", ".nii.gz")
_Key = tuple[tuple[str, int], ...]


@value
class BrainWeb:
    """Integer label models in NIfTI files, one subject each.

    Attributes:
        path: a file, a folder (every .nii and .nii.gz in it, by name), a pattern with * (by name), or a list of files.
        labels: what the numbers mean; 0 is background.
            `discrete`: BrainWeb's "normal brain": 1 csf, 2 gm, 3 wm, 4 fat, 5 muscle (with skin), 6 skin, 7 skull,
            8 glial matter, taken as gm, 9 connective tissue, taken as fat.
            `vessel-gm-wm`: 1 vessel, 2 gm, 3 wm, as kept of BrainWeb's 20 brains. CSF is not in these files; voxels
            of none of the classes become csf inside gm and wm closed by 6 mm (sulci, fissures) with its holes filled
            (ventricles). That is less than the true CSF: what lies outside the hull of the gyri is missing.
            A mapping {number: tissue, or background} for any other model.
        block: averages block^3 voxels into one; 2 turns 0.5 mm into 1 mm, with fractions in steps of 1/8.
        test_subjects: with several files, the last so many are the test split, the others train.
        test_share, gap: with one file, it is split into slabs as `MNI` is: the share of the tissue's extent along the
            slice axis that the central test slab takes [1], and slices left out on either side.
    Source: Cocosco et al. 1997; Collins et al. 1998, doi:10.1109/42.712135; Aubert-Broche et al. 2006,
        doi:10.1016/j.neuroimage.2006.03.052.
    """

    kind: Literal["brainweb"] = "brainweb"
    path: str | tuple[str, ...]
    labels: Literal["discrete", "vessel-gm-wm"] | Mapping[int, str] = "discrete"
    block: int = 1
    test_subjects: int = 1
    test_share: float = 0.2
    gap: int = 5

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path is empty; name a file, a folder or a list of files")
        if isinstance(self.labels, str):
            if self.labels not in SCHEMES:
                raise ValueError(f"labels: no scheme {self.labels!r}; known are {', '.join(SCHEMES)}, or a mapping")
        elif not any(tissue != BACKGROUND for tissue in self.labels.values()):
            raise ValueError("labels names no tissue; give a mapping such as {1: csf, 2: gm, 3: wm}")
        elif any(not 0 <= label < 2**16 for label in self.labels) or self.labels.get(0, BACKGROUND) != BACKGROUND:
            raise ValueError(f"labels must be numbers from 1 to 65535 (0 is background), got {sorted(self.labels)}")
        if self.block < 1:
            raise ValueError(f"block must be at least 1, got {self.block}")
        if self.test_subjects < 1:
            raise ValueError(f"test_subjects must be at least 1, got {self.test_subjects}")
        if not 0 < self.test_share < 1:
            raise ValueError(f"test_share must lie between 0 and 1, got {self.test_share}")
        if self.gap < 0:
            raise ValueError(f"gap must be at least 0 slices, got {self.gap}")

    @property
    def mapping(self) -> dict[int, str]:
        """Tissue of each label."""
        return dict(SCHEMES[self.labels] if isinstance(self.labels, str) else self.labels)

    @property
    def tissues(self) -> tuple[str, ...]:
        """Names of the tissues: those of the brain tables in their order, then others as the mapping names them."""
        named = {tissue for tissue in self.mapping.values() if tissue != BACKGROUND}
        if self.labels == "vessel-gm-wm":
            named.add("csf")
        others = (tissue for tissue in self.mapping.values() if tissue in named and tissue not in TISSUE_ORDER)
        return (*(tissue for tissue in TISSUE_ORDER if tissue in named), *dict.fromkeys(others))

    def files(self) -> tuple[Path, ...]:
        """Every subject's file, train before test.

        Raises: InputError naming what does not exist.
        """
        paths = [self.path] if isinstance(self.path, str) else list(self.path)
        files: list[Path] = []
        for name in paths:
            path = Path(name).expanduser()
            if path.is_dir():
                found = sorted(f for f in path.iterdir() if f.name.endswith(_EXTENSIONS))
            elif "*" in path.name:
                found = sorted(f for f in path.parent.glob(path.name) if f.name.endswith(_EXTENSIONS))
            elif path.is_file():
                found = [path]
            else:
                raise InputError(f"phantom.path: {name} does not exist; name a NIfTI label file or a folder of them")
            if not found:
                raise InputError(f"phantom.path: {name} holds no .nii or .nii.gz file")
            files += found
        if len(set(files)) < len(files):
            raise InputError(f"phantom.path: {_twice(files)} is named twice, so train and test could share it")
        return tuple(files)

    def describe(self, slice_axis: int) -> str:
        """What this is and how train and test are kept apart, for reports."""
        files = self.files()
        scheme = self.labels if isinstance(self.labels, str) else "custom"
        what = f"label models ({scheme} labels), {self.block}^3 voxels averaged into one"
        if len(files) == 1:
            return f"{what}; {files[0].name}, {say_slabs(self.slabs(slice_axis), slice_axis, self.gap)}"
        n_train = self._n_train(files)
        train, test = (", ".join(f.name for f in part) for part in (files[:n_train], files[n_train:]))
        return f"{what}; train subjects {train}; test subjects {test}"

    def slabs(self, slice_axis: int) -> dict[Split, tuple[Slab, ...]]:
        """First slice and the one after the last of every slab of a single file, by split.

        Raises: InputError if there are several files: these are split by subject.
        """
        check_slice_axis(slice_axis, 3)
        files = self.files()
        if len(files) > 1:
            raise InputError("phantom.path: several files are split by subject, not into slabs")
        volume = self._read(files[0], slice_axis).volume
        extent = tissue_extent(volume, slice_axis)
        return split_slabs(extent, volume.shape[1 + slice_axis], float(self.test_share), self.gap)

    def load(self, split: Split, slice_axis: int) -> VolumePhantom:
        """Read one split; the files of the other one are not opened.

        Raises: InputError naming the file that is missing, unreadable or holds labels the scheme does not know.
        """
        check_slice_axis(slice_axis, 3)
        files = self.files()
        if len(files) == 1:
            ids: tuple[int, ...] = (0,)
            slabs: tuple[tuple[Slab, ...], ...] = (self.slabs(slice_axis)[split],)
            read = [self._read(files[0], slice_axis)]
        else:
            n_train = self._n_train(files)
            ids = tuple(range(n_train)) if split == "train" else tuple(range(n_train, len(files)))
            read = [self._read(files[i], slice_axis) for i in ids]
            slabs = tuple(((0, subject.volume.shape[1 + slice_axis]),) for subject in read)
        spacing = read[0].spacing_mm
        for i, subject in zip(ids, read, strict=True):
            if not np.allclose(subject.spacing_mm, spacing, rtol=1e-3):
                raise InputError(
                    f"phantom.path: {files[i]} has voxels of {subject.spacing_mm} mm, {files[ids[0]]} of {spacing} mm; "
                    "give files of one voxel size"
                )
        return VolumePhantom(
            tissues=self.tissues,
            spacing_mm=spacing,
            volumes=tuple(subject.volume for subject in read),
            slabs=slabs,
            slice_axis=slice_axis,
            ids=ids,
            description=self.describe(slice_axis),
            affine=read[0].affine,
        )

    def _n_train(self, files: tuple[Path, ...]) -> int:
        if self.test_subjects >= len(files):
            raise InputError(
                f"phantom.test_subjects: {self.test_subjects} of {len(files)} files leaves none to train on; "
                f"ask for at most {len(files) - 1}"
            )
        return len(files) - self.test_subjects

    def _read(self, file: Path, slice_axis: int) -> "_Subject":
        mapping = tuple((tissue, label) for label, tissue in sorted(self.mapping.items()))
        inside = self.labels == "vessel-gm-wm"
        return _subject(file, file.stat().st_mtime_ns, mapping, self.tissues, inside, self.block, slice_axis)


class _Subject:
    """One file as fractions."""

    __slots__ = ("affine", "spacing_mm", "volume")

    def __init__(self, volume: np.ndarray, spacing_mm: tuple[float, ...], affine: np.ndarray) -> None:
        self.volume = volume
        self.spacing_mm = spacing_mm
        self.affine = affine


# two: train and test of one file share it; folders are read once per split, and a phantom holds its own volumes
@lru_cache(maxsize=2)
def _subject(
    file: Path, _mtime: int, mapping: _Key, tissues: tuple[str, ...], csf_inside: bool, block: int, slice_axis: int
) -> _Subject:
    labels, spacing, affine = read_labels(file)
    numbers = {label: tissue for tissue, label in mapping}
    lookup = np.zeros(2**16 if labels.dtype == np.uint16 else 2**8, dtype=np.uint8)
    for label, tissue in numbers.items():
        if tissue != BACKGROUND and label < lookup.size:
            lookup[label] = 1 + tissues.index(tissue)
    unknown = sorted(set(_present(labels)) - set(numbers) - {0})
    if unknown:
        raise InputError(
            f"phantom.path: {file} holds the labels {', '.join(map(str, unknown[:8]))}"
            f"{' ...' if len(unknown) > 8 else ''}, which phantom.labels does not name (it names "
            f"{', '.join(f'{label} {tissue}' for label, tissue in numbers.items())}); choose another scheme or give a "
            "mapping, with `background` for what is to be left out"
        )
    index = lookup[labels]
    del labels
    if not index.any():
        raise InputError(f"phantom.path: {file} holds no tissue, only background")
    if csf_inside:
        # vessels do not count: sinuses and stray ones outside the brain would drag the hull with them
        solid = (index == 1 + tissues.index("gm")) | (index == 1 + tissues.index("wm"))
        index[closed_brain(solid, spacing) & (index == 0)] = 1 + tissues.index("csf")
    return _Subject(
        volume=slice_first(block_fractions(index, len(tissues), block), slice_axis),
        spacing_mm=tuple(s * block for s in spacing),
        affine=affine @ np.diag([block, block, block, 1.0]) + _block_centre(affine, block),
    )


def _block_centre(affine: np.ndarray, block: int) -> np.ndarray:
    """The centre of the first block lies (block - 1) / 2 voxels from the centre of the first voxel."""
    shift = np.zeros((4, 4))
    shift[:3, 3] = affine[:3, :3].sum(axis=1) * (block - 1) / 2
    return shift


def read_labels(
    file: Path,
) -> tuple[UInt8[np.ndarray, "x y z"] | UInt16[np.ndarray, "x y z"], tuple[float, ...], np.ndarray]:
    """Read an integer label model.

    Returns:
        labels; voxel size [mm]; affine.
    Raises: InputError naming the file.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import SpatialImage

    try:
        if file.suffix == ".gz":
            _check_gzip(file)
        image = nibabel.load(file)
        if not isinstance(image, SpatialImage):
            raise InputError(f"phantom.path: {file} is no image but {type(image).__name__}; give a NIfTI label model")
        data = np.asarray(image.dataobj)
    except InputError:
        raise
    except (OSError, EOFError, zlib.error, ValueError, ImageFileError) as error:
        raise InputError(
            f"phantom.path: {file} cannot be read as NIfTI ({error or type(error).__name__}); it may be truncated, get "
            "it again"
        ) from error
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise InputError(f"phantom.path: {file} has {data.ndim} dimensions, wanted a 3D label model")
    low, high = data.min(), data.max()
    # `not`: NaN fails every comparison
    if not (low >= 0 and high < 2**16):
        raise InputError(f"phantom.path: {file} holds values from {low} to {high}, wanted labels from 0 to 65535")
    labels = data.astype(np.uint8 if high < 2**8 else np.uint16, copy=False)
    if not np.issubdtype(data.dtype, np.integer) and not np.array_equal(labels, data):
        raise InputError(f"phantom.path: {file} holds values that are not whole numbers, wanted labels")
    return labels, tuple(float(z) for z in image.header.get_zooms()[:3]), np.asarray(image.affine, dtype=float)


def _check_gzip(file: Path) -> None:
    """Read to the end, where the checksum is: nibabel stops before it, and a damaged stream can decode to labels.

    Raises: OSError, EOFError or zlib.error.
    """
    with gzip.open(file) as stream:
        while stream.read(2**20):
            pass


def block_fractions(index: UInt8[np.ndarray, "x y z"], n_tissues: int, block: int) -> Shaped[np.ndarray, "t u v w"]:
    """Share of each tissue in blocks of block^3 voxels, in the steps of `as_fractions`.

    Blocks that stick out at the far end count what is missing as background.

    Args:
        index: 0 for background, 1 + t for tissue t.
    """
    padded = np.pad(index, [(0, -n % block) for n in index.shape]) if block > 1 else index
    per_block = block**3
    # multiples of 1/128 hold the shares of blocks of 1, 2 and 4 exactly
    exact = 2**7 % per_block == 0
    shape = tuple(n // block for n in padded.shape)
    counts = np.zeros((n_tissues, *shape), dtype=np.uint8 if exact else np.uint16)
    for offset in product(range(block), repeat=3):
        part = padded[offset[0] :: block, offset[1] :: block, offset[2] :: block]
        for t in range(n_tissues):
            counts[t] += part == 1 + t
    if exact:
        counts *= np.uint8(2**7 // per_block)
        return counts
    # slice by slice: the float copy of a whole volume would be the largest array here
    for x in range(shape[0]):
        counts[:, x] = quantise(counts[:, x] / per_block, np.uint16)
    return counts


def _present(labels: Shaped[np.ndarray, "x y z"]) -> list[int]:
    """Labels that occur; counted plane by plane, since `bincount` widens its input to 64 bits."""
    present: Bool[np.ndarray, " l"] = np.zeros(2**16, dtype=bool)
    for plane in labels:
        counts = np.bincount(plane.ravel())
        present[: counts.size] |= counts > 0
    return [int(label) for label in np.flatnonzero(present)]


def _twice(files: list[Path]) -> Path:
    return next(f for i, f in enumerate(files) if f in files[:i])
