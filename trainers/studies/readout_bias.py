"""`qsim study` of kind `readout_bias`: its config, and how it is run."""

import time
from collections.abc import Iterator
from dataclasses import fields
from math import pi
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from generators.config import Count, RootConfig, Seed
from qsim.evaluation.pages.heat_report import Page
from qsim.evaluation.pages.readout_page import Outcome, ReadoutStudy, lead, methods, sections
from qsim.evaluation.studies.apparent import TissueTimes
from qsim.evaluation.studies.readout_bias import (
    Case,
    monte_carlo,
    noise_free,
    sweep,
    swept,
    trials,
)
from qsim.evaluation.studies.readout_table import GRID_HEADER, grid_rows, noise_free_rows, noise_rows
from qsim.evaluation.table import Row
from qsim.signals.readout import AnyReadout, Ideal
from qsim.signals.sequences import Bloch
from qsim.signals.spoiled import SpoiledGradientEcho
from qsim.signals.ssfp import BalancedSSFP
from qsim.signals.turbo import TurboSpinEcho
from qsim.values import value
from trainers.studies.axes import Axis, axis_values
from trainers.studies.bloch_parts import (
    AnyEntry,
    check_filled,
    check_points,
    check_tissues,
    expand,
    open_study,
    write_study,
)
from trainers.studies.block_runner import Command, threads_only
from trainers.studies.outputs import run_in_order, say
from trainers.studies.study_plan import Snr


@value
class NamedIdeal(Ideal):
    """The signal is Mz, under a name."""

    name: str


@value
class NamedSpoiled(SpoiledGradientEcho):
    """A spoiled gradient echo train with a name in tables."""

    name: str


@value
class NamedBalanced(BalancedSSFP):
    """A balanced train with a name in tables."""

    name: str


@value
class NamedTurbo(TurboSpinEcho):
    """A turbo spin echo train with a name in tables."""

    name: str


ReadoutEntry = Annotated[NamedIdeal | NamedSpoiled | NamedBalanced | NamedTurbo, Field(discriminator="kind")]


@value
class SweepAxes:
    """Axes of the heat maps: T1, and what of the readout or the field varies beside it.

    Attributes:
        t1: [s].
        flip_angle: of the readout's pulses (turbo spin echo: refocusing pulses) [rad]; null: no such map.
        echoes: before the centre of k-space, in a linear order of one shot; null: no such map.
        rel_b1: actual over nominal B1, of preparation and readout [1]; null: no such map.
    """

    t1: Axis
    flip_angle: Axis | None = None
    echoes: Axis | None = None
    rel_b1: Axis | None = None

    def __post_init__(self) -> None:
        limits = {"t1": (0.05, 10.0), "flip_angle": (1e-3, pi), "echoes": (0.0, 1000.0), "rel_b1": (0.05, 3.0)}
        for name, (low, high) in limits.items():
            points = getattr(self, name)
            if points is not None:
                check_points(name, points, low, high)
        if self.echoes is not None and any(number % 1 for number in axis_values(self.echoes).tolist()):
            raise ValueError(f"echoes: wanted whole numbers, got {axis_values(self.echoes).tolist()}")

    @property
    def across(self) -> list[tuple[str, Axis]]:
        """The axes beside T1, and their values."""
        given = (("flip_angle", self.flip_angle), ("echoes", self.echoes), ("rel_b1", self.rel_b1))
        return [(name, points) for name, points in given if points is not None]


class ReadoutBiasConfig(RootConfig):
    """Fits of two and of three parameters behind each readout: bias without noise, bias, SD and RMSE with noise.

    SNR = 0.65 / sigma on images scaled so that the image without preparation of the same readout (Mz = M0, nominal
    fields, the tissue as given) is 0.65: every readout at the SNR of its own image without preparation.

    Attributes:
        seed: of tissue draws and noise.
        kind: readout_bias.
        preparations: spin-lock, T2 preparation or inversion, each by `kind` with its own times.
        readouts: by `kind`, each with a name.
        tr: from one preparation to the next [s], the magnetisation then in its steady state; null: full recovery.
        tissues: fixed relaxation times [s], each with a source.
        snr: 0.65 / sigma.
        draws: of the tissue values.
        repeats: noise realisations of each draw at each SNR.
        spread: T1, T2 and T1rho are drawn uniformly within 1 -+ this of the tissue's [1].
        sweep: axes of the heat maps, which are made for the first tissue; null: no maps.
    """

    seed: Seed
    kind: Literal["readout_bias"]
    preparations: tuple[AnyEntry, ...]
    readouts: tuple[ReadoutEntry, ...]
    tr: float | None = None
    tissues: tuple[TissueTimes, ...]
    snr: tuple[Snr, ...] = (10.0, 30.0, 60.0, 100.0, 300.0)
    draws: Count = 6
    repeats: Annotated[int, Field(strict=True, ge=2)] = 500
    spread: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    sweep: SweepAxes | None = None

    @model_validator(mode="after")
    def _fits(self) -> "ReadoutBiasConfig":
        lists = {"preparations": self.preparations, "readouts": self.readouts, "tissues": self.tissues, "snr": self.snr}
        check_filled(lists)
        check_tissues(self.tissues, self.preparations)
        for i, readout in enumerate(self.readouts):
            if readout.name in [other.name for other in self.readouts[:i]]:
                raise ValueError(f"readouts[{i}].name: {readout.name} is given twice")
            if readout.acquisition.encoding != "centre":
                raise ValueError(
                    f"readouts[{i}].acquisition.encoding: got {readout.acquisition.encoding}, wanted centre: this "
                    "study has single voxels, which nothing blurs"
                )
        for i, (_, preparation) in enumerate(expand(self.preparations, None)):
            for k, readout in enumerate(self.readouts):
                try:
                    self._check_sweep(Bloch(preparation=preparation, readout=_plain(readout), tr=self.tr))
                except ValueError as error:
                    raise ValueError(f"{error} (preparations[{i}], readouts[{k}])") from None
        twice = [f"{snr:g}" for i, snr in enumerate(self.snr) if snr in self.snr[:i]]
        if twice:
            raise ValueError(f"snr: {', '.join(twice)} is given twice")
        return self

    def _check_sweep(self, model: Bloch) -> None:
        """Raises: ValueError if a map of the sweep cannot be played."""
        for name, points in self.sweep.across if self.sweep else ():
            longest = axis_values(points).tolist()[-1]
            try:
                Bloch(preparation=model.preparation, readout=swept(model.readout, name, longest), tr=model.tr)
            except ValueError as error:
                raise ValueError(f"sweep.{name}: {error}") from None


def _plain(entry: AnyReadout) -> AnyReadout:
    """The readout without its name."""
    kinds: tuple[type[Ideal] | type[SpoiledGradientEcho] | type[BalancedSSFP] | type[TurboSpinEcho], ...]
    kinds = (Ideal, SpoiledGradientEcho, BalancedSSFP, TurboSpinEcho)
    kind = next(kind for kind in kinds if isinstance(entry, kind))
    return kind(**{field.name: getattr(entry, field.name) for field in fields(kind)})


def _cases(config: ReadoutBiasConfig) -> list[Case]:
    return [
        Case(preparation, _plain(readout), (name, readout.name), tissue, config.tr)
        for tissue in config.tissues
        for name, preparation in expand(config.preparations, None)
        for readout in config.readouts
    ]


def run_readout_bias(config: ReadoutBiasConfig, out: Path, command: Command = Command()) -> Path:  # noqa: B008  frozen
    """Run the study; returns the path of the report.

    Args:
        config: the study.
        out: folder of results.csv, grid.csv, report.html, provenance.json.
        command: how many threads; this study has neither methods of the user's own nor networks.
    Raises: InputError naming the field at fault, or the folder if it holds another study.
    """
    threads_only(command, config.kind)
    open_study(config, out)
    began = time.monotonic()
    cases = _cases(config)
    axes = _axes(config, cases)
    outcomes = run_in_order(
        list(zip(cases, axes, strict=True)),
        lambda job: _outcome(config, *job),
        "cases (preparation x readout x tissue)",
        command.workers,
    )
    study = ReadoutStudy(outcomes, config.tissues, config.snr, config.draws, config.repeats, config.spread, config.tr)

    def page(text: str, about: dict[str, str], digest: str) -> Page:
        return Page(
            title="Two or three parameters behind a readout",
            meta=f"{len(cases)} cases · {config.draws} draws × {config.repeats} noise realisations at "
            f"{len(config.snr)} SNRs · seed {config.seed}",
            lead=lead(study),
            sections=sections(study),
            methods=methods(study),
            versions=about,
            files="results.csv (every figure, each draw) and grid.csv (every point of the maps) beside this page",
            config=text,
            digest=digest,
        )

    grid = (line for outcome in outcomes for swept in outcome.sweeps for line in grid_rows(outcome.case, swept))
    path = write_study(config, out, _rows(config, outcomes), (GRID_HEADER, grid), page)
    seconds = time.monotonic() - began
    say(f"study: {len(cases)} cases at {len(config.snr)} SNRs in {seconds:.0f} s; open {path}")
    return path


def _axes(config: ReadoutBiasConfig, cases: list[Case]) -> list[list[tuple[str, Axis]]]:
    """The maps of each case: of the first tissue, and once for all readouts that the sweep makes the same."""
    seen: set[tuple[str, str, AnyReadout]] = set()
    chosen: list[list[tuple[str, Axis]]] = [[] for _ in cases]
    for number, case in enumerate(cases):
        if config.sweep is None or case.tissue != config.tissues[0] or isinstance(case.readout, Ideal):
            continue
        for name, points in config.sweep.across:
            key = case.names[0], name, swept(case.readout, name, axis_values(points).tolist()[-1])
            if key not in seen:
                seen.add(key)
                chosen[number].append((name, points))
    return chosen


def _outcome(config: ReadoutBiasConfig, case: Case, axes: list[tuple[str, Axis]]) -> Outcome:
    trial = trials(config.seed, config.draws, config.repeats, config.spread, len(case.preparation.times))
    maps = [
        sweep(case, name, axis_values(points), axis_values(config.sweep.t1)) for name, points in axes if config.sweep
    ]
    return Outcome(case, noise_free(case), monte_carlo(case, trial, config.snr), maps)


def _rows(config: ReadoutBiasConfig, outcomes: list[Outcome]) -> Iterator[Row]:
    for outcome in outcomes:
        yield from noise_free_rows(outcome.case, outcome.clean)
        yield from noise_rows(outcome.case, outcome.noisy, config.snr)
