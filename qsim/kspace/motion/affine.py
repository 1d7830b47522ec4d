"""Deformations that are no rotation: an image resampled by splines.

    m'(r') = m(r),    r' - c = M (r - c)

The content moves and keeps its intensity: tissue that is compressed is not brighter, as a proton density per volume
would be. Splines of order 3 damp what is near Nyquist; a rotation needs none (`rigid.py`). The image is one period,
as it is there. Runs on the CPU wherever the image is.
Source: Thevenaz, Blu and Unser 2000, doi:10.1109/42.875199.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor


class Splines:
    """An image that is resampled several times; its spline coefficients are computed once."""

    def __init__(self, values: Complex[Tensor, "c *space"], order: Literal[3, 5] = 3) -> None:
        from scipy.ndimage import spline_filter  # type: ignore[attr-defined]  # slow to import

        self._like = values
        self._order = order
        given = values.detach().cpu().numpy()
        self._channels = [
            [spline_filter(part, order=order, output=np.float64, mode="grid-wrap") for part in (each.real, each.imag)]
            for each in given
        ]

    def moved(self, matrix: Float[np.ndarray, "d d"]) -> Complex[Tensor, "c *space"]:
        """The image with its content moved about the centre voxel.

        Raises: ValueError if the matrix cannot be inverted or mirrors the image.
        """
        from scipy.ndimage import affine_transform  # type: ignore[attr-defined]

        if np.linalg.det(matrix) <= 0:
            raise ValueError(f"poses: {matrix.tolist()} mirrors or flattens the image")
        centre = np.array([n // 2 for n in self._like.shape[1:]])
        back = np.linalg.inv(matrix)
        offset = centre - back @ centre
        channels = [
            [
                affine_transform(part, back, offset, order=self._order, mode="grid-wrap", prefilter=False)
                for part in channel
            ]
            for channel in self._channels
        ]
        moved = np.stack([real + 1j * imaginary for real, imaginary in channels])
        return torch.from_numpy(moved).to(device=self._like.device, dtype=self._like.dtype)
