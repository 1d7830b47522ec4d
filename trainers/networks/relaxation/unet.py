"""U-Net of huang2022 and huang2023: two or three images in, relaxation times out, with or without their scale."""

from math import log
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from generators.config import Count
from qsim.parameters import Parameter
from qsim.signals.base import SignalModel
from qsim.values import value
from trainers.networks.relaxation.answers import Range, averages, neighbours, range_of, two_point, unlikeness, weights
from trainers.networks.relaxation.spec import RelaxationSpec
from trainers.networks.relaxation.trunk import Norm, Step, UNet, start
from trainers.relaxation.contrasts import Contrast, contrasts

# log of the Laplace scale of the residuals where a training begins; from 0 the maps starve before the scale has fallen
LOG_SCALE = -3.5
# intervals are told as log(t / 30 ms) [s]
_MIDDLE = 0.03
# and two-point times as log(T / 50 ms) [s]
_USUAL = 0.05
# the log of a scale lies at most this far below where it began
_LEAST = 6.0


@value
class UNetNetwork(RelaxationSpec):
    """The U-Net, as a config names it.

    Attributes:
        features: channels of the first level; each level down has twice as many.
        levels: the full image included; huang2022 has five of 32 to 512 channels.
        dropout: share of the values after each block of a decoder that is left out in training and in Monte Carlo
            sampling [1]; 0: none.
        norm: `batch`, as in the papers; `channel`: over the channels of each voxel by itself.
        up: how a decoder steps up.
        inputs: `images`, as in the papers; `two_point`: also the two-point times of the images averaged over squares,
            and the time between the images, so that one network serves every time.
        answer: `bounded` or `averaging`, see `answers.py`.
        sizes: sides of those squares; odd [voxels].
        kernel: side of the square whose voxels have weights of their own in an answer by averaging, beside the means
            over those of `sizes` that are larger; odd [voxels].
        scale: what else is learned: `none`; `constant`: one Laplace scale of each contrast (HOMOU of huang2023);
            `head`: a map of it as one more channel (huang2022); `decoder`: from a decoder of its own (HETEU).
        shortest, longest: bounds of relaxation times [s].
    """

    kind: Literal["unet"] = "unet"
    features: Count = 32
    levels: Annotated[int, Field(strict=True, ge=1, le=7)] = 5
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.25
    norm: Norm = "batch"
    up: Step = "transposed"
    inputs: Literal["images", "two_point"] = "images"
    answer: Literal["bounded", "averaging"] = "bounded"
    sizes: tuple[Count, ...] = (1, 3, 7, 15)
    kernel: Count = 7
    scale: Literal["none", "constant", "head", "decoder"] = "head"
    shortest: Annotated[float, Field(gt=0)] = 0.005
    longest: Annotated[float, Field(gt=0)] = 0.5

    def __post_init__(self) -> None:
        self.check_bounds()
        for name, sides in (("sizes", self.sizes), ("kernel", (self.kernel,))):
            if not sides or any(side % 2 == 0 for side in sides):
                raise ValueError(f"{name} must be odd numbers of voxels, got {list(sides)}")

    @property
    def larger(self) -> tuple[int, ...]:
        """Sides of the squares whose means are averaged beside the voxels of the kernel."""
        return tuple(size for size in self.sizes if size > self.kernel)

    def build(self, model: SignalModel, parameters: tuple[Parameter, ...], generator: torch.Generator) -> "UNetMaps":
        """The network from an input of `model` to the rows `parameters`, with its starting weights.

        Raises: InputError if the model is no decay.
        """
        return UNetMaps(self, contrasts(model), parameters, generator)


def _bounded(u: Float[Tensor, "b r y x"]) -> Float[Tensor, "b r y x"]:
    """u, but never below -6: where residuals vanish the likelihood has no bound of its own."""
    return functional.softplus(u + _LEAST) - _LEAST


class UNetMaps(nn.Module):
    """Images of an input to rows and scales.

    Attributes:
        multiple: the sides of an image must be multiples of it [voxels].
    """

    def __init__(
        self,
        spec: UNetNetwork,
        joined: tuple[Contrast, ...],
        parameters: tuple[Parameter, ...],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.spec, self.multiple = spec, 2 ** (spec.levels - 1)
        self.ranges = [range_of(row, spec.shortest, spec.longest) for row in parameters]
        names = [each.row.name for each in joined]
        # place of the contrast of each row; rows that no contrast stands for have no two-point time
        self.contrast_of = [names.index(row.name) if row.name in names else None for row in parameters]
        self.scales = sum(each is not None for each in self.contrast_of)
        averaged = spec.answer == "averaging"
        # a logit of each place, and the precision with which places are compared
        places = spec.kernel**2 + len(spec.larger) + 1
        self.channels = [places if averaged and c is not None else 1 for c in self.contrast_of]
        channels = 1 + len(joined)
        if spec.inputs == "two_point":
            channels += len(joined) * (len(spec.sizes) + 1)
        maps, scales = sum(self.channels), self.scales
        answers = {"head": (maps + scales,), "decoder": (maps, scales)}.get(spec.scale, (maps,))
        self.trunk = UNet(channels, answers, spec.features, spec.levels, spec.norm, spec.up, spec.dropout)
        start(self.trunk, generator)
        first = self.trunk.bias(0)
        with torch.no_grad():
            place = 0
            for within, width in zip(self.ranges, self.channels, strict=True):
                # places that look alike begin with the same weight
                first[place : place + width] = within.share() if width == 1 else 0.0
                place += width
        # of each contrast that is learned; what the network answers is added to it
        self.log_scale = nn.Parameter(torch.full((scales,), LOG_SCALE), requires_grad=spec.scale == "constant")

    def forward(
        self, images: Float[Tensor, "b k y x"], intervals: Float[Tensor, "b r"]
    ) -> dict[str, Float[Tensor, "b a y x"]]:
        """Rows [SI] under `rows`, and the log of the Laplace scale of each learned contrast under `log_scale`.

        Args:
            images: the common first image and one of each contrast, all over `joint_scale` [1].
            intervals: from the first to that of each contrast [s].
        """
        answers = self.trunk(self._features(images, intervals))
        channels = answers[0]
        averaging = self.spec.answer == "averaging"
        pool = self._pool(images.float()) if averaging else None
        unlike = unlikeness(images.float(), self.spec.kernel, self.spec.larger) if averaging else None
        rows, place = [], 0
        for within, width, contrast in zip(self.ranges, self.channels, self.contrast_of, strict=True):
            said = channels[:, place : place + width]
            if pool is None or unlike is None or contrast is None:
                rows.append(within.value(said[:, 0]))
            else:
                share = weights(said, unlike)
                first, later = ((share * pool[:, :, i]).sum(1, keepdim=True) for i in (0, 1 + contrast))
                rows.append(torch.exp(two_point(first, later, intervals[:, contrast], within)[:, 0]))
            place += width
        found = {"rows": torch.stack(rows, 1)}
        around = self.log_scale[None, :, None, None]
        if self.spec.scale == "constant":
            found["log_scale"] = around.expand(len(images), -1, *images.shape[-2:])
        elif self.spec.scale == "head":
            found["log_scale"] = around + _bounded(channels[:, place:])
        elif self.spec.scale == "decoder":
            found["log_scale"] = around + _bounded(answers[1])
        return found

    def _pool(self, images: Float[Tensor, "b k y x"]) -> Float[Tensor, "b w k y x"]:
        """What an answer by averaging weighs."""
        return torch.cat((neighbours(images, self.spec.kernel), averages(images, self.spec.larger)), 1)

    def _features(self, images: Float[Tensor, "b k y x"], intervals: Float[Tensor, "b r"]) -> Float[Tensor, "b c y x"]:
        """What the trunk sees."""
        if self.spec.inputs == "images":
            return images
        mean = averages(images.float(), self.spec.sizes)
        within = Range(self.spec.shortest, self.spec.longest, self.spec.shortest, True)
        times = [
            two_point(mean[:, :, 0], mean[:, :, 1 + r], interval, within) - log(_USUAL)
            for r, interval in enumerate(intervals.unbind(1))
        ]
        told = torch.log(intervals / _MIDDLE)[:, :, None, None].expand(-1, -1, *images.shape[-2:])
        return torch.cat((images, *times, told), 1)
