"""What a patch store holds: the one place that names its arrays, their axes, and its attributes."""

import hashlib
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from math import ceil, prod
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from generators.acquisition import severity_text
from generators.config import GeneratorConfig
from generators.sample import Samples, scene
from qsim.kspace.noise import REFERENCE_SIGNAL

FORMAT = "qsim-patches"
VERSION = 1
# group inside the store that holds one done-marker per shard
MARKERS = "shards"

# a chunk is what one random read decodes, a shard what one task writes and one file holds
_CHUNK, _CHUNK_BYTES = 8, 4 * 2**20
_SHARD, _SHARD_BYTES = 512, 128 * 2**20
# a small store still has this many shards, so that several workers have something to do
_FEWEST_SHARDS = 8


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of the store.

    Attributes:
        name: as in `Samples`.
        dims: names of its axes; the first is always `sample`.
        shape: extent of the axes after `sample`.
        dtype: numpy name.
        fill: what never written elements would read as: NaN or impossible, never a plausible number.
        unit: of its values; of `kappa` see the parameters in the group's attributes.
        description: for people.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    fill: float | int
    unit: str
    description: str

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample, decoded."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


def array_specs(config: GeneratorConfig, origin_axes: int) -> tuple[ArraySpec, ...]:
    """The arrays of a store of this config.

    Args:
        config: what the data set is made of.
        origin_axes: axes of the phantom's volume, the slice axis included.
    """
    space = ("z", "y", "x")[-len(config.patch) :]
    model = config.signal_model
    nan = float("nan")
    images = ArraySpec(
        "images",
        ("sample", "image", *space),
        (model.n_images, *config.patch),
        config.dtype,
        nan,
        "units of A",
        "noisy series",
    )
    rest = (
        ArraySpec(
            "kappa",
            ("sample", "parameter", *space),
            (len(model.parameters), *config.patch),
            "float32",
            nan,
            "SI, by row: see `parameters`",
            "true maps of the majority tissue, 0 in the background",
        ),
        ArraySpec(
            "labels",
            ("sample", *space),
            config.patch,
            "uint8",
            255,
            "1",
            "1 + index of the majority tissue in `tissues`; 0 background",
        ),
        ArraySpec("purity", ("sample", *space), config.patch, "float32", nan, "1", "share of the majority tissue"),
        ArraySpec("sigma", ("sample",), (), "float32", nan, "units of A", "noise SD per real channel"),
        ArraySpec("subject", ("sample",), (), "int32", -1, "1", "subject of the phantom"),
        ArraySpec(
            "origin",
            ("sample", "axis"),
            (origin_axes,),
            "int32",
            -1,
            "voxels",
            "first voxel of the patch in the subject's volume",
        ),
    )
    # a store without artefacts is what it was before there were any
    severity = ArraySpec(
        "severity",
        ("sample", "artefact"),
        (len(config.artefact_list),),
        "float32",
        nan,
        "by artefact: see `artefacts`",
        "how strong each artefact is; 0 where it was left out",
    )
    arrays = (*rest, severity) if config.artefact_list else rest
    return arrays if config.store == "maps" else (images, *arrays)


@dataclass(frozen=True, slots=True)
class Layout:
    """How samples are grouped on disk; the decoded arrays do not depend on it."""

    shard: int
    chunk: int

    def __post_init__(self) -> None:
        if self.chunk < 1 or self.shard < 1 or self.shard % self.chunk:
            raise ValueError(f"shard must be a multiple of chunk, got shard {self.shard} and chunk {self.chunk}")

    def ranges(self, samples: int) -> tuple[tuple[int, int], ...]:
        """First and one past the last sample of every shard."""
        return tuple((start, min(start + self.shard, samples)) for start in range(0, samples, self.shard))


def choose_layout(specs: tuple[ArraySpec, ...], samples: int, shard: int | None, chunk: int | None) -> Layout:
    """Layout of a new store: 512 samples a shard and 8 a chunk, less where samples are large or few."""
    largest = max(spec.sample_bytes for spec in specs)
    if chunk is None:
        chunk = max(1, min(_CHUNK, _CHUNK_BYTES // largest, shard or _CHUNK))
    if shard is None:
        most = min(_SHARD, _SHARD_BYTES // largest, ceil(samples / _FEWEST_SHARDS))
        shard = chunk * max(1, ceil(most / chunk))
    return Layout(shard, chunk)


class Strict(BaseModel):
    """JSON without NaN, infinity or unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ParameterRow(Strict):
    """A row of `kappa`."""

    name: str
    symbol: str
    unit: str


class ArtefactRow(Strict):
    """A column of `severity`."""

    kind: str
    severity: str


class Versions(Strict):
    """What decides the bits of a sample besides the config: samples of one store all come from one such set."""

    qsim: str
    numpy: str
    torch: str
    cpu: str


class Provenance(Strict):
    """Where a store comes from. Varies from run to run; no array and no digest depends on it."""

    created: str
    python: str
    zarr: str
    dask: str
    platform: str
    commit: str | None


class ShardMarker(Strict):
    """Says that a shard is whole: which samples it holds, and size and sha256 of its file in every array."""

    start: int
    stop: int
    bytes: dict[str, int]
    sha256: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]


class StoreAttributes(Strict):
    """Attributes of the store's group."""

    format: Literal["qsim-patches"] = "qsim-patches"
    version: int = VERSION
    complete: bool
    digest: str
    samples: int
    shard: int
    chunk: int
    config: dict[str, Any]
    parameters: tuple[ParameterRow, ...]
    first_sample: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    targets: tuple[str, ...]
    times_s: tuple[float, ...]
    artefacts: tuple[ArtefactRow, ...] = ()
    tissues: tuple[str, ...]
    spacing_mm: tuple[float, ...]
    table: str
    truncation: str
    field_strength_tesla: float
    sources: dict[str, str]
    noise: str
    snr: str
    split: str
    versions: Versions
    provenance: Provenance

    @property
    def layout(self) -> Layout:
        """How samples are grouped on disk."""
        return Layout(self.shard, self.chunk)


def current_versions() -> Versions:
    """Of this process."""
    return Versions(
        qsim=version("qsim"),
        numpy=np.__version__,
        torch=torch.__version__,
        cpu=f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    )


def fingerprint(samples: Samples) -> str:
    """sha256 of all that some samples hold."""
    digest = hashlib.sha256()
    for name in Samples.__slots__:
        digest.update(getattr(samples, name).contiguous().numpy().tobytes())
    return digest.hexdigest()


def describe_store(config: GeneratorConfig, layout: Layout, first: Samples) -> StoreAttributes:
    """Attributes of a store that is about to be built.

    Args:
        config: what the data set is made of.
        layout: how samples are grouped on disk.
        first: sample 0; whoever makes another one of it would not go on with the same data set.
    Raises: InputError if the phantom cannot be read or a tissue is missing in the table.
    """
    world = scene(config)
    model = config.signal_model
    rows = tuple(ParameterRow(name=p.name, symbol=p.symbol, unit=p.unit) for p in model.parameters)
    return StoreAttributes(
        complete=False,
        digest=config.digest,
        samples=config.samples,
        shard=layout.shard,
        chunk=layout.chunk,
        config=config.model_dump(mode="json"),
        parameters=rows,
        first_sample=fingerprint(first),
        targets=tuple(rows[row].name for row in config.target_rows),
        times_s=tuple(float(time) for time in model.times),
        artefacts=tuple(ArtefactRow(kind=a.kind, severity=severity_text(a)) for a in world.artefacts),
        tissues=tuple(world.phantom.tissues),
        spacing_mm=tuple(float(size) for size in world.phantom.spacing_mm),
        table=world.table.name,
        truncation=world.table.truncation,
        field_strength_tesla=world.table.field_strength,
        sources={name: world.table[name].source for name in world.phantom.tissues},
        noise=config.noise_model.kind,
        snr=f"SNR = {REFERENCE_SIGNAL:g} / sigma",
        split=f"{config.split} anatomy of the phantom '{config.phantom_spec.kind}'; train and test are disjoint",
        versions=current_versions(),
        provenance=Provenance(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            python=sys.version.split()[0],
            zarr=version("zarr"),
            dask=version("dask"),
            platform=platform.platform(),
            commit=_commit(),
        ),
    )


def _commit() -> str | None:
    """Git commit of the checkout this package is run from; None for an installed package."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(  # noqa: S603  fixed arguments
            ["git", "-C", str(root), "rev-parse", "HEAD"],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def check_made(specs: tuple[ArraySpec, ...], samples: Samples) -> None:
    """State that what was made has the shape that the arrays expect."""
    for spec in specs:
        shape = tuple(getattr(samples, spec.name).shape[1:])
        assert shape == spec.shape, f"{spec.name}: made {shape}, the store expects {spec.shape}"
