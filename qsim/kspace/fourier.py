"""The Fourier conventions of this project, stated here and nowhere else.

    K(k) = 1 / sqrt(N) sum_r m(r) exp(-2 pi i k . (r - c) / N),    c = N // 2 on every axis
    m(r) = 1 / sqrt(N) sum_k K(k) exp(+2 pi i k . (r - c) / N)

Centred: the origin of the image is voxel N // 2, k = 0 stands at sample N // 2, k runs from -(N // 2) to
(N - 1) // 2 [cycles per field of view]. Orthonormal: energy is the same on both sides (Parseval), and white noise of
one sigma in k-space is white noise of that sigma in the image. Any axes, even and odd sizes.

`to_kspace`, `to_image` and `magnitude` are differentiable; artefacts are not.

Measured k-space read from a file is brought to this order before anything else is done with it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor


def to_kspace(images: Complex[Tensor, "*s"], axes: Sequence[int]) -> Complex[Tensor, "*s"]:
    """Centred orthonormal transform of some axes of images.

    Raises: ValueError if the images are not complex, or an axis does not exist or is named twice.
    """
    chosen = checked_axes(images, axes)
    return torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(images, chosen), dim=chosen, norm="ortho"), chosen)


def to_image(kspace: Complex[Tensor, "*s"], axes: Sequence[int]) -> Complex[Tensor, "*s"]:
    """The inverse of `to_kspace`.

    Raises: ValueError if the data are not complex, or an axis does not exist or is named twice.
    """
    chosen = checked_axes(kspace, axes)
    return torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(kspace, chosen), dim=chosen, norm="ortho"), chosen)


def magnitude(images: Complex[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """|m|: what is looked at. The last step, and never the real part.

    Raises: ValueError if the images are not complex.
    """
    require_complex(images)
    if images.device.type == "cpu" and not images.requires_grad:
        # the same number to a rounding, several times as fast as torch's where the processor has wide vectors
        return torch.from_numpy(np.asarray(np.abs(images.resolve_conj().resolve_neg().numpy())))
    return images.abs()


def line_numbers(n: int) -> Int[Tensor, " n"]:
    """k of each sample of a centred axis of n samples: -(n // 2) to (n - 1) // 2 [cycles per field of view].

    Raises: ValueError for an empty axis.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return torch.arange(n) - n // 2


def require_complex(images: Tensor) -> None:
    """Refuse real images, empty axes and values that are not finite.

    Raises: ValueError, saying what came and what to do.
    """
    if not images.is_complex():
        raise ValueError(f"images must be complex, got {images.dtype}; call .to(torch.complex64) if they have no phase")
    if images.numel() == 0:
        raise ValueError(f"images must not have an empty axis, got shape {tuple(images.shape)}")
    # one sum instead of a test of every voxel: what is not finite stays so in it; huge values may overflow it
    if not bool(torch.isfinite(images.sum())) and not bool(torch.isfinite(images).all()):
        wrong = int((~torch.isfinite(images)).sum())
        raise ValueError(f"images must be finite, got NaN or infinity in {wrong} of {images.numel()} voxels")


def checked_axes(images: Tensor, axes: Sequence[int]) -> tuple[int, ...]:
    """Axes counted from the end, after a check of the images and of the axes.

    Raises: ValueError if the images are not complex, or an axis does not exist or is named twice.
    """
    require_complex(images)
    n = images.ndim
    if len(axes) == 0:
        raise ValueError("axes is empty; name at least one")
    for axis in axes:
        if not -n <= axis < n:
            raise ValueError(f"axes: axis {axis} does not exist in images of shape {tuple(images.shape)}")
    chosen = tuple(axis % n - n for axis in axes)
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"axes: {tuple(axes)} names an axis twice")
    return chosen
