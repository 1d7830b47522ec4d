"""A cohort as the samples of a training: a slice is a sample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import TypeAdapter
from torch import Tensor

from generators.store import PatchStore
from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.signals.base import SignalModel
from trainers.data import Batch
from trainers.relaxation.cohort import FITTED, Cohort, fit, folds
from trainers.relaxation.cohort_config import CohortConfig, open_cohort
from trainers.variety import Variety


@dataclass(frozen=True, slots=True)
class CohortSource:
    """The slices of some subjects, those for training before those for validation.

    Attributes:
        cohort: all subjects.
        slices: numbers of the slices.
        held_out: of these, the last, for validation.
        maps: rows of `Batch.kappa`: the true ones, and those of a fit as "fit/<row>".
        record: what a network on disk says of its data.
    """

    cohort: Cohort
    slices: tuple[int, ...]
    held_out: int
    maps: Mapping[str, Float[Tensor, "s y x"]]
    record: Mapping[str, Any]

    @property
    def model(self) -> SignalModel:
        return self.cohort.model

    @property
    def noise(self) -> str:
        return "rician"

    @property
    def stored(self) -> Literal["images", "maps"]:
        return "images"

    @property
    def digest(self) -> str:
        return self.cohort.digest

    @property
    def rows(self) -> tuple[str, ...]:
        return tuple(self.maps)

    def __len__(self) -> int:
        return len(self.slices)

    def validation(self, share: float) -> int:
        del share
        return self.held_out

    def order(self, seed: int, epoch: int, n: int) -> Int[np.ndarray, " n"]:
        return Streams(seed, epoch).rng("order").permutation(n)

    def take(self, indices: Sequence[int]) -> Batch:
        chosen = [self.slices[index] for index in indices]
        images = self.cohort.images[chosen]
        space = images.shape[-2:]
        sigma = images.new_full((len(chosen),), torch.nan) if self.cohort.sigma is None else self.cohort.sigma[chosen]
        return Batch(
            images=images,
            kappa=torch.stack([row[chosen] for row in self.maps.values()], 1)
            if self.maps
            else images.new_zeros((len(chosen), 0, *space)),
            labels=self.cohort.body[chosen].to(torch.uint8),
            purity=self.cohort.body[chosen].float() if self.cohort.purity is None else self.cohort.purity[chosen],
            sigma=sigma,
            positions=torch.zeros(len(chosen), dtype=torch.int64),
        )

    def prepare(self, batch: Batch, seed: int, variety: Variety) -> Batch:
        del seed
        variety.check(self.model, "images")
        return batch


def training_subjects(cohort: Cohort, config: CohortConfig) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Subjects to train on, to validate on, and those that are left out.

    Raises: InputError if the validation leaves nobody.
    """
    groups = folds(cohort.subjects, config.folds, config.folds_seed)
    left_out = () if config.fold is None else groups[config.fold]
    others = [subject for group in groups for subject in group if subject not in left_out]
    order = Streams(config.folds_seed, 0).rng("validation").permutation(len(others))
    shuffled = [others[i] for i in order]
    if config.validation >= len(shuffled):
        raise InputError(
            f"data.cohort.validation: {config.validation} of {len(shuffled)} subjects leave none to train on"
        )
    count = len(shuffled) - config.validation
    return tuple(sorted(shuffled[:count])), tuple(sorted(shuffled[count:])), left_out


def cohort_source(cohort: Cohort, config: CohortConfig, supervision: str) -> CohortSource:
    """The samples of a training.

    Args:
        supervision: of the task; `fit` has the least-squares maps of all images made.
    Raises: InputError for too few subjects, or `truth` of a measured cohort.
    """
    train, validation, left_out = training_subjects(cohort, config)
    if supervision == "truth" and not cohort.truth:
        raise InputError("task.supervision: truth is known of simulated cohorts only; take constraint or fit")
    maps = dict(cohort.truth)
    if supervision == "fit":
        maps |= {FITTED + row: found for row, found in fit(cohort.images, cohort.model).items()}
    held_out = cohort.slices_of(validation)
    record = {
        "cohort": config.model_dump(mode="json"),
        "subjects": {"trained_on": list(train), "validated_on": list(validation), "left_out": list(left_out)},
        "times": TypeAdapter(type(cohort.model)).dump_python(cohort.model, mode="json"),
    }
    slices = tuple(int(i) for i in (*cohort.slices_of(train), *held_out))
    return CohortSource(cohort, slices, len(held_out), maps, record)


def open_cohort_source(config: CohortConfig, supervision: str) -> CohortSource:
    """As `cohort_source`, from the config alone.

    Raises: InputError as it and `open_cohort`.
    """
    source = cohort_source(open_cohort(config), config, supervision)
    if config.store is None:
        return source
    # the path of a store says nothing where the network is used
    made = PatchStore(config.store).config.model_dump(mode="json")
    return replace(source, record={**source.record, "generator": made})
