"""The MNI152 average brain that nilearn ships inside its package."""

from functools import lru_cache
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped

from phantoms.base import (
    Slab,
    Split,
    VolumePhantom,
    check_slice_axis,
    quantise,
    say_slabs,
    slice_first,
    split_slabs,
    tissue_extent,
)
from qsim.errors import InputError
from qsim.values import value

TISSUES = ("csf", "gm", "wm")
# nilearn's load_mni152_brain_mask: the skull-stripped T1 template above this share of its maximum [1]
_BRAIN = 0.2
# index to MNI152 world coordinates of the three files [mm]
_AFFINE = np.array([[1.0, 0, 0, -98], [0, 1, 0, -134], [0, 0, 1, -72], [0, 0, 0, 1]])


@value
class MNI:
    """Grey and white matter maps of MNI152 (ICBM 2009a, symmetric, 1 mm) inside its brain mask; the rest of it is CSF.

    One subject, split into slabs along the slice axis: test is the central `test_share` of the brain (rounded to the
    parity of its extent), train is what lies on both sides, `gap` slices away. The central slab holds cortex, white
    matter, deep grey matter and ventricles along each axis. The template is symmetric, left to right: a slab off
    the centre would have its mirror image in the training data; the central one has not.
    Neighbouring slices are alike, and both splits show the same (average) brain: a test on another subject is
    harder than this one.

    The maps are the average of 152 persons: their borders are blurred by what differs between persons. `sharpen`
    raises the fractions to a power and normalises them to their former sum,

        f_t <- f_t^s / sum_u f_u^s,

    which moves mixed voxels to their majority tissue and leaves the majority, thus the labels, as it was.

    Attributes:
        sharpen: the power s [1]; 1 keeps the templates, in which a largest fraction of 0.9 or more is reached by 12 %
            of the CSF, 24 % of the GM and 48 % of the WM voxels only. With 4 these are 64, 83 and 83 %, as in one
            person's brain at 1 mm: 59 to 61, 77 to 81 and 84 to 85 % in three BrainWeb brains (0.5 mm labels averaged
            over 2 x 2 x 2). Volumes move from 216, 996, 670 ml (CSF, GM, WM) to 161, 1082, 640 ml.
        test_share: share of the brain's extent along the slice axis that is the test slab [1].
        gap: slices left out on either side of it.
    Source: Fonov et al. 2011, doi:10.1016/j.neuroimage.2010.07.033; nilearn.datasets.load_mni152_gm_template,
        load_mni152_wm_template, load_mni152_brain_mask (threshold 0.2).
    """

    kind: Literal["mni"] = "mni"
    sharpen: float = 4.0
    test_share: float = 0.2
    gap: int = 5

    def __post_init__(self) -> None:
        if not (isfinite(self.sharpen) and self.sharpen >= 1):
            raise ValueError(f"sharpen must be finite and at least 1 (1 keeps the templates), got {self.sharpen}")
        if not 0 < self.test_share < 1:
            raise ValueError(f"test_share must lie between 0 and 1, got {self.test_share}")
        if self.gap < 0:
            raise ValueError(f"gap must be at least 0 slices, got {self.gap}")

    def slabs(self, slice_axis: int) -> dict[Split, tuple[Slab, ...]]:
        """First slice and the one after the last of every slab, by split."""
        check_slice_axis(slice_axis, 3)
        volume = _volume(float(self.sharpen), slice_axis)
        return split_slabs(
            tissue_extent(volume, slice_axis), volume.shape[1 + slice_axis], float(self.test_share), self.gap
        )

    def describe(self, slice_axis: int) -> str:
        """What this is and how train and test are kept apart, for reports."""
        return (
            "MNI152 (ICBM 2009a symmetric, 1 mm) GM and WM maps, CSF as the rest of the brain mask, fractions "
            f"sharpened with power {self.sharpen:g}; {say_slabs(self.slabs(slice_axis), slice_axis, self.gap)}"
        )

    def load(self, split: Split, slice_axis: int) -> VolumePhantom:
        """Read one split.

        Raises: InputError if nilearn's files are missing, or the axis is none of 0, 1, 2.
        """
        return _load(self, split, slice_axis)


@lru_cache(maxsize=4)
def _load(spec: MNI, split: Split, slice_axis: int) -> VolumePhantom:
    slabs = spec.slabs(slice_axis)
    return VolumePhantom(
        tissues=TISSUES,
        spacing_mm=(1.0, 1.0, 1.0),
        volumes=(_volume(float(spec.sharpen), slice_axis),),
        slabs=(slabs[split],),
        slice_axis=slice_axis,
        ids=(0,),
        description=spec.describe(slice_axis),
        affine=_AFFINE,
    )


@lru_cache(maxsize=2)
def _volume(sharpen: float, slice_axis: int) -> Shaped[np.ndarray, "t x y z"]:
    """Fractions, laid out for one slice axis; train and test share it."""
    t1, gm, wm = (_template(name) for name in ("t1", "gm", "wm"))
    brain = t1 > _BRAIN
    gm, wm = gm[brain], wm[brain]
    fractions = np.stack([1 - gm - wm, gm, wm])
    # gm + wm is at most 1 in the files (8 bits each); rounding of float32 alone can leave -1e-7 for CSF
    np.maximum(fractions, 0, out=fractions)
    volume = np.zeros((len(TISSUES), *brain.shape), dtype=np.uint16)
    volume[:, brain] = quantise(sharpened(fractions, sharpen), np.uint16)
    return slice_first(volume, slice_axis)


def sharpened(fractions: Float[np.ndarray, "t *space"], power: float) -> Float[np.ndarray, "t *space"]:
    """f^s, normalised to the former sum [1]."""
    if power == 1:
        return fractions
    total = fractions.sum(axis=0)
    # against the largest first: small numbers to a high power do not underflow all together
    largest = fractions.max(axis=0)
    raised = (fractions / np.where(largest > 0, largest, 1)) ** np.float32(power)
    norm = raised.sum(axis=0)
    return raised * (total / np.where(norm > 0, norm, 1))


def _template(name: str) -> Float[np.ndarray, "x y z"]:
    """Read one of the maps nilearn ships, scaled to a maximum of 1 as nilearn's loaders do.

    The files are read where nilearn keeps them: importing nilearn itself takes ten times as long as reading them.
    """
    import nibabel
    from nibabel.spatialimages import SpatialImage

    package = find_spec("nilearn")
    if package is None or package.origin is None:
        raise InputError("phantom.kind: mni reads maps that nilearn ships, which is not installed; pip install nilearn")
    path = Path(package.origin).parent / "datasets" / "data" / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    if not path.is_file():
        raise InputError(
            f"phantom.kind: mni reads {path.name}, which this nilearn does not ship; pip install 'nilearn>=0.11'"
        )
    image = nibabel.load(path)
    assert isinstance(image, SpatialImage)
    data = np.asarray(image.dataobj).astype(np.float32)
    return data / data.max()
