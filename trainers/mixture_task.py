"""Training of a mixture network: the density of the true log T under the posterior of each step.

    loss = sum_j w_j sum_v a_v l_vj / sum_v a_v
    l    = min(30, -log p(u) c) + huber (sqrt(1 + (x - u)^2 / c^2) - 1)

    u, x, p   true log T1, posterior mean, posterior density
    c         1 / c^2 = 1 / d^2 + 1 / .05^2, d the SD of its own likelihood at the truth: every voxel in units of
              what can be known of it, so that no noise level outweighs the others
    w_j       .6^(J - j)
    a_v       1, more in lesions, 0 in the background and in mixed voxels

Of a recovery the network is told the true B with a normal error of `jitter` sigma, as what is pooled in use has one.
`scene` further voxels of every sample, with its maps and noise of their own, count in the histogram of the start: an
image shows more voxels of its tissues than a patch. Both are drawn by the position in the training alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from qsim.distributions import Streams
from qsim.parameters import RELAXATION_TIMES, Parameter
from qsim.signals.base import SignalModel
from qsim.values import value
from trainers.data import Batch
from trainers.mixture_estimator import MixtureEstimator
from trainers.networks import MixtureNetwork
from trainers.networks.coordinates import Coordinates
from trainers.networks.mixture.families import likelihood_of
from trainers.networks.mixture.likelihood import VoxelLikelihood
from trainers.networks.mixture.parts import WITHIN
from trainers.networks.mixture.posterior import Mixture
from trainers.networks.mixture.start import LEAST_INFORMATION
from trainers.one_update import OneUpdate
from trainers.protocols import Protocols
from trainers.variety import Lesions, Recolour, Variety

# a voxel's surprise counts up to this [1], its squared error up to this many c^2
_MOST_SURPRISE, _MOST_AWAY = 30.0, 1e4
# weight of a step over that of the next
_EARLIER = 0.6
# an inversion cannot be deeper than 2; what is found in use may be a little more [1]
_DEEPEST = 2.05


@value
class LocalMixtureTask:
    """Posterior of a relaxation time by a network of local mixtures, recurrent or in one pass.

    Attributes:
        jitter: SD of the error of B that it is told, over sigma [1/A].
        huber: weight of the error of the mean beside the density.
        purity: voxels whose majority tissue has a smaller share are left out of the loss.
        scene: further voxels of each sample, for the histogram only.
        protocols: times of their own for a share of the samples; None: those of the data.
        recolour: relaxation times of tissues drawn anew; None: those of the data.
        lesions: small structures; None: none.
    """

    kind: Literal["local_mixture"] = "local_mixture"
    jitter: Annotated[float, Field(ge=0)] = 0.1
    huber: Annotated[float, Field(ge=0)] = 0.5
    purity: Annotated[float, Field(ge=0, le=1)] = 0.9
    scene: Annotated[int, Field(strict=True, ge=0)] = 0
    protocols: Protocols | None = None
    recolour: Recolour | None = None
    lesions: Lesions | None = None


@dataclass(frozen=True, slots=True)
class _Posed:
    """A batch as the network is given it.

    Attributes:
        likelihood: of the series.
        scene: of further voxels of each sample.
        mask: voxels that are object.
        u: true log T [log s].
        c: what can be known of a voxel, as an SD of log T [1].
        inside: voxels that count in the loss.
    """

    likelihood: VoxelLikelihood
    scene: VoxelLikelihood | None
    mask: Bool[Tensor, "b y x"]
    u: Float[Tensor, "b y x"]
    c: Float[Tensor, "b y x"]
    inside: Bool[Tensor, "b y x"]


@dataclass(frozen=True, slots=True)
class MixtureLearning(OneUpdate):
    """The task above, matched to a signal model.

    Attributes:
        spec: the task as the config names it.
        network: the network as the config names it.
        model: signal model of the data.
        targets: rows in the estimate; only the relaxation time is in the loss, A and B follow.
        rician: whether the noise of the data is Rician.
    """

    spec: LocalMixtureTask
    network: MixtureNetwork
    model: SignalModel
    targets: tuple[str, ...]
    rician: bool = False

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Rows of the estimate: the whole model."""
        return tuple(self.model.parameters)

    @property
    def variety(self) -> Variety:
        return Variety(protocols=self.spec.protocols, recolour=self.spec.recolour, lesions=self.spec.lesions)

    def _pose(self, batch: Batch) -> _Posed:
        """Assumes: one B per sample; its mean over the object is told."""
        mask = batch.labels > 0
        sigma = batch.sigma.reshape(-1, 1, 1)
        rows = dict(zip((p.name for p in self.parameters), batch.kappa.unbind(1), strict=True))
        (time,) = (name for name in rows if name in RELAXATION_TIMES)
        u = torch.where(mask, rows[time], 1.0).log()
        b = told = None
        if "B" in rows:
            b = (rows["B"] * mask).sum((1, 2)) / mask.sum((1, 2)).clamp_min(1)
            told = (b + self.spec.jitter * batch.sigma * self._errors(batch)).clamp(max=_DEEPEST)

        def likelihood(b: Tensor | None, series: Tensor, where: Tensor) -> VoxelLikelihood:
            return likelihood_of(
                self.model, series, sigma, where, times=batch.times, counted=batch.counted, b=b, rician=self.rician
            )

        with torch.no_grad():
            truth = likelihood(b, batch.series, mask)
            own = truth.local(u).information + LEAST_INFORMATION
            scene = None
            if self.spec.scene:
                series, there = self._scene(batch, truth, u, rows["A"], mask)
                scene = likelihood(told, series, there)
        inside = mask & (batch.purity >= self.spec.purity)
        seen = truth if told is None else likelihood(told, batch.series, mask)
        return _Posed(seen, scene, mask, u, (own + 1 / WITHIN**2).rsqrt(), inside)

    def _errors(self, batch: Batch) -> Float[Tensor, " b"]:
        """Standard normal numbers, one for each position of the training, whatever its batch."""
        drawn = [Streams(0, int(position)).rng("error of B").standard_normal() for position in batch.positions]
        return batch.sigma.new_tensor(drawn)

    def _scene(
        self,
        batch: Batch,
        likelihood: VoxelLikelihood,
        u: Float[Tensor, "b y x"],
        amplitude: Float[Tensor, "b y x"],
        mask: Bool[Tensor, "b y x"],
    ) -> tuple[Float[Tensor, "b n 1 m"], Bool[Tensor, "b 1 m"]]:
        """Series of `scene` voxels of each sample, drawn with replacement, with noise of their own."""
        count = self.spec.scene
        chosen = torch.zeros(len(u), count, dtype=torch.int64, device=u.device)
        channels = 2 if self.rician else 1
        noise = u.new_zeros(channels, len(u), likelihood.series.shape[1], 1, count)
        there = mask.flatten(1).any(1)
        for i, position in enumerate(batch.positions.tolist()):
            streams = Streams(0, int(position))
            voxels = mask[i].flatten().nonzero()[:, 0]
            if len(voxels):
                drawn = streams.rng("scene").integers(len(voxels), size=count)
                chosen[i] = voxels[torch.from_numpy(drawn).to(voxels.device)]
            generator = streams.torch_generator("scene noise", u.device)
            for channel in noise:
                channel[i].normal_(generator=generator)
        at = [each.flatten(1).gather(1, chosen)[:, None] for each in (u, amplitude)]
        signal = likelihood.signal(at[0], at[1])
        sigma = likelihood.sigma[:, None, :1, :1]
        series = signal + sigma * noise[0]
        if self.rician:
            series = torch.hypot(series, sigma * noise[1])
        return series, there[:, None, None].expand(-1, 1, count)

    def loss(self, net: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        posed = self._pose(batch)
        u, c, inside = posed.u, posed.c, posed.inside
        steps = self._steps(net, posed, last_only=False)
        weight = inside.to(u.dtype)
        if batch.lesions is not None and self.spec.lesions is not None:
            weight = torch.where(inside & batch.lesions, self.spec.lesions.weight, weight)
        total = u.new_zeros(())
        for j, mixture in enumerate(steps):
            surprise = (mixture.surprise(u) - c.log()).clamp(max=_MOST_SURPRISE)
            away = ((mixture.centre - u) / c).square().clamp(max=_MOST_AWAY)
            term = surprise + self.spec.huber * ((1 + away).sqrt() - 1)
            # a batch of background only has loss 0
            term = (torch.where(inside, term, 0.0) * weight).sum() / weight.sum().clamp_min(1)
            total = total + _EARLIER ** (len(steps) - 1 - j) * term
        return {"total": total}

    def metrics(self, net: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Sum over labelled voxels of the squared error of log T, as `mse_<name>`."""
        posed = self._pose(batch)
        (mixture,) = self._steps(net, posed, last_only=True)
        error = torch.where(posed.inside, mixture.centre - posed.u, 0.0).double().square().sum()
        (time,) = (p.name for p in self.parameters if p.name in RELAXATION_TIMES)
        return {"count": posed.inside.sum().double(), f"mse_{time}": error}

    @staticmethod
    def _steps(net: nn.Module, posed: _Posed, last_only: bool) -> list[Mixture]:
        answer = net(posed.likelihood, posed.mask, last_only, scene=posed.scene)
        return [Mixture(*one.unbind(1)) for one in answer.unbind(1)]

    def predictor(self, net: nn.Module) -> MixtureEstimator:
        return MixtureEstimator(
            name=self.network.kind,
            net=net,
            model=self.model,
            answers=self.parameters,
            targets=self.targets,
            coordinates=Coordinates(self.parameters, self.network.logarithmic),
            needs_sigma=True,
            contrast=self.network.contrast,
            rician=self.rician,
            protocols=self.spec.protocols,
        )
