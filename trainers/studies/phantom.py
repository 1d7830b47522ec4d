"""`qsim study` of kind `phantom`: how it is run, and what its page says of it (sabidussi2021, section 5.2)."""

import time
from functools import partial
from pathlib import Path
from typing import Any

from phantoms.system_phantom import SystemPhantom
from qsim.evaluation.pages.heat_report import Page
from qsim.evaluation.pages.phantom_page import About, View, lead, methods_text, sections, warnings_of
from qsim.evaluation.studies.phantom_rois import Phantom, rows
from trainers.studies.block_runner import Command, finish
from trainers.studies.measured_maps import said_loudly
from trainers.studies.outputs import say
from trainers.studies.phantom_blocks import compute_block, statistics
from trainers.studies.phantom_config import PhantomConfig
from trainers.studies.phantom_plan import PhantomPlan, make_phantom_plan, trained_times
from trainers.studies.study_files import open_files, write_files


def run_phantom(config: PhantomConfig, out: Path, command: Command = Command()) -> Path:  # noqa: B008  frozen
    """Run the study, or finish one of the same config; returns the path of the report.

    Args:
        config: the study.
        out: folder of results.csv, report.html, provenance.json and the blocks.
        command: where it runs, and the user's own methods.
    Raises: InputError naming the field at fault, or the folder if it holds another study.
    """
    plan = make_phantom_plan(config, command)
    digest = open_files(plan.config, plan.methods, out, plan.files)
    began = time.monotonic()
    blocks = finish(out / "blocks", digest, list(plan.blocks), partial(compute_block, plan=plan), "blocks", command)
    found = statistics(plan, blocks)
    view = View(
        labels=_upright(plan, plan.spheres.labels[plan.slice]),
        names={region.label: region.name for region in plan.regions},
        maps={m.name: _upright(plan, blocks[0][f"{i}/picture"]) for i, m in enumerate(plan.methods)},
    )
    measured = plan.measured
    about = About(
        twin=measured is None,
        what=plan.about,
        covered=_covered_text(plan),
        sigma_source=measured.sigma_source if measured is not None else "",
        networks=tuple(m.name for m in plan.methods if m.weights),
        told={m.name: plan.told(m) for m in plan.methods if plan.told(m)},
        notes=plan.notes,
    )
    page = Page(
        title="Phantom of known relaxation times",
        meta=_meta(plan, found),
        lead=lead(found, about),
        sections=sections(found, view, about),
        methods=methods_text(about),
        versions={},
        files="results.csv (every figure of this page) beside it",
        config="",
        digest=digest,
        warnings=[*warnings_of(found, about), *said_loudly(plan.notes)],
    )
    path = write_files(plan.config, plan.methods, out, rows(found), None, page, plan.files)
    say(f"study: {len(blocks)} blocks in {time.monotonic() - began:.0f} s; open {path}")
    return path


def _upright(plan: PhantomPlan, values: Any) -> Any:
    """A slice as the page draws it, its last row on top: the twin's axes are u, v, of scans y, x."""
    return values.T if plan.measured is None else values


def _covered_text(plan: PhantomPlan) -> str:
    if plan.config.covered:
        low, high = plan.config.covered[plan.parameter]
        return f"{plan.parameter} from {1e3 * low:g} to {1e3 * high:g} ms, as the config says"
    trained = trained_times(plan.methods)
    if trained:
        return (
            f"{plan.parameter} from {1e3 * trained[0]:g} to {1e3 * trained[1]:g} ms, the times that every network was "
            "trained with"
        )
    return "every region"


def _meta(plan: PhantomPlan, found: Phantom) -> str:
    if plan.measured is not None:
        return plan.about
    spec = plan.config.data.twin.phantom_spec if plan.config.data.twin is not None else None
    array = f"{spec.array.upper()} array" if isinstance(spec, SystemPhantom) else ""
    draws = f"{found.draws} draws × " if found.draws > 1 else ""
    return (
        f"digital twin of the ISMRM/NIST system phantom, {array} · {draws}{found.repeats} repeated scans at SNR "
        f"{', '.join(f'{snr:g}' for snr in found.snrs)} · seed {plan.config.seed}"
    )
