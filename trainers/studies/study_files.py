"""What the studies of estimators share: reading of axes and noise, and the files they leave."""

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from io import StringIO
from math import isnan
from pathlib import Path
from typing import Annotated, Any

import torch
import yaml
from pydantic import BeforeValidator, Field
from torch import Tensor

from generators.config import RootConfig
from generators.fitting import completed
from qsim.estimators import ESTIMATORS, TissuePrior, method_options
from qsim.evaluation.pages.heat_report import Page, write_page
from qsim.evaluation.studies.grid import Contender
from qsim.evaluation.table import Row, csv_text
from qsim.kspace.noise import NOISES, AnyNoise
from qsim.parameters import RELAXATION_TIMES, Parameter
from qsim.signals import AnyModel
from qsim.signals.base import SignalModel, SpatialModel
from qsim.tissues import TissueSource
from trainers.studies.axes import Axis, Steps, axis_values
from trainers.studies.block_runner import Command
from trainers.studies.methods import Chosen, Entry, MethodEntry, ModelEntry, choose, takes_prior
from trainers.studies.outputs import claim, commit, json_text, versions
from trainers.studies.outputs import replace as replace_file

# of what these studies hold: raised when the same config gives other numbers
_VERSION = 1
# rows that are there without being named, as everywhere: on resonance, nominal B1
_DEFAULTS = {"DELTA_B0": 0.0, "REL_B1": 1.0}
# without them there is no signal, and no SNR
_AMPLITUDES = ("A", "M0")


def check_axis(name: str, points: Axis, row: Parameter) -> None:
    """Raises: ValueError, starting with the name, unless the values ascend and lie within the range of the row."""
    numbers = axis_values(points).tolist()
    if not numbers:
        raise ValueError(f"{name}: empty; give at least one value")
    if sorted(set(numbers)) != numbers:
        raise ValueError(f"{name}: wanted ascending values, each once, got {numbers}")
    _check_range(name, numbers, row)


def _check_range(name: str, numbers: Sequence[float], row: Parameter) -> None:
    """Raises: ValueError, starting with the name, unless the ascending numbers lie within the range of the row."""
    first, last = numbers[0], numbers[-1]
    got = f"{first:g}" if first == last else f"{first:g} to {last:g}"
    if row.name in _AMPLITUDES and first <= 0:
        raise ValueError(f"{name}: wanted {row.name} above 0, got {got}")
    # the ends of a logarithmic axis come back with rounding
    slack = 1e-9
    lower, upper = row.lower - slack * abs(row.lower), row.upper + slack * abs(row.upper)
    if not (lower <= first and last <= upper):
        unit = "" if row.unit == "1" else f" {row.unit}"
        hint = "; divide by 1000 if these are milliseconds" if row.name in RELAXATION_TIMES and last > upper else ""
        raise ValueError(f"{name}: wanted {row.name} from {row.lower:g} to {row.upper:g}{unit}, got {got}{hint}")


def check_ends(name: str, points: Any) -> None:
    """For validators in mode "before": {low, high} alone would be taken for a distribution without its kind.

    Raises: ValueError, starting with the name, if ends are given without all that an axis needs.
    """
    if not isinstance(points, dict) or not set(points) <= set(Steps.__dataclass_fields__):
        return
    missing = [key for key in ("low", "high", "n") if key not in points]
    if missing:
        raise ValueError(f"{name}: {' and '.join(missing)} missing; wanted {{low, high, n}} or a list of values")


def _by_kind_alone(given: Any) -> Any:
    """Noise of a study: its kind, as a word or a mapping; sigma follows from the SNR and is not wanted."""
    kinds = [str(cls.__dataclass_fields__["kind"].default) for cls in NOISES]
    if isinstance(given, str):
        if given not in kinds:
            raise ValueError(f"noise: got {given!r}, wanted one of {', '.join(map(repr, kinds))}")
        given = {"kind": given}
    if isinstance(given, dict):
        sigma = {"kind": "constant", "value": 1.0}
        if given.get("sigma", sigma) != sigma:
            raise ValueError("noise.sigma: not wanted here, sigma is 0.65 / snr; leave it out")
        return {**given, "sigma": sigma}
    return given


StudyNoise = Annotated[AnyNoise, Field(discriminator="kind"), BeforeValidator(_by_kind_alone)]
StudyModel = Annotated[AnyModel, Field(discriminator="kind")]


def check_noise(noise: AnyNoise, model: SignalModel) -> None:
    """Raises: ValueError if a signed model has noise that ends in a magnitude, or the other way round."""
    signed = bool(getattr(model, "signed", False))
    if noise.signed and not signed and hasattr(model, "signed"):
        raise ValueError("noise: kind signed needs a signed model; set model.signed: true")
    if signed and not noise.signed:
        raise ValueError("noise: a signed model needs kind signed; the others end in a magnitude")


def check_apart(name: str, model: SignalModel) -> None:
    """Raises: ValueError if the readout mixes voxels, which here are no image."""
    if isinstance(model, SpatialModel) and model.mixes_voxels:
        raise ValueError(f"{name}: its readout mixes voxels, and these stand for no image; set encoding: centre")


def truth_rows(name: str, model: SignalModel, swept: str, points: Axis, given: Mapping[str, float]) -> Tensor:
    """Rows of the model at every point (q, p).

    Raises: ValueError, starting with the name of the rows, if one is missing, unknown, given twice or out of range.
    """
    rows = [parameter.name for parameter in model.parameters]
    unknown = [row for row in given if row not in rows]
    if unknown:
        raise ValueError(f"{name}.{unknown[0]}: no row of the model, which has {', '.join(rows)}")
    if swept in given:
        raise ValueError(f"{name}.{swept}: is the axis of the study; leave it out here")
    axis = axis_values(points)
    found = []
    for parameter in model.parameters:
        row = parameter.name
        if row != swept and row not in given and row not in _DEFAULTS:
            raise ValueError(f"{name}.{row}: missing; the model has {', '.join(rows)}")
        if row in given:
            _check_range(f"{name}.{row}", [given[row]], parameter)
        found.append(axis if row == swept else torch.full_like(axis, given.get(row, _DEFAULTS.get(row, 0.0))))
    return torch.stack(found)


def no_networks(name: str, entries: Sequence[Entry]) -> None:
    """Raises: ValueError, starting with the place in the list, if one is a network."""
    for i, entry in enumerate(entries):
        if isinstance(entry, ModelEntry):
            raise ValueError(
                f"{name}[{i}]: a network looks at the neighbours of a voxel, and here they are of no anatomy; compare "
                "it in a study of kind noise"
            )


def stating_intervals(entry: Entry) -> Entry:
    """The same method, asked for its covariance where it has one: the coverage of its intervals is judged."""
    if isinstance(entry, ModelEntry):
        return entry
    method = entry if isinstance(entry, MethodEntry) else MethodEntry(method=entry)
    if method.method not in ESTIMATORS or "covariance" not in method_options(method.method):
        return entry
    return method.model_copy(update={"options": {"covariance": True, **method.options}})


def prior_of(source: TissueSource | None, entries: Sequence[Entry], model: SignalModel) -> TissuePrior | None:
    """What methods are told of the tissues, if one of them asks and the config gives a table.

    Raises: ValueError if one asks and there is none.
    """
    asking = [i for i, entry in enumerate(entries) if takes_prior(entry)]
    if not asking:
        return None
    if source is None:
        raise ValueError(f"tissues: missing; estimators[{asking[0]}] is told the distributions of the tissues")
    table = completed(source.table(), [parameter.name for parameter in model.parameters], ())
    return TissuePrior.from_table(table, model.parameters)


def contenders(
    entries: Sequence[Entry], command: Command, model: SignalModel, prior: TissuePrior | None
) -> tuple[tuple[Contender, ...], tuple[Chosen, ...]]:
    """The methods of the config and of the command.

    Raises: InputError naming the place in the list.
    """
    chosen = choose([stating_intervals(entry) for entry in entries], command.estimators, model, prior=prior)
    return tuple(Contender(each.name, each.estimator, each.told) for each in chosen), chosen


def digest_of(config: RootConfig, chosen: Sequence[Chosen] = (), files: Mapping[str, str] | None = None) -> str:
    """sha256 of all that decides the numbers: config, weights, the user's own methods, scans, version of the package.

    Args:
        files: sha256 of every file of scans, by its path.
    """
    content = {
        "version": [version("qsim"), _VERSION],
        "config": config.model_dump(mode="json"),
        "models": {each.name: dict(each.weights.sha256) for each in chosen if each.weights},
        "own": [dict(each.source) for each in chosen if each.source],
    }
    if files:
        content["files"] = dict(files)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def open_files(config: RootConfig, chosen: Sequence[Chosen], out: Path, files: Mapping[str, str] | None = None) -> str:
    """Claim the folder of a study; returns its digest.

    Args:
        files: sha256 of every file of scans, by its path.
    Raises: InputError if it holds something else.
    """
    digest = digest_of(config, chosen, files)
    claim(out, digest, _provenance(config, chosen, digest, files, complete=False))
    return digest


def write_files(
    config: RootConfig,
    chosen: Sequence[Chosen],
    out: Path,
    rows: Iterable[Row],
    grid: tuple[Sequence[str], Iterable[Sequence[str | float | int]]] | None,
    page: Page,
    files: Mapping[str, str] | None = None,
) -> Path:
    """Write results.csv, grid.csv, report.html and, last, the provenance; returns the path of the page.

    Args:
        grid: header and lines of grid.csv; None: the study has none.
        page: without config, versions and digest, which are filled in here.
        files: sha256 of every file of scans, by its path.
    """
    digest = digest_of(config, chosen, files)
    replace_file(out / "results.csv", csv_text(rows))
    if grid is not None:
        replace_file(out / "grid.csv", columns_text(*grid))
    about = {**versions(), "commit": commit() or "none (not run from a checkout)"}
    for each in chosen:
        if each.weights:
            about[each.name] = ", ".join(f"{file} sha256 {h[:16]}" for file, h in each.weights.sha256.items())
        if each.source:
            about[each.name] = ", ".join(f"{key} {text}" for key, text in each.source.items())
    text = yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False, width=100)
    write_page(out / "report.html", replace(page, versions=about, config=text, digest=digest))
    replace_file(out / "provenance.json", json_text(_provenance(config, chosen, digest, files, complete=True)))
    return out / "report.html"


def _provenance(
    config: RootConfig, chosen: Sequence[Chosen], digest: str, files: Mapping[str, str] | None, *, complete: bool
) -> dict[str, Any]:
    return {
        "complete": complete,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "digest": digest,
        "config": config.model_dump(mode="json"),
        "models": {each.name: dict(each.weights.sha256) for each in chosen if each.weights},
        "own_methods": {each.name: dict(each.source) for each in chosen if each.source},
        "told": {each.name: list(each.told) for each in chosen if each.told},
        "versions": versions(),
        "git": commit(),
        **({"files": dict(files)} if files else {}),
    }


def columns_text(header: Sequence[str], lines: Iterable[Sequence[str | float | int]]) -> str:
    """A table as text: six figures of every number, nothing where it is none."""
    file = StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    for line in lines:
        writer.writerow([("" if isnan(c) else f"{c:.6g}") if isinstance(c, float) else str(c) for c in line])
    return file.getvalue()
