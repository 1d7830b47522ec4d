"""Lines of k-space that belong together: which samples of a transform are worth computing, and where they go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import ceil, pi, sqrt

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

# more runs of neighbours than these on an axis: it is computed whole
_RUNS = 8
# numbers of a slab: it stays in the cache
_SLAB = 131_072


@dataclass(frozen=True, slots=True)
class Lines:
    """Some lines of a k-space whose axes stand in the order of the FFT.

    Attributes:
        kept: axes of space of which only some samples are computed, as runs of neighbours.
        mask: the lines among those samples, one axis for each of space; None if they are all of them.
        outer: the first encoded axis, and which of its samples have all their lines wanted: those need no mask.
    """

    kept: Mapping[int, tuple[slice, ...]]
    mask: Bool[Tensor, "*lines"] | None
    outer: tuple[int, Bool[np.ndarray, " n"]] | None = None

    @classmethod
    def of(cls, wanted: Bool[np.ndarray, "*lines"], encoded: Sequence[int], ndim: int, device: torch.device) -> "Lines":
        """Args: wanted: at least one line, over the axes `encoded` of space, in the order of the FFT."""
        kept = {}
        box = wanted
        for place, axis in enumerate(encoded):
            others = tuple(other for other in range(wanted.ndim) if other != place)
            samples = np.flatnonzero(wanted.any(others))
            runs = np.split(samples, np.flatnonzero(np.diff(samples) != 1) + 1)
            if len(samples) < wanted.shape[place] and len(runs) <= _RUNS:
                kept[axis] = tuple(slice(int(run[0]), int(run[-1]) + 1) for run in runs)
                box = box.take(samples, place)
        if box.all():
            return cls(kept, None)
        shape = [1] * ndim
        for place, axis in enumerate(encoded):
            shape[axis] = wanted.shape[place]
        ordered = wanted.transpose(np.argsort(encoded)).reshape(shape)
        whole = np.asarray(wanted.reshape(len(wanted), -1).all(1))
        return cls(kept, torch.from_numpy(ordered).to(device), (encoded[0], whole))

    def within(self, axis: int, part: slice) -> "Lines":
        """Of the kept samples of an axis only a part, counted among them."""
        runs = []
        before = 0
        for run in self.kept.get(axis, (slice(0, part.stop),)):
            low, high = max(part.start - before, 0), min(part.stop - before, run.stop - run.start)
            if low < high:
                runs.append(slice(run.start + low, run.start + high))
            before += run.stop - run.start
        return Lines({**self.kept, axis: tuple(runs)}, self.mask, self.outer)

    def taken(self, values: Tensor, dim: int, axis: int | None) -> Tensor:
        """The kept samples of an axis of space, which is axis `dim` of the values."""
        runs = self.kept.get(axis) if axis is not None else None
        if runs is None:
            return values
        parts = [values.narrow(dim, run.start, run.stop - run.start) for run in runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)

    def put(self, result: Tensor, values: Tensor, axes: Sequence[int | None]) -> None:
        """Write kept samples to their places, and only the lines of the mask.

        Args:
            axes: of space that the axes of result and values stand for, each once; None for channels.
        """
        mask = None
        if self.mask is not None:
            mask = self.mask.permute([axis for axis in axes if axis is not None])
            for dim, axis in enumerate(axes):
                mask = mask.unsqueeze(dim) if axis is None else mask
        for places in product(*(self._places(axis, values.shape[dim]) for dim, axis in enumerate(axes))):
            here = values[tuple(source for source, _, _ in places)]
            where = tuple(target for _, target, _ in places)
            there = result[where]
            if mask is None or any(whole for _, _, whole in places):
                there.copy_(here)
            else:
                of_mask = tuple(slice(None) if mask.shape[dim] == 1 else target for dim, target in enumerate(where))
                there.copy_(torch.where(mask[of_mask], here, there))

    def _places(self, axis: int | None, n: int) -> list[tuple[slice, slice, bool]]:
        """Runs of an axis among the kept samples, in k-space, and whether all lines of them are wanted."""
        runs = (self.kept.get(axis) if axis is not None else None) or (slice(0, n),)
        starts = np.cumsum([0, *(run.stop - run.start for run in runs)]).tolist()
        places = []
        for first, last, run in zip(starts, starts[1:], runs, strict=False):
            if self.outer is None or self.outer[0] != axis:
                places.append((slice(first, last), run, False))
                continue
            whole = self.outer[1][run]
            changes = [0, *(np.flatnonzero(np.diff(whole)) + 1).tolist(), len(whole)]
            for low, high in pairwise(changes):
                source, target = slice(first + low, first + high), slice(run.start + low, run.start + high)
                places.append((source, target, bool(whole[low])))
        return places


def spectrum_into(result: Complex[Tensor, "c *space"], values: Complex[Tensor, "c *space"], lines: Lines) -> None:
    """Put lines of the orthonormal transform of values in their places."""
    axes = range(values.ndim - 1)
    # those with few samples first: the others are then transformed for fewer lines
    for axis in [axis for axis in axes if axis in lines.kept]:
        values = lines.taken(torch.fft.fft(values, dim=axis + 1, norm="ortho"), axis + 1, axis)
    whole = tuple(axis + 1 for axis in axes if axis not in lines.kept)
    values = torch.fft.fftn(values, dim=whole, norm="ortho") if whole else values
    lines.put(result, values, (None, *axes))


def powers(turns: Float[Tensor, "*s"], count: int, like: Tensor) -> Complex[Tensor, "*s count"]:
    """exp(2 pi i turns k) for k = 0 to count - 1, of the dtype and on the device of `like`.

    k = L q + l: one product of two small tables instead of an exponential for every number.
    """
    step = ceil(sqrt(count))
    fine, coarse = (
        wave(turns.unsqueeze(-1) * torch.arange(0, stop, by, dtype=torch.float64)).to(like.device, like.dtype)
        for stop, by in ((step, 1), (count, step))
    )
    return (coarse.unsqueeze(-1) * fine.unsqueeze(-2)).flatten(-2)[..., :count]


def wave(turns: Float[Tensor, "*s"]) -> Complex[Tensor, "*s"]:
    """exp(2 pi i turns)."""
    # whole turns taken off first: large angles keep their digits
    angle = (2 * pi) * (turns - torch.round(turns))
    return torch.polar(torch.ones_like(angle), angle)


def slabs(values: Tensor, dim: int) -> list[slice]:
    """Parts of an axis, as large as the cache likes."""
    # a GPU has no such cache, and many cores to fill
    step = values.shape[dim] if values.is_cuda else max(1, _SLAB * values.shape[dim] // values.numel())
    return [slice(low, min(low + step, values.shape[dim])) for low in range(0, values.shape[dim], step)]
