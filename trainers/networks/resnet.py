"""Residual network of sabidussi2021 section 4.4.3: series in, maps out, no pooling, one protocol only.

In the package of its authors (EMCqMRI 1.1.17) every image normalises itself, the skips that change the width are
normalised too, and the answer is in SI units: `norm: images, skip: norm, update: maps`, each width twice.
"""

from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from generators.config import Count
from qsim.parameters import Parameter
from qsim.signals.base import SignalModel
from qsim.values import value
from trainers.networks.blocks import ChannelNorm, Padding, kaiming
from trainers.networks.coordinates import Coordinates
from trainers.networks.rim import si_coordinates

# the paper prints 11 widths (40 40 80 80 160 320 160 80 80 40 6) for 12 blocks; the descent gets the second 40 that the
# ascent has
WIDTHS = (40, 40, 80, 80, 160, 320, 160, 80, 80, 40, 40, 6)


@value
class ResNetNetwork:
    """The residual network, as a config names it.

    Attributes:
        stem: channels after the first 1 x 1 convolution.
        widths: channels of each residual block.
        norm: `channel`: over the channels of each voxel by itself; `batch`: as in the paper, with statistics that
            are frozen at inference, so that an image never normalises itself; `images`: as in the authors' package, by
            the statistics of the images at hand also at inference, so that the answer for an image depends on its
            share of background and on what is mapped with it.
        skip: what the 1 x 1 convolution of the skip ends in, where the width changes: `plain`: nothing. `norm`: the
            normalisation, as in the authors' package.
        update: `log`: the network's answer is the logarithm of a relaxation time; `additive`: the time itself;
            `maps`: every row itself in SI units, without any scaling.
        padding: what a 3 x 3 kernel sees beyond the border of the image.
    """

    kind: Literal["resnet"] = "resnet"
    stem: Count = 40
    widths: tuple[Count, ...] = WIDTHS
    norm: Literal["channel", "batch", "images"] = "channel"
    skip: Literal["plain", "norm"] = "plain"
    update: Literal["log", "additive", "maps"] = "log"
    padding: Padding = "zeros"

    def __post_init__(self) -> None:
        if not self.widths:
            raise ValueError("widths is empty; give the channels of each residual block")

    @property
    def logarithmic(self) -> bool:
        """Whether relaxation times are learned by their logarithm."""
        return self.update == "log"

    @property
    def needs_sigma(self) -> bool:
        """Whether the noise level is an input."""
        return False

    @property
    def any_length(self) -> bool:
        """Whether one network serves series of every length."""
        return False

    def coordinates(self, parameters: tuple[Parameter, ...]) -> Coordinates:
        """Coordinates in which the network learns the rows `parameters`."""
        return si_coordinates(parameters) if self.update == "maps" else Coordinates(parameters, self.logarithmic)

    def build(self, model: SignalModel, parameters: tuple[Parameter, ...], generator: torch.Generator) -> "ResNet":
        """The network from series of `model` to the rows `parameters`, with its starting weights."""
        return ResNet(self, parameters, model.n_images, generator)


def _norm(spec: ResNetNetwork, features: int) -> nn.Module:
    if spec.norm == "channel":
        return ChannelNorm(features)
    return nn.BatchNorm2d(features, track_running_stats=spec.norm == "batch")


class ResidualBlock(nn.Module):
    """conv 3x3, norm, relu, conv 3x3, norm, plus the input (1 x 1 convolution if the width changes), relu."""

    def __init__(self, spec: ResNetNetwork, before: int, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, features, 3, padding=1, padding_mode=spec.padding)
        self.norm1 = _norm(spec, features)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1, padding_mode=spec.padding)
        self.norm2 = _norm(spec, features)
        self.skip: nn.Module = nn.Identity()
        if before != features:
            across = nn.Conv2d(before, features, 1)
            self.skip = across if spec.skip == "plain" else nn.Sequential(across, _norm(spec, features))

    def forward(self, x: Float[Tensor, "b f y x"]) -> Float[Tensor, "b g y x"]:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.skip(x))


class ResNet(nn.Module):
    """conv 1x1, residual blocks, conv 1x1 to the maps."""

    def __init__(
        self, spec: ResNetNetwork, parameters: tuple[Parameter, ...], n_images: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.coordinates = spec.coordinates(parameters)
        self.stem = nn.Sequential(nn.Conv2d(n_images, spec.stem, 1), _norm(spec, spec.stem), nn.ReLU())
        widths = (spec.stem, *spec.widths)
        self.blocks = nn.Sequential(*(ResidualBlock(spec, *pair) for pair in pairwise(widths)))
        self.out = nn.Conv2d(widths[-1], len(parameters), 1)
        kaiming(self, generator)

    def forward(
        self,
        images: Float[Tensor, "b n y x"],
        sigma: Tensor | None = None,
        last_only: bool = False,
    ) -> Float[Tensor, "b 1 q y x"]:
        """Coordinates of the maps, with an axis of one step.

        Args:
            images: series [units of A].
            sigma, last_only: not used; one signature for all mapping networks.
        """
        del sigma, last_only
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        u: Tensor = self.out(self.blocks(x))
        return u.float()[:, None]
