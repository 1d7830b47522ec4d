"""`qsim map`: a measured series, a method, and the maps in a BIDS derivatives folder.

    slices of the series -> estimate -> appended to the files of the maps -> sidecars, picture -> folder renamed

Besides the images themselves, which a reader may leave on disk, one slab of them and single volumes of one number a
voxel are in memory at a time. One sigma holds for the whole volume: it is found on the slices about the one that shows
most of the object. Methods that take something as common to voxels, and those that are not of this project, are given
one slice at a time. Before all that images are registered if asked for (then all of them are in memory), else it is
looked whether they should be.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from phantoms.files.derivatives import Json, Sources, derivatives, name_of
from phantoms.files.map_files import Place
from phantoms.series.base import Series
from qsim.errors import InputError
from qsim.estimators import Status
from qsim.signals.base import SignalModel
from trainers.mapping.inputs import MapJob, air_of, foreground, mapper, shifted
from trainers.mapping.known import read_known, read_mask
from trainers.mapping.motion import steadied, write_table
from trainers.mapping.names import stems, told_apart
from trainers.mapping.noise import noise_of
from trainers.mapping.output import (
    LEGEND,
    MapSummary,
    MapWriter,
    bound_notes,
    common,
    folder_of,
    main_row,
    protocol,
    suffix_of,
    summarise,
    write_sidecars,
)
from trainers.mapping.quick_look import picture
from trainers.mapping.task import MapTask, about, depth_of, who

Progress = Callable[[int, int], None]
# share of the voxels without an estimate above which the signal model is in doubt [1]
_MOST = 0.5
_WARNS = "warning: "
_TOLD = "told from the air by brightness; what lies outside of it is mapped too"


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
    sources = Sources.of(series.files)
    kind = str(protocol(series, model)["SignalModel"]["kind"])  # type: ignore[index,call-overload]
    name, named = told_apart(name, stems(name, written, rows), job.out, kind, series.suffix, sources.uris())
    planned = [Path(f"{stem}{end}") for stem in stems(name, written, rows) for end in (".nii.gz", ".json")]
    table = name.folder(folder_of(main)) / f"{name.stem(suffix_of(main, rows), 'motion')}.tsv"
    place = Place(
        (series.space[0], series.space[1], series.space[2]),
        series.affine,
        series.spacing_mm,
        series.header,
    )
    with derivatives(job.out, planned, sources, overwrite=job.overwrite) as made:
        steady = steadied(series, task.slices, wanted=job.register)
        if job.register:
            # the object, the mask and the images themselves are now those of the reference
            task, told, notes = _prepare(steady.series, model, job)
            write_table(made, table, steady.table)
        notes = (*notes, *named, *steady.notes)
        noise = noise_of(task, job)
        writer = MapWriter(made, name, place, written, rows)
        for first in range(task.slices.start, task.slices.stop, task.depth):
            last = min(first + task.depth, task.slices.stop)
            found = task.estimate(first, last, noise.sigma)
            if found is not None:
                writer.add(first, found, rows)
            if progress is not None:
                progress(last - task.slices.start, len(task.slices))
        if not writer.rows:
            raise InputError(f"{who(series)}: no voxel can be mapped: all are left out, zero or not finite")
        writer.finish()
        z = int(task.region.reshape(len(task.region), -1).sum(1).argmax())
        maps, panels, shares = summarise(writer, made.folder, task.region, z)
        notes += bound_notes(maps, int(task.region.sum()), "mask" if task.masked else "object")
        notes += _doubt(shares, kind)
        said: dict[str, Json] = {
            "Sources": sources.uris(made.link),
            **common(job, series, model, task.mapper.record, told, notes),
            **steady.record,
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
        region="in the mask" if task.masked else f"of the object, {_TOLD}",
        voxels=int(task.region.sum()),
        status=shares,
        sigma=noise.number,
        noise=noise.text,
        seconds=time.perf_counter() - began,
        notes=notes,
        files=tuple(str(file) for file in made.files),
    )


def _prepare(series: Series, model: SignalModel, job: MapJob) -> tuple[MapTask, Mapping[str, Json], tuple[str, ...]]:
    """Read what is given beside the series, and build the method; also what sidecars say of known rows, and notes."""
    if len(series.volumes) != model.n_images:
        raise InputError(
            f"{who(series)}: holds {len(series.volumes)} images, the signal model has {model.n_images} times"
        )
    slices = _slices(series, job)
    known = read_known(job, series, model, slices)
    notes = known.notes
    given = read_mask(job.mask, series) if isinstance(job.mask, Path) else None
    if given is None:
        region = foreground(series, slices, depth_of(series))
    else:
        region = np.zeros_like(given)
        region[slices.start : slices.stop] = given[slices.start : slices.stop]
        if not region.any():
            raise InputError(f"--mask: {job.mask} holds no voxel in the slices {slices.start} to {slices.stop - 1}")
    if not region.any():
        raise InputError(f"{who(series)}: no voxel can be mapped: all are zero or not finite")

    def brightest() -> float:
        first, last = about(region, slices, 1)
        top = series.slab(first, last).max(0)[region[first:last]]
        return float(np.nanquantile(top, 0.99))

    method = mapper(job, model, tuple(known.values), brightest)
    masked = job.mask is not None
    if job.mask == "auto":
        notes += ("the mask is the object as told from the air by brightness (Otsu's threshold of the square root)",)
    task = MapTask(series, model, method, slices, region, masked, known.values, known.usable)
    broken, negative, air = _outside(task)
    if negative and getattr(method.estimator, "rician", False):
        notes += (
            f"{method.estimator.name} assumes Rician noise and leaves voxels with negative values without a value; "
            "--option noise=gaussian takes them",
        )
    if method.from_all and not masked and air:
        notes += (f"{_WARNS}{shifted(method.from_all, air)}; --mask auto, or the file of a mask, leaves them out",)
    if broken:
        beyond = ", or come from outside of it when it is registered" if job.register else ""
        notes += (f"{broken} voxels hold NaN or infinity in some image{beyond}: not computed",)
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


def _doubt(shares: Mapping[str, float], kind: str) -> tuple[str, ...]:
    """A sentence where most voxels have no estimate but a limit, which the wrong signal model gives as well.

    Args:
        shares: of each status [1].
        kind: of the signal model.
    """
    lost = {name: shares.get(name, 0.0) for name in (LEGEND[Status.AT_BOUND], LEGEND[Status.NOT_CONVERGED])}
    if sum(lost.values()) <= _MOST:
        return ()
    said = ", ".join(f"{100 * share:.3g} % {name}" for name, share in lost.items() if share > 0)
    return (f"{_WARNS}{said.replace(' % at bound', ' % at a bound')}: is {kind} the right signal model?",)


def _outside(task: MapTask) -> tuple[int, int, int]:
    """Voxels that are not finite in some image, those to be mapped that are negative in some, and voxels of air."""
    broken = negative = count = inside = 0
    # of each image: sum of squares of the object, and of what lies outside of it
    power = np.zeros((2, len(task.series.volumes)))
    for first in range(task.slices.start, task.slices.stop, depth_of(task.series)):
        last = min(first + depth_of(task.series), task.slices.stop)
        slab, region = task.series.slab(first, last), task.region[first:last]
        # a sum is finite if all of its terms are
        finite = np.isfinite(slab.sum(0, dtype=np.float64))
        broken += int((~finite).sum())
        negative += int(((slab < 0).any(0) & finite & (region | (not task.masked))).sum())
        outside = finite & (slab != 0).any(0) & ~region
        count += int(outside.sum())
        inside += int((finite & region).sum())
        for row, where in enumerate((finite & region, outside)):
            power[row] += np.square(slab[:, where], dtype=np.float64).sum(1)
    return broken, negative, air_of(power, inside, count)
