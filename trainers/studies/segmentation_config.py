"""What a YAML file may say of a study of segmentation across domains (jacobs2025, table 1)."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from generators.config import Count, RootConfig, Seed
from trainers.segmentation.config import (
    Augmentation,
    Domain,
    DomainName,
    FoldData,
    Learning,
    SegmentationConfig,
    SegmentationData,
    Whole,
)
from trainers.segmentation.network import FlexibleUNet
from trainers.segmentation.physics_config import Physics

# what a table calls the images of the training's own domain
_TAKEN = ("train", "test")


class AugmentationSet(RootConfig):
    """How the images of a training are changed.

    Attributes:
        name: in tables; those that begin with A, B and C are held against jacobs2025's and against each other.
        augment, physics: as in a training config.
    """

    name: DomainName
    augment: Augmentation
    physics: Physics | None = None


class StudyLearning(Learning):
    """How long and how fast every network is trained; in a study nothing is looked at before its end."""

    validate_every: Count = 512
    checkpoint_every: Count = 64


class SegmentationStudyConfig(RootConfig):
    """Networks of several augmentations, judged on images left out and on other domains.

    Attributes:
        seed: of all trainings; run k of a fold has the seed `seed + k`.
        data: images and masks to learn from, folds by subject.
        tests: domains that no network learns from.
        use_folds: folds that are left out one after the other; empty: each.
        seeds: networks of each set and fold; several are also judged together.
        training: how every network is trained.
        network: the U-Net.
        sets: of augmentations; the first is what the others are held against.
        samples: passes of Monte Carlo dropout of each network, for the uncertainty; 0: none.
        draws: of the bootstrap.
    """

    seed: Seed
    kind: Literal["segmentation"]
    data: SegmentationData
    tests: Annotated[tuple[Domain, ...], Field(min_length=1)]
    use_folds: tuple[Whole, ...] = ()
    seeds: Count = 3
    training: StudyLearning = StudyLearning()
    network: FlexibleUNet = FlexibleUNet()
    sets: Annotated[tuple[AugmentationSet, ...], Field(min_length=1)]
    samples: Whole = 0
    draws: Count = 2000

    @model_validator(mode="after")
    def _fits(self) -> "SegmentationStudyConfig":
        for i, fold in enumerate(self.use_folds):
            if fold >= self.data.folds or fold in self.use_folds[:i]:
                raise ValueError(f"use_folds[{i}]: got {fold}; each of 0 to {self.data.folds - 1} once")
        for field, names in (
            ("tests", [each.name for each in self.tests]),
            ("sets", [each.name for each in self.sets]),
        ):
            for i, name in enumerate(names):
                if name in names[:i]:
                    raise ValueError(f"{field}[{i}].name: {name} is given twice")
                if name in _TAKEN:
                    raise ValueError(f"{field}[{i}].name: {name} is what images of data.train are called; take another")
        if self.samples == 1:
            raise ValueError("samples: one pass with dropout has no spread; give at least 2, or 0")
        if self.samples and self.network.dropout == 0:
            raise ValueError("samples: a network without dropout has none; set network.dropout, or leave samples out")
        return self

    @property
    def folds(self) -> tuple[int, ...]:
        """Those that are run."""
        return self.use_folds or tuple(range(self.data.folds))

    def train_config(self, chosen: AugmentationSet, fold: int, seed: int) -> SegmentationConfig:
        """What one network is trained with."""
        return SegmentationConfig(
            kind="segmentation",
            seed=self.seed + seed,
            data=FoldData(
                **{**{name: getattr(self.data, name) for name in SegmentationData.model_fields}, "fold": fold}
            ),
            augment=chosen.augment,
            physics=chosen.physics,
            network=self.network,
            **{name: getattr(self.training, name) for name in Learning.model_fields},
        )
