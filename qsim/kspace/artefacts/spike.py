"""RF spike: a spark during one sample of k-space.

    K(k0) += A exp(i psi)    so    m(r) += A exp(i psi) / sqrt(N) exp(2 pi i k0 . (r - c) / N)

A plane wave: stripes of period N / |k0| along each axis, |A| / sqrt(N) high everywhere. It is a product of one vector
per axis, written in the domain in which the axis stands, so nothing is transformed for it.
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
from qsim.kspace.artefacts.amounts import Amount, check_amount, draw_amount, whole_pair
from qsim.kspace.artefacts.base import Ndim, Stage, applied, check_common, check_count, check_space, drawn_for
from qsim.kspace.artefacts.plain import settle
from qsim.kspace.fourier import magnitude
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
        settle(self)
        check_amount("amplitude", self.amplitude, low=0)
        check_amount("spikes", self.spikes, low=0)
        check_common(self.probability, self.ndim)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> RFSpikeDrawn:
        """Places uniform over k-space, phases uniform."""
        count, space = drawn_for(shape, self.ndim)
        low, high = whole_pair(self.spikes)
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
        if reference == 0:
            raise ValueError(
                "amplitude: it counts in k-space maxima, and that of these images is 0 everywhere; leave them out"
            )
        values = acquired.values if drawn.count is None else acquired.values.clone()
        for spike in drawn.spikes:
            first, *others = (_wave(acquired, k, axis) for axis, k in enumerate(spike.k))
            first = first * (spike.amplitude * reference * complex(np.exp(1j * spike.phase)))
            # all axes but x first: the last product is the only large one
            rows, x = reduce(torch.mul, others[:-1], first), others[-1]
            if spike.image is None:
                values = torch.addcmul(values, rows, x)
            else:
                values[spike.image].addcmul_(rows, x)
        return acquired.with_values(values).noting(kspace_maximum=reference)

    def apply(
        self, images: Complex[Tensor, "*lead_and_space"], drawn: RFSpikeDrawn
    ) -> Complex[Tensor, "*lead_and_space"]:
        return applied(self, images, drawn)


def _wave(acquired: Acquired, k: int, axis: int) -> Complex[Tensor, "*space"]:
    """The part of one sample along an axis: exp(2 pi i k (r - c) / N) / sqrt(N), or its only sample in k-space."""
    n = acquired.space[axis]
    if axis in acquired.in_kspace:
        # the centre stands at voxel 0 in there, N // 2 voxels from that of the images
        wave = torch.zeros(n, dtype=torch.complex128)
        turn = torch.tensor(((-k * (n // 2)) % n) / n, dtype=torch.float64)
        wave[k % n] = torch.exp(2j * pi * turn)
        return acquired.along(wave, axis)
    # whole numbers modulo n: exact for any size
    turns = (k * (torch.arange(n) - n // 2)) % n
    return acquired.along(torch.exp(2j * pi * turns.double() / n) / sqrt(n), axis)


def _kspace_maximum(acquired: Acquired) -> float:
    """Largest magnitude in the k-space of the series.

    |sum m exp(-i phi)| <= sum |m|: of images that are real and nowhere negative K(0) is the largest. The two halves of
    the k-space of other real images are alike in magnitude.
    """
    values, dims = acquired.values.resolve_conj(), tuple(range(2, acquired.values.ndim))
    if not acquired.in_kspace and int(torch.count_nonzero(values.imag)) == 0:
        if float(torch.view_as_real(values).min()) >= 0:
            return float(values.real.sum(dims, dtype=torch.float64).max()) / sqrt(prod(acquired.space))
        return float(magnitude(torch.fft.rfftn(values.real, dim=dims, norm="ortho")).max())
    return float(magnitude(acquired.brought(kspace=range(len(acquired.space))).values).max())
