"""A user's own repeated scans, as the studies on phantoms and in vivo take them.

    data:
      scans:
        series: [scan1.nii.gz, scan2.nii.gz]    # repeats of one protocol on one object, not moved between them
        mask: auto

Every repeat is opened as `qsim map` opens it. All must have the same grid, the same place in space and the same
timings; what differs is refused, naming the repeat. Nothing is registered or resampled here.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from phantoms.series import key_for, model_for, open_series
from phantoms.series.arrays import split
from phantoms.series.base import Series
from qsim.errors import InputError
from qsim.estimators.base import Estimate, Estimator, computable
from qsim.estimators.noise_level import from_repeats
from qsim.signals.base import SignalModel
from trainers.map_inputs import MapJob, find_sigma, foreground
from trainers.map_known import read_known, read_mask, read_volume
from trainers.network_estimator import NetworkEstimator
from trainers.studies.methods import Renamed

# voxels of which sigma is estimated, and that are mapped together
_VOXELS = 1 << 17
# of times that count as the same: single precision and rounding to a tenth of a microsecond
_SAME = 1e-5
# sigma of one scan and that between repeats that differ by more than this factor are told apart in a note
_ALIKE = 1.25
# images up to this factor outside the range of a network's training are still mapped, as `qsim map` does
_SCALE_MARGIN = 4.0


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


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Repeated scans, read and checked.

    Attributes:
        images: of each repeat [units of the scanner].
        model: signal model of the series.
        mask: voxels to be estimated: those asked for that can be computed in every repeat.
        affine: voxel index (x, y, z) of these images to world [mm].
        spacing_mm: of z, y, x [mm].
        sigma: noise SD; None: nothing shows it [units of the images].
        sigma_source: how it was found, a sentence.
        names: of the repeats, for reports.
        notes: what was taken for granted, a sentence each.
        sha256: of every file that was read, by its path.
        known: rows that are not fitted (B1 of a series of flip angles), a map or one number [SI].
        whole: the first repeat as it was read, with all its slices.
        slices: those of `whole` that are here: first, and one after the last.
    """

    images: Float[Tensor, "c n z y x"]
    model: SignalModel
    mask: Bool[Tensor, "z y x"]
    affine: Float[np.ndarray, "4 4"]
    spacing_mm: tuple[float, ...]
    sigma: float | None
    sigma_source: str
    names: tuple[str, ...]
    notes: tuple[str, ...]
    sha256: Mapping[str, str]
    whole: Series
    slices: tuple[int, int]
    known: Mapping[str, Float[Tensor, "*space_or_none"]] = field(default_factory=dict)

    @property
    def repeats(self) -> int:
        """How often the object was scanned."""
        return int(self.images.shape[0])

    def volume(self, field: str, path: str) -> Shaped[np.ndarray, "z y x"]:
        """A NIfTI map on the grid of the scans (labels, a reference), its slices those of `images`.

        Raises: InputError, starting with the field, if it cannot be read or lies elsewhere.
        """
        return read_volume(field, Path(path), self.whole)[self.slices[0] : self.slices[1]]


def read_scans(scans: Scans, field: str) -> Measured:
    """Read repeated scans.

    Args:
        scans: as in the config.
        field: where they stand in it, for messages, as `data.scans`.
    Raises: InputError, one line, starting with the field at fault.
    """
    opened = _open_all(scans, field)
    first = opened[0]
    signed = any(series.signed for series in opened)
    with _Named(field):
        model = model_for(first, scans.signal, signed)
    if len(first.volumes) != model.n_images:
        raise InputError(f"{field}.series[0]: holds {len(first.volumes)} images, its signal model {model.n_images}")
    start, end = scans.slices or (0, first.space[0])
    if end > first.space[0]:
        raise InputError(f"{field}.slices: got [{start}, {end}], the scans have slices 0 to {first.space[0] - 1}")
    images = torch.from_numpy(np.stack([series.slab(start, end) for series in opened]))
    with _Named(field):
        told = read_known(MapJob(Path()), first, model, range(start, end))
    known = {
        name: torch.tensor(value) if isinstance(value, float) else torch.from_numpy(value[start:end].copy())
        for name, value in told.values.items()
    }
    region, masked = _region(scans, field, first, (start, end))
    # what is not finite in one repeat is left out of all, so that every repeat is of the same voxels
    mask = region if masked else torch.ones_like(region)
    if told.usable is not None:
        mask = mask & torch.from_numpy(told.usable[start:end].copy())
    asked = int(mask.sum())
    for each in images:
        mask = mask & computable(each, mask)
    if not bool(mask.any()):
        raise InputError(f"{field}.mask: no voxel can be mapped: all are left out, zero or not finite")
    notes = list(dict.fromkeys(note for series in opened for note in series.notes)) + list(told.notes)
    if masked and int(mask.sum()) < asked:
        notes.append(f"{asked - int(mask.sum())} of {asked} voxels cannot be computed in some repeat, and are left out")
    sigma, source, said = _sigma(scans, images, region & mask if masked else region, mask, model, known)
    affine = first.affine.copy()
    affine[:3, 3] = (first.affine @ (0, 0, start, 1))[:3]
    files = [file for series in opened for file in series.files]
    if scans.mask is not None and scans.mask != "auto":
        files.append(Path(scans.mask).expanduser())
    return Measured(
        images=images,
        model=model,
        mask=mask,
        affine=affine,
        spacing_mm=first.spacing_mm,
        sigma=sigma,
        sigma_source=source,
        names=tuple(Path(path).name for path in scans.series),
        notes=(*notes, *said),
        sha256={str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
        whole=first,
        slices=(start, end),
        known=known,
    )


class Mapped(NamedTuple):
    """Maps of one repeat. Attributes: kappa: rows of the estimator [SI]; status: one `Status` a voxel."""

    kappa: Float[Tensor, "q z y x"]
    status: UInt8[Tensor, "z y x"]


def map_repeat(
    measured: Measured, repeat: int, estimator: Estimator, mask: Bool[Tensor, "z y x"] | None = None
) -> Mapped:
    """Map one repeat: slice by slice, as `qsim map` does, so that what is common to voxels is so within a slice.

    Args:
        estimator: of `fit_to_scale`, or any other.
        mask: voxels to be mapped; None: those of the scans.
    """
    return map_volume(
        measured.images[repeat],
        estimator,
        measured.mask if mask is None else mask,
        sigma=measured.sigma,
        known=measured.known,
    )


def map_volume(
    images: Float[Tensor, "n z y x"],
    estimator: Estimator,
    mask: Bool[Tensor, "z y x"],
    sigma: float | None = None,
    known: Mapping[str, Float[Tensor, "*space_or_none"]] | None = None,
) -> Mapped:
    """Map a stack of slices, each by itself; slices without a voxel of the mask are left out."""
    own = [p.name for p in estimator.parameters]
    kappa = images.new_full((len(own), *images.shape[1:]), torch.nan)
    status = torch.full(tuple(images.shape[1:]), 3, dtype=torch.uint8)
    for z in range(images.shape[1]):
        if not bool(computable(images[:, z], mask[z]).any()):
            continue
        given = {name: value if value.ndim == 0 else value[z] for name, value in (known or {}).items()}
        # a copy: a method that works in place must not change what the next one sees
        found: Estimate = estimator(images[:, z].clone(), sigma=sigma, mask=mask[z], known=given or None)
        kappa[:, z] = found.kappa.detach().cpu().to(kappa.dtype)
        status[z] = found.status.cpu()
    return Mapped(kappa, status)


def fit_to_scale(estimator: Estimator, measured: Measured) -> tuple[Estimator, str]:
    """A network told in which unit the scanner counts, as `qsim map` does it; every other method as it is.

    Returns: the estimator, and a note (empty: nothing was changed).
    """
    network = estimator.estimator if isinstance(estimator, Renamed) else estimator
    if not isinstance(network, NetworkEstimator) or network.scale is None:
        return estimator, ""
    low, high = network.scale
    brightest = measured.images[0].amax(0)[measured.mask].double()
    top = float(np.quantile(brightest.numpy(), 0.99))
    unit, note = network.images_unit, ""
    if not low / _SCALE_MARGIN <= top / unit <= high * _SCALE_MARGIN:
        unit = top / high
        note = f"images divided by {unit:.4g} for {estimator.name}, so that they are as bright as those of its training"
    # looked at once, above: a slice at the edge of the object may be dark
    fitted = replace(network, images_unit=unit, scale=None)
    return (Renamed(estimator.name, fitted) if isinstance(estimator, Renamed) else fitted), note


class _Named:
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


def _open_all(scans: Scans, field: str) -> tuple[Series, ...]:
    """Every repeat, compared with the first."""
    key = scans.key
    if key is None and scans.signal is not None:
        with _Named(field):
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


def _region(scans: Scans, field: str, series: Series, slices: tuple[int, int]) -> tuple[Bool[Tensor, "z y x"], bool]:
    """The mask, or where there is none the object as told from the air; and whether it is a mask."""
    start, end = slices
    if scans.mask is not None and scans.mask != "auto":
        try:
            given = read_mask(Path(scans.mask).expanduser(), series)[start:end]
        except InputError as error:
            raise InputError(f"{field}.mask:{str(error).removeprefix('--mask:')}") from None
        if not given.any():
            raise InputError(f"{field}.mask: {scans.mask} holds no voxel in the slices {start} to {end - 1}")
        return torch.from_numpy(given.copy()), True
    found = foreground(series, range(start, end), _depth(series.space))[start:end]
    if not found.any():
        raise InputError(f"{field}.series[0]: no voxel can be mapped: all are zero or not finite")
    return torch.from_numpy(found.copy()), scans.mask == "auto"


def _depth(space: Sequence[int]) -> int:
    return max(1, _VOXELS // max(1, space[1] * space[2]))


def _sigma(
    scans: Scans,
    images: Float[Tensor, "c n z y x"],
    region: Bool[Tensor, "z y x"],
    mask: Bool[Tensor, "z y x"],
    model: SignalModel,
    known: Mapping[str, Tensor],
) -> tuple[float | None, str, tuple[str, ...]]:
    """One sigma for all repeats: as given, else found in the first repeat on the slices that show most of the object.

    Returns: sigma, how it was found, and a note where the repeats say otherwise.
    """
    filled = region.flatten(1).sum(1)
    depth = min(_depth(region.shape), len(region))
    start = max(0, min(int(filled.argmax()) - depth // 2, len(region) - depth))
    slab = slice(start, start + depth)
    between: float | None = None
    notes: tuple[str, ...] = ()
    if len(images) > 1:
        try:
            between = float(from_repeats(images[:, :, slab], (region & mask)[slab]).sigma)
        except InputError:
            between = None
    if scans.sigma is not None:
        sigma: float | None = float(scans.sigma)
        source = "as given"
    else:
        own = {name: value if value.ndim == 0 else value[slab] for name, value in known.items()}
        where = computable(images[0][:, slab], region[slab])
        try:
            level = find_sigma(images[0][:, slab], where, model, own, mask[slab])
            sigma = float(level.sigma)
            source = f"{level.text}; first repeat, slice{'s' if depth > 1 else ''} {start}"
            source += f" to {start + depth - 1}" if depth > 1 else ""
        except InputError as error:
            sigma, source = None, f"not known: {str(error).removeprefix('sigma: ')}"
        if sigma is not None and not np.isfinite(sigma):
            sigma, source = between, "from the SD between repeats" if between is not None else "not known"
    if between is not None and sigma is not None and not 1 / _ALIKE <= between / sigma <= _ALIKE:
        notes = (
            f"the images differ between repeats by {between:.3g}, sigma is {sigma:.3g} ({source}): "
            + (
                "motion, drift or physiology between the repeats"
                if between > sigma
                else "the images themselves do not fit the signal model, or sigma is not that of one channel"
            ),
        )
    return sigma, source, notes


__all__ = ["Mapped", "Measured", "Scans", "fit_to_scale", "map_repeat", "map_volume", "read_scans"]
