"""Training of `local_mixture`: the density of the true log T1 under the posterior of each step.

    loss = sum_j w_j sum_v a_v l_vj / sum_v a_v
    l    = min(30, -log p(u) c) + huber (sqrt(1 + (x - u)^2 / c^2) - 1)

    u, x, p   true log T1, posterior mean, posterior density
    c         1 / c^2 = 1 / d^2 + 1 / .05^2, d the SD of its own likelihood at the truth: every voxel in units of
              what can be known of it, so that no noise level outweighs the others
    w_j       .6^(J - j)
    a_v       1, more in structures, 0 in the background and in mixed voxels

The network is told the true B with a normal error of `jitter` sigma, as what is pooled in use has one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from generators.config import Count
from qsim.distributions import Streams
from qsim.parameters import Parameter
from qsim.signals import InversionRecovery
from qsim.signals.base import SignalModel
from qsim.values import value
from trainers.data import Batch
from trainers.mixture_estimator import MixtureEstimator
from trainers.networks.coordinates import Coordinates
from trainers.networks.local_mixture import WITHIN, LocalMixtureNetwork
from trainers.networks.local_start import LEAST_INFORMATION
from trainers.networks.mixture_posterior import Mixture
from trainers.networks.voxel_likelihood import Recovery
from trainers.protocols import Protocols

# a voxel's surprise counts up to this [1], its squared error up to this many c^2
_MOST_SURPRISE, _MOST_AWAY = 30.0, 1e4
# weight of a step over that of the next
_EARLIER = 0.6
# an inversion cannot be deeper than 2; what is found in use may be a little more [1]
_DEEPEST = 2.05


@value
class LocalMixtureTask:
    """Posterior of T1 by a recurrent network that is given B.

    Attributes:
        jitter: SD of the error of B that it is told, over sigma [1/A].
        huber: weight of the error of the mean beside the density.
        purity: voxels whose majority tissue has a smaller share are left out of the loss.
        structures: labels of structures (the tissues that `with_structures` adds come after those of the anatomy).
        structure_weight: of a voxel of these labels; others weigh 1.
        protocols: random inversion times; None: those of the data.
    """

    kind: Literal["local_mixture"] = "local_mixture"
    jitter: Annotated[float, Field(ge=0)] = 0.1
    huber: Annotated[float, Field(ge=0)] = 0.5
    purity: Annotated[float, Field(ge=0, le=1)] = 0.9
    structures: tuple[Count, ...] = ()
    structure_weight: Annotated[float, Field(gt=0)] = 10.0
    protocols: Protocols | None = None


@dataclass(frozen=True, slots=True)
class MixtureLearning:
    """The task above, matched to a signal model.

    Attributes:
        spec: the task as the config names it.
        network: the network as the config names it.
        model: signal model of the data.
        targets: rows in the estimate; only T1 is in the loss, A and B follow.
    """

    spec: LocalMixtureTask
    network: LocalMixtureNetwork
    model: SignalModel
    targets: tuple[str, ...]

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Rows of the estimate: the whole model."""
        return tuple(self.model.parameters)

    @property
    def protocols(self) -> Protocols | None:
        return self.spec.protocols

    def _solve(
        self, net: nn.Module, batch: Batch, last_only: bool
    ) -> tuple[list[Mixture], Float[Tensor, "b y x"], Float[Tensor, "b y x"], Bool[Tensor, "b y x"]]:
        """Posteriors after each step, true u, c and the voxels that count.

        Assumes: one B per sample; its mean over the object is told.
        """
        model = self.model
        assert isinstance(model, InversionRecovery)
        series = batch.series
        times = batch.times if batch.times is not None else series.new_tensor(model.ti).expand(len(series), -1)
        counted = batch.counted if batch.counted is not None else torch.ones_like(times, dtype=torch.bool)
        mask = batch.labels > 0
        sigma = batch.sigma.reshape(-1, 1, 1)
        rows = dict(zip((p.name for p in self.parameters), batch.kappa.unbind(1), strict=True))
        b = (rows["B"] * mask).sum((1, 2)) / mask.sum((1, 2)).clamp_min(1)
        told = (b + self.spec.jitter * batch.sigma * self._errors(batch)).clamp(max=_DEEPEST)
        answer = net(series, sigma, told, times, counted, mask, model.signed, last_only)
        steps = [Mixture(*one.unbind(1)) for one in answer.unbind(1)]
        u = torch.where(mask, rows["T1"], 1.0).log()
        with torch.no_grad():
            seen = torch.where(counted[:, :, None, None], series, 0.0)
            own = Recovery(seen, times, counted, b, sigma, model.signed).local(u).information + LEAST_INFORMATION
        inside = mask & (batch.purity >= self.spec.purity)
        return steps, u, (own + 1 / WITHIN**2).rsqrt(), inside

    def _errors(self, batch: Batch) -> Float[Tensor, " b"]:
        """Standard normal numbers, one for each position of the training, whatever its batch."""
        drawn = [Streams(0, int(position)).rng("error of B").standard_normal() for position in batch.positions]
        return batch.sigma.new_tensor(drawn)

    def loss(self, net: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        steps, u, c, inside = self._solve(net, batch, last_only=False)
        weight = inside.to(u.dtype)
        for label in self.spec.structures:
            weight = torch.where(inside & (batch.labels == label), self.spec.structure_weight, weight)
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
        """Sum over labelled voxels of the squared error of log T1, as `mse_T1`."""
        steps, u, _, inside = self._solve(net, batch, last_only=True)
        error = torch.where(inside, steps[-1].centre - u, 0.0).double().square().sum()
        return {"count": inside.sum().double(), "mse_T1": error}

    def predictor(self, net: nn.Module) -> MixtureEstimator:
        return MixtureEstimator(
            name=self.spec.kind,
            net=net,
            model=self.model,
            answers=self.parameters,
            targets=self.targets,
            coordinates=Coordinates(self.parameters, self.network.logarithmic),
            needs_sigma=True,
            contrast=self.network.contrast,
        )
