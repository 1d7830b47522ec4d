"""Volume of a segmented tissue, the spread of its voxels, and the paper's error bar.

Volumes are in mm^3, spreads in voxel^2 (variances of a voxel that counts 0 or 1, summed).
"""

from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from qsim.errors import InputError


def volume(inside: Bool[np.ndarray, "*space"] | Float[np.ndarray, "*space"], voxel_mm3: float) -> float:
    """Volume of a tissue [mm^3]: voxels of its mask, or the sum of its probabilities.

    Args:
        inside: mask (a label image == the tissue), or probability of the tissue [1].
        voxel_mm3: volume of a voxel [mm^3].
    Raises: InputError if a probability is not one, or the voxel has no volume.
    """
    _voxel(voxel_mm3)
    if inside.dtype == np.bool_:
        return int(np.count_nonzero(inside)) * voxel_mm3
    _probabilities(inside)
    return float(inside.sum(dtype=np.float64)) * voxel_mm3


def bernoulli_spread(probability: Float[np.ndarray, "*space"]) -> float:
    """S = sum p (1 - p): variance of the number of voxels, if they were right or wrong each on its own [voxel^2].

    They are not: errors of neighbours go together, so the variance of a volume is larger; `fit_volume_error` finds by
    how much on images whose truth is known.

    Args:
        probability: of the tissue [1].
    Raises: InputError if one is not a probability.
    """
    _probabilities(probability)
    p = probability.astype(np.float64)
    return float(np.sum(p * (1 - p)))


def relative_spread(probability: Float[np.ndarray, "*space"]) -> float:
    """u = sum p (1 - p) / sum p: the doubt 1 - p of a voxel of the tissue, on average; 0 where there is no tissue [1].

    Raises: InputError if one is not a probability.
    """
    return _per(bernoulli_spread(probability), probability)


def per_target(values: Float[np.ndarray, "*space"], probability: Float[np.ndarray, "*space"]) -> float:
    """sum v / sum p: a map per voxel of the tissue, so that air adds little; 0 where there is no tissue [that of v].

    Args:
        values: at least 0.
        probability: of the tissue [1].
    """
    return _per(float(values.sum(dtype=np.float64)), probability)


def _per(total: float, probability: Float[np.ndarray, "*space"]) -> float:
    voxels = float(probability.sum(dtype=np.float64))
    return total / voxels if voxels > 0 else 0.0


@dataclass(frozen=True, slots=True)
class VolumeError:
    """The paper's error bar of a volume.

    Attributes:
        sd: of the volume; 0 where `below_reference` [mm^3].
        excess: summed variance less that of the clean image; negative where `below_reference` [voxel^2].
        below_reference: the image is less uncertain than the clean one, so the paper's form has no error bar: the 0
            in `sd` is not a measured one.
    """

    sd: float
    excess: float
    below_reference: bool


def paper_volume_error(
    variance: Float[np.ndarray, "*space"],
    reference: float,
    voxel_mm3: float,
    *,
    per: Literal["image", "voxel"] = "image",
) -> VolumeError:
    """sigma_V = voxel_mm3 sqrt(sum of variances over the voxels - that of the clean image).

    As printed it takes voxels for independent and each certain voxel for uncertain (`entropic_variance`), so it holds
    the truth only by chance; `fit_volume_error` makes one that does.

    Args:
        variance: Eq. 8 of every voxel, all of one image or one region [1].
        reference: of the clean image: the sum over the same voxels [voxel^2], or
        per: "voxel": its mean per voxel [1], for images that have no clean twin.
        voxel_mm3: volume of a voxel [mm^3].
    Raises: InputError if a variance is negative or not finite, or the voxel has no volume.
    Source: shaw2021 section 7, below Eq. 8 ("the difference from the known uncertainty of a noise-free image": here
        of the variances, as those add).
    """
    _voxel(voxel_mm3)
    if not (np.all(np.isfinite(variance)) and np.all(variance >= 0)):
        raise InputError("variance: must be finite and at least 0; give `entropic_variance` of the entropy")
    if not (isfinite(reference) and reference >= 0):
        raise InputError(f"reference: must be finite and at least 0, got {reference:g}; give that of the clean image")
    of_clean = reference * variance.size if per == "voxel" else reference
    excess = float(variance.sum(dtype=np.float64)) - of_clean
    return VolumeError(voxel_mm3 * sqrt(max(excess, 0.0)), excess, excess < 0)


def _voxel(voxel_mm3: float) -> None:
    if not (isfinite(voxel_mm3) and voxel_mm3 > 0):
        raise InputError(f"voxel_mm3: must be finite and above 0, got {voxel_mm3:g}; it is the product of the spacings")


def _probabilities(given: Float[np.ndarray, "*space"]) -> None:
    # windows that overlap add up to 1 but for rounding
    if not np.all((given >= 0) & (given <= 1 + 1e-5)):
        raise InputError("probabilities: must lie from 0 to 1, without NaN; give the softmax of the logits")
