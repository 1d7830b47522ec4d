"""What a YAML file may say of the training of a segmentation across domains (jacobs2025)."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from generators.config import Count, GeneratorConfig, RootConfig, Seed
from generators.reading import read_config
from qsim.errors import InputError
from trainers.segmentation.augment import Additional, RotationScaling
from trainers.segmentation.network import FlexibleUNet
from trainers.segmentation.physics_config import Physics

Positive = Annotated[float, Field(gt=0)]
Whole = Annotated[int, Field(strict=True, ge=0)]
Augmentation = Annotated[RotationScaling | Additional, Field(discriminator="kind")]
DomainName = Annotated[str, Field(pattern=r"^[^|/\n]+$")]
# the network halves five times
_LEAST_SIZE = 32


def _from_file(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    try:
        return read_config(Path(given), GeneratorConfig)
    except InputError as error:
        raise ValueError(str(error)) from None


Generate = Annotated[GeneratorConfig, BeforeValidator(_from_file, json_schema_input_type=GeneratorConfig | str)]


class LabelledFile(RootConfig):
    """Images of your own with their mask.

    Attributes:
        image: NIfTI file of axes x, y, z or x, y, z, n: z slices, n contrasts, which share the mask.
        mask: on its voxels, x, y, z; above 0 is the target. Slices without a target are left out.
        subject: files of one subject are never parted by a fold; the name of the image if not given.
        times: inversion times of the contrasts, for `physics` [s].
    """

    image: Path
    mask: Path
    subject: str | None = None
    times: tuple[Positive, ...] | None = None


class Domain(RootConfig):
    """Series of co-registered images with one mask each, all of one kind.

    Attributes:
        name: in tables.
        generate: a generator config, written out or as the path of its file; its data set is made once, in the
            training's own folder.
        store: path of a patch store of slices.
        files: images of your own.
        images: how many of each series are used, those of the highest SNR; noise is the same in all images of a series,
            so these are the ones of the largest mean square.
    """

    name: DomainName
    generate: Generate | None = None
    store: Path | None = None
    files: tuple[LabelledFile, ...] = ()
    images: Count = 2

    @model_validator(mode="after")
    def _one_of_three(self) -> "Domain":
        if sum((self.generate is not None, self.store is not None, bool(self.files))) != 1:
            raise ValueError("give one of generate (a generator config), store (a path) and files (image and mask)")
        if self.generate is not None:
            check_slices(self.generate)
        return self


def check_slices(config: GeneratorConfig) -> None:
    """Refuse a data set that is no set of two-dimensional series.

    Raises: ValueError naming the field.
    """
    if len(config.patch) != 2:
        raise ValueError(f"patch must hold two numbers (a slice), got {len(config.patch)}")
    if config.store != "images":
        raise ValueError("store: maps holds no images; choose store: images")


class SegmentationData(RootConfig):
    """Which images are learned from.

    Attributes:
        train: the domain of the training, parted into folds by subject.
        target: tissues of a simulated domain that are the mask, together.
        size: longest side of what a network sees [voxels].
        folds: groups of subjects.
        split_seed: of these groups.
        workers: processes that make the views; 0: the training process itself. They change no number.
    """

    train: Domain
    target: Annotated[tuple[str, ...], Field(min_length=1)] = ("myocardium", "scar")
    size: Annotated[int, Field(strict=True, ge=_LEAST_SIZE)] = 384
    folds: Annotated[int, Field(strict=True, ge=2)] = 5
    split_seed: Seed = 0
    workers: Whole = 0


class FoldData(SegmentationData):
    """The same with the fold that is left out.

    Attributes:
        fold: its number, from 0.
    """

    fold: Whole = 0

    @model_validator(mode="after")
    def _fold_exists(self) -> "FoldData":
        if self.fold >= self.folds:
            raise ValueError(f"fold: got {self.fold}, wanted 0 to {self.folds - 1}")
        return self


class Learning(RootConfig):
    """How long and how fast.

    Attributes:
        epochs: each shows every training image once.
        batch: images per update; not told in jacobs2025.
        lr: learning rate of Adam, constant.
        average: what is given out is a running mean of the weights of which each update keeps this share; 0, as in
            the paper: the last weights. Short trainings at a constant rate end anywhere around a good place, and their
            mean is nearer to it.
        precision: of the U-Net; `auto` is bf16 where the processor multiplies it in hardware, else fp32.
        validate_every: epochs between two looks at the fold that is left out; they choose nothing.
        checkpoint_every: epochs.
    """

    epochs: Count = 512
    batch: Annotated[int, Field(strict=True, ge=2)] = 8
    lr: Positive = 3e-4
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    validate_every: Count = 16
    checkpoint_every: Count = 16


class SegmentationConfig(Learning):
    """How a segmentation of the left ventricle is trained.

    Attributes:
        seed: of the weights, the order and all that is drawn.
        data: images and masks.
        augment: `rotation_scaling` (set A of jacobs2025) or `additional` (set B).
        physics: images of other contrasts, made from the series' own maps; with set B, set C. None: none.
        network: the U-Net.
    """

    kind: Literal["segmentation"]
    seed: Seed
    data: FoldData
    augment: Augmentation
    physics: Physics | None = None
    network: FlexibleUNet = FlexibleUNet()

    # the union above is built at run time; this gives it its type
    @property
    def augmentation(self) -> RotationScaling | Additional:
        """The augmentation."""
        return self.augment
