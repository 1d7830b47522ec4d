"""Two streams: one network for the relaxation time, one for the signal at time 0; together they synthesise the images.

    I(t) = S0 exp(-t / T)

The stream of the time sees the two images of the input, the stream of S0 the first one alone.

Source: huang2022 section 4.3, after Huang et al. 2021 (its reference 17).
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from generators.config import Count
from qsim.errors import InputError
from qsim.parameters import Parameter
from qsim.signals.base import SignalModel
from qsim.values import value
from trainers.networks.relaxation.answers import range_of
from trainers.networks.relaxation.spec import RelaxationSpec
from trainers.networks.relaxation.trunk import Norm, Step, UNet, start
from trainers.relaxation.contrasts import contrasts


@value
class TwoStreamNetwork(RelaxationSpec):
    """The two-stream network, as a config names it.

    Attributes:
        features, levels, dropout, norm, up: of both streams, as of `unet`.
        shortest, longest: bounds of the relaxation time [s].
    """

    kind: Literal["two_stream"] = "two_stream"
    features: Count = 32
    levels: Annotated[int, Field(strict=True, ge=1, le=7)] = 5
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    norm: Norm = "batch"
    up: Step = "transposed"
    shortest: Annotated[float, Field(gt=0)] = 0.005
    longest: Annotated[float, Field(gt=0)] = 0.5

    def __post_init__(self) -> None:
        self.check_bounds()

    def build(self, model: SignalModel, parameters: tuple[Parameter, ...], generator: torch.Generator) -> "TwoStreams":
        """The network from two images of `model` to its relaxation time, with its starting weights.

        Raises: InputError if the model has several contrasts.
        """
        if len(contrasts(model)) > 1:
            raise InputError("network.kind: two_stream maps one contrast; take a unet for two")
        return TwoStreams(self, parameters, generator)


class TwoStreams(nn.Module):
    """Two images to a relaxation time and S0.

    Attributes:
        multiple: the sides of an image must be multiples of it [voxels].
    """

    def __init__(self, spec: TwoStreamNetwork, parameters: tuple[Parameter, ...], generator: torch.Generator) -> None:
        super().__init__()
        if len(parameters) != 1:
            raise InputError("task.rows: two_stream answers one relaxation time")
        self.spec, self.multiple = spec, 2 ** (spec.levels - 1)
        self.within = range_of(parameters[0], spec.shortest, spec.longest)
        parts = (spec.features, spec.levels, spec.norm, spec.up, spec.dropout)
        self.of_time, self.of_s0 = UNet(2, (1,), *parts), UNet(1, (1,), *parts)
        start(self, generator)
        nn.init.constant_(self.of_time.bias(0), self.within.share())

    def forward(
        self, images: Float[Tensor, "b k y x"], intervals: Float[Tensor, "b r"]
    ) -> dict[str, Float[Tensor, "b a y x"]]:
        """The relaxation time [s] under `rows`, and the normalised signal at time 0 under `s0`.

        Args:
            images: the first image and a later one, both over `joint_scale` [1].
            intervals: not used; the network is not told the times.
        """
        del intervals
        (u,), (s0,) = self.of_time(images), self.of_s0(images[:, :1])
        return {"rows": self.within.value(u), "s0": functional.softplus(s0)}
