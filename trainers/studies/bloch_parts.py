"""What the configs of `prep_robustness` and `readout_bias` share: named preparations, axes of grids, writing."""

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from io import StringIO
from math import isnan
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from generators.config import RootConfig
from qsim.evaluation.pages.heat_report import Page, write_page
from qsim.evaluation.studies.apparent import TissueTimes, label, pulses
from qsim.evaluation.table import Row, csv_text
from qsim.signals.preparations import AnyPreparation, Inversion, SpinLockPreparation, T2Preparation
from qsim.values import value
from trainers.studies.axes import Axis, axis_values
from trainers.studies.outputs import claim, commit, json_text, versions
from trainers.studies.outputs import replace as replace_file

# of what a study of this file holds: raised when the same config gives other numbers
_VERSION = 1


@value
class NamedSpinLock(SpinLockPreparation):
    """A spin-lock preparation with a name in tables; without one it is called after its cluster."""

    name: str | None = None


@value
class NamedT2Preparation(T2Preparation):
    """A T2 preparation with a name in tables; without one it is called after its refocusing."""

    name: str | None = None


@value
class NamedInversion(Inversion):
    """An inversion with a name in tables; without one it is called after its pulse."""

    name: str | None = None


FieldEntry = Annotated[NamedSpinLock | NamedT2Preparation, Field(discriminator="kind")]
AnyEntry = Annotated[NamedSpinLock | NamedT2Preparation | NamedInversion, Field(discriminator="kind")]
PulseB1 = Annotated[float, Field(gt=0)] | None


def check_points(name: str, points: Axis, low: float, high: float) -> None:
    """Raises: ValueError, starting with the name, unless the values ascend and lie within [low, high]."""
    numbers = axis_values(points).tolist()
    if not numbers:
        raise ValueError(f"{name}: empty; give at least one value")
    if sorted(set(numbers)) != numbers:
        raise ValueError(f"{name}: wanted ascending values, each once, got {numbers}")
    if numbers[0] < low or numbers[-1] > high:
        raise ValueError(f"{name}: wanted values from {low:g} to {high:g}, got {numbers[0]:g} to {numbers[-1]:g}")


def plain(entry: AnyPreparation) -> AnyPreparation:
    """The preparation without its name."""
    kinds: tuple[type[SpinLockPreparation] | type[T2Preparation] | type[Inversion], ...]
    kinds = (SpinLockPreparation, T2Preparation, Inversion)
    kind = next(kind for kind in kinds if isinstance(entry, kind))
    return kind(**{field.name: getattr(entry, field.name) for field in fields(kind)})


def expand(
    entries: Sequence[AnyPreparation], pulse_b1: Sequence[float | None] | None
) -> list[tuple[str, AnyPreparation]]:
    """Names and preparations, each once for every amplitude of its pulses.

    Raises: ValueError naming the entry, if it cannot have such pulses, or another one has its name.
    """
    found: list[tuple[str, AnyPreparation]] = []
    seen: dict[tuple[str, str], int] = {}
    for i, entry in enumerate(entries):
        name, one = getattr(entry, "name", None) or label(entry), plain(entry)
        if pulse_b1 is not None and getattr(one, "pulse_b1", None) is not None:
            raise ValueError(f"preparations[{i}].pulse_b1: given here and for all preparations; leave one of them out")
        if len(set(one.times)) < 3:
            raise ValueError(
                f"preparations[{i}]: has {len(set(one.times))} different times; the fit of three parameters needs 3"
            )
        for amplitude in pulse_b1 or (None,):
            try:
                played = one if isinstance(one, Inversion) or amplitude is None else replace(one, pulse_b1=amplitude)
            except ValueError as error:
                raise ValueError(f"preparations[{i}]: {error} (pulse_b1 {amplitude:g} Hz)") from None
            key = name, pulses(played)
            if key in seen:
                raise ValueError(
                    f"preparations[{i}]: is called {name} with {key[1]} pulses, as preparations[{seen[key]}] is; "
                    "give it a name"
                )
            seen[key] = i
            found.append((name, played))
    return found


def check_filled(lists: Mapping[str, Sequence[object] | None]) -> None:
    """Raises: ValueError, starting with the name, if a list is empty.

    As a length of the field it would be a second complaint about a list whose entries are refused.
    """
    for name, entries in lists.items():
        if entries is not None and not len(entries):
            raise ValueError(f"{name}: empty; give at least one")


def check_tissues(tissues: Sequence[TissueTimes], entries: Sequence[AnyPreparation]) -> None:
    """Raises: ValueError if two tissues share a name, or one has no T1rho for a spin-lock."""
    locking = next((i for i, entry in enumerate(entries) if isinstance(entry, SpinLockPreparation)), None)
    for i, tissue in enumerate(tissues):
        if tissue.name in [other.name for other in tissues[:i]]:
            raise ValueError(f"tissues[{i}].name: {tissue.name} is given twice")
        if locking is not None and tissue.t1rho is None:
            raise ValueError(f"tissues[{i}].t1rho: missing; preparations[{locking}] is a spin-lock and needs it")


def digest(config: RootConfig) -> str:
    """sha256 of all that decides the numbers: config, version of the package."""
    content = {"version": [version("qsim"), _VERSION], "config": config.model_dump(mode="json")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def open_study(config: RootConfig, out: Path) -> None:
    """Claim the folder of a study.

    Raises: InputError if it holds something else.
    """
    claim(out, digest(config), _provenance(config, complete=False))


def write_study(
    config: RootConfig,
    out: Path,
    rows: Iterable[Row],
    grid: tuple[Sequence[str], Iterable[Sequence[str | float | int]]],
    page: Callable[[str, dict[str, str], str], Page],
) -> Path:
    """Write results.csv, grid.csv, report.html and, last, the provenance; returns the path of the page.

    Args:
        grid: header and lines of grid.csv.
        page: makes the page from the text of the config, the versions and the digest.
    """
    replace_file(out / "results.csv", csv_text(rows))
    replace_file(out / "grid.csv", _grid_text(*grid))
    about = {**versions(), "commit": commit() or "none (not run from a checkout)"}
    text = yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False, width=100)
    write_page(out / "report.html", page(text, about, digest(config)))
    replace_file(out / "provenance.json", json_text(_provenance(config, complete=True)))
    return out / "report.html"


def _provenance(config: RootConfig, *, complete: bool) -> dict[str, Any]:
    return {
        "complete": complete,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "digest": digest(config),
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "git": commit(),
    }


def _grid_text(header: Sequence[str], lines: Iterable[Sequence[str | float | int]]) -> str:
    file = StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    for line in lines:
        writer.writerow([_cell(cell) for cell in line])
    return file.getvalue()


def _cell(cell: str | float | int) -> str:
    if isinstance(cell, float):
        return "" if isnan(cell) else f"{cell:.6g}"
    return str(cell)
