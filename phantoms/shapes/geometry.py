"""Analytic shapes with exact partial volume."""

import zlib
from collections.abc import Iterator
from functools import lru_cache
from math import isfinite
from typing import Literal

import numpy as np
from jaxtyping import Float

from phantoms.base import (
    Slab,
    Split,
    VolumePhantom,
    check_slice_axis,
    say_slabs,
    slice_first,
    split_slabs,
    tissue_extent,
)
from phantoms.shapes.overlap import ball_boxes, disc_rectangles, intervals
from qsim.errors import InputError
from qsim.values import value

Vector = tuple[float, ...]
Edges = tuple[Float[np.ndarray, "_"], ...]
"""Borders of the voxels along each axis [mm]: n + 1 of them for n voxels."""


@value
class Disc:
    """A disc of a 2D phantom.

    Attributes:
        tissue: what it is made of.
        centre_mm: from the centre of the volume [mm].
        radius_mm: [mm].
    """

    shape: Literal["disc"] = "disc"
    tissue: str
    centre_mm: tuple[float, float] = (0.0, 0.0)
    radius_mm: float

    def __post_init__(self) -> None:
        _check(centre_mm=self.centre_mm)
        _check_positive(radius_mm=(self.radius_mm,))

    def coverage(self, edges: Edges, shift: Vector) -> Float[np.ndarray, "y x"]:
        """Share of each pixel that the disc covers, exact [1]."""
        y, x = _centred(edges, self.centre_mm, shift)
        return disc_rectangles(y, x, float(self.radius_mm))


@value
class Ellipse:
    """An ellipse of a 2D phantom, its axes along those of the volume.

    Attributes:
        tissue: what it is made of.
        centre_mm: from the centre of the volume [mm].
        semi_axes_mm: half the extent along each axis [mm].
    """

    shape: Literal["ellipse"] = "ellipse"
    tissue: str
    centre_mm: tuple[float, float] = (0.0, 0.0)
    semi_axes_mm: tuple[float, float]

    def __post_init__(self) -> None:
        _check(centre_mm=self.centre_mm)
        _check_positive(semi_axes_mm=self.semi_axes_mm)

    def coverage(self, edges: Edges, shift: Vector) -> Float[np.ndarray, "y x"]:
        """Share of each pixel that the ellipse covers, exact: a unit disc on scaled axes [1]."""
        y, x = _centred(edges, self.centre_mm, shift)
        return disc_rectangles(y / self.semi_axes_mm[0], x / self.semi_axes_mm[1], 1.0)


@value
class Rectangle:
    """A rectangle of a 2D phantom, its sides along the axes of the volume.

    Attributes:
        tissue: what it is made of.
        centre_mm: from the centre of the volume [mm].
        extent_mm: whole length of each side [mm].
    """

    shape: Literal["rectangle"] = "rectangle"
    tissue: str
    centre_mm: tuple[float, float] = (0.0, 0.0)
    extent_mm: tuple[float, float]

    def __post_init__(self) -> None:
        _check(centre_mm=self.centre_mm)
        _check_positive(extent_mm=self.extent_mm)

    def coverage(self, edges: Edges, shift: Vector) -> Float[np.ndarray, "y x"]:
        """Share of each pixel that the rectangle covers, exact [1]."""
        y, x = _centred(edges, self.centre_mm, shift)
        return np.multiply.outer(intervals(y, self.extent_mm[0]), intervals(x, self.extent_mm[1]))


@value
class Ball:
    """A ball of a 3D phantom.

    Attributes:
        tissue: what it is made of.
        centre_mm: from the centre of the volume [mm].
        radius_mm: [mm].
    """

    shape: Literal["ball"] = "ball"
    tissue: str
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    radius_mm: float

    def __post_init__(self) -> None:
        _check(centre_mm=self.centre_mm)
        _check_positive(radius_mm=(self.radius_mm,))

    def coverage(self, edges: Edges, shift: Vector) -> Float[np.ndarray, "z y x"]:
        """Share of each voxel that the ball covers, to 1e-10 [1]."""
        z, y, x = _centred(edges, self.centre_mm, shift)
        return ball_boxes(z, y, x, float(self.radius_mm))


@value
class Cylinder:
    """A cylinder of a 3D phantom along one of its axes.

    Attributes:
        tissue: what it is made of.
        axis: the axis of the volume along which it lies.
        centre_mm: from the centre of the volume [mm].
        radius_mm: [mm].
        length_mm: [mm].
    """

    shape: Literal["cylinder"] = "cylinder"
    tissue: str
    axis: Literal[0, 1, 2] = 0
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    radius_mm: float
    length_mm: float

    def __post_init__(self) -> None:
        _check(centre_mm=self.centre_mm)
        _check_positive(radius_mm=(self.radius_mm,), length_mm=(self.length_mm,))

    def coverage(self, edges: Edges, shift: Vector) -> Float[np.ndarray, "z y x"]:
        """Share of each voxel that the cylinder covers, exact [1]."""
        centred = _centred(edges, self.centre_mm, shift)
        a, b = (centred[i] for i in range(3) if i != self.axis)
        along = intervals(centred[self.axis], self.length_mm)
        return np.moveaxis(np.multiply.outer(along, disc_rectangles(a, b, float(self.radius_mm))), 0, self.axis)


@value
class Box:
    """A box of a 3D phantom, its sides along the axes of the volume.

    Attributes:
        tissue: what it is made of.
        centre_mm: from the centre of the volume [mm].
        extent_mm: whole length of each side [mm].
    """

    shape: Literal["box"] = "box"
    tissue: str
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    extent_mm: tuple[float, float, float]

    def __post_init__(self) -> None:
        _check(centre_mm=self.centre_mm)
        _check_positive(extent_mm=self.extent_mm)

    def coverage(self, edges: Edges, shift: Vector) -> Float[np.ndarray, "z y x"]:
        """Share of each voxel that the box covers, exact [1]."""
        z, y, x = (
            intervals(e, length)
            for e, length in zip(_centred(edges, self.centre_mm, shift), self.extent_mm, strict=True)
        )
        return z[:, None, None] * y[:, None] * x


SHAPES = (Disc, Ellipse, Rectangle, Ball, Cylinder, Box)
AnyShape = Disc | Ellipse | Rectangle | Ball | Cylinder | Box
_AXES = {"disc": 2, "ellipse": 2, "rectangle": 2, "ball": 3, "cylinder": 3, "box": 3}


@value
class Geometry:
    """Shapes of known size, painted one over the other.

    The coverage c of a voxel by each shape is exact. A later shape covers the earlier ones:

        f_k = c_k prod_{l > k} (1 - c_l),

    which is exact wherever no voxel is cut by two borders at once; in a voxel that is, the later shape is taken to
    cover the same share of the earlier shape as of the voxel.

    Each subject holds the same shapes, each moved by its own shift, uniform within +-`jitter_mm` along every axis,
    drawn from `seed` and the number of the subject. The last `test_subjects` subjects are the test split. With one
    subject, unmoved, a 3D phantom is split into slabs as `MNI` is; a 2D one is test only.

    Attributes:
        size: voxels along each axis; two numbers or three.
        spacing_mm: voxel size; one number per axis [mm].
        shapes: from the bottom to the top.
        subjects: how many.
        test_subjects: how many of them, the last ones, are held out.
        jitter_mm: largest shift of a shape along an axis [mm].
        seed: of the shifts.
        test_share, gap: of the slabs, as in `MNI`; used with one subject only.
    """

    kind: Literal["geometry"] = "geometry"
    size: tuple[int, int] | tuple[int, int, int]
    spacing_mm: tuple[float, float] | tuple[float, float, float]
    shapes: tuple[AnyShape, ...]
    subjects: int = 10
    test_subjects: int = 2
    jitter_mm: float = 2.0
    seed: int = 0
    test_share: float = 0.2
    gap: int = 5

    def __post_init__(self) -> None:
        if any(n < 1 for n in self.size):
            raise ValueError(f"size must be at least 1 along every axis, got {self.size}")
        _check_positive(spacing_mm=self.spacing_mm)
        if len(self.spacing_mm) != len(self.size):
            raise ValueError(f"spacing_mm must have one number per axis of size {self.size}, got {self.spacing_mm}")
        if not self.shapes:
            raise ValueError("shapes is empty; name at least one")
        for i, shape in enumerate(self.shapes):
            if _AXES[shape.shape] != len(self.size):
                raise ValueError(
                    f"shapes[{i}]: a {shape.shape} has {_AXES[shape.shape]} dimensions, size has {len(self.size)}"
                )
        if self.subjects < 1:
            raise ValueError(f"subjects must be at least 1, got {self.subjects}")
        if self.subjects > 1 and not 1 <= self.test_subjects < self.subjects:
            raise ValueError(
                f"test_subjects must lie between 1 and subjects - 1 = {self.subjects - 1}, got {self.test_subjects}"
            )
        if not (isfinite(self.jitter_mm) and self.jitter_mm >= 0):
            raise ValueError(f"jitter_mm must be finite and at least 0, got {self.jitter_mm}")
        if self.subjects > 1 and self.jitter_mm == 0:
            raise ValueError(
                "jitter_mm: with 0 all subjects are the same and train is test; move them, or set subjects: 1"
            )
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if not 0 < self.test_share < 1:
            raise ValueError(f"test_share must lie between 0 and 1, got {self.test_share}")
        if self.gap < 0:
            raise ValueError(f"gap must be at least 0 slices, got {self.gap}")

    @property
    def tissues(self) -> tuple[str, ...]:
        """Names of the tissues, in the order in which the shapes name them first."""
        return tuple(dict.fromkeys(shape.tissue for shape in self.shapes))

    def describe(self, slice_axis: int) -> str:
        """What this is and how train and test are kept apart, for reports."""
        what = (
            f"{len(self.shapes)} analytic shapes with exact partial volume on {' x '.join(map(str, self.size))} voxels"
        )
        if self.subjects > 1:
            return (
                f"{what}; {self.subjects} subjects whose shapes are shifted by up to {self.jitter_mm:g} mm: train "
                f"0 to {self.subjects - self.test_subjects - 1}, test {self.subjects - self.test_subjects} to "
                f"{self.subjects - 1}"
            )
        if len(self.size) == 2:
            return f"{what}; one subject, test only"
        return f"{what}; one subject, {say_slabs(self.slabs(slice_axis), slice_axis, self.gap)}"

    def slabs(self, slice_axis: int) -> dict[Split, tuple[Slab, ...]]:
        """First slice and the one after the last of every slab, by split; whole volumes where subjects are split."""
        if len(self.size) == 2:
            slice_axis = 0
        check_slice_axis(slice_axis, len(self.size))
        if self.subjects > 1:
            whole = ((0, self.size[slice_axis]),)
            return {"train": whole, "test": whole}
        return _slabs(self, slice_axis)

    def load(self, split: Split, slice_axis: int) -> VolumePhantom:
        """Compute one split.

        Args:
            slice_axis: of a 3D phantom; a 2D one is a single slice, whatever is asked.
        Raises: InputError if the axis does not exist, the split is empty or a subject holds no tissue.
        """
        if len(self.size) == 2:
            return _load(self, split, 0)
        check_slice_axis(slice_axis, 3)
        return _load(self, split, slice_axis)

    def fractions(self, subject: int) -> Float[np.ndarray, "t *space"]:
        """Fractions of one subject, in double precision [1]."""
        edges = tuple(
            (np.arange(n + 1) - n / 2) * spacing for n, spacing in zip(self.size, self.spacing_mm, strict=True)
        )
        tissues = self.tissues
        fractions = np.zeros((len(tissues), *self.size))
        for shape, shift in zip(self.shapes, self._shifts(subject), strict=True):
            coverage = shape.coverage(edges, shift)
            fractions *= 1 - coverage
            fractions[tissues.index(shape.tissue)] += coverage
        return fractions

    def _shifts(self, subject: int) -> Iterator[Vector]:
        """Shift of each shape [mm]."""
        if self.subjects == 1:
            return iter([(0.0,) * len(self.size)] * len(self.shapes))
        key = (zlib.crc32(b"phantom.geometry"), subject)
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(self.seed, spawn_key=key)))
        drawn = rng.uniform(-self.jitter_mm, self.jitter_mm, size=(len(self.shapes), len(self.size)))
        return (tuple(float(x) for x in shift) for shift in drawn)


@lru_cache(maxsize=4)
def _slabs(spec: Geometry, slice_axis: int) -> dict[Split, tuple[Slab, ...]]:
    extent = tissue_extent(spec.fractions(0), slice_axis)
    return split_slabs(extent, spec.size[slice_axis], float(spec.test_share), spec.gap)


@lru_cache(maxsize=4)
def _load(spec: Geometry, split: Split, slice_axis: int) -> VolumePhantom:
    if spec.subjects == 1:
        if len(spec.size) == 2:
            if split == "train":
                raise InputError(
                    "phantom.subjects: one 2D geometry cannot be split into train and test; ask for split: test, or "
                    "for several subjects with jitter_mm above 0"
                )
            ids: tuple[int, ...] = (0,)
            slabs: tuple[Slab, ...] = ((0, spec.size[slice_axis]),)
        else:
            ids, slabs = (0,), spec.slabs(slice_axis)[split]
    else:
        n_train = spec.subjects - spec.test_subjects
        ids = tuple(range(n_train)) if split == "train" else tuple(range(n_train, spec.subjects))
        slabs = spec.slabs(slice_axis)[split]
    volumes = tuple(slice_first(_single(spec.fractions(subject)), slice_axis) for subject in ids)
    for subject, volume in zip(ids, volumes, strict=True):
        if not (volume.sum(axis=0) >= 0.5).any():
            raise InputError(
                f"phantom.shapes: subject {subject} holds no voxel that is at least half tissue; the volume is "
                f"{' x '.join(f'{n * s:g}' for n, s in zip(spec.size, spec.spacing_mm, strict=True))} mm, "
                "centre_mm counts from its centre"
            )
    return VolumePhantom(
        tissues=spec.tissues,
        spacing_mm=tuple(float(s) for s in spec.spacing_mm),
        volumes=volumes,
        slabs=(slabs,) * len(ids),
        slice_axis=slice_axis,
        ids=ids,
        description=spec.describe(slice_axis),
    )


def _single(fractions: Float[np.ndarray, "t *space"]) -> Float[np.ndarray, "t *space"]:
    """Return float32 whose sum does not exceed 1: rounded toward zero where rounding to nearest would lift it."""
    single = fractions.astype(np.float32)
    lifted = single > fractions
    single[lifted] = np.nextafter(single[lifted], np.float32(0))
    return single


def _centred(edges: Edges, centre: Vector, shift: Vector) -> Edges:
    return tuple(e - (c + s) for e, c, s in zip(edges, centre, shift, strict=True))


def _check(**vectors: Vector) -> None:
    for name, vector in vectors.items():
        if not all(isfinite(x) for x in vector):
            raise ValueError(f"{name} must be finite, got {vector}")


def _check_positive(**vectors: Vector) -> None:
    _check(**vectors)
    for name, vector in vectors.items():
        if not all(x > 0 for x in vector):
            raise ValueError(f"{name} must be above 0, got {vector[0] if len(vector) == 1 else vector}")
