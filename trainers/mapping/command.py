"""From the words of `qsim map` to a series, a signal model and a job; and what the terminal is told."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import typer

from generators.cli import bar, stopped
from phantoms.series import key_for, model_and_notes, open_series
from qsim.errors import InputError
from trainers.mapping.inputs import MapJob, Option
from trainers.mapping.output import status_text, text_of
from trainers.mapping.series import MapRecord, map_series

# notes that stand under a head of their own
_WITH_A_HEAD = ("motion: ", "warning: ")


@dataclass(frozen=True, slots=True)
class MapWords:
    """The options of the command as they were typed; empty where they were not."""

    method: str = ""
    model: str = ""
    estimator: str = ""
    signal: str = ""
    times: str = ""
    sigma: str = ""
    mask: str = ""
    b1: str = ""
    known: Sequence[str] = ()
    option: Sequence[str] = ()
    tissues: str = ""
    std: bool = False
    slices: str = ""
    magnitude: bool = False
    signed: str = ""
    dataset: str = ""
    axes: str = ""
    voxel_mm: str = ""
    register: bool = False
    kspace: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    subject: str = ""
    session: str = ""
    overwrite: bool = False


def run(series: Path, out: Path, words: MapWords, *, as_json: bool) -> None:
    """Map a series, and say what was done.

    Raises: InputError naming the option, file or field at fault.
    """
    job = job_of(out, words)
    if words.b1 and not Path(words.b1).is_file():
        raise InputError(f"--b1: {words.b1} does not exist")
    if words.signed not in ("", "yes", "no"):
        raise InputError(f"--signed: got {words.signed!r}, wanted yes or no")
    signed = words.signed == "yes" if words.signed else None
    opened = open_series(
        series,
        times=_times(words.times) if words.times else None,
        key=key_for(words.signal) if words.signal else None,
        b1=Path(words.b1) if words.b1 else None,
        dataset=words.dataset or None,
        axes=words.axes or None,
        voxel_mm=_voxel(words.voxel_mm) if words.voxel_mm else None,
        magnitude=words.magnitude,
        kspace=words.kspace,
    )
    model, notes = model_and_notes((opened,), words.signal or None, signed)
    opened = replace(opened, notes=(*opened.notes, *notes))
    if words.b1 and "REL_B1" not in [p.name for p in model.parameters]:
        rows = ", ".join(p.name for p in model.parameters)
        raise InputError(f"--b1: the signal model has no REL_B1 and takes no B1 map; it has {rows}")
    with stopped("stopped; nothing was written"), bar("map", "slices") as progress:
        record = map_series(opened, model, job, progress)
    if as_json:
        typer.echo(json.dumps(record.as_json(), indent=1, allow_nan=False))
        return
    typer.echo("\n".join(_lines(record)))


def _lines(record: MapRecord) -> list[str]:
    lines = [
        f"{record.out}: {record.method}, {record.seconds:.1f} s; figures of {record.voxels} voxels {record.region}"
    ]
    lines += [f"  {text_of(each, _suffix(each.file))}" for each in record.maps]
    lines.append(f"  status       {status_text(record.status)}")
    lines.append(f"  sigma        {record.noise}")
    return lines + [note if note.startswith(_WITH_A_HEAD) else f"note: {note}" for note in record.notes]


def _suffix(file: str) -> str:
    return file.removesuffix(".nii.gz").rpartition("_")[2]


def job_of(out: Path, words: MapWords) -> MapJob:
    """Raises: InputError naming the option."""
    known: dict[str, float | Path] = {}
    for given in words.known:
        name, value = _pair("--known", given, "NAME=FILE or NAME=number, for example B=1.96")
        if name in known:
            raise InputError(f"--known: {name} is given twice")
        known[name] = _number_or_file(value)
    options: dict[str, Option] = {}
    for given in words.option:
        name, value = _pair("--option", given, "key=value, for example coils=4")
        if name in options:
            raise InputError(f"--option: {name} is given twice")
        options[name] = _typed(value)
    mask: Path | Literal["auto"] | None = Path(words.mask) if words.mask else None
    return MapJob(
        out=out,
        method=words.method,
        network=words.model,
        own=words.estimator,
        options=options,
        tissues=words.tissues,
        std=words.std,
        sigma=_number_or_file(words.sigma) if words.sigma else None,
        mask="auto" if words.mask == "auto" else mask,
        known=known,
        slices=_slices(words.slices) if words.slices else None,
        device=words.device,
        register=words.register,
        subject=words.subject,
        session=words.session,
        overwrite=words.overwrite,
    )


def _pair(option: str, given: str, wanted: str) -> tuple[str, str]:
    name, sign, value = given.partition("=")
    if not (name.strip() and sign and value.strip()):
        raise InputError(f"{option}: got {given!r}, wanted {wanted}")
    return name.strip(), value.strip()


def _number_or_file(value: str) -> float | Path:
    try:
        return float(value)
    except ValueError:
        return Path(value)


def _typed(value: str) -> Option:
    """true, false, a whole number, a number, or a word."""
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _slices(given: str) -> tuple[int, int]:
    first, _, last = given.partition(":")
    try:
        return int(first), int(last)
    except ValueError:
        raise InputError(f"--slices: got {given!r}, wanted A:B, two whole numbers, for example 10:20") from None


def _times(given: str) -> tuple[float, ...]:
    try:
        return tuple(float(each) for each in given.split(","))
    except ValueError:
        raise InputError(
            f"--times: got {given!r}, wanted numbers in seconds (flip angles: degrees) separated by commas, "
            "for example 0.05,0.4,1.5"
        ) from None


def _voxel(given: str) -> tuple[float, ...]:
    try:
        return tuple(float(each) for each in given.split(","))
    except ValueError:
        raise InputError(f"--voxel-mm: got {given!r}, wanted z,y,x in mm, for example 4,0.9,0.9") from None
