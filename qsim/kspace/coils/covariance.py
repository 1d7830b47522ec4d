"""Noise that the coils share: its covariance Psi, samples of it, and what makes it white.

    n = sigma L (z1 + i z2),    Psi = L L^H,    z standard normal

so that E[n n^H] = 2 sigma^2 Psi, and sigma sqrt(Psi_jj) is the SD of the real and of the imaginary channel of coil j.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod, sqrt
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Complex, Float, Inexact
from torch import Tensor

from qsim.kspace.coils.field import Loop, loop_potential
from qsim.kspace.fourier import require_complex
from qsim.values import value

# a Psi is Hermitian if it is so to this part of its largest number: files often hold single precision
_HERMITIAN = 1e-5
# cells along each axis of the object whose noise is heard
_CELLS = 24


@runtime_checkable
class CoilNoise(Protocol):
    """A model of Psi."""

    @property
    def kind(self) -> str: ...

    def covariance(self, loops: Sequence[Loop]) -> Complex[Tensor, "c c"]:
        """Psi of these coils, with a mean diagonal of 1, complex128."""
        ...


@value
class WhiteCoilNoise:
    """Every coil has noise of its own, of one strength: Psi = 1."""

    kind: Literal["white"] = "white"

    def covariance(self, loops: Sequence[Loop]) -> Complex[Tensor, "c c"]:
        return torch.eye(len(loops), dtype=torch.complex128)


@value
class NeighbourCoilNoise:
    """Coils share more noise the nearer they stand on the array.

        Psi_ij = rho^(d_ij),    d = steps along the ring, the shorter way, + steps between rows

    Positive definite for every rho in [0, 1).

    Attributes:
        rho: correlation of neighbours [1].
        rows: of the array; coils count ring by ring, as in `CoilArray`.
    """

    kind: Literal["neighbours"] = "neighbours"
    rho: float
    rows: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rho < 1:
            raise ValueError(f"rho must lie in [0, 1), got {self.rho}")
        if self.rows < 1:
            raise ValueError(f"rows must be at least 1, got {self.rows}")

    def covariance(self, loops: Sequence[Loop]) -> Complex[Tensor, "c c"]:
        coils = len(loops)
        if coils % self.rows:
            raise ValueError(f"rows must divide the number of coils, got {self.rows} and {coils}")
        around = coils // self.rows
        number = torch.arange(coils)
        place, row = number % around, number // around
        one_way = (place[:, None] - place) % around
        steps = torch.minimum(one_way, around - one_way) + (row[:, None] - row).abs()
        return (self.rho ** steps.double()).to(torch.complex128)


@value
class SampleCoilNoise:
    """Thermal noise of a conducting object, which coils share as far as their electric fields overlap in it.

        R_ij = sum_r A_i(r) . A_j(r),    Psi = share R / mean(R_jj) + (1 - share) 1

    The electric field of a loop is taken as -i omega A of its vector potential alone: without the charges that it
    raises at the surface of the object. The object is a uniform cylinder about z. Real, since the noise of passive
    coils is correlated as the real part of their impedances.

    Attributes:
        share: of the noise power that comes from the object; the rest is the receivers' own [1].
        object_radius: of the cylinder [fields of view].
        object_length: along z [fields of view].
    Source: Roemer et al. 1990, doi:10.1002/mrm.1910160203.
    """

    kind: Literal["sample"] = "sample"
    share: float = 0.9
    object_radius: float = 0.4
    object_length: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must lie in [0, 1], got {self.share}")
        for name in ("object_radius", "object_length"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")

    def points(self) -> Float[np.ndarray, "3 v"]:
        """Middles of the cells of the object: x, y, z [fields of view]."""
        middles = (np.arange(_CELLS) + 0.5) / _CELLS * 2 - 1
        x, y, z = (each.ravel() for each in np.meshgrid(middles, middles, middles, indexing="ij"))
        inside = x**2 + y**2 <= 1
        scale = np.array([self.object_radius, self.object_radius, self.object_length / 2])
        return np.stack((x, y, z))[:, inside] * scale[:, None]

    def covariance(self, loops: Sequence[Loop]) -> Complex[Tensor, "c c"]:
        points = self.points()
        potentials = np.stack([loop_potential(points, loop).ravel() for loop in loops])
        overlap = torch.from_numpy(potentials @ potentials.T)
        one = torch.eye(len(loops), dtype=torch.float64)
        return (self.share * overlap / overlap.diagonal().mean() + (1 - self.share) * one).to(torch.complex128)


COIL_NOISES = (WhiteCoilNoise, NeighbourCoilNoise, SampleCoilNoise)
AnyCoilNoise = WhiteCoilNoise | NeighbourCoilNoise | SampleCoilNoise


@dataclass(frozen=True, slots=True)
class Factor:
    """Psi = L L^H, checked. Attributes: lower: L, complex128."""

    lower: Complex[Tensor, "c c"]

    @classmethod
    def of(cls, psi: Inexact[Tensor, "c c"], coils: int) -> "Factor":
        """Cholesky factor of Psi.

        Raises: ValueError if Psi is not c x c, finite, Hermitian and positive definite.
        """
        if tuple(psi.shape) != (coils, coils):
            raise ValueError(f"psi must be {coils} x {coils}, one row a coil, got shape {tuple(psi.shape)}")
        wide = psi.to(torch.complex128)
        if not bool(torch.isfinite(wide).all()):
            raise ValueError("psi must be finite, got NaN or infinity")
        if float((wide - wide.mH).abs().max()) > _HERMITIAN * float(wide.abs().max()):
            raise ValueError("psi must be Hermitian, Psi_ij = conj(Psi_ji); take (psi + psi.mH) / 2 if it nearly is")
        wide = (wide + wide.mH) / 2
        lower, failed = torch.linalg.cholesky_ex(wide)
        scale = wide.diagonal().real.sqrt()
        # the part of each coil's noise that no other coil explains; rounding alone leaves about 1e-8
        if int(failed) or not bool((lower.diagonal().real > 1e-7 * scale).all()):
            least = float(torch.linalg.eigvalsh(wide)[0])
            raise ValueError(
                f"psi must be positive definite, its smallest eigenvalue is {least:.3g}; measure it from more samples "
                "than coils, or leave out a coil that repeats another"
            )
        return cls(lower)

    def of_unit_strength(self) -> "Factor":
        """The same correlations with a largest entry of L of 1: the units of Psi do not count."""
        return Factor(self.lower / self.lower.abs().max())

    def white(self, values: Complex[Tensor, "*n c v"]) -> Complex[Tensor, "*n c v"]:
        """L^-1 values, in their dtype."""
        return self._inverse().to(device=values.device, dtype=values.dtype) @ values

    def colour(self, values: Complex[Tensor, "*n c v"]) -> Complex[Tensor, "*n c v"]:
        """L values, in their dtype."""
        return self.lower.to(device=values.device, dtype=values.dtype) @ values

    def solve(self, values: Complex[Tensor, "*n c v"]) -> Complex[Tensor, "*n c v"]:
        """Psi^-1 values, in their dtype."""
        inverse = self._inverse()
        return (inverse.mH @ inverse).to(device=values.device, dtype=values.dtype) @ values

    def white_rows(self, weights: Complex[Tensor, "*n r c"]) -> Complex[Tensor, "*n r c"]:
        """Weights L^-1: for whitened coils -> for the coils themselves."""
        return weights @ self._inverse().to(device=weights.device, dtype=weights.dtype)

    def _inverse(self) -> Complex[Tensor, "c c"]:
        one = torch.eye(len(self.lower), dtype=self.lower.dtype, device=self.lower.device)
        return torch.linalg.solve_triangular(self.lower, one, upper=False)


def coil_noise(
    shape: tuple[int, ...],
    psi: Inexact[Tensor, "c c"] | None,
    sigma: float,
    generator: torch.Generator,
    dtype: torch.dtype = torch.complex64,
) -> Complex[Tensor, "n c *space"]:
    """Noise of a series, n = sigma L z, on the device of the generator.

    Args:
        shape: images, coils, space.
        psi: covariance of the coils; None: white.
        sigma: SD per real channel of a coil whose Psi_jj is 1 [units of the images].
        dtype: complex64 or complex128.
    """
    check_sigma(sigma)
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"shape must be images, coils and space, none of them empty, got {shape}")
    if dtype not in (torch.complex64, torch.complex128):
        raise ValueError(f"dtype must be complex64 or complex128, got {dtype}")
    # torch gives a complex normal of unit variance in all: half in each channel
    normals = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
    if psi is None:
        return normals.mul_(sqrt(2) * sigma)
    factor = Factor(sqrt(2) * sigma * Factor.of(psi, shape[1]).lower)
    return factor.colour(normals.reshape(shape[0], shape[1], prod(shape[2:]))).reshape(shape)


def whiten(images: Complex[Tensor, "n c *space"], psi: Inexact[Tensor, "c c"]) -> Complex[Tensor, "n c *space"]:
    """L^-1 along the coils: noise of covariance Psi becomes white, of SD sigma in each."""
    require_complex(images)
    factor = Factor.of(psi, images.shape[1])
    return factor.white(images.flatten(2)).reshape(images.shape)


def covariance_of(samples: Complex[Tensor, "c m"]) -> Complex[Tensor, "c c"]:
    """sigma^2 Psi from samples of pure noise, per real channel, complex128.

        sum_m n n^H / (2 m)

    Its diagonal holds sigma^2 of each coil. Samples: the readout without a pulse, or the outer edge of k-space.

    Raises: ValueError if there are no more samples than coils.
    """
    require_complex(samples)
    coils, count = samples.shape
    if count <= coils:
        raise ValueError(f"samples must be more than the {coils} coils, got {count}")
    wide = samples.to(torch.complex128)
    psi = wide @ wide.mH / (2 * count)
    return (psi + psi.mH) / 2


def check_sigma(sigma: float) -> None:
    """Refuse a sigma that is negative or not finite."""
    if not 0 <= sigma < float("inf"):
        raise ValueError(f"sigma must be finite and at least 0, got {sigma}")
