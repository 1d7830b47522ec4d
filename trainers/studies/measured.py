"""A user's own repeated scans, read and checked, as the studies on phantoms and in vivo take them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from phantoms.series import model_and_notes
from phantoms.series.base import Series
from qsim.errors import InputError
from qsim.estimators.base import computable
from qsim.estimators.noise_level import from_repeats
from qsim.signals.base import SignalModel
from trainers.mapping.inputs import MapJob, air_of, find_sigma, foreground
from trainers.mapping.known import read_known, read_mask, read_volume
from trainers.studies.outputs import sha256_of
from trainers.studies.repeated_series import FieldOfStudy, Scans, open_repeats

# voxels of which sigma is estimated, and that are mapped together
_VOXELS = 1 << 17
# sigma of one scan and that between repeats that differ by more than this factor are told apart in a note
_ALIKE = 1.25
# how a config says that images are signed, and that they are not
_WORDS = ("signed: true", "signed: false")


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
        sha256: of every file of images and of the timings, by path.
        known: rows that are not fitted (B1 of a series of flip angles), a map or one number [SI].
        air: voxels of air in `mask`; 0 where a mask was asked for.
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
    air: int = 0

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
    opened = open_repeats(scans, field)
    first = opened[0]
    with FieldOfStudy(field):
        model, sign_notes = model_and_notes(opened, scans.signal, scans.signed, _WORDS)
    if len(first.volumes) != model.n_images:
        raise InputError(f"{field}.series[0]: holds {len(first.volumes)} images, its signal model {model.n_images}")
    start, end = scans.slices or (0, first.space[0])
    if end > first.space[0]:
        raise InputError(f"{field}.slices: got [{start}, {end}], the scans have slices 0 to {first.space[0] - 1}")
    images = torch.from_numpy(np.stack([series.slab(start, end) for series in opened]))
    with FieldOfStudy(field):
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
    repeated = dict.fromkeys(note for series in opened for note in series.notes)
    notes = [*repeated, *sign_notes, *told.notes]
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
        sha256={**sha256_of(files), **{f"timings of {series.files[0]}": _timings(series) for series in opened}},
        whole=first,
        slices=(start, end),
        known=known,
        air=0 if masked else _air(images[0].numpy(), region.numpy()),
    )


def _air(images: Float[np.ndarray, "n z y x"], region: Bool[np.ndarray, "z y x"]) -> int:
    """Voxels of air in a repeat that has no mask, slice by slice."""
    inside = outside = 0
    power = np.zeros((2, len(images)))
    for z, own in enumerate(region):
        slab = images[:, z]
        finite = np.isfinite(slab).all(0)
        beyond = finite & (slab != 0).any(0) & ~own
        inside += int((finite & own).sum())
        outside += int(beyond.sum())
        for row, where in enumerate((finite & own, beyond)):
            power[row] += np.square(slab[:, where], dtype=np.float64).sum(1)
    return air_of(power, inside, outside)


def _timings(series: Series) -> str:
    """sha256 of what sidecars say: the same images with other times are another measurement."""
    said = [series.key, series.times, dict(series.protocol)]
    # only series with a second preparation have it: others keep the hash they had
    said += [series.te_prep] if series.te_prep else []
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


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


__all__ = ["Measured", "Scans", "read_scans"]
