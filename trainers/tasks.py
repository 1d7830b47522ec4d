"""What is learned: a loss over a batch, and how the trained network is read as an estimator."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from qsim.errors import InputError
from qsim.parameters import Parameter
from qsim.signals.base import SignalModel, SpatialModel
from qsim.values import value
from trainers.data import Batch, Source
from trainers.losses import squared_error
from trainers.mixture_task import LocalMixtureTask, MixtureLearning
from trainers.network_estimator import NetworkEstimator
from trainers.networks import MappingNetwork, MixtureNetwork, RelaxationNetwork, ResNetNetwork, RIMNetwork
from trainers.networks.coordinates import Coordinates
from trainers.networks.mixture.families import times_of
from trainers.one_update import OneUpdate
from trainers.relaxation.task import RelaxationLearning
from trainers.relaxation.task_config import SelfSupervisedTask
from trainers.variety import Variety

# weights of rows in the loss
Weights = Mapping[str, Annotated[float, Field(gt=0)]]


@runtime_checkable
class Task(Protocol):
    """What is learned."""

    @property
    def model(self) -> SignalModel:
        """Signal model of the data."""
        ...

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Rows of the network's answer."""
        ...

    @property
    def targets(self) -> tuple[str, ...]:
        """Rows in the loss and in the estimate."""
        ...

    @property
    def variety(self) -> Variety:
        """What is drawn anew for every sample beside noise."""
        ...

    def loss(self, net: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Terms of the loss; `total` is minimised."""
        ...

    def updates(self, net: nn.Module, batch: Batch) -> Iterator[Tensor]:
        """What is minimised with a batch, one update of the weights after the other."""
        ...

    def begin(self, net: nn.Module, batch: Batch) -> None:
        """Set what depends on the data before the first iteration, with its batch."""
        ...

    def metrics(self, net: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Sums over a validation batch: `count`, and what is to be divided by it."""
        ...


@value
class RIMTask:
    """Supervised maps by a recurrent inference machine, loss averaged over its steps.

    Attributes:
        weighting: how the samples of a batch add up. `equal`: mean of their squared errors: the noisiest weigh most.
            `root`: mean of the roots of their mean squared errors: a sample weighs by how well it can be solved.
        weights: of a row in the loss, by name; 1 if not given. An error of a relaxation time is relative.
        purity: voxels whose majority tissue has a smaller share are left out of the loss: their stored truth is that of
            the majority tissue, their signal is not [1].
        voxels: `tissue`: those of the purity above. `all`: the background too, whose true maps are 0 [SI], as in the
            package of sabidussi2021's authors; the purity is then not used.
    """

    kind: Literal["rim"] = "rim"
    weighting: Literal["equal", "root"] = "root"
    weights: Weights = field(default_factory=dict)
    purity: Annotated[float, Field(ge=0, le=1)] = 0.9
    voxels: Literal["tissue", "all"] = "tissue"


@value
class ResNetTask:
    """Supervised maps by a residual network.

    Attributes:
        weighting, weights, purity, voxels: as for the RIM.
    """

    kind: Literal["resnet"] = "resnet"
    weighting: Literal["equal", "root"] = "root"
    weights: Weights = field(default_factory=dict)
    purity: Annotated[float, Field(ge=0, le=1)] = 0.9
    voxels: Literal["tissue", "all"] = "tissue"


TASKS = (RIMTask, ResNetTask, LocalMixtureTask, SelfSupervisedTask)
MappingTask = RIMTask | ResNetTask | LocalMixtureTask | SelfSupervisedTask
# kinds of networks that each kind of task trains
TRAINS = {
    "rim": ("rim",),
    "resnet": ("resnet",),
    "local_mixture": ("local_mixture", "residual_mixture"),
    "self_supervised": ("unet", "two_stream"),
}


@dataclass(frozen=True, slots=True)
class Supervised(OneUpdate):
    """One of the two tasks above, matched to a signal model: the maps of a simulation are the truth.

    Attributes:
        spec: the task as the config names it.
        network: the network as the config names it.
        model: signal model of the data.
        targets: rows in the loss and in the estimate.
    """

    spec: RIMTask | ResNetTask
    network: RIMNetwork | ResNetNetwork
    model: SignalModel
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.spec.voxels == "all" and self.network.logarithmic:
            raise InputError(
                "task.voxels: all counts the background, where relaxation times are 0 and have no logarithm; take "
                "tissue, or network.update modulus (rim), maps (resnet) or additive"
            )

    @property
    def variety(self) -> Variety:
        return Variety()

    @property
    def coordinates(self) -> Coordinates:
        """Coordinates in which the network learns all rows of the model."""
        return self.network.coordinates(self.parameters)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Rows of the network's answer: the whole model for a network that evaluates it, else the targets."""
        if self.network.any_length:
            return tuple(self.model.parameters)
        return tuple(p for p in self.model.parameters if p.name in self.targets)

    def _rows(self, of: tuple[Parameter, ...]) -> list[int]:
        return [i for i, p in enumerate(of) if p.name in self.targets]

    def _solve(
        self, net: nn.Module, batch: Batch, last_only: bool
    ) -> tuple[Float[Tensor, "b j q *space"], Float[Tensor, "b q *space"], Bool[Tensor, "b *space"]]:
        """Coordinates of answer and truth of the target rows, and the voxels of enough of one tissue."""
        sigma = batch.sigma.reshape(-1, 1, 1)
        u = net(batch.series, sigma, last_only)[:, :, self._rows(self.parameters)]
        inside = (batch.labels > 0) & (batch.purity >= self.spec.purity)
        every = self.network.coordinates(tuple(self.model.parameters))
        kappa = batch.kappa if self.spec.voxels == "all" else every.fill(batch.kappa, ~inside)
        truth = every.encode(kappa)[:, self._rows(every.parameters)]
        return u, truth, inside

    def loss(self, net: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        u, truth, inside = self._solve(net, batch, last_only=False)
        if self.spec.voxels == "all":
            inside = torch.ones_like(inside)
        names = [p.name for p in self.model.parameters if p.name in self.targets]
        weights = u.new_tensor([self.spec.weights.get(name, 1.0) for name in names])
        error = squared_error(u, truth, inside, weights)
        if self.spec.weighting == "root":
            # the root of 0 has no slope; 1e-3 is far below the noise of any sample
            error = torch.sqrt(error + 1e-6)
        return {"total": error.mean()}

    def metrics(self, net: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Sum over labelled voxels of the squared error of each target's coordinate, as `mse_<name>`."""
        u, truth, inside = self._solve(net, batch, last_only=True)
        error = torch.where(inside[:, None], u[:, -1] - truth, 0.0).double().square().flatten(2).sum((0, 2))
        names = [p.name for p in self.model.parameters if p.name in self.targets]
        sums = {f"mse_{name}": error[i] for i, name in enumerate(names)}
        return {"count": inside.sum().double(), **sums}

    def predictor(self, net: nn.Module) -> NetworkEstimator:
        return NetworkEstimator(
            name=self.spec.kind,
            net=net,
            model=self.model,
            answers=self.parameters,
            targets=self.targets,
            coordinates=self.coordinates,
            needs_sigma=self.network.needs_sigma,
        )


def task_of(
    spec: MappingTask, network: MappingNetwork, source: Source, targets: tuple[str, ...], seed: int
) -> Supervised | MixtureLearning | RelaxationLearning:
    """The task of a config on its data.

    Args:
        seed: of what a task draws itself.
    Raises: InputError as `supervised`, or if the data do not go with the task.
    """
    if isinstance(spec, SelfSupervisedTask):
        assert isinstance(network, RelaxationNetwork), "the config has checked that task and network fit"
        if targets:
            raise InputError("targets: a self_supervised task names what it learns in task.rows; leave it out")
        return RelaxationLearning(spec, network, source.model, source.rows, seed)
    return supervised(spec, network, source.model, targets, source.noise)


def supervised(
    spec: RIMTask | ResNetTask | LocalMixtureTask,
    network: MappingNetwork,
    model: SignalModel,
    targets: tuple[str, ...],
    noise: str = "gaussian",
) -> Supervised | MixtureLearning:
    """The task of a config on the data's model.

    Args:
        noise: kind of the noise of the data; a posterior's likelihood is of it.
    Raises: InputError if a target is no row of the model, or the task has no likelihood for the noise.
    """
    rows = tuple(p.name for p in model.parameters)
    unknown = [name for name in targets if name not in rows]
    if unknown:
        raise InputError(f"targets: {', '.join(unknown)} is no row of the data's model, which has {', '.join(rows)}")
    if isinstance(spec, LocalMixtureTask):
        assert isinstance(network, MixtureNetwork), "the config has checked that task and network fit"
        times_of(model)
        if noise == "noncentral_chi":
            raise InputError("noise.kind: a mixture network has a Gaussian or a Rician likelihood; take rician data")
        wanted = tuple(name for name in rows if not targets or name in targets)
        return MixtureLearning(spec, network, model, wanted, rician=noise == "rician")
    if network.any_length and isinstance(model, SpatialModel) and model.mixes_voxels:
        raise InputError(
            "task.kind: rim evaluates the model voxel by voxel, and this readout mixes voxels; "
            "take resnet, or model.readout.acquisition.encoding: centre"
        )
    unknown = [name for name in spec.weights if name not in (targets or rows)]
    if unknown:
        raise InputError(f"task.weights: {', '.join(unknown)} is not among the targets {', '.join(targets or rows)}")
    assert isinstance(network, RIMNetwork | ResNetNetwork), "the config has checked that task and network fit"
    return Supervised(spec, network, model, tuple(name for name in rows if not targets or name in targets))
