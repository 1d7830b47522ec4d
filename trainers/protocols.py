"""Lists of times that are new for every sample of a training, so that one network serves them all."""

from collections.abc import Sequence
from dataclasses import fields, replace
from math import log
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from generators.config import Count
from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.signals.base import SignalModel
from qsim.values import value


def times_field(model: SignalModel) -> str:
    """Name of the field that holds the times of the series.

    Raises: InputError if the model has none of its own.
    """
    times = getattr(model, "times", None)
    for each in fields(model):  # type: ignore[arg-type]  # every model of a config is a dataclass
        if each.name in ("ti", "te", "te_prep", "tsl", "ts") and getattr(model, each.name) == times:
            return each.name
    kind = getattr(model, "kind", type(model).__name__)
    raise InputError(f"protocols: the model {kind} has no list of times of its own to be replaced")


@value
class Protocols:
    """Random times of a share of the samples; the others have those of the data.

    Attributes:
        least, most: how many times, both included, every number alike.
        first, last: between which they are drawn, and sorted [s].
        spacing: `uniform`, or `log`: uniform in their logarithm, as decays are sampled.
        share: of the samples that have their own [1].
    """

    least: Count = 12
    most: Count = 31
    first: Annotated[float, Field(gt=0)] = 0.139
    last: Annotated[float, Field(gt=0)] = 0.937
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    spacing: Literal["uniform", "log"] = "uniform"

    def __post_init__(self) -> None:
        if not 3 <= self.least <= self.most:
            raise ValueError(f"protocols: least must be from 3 to most, got {self.least} and {self.most}")
        if not self.first < self.last:
            raise ValueError(f"protocols: first must be before last, got {self.first:g} and {self.last:g} s")

    def draw(self, rng: np.random.Generator, times: tuple[float, ...]) -> tuple[float, ...]:
        """Times of one sample [s].

        Args:
            times: those of the data.
        """
        if rng.random() >= self.share:
            return times
        count = int(rng.integers(self.least, self.most + 1))
        if self.spacing == "log":
            return tuple(np.sort(np.exp(rng.uniform(log(self.first), log(self.last), count))).tolist())
        return tuple(np.sort(rng.uniform(self.first, self.last, count)).tolist())

    def signals(
        self, model: SignalModel, maps: Float[Tensor, "q b *space"], streams: Sequence[Streams]
    ) -> tuple[Float[Tensor, "b n *space"], Float[Tensor, "b n"], Bool[Tensor, "b n"]]:
        """Signal of every sample at its own times, the times, and which of them count; the rest is filled up.

        Args:
            maps: finite everywhere [SI].
            streams: of the samples.
        Raises: InputError if the model has no list of times.
        """
        name = times_field(model)
        drawn = [self.draw(stream.rng("training protocol"), getattr(model, name)) for stream in streams]
        # as many for every batch, so that the noise of a sample does not depend on its neighbours
        n = max(self.most, model.n_images)
        signal = maps.new_zeros(len(drawn), n, *maps.shape[2:])
        times = maps.new_ones(len(drawn), n)
        counted = torch.zeros(len(drawn), n, dtype=torch.bool, device=maps.device)
        for i, ti in enumerate(drawn):
            own = replace(model, **{name: ti})  # type: ignore[type-var]  # every model of a config is a dataclass
            signal[i, : len(ti)] = own(maps[:, i])
            times[i, : len(ti)] = torch.tensor(ti, dtype=maps.dtype)
            counted[i, : len(ti)] = True
        return signal, times, counted
