"""The config of a study of kind `test_retest` (sabidussi2021, section 5.3)."""

from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from generators.config import Count, GeneratorConfig, RootConfig, Seed
from qsim.parameters import RELAXATION_TIMES
from qsim.signals.base import SignalModel
from qsim.tissue_tables import TISSUE_TABLES
from trainers.studies.measured import Scans
from trainers.studies.methods import Entry, check_shapes
from trainers.studies.study_plan import AnatomyStudy, Snr

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
            raise ValueError(of_data_twin(text)) from None
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


def of_data_twin(text: str) -> str:
    """A message that names its field as it stands here: the twin is `data` to the study of anatomy."""
    return "data.twin" + text.removeprefix("data") if text.startswith(("data.", "data:")) else text
