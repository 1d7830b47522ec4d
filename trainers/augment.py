"""Artefacts while training, for any torch data set; inside TorchIO: `torchio_transform.py`.

    corruption = Corruption([RFSpike()], seed=1)
    corrupted = corruption(images, index)                             # complex in, complex out

    CorruptedDataset(dataset, [RFSpike()], seed=1, key="image")       # wraps tensors, tuples or dicts

What is drawn is a pure function of (seed, epoch, index) and of nothing else: the data are the same for any number of
loader workers, any order, any start in the middle. No global random state is read or changed. Where every worker has
a generator of its own, data depend on the number of workers, or repeat.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Complex, Inexact, Shaped
from torch import Tensor
from torch.utils.data import Dataset

from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.kspace import Artefact, Corrupted, Drawn, apply_chain, draw_chain, magnitude
from qsim.kspace.chain import check_order

Phase = Literal["given", "zero"]
Output = Literal["magnitude", "complex"]


@runtime_checkable
class MapStyle(Protocol):
    """A data set of torch that is asked for items by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Corruption:
    """A chain whose draws belong to the number of an image.

    Attributes:
        artefacts: in the order of the scanner.
        seed: of all draws.
        epoch: an image is corrupted anew in each.
    Raises: ValueError for a negative seed or epoch, InputError for artefacts out of order.
    """

    artefacts: Sequence[Artefact[Any]]
    seed: int
    epoch: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "artefacts", tuple(self.artefacts))
        for name in ("seed", "epoch"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        check_order(self.artefacts)

    def draw(self, shape: tuple[int, ...], index: int, part: str = "") -> tuple[Drawn | None, ...]:
        """What is drawn for an image: recomputed without it.

        Args:
            shape: of the images, `(n, *space)`.
            index: of the image [0, 2^64).
            part: of the image, if its parts are drawn for one by one.
        """
        if index < 0:
            raise ValueError(f"index must be at least 0, got {index}")
        streams = Streams(self.seed, index)
        place = f"epoch {self.epoch}/{part}/" if part else f"epoch {self.epoch}/"
        return draw_chain(self.artefacts, shape, lambda stage: streams.rng(place + stage))

    def __call__(self, images: Complex[Tensor, "*lead_and_space"], index: int, part: str = "") -> Corrupted:
        """The images of one index with what is drawn for it.

        Raises: ValueError if the images are real, empty or not finite.
        """
        return apply_chain(images, self.artefacts, self.draw(tuple(images.shape), index, part))


class CorruptedDataset(Dataset[Any]):
    """A data set whose images go through a chain; the severity of each artefact comes with them.

    An item that is a tensor becomes (images, severity), a tuple or list gets the severity at its end, a dict gets it
    under `severity`. Nothing else of an item is touched.

    Args:
        dataset: map-style; its images are `(n, *space)`, or of any shape with `ndim` in the artefacts.
        artefacts: in the order of the scanner.
        seed: of all draws.
        key: where an item holds the images: None: it is the images; an int: place in a tuple or list; a str: key
            of a dict.
        phase: `given`: images are complex, real ones are refused. `zero`: images are magnitudes, taken as complex
            without phase; partial Fourier then shows less than on a scanner, and negative values are refused.
        output: `magnitude`, or `complex`.
        severity: key of the severities (artefact,) in a dict.
        epoch: where to begin.
    """

    def __init__(
        self,
        dataset: MapStyle,
        artefacts: Sequence[Artefact[Any]],
        seed: int,
        key: str | int | None = None,
        phase: Phase = "given",
        output: Output = "magnitude",
        severity: str = "severity",
        epoch: int = 0,
    ) -> None:
        check_choices(phase, output)
        self.dataset, self.key, self.phase, self.output, self.severity = dataset, key, phase, output, severity
        self._corruption = Corruption(artefacts, seed, epoch)
        self._epoch = SharedEpoch(epoch)

    @property
    def corruption(self) -> Corruption:
        """The chain in the present epoch."""
        return replace(self._corruption, epoch=self._epoch.number)

    def set_epoch(self, epoch: int) -> None:
        """Draw anew; call it before the loader is iterated. Workers that are kept (persistent) are told too."""
        self._epoch.set(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        place = operator.index(index)
        place = place + len(self) if place < 0 else place
        item = self.dataset[place]
        try:
            images = as_complex(self._images(item), self.phase)
            corrupted = self.corruption(images, place)
        except ValueError as error:
            raise InputError(f"item {place}: {error}") from None
        result = finished(corrupted.images, self.output)
        return self._changed(item, result, torch.tensor(corrupted.severity, dtype=torch.float32))

    def _images(self, item: Any) -> Tensor:
        found = item if self.key is None else self._found(item, self.key)
        if not isinstance(found, Tensor):
            where = "the item" if self.key is None else f"{self.key!r}"
            raise ValueError(f"key: {where} is a {type(found).__name__}, not a tensor; say where the images are")
        return found

    def _found(self, item: Any, key: str | int) -> Any:
        if isinstance(key, int):
            if not isinstance(item, tuple | list) or not -len(item) <= key < len(item):
                holds = f" of {len(item)}" if isinstance(item, tuple | list) else ""
                raise ValueError(f"key: no place {key}, the item is a {type(item).__name__}{holds}")
            return item[key]
        if not isinstance(item, Mapping) or key not in item:
            holds = f" of {', '.join(map(str, item))}" if isinstance(item, Mapping) else ""
            raise ValueError(f"key: no images under {key!r}, the item is a {type(item).__name__}{holds}")
        if self.severity in item:
            raise ValueError(f"severity: the item holds {self.severity!r} already; give another name")
        return item[key]

    def _changed(self, item: Any, images: Tensor, severity: Tensor) -> Any:
        if self.key is None:
            return images, severity
        if isinstance(self.key, str):
            return {**item, self.key: images, self.severity: severity}
        changed = list(item)
        changed[self.key] = images
        changed.append(severity)
        return changed if isinstance(item, list) else tuple(changed)


class SharedEpoch:
    """A number that the processes of a loader share, so that workers that live on hear of a new epoch."""

    def __init__(self, number: int) -> None:
        self._cell = torch.tensor(number, dtype=torch.int64).share_memory_()

    def __setstate__(self, state: dict[str, Tensor]) -> None:
        # read from a file it is not shared yet; handed to a worker it is, and stays so
        self._cell = state["_cell"].share_memory_()

    @property
    def number(self) -> int:
        """The epoch."""
        return int(self._cell)

    def set(self, number: int) -> None:
        """Raises: ValueError if it is negative."""
        if number < 0:
            raise ValueError(f"epoch must be at least 0, got {number}")
        self._cell.fill_(number)


def as_complex(images: Shaped[Tensor, "*s"], phase: Phase) -> Complex[Tensor, "*s"]:
    """Images as they are if complex; magnitudes with zero phase if that is asked for.

    Raises: ValueError for real images without `phase="zero"`, and for negative ones with it.
    """
    if images.is_complex():
        return images
    if phase == "given":
        raise ValueError(f"images are {images.dtype}, not complex; say phase='zero' if they are magnitudes")
    if bool((images < 0).any()):
        raise ValueError("images: negative values are no magnitudes; corrupt them before they are normalised")
    # whole numbers of 32 bits and more do not fit into single precision
    exact = torch.complex128 if images.dtype in (torch.float64, torch.int32, torch.int64) else torch.complex64
    return images.to(exact)


def finished(images: Complex[Tensor, "*s"], output: Output) -> Inexact[Tensor, "*s"]:
    """Images as they are handed over."""
    return magnitude(images) if output == "magnitude" else images


def check_choices(phase: str, output: str) -> None:
    """Raises: ValueError, starting with the name of the argument."""
    if phase not in ("given", "zero"):
        raise ValueError(f"phase must be given or zero, got {phase!r}")
    if output not in ("magnitude", "complex"):
        raise ValueError(f"output must be magnitude or complex, got {output!r}")
