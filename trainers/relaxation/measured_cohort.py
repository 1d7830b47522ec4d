"""A user's own series as a cohort: a series and a region of interest for each subject.

    data:
      cohort:
        scans:
          - {id: "01", series: [sub-01_T1rho.nii.gz], roi: sub-01_roi.nii.gz}
          - {id: "02", series: [sub-02_T1rho.nii.gz], roi: sub-02_roi.nii.gz}

A series is opened as `qsim map` opens it; its times choose the signal model, which must be that of a spin-lock, of a T2
preparation, or of both. All subjects must have the same times, matrix and size of the voxels, because one network maps
them all and a cohort is compared voxel by voxel; nothing is resampled here. The images are neither scaled nor cropped.
What is true is not known of measured subjects.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from phantoms.series import model_for, open_series
from phantoms.series.base import Series
from phantoms.series.bids import combined, stem_of
from phantoms.series.nifti import Volumes, check_place, check_values, read_volumes, shape_of
from phantoms.series.sidecars import timing
from qsim.errors import InputError
from qsim.signals import SpinLock, SpinLockT2Prep, T2Prep
from trainers.mapping.inputs import foreground
from trainers.mapping.known import read_mask
from trainers.relaxation.cohort import Cohort
from trainers.studies.outputs import sha256_of
from trainers.studies.repeated_series import FieldOfStudy

Decay = SpinLock | T2Prep | SpinLockT2Prep
Name = Annotated[str, Field(min_length=1)]

# times that differ by less are the same [s]
_SAME_TIME = 1e-6
# voxels whose sizes differ by a smaller share are of the same size [1]
_SAME_SIZE = 0.01
# voxels of which the object is told from the air together
_VOXELS = 1 << 17


class SubjectScans(BaseModel):
    """One subject: its series and where its region of interest is.

    Relative paths are relative to the working directory.

    Attributes:
        id: what messages call the subject; occurs once.
        series: one path, as `qsim map` takes it: NIfTI with all images and its sidecar, a file or folder of a BIDS
            series, or a pattern with *. Or several NIfTI files of one image each, in the order of the series.
        times: of the images, instead of those of the sidecar [s]; needs `key`.
        key: of the sidecar that holds the times, SpinLockTime or T2PrepTime; None: found.
        roi: NIfTI file on the grid of the series, 0 and one other number: parenchyma, drawn before any map was fitted.
        body: such a file of where there is tissue; None: the object as told from the air, and the ROI.
        sigma: noise SD of one real channel [units of the images]; None: unknown. Of all subjects or of none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: Name
    series: Annotated[tuple[Name, ...], Field(min_length=1)]
    times: tuple[float, ...] | None = None
    key: str | None = None
    roi: Name
    body: Name | None = None
    sigma: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _named_times(self) -> "SubjectScans":
        if self.times is not None and self.key is None:
            raise ValueError("key: missing; with times say what they are, SpinLockTime or T2PrepTime")
        return self


@dataclass(frozen=True, slots=True)
class _Subject:
    """A subject as it was read.

    Attributes:
        file: the first of its images.
        content: sha256 of all that was read, the times among it.
    """

    file: Path
    files: tuple[Path, ...]
    images: Float[Tensor, "z n y x"]
    model: Decay
    roi: Bool[Tensor, "z y x"]
    body: Bool[Tensor, "z y x"]
    spacing_mm: tuple[float, float]
    content: str


def check_scans(scans: Sequence[SubjectScans]) -> None:
    """Refuse what can be told without a file.

    Raises: ValueError naming the field.
    """
    if not scans:
        raise ValueError("scans: is empty; give the series of every subject")
    names = [each.id for each in scans]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"scans: id {twice[0]} occurs twice; a subject is one entry, so that folds keep it whole")
    known = [each.id for each in scans if each.sigma is not None]
    if known and len(known) < len(scans):
        missing = next(each.id for each in scans if each.sigma is None)
        raise ValueError(f"scans: sigma is given for {known[0]} and not for {missing}; give it for all or for none")


def read_cohort(scans: Sequence[SubjectScans], field: str = "cohort.scans") -> Cohort:
    """Read the series of all subjects.

    Args:
        field: where they stand in the config, for messages.
    Raises: InputError, one line, naming the field and the file.
    """
    found: list[_Subject] = []
    for number, each in enumerate(scans):
        where = f"{field}[{number}]"
        own = _read(each, where)
        if found:
            _check_alike(own, found[0], where)
        for other, theirs in zip(scans, found, strict=False):
            if own.files == theirs.files:
                raise InputError(
                    f"{where}.series: {own.file} is the series of {other.id} too; give each subject its own, or folds "
                    "would train on what they judge"
                )
        found.append(own)
    counts = torch.tensor([len(own.images) for own in found])
    sigma = [each.sigma for each in scans if each.sigma is not None]
    digest = hashlib.sha256(
        json.dumps([[own.content, each.sigma] for own, each in zip(found, scans, strict=True)]).encode()
    )
    return Cohort(
        name=f"measured series of {len(found)} subjects, {int(counts.sum())} slices",
        images=torch.cat([own.images for own in found]),
        model=found[0].model,
        subject=torch.arange(len(found)).repeat_interleave(counts),
        roi=torch.cat([own.roi for own in found]),
        body=torch.cat([own.body for own in found]),
        spacing_mm=found[0].spacing_mm,
        digest=digest.hexdigest(),
        sigma=torch.tensor(sigma).repeat_interleave(counts) if sigma else None,
    )


def _read(scans: SubjectScans, where: str) -> _Subject:
    with FieldOfStudy(f"{where}.series"):
        series = _opened(scans)
    with FieldOfStudy(where):
        model = model_for(series)
    if not isinstance(model, Decay):
        raise InputError(
            f"{where}.series: {series.files[0]} comes with {series.key}; relaxation constraints join images of a "
            "spin-lock (SpinLockTime), of a T2 preparation (T2PrepTime), or of both"
        )
    images = torch.from_numpy(series.slab(0, series.space[0])).movedim(0, 1).contiguous()
    wrong = int((~images.isfinite()).sum())
    if wrong:
        raise InputError(
            f"{where}.series: {series.files[0]} holds NaN or infinity in {wrong} voxels, which a network spreads over "
            "the slice; write 0 where nothing was measured"
        )
    if not (images > 0).any():
        raise InputError(
            f"{where}.series: {series.files[0]} holds no value above 0, so that nothing can be learned from it; leave "
            f"{scans.id} out"
        )
    roi = _mask(scans.roi, series, f"{where}.roi")
    files = [*series.files, Path(scans.roi).expanduser()]
    if scans.body is None:
        depth = max(1, _VOXELS // (series.space[1] * series.space[2]))
        body = torch.from_numpy(foreground(series, range(series.space[0]), depth)) | roi
    else:
        body = _mask(scans.body, series, f"{where}.body")
        files.append(Path(scans.body).expanduser())
        outside = int((roi & ~body).sum())
        if outside:
            raise InputError(
                f"{where}.body: {scans.body} leaves out {outside} voxels of the region of interest {scans.roi}; "
                "add them to it, or leave body out"
            )
    content = [series.key, series.times, series.te_prep, series.spacing_mm, *sha256_of(files).values()]
    return _Subject(
        file=series.files[0],
        files=tuple(file.resolve() for file in series.files),
        images=images,
        model=model,
        roi=roi,
        body=body,
        spacing_mm=(float(series.spacing_mm[1]), float(series.spacing_mm[2])),
        content=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
    )


def _opened(scans: SubjectScans) -> Series:
    """The series of one path, or of several files of one image each."""
    paths = [Path(path).expanduser() for path in scans.series]
    if len(paths) == 1:
        if not paths[0].exists() and "*" not in paths[0].name:
            raise InputError(f"{scans.series[0]}: no such file")
        return open_series(paths[0], times=scans.times, key=scans.key)
    found: Volumes | None = None
    volumes = []
    for path in paths:
        held = read_volumes(path)
        if len(held.volumes) != 1:
            raise InputError(
                f"{path}: holds {len(held.volumes)} images; several files hold one each, and all images of a subject "
                "in one file need its sidecar with the times of each (SpinLockTime, T2PrepTime)"
            )
        found = held if found is None else found
        check_place(path, held.volumes[0].shape, held.affine, paths[0], found)
        volumes.append(held.volumes[0])
    assert found is not None
    content, named = combined(paths, needed=scans.times is None)
    told = timing(named, content, len(paths), key=scans.key, times=scans.times)
    check_values(str(paths[0]), volumes)
    return Series(
        name=stem_of(paths[0]),
        files=tuple(paths),
        volumes=tuple(volumes),
        key=told.key,
        times=told.times,
        protocol=told.protocol,
        affine=found.affine,
        spacing_mm=found.spacing_mm,
        header=found.header,
        te_prep=told.te_prep,
    )


def _mask(path: str, series: Series, field: str) -> Bool[Tensor, "z y x"]:
    """A mask on the grid of the series.

    Raises: InputError, starting with the field, if it is none or lies elsewhere.
    """
    file, wanted = Path(path).expanduser(), series.space[::-1]
    with FieldOfStudy(field):
        shape = shape_of(file)
    if (*shape, 1, 1)[:3] != wanted or any(size != 1 for size in shape[3:]):
        raise InputError(
            f"{field}: {path} has shape {shape}, the images of {series.files[0]} {wanted} (x, y, z); draw it on them, "
            "or resample it to their grid"
        )
    try:
        return torch.from_numpy(read_mask(file, series).copy())
    except InputError as error:
        raise InputError(f"{field}:{str(error).removeprefix('--mask:')}") from None


def _timings(model: Decay) -> Float[np.ndarray, "k n"]:
    """Spin-lock times and durations of the T2 preparation, what there is of them [s]."""
    if isinstance(model, SpinLockT2Prep):
        return np.array([model.tsl, model.te_prep])
    return np.array([model.times])


def _check_alike(own: _Subject, first: _Subject, where: str) -> None:
    """Refuse a subject that one network cannot map together with the first.

    Raises: InputError naming both files.
    """
    ours, theirs = _timings(own.model), _timings(first.model)
    field = f"{where}.series: {own.file}"
    if type(own.model) is not type(first.model) or ours.shape != theirs.shape:
        raise InputError(
            f"{field} is {_said(own.model)}, {first.file} is {_said(first.model)}; all subjects of a cohort need one "
            "protocol: leave out the others"
        )
    differs = np.abs(ours - theirs).max(0) > _SAME_TIME
    if differs.any():
        image = int(differs.argmax())
        times = (" and ".join(f"{1e3 * time:g}" for time in each[:, image]) for each in (ours, theirs))
        raise InputError(
            f"{field}: image {image} is at {next(times)} ms, that of {first.file} at {next(times)} ms; all subjects of "
            "a cohort need the same times: leave out the others, or make a cohort of each protocol"
        )
    if own.images.shape[-2:] != first.images.shape[-2:]:
        raise InputError(
            f"{field} has the matrix {_matrix(own)}, {first.file} {_matrix(first)} (x, y); resample one to the grid of "
            "the other first"
        )
    if not np.allclose(own.spacing_mm, first.spacing_mm, rtol=_SAME_SIZE, atol=0):
        size, other = (" x ".join(f"{mm:g}" for mm in each.spacing_mm[::-1]) for each in (own, first))
        raise InputError(
            f"{field} has voxels of {size} mm, {first.file} of {other} mm (x, y); resample one to the grid of the "
            "other first"
        )


def _said(model: Decay) -> str:
    return f"{model.kind} of {model.n_images} images"


def _matrix(own: _Subject) -> str:
    return f"{own.images.shape[-1]} x {own.images.shape[-2]}"
