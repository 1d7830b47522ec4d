"""Blocks of voxels averaged into one: the fuzzy fractions of a crisp model, and fuzzy models at a coarser grid."""

from itertools import product
from math import prod

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from phantoms.base import quantise

Block = int | tuple[int, int, int]
_LARGEST = 2**15


def extent_of(block: Block) -> tuple[int, int, int]:
    """Voxels of a block along each axis of the volume."""
    return (block, block, block) if isinstance(block, int) else block


def check_block(block: Block) -> None:
    """Refuse blocks that hold nothing, or more than can be counted.

    Raises: ValueError.
    """
    extent = extent_of(block)
    if min(extent) < 1:
        raise ValueError(f"block must be at least 1, got {block if isinstance(block, int) else list(block)}")
    if prod(extent) > _LARGEST:
        raise ValueError(f"block must hold at most {_LARGEST} voxels, got {prod(extent)}")


def say_block(block: Block) -> str:
    """Return the block in words, for reports."""
    if isinstance(block, int):
        return f"{block}^3 voxels averaged into one"
    return f"{' x '.join(map(str, block))} voxels averaged into one"


def coarser(
    spacing_mm: tuple[float, ...], affine: Float[np.ndarray, "4 4"], block: Block
) -> tuple[tuple[float, ...], Float[np.ndarray, "4 4"]]:
    """Voxel size and affine of the blocks, whose first centre lies (block - 1) / 2 voxels from that of a voxel."""
    extent = np.array(extent_of(block))
    moved = affine @ np.diag([*extent.astype(float), 1.0])
    moved[:3, 3] += affine[:3, :3] @ ((extent - 1) / 2)
    return tuple(float(s * n) for s, n in zip(spacing_mm, extent, strict=True)), moved


def block_fractions(index: UInt8[np.ndarray, "x y z"], n_tissues: int, block: Block) -> Shaped[np.ndarray, "t u v w"]:
    """Share of each tissue in blocks of voxels, in the steps of `as_fractions`.

    Blocks that stick out at the far end count what is missing as background.

    Args:
        index: 0 for background, 1 + t for tissue t.
    """
    extent = extent_of(block)
    padded = _padded(index, extent)
    per_block = prod(extent)
    # multiples of 1/128 hold the shares of blocks of 1, 2, 4 ... 128 voxels exactly
    exact = 2**7 % per_block == 0
    shape = tuple(n // b for n, b in zip(padded.shape, extent, strict=True))
    counts = np.zeros((n_tissues, *shape), dtype=np.uint8 if exact else np.uint16)
    for offset in product(*(range(b) for b in extent)):
        part = padded[tuple(slice(start, None, b) for start, b in zip(offset, extent, strict=True))]
        for t in range(n_tissues):
            counts[t] += part == 1 + t
    if exact:
        counts *= np.uint8(2**7 // per_block)
        return counts
    # slice by slice: the float copy of a whole volume would be the largest array here
    for x in range(shape[0]):
        counts[:, x] = quantise(counts[:, x] / per_block, np.uint16)
    return counts


def block_mean(volume: Float[np.ndarray, "x y z"], block: Block) -> Float[np.ndarray, "u v w"]:
    """Mean of each block; what sticks out at the far end is background, 0."""
    extent = extent_of(block)
    padded = _padded(volume, extent)
    split = [n for size, b in zip(padded.shape, extent, strict=True) for n in (size // b, b)]
    mean: Float[np.ndarray, "u v w"] = padded.reshape(split).mean(axis=(1, 3, 5))
    return mean


def _padded(volume: Shaped[np.ndarray, "x y z"], extent: tuple[int, int, int]) -> Shaped[np.ndarray, "u v w"]:
    missing = [(0, -n % b) for n, b in zip(volume.shape, extent, strict=True)]
    return np.pad(volume, missing) if any(after for _, after in missing) else volume
