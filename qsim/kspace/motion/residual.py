"""The shift that is left between two images: what moved on average is seen as a translation of the whole.

    J(d) = Re sum_k F{|after|}(k) conj(F{|before|}(k)) exp(2 pi i k . d / N),    |k| at most 8 on each axis

The d of the largest J makes `before`, moved by d, the least-squares fit of `after` among what is coarse in both. Only
the centre of k-space is computed, by short sums; the place between the samples comes from Newton's steps.
Source: Guizar-Sicairos, Thurman and Fienup 2008, doi:10.1364/OL.33.000156 (registration by small sums of the
transform near a peak).
"""

from math import pi

import numpy as np
import torch
from jaxtyping import Complex
from torch import Tensor

# k on either side of the centre: finer ones hold ghosts and noise more than the object
_K = 8
_STEPS = 20


def residual_shift(before: Complex[Tensor, "c *space"], after: Complex[Tensor, "c *space"]) -> tuple[float, ...]:
    """Translation that takes the magnitude of one image to that of another [voxels].

    Each component lies within half the field of view; 0 along axes of one or two voxels, and if an image is empty.

    Raises: ValueError if the images differ in shape.
    """
    if before.shape != after.shape:
        raise ValueError(f"after: {tuple(after.shape)} must have the shape of before, {tuple(before.shape)}")
    space = tuple(before.shape[1:])
    cross = (_centre(after) * _centre(before).conj()).sum(0).cpu().numpy().astype(np.complex128)
    # the constant part says nothing about a shift
    cross[tuple(n // 2 for n in cross.shape)] = 0
    largest = np.abs(cross).max()
    if not largest > 0:
        return (0.0,) * len(space)
    # [radians per voxel]
    rates = np.stack(np.meshgrid(*(2 * pi * _near(n) / n for n in space), indexing="ij"), -1)
    found = _newton(cross.ravel() / largest, rates.reshape(-1, len(space)), _coarse(cross, space))
    return tuple(float(d) for d in found)


def _near(n: int) -> np.ndarray:
    """k near the centre, the same on both sides."""
    reach = min(_K, (n - 1) // 2)
    return np.arange(-reach, reach + 1)


def _centre(images: Tensor) -> Tensor:
    """Spectra of the magnitudes near k = 0."""
    values = images.abs()
    for axis in range(images.ndim - 1, 0, -1):
        n = images.shape[axis]
        angle = (-2 * pi / n) * np.outer(np.arange(n), _near(n))
        waves = torch.from_numpy(np.exp(1j * angle)).to(device=images.device, dtype=images.dtype)
        if not values.is_complex():
            values = torch.complex(values @ waves.real, values @ waves.imag)
        else:
            values = (values.movedim(axis, -1) @ waves).movedim(-1, axis)
    return values


def _coarse(cross: np.ndarray, space: tuple[int, ...]) -> np.ndarray:
    """The largest J on a grid of four points per period of its finest wave."""
    shape = [1 if n == 1 else 4 * (n // 2) for n in cross.shape]
    padded = np.zeros(shape, dtype=np.complex128)
    padded[np.ix_(*(np.arange(n) - n // 2 for n in cross.shape))] = cross
    place = np.unravel_index(int(np.argmax(np.fft.ifftn(padded).real)), shape)
    return np.array([(p - m if 2 * p >= m else p) * n / m for p, m, n in zip(place, shape, space, strict=True)])


def _newton(cross: np.ndarray, rates: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Uphill from a place near the top."""
    found = start.astype(np.float64)
    moving = np.flatnonzero(np.abs(rates).max(0) > 0)
    rates = rates[:, moving]
    for _ in range(_STEPS):
        terms = cross * np.exp(1j * (rates @ found[moving]))
        slope = -(terms.imag @ rates)
        bend = -(rates.T * terms.real) @ rates
        size, way = np.linalg.eigh(bend)
        # where it bends upwards a step would go down: turned round
        step = way @ ((way.T @ slope) / np.maximum(np.abs(size), 1e-12 * np.abs(size).max() + 1e-300))
        found[moving] += step
        if np.abs(step).max(initial=0) < 1e-9:
            break
    return found
