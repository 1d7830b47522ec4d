"""`qsim study` of kind `prep_robustness`: its config, and how it is run."""

import time
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from generators.config import RootConfig
from qsim.evaluation.pages.heat_report import Page
from qsim.evaluation.pages.prep_page import PrepStudy, lead, methods, sections
from qsim.evaluation.studies.apparent import TissueTimes
from qsim.evaluation.studies.prep_robustness import (
    GRID_HEADER,
    Central,
    FieldPreparation,
    Robustness,
    grid_rows,
    robustness,
    rows,
)
from qsim.signals.preparations import Inversion
from trainers.studies.axes import Axis, axis_values
from trainers.studies.bloch_parts import (
    FieldEntry,
    PulseB1,
    check_filled,
    check_points,
    check_tissues,
    expand,
    open_study,
    write_study,
)
from trainers.studies.block_runner import Command, threads_only
from trainers.studies.outputs import run_in_order, say

# beyond it the apparent time of no preparation means anything, and a page of it would be large
_MOST_POINTS = 250_000


class PrepRobustnessConfig(RootConfig):
    """Apparent T1rho and T2 over B0 and B1: noise-free images of each preparation, fitted on a grid of fields.

    Attributes:
        kind: prep_robustness.
        preparations: spin-lock clusters and T2 preparations, each by `kind` with its own times; `name` if two would be
            called alike.
        pulse_b1: amplitudes of rectangular pulses [Hz], null for hard ones; every preparation is played with each. Left
            out: as each preparation says.
        tissues: fixed relaxation times [s], each with a source.
        delta_b0: off-resonances [Hz], a list or {low, high, n}.
        rel_b1: actual over nominal B1 [1], a list or {low, high, n}.
        central: half-widths of the region of a shimmed and calibrated scan [Hz, 1].
    """

    kind: Literal["prep_robustness"]
    preparations: tuple[FieldEntry, ...]
    pulse_b1: tuple[PulseB1, ...] | None = None
    tissues: tuple[TissueTimes, ...]
    delta_b0: Axis
    rel_b1: Axis
    central: Central = Central()

    @model_validator(mode="after")
    def _fits(self) -> "PrepRobustnessConfig":
        check_filled({"preparations": self.preparations, "tissues": self.tissues, "pulse_b1": self.pulse_b1})
        check_points("delta_b0", self.delta_b0, -2000.0, 2000.0)
        check_points("rel_b1", self.rel_b1, 0.05, 3.0)
        check_tissues(self.tissues, self.preparations)
        # refuses what cannot be played
        expand(self.preparations, self.pulse_b1)
        points = len(axis_values(self.delta_b0)) * len(axis_values(self.rel_b1))
        if points > _MOST_POINTS:
            raise ValueError(f"delta_b0: {points} points of the grid; take at most {_MOST_POINTS}")
        inside = self.central.inside(axis_values(self.delta_b0).numpy(), axis_values(self.rel_b1).numpy())
        if not inside.any():
            raise ValueError("central: holds no point of the grid; widen it, or refine delta_b0 and rel_b1")
        return self


def run_prep_robustness(config: PrepRobustnessConfig, out: Path, command: Command = Command()) -> Path:  # noqa: B008  frozen
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
    b0, b1 = axis_values(config.delta_b0), axis_values(config.rel_b1)
    jobs: list[tuple[str, FieldPreparation, TissueTimes]] = []
    for tissue in config.tissues:
        for name, preparation in expand(config.preparations, config.pulse_b1):
            assert not isinstance(preparation, Inversion)
            jobs.append((name, preparation, tissue))

    def run(job: tuple[str, FieldPreparation, TissueTimes]) -> Robustness:
        name, preparation, tissue = job
        return robustness(preparation, tissue, b0, b1, name)

    results = run_in_order(jobs, run, "maps (preparation x tissue)", command.workers)
    study = PrepStudy(results, config.tissues, config.central)

    def page(text: str, about: dict[str, str], digest: str) -> Page:
        return Page(
            title="Preparations under B0 and B1",
            meta=f"{len(jobs)} maps of {len(b0)} × {len(b1)} fields · no noise · ideal readout · full recovery",
            lead=lead(study),
            sections=sections(study),
            methods=methods(study, [p for _, p, _ in jobs]),
            versions=about,
            files="results.csv (figures of every map) and grid.csv (every point) beside this page",
            config=text,
            digest=digest,
        )

    path = write_study(config, out, rows(results, config.central), (GRID_HEADER, grid_rows(results)), page)
    seconds = time.monotonic() - began
    say(f"study: {len(jobs)} maps of {len(b0) * len(b1)} fields in {seconds:.0f} s; open {path}")
    return path
