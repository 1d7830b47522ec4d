"""Reading a patch store, and refusing everything that is not a whole one."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from pydantic import ValidationError
from torch import Tensor

from generators.config import GeneratorConfig
from generators.schema import FORMAT, MARKERS, VERSION, ArraySpec, ShardMarker, StoreAttributes, array_specs
from qsim.errors import InputError


@dataclass(frozen=True, slots=True)
class StoredSamples:
    """Samples as they were stored, in float32; the fields are those of `Samples`.

    Attributes:
        images: noisy series; None in a store of maps, whose series is simulated while training [units of A].
        kappa: true maps of the majority tissue, 0 in the background [SI].
        labels: 1 + index of the majority tissue in the store's `tissues`; 0 background.
        purity: share of the majority tissue [1].
        sigma: noise SD per real channel [units of A].
        subject: subject of the phantom.
        origin: first voxel of the patch in the subject's volume.
        severity: of each artefact of the config; 0 where it was left out.
    """

    images: Float[Tensor, "b n *space"] | None
    kappa: Float[Tensor, "b q *space"]
    labels: UInt8[Tensor, "b *space"]
    purity: Float[Tensor, "b *space"]
    sigma: Float[Tensor, " b"]
    subject: Int[Tensor, " b"]
    origin: Int[Tensor, "b axis"]
    severity: Float[Tensor, "b artefact"]

    def __len__(self) -> int:
        return int(self.sigma.shape[0])


class PatchStore:
    """A whole patch store, opened for reading.

    Args:
        path: the store's folder.
    Raises: InputError if it is no patch store, unfinished, of a later format, or lacks a shard.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.attributes = read_attributes(self.path)
        if not self.attributes.complete:
            raise InputError(f"{self.path}: unfinished; run qsim generate again with the same config to finish it")
        try:
            self.config = GeneratorConfig.model_validate(self.attributes.config)
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(
                f"{self.path}: its config does not fit this version of qsim ({first['msg']}); generate it again"
            ) from None
        self._check_shards()
        self._small: dict[str, Shaped[np.ndarray, "..."]] = {}

    def _check_shards(self) -> None:
        """Presence and size of every file; `qsim verify` also reads them."""
        specs = store_specs(self.path, self.config)
        for number, (start, stop) in enumerate(self.attributes.layout.ranges(len(self))):
            marker = read_marker(self.path, number)
            if marker is None or (marker.start, marker.stop) != (start, stop):
                raise InputError(f"{self.path}: the marker of shard {number} is missing or damaged; {_REMEDY}")
            for spec in specs:
                file = shard_file(self.path, spec, number)
                size = file.stat().st_size if file.is_file() else None
                if size != marker.bytes.get(spec.name):
                    what = "missing" if size is None else "truncated"
                    raise InputError(f"{self.path}: shard {file.relative_to(self.path)} is {what}; {_REMEDY}")

    def __len__(self) -> int:
        return self.attributes.samples

    def __reduce__(self) -> tuple[type["PatchStore"], tuple[Path]]:
        # a data loader's worker opens the store itself: neither files nor Zarr's threads survive the way to it
        return PatchStore, (self.path,)

    def __repr__(self) -> str:
        return f"PatchStore({str(self.path)!r}, {len(self)} samples)"

    @property
    def tissues(self) -> tuple[str, ...]:
        """Names of the tissues; label k is `tissues[k - 1]`."""
        return self.attributes.tissues

    @cached_property
    def arrays(self) -> dict[str, Any]:
        """The Zarr arrays by name, read only."""
        import zarr

        group = zarr.open_group(self.path, mode="r")
        return {spec.name: group[spec.name] for spec in store_specs(self.path, self.config)}

    @property
    def nbytes(self) -> int:
        """Memory of all samples as `read` returns them [bytes]."""
        # float16 images are returned as float32
        return sum(a.size * (4 if a.dtype.kind == "f" else a.dtype.itemsize) for a in self.arrays.values())

    def read(self, lo: int, hi: int) -> StoredSamples:
        """Samples lo to hi - 1.

        Raises: IndexError outside the store; InputError if a chunk's checksum does not hold.
        """
        if not 0 <= lo < hi <= len(self):
            raise IndexError(f"{self.path} holds samples 0 to {len(self) - 1}, asked for {lo} to {hi - 1}")
        return self._samples({name: self._fetch(name, slice(lo, hi)) for name in self.arrays})

    def take(self, indices: Sequence[int]) -> StoredSamples:
        """The samples of the given indices, in that order; an index may occur twice.

        Raises: IndexError outside the store; InputError if a chunk's checksum does not hold.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size == 0 or wanted.min() < 0 or wanted.max() >= len(self):
            raise IndexError(f"{self.path} holds samples 0 to {len(self) - 1}, asked for {list(indices)[:8]}")
        unique, place = np.unique(wanted, return_inverse=True)
        return self._samples({name: self._fetch(name, unique)[place] for name in self.arrays})

    def __getitem__(self, index: int | slice) -> StoredSamples:
        """One sample, with a sample axis of length 1, or a range of them."""
        if isinstance(index, slice):
            lo, hi, step = index.indices(len(self))
            return self.read(lo, hi) if step == 1 else self.take(range(lo, hi, step))
        index = index + len(self) if index < 0 else index
        return self.read(index, index + 1)

    def _fetch(self, name: str, selection: slice | Int[np.ndarray, " b"]) -> Shaped[np.ndarray, "..."]:
        try:
            if self.arrays[name].ndim <= 2:
                return self._whole(name)[selection]
            return np.asarray(self.arrays[name].oindex[selection])
        except (ValueError, RuntimeError, OSError) as error:
            raise InputError(f"{self.path}: {name} cannot be read ({error}); {_REMEDY}") from None

    def _whole(self, name: str) -> Shaped[np.ndarray, "..."]:
        """An array of a few numbers per sample, read once: chunk by chunk it would cost as much as the images."""
        if name not in self._small:
            self._small[name] = np.asarray(self.arrays[name][:])
        return self._small[name]

    def _samples(self, fetched: dict[str, Shaped[np.ndarray, "..."]]) -> StoredSamples:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(block)) for name, block in fetched.items()}
        images = tensors.pop("images", None)
        severity = tensors.pop("severity", torch.zeros(len(tensors["sigma"]), 0))
        return StoredSamples(images=None if images is None else images.float(), severity=severity, **tensors)


_REMEDY = "qsim verify names what is damaged, qsim generate with the same config makes it again"


def read_group(path: Path) -> dict[str, Any]:
    """Attributes of a patch store of any version, as they were written.

    Raises: InputError if there is none at `path`.
    """
    if not path.exists():
        raise InputError(f"{path}: no such store; make it with qsim generate CONFIG --out {path}")
    root = read_json(path / "zarr.json")
    if root is None:
        raise InputError(f"{path}: not a patch store (it holds no readable zarr.json)")
    found = root.get("attributes")
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f"{path}: a Zarr hierarchy, but not a patch store; qsim generate makes one")
    return found


def read_attributes(path: Path) -> StoreAttributes:
    """Attributes of a patch store, finished or not.

    Raises: InputError if there is none at `path`, or one of a later format.
    """
    found = read_group(path)
    number = found.get("version")
    if isinstance(number, int) and number > VERSION:
        raise InputError(
            f"{path}: written by a later qsim (format {number}; this one reads up to {VERSION}); update qsim"
        )
    try:
        # through JSON text: only there may a list stand for a tuple
        return StoreAttributes.model_validate_json(json.dumps(found))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path}: attribute {field} of the store is damaged or of another version ({first['msg']}); "
            "generate it again with --overwrite"
        ) from None


def read_json(file: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def store_specs(path: Path, config: GeneratorConfig) -> tuple[ArraySpec, ...]:
    """Arrays of the store at `path`.

    Raises: InputError if the shape, type or layout of one is not what the config says.
    """
    origin = read_json(path / "origin" / "zarr.json")
    if origin is None or len(origin.get("shape", ())) != 2:
        raise InputError(f"{path}: array origin is missing or damaged; generate the store again with --overwrite")
    specs = array_specs(config, int(origin["shape"][1]))
    for spec in specs:
        found = read_json(path / spec.name / "zarr.json") or {}
        shape = tuple(found.get("shape", ()))
        if shape[1:] != spec.shape or found.get("data_type") != spec.dtype or len(shape) != len(spec.dims):
            raise InputError(
                f"{path}: array {spec.name} is {found.get('data_type', 'missing')} {shape}, the config says "
                f"{spec.dtype} (samples, {', '.join(map(str, spec.shape))}); generate the store again with --overwrite"
            )
    return specs


def shard_file(path: Path, spec: ArraySpec, number: int) -> Path:
    """File of one shard of one array: shards divide the sample axis only."""
    return path.joinpath(spec.name, "c", str(number), *("0" for _ in spec.shape))


def marker_file(path: Path, number: int) -> Path:
    """File of a done-marker: the attributes of an empty group, so that the whole store is plain Zarr."""
    return path / MARKERS / f"{number:06d}" / "zarr.json"


def read_marker(path: Path, number: int) -> ShardMarker | None:
    """Marker of a shard; None if it is missing or unreadable."""
    found = read_json(marker_file(path, number))
    if found is None:
        return None
    try:
        return ShardMarker.model_validate(found.get("attributes"))
    except ValidationError:
        return None


def damaged(path: Path, specs: tuple[ArraySpec, ...], number: int, start: int, stop: int) -> list[str]:
    """What is wrong with one shard, by file; empty if it is whole. Reads every byte of it."""
    marker = read_marker(path, number)
    if marker is None:
        return [f"{MARKERS}/{number:06d}: marker missing or unreadable"]
    if (marker.start, marker.stop) != (start, stop):
        return [f"{MARKERS}/{number:06d}: holds samples {marker.start} to {marker.stop}, not {start} to {stop}"]
    wrong = []
    for spec in specs:
        file = shard_file(path, spec, number)
        name = file.relative_to(path).as_posix()
        if not file.is_file():
            wrong.append(f"{name}: missing")
        elif file.stat().st_size != marker.bytes.get(spec.name):
            wrong.append(f"{name}: {file.stat().st_size} bytes, recorded {marker.bytes.get(spec.name)}")
        elif sha256(file) != marker.sha256.get(spec.name):
            wrong.append(f"{name}: checksum differs")
    return wrong


def sha256(file: Path) -> str:
    """Checksum of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verify(path: Path, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Read a store and its checksums.

    Args:
        path: the store.
        progress: called with shards read and shards in all.
    Returns: what is wrong, by file; empty if all is as recorded.
    Raises: InputError if there is no patch store at `path`.
    """
    attributes = read_attributes(path)
    wrong = [] if attributes.complete else ["store: unfinished; qsim generate with the same config finishes it"]
    try:
        specs = store_specs(path, GeneratorConfig.model_validate(attributes.config))
    except ValueError as error:
        return [*wrong, f"store: {error}"]
    for spec in specs:
        length = (read_json(path / spec.name / "zarr.json") or {})["shape"][0]
        if length != attributes.samples:
            wrong.append(f"{spec.name}: {length} samples, the store says {attributes.samples}")
    ranges = attributes.layout.ranges(attributes.samples)
    for number, (start, stop) in enumerate(ranges):
        wrong.extend(damaged(path, specs, number, start, stop))
        if progress is not None:
            progress(number + 1, len(ranges))
    return wrong
