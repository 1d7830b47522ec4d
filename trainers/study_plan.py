"""What a study is: its config, and the plan that is made of it once anatomy and networks are read."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from generators.config import Count, GeneratorConfig, RootConfig, Seed
from generators.sample import make_truth, scene
from phantoms.base import VolumePhantom
from qsim import distributions
from qsim.errors import InputError
from qsim.estimators import ESTIMATORS, Estimator, build_estimator
from qsim.evaluation.study import PAINTERS, Case
from qsim.signals import ClosedForm
from qsim.tissues import TissueTable

# of what a block holds: raised when the same config gives other numbers
_VERSION = 2
Snr = Annotated[float, Field(gt=0)]


class ModelEntry(BaseModel):
    """A trained network among the estimators.

    Attributes:
        model: folder of the run, or name of a shipped network.
        name: in tables; that of the network's task if not given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    model: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1)] | None = None


class StudyConfig(RootConfig):
    """A Monte Carlo study of noise around known truth.

    Attributes:
        seed: of the noise; that of the truths is `data.seed`.
        kind: noise: relative bias, CV and RMSE over noise realisations.
        data: anatomy, tissues, signal model, kind of noise. Its `patch`, `samples` and the distribution of sigma give
            way to `crop`, `draws` and `snr`; patch and samples may be left out.
        estimators: names, or `{model: run}` for trained networks.
        snr: signal of white matter over the noise SD, 0.65 / sigma.
        draws: truths: anatomy, tissue values and B are drawn anew in each.
        repeats: noise realisations of each truth at each SNR.
        crop: extent of the images in voxels; the whole slice if not given.
        allow_training_anatomy: study anatomy that networks were, or may have been, trained on; the report says so.
    """

    seed: Seed
    kind: Literal["noise"]
    data: GeneratorConfig
    estimators: Annotated[tuple[str | ModelEntry, ...], Field(min_length=1)]
    snr: Annotated[tuple[Snr, ...], Field(min_length=1)] = (3.0, 5.0, 10.0, 30.0, 60.0, 100.0)
    draws: Count = 6
    repeats: Annotated[int, Field(strict=True, ge=2)] = 100
    crop: tuple[Count, ...] | None = None
    allow_training_anatomy: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        """What the study decides itself need not be written into `data`."""
        if isinstance(given, dict) and isinstance(given.get("data"), dict):
            crop = given.get("crop")
            patch = crop if isinstance(crop, list | tuple) and len(crop) in (2, 3) else (1, 1)
            return {**given, "data": {"samples": 1, "patch": patch, **given["data"]}}
        return given

    @field_validator("kind", mode="before")
    @classmethod
    def _known_kind(cls, given: Any) -> Any:
        if given != "noise":
            raise ValueError(f"kind: got {given!r}, wanted 'noise'; other kinds of study have configs of their own")
        return given

    @field_validator("estimators", mode="before")
    @classmethod
    def _names_or_models(cls, given: Any) -> Any:
        if not isinstance(given, list | tuple):
            return given
        for i, entry in enumerate(given):
            if isinstance(entry, str | ModelEntry):
                continue
            if not isinstance(entry, dict) or "model" not in entry or set(entry) - {"model", "name"}:
                raise ValueError(
                    f"estimators[{i}]: got {entry!r}, wanted a name ({', '.join(ESTIMATORS)}) or {{model: run}}"
                )
        return given

    @field_validator("crop")
    @classmethod
    def _two_or_three(cls, crop: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if crop is not None and len(crop) not in (2, 3):
            raise ValueError(f"crop must hold two numbers (a slice) or three (a block), got {len(crop)}")
        return crop

    @model_validator(mode="after")
    def _fits(self) -> "StudyConfig":
        if self.data.split != "test" and not self.allow_training_anatomy:
            raise ValueError(
                "data.split: got train, wanted test: a study on the anatomy of the training flatters networks; "
                "set split: test, or allow_training_anatomy: true, which the report then says"
            )
        for name, values in (("snr", self.snr), ("estimators", self.estimators)):
            twice = [str(v) for i, v in enumerate(values) if v in values[:i]]
            if twice:
                raise ValueError(f"{name}: {', '.join(twice)} is given twice")
        for i, entry in enumerate(self.estimators):
            if isinstance(entry, str):
                try:
                    build_estimator(entry, self.data.signal_model)
                except InputError as error:
                    raise ValueError(f"estimators[{i}]: {str(error).removeprefix('estimators: ')}") from None
        return self


@dataclass(frozen=True, slots=True)
class Model:
    """A trained network of the study, as provenance records it."""

    run: str
    sha256: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """A study, everything read and checked, nothing computed.

    Attributes:
        config: with the crop and the draws written into `data`.
        table: tissue table.
        cases: truth of each draw.
        estimators: without the painters.
        models: the networks among them, by estimator name.
        seen: those of them whose training may have held the anatomy of the study.
        device: where networks run.
    """

    config: StudyConfig
    table: TissueTable
    cases: tuple[Case, ...]
    anatomy: str
    origins: tuple[str, ...]
    estimators: tuple[Estimator, ...]
    models: Mapping[str, Model] = field(default_factory=dict)
    seen: tuple[str, ...] = ()
    device: str = "cpu"

    @property
    def digest(self) -> str:
        """sha256 of all that decides the numbers: config, weights, version of the package."""
        content = {
            "version": [version("qsim"), _VERSION],
            "config": self.config.model_dump(mode="json"),
            "models": {name: dict(model.sha256) for name, model in self.models.items()},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def shared(self) -> tuple[str, ...]:
        """Rows that are one number per image: drawn once for a sample, and changed by no field."""
        data = self.config.data
        changed = {row for field in data.field_list for row in field.changes}
        once = set(self.table.per_sample) - changed
        return tuple(p.name for p in data.signal_model.parameters if p.name in once)

    @property
    def nuisance(self) -> tuple[str, ...]:
        """Rows that are no target, of a Bloch model: the fields and times that a fit would be given, not the data tell.

        A closed form has no such rows: its B is as unknown as ever when only T1 is wanted.
        """
        data = self.config.data
        if isinstance(data.signal_model, ClosedForm):
            return ()
        rows = [p.name for p in data.signal_model.parameters]
        return tuple(row for i, row in enumerate(rows) if i not in data.target_rows)

    @property
    def prior(self) -> Float[Tensor, "t q"]:
        """Mean of each parameter in each tissue, by the table."""
        rows = [p.name for p in self.config.data.signal_model.parameters]
        table = self.table
        means = [
            [
                distributions.mean(table.per_sample[row] if row in table.per_sample else table[t].values[row])
                for row in rows
            ]
            for t in self.cases[0].tissues
        ]
        return torch.tensor(means)

    @property
    def weights(self) -> Float[Tensor, " t"]:
        """Share of each tissue in the voxels of the study."""
        counts = [[int((case.labels == k + 1).sum()) for k in range(len(case.tissues))] for case in self.cases]
        return torch.tensor(counts).sum(0).float()


def make_plan(config: StudyConfig, device: str = "cpu") -> Plan:
    """Read anatomy and networks, draw the truths.

    Raises: InputError naming the field at fault.
    """
    world = scene(config.data)
    crop = config.crop or _whole(world.phantom, config.data.slice_axis)
    data = config.data.model_copy(update={"patch": tuple(crop), "samples": config.draws})
    try:
        truths = [make_truth(data, draw) for draw in range(config.draws)]
    except InputError as error:
        # the patch of the generator is the crop of the study
        raise InputError(
            "crop" + str(error).removeprefix("patch") if str(error).startswith("patch") else str(error)
        ) from None
    estimators: list[Estimator] = []
    models: dict[str, Model] = {}
    seen: list[str] = []
    for i, entry in enumerate(config.estimators):
        if isinstance(entry, str):
            estimators.append(build_estimator(entry, data.signal_model))
            continue
        estimator, held_out = _load(entry, i, data, device)
        if not held_out:
            if not config.allow_training_anatomy:
                raise InputError(
                    f"estimators[{i}].model: {entry.model} may have been trained on the anatomy of this study: only "
                    "split: train of the same phantom (every key of it) and slice_axis is apart from split: test; "
                    "train it there, or set allow_training_anatomy: true, which the report then says"
                )
            seen.append(estimator.name)
        models[estimator.name] = Model(entry.model, _checksums(entry.model))
        estimators.append(estimator)
    names = [*(estimator.name for estimator in estimators), *PAINTERS]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"estimators: two are called {', '.join(twice)}; name one of them: {{model: ..., name: ...}}")
    return Plan(
        config=config.model_copy(update={"data": data}),
        table=world.table,
        cases=tuple(
            Case(draw, t.signal, t.kappa, t.labels, t.purity, world.phantom.tissues) for draw, t in enumerate(truths)
        ),
        anatomy=world.phantom.description if isinstance(world.phantom, VolumePhantom) else type(world.phantom).__name__,
        origins=tuple(f"subject {t.subject}, first voxel {', '.join(map(str, t.origin))}" for t in truths),
        estimators=tuple(estimators),
        models=models,
        seen=tuple(seen),
        device=device,
    )


def _whole(phantom: object, slice_axis: int) -> tuple[int, ...]:
    """Extent of a whole slice that every subject has."""
    if not isinstance(phantom, VolumePhantom):
        raise InputError("crop: missing, and this phantom does not tell the size of a slice; give it in voxels")
    shape = tuple(min(volume.shape[1 + a] for volume in phantom.volumes) for a in range(len(phantom.spacing_mm)))
    return shape if len(shape) == 2 else shape[:slice_axis] + shape[slice_axis + 1 :]


@dataclass(frozen=True, slots=True)
class _Renamed:
    """An estimator under another name."""

    name: str
    estimator: Estimator

    @property
    def parameters(self) -> tuple[Any, ...]:
        return self.estimator.parameters

    def __call__(
        self,
        images: Tensor,
        sigma: float | Tensor | None = None,
        mask: Tensor | None = None,
        known: Mapping[str, Tensor] | None = None,
    ) -> Any:
        return self.estimator(images, sigma=sigma, mask=mask, known=known)


def _load(entry: ModelEntry, number: int, data: GeneratorConfig, device: str) -> tuple[Estimator, bool]:
    """A network, and whether it cannot have seen the anatomy of the study."""
    from trainers.infer import load_estimator

    try:
        network = load_estimator(entry.model, data.signal_model, device)
    except InputError as error:
        raise InputError(f"estimators[{number}].model: {error}") from None
    trained = network.trained_on
    if trained is not None and trained.seed == data.seed:
        raise InputError(
            f"data.seed: {data.seed} is the seed of the training data of {entry.model}: the draws of the study would "
            "have the tissue values and B of training samples; choose another"
        )
    held_out = trained is not None and _apart(trained, data)
    return (network if entry.name is None else _Renamed(entry.name, network)), held_out


def _apart(trained: GeneratorConfig, data: GeneratorConfig) -> bool:
    """Whether a training set and a study hold disjoint anatomy: train and test of one way to split it, or two kinds."""
    if trained.phantom_spec.kind != data.phantom_spec.kind:
        return True
    one_split = trained.phantom_spec == data.phantom_spec and trained.slice_axis == data.slice_axis
    return one_split and (trained.split, data.split) == ("train", "test")


def _checksums(run: str) -> dict[str, str]:
    """sha256 of the weights of a run."""
    from trainers.infer import find_network

    file = find_network(run)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
