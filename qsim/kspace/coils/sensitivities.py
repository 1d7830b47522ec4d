"""Sensitivities of circular receive loops on a cylinder around the object.

By reciprocity a coil receives as it would transmit: its sensitivity is the field of a unit current in it (`field.py`),
the part that turns with the spins,

    s(r) = (Bx - i By) / 2

with x = axis -1, y = axis -2 and the main field along z = axis -3.

Assumes: thin wire, no waves and no shielding in the object (low field), loops that do not couple to each other.
Source: Hoult and Richards 1976, doi:10.1016/0022-2364(76)90233-X (reciprocity).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi, sin
from typing import Literal

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from qsim.kspace.artefacts.amounts import check_amount
from qsim.kspace.coils.field import Loop, Vector, loop_field
from qsim.values import value


@dataclass(frozen=True, slots=True)
class CoilsDrawn:
    """An array as it was put up. Attributes: loops: one a coil."""

    loops: tuple[Loop, ...]

    def sensitivities(
        self,
        space: tuple[int, ...],
        spacing_mm: tuple[float, ...] | None = None,
        dtype: torch.dtype = torch.complex64,
        device: torch.device | str = "cpu",
    ) -> Complex[Tensor, "c *space"]:
        """`loop_sensitivities` of these loops."""
        return loop_sensitivities(self.loops, space, spacing_mm, dtype, device)


@value
class CoilArray:
    """Rows of circular loops on a cylinder around the object, their normals through its axis.

    Lengths are in fields of view: the larger extent of the plane y x. Coils count around the ring from +x (to +y), row
    after row from the lowest z.

    Attributes:
        coils: how many, all rows together.
        rows: rings along z.
        radius: of the cylinder [fields of view].
        loop_radius: None: loops of a ring touch, but at most half the radius of the cylinder [fields of view].
        row_distance: between rings; None: loops of neighbouring rings touch [fields of view].
        first_angle: where the first coil stands [rad].
        jitter: SD of the position of a loop along each axis, when drawn [fields of view].
        tilt: SD of the direction of its normal along both angles, when drawn [rad].
    """

    kind: Literal["ring"] = "ring"
    coils: int = 8
    rows: int = 1
    radius: float = 0.75
    loop_radius: float | None = None
    row_distance: float | None = None
    first_angle: float = 0.0
    jitter: float = 0.0
    tilt: float = 0.0

    def __post_init__(self) -> None:
        if self.coils < 1:
            raise ValueError(f"coils must be at least 1, got {self.coils}")
        if self.rows < 1 or self.coils % self.rows:
            raise ValueError(f"rows must divide coils ({self.coils}), got {self.rows}")
        for name in ("radius", "loop_radius", "row_distance"):
            length = getattr(self, name)
            if length is not None:
                check_amount(name, length)
                if length <= 0:
                    raise ValueError(f"{name} must be positive, got {length}")
        check_amount("first_angle", self.first_angle)
        check_amount("jitter", self.jitter, low=0)
        check_amount("tilt", self.tilt, low=0)

    def loops(self) -> tuple[Loop, ...]:
        """As designed, without jitter."""
        around = self.coils // self.rows
        a = self.loop_radius
        if a is None:
            a = self.radius * (min(sin(pi / around), 0.5) if around > 2 else 0.5)
        step = 2 * a if self.row_distance is None else self.row_distance
        loops = []
        for row in range(self.rows):
            z = (row - (self.rows - 1) / 2) * step
            for number in range(around):
                angle = self.first_angle + 2 * pi * number / around
                x, y = float(np.cos(angle)), float(np.sin(angle))
                loops.append(Loop((self.radius * x, self.radius * y, z), (x, y, 0.0), a))
        return tuple(loops)

    def draw(self, rng: np.random.Generator) -> CoilsDrawn:
        """Put the loops up with jitter and tilt; five normal numbers a coil."""
        drawn = []
        for loop in self.loops():
            shift, angles = self.jitter * rng.standard_normal(3), self.tilt * rng.standard_normal(2)
            centre = np.asarray(loop.centre) + shift
            x, y, _ = loop.normal
            # across the normal: along the ring, and along z
            normal = np.asarray(loop.normal) + np.tan(angles[0]) * np.array([-y, x, 0]) + [0, 0, np.tan(angles[1])]
            drawn.append(Loop(_vector(centre), _vector(normal / np.linalg.norm(normal)), loop.radius))
        return CoilsDrawn(tuple(drawn))

    def sensitivities(
        self,
        space: tuple[int, ...],
        spacing_mm: tuple[float, ...] | None = None,
        dtype: torch.dtype = torch.complex64,
        device: torch.device | str = "cpu",
    ) -> Complex[Tensor, "c *space"]:
        """`loop_sensitivities` of the array as designed."""
        return loop_sensitivities(self.loops(), space, spacing_mm, dtype, device)


def loop_sensitivities(
    loops: Sequence[Loop],
    space: tuple[int, ...],
    spacing_mm: tuple[float, ...] | None = None,
    dtype: torch.dtype = torch.complex64,
    device: torch.device | str = "cpu",
) -> Complex[Tensor, "c *space"]:
    """Sensitivities whose root of sum of squares is 1 at the centre, voxel N // 2.

        s_j = (Bx - i By) / 2 over sqrt(sum_j |s_j(0)|^2)

    Two axes are the slice z = 0.

    Args:
        space: extent (y, x) or (z, y, x) [voxels].
        spacing_mm: of the voxels; None: cubes.
        dtype: complex64 or complex128; computed in double precision.
    Raises: ValueError if a voxel lies on a wire, or nothing is received at the centre.
    """
    if not loops:
        raise ValueError("loops is empty; give at least one")
    if dtype not in (torch.complex64, torch.complex128):
        raise ValueError(f"dtype must be complex64 or complex128, got {dtype}")
    z, y, x = _coordinates(space, spacing_mm)
    total = np.zeros(())
    result = np.empty((len(loops), z.size, y.size, x.size), np.complex128)
    for number, loop in enumerate(loops):
        total = total + np.abs(_received(np.zeros((3, 1)), loop)[0]) ** 2
        # slice by slice: the temporaries stay small
        for k, height in enumerate(z):
            points = np.stack(np.broadcast_arrays(x[None, :], y[:, None], height))
            result[number, k] = _received(points, loop)
    if not total > 0:
        raise ValueError("loops: none of them receives anything at the centre of the field of view; turn one of them")
    result /= np.sqrt(total)
    return torch.from_numpy(result.reshape(len(loops), *space)).to(dtype=dtype, device=device)


def _received(points: Float[np.ndarray, "3 *s"], loop: Loop) -> Complex[np.ndarray, "*s"]:
    """(Bx - i By) / 2."""
    field = loop_field(points, loop)
    return (field[0] - 1j * field[1]) / 2


def _coordinates(space: tuple[int, ...], spacing_mm: tuple[float, ...] | None) -> tuple[np.ndarray, ...]:
    """z, y, x of the voxels from the centre [fields of view]; z = 0 for two axes."""
    if len(space) not in (2, 3) or min(space) < 1:
        raise ValueError(f"space must be (y, x) or (z, y, x), none of them empty, got {space}")
    spacing = (1.0,) * len(space) if spacing_mm is None else spacing_mm
    if len(spacing) != len(space) or not all(0 < s < np.inf for s in spacing):
        raise ValueError(f"spacing_mm must be a positive length for each of the {len(space)} axes, got {spacing_mm}")
    extent = max(n * s for n, s in zip(space[-2:], spacing[-2:], strict=True))
    axes = [(np.arange(n) - n // 2) * (s / extent) for n, s in zip(space, spacing, strict=True)]
    return tuple(axes if len(axes) == 3 else [np.zeros(1), *axes])


def _vector(v: Float[np.ndarray, " 3"]) -> Vector:
    return float(v[0]), float(v[1]), float(v[2])
