"""The one number that an image is divided by before a network of image quality sees it.

Scanners count in units of their own, so a network is shown images whose tissue lies about 1. The 99th percentile of the
object is that of the brightest tissue whatever the field of view: voxels of air, which are below a tenth of the largest
voxel, do not count, and neither do the few brightest voxels, which may be a spike or a vessel.
"""

import numpy as np
from jaxtyping import Float
from torch import Tensor

from qsim.errors import InputError

# voxels above this part of the largest one are the object [1]
_OBJECT = 0.1
_PERCENTILE = 99.0


def intensity_scale(image: Float[Tensor, "*space"] | Float[np.ndarray, "*space"]) -> float:
    """The 99th percentile of the voxels above a tenth of the largest voxel [units of the image].

    Raises: InputError if no voxel is above 0, or one is NaN or infinite.
    """
    values = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    top = float(values.max()) if values.size else 0.0
    # NaN spreads into the maximum; minus infinity only into the minimum
    if not (np.isfinite(top) and np.isfinite(values.min(initial=0.0))):
        raise InputError("image: holds NaN or infinity; mend these voxels first")
    if top <= 0:
        raise InputError("image: holds no voxel above 0, so it has no brightness to be divided by; give a magnitude")
    # in double precision, so that a tensor and an array of any kind give one number
    inside = values[values > _OBJECT * top].astype(np.float64)
    return float(np.percentile(inside, _PERCENTILE))
