"""`qsim study` of kind `generalisation`: every method on every protocol, its own or not."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from generators.config import GeneratorConfig
from qsim.errors import InputError
from qsim.evaluation.blocks import Arrays, from_arrays, to_arrays
from qsim.evaluation.metrics import Interval, ratio_over_draws
from qsim.evaluation.pages.generalisation_page import Generalisation, lead, sections
from qsim.evaluation.pages.heat_report import Page
from qsim.evaluation.pages.summary import few_repeats, few_repeats_warning
from qsim.evaluation.study import PAINTERS, Block
from qsim.evaluation.table import ALL, Row, Table, rows_of_snr
from qsim.parameters import PARAMETERS, RELAXATION_TIMES
from qsim.signals import AnyModel
from trainers.protocols import times_field
from trainers.studies.block_runner import Command, finish
from trainers.studies.evaluate import compute_block
from trainers.studies.methods import Chosen, Entry, ModelEntry
from trainers.studies.network_options import network_name
from trainers.studies.outputs import say
from trainers.studies.study_files import open_files, write_files
from trainers.studies.study_plan import AnatomyStudy, Plan, Snr, make_plan

Times = Annotated[tuple[float, ...], Field(min_length=1)]


class GeneralisationConfig(AnatomyStudy):
    """A study of protocols: networks trained on one list of times map the others (section 5.4).

    Attributes:
        protocols: times of each [s], by name; they take the place of those of `data.model`. A network that takes only
            its own list of times, as a ResNet does, is left out elsewhere, and the report says so.
    """

    kind: Literal["generalisation"]
    snr: Annotated[tuple[Snr, ...], Field(min_length=1)] = (10.0, 30.0)
    protocols: Annotated[dict[str, Times], Field(min_length=1)]

    @model_validator(mode="after")
    def _protocols_fit(self) -> "GeneralisationConfig":
        for name in self.protocols:
            if not name or not all(letter.isalnum() or letter in "-_ " for letter in name):
                raise ValueError(f"protocols: {name!r} is no name; use letters, digits, - and _")
            try:
                self.with_times(name)
            except ValueError as error:
                raise ValueError(f"protocols.{name}: {str(error).removeprefix('protocols: ')}") from None
        return self

    def with_times(self, protocol: str) -> GeneratorConfig:
        """The data under a protocol.

        Raises: ValueError if the model has no such list of times, or refuses these.
        """
        model = self.data.signal_model
        times: dict[str, Any] = {times_field(model): self.protocols[protocol]}
        return self.data.model_copy(update={"model": replace(model, **times)})


@dataclass(frozen=True, slots=True)
class _Planned:
    """The plans of all protocols.

    Attributes:
        plans: by protocol.
        refused: why a method does not take a protocol, by (name, protocol).
    """

    plans: Mapping[str, Plan]
    refused: Mapping[tuple[str, str], str]

    @property
    def methods(self) -> dict[str, Chosen]:
        """Every method, by name, in the order of the config."""
        return {method.name: method for plan in self.plans.values() for method in plan.methods}

    @property
    def blocks(self) -> dict[str, tuple[str, int, float]]:
        """Protocol, draw and SNR of each block, by its name."""
        return {
            f"{protocol.replace(' ', '_')}_{key}": (protocol, *which)
            for protocol, plan in self.plans.items()
            for key, which in plan.blocks.items()
        }


def _planned(config: GeneralisationConfig, command: Command) -> _Planned:
    """Load every method for every protocol that it takes.

    Raises: InputError naming the method that takes none.
    """
    plans, refused = {}, {}
    taken = [False] * len(config.estimators)
    last: dict[int, InputError] = {}
    for protocol in config.protocols:
        data = config.with_times(protocol)
        kept: list[Entry] = []
        for i, entry in enumerate(config.estimators):
            if isinstance(entry, ModelEntry):
                from trainers.infer import load_estimator

                try:
                    load_estimator(entry.model, data.signal_model)
                except InputError as error:
                    last[i] = error
                    refused[_name(entry), protocol] = str(error)
                    continue
            taken[i] = True
            kept.append(entry)
        if kept or command.estimators:
            plans[protocol] = make_plan(config.model_copy(update={"data": data, "estimators": tuple(kept)}), command)
    for i, once in enumerate(taken):
        if not once:
            raise InputError(f"estimators[{i}].model: takes none of the protocols: {last[i]}")
    return _Planned(plans, refused)


def _name(entry: ModelEntry) -> str:
    """Of a network in tables, also where it does not take the protocol."""
    from trainers.infer import load_estimator

    try:
        return entry.name or network_name(entry.model, load_estimator(entry.model).name, entry.options)
    except InputError:
        # there is no such network at all, which is said of all protocols
        return entry.model


def run_generalisation(config: GeneralisationConfig, out: Path, command: Command = Command()) -> Path:  # noqa: B008  frozen
    """Run the study, or finish one of the same config; returns the path of the report.

    Args:
        config: the study.
        out: folder of results.csv, report.html, provenance.json and the blocks.
        command: where it runs, and the user's own methods.
    Raises: InputError naming the field at fault, or the folder if it holds another study.
    """
    planned = _planned(config, command)
    methods = tuple(planned.methods.values())
    digest = open_files(config, methods, out)
    inner = hashlib.sha256(json.dumps([digest, [plan.digest for plan in planned.plans.values()]]).encode()).hexdigest()
    began = time.monotonic()
    compute = partial(_compute, planned=planned)
    unit = "blocks (protocol x draw x SNR)"
    arrays = finish(out / "blocks", inner, list(planned.blocks), compute, unit, command)
    blocks: dict[tuple[str, float], list[Block]] = {}
    for (protocol, _, snr), found in zip(planned.blocks.values(), arrays, strict=True):
        blocks.setdefault((protocol, snr), []).append(from_arrays(found))
    rows = {protocol: _rows(config, protocol, blocks) for protocol in planned.plans}
    result = _result(config, planned, rows)
    plan = next(iter(planned.plans.values()))
    page = Page(
        title="Protocols that a network was not trained on" if result.home else "Methods under several protocols",
        meta=f"{plan.anatomy} · {len(planned.plans)} protocols · {config.draws} draws × {config.repeats} noise "
        f"realisations at SNR {', '.join(f'{snr:g}' for snr in config.snr)} · seed {config.seed}",
        lead=lead(result),
        sections=sections(result),
        methods=_methods(config, planned),
        versions={},
        files="results.csv (every figure, each draw; the estimator column names method and protocol) beside this page",
        config="",
        digest=digest,
        warnings=[
            *[
                f"The training of {', '.join(plan.seen)} may have held this anatomy: its figures are flattered."
                for plan in planned.plans.values()
                if plan.seen
            ][:1],
            *few_repeats_warning(config.repeats, _medians(config.repeats)),
        ],
    )
    table = [row._replace(estimator=f"{row.estimator} on {protocol}") for protocol, own in rows.items() for row in own]
    path = write_files(config, methods, out, table, None, page)
    say(f"study: {len(arrays)} blocks in {time.monotonic() - began:.0f} s; open {path}")
    return path


def _medians(repeats: int) -> str:
    """What few realisations do to the median over voxels of a CV, which has one degree of freedom less."""
    if repeats < 2:
        return ""
    return f"Medians over voxels of the CV come out about {100 * (1 - few_repeats(repeats - 1)):.0f} % low."


def _compute(key: str, planned: _Planned) -> Arrays:
    """The block of that name, wherever this runs."""
    protocol, draw, snr = planned.blocks[key]
    return to_arrays(compute_block(planned.plans[protocol], draw, snr))


def _rows(
    config: GeneralisationConfig, protocol: str, blocks: Mapping[tuple[str, float], Sequence[Block]]
) -> list[Row]:
    parameters = [p.name for p in config.data.signal_model.parameters]
    return [row for snr in config.snr for row in rows_of_snr(config.kind, parameters, blocks[protocol, snr])]


def _result(config: GeneralisationConfig, planned: _Planned, rows: Mapping[str, Sequence[Row]]) -> Generalisation:
    parameter = next(p.name for p in config.data.signal_model.parameters if p.name in RELAXATION_TIMES)
    plan = next(iter(planned.plans.values()))
    regions = dict.fromkeys(row.tissue for own in rows.values() for row in own if row.tissue not in ("", "mixed"))
    home = {
        name: [p for p in planned.plans if _trained_for(method, config.with_times(p).signal_model)]
        for name, method in planned.methods.items()
        if method.weights
    }
    return Generalisation(
        parameter=parameter,
        symbol=PARAMETERS[parameter].symbol,
        tissues=["pure", *(tissue for tissue in regions if tissue != "pure")],
        protocols={name: len(config.protocols[name]) for name in planned.plans},
        methods=[*planned.methods, *PAINTERS],
        painters=PAINTERS,
        tables={protocol: Table(own) for protocol, own in rows.items()},
        home=home,
        refused=planned.refused,
        bound_of={name: bound for each in planned.plans.values() for name, bound in each.bound_of.items()},
        ratios=_ratios(rows, parameter, home),
        snrs=plan.config.snr,
    )


def _trained_for(method: Chosen, model: AnyModel) -> bool:
    estimator = getattr(method.estimator, "estimator", method.estimator)
    trained: GeneratorConfig | None = getattr(estimator, "trained_on", None)
    return trained is not None and trained.signal_model == model


def _ratios(
    rows: Mapping[str, Sequence[Row]], parameter: str, home: Mapping[str, Sequence[str]]
) -> dict[tuple[str, str, str, float], Interval]:
    """Median CV of each network over that of the network at home on the protocol, in the same images, over draws."""
    found = {}
    for protocol, own in rows.items():
        at_home = [name for name, protocols in home.items() if protocol in protocols]
        if not at_home:
            continue
        cv: dict[tuple[str, str, float], dict[int, float]] = {}
        for row in own:
            if row.metric == "cv_median" and row.parameter == parameter and row.draw != ALL and row.estimator in home:
                cv.setdefault((row.estimator, row.tissue, row.snr), {})[int(row.draw)] = row.value
        for (name, tissue, snr), values in cv.items():
            reference = cv.get((at_home[0], tissue, snr))
            if name != at_home[0] and reference:
                draws = np.array([values[d] / reference[d] for d in sorted(set(values) & set(reference))])
                found[name, protocol, tissue, snr] = ratio_over_draws(draws)
    return found


def _methods(config: GeneralisationConfig, planned: _Planned) -> list[tuple[str, str]]:
    lists = "; ".join(
        f"{name}: {len(times)} times from {1e3 * min(times):g} to {1e3 * max(times):g} ms"
        for name, times in config.protocols.items()
    )
    told = {name: given for plan in planned.plans.values() for name, given in plan.told.items() if given}
    return [
        ("protocols", f"{lists}. Anatomy, tissue values and B of a draw are the same in all of them."),
        *(
            [
                (
                    "CV / own",
                    "median CV over that of the network trained for this protocol (the first of the config, if there "
                    "are several), in the same images; geometric mean over draws with its 95 % t-interval.",
                )
            ]
            if any(method.weights for method in planned.methods.values())
            else []
        ),
        ("bias, CV, RMSE", "medians over voxels, as in a study of kind noise."),
        ("SNR", "0.65 / σ."),
        *([("told", "; ".join(f"{name}: {', '.join(given)}" for name, given in told.items()))] if told else []),
        (
            "source",
            "sabidussi2021, section 5.4 and Fig. 9; the paper has measured data and CV alone, here the truth is known.",
        ),
    ]
