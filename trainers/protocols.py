"""Lists of inversion times that are new for every sample of a training, so that one network serves them all."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from generators.config import Count
from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.signals import InversionRecovery
from qsim.signals.base import SignalModel
from qsim.values import value


@value
class Protocols:
    """Random inversion times of a share of the samples; the others have those of the data.

    Attributes:
        least, most: how many times, both included, every number alike.
        first, last: between which they are drawn, uniform and sorted [s].
        share: of the samples that have their own [1].
    """

    least: Count = 12
    most: Count = 31
    first: Annotated[float, Field(gt=0)] = 0.139
    last: Annotated[float, Field(gt=0)] = 0.937
    share: Annotated[float, Field(gt=0, le=1)] = 0.5

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
        return tuple(np.sort(rng.uniform(self.first, self.last, int(rng.integers(self.least, self.most + 1)))).tolist())

    def signals(
        self, model: SignalModel, maps: Float[Tensor, "q b *space"], streams: Sequence[Streams]
    ) -> tuple[Float[Tensor, "b n *space"], Float[Tensor, "b n"], Bool[Tensor, "b n"]]:
        """Signal of every sample at its own times, the times, and which of them count; the rest is filled up.

        Args:
            maps: finite everywhere [SI].
            streams: of the samples.
        Raises: InputError if the model has no inversion times.
        """
        if not isinstance(model, InversionRecovery):
            raise InputError(f"task.protocols: draws inversion times, which {type(model).__name__} does not have")
        drawn = [self.draw(stream.rng("training protocol"), model.ti) for stream in streams]
        # as many for every batch, so that the noise of a sample does not depend on its neighbours
        n = max(self.most, model.n_images)
        signal = maps.new_zeros(len(drawn), n, *maps.shape[2:])
        times = maps.new_ones(len(drawn), n)
        counted = torch.zeros(len(drawn), n, dtype=torch.bool, device=maps.device)
        for i, ti in enumerate(drawn):
            signal[i, : len(ti)] = replace(model, ti=ti)(maps[:, i])
            times[i, : len(ti)] = torch.tensor(ti, dtype=maps.dtype)
            counted[i, : len(ti)] = True
        return signal, times, counted
