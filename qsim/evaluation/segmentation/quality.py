"""Overlap of two segmentations, and the SNR and CNR of an image by its tissue masks.

SD are those of a sample (ddof 1). An SD of 0 gives an infinite ratio, and 0 / 0 NaN.
"""

from math import nan, pi, sqrt

import numpy as np
from jaxtyping import Bool, Float

from qsim.errors import InputError


def dice(a: Bool[np.ndarray, "*space"], b: Bool[np.ndarray, "*space"]) -> float:
    """Overlap 2 |a and b| / (|a| + |b|) [1].

    By convention 1 where both are empty (they agree), so 0 where just one is.

    Raises: InputError if the shapes differ.
    """
    _same_shape(a, b=b)
    both = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 2 * int(np.count_nonzero(a & b)) / both if both else 1.0


def grey_matter_snr(image: Float[np.ndarray, "*space"], gm: Bool[np.ndarray, "*space"]) -> float:
    """SNR of the paper: mean of the grey matter over its own SD [1].

    Contrast within the tissue and the bias field count as noise there, so that blur raises it: see `noise_snr`.

    Args:
        image: any unit.
        gm: grey matter.
    Raises: InputError if the shapes differ, or the mask has fewer than two voxels.
    Source: shaw2021 Eq. 10.
    """
    mean, sd = _moments(image, gm=gm)
    return _ratio(mean, sd)


def contrast_to_noise(
    image: Float[np.ndarray, "*space"], gm: Bool[np.ndarray, "*space"], wm: Bool[np.ndarray, "*space"]
) -> dict[str, float]:
    """CNR of grey against white matter [1], both forms that the paper sets equal; they are not.

    Returns: `pooled`: |mean_gm - mean_wm| / sqrt((var_gm + var_wm) / 2); `difference`: |SNR_gm - SNR_wm|, with the
        SNR of Eq. 10. They agree where the SD of both are the same.
    Raises: InputError if the shapes differ, or a mask has fewer than two voxels.
    Source: shaw2021 Eq. 11; its sigma_noise is not said further, "their standard deviations" of both tissues.
    """
    mean_gm, sd_gm = _moments(image, gm=gm)
    mean_wm, sd_wm = _moments(image, wm=wm)
    return {
        "pooled": _ratio(abs(mean_gm - mean_wm), sqrt((sd_gm**2 + sd_wm**2) / 2)),
        "difference": abs(_ratio(mean_gm, sd_gm) - _ratio(mean_wm, sd_wm)),
    }


def noise_snr(
    image: Float[np.ndarray, "*space"],
    gm: Bool[np.ndarray, "*space"],
    background: Bool[np.ndarray, "*space"],
    *,
    magnitude: bool = False,
) -> float:
    """Mean of the grey matter over the SD of the background [1], as quality work takes it today.

    NaN where the image has no background to measure: fewer than two voxels, or all alike (a skull-stripped image is
    0 there, which says nothing of its noise).

    Args:
        background: air.
        magnitude: the background is the modulus of complex noise, whose SD is sqrt(2 - pi / 2) = 0.655 of that of its
            real part; the latter is then what counts.
    Raises: InputError if the shapes differ, or the grey matter has fewer than two voxels.
    Source: NEMA MS 1-2008, method 4; Esteban et al. 2017, doi:10.1371/journal.pone.0184661 (SNRd).
    """
    mean, _ = _moments(image, gm=gm)
    _same_shape(image, background=background)
    air = image[background].astype(np.float64)
    if air.size < 2 or np.all(air == air[0]):
        return nan
    return mean / float(air.std(ddof=1)) * (sqrt(2 - pi / 2) if magnitude else 1.0)


def _moments(image: Float[np.ndarray, "*space"], **mask: Bool[np.ndarray, "*space"]) -> tuple[float, float]:
    ((name, inside),) = mask.items()
    _same_shape(image, **mask)
    values = image[inside].astype(np.float64)
    if values.size < 2:
        raise InputError(f"{name}: {values.size} voxels, an SD needs at least 2; give the mask of that tissue")
    return float(values.mean()), float(values.std(ddof=1))


def _ratio(a: float, b: float) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(a) / np.float64(b))


def _same_shape(a: np.ndarray, **other: np.ndarray) -> None:
    for name, b in other.items():
        if a.shape != b.shape:
            raise InputError(f"{name}: shape {b.shape}, the other array has {a.shape}; bring both to one grid")
