"""`qsim study` of kind `blurriness`: its config, and how it is run."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Shaped
from pydantic import Field, model_validator

from qsim.evaluation.blocks import Arrays
from qsim.evaluation.pages.blurriness_page import View, lead, sections
from qsim.evaluation.pages.heat_report import Page
from qsim.evaluation.pages.summary import few_repeats_warning
from qsim.evaluation.studies.blurriness import Errors, Structure, bounds, place, run, with_structures
from qsim.evaluation.studies.blurriness_table import Blurriness, rows
from qsim.evaluation.study import PAINTERS, Design, painters
from qsim.parameters import PARAMETERS, RELAXATION_TIMES
from qsim.signals.base import CoherentModel, SpatialModel
from trainers.studies.block_runner import Command, finish
from trainers.studies.outputs import say
from trainers.studies.study_files import open_files, write_files
from trainers.studies.study_plan import AnatomyStudy, Plan, Snr, make_plan

# sabidussi2021 section 5.1.2: points of one voxel, lines of six
PAPER = (
    Structure(name="hypo point", tissue="gm", extent=(1, 1), value=0.4),
    Structure(name="hyper point", tissue="wm", extent=(1, 1), value=1.2),
    Structure(name="vertical line", tissue="wm", extent=(6, 1), value=1.2),
    Structure(name="horizontal line", tissue="wm", extent=(1, 6), value=1.2),
)


class BlurrinessConfig(AnatomyStudy):
    """A study of small structures: do they survive, and what do they do to their neighbours (section 5.1.2)?

    Attributes:
        structures: each by name, tissue, extent in voxels and value of the relaxation time [s]; those of the paper if
            not given.
        parameter: the relaxation time that they change; the model's first if not given.
    """

    kind: Literal["blurriness"]
    snr: Annotated[tuple[Snr, ...], Field(min_length=1)] = (10.0,)
    structures: tuple[Structure, ...] = PAPER
    parameter: str | None = None

    @model_validator(mode="after")
    def _can_be_placed(self) -> "BlurrinessConfig":
        model = self.data.signal_model
        rows = [p.name for p in model.parameters if p.name in RELAXATION_TIMES]
        if self.parameter is not None and self.parameter not in rows:
            raise ValueError(
                f"parameter: got {self.parameter}, wanted a relaxation time of the model: {', '.join(rows)}"
            )
        if isinstance(model, SpatialModel) and model.mixes_voxels:
            raise ValueError("data.model: its readout blurs by itself; set encoding: centre to see what the methods do")
        if not self.structures:
            raise ValueError("structures: empty; give at least one, or leave the key out for those of the paper")
        known = PARAMETERS[self.changed]
        for i, structure in enumerate(self.structures):
            if structure.name in [other.name for other in self.structures[:i]]:
                raise ValueError(f"structures[{i}].name: {structure.name} is given twice")
            if not known.lower < structure.value < known.upper:
                raise ValueError(
                    f"structures[{i}].value: wanted {known.name} between {known.lower:g} and {known.upper:g} s, got "
                    f"{structure.value:g}; divide by 1000 if these are milliseconds"
                )
        return self

    @property
    def changed(self) -> str:
        """The relaxation time that the structures change."""
        rows = [p.name for p in self.data.signal_model.parameters]
        return self.parameter or next(row for row in rows if row in RELAXATION_TIMES)


def run_blurriness(config: BlurrinessConfig, out: Path, command: Command = Command()) -> Path:  # noqa: B008  frozen
    """Run the study, or finish one of the same config; returns the path of the report.

    Args:
        config: the study.
        out: folder of results.csv, report.html, provenance.json and the blocks.
        command: where it runs, and the user's own methods.
    Raises: InputError naming the field at fault, or the folder if it holds another study.
    """
    plan = make_plan(config, command)
    # the anatomy must have room before anything is written
    placed = [place(case, config.structures, config.seed) for case in plan.cases]
    digest = open_files(config, plan.methods, out)
    began = time.monotonic()
    compute = partial(_compute, plan=plan, config=config)
    found = finish(out / "blocks", digest, list(plan.blocks), compute, "blocks (draw x SNR)", command)
    names = [*(method.name for method in plan.methods), *PAINTERS]
    errors: dict[float, list[Mapping[str, Errors]]] = {snr: [] for snr in config.snr}
    bounds_of: dict[float, list[dict[str, Shaped[np.ndarray, "..."]]]] = {snr: [] for snr in config.snr}
    for (_, snr), arrays in zip(plan.blocks.values(), found, strict=True):
        errors[snr].append(_errors(arrays, names))
        bounds_of[snr].append(
            {name.removeprefix("bound/"): bound for name, bound in arrays.items() if name.startswith("bound/")}
        )
    result = Blurriness(
        structures=config.structures,
        parameter=config.changed,
        methods=names,
        painters=PAINTERS,
        snrs=config.snr,
        repeats=config.repeats,
        errors=errors,
        bounds=bounds_of,
        bound_of=plan.bound_of,
    )
    truth = with_structures(plan.cases[0], _coherent(plan), config.changed, placed[0])
    row = [p.name for p in config.data.signal_model.parameters].index(config.changed)
    views = [
        View(
            snr,
            truth.kappa[row].numpy(),
            [each.inside for each in placed[0]],
            {name: errors[snr][0][name].first for name in names if name not in PAINTERS},
        )
        for snr in config.snr
        if truth.kappa[row].ndim == 2
    ]
    page = Page(
        title="Small structures and their neighbours",
        meta=f"{plan.anatomy} · {config.draws} draws × {config.repeats} noise realisations of each scenario at "
        f"SNR {', '.join(f'{snr:g}' for snr in config.snr)} · seed {config.seed}",
        lead=lead(result),
        sections=sections(result, views),
        methods=_methods(config, plan),
        versions={},
        files="results.csv (every figure, each draw) beside this page",
        config="",
        digest=digest,
        warnings=_warnings(plan),
    )
    path = write_files(config, plan.methods, out, rows(result), None, page)
    say(f"study: {len(found)} blocks in {time.monotonic() - began:.0f} s; open {path}")
    return path


def _coherent(plan: Plan) -> CoherentModel:
    model = plan.config.data.signal_model
    assert isinstance(model, CoherentModel)
    return model


def _compute(key: str, plan: Plan, config: BlurrinessConfig) -> Arrays:
    """The block of that name, wherever this runs."""
    draw, snr = plan.blocks[key]
    case = plan.cases[draw]
    placed = place(case, config.structures, config.seed)
    pair = case, with_structures(case, _coherent(plan), config.changed, placed)
    design = Design(
        model=config.data.signal_model,
        noise=config.data.noise_model,
        seed=config.seed,
        repeats=config.repeats,
        shared=plan.shared,
        nuisance=plan.nuisance,
        told=plan.told,
    )
    # painters know the labels, or the true means, of the scenario without structures
    methods = (*plan.estimators, *painters(case, design.model, plan.prior, plan.weights))
    arrays: dict[str, Shaped[np.ndarray, "..."]] = {}
    for name, bound in bounds(pair, placed, config.changed, design, snr).items():
        arrays[f"bound/{name}"] = bound
    for name, errors in run(pair, placed, config.changed, methods, design, snr).items():
        for field in ("error", "spread", "recovery", "first"):
            arrays[f"{name}/{field}"] = getattr(errors, field)
    return arrays


def _errors(arrays: Mapping[str, Shaped[np.ndarray, "..."]], names: list[str]) -> dict[str, Errors]:
    return {
        name: Errors(*(arrays[f"{name}/{field}"] for field in ("error", "spread", "recovery", "first")))
        for name in names
    }


def _methods(config: BlurrinessConfig, plan: Plan) -> list[tuple[str, str]]:
    sizes = "; ".join(
        f"{s.name}: {' × '.join(map(str, s.extent))} voxels of {1e3 * s.value:g} ms in {s.tissue}"
        for s in config.structures
    )
    told = {name: given for name, given in plan.told.items() if given}
    return [
        ("structures", f"{sizes}. Each draw places them anew, in pure voxels, apart from each other."),
        ("regions", "structure: its voxels; neighbourhood: the ring of one voxel around it."),
        (
            "scenarios",
            "E1: the anatomy as drawn; E2: with the structures. Independent noise, the same for every method.",
        ),
        ("bias", "of the mean over a region: 100 (mean estimate / mean truth − 1), median over noise realisations."),
        ("CV", "SD over noise realisations / mean of each voxel, then the mean over the region."),
        (
            "test",
            "Welch's t-test of E1 against E2 over the realisations of one draw; the paper's is of equal variances. "
            "The interval of the change of bias is that of the draws (t, 95 %).",
        ),
        (
            "contrast kept",
            "(mean estimate of structure − of ring) / (their true difference): 100 % is perfect, under 100 % blurred "
            "into its surroundings.",
        ),
        ("SNR", "0.65 / σ."),
        *([("told", "; ".join(f"{name}: {', '.join(given)}" for name, given in told.items()))] if told else []),
        ("source", "sabidussi2021, section 5.1.2 and Fig. 3; the paper has one draw of the anatomy, at SNR 10."),
    ]


def _warnings(plan: Plan) -> list[str]:
    said = few_repeats_warning(plan.config.repeats)
    if plan.seen:
        said.append(f"The training of {', '.join(plan.seen)} may have held this anatomy: its figures are flattered.")
    return said
