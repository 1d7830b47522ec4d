"""A U-Net with an encoder of residual or efficient blocks: MONAI's, behind a wrapper that takes any size."""

from math import log
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from qsim.values import value
from trainers.global_stream import GLOBAL_STREAM

Encoder = Literal["resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "efficientnet-b0", "efficientnet-b4"]
# five halvings; other sides come back with another size, without an error
_MULTIPLE = 32
_LEVELS = 5
# of the image that a network takes for the target at its start [1]
_SHARE = 0.02


@value
class FlexibleUNet:
    """The network, as a config names it.

    Attributes:
        encoder: jacobs2025 takes resnet50.
        decoder: channels of the levels of the decoder, the coarsest first.
        dropout: share of the channels left out after each convolution of the decoder, in training and in Monte Carlo
            sampling [1]; 0, as in the paper: none.
    """

    kind: Literal["flexible_unet"] = "flexible_unet"
    encoder: Encoder = "resnet50"
    decoder: tuple[Annotated[int, Field(strict=True, ge=1)], ...] = (256, 128, 64, 32, 16)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def __post_init__(self) -> None:
        if len(self.decoder) != _LEVELS:
            raise ValueError(f"decoder must name the channels of {_LEVELS} levels, got {len(self.decoder)}")

    def build(self, generator: torch.Generator) -> "SegmentationNet":
        """The network with its starting weights, which come from `generator` alone."""
        # MONAI draws from the global stream; it is as before afterwards
        seed = int(torch.randint(2**62, (), generator=generator))
        with GLOBAL_STREAM, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return SegmentationNet(self)


class SegmentationNet(nn.Module):
    """Images to the logits of one class.

    The weights are drawn from torch's global stream, as MONAI draws them; none is downloaded. The bias of the last
    layer is the log odds of a small target: 1 - Dice of a network that takes half of the image for it moves slowly.

    Source: Ronneberger et al. 2015, arXiv:1505.04597; encoder: He et al. 2016, arXiv:1512.03385.
    """

    def __init__(self, spec: FlexibleUNet) -> None:
        super().__init__()
        from monai.networks.nets import flexible_unet  # takes three seconds

        self.body = flexible_unet.FlexibleUNet(
            in_channels=1,
            out_channels=1,
            backbone=spec.encoder,
            pretrained=False,
            decoder_channels=spec.decoder,
            spatial_dims=2,
            dropout=spec.dropout,
        )
        last = self.body.segmentation_head[0]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.constant_(last.bias, log(_SHARE / (1 - _SHARE)))

    def forward(self, images: Float[Tensor, "b 1 y x"]) -> Float[Tensor, "b y x"]:
        """Logits, float32, of images of any size; zeros fill up to a multiple of 32 and are cropped."""
        y, x = images.shape[2:]
        below, right = -y % _MULTIPLE, -x % _MULTIPLE
        padded = functional.pad(images, (0, right, 0, below)) if below or right else images
        found: Tensor = self.body(padded)
        assert found.shape[2:] == padded.shape[2:], f"{tuple(found.shape)} from {tuple(padded.shape)}"
        return found[:, 0, :y, :x].float()
