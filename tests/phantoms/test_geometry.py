"""Shapes: volumes, covering, jitter, and what is refused."""

import numpy as np
import pytest

from phantoms import Geometry
from phantoms.shapes.geometry import Ball, Box, Cylinder, Disc, Ellipse, Rectangle
from qsim.errors import InputError


def alone(shape, size, spacing):
    spec = Geometry(size=size, spacing_mm=spacing, shapes=(shape,), subjects=1)
    return spec.fractions(0)[0].sum() * np.prod(spacing)


@pytest.mark.parametrize(
    ("shape", "content"),
    [
        (Disc(tissue="gm", centre_mm=(1.3, -2.2), radius_mm=7.7), np.pi * 7.7**2),
        (Ellipse(tissue="gm", centre_mm=(0.3, 0.9), semi_axes_mm=(5.2, 9.1)), np.pi * 5.2 * 9.1),
        (Rectangle(tissue="gm", centre_mm=(0.3, 0.9), extent_mm=(5.2, 9.1)), 5.2 * 9.1),
    ],
)
def test_areas(shape, content):
    assert alone(shape, (40, 50), (1.0, 0.8)) == pytest.approx(content, rel=1e-12)


@pytest.mark.parametrize(
    ("shape", "content"),
    [
        (Ball(tissue="gm", centre_mm=(1.3, -2.2, 0.6), radius_mm=7.7), 4 / 3 * np.pi * 7.7**3),
        (Box(tissue="gm", centre_mm=(0.3, 0.9, 0.1), extent_mm=(5.2, 9.1, 3.3)), 5.2 * 9.1 * 3.3),
        (Cylinder(tissue="gm", axis=0, radius_mm=4.4, length_mm=12.3), np.pi * 4.4**2 * 12.3),
        (Cylinder(tissue="gm", axis=1, radius_mm=4.4, length_mm=12.3), np.pi * 4.4**2 * 12.3),
        (Cylinder(tissue="gm", axis=2, radius_mm=4.4, length_mm=12.3), np.pi * 4.4**2 * 12.3),
    ],
)
def test_volumes(shape, content):
    assert alone(shape, (30, 33, 24), (1.0, 0.8, 1.1)) == pytest.approx(content, rel=1e-11)


def test_centre_of_mass_and_extent_lie_where_asked():
    spacing, size = (1.0, 0.8, 1.2), (30, 33, 24)
    for axis in range(3):
        shape = Cylinder(tissue="wm", axis=axis, centre_mm=(2.0, -1.5, 0.7), radius_mm=3.3, length_mm=11.0)
        share = Geometry(size=size, spacing_mm=spacing, shapes=(shape,), subjects=1).fractions(0)[0]
        middles = [(np.arange(n) + 0.5 - n / 2) * s for n, s in zip(size, spacing, strict=True)]
        grid = np.meshgrid(*middles, indexing="ij")
        mean = [(share * g).sum() / share.sum() for g in grid]
        np.testing.assert_allclose(mean, (2.0, -1.5, 0.7), atol=0.01)
        spread = (share * (grid[axis] - mean[axis]) ** 2).sum() / share.sum()
        # uniform along its length, L^2 / 12 = 10.1, but for the end voxels; across it would be r^2 / 4 = 2.7
        assert spread == pytest.approx(11.0**2 / 12, abs=0.3)


def test_later_shapes_cover_earlier_ones():
    spec = Geometry(
        size=(60, 60),
        spacing_mm=(1.0, 1.0),
        shapes=(
            Disc(tissue="csf", radius_mm=25.0),
            Disc(tissue="gm", radius_mm=20.0),
            Disc(tissue="csf", radius_mm=5.5),
        ),
        subjects=1,
    )
    csf, gm = spec.fractions(0)
    assert spec.tissues == ("csf", "gm")
    # nested, no voxel cut by two borders: rings and a core, exactly
    assert gm.sum() == pytest.approx(np.pi * (20.0**2 - 5.5**2), rel=1e-12)
    assert csf.sum() == pytest.approx(np.pi * (25.0**2 - 20.0**2 + 5.5**2), rel=1e-12)
    assert (csf + gm).max() <= 1 + 1e-15


def test_jitter_moves_each_shape_within_its_bound_and_repeats():
    shapes = (
        Disc(tissue="gm", centre_mm=(-8.0, 0.0), radius_mm=5.0),
        Disc(tissue="wm", centre_mm=(8.0, 0.0), radius_mm=5.0),
    )
    spec = Geometry(size=(50, 40), spacing_mm=(1.0, 1.0), shapes=shapes, subjects=40, jitter_mm=2.0, seed=3)
    rows = (np.arange(50) + 0.5 - 25)[:, None]
    columns = np.arange(40) + 0.5 - 20
    shifts = []
    for subject in range(40):
        fractions = spec.fractions(subject)
        np.testing.assert_array_equal(fractions, spec.fractions(subject))
        for share, shape in zip(fractions, shapes, strict=True):
            area = share.sum()
            assert area == pytest.approx(np.pi * 25, rel=1e-12)
            shifts.append([(share * rows).sum() / area - shape.centre_mm[0], (share * columns).sum() / area])
    # the centre of mass of exact coverage is right up to the moment inside border pixels
    assert np.abs(shifts).max() < 2.03
    assert np.abs(shifts).max(axis=0).min() > 1.6
    assert len(np.unique(np.round(shifts, 6), axis=0)) == 80
    other = Geometry(size=(50, 40), spacing_mm=(1.0, 1.0), shapes=shapes, subjects=40, jitter_mm=2.0, seed=4)
    assert not np.array_equal(other.fractions(0), spec.fractions(0))


def test_single_precision_does_not_lift_the_sum():
    shapes = tuple(Disc(tissue=t, radius_mm=r) for t, r in (("csf", 11.3), ("gm", 9.7), ("wm", 7.1), ("fat", 3.3)))
    phantom = Geometry(size=(30, 30), spacing_mm=(0.9, 0.9), shapes=shapes, subjects=30).load("train", 0)
    assert max(v.sum(axis=0, dtype=float).max() for v in phantom.volumes) <= 1


def test_one_flat_subject_is_test_only():
    spec = Geometry(size=(20, 20), spacing_mm=(1.0, 1.0), shapes=(Disc(tissue="gm", radius_mm=5.0),), subjects=1)
    assert spec.load("test", 0).ids == (0,)
    with pytest.raises(InputError, match=r"phantom\.subjects: .* ask for split: test"):
        spec.load("train", 0)


def test_shapes_outside_the_volume_are_refused():
    away = Disc(tissue="gm", centre_mm=(500.0, 0.0), radius_mm=5.0)
    spec = Geometry(size=(20, 20), spacing_mm=(1.0, 1.0), shapes=(away,))
    with pytest.raises(InputError, match=r"phantom\.shapes: subject 0 holds no voxel"):
        spec.load("train", 0)


DISC = (Disc(tissue="gm", radius_mm=5.0),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (0, 20)}, "size"),
        ({"spacing_mm": (1.0, 1.0, 1.0)}, "spacing_mm"),
        ({"spacing_mm": (1.0, 0.0)}, "spacing_mm"),
        ({"shapes": ()}, "shapes is empty"),
        ({"shapes": (Ball(tissue="gm", radius_mm=3.0),)}, r"shapes\[0\]: a ball has 3"),
        ({"subjects": 0}, "subjects"),
        ({"test_subjects": 10}, "test_subjects"),
        ({"jitter_mm": float("nan")}, "jitter_mm"),
        ({"jitter_mm": 0.0}, "jitter_mm: with 0 all subjects are the same"),
        ({"seed": -1}, "seed"),
        ({"gap": -1}, "gap"),
        ({"test_share": 1.0}, "test_share"),
    ],
)
def test_refusals_name_the_field(change, message):
    base = {"size": (20, 20), "spacing_mm": (1.0, 1.0), "shapes": DISC}
    with pytest.raises(ValueError, match=f"^{message}"):
        Geometry(**(base | change))


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan"), float("inf")])
def test_radius_must_be_positive(radius):
    with pytest.raises(ValueError, match=r"^radius_mm"):
        Disc(tissue="gm", radius_mm=radius)
