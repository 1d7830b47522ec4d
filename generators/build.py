"""Building a patch store: one Dask task per whole shard, resumable after any interruption.

The order on disk makes a half-written store recognisable at every moment: group (complete: false), arrays, then per
shard its files and after them its done-marker, and `complete: true` last.
"""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from generators.config import GeneratorConfig
from generators.sample import Samples, make_samples
from generators.schedulers import Progress, check_scheduler, run
from generators.schema import (
    MARKERS,
    ArraySpec,
    Layout,
    StoreAttributes,
    array_specs,
    check_made,
    choose_layout,
    describe_store,
)
from generators.store import damaged, read_attributes, read_group, read_json, store_specs
from generators.tasks import ShardTask, difference, make_shard, write_group
from qsim.errors import InputError

# arrays of a few numbers per sample are one chunk per shard
_SMALL_SHARD = 64 * 2**10
Found = TypeVar("Found")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Built:
    """What `build` did.

    Attributes:
        path: the store.
        samples: held now.
        made: of these, made by this run; the others were there already.
        seconds: wall time [s].
    """

    path: Path
    samples: int
    made: int
    seconds: float


def build(
    config: GeneratorConfig,
    path: str | Path,
    workers: int = 1,
    scheduler: str = "threads",
    shard: int | None = None,
    chunk: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Built:
    """Make a patch store, finish an unfinished one of the same config, or grow one to more samples.

    The decoded arrays depend on the config alone: not on workers, scheduler, layout or interruptions.

    Args:
        config: what the data set is made of.
        path: folder of the store.
        workers: tasks at a time on this machine; each computes on one thread.
        scheduler: `threads`, `processes`, or the address of a Dask scheduler (`tcp://host:port`), whose workers
            must see the same `path`.
        shard, chunk: samples a file holds, samples decoded together; None: that of the store, or chosen by size.
        overwrite: replace a store that is there. Anything else at `path` is refused.
        progress: called with the samples done and the samples to be made, after every shard.
    Raises: InputError if the path holds something else or another config's store, cannot be written, the disk is
        full, a phantom file is missing or a patch is larger than the anatomy. What is finished stays: calling
        again goes on from there.
    """
    begin = time.perf_counter()
    path = Path(path).absolute()
    if workers < 1:
        raise InputError(f"workers: must be at least 1, got {workers}")
    check_scheduler(scheduler)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # a bad phantom or patch is refused before anything is written
        first = make_samples(config, [0])
        specs = array_specs(config, int(first.origin.shape[1]))
        check_made(specs, first)
        with _written(path), _sole_writer(path):
            attributes = _prepare(config, path, specs, first, shard, chunk, overwrite)
            ranges = attributes.layout.ranges(config.samples)
            missing = _missing(path, specs, ranges)
            same = attributes.versions, attributes.first_sample
            tasks = [ShardTask(config.canonical, str(path), number, *ranges[number], *same) for number in missing]
            if tasks:
                _set_complete(path, attributes, complete=False)
                _run(tasks, workers, scheduler, progress)
            _set_complete(path, attributes, complete=True)
    finally:
        torch.set_num_threads(threads)
    made = sum(task.stop - task.start for task in tasks)
    return Built(path, config.samples, made, time.perf_counter() - begin)


def _run(tasks: list[ShardTask], workers: int, scheduler: str, progress: Progress | None) -> None:
    """Make the shards; `progress` is called with the samples done and in all."""
    total = sum(task.stop - task.start for task in tasks)
    done = 0

    def finished(_: str, samples: int) -> None:
        nonlocal done
        done += samples
        if progress is not None:
            progress(done, total)

    if progress is not None:
        progress(0, total)
    run(make_shard, {f"shard-{task.number}": task for task in tasks}, workers, scheduler, finished)


def _prepare(
    config: GeneratorConfig,
    path: Path,
    specs: tuple[ArraySpec, ...],
    first: Samples,
    shard: int | None,
    chunk: int | None,
    overwrite: bool,
) -> StoreAttributes:
    """Bring group and arrays to the state in which shards can be written; returns the store's attributes."""
    layout = choose_layout(specs, config.samples, shard, chunk)
    attributes = describe_store(config, layout, first)
    # a run that was killed at its very first write leaves nothing but that
    if any(not entry.match("zarr.*.partial") for entry in path.iterdir()):
        if overwrite:
            _empty(path)
        else:
            found = _own(path, read_attributes)
            kept = layout if (shard, chunk) != (None, None) else found.layout
            attributes = _resumed(path, found, attributes, kept)
    if not attributes.complete:
        write_group(path / "zarr.json", attributes.model_dump(mode="json"))
    for partial in path.rglob("*.partial"):
        partial.unlink()
    write_group(path / MARKERS / "zarr.json", {"description": "one group per finished shard: range and checksums"})
    for spec in specs:
        _ensure_array(path, spec, attributes.samples, attributes.layout)
    store_specs(path, config)
    return attributes


def _own(path: Path, read: Callable[[Path], Found]) -> Found:
    try:
        return read(path)
    except InputError as error:
        raise InputError(f"{error}; it is left as it is, choose another --out") from None


def _resumed(path: Path, found: StoreAttributes, wanted: StoreAttributes, layout: Layout) -> StoreAttributes:
    """Attributes of a store that goes on.

    Raises: InputError if its samples, past or future, would not be those of the config.
    """
    other = f"{path}: holds a store of another config"
    if found.digest != wanted.digest:
        names = [key for key, entry in wanted.config.items() if found.config.get(key) != entry and key != "samples"]
        raise InputError(f"{other} (differs in {', '.join(names)}); choose another --out, or replace it by --overwrite")
    if found.layout != layout:
        raise InputError(
            f"{path}: has shards of {found.shard} and chunks of {found.chunk} samples, asked for {layout.shard} and "
            f"{layout.chunk}; leave shard and chunk out, or replace it by --overwrite"
        )
    if found.versions != wanted.versions:
        raise InputError(
            f"{path}: begun with {difference(found.versions, wanted.versions)}; samples could differ in their last "
            "bits: go on with the versions it was begun with, or replace it by --overwrite"
        )
    if found.first_sample != wanted.first_sample:
        raise InputError(
            f"{path}: its sample 0 is another than this process makes (changed code or phantom files, or another kind "
            "of processor); choose another --out, or replace it by --overwrite"
        )
    if found.samples > wanted.samples:
        raise InputError(
            f"{path}: already set up for {found.samples} samples, asked for {wanted.samples}; a store can grow but "
            "not shrink: ask for at least as many, or replace it by --overwrite"
        )
    whole = found.complete and found.samples == wanted.samples
    return found.model_copy(update={"complete": whole, "samples": wanted.samples, "config": wanted.config})


def _empty(path: Path) -> None:
    """Remove what a patch store holds, also one of another version.

    The markers go first: from then on nothing takes its shards for good. The group stays: after a kill the folder can
    still be told from others.
    """
    _own(path, read_group)
    markers = path / MARKERS
    for entry in (markers, *path.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != "zarr.json":
            entry.unlink(missing_ok=True)


def _ensure_array(path: Path, spec: ArraySpec, samples: int, layout: Layout) -> None:
    import zarr
    from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec

    found = read_json(path / spec.name / "zarr.json")
    if found is not None:
        array = zarr.open_array(path, path=spec.name, mode="r+")
        if array.shape[0] < samples:
            array.resize((samples, *spec.shape))
        return
    small = spec.sample_bytes * layout.shard <= _SMALL_SHARD
    zarr.create_array(
        path,
        name=spec.name,
        shape=(samples, *spec.shape),
        shards=(layout.shard, *spec.shape),
        chunks=(layout.shard if small else layout.chunk, *spec.shape),
        dtype=spec.dtype,
        fill_value=spec.fill,
        compressors=[BloscCodec(cname="lz4", shuffle=BloscShuffle.shuffle), Crc32cCodec()],
        dimension_names=spec.dims,
        attributes={"units": spec.unit, "long_name": spec.description},
        zarr_format=3,
    )


def _missing(path: Path, specs: tuple[ArraySpec, ...], ranges: Sequence[tuple[int, int]]) -> list[int]:
    """Numbers of the shards that are not whole, by their checksums."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        wrong = list(pool.map(lambda n: damaged(path, specs, n, *ranges[n]), range(len(ranges))))
    return [number for number, complaints in enumerate(wrong) if complaints]


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Create the folder, and turn what the system says about writing there into one clear message."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except FileExistsError:
        raise InputError(f"{path}: a file, not a folder; choose another --out") from None
    except OSError as error:
        again = "finished shards are kept, the same command goes on from there"
        if error.errno in _NO_SPACE:
            raise InputError(f"{path}: no space left on the device; free some: {again}") from None
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); {again}") from None


@contextmanager
def _sole_writer(path: Path) -> Iterator[None]:
    """Hold the store for this process; the lock ends with the process, however it ends."""
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{path}: another qsim generate is writing this store; wait for it to end") from None
        yield
    finally:
        os.close(handle)


def _set_complete(path: Path, attributes: StoreAttributes, complete: bool) -> None:
    if complete != read_attributes(path).complete:
        changed = attributes.model_copy(update={"complete": complete})
        write_group(path / "zarr.json", changed.model_dump(mode="json"))
