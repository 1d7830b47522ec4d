"""The whole receive chain: what the coils hear of an object, with their noise, and the image made of it.

    m -> s_j m -> (folded) + n_j -> combined

What comes with the image is what a fit needs: the map of sigma and the number of coils of its likelihood.

    root_sum_of_squares   real; sqrt(sum |s_j|^2) |m|; non-central chi; sigma is one number, if the noise is white
    matched, sense        complex; m itself; sigma varies over the image
    adaptive              complex; sqrt(s^H Psi^-1 s) |m| and the phase of the reference coil; sigma is one number
"""

from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np
import torch
from jaxtyping import Complex, Float, Inexact
from torch import Tensor

from qsim.kspace.coils.combination import adaptive, check_sensitivities, root_sum_of_squares
from qsim.kspace.coils.covariance import (
    AnyCoilNoise,
    Factor,
    NeighbourCoilNoise,
    WhiteCoilNoise,
    check_sigma,
    coil_noise,
)
from qsim.kspace.coils.sense import Acceleration, Unfolding, undersample, unfolding
from qsim.kspace.coils.sensitivities import CoilArray, loop_sensitivities
from qsim.kspace.fourier import require_complex
from qsim.values import value

Combination = Literal["root_sum_of_squares", "matched", "adaptive", "sense"]
_NOT_ACCELERATED = Acceleration(factors=(1,), axes=(-1,))


@dataclass(frozen=True, slots=True)
class Received:
    """A combined series.

    Attributes:
        images: real magnitudes of the root of sum of squares; complex otherwise [units of the object].
        sigma: SD per real channel, as the fits take it; None where no such number exists: a root of sum of squares of
            coils with shared noise or noise of several strengths. 0 in a voxel without noise [units of the object].
        g: cost of the coil geometry of `sense`; None otherwise [1].
        coils: of the likelihood of the magnitude: 1 is Rician, more non-central chi.
    """

    images: Inexact[Tensor, "n *space"]
    sigma: Float[Tensor, "*space"] | None
    g: Float[Tensor, "*space"] | None
    coils: int


@dataclass(frozen=True, slots=True)
class Receiver:
    """A receive chain made ready for images of one extent. Attributes: as the arguments of `of`; weights: of `sense`
    and `matched`.
    """

    sensitivities: Complex[Tensor, "c *space"]
    psi: Inexact[Tensor, "c c"] | None
    combination: Combination
    acceleration: Acceleration | None
    weights: Unfolding | None

    @classmethod
    def of(
        cls,
        sensitivities: Complex[Tensor, "c *space"],
        psi: Inexact[Tensor, "c c"] | None = None,
        combination: Combination = "root_sum_of_squares",
        acceleration: Acceleration | None = None,
    ) -> "Receiver":
        """Checked, with the weights of the reconstruction.

        Args:
            psi: covariance of the noise; None: white.
            acceleration: for `sense`, and for nothing else.
        Raises: ValueError if they do not go together.
        """
        check_sensitivities(sensitivities, len(sensitivities), tuple(sensitivities.shape[1:]))
        check_combination(combination, acceleration)
        if psi is not None:
            Factor.of(psi, len(sensitivities))
        weights = None
        if combination in ("matched", "sense"):
            weights = unfolding(sensitivities, acceleration or _NOT_ACCELERATED, psi)
        return cls(sensitivities, psi, combination, acceleration, weights)

    def __call__(self, images: Complex[Tensor, "n *space"], sigma: float, generator: torch.Generator) -> Received:
        """Receive a series.

        Args:
            images: the object, complex.
            sigma: noise SD per real channel of a coil whose Psi_jj is 1 [units of the object].
            generator: of the noise, on the device of the images.
        Raises: ValueError for real images, another extent, or a sigma that is negative.
        """
        require_complex(images)
        check_sigma(sigma)
        if generator.device.type != images.device.type:
            raise ValueError(f"generator is on {generator.device}, the images on {images.device}; make it there")
        coils, *space = self.sensitivities.shape
        if list(images.shape[1:]) != space:
            raise ValueError(f"images of {tuple(images.shape[1:])} voxels do not fit sensitivities of {tuple(space)}")
        heard = images[:, None] * self.sensitivities.to(images.dtype)
        if self.acceleration is not None:
            heard = undersample(heard, self.acceleration)
        heard = heard + coil_noise(tuple(heard.shape), self.psi, sigma, generator, images.dtype)
        if self.weights is not None:
            g = self.weights.g if self.combination == "sense" else None
            return Received(self.weights(heard), sigma * self.weights.noise, g, 1)
        level = torch.full(tuple(space), sigma, dtype=images.real.dtype, device=images.device)
        if self.combination == "adaptive":
            return Received(adaptive(heard, self.psi).images, level, None, 1)
        strength = _white_strength(self.psi)
        return Received(root_sum_of_squares(heard), None if strength is None else strength * level, None, coils)


def receive(
    images: Complex[Tensor, "n *space"],
    sensitivities: Complex[Tensor, "c *space"],
    sigma: float,
    generator: torch.Generator,
    psi: Inexact[Tensor, "c c"] | None = None,
    combination: Combination = "root_sum_of_squares",
    acceleration: Acceleration | None = None,
) -> Received:
    """The whole chain for one series; a `Receiver` serves many."""
    return Receiver.of(sensitivities, psi, combination, acceleration)(images, sigma, generator)


@value
class Coils:
    """A receive chain as a config names it.

    Attributes:
        array: the loops.
        noise: what they share of it.
        combination: of their images.
        acceleration: for `sense`, and for nothing else.
    """

    array: CoilArray = CoilArray()
    noise: AnyCoilNoise = WhiteCoilNoise()
    combination: Combination = "root_sum_of_squares"
    acceleration: Acceleration | None = None

    def __post_init__(self) -> None:
        check_combination(self.combination, self.acceleration)
        if self.acceleration is not None and self.acceleration.total > self.array.coils:
            raise ValueError(
                f"acceleration: {self.acceleration.total} voxels fold onto each other, which {self.array.coils} coils "
                "cannot tell apart"
            )
        if isinstance(self.noise, NeighbourCoilNoise) and self.noise.rows != self.array.rows:
            raise ValueError(
                f"noise: rows must be those of the array, got {self.noise.rows} and an array of {self.array.rows}; "
                "who is a neighbour of whom depends on them"
            )

    def receiver(
        self,
        space: tuple[int, ...],
        spacing_mm: tuple[float, ...] | None = None,
        rng: np.random.Generator | None = None,
        dtype: torch.dtype = torch.complex64,
        device: torch.device | str = "cpu",
    ) -> Receiver:
        """Ready for images of an extent.

        Args:
            rng: puts the loops up with their jitter; None: as designed.
        Raises: ValueError if the array has jitter or tilt and there is no rng to draw them.
        """
        if rng is None and (self.array.jitter > 0 or self.array.tilt > 0):
            raise ValueError("rng: the array has jitter or tilt, which must be drawn; give a generator")
        loops = self.array.loops() if rng is None else self.array.draw(rng).loops
        sensitivities = loop_sensitivities(loops, space, spacing_mm, dtype, device)
        psi = None if isinstance(self.noise, WhiteCoilNoise) else self.noise.covariance(loops).to(device)
        return Receiver.of(sensitivities, psi, self.combination, self.acceleration)


def check_combination(combination: str, acceleration: Acceleration | None) -> None:
    """Refuse a combination that does not exist, or an acceleration that nothing unfolds."""
    known = ("root_sum_of_squares", "matched", "adaptive", "sense")
    if combination not in known:
        raise ValueError(f"combination must be one of {', '.join(known)}, got {combination}")
    if acceleration is None and combination == "sense":
        raise ValueError("acceleration: sense needs one; take matched without")
    if acceleration is not None and combination != "sense":
        raise ValueError(f"acceleration: {combination} cannot unfold; take sense")


def _white_strength(psi: Inexact[Tensor, "c c"] | None) -> float | None:
    """SD over sigma, if every coil has noise of its own, of one strength."""
    if psi is None:
        return 1.0
    first = psi[0, 0].real
    one = torch.eye(len(psi), dtype=psi.dtype, device=psi.device)
    return sqrt(float(first)) if bool((psi == first * one).all()) else None
