"""`qsim map`: a measured series, a method, and the maps in a BIDS derivatives folder.

    slices of the series -> estimate -> appended to the files of the maps -> sidecars, picture -> folder renamed

Besides the images themselves, which a reader may leave on disk, one slab of them and single volumes of one number a
voxel are in memory at a time. One sigma holds for the whole volume: it is found on the slices about the one that shows
most of the object. Methods that take something as common to voxels, and those that are not of this project, are given
one slice at a time.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phantoms.derivatives import Json, Sources, derivatives, name_of
from phantoms.map_files import Place
from phantoms.series.base import Series
from qsim.errors import InputError
from qsim.estimators import Estimate
from qsim.estimators.base import computable
from qsim.signals.base import SignalModel
from trainers.map_inputs import (
    MapJob,
    Mapper,
    Volume,
    find_sigma,
    foreground,
    mapper,
)
from trainers.map_known import read_known, read_mask, read_volume
from trainers.map_output import (
    MapSummary,
    MapWriter,
    common,
    folder_of,
    main_row,
    suffix_of,
    summarise,
    write_sidecars,
)
from trainers.quick_look import picture

Progress = Callable[[int, int], None]
# voxels that are mapped together
_VOXELS = 1 << 17


@dataclass(frozen=True, slots=True)
class MapRecord:
    """What was done.

    Attributes:
        maps: with median and quartiles.
        region: which voxels these are of.
        voxels: in that region.
        status: share of each status in it [1].
        sigma: None: a map, or none was needed [units of the images].
        noise: how sigma was found.
        seconds: without starting up and reading.
        notes: what was taken for granted, a sentence each.
        files: all that was written, relative to `out`.
    """

    out: str
    method: str
    maps: tuple[MapSummary, ...]
    region: str
    voxels: int
    status: Mapping[str, float]
    sigma: float | None
    noise: str
    seconds: float
    notes: tuple[str, ...]
    files: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Noise:
    """Sigma as methods are given it, and how it was found."""

    sigma: float | Volume | None
    text: str

    @property
    def number(self) -> float | None:
        return self.sigma if isinstance(self.sigma, float) else None


@dataclass(frozen=True, slots=True)
class _Task:
    """A series with all that was read beside it.

    Attributes:
        slices: to be mapped.
        region: the mask, or where there is none the object, as told from the air.
        masked: whether only the region is mapped.
        usable: voxels where the known rows have a value; None: all.
    """

    series: Series
    model: SignalModel
    mapper: Mapper
    slices: range
    region: Bool[np.ndarray, "z y x"]
    masked: bool
    known: Mapping[str, float | Volume]
    usable: Bool[np.ndarray, "z y x"] | None

    @property
    def depth(self) -> int:
        """Slices that are mapped together."""
        return _depth(self.series) if self.mapper.voxelwise else 1

    def images(self, first: int, last: int) -> Float[Tensor, "n *space"]:
        return self._placed(self.series.slab(first, last))

    def inside(self, first: int, last: int) -> Bool[Tensor, "*space"]:
        return self._placed(self.region[first:last])

    def wanted(self, first: int, last: int) -> Bool[Tensor, "*space"] | None:
        """Voxels that are mapped if their images allow it; None: all."""
        parts = [self.region] if self.masked else []
        parts += [] if self.usable is None else [self.usable]
        return self._placed(np.logical_and.reduce([part[first:last] for part in parts])) if parts else None

    def fitting(self, first: int, last: int) -> Bool[Tensor, "*space"] | None:
        """Voxels where the known rows have a value; None: all."""
        return None if self.usable is None else self._placed(self.usable[first:last])

    def told(self, first: int, last: int) -> dict[str, Tensor]:
        return {
            name: torch.tensor(value, device=self.mapper.device)
            if isinstance(value, float)
            else self._placed(value[first:last])
            for name, value in self.known.items()
        }

    def estimate(self, first: int, last: int, sigma: float | Volume | None) -> Estimate | None:
        """Maps of some slices (q, z, y, x); None: there is nothing to map in them.

        Raises: InputError of the method, with the slices.
        """
        images = self.images(first, last)
        mask = self.wanted(first, last)
        if not bool(computable(images, mask).any()):
            return None
        level = sigma if isinstance(sigma, float) or sigma is None else self._placed(sigma[first:last])
        try:
            found = self.mapper.estimator(images, sigma=level, mask=mask, known=self.told(first, last) or None)
        except InputError as error:
            raise InputError(f"{error} (slices {first} to {last - 1})") from None
        space = (last - first, *self.series.space[1:])
        return replace(
            found,
            kappa=found.kappa.reshape(-1, *space),
            status=found.status.reshape(space),
            variances={source: values.reshape(-1, *space) for source, values in found.variances.items()},
            covariance=None,
        )

    def _placed(self, values: Any) -> Tensor:
        """On the device; a single slice has two axes, so that methods that look at neighbours take it for an image."""
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        tensor = tensor.squeeze(-3) if tensor.shape[-3] == 1 else tensor
        return tensor.to(self.mapper.device)


def map_series(series: Series, model: SignalModel, job: MapJob, progress: Progress | None = None) -> MapRecord:
    """Map a series, and write all of it or nothing.

    Args:
        progress: called with slices done and slices in all.
    Raises: InputError naming the option, file or field at fault.
    """
    threads = torch.get_num_threads()
    # sums over several threads differ in their last bits with the number of threads
    torch.set_num_threads(1)
    try:
        return _map(series, model, job, progress)
    finally:
        torch.set_num_threads(threads)


def _map(series: Series, model: SignalModel, job: MapJob, progress: Progress | None) -> MapRecord:
    began = time.perf_counter()
    name = name_of(series.name, job.subject, job.session)
    task, told, notes = _prepare(series, model, job)
    rows = task.mapper.estimator.parameters
    written = tuple(p for p in rows if p.name not in task.known)
    if not written:
        raise InputError("--known: every row is known, nothing is left to be mapped")
    main = main_row(written)
    stems = {name.folder(folder_of(p)) / name.stem(suffix_of(p, rows)) for p in written}
    planned = [Path(f"{stem}{ending}") for stem in sorted(stems) for ending in (".nii.gz", ".json")]
    sources = Sources.of(series.files)
    place = Place(
        (series.space[0], series.space[1], series.space[2]),
        series.affine,
        series.spacing_mm,
        series.header,
    )
    with derivatives(job.out, planned, sources, overwrite=job.overwrite) as made:
        noise = _noise(task, job)
        writer = MapWriter(made, name, place, written, rows)
        for first in range(task.slices.start, task.slices.stop, task.depth):
            last = min(first + task.depth, task.slices.stop)
            found = task.estimate(first, last, noise.sigma)
            if found is not None:
                writer.add(first, found, rows)
            if progress is not None:
                progress(last - task.slices.start, len(task.slices))
        if not writer.rows:
            raise InputError(f"{_who(series)}: no voxel can be mapped: all are left out, zero or not finite")
        writer.finish()
        z = int(task.region.reshape(len(task.region), -1).sum(1).argmax())
        maps, panels, shares = summarise(writer, made.folder, task.region, z)
        said: dict[str, Json] = {
            "Sources": sources.uris(made.link),
            **common(job, series, model, task.mapper.record, told, notes),
            **({} if noise.number is None else {"Sigma": noise.number}),
            "SigmaSource": noise.text,
        }
        write_sidecars(writer, made, said)
        drawing = name.folder(folder_of(main)) / f"{name.stem(suffix_of(main, rows))}.png"
        spacing = (float(series.spacing_mm[-2]), float(series.spacing_mm[-1]))
        place_of = f", slice {z} (0 to {series.space[0] - 1})" if series.space[0] > 1 else ""
        title = f"{series.name}, {task.mapper.estimator.name}{place_of}"
        picture(panels, spacing, title, made.path(drawing))
    return MapRecord(
        out=str(job.out),
        method=task.mapper.estimator.name,
        maps=maps,
        region="in the mask" if task.masked else "of the object, told from the air by brightness",
        voxels=int(task.region.sum()),
        status=shares,
        sigma=noise.number,
        noise=noise.text,
        seconds=time.perf_counter() - began,
        notes=notes,
        files=tuple(str(file) for file in made.files),
    )


def _who(series: Series) -> str:
    return str(series.files[0]) if series.files else series.name


def _depth(series: Series) -> int:
    return max(1, _VOXELS // max(1, series.space[1] * series.space[2]))


def _prepare(series: Series, model: SignalModel, job: MapJob) -> tuple[_Task, Mapping[str, Json], tuple[str, ...]]:
    """Read what is given beside the series, and build the method; also what sidecars say of known rows, and notes."""
    if len(series.volumes) != model.n_images:
        raise InputError(
            f"{_who(series)}: holds {len(series.volumes)} images, the signal model has {model.n_images} times"
        )
    slices = _slices(series, job)
    known = read_known(job, series, model, slices)
    notes = known.notes
    given = read_mask(job.mask, series) if isinstance(job.mask, Path) else None
    if given is None:
        region = foreground(series, slices, _depth(series))
    else:
        region = np.zeros_like(given)
        region[slices.start : slices.stop] = given[slices.start : slices.stop]
        if not region.any():
            raise InputError(f"--mask: {job.mask} holds no voxel in the slices {slices.start} to {slices.stop - 1}")
    if not region.any():
        raise InputError(f"{_who(series)}: no voxel can be mapped: all are zero or not finite")

    def brightest() -> float:
        first, last = _about(region, slices, 1)
        top = series.slab(first, last).max(0)[region[first:last]]
        return float(np.nanquantile(top, 0.99))

    method = mapper(job, model, tuple(known.values), brightest)
    masked = job.mask is not None
    if job.mask == "auto":
        notes += ("the mask is the object as told from the air by brightness (Otsu's threshold of the square root)",)
    task = _Task(series, model, method, slices, region, masked, known.values, known.usable)
    broken = _broken(task)
    if broken:
        notes += (f"{broken} voxels hold NaN or infinity in some image: not computed",)
    return task, known.record, (*series.notes, *notes, *method.notes)


def _slices(series: Series, job: MapJob) -> range:
    if job.slices is None:
        return range(series.space[0])
    first, last = job.slices
    if not 0 <= first < last <= series.space[0]:
        raise InputError(
            f"--slices: got {first}:{last}, the series has slices 0 to {series.space[0] - 1}; "
            "A:B counts from 0 and leaves B out"
        )
    return range(first, last)


def _broken(task: _Task) -> int:
    """Voxels that are not finite in some image."""
    count = 0
    for first in range(task.slices.start, task.slices.stop, _depth(task.series)):
        last = min(first + _depth(task.series), task.slices.stop)
        # a sum is finite if all of its terms are
        count += int((~np.isfinite(task.series.slab(first, last).sum(0, dtype=np.float64))).sum())
    return count


def _about(region: Bool[np.ndarray, "z y x"], slices: range, depth: int) -> tuple[int, int]:
    """Some of the slices, about the one that holds most of the region."""
    filled = region.reshape(len(region), -1).sum(1)
    # outside of `slices` nothing was looked at, and the object would pass for air
    first = max(slices.start, min(int(filled.argmax()) - depth // 2, slices.stop - depth))
    return first, min(first + depth, slices.stop)


def _noise(task: _Task, job: MapJob) -> _Noise:
    """One sigma for all slices.

    Raises: InputError if it is given and no noise level, or asked for by the method and not to be found.
    """
    if isinstance(job.sigma, Path):
        values = read_volume("--sigma", job.sigma, task.series).astype(np.float32)
        used = values[task.region]
        if not (np.isfinite(used) & (used > 0)).all():
            place = "of the mask" if task.masked else "of the object"
            raise InputError(f"--sigma: {job.sigma} is not positive and finite in every voxel {place}")
        return _Noise(values, f"a map as given, {job.sigma.name}")
    if job.sigma is not None:
        if not (np.isfinite(job.sigma) and job.sigma > 0):
            raise InputError(f"--sigma: must be positive and finite, got {job.sigma:g}")
        return _Noise(float(job.sigma), "as given")
    first, last = _about(task.region, task.slices, _depth(task.series))
    images, told = task.images(first, last), task.told(first, last)
    where = computable(images, task.inside(first, last))
    at = f"slices {first} to {last - 1}" if last - first > 1 else f"slice {first}"
    try:
        level = find_sigma(images, where, task.model, told, task.fitting(first, last))
    except InputError as error:
        return _by_method(task, first, str(error))
    if not bool(torch.isfinite(level.sigma).all()):
        return _by_method(task, first, level.text)
    place = "outside the mask" if task.masked else "outside the object as told by brightness"
    return _Noise(float(level.sigma), f"{level.text.replace('outside the mask', place)}; {at}")


def _by_method(task: _Task, first: int, reason: str) -> _Noise:
    """What the method itself finds, in one slice; a method that needs a sigma and finds none says so itself."""
    found = task.estimate(first, first + 1, None)
    level = None if found is None else found.noise_level
    if level is None or level.sigma.ndim or not bool(torch.isfinite(level.sigma)):
        return _Noise(None, f"not used; {reason.removeprefix('sigma: ')}")
    return _Noise(float(level.sigma), f"{level.text}; slice {first}")
