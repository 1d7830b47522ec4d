"""Subjects read from files: which of them are train and which test, and the phantom that they make."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Shaped

from phantoms.base import Slab, Split, VolumePhantom, check_slice_axis, say_slabs, split_slabs, tissue_extent
from qsim.errors import InputError

_File = TypeVar("_File")


@dataclass(frozen=True, slots=True)
class Subject:
    """One subject's anatomy.

    Attributes:
        volume: fractions, in the steps of `as_fractions`.
        spacing_mm: voxel size [mm].
        affine: voxel index to world [mm].
    """

    volume: Shaped[np.ndarray, "t x y z"]
    spacing_mm: tuple[float, ...]
    affine: Float[np.ndarray, "4 4"]


@dataclass(frozen=True, slots=True)
class Parting:
    """How train and test are kept apart: the last subjects are test; a single one is split into slabs.

    Attributes:
        field: of the config that names the files, for messages.
        names: of the subjects, for messages and reports.
        test_subjects: how many are test.
        test_share: of the tissue's extent that the test slab takes [1].
        gap: slices left out on either side of it.
        read: reads subject i, laid out for a slice axis.
    """

    field: str
    names: Sequence[str]
    test_subjects: int
    test_share: float
    gap: int
    read: Callable[[int, int], Subject]

    @property
    def n_train(self) -> int:
        """How many subjects are train.

        Raises: InputError if more are to be test than there are.
        """
        if self.test_subjects > len(self.names):
            raise InputError(
                f"phantom.test_subjects: {self.test_subjects} of {len(self.names)} files; ask for at most "
                f"{len(self.names)}"
            )
        return len(self.names) - self.test_subjects

    def numbers(self, split: Split) -> tuple[int, ...]:
        """Subjects of one split, where there are several.

        Raises: InputError if there are none.
        """
        first, end = (0, self.n_train) if split == "train" else (self.n_train, len(self.names))
        if first == end:
            raise InputError(
                f"phantom.test_subjects: {self.test_subjects} of {len(self.names)} files leaves none for split: "
                f"{split}; ask for {'fewer' if split == 'train' else 'at least 1'}"
            )
        return tuple(range(first, end))

    def of_split(self, files: Sequence[_File], split: Split) -> tuple[_File, ...]:
        """What a split opens of something that each subject has one of; a single subject is of both.

        Raises: InputError if there is nothing.
        """
        return tuple(files) if len(files) == 1 else tuple(files[i] for i in self.numbers(split))

    def slabs(self, slice_axis: int) -> dict[Split, tuple[Slab, ...]]:
        """First slice and the one after the last of every slab of a single subject; with a share
        of 0 or 1 the subject is whole, otherwise a single slice is test only.

        Raises: InputError if there are several: these are split by subject.
        """
        check_slice_axis(slice_axis, 3)
        if len(self.names) > 1:
            raise InputError(f"{self.field}: several files are split by subject, not into slabs")
        volume = self.read(0, slice_axis).volume
        n_slices = volume.shape[1 + slice_axis]
        if n_slices > 1 and 1 in volume.shape[1:]:
            flat = volume.shape[1:].index(1)
            raise InputError(f"slice_axis: {self.names[0]} is one slice across axis {flat}, got {slice_axis}")
        if self.test_share == 0:
            return {"train": ((0, n_slices),), "test": ()}
        if self.test_share == 1 or n_slices == 1:
            return {"train": (), "test": ((0, n_slices),)}
        return split_slabs(tissue_extent(volume, slice_axis), n_slices, self.test_share, self.gap)

    def describe(self, slice_axis: int) -> str:
        """The split in words, for reports."""
        if len(self.names) > 1:
            parts = self.names[: self.n_train], self.names[self.n_train :]
            train, test = (", ".join(part) or "none" for part in parts)
            return f"train subjects {train}; test subjects {test}"
        slabs = self.slabs(slice_axis)
        if self.test_share in (0, 1):
            return f"{self.names[0]}, {'test' if self.test_share else 'train'} only"
        if not slabs["train"]:
            return f"{self.names[0]}, one slice, test only"
        return f"{self.names[0]}, {say_slabs(slabs, slice_axis, self.gap)}"

    def load(self, split: Split, slice_axis: int, tissues: tuple[str, ...], what: str) -> VolumePhantom:
        """Read one split; the subjects of the other one are not opened.

        Args:
            what: what the subjects are, for reports.
        Raises: InputError naming what is at fault.
        """
        check_slice_axis(slice_axis, 3)
        if len(self.names) == 1:
            ids: tuple[int, ...] = (0,)
            slabs: tuple[tuple[Slab, ...], ...] = (self.slabs(slice_axis)[split],)
            if not slabs[0] and self.test_share in (0, 1):
                raise InputError(
                    f"phantom.test_share: {self.test_share:g} leaves nothing of {self.names[0]} for split: {split}"
                )
            if not slabs[0]:
                raise InputError(
                    f"{self.field}: {self.names[0]} is one slice, which cannot be split into train and test; ask for "
                    "split: test, or name several subjects"
                )
            read = [self.read(0, slice_axis)]
        else:
            ids = self.numbers(split)
            read = [self.read(i, slice_axis) for i in ids]
            slabs = tuple(((0, subject.volume.shape[1 + slice_axis]),) for subject in read)
        spacing = read[0].spacing_mm
        for i, subject in zip(ids, read, strict=True):
            if not np.allclose(subject.spacing_mm, spacing, rtol=1e-3):
                raise InputError(
                    f"{self.field}: {self.names[i]} has voxels of {subject.spacing_mm} mm, {self.names[ids[0]]} of "
                    f"{spacing} mm; give files of one voxel size"
                )
        return VolumePhantom(
            tissues=tissues,
            spacing_mm=spacing,
            volumes=tuple(subject.volume for subject in read),
            slabs=slabs,
            slice_axis=slice_axis,
            ids=ids,
            description=f"{what}; {self.describe(slice_axis)}",
            affine=read[0].affine,
        )


def check_parting(test_subjects: int, test_share: float, gap: int) -> None:
    """Refuse splits that leave nothing.

    Raises: ValueError.
    """
    if test_subjects < 0:
        raise ValueError(f"test_subjects must be at least 0, got {test_subjects}")
    if not 0 <= test_share <= 1:
        raise ValueError(f"test_share must lie between 0 and 1, got {test_share}")
    if gap < 0:
        raise ValueError(f"gap must be at least 0 slices, got {gap}")
