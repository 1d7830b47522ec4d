"""`qsim study` of kind `mismatch`: its config, and how it is run."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from generators.config import Count, RootConfig, Seed
from qsim.errors import InputError
from qsim.estimators import build_estimator
from qsim.evaluation.blocks import Arrays
from qsim.evaluation.pages.mismatch_page import MismatchStudy, page
from qsim.evaluation.studies.grid import Contender, Truth, run
from qsim.evaluation.studies.mismatch import (
    GRID_HEADER,
    Case,
    Fit,
    brightest_is_reference,
    case_rows,
    fitted_bound,
    grid_lines,
)
from trainers.studies.axes import Axis, Steps
from trainers.studies.block_runner import Command, finish
from trainers.studies.methods import Chosen, MethodEntry, choose
from trainers.studies.outputs import say
from trainers.studies.study_files import (
    StudyModel,
    StudyNoise,
    check_apart,
    check_axis,
    check_ends,
    check_noise,
    contenders,
    open_files,
    truth_rows,
    write_files,
)
from trainers.studies.study_plan import Snr

Name = Annotated[str, Field(min_length=1)]


class TruthEntry(BaseModel):
    """What is simulated.

    Attributes:
        model: signal.
        measures: row that the fits are held against.
        axis: row that varies; `measures` if not given.
        points: its values [SI]: a list, or {low, high, n, log}.
        values: the other rows [SI]. DELTA_B0 is 0 and REL_B1 1 unless given; A is such that the brightest noise-free
            image is 0.65 unless given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    model: StudyModel
    measures: str
    axis: str | None = None
    points: Axis
    values: dict[str, float] = Field(default_factory=dict)

    @property
    def swept(self) -> str:
        """Row that varies."""
        return self.axis or self.measures

    @model_validator(mode="after")
    def _fits(self) -> "TruthEntry":
        rows = [parameter.name for parameter in self.model.parameters]
        for name, row in (("measures", self.measures), ("axis", self.swept)):
            if row not in rows:
                raise ValueError(f"{name}: {row} is no row of the model, which has {', '.join(rows)}")
        check_axis("points", self.points, self.model.parameters[rows.index(self.swept)])
        self._kappa()
        check_apart("model", self.model)
        return self

    def _kappa(self) -> Tensor:
        """Rows at every point, with A 1 if it is not given [SI]."""
        a = {} if self.swept == "A" else {"A": 1.0}
        return truth_rows("values", self.model, self.swept, self.points, {**a, **self.values})

    def build(self, name: str, noise: StudyNoise, seed: int, voxels: int, repeats: int) -> Truth:
        """The truth of a case."""
        kappa = self._kappa()
        if "A" not in self.values and self.swept != "A":
            kappa = brightest_is_reference(self.model, kappa)
        return Truth(f"mismatch, {name}", self.model, kappa, noise, seed, voxels, repeats)


class FitEntry(BaseModel):
    """One fit of the images.

    Attributes:
        name: in tables.
        model: that is fitted.
        method: of estimation.
        known: rows whose true values the method is told.
        options: of the method.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Name
    model: StudyModel
    method: Name = "least-squares"
    known: tuple[str, ...] = ()
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)

    @property
    def entry(self) -> MethodEntry:
        """As in the other studies."""
        return MethodEntry(method=self.method, name=self.name, known=self.known, options=self.options)


class CaseEntry(BaseModel):
    """One truth, and the fits of its images.

    Attributes:
        name: in tables.
        text: what it is about, for the page.
        truth: what is simulated.
        noise: gaussian, signed, rician, ...; a word, or a mapping with `kind`.
        fits: of the same images; each has the row that the truth `measures`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Name
    text: str = ""
    truth: TruthEntry
    noise: StudyNoise
    fits: tuple[FitEntry, ...]

    @model_validator(mode="after")
    def _fits(self) -> "CaseEntry":
        if not self.fits:
            raise ValueError("fits: empty; give at least one")
        check_noise(self.noise, self.truth.model)
        rows = [parameter.name for parameter in self.truth.model.parameters]
        for i, fit in enumerate(self.fits):
            if fit.name in [other.name for other in self.fits[:i]]:
                raise ValueError(f"fits[{i}].name: {fit.name} is given twice")
            if fit.model.n_images != self.truth.model.n_images:
                raise ValueError(
                    f"fits[{i}].model: has {fit.model.n_images} images, the truth {self.truth.model.n_images}; the "
                    "times of both belong to the same series"
                )
            fitted = [parameter.name for parameter in fit.model.parameters]
            if self.truth.measures not in fitted:
                raise ValueError(
                    f"fits[{i}].model: has no {self.truth.measures}, which the truth measures, but {', '.join(fitted)}"
                )
            for row in fit.known:
                if row == self.truth.measures or row not in rows:
                    wanted = (
                        "is what the fit is held against" if row == self.truth.measures else "is no row of the truth"
                    )
                    raise ValueError(f"fits[{i}].known: {row} {wanted}; leave it out")
                if fit.known.count(row) > 1:
                    raise ValueError(f"fits[{i}].known: {row} is given twice")
            try:
                build_estimator(fit.method, fit.model, fit.options)
            except InputError as error:
                text = str(error).removeprefix("estimators: ").removeprefix(f"{fit.method}: estimators: ")
                raise ValueError(f"fits[{i}]: {text}") from None
        return self


class MismatchConfig(RootConfig):
    """Truths simulated with one model and fitted with others: bias without noise; bias, SD and RMSE with it.

    Attributes:
        seed: of the noise.
        kind: mismatch.
        snr: 0.65 / sigma.
        voxels: of each point in an image; only methods that pool voxels tell them from repeats.
        repeats: images; intervals of the results come from how much they differ.
        cases: truths and their fits.
    """

    seed: Seed
    kind: Literal["mismatch"]
    snr: Annotated[tuple[Snr, ...], Field(min_length=1)] = (10.0, 30.0, 100.0)
    voxels: Count = 100
    repeats: Annotated[int, Field(strict=True, ge=2)] = 20
    cases: tuple[CaseEntry, ...]

    @model_validator(mode="before")
    @classmethod
    def _whole_axes(cls, given: Any) -> Any:
        cases = given.get("cases") if isinstance(given, dict) else None
        for i, case in enumerate(cases if isinstance(cases, list | tuple) else []):
            truth = case.get("truth") if isinstance(case, dict) else None
            if isinstance(truth, dict):
                check_ends(f"cases[{i}].truth.points", truth.get("points"))
        return given

    @field_validator("cases", mode="after")
    @classmethod
    def _apart(cls, cases: tuple[CaseEntry, ...]) -> tuple[CaseEntry, ...]:
        if not cases:
            raise ValueError("cases: empty; give at least one")
        for i, case in enumerate(cases):
            if case.name in [other.name for other in cases[:i]]:
                raise ValueError(f"cases[{i}].name: {case.name} is given twice")
        return cases

    @model_validator(mode="after")
    def _once(self) -> "MismatchConfig":
        twice = [f"{snr:g}" for i, snr in enumerate(self.snr) if snr in self.snr[:i]]
        if twice:
            raise ValueError(f"snr: {', '.join(twice)} is given twice")
        return self


@dataclass(frozen=True, slots=True)
class _Plan:
    """A study, everything built and checked, nothing computed."""

    cases: tuple[Case, ...]
    snrs: tuple[float, ...]

    @property
    def blocks(self) -> dict[str, tuple[Case, Fit, float]]:
        """Case, fit and SNR of each block, by its name."""
        return {
            f"case{c:02d}_fit{f:02d}_snr{float(snr)!r}": (case, fit, snr)
            for c, case in enumerate(self.cases)
            for f, fit in enumerate(case.fits)
            for snr in self.snrs
        }


def _compute(key: str, plan: _Plan) -> Arrays:
    """The block of that name, wherever this runs."""
    case, fit, snr = plan.blocks[key]
    return run(case.truth, fit.contender, fit.row, case.measured, snr)


def _case(entry: CaseEntry, config: MismatchConfig, command: Command) -> tuple[Case, list[Chosen]]:
    """A case with the fits of the config, and the user's own methods for the model of the first of them."""
    truth = entry.truth.build(entry.name, entry.noise, config.seed, config.voxels, config.repeats)
    measured = entry.truth.measures
    fits: list[Fit] = []
    alone = Command()
    for fit in entry.fits:
        (contender,), _ = contenders([fit.entry], alone, fit.model, None)
        fits.append(Fit(contender, fit.model, measured))
    own = choose([], command.estimators, entry.fits[0].model, taken=[fit.name for fit in entry.fits])
    for each in own:
        if measured not in [parameter.name for parameter in each.estimator.parameters]:
            raise InputError(f"--estimator: {each.name} does not estimate {measured}, which {entry.name} is about")
        fits.append(Fit(Contender(each.name, each.estimator), entry.fits[0].model, measured))
    points = entry.truth.points
    log = isinstance(points, Steps) and points.log
    return Case(entry.name, entry.text, truth, entry.truth.swept, log, measured, tuple(fits)), list(own)


def run_mismatch(config: MismatchConfig, out: Path, command: Command = Command()) -> Path:  # noqa: B008  frozen
    """Run the study, or finish one of the same config; returns the path of the report.

    Args:
        config: the study.
        out: folder of results.csv, grid.csv, report.html, provenance.json, blocks.
        command: where it runs, and the user's own methods, each fitted with the model of the first fit of a case.
    Raises: InputError naming the field at fault, or the folder if it holds another study.
    """
    built = [_case(entry, config, command) for entry in config.cases]
    # the same methods in every case
    own: Sequence[Chosen] = built[0][1]
    plan = _Plan(tuple(case for case, _ in built), config.snr)
    digest = open_files(config, own, out)
    began = time.monotonic()
    unit = "blocks (case x fit x SNR)"
    arrays = finish(out / "blocks", digest, list(plan.blocks), partial(_compute, plan=plan), unit, command)
    found = {(case.name, fit.name, snr): a for (case, fit, snr), a in zip(plan.blocks.values(), arrays, strict=True)}
    highest = max(config.snr)
    bounds = {
        (case.name, fit.name, snr): fitted_bound(
            case, fit, found[case.name, fit.name, highest]["noise_free_kappa"], snr
        )
        for case, fit, snr in plan.blocks.values()
    }
    study = MismatchStudy(plan.cases, config.snr, config.seed, found, bounds)
    each = [
        ((case, fit, snr), found[case.name, fit.name, snr], bounds[case.name, fit.name, snr])
        for case, fit, snr in plan.blocks.values()
    ]
    rows = (row for which, statistics, bound in each for row in case_rows(*which, statistics, bound))
    lines = (line for which, statistics, bound in each for line in grid_lines(*which, statistics, bound))
    path = write_files(config, own, out, rows, (GRID_HEADER, lines), page(study))
    say(f"study: {len(plan.cases)} cases at {len(config.snr)} SNRs in {time.monotonic() - began:.0f} s; open {path}")
    return path
