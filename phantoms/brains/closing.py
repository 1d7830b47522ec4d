"""The inside of a brain of which only grey and white matter (and vessels) are known."""

import numpy as np
from jaxtyping import Bool

# closes sulci and fissures up to twice as wide; gives 248 to 279 ml of CSF in three BrainWeb brains [mm]
_CLOSING_MM = 6.0


def closed_brain(brain: Bool[np.ndarray, "x y z"], spacing_mm: tuple[float, ...]) -> Bool[np.ndarray, "x y z"]:
    """Morphological closing of the brain by about 6 mm, with enclosed holes filled.

    Works on voxels of about 1 mm (any of the finer ones counts), where the ball is made of alternating steps of a
    cross and a cube.

    Args:
        brain: where grey or white matter is.
        spacing_mm: voxel size [mm].
    """
    from scipy import ndimage

    factors = tuple(max(1, round(1 / s)) for s in spacing_mm)
    steps = max(1, round(_CLOSING_MM / min(s * f for s, f in zip(spacing_mm, factors, strict=True))))
    # background all around, wide enough that growing does not meet the border
    coarse = np.pad(_any_of_blocks(brain, factors), steps + 1)
    closed = ~_grown(~_grown(coarse, steps), steps)
    components, _ = ndimage.label(~closed)  # type: ignore[attr-defined]
    closed = components != components[0, 0, 0]

    inner = closed[(slice(steps + 1, -steps - 1),) * 3]
    for axis, factor in enumerate(factors):
        inner = np.repeat(inner, factor, axis=axis)
    return inner[tuple(slice(n) for n in brain.shape)]


def _any_of_blocks(mask: Bool[np.ndarray, "x y z"], factors: tuple[int, ...]) -> Bool[np.ndarray, "u v w"]:
    padded = np.pad(mask, [(0, -n % f) for n, f in zip(mask.shape, factors, strict=True)])
    for axis, factor in enumerate(factors):
        from_end = np.moveaxis(padded, axis, 0)
        any_of = from_end[::factor].copy()
        for offset in range(1, factor):
            any_of |= from_end[offset::factor]
        padded = np.moveaxis(any_of, 0, axis)
    return padded


def _grown(mask: Bool[np.ndarray, "x y z"], steps: int) -> Bool[np.ndarray, "x y z"]:
    """Dilate by `steps` voxels: cross and cube in turn, nearer to a ball than either."""
    for step in range(steps):
        source = mask if step % 2 == 0 else None
        mask = mask.copy()
        for axis in range(3):
            # cross: every axis grows the mask of before; cube: each axis grows what the last one made
            grown = np.moveaxis(mask if source is None else source, axis, 0)
            if source is None:
                grown = grown.copy()
            out = np.moveaxis(mask, axis, 0)
            out[1:] |= grown[:-1]
            out[:-1] |= grown[1:]
    return mask
