"""What reads the uncertainty of a segmentation off its features: one log variance for the task and for each source.

Heads work in float32 whatever the precision around them, and begin at the same log variance in every voxel.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import expm1, log
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Kind = Literal["plain", "context"]
# channels of the branch that sees the image itself, each scale twice as coarse; which scale is spread over the voxels
_RAW, _SPREAD = (8, 16, 24, 32), 2
# channels made of the softmax: entropy, probability of the target
_OF_SOFTMAX = 2
# hidden units for a voxel, and for the whole image
_HIDDEN, _WHOLE = 16, 64
_SLOPE = 0.01
# dropout of the statistics and of the units that weigh them
_DROPOUT = 0.2
# largest log that the image as a whole adds
_MOST = 3.0
# added to a variance before its log, so that a flat channel has one
_FLAT = 1e-6
# SDs from the mean beyond which a statistic hardly counts more
_WIDE = 3.0
# of a statistic over images, so that one that is the same in all does not count
_LEAST_SD = 1e-2


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
    ) -> tuple[Float[Tensor, "b s x y z"], Float[Tensor, "b s"]]:
        """Log variances; and zeros, as nothing is said of the image as a whole."""
        with torch.autocast(features.device.type, enabled=False):
            said: Tensor = self.bounds(self.out(features.float()))
        return said, said.new_zeros(said.shape[:2])


class ContextHeads(nn.Module):
    """Heads that also see the logits, the image itself on four scales, and what is common to the whole image.

        raw branch   image, 3 x 3 x 3 to 8 channels; then with stride 2 to 16, to 24, to 32
        seen         features, logits, their softmax entropy, and the probability of any class but the background
        image        mean and log SD of seen and of all raw channels over the image, and of seen and the finest raw
                     channels over the target, which that probability weights; standardised; 2 x 64 units; at most +- 3
        voxel        seen, 8 raw channels, 8 of the raw 24 upsampled; 16 hidden units
        answer       bounds(one map per head from the voxel + one number per artefact from the image)

    with leaky ReLU between layers. The raw branch has no normalisation: the instance norm of the segmentation divides
    by the very SD that tells noise, spikes and blur apart. Wrap and motion have no local look of their own; that
    replicas or ringing are there is told by coarse scales and by the image as a whole.

    A fifth of the statistics and of the units that weigh them is dropped out in training (Srivastava et al. 2014), so
    that no few of them decide; this and the bound of what they say keep images unlike those of the training from
    answers without measure.

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
        self.centre: Tensor
        self.scale: Tensor
        self.fine = nn.Conv3d(1, _RAW[0], 3, padding=1)
        self.coarser = nn.ModuleList(
            nn.Conv3d(before, after, 3, stride=2, padding=1) for before, after in pairwise(_RAW)
        )
        self.spread = nn.Conv3d(_RAW[_SPREAD], _RAW[0], 1)
        seen = features + classes + _OF_SOFTMAX
        self.hidden = nn.Conv3d(seen + 2 * _RAW[0], _HIDDEN, 1)
        self.whole = nn.Linear(2 * (seen + sum(_RAW)) + 2 * (seen + _RAW[0]), _WHOLE)
        self.whole_again = nn.Linear(_WHOLE, _WHOLE)
        self.register_buffer("centre", torch.zeros(self.whole.in_features))
        self.register_buffer("scale", torch.ones(self.whole.in_features))
        self.of_whole = nn.Linear(_WHOLE, len(starts) - 1, bias=False)
        for layer in (self.fine, *self.coarser, self.spread, self.hidden, self.whole, self.whole_again):
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
    ) -> tuple[Float[Tensor, "b s x y z"], Float[Tensor, "b s"]]:
        """Log variances; and what of them the image as a whole added, before the bounds."""
        with torch.autocast(features.device.type, enabled=False):
            raw = self._raw(images.float())
            seen = _seen(features.float(), logits.float())
            told = _WIDE * torch.tanh((self._told(seen, raw) - self.centre) / (_WIDE * self.scale))
            whole = functional.leaky_relu(self.whole(self._dropped(told)), _SLOPE)
            whole = functional.leaky_relu(self.whole_again(self._dropped(whole)), _SLOPE)
            artefacts = _MOST * torch.tanh(self.of_whole(whole) / _MOST)
            # the task is as hard as the voxel's surroundings say, whatever became of the image
            image = torch.cat((torch.zeros_like(artefacts[:, :1]), artefacts), 1)

            sides = images.shape[2:]
            spread = functional.interpolate(self.spread(raw[_SPREAD]), size=sides, mode="trilinear")
            joined = torch.cat([part.flatten(2) for part in (seen, raw[0], spread)], 1)
            voxel = _pointwise(self.out, functional.leaky_relu(_pointwise(self.hidden, joined), _SLOPE))
            said = self.bounds(voxel + image[:, :, None])
        return said.unflatten(2, sides), image

    @torch.no_grad()
    def begin(self, seen: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Standardise the statistics by their mean and SD over some images, which stay as they are from then on.

        Blur moves the log SD of a channel by a tenth, a spike by two: unless both are of the order of one, Adam's steps
        are too long for the one and too short for the other.

        Args:
            seen: features, logits and image of each, (b, channels, x, y, z).
        """
        found = torch.cat(
            [self._told(_seen(features.float(), logits.float()), self._raw(image)) for features, logits, image in seen]
        )
        self.centre.copy_(found.mean(0))
        self.scale.copy_(found.std(0).clamp(min=_LEAST_SD))

    def _dropped(self, units: Float[Tensor, "b u"]) -> Float[Tensor, "b u"]:
        """Dropout in training alone; no module, so that Monte Carlo dropout, of the segmentation, does not find it."""
        return functional.dropout(units, _DROPOUT, self.training)

    def _told(self, seen: Float[Tensor, "b s x y z"], raw: Sequence[Tensor]) -> Float[Tensor, "b g"]:
        """What the whole image tells, not yet standardised."""
        target = seen[:, -1]
        of_image = [_statistics(each) for each in (seen, *raw)]
        of_target = [_statistics(each, target) for each in (seen, raw[0])]
        return torch.cat([*of_image, *of_target], 1)

    def _raw(self, images: Float[Tensor, "b 1 x y z"]) -> list[Tensor]:
        """What the branch finds in the image itself, the finest scale first; (b, channels, *space of the scale)."""
        found = [functional.leaky_relu(self.fine(images), _SLOPE)]
        for layer in self.coarser:
            found.append(functional.leaky_relu(layer(found[-1]), _SLOPE))
        return found


def _seen(features: Float[Tensor, "b f x y z"], logits: Float[Tensor, "b k x y z"]) -> Float[Tensor, "b s x y z"]:
    """Features, logits, softmax entropy [nat], and last the probability of any class but the background."""
    log_p = torch.log_softmax(logits, 1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(1, keepdim=True)
    return torch.cat((features, logits, entropy, 1 - p[:, :1]), 1)


def _statistics(
    channels: Float[Tensor, "b f *space"], weights: Float[Tensor, "b *space"] | None = None
) -> Float[Tensor, "b g"]:
    """Mean and log of the SD of each channel over the image, or over weights, which one voxel of zeros is added to."""
    flat = channels.flatten(2)
    if weights is None:
        mean = flat.mean(2)
        variance = (flat - mean[:, :, None]).square().mean(2)
    else:
        share = weights.flatten(1)[:, None] / (weights.flatten(1).sum(1)[:, None, None] + 1)
        mean = (flat * share).sum(2)
        variance = ((flat - mean[:, :, None]).square() * share).sum(2)
    return torch.cat((mean, 0.5 * torch.log(variance + _FLAT)), 1)


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
