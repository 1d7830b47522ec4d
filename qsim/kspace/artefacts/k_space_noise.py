"""Noise of the receiver: complex, Gaussian, white, of one variance in both channels of every sample of k-space.

    K(k) += sigma (z1 + i z2)    so    m(r) += sigma (z1' + i z2')

The transform is orthonormal: white noise of sigma in k-space is white noise of sigma in the image. It is added in the
image, where one seed is one realisation whatever stands before it in a chain; axes in k-space cost one inverse
transform. The magnitude afterwards is Rician, the root of the sum of squares of L coils non-central chi with 2 L
degrees of freedom.

    SNR_dB = 10 log10(mean |m|^2 / (2 sigma^2))

Source: Gudbjartsson and Patz 1995, doi:10.1002/mrm.1910340618; SNR in decibels as in shaw2021 section 5.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from qsim.kspace.acquired import Acquired, Json
from qsim.kspace.artefacts.amounts import Amount, check_amount, draw_amount
from qsim.kspace.artefacts.base import Ndim, Stage, applied, check_common, check_space, drawn_for
from qsim.kspace.artefacts.plain import settle
from qsim.kspace.snr import LARGEST_SNR_DB, amplitude_from_decibels, sigma_of_power_snr_db
from qsim.values import value

# in sigma: no normal lies beyond
_FURTHEST = 6


@dataclass(frozen=True, slots=True)
class KSpaceNoiseDrawn:
    """Attributes: space: extent [voxels]; snr_db [dB] or sigma [units of the images], the other None; seed."""

    space: tuple[int, ...]
    snr_db: float | None
    sigma: float | None
    seed: int

    @property
    def severity(self) -> float:
        """Root of noise power over signal power, 10^(-snr_db / 20) [1]; or sigma [units of the images]."""
        if self.snr_db is not None:
            return 1 / amplitude_from_decibels(self.snr_db)
        return self.sigma or 0.0


@value
class KSpaceNoise:
    """Complex white noise, another in every image and coil. Name `snr_db` or `sigma`, not both.

    Attributes:
        snr_db: 10 log10(mean |m|^2 / (2 sigma^2)), the mean over all voxels and coils of the reference, in
            [-200, 200] [dB].
        sigma: noise SD of the real and of the imaginary channel [units of the images].
        reference: of snr_db, and only there; `series`: one sigma for all images, as on a scanner; `image`: each image
            has that SNR; None: series.
        probability, ndim: see `Artefact`.
    Severity: 10^(-snr_db / 20), or sigma.
    Assumes: independent coils of one variance. The normals are of single precision, so that images of either
        precision get the same noise; none lies beyond 5.8 sigma.
    Source: shaw2021 section 5 (-10 to 20 dB, uniform).
    """

    stage: ClassVar[Stage] = Stage.NOISE
    kind: Literal["k_space_noise"] = "k_space_noise"
    snr_db: Amount | None = None
    sigma: Amount | None = None
    reference: Literal["series", "image"] | None = None
    probability: float = 1.0
    ndim: Ndim | None = None

    def __post_init__(self) -> None:
        settle(self)
        if (self.snr_db is None) == (self.sigma is None):
            raise ValueError("sigma: name either snr_db or sigma, and not both")
        if self.snr_db is not None:
            check_amount("snr_db", self.snr_db, low=-LARGEST_SNR_DB, high=LARGEST_SNR_DB)
        if self.sigma is not None:
            check_amount("sigma", self.sigma, low=0)
        if self.reference not in ("series", "image", None):
            raise ValueError(f"reference must be series or image, got {self.reference!r}")
        if self.reference is not None and self.sigma is not None:
            raise ValueError("reference is that of snr_db; leave it out where sigma is given")
        check_common(self.probability, self.ndim)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> KSpaceNoiseDrawn:
        """The strength, and a seed of the normals."""
        _, space = drawn_for(shape, self.ndim)
        snr_db = None if self.snr_db is None else draw_amount(self.snr_db, rng)
        sigma = None if self.sigma is None else draw_amount(self.sigma, rng)
        # any reader of JSON knows whole numbers up to 2^53
        return KSpaceNoiseDrawn(space, snr_db, sigma, int(rng.integers(2**53)))

    def act(self, acquired: Acquired, drawn: KSpaceNoiseDrawn) -> Acquired:
        check_space(acquired, drawn.space)
        if drawn.severity == 0:
            return acquired
        # in a mixed domain the same numbers would be another realisation
        images = acquired.brought(image=range(len(drawn.space)))
        sigmas = self._sigmas(images, drawn)
        largest = torch.finfo(images.values.dtype).max / _FURTHEST
        if max(sigmas) > largest:
            raise ValueError(f"sigma: {max(sigmas):g} is more than {images.values.dtype} can hold; scale the images")
        noise = torch.view_as_complex(_normals((*images.values.shape, 2), drawn.seed, images.values.device))
        noise = noise.to(images.values.dtype)
        for image, sigma in zip(noise, sigmas, strict=True):
            image.mul_(sigma)
        noise.add_(images.values)
        found: Json = [*sigmas] if self.reference == "image" else sigmas[0]
        return images.with_values(noise).noting(sigma=found)

    def apply(
        self, images: Complex[Tensor, "*lead_and_space"], drawn: KSpaceNoiseDrawn
    ) -> Complex[Tensor, "*lead_and_space"]:
        return applied(self, images, drawn)

    def _sigmas(self, acquired: Acquired, drawn: KSpaceNoiseDrawn) -> list[float]:
        """Of each image [units of the images]."""
        if drawn.snr_db is None:
            return [drawn.sigma or 0.0] * acquired.count
        if self.reference != "image":
            return [sigma_of_power_snr_db(acquired.values, drawn.snr_db)] * acquired.count
        return [sigma_of_power_snr_db(image, drawn.snr_db) for image in acquired.values]


def _normals(shape: tuple[int, ...], seed: int, device: torch.device) -> Float[Tensor, "*shape"]:
    """Independent standard normals of single precision."""
    generator = torch.Generator(device=device).manual_seed(seed)
    return torch.empty(shape, dtype=torch.float32, device=device).normal_(generator=generator)
