"""Where structures find room in one subject, and what they take of its tissues (`phantoms.shapes.lesions`)."""

import numpy as np
from jaxtyping import Bool, Float, Shaped

from phantoms.base import Slab, as_fractions
from phantoms.shapes.structures import AnyStructure, Coverage, Tumour

# shares of the tissues of `within` that a place needs: of each voxel, of a tumour's volume [1]
_PURE, _TUMOUR = 0.9, 0.8
# places tried at random; whole blocks are then looked for everywhere, tumours given up
_TRIES = {True: 2000, False: 200}


class Room:
    """One subject's fractions while structures are put in, and what is left free."""

    def __init__(
        self,
        volume: Shaped[np.ndarray, "t *space"],
        tissues: tuple[str, ...],
        slabs: tuple[Slab, ...],
        slice_axis: int,
        apart: int,
    ) -> None:
        self.tissues, self.slabs, self.axis, self.apart = tissues, slabs, slice_axis, apart
        # the part of the volume that the slabs span; one slice where structures are put slice by slice
        self.first = min(start for start, _ in slabs)
        window: list[slice] = [slice(None)] * volume.ndim
        window[1 + slice_axis] = slice(self.first, max(stop for _, stop in slabs))
        self.volume = volume[tuple(window)]
        self.free: Bool[np.ndarray, "*space"] = np.zeros(self.volume.shape[1:], dtype=bool)
        by_slice = np.moveaxis(self.free, slice_axis, 0)
        for start, stop in slabs:
            by_slice[start - self.first : stop - self.first] = True
        self._shares: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}

    def find(
        self, coverage: Coverage, within: tuple[int, ...], structure: AnyStructure, rng: np.random.Generator
    ) -> tuple[int, ...] | None:
        """First voxel, in the whole volume, of a place drawn uniformly from those with room."""
        share, candidates = self._share(within)
        if not len(candidates):
            return None
        extent = np.array(coverage.shape)
        limit = np.array(self.free.shape) - extent
        total = float(coverage.sum(dtype=float))
        picks = candidates[rng.integers(len(candidates), size=_TRIES[isinstance(structure, Tumour)])]
        # the voxel drawn is the block's centre
        corners = np.stack(np.unravel_index(picks, self.free.shape), axis=-1) - extent // 2
        for corner in corners[((corners >= 0) & (corners <= limit)).all(axis=1)]:
            box = tuple(slice(int(a), int(a + n)) for a, n in zip(corner, extent, strict=True))
            if not self.free[box].all():
                continue
            here = share[box]
            if isinstance(structure, Tumour):
                if float((coverage * here).sum(dtype=float)) < _TUMOUR * total:
                    continue
            elif not (here >= _PURE).all():
                continue
            return self._whole(corner)
        if isinstance(structure, Tumour):
            return None
        everywhere = np.argwhere(_windows((share >= _PURE) & self.free, coverage.shape))
        return self._whole(everywhere[rng.integers(len(everywhere))]) if len(everywhere) else None

    def fill(
        self, coverage: Coverage, origin: tuple[int, ...], within: tuple[int, ...], tissue: str
    ) -> Float[np.ndarray, "*block"]:
        """Put it there; returns the share of each voxel that it took, as stored."""
        corner = list(origin)
        corner[self.axis] -= self.first
        box = tuple(slice(a, a + n) for a, n in zip(corner, coverage.shape, strict=True))
        piece = (slice(None), *box)
        made_of, rows = self.tissues.index(tissue), list(within)
        stored = self.volume[piece].copy()
        if np.issubdtype(stored.dtype, np.integer):
            # whole steps change hands: their sum stays as it was
            taken = np.rint(coverage * stored[rows]).astype(stored.dtype)
        else:
            taken = (coverage * stored[rows]).astype(stored.dtype)
        before = as_fractions(stored)
        stored[rows] -= taken
        stored[made_of] += taken.sum(axis=0, dtype=stored.dtype)
        if not np.issubdtype(stored.dtype, np.integer):
            _lower(stored, before)
        self.volume[piece] = stored
        around = tuple(
            slice(max(a - self.apart, 0), a + n + self.apart) for a, n in zip(corner, coverage.shape, strict=True)
        )
        self.free[around] = False
        return as_fractions(stored)[made_of] - before[made_of]

    def _share(self, within: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Share of those tissues, before any structure, and the voxels that are nearly all of them."""
        if within not in self._shares:
            share = np.zeros(self.free.shape, dtype=np.float32)
            for t in within:
                share += as_fractions(self.volume[t : t + 1])[0]
            # float32 sums of steps are exact
            self._shares[within] = share, np.flatnonzero((share >= _PURE) & self.free)
        return self._shares[within]

    def _whole(self, corner: Shaped[np.ndarray, " axes"]) -> tuple[int, ...]:
        origin = [int(a) for a in corner]
        origin[self.axis] += self.first
        return tuple(origin)


def _windows(room: Bool[np.ndarray, "*space"], extent: tuple[int, ...]) -> Bool[np.ndarray, "*places"]:
    """Whether a block of this extent, from each voxel on, is all room; one axis after the other."""
    for axis, n in enumerate(extent):
        if n > room.shape[axis]:
            return np.zeros((0,) * room.ndim, dtype=bool)
        if n > 1:
            room = np.asarray(np.lib.stride_tricks.sliding_window_view(room, n, axis=axis).all(axis=-1))
    return room


def _lower(fractions: Float[np.ndarray, "t *space"], before: Float[np.ndarray, "t *space"]) -> None:
    """Where rounding has lifted a sum, the largest share gives way, in place."""
    for _ in range(4 * len(fractions)):
        lifted = np.nonzero(fractions.sum(axis=0, dtype=np.float64) > before.sum(axis=0, dtype=np.float64))
        if not len(lifted[0]):
            return
        flat = fractions.reshape(len(fractions), -1)
        where = np.ravel_multi_index(lifted, fractions.shape[1:])
        largest = flat[:, where].argmax(axis=0)
        flat[largest, where] = np.nextafter(flat[largest, where], fractions.dtype.type(0))
