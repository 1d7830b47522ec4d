"""Where a cohort comes from: a generator config, a store on disk, or a user's own series."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor

from generators.config import GeneratorConfig, RootConfig
from generators.sample import Samples, make_samples, make_truth
from generators.scene import scene
from generators.store import PatchStore, StoredSamples
from phantoms.base import Phantom, WithRegions
from qsim.errors import InputError
from qsim.signals import Bloch, SpinLock, SpinLockPreparation, T2Prep, T2Preparation
from qsim.signals.base import SignalModel
from qsim.signals.joint_decay import SpinLockT2Prep
from trainers.relaxation.cohort import Cohort
from trainers.relaxation.measured_cohort import SubjectScans, check_scans, read_cohort

# samples that are made together
_PART = 12


class CohortConfig(RootConfig):
    """A cohort, and which of its subjects are left out of a training.

    Attributes:
        generate: a generator config with `sampling: slices` and a phantom that knows its regions.
        store: the path of a store of such a config.
        scans: a user's own series, with the region of interest of each subject.
        second: with `generate`: preparation of a second series of the same subjects, whose first image is the first
            series' (huang2023).
        second_store: with `store`: the store of that series.
        folds: groups of subjects.
        fold: the group that a training leaves out; counts from 0. null: none, for a network to be given away.
        folds_seed: of the groups.
        validation: subjects of the other groups that are kept for validation.
    """

    generate: GeneratorConfig | None = None
    store: Path | None = None
    scans: tuple[SubjectScans, ...] | None = None
    second: Annotated[SpinLockPreparation | T2Preparation, Field(discriminator="kind")] | None = None
    second_store: Path | None = None
    folds: Annotated[int, Field(strict=True, ge=2)] = 4
    fold: Annotated[int, Field(strict=True, ge=0)] | None = 0
    folds_seed: Annotated[int, Field(strict=True, ge=0)] = 0
    validation: Annotated[int, Field(strict=True, ge=0)] = 3

    @model_validator(mode="after")
    def _fits(self) -> "CohortConfig":
        if sum(each is not None for each in (self.generate, self.store, self.scans)) != 1:
            raise ValueError(
                "cohort: give one of generate (a generator config), store (a path) and scans (series of your own)"
            )
        if self.scans is not None:
            check_scans(self.scans)
        if self.second is not None and self.generate is None:
            raise ValueError("second: goes with generate; with store give second_store")
        if self.second is not None and self.generate is not None and not isinstance(self.generate.signal_model, Bloch):
            raise ValueError("second: is another preparation of the same sequence; set generate.model.kind: bloch")
        if self.second_store is not None and self.store is None:
            raise ValueError("second_store: goes with store; with generate give second")
        if self.fold is not None and self.fold >= self.folds:
            raise ValueError(f"fold: counts from 0 and there are {self.folds}, got {self.fold}")
        for config in (self.generate, self.generate and self.second_config):
            if config is not None:
                check_generator(config)
        return self

    @property
    def second_config(self) -> GeneratorConfig | None:
        """The generator config of the second series: the first with the other preparation."""
        if self.generate is None or self.second is None:
            return None
        plain = self.generate.model_dump(mode="json")
        plain["model"]["preparation"] = json.loads(json.dumps(_plain(self.second)))
        plain["targets"] = []
        return GeneratorConfig.model_validate(plain)


def _plain(preparation: SpinLockPreparation | T2Preparation) -> dict[str, object]:
    from pydantic import TypeAdapter

    found: dict[str, object] = TypeAdapter(type(preparation)).dump_python(preparation, mode="json")
    return found


def check_generator(config: GeneratorConfig) -> None:
    """Refuse what makes no cohort.

    Raises: ValueError naming the field.
    """
    if config.sampling != "slices":
        raise ValueError("cohort.generate.sampling: must be slices, so that subjects are whole and in order")
    if config.store != "images":
        raise ValueError("cohort.generate.store: must be images; a cohort is measured once")
    ideal_of(config.signal_model)


def ideal_of(model: SignalModel) -> SpinLock | T2Prep:
    """The ideal decay of a series: what a network's user takes it for.

    Raises: ValueError if it is none.
    """
    if isinstance(model, SpinLock | T2Prep):
        return model
    if isinstance(model, Bloch) and isinstance(model.preparation, SpinLockPreparation):
        return SpinLock(tsl=model.preparation.tsl)
    if isinstance(model, Bloch) and isinstance(model.preparation, T2Preparation):
        return T2Prep(te_prep=model.preparation.te)
    raise ValueError("cohort.generate.model: must be spin-locked or T2-prepared")


def joined(first: SignalModel, second: SignalModel) -> SpinLockT2Prep:
    """The decay of two series whose first image is one.

    Raises: InputError if they are not a spin-locked and a T2-prepared one, or do not begin at the same time.
    """
    if not (isinstance(first, SpinLock) and isinstance(second, T2Prep)):
        raise InputError("cohort: the first series must be spin-locked, the second T2-prepared")
    if first.tsl[0] != 0 or second.te_prep[0] != 0:
        raise InputError("cohort: both series must begin at 0 s, where they share an image")
    later = second.te_prep[1:]
    return SpinLockT2Prep(tsl=(*first.tsl, *(0.0 for _ in later)), te_prep=(*(0.0 for _ in first.tsl), *later))


def open_cohort(config: CohortConfig) -> Cohort:
    """The cohort of a config.

    Raises: InputError if a store or phantom is not one of slices with a region of interest, or scans cannot be read.
    """
    if config.scans is not None:
        return read_cohort(config.scans)
    if config.store is not None:
        cohort = _stored(config.store)
        if config.second_store is None:
            return cohort
        return _with(cohort, _stored(config.second_store))
    assert config.generate is not None, "the config holds one of the three"
    cohort = generated(config.generate)
    other = config.second_config
    return cohort if other is None else _with(cohort, generated(other))


@lru_cache(maxsize=4)
def _generated(canonical: str) -> Cohort:
    config = GeneratorConfig.model_validate_json(canonical)
    parts = [
        make_samples(config, list(range(first, min(first + _PART, config.samples))))
        for first in range(0, config.samples, _PART)
    ]
    return _cohort(config, parts)


def generated(config: GeneratorConfig) -> Cohort:
    """The cohort that a generator config makes; made once in a process."""
    return _generated(config.model_dump_json())


def without_noise(config: GeneratorConfig, slices: tuple[int, ...]) -> Float[Tensor, "s n y x"]:
    """The images of some slices without noise [units of A]."""
    found = [make_truth(config, i).signal for i in slices]
    return torch.stack(found).abs()


def _stored(path: Path) -> Cohort:
    store = PatchStore(path)
    try:
        check_generator(store.config)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return _cohort(store.config, [store.read(0, len(store))])


def _cohort(config: GeneratorConfig, parts: list[Samples] | list[StoredSamples]) -> Cohort:
    def whole(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    phantom = config.phantom.load(config.split, config.slice_axis)
    kappa, labels = whole("kappa"), whole("labels")
    names = [p.name for p in config.signal_model.parameters]
    spacing = [each for axis, each in enumerate(phantom.spacing_mm) if axis != config.slice_axis]
    return Cohort(
        name=f"{config.phantom.kind}, {len(labels)} slices",
        images=whole("images").float(),
        model=ideal_of(config.signal_model),
        subject=whole("subject").long(),
        roi=_roi(phantom, config, whole("subject").tolist(), whole("origin").tolist()),
        body=labels > 0,
        spacing_mm=(float(spacing[0]), float(spacing[1])),
        digest=config.digest,
        truth={name: kappa[:, i] for i, name in enumerate(names)},
        labels=labels,
        tissues=tuple(scene(config).phantom.tissues),
        purity=whole("purity"),
        sigma=whole("sigma"),
    )


def _roi(
    phantom: Phantom, config: GeneratorConfig, subjects: list[int], origins: list[list[int]]
) -> Bool[Tensor, "s y x"]:
    """Region 1 of every slice."""
    if not isinstance(phantom, WithRegions):
        raise InputError(f"cohort: a {config.phantom.kind} phantom knows no region of interest; take liver or heart")
    volumes = {subject: phantom.regions(subject) == 1 for subject in dict.fromkeys(subjects)}
    axis = config.slice_axis
    found = []
    for subject, origin in zip(subjects, origins, strict=True):
        plane = np.take(volumes[subject], origin[axis], axis)
        corner = [o for a, o in enumerate(origin) if a != axis]
        found.append(plane[tuple(slice(o, o + n) for o, n in zip(corner, config.patch, strict=True))])
    return torch.from_numpy(np.stack(found).copy())


def _with(first: Cohort, second: Cohort) -> Cohort:
    """Both series of the same subjects as one, the second's first image left out.

    Raises: InputError if they are not the same subjects.
    """
    same = first.images.shape[-2:] == second.images.shape[-2:] and torch.equal(first.subject, second.subject)
    if not (
        same and first.labels is not None and second.labels is not None and torch.equal(first.labels, second.labels)
    ):
        raise InputError("cohort: the two series are not of the same subjects and slices")
    model = joined(first.model, second.model)
    digest = hashlib.sha256(f"{first.digest} {second.digest}".encode()).hexdigest()
    return Cohort(
        name=first.name,
        images=torch.cat((first.images, second.images[:, 1:]), 1),
        model=model,
        subject=first.subject,
        roi=first.roi,
        body=first.body,
        spacing_mm=first.spacing_mm,
        digest=digest,
        truth={**second.truth, **first.truth},
        labels=first.labels,
        tissues=first.tissues,
        purity=first.purity,
        sigma=first.sigma,
    )
