"""A U-Net that segments, and heads that tell how uncertain it is and from what source."""

from contextlib import AbstractContextManager
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from qsim.errors import InputError
from qsim.values import value
from trainers.global_stream import GLOBAL_STREAM
from trainers.quality.heads import ContextHeads, Kind, PlainHeads, SoftBounds
from trainers.relaxation.uncertainty import dropout_active, has_dropout


class Answer(NamedTuple):
    """What a network says of images.

    Attributes:
        logits: of each class [1].
        log_variance: log of the variance of the logits by each source, the task first [log 1].
        of_image: what of it the image as a whole adds, the same in every voxel; 0 where heads know voxels only [log 1].
    """

    logits: Float[Tensor, "b k x y z"]
    log_variance: Float[Tensor, "b s x y z"]
    of_image: Float[Tensor, "b s"]


@value
class DecoupledUNet:
    """The network, as a config names it.

    Attributes:
        features: channels of each level, the full image first; at least three levels.
        heads: `plain`, as in the paper: log variances from the decoder's features by a 1 x 1 x 1 convolution.
            `context`: also from the logits, the image itself and the statistics of the whole image.
        dropout: share of the values after each convolution of the U-Net that is left out in training and in Monte
            Carlo sampling [1]; 0: none.
        start_task, start_artefact: log variance that the heads begin with.
        low, high: bounds that log variances approach smoothly.
    """

    kind: Literal["decoupled_unet"] = "decoupled_unet"
    features: Annotated[tuple[Annotated[int, Field(strict=True, ge=1)], ...], Field(min_length=3)] = (8, 16, 32)
    heads: Kind = "context"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    start_task: float = -1.0
    start_artefact: float = -2.0
    low: float = -7.0
    high: float = 4.0

    def __post_init__(self) -> None:
        if len(self.features) < 3:
            raise ValueError(f"features must name at least three levels, got {list(self.features)}")
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
        for name in ("start_task", "start_artefact"):
            start = getattr(self, name)
            if not self.low < start < self.high:
                raise ValueError(f"{name} must be between {self.low:g} (low) and {self.high:g} (high), got {start:g}")

    def build(self, classes: int, sources: tuple[str, ...], generator: torch.Generator) -> "DecoupledNet":
        """The network with its starting weights, which come from `generator` alone.

        Args:
            classes: at least 2, the background included.
            sources: names of the artefact sources, without the task; none: the network of the task, whose one head is
                plain.
        Raises: InputError if there are fewer than two classes, or `task` is among the sources.
        """
        if classes < 2:
            raise InputError(f"classes: got {classes}; give at least 2, the background included")
        if "task" in sources:
            raise InputError("sources: the task is always the first; leave it out")
        bounds = SoftBounds(self.low, self.high)
        starts = (self.start_task, *(self.start_artefact for _ in sources))
        # MONAI and torch's layers draw from the global stream; it is as before afterwards
        seed = int(torch.randint(2**62, (), generator=generator))
        with GLOBAL_STREAM, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            segmentation = Segmentation(self, classes)
            first = self.features[0]
            heads = (
                PlainHeads(first, starts, bounds)
                if self.heads == "plain" or not sources
                else ContextHeads(first, classes, starts, bounds)
            )
        return DecoupledNet(segmentation, heads)


class Segmentation(nn.Module):
    """MONAI's DynUNet to its last decoder, and a 1 x 1 x 1 convolution to logits in float32.

    Two 3 x 3 x 3 convolutions with instance normalisation and leaky ReLU a level, stride 2 down, transposed
    convolutions up: no statistics over the batch, so a network in training and in use is the same.

    Images are padded at the far end of each axis by their last voxels, to a multiple of 2^(levels - 1), and what comes
    back is cropped.

    The starting weights are drawn from torch's global stream, as MONAI draws them.

    Source: Isensee et al. 2019, arXiv:1809.10486, which shaw2021 section 6 builds on.
    """

    def __init__(self, spec: DecoupledUNet, classes: int) -> None:
        super().__init__()
        from monai.networks.nets.dynunet import DynUNet  # takes three seconds

        levels = len(spec.features)
        self.multiple = 2 ** (levels - 1)
        strides = [1] + [2] * (levels - 1)
        body = DynUNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=classes,
            kernel_size=[3] * levels,
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=list(spec.features),
            dropout=spec.dropout or None,
            norm_name=("INSTANCE", {"affine": True}),
        )
        body.output_block = nn.Identity()
        # DynUNet holds each block twice, and runs those of `skip_layers`; a file of weights wants each once
        for name in ("input_block", "downsamples", "bottleneck", "upsamples"):
            delattr(body, name)
        self.body = body
        self.out = nn.Conv3d(spec.features[0], classes, 1)
        assert self.out.bias is not None
        nn.init.kaiming_normal_(self.out.weight, nonlinearity="linear")
        nn.init.zeros_(self.out.bias)

    def forward(
        self, images: Float[Tensor, "b 1 x y z"]
    ) -> tuple[Float[Tensor, "b f x y z"], Float[Tensor, "b k x y z"]]:
        """Features of the last decoder and logits, float32."""
        sides = images.shape[2:]
        whole = [-(-side // self.multiple) * self.multiple for side in sides]
        if all(side == self.multiple for side in whole):
            # instance normalisation of a single voxel is no number
            whole = [2 * side for side in whole]
        far = [to - side for to, side in zip(whole, sides, strict=True)]
        padded = functional.pad(images, (0, far[2], 0, far[1], 0, far[0]), mode="replicate") if any(far) else images
        found: Tensor = self.body(padded)
        assert list(found.shape[2:]) == whole, f"{tuple(found.shape)} from {whole}"
        x, y, z = sides
        features = found[:, :, :x, :y, :z].float()
        with torch.autocast(images.device.type, enabled=False):
            logits: Tensor = self.out(features)
        return features, logits


class DecoupledNet(nn.Module):
    """Images to logits and log variances.

    Attributes:
        segmentation: the part that finds features and logits.
        heads: the part that finds log variances. The two can be trained apart.
    """

    def __init__(self, segmentation: Segmentation, heads: PlainHeads | ContextHeads) -> None:
        super().__init__()
        self.segmentation = segmentation
        self.heads = heads

    def forward(self, images: Float[Tensor, "b 1 x y z"]) -> Answer:
        """Logits and log variances of images of any size, each divided by its `intensity_scale` [1]."""
        features, logits = self.segment(images)
        return Answer(logits, *self.heads(features, logits, images))

    def segment(
        self, images: Float[Tensor, "b 1 x y z"]
    ) -> tuple[Float[Tensor, "b f x y z"], Float[Tensor, "b k x y z"]]:
        """Features of the last decoder and logits."""
        found: tuple[Tensor, Tensor] = self.segmentation(images)
        return found

    def uncertainty(
        self,
        features: Float[Tensor, "b f x y z"],
        logits: Float[Tensor, "b k x y z"],
        images: Float[Tensor, "b 1 x y z"],
    ) -> Float[Tensor, "b s x y z"]:
        """Log variance of each source, the task first."""
        found: Tensor = self.heads(features, logits, images)[0]
        return found


def monte_carlo(net: DecoupledNet) -> AbstractContextManager[None]:
    """A context in which only dropout works as in training: each pass is a draw of Monte Carlo dropout.

    The draws come from torch's global stream.

    Raises: InputError if the network was built without dropout, so that all passes would be the same.
    """
    if not has_dropout(net):
        raise InputError("dropout: the network has none, so all samples would be the same; train one with dropout > 0")
    return dropout_active(net)
