"""What a study is: its config, and the plan that is made of it once anatomy and networks are read."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import AfterValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from generators.config import Count, GeneratorConfig, RootConfig, Seed
from generators.sample import make_truth, scene
from phantoms.base import VolumePhantom
from qsim import distributions
from qsim.errors import InputError
from qsim.estimators import Estimator, TissuePrior
from qsim.evaluation.blocks import block_key
from qsim.evaluation.study import PAINTERS, Case
from qsim.signals import ClosedForm
from qsim.tissues import TissueTable
from trainers.studies.block_runner import Command
from trainers.studies.methods import (
    Chosen,
    Entry,
    MethodEntry,
    ModelEntry,
    Weights,
    check_entries,
    check_shapes,
    choose,
    pools,
    takes_prior,
)

__all__ = ["AnatomyStudy", "MethodEntry", "ModelEntry", "Plan", "StudyConfig", "make_plan", "tissue_prior"]

# of what a block holds: raised when the same config gives other numbers
_VERSION = 3
# outside, sigma or the squares of the images leave the range of float32, or noise is below its rounding
_LOWEST_SNR, _HIGHEST_SNR = 0.01, 1e6


def _in_range(snr: float) -> float:
    if not _LOWEST_SNR <= snr <= _HIGHEST_SNR:
        raise PydanticCustomError("out_of_range", "wanted an SNR (0.65 / sigma) from 0.01 to 1e6")
    return snr


Snr = Annotated[
    float, AfterValidator(_in_range), Field(json_schema_extra={"minimum": _LOWEST_SNR, "maximum": _HIGHEST_SNR})
]


class AnatomyStudy(RootConfig):
    """What the Monte Carlo studies on anatomy share: methods, and noise around known truth.

    Attributes:
        seed: of the noise; that of the truths is `data.seed`.
        kind: which study.
        data: anatomy, tissues, signal model, kind of noise. Its `patch`, `samples` and the distribution of sigma give
            way to `crop`, `draws` and `snr`; patch and samples may be left out.
        estimators: names, `{model: run}` for trained networks, or `{method, name, known, options}`.
        snr: signal of white matter over the noise SD, 0.65 / sigma.
        draws: truths: anatomy, tissue values and B are drawn anew in each.
        repeats: noise realisations of each truth at each SNR.
        crop: extent of the images in voxels; the whole slice if not given.
        allow_training_anatomy: study anatomy that networks were, or may have been, trained on; the report says so.
    """

    seed: Seed
    kind: str
    data: GeneratorConfig
    estimators: Annotated[tuple[Entry, ...], Field(min_length=1)]
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

    @field_validator("estimators", mode="before")
    @classmethod
    def _names_or_models(cls, given: Any) -> Any:
        return check_shapes(given)

    @field_validator("crop")
    @classmethod
    def _two_or_three(cls, crop: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if crop is not None and len(crop) not in (2, 3):
            raise ValueError(f"crop must hold two numbers (a slice) or three (a block), got {len(crop)}")
        return crop

    @model_validator(mode="after")
    def _fits(self) -> "AnatomyStudy":
        if self.data.split != "test" and not self.allow_training_anatomy:
            raise ValueError(
                "data.split: got train, wanted test: a study on the anatomy of the training flatters networks; "
                "set split: test, or allow_training_anatomy: true, which the report then says"
            )
        twice = [f"{snr:g}" for i, snr in enumerate(self.snr) if snr in self.snr[:i]]
        if twice:
            raise ValueError(f"snr: {', '.join(twice)} is given twice")
        check_entries(self.estimators, self.data.signal_model, tissue_prior(self.data, self.estimators))
        return self


class StudyConfig(AnatomyStudy):
    """A study of noise: relative bias, CV and RMSE over noise realisations (sabidussi2021, section 5.1.1)."""

    kind: Literal["noise"]

    @field_validator("kind", mode="before")
    @classmethod
    def _known_kind(cls, given: Any) -> Any:
        if given != "noise":
            raise ValueError(f"kind: got {given!r}, wanted 'noise'; other kinds of study have configs of their own")
        return given


@dataclass(frozen=True, slots=True)
class Plan:
    """A study, everything read and checked, nothing computed.

    Attributes:
        config: with the crop and the draws written into `data`.
        table: tissue table.
        cases: truth of each draw.
        methods: without the painters.
        device: where networks run.
    """

    config: AnatomyStudy
    table: TissueTable
    cases: tuple[Case, ...]
    anatomy: str
    origins: tuple[str, ...]
    methods: tuple[Chosen, ...]
    device: str = "cpu"

    @property
    def digest(self) -> str:
        """sha256 of all that decides the numbers: config, weights, version of the package."""
        content = {
            "version": [version("qsim"), _VERSION],
            "config": self.config.model_dump(mode="json"),
            "models": {m.name: dict(m.weights.sha256) for m in self.methods if m.weights},
            "own": [dict(m.source) for m in self.methods if m.source],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def blocks(self) -> dict[str, tuple[int, float]]:
        """Draw and SNR of each block, by its name."""
        return {block_key(case.draw, snr): (case.draw, snr) for case in self.cases for snr in self.config.snr}

    @property
    def estimators(self) -> tuple[Estimator, ...]:
        """Those of the methods."""
        return tuple(method.estimator for method in self.methods)

    @property
    def models(self) -> dict[str, Weights]:
        """The networks among the methods, by name."""
        return {method.name: method.weights for method in self.methods if method.weights}

    @property
    def seen(self) -> tuple[str, ...]:
        """Networks whose training may have held the anatomy of the study."""
        return tuple(method.name for method in self.methods if not method.held_out)

    @property
    def told(self) -> dict[str, tuple[str, ...]]:
        """Rows whose true values a method is given: those its entry says, and to every fit those that are no target."""
        return {
            method.name: tuple(dict.fromkeys((*method.told, *(() if method.weights else self.nuisance))))
            for method in self.methods
        }

    @property
    def bound_of(self) -> dict[str, str]:
        """The bound that each method is held against: what it knows, what it pools, and else every row free."""
        found = {}
        for method in self.methods:
            if self.shared and set(self.shared) <= set(self.told[method.name]):
                found[method.name] = "known"
            elif self.shared and (method.weights or set(pools(method.estimator)) & set(self.shared)):
                found[method.name] = "shared"
            else:
                found[method.name] = "free"
        return found

    @property
    def shared(self) -> tuple[str, ...]:
        """Rows that are one number per image: drawn once for a sample, and changed by no field."""
        data = self.config.data
        changed = {row for field in data.field_list for row in field.changes}
        once = set(self.table.per_sample) - changed
        return tuple(p.name for p in data.signal_model.parameters if p.name in once)

    @property
    def nuisance(self) -> tuple[str, ...]:
        """Rows that every fit is given, see `given_rows`."""
        return given_rows(self.config.data)

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


def given_rows(data: GeneratorConfig) -> tuple[str, ...]:
    """Rows that are no target, of a Bloch model: the fields and times that a fit would be given, not the data tell.

    A closed form has no such rows: its B is as unknown as ever when only T1 is wanted.
    """
    if isinstance(data.signal_model, ClosedForm):
        return ()
    rows = [p.name for p in data.signal_model.parameters]
    return tuple(row for i, row in enumerate(rows) if i not in data.target_rows)


def tissue_prior(data: GeneratorConfig, entries: Sequence[Entry]) -> TissuePrior | None:
    """What methods are told of the tissues, if one of them asks: the table of the truth, every tissue as likely."""
    if not any(takes_prior(entry) for entry in entries):
        return None
    return TissuePrior.from_table(data.table, data.signal_model.parameters)


def make_plan(config: AnatomyStudy, command: Command = Command()) -> Plan:  # noqa: B008  frozen
    """Read anatomy and networks, draw the truths.

    Raises: InputError naming the field at fault.
    """
    world = scene(config.data)
    crop = config.crop or _whole(world.phantom, config.data.slice_axis)
    data = config.data.model_copy(update={"patch": tuple(crop), "samples": config.draws})
    try:
        truths = [make_truth(data, index) for index in _draws(data, config.draws)]
    except InputError as error:
        # the patch of the generator is the crop of the study
        raise InputError(
            "crop" + str(error).removeprefix("patch") if str(error).startswith("patch") else str(error)
        ) from None
    methods = choose(
        config.estimators,
        command.estimators,
        data.signal_model,
        data=data,
        prior=tissue_prior(data, config.estimators),
        device=command.device,
        taken=PAINTERS,
        given=given_rows(data),
    )
    for i, (entry, method) in enumerate(zip(config.estimators, methods, strict=False)):
        if isinstance(entry, ModelEntry) and not method.held_out and not config.allow_training_anatomy:
            raise InputError(
                f"estimators[{i}].model: {entry.model} may have been trained on the anatomy of this study: only "
                "split: train of the same phantom (every key of it) and slice_axis is apart from split: test; "
                "train it there, or set allow_training_anatomy: true, which the report then says"
            )
    return Plan(
        config=config.model_copy(update={"data": data}),
        table=world.table,
        cases=tuple(
            Case(draw, t.signal, t.kappa, t.labels, t.purity, world.phantom.tissues) for draw, t in enumerate(truths)
        ),
        anatomy=world.phantom.description if isinstance(world.phantom, VolumePhantom) else type(world.phantom).__name__,
        origins=tuple(f"subject {t.subject}, first voxel {', '.join(map(str, t.origin))}" for t in truths),
        methods=methods,
        device=command.device,
    )


def _draws(data: GeneratorConfig, draws: int) -> list[int]:
    """Samples that are the draws: of whole slices, the middle one of as many subjects, whose values are their own.

    Raises: InputError if there are fewer subjects.
    """
    if data.sampling == "patches":
        return list(range(draws))
    of_subject: dict[int, list[int]] = {}
    for index, (subject, _) in enumerate(scene(data).order):
        of_subject.setdefault(subject, []).append(index)
    if draws > len(of_subject):
        raise InputError(
            f"draws: {draws}, but with data.sampling: slices every draw is a subject, and the {data.split} split has "
            f"{len(of_subject)}; ask for at most that many"
        )
    return [indices[len(indices) // 2] for indices in list(of_subject.values())[:draws]]


def _whole(phantom: object, slice_axis: int) -> tuple[int, ...]:
    """Extent of a whole slice that every subject has."""
    if not isinstance(phantom, VolumePhantom):
        raise InputError("crop: missing, and this phantom does not tell the size of a slice; give it in voxels")
    shape = tuple(min(volume.shape[1 + a] for volume in phantom.volumes) for a in range(len(phantom.spacing_mm)))
    return shape if len(shape) == 2 else shape[:slice_axis] + shape[slice_axis + 1 :]
