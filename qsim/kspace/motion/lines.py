"""Lines of k-space that belong together: which samples of a transform are worth computing, and where they go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import pi

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

# more runs of neighbours than these on an axis: it is computed whole
_RUNS = 8


@dataclass(frozen=True, slots=True)
class Lines:
    """Some lines of a k-space whose axes stand in the order of the FFT.

    Attributes:
        kept: axes of space of which only some samples are computed, as runs of neighbours.
        mask: the lines among those samples, one axis for each of space; None if they are all of them.
    """

    kept: Mapping[int, tuple[slice, ...]]
    mask: Bool[Tensor, "*lines"] | None

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
        return cls(kept, torch.from_numpy(ordered).to(device))

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
            here = values[tuple(source for source, _ in places)]
            where = tuple(target for _, target in places)
            there = result[where]
            if mask is None:
                there.copy_(here)
            else:
                of_mask = tuple(
                    slice(None) if mask.shape[dim] == 1 else target for dim, (_, target) in enumerate(places)
                )
                there.copy_(torch.where(mask[of_mask], here, there))

    def _places(self, axis: int | None, n: int) -> list[tuple[slice, slice]]:
        """Runs of an axis among the kept samples, and in k-space."""
        runs = self.kept.get(axis) if axis is not None else None
        if runs is None:
            return [(slice(0, n), slice(0, n))]
        starts = np.cumsum([0, *(run.stop - run.start for run in runs)]).tolist()
        return [(slice(start, stop), run) for start, stop, run in zip(starts, starts[1:], runs, strict=False)]


def spectrum_into(result: Complex[Tensor, "c *space"], values: Complex[Tensor, "c *space"], lines: Lines) -> None:
    """Put lines of the orthonormal transform of values in their places."""
    axes = range(values.ndim - 1)
    # those with few samples first: the others are then transformed for fewer lines
    for axis in [axis for axis in axes if axis in lines.kept]:
        values = lines.taken(torch.fft.fft(values, dim=axis + 1, norm="ortho"), axis + 1, axis)
    whole = tuple(axis + 1 for axis in axes if axis not in lines.kept)
    values = torch.fft.fftn(values, dim=whole, norm="ortho") if whole else values
    lines.put(result, values, (None, *axes))


def powers(turns: Float[Tensor, "*s"], count: int) -> Complex[Tensor, "*s count"]:
    """exp(2 pi i turns k) for k = 0 to count - 1, in double precision.

    Each table of powers gives one of twice its length by one product: a sine and a cosine for every power of two only.
    """
    table = torch.ones(*turns.shape, 1, dtype=torch.complex128)
    while table.shape[-1] < count:
        turned = turns * table.shape[-1]
        # whole turns taken off first: large angles keep their digits
        angle = (2 * pi) * (turned - torch.round(turned))
        table = torch.cat([table, table * torch.polar(torch.ones_like(angle), angle).unsqueeze(-1)], -1)
    return table[..., :count]
