"""Independent references for k-space: sums written out, in complex128, without any FFT."""

from math import pi, sqrt

import numpy as np


def dft_matrix(n: int) -> np.ndarray:
    """Centred orthonormal transform: exp(-2 pi i k (r - c) / n) / sqrt(n), k and r - c from -(n // 2)."""
    centred = np.arange(n) - n // 2
    return np.exp(-2j * pi * np.outer(centred, centred) / n) / sqrt(n)


def dft(images: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    for axis in axes:
        images = np.moveaxis(np.tensordot(dft_matrix(images.shape[axis]), images, (1, axis)), 0, axis)
    return images


def inverse_dft(kspace: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    for axis in axes:
        kspace = np.moveaxis(np.tensordot(dft_matrix(kspace.shape[axis]).conj().T, kspace, (1, axis)), 0, axis)
    return kspace


def random_images(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)
