"""Zipper: a leak of one radio frequency into the receiver, of another phase in every line.

    K(kx, ky) += A exp(i (psi_ky - 2 pi kx (x0 - c) / N))    so    m(x, y) += delta(x - x0) h d(y)
    d(y) = 1 / sqrt(N_y) sum_ky exp(i psi_ky) exp(2 pi i ky (y - c) / N_y),    h = A sqrt(N_x)

x is the axis of frequency encoding: one frequency is one place along it, and nothing reaches another column. d looks
like noise along the phase axes, with mean |d|^2 = 1 exactly, because every line holds the same energy. In 3D every line
(ky, kz) has a phase of its own, and the zipper is the plane x = x0 full of dots, a row of them in every slice.
Nothing is transformed along x; the only transforms are those of the few columns that are hit.
Source: Zhuo and Gullapalli 2006, doi:10.1148/rg.261055134.
"""

from dataclasses import dataclass
from math import pi, sqrt
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Complex
from torch import Tensor

from qsim.kspace.acquired import Acquired
from qsim.kspace.artefacts.amounts import Amount, check_amount, draw_amount, whole_pair
from qsim.kspace.artefacts.base import (
    Ndim,
    Stage,
    applied,
    check_axis,
    check_common,
    check_count,
    check_space,
    drawn_for,
)
from qsim.kspace.artefacts.plain import settle
from qsim.kspace.fourier import magnitude
from qsim.values import value


@dataclass(frozen=True, slots=True)
class Strip:
    """One zipper.

    Attributes:
        image: that it hits; None: every image of the series alike.
        axis: of space across which it has a place, from 0.
        first: its first column [voxels].
        width: columns [voxels].
        amplitude: RMS height of its columns over the largest magnitude of the series [1].
        seed: of the phases of its lines.
    """

    image: int | None
    axis: int
    first: int
    width: int
    amplitude: float
    seed: int


@dataclass(frozen=True, slots=True)
class ZipperDrawn:
    """Attributes: space: extent [voxels]; count: images, if drawn for each; strips."""

    space: tuple[int, ...]
    count: int | None
    strips: tuple[Strip, ...]

    @property
    def severity(self) -> float:
        """RMS over all voxels of what is added, over the largest magnitude of the series [1]."""
        power = sum(strip.amplitude**2 * strip.width / self.space[strip.axis] for strip in self.strips)
        return sqrt(power / (self.count or 1))


@value
class Zipper:
    """Zipper: columns of dots across the axis of frequency encoding.

    Attributes:
        amplitude: RMS height of the columns over the largest magnitude of the series, all coils included [1].
        axis: of frequency encoding, across which a zipper has a place (-1 is x); drawn for each zipper, among
            those as long as the largest width, if None.
        zippers: how many; a pair is a range, both ends included.
        position: where along the axis, 0 is the first place at which it is whole, 1 the last [1].
        width: columns; each has phases of its own; a pair is a range, both ends included [voxels].
        per_image: every image has zippers of its own; otherwise all share them.
        probability, ndim: see `Artefact`.
    Severity: root of sum amplitude^2 width / N: the RMS over all voxels of what is added, over the largest magnitude.
    Assumes: whole columns, which is a leak at the centre of a voxel; every coil hears it alike.
    """

    stage: ClassVar[Stage] = Stage.INTERFERENCE
    kind: Literal["zipper"] = "zipper"
    amplitude: Amount
    axis: int | None = None
    zippers: int | tuple[int, int] = 1
    position: Amount = (0, 1)
    width: int | tuple[int, int] = 1
    per_image: bool = False
    probability: float = 1.0
    ndim: Ndim | None = None

    def __post_init__(self) -> None:
        settle(self)
        check_amount("amplitude", self.amplitude, low=0)
        check_amount("zippers", self.zippers, low=0)
        check_amount("position", self.position, low=0, high=1)
        check_amount("width", self.width, low=1)
        check_common(self.probability, self.ndim)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> ZipperDrawn:
        """Places, heights and phases.

        Raises: ValueError if there is no such axis, or a zipper can be wider than it.
        """
        count, space = drawn_for(shape, self.ndim)
        widest = whole_pair(self.width)[1]
        named = range(len(space)) if self.axis is None else [check_axis("axis", self.axis, space)]
        able = [axis for axis in named if space[axis] >= widest]
        if not able:
            where = f"any axis of {space} voxels" if self.axis is None else f"axis {named[0]} of {space} voxels"
            raise ValueError(f"width: {widest} columns do not fit {where}")
        strips = []
        for image in range(count) if self.per_image else (None,):
            for _ in range(_whole(self.zippers, rng)):
                # one number of the generator, named or not
                drawn = int(rng.integers(len(space) if self.axis is not None else len(able)))
                axis = able[0] if self.axis is not None else able[drawn]
                width = _whole(self.width, rng)
                places = space[axis] - width + 1
                first = min(int(draw_amount(self.position, rng) * places), places - 1)
                amplitude = draw_amount(self.amplitude, rng)
                # any reader of JSON knows whole numbers up to 2^53
                strips.append(Strip(image, axis, first, width, amplitude, int(rng.integers(2**53))))
        return ZipperDrawn(space, count if self.per_image else None, tuple(strips))

    def act(self, acquired: Acquired, drawn: ZipperDrawn) -> Acquired:
        check_space(acquired, drawn.space)
        if drawn.count is not None:
            check_count(acquired, drawn.count)
        if drawn.severity == 0:
            return acquired
        images = acquired.brought(image=range(len(drawn.space)))
        reference = float(magnitude(images.values).max())
        if reference == 0:
            raise ValueError(
                "amplitude: it counts in the largest magnitude, and these images are 0 everywhere; leave them out"
            )
        values = images.values.clone()
        for strip in drawn.strips:
            hit = values if strip.image is None else values[strip.image : strip.image + 1]
            columns = hit.narrow(2 + strip.axis, strip.first, strip.width)
            columns += strip.amplitude * reference * _dots(strip, drawn.space).to(columns)
        return images.with_values(values).noting(largest_magnitude=reference)

    def apply(
        self, images: Complex[Tensor, "*lead_and_space"], drawn: ZipperDrawn
    ) -> Complex[Tensor, "*lead_and_space"]:
        return applied(self, images, drawn)


def _dots(strip: Strip, space: tuple[int, ...]) -> Complex[Tensor, "*space"]:
    """d of the columns: phases that are uniform and independent from line to line, brought to the image."""
    extent = [strip.width if axis == strip.axis else n for axis, n in enumerate(space)]
    generator = torch.Generator().manual_seed(strip.seed)
    phases = 2 * pi * torch.rand(extent, dtype=torch.float64, generator=generator)
    lines = tuple(axis for axis in range(len(space)) if axis != strip.axis)
    # the centre of the transform only changes phases, and those are random
    return torch.fft.ifftn(torch.exp(1j * phases), dim=lines, norm="ortho")


def _whole(number: int | tuple[int, int], rng: np.random.Generator) -> int:
    low, high = whole_pair(number)
    return int(rng.integers(low, high + 1))
