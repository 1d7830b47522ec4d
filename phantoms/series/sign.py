"""Whether the sign of real images is that of the magnetisation, or their negative values are noise around magnitudes.

Noise below zero and inverted magnetisation differ in the share of the energy of the object that is negative:

    E = sum min(s, 0)^2 / sum s^2                 over the images of the bright voxels of a series

Bright is what reaches, in some image, 0.3 of the 99th percentile of the brightest images of all voxels. Signed
inversion recoveries have E of 0.5 and more, magnitudes with noise added afterwards 0.05 at SNR 5; what lies between
must be told.
"""

from collections.abc import Sequence

import numpy as np

from phantoms.series.base import Series
from qsim.errors import InputError

# voxels under this share of the brightest say nothing of the sign
_BRIGHT = 0.3
# E up to the first is noise, from the second on inverted magnetisation
_NOISE, _INVERTED = 0.05, 0.3
# voxels of a slab
_VOXELS = 1 << 17

# how `qsim map` is told: signed, and not
OPTION = ("--signed yes", "--signed no")


def find_sign(
    repeats: Sequence[Series], given: bool | None = None, words: tuple[str, str] = OPTION
) -> tuple[bool, tuple[str, ...]]:
    """Whether series of one protocol are signed, for signal models that may be either.

    Args:
        repeats: of which that with the largest E counts.
        given: as the user says; None: as the names of the files say (`part-real`), else by E.
        words: how the user says that they are, and that they are not.
    Returns: whether they are, and a note on what was done with negative values unless the user said it.
    Raises: InputError, starting with --signed, if E lies between noise and inversion.
    """
    if given is not None:
        return given, ()
    if not any(series.signed for series in repeats):
        return False, ()
    yes, no = words
    if all(series.files and all("_part-real_" in file.name for file in series.files) for series in repeats):
        return True, (f"real parts by their names (part-real): the sign is kept ({no}: negative values are noise)",)
    share = max(negative_energy(series) for series in repeats)
    told = f"negative values hold {100 * share:.2g} % of the energy of the object"
    if share >= _INVERTED:
        return True, (f"{told}: inverted magnetisation, the sign is kept ({no}: they are noise)",)
    if share > _NOISE:
        raise InputError(
            f"--signed: missing; {told}: write {yes} if the sign is that of the magnetisation, "
            f"{no} for magnitudes with noise around zero"
        )
    note = f"{told}: taken for noise around magnitudes ({yes} keeps the sign); rician gives no value in such voxels"
    return False, (note,)


def negative_energy(series: Series) -> float:
    """E of a series, 0 where it has no value; a slab of it at a time is in memory."""
    depth = max(1, _VOXELS // max(1, series.space[1] * series.space[2]))
    slabs = [(first, min(first + depth, series.space[0])) for first in range(0, series.space[0], depth)]
    top = np.concatenate([np.abs(_finite(series, *slab)).max(0) for slab in slabs])
    if not top.any():
        return 0.0
    bright = top > _BRIGHT * np.quantile(top[top > 0], 0.99)
    negative = total = 0.0
    for first, last in slabs:
        values = _finite(series, first, last)[:, bright[first:last]].astype(np.float64)
        negative += float(np.square(np.minimum(values, 0)).sum())
        total += float(np.square(values).sum())
    return negative / total


def _finite(series: Series, first: int, last: int) -> np.ndarray:
    """Slices of every image, 0 for what is not finite."""
    return np.nan_to_num(series.slab(first, last), copy=False, nan=0, posinf=0, neginf=0)
