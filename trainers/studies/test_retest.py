"""`qsim study` of kind `test_retest`: its config, and how it is run."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from functools import partial, reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import UInt8
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from generators.config import Count, GeneratorConfig, RootConfig, Seed
from qsim.errors import InputError
from qsim.evaluation.blocks import Arrays
from qsim.evaluation.pages.heat_report import Page
from qsim.evaluation.pages.test_retest_page import Retest, lead, methods_text, sections
from qsim.evaluation.studies import boundary_sharpness
from qsim.evaluation.studies.boundary_sharpness import Labelled, Placed
from qsim.evaluation.studies.test_retest_table import Found, rows
from qsim.parameters import PARAMETERS, RELAXATION_TIMES
from qsim.signals.base import SignalModel
from qsim.tissue_tables import TISSUE_TABLES
from trainers.studies.block_runner import Command, finish
from trainers.studies.measured import Measured, Scans, read_scans
from trainers.studies.methods import Chosen, Entry, check_shapes, choose
from trainers.studies.outputs import json_text, replace, say
from trainers.studies.study_files import open_files, prior_of, write_files
from trainers.studies.study_plan import AnatomyStudy, Plan, Snr, make_plan
from trainers.studies.test_retest_parts import ScanSource, TwinSource, fitted, read_labels, row_of

# those of the twin alone: scans have the noise and the extent they were measured with
_OF_THE_TWIN = ("snr", "draws", "crop", "allow_training_anatomy")
Length = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Number = Annotated[int, Field(strict=True, ge=0)]


class RetestData(BaseModel):
    """A digital twin or scans: exactly one of them.

    Attributes:
        twin: anatomy, tissues, signal model, kind of noise, as in the other studies; split: test.
        scans: repeats of one protocol on one object, registered to each other.
        labels: segmentation image on the grid of the scans.
        numbers: its numbers of each tissue: {gm: [3, 42], wm: [2, 41]}.
        tissues: table whose distributions methods with a prior are told; only they need it, and the twin has its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    twin: GeneratorConfig | None = None
    scans: Scans | None = None
    labels: Annotated[str, Field(min_length=1)] | None = None
    numbers: dict[str, Annotated[tuple[Number, ...], Field(min_length=1)]] = Field(default_factory=dict)
    tissues: Annotated[reduce(or_, TISSUE_TABLES), Field(discriminator="kind")] | None = None  # type: ignore[valid-type]

    @field_validator("numbers", mode="before")
    @classmethod
    def _one_or_more(cls, given: Any) -> Any:
        if isinstance(given, dict):
            return {name: (n,) if isinstance(n, int) and not isinstance(n, bool) else n for name, n in given.items()}
        return given

    @model_validator(mode="after")
    def _one_of_them(self) -> "RetestData":
        if (self.twin is None) == (self.scans is None):
            raise ValueError("data: wanted either twin (a generator config) or scans (series: [...]), and not both")
        if self.twin is not None:
            for name in ("labels", "numbers", "tissues"):
                if name in self.model_fields_set:
                    raise ValueError(f"data.{name}: goes with scans; the twin has its own. Leave it out")
        if (self.labels is None) != (not self.numbers):
            raise ValueError("data.labels: labels and numbers go together: which numbers of the image are which tissue")
        taken: dict[int, str] = {}
        for name, numbers in self.numbers.items():
            for number in numbers:
                if number in taken:
                    raise ValueError(f"data.numbers.{name}: {number} is {taken[number]} as well")
                taken[number] = name
        return self


class RetestConfig(RootConfig):
    """A test-retest study: how well do repeats agree, and does a method that agrees blur (sabidussi2021, section 5.3)?

    Attributes:
        seed: of the noise of the twin, and of where profiles lie.
        kind: which study.
        data: a digital twin or scans.
        estimators: names, `{model: run}` for trained networks, or `{method, name, known, options}`.
        snr: of the twin: signal of white matter over the noise SD, 0.65 / sigma.
        draws: of the twin: truths: anatomy, tissue values and B are drawn anew in each.
        repeats: scans of each truth at each SNR; of scans as many as there are.
        crop: of the twin: extent of the images in voxels; the whole slice if not given.
        allow_training_anatomy: study anatomy that networks were, or may have been, trained on; the report says so.
        parameter: the relaxation time; the model's first if not given.
        reference: name of the method that agreement is drawn against; the first fit if not given.
        boundary: the two tissues whose boundary profiles cross, from inside to outside.
        profiles: so many per truth, or per set of scans; 0: none.
        profile_mm: length of a profile [mm].
        compare: pairs of methods whose sharpness is tested; each method against the reference if not given.
    """

    seed: Seed
    kind: Literal["test_retest"]
    data: RetestData
    estimators: Annotated[tuple[Entry, ...], Field(min_length=1)]
    snr: Annotated[tuple[Snr, ...], Field(min_length=1)] = (10.0, 30.0)
    draws: Count = 3
    repeats: Annotated[int, Field(strict=True, ge=2)] = 2
    crop: tuple[Count, ...] | None = None
    allow_training_anatomy: Annotated[bool, Field(strict=True)] = False
    parameter: str | None = None
    reference: str | None = None
    boundary: tuple[str, str] = ("wm", "gm")
    profiles: Annotated[int, Field(strict=True, ge=0, le=10_000)] = 20
    profile_mm: Length = 8.0
    compare: tuple[tuple[str, str], ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        """What the study decides itself need not be written into the twin."""
        data = given.get("data") if isinstance(given, dict) else None
        if isinstance(data, dict) and isinstance(data.get("twin"), dict):
            crop = given.get("crop")
            patch = crop if isinstance(crop, list | tuple) and len(crop) in (2, 3) else (1, 1)
            return {**given, "data": {**data, "twin": {"samples": 1, "patch": patch, **data["twin"]}}}
        return given

    @field_validator("estimators", mode="before")
    @classmethod
    def _names_or_models(cls, given: Any) -> Any:
        return check_shapes(given)

    @model_validator(mode="after")
    def _fits(self) -> "RetestConfig":
        if self.boundary[0] == self.boundary[1]:
            raise ValueError(f"boundary: got {self.boundary[0]} twice, wanted two tissues")
        if self.data.scans is not None:
            for name in _OF_THE_TWIN:
                if name in self.model_fields_set:
                    raise ValueError(f"{name}: is of the twin; scans are what they are. Leave it out")
            n = len(self.data.scans.series)
            if n < 2:
                raise ValueError("data.scans.series: holds 1 scan; test-retest needs at least two of the same object")
            if "repeats" in self.model_fields_set and self.repeats != n:
                raise ValueError(f"repeats: got {self.repeats}, data.scans.series holds {n} scans; leave it out")
            missing = [name for name in self.boundary if name not in self.data.numbers]
            if self.data.numbers and missing and self.profiles and "boundary" in self.model_fields_set:
                raise ValueError(f"boundary: {missing[0]} is none of data.numbers: {', '.join(self.data.numbers)}")
            return self
        try:
            study = self.of_twin()
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = "".join(f"{step}: " for step in first["loc"][:1])
            text = place + str(first["msg"]).removeprefix("Value error, ")
            raise ValueError(_named(text)) from None
        self.row(study.data.signal_model)
        return self

    def of_twin(self) -> AnatomyStudy:
        """The Monte Carlo study that the twin is."""
        assert self.data.twin is not None
        return AnatomyStudy(
            seed=self.seed,
            kind=self.kind,
            data=self.data.twin,
            estimators=self.estimators,
            snr=self.snr,
            draws=self.draws,
            repeats=self.repeats,
            crop=self.crop,
            allow_training_anatomy=self.allow_training_anatomy,
        )

    def row(self, model: SignalModel) -> str:
        """The relaxation time that the study is about.

        Raises: ValueError if the model has none, or not the one that is named.
        """
        there = [p.name for p in model.parameters if p.name in RELAXATION_TIMES]
        if self.parameter is not None and self.parameter not in there:
            raise ValueError(
                f"parameter: got {self.parameter}, wanted a relaxation time of the model: {', '.join(there)}"
            )
        if not there:
            raise ValueError("parameter: the model has no relaxation time")
        return self.parameter or there[0]


def run_test_retest(config: RetestConfig, out: Path, command: Command = Command()) -> Path:  # noqa: B008  frozen
    """Run the study, or finish one of the same config; returns the path of the report.

    Args:
        config: the study.
        out: folder of results.csv, report.html, provenance.json and the blocks.
        command: where it runs, and the user's own methods.
    Raises: InputError naming the field at fault, or the folder if it holds another study.
    """
    source = _of_twin(config, command) if config.data.scans is None else _of_scans(config, command)
    model = source.plan.config.data.signal_model if isinstance(source, TwinSource) else source.measured.model
    parameter = config.row(model)
    names = [m.name for m in source.methods]
    for method in source.methods:
        if parameter not in [p.name for p in method.estimator.parameters]:
            raise InputError(f"estimators: {method.name} does not estimate {parameter}")
    reference, pairs = _compared(config, source.methods)
    # before anything is written: the boundary must have room for profiles
    places, missing = _places(config, source)
    digest = open_files(config, source.methods, out)
    began = time.monotonic()
    inner = hashlib.sha256(json.dumps([digest, source.digest]).encode()).hexdigest()
    compute = partial(_compute, source=source)
    blocks = finish(out / "blocks", inner, source.keys, compute, source.unit, command)
    settings = source.repeats(blocks)
    sharp = []
    if places:
        try:
            sharp = boundary_sharpness.sharpness(places, settings, pairs, reference)
        except ValueError as error:
            missing = f"not measured: {error}"
    table = [
        *rows(config.kind, parameter, settings, reference),
        *boundary_sharpness.rows(config.kind, parameter, config.boundary, sharp),
    ]
    found = Retest(
        parameter=parameter,
        symbol=PARAMETERS[parameter].symbol,
        methods=names,
        networks=tuple(m.name for m in source.methods if m.weights),
        reference=reference,
        repeats=len(next(iter(settings[0].maps.values()))),
        settings=settings,
        found=Found(table),
        sharp=sharp,
        boundary=config.boundary,
        no_sharpness=missing,
        bound_of=source.plan.bound_of if isinstance(source, TwinSource) else {},
    )
    page = Page(
        title="Test and retest",
        meta=_meta(config, source),
        lead=lead(found),
        sections=sections(found),
        methods=[*methods_text(found), *_about(config, source)],
        versions={},
        files="results.csv (every figure, each draw) beside this page",
        config="",
        digest=digest,
        warnings=_warnings(source),
    )
    path = write_files(config, source.methods, out, table, None, page)
    if isinstance(source, ScanSource):
        record = json.loads((out / "provenance.json").read_text(encoding="utf-8"))
        record["scans"] = {"sha256": dict(source.measured.sha256), "sigma": source.measured.sigma_source}
        replace(out / "provenance.json", json_text(record))
    say(f"study: {len(blocks)} {source.unit} in {time.monotonic() - began:.0f} s; open {path}")
    return path


def _compute(key: str, source: TwinSource | ScanSource) -> Arrays:
    """The block of that name, wherever this runs."""
    return source.compute(key)


def _named(text: str) -> str:
    """The twin is `data` to the study of anatomy."""
    return "data.twin" + text.removeprefix("data") if text.startswith(("data.", "data:")) else text


def _of_twin(config: RetestConfig, command: Command) -> TwinSource:
    try:
        plan = make_plan(config.of_twin(), command)
    except InputError as error:
        raise InputError(_named(str(error))) from None
    return TwinSource(plan, row_of(plan.config.data.signal_model, config.row(plan.config.data.signal_model)))


def _of_scans(config: RetestConfig, command: Command) -> ScanSource:
    assert config.data.scans is not None
    try:
        measured = read_scans(config.data.scans, "data.scans")
    except InputError as error:
        text = str(error)
        if "affines differ" in text or "must have one grid" in text:
            text += " (test-retest compares voxels: register the scans to each other first)"
        raise InputError(text) from None
    try:
        parameter = config.row(measured.model)
        prior = prior_of(config.data.tissues, config.estimators, measured.model)
    except ValueError as error:
        raise InputError(str(error).replace("tissues: missing", "data.tissues: missing")) from None
    chosen = choose(
        config.estimators,
        command.estimators,
        measured.model,
        prior=prior,
        device=command.device,
        given=tuple(measured.known),
    )
    told = [m.name for m in chosen if m.told]
    if told:
        raise InputError(f"estimators: {told[0]}: known: the truth of scans is not known; leave known out")
    methods, notes = fitted(chosen, measured)
    labels: UInt8[np.ndarray, "z y x"] | None = None
    numbers: dict[str, int] = {}
    if config.data.labels is not None:
        labels, numbers = read_labels(measured, config.data.labels, config.data.numbers)
    return ScanSource(measured, labels, numbers, methods, parameter, notes)


def _compared(config: RetestConfig, methods: Sequence[Chosen]) -> tuple[str, list[tuple[str, str]]]:
    """The reference, and the pairs whose sharpness is tested.

    Raises: InputError if one of them is none of the methods.
    """
    names = [m.name for m in methods]
    fits = [m.name for m in methods if not m.weights] or names
    reference = config.reference or fits[0]
    pairs = [(name, reference) for name in names if name != reference]
    if config.compare is not None:
        pairs = list(config.compare)
    for place, each in (("reference", (reference,)), *((f"compare[{i}]", pair) for i, pair in enumerate(pairs))):
        unknown = [name for name in each if name not in names]
        if unknown:
            raise InputError(f"{place}: got {unknown[0]!r}, wanted one of {', '.join(map(repr, names))}")
        if len(each) == 2 and each[0] == each[1]:
            raise InputError(f"{place}: got {each[0]!r} twice, wanted two methods")
    return reference, pairs


def _places(config: RetestConfig, source: TwinSource | ScanSource) -> tuple[tuple[Placed, ...], str]:
    """Profiles of every object, or why there are none.

    Raises: InputError if a boundary is asked for that is not there.
    """
    if not config.profiles:
        return (), "not wanted (profiles: 0)"
    things = [Labelled(o.labels, o.numbers, o.spacing_mm) for o in source.objects()]
    try:
        return boundary_sharpness.place(things, config.boundary, config.profiles, config.profile_mm, config.seed), ""
    except ValueError as error:
        if "boundary" in config.model_fields_set or "profiles" in config.model_fields_set:
            hint = "; set profiles: 0 to do without" if source.objects()[0].numbers else "; give data.labels"
            raise InputError(f"boundary: {str(error).removeprefix('labels: ')}{hint}") from None
        return (), f"not measured: {str(error).removeprefix('labels: ')}"


def _meta(config: RetestConfig, source: TwinSource | ScanSource) -> str:
    if isinstance(source, TwinSource):
        return (
            f"digital twin: {source.plan.anatomy} · {config.draws} draws × {config.repeats} scans at "
            f"SNR {', '.join(f'{snr:g}' for snr in config.snr)} · seed {config.seed}"
        )
    measured: Measured = source.measured
    size = " × ".join(f"{n}" for n in reversed(measured.mask.shape))
    return f"scans {', '.join(measured.names)} · {size} voxels, {int(measured.mask.sum())} in the mask"


def _about(config: RetestConfig, source: TwinSource | ScanSource) -> list[tuple[str, str]]:
    if isinstance(source, TwinSource):
        plan: Plan = source.plan
        told: Mapping[str, tuple[str, ...]] = {name: given for name, given in plan.told.items() if given}
        return [
            (
                "twin",
                "one truth, scanned again and again: the repeats differ in noise alone, the same for every method. No "
                "motion, no drift, no physiology: real scans repeat less well.",
            ),
            ("SNR", "0.65 / σ."),
            *([("told", "; ".join(f"{name}: {', '.join(given)}" for name, given in told.items()))] if told else []),
        ]
    measured = source.measured
    sigma = "not known" if measured.sigma is None else f"{measured.sigma:.4g}"
    files = "; ".join(f"{Path(name).name} {digest[:16]}" for name, digest in measured.sha256.items())
    return [
        ("scans", "compared voxel by voxel as they lie: nothing is registered or resampled here."),
        ("σ", f"{sigma}, {measured.sigma_source}"),
        ("files", f"sha256 {files}"),
        *(("note", note) for note in (*measured.notes, *source.notes)),
        *([("boundary", f"tissues by {Path(config.data.labels).name}")] if config.data.labels else []),
    ]


def _warnings(source: TwinSource | ScanSource) -> list[str]:
    if isinstance(source, TwinSource) and source.plan.seen:
        return [f"The training of {', '.join(source.plan.seen)} may have held this anatomy: its figures are flattered."]
    return []
