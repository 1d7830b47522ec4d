"""Which head of uncertainty answers to which artefact.

Both functions have rows of sources and columns of artefacts: entry (i, j) is what the head of source i does on images
of artefact j. The diagonal is each head on its own artefact.
"""

from math import nan
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from qsim.errors import InputError


def leakage(
    mean: Float[np.ndarray, "i s"], clean: Float[np.ndarray, "i s"], kind: Int[np.ndarray, " i"]
) -> Float[np.ndarray, "s artefact"]:
    """Rise of every head on every artefact, in SD of that head between clean images [1].

        (i, j) = mean over images of artefact j of (m_i corrupted - m_i of its clean twin) / SD over clean images of m_i

    The SD (ddof 1) is what differences of anatomy do to a head; a clean twin that stands in several rows counts once.

    Args:
        mean: mean variance of each source on corrupted images; sources in the order of their artefacts, without the
            task [1].
        clean: the same on the clean twin of each [1].
        kind: artefact of each image, 1 for the first source's as in `View.source`, up to s; 0: no artefact, its row
            counts for the SD only.
    Returns: NaN in the column of an artefact without images, and in the row of a head that is the same on all clean
        images.
    Raises: InputError if the shapes do not match, a number is not finite, a kind is unknown, or there are fewer than
        two different clean images.
    """
    if mean.shape != clean.shape or kind.shape != mean.shape[:1]:
        raise InputError(f"clean: shape {clean.shape}, kind: {kind.shape}, mean: {mean.shape}; give one row per image")
    if not (np.all(np.isfinite(mean)) and np.all(np.isfinite(clean))):
        raise InputError("mean: NaN or infinity in the mean variances; leave such images out")
    sources = mean.shape[1]
    if np.any((kind < 0) | (kind > sources)):
        raise InputError(f"kind: from 0 (clean) to {sources} (the last source), got {sorted({*kind.tolist()})}")
    different = np.unique(clean, axis=0)
    if len(different) < 2:
        raise InputError(f"clean: {len(different)} different images; an SD needs at least 2")
    sd = different.std(axis=0, ddof=1, dtype=np.float64)
    # of equal numbers the SD may come out as rounding error
    sd[np.ptp(different, axis=0) == 0] = nan
    found = np.full((sources, sources), nan)
    for j in range(sources):
        of = kind == j + 1
        if np.any(of):
            found[:, j] = (mean[of] - clean[of]).mean(axis=0, dtype=np.float64) / sd
    return found


def diagonal_leads(
    matrix: Float[np.ndarray, "s artefact"], of: Literal["source", "artefact"] = "source"
) -> Bool[np.ndarray, " s"]:
    """Whether the diagonal is strictly the largest of its row, or of its column.

    Args:
        matrix: of `leakage`; NaN off the diagonal do not count, a NaN diagonal never leads.
        of: "source": row by row, does a head answer to its own artefact most? "artefact": column by column, which head
            rises most on an image of that artefact, its own one? The latter is how `qsim segment` names a cause.
    Raises: InputError if the matrix is not square.
    """
    if matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"matrix: shape {matrix.shape}; give as many artefacts as sources")
    rows = matrix if of == "source" else matrix.T
    others = np.where(np.eye(len(rows), dtype=bool) | np.isnan(rows), -np.inf, rows)
    return np.asarray(np.diagonal(rows) > others.max(axis=1))
