"""Affine maps of magnetisation whose entries are parameter maps: 3 x 3 matrices that know their zeros and ones.

The field of view has tens of thousands of voxels and a matrix nine entries, many of them 0 or 1: entries are kept
apart, each a map or a plain number, so that a product costs what its non-trivial entries cost.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# a map, or a number that is the same everywhere (0 and 1 cost nothing)
Entry = Tensor | float
Vector = tuple[Entry, Entry, Entry]
Matrix = tuple[Vector, Vector, Vector]


def times(a: Entry, b: Entry) -> Entry:
    """Product that keeps exact zeros and ones as numbers."""
    if (isinstance(a, float) and a == 0) or (isinstance(b, float) and b == 0):
        return 0.0
    if isinstance(a, float) and a == 1:
        return b
    if isinstance(b, float) and b == 1:
        return a
    return a * b


def plus(a: Entry, b: Entry) -> Entry:
    if isinstance(a, float) and a == 0:
        return b
    if isinstance(b, float) and b == 0:
        return a
    return a + b


def dot(a: Vector, b: Vector, start: Entry = 0.0) -> Entry:
    """start + a . b"""
    total = start
    for x, y in zip(a, b, strict=True):
        if isinstance(total, Tensor) and isinstance(x, Tensor) and isinstance(y, Tensor):
            total = torch.addcmul(total, x, y)
        else:
            total = plus(total, times(x, y))
    return total


def minus(a: Entry, b: Entry, c: Entry, d: Entry) -> Entry:
    """a b - c d"""
    first, second = times(a, b), (c, d)
    if isinstance(first, Tensor) and isinstance(second[0], Tensor) and isinstance(second[1], Tensor):
        return torch.addcmul(first, second[0], second[1], value=-1)
    return plus(first, times(-1.0, times(c, d)))


def cross(a: Vector, b: Vector) -> Vector:
    return minus(a[1], b[2], a[2], b[1]), minus(a[2], b[0], a[0], b[2]), minus(a[0], b[1], a[1], b[0])


def scaled(a: Vector, factor: Entry) -> Vector:
    return times(a[0], factor), times(a[1], factor), times(a[2], factor)


def transposed(a: Matrix) -> Matrix:
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = a
    return (xx, yx, zx), (xy, yy, zy), (xz, yz, zz)


def product(a: Matrix, b: Matrix) -> Matrix:
    columns = transposed(b)
    x, y, z = (tuple(dot(row, column) for column in columns) for row in a)
    return x, y, z  # type: ignore[return-value]


def image(a: Matrix, v: Vector, start: Vector = (0.0, 0.0, 0.0)) -> Vector:
    return dot(a[0], v, start[0]), dot(a[1], v, start[1]), dot(a[2], v, start[2])


IDENTITY: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@dataclass(frozen=True, slots=True)
class Affine:
    """M -> matrix M + offset, in each voxel.

    Attributes:
        matrix: rows [1].
        offset: [M0].
    """

    matrix: Matrix = IDENTITY
    offset: Vector = (0.0, 0.0, 0.0)

    def after(self, first: "Affine") -> "Affine":
        """`first`, then this."""
        return Affine(product(self.matrix, first.matrix), image(self.matrix, first.offset, self.offset))

    def __call__(self, m: Vector) -> Vector:
        return image(self.matrix, m, self.offset)

    def to(self, dtype: torch.dtype) -> "Affine":
        """The map with its entries in another dtype."""
        return Affine(tuple(cast(row, dtype) for row in self.matrix), cast(self.offset, dtype))  # type: ignore[arg-type]


def cast(v: Vector, dtype: torch.dtype) -> Vector:
    x, y, z = (entry.to(dtype) if isinstance(entry, Tensor) else entry for entry in v)
    return x, y, z
