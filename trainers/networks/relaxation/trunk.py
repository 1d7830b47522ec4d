"""The U-Net of huang2022: an encoder, and one or two decoders.

    encoder   block at each level, 2 x 2 maximum between levels, twice the channels each level down
    decoder   a step up, joined to the encoder's block of that level, block, dropout
    block     (convolution 3 x 3, batch normalisation, ReLU) twice

Batch normalisation learns one mean and variance for all images it is shown. Each batch must therefore hold inputs of
all spin-lock times; trained on one at a time, the network is normalised otherwise in use than it was in training.

Source: huang2022 section 3.3.3, table 1; Buda et al. 2019, doi:10.1016/j.compbiomed.2019.05.002.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from trainers.networks.blocks import ChannelNorm

Norm = Literal["batch", "channel"]
Step = Literal["transposed", "bilinear"]


def norm_of(kind: Norm, features: int) -> nn.Module:
    """Normalisation of that many channels: over batch and image with running statistics, or of each voxel alone."""
    return nn.BatchNorm2d(features) if kind == "batch" else ChannelNorm(features)


class Block(nn.Sequential):
    """(convolution 3 x 3, normalisation, ReLU) twice."""

    def __init__(self, before: int, features: int, norm: Norm) -> None:
        layers: list[nn.Module] = []
        for channels in (before, features):
            # the normalisation has a bias of its own
            layers += [nn.Conv2d(channels, features, 3, padding=1, bias=norm != "batch"), norm_of(norm, features)]
            layers += [nn.ReLU()]
        super().__init__(*layers)


class Up(nn.Module):
    """A step up of a decoder: twice as many voxels along each axis, half the channels."""

    def __init__(self, before: int, features: int, step: Step) -> None:
        super().__init__()
        self.step = step
        self.across: nn.Module = (
            nn.ConvTranspose2d(before, features, 2, 2) if step == "transposed" else nn.Conv2d(before, features, 1)
        )

    def forward(self, x: Float[Tensor, "b f y x"]) -> Float[Tensor, "b g ys xs"]:
        y: Tensor = self.across(x)
        return y if self.step == "transposed" else functional.interpolate(y, scale_factor=2, mode="bilinear")


class Decoder(nn.Module):
    """From the bottom back to the full image."""

    def __init__(self, widths: tuple[int, ...], answers: int, norm: Norm, step: Step, dropout: float) -> None:
        super().__init__()
        levels = range(len(widths) - 1)
        self.ups = nn.ModuleList(Up(widths[i + 1], widths[i], step) for i in levels)
        self.blocks = nn.ModuleList(Block(2 * widths[i], widths[i], norm) for i in levels)
        self.drop = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.out = nn.Conv2d(widths[0], answers, 1)

    def forward(self, levels: list[Tensor]) -> Float[Tensor, "b a y x"]:
        x = levels[-1]
        for i in reversed(range(len(self.ups))):
            x = self.drop(self.blocks[i](torch.cat((levels[i], self.ups[i](x)), 1)))
        answer: Tensor = self.out(x)
        return answer.float()


class UNet(nn.Module):
    """An encoder and its decoders.

    Args:
        channels: of the input.
        answers: channels of the answer of each decoder.
        features: channels of the first level.
        levels: the full image included.
        dropout: share of the decoders' channels values that are left out in training [1].
    """

    def __init__(
        self,
        channels: int,
        answers: tuple[int, ...],
        features: int,
        levels: int,
        norm: Norm,
        step: Step,
        dropout: float,
    ) -> None:
        super().__init__()
        widths = tuple(features * 2**i for i in range(levels))
        self.down = nn.ModuleList(
            Block(channels if i == 0 else widths[i - 1], width, norm) for i, width in enumerate(widths)
        )
        self.decoders = nn.ModuleList(Decoder(widths, each, norm, step, dropout) for each in answers)

    def forward(self, x: Float[Tensor, "b c y x"]) -> list[Float[Tensor, "b a y x"]]:
        """The answers of the decoders. The image's sides must be multiples of 2^(levels - 1)."""
        x = x.contiguous(memory_format=torch.channels_last)
        levels: list[Tensor] = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else functional.max_pool2d(x, 2))
            levels.append(x)
        return [decoder(levels) for decoder in self.decoders]

    def bias(self, decoder: int) -> Tensor:
        """Of the last convolution of a decoder: what it answers everywhere before the training."""
        found = self.decoders[decoder]
        assert isinstance(found, Decoder)
        assert found.out.bias is not None
        return found.out.bias


def start(net: nn.Module, generator: torch.Generator) -> None:
    """PyTorch's own start of every convolution; the last of each decoder starts at 0, so that all voxels start alike.

        weights uniform in +-1 / sqrt(fan-in)

    Behind a normalisation the size of the weights changes nothing but the pace: the larger they are, the less a step of
    Adam turns them. Kaiming's start, 2.4 times as large, learns several times slower here.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            bound = module.weight[0].numel() ** -0.5
            with torch.no_grad():
                module.weight.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.uniform_(-bound, bound, generator=generator)
    for module in net.modules():
        if isinstance(module, Decoder):
            nn.init.zeros_(module.out.weight)
            assert module.out.bias is not None
            nn.init.zeros_(module.out.bias)
