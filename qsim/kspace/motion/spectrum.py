"""How much each line of k-space counts: the energy that it holds of an image.

    w(k) = sum over coils and the readout of |K(k)|^2

Along the readout the sum is the same in the image (Parseval).

Without an image the energy of natural ones is taken, which falls with the square of the spatial frequency (Field 1987,
doi:10.1364/JOSAA.4.002379):

    w(k) = 1 / (1 + |k|^2)    k in cycles per field of view
"""

from math import frexp

import numpy as np
import torch
from jaxtyping import Float

from qsim.kspace.acquired import Acquired


def line_energies(acquired: Acquired, encoded: tuple[int, ...]) -> Float[np.ndarray, "n *lines"]:
    """Energy of each line of each image, in any unit, lines in the order of the FFT."""
    d = len(acquired.space)
    values = acquired.brought(kspace=encoded).values
    read = [2 + axis for axis in range(d) if axis not in encoded]
    real = torch.view_as_real(values)
    low, high = torch.aminmax(real)
    largest = max(-float(low), float(high))
    if largest > 0 and not 1e-12 < largest < 1e12:
        # squares must neither vanish nor overflow, whatever the unit of the images; a power of two rounds nothing
        real = torch.ldexp(real, torch.tensor(-frexp(largest)[1]))
    norms = torch.linalg.vector_norm(real, dim=[*read, 2 + d])
    return norms.double().square().sum(1).cpu().numpy()


def generic_energies(lines: tuple[int, ...]) -> Float[np.ndarray, "*lines"]:
    """Of natural images, lines in the order of the FFT."""
    squares = np.zeros(lines)
    for axis, n in enumerate(lines):
        k = np.fft.ifftshift(np.arange(n) - n // 2)
        squares += np.square(k).reshape([-1 if a == axis else 1 for a in range(len(lines))])
    return 1 / (1 + squares)
