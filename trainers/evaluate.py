"""`qsim study`: from a study config to results.csv, report.html and provenance.json."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from qsim.errors import InputError
from qsim.evaluation.blocks import read_block, write_block
from qsim.evaluation.report import Method, Picture, Report, write_report
from qsim.evaluation.study import PAINTERS, Block, Case, Design, painters, run_block, run_jobs
from qsim.evaluation.table import Row, csv_text, rows_of_snr
from trainers.outputs import claim, commit, json_text, progress_bar, replace, say, versions
from trainers.study_plan import Plan, StudyConfig, make_plan

__all__ = ["StudyConfig", "run_study"]


def run_study(config: StudyConfig, out: Path, workers: int = 1, device: str = "cpu") -> Path:
    """Run a study, or finish one of the same config; returns the path of the report.

    Every finished (draw, SNR) block is kept in `out`/blocks: a study that is killed goes on where it was.

    Args:
        config: the study.
        out: folder of results.csv, report.html, provenance.json.
        workers: threads; the numbers do not depend on it.
        device: where networks run; fits run on the CPU.
    Raises: InputError naming the field at fault, or the folder if it holds another study.
    """
    if workers < 1:
        raise InputError(f"workers: got {workers}, wanted at least 1")
    plan = make_plan(config, device)
    claim(out, plan.digest, _provenance(plan, (), complete=False))
    began = time.monotonic()
    blocks = out / "blocks"
    _run_blocks(plan, blocks, workers)
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


def _run_blocks(plan: Plan, folder: Path, workers: int) -> None:
    """Compute the blocks that are not there yet."""
    folder.mkdir(exist_ok=True)
    config, digest = plan.config, plan.digest
    design = Design(
        model=config.data.signal_model,
        noise=config.data.noise_model,
        seed=config.seed,
        repeats=config.repeats,
        shared=plan.shared,
        nuisance=plan.nuisance,
        clock=time.thread_time if plan.device == "cpu" else time.perf_counter,
    )
    jobs = [(case, snr) for case in plan.cases for snr in config.snr]
    missing = [(case, snr) for case, snr in jobs if read_block(folder, case.draw, snr, digest) is None]
    prior, weights = plan.prior, plan.weights

    def run(job: tuple[Case, float]) -> Block:
        case, snr = job
        block = run_block(case, (*plan.estimators, *painters(case, design.model, prior, weights)), design, snr)
        write_block(folder, block, digest)
        return block

    with progress_bar("blocks (draw x SNR)", len(jobs), len(jobs) - len(missing)) as (progress, task):
        run_jobs(missing, run, lambda _: progress.advance(task), workers)


def _blocks_of(plan: Plan, folder: Path, snr: float) -> list[Block]:
    blocks = []
    for case in plan.cases:
        block = read_block(folder, case.draw, snr, plan.digest)
        if block is None:
            raise InputError(f"{folder}: the block of draw {case.draw} at SNR {snr:g} has gone; run the command again")
        blocks.append(block)
    return blocks


def _tabulate(plan: Plan, folder: Path) -> tuple[list[Row], list[Picture]]:
    """The table and the pictures, one SNR in memory at a time."""
    rows: list[Row] = []
    pictures: list[Picture] = []
    parameters = [p.name for p in plan.config.data.signal_model.parameters]
    for snr in plan.config.snr:
        blocks = _blocks_of(plan, folder, snr)
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
            e.name,
            "network" if e.name in plan.models else "fit",
            plan.models[e.name].run if e.name in plan.models else "",
        )
        for e in plan.estimators
    ]
    methods += [Method(name, "painter", "") for name in PAINTERS]
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
    )
