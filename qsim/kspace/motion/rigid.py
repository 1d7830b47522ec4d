"""Rotations of images by shears, each a translation of every line along one axis by its own distance.

    2D: R = S_a S_b S_a        3D: R = S_a S_b S_c S_a        S_a = 1 + e_a u^T,   u_a = 0

A shear along a moves the line at (r_b, r_c) by d = u_b (r_b - c_b) + u_c (r_c - c_c). Along that line it is a ramp:

    F_a{S m}(k_a, r_b, r_c) = F_a{m}(k_a, r_b, r_c) exp(-2 pi i k_a d / N_a)

No interpolation: a rotation keeps the energy, is exact for an image that holds no frequency that a shear carries past
Nyquist, and its shears undone in the reverse order give the image back. The image is one period: what leaves on one
side enters on the other, as in the phase direction of a scanner. That holds for every single shear: an object should
leave room for the largest slope times half the field of view. A rigid motion of voxels that are no cubes, D^-1 R D
with the diagonal D of their edges, is a product of such shears as well.

Nyquist: even sizes hold only one of k = N/2 and -N/2. A shear moves that one wave by the nearest whole number of
voxels, exp(-i pi round(d)): real images stay real, energy is kept, and whole distances are circular shifts.

Source: Unser, Thevenaz and Yaroslavsky 1995, doi:10.1109/83.465102 (three shears in 2D); Cox and Jesmanowicz 1999,
doi:10.1002/(SICI)1522-2594(199912)42:6<1014::AID-MRM3>3.0.CO;2-F (four shears in 3D).
"""

from dataclasses import dataclass
from itertools import permutations
from math import ceil, prod

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from qsim.kspace.motion.lines import Lines, powers, slabs

# shears of larger turns are refused [rad]
LARGEST_ANGLE = np.radians(80)
# turns larger than this are made in parts [rad]
_PART = np.radians(45)
# shears this much larger than the smallest possible are taken for their speed [1]
_LARGER = 1.5
# poses are rigid, and shears make them up, to this: below a thousandth of a voxel anywhere [1]
_TOLERANCE = 1e-6
_NOTHING = 1e-13


Axes = tuple[int | None, int, int]


@dataclass(frozen=True, slots=True)
class Shear:
    """A shear S = 1 + e_a u^T.

    Attributes: axis: a, along which lines move; slopes: u, distance per voxel of each axis, 0 for its own [1].
    """

    axis: int
    slopes: tuple[float, ...]


def is_identity(matrix: Float[np.ndarray, "d d"]) -> bool:
    """Whether nothing turns, to the rounding of a pose."""
    return bool(np.abs(matrix - np.eye(len(matrix))).max() < 1e-12)


def is_rigid(matrix: Float[np.ndarray, "d d"]) -> bool:
    """Whether a matrix in voxels is a rotation in space, for some edges of the voxels.

    M^T G M = G  for a diagonal positive G, the squares of the edges
    """
    d = len(matrix)
    if np.linalg.det(matrix) < 0:
        return False
    # linear in G: columns of the equations, one per edge
    columns = [np.outer(matrix[i], matrix[i]) - np.outer(np.eye(d)[i], np.eye(d)[i]) for i in range(d)]
    equations = np.stack([column.ravel() for column in columns], 1)
    # cubes
    if np.abs(equations.sum(1)).max() < _TOLERANCE:
        return True
    _, sizes, rows = np.linalg.svd(equations)
    free = rows[sizes < _TOLERANCE * max(1.0, sizes[0])]
    # with a turn about one axis the edges are not unique: those nearest to cubes
    nearest = free.T @ (free @ np.ones(d))
    return len(free) > 0 and bool(nearest.min() > _TOLERANCE)


def angle_of(matrix: Float[np.ndarray, "d d"]) -> float:
    """Angle of a rotation, also of one in voxels that are no cubes [rad]."""
    return float(np.arccos(np.clip((np.trace(matrix) - (len(matrix) - 2)) / 2, -1, 1)))


def parts_of(matrix: Float[np.ndarray, "d d"]) -> int:
    """Into how many equal turns a rotation is cut, so that none is larger than 45 degrees."""
    return max(1, ceil(angle_of(matrix) / _PART - _TOLERANCE))


def part_turn(matrix: Float[np.ndarray, "d d"], parts: int) -> Float[np.ndarray, "d d"]:
    """The rotation that makes this one if it is done so many times."""
    from scipy.linalg import fractional_matrix_power

    part = np.real(fractional_matrix_power(matrix, 1 / parts))
    if np.abs(np.linalg.matrix_power(part, parts) - matrix).max() > _TOLERANCE:
        raise ValueError("poses: a turn by 180 degrees can be cut in two ways; turn by a little less")
    return part


def shears_of(matrix: Float[np.ndarray, "d d"], space: tuple[int, ...]) -> tuple[Shear, ...]:
    """Shears whose product is a rotation, the first to be applied first: along the axes a, c, b, a, or a, b, a.

    Of the orders of axes whose shears are small the first is taken: those that begin with the slowest axis in memory
    are the quickest. It depends on nothing else, so that a pose is one image whichever of its lines are wanted.

    Args:
        space: extent of the image [voxels]; an axis of one voxel cannot be sheared.
    Raises: ValueError if the rotation is larger than `LARGEST_ANGLE`, or turns an axis of one voxel.
    """
    d = len(matrix)
    if is_identity(matrix):
        return ()
    angle = angle_of(matrix)
    if angle > LARGEST_ANGLE + _TOLERANCE:
        raise ValueError(
            f"poses: a rotation by {np.degrees(angle):.1f} degrees is beyond {np.degrees(LARGEST_ANGLE):.0f}; "
            "turn by a part of it several times"
        )
    ranked: list[tuple[float, tuple[Shear, ...]]] = []
    for order in permutations(range(d)):
        shears = _factors(matrix, order)
        if shears is not None:
            ranked.append((max((_strength(shear, space) for shear in shears), default=0.0), shears))
    if not ranked:
        raise ValueError(f"poses: {matrix.tolist()} is no product of shears")
    smallest = min(largest for largest, _ in ranked)
    shears = next(shears for largest, shears in ranked if largest <= _LARGER * smallest)
    for shear in shears:
        flat = [axis for axis in range(d) if space[axis] == 1 and (axis == shear.axis or shear.slopes[axis] != 0)]
        if flat:
            raise ValueError(f"poses: a rotation turns axis {flat[0]}, which is one voxel wide; rotate in the plane")
    return shears


def _strength(shear: Shear, space: tuple[int, ...]) -> float:
    """How far a shear carries the corners of the image or of k-space, over their extent, whichever is farther [1]."""
    return max(abs(slope) * max(1.0, space[across] / space[shear.axis]) for across, slope in enumerate(shear.slopes))


def _factors(matrix: Float[np.ndarray, "d d"], order: tuple[int, ...]) -> tuple[Shear, ...] | None:
    """S_a S_b S_a or S_a S_b S_c S_a of a matrix of determinant 1, or nothing if these axes cannot."""
    d = len(matrix)
    m = matrix[np.ix_(order, order)]
    last, middle, first = np.zeros(d), np.zeros(d), np.zeros(d)
    steps: list[tuple[int, np.ndarray]]
    if d == 2:
        middle[0] = m[1, 0]
        first[1] = _quotient(m[1, 1] - 1, m[1, 0])
        last[1] = _quotient(m[0, 0] - 1, m[1, 0])
        steps = [(0, first), (1, middle), (0, last)]
    else:
        # rows c, b and a of the product in turn; each row fixes what is left of its shear
        inner = np.zeros(d)
        inner[0] = m[2, 0]
        first[2] = _quotient(m[2, 2] - 1, m[2, 0])
        middle[0] = m[1, 0] * m[2, 2] - m[2, 0] * m[1, 2]
        middle[2] = m[1, 2] - first[2] * m[1, 0]
        first[1] = _quotient(m[1, 1] - 1 - middle[2] * m[2, 1], middle[0])
        inner[1] = m[2, 1] - m[2, 0] * first[1]
        minor = m[1:, 1:].T
        if abs(np.linalg.det(minor)) < _TOLERANCE:
            return None
        last[1:] = np.linalg.solve(minor, m[0, 1:] - first[1:])
        steps = [(0, first), (2, inner), (1, middle), (0, last)]
    product = np.eye(d)
    for row, slopes in steps:
        slopes[np.abs(slopes) < _NOTHING] = 0
        product[row] += slopes @ product
    if not np.abs(product - m).max() < _TOLERANCE:
        return None
    back = np.argsort(order)
    moving = [step for step in steps[1:-1] if step[1].any()]
    if not moving:
        return ()
    return tuple(
        Shear(order[row], tuple(float(slope) for slope in slopes[back]))
        for row, slopes in [steps[0], *moving, steps[-1]]
    )


def _quotient(above: float, below: float) -> float:
    """0 / 0 is 0: no shear is needed there."""
    if abs(below) < _NOTHING:
        return 0.0
    return float(above / below)


def shear_ramp(n: int, slope: float, across: int, like: Tensor) -> Complex[Tensor, "across n"]:
    """exp(-2 pi i k d / n), d = slope (r - c), with k in the order of the FFT and Nyquist as this module says.

    Args:
        n: extent along the shear [voxels].
        across: extent of the axis that sets the distance [voxels].
    """
    distance = slope * (torch.arange(across, dtype=torch.float64) - across // 2)
    half = powers(-distance / n, n // 2 + 1, like)
    if n % 2 == 0:
        half[:, n // 2] = 1 - 2 * (torch.round(distance) % 2).to(like.device)
    # k and -k are conjugate
    return torch.cat([half, half[:, 1 : (n + 1) // 2].flip(1).conj()], 1)


class Rotations:
    """Lines of the spectrum of an image under several rotations.

    The shears of a rotation go along the axes a, c, b, a; in here the axes of an image stand as (c, b, a), and in 2D
    the channels stand for c. Slabs of b see the first two shears, then slabs of c the other two: what is done along
    two axes is done while the slab is in the cache, and nothing large is asked for in between. The first transform is
    shared by all rotations that begin with the same axis.
    """

    def __init__(self, values: Complex[Tensor, "c *space"]) -> None:
        self._values = values
        self._space = tuple(values.shape[1:])
        self._begun: dict[int, Tensor] = {}
        self._between: Tensor | None = None
        self._end: Tensor | None = None

    def into(self, result: Complex[Tensor, "c *space"], shears: tuple[Shear, ...], lines: Lines) -> None:
        """Put lines of the orthonormal spectrum of the sheared image in their places.

        Args:
            shears: as `shears_of` gives them.
        """
        a = shears[-1].axis
        if a not in self._begun:
            self._begun[a] = torch.fft.fft(self._values, dim=a + 1)
        begun = self._begun[a]
        # where only two axes are sheared c is the third
        inner = [shear.axis for shear in shears if shear.axis != a]
        b = inner[-1]
        if len(self._space) == 2:
            axes: Axes = (None, b, a)
            steps = self._steps(shears, axes, lines)
            start, end = begun.permute(0, 1 + b, 1 + a), result.permute(0, 1 + b, 1 + a)
            for part in slabs(start, 0):
                slab = _ended(start[part], steps, True, axes, part, lines)
                lines.put(end[part], slab, axes)
            return
        axes = (3 - a - b, b, a)
        steps = self._steps(shears, axes, lines)
        for start, end in zip(begun, result, strict=True):
            self._volume(start.permute(axes), end.permute(axes), steps, len(inner) == 1, axes, lines)

    def _volume(
        self, start: Tensor, result: Tensor, steps: list["_Step"], in_plane: bool, axes: Axes, lines: Lines
    ) -> None:
        if not in_plane:
            first, second, *steps = steps
            if self._between is None or self._between.shape != start.shape:
                # b innermost: the transform along it, which comes next, need not turn the axes round
                self._between = start.new_empty(start.transpose(1, 2).shape).transpose(1, 2)
            for part in slabs(start, 1):
                slab = torch.fft.ifft(first.onto(start[:, part], 1, part), dim=2)
                slab = second.onto(torch.fft.fft(slab, dim=0), 1, part)
                self._between[:, part] = torch.fft.ifft(slab, dim=0)
            start = self._between
        end: Tensor | None = None
        for part in slabs(start, 0):
            slab = _ended(start[part], steps, in_plane, axes, part, lines)
            if end is None:
                # as the transform along b left it
                end = self._room(start.shape[0], slab.shape[2], slab.shape[1]).transpose(1, 2)
            end[part] = slab
        assert end is not None
        for part in slabs(end, 1):
            slab = lines.taken(torch.fft.fft(end[:, part], dim=0, norm="ortho"), 0, axes[0])
            lines.within(axes[1], part).put(result, slab, axes)

    def _steps(self, shears: tuple[Shear, ...], axes: Axes, lines: Lines) -> list["_Step"]:
        steps = [_Step.of(shear, axes, self._space, self._values) for shear in shears]
        return [*steps[:-1], steps[-1].pruned(lines, axes)]

    def _room(self, *shape: int) -> Tensor:
        """Memory for what is left before the last transform; asked for once, as long as it is enough."""
        if self._end is None or self._end.numel() < prod(shape):
            self._end = self._values.new_empty(prod(shape))
        return self._end[: prod(shape)].view(shape)


def _ended(slab: Tensor, steps: list["_Step"], begun: bool, axes: Axes, part: slice, lines: Lines) -> Tensor:
    """Shears of a slab of c up to the last, whose axis stays in k-space, and b brought there."""
    *shears, last = steps
    for shear in shears:
        slab = slab if begun else torch.fft.fft(slab, dim=shear.dim)
        slab = torch.fft.ifft(shear.onto(slab, 0, part), dim=shear.dim)
        begun = False
    slab = lines.taken(torch.fft.fft(slab, dim=2, norm="ortho"), 2, axes[2])
    slab = last.onto(slab, 0, part)
    return lines.taken(torch.fft.fft(slab, dim=1, norm="ortho"), 1, axes[1])


@dataclass(frozen=True, slots=True)
class _Step:
    """A shear within three axes.

    Attributes: dim: which of them moves; ramps: one for each axis that sets the distance, in the shape of the three.
    """

    dim: int
    ramps: tuple[Tensor, ...]

    @classmethod
    def of(cls, shear: Shear, axes: Axes, space: tuple[int, ...], like: Tensor) -> "_Step":
        dim = axes.index(shear.axis)
        ramps = []
        for across, slope in enumerate(shear.slopes):
            if slope != 0:
                # k is the innermost in memory, as a transform leaves it
                ramp = shear_ramp(space[shear.axis], slope, space[across], like)
                other = axes.index(across)
                ramps.append((ramp if other < dim else ramp.T).unsqueeze(3 - dim - other))
        return cls(dim, tuple(ramps))

    def pruned(self, lines: Lines, axes: Axes) -> "_Step":
        """With the kept samples of its axis only."""
        return _Step(self.dim, tuple(lines.taken(ramp, self.dim, axes[self.dim]) for ramp in self.ramps))

    def onto(self, slab: Tensor, dim: int, part: slice) -> Tensor:
        """A slab, which is a part of one axis, times the ramps; the slab stays as it is."""
        where = tuple(part if place == dim else slice(None) for place in range(3))
        for number, ramp in enumerate(self.ramps):
            factor = ramp[where] if ramp.shape[dim] > 1 else ramp
            slab = slab.mul_(factor) if number else slab * factor
        return slab
