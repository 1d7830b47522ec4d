"""A series with all that was read beside it, and the slices of it that are mapped together."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phantoms.series.base import Series
from qsim.errors import InputError
from qsim.estimators import Estimate
from qsim.estimators.base import computable
from qsim.signals.base import SignalModel
from trainers.mapping.inputs import Mapper, Volume, as_option

# voxels that are mapped together
_VOXELS = 1 << 17


@dataclass(frozen=True, slots=True)
class MapTask:
    """A series with all that was read beside it.

    Attributes:
        slices: to be mapped.
        region: the mask, or where there is none the object, as told from the air.
        masked: whether only the region is mapped.
        usable: voxels where the known rows have a value; None: all.
    """

    series: Series
    model: SignalModel
    mapper: Mapper
    slices: range
    region: Bool[np.ndarray, "z y x"]
    masked: bool
    known: Mapping[str, float | Volume]
    usable: Bool[np.ndarray, "z y x"] | None

    @property
    def depth(self) -> int:
        """Slices that are mapped together."""
        return depth_of(self.series) if self.mapper.voxelwise else 1

    def images(self, first: int, last: int) -> Float[Tensor, "n *space"]:
        return self._placed(self.series.slab(first, last))

    def inside(self, first: int, last: int) -> Bool[Tensor, "*space"]:
        return self._placed(self.region[first:last])

    def wanted(self, first: int, last: int) -> Bool[Tensor, "*space"] | None:
        """Voxels that are mapped if their images allow it; None: all."""
        parts = [self.region] if self.masked else []
        parts += [] if self.usable is None else [self.usable]
        return self._placed(np.logical_and.reduce([part[first:last] for part in parts])) if parts else None

    def fitting(self, first: int, last: int) -> Bool[Tensor, "*space"] | None:
        """Voxels where the known rows have a value; None: all."""
        return None if self.usable is None else self._placed(self.usable[first:last])

    def told(self, first: int, last: int) -> dict[str, Tensor]:
        return {
            name: torch.tensor(value, device=self.mapper.device)
            if isinstance(value, float)
            else self._placed(value[first:last])
            for name, value in self.known.items()
        }

    def estimate(self, first: int, last: int, sigma: float | Volume | None) -> Estimate | None:
        """Maps of some slices (q, z, y, x); None: there is nothing to map in them.

        Raises: InputError of the method, with the slices.
        """
        images = self.images(first, last)
        mask = self.wanted(first, last)
        if not bool(computable(images, mask).any()):
            return None
        level = sigma if isinstance(sigma, float) or sigma is None else self._placed(sigma[first:last])
        try:
            found = self.mapper.estimator(images, sigma=level, mask=mask, known=self.told(first, last) or None)
        except InputError as error:
            raise InputError(f"{as_option(str(error))} (slices {first} to {last - 1})") from None
        space = (last - first, *self.series.space[1:])
        return replace(
            found,
            kappa=found.kappa.reshape(-1, *space),
            status=found.status.reshape(space),
            variances={source: values.reshape(-1, *space) for source, values in found.variances.items()},
            covariance=None,
        )

    def _placed(self, values: Any) -> Tensor:
        """On the device; a single slice has two axes, so that methods that look at neighbours take it for an image."""
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        tensor = tensor.squeeze(-3) if tensor.shape[-3] == 1 else tensor
        return tensor.to(self.mapper.device)


def who(series: Series) -> str:
    return str(series.files[0]) if series.files else series.name


def depth_of(series: Series) -> int:
    return max(1, _VOXELS // max(1, series.space[1] * series.space[2]))


def about(region: Bool[np.ndarray, "z y x"], slices: range, depth: int) -> tuple[int, int]:
    """Some of the slices, about the one that holds most of the region."""
    filled = region.reshape(len(region), -1).sum(1)
    # outside of `slices` nothing was looked at, and the object would pass for air
    first = max(slices.start, min(int(filled.argmax()) - depth // 2, slices.stop - depth))
    return first, min(first + depth, slices.stop)
