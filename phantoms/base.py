"""What a phantom is, and the one implementation of cropping that volumes share."""

from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from qsim.errors import InputError

Split = Literal["train", "test"]
Slab = tuple[int, int]
"""First slice and the one after the last, along the slice axis."""

TISSUE_ORDER = ("csf", "gm", "wm", "fat", "muscle", "skin", "skull", "vessel", "marrow")


@dataclass(frozen=True, slots=True)
class Crop:
    """A piece of anatomy.

    Attributes:
        fractions: share of each tissue in each voxel, in the order of the phantom's `tissues`; the rest up to 1 is
            background [1].
        subject: which of the phantom's subjects it was cut from.
        origin: index of its first voxel in that subject's volume, one per axis of the volume (the slice axis
            included).
    """

    fractions: Float[np.ndarray, "t *space"]
    subject: int
    origin: tuple[int, ...]


@runtime_checkable
class Phantom(Protocol):
    """Anatomy to cut patches from."""

    @property
    def tissues(self) -> tuple[str, ...]:
        """Names of the tissues, as the tissue tables call them."""
        ...

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel size, one per axis of the volume [mm]."""
        ...

    def crop(self, patch: tuple[int, ...], rng: np.random.Generator) -> Crop:
        """Cut a patch at random.

        Args:
            patch: extent in voxels; two numbers for a slice, three for a block.
            rng: the sample's own generator.
        Raises: InputError if the patch is larger than the anatomy.
        """
        ...


@runtime_checkable
class PhantomSpec(Protocol):
    """A phantom as a config names it: values only, nothing read from disk until `load`."""

    @property
    def kind(self) -> str:
        """Name in configs."""
        ...

    def load(self, split: Split, slice_axis: int) -> Phantom:
        """Read or compute the anatomy of one split.

        Args:
            split: train and test hold disjoint subjects, or disjoint slabs of one subject.
            slice_axis: axis of the volume across which 2D patches are cut.
        Raises: InputError naming a missing or unreadable file.
        """
        ...


@dataclass(frozen=True, slots=True)
class VolumePhantom:
    """Anatomy held as whole volumes of tissue fractions; every phantom of this package loads into it.

    Attributes:
        tissues: names of the tissues.
        spacing_mm: voxel size, one per axis of the volume [mm].
        volumes: fractions of each subject, (t, *volume); float, or integers that `scale` turns into fractions.
        slabs: the slices of each subject that belong to this split, along `slice_axis`.
        slice_axis: axis across which 2D patches are cut.
        ids: which subject of the whole phantom (train and test together) each volume is; `Crop.subject` reports it.
        description: what this is and how train and test were kept apart, in one sentence, for reports.
        affine: voxel index to world [mm]; None: scale only.
    """

    tissues: tuple[str, ...]
    spacing_mm: tuple[float, ...]
    volumes: tuple[Shaped[np.ndarray, "t ..."], ...]
    slabs: tuple[tuple[Slab, ...], ...]
    slice_axis: int
    ids: tuple[int, ...]
    description: str = ""
    affine: Float[np.ndarray, "4 4"] | None = None
    # candidates for the centre of a patch: flat indices with the slice axis first, so that a slab is one run of them
    _centres: tuple[tuple[np.ndarray, ...], ...] = field(init=False, repr=False, compare=False)
    _largest: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.volumes:
            raise ValueError("volumes is empty")
        if not len(self.volumes) == len(self.slabs) == len(self.ids):
            raise ValueError(f"{len(self.volumes)} volumes, {len(self.slabs)} slabs and {len(self.ids)} ids")
        axis = self.slice_axis
        centres = tuple(
            tuple(_tissue_indices(volume, axis, slab) for slab in slabs)
            for volume, slabs in zip(self.volumes, self.slabs, strict=True)
        )
        if any(sum(map(len, of_subject)) == 0 for of_subject in centres):
            raise ValueError("a subject has no voxel that is at least half tissue in this split")
        # the largest block that every subject can give
        largest = np.min([volume.shape[1:] for volume in self.volumes], axis=0)
        largest[axis] = min(
            max(stop - start for (start, stop), run in zip(slabs, runs, strict=True) if len(run))
            for slabs, runs in zip(self.slabs, centres, strict=True)
        )
        object.__setattr__(self, "_centres", centres)
        object.__setattr__(self, "_largest", tuple(int(n) for n in largest))

    def crop(self, patch: tuple[int, ...], rng: np.random.Generator) -> Crop:
        """Cut a patch at random.

        The subject is uniform; the voxel at the centre of the patch (index n // 2 of n) is uniform over the subject's
        voxels that are at least half tissue. Where the patch would stick out it is shifted into the volume, or, along
        the slice axis, into the slab of its centre; nothing is padded.

        Args:
            patch: extent in voxels: two numbers for a slice across `slice_axis` (the other axes in their order), as
                many as the volume has axes for a block, wholly inside one slab.
            rng: the sample's own generator.
        Raises: InputError if the patch is larger than the anatomy.
        """
        block = self._block(patch)
        axis = self.slice_axis
        i = int(rng.integers(len(self.volumes)))
        volume = self.volumes[i]
        start, stop, index = self._centre(i, block[axis], rng)

        origin = []
        ndim = len(block)
        for a in [a for a in range(ndim - 1, -1, -1) if a != axis]:
            size = volume.shape[1 + a]
            index, centre = divmod(index, size)
            origin.append(min(max(centre - block[a] // 2, 0), size - block[a]))
        origin.append(min(max(index - block[axis] // 2, start), stop - block[axis]))
        # now last axis first, then the slice axis
        at_axis = origin.pop()
        origin.reverse()
        origin.insert(axis, at_axis)

        window: list[slice | int] = [slice(o, o + n) for o, n in zip(origin, block, strict=True)]
        if len(patch) < ndim:
            window[axis] = at_axis
        fractions = as_fractions(volume[(slice(None), *window)])
        return Crop(fractions=fractions, subject=self.ids[i], origin=tuple(origin))

    def slices(self) -> tuple[tuple[int, int], ...]:
        """Place of the subject in `volumes`, and slice, of every slice of this split that holds tissue; in order."""
        found: list[tuple[int, int]] = []
        for i, (volume, runs) in enumerate(zip(self.volumes, self._centres, strict=True)):
            per_slice = volume[0].size // volume.shape[1 + self.slice_axis]
            found.extend((i, int(at)) for run in runs for at in np.unique(run // per_slice))
        return tuple(found)

    def whole_slice(self, i: int, at: int, patch: tuple[int, ...]) -> Crop:
        """Cut one whole slice.

        Args:
            i: place of the subject in `volumes`.
            at: index along `slice_axis`.
            patch: extent of the slice, as a check.
        Raises: InputError if a slice of this subject is not of that extent.
        """
        volume, axis = self.volumes[i], self.slice_axis
        extent = volume.shape[1 : 1 + axis] + volume.shape[2 + axis :]
        if patch != extent:
            raise InputError(
                f"patch: sampling: slices cuts whole slices, {_times(extent)} voxels in subject {self.ids[i]}; got "
                f"{_times(patch)}"
            )
        origin = [0] * (volume.ndim - 1)
        origin[axis] = at
        return Crop(as_fractions(np.take(volume, at, axis=1 + axis)), self.ids[i], tuple(origin))

    def _block(self, patch: tuple[int, ...]) -> tuple[int, ...]:
        """Extent along every axis of the volume; 1 along the slice axis for a 2D patch."""
        largest = self._largest
        ndim = len(largest)
        if len(patch) == ndim - 1 and ndim == 3:
            block = (*patch[: self.slice_axis], 1, *patch[self.slice_axis :])
        elif len(patch) == ndim:
            block = patch
        else:
            wanted = "two numbers (a slice) or three (a block)" if ndim == 3 else "two numbers"
            raise InputError(f"patch: got {_times(patch)}, wanted {wanted}")
        for n, limit in zip(block, largest, strict=True):
            if n > limit:
                room = largest if len(patch) == ndim else largest[: self.slice_axis] + largest[self.slice_axis + 1 :]
                where = f" inside one slab along axis {self.slice_axis}" if len(patch) == ndim == 3 else ""
                raise InputError(
                    f"patch: {_times(patch)} is larger than the anatomy, {_times(room)} voxels{where}; "
                    "ask for a smaller patch"
                )
            if n < 1:
                raise InputError(f"patch: got {_times(patch)}, every extent must be at least 1")
        return block

    def _centre(self, i: int, depth: int, rng: np.random.Generator) -> tuple[int, int, int]:
        """Slab and flat index of a voxel drawn uniformly from the slabs that are at least `depth` thick."""
        runs = [
            (start, stop, run)
            for (start, stop), run in zip(self.slabs[i], self._centres[i], strict=True)
            if stop - start >= depth
        ]
        k = int(rng.integers(sum([len(run) for _, _, run in runs])))
        for start, stop, run in runs:
            if k < len(run):
                return start, stop, int(run[k])
            k -= len(run)
        raise AssertionError("k is below the total")


@runtime_checkable
class WithRegions(Protocol):
    """A phantom that knows regions of interest, set by its geometry before anything is fitted."""

    @property
    def region_names(self) -> tuple[str, ...]:
        """Names of regions 1, 2, ..."""
        ...

    def regions(self, subject: int) -> UInt8[np.ndarray, "*space"]:
        """Region of every voxel of a subject's volume; 0: none.

        Args:
            subject: as in `Crop`.
        """
        ...


def as_fractions(stored: Shaped[np.ndarray, "t *space"]) -> Float[np.ndarray, "t *space"]:
    """Fractions as float32 [1], a new array. Integers are multiples of 2^-7 (uint8) or 2^-15 (uint16).

    The steps are powers of two, so that a sum of fractions is exact and never rounds above 1.
    """
    fractions = stored.astype(np.float32)
    if stored.dtype == np.uint8:
        fractions *= np.float32(2.0**-7)
    elif stored.dtype == np.uint16:
        fractions *= np.float32(2.0**-15)
    return fractions


def quantise(
    fractions: Float[np.ndarray, "t *space"], dtype: type[np.unsignedinteger]
) -> Shaped[np.ndarray, "t *space"]:
    """Fractions in steps of 2^-7 (uint8) or 2^-15 (uint16); inverse of `as_fractions`.

    Each is rounded to the nearest step; where that lifts the sum above 1, the largest gives way.
    """
    one = 2**7 if dtype is np.uint8 else 2**15
    steps = np.rint(fractions * one).astype(np.int32)
    excess = np.maximum(steps.sum(axis=0) - one, 0)
    over = np.nonzero(excess)
    steps[(steps[(slice(None), *over)].argmax(axis=0), *over)] -= excess[over]
    return steps.astype(dtype)


def slice_first(volume: Shaped[np.ndarray, "t *space"], slice_axis: int) -> Shaped[np.ndarray, "t *space"]:
    """Return the same array, read-only, laid out slice by slice in memory: a 2D crop touches one stretch of it."""
    laid_out = np.ascontiguousarray(np.moveaxis(volume, 1 + slice_axis, 0))
    laid_out.setflags(write=False)
    return np.moveaxis(laid_out, 0, 1 + slice_axis)


def tissue_mask(volume: Shaped[np.ndarray, "t *space"]) -> Shaped[np.ndarray, "*space"]:
    """Where a voxel is at least half tissue: the candidates for the centre of a patch."""
    if volume.dtype == np.uint8:
        return volume.sum(axis=0, dtype=np.uint16) >= 2**6
    if volume.dtype == np.uint16:
        return volume.sum(axis=0, dtype=np.uint32) >= 2**14
    return volume.sum(axis=0) >= 0.5


def tissue_extent(volume: Shaped[np.ndarray, "t *space"], slice_axis: int) -> Slab:
    """First and one after the last slice that hold tissue."""
    mask = tissue_mask(volume)
    slices = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != slice_axis)))
    return int(slices[0]), int(slices[-1]) + 1


def split_slabs(extent: Slab, n_slices: int, test_share: float, gap: int) -> dict[Split, tuple[Slab, ...]]:
    """Split one subject: a central test slab, and train on both sides of it.

    The slab lies symmetrically in the tissue, so that a brain whose halves mirror each other (MNI152) has no test
    slice whose mirror image is a train slice.

    Args:
        extent: slices that hold tissue.
        n_slices: slices of the volume.
        test_share: share of the tissue's extent that the test slab takes [1].
        gap: slices left out on either side of it.
    """
    start, stop = extent
    n_test = max(1, round(test_share * (stop - start)))
    # the same parity as the extent: exactly central
    n_test += (stop - start - n_test) % 2
    first = start + (stop - start - n_test) // 2
    test = (first, first + n_test)
    train = ((0, test[0] - gap), (test[1] + gap, n_slices))
    if train[0][1] <= start or train[1][0] >= stop:
        raise InputError(
            f"phantom.gap: {gap} slices on either side of {n_test} test slices leave nothing of {stop - start} to "
            "train on; ask for a smaller gap or another slice_axis"
        )
    return {"train": train, "test": (test,)}


def say_slabs(slabs: dict[Split, tuple[Slab, ...]], slice_axis: int, gap: int) -> str:
    """Return the split in words, for reports."""

    def words(split: Split) -> str:
        return " and ".join(f"{start} to {stop - 1}" for start, stop in slabs[split])

    return (
        f"split along axis {slice_axis} into disjoint slabs (first slice is 0): train {words('train')}, "
        f"test {words('test')}, {gap} slices left out on either side of the test slab"
    )


def check_slice_axis(slice_axis: int, ndim: int) -> None:
    """Refuse an axis that the volume does not have.

    Raises: InputError.
    """
    if not 0 <= slice_axis < ndim:
        raise InputError(f"slice_axis: got {slice_axis}, the volume has axes 0 to {ndim - 1}")


def _tissue_indices(volume: np.ndarray, axis: int, slab: Slab) -> np.ndarray:
    """Flat indices, slice axis first, of the voxels of a slab that are at least half tissue."""
    start, stop = slab
    if not 0 <= start < stop <= volume.shape[1 + axis]:
        raise ValueError(f"slabs: {slab} does not lie in a volume of {volume.shape[1 + axis]} slices")
    by_slice = np.moveaxis(volume, 1 + axis, 0)[start:stop]
    mask = np.concatenate([tissue_mask(a_slice).ravel() for a_slice in by_slice])
    per_slice = mask.size // (stop - start)
    return (np.flatnonzero(mask) + start * per_slice).astype(np.int64 if volume[0].size > 2**31 - 1 else np.int32)


def _times(extent: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in extent)
