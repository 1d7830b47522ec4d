"""What reads the uncertainty of a segmentation off its features: one log variance for the task and for each source.

Heads work in float32 whatever the precision around them, and begin at the same log variance in every voxel.
"""

from math import expm1, log
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Kind = Literal["plain", "context"]
# channels of the branch that sees the image itself, and of the hidden layers
_RAW, _HIDDEN = 8, 16
_SLOPE = 0.01
# added to a variance before its log, so that a flat channel has one
_FLAT = 1e-6


class SoftBounds:
    """A smooth rising map of all numbers into an interval, close to the number itself within it.

        f(x) = high - softplus(high - l - softplus(x - l)),    l so chosen that f(-inf) = low

    l = low to within exp(low - high). In float32 the gradient is above 0 from about low - 100 to high + 80; beyond the
    exponentials underflow.

    Args:
        low, high: ends of the interval.
    Raises: ValueError if they do not rise.
    """

    def __init__(self, low: float, high: float) -> None:
        if not low < high:
            raise ValueError(f"low must be below high, got {low:g} and {high:g}")
        self.low, self.high = low, high
        self._from = high - _inverse(high - low)

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """f(x)."""
        above = self._from + functional.softplus(x - self._from)
        return self.high - functional.softplus(self.high - above)

    def inverse(self, y: float) -> float:
        """x of f(x) = y.

        Raises: ValueError if y is not inside the interval.
        """
        if not self.low < y < self.high:
            raise ValueError(f"{y:g} is not between {self.low:g} and {self.high:g}")
        return self._from + _inverse(self.high - _inverse(self.high - y) - self._from)


def _inverse(y: float) -> float:
    """x of softplus(x) = y > 0."""
    return y + log(-expm1(-y))


class PlainHeads(nn.Module):
    """A 1 x 1 x 1 convolution of the decoder's features.

    Args:
        features: channels of the decoder.
        starts: log variance that each head begins with.
    Source: shaw2021 section 6 ("two output heads"); the size of the kernel is this project's reading.
    """

    def __init__(self, features: int, starts: tuple[float, ...], bounds: SoftBounds) -> None:
        super().__init__()
        self.bounds = bounds
        self.out = _last(features, starts, bounds)

    def forward(
        self,
        features: Float[Tensor, "b f x y z"],
        logits: Float[Tensor, "b k x y z"],  # noqa: ARG002  not looked at; called as ContextHeads
        images: Float[Tensor, "b 1 x y z"],  # noqa: ARG002
    ) -> Float[Tensor, "b s x y z"]:
        """Log variances."""
        with torch.autocast(features.device.type, enabled=False):
            said: Tensor = self.bounds(self.out(features.float()))
        return said


class ContextHeads(nn.Module):
    """Heads that also see the logits, the image itself, and what is common to the whole image.

        raw branch       image, 3 x 3 x 3 to 8 channels; of these 3 x 3 x 3 with stride 2, 3 x 3 x 3, upsampled
        voxel            features, logits, 8 + 8 raw channels; 1 x 1 x 1 to 16 channels; 1 x 1 x 1 to one map per head
        image            mean and log SD over the image of the same channels; 16 hidden units; one number per head
        answer           bounds(map + number)

    with leaky ReLU between layers. The branch sees 9 voxels wide and has no normalisation: the instance norm of the
    segmentation divides by the very SD that tells noise, spikes and blur apart. The maps of the heads share their
    hidden layer.

    Args:
        features: channels of the decoder.
        classes: channels of the logits.
        starts: log variance that each head begins with.
    The starting weights are drawn from torch's global stream.
    Source: this project's.
    """

    def __init__(self, features: int, classes: int, starts: tuple[float, ...], bounds: SoftBounds) -> None:
        super().__init__()
        self.bounds = bounds
        self.fine = nn.Conv3d(1, _RAW, 3, padding=1)
        self.coarse = nn.Sequential(
            nn.Conv3d(_RAW, _RAW, 3, stride=2, padding=1),
            nn.LeakyReLU(_SLOPE),
            nn.Conv3d(_RAW, _RAW, 3, padding=1),
            nn.LeakyReLU(_SLOPE),
        )
        joined = features + classes + 2 * _RAW
        self.hidden = nn.Conv3d(joined, _HIDDEN, 1)
        self.whole = nn.Linear(2 * joined, _HIDDEN)
        self.of_whole = nn.Linear(_HIDDEN, len(starts), bias=False)
        for layer in (self.fine, self.coarse[0], self.coarse[2], self.hidden, self.whole):
            assert isinstance(layer, nn.Conv3d | nn.Linear)
            assert layer.bias is not None
            nn.init.kaiming_normal_(layer.weight, a=_SLOPE)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.of_whole.weight)
        self.out = _last(_HIDDEN, starts, bounds)

    def forward(
        self,
        features: Float[Tensor, "b f x y z"],
        logits: Float[Tensor, "b k x y z"],
        images: Float[Tensor, "b 1 x y z"],
    ) -> Float[Tensor, "b s x y z"]:
        """Log variances."""
        with torch.autocast(features.device.type, enabled=False):
            parts = (features.float(), logits.float(), *self._raw(images.float()))
            joined = torch.cat([part.flatten(2) for part in parts], 1)
            voxel = _pointwise(self.out, functional.leaky_relu(_pointwise(self.hidden, joined), _SLOPE))
            mean = joined.mean(2)
            variance = (joined - mean[:, :, None]).square().mean(2)
            told = torch.cat((mean, 0.5 * torch.log(variance + _FLAT)), 1)
            image = self.of_whole(functional.leaky_relu(self.whole(told), _SLOPE))
            said = self.bounds(voxel + image[:, :, None])
        return said.unflatten(2, images.shape[2:])

    def _raw(self, images: Float[Tensor, "b 1 x y z"]) -> tuple[Float[Tensor, "b r x y z"], Float[Tensor, "b r x y z"]]:
        """What the branch finds in the image itself."""
        # an odd side gets one more voxel, so that each voxel of the coarse grid stands for two
        odd = [side % 2 for side in images.shape[2:]]
        padded = functional.pad(images, (0, odd[2], 0, odd[1], 0, odd[0]), mode="replicate") if any(odd) else images
        fine = functional.leaky_relu(self.fine(padded), _SLOPE)
        coarse = functional.interpolate(self.coarse(fine), scale_factor=2, mode="trilinear")
        x, y, z = images.shape[2:]
        return fine[:, :, :x, :y, :z], coarse[:, :, :x, :y, :z]


def _pointwise(layer: nn.Conv3d, voxels: Float[Tensor, "b f n"]) -> Float[Tensor, "b g n"]:
    """A 1 x 1 x 1 convolution of voxels in a row: as a product of matrices it is the same in every memory format."""
    assert layer.bias is not None
    weight = layer.weight.flatten(1).expand(len(voxels), -1, -1)
    return torch.baddbmm(layer.bias[:, None], weight, voxels)


def _last(channels: int, starts: tuple[float, ...], bounds: SoftBounds) -> nn.Conv3d:
    """The convolution that answers, so that it begins with `starts` whatever it sees."""
    out = nn.Conv3d(channels, len(starts), 1)
    assert out.bias is not None
    nn.init.zeros_(out.weight)
    with torch.no_grad():
        out.bias.copy_(torch.tensor([bounds.inverse(start) for start in starts]))
    return out
