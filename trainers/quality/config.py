"""What a YAML file may say of the training of a segmentation with decoupled uncertainty (shaw2021)."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from generators.config import Count, GeneratorConfig, RootConfig, Seed, _union
from qsim.kspace import ARTEFACTS, BiasField
from qsim.kspace.artefacts.base import Artefact
from trainers.quality.network import DecoupledUNet

TASK = "task"
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Patch = Annotated[tuple[Count, ...], Field(min_length=3, max_length=3)]
StageName = str


class BlockData(RootConfig):
    """Clean blocks of some anatomies.

    Attributes:
        store: path of a patch store of 3D patches, one image each, without artefacts.
        generate: the generator config of such a store, which the training makes once, in its own folder.
    """

    store: Path | None = None
    generate: GeneratorConfig | None = None

    @model_validator(mode="after")
    def _fits(self) -> "BlockData":
        if (self.store is None) == (self.generate is None):
            raise ValueError("give one of store (a path) and generate (a generator config)")
        if self.generate is not None:
            check_blocks(self.generate)
        return self


def check_blocks(config: GeneratorConfig) -> None:
    """Refuse a data set whose patches are no clean volumes.

    Raises: ValueError naming the field.
    """
    if len(config.patch) != 3:
        raise ValueError(f"patch must hold three numbers (a volume), got {len(config.patch)}")
    if config.signal_model.n_images != 1:
        raise ValueError(f"model: a segmentation takes one image, this series has {config.signal_model.n_images}")
    if config.store != "images":
        raise ValueError("store: maps holds no images; choose store: images")
    if config.artefact_list:
        raise ValueError("artefacts: the blocks are clean, artefacts are added while training; name them in sources")


class QualityData(RootConfig):
    """Which anatomies are learned from.

    Attributes:
        train, validation: blocks; those for validation should be of other anatomies.
        calibration: images for the error bars of volumes and the usual size of each variance on clean images; the
            validation blocks if there are none.
        target: tissues to be segmented, each a class of its own; the rest is background.
        brain: tissues that are left when a head is stripped.
        brain_only: share of the images that are stripped to these, at random.
        workers: processes that make the views; 0: the training process itself. They change no number.
    """

    train: Annotated[tuple[BlockData, ...], Field(min_length=1)]
    validation: Annotated[tuple[BlockData, ...], Field(min_length=1)]
    calibration: tuple[BlockData, ...] = ()
    target: Annotated[tuple[str, ...], Field(min_length=1)] = ("gm",)
    brain: tuple[str, ...] = ("csf", "gm", "wm", "vessel")
    brain_only: Share = 0.5
    workers: Annotated[int, Field(strict=True, ge=0)] = 0

    @field_validator("target")
    @classmethod
    def _once(cls, target: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(target)) < len(target):
            raise ValueError(f"target: a tissue is named twice in {', '.join(target)}")
        return target


class SourceConfig(RootConfig):
    """One source of uncertainty besides the task.

    Attributes:
        name: of its variance.
        artefacts: what belongs to it; where it happens, one of them is drawn, all equally likely.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    artefacts: Annotated[tuple[_union(ARTEFACTS), ...], Field(min_length=1)]  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _fits(self) -> "SourceConfig":
        if self.name == TASK:
            raise ValueError(f"name: {TASK} is the uncertainty of the segmentation itself; take another name")
        for number, artefact in enumerate(self.kinds):
            if artefact.probability != 1:
                raise ValueError(
                    f"artefacts[{number}].probability: `corrupted` says how often a source happens; leave it out"
                )
        return self

    # the union above is built at run time; this gives it its type
    @property
    def kinds(self) -> tuple[Artefact[Any], ...]:
        """The artefacts."""
        return self.artefacts


class Augment(RootConfig):
    """What is changed in every image, with artefacts or without.

    Attributes:
        rotation_deg: largest angle about each axis [degrees].
        scale: largest change of size [1].
        flip: whether each axis is mirrored in half of the images.
        bias_field: shading of the coil, of each image; its phase becomes that of the image.
        gamma: the image, at most about 1, is raised to a power drawn log-uniformly between these; contrast varies.
        brightness: largest change of the logarithm of the intensity that a network sees [1].
    """

    rotation_deg: Annotated[float, Field(ge=0, le=180)] = 10.0
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.1
    flip: Annotated[bool, Field(strict=True)] = True
    bias_field: BiasField | None = None
    gamma: Annotated[tuple[Positive, Positive], Field()] = (1.0, 1.0)
    brightness: Annotated[float, Field(ge=0)] = 0.1

    @model_validator(mode="after")
    def _fits(self) -> "Augment":
        if self.gamma[0] > self.gamma[1]:
            raise ValueError(f"gamma: {self.gamma[0]} is more than {self.gamma[1]}; give the smaller first")
        return self


class StageConfig(RootConfig):
    """How one network of the cascade is trained.

    Attributes:
        iterations: updates of the weights.
        lr: learning rate of Adam at its highest.
        batch: images per update; pairs of them in the stage of the heads.
        schedule: `constant`; `cosine`: half a cosine from `lr` to 0; `plateau`: halved with epsilon where the loss no
            longer falls (shaw2021 section 6).
    """

    iterations: Count
    lr: Positive = 1e-4
    batch: Count = 2
    schedule: Literal["constant", "cosine", "plateau"] = "plateau"


class Stages(RootConfig):
    """The stages of a cascade; `teacher` and `heads` belong to one recipe each."""

    task: StageConfig
    student: StageConfig
    teacher: StageConfig | None = None
    heads: StageConfig | None = None


class HeadWeights(RootConfig):
    """Weights of the loss of the heads, recipe `qsim`.

    Attributes:
        silence: of the mean variance of sources that are not there.
        carried: of the difference between the logs of the task's variance on the corrupted and on the clean view.
        image_level: of the mean variance of an image beside its paired excess.
        together: share of the corrupted views with a second source.
    """

    silence: Annotated[float, Field(ge=0)] = 1.0
    carried: Annotated[float, Field(ge=0)] = 1.0
    image_level: Annotated[float, Field(ge=0)] = 1.0
    together: Share = 0.2


class DecoupledConfig(RootConfig):
    """How a segmentation with an uncertainty for each source is trained.

    Attributes:
        seed: of weights, order and all that is drawn.
        data: clean blocks.
        sources: of uncertainty, besides the task.
        corrupted: share of the images that get at least one artefact.
        patch: extent of what a network sees [voxels].
        augment: changes of every image.
        network: the U-Net and its heads.
        recipe: `paper`: task, a teacher for each source, student (Eq. 4 to 7 of shaw2021). `qsim`: task, student,
            then the heads of the frozen student from pairs of a clean and a corrupted view.
        stages: how long each is trained.
        epsilon: added to the variance, at the start [1].
        ssim: weight of the structural similarity in Eq. 7.
        heads: weights of the loss of recipe `qsim`.
        precision: of the U-Net; `auto` is bf16 where the processor multiplies it in hardware, else fp32.
        validate_every, checkpoint_every, log_every: iterations.
        validation_views: images on which a stage is validated.
    """

    kind: Literal["decoupled"]
    seed: Seed
    data: QualityData
    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)]
    corrupted: Annotated[float, Field(gt=0, lt=1)] = 0.5
    patch: Patch
    augment: Augment = Augment()
    network: DecoupledUNet = DecoupledUNet()
    recipe: Literal["paper", "qsim"]
    stages: Stages
    epsilon: Positive = 0.05
    ssim: Annotated[float, Field(ge=0)] = 0.1
    heads: HeadWeights = HeadWeights()
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    validate_every: Count = 250
    checkpoint_every: Count = 250
    log_every: Count = 20
    validation_views: Count = 24

    @model_validator(mode="after")
    def _parts_fit(self) -> "DecoupledConfig":
        names = self.source_names
        if len(set(names)) < len(names):
            raise ValueError(f"sources: a name occurs twice in {', '.join(names)}")
        wanted, unwanted = ("teacher", "heads") if self.recipe == "paper" else ("heads", "teacher")
        if getattr(self.stages, wanted) is None:
            raise ValueError(f"stages.{wanted}: missing; recipe {self.recipe} has it")
        if getattr(self.stages, unwanted) is not None:
            raise ValueError(f"stages.{unwanted}: recipe {self.recipe} has no such stage; leave it out")
        for group in ("train", "validation"):
            for number, data in enumerate(getattr(self.data, group)):
                if data.generate is not None and any(
                    n < p for n, p in zip(data.generate.patch, self.patch, strict=True)
                ):
                    raise ValueError(
                        f"patch: {' x '.join(map(str, self.patch))} does not fit into the blocks of data.{group}"
                        f"[{number}], {' x '.join(map(str, data.generate.patch))}"
                    )
        return self

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources, without the task."""
        return tuple(source.name for source in self.sources)

    @property
    def variances(self) -> tuple[str, ...]:
        """Names of the variances in their order."""
        return (TASK, *self.source_names)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The networks of the cascade, in the order in which they can be trained."""
        if self.recipe == "qsim":
            return ("task", "student", "heads")
        return ("task", *(f"teacher-{name}" for name in self.source_names), "student")

    def stage(self, name: str) -> StageConfig:
        """How the stage of that name is trained."""
        found = getattr(self.stages, name.partition("-")[0])
        assert isinstance(found, StageConfig), "the config has checked its stages"
        return found
