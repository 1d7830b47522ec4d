"""One subject of a drawn cohort, without drawing the others."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from phantoms.base import VolumePhantom, slice_first

if TYPE_CHECKING:
    from phantoms.drawn.cohort import Cohort
    from phantoms.heart import Heart
    from phantoms.liver import Liver


def one_subject(spec: "Liver | Heart", subject: int, slice_axis: int) -> VolumePhantom:
    """Draw one subject as its split holds it: same voxels, same number, same regions.

    Raises: InputError if the axis does not exist, or a label map is at fault.
    """
    from phantoms.heart import Heart, HeartVolumes
    from phantoms.liver.spec import LiverVolumes

    if isinstance(spec, Heart):
        cohort = spec.cohort()
        hearts = _alone(cohort, subject).load("test", slice_axis, HeartVolumes)
        return replace(hearts, description=cohort.describe())
    rois: list[Bool[np.ndarray, "y x z"]] = []

    def render(number: int) -> Float[np.ndarray, "t y x z"]:
        shares, roi = spec.drawn(number)
        rois.append(slice_first(roi[None], slice_axis)[0])
        return shares

    livers = replace(_alone(spec.cohort, subject), render=render).load("test", slice_axis, LiverVolumes)
    left_out = spec.lesions_left_out(subject)
    return replace(
        livers,
        description=spec.describe() + (f"; {left_out} lesions found no room and were left out" if left_out else ""),
        fibrotic=tuple(i for i in spec.fibrotic if i == subject),
        rois=tuple(rois),
    )


def _alone(cohort: "Cohort", subject: int) -> "Cohort":
    """A cohort whose test split is this subject: what a subject is does not depend on how many there are."""
    return replace(cohort, subjects=subject + 1, test_subjects=1)
