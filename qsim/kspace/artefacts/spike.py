"""RF spike: a spark during one sample of k-space.

    K(k0) += A exp(i psi)    so    m(r) += A exp(i psi) / sqrt(N) exp(2 pi i k0 . (r - c) / N)

A plane wave: stripes of period N / |k0| along each axis, |A| / sqrt(N) high everywhere. No transform is needed.
Source: Zhuo and Gullapalli 2006, doi:10.1148/rg.261055134; amplitudes of shaw2021 section 5.
"""

from dataclasses import dataclass
from functools import reduce
from math import pi, prod, sqrt
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Complex
from torch import Tensor

from qsim.kspace.acquired import Acquired
from qsim.kspace.artefacts.amounts import Amount, check_amount, draw_amount
from qsim.kspace.artefacts.base import Ndim, Stage, applied, check_common, check_count, check_space, drawn_for
from qsim.values import value


@dataclass(frozen=True, slots=True)
class Spike:
    """One spike.

    Attributes:
        image: that it hits; None: every image of the series alike.
        k: place in k-space, centred [cycles per field of view].
        amplitude: over the largest magnitude in the k-space of the series [1].
        phase: [rad].
    """

    image: int | None
    k: tuple[int, ...]
    amplitude: float
    phase: float


@dataclass(frozen=True, slots=True)
class RFSpikeDrawn:
    """Attributes: space: extent [voxels]; count: images, if drawn for each; spikes."""

    space: tuple[int, ...]
    count: int | None
    spikes: tuple[Spike, ...]

    @property
    def severity(self) -> float:
        """Root of the sum of squares of the amplitudes over the k-space maximum, the mean over images [1]."""
        return sqrt(sum(spike.amplitude**2 for spike in self.spikes) / (self.count or 1))


@value
class RFSpike:
    """RF spike: plane waves over the whole image, from one or several samples of k-space.

    Attributes:
        amplitude: of each spike over the largest magnitude in the k-space of the series [1].
        spikes: how many; a pair is a range, both ends included.
        per_image: every image has spikes of its own; otherwise all share them.
        probability, ndim: see `Artefact`.
    Severity: root of the sum of squares of the amplitudes [k-space maxima].
    Source: shaw2021 section 5 (place uniform, 1 to 10 times the maximum).
    """

    stage: ClassVar[Stage] = Stage.INTERFERENCE
    kind: Literal["rf_spike"] = "rf_spike"
    amplitude: Amount = (1, 10)
    spikes: int | tuple[int, int] = 1
    per_image: bool = False
    probability: float = 1.0
    ndim: Ndim | None = None

    def __post_init__(self) -> None:
        check_amount("amplitude", self.amplitude, low=0)
        check_amount("spikes", self.spikes, low=0)
        check_common(self.probability, self.ndim)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> RFSpikeDrawn:
        """Places uniform over k-space, phases uniform."""
        count, space = drawn_for(shape, self.ndim)
        low, high = self.spikes if isinstance(self.spikes, tuple) else (self.spikes, self.spikes)
        spikes = []
        for image in range(count) if self.per_image else (None,):
            for _ in range(int(rng.integers(low, high + 1))):
                k = tuple(int(rng.integers(n)) - n // 2 for n in space)
                amplitude = draw_amount(self.amplitude, rng)
                spikes.append(Spike(image, k, amplitude, float(rng.uniform(0, 2 * pi))))
        return RFSpikeDrawn(space, count if self.per_image else None, tuple(spikes))

    def act(self, acquired: Acquired, drawn: RFSpikeDrawn) -> Acquired:
        check_space(acquired, drawn.space)
        if drawn.count is not None:
            check_count(acquired, drawn.count)
        if drawn.severity == 0:
            return acquired
        reference = _kspace_maximum(acquired)
        images = acquired.brought(image=range(len(drawn.space)))
        values = images.values.clone()
        for spike in drawn.spikes:
            hit = values if spike.image is None else values[spike.image : spike.image + 1]
            height = spike.amplitude * reference / sqrt(prod(drawn.space))
            waves = [_wave(images, spike.k[a], a) for a in range(len(drawn.space))]
            waves[0] = waves[0] * (height * complex(np.exp(1j * spike.phase)))
            # all axes but x first: the last product is the only large one
            hit.addcmul_(reduce(torch.mul, waves[:-1]), waves[-1])
        return images.with_values(values).noting(kspace_maximum=reference)

    def apply(
        self, images: Complex[Tensor, "*lead_and_space"], drawn: RFSpikeDrawn
    ) -> Complex[Tensor, "*lead_and_space"]:
        return applied(self, images, drawn)


def _wave(acquired: Acquired, k: int, axis: int) -> Tensor:
    """exp(2 pi i k (r - c) / N) along an axis."""
    n = acquired.space[axis]
    # whole numbers modulo n: exact for any size
    turns = (k * (torch.arange(n) - n // 2)) % n
    return acquired.along(torch.exp(2j * pi * turns.double() / n), axis)


def _kspace_maximum(acquired: Acquired) -> float:
    """Largest magnitude in the k-space of the series."""
    values = acquired.brought(kspace=range(len(acquired.space))).values
    return float(values.abs().max())
