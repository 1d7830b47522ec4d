"""Sidecars: which key holds the times of a series, and what else of the protocol a signal model needs.

Numbers are seconds, hertz, tesla and, as BIDS has it, degrees for flip angles, which become radians here. A number
written as a string is a number, and a note says so; what looks like milliseconds is refused, never converted.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, radians
from pathlib import Path
from statistics import median

from phantoms.files.images import reading
from qsim.errors import InputError

Json = Mapping[str, object]

# key of the sidecar -> timing argument of the signal models
KEYS = {
    "InversionTime": "ti",
    "EchoTime": "te",
    "SpinLockTime": "tsl",
    "T2PrepTime": "te_prep",
    "SaturationTime": "ts",
    "FlipAngle": "flip_angles",
}
# suffix -> key; T1rhow and T2prepw are not in BIDS
SUFFIXES = {
    "IRT1": "InversionTime",
    "MESE": "EchoTime",
    "MEGRE": "EchoTime",
    "VFA": "FlipAngle",
    "T1rhow": "SpinLockTime",
    "T2prepw": "T2PrepTime",
}
_INTERVALS = ("RepetitionTime", "RepetitionTimeExcitation", "RepetitionTimePreparation")
_NUMBERS = (*_INTERVALS, *KEYS, "SpinLockFrequency", "MagneticFieldStrength")
# lists that may differ together: a spin-lock in some images, a T2 preparation in others
JOINT = ("SpinLockTime", "T2PrepTime")
# a list with a larger median [s] is in milliseconds, whatever it times
_MILLISECONDS = 50.0
# angles that are all smaller [degrees] were given in radians
_SMALLEST_ANGLE = 1.6
# the TR of a spoiled gradient echo is milliseconds; one as long as this [s] was not given in seconds
_LONGEST_SPOILED = 1.0


@dataclass(frozen=True, slots=True)
class Timing:
    """What sidecars say about a series.

    Attributes:
        key: that holds the times; empty if nothing names it.
        times: [s; rad for FlipAngle].
        protocol: other numbers by key [s, Hz, T, rad].
        notes: what was converted or left out.
        te_prep: T2PrepTime beside the key SpinLockTime, where both differ between the images; else empty [s].
    """

    key: str
    times: tuple[float, ...]
    protocol: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    te_prep: tuple[float, ...] = ()


def read_json(file: Path) -> Json:
    """A sidecar.

    Raises: InputError naming the file if it cannot be read or is no object.
    """
    content: object = reading(str(file), lambda: json.loads(file.read_text(encoding="utf-8-sig")))
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds a {type(content).__name__}, wanted an object such as {{...: ...}}")
    return content


def sidecar_of(path: Path) -> Path:
    """The JSON file of the same stem."""
    name = path.name
    for ending in (".nii.gz", path.suffix):
        if ending and name.lower().endswith(ending.lower()):
            name = name[: -len(ending)]
            break
    return path.with_name(f"{name}.json")


def number(where: str, key: str, value: object, notes: list[str]) -> float:
    """A number, which may be written as a string.

    Raises: InputError naming file and key.
    """
    found: float | None = None
    if isinstance(value, str):
        try:
            found = float(value)
        except ValueError:
            raise InputError(f"{where}: {key} holds {value!r}, wanted a number") from None
        note = f"{where}: {key} is written as text and was taken as numbers"
        if note not in notes:
            notes.append(note)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        found = float(value)
    if found is None:
        raise InputError(f"{where}: {key} holds {json.dumps(value)[:60]}, wanted a number")
    if not isfinite(found):
        raise InputError(f"{where}: {key} holds {found}, wanted a finite number")
    return found


def timing(
    where: str, content: Json, count: int, *, suffix: str = "", key: str | None = None, times: Sequence[float] | None
) -> Timing:
    """Times and protocol of a series.

    Args:
        where: name of the file that holds the content, for messages.
        count: of images.
        suffix: of BIDS.
        key: that is to be used.
        times: that replace those of the sidecar [s; degrees with the key FlipAngle].
    Raises: InputError naming file and key.
    """
    if key is not None and key not in KEYS:
        raise InputError(f"key: got {key!r}, wanted one of {', '.join(KEYS)}")
    notes: list[str] = []
    chosen = key or _chosen(where, content, count, suffix, times is not None)
    if key is not None and times is None and key not in content:
        chosen = _instead(where, content, count, suffix, key, notes)
    if times is not None:
        source, values = "--times", [number("--times", "the list", value, notes) for value in times]
        if chosen in content:
            notes.append(f"--times replaces {chosen} of {where}")
        if len(values) != count:
            raise InputError(f"--times: {len(values)} times for {count} images of {where}")
    else:
        source, values = where, _times(where, content, chosen, count, notes)
    _check(source, chosen, values)
    second: list[float] = []
    if times is None and chosen == JOINT[0] and all(_differs(content.get(each)) for each in JOINT):
        second = _times(where, content, JOINT[1], count, notes)
        _check(where, JOINT[1], second)
    _note_repeats(f"{chosen} and {JOINT[1]}" if second else chosen or "the time", values, second, notes)
    protocol = _protocol(where, content, (chosen, *(JOINT[1:] if second else ())), values, notes)
    if chosen == "FlipAngle":
        values = [radians(value) for value in values]
    return Timing(chosen, tuple(values), protocol, tuple(notes), tuple(second))


def _note_repeats(name: str, values: Sequence[float], second: Sequence[float], notes: list[str]) -> None:
    """A note on images of the same times."""
    said = [f"{value:g}" for value in values]
    if second:
        said = [f"{one} with {other:g}" for one, other in zip(said, second, strict=True)]
    keys: list[tuple[float, ...]] = list(zip(values, second, strict=True)) if second else [(each,) for each in values]
    repeated = sorted({key: text for key, text in zip(keys, said, strict=True) if keys.count(key) > 1}.items())
    if repeated:
        listed = ", ".join(text for _, text in repeated)
        notes.append(f"{name} {listed} occurs more than once: these images are taken as repeats")


def _chosen(where: str, content: Json, count: int, suffix: str, replaced: bool) -> str:
    """The key that tells the images apart; the first of the two that may differ together."""
    others = [key for key in KEYS if key not in JOINT and _differs(content.get(key))]
    if not replaced and not others and all(_differs(content.get(key)) for key in JOINT):
        return JOINT[0]
    named = SUFFIXES.get(suffix, "")
    if named and (named in content or replaced):
        return named
    present = [key for key in KEYS if key in content]
    lists = [key for key in present if _is_list(content[key])]
    fitting = [key for key in lists if len(content[key]) == count]  # type: ignore[arg-type]
    varying = [key for key in fitting if len({str(value) for value in content[key]}) > 1]  # type: ignore[attr-defined]
    for found in (varying, fitting, lists):
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            raise InputError(
                f"{where}: {' and '.join(found)} {'both' if len(found) == 2 else 'all'} hold a list; say by the signal "
                "model which times are meant (--signal KIND)"
            )
    if replaced:
        return present[0] if len(present) == 1 else ""
    alone = "no list of times"
    if len(present) == 1:
        held = content[present[0]]
        single = isinstance(held, int | float) or (isinstance(held, list) and len(held) == 1)
        alone = f"{present[0]} is one number" if single else f"{present[0]} holds {json.dumps(held)[:60]}"
        alone += f" for {count} images"
    raise InputError(
        f"{where}: {alone}; wanted one of {', '.join(KEYS)} as a list of {count} (seconds; FlipAngle in degrees), or "
        "--times with --signal"
    )


def _instead(where: str, content: Json, count: int, suffix: str, key: str, notes: list[str]) -> str:
    """The list of times that there is, where that of the model is missing: seconds are seconds.

    Raises: InputError naming file and key if there is none, or one of the two is of angles.
    """
    found = _chosen(where, content, count, suffix, False) if any(_is_list(content.get(each)) for each in KEYS) else key
    if found == key or "FlipAngle" in (found, key):
        raise InputError(f"{where}: has no {key}, wanted a list of {count}, one for each image; or give --times")
    notes.append(f"{where}: has no {key}; its {found} is taken for it, as the signal model is given")
    return found


def _is_list(value: object) -> bool:
    return isinstance(value, list) and len(value) > 1


def _differs(value: object) -> bool:
    """Whether it is a list of which not all are the same."""
    return isinstance(value, list) and len({str(each) for each in value}) > 1


def _times(where: str, content: Json, key: str, count: int, notes: list[str]) -> list[float]:
    if key not in content:
        raise InputError(f"{where}: has no {key}, wanted a list of {count}, one for each image; or give --times")
    held = content[key]
    listed = held if isinstance(held, list) else [held]
    values = [number(where, key, value, notes) for value in listed]
    if len(values) != count:
        raise InputError(f"{where}: {key} holds {len(values)} times for {count} images")
    return values


def _check(where: str, key: str, values: Sequence[float]) -> None:
    """Refuse what cannot be seconds or degrees.

    Raises: InputError naming file and key.
    """
    name = key or "the list"
    if key == "FlipAngle":
        if any(not 0 < value <= 180 for value in values):
            raise InputError(f"{where}: FlipAngle must lie above 0 and up to 180 degrees, got {_range(values)}")
        if max(values) < _SMALLEST_ANGLE:
            raise InputError(f"{where}: FlipAngle must be in degrees, got {_range(values)}, which look like radians")
        return
    if values and median(values) > _MILLISECONDS:
        raise InputError(
            f"{where}: {name} must be in seconds, got {_range(values)}, which look like milliseconds; divide by 1000"
        )
    if key:
        check_seconds(where, key, KEYS[key], values)


def check_seconds(where: str, key: str, argument: str, values: Sequence[float]) -> None:
    """The check that every signal model makes, with the name of the file and of the key.

    Raises: InputError.
    """
    from qsim.signals.base import check_times

    try:
        check_times(argument, tuple(values))
    except ValueError as error:
        raise InputError(f"{where}: {key}{str(error).removeprefix(argument)}") from None


def _range(values: Sequence[float]) -> str:
    return f"{min(values):g} to {max(values):g}"


def _protocol(
    where: str, content: Json, keys: tuple[str, ...], times: Sequence[float], notes: list[str]
) -> Mapping[str, float]:
    """The other numbers, each the same for every image.

    Args:
        keys: of the times of the images, the one that was chosen first.
    """
    chosen = keys[0]
    found: dict[str, float] = {}
    for key in _NUMBERS:
        if key in keys or content.get(key) is None:
            continue
        held = content[key]
        listed = held if isinstance(held, list) else [held]
        try:
            values = [number(where, key, value, notes) for value in listed]
        except InputError as error:
            if key in _INTERVALS:
                raise
            notes.append(f"{error}: left out")
            continue
        if key in _INTERVALS and values:
            check_seconds(where, key, "tr", values)
        if not values or max(values) != min(values):
            if chosen == "FlipAngle" and key in _INTERVALS:
                raise InputError(f"{where}: {key} differs between the images ({_range(values)}), wanted one for all")
            notes.append(f"{where}: {key} differs between the images and was left out")
            continue
        found[key] = radians(values[0]) if key == "FlipAngle" else values[0]
    return _with_interval(where, found, chosen, times, notes)


def _with_interval(
    where: str, found: dict[str, float], chosen: str, times: Sequence[float], notes: list[str]
) -> Mapping[str, float]:
    """RepetitionTime as the signal model counts it: between excitations, or from one inversion to the next."""
    excitation, preparation = found.get("RepetitionTimeExcitation"), found.get("RepetitionTimePreparation")
    if chosen == "FlipAngle":
        interval = excitation if excitation is not None else found.get("RepetitionTime")
        if interval is not None:
            if not 0 < interval <= _LONGEST_SPOILED:
                raise InputError(
                    f"{where}: the repetition time of a spoiled gradient echo must be in seconds, got {interval:g}; "
                    "divide by 1000 if it is in milliseconds"
                )
            found["RepetitionTime"] = interval
        return found
    if preparation is not None:
        found["RepetitionTime"] = preparation
    if chosen == "InversionTime" and found.get("RepetitionTime", max(times) + 1) <= max(times):
        short = found.pop("RepetitionTime")
        notes.append(
            f"{where}: RepetitionTime {short:g} s is not longer than the longest InversionTime, so it does not count "
            "from one inversion to the next: full recovery is assumed"
        )
    return found
