"""`qsim study`: from a study config to results.csv, report.html and provenance.json."""

import json
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from qsim.errors import InputError
from qsim.evaluation.blocks import read_block, write_block
from qsim.evaluation.report import Method, Picture, Report, write_report
from qsim.evaluation.study import PAINTERS, Block, Case, Design, painters, run_block, run_jobs
from qsim.evaluation.table import Row, csv_text, rows_of_snr
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
    _open_folder(out, plan)
    began = time.monotonic()
    blocks = out / "blocks"
    _run_blocks(plan, blocks, workers)
    rows, pictures = _tabulate(plan, blocks)
    _replace(out / "results.csv", csv_text(rows))
    _replace(out / "provenance.json", _json_text(_provenance(plan, rows, complete=True)))
    write_report(out / "report.html", _report(plan, rows, pictures))
    seconds = time.monotonic() - began
    Console(stderr=True, highlight=False).print(
        f"study: {len(plan.cases)} draws x {len(plan.config.snr)} SNRs x {plan.config.repeats} repeats, "
        f"{len(rows)} rows in {seconds:.0f} s; open {out / 'report.html'}",
        soft_wrap=True,
    )
    return out / "report.html"


def _open_folder(out: Path, plan: Plan) -> None:
    """Claim the folder for this study, or recognise it.

    Raises: InputError if it holds something else.
    """
    record = out / "provenance.json"
    if record.is_file():
        try:
            digest = json.loads(record.read_text(encoding="utf-8")).get("digest")
        except (ValueError, AttributeError):
            raise InputError(f"{record}: not readable; take another --out, or remove the folder") from None
        if digest != plan.digest:
            raise InputError(
                f"{out}: holds a study of another config, other weights or another version of qsim; take another "
                "--out, or remove the folder"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and holds no study; take another --out")
    (out / "blocks").mkdir(parents=True)
    _replace(record, _json_text(_provenance(plan, (), complete=False)))


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

    console = Console(stderr=True)
    columns = (
        TextColumn("study"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("blocks (draw x SNR)"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("study", total=len(jobs), completed=len(jobs) - len(missing))
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
        "versions": _versions(),
        "git": _commit(),
    }


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("qsim", "numpy", "scipy", "torch", "matplotlib")}
    return {**packages, "python": platform.python_version(), "platform": platform.platform()}


def _commit() -> str | None:
    """Commit of the checkout this runs from, with "-dirty" if files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _json_text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


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
        versions={**_versions(), "commit": _commit() or "none (not run from a checkout)"},
        config=yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=False), sort_keys=False, width=100),
        digest=plan.digest,
        device=plan.device,
        seen=plan.seen,
    )
