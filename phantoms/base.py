"""What a phantom is, and the one implementation of cropping that volumes share."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Crop:
    """A piece of anatomy.

    Attributes:
        fractions: share of each tissue in each voxel, in the order of the phantom's `tissues`; the rest up to 1 is background [1].
        subject: which of the phantom's subjects it was cut from.
        origin: index of its first voxel in that subject's volume, one per axis of the volume (the slice axis included).
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
