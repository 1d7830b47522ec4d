"""The task of a build: make the samples of one shard, write its files, then its done-marker."""

import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped

from generators.config import GeneratorConfig
from generators.sample import make_samples
from generators.schema import ArraySpec, ShardMarker, Versions, current_versions, fingerprint
from generators.store import marker_file, read_attributes, sha256, shard_file, store_specs
from qsim.errors import InputError

# memory of the samples that are made at once inside a task [bytes]; the numbers do not depend on it
_BATCH_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class ShardTask:
    """All that a worker needs to make one shard, small and without open files.

    Attributes:
        config: the config's JSON text.
        path: the store's absolute path, the same on every worker.
        number: of the shard.
        start, stop: its samples.
        versions: of the process that started the build; a worker with others would make other bits.
        first_sample: sha256 of sample 0 there: tells other processors and changed code.
    """

    config: str
    path: str
    number: int
    start: int
    stop: int
    versions: Versions
    first_sample: str


def make_shard(task: ShardTask) -> int:
    """Make the samples of one shard and write its file in every array, then its marker.

    Returns: how many samples it holds.
    """
    import zarr

    # several threads inside each of several workers slow each other down
    torch.set_num_threads(1)
    path = Path(task.path)
    if current_versions() != task.versions:
        raise InputError(
            f"worker: {difference(current_versions(), task.versions)}; all workers need the same, "
            "or the samples would differ from worker to worker"
        )
    config = GeneratorConfig.model_validate_json(task.config)
    if not path.is_dir() or read_attributes(path).digest != config.digest:
        raise InputError(f"worker: does not see the store at {path}; all workers need the same file system")
    if _first_sample(task.config) != task.first_sample:
        raise InputError(
            "worker: makes another sample 0 than the process that started the build; all workers need the same "
            "code, phantom files and kind of processor"
        )
    specs = store_specs(path, config)

    blocks = _make_blocks(config, specs, task.start, task.stop)
    # a marker must never stand beside files of another range; a damaged file would be read before it is replaced
    marker_file(path, task.number).unlink(missing_ok=True)
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    marker = ShardMarker(start=task.start, stop=task.stop, bytes={}, sha256={})
    for spec in specs:
        file = shard_file(path, spec, task.number)
        file.unlink(missing_ok=True)
        array = group[spec.name].with_config({"write_empty_chunks": True})  # type: ignore[union-attr]
        array[task.start : task.stop] = blocks.pop(spec.name)
        _sync(file)
        marker.bytes[spec.name] = file.stat().st_size
        marker.sha256[spec.name] = sha256(file)
    write_group(marker_file(path, task.number), marker.model_dump(mode="json"))
    return task.stop - task.start


@lru_cache(maxsize=4)
def _first_sample(config: str) -> str:
    return fingerprint(make_samples(GeneratorConfig.model_validate_json(config), [0]))


def _make_blocks(
    config: GeneratorConfig, specs: Sequence[ArraySpec], start: int, stop: int
) -> dict[str, Shaped[np.ndarray, "..."]]:
    blocks = {spec.name: np.empty((stop - start, *spec.shape), spec.dtype) for spec in specs}
    step = max(1, _BATCH_BYTES // sum(spec.sample_bytes for spec in specs))
    for lo in range(start, stop, step):
        hi = min(lo + step, stop)
        samples = make_samples(config, range(lo, hi))
        for name, block in blocks.items():
            block[lo - start : hi - start] = getattr(samples, name).numpy()
    return blocks


def difference(here: Versions, there: Versions) -> str:
    """What differs between two sets of versions, in words."""
    pairs = zip(here.model_dump().items(), there.model_dump().values(), strict=True)
    return ", ".join(f"{name} {one} instead of {other}" for (name, one), other in pairs if one != other)


def write_group(file: Path, attributes: dict[str, Any]) -> None:
    """Write a Zarr group's metadata: whole or not at all, and on the disk before anything that follows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}, indent=1, allow_nan=False)
    partial = file.with_suffix(f".{uuid.uuid4().hex}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        _sync(partial)
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _sync(file: Path) -> None:
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
