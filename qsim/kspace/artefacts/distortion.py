"""Distortion: a gradient-echo readout in a field that is not uniform (`qsim.kspace.off_resonance`).

The field is drawn: a polynomial over space, and spheres of another susceptibility that are magnetised along B0,

    f(r) = P(r) / max |P| + sum over the spheres of q / 2 (a / |r - r0|)^3 (3 cos^2 theta - 1), 0 within a sphere

    delta_b0(r) = peak f(r) / max |f|

with the angle theta to B0 and q the field at the poles of a sphere over the largest of the polynomial. Low orders are
what is left after shimming; spheres stand for air, bone and blood.
Source: Jackson 1998, Classical Electrodynamics, section 5.11 (a magnetised sphere: a dipole outside). The field within,
0, is that of a sphere in the Lorentz picture.
"""

from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from qsim.kspace.acquired import Acquired
from qsim.kspace.artefacts.amounts import Amount, check_amount, draw_amount, reach, whole_pair
from qsim.kspace.artefacts.base import Ndim, Stage, applied, check_axis, check_common, check_space, drawn_for
from qsim.kspace.artefacts.plain import settle
from qsim.kspace.off_resonance import check_echo_times, check_readout, check_readout_axis, echo_times, off_resonance
from qsim.values import value

# voxels at a time: what is made of them stays in the cache
_CHUNK = 1 << 15


@dataclass(frozen=True, slots=True)
class Term:
    """coefficient x product over the axes of coordinate^power.

    Attributes:
        coefficient: [1].
        powers: of the coordinate along each axis of space, which goes from -1 to 1 over the field of view.
    """

    coefficient: float
    powers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """A sphere.

    Attributes:
        radius: over the longest extent of the field of view [1].
        strength: q, the field at its poles over the largest of the polynomial [1].
        centre: from the corner of the field of view, along each axis of space over its extent [1].
    """

    radius: float
    strength: float
    centre: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class DistortionDrawn:
    """What was drawn; it holds all of the field.

    Attributes:
        space: extent [voxels].
        spacing: size of a voxel along each axis, in any unit.
        b0_axis: along which B0 points, counted from 0; None: across the plane.
        delta_b0: largest off-resonance, of either sign [Hz].
        bandwidth: [Hz per voxel].
        background, sources: of the field.
    """

    space: tuple[int, ...]
    spacing: tuple[float, ...]
    b0_axis: int | None
    delta_b0: float
    bandwidth: float
    background: tuple[Term, ...]
    sources: tuple[Source, ...]

    @property
    def severity(self) -> float:
        """Largest displacement [voxels]."""
        return self.delta_b0 / self.bandwidth


@value
class Distortion:
    """Off-resonance in a gradient-echo readout: displacement, pile-up, phase and dropout.

    Attributes:
        delta_b0: largest off-resonance in the image, of either sign [Hz].
        bandwidth: of the axis that is read [Hz per voxel]. For the phase axis of an echo planar image it is
            1 / (echo spacing x lines).
        te: echo time, one or one for each image of the series [s]. It sets phase and dropout; 0 for a spin echo.
        axis: that is read; counted from the last (-1 is x) or from the first of space.
        polarity: 1 moves a positive offset towards larger indices, -1 (read backwards) towards smaller ones.
        phase: False if the images have their phase at the echo time already; the dropout is still made. Not for a te of
            0; None: True.
        order: lowest and highest degree of the polynomial; from 0 it has a constant, (0, 0) is a constant field; None
            for no polynomial.
        sources: how many spheres; a pair is a range, both ends included.
        radius: of the spheres over the longest extent of the field of view; None: 0.03 to 0.1 [1].
        b0_axis: along which B0 points, for the spheres; None: as for axial slices, across the plane in 2D, along the
            first axis (z) in 3D.
        spacing_mm: of the voxels, for the spheres; cubes if None.
        probability, ndim: see `Artefact`. All images of a series lie in the same field.
    Severity: largest displacement [voxels].
    Assumes: what `qsim.kspace.off_resonance.distort` does.   Not: dropout across a slice of a 2D image.
    """

    stage: ClassVar[Stage] = Stage.FIELD
    kind: Literal["distortion"] = "distortion"
    delta_b0: Amount
    bandwidth: Amount
    te: float | int | tuple[float | int, ...]
    axis: int = -1
    polarity: Literal[1, -1] = 1
    phase: bool | None = None
    order: tuple[int, int] | None = (1, 2)
    sources: int | tuple[int, int] = 2
    radius: Amount | None = None
    b0_axis: int | None = None
    spacing_mm: tuple[float, ...] | None = None
    probability: float = 1.0
    ndim: Ndim | None = None

    def __post_init__(self) -> None:
        settle(self)
        check_amount("delta_b0", self.delta_b0, low=0)
        check_amount("bandwidth", self.bandwidth)
        if reach(self.bandwidth)[0] <= 0:
            raise ValueError(f"bandwidth must be positive [Hz per voxel], got {self.bandwidth}")
        check_echo_times("te", self.te if isinstance(self.te, tuple) else (self.te,))
        if self.phase is not None and not any(self.te if isinstance(self.te, tuple) else (self.te,)):
            raise ValueError("phase is that of the echo time; leave it out where te is 0")
        check_readout(1, self.polarity)
        if self.order is not None and not (len(self.order) == 2 and 0 <= self.order[0] <= self.order[1]):
            raise ValueError(f"order must go from a degree of at least 0 to one not lower, got {list(self.order)}")
        check_amount("sources", self.sources, low=0)
        if self.order is None and whole_pair(self.sources)[0] == 0:
            raise ValueError("sources must be at least 1 where order is None: there would be no field")
        # a sphere of a quarter of the longest extent leaves voxels outside, wherever it lies
        check_amount("radius", self._radius, high=0.25)
        if reach(self._radius)[0] <= 0:
            raise ValueError(f"radius must be positive, got {self.radius}")
        if whole_pair(self.sources)[1] == 0:
            for name, given in (("radius", self.radius), ("b0_axis", self.b0_axis)):
                if given is not None:
                    raise ValueError(f"{name} is that of the spheres; leave it out where sources is 0")
        if self.spacing_mm is not None and not all(0 < size < np.inf for size in self.spacing_mm):
            raise ValueError(f"spacing_mm must be positive and finite, got {list(self.spacing_mm)}")
        check_common(self.probability, self.ndim)

    @property
    def _radius(self) -> Amount:
        return (0.03, 0.1) if self.radius is None else self.radius

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> DistortionDrawn:
        """Coefficients normal, places of the spheres uniform over the field of view, strengths uniform in [-1, 1]."""
        count, space = drawn_for(shape, self.ndim)
        check_readout_axis(self.axis, space)
        echo_times(self.te, count)
        # without a name along z, which is across the plane in 2D
        b0_axis = 0 if len(space) == 3 else None
        if self.b0_axis is not None:
            b0_axis = check_axis("b0_axis", self.b0_axis, space)
        spacing = self.spacing_mm or (1.0,) * len(space)
        if len(spacing) != len(space):
            raise ValueError(f"spacing_mm must hold {len(space)} sizes, got {list(spacing)}")
        peak, bandwidth = draw_amount(self.delta_b0, rng), draw_amount(self.bandwidth, rng)
        low, high = self.order or (0, -1)
        degrees = [powers for powers in product(range(high + 1), repeat=len(space)) if low <= sum(powers) <= high]
        background = tuple(Term(float(rng.normal()), powers) for powers in degrees)
        fewest, most = whole_pair(self.sources)
        sources = tuple(
            Source(draw_amount(self._radius, rng), float(rng.uniform(-1, 1)), tuple(rng.random(len(space)).tolist()))
            for _ in range(int(rng.integers(fewest, most + 1)))
        )
        return DistortionDrawn(space, spacing, b0_axis, peak, bandwidth, background, sources)

    def field(self, drawn: DistortionDrawn, device: torch.device | str = "cpu") -> Float[Tensor, "*space"]:
        """The field that was drawn [Hz], in double precision.

        Raises: ValueError if what was drawn is 0 at every voxel.
        """
        field = _polynomial(drawn, device)
        if drawn.background:
            field /= _largest(field)
        slab = max(1, _CHUNK * len(field) // field.numel())
        for source in drawn.sources:
            for low in range(0, len(field), slab):
                rows = slice(low, low + slab)
                field[rows] += _lobes(drawn, source, rows, device)
        field *= drawn.delta_b0 / _largest(field)
        return field

    def act(self, acquired: Acquired, drawn: DistortionDrawn) -> Acquired:
        check_space(acquired, drawn.space)
        if drawn.severity == 0:
            return acquired
        field = self.field(drawn, acquired.values.device)
        phase = self.phase is not False
        return off_resonance(acquired, field, drawn.bandwidth, self.axis, self.te, self.polarity, phase)

    def apply(
        self, images: Complex[Tensor, "*lead_and_space"], drawn: DistortionDrawn
    ) -> Complex[Tensor, "*lead_and_space"]:
        return applied(self, images, drawn)


def _largest(field: Float[Tensor, "*space"]) -> float:
    low, high = torch.aminmax(field)
    largest = max(-float(low), float(high))
    if largest == 0:
        raise ValueError("delta_b0: the field that was drawn is 0 at every voxel; use more sources or a polynomial")
    return largest


def _middles(n: int, device: torch.device | str) -> Float[Tensor, " n"]:
    """Places of the voxels along an axis of extent 1."""
    return (torch.arange(n, dtype=torch.float64, device=device) + 0.5) / n


def _polynomial(drawn: DistortionDrawn, device: torch.device | str) -> Float[Tensor, "*space"]:
    """P(r): one axis after the other."""
    highest = max((max(term.powers) for term in drawn.background), default=0)
    value = torch.zeros([highest + 1] * len(drawn.space), dtype=torch.float64, device=device)
    for term in drawn.background:
        value[term.powers] = term.coefficient
    power = torch.arange(highest + 1, device=device)
    for n in drawn.space:
        coordinate = 2 * _middles(n, device) - 1
        value = torch.tensordot(value, coordinate[:, None] ** power, ([0], [1]))
    return value


def _lobes(
    drawn: DistortionDrawn, source: Source, rows: slice, device: torch.device | str
) -> Float[Tensor, "*rows_of_space"]:
    """q / 2 (a / r)^3 (3 cos^2 theta - 1) outside the sphere, 0 within, for some rows of the first axis."""
    extents = [n * size for n, size in zip(drawn.space, drawn.spacing, strict=True)]
    radius = source.radius * max(extents)
    squares = []
    for axis, (n, extent, centre) in enumerate(zip(drawn.space, extents, source.centre, strict=True)):
        shape = [1] * len(drawn.space)
        shape[axis] = n
        squares.append((((_middles(n, device) - centre) * (extent / radius)) ** 2).reshape(shape))
    squares[0] = squares[0][rows]
    # in radii
    distance_squared = sum(squares[1:], squares[0])
    along = torch.zeros_like(squares[0]) if drawn.b0_axis is None else squares[drawn.b0_axis]
    inverse_squared = distance_squared.clamp(min=1).reciprocal_()
    lobes = source.strength / 2 * inverse_squared.sqrt() * inverse_squared * (3 * along * inverse_squared - 1)
    return lobes.masked_fill_(distance_squared < 1, 0)
