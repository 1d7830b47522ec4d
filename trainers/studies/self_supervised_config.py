"""The config of a study of kind `self_supervised`: networks that learn without maps, and their opponents."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from generators.config import Count, RootConfig, Seed
from trainers.config import DataConfig, Positive, TrainConfig
from trainers.networks.relaxation.two_stream import TwoStreamNetwork
from trainers.networks.relaxation.unet import UNetNetwork
from trainers.relaxation.cohort_config import CohortConfig
from trainers.relaxation.perturbations import AddedNoise, BrightSquare, UnseenLesion
from trainers.relaxation.task_config import SelfSupervisedTask

# methods without a network; `averaged-7` is the two-point time of images averaged over 7 x 7 voxels, `bilateral-7` of
# those averaged over voxels of such a square that look alike
ALONE = (
    "two-point",
    "averaged-3",
    "averaged-7",
    "bilateral-7",
    "empirical-bayes",
    "population-constant",
    "least-squares",
    "rician",
)
# of these, which look at all images
OF_ALL = ("least-squares", "rician")
# they part the words of a method in tables and files
_PARTING = ("|", ";")
# iterations of a warm-up that the config does not name
_WARMUP = 30


class TrainingKeys(RootConfig):
    """How every network is trained, as in a training config.

    Attributes:
        iterations, batch, lr, schedule, weight_decay, clip, precision: as there.
        warmup: as there; null: 30, or all iterations but one where there are fewer.
        validate_every, patience, keep: as there; with `validation` subjects of the cohort.
    """

    iterations: Count = 300
    batch: Count = 12
    lr: Positive = 2e-3
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup: Annotated[int, Field(strict=True, ge=0)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    clip: Positive | None = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    validate_every: Count = 100
    patience: Count | None = None
    keep: Literal["last", "best"] = "last"


class NetworkEntry(RootConfig):
    """A network of the study.

    Attributes:
        name: in tables. Two entries may share one if each maps another row: STSM of huang2023 is two networks.
        contrast: the network sees and learns this contrast alone; null: all of the cohort.
        task, network: as in a training config.
        iterations, lr: of its own; null: those of `training`.
        samples: passes of Monte Carlo dropout behind its map; 0: one pass without.
        ensemble: whether the networks of all seeds are also judged together.
        perturbed: whether it is also shown the perturbed images.
    """

    name: Annotated[str, Field(min_length=1)]
    contrast: str | None = None
    task: SelfSupervisedTask
    network: Annotated[UNetNetwork | TwoStreamNetwork, Field(discriminator="kind")]
    iterations: Count | None = None
    lr: Positive | None = None
    samples: Annotated[int, Field(strict=True, ge=0)] = 0
    ensemble: bool = False
    perturbed: bool = False

    @model_validator(mode="after")
    def _can_sample(self) -> "NetworkEntry":
        if self.samples and self.network.dropout == 0:
            raise ValueError("samples: a network without dropout has none; set network.dropout or leave samples out")
        return self

    @property
    def states(self) -> bool:
        """Whether it says how uncertain it is."""
        scale = isinstance(self.network, UNetNetwork) and self.network.scale != "none"
        return self.samples > 0 or (scale and self.task.supervision == "constraint")


class Perturbations(RootConfig):
    """What is done to the images of the subjects left out, for networks that are `perturbed`.

    Attributes:
        noise: levels of added noise (huang2022 Fig. 8).
        square: a bright square (its Fig. 9); null: none.
        lesion: a lesion of a kind that no training image holds (its Fig. 10); null: none.
    """

    noise: tuple[AddedNoise, ...] = ()
    square: BrightSquare | None = None
    lesion: UnseenLesion | None = None


class SelfSupervisedConfig(RootConfig):
    """Networks and their opponents on the subjects that a training left out.

    Attributes:
        seed: of all trainings; run k has the seed `seed + k`.
        cohort: the subjects; its `fold` is not used.
        use_folds: folds that are left out one after the other; empty: each.
        seeds: trainings of each network for each fold.
        training: how every network is trained.
        networks: by name.
        alone: methods without a network.
        limits: two-point times are limited to this range [s].
        calibrate: what intervals are calibrated against on the validation subjects: the `truth`, or the `fit` of all
            images, as in vivo.
        perturbations: what else networks are shown.
    """

    kind: Literal["self_supervised"]
    seed: Seed
    cohort: CohortConfig
    use_folds: tuple[Annotated[int, Field(strict=True, ge=0)], ...] = ()
    seeds: Count = 3
    training: TrainingKeys = TrainingKeys()
    networks: tuple[NetworkEntry, ...] = ()
    alone: tuple[str, ...] = ALONE
    limits: tuple[Positive, Positive] = (0.005, 0.2)
    calibrate: Literal["truth", "fit"] = "truth"
    perturbations: Perturbations = Perturbations()

    @model_validator(mode="after")
    def _fits(self) -> "SelfSupervisedConfig":
        for i, name in enumerate(self.alone):
            if name not in ALONE:
                raise ValueError(f"alone[{i}]: got {name!r}, wanted one of {', '.join(ALONE)}")
        if not (self.networks or self.alone):
            raise ValueError("networks: empty, and so is alone; name a method")
        for i, fold in enumerate(self.use_folds):
            if fold >= self.cohort.folds or fold in self.use_folds[:i]:
                raise ValueError(f"use_folds[{i}]: got {fold}; each of 0 to {self.cohort.folds - 1} once")
        if not self.limits[0] < self.limits[1]:
            raise ValueError(f"limits: must rise, got {list(self.limits)} s")
        seen: dict[str, list[NetworkEntry]] = {}
        for i, entry in enumerate(self.networks):
            if entry.name in ALONE:
                raise ValueError(f"networks[{i}].name: {entry.name} is a method of `alone`; take another name")
            for other in seen.get(entry.name, []):
                if not {*entry.task.rows} or {*entry.task.rows} & {*other.task.rows} or not {*other.task.rows}:
                    raise ValueError(f"networks[{i}].name: {entry.name} is given twice; name task.rows that differ")
            seen.setdefault(entry.name, []).append(entry)
        for i, entry in enumerate(self.networks):
            iterations = entry.iterations or self.training.iterations
            if self.training.warmup is not None and self.training.warmup >= iterations:
                where = "training" if entry.iterations is None else f"networks[{i}]"
                raise ValueError(f"training.warmup: must be below {where}.iterations, {iterations}; leave it out")
        asked = self.perturbations.noise or self.perturbations.square or self.perturbations.lesion
        if asked and not any(entry.perturbed for entry in self.networks):
            raise ValueError("perturbations: no network is perturbed: true; say which, or leave perturbations out")
        if self.calibrate == "truth" and self.cohort.scans is not None:
            raise ValueError("calibrate: truth is known of simulated cohorts only; take fit")
        if any(entry.states for entry in self.networks) and self.cohort.validation == 0:
            raise ValueError("cohort.validation: intervals are calibrated on subjects of their own; keep at least 1")
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> "SelfSupervisedConfig":
        for i, name in enumerate(self.alone):
            if name in self.alone[:i]:
                raise ValueError(f"alone[{i}]: {name} is given twice; name it once")
        ensembles = {f"{entry.name}, ensemble": i for i, entry in enumerate(self.networks) if entry.ensemble}
        for i, entry in enumerate(self.networks):
            if any(each in entry.name for each in _PARTING):
                raise ValueError(f"networks[{i}].name: got {entry.name!r}; leave out {' and '.join(_PARTING)}")
            if entry.name in ensembles:
                raise ValueError(
                    f"networks[{i}].name: {entry.name} is what the networks of networks[{ensembles[entry.name]}] are "
                    "called together; take another name"
                )
        return self

    @property
    def folds(self) -> tuple[int, ...]:
        """Those that are run."""
        return self.use_folds or tuple(range(self.cohort.folds))

    def train_config(self, entry: NetworkEntry, fold: int, seed: int) -> TrainConfig:
        """What one network of one run is trained with."""
        keys = self.training.model_dump()
        keys |= {name: own for name in ("iterations", "lr") if (own := getattr(entry, name)) is not None}
        if keys["warmup"] is None:
            keys["warmup"] = min(_WARMUP, keys["iterations"] - 1)
        return TrainConfig(
            seed=self.seed + seed,
            data=DataConfig(cohort=self.cohort.model_copy(update={"fold": fold})),
            task=entry.task,
            network=entry.network,
            checkpoint_every=max(1, keys["iterations"] // 2),
            log_every=max(1, keys["iterations"] // 20),
            **keys,
        )
