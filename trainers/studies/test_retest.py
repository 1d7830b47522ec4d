"""`qsim study` of kind `test_retest`: how it is run, and what its page says of it."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from qsim.errors import InputError
from qsim.evaluation.blocks import Arrays
from qsim.evaluation.pages.heat_report import Page
from qsim.evaluation.pages.test_retest_content import Retest
from qsim.evaluation.pages.test_retest_lead import lead, methods_text
from qsim.evaluation.pages.test_retest_page import sections
from qsim.evaluation.studies import boundary_sharpness
from qsim.evaluation.studies.boundary_sharpness import Labelled, Placed
from qsim.evaluation.studies.test_retest_table import Found, rows
from qsim.parameters import PARAMETERS
from trainers.studies.block_runner import Command, finish
from trainers.studies.measured import Measured, read_scans
from trainers.studies.measured_maps import fit_methods, said_loudly
from trainers.studies.methods import Chosen, choose
from trainers.studies.outputs import say, sha256_of
from trainers.studies.study_files import open_files, prior_of, write_files
from trainers.studies.study_plan import Plan, make_plan
from trainers.studies.test_retest_config import RetestConfig, of_data_twin
from trainers.studies.test_retest_parts import ScanSource, TwinSource, read_labels, row_of


def run_test_retest(config: RetestConfig, out: Path, command: Command = Command()) -> Path:  # noqa: B008  frozen
    """Run the study, or finish one of the same config; returns the path of the report.

    Args:
        config: the study.
        out: folder of results.csv, report.html, provenance.json and the blocks.
        command: where it runs, and the user's own methods.
    Raises: InputError naming the field at fault, or the folder if it holds another study.
    """
    source = _of_twin(config, command) if config.data.scans is None else _of_scans(config, command)
    model = source.plan.config.data.signal_model if isinstance(source, TwinSource) else source.measured.model
    parameter = config.row(model)
    names = [m.name for m in source.methods]
    for method in source.methods:
        if parameter not in [p.name for p in method.estimator.parameters]:
            raise InputError(f"estimators: {method.name} does not estimate {parameter}")
    reference, pairs = _compared(config, source.methods)
    # before anything is written: the boundary must have room for profiles
    places, missing = _places(config, source)
    digest = open_files(config, source.methods, out, source.files)
    began = time.monotonic()
    compute = partial(_compute, source=source)
    blocks = finish(out / "blocks", digest, source.keys, compute, source.unit, command)
    settings = source.repeats(blocks)
    sharp = []
    if places:
        try:
            sharp = boundary_sharpness.sharpness(places, settings, pairs, reference)
        except ValueError as error:
            missing = f"not measured: {str(error).removeprefix('maps: ')}"
    table = [
        *rows(config.kind, parameter, settings, reference),
        *boundary_sharpness.rows(config.kind, parameter, config.boundary, sharp),
    ]
    found = Retest(
        parameter=parameter,
        symbol=PARAMETERS[parameter].symbol,
        methods=names,
        networks=tuple(m.name for m in source.methods if m.weights),
        reference=reference,
        repeats=len(next(iter(settings[0].maps.values()))),
        settings=settings,
        found=Found(table),
        sharp=sharp,
        boundary=config.boundary,
        no_sharpness=missing,
        bound_of=source.plan.bound_of if isinstance(source, TwinSource) else {},
    )
    page = Page(
        title="Test and retest",
        meta=_meta(config, source),
        lead=lead(found),
        sections=sections(found),
        methods=[*methods_text(found), *_about(config, source)],
        versions={},
        files="results.csv (every figure, each draw) beside this page",
        config="",
        digest=digest,
        warnings=_warnings(source),
    )
    path = write_files(config, source.methods, out, table, None, page, source.files)
    say(f"study: {len(blocks)} {source.unit} in {time.monotonic() - began:.0f} s; open {path}")
    return path


def _compute(key: str, source: TwinSource | ScanSource) -> Arrays:
    """The block of that name, wherever this runs."""
    return source.compute(key)


def _of_twin(config: RetestConfig, command: Command) -> TwinSource:
    try:
        plan = make_plan(config.of_twin(), command)
    except InputError as error:
        raise InputError(of_data_twin(str(error))) from None
    return TwinSource(plan, row_of(plan.config.data.signal_model, config.row(plan.config.data.signal_model)))


def _of_scans(config: RetestConfig, command: Command) -> ScanSource:
    assert config.data.scans is not None
    try:
        measured = read_scans(config.data.scans, "data.scans")
    except InputError as error:
        text = str(error)
        if "affines differ" in text or "must have one grid" in text:
            text += " (test-retest compares voxels: register the scans to each other first)"
        raise InputError(text) from None
    try:
        parameter = config.row(measured.model)
        prior = prior_of(config.data.tissues, config.estimators, measured.model)
    except ValueError as error:
        raise InputError(str(error).replace("tissues: missing", "data.tissues: missing")) from None
    chosen = choose(
        config.estimators,
        command.estimators,
        measured.model,
        prior=prior,
        device=command.device,
        given=tuple(measured.known),
    )
    told = [m.name for m in chosen if m.told]
    if told:
        raise InputError(f"estimators: {told[0]}: known: the truth of scans is not known; leave known out")
    methods, notes = fit_methods(chosen, measured)
    labels: UInt8[np.ndarray, "z y x"] | None = None
    numbers: dict[str, int] = {}
    files = dict(measured.sha256)
    if config.data.labels is not None:
        labels, numbers = read_labels(measured, config.data.labels, config.data.numbers)
        files |= sha256_of([Path(config.data.labels).expanduser()])
    return ScanSource(measured, labels, numbers, methods, parameter, notes, files)


def _compared(config: RetestConfig, methods: Sequence[Chosen]) -> tuple[str, list[tuple[str, str]]]:
    """The reference, and the pairs whose sharpness is tested.

    Raises: InputError if one of them is none of the methods.
    """
    names = [m.name for m in methods]
    fits = [m.name for m in methods if not m.weights] or names
    reference = config.reference or fits[0]
    pairs = [(name, reference) for name in names if name != reference]
    if config.compare is not None:
        pairs = list(config.compare)
    for place, each in (("reference", (reference,)), *((f"compare[{i}]", pair) for i, pair in enumerate(pairs))):
        unknown = [name for name in each if name not in names]
        if unknown:
            raise InputError(f"{place}: got {unknown[0]!r}, wanted one of {', '.join(map(repr, names))}")
        if len(each) == 2 and each[0] == each[1]:
            raise InputError(f"{place}: got {each[0]!r} twice, wanted two methods")
    return reference, pairs


def _places(config: RetestConfig, source: TwinSource | ScanSource) -> tuple[tuple[Placed, ...], str]:
    """Profiles of every object, or why there are none.

    Raises: InputError if a boundary is asked for that is not there.
    """
    if not config.profiles:
        return (), "not wanted (profiles: 0)"
    things = [Labelled(o.labels, o.numbers, o.spacing_mm) for o in source.objects()]
    try:
        return boundary_sharpness.place(things, config.boundary, config.profiles, config.profile_mm, config.seed), ""
    except ValueError as error:
        if "boundary" in config.model_fields_set or "profiles" in config.model_fields_set:
            hint = "; set profiles: 0 to do without" if source.objects()[0].numbers else "; give data.labels"
            raise InputError(f"boundary: {str(error).removeprefix('labels: ')}{hint}") from None
        return (), f"not measured: {str(error).removeprefix('labels: ')}"


def _meta(config: RetestConfig, source: TwinSource | ScanSource) -> str:
    if isinstance(source, TwinSource):
        return (
            f"digital twin: {source.plan.anatomy} · {config.draws} draws × {config.repeats} scans at "
            f"SNR {', '.join(f'{snr:g}' for snr in config.snr)} · seed {config.seed}"
        )
    measured: Measured = source.measured
    size = " × ".join(f"{n}" for n in reversed(measured.mask.shape))
    return f"scans {', '.join(measured.names)} · {size} voxels, {int(measured.mask.sum())} in the mask"


def _about(config: RetestConfig, source: TwinSource | ScanSource) -> list[tuple[str, str]]:
    if isinstance(source, TwinSource):
        plan: Plan = source.plan
        told: Mapping[str, tuple[str, ...]] = {name: given for name, given in plan.told.items() if given}
        return [
            (
                "twin",
                "one truth, scanned again and again: the repeats differ in noise alone, the same for every method. No "
                "motion, no drift, no physiology: real scans repeat less well.",
            ),
            ("SNR", "0.65 / σ."),
            *([("told", "; ".join(f"{name}: {', '.join(given)}" for name, given in told.items()))] if told else []),
        ]
    measured = source.measured
    sigma = "not known" if measured.sigma is None else f"{measured.sigma:.4g}"
    files = "; ".join(f"{Path(name).name} {digest[:16]}" for name, digest in source.files.items())
    return [
        ("scans", "compared voxel by voxel as they lie: nothing is registered or resampled here."),
        ("σ", f"{sigma}, {measured.sigma_source.removeprefix('sigma ')}"),
        ("files", f"sha256 {files}"),
        *(("note", note) for note in (*measured.notes, *source.notes)),
        *([("boundary", f"tissues by {Path(config.data.labels).name}")] if config.data.labels else []),
    ]


def _warnings(source: TwinSource | ScanSource) -> list[str]:
    if isinstance(source, TwinSource) and source.plan.seen:
        return [f"The training of {', '.join(source.plan.seen)} may have held this anatomy: its figures are flattered."]
    return [] if isinstance(source, TwinSource) else said_loudly(source.notes)
