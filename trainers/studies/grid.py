"""`qsim study` of kind `grid`: its config, and how it is run."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from generators.config import Count, RootConfig, Seed
from qsim.evaluation.blocks import Arrays
from qsim.evaluation.pages.grid_page import page
from qsim.evaluation.studies.grid import (
    METRICS,
    Contender,
    GridStudy,
    Truth,
    bound_name,
    bound_rows,
    point_name,
    relative_bound,
    rows_of,
    run,
)
from qsim.evaluation.table import Row
from qsim.kspace.noise import sigma_of
from qsim.signals import InversionRecovery
from qsim.tissue_tables import TISSUE_TABLES
from trainers.studies.axes import Axis
from trainers.studies.block_runner import Command, finish
from trainers.studies.methods import Entry, MethodEntry, check_entries, check_shapes
from trainers.studies.outputs import say
from trainers.studies.study_files import (
    StudyModel,
    StudyNoise,
    check_apart,
    check_axis,
    check_ends,
    check_noise,
    contenders,
    no_networks,
    open_files,
    prior_of,
    truth_rows,
    write_files,
)
from trainers.studies.study_plan import Snr


class GridConfig(RootConfig):
    """Bias, CV and RMSE of estimators over a grid of one relaxation time.

    Every repeat is one image of all points, with `voxels` voxels of each: what a method takes as common to the voxels
    (B of shared-b, smooth-b; the histogram of empirical-bayes) is common to all points. Of methods that treat every
    voxel by itself only voxels x repeats matters.

    Attributes:
        seed: of the noise.
        kind: grid.
        model: signal that is simulated and fitted.
        parameter: row that varies: T1, T2, T2STAR or T1RHO.
        points: its values [s]: a list, or {low, high, n, log}.
        values: the other rows at every point [SI]; DELTA_B0 is 0 and REL_B1 1 unless given.
        noise: gaussian, signed, rician, ...; a word, or a mapping with `kind`. Its sigma follows from the SNR.
        snr: 0.65 / sigma.
        voxels: of each point in an image.
        repeats: images; intervals of the results come from how much they differ.
        estimators: names, or {method, name, known, options}.
        tissues: table whose distributions methods with a prior are told; only they need it.
    """

    seed: Seed
    kind: Literal["grid"]
    model: StudyModel
    parameter: Literal["T1", "T2", "T2STAR", "T1RHO"]
    points: Axis
    values: dict[str, float]
    noise: StudyNoise
    snr: Annotated[tuple[Snr, ...], Field(min_length=1)] = (5.0, 10.0, 30.0, 100.0)
    voxels: Count = 400
    repeats: Annotated[int, Field(strict=True, ge=2)] = 25
    estimators: Annotated[tuple[Entry, ...], Field(min_length=1)]
    tissues: Annotated[reduce(or_, TISSUE_TABLES), Field(discriminator="kind")] | None = None  # type: ignore[valid-type]

    @model_validator(mode="before")
    @classmethod
    def _whole_axis(cls, given: Any) -> Any:
        if isinstance(given, dict):
            check_ends("points", given.get("points"))
        return given

    @field_validator("estimators", mode="before")
    @classmethod
    def _entries(cls, given: Any) -> Any:
        return check_shapes(given)

    @model_validator(mode="after")
    def _fits(self) -> "GridConfig":
        rows = [parameter.name for parameter in self.model.parameters]
        if self.parameter not in rows:
            raise ValueError(f"parameter: {self.parameter} is no row of the model, which has {', '.join(rows)}")
        check_axis("points", self.points, self.model.parameters[rows.index(self.parameter)])
        truth_rows("values", self.model, self.parameter, self.points, self.values)
        check_noise(self.noise, self.model)
        check_apart("model", self.model)
        twice = [f"{snr:g}" for i, snr in enumerate(self.snr) if snr in self.snr[:i]]
        if twice:
            raise ValueError(f"snr: {', '.join(twice)} is given twice")
        no_networks("estimators", self.estimators)
        for i, entry in enumerate(self.estimators):
            if isinstance(entry, MethodEntry) and self.parameter in entry.known:
                raise ValueError(f"estimators[{i}].known: {self.parameter} is what the study is about; leave it out")
        check_entries(self.estimators, self.model, prior_of(self.tissues, self.estimators, self.model))
        return self

    @property
    def truth(self) -> Truth:
        """What is simulated."""
        return Truth(
            name="grid",
            model=self.model,
            kappa=truth_rows("values", self.model, self.parameter, self.points, self.values),
            noise=self.noise,
            seed=self.seed,
            voxels=self.voxels,
            repeats=self.repeats,
        )


@dataclass(frozen=True, slots=True)
class _Plan:
    """A study, everything built and checked, nothing computed."""

    truth: Truth
    parameter: str
    contenders: tuple[Contender, ...]
    snrs: tuple[float, ...]

    @property
    def blocks(self) -> dict[str, tuple[int, float]]:
        """Method and SNR of each block, by its name."""
        return {f"method{i:02d}_snr{float(snr)!r}": (i, snr) for snr in self.snrs for i in range(len(self.contenders))}

    @property
    def bounds(self) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        """Rows that are shared and known in each bound, by its name: every row free, B shared, B known, and whatever
        else a method pools or is told.
        """
        triple: list[tuple[tuple[str, ...], tuple[str, ...]]] = [((), ())]
        if isinstance(self.truth.model, InversionRecovery):
            triple += [(("B",), ()), ((), ("B",))]
        triple += [(each.pools, each.known) for each in self.contenders]
        return {bound_name(shared, known): (shared, known) for shared, known in triple}


def _compute(key: str, plan: _Plan) -> Arrays:
    """The block of that name, wherever this runs."""
    method, snr = plan.blocks[key]
    return run(plan.truth, plan.contenders[method], plan.parameter, plan.parameter, snr)


def run_grid(config: GridConfig, out: Path, command: Command = Command()) -> Path:  # noqa: B008  frozen
    """Run the study, or finish one of the same config; returns the path of the report.

    Args:
        config: the study.
        out: folder of results.csv, grid.csv, report.html, provenance.json, blocks.
        command: where it runs, and the user's own methods.
    Raises: InputError naming the field at fault, or the folder if it holds another study.
    """
    methods, chosen = contenders(
        config.estimators, command, config.model, prior_of(config.tissues, config.estimators, config.model)
    )
    plan = _Plan(config.truth, config.parameter, methods, config.snr)
    digest = open_files(config, chosen, out)
    began = time.monotonic()
    unit = "blocks (method x SNR)"
    found = dict(
        zip(
            plan.blocks.values(),
            finish(out / "blocks", digest, list(plan.blocks), partial(_compute, plan=plan), unit, command),
            strict=True,
        )
    )
    study = GridStudy(
        truth=plan.truth,
        parameter=config.parameter,
        contenders=methods,
        snrs=config.snr,
        bounds={
            (name, snr): relative_bound(plan.truth, config.parameter, snr, shared, known)
            for name, (shared, known) in plan.bounds.items()
            for snr in config.snr
        },
        found={(methods[i].name, snr): arrays for (i, snr), arrays in found.items()},
    )
    path = write_files(config, chosen, out, _rows(study), (_HEADER, _lines(study)), page(study))
    seconds = time.monotonic() - began
    say(
        f"study: {len(methods)} methods at {len(study.points)} points and {len(config.snr)} SNRs in {seconds:.0f} s; "
        f"open {path}"
    )
    return path


def _rows(study: GridStudy) -> Iterator[Row]:
    points = [point_name(study.parameter, float(value)) for value in study.points]
    for snr in study.snrs:
        for name in study.bound_names:
            yield from bound_rows("grid", name, study.parameter, points, snr, study.bounds[name, snr])
        for each in study.contenders:
            bound = study.bounds[each.bound, snr]
            yield from rows_of("grid", each.name, study.parameter, points, snr, study.found[each.name, snr], bound)


_HEADER = ("estimator", "snr", "sigma", "point", "bound_name", "bound", *METRICS, "noise_free_bias", "n")


def _lines(study: GridStudy) -> Iterator[Sequence[str | float | int]]:
    """One line of grid.csv for each method, SNR and point."""
    for each in study.contenders:
        for snr in study.snrs:
            found, bound = study.found[each.name, snr], study.bounds[each.bound, snr]
            for i, point in enumerate(study.points.tolist()):
                numbers = [float(found[metric][0, i]) for metric in METRICS]
                yield (
                    *(each.name, snr, sigma_of(snr), point, each.bound, float(bound[i])),
                    *numbers,
                    *(float(found["noise_free"][i]), int(found["n"][0, i])),
                )
