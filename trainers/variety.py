"""What a training draws anew for every sample beside noise: relaxation times of tissues, small structures, times.

All are drawn on maps (`store: maps`), each from a stream of the sample's position in the training.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import log
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from pydantic import Field
from torch import Tensor

from generators.config import Count
from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.parameters import RELAXATION_TIMES
from qsim.signals.base import SignalModel
from qsim.values import value
from trainers.protocols import Protocols, times_field

# longer than any relaxation time of tissue or water [s]
_LONGEST = 10.0

Positive = Annotated[float, Field(gt=0)]
Part = Annotated[float, Field(gt=0, le=1)]


def _seconds(name: str, longest: float) -> None:
    """Raises: ValueError if a relaxation time is so long that it must be in milliseconds."""
    if longest > _LONGEST:
        raise ValueError(
            f"{name}: longest must be in seconds, got {longest:g}; divide by 1000 if these are milliseconds"
        )


@value
class Recolour:
    """Tissues of relaxation times that no table has: those of a share of the samples are drawn anew.

    A tissue keeps what varies within it: log T is moved as a whole, to a mean of log T that is uniform.

    Attributes:
        share: of the samples [1].
        shortest, longest: between which the geometric mean of a tissue comes to lie [s].
    """

    share: Part
    shortest: Positive
    longest: Positive

    def __post_init__(self) -> None:
        _seconds("recolour", self.longest)
        if not self.shortest < self.longest:
            raise ValueError(f"recolour: shortest must be below longest, got {self.shortest:g} and {self.longest:g} s")

    def apply(
        self, maps: Float[Tensor, "y x"], labels: UInt8[Tensor, "y x"], rng: np.random.Generator
    ) -> Float[Tensor, "y x"]:
        """Relaxation times of one sample."""
        if rng.random() >= self.share:
            return maps
        for label in torch.unique(labels[labels > 0]).tolist():
            where = labels == label
            mean = maps[where].double().log().mean()
            maps = torch.where(
                where, maps * float(torch.exp(rng.uniform(log(self.shortest), log(self.longest)) - mean)), maps
            )
        return maps


@value
class Lesions:
    """Small structures of another relaxation time: without them a network learns to smooth small things away.

    Points (a quarter), lines of one voxel's width and 3 to 8 voxels, rectangles of 2 to 7, ellipses of semi-axes 1.2 to
    `radius` voxels (one may fill a small patch), cut off where the object ends. Their relaxation time is that of the
    voxel times 1.2 to `brighter` (two of five), times `darker` to .85 (one of five), or one for all of them,
    log-uniform from `shortest` to `longest`.

    Attributes:
        share: of the samples that have any [1].
        most: of them in a sample; every number from 1 alike.
        radius: of ellipses [voxels].
        brighter, darker: factors [1].
        shortest, longest: of structures of one value [s].
        weight: of their voxels in the loss; others weigh 1.
    """

    share: Part = 0.75
    most: Count = 5
    radius: Annotated[float, Field(gt=1.2)] = 5.0
    brighter: Annotated[float, Field(gt=1.2)] = 1.8
    darker: Annotated[float, Field(gt=0, lt=0.85)] = 0.5
    shortest: Positive
    longest: Positive
    weight: Positive = 10.0

    def __post_init__(self) -> None:
        _seconds("lesions", self.longest)
        if not self.shortest < self.longest:
            raise ValueError(f"lesions: shortest must be below longest, got {self.shortest:g} and {self.longest:g} s")

    def apply(
        self, maps: Float[Tensor, "y x"], inside: Bool[Tensor, "y x"], rng: np.random.Generator
    ) -> tuple[Float[Tensor, "y x"], Bool[Tensor, "y x"]]:
        """Relaxation times of one sample, and where they were changed."""
        found = torch.zeros_like(inside)
        if rng.random() >= self.share:
            return maps, found
        for _ in range(int(rng.integers(1, self.most + 1))):
            where = torch.from_numpy(self._shape(rng, *maps.shape)).to(inside.device) & inside
            kind = rng.random()
            if kind < 0.4:
                changed = maps * rng.uniform(1.2, self.brighter)
            elif kind < 0.6:
                changed = maps * rng.uniform(self.darker, 0.85)
            else:
                changed = torch.full_like(maps, float(np.exp(rng.uniform(log(self.shortest), log(self.longest)))))
            maps = torch.where(where, changed, maps)
            found |= where
        return maps, found

    def _shape(self, rng: np.random.Generator, height: int, width: int) -> Bool[np.ndarray, "y x"]:
        y, x = int(rng.integers(height)), int(rng.integers(width))
        rows, columns = np.mgrid[:height, :width]
        kind = rng.random()
        if kind < 0.25:
            tall, wide = 1, 1
        elif kind < 0.4:
            length = int(rng.integers(3, 9))
            tall, wide = (length, 1) if rng.random() < 0.5 else (1, length)
        elif kind < 0.75:
            tall, wide = (int(each) for each in rng.integers(2, 8, 2))
        else:
            one, two = rng.uniform(1.2, self.radius, 2)
            return np.asarray(((rows - y) / one) ** 2 + ((columns - x) / two) ** 2 <= 1)
        return np.asarray((rows >= y) & (rows < y + tall) & (columns >= x) & (columns < x + wide))


@value
class Variety:
    """All of it; what is None stays as the data have it.

    Attributes:
        protocols: times of their own for a share of the samples.
        recolour: relaxation times of tissues.
        lesions: small structures.
    """

    protocols: Protocols | None = None
    recolour: Recolour | None = None
    lesions: Lesions | None = None

    def __bool__(self) -> bool:
        return any((self.protocols, self.recolour, self.lesions))

    def check(self, model: SignalModel, store: str) -> None:
        """Raises: InputError if the data hold images already, or the model does not allow what is to vary."""
        for name in ("protocols", "recolour", "lesions"):
            if getattr(self, name) is None:
                continue
            if store != "maps":
                raise InputError(f"task.{name}: the data hold images already; set store: maps in their config")
            if name == "protocols":
                self._check_times(model)
            elif len(_relaxation_rows(model)) != 1:
                raise InputError(
                    f"task.{name}: needs a model of one relaxation time, which {type(model).__name__} is not"
                )

    def _check_times(self, model: SignalModel) -> None:
        assert self.protocols is not None
        try:
            name = times_field(model)
        except InputError as error:
            raise InputError(f"task.{error}") from None
        try:
            replace(model, **{name: (self.protocols.first, self.protocols.last)})  # type: ignore[type-var]
        except ValueError as error:
            raise InputError(f"task.protocols.last: {error}") from None

    def maps(
        self,
        kappa: Float[Tensor, "b q y x"],
        labels: UInt8[Tensor, "b y x"],
        model: SignalModel,
        streams: Sequence[Streams],
    ) -> tuple[Float[Tensor, "b q y x"], Bool[Tensor, "b y x"]]:
        """Maps with other relaxation times [SI], and where there are lesions."""
        changed = torch.zeros_like(labels, dtype=torch.bool)
        if self.recolour is None and self.lesions is None:
            return kappa, changed
        (row,) = _relaxation_rows(model)
        kappa = kappa.clone()
        for i, stream in enumerate(streams):
            rng = stream.rng("training variety")
            times = kappa[i, row]
            if self.recolour is not None:
                times = self.recolour.apply(times, labels[i], rng)
            if self.lesions is not None:
                times, changed[i] = self.lesions.apply(times, labels[i] > 0, rng)
            kappa[i, row] = times
        return kappa, changed


def _relaxation_rows(model: SignalModel) -> list[int]:
    return [i for i, p in enumerate(model.parameters) if p.name in RELAXATION_TIMES]
