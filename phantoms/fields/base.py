"""What a field is: something that changes rows of kappa by position or by tissue, before the signal is made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from phantoms.maps import Mixture
from qsim.distributions import Distribution
from qsim.reach import Range

Ranges = Mapping[str, Range]

# rows that every tissue has without any field, and their value: on resonance, the nominal transmit field
WITHOUT_FIELDS = {"DELTA_B0": 0.0, "REL_B1": 1.0}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a patch lies in its subject; positions count from the middle of the volume's first voxel.

    Attributes:
        origin: first voxel of the patch, one number per axis of the volume.
        block: its extent in voxels along every axis of the volume; 1 along the slice axis of a slice.
        spacing_mm: voxel size along every axis of the volume [mm].
        extent: extent of the subject's volume in voxels; None where the phantom does not tell.
        slice_axis: axis across which slices are cut; None in a phantom that is one slice.
        patch: extent of the patch, without the slice axis of a slice.
    """

    origin: tuple[int, ...]
    block: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    extent: tuple[int, ...] | None
    slice_axis: int | None
    patch: tuple[int, ...]

    def positions(self, axis: int) -> Float[np.ndarray, " n"]:
        """Of the patch's voxels along an axis of the volume [mm]."""
        # from whole numbers, so that patches that overlap have the same positions to the bit
        return (self.origin[axis] + np.arange(self.block[axis])) * self.spacing_mm[axis]


@dataclass(frozen=True, slots=True)
class Rows:
    """Parameters by name, where fields change them.

    Attributes:
        maps: of the majority tissue in every voxel; views of kappa, changed in place [SI].
        minor: of the other tissues, in the order of `mixture.minor`; changed in place [SI].
        mixture: which tissues share each voxel.
        tissues: names of the tissues that `mixture` numbers.
    """

    maps: Mapping[str, Float[Tensor, "b *space"]]
    minor: Mapping[str, Float[Tensor, " p"]]
    mixture: Mixture
    tissues: tuple[str, ...]

    def at_minor(self, field: Float[Tensor, "b *space"]) -> Float[Tensor, " p"]:
        """Values of a map in the voxels of the minor tissues."""
        minor = self.mixture.minor
        return field.reshape(-1).index_select(0, minor.sample * prod(field.shape[1:]) + minor.voxel)

    def add(self, row: str, field: Float[Tensor, "b *space"]) -> None:
        """Add a map to a row, in every tissue of a voxel alike."""
        self.maps[row].add_(field)
        self.minor[row].add_(self.at_minor(field))

    def multiply(self, row: str, field: Float[Tensor, "b *space"]) -> None:
        """Multiply a row by a map, in every tissue of a voxel alike."""
        self.maps[row].mul_(field)
        self.minor[row].mul_(self.at_minor(field))

    def is_tissue(self, names: Sequence[str]) -> tuple[Float[Tensor, "b *space"], Float[Tensor, " p"]]:
        """1 where the majority tissue is among the names, else 0; the same for the minor tissues."""
        among = torch.tensor([float(tissue in names) for tissue in self.tissues])
        majority = self.mixture.majority
        return (
            among.index_select(0, majority.reshape(-1)).reshape(majority.shape),
            among.index_select(0, self.mixture.minor.tissue),
        )


@runtime_checkable
class Field(Protocol):
    """One entry of a config's `fields`."""

    @property
    def kind(self) -> str:
        """Name in configs."""
        ...

    @property
    def changes(self) -> tuple[str, ...]:
        """Rows that it changes."""
        ...

    @property
    def uses(self) -> tuple[str, ...]:
        """Rows that it reads, beside those it changes."""
        ...

    @property
    def replaces(self) -> bool:
        """Whether the rows it changes no longer depend on what they were."""
        ...

    def ranges(self, ranges: Ranges) -> dict[str, Range]:
        """Where the rows lie after it, save one voxel in a million, if before it they lie in `ranges`.

        Raises: ValueError if it cannot act there; it starts with the attribute, or with the row.
        """
        ...

    def drawn(self, rng: np.random.Generator) -> Mapping[str, float]:
        """What `apply` draws first from the same generator, for reports: amplitudes, not every random number."""
        ...

    def apply(self, rows: Rows, places: Sequence[Place], rngs: Sequence[np.random.Generator], ranges: Ranges) -> None:
        """Change the rows in place.

        Args:
            rows: parameters of all samples.
            places: where each sample lies.
            rngs: each sample's own generator of this field.
            ranges: where the rows lie, as `ranges` is given.
        Raises: InputError if the phantom cannot carry the field; it starts with the attribute, or with the kind.
        """
        ...


def drawn(distribution: Distribution, rng: np.random.Generator) -> float:
    """One number of a distribution."""
    # random() can return 0, where an unbounded distribution has no finite value
    return float(distribution.ppf(np.array([max(rng.random(), float(np.finfo(float).tiny))]))[0])


def to_maps(fields: Sequence[Float[np.ndarray, "*space"]]) -> Float[Tensor, "b *space"]:
    """Maps of the samples, stacked, in float32."""
    return torch.from_numpy(np.stack([field.astype(np.float32) for field in fields]))
