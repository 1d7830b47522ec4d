"""The training config: what a YAML file for `qsim train` may say."""

from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from generators.config import Count, GeneratorConfig, RootConfig, Seed
from trainers.networks import NETWORKS, MappingNetwork
from trainers.relaxation.cohort_config import CohortConfig
from trainers.tasks import TASKS, TRAINS, MappingTask

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _union(kinds: tuple[type, ...]) -> Any:
    return Annotated[reduce(or_, kinds), Field(discriminator="kind")]


class DataConfig(RootConfig):
    """Where the patches come from: a store on disk, a generator config whose samples are made while training, a cohort.

    Both give the same batches for the same generator config (a float32 store of images, that is).

    Attributes:
        store: path of a patch store; a relative one is relative to the working directory.
        generate: a generator config, written out.
        cohort: subjects with whole slices, folds and a region of interest, for `task.kind: self_supervised`.
        memory_gb: a store larger than this [10^9 bytes] is not preloaded but read in shuffled blocks.
        workers: processes that load or generate; 0: the training process itself. They change no number.
    """

    store: Path | None = None
    generate: GeneratorConfig | None = None
    cohort: CohortConfig | None = None
    memory_gb: Positive = 8.0
    workers: Annotated[int, Field(strict=True, ge=0)] = 0

    @model_validator(mode="after")
    def _one_of_two(self) -> "DataConfig":
        if sum(each is not None for each in (self.store, self.generate, self.cohort)) != 1:
            raise ValueError("data: give one of store (a path), generate (a generator config) and cohort")
        return self


class TrainConfig(RootConfig):
    """How a network is trained.

    Attributes:
        seed: of the starting weights and the order of the samples.
        data: where the patches come from.
        task: what is learned.
        targets: rows of kappa to be learned; all of the model's if not given.
        network: by `kind`.
        initial: weights to begin with: a run, a file or the name of a shipped network of the same shape; None: random
            ones.
        iterations: updates of the weights.
        batch: samples per update, over all devices.
        lr: learning rate of Adam, at its highest.
        schedule: `constant`, or `cosine`: half a cosine from `lr` to 0 over the iterations.
        warmup: iterations over which the rate rises linearly to `lr`.
        weight_decay: share of each weight that is added to its gradient, as in torch.optim.Adam [1].
        patience: validations in a row without a better one, after which the training ends; null: never.
        keep: weights that are given out: those of the `last` iteration, or of the `best` validation.
        clip: the gradient of all weights together is scaled down to this norm; null: never.
        precision: `auto` is bf16 where the processor multiplies it in hardware, else fp32.
        validation: share of the samples, the last of the data set, that is kept for validation; a cohort keeps
            subjects instead.
        validate_every, checkpoint_every, log_every: iterations.
    """

    seed: Seed
    data: DataConfig
    task: _union(TASKS)  # type: ignore[valid-type]
    targets: tuple[str, ...] = ()
    network: _union(NETWORKS)  # type: ignore[valid-type]
    initial: Annotated[str, Field(min_length=1)] | None = None
    iterations: Count
    batch: Count
    lr: Positive
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: Annotated[int, Field(strict=True, ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    patience: Count | None = None
    keep: Literal["last", "best"] = "last"
    clip: Positive | None = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    validation: Share = 0.05
    validate_every: Count = 500
    checkpoint_every: Count = 500
    log_every: Count = 20

    @model_validator(mode="after")
    def _parts_fit(self) -> "TrainConfig":
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets: a name occurs twice in {', '.join(self.targets)}")
        if self.warmup >= self.iterations:
            raise ValueError(f"warmup must be shorter than the training, got {self.warmup} of {self.iterations}")
        if (self.data.cohort is None) == (self.mapping_task.kind == "self_supervised"):
            raise ValueError("data: a cohort goes with task.kind self_supervised, and no other data do")
        if self.mapping_network.kind not in TRAINS[self.mapping_task.kind]:
            raise ValueError(
                f"network.kind is {self.mapping_network.kind}, which task.kind {self.mapping_task.kind} cannot train"
            )
        return self

    # the unions above are built at run time; these give them their types
    @property
    def mapping_network(self) -> MappingNetwork:
        """The network, as the config names it."""
        return self.network

    @property
    def mapping_task(self) -> MappingTask:
        """The task, as the config names it."""
        return self.task
