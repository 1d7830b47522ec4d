"""Residual network on what empirical Bayes says of every voxel: one pass, and a posterior of two normals.

    u = log T; x, s, v, d of `start` (empirical Bayes: mean, SD; likelihood: top, SD)
    h = stem(x, s, v, d, brightness, amplitude, near voxels that look alike)
    h <- h + gain conv(relu(conv_dilated(norm(h))))       blocks; gain 0 at the start
    o = head(relu(norm(h)))
    posterior    r N(x + 2 s o_1, (s exp(o_3))^2) + (1 - r) N(x + 2 s (o_1 + o_2), (s exp(o_4 + .7))^2),
                 logit r = 3 o_5 + 1.5

No statistics over image or batch: a voxel's answer depends on its surroundings only, and untrained it is empirical
Bayes. Times, noise and units enter by the start alone, so one network serves every list of times at every noise level.
The physics is in the start; unlike `local`, what the network adds is not multiplied with the likelihood again.

Source: residual blocks: He et al. 2016, arXiv:1603.05027; of T1 and T2 maps: sabidussi2021 section 4.4.3.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from generators.config import Count
from qsim.parameters import Parameter
from qsim.signals.base import SignalModel
from qsim.values import value
from trainers.networks.blocks import ChannelNorm, kaiming
from trainers.networks.mixture.likelihood import VoxelLikelihood
from trainers.networks.mixture.parts import WITHIN, PosteriorNetwork, SafeConv, alike, log_sd, squash
from trainers.networks.mixture.start import Start, start

_INPUTS = 12
# classes of the posterior
_NORMALS = 2


@value
class ResidualMixtureNetwork(PosteriorNetwork):
    """Residual network that starts at empirical Bayes, aware of the times and of the noise; B from pooled data.

    Attributes:
        features: channels of the hidden layers.
        dilations: of the first convolution of each block.
        alike: radius within which voxels that look alike have a mean of their own [voxels].
    """

    kind: Literal["residual_mixture"] = "residual_mixture"
    features: Count = 32
    dilations: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2, 4, 8, 2, 1)
    alike: Count = 2

    @property
    def contrast(self) -> float:
        """Always 1: there is no likelihood to weigh priors against."""
        return 1.0

    def build(
        self, model: SignalModel, parameters: tuple[Parameter, ...], generator: torch.Generator
    ) -> "ResidualMixture":
        """The network with its starting weights; nothing in it depends on the times of the model.

        Raises: InputError if the model is neither an inversion recovery with free B nor a decay with one time.
        """
        self.check(model, parameters)
        return ResidualMixture(self, generator)


class _Block(nn.Module):
    def __init__(self, features: int, dilation: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(features)
        self.wide = SafeConv(features, features, 3, padding=dilation, dilation=dilation)
        self.near = SafeConv(features, features, 3, padding=1)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, h: Float[Tensor, "b f y x"]) -> Float[Tensor, "b f y x"]:
        answer: Tensor = h + self.gain * self.near(torch.relu(self.wide(self.norm(h))))
        return answer


class ResidualMixture(nn.Module):
    """conv 3x3 - residual blocks - norm - conv 1x1, once."""

    def __init__(self, spec: ResidualMixtureNetwork, generator: torch.Generator) -> None:
        super().__init__()
        self.spec = spec
        f = spec.features
        self.stem = SafeConv(_INPUTS, f, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(f, dilation) for dilation in spec.dilations)
        self.norm = ChannelNorm(f)
        self.head = SafeConv(f, 2 * _NORMALS + 1, 1)
        kaiming(self, generator)
        nn.init.zeros_(self.head.weight)

    def forward(
        self,
        likelihood: VoxelLikelihood,
        mask: Bool[Tensor, "b y x"],
        last_only: bool = False,  # noqa: ARG002  as other networks of posteriors are called
        contrast: float = 1.0,
        scene: VoxelLikelihood | None = None,
    ) -> Float[Tensor, "b 1 3 2 y x"]:
        """Share, mean and variance of each class of the posterior of log T.

        Args:
            likelihood: of the series, which are 0 outside the mask.
            mask: voxels that are object; what lies outside counts for nothing.
            last_only, contrast: of other networks; there is one step, and nothing to weigh.
            scene: further voxels of each sample, for its histogram only.
        """
        assert contrast == 1.0, "a residual network has no contrast"
        kind = likelihood.series.device.type
        mixed = torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False):
            begun = start(likelihood, mask, scene)
            features = self._features(likelihood, begun, mask)
        with torch.autocast(kind, torch.bfloat16, enabled=mixed):
            h = self.stem(features)
            for block in self.blocks:
                h = block(h)
            answer = self.head(torch.relu(self.norm(h)))
        return _posterior(answer.float(), begun)[:, None]

    @torch.no_grad()
    def _features(
        self, likelihood: VoxelLikelihood, begun: Start, mask: Bool[Tensor, "b y x"]
    ) -> Float[Tensor, "b c y x"]:
        """What the network sees, each about 1 in size; 0 outside the mask."""
        x, s, d = begun.x, begun.s, begun.d
        near, sure = alike(begun.u, d.square(), x, s, begun, mask, self.spec.alike)
        amplitude = likelihood.local(x).amplitude
        typical = (amplitude * mask).sum((1, 2), keepdim=True) / mask.sum((1, 2), keepdim=True).clamp_min(1)
        features = (
            x - likelihood.typical,
            begun.u - likelihood.typical,
            log_sd(s),
            log_sd(d),
            (d / s).log(),
            squash((begun.u - x) / s),
            squash((near - x) / s),
            (sure * (d.square() + WITHIN**2)).log() / 2,
            begun.brightness,
            begun.noise.log().expand_as(x) / 2 + 1,
            squash(amplitude / typical.clamp_min(1e-30)),
            mask.float(),
        )
        return torch.stack(features, 1) * mask[:, None]


def _posterior(answer: Float[Tensor, "b 5 y x"], begun: Start) -> Float[Tensor, "b 3 2 y x"]:
    """The formula of the module."""
    first, apart, narrow, wide, logit = answer.unbind(1)
    s = begun.s
    share = torch.sigmoid(3 * logit + 1.5)
    means = torch.stack((begun.x + 2 * s * first, begun.x + 2 * s * (first + apart)), 1)
    # SDs within a factor of 50 of that of empirical Bayes
    sds = s[:, None] * torch.stack((narrow, wide + 0.7), 1).clamp(-4, 4).exp()
    return torch.stack((torch.stack((share, 1 - share), 1), means, sds.square().clamp_min(1e-7)), 1)
