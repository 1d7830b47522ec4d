"""Batches for training, each a pure function of (config, iteration).

The samples of the training are numbered by a position: the k-th sample of iteration i has position i batch + k. A
position names an epoch and a sample of the data set, whose order is drawn from (seed, epoch). So an interrupted run
goes on exactly where it stopped, and neither the number of workers nor of devices changes what an iteration sees.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from generators.config import GeneratorConfig
from generators.sample import make_samples
from generators.store import PatchStore, StoredSamples
from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.signals.base import SignalModel, SpatialModel, real_signal
from trainers.variety import Variety

# samples that a store which does not fit into memory reads together, and how many such blocks are mixed
_BLOCK, _MIXED = 512, 8
_NONE = Variety()


@dataclass(frozen=True, slots=True)
class Batch:
    """Training examples.

    Attributes:
        images: noisy series; None where it is simulated from the maps on the device [units of A].
        kappa: true maps, 0 in the background [SI].
        labels: 0 is background.
        purity: share of the majority tissue [1].
        sigma: noise SD per real channel [units of A].
        positions: number of each example in the training.
        times: of each example; None: those of the data's model [s].
        counted: which of `times` are the example's, the rest fills up; None with `times`.
        lesions: where relaxation times were changed in small structures; None where that was not asked for.
    """

    images: Float[Tensor, "b n *space"] | None
    kappa: Float[Tensor, "b q *space"]
    labels: UInt8[Tensor, "b *space"]
    purity: Float[Tensor, "b *space"]
    sigma: Float[Tensor, " b"]
    positions: Int[Tensor, " b"]
    times: Float[Tensor, "b n"] | None = None
    counted: Bool[Tensor, "b n"] | None = None
    lesions: Bool[Tensor, "b *space"] | None = None

    def apply(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with a function applied to each of its tensors."""
        return Batch(
            images=None if self.images is None else function(self.images),
            kappa=function(self.kappa),
            labels=function(self.labels),
            purity=function(self.purity),
            sigma=function(self.sigma),
            positions=function(self.positions),
            times=None if self.times is None else function(self.times),
            counted=None if self.counted is None else function(self.counted),
            lesions=None if self.lesions is None else function(self.lesions),
        )

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device."""
        return self.apply(lambda tensor: tensor.to(device, non_blocking=True))

    @property
    def series(self) -> Float[Tensor, "b n *space"]:
        """The images.

        Raises: ValueError if they have not been simulated yet.
        """
        if self.images is None:
            raise ValueError("the batch holds maps only; simulate it first")
        return self.images


@runtime_checkable
class Source(Protocol):
    """Samples by index."""

    @property
    def model(self) -> SignalModel:
        """Signal model of the series."""
        ...

    @property
    def noise(self) -> str:
        """Kind of their noise."""
        ...

    @property
    def stored(self) -> Literal["images", "maps"]:
        """Whether samples have images, or maps that are simulated while training."""
        ...

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows of `Batch.kappa`."""
        ...

    @property
    def digest(self) -> str:
        """Of all that decides the samples."""
        ...

    @property
    def record(self) -> Mapping[str, Any]:
        """What a network on disk says of its data."""
        ...

    def __len__(self) -> int: ...

    def validation(self, share: float) -> int:
        """How many samples, the last, are kept for validation."""
        ...

    def prepare(self, batch: Batch, seed: int, variety: Variety) -> Batch:
        """The batch with its images."""
        ...

    def order(self, seed: int, epoch: int, n: int) -> Int[np.ndarray, " n"]:
        """Order of the first n samples in an epoch."""
        ...

    def take(self, indices: Sequence[int]) -> Batch:
        """The samples of the given indices."""
        ...


class _OfGenerator(ABC):
    """What the sources of a generator config have in common."""

    # frozen sources keep their slots
    __slots__ = ()
    config: GeneratorConfig

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def model(self) -> SignalModel:
        return self.config.signal_model

    @property
    def noise(self) -> str:
        return self.config.noise.kind

    @property
    def stored(self) -> Literal["images", "maps"]:
        return self.config.store

    @property
    def rows(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.model.parameters)

    @property
    def digest(self) -> str:
        return self.config.digest

    @property
    def record(self) -> Mapping[str, Any]:
        return {"generator": self.config.model_dump(mode="json")}

    def validation(self, share: float) -> int:
        return round(share * len(self))

    def prepare(self, batch: Batch, seed: int, variety: Variety) -> Batch:
        return simulate(batch, self.config, seed, variety)


def _permutation(seed: int, epoch: int, n: int) -> Int[np.ndarray, " n"]:
    return Streams(seed, epoch).rng("order").permutation(n)


def _batch(samples: StoredSamples) -> Batch:
    positions = torch.zeros(len(samples), dtype=torch.int64)
    return Batch(samples.images, samples.kappa, samples.labels, samples.purity, samples.sigma, positions)


@dataclass(frozen=True, slots=True)
class Generated(_OfGenerator):
    """Samples that are made when they are asked for; an epoch is `config.samples`."""

    config: GeneratorConfig

    def __len__(self) -> int:
        return self.config.samples

    def order(self, seed: int, epoch: int, n: int) -> Int[np.ndarray, " n"]:
        return _permutation(seed, epoch, n)

    def take(self, indices: Sequence[int]) -> Batch:
        samples = make_samples(self.config, list(indices))
        images = None if self.config.store == "maps" else samples.images
        positions = torch.zeros(len(indices), dtype=torch.int64)
        return Batch(images, samples.kappa, samples.labels, samples.purity, samples.sigma, positions)


class Preloaded(_OfGenerator):
    """A store that is read into memory once."""

    def __init__(self, store: PatchStore) -> None:
        self._samples = _batch(store.read(0, len(store)))
        self.config = store.config

    def __len__(self) -> int:
        return int(self._samples.sigma.shape[0])

    def order(self, seed: int, epoch: int, n: int) -> Int[np.ndarray, " n"]:
        return _permutation(seed, epoch, n)

    def take(self, indices: Sequence[int]) -> Batch:
        wanted = torch.as_tensor(np.asarray(indices))
        return self._samples.apply(lambda tensor: tensor[wanted])


@dataclass(frozen=True, slots=True)
class Row:
    """One sample: a `Batch` without its first axis."""

    images: Tensor | None
    kappa: Tensor
    labels: Tensor
    purity: Tensor
    sigma: Tensor
    positions: Tensor


class Blocks(_OfGenerator):
    """A store that stays on disk: the order of blocks is shuffled, and the samples of a few blocks together.

    Random access to single samples of a store is several times slower; blocks that are read whole cost little more
    than memory. Two samples far apart in the store therefore seldom meet in a batch.
    """

    def __init__(self, store: PatchStore, block: int = _BLOCK, mixed: int = _MIXED) -> None:
        self._store = store
        self._block, self._mixed = block, mixed
        self._held: dict[int, StoredSamples] = {}
        self.config = store.config

    def __len__(self) -> int:
        return len(self._store)

    def order(self, seed: int, epoch: int, n: int) -> Int[np.ndarray, " n"]:
        rng = Streams(seed, epoch).rng("order")
        starts = rng.permutation(np.arange(0, n, self._block))
        blocks = [np.arange(start, min(start + self._block, n)) for start in starts]
        groups = [np.concatenate(blocks[i : i + self._mixed]) for i in range(0, len(blocks), self._mixed)]
        return np.concatenate([rng.permutation(group) for group in groups])

    def take(self, indices: Sequence[int]) -> Batch:
        rows = [self._row(index // self._block, index % self._block) for index in indices]
        images = [row.images for row in rows if row.images is not None]
        return Batch(
            images=torch.stack(images) if images else None,
            kappa=torch.stack([row.kappa for row in rows]),
            labels=torch.stack([row.labels for row in rows]),
            purity=torch.stack([row.purity for row in rows]),
            sigma=torch.stack([row.sigma for row in rows]),
            positions=torch.stack([row.positions for row in rows]),
        )

    def _row(self, block: int, row: int) -> Row:
        if block not in self._held:
            # a batch spans two groups at most; the blocks before them are not needed again
            while len(self._held) >= 2 * self._mixed:
                del self._held[next(iter(self._held))]
            lo = block * self._block
            self._held[block] = self._store.read(lo, min(lo + self._block, len(self._store)))
        held = self._held[block]
        images = None if held.images is None else held.images[row]
        position = torch.zeros((), dtype=torch.int64)
        return Row(images, held.kappa[row], held.labels[row], held.purity[row], held.sigma[row], position)


def open_store(store: PatchStore, memory_gb: float) -> Source:
    """A store in memory if it fits into `memory_gb` [10^9 bytes], else in shuffled blocks."""
    return Preloaded(store) if store.nbytes <= memory_gb * 1e9 else Blocks(store)


class PatchDataset(Dataset[Batch]):
    """Training examples by position.

    Args:
        source: where the samples come from.
        seed: of the order of the samples.
        n: samples to train on, the first of the source.
    """

    def __init__(self, source: Source, seed: int, n: int) -> None:
        if not 0 < n <= len(source):
            raise InputError(f"data: {n} samples to train on, but the data set holds {len(source)}")
        self.source, self.seed, self.n = source, seed, n
        # epochs follow each other; a batch touches two of them at most
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def _draw_order(self, epoch: int) -> Int[np.ndarray, " n"]:
        return self.source.order(self.seed, epoch, self.n)

    def __getstate__(self) -> dict[str, object]:
        return {"source": self.source, "seed": self.seed, "n": self.n}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def index(self, position: int) -> int:
        """Sample of the data set at a position of the training."""
        epoch, place = divmod(position, self.n)
        return int(self._order(epoch)[place])

    def __getitem__(self, position: int) -> Batch:
        """One example, with a sample axis of length 1."""
        return self.__getitems__([position])

    def __getitems__(self, positions: list[int]) -> Batch:
        """The examples of the given positions together."""
        batch = self.source.take([self.index(position) for position in positions])
        return replace(batch, positions=torch.tensor(positions, dtype=torch.int64))


def _whole(batch: Any) -> Any:
    # the data set has put the batch together already
    return batch


def loader(
    dataset: PatchDataset, first: int, last: int, batch: int, *, rank: int = 0, ranks: int = 1, workers: int = 0
) -> Iterator[Batch]:
    """Batches of the iterations `first` to `last` - 1.

    Args:
        dataset: examples by position.
        first, last: iterations.
        batch: samples per iteration, over all ranks.
        rank, ranks: this device among all; it gets every `ranks`-th sample of an iteration.
        workers: processes that load ahead; 0: this one.
    """
    positions = [list(range(i * batch + rank, (i + 1) * batch, ranks)) for i in range(first, last)]
    context = "spawn" if workers else None
    return iter(
        DataLoader(
            dataset, batch_sampler=positions, collate_fn=_whole, num_workers=workers, multiprocessing_context=context
        )
    )


def simulate(batch: Batch, config: GeneratorConfig, seed: int, variety: Variety = _NONE) -> Batch:
    """Series of a batch of maps, with a noise level and noise that are new for every position of the training.

    The noise is drawn on the batch's device: the same from run to run, not the same on another kind of device.

    Args:
        batch: with maps; returned as it is if it has images.
        config: model and noise of the data set.
        seed: of the training.
        variety: what else is drawn anew.
    Raises: InputError if the examples have images and something shall be drawn anew, or the model does not allow it.
    """
    variety.check(config.signal_model, config.store if batch.images is None else "images")
    if batch.images is not None:
        return batch
    noise, model = config.noise_model, config.signal_model
    streams = [Streams(seed, int(position)) for position in batch.positions]
    u = np.array([stream.rng("training sigma").random() for stream in streams])
    sigma = torch.from_numpy(noise.sigma.ppf(np.maximum(u, np.finfo(float).tiny)).astype(np.float32)).to(
        batch.kappa.device
    )
    inside = batch.labels > 0
    lesions = None
    if variety.recolour is not None or variety.lesions is not None:
        kappa, lesions = variety.maps(batch.kappa, batch.labels, model, streams)
        batch = replace(batch, kappa=kappa, lesions=lesions)
    # a relaxation time of 0 in the background is no number for the model
    kappa = torch.where(inside[:, None], batch.kappa, 1.0)
    maps = kappa.movedim(1, 0)
    times = counted = None
    if variety.protocols is not None:
        signal, times, counted = variety.protocols.signals(model, maps, streams)
        signal *= inside[:, None]
    elif isinstance(model, SpatialModel) and model.mixes_voxels:
        # the background must not blur into the tissue: it is taken out before voxels mix
        signal = real_signal(model, model.image(model.magnetisation(maps) * inside)).movedim(1, 0)
    else:
        signal = (model(maps) * inside).movedim(1, 0)
    normals = [torch.empty_like(signal, memory_format=torch.contiguous_format) for _ in range(noise.channels)]
    for i, stream in enumerate(streams):
        generator = stream.torch_generator("training noise", batch.kappa.device)
        for channel in normals:
            channel[i].normal_(generator=generator)
    images = noise.add(signal, sigma.reshape(-1, *(1,) * (signal.ndim - 1)), normals)
    return replace(batch, images=images, sigma=sigma, times=times, counted=counted)
