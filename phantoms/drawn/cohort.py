"""Cohorts of drawn subjects: each a pure function of the spec, the seed and its number, rendered slice by slice."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Shaped

from phantoms.base import Slab, Split, VolumePhantom, check_slice_axis, quantise, slice_first
from qsim.errors import InputError

Volumes = TypeVar("Volumes", bound=VolumePhantom)


def subject_rng(kind: str, seed: int, subject: int, part: str = "") -> np.random.Generator:
    """Generator of one part of a subject: what is drawn for one part does not move another."""
    key = (zlib.crc32(f"phantom.{kind}".encode()), subject, zlib.crc32(part.encode()))
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def image_affine(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Float[np.ndarray, "4 4"]:
    """Voxel index to world, right, front and head, from the middle of the volume [mm].

    Rows (axis 0) run from the front to the back, columns (axis 1) from the patient's right to the left, slices up: a
    viewer shows the image as it is looked at, the first row at the top and the first column at the left.
    """
    y, x, z = spacing_mm
    affine = np.array([[0.0, -x, 0.0, 0.0], [-y, 0.0, 0.0, 0.0], [0.0, 0.0, z, 0.0], [0.0, 0.0, 0.0, 1.0]])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


@dataclass(frozen=True, slots=True)
class Cohort:
    """Subjects of one kind and how train and test are kept apart: the last ones are test.

    Attributes:
        subjects: how many.
        test_subjects: how many of them are test; 0 and all are allowed, and leave the other split empty.
        tissues: names.
        spacing_mm: voxel size along y, x and from slice to slice [mm].
        affine: voxel index to world [mm].
        what: what it is, for reports.
        render: fractions of one subject.
    """

    subjects: int
    test_subjects: int
    tissues: tuple[str, ...]
    spacing_mm: tuple[float, float, float]
    affine: Float[np.ndarray, "4 4"]
    what: str
    render: Callable[[int], Float[np.ndarray, "t y x z"]]

    def ids(self, split: Split) -> tuple[int, ...]:
        """Numbers of the subjects of a split."""
        n_train = self.subjects - self.test_subjects
        return tuple(range(n_train)) if split == "train" else tuple(range(n_train, self.subjects))

    def load(self, split: Split, slice_axis: int, held_as: type[Volumes]) -> Volumes:
        """Draw one split, in steps of 1/128.

        Args:
            split, slice_axis: as in `PhantomSpec`.
            held_as: what it becomes.
        Raises: InputError if no subject belongs to it.
        """
        check_slice_axis(slice_axis, 3)
        ids = self.ids(split)
        if not ids:
            raise InputError(
                f"phantom.test_subjects: {self.test_subjects} of {self.subjects} subjects leaves none for split: "
                f"{split}; ask for {'fewer' if split == 'train' else 'at least 1'}, or for the other split"
            )
        volumes: tuple[Shaped[np.ndarray, "t y x z"], ...] = tuple(
            slice_first(quantise(self.render(subject), np.uint8), slice_axis) for subject in ids
        )
        slabs: tuple[tuple[Slab, ...], ...] = tuple(((0, volume.shape[1 + slice_axis]),) for volume in volumes)
        return held_as(
            tissues=self.tissues,
            spacing_mm=self.spacing_mm,
            volumes=volumes,
            slabs=slabs,
            slice_axis=slice_axis,
            ids=ids,
            description=self.describe(),
            affine=self.affine,
        )

    def describe(self) -> str:
        """What it is and how train and test are kept apart, for reports."""
        n_train = self.subjects - self.test_subjects
        said = {
            "train": f"train 0 to {n_train - 1}" if n_train else "no train",
            "test": f"test {n_train} to {self.subjects - 1}" if self.test_subjects else "no test",
        }
        return f"{self.what}; split by subject (the first is 0): {said['train']}, {said['test']}"


def check_cohort(subjects: int, test_subjects: int, seed: int) -> None:
    """Refuse cohorts that cannot be.

    Raises: ValueError that starts with the field.
    """
    if subjects < 1:
        raise ValueError(f"subjects must be at least 1, got {subjects}")
    if not 0 <= test_subjects <= subjects:
        raise ValueError(f"test_subjects must lie between 0 and subjects ({subjects}), got {test_subjects}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
