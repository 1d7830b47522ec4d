"""Recurrent inference machine that learns what a voxel can expect of its neighbours, and leaves the physics exact.

    u = log T of the relaxation time; of a recovery B is known. Starting at x, s of `start`, for j = 1 ... J:
        A, g, H  at x (`likelihood`),   d^2 = 1 / (H + 1/4)
        u* = x + lim tanh(g d^2 / lim),   lim = min(2.5 d, 1)
        h1, h2, answer = cell(features of x, d, u*, start, brightness; h1, h2)
        W_c = softmax_c(3 a_c) sigmoid(3 gate) .05^2 / (s^2 + .05^2)                   classes of every voxel, learned
        mu_c = (box(W_c x) + .3 mean(W_c x)) / (box(W_c) + .3) + .1 shift_c            their means in a square
        mu_own = x + .5 shift,   SD about .3                                           none of them: a lesion
        mu_eb, s_eb                                                                    what empirical Bayes expects
        mu_alike = mean of u* over near voxels that look alike + .1 shift              small structures
        x, s = mean and SD of   sum_m w_m N(u; mu_m, s_m^2) N(u*; u, d^2)              (`posterior`)

Every input is free of the protocol and of units: log T about its usual value, its SD, steps in units of SD, brightness
over its RMS. So one network serves every list of times at every noise level; at low noise d is small and the answer is
the likelihood's. Untrained it is close to empirical Bayes. The numbers above scale the answers of the cell to the range
they need; every class keeps at least .02 / 9 of the prior.

    contrast: where d exceeds .055 the prior variances of the last step are multiplied by up to this,
        s_m^2 <- s_m^2 (1 + (contrast - 1) q / (1 + q)),   q = (d / .055)^8
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
from trainers.networks.blocks import ConvGRU, kaiming
from trainers.networks.mixture.likelihood import VoxelLikelihood
from trainers.networks.mixture.parts import WITHIN, PosteriorNetwork, SafeConv, alike, box, log_sd, squash
from trainers.networks.mixture.posterior import Mixture, posterior
from trainers.networks.mixture.start import LEAST_INFORMATION, Start, start

_INPUTS = 15
# log-weights before training: own (rare), empirical Bayes (usual), alike
_OWN, _EB, _ALIKE = -3.0, 2.5, -1.0
# share of the prior that is spread evenly over the classes [1]
_FLOOR = 0.02
# voxels' worth of a class that its mean over the whole image is given
_GLOBAL = 0.3
# SD of the likelihood from which `contrast` acts [1]
_NOISY = 0.055


@value
class LocalMixtureNetwork(PosteriorNetwork):
    """Recurrent inference machine with learned local priors on T, the likelihood in closed form; B from pooled data.

    Attributes:
        features: channels of the hidden layers and of both memory states.
        steps: J.
        classes: of voxels, whose local means are priors.
        radius: of the square in which a class has its mean [voxels].
        alike: radius within which voxels that look alike have a mean of their own [voxels].
        contrast: in use, not in training. 1: the posterior mean, of the least squared error. Above: less shrinkage
            towards the neighbours where the noise is high, and more noise.
    """

    kind: Literal["local_mixture"] = "local_mixture"
    features: Count = 32
    steps: Count = 3
    classes: Count = 6
    radius: Count = 4
    alike: Count = 2
    contrast: Annotated[float, Field(ge=1)] = 1.0

    def build(
        self, model: SignalModel, parameters: tuple[Parameter, ...], generator: torch.Generator
    ) -> "LocalMixture":
        """The network with its starting weights; nothing in it depends on the times of the model.

        Raises: InputError if the model is neither an inversion recovery with free B nor a decay with one time.
        """
        self.check(model, parameters)
        return LocalMixture(self, generator)


class LocalMixture(nn.Module):
    """conv 3x3 - GRU - conv 3x3 dilated 2 - conv 3x3 dilated 4 - GRU - conv 1x1, applied J times."""

    def __init__(self, spec: LocalMixtureNetwork, generator: torch.Generator) -> None:
        super().__init__()
        self.spec = spec
        f, c = spec.features, spec.classes
        self.into = SafeConv(_INPUTS, f, 3, padding=1)
        self.first = ConvGRU(f, 1, "zeros")
        self.wide = nn.ModuleList(SafeConv(f, f, 3, padding=dilation, dilation=dilation) for dilation in (2, 4))
        self.second = ConvGRU(f, 1, "zeros")
        # of each class: membership, weight, width, shift; own: weight, width, shift; gate; alike and EB: see `_prior`
        self.sizes = (c, 1, c + 2, c + 1, c + 1, 3)
        self.out = SafeConv(f, sum(self.sizes), 1)
        kaiming(self, generator)
        with torch.no_grad():
            # training starts near empirical Bayes
            self.out.weight.mul_(0.1)

    def forward(
        self,
        likelihood: VoxelLikelihood,
        mask: Bool[Tensor, "b y x"],
        last_only: bool = False,
        contrast: float = 1.0,
        scene: VoxelLikelihood | None = None,
    ) -> Float[Tensor, "b j 3 m y x"]:
        """Share, mean and variance of each class of the posterior of log T, after each step.

        Args:
            likelihood: of the series, which are 0 outside the mask.
            mask: voxels that are object; what lies outside counts for nothing.
            last_only: keep only the last step (j = 1).
            contrast: of the last step.
            scene: further voxels of each sample, for its histogram only.
        """
        kind = likelihood.series.device.type
        mixed = torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False):
            steps = self._steps(likelihood, mask, start(likelihood, mask, scene), mixed, contrast)
        return torch.stack(
            [torch.stack((m.share, m.mean, m.variance), 1) for m in (steps[-1:] if last_only else steps)], 1
        )

    def _steps(
        self, likelihood: VoxelLikelihood, mask: Bool[Tensor, "b y x"], begun: Start, mixed: bool, contrast: float
    ) -> list[Mixture]:
        x, s = begun.x, begun.s
        states: tuple[Tensor | None, Tensor | None] = (None, None)
        found = []
        for j in range(self.spec.steps):
            with torch.no_grad():
                here = likelihood.local(x.detach())
            noise = 1 / (here.information + LEAST_INFORMATION)
            d = noise.sqrt()
            step = here.score * noise
            limit = (2.5 * d).clamp(max=1.0)
            observed = x + limit * torch.tanh(step / limit)
            near, sure = alike(observed.detach(), noise, x.detach(), s.detach(), begun, mask, self.spec.alike)
            features = _features(x, x - likelihood.typical, s, d, step, near, sure, here.amplitude, begun, mask)
            with torch.autocast(x.device.type, torch.bfloat16, enabled=mixed):
                answer, states = self._cell(features, states)
            prior = self._prior(answer.float(), x, s, near, sure, begun, mask)
            log_weight, mean, variance = prior
            if contrast != 1.0 and j == self.spec.steps - 1:
                q = (noise / _NOISY**2).square().square()
                variance = variance * (1 + (contrast - 1) * q / (1 + q))[:, None]
            mixture = posterior(log_weight, mean, variance, observed, noise)
            found.append(mixture)
            x, s = torch.where(mask, mixture.centre, likelihood.typical), mixture.spread.sqrt()
        return found

    def _cell(
        self, features: Float[Tensor, "b c y x"], states: tuple[Tensor | None, Tensor | None]
    ) -> tuple[Float[Tensor, "b r y x"], tuple[Tensor, Tensor]]:
        first = self.first(torch.relu(self.into(features)), states[0])
        x = first
        for conv in self.wide:
            x = torch.relu(conv(x))
        second = self.second(x, states[1])
        return self.out(second), (first, second)

    def _prior(
        self,
        answer: Float[Tensor, "b r y x"],
        x: Float[Tensor, "b y x"],
        s: Float[Tensor, "b y x"],
        near: Float[Tensor, "b y x"],
        sure: Float[Tensor, "b y x"],
        begun: Start,
        mask: Bool[Tensor, "b y x"],
    ) -> tuple[Float[Tensor, "b m y x"], Float[Tensor, "b m y x"], Float[Tensor, "b m y x"]]:
        """Log-weights, means and variances of the classes, own, empirical Bayes and alike."""
        c = self.spec.classes
        member, gate, weight, width, shift, other = answer.split(self.sizes, 1)
        share = torch.softmax(3 * member, 1) * torch.sigmoid(3 * gate) * mask[:, None]
        share = share * WITHIN**2 / (s.square() + WITHIN**2)[:, None]
        at = x[:, None]
        everywhere = (share * at).sum((2, 3), keepdim=True) / share.sum((2, 3), keepdim=True).clamp_min(1e-6)
        counts = box(share, self.spec.radius)
        mean = (box(share * at, self.spec.radius) + _GLOBAL * everywhere) / (counts + _GLOBAL)
        mu_eb, variance_eb = _expected(begun)
        means = (mean + 0.1 * shift[:, :c], at + 0.5 * shift[:, c:], mu_eb[:, None], near[:, None] + 0.1 * other[:, 2:])
        # SD .05 and .3 before training; a class of few voxels has an uncertain mean
        variances = (
            torch.exp(2 * width[:, :c] - 6.0) + 0.001 / (1 + counts),
            torch.exp(2 * width[:, c:] - 2.4),
            variance_eb[:, None],
            torch.exp(2 * other[:, 1:2] - 5.0) + 1 / sure[:, None],
        )
        variance = torch.cat([v.clamp(0.01**2, 4.0 if i == 2 else 2.0) for i, v in enumerate(variances)], 1)
        offset = answer.new_tensor([0.0] * c + [_OWN, _EB, _ALIKE]).reshape(1, -1, 1, 1)
        weights = torch.softmax(3 * torch.cat((weight, other[:, :1]), 1) + offset, 1)
        # a class that no voxel is given has no slope, and would be lost to the training
        weights = (1 - _FLOOR) * weights + _FLOOR / weights.shape[1]
        return weights.log(), torch.cat(means, 1), variance


def _features(
    x: Float[Tensor, "b y x"],
    usual: Float[Tensor, "b y x"],
    s: Float[Tensor, "b y x"],
    d: Float[Tensor, "b y x"],
    step: Float[Tensor, "b y x"],
    near: Float[Tensor, "b y x"],
    sure: Float[Tensor, "b y x"],
    amplitude: Float[Tensor, "b y x"],
    begun: Start,
    mask: Bool[Tensor, "b y x"],
) -> Float[Tensor, "b c y x"]:
    """What the cell sees, each about 1 in size; 0 outside the mask.

    Args:
        usual: x less the middle of the grid, so that T1 and T2 look alike.
    """
    typical = (amplitude * mask).sum((1, 2), keepdim=True) / mask.sum((1, 2), keepdim=True).clamp_min(1)
    features = (
        squash((near - x) * 10),
        (sure * (d.square() + WITHIN**2)).log() / 2,
        usual,
        log_sd(s),
        log_sd(d),
        squash(step / d),
        squash((begun.u - x) / d),
        (begun.x - x) / begun.s,
        log_sd(begun.s),
        log_sd(begun.d),
        begun.brightness,
        begun.noise.log().expand_as(x) / 2 + 1,
        squash(amplitude / typical.clamp_min(1e-30)),
        mask.float(),
        (x - begun.u).clamp(-1, 1) * 3,
    )
    return torch.stack(features, 1) * mask[:, None]


def _expected(begun: Start) -> tuple[Float[Tensor, "b y x"], Float[Tensor, "b y x"]]:
    """The normal prior that turns the likelihood of a voxel into its empirical-Bayes posterior.

    P = 1 / s^2 - 1 / d^2,   mu = (x / s^2 - u / d^2) / P = x's and u's weighted difference
    """
    precision = begun.s**-2
    left = (precision - begun.d**-2).clamp_min(0.05)
    away = precision * (begun.x - begun.u) / left + begun.u - begun.x
    return begun.x + away.clamp(-1.0, 1.0), (1 / left).clamp(0.01**2, 4.0)
