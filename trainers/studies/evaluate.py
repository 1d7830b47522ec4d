"""`qsim study`: from a study config to results.csv, report.html and provenance.json."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from qsim.evaluation.blocks import Arrays, from_arrays, to_arrays
from qsim.evaluation.pages.report import Method, Picture, Report, write_report
from qsim.evaluation.study import PAINTERS, Block, Design, painters, run_block
from qsim.evaluation.table import Row, csv_text, rows_of_snr
from trainers.studies.block_runner import Command, complete, read_finished
from trainers.studies.outputs import claim, commit, json_text, replace, say, versions
from trainers.studies.study_plan import Plan, StudyConfig, make_plan

__all__ = ["StudyConfig", "run_study"]


def run_study(config: StudyConfig, out: Path, command: Command = Command()) -> Path:  # noqa: B008  frozen
    """Run a study, or finish one of the same config; returns the path of the report.

    Every finished (draw, SNR) block is kept in `out`/blocks: a study that is killed goes on where it was.

    Args:
        config: the study.
        out: folder of results.csv, report.html, provenance.json.
        command: where it runs, and the user's own methods.
    Raises: InputError naming the field at fault, or the folder if it holds another study.
    """
    plan = make_plan(config, command)
    claim(out, plan.digest, _provenance(plan, (), complete=False))
    began = time.monotonic()
    blocks = out / "blocks"
    complete(blocks, plan.digest, list(plan.blocks), partial(_compute, plan=plan), "blocks (draw x SNR)", command)
    rows, pictures = _tabulate(plan, blocks)
    replace(out / "results.csv", csv_text(rows))
    replace(out / "provenance.json", json_text(_provenance(plan, rows, complete=True)))
    write_report(out / "report.html", _report(plan, rows, pictures))
    seconds = time.monotonic() - began
    say(
        f"study: {len(plan.cases)} draws x {len(plan.config.snr)} SNRs x {plan.config.repeats} repeats, "
        f"{len(rows)} rows in {seconds:.0f} s; open {out / 'report.html'}"
    )
    return out / "report.html"


def _compute(key: str, plan: Plan) -> Arrays:
    """The block of that name, wherever this runs."""
    return to_arrays(compute_block(plan, *plan.blocks[key]))


def compute_block(plan: Plan, draw: int, snr: float) -> Block:
    """Every method and painter on one draw at one SNR."""
    case, config = plan.cases[draw], plan.config
    design = Design(
        model=config.data.signal_model,
        noise=config.data.noise_model,
        seed=config.seed,
        repeats=config.repeats,
        shared=plan.shared,
        nuisance=plan.nuisance,
        told=plan.told,
        clock=time.thread_time if plan.device == "cpu" else time.perf_counter,
    )
    methods = (*plan.estimators, *painters(case, design.model, plan.prior, plan.weights))
    return run_block(case, methods, design, snr)


def _tabulate(plan: Plan, folder: Path) -> tuple[list[Row], list[Picture]]:
    """The table and the pictures, one SNR in memory at a time."""
    rows: list[Row] = []
    pictures: list[Picture] = []
    parameters = [p.name for p in plan.config.data.signal_model.parameters]
    for snr in plan.config.snr:
        keys = [key for key, (_, at) in plan.blocks.items() if at == snr]
        blocks = [from_arrays(read_finished(folder, plan.digest, key)) for key in keys]
        rows.extend(rows_of_snr(plan.config.kind, parameters, blocks))
        maps = {name: result.first for name, result in blocks[0].methods.items()}
        pictures.append(Picture(snr, plan.cases[0].kappa.numpy(), blocks[0].mask, maps))
    return rows, pictures


def _provenance(plan: Plan, rows: Sequence[Row], *, complete: bool) -> dict[str, Any]:
    config = plan.config
    times = [row for row in rows if row.metric == "cpu_seconds_per_image"]
    return {
        "complete": complete,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "digest": plan.digest,
        "config": config.model_dump(mode="json"),
        "seeds": {"noise": config.seed, "truth": config.data.seed},
        "models": {name: asdict(model) for name, model in plan.models.items()},
        "own_methods": {m.name: dict(m.source) for m in plan.methods if m.source},
        "told": {name: list(rows) for name, rows in plan.told.items() if rows},
        "anatomy": {
            "split": config.data.split,
            "description": plan.anatomy,
            "draws": list(plan.origins),
            "perhaps_seen_by": list(plan.seen),
        },
        "tissues": {"name": plan.table.name, "truncation": plan.table.truncation},
        "device": plan.device,
        "cpu_seconds_per_image": {f"{row.estimator}, SNR {row.snr:g}": row.value for row in times},
        "versions": versions(),
        "git": commit(),
    }


def _report(plan: Plan, rows: Sequence[Row], pictures: Sequence[Picture]) -> Report:
    config = plan.config
    data = config.data
    methods = [
        Method(
            name=m.name,
            role="network" if m.weights else "fit",
            bound=plan.bound_of[m.name],
            run=m.weights.run if m.weights else m.source.get("from", ""),
        )
        for m in plan.methods
    ]
    methods += [Method(name, "painter", "shared" if plan.shared else "free") for name in PAINTERS]
    return Report(
        rows=tuple(rows),
        parameters=data.signal_model.parameters,
        shared=plan.shared,
        tissues=plan.cases[0].tissues,
        methods=tuple(methods),
        snrs=config.snr,
        draws=config.draws,
        repeats=config.repeats,
        model=data.signal_model,
        noise_kind=data.noise_model.kind,
        table=plan.table,
        pictures=tuple(pictures),
        anatomy=plan.anatomy,
        split=data.split,
        crop=tuple(data.patch),
        partial_volume=data.partial_volume,
        seeds={"noise": config.seed, "truth": data.seed},
        models={
            name: ", ".join(f"{f} sha256 {h[:16]}" for f, h in m.sha256.items()) for name, m in plan.models.items()
        },
        versions={**versions(), "commit": commit() or "none (not run from a checkout)"},
        config=yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=False), sort_keys=False, width=100),
        digest=plan.digest,
        device=plan.device,
        seen=plan.seen,
        given=plan.nuisance,
        artefacts=tuple(artefact.kind for artefact in data.artefact_list),
    )
