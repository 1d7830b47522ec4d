"""Noise of the images, and the log-density of an image given the noise-free signal."""

from collections.abc import Sequence
from math import log, pi
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.distributions import AnyDistribution, require_positive
from qsim.kspace.magnitude_likelihood import magnitude_log_density
from qsim.values import value

# mean of A in white matter, Table 1 of sabidussi2021: the reference signal of every SNR in this project [1]
REFERENCE_SIGNAL = 0.65
# coils whose likelihoods and bounds are tested
MOST_COILS = 128


def snr_of(sigma: float) -> float:
    """SNR = 0.65 / sigma."""
    return REFERENCE_SIGNAL / sigma


def sigma_of(snr: float) -> float:
    """sigma = 0.65 / SNR."""
    return REFERENCE_SIGNAL / snr


@runtime_checkable
class Noise(Protocol):
    """A noise of one standard deviation sigma per real channel and sample."""

    @property
    def sigma(self) -> AnyDistribution:
        """Distribution of sigma over samples [units of A]."""
        ...

    @property
    def channels(self) -> int:
        """Independent standard normals per image voxel."""
        ...

    @property
    def signed(self) -> bool:
        """Whether it expects the signal with its sign."""
        ...

    def add(
        self, signal: Float[Tensor, "*s"], sigma: Float[Tensor, "*ones"], normals: Sequence[Float[Tensor, "*s"]]
    ) -> Float[Tensor, "*s"]:
        """Noisy images, written into the memory of the first of the `channels` tensors of standard normals.

        Args:
            signal: coherent signal, before any modulus [units of A].
            sigma: noise SD, broadcastable [units of A].
            normals: independent standard normals, one tensor per channel; overwritten.
        """
        ...

    def log_density(
        self, images: Float[Tensor, "*s"], signal: Float[Tensor, "*s"], sigma: float | Float[Tensor, "*ones"]
    ) -> Float[Tensor, "*s"]:
        """log p(image | signal, sigma), per voxel and image."""
        ...


def _gaussian_log_density(
    images: Float[Tensor, "*s"], signal: Float[Tensor, "*s"], sigma: float | Float[Tensor, "*ones"]
) -> Float[Tensor, "*s"]:
    """log p = -(m - s)^2 / (2 sigma^2) - log sigma - log(2 pi) / 2."""
    sigma = torch.as_tensor(sigma, dtype=images.dtype, device=images.device)
    return -0.5 * ((images - signal) / sigma) ** 2 - torch.log(sigma) - 0.5 * log(2 * pi)


@value
class GaussianNoise:
    """Real Gaussian noise added after the modulus, as in sabidussi2021: samples may be negative.

    Attributes:
        sigma: standard deviation over samples [units of A].
    Source: sabidussi2021 section 4.2, Eq. 1.
    """

    kind: Literal["gaussian"] = "gaussian"
    sigma: AnyDistribution

    def __post_init__(self) -> None:
        require_positive(self.sigma, "sigma")

    @property
    def channels(self) -> int:
        return 1

    @property
    def signed(self) -> bool:
        return False

    def add(
        self, signal: Float[Tensor, "*s"], sigma: Float[Tensor, "*ones"], normals: Sequence[Float[Tensor, "*s"]]
    ) -> Float[Tensor, "*s"]:
        """m = |s| + sigma z."""
        return torch.addcmul(signal.abs(), normals[0], sigma, out=normals[0])

    def log_density(
        self, images: Float[Tensor, "*s"], signal: Float[Tensor, "*s"], sigma: float | Float[Tensor, "*ones"]
    ) -> Float[Tensor, "*s"]:
        return _gaussian_log_density(images, signal.abs(), sigma)


@value
class SignedNoise:
    """Gaussian noise on the signed, phase-corrected signal.

    Attributes:
        sigma: standard deviation over samples [units of A].
    """

    kind: Literal["signed"] = "signed"
    sigma: AnyDistribution

    def __post_init__(self) -> None:
        require_positive(self.sigma, "sigma")

    @property
    def channels(self) -> int:
        return 1

    @property
    def signed(self) -> bool:
        return True

    def add(
        self, signal: Float[Tensor, "*s"], sigma: Float[Tensor, "*ones"], normals: Sequence[Float[Tensor, "*s"]]
    ) -> Float[Tensor, "*s"]:
        """m = s + sigma z."""
        return torch.addcmul(signal, normals[0], sigma, out=normals[0])

    def log_density(
        self, images: Float[Tensor, "*s"], signal: Float[Tensor, "*s"], sigma: float | Float[Tensor, "*ones"]
    ) -> Float[Tensor, "*s"]:
        return _gaussian_log_density(images, signal, sigma)


@value
class RicianNoise:
    """Magnitude of complex Gaussian noise on one coil or a SENSE-like combination.

    Attributes:
        sigma: standard deviation of the real and of the imaginary channel over samples [units of A].
    Source: Gudbjartsson and Patz 1995, doi:10.1002/mrm.1910340618.
    """

    kind: Literal["rician"] = "rician"
    sigma: AnyDistribution

    def __post_init__(self) -> None:
        require_positive(self.sigma, "sigma")

    @property
    def channels(self) -> int:
        return 2

    @property
    def signed(self) -> bool:
        return False

    def add(
        self, signal: Float[Tensor, "*s"], sigma: Float[Tensor, "*ones"], normals: Sequence[Float[Tensor, "*s"]]
    ) -> Float[Tensor, "*s"]:
        """m = |s + sigma (z1 + i z2)|."""
        real, imaginary = normals
        real.mul_(sigma).add_(signal)
        imaginary.mul_(sigma)
        return torch.hypot(real, imaginary, out=real)

    def log_density(
        self, images: Float[Tensor, "*s"], signal: Float[Tensor, "*s"], sigma: float | Float[Tensor, "*ones"]
    ) -> Float[Tensor, "*s"]:
        """log p = log(m / sigma^2) - (m^2 + s^2) / (2 sigma^2) + log I0(m s / sigma^2); minus infinity for m < 0."""
        return magnitude_log_density(images, signal, sigma)


@value
class NoncentralChiNoise:
    """Root of the sum of squares of the magnitudes of several coils, each with complex Gaussian noise.

    Attributes:
        sigma: standard deviation of the real and of the imaginary channel of a coil over samples [units of A].
        coils: how many, with uncorrelated noise of one sigma.
    Assumes: the signal is the root of the sum of squares of the coils' own; how it is spread over them does not matter.
    Source: Constantinides et al. 1997, doi:10.1002/mrm.1910380524.
    """

    kind: Literal["noncentral_chi"] = "noncentral_chi"
    sigma: AnyDistribution
    coils: int

    def __post_init__(self) -> None:
        require_positive(self.sigma, "sigma")
        if not 1 <= self.coils <= MOST_COILS:
            raise ValueError(f"coils must lie between 1 and {MOST_COILS}, got {self.coils}")

    @property
    def channels(self) -> int:
        return 2 * self.coils

    @property
    def signed(self) -> bool:
        return False

    def add(
        self, signal: Float[Tensor, "*s"], sigma: Float[Tensor, "*ones"], normals: Sequence[Float[Tensor, "*s"]]
    ) -> Float[Tensor, "*s"]:
        """m = sqrt((s + sigma z1)^2 + sum_k (sigma z_k)^2)."""
        first, *others = normals
        first.mul_(sigma).add_(signal).square_()
        for channel in others:
            first.add_(channel.mul_(sigma).square_())
        return first.sqrt_()

    def log_density(
        self, images: Float[Tensor, "*s"], signal: Float[Tensor, "*s"], sigma: float | Float[Tensor, "*ones"]
    ) -> Float[Tensor, "*s"]:
        """The first formula of `magnitude`; minus infinity for m < 0."""
        return magnitude_log_density(images, signal, sigma, self.coils)


NOISES = (GaussianNoise, SignedNoise, RicianNoise, NoncentralChiNoise)
AnyNoise = GaussianNoise | SignedNoise | RicianNoise | NoncentralChiNoise


def coils_of(noise: Noise) -> int:
    """Coils whose root of sum of squares an image is, for likelihoods and bounds; 0: real Gaussian noise.

    Each coil has a real and an imaginary channel.
    """
    return noise.channels // 2
