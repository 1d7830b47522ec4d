"""SNR <-> sigma, with the definition in the name of every function.

    amplitude SNR = s / sigma                      in decibels 20 log10     one reference signal s
    power SNR     = mean |m|^2 / (2 sigma^2)       in decibels 10 log10     mean over all voxels given

sigma is the noise SD of the real and of the imaginary channel, so 2 sigma^2 is the power of complex noise. Images of
one constant magnitude s have a power SNR 3.01 dB under their amplitude SNR. An empty background counts in a power SNR:
the same object in a wider field of view has a lower one.

The linear SNR of this project, 0.65 / sigma, is in `qsim.kspace.noise` (`snr_of`, `sigma_of`).
"""

from math import log10, sqrt

import torch
from jaxtyping import Complex
from torch import Tensor

from qsim.kspace.fourier import require_complex

# of an SNR of images [dB]: sigma 1e10 times the signal, or 1e-10 of it
LARGEST_SNR_DB = 200.0
# of any ratio [dB]: its power still has a number
_LARGEST_DB = 3000.0


def to_decibels(power_ratio: float) -> float:
    """10 log10(ratio of powers) [dB].

    Raises: ValueError if it is not positive.
    """
    _require_positive("power_ratio", power_ratio)
    return 10 * log10(power_ratio)


def from_decibels(decibels: float) -> float:
    """Ratio of powers, 10^(dB / 10) [1].

    Raises: ValueError beyond 3000 dB of either sign.
    """
    _require_within("decibels", decibels, _LARGEST_DB)
    return float(10 ** (decibels / 10))


def amplitude_to_decibels(ratio: float) -> float:
    """20 log10(ratio of amplitudes) [dB].

    Raises: ValueError if it is not positive.
    """
    _require_positive("ratio", ratio)
    return 20 * log10(ratio)


def amplitude_from_decibels(decibels: float) -> float:
    """Ratio of amplitudes, 10^(dB / 20) [1].

    Raises: ValueError beyond 3000 dB of either sign.
    """
    _require_within("decibels", decibels, _LARGEST_DB)
    return float(10 ** (decibels / 20))


def amplitude_snr_db(signal: float, sigma: float) -> float:
    """20 log10(signal / sigma) [dB].

    Args:
        signal: reference [units of the images].
        sigma: noise SD per real channel [units of the images].
    """
    _require_positive("signal", signal)
    _require_positive("sigma", sigma)
    return amplitude_to_decibels(signal / sigma)


def sigma_of_amplitude_snr_db(signal: float, snr_db: float) -> float:
    """sigma = signal / 10^(dB / 20) [units of the images].

    Raises: ValueError beyond 200 dB of either sign, or if the signal is not positive.
    """
    _require_within("snr_db", snr_db, LARGEST_SNR_DB)
    _require_positive("signal", signal)
    return signal / amplitude_from_decibels(snr_db)


def mean_power(images: Complex[Tensor, "*s"]) -> float:
    """mean |m|^2 over all voxels; the same in k-space, whose transform is orthonormal [units of the images squared].

    Raises: ValueError if the images are not complex, not finite or empty.
    """
    require_complex(images)
    # summed in double precision, in which the squares of single precision neither overflow nor vanish
    root = float(torch.linalg.vector_norm(torch.view_as_real(images.resolve_conj()), dtype=torch.float64))
    return root**2 / images.numel()


def power_snr_db(images: Complex[Tensor, "*s"], sigma: float) -> float:
    """10 log10(mean |m|^2 / (2 sigma^2)) [dB].

    Args:
        images: without noise.
        sigma: noise SD per real channel [units of the images].
    """
    _require_positive("sigma", sigma)
    return to_decibels(mean_power(images) / (2 * sigma**2))


def sigma_of_power_snr_db(images: Complex[Tensor, "*s"], snr_db: float) -> float:
    """sigma = sqrt(mean |m|^2 / (2 10^(dB / 10))) [units of the images].

    Raises: ValueError beyond 200 dB of either sign, or if the images are 0 everywhere: no sigma gives them an SNR.
    """
    _require_within("snr_db", snr_db, LARGEST_SNR_DB)
    power = mean_power(images)
    if power == 0:
        raise ValueError("snr_db: images that are 0 everywhere have no SNR; give sigma, or leave empty images out")
    return sqrt(power / (2 * from_decibels(snr_db)))


def _require_within(name: str, decibels: float, largest: float) -> None:
    if not -largest <= decibels <= largest:
        raise ValueError(f"{name} must lie in [{-largest:g}, {largest:g}] dB, got {decibels:g}")


def _require_positive(name: str, number: float) -> None:
    if not 0 < number < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {number}")
