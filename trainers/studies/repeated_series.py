"""Repeats of one protocol on one object: which files they are, opened, and compared with the first.

    data:
      scans:
        series: [scan1.nii.gz, scan2.nii.gz]    # repeats of one protocol on one object, not moved between them
        mask: auto

Every repeat is opened as `qsim map` opens it. All must have the same grid, the same place in space and the same
timings; what differs is refused, naming the repeat. Nothing is registered or resampled here.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from phantoms.series import key_for, open_series
from phantoms.series.arrays import split
from phantoms.series.base import Series
from qsim.errors import InputError

# of times that count as the same: single precision and rounding to a tenth of a microsecond
_SAME = 1e-5


class Scans(BaseModel):
    """Repeated scans of one object with one protocol.

    Attributes:
        series: a path for each repeat: NIfTI with its sidecar, a BIDS file or folder, an array of NumPy, MATLAB or
            HDF5 (`FILE.mat:variable`), as `qsim map` reads them.
        times: of the images, instead of those of the sidecar [s; degrees with the key FlipAngle].
        signal: kind of the signal model; None: chosen by the key of the times.
        key: of the sidecar that holds the times; None: found.
        mask: NIfTI file on the grid of the scans, `auto` (told from the air by brightness), or None: every voxel.
        sigma: noise SD [units of the images]; None: estimated.
        slices: first, and one after the last; None: all.
        axes: letters (n c z y x) of an array that is not NIfTI.
        magnitude: take the modulus of complex images.
        signed: whether the sign of the images is that of the magnetisation; None: told by their values.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    series: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    times: tuple[float, ...] | None = None
    signal: str | None = None
    key: str | None = None
    mask: Annotated[str, Field(min_length=1)] | None = None
    sigma: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    slices: tuple[Annotated[int, Field(ge=0, strict=True)], Annotated[int, Field(ge=1, strict=True)]] | None = None
    axes: str | None = None
    magnitude: Annotated[bool, Field(strict=True)] = False
    signed: Annotated[bool, Field(strict=True)] | None = None

    @field_validator("series")
    @classmethod
    def _each_once(cls, series: tuple[str, ...]) -> tuple[str, ...]:
        twice = [path for i, path in enumerate(series) if path in series[:i]]
        if twice:
            raise ValueError(f"series: {twice[0]} is given twice; a scan is no repeat of itself")
        return series

    @field_validator("slices")
    @classmethod
    def _ascending(cls, slices: tuple[int, int] | None) -> tuple[int, int] | None:
        if slices is not None and not slices[0] < slices[1]:
            raise ValueError(f"slices: got {list(slices)}, wanted the first slice and the one after the last")
        return slices


class FieldOfStudy:
    """Messages that start with an option of `qsim map` start with the field of the study instead."""

    def __init__(self, field: str) -> None:
        self._field = field

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InputError):
            option, colon, text = str(error).removeprefix("--").partition(":")
            if str(error).startswith("--") and colon:
                raise InputError(f"{self._field}.{option}:{text}") from None
            raise InputError(f"{self._field}: {error}") from None


def open_repeats(scans: Scans, field: str) -> tuple[Series, ...]:
    """Every repeat, compared with the first."""
    key = scans.key
    if key is None and scans.signal is not None:
        with FieldOfStudy(field):
            key = key_for(scans.signal)
    opened: list[Series] = []
    for i, path in enumerate(scans.series):
        where = f"{field}.series[{i}]"
        try:
            inner, _ = split(Path(path).expanduser())
            if not inner.exists() and "*" not in path:
                raise InputError(f"{path}: no such file")
            series = open_series(
                Path(path).expanduser(), times=scans.times, key=key, axes=scans.axes, magnitude=scans.magnitude
            )
        except InputError as error:
            option, _, text = str(error).removeprefix("--").partition(":")
            if str(error).startswith("--") and option in Scans.model_fields:
                raise InputError(f"{field}.{option}:{text}") from None
            raise InputError(f"{where}: {error}") from None
        if opened:
            _alike(where, series, opened[0], scans)
        if any(series.files == other.files for other in opened) and "*" not in path and ":" not in path:
            raise InputError(f"{where}: {path}: is the same scan as another of the list; give each repeat once")
        opened.append(series)
    return tuple(opened)


def _alike(where: str, series: Series, first: Series, scans: Scans) -> None:
    """Refuse a repeat of another grid, place, or protocol.

    Raises: InputError, starting with the repeat.
    """
    name, other = scans.series[int(where.rpartition("[")[2].rstrip("]"))], scans.series[0]
    if series.space != first.space:
        raise InputError(
            f"{where}: {name} has shape {series.space[::-1]} (x, y, z), the first repeat {first.space[::-1]}; "
            "repeats must have one grid"
        )
    if not np.allclose(series.affine, first.affine, rtol=1e-4, atol=1e-2):
        raise InputError(
            f"{where}: {name} lies in another place than {other} (their affines differ); resample it first"
        )
    if series.te_prep != first.te_prep:
        raise InputError(f"{where}: {name} has other T2 preparations than {other}; repeats must have one protocol")
    if len(series.times) != len(first.times):
        raise InputError(f"{where}: {name} has {len(series.times)} images, the first repeat {len(first.times)}")
    if series.key != first.key:
        raise InputError(f"{where}: {name} comes with {series.key or 'nothing'}, the first repeat with {first.key}")
    for n, (time, wanted) in enumerate(zip(series.times, first.times, strict=True)):
        if abs(time - wanted) > _SAME * max(abs(wanted), 1e-3):
            raise InputError(
                f"{where}: {name}: {series.key or 'time'} of image {n} is {time:.6g}, of the first repeat "
                f"{wanted:.6g}; repeats are of one protocol"
            )
    for key in sorted(set(series.protocol) | set(first.protocol)):
        own, theirs = series.protocol.get(key), first.protocol.get(key)
        if own is None or theirs is None or abs(own - theirs) > 1e-3 * abs(theirs):
            raise InputError(
                f"{where}: {name}: {key} is {_said(own)}, of the first repeat {_said(theirs)}; "
                "repeats are of one protocol"
            )


def _said(number: float | None) -> str:
    return "missing" if number is None else f"{number:.6g}"
