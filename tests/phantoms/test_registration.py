"""Registration of a series, and the motion flag, against motion that was put into a digital brain."""

import sys
from functools import cache

import numpy as np
import pytest
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from phantoms import registration
from phantoms.brains.mni import _template
from phantoms.registration import moved_to, register
from phantoms.series.motion import movement
from qsim.errors import InputError

TI = (0.1, 0.3, 0.7, 1.5, 3.0)
SPACING = (4.0, 1.0, 1.0)
# every second voxel: a quarter of the work
HALF = (4.0, 2.0, 2.0)


def small(first=85, last=86):
    """Of every second row and column, voxels of `HALF`."""
    a, t1 = brain(first, last)
    return a[:, ::2, ::2], t1[:, ::2, ::2]


@cache
def brain(first=85, last=86):
    """A and T1 [s] of slices of the MNI templates: grey and white matter, and the rest of the brain as fluid."""
    grey, white = (_template(name)[:, :, first:last:4].T.astype(np.float64) for name in ("gm", "wm"))
    head = _template("t1")[:, :, first:last:4].T > 0.25
    fluid = np.clip(head - grey - white, 0, 1)
    a = 80 * grey + 70 * white + 100 * fluid
    rate = grey / 1.4 + white / 0.85 + fluid / 4.0
    total = grey + white + fluid
    t1 = np.where(total > 0, total / np.where(rate > 0, rate, 1), 1.0)
    return a, t1


def placed(volume, pose, spacing):
    """What lies at T x is seen at x: as T is said of x y z about the centre [mm], by cubic splines of scipy."""
    size = np.array(spacing)
    turn = pose[:3, :3][::-1, ::-1] * size[None, :] / size[:, None]
    centre = (np.array(volume.shape) - 1) / 2
    return affine_transform(volume, turn, centre - turn @ centre + pose[:3, 3][::-1] / size, order=3, mode="constant")


def pose_of(shift, rotation):
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec(np.radians(rotation)).as_matrix()
    pose[:3, 3] = shift
    return pose


def series(poses, a, t1, *, signed, noise=1.0, spacing=SPACING):
    """Images of an inversion recovery; in image i the object has moved by poses[i]: what was at x is at T x."""
    rng = np.random.default_rng(5)
    volumes = []
    for ti, pose in zip(TI, poses, strict=True):
        seen = placed(a * (1 - 1.9 * np.exp(-ti / t1)), np.linalg.inv(pose), spacing)
        noisy = seen + noise * rng.normal(size=seen.shape)
        volumes.append((noisy if signed else np.hypot(noisy, noise * rng.normal(size=seen.shape))).astype(np.float32))
    return volumes


def random_poses(count, reference, *, planar, seed=2):
    rng = np.random.default_rng(seed)
    poses = []
    for i in range(count):
        shift, turn = rng.uniform(-3, 3, 3), rng.uniform(-3, 3, 3)
        if planar:
            shift[2] = turn[0] = turn[1] = 0
        poses.append(np.eye(4) if i == reference else pose_of(shift, turn))
    return poses


def errors(found, poses):
    """Shift [mm] and angle [degrees] between what was found and what was put in."""
    out = []
    for motion, pose in zip(found.motions, poses, strict=True):
        left = np.linalg.inv(pose) @ pose_of(motion.shift_mm, motion.rotation_deg)
        angle = np.linalg.norm(Rotation.from_matrix(left[:3, :3]).as_rotvec(degrees=True))
        out.append((np.linalg.norm(left[:3, 3]), angle))
    return np.array(out)


def fitted(volumes, where):
    """T1 of A (1 - 1.9 exp(-TI / T1)) by the best of a fine grid, A free [s]."""
    grid = np.geomspace(0.3, 6, 400)
    curves = np.abs(1 - 1.9 * np.exp(-np.array(TI)[:, None] / grid))
    curves /= np.linalg.norm(curves, axis=0)
    return grid[np.argmax(curves.T @ np.abs(np.stack(volumes)[:, where]), axis=0)]


@pytest.mark.parametrize("signed", [True, False])
def test_motion_of_a_brain_is_found_and_t1_is_as_without_it(signed):
    a, t1 = small()
    still = series([np.eye(4)] * 5, a, t1, signed=signed, spacing=HALF)
    poses = random_poses(5, 4, planar=True)
    moved = series(poses, a, t1, signed=signed, spacing=HALF)
    found = register(moved, TI, HALF)
    assert (found.reference, found.planar) == (4, True)
    off = errors(found, poses)
    assert (off[4] == 0).all()
    # a tenth of a voxel; largest: a quarter
    assert np.median(off[:4, 0]) < 0.2
    assert np.median(off[:4, 1]) < 0.2
    assert off.max() < 0.5
    np.testing.assert_array_equal(found.volumes[4], moved[4])
    assert all(m.after > m.before for m in found.motions[:4])
    best = [moved_to(volume, pose, HALF) for volume, pose in zip(moved, poses, strict=True)]
    where = (a > 60) & np.isfinite(found.volumes).all(0) & np.isfinite(best).all(0)
    wrong = {
        name: float(np.median(np.abs(fitted(volumes, where) / t1[where] - 1)))
        for name, volumes in (("still", still), ("moved", moved), ("best", best), ("registered", found.volumes))
    }
    assert wrong["moved"] > 3 * wrong["still"]
    # interpolation blurs voxels of 2 mm: no worse than at the true motion
    assert wrong["registered"] < 1.1 * wrong["best"]
    assert wrong["registered"] < 2 * wrong["still"]
    if signed:
        assert np.nanmin(found.volumes[0]) < -40
        again = register(moved, TI, HALF)
        assert again.motions == found.motions
        for one, two in zip(found.volumes, again.volumes, strict=True):
            np.testing.assert_array_equal(one, two)


def test_images_that_share_nothing_are_said_to_and_lead_no_other_astray():
    a, t1 = small()
    poses = random_poses(5, 4, planar=True)
    moved = series(poses, a, t1, signed=True, spacing=HALF)
    for empty in (np.zeros_like(moved[1]), np.random.default_rng(1).normal(size=a.shape).astype(np.float32)):
        found = register([moved[0], empty, *moved[2:]], TI, HALF)
        assert found.unplaced == (1,)
        assert [each.against for each in found.motions] == [2, 2, 3, 4, 4]
        assert found.motions[1].shift_mm == found.motions[2].shift_mm
        off = errors(found, poses)[[0, 2, 3]]
        assert off.max() < 0.5
    nothing = register([np.zeros((1, 40, 40), dtype=np.float32)] * 2, (0.1, 0.2), HALF)
    assert nothing.unplaced == (1,)


def test_a_volume_moves_in_space():
    a, t1 = small(60, 100)
    poses = random_poses(5, 4, planar=False)
    found = register(series(poses, a, t1, signed=True, spacing=HALF)[3:], TI[3:], HALF)
    assert not found.planar
    off = errors(found, poses[3:])
    # of one image against the next: slices are 4 mm, and noise is a hundredth of the signal. Mutual information is
    # largest at 0.33 mm and 0.65 degrees from the true place, not there: voxels between thick slices are interpolated
    assert off[0, 0] < 0.5
    assert off[0, 1] < 0.8


def ball(pose, spacing, shape, seed):
    """A nearly round object with a few blobs in it that has moved by a pose: a sum of smooth closed forms."""
    rng = np.random.default_rng(seed)
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    at = np.linalg.inv(pose) @ np.stack([x, y, z, np.ones(shape)]).reshape(4, -1)
    soft = 1 / (1 + np.exp((np.linalg.norm(at[:3] / np.array([[55.0], [62], [50]]), axis=0) - 1) * 30))
    values = np.ones(at.shape[1])
    for _ in range(8):
        centre, wide, high = rng.uniform(-35, 35, 3), rng.uniform(8, 14), rng.uniform(-0.5, 0.8)
        values += high * np.exp(-np.square(at[:3] - centre[:, None]).sum(0) / (2 * wide**2))
    return (soft * values).reshape(shape)


def test_a_turn_of_a_nearly_round_object_is_found():
    shape, spacing = (28, 38, 35), (4.0, 4.0, 4.0)
    pose = pose_of((3, -4, 2), (3, -2, 4))
    rng = np.random.default_rng(10)
    one, two = (ball(each, spacing, shape, 0) + 0.01 * rng.normal(size=shape) for each in (np.eye(4), pose))
    volumes = [one.astype(np.float32), (0.7 * two).astype(np.float32)]
    found = register(volumes, (0.01, 0.02), spacing)
    assert found.reference == 0
    shift, turn = errors(found, [np.eye(4), pose])[1]
    # a fiftieth of a voxel, and as much at the surface, 56 mm away: a third of a degree is 0.3 mm there
    assert shift < 0.08
    assert turn < 0.3
    again = register(volumes, (0.01, 0.02), spacing)
    assert again.motions == found.motions
    np.testing.assert_array_equal(again.volumes[1], found.volumes[1])


def test_no_place_worse_than_the_start_is_taken():
    itk = pytest.importorskip("SimpleITK")
    shape, spacing = (28, 38, 35), (4.0, 4.0, 4.0)
    one = itk.GetImageFromArray(ball(np.eye(4), spacing, shape, 0).astype(np.float32))
    other = itk.GetImageFromArray(ball(pose_of((0.3, 0, 0), (0, 0, 0)), spacing, shape, 0).astype(np.float32))
    for steps in (1, 2, 7):
        transform = itk.Euler3DTransform()
        method = registration._metric(itk)
        method.SetInitialTransform(transform, True)
        start = -method.MetricEvaluate(one, other)
        method = registration._metric(itk)
        method.SetInitialTransform(transform, True)
        # strides of 8 voxels over a motion of less than one
        method.SetOptimizerAsRegularStepGradientDescent(8.0, 1e-3, steps, relaxationFactor=0.9)
        method.SetOptimizerScales([400.0] * 3 + [1.0] * 3)
        value = registration._climb(itk, method, transform, one, other)
        assert value >= start
        method = registration._metric(itk)
        method.SetInitialTransform(transform, True)
        assert value == -method.MetricEvaluate(one, other)


def test_interpolation_is_that_of_the_pose_and_nothing_is_made_up():
    rng = np.random.default_rng(0)
    volume = rng.normal(size=(3, 19, 22)).astype(np.float32)
    volume[1, 5, 6] = np.nan
    spacing = (2.0, 0.5, 1.5)
    # two columns, one row and one slice on: whole voxels, so that no interpolation is needed
    got = moved_to(volume, pose_of((3.0, 0.5, 2.0), (0, 0, 0)), spacing)
    np.testing.assert_allclose(got[:2, :18, :20], volume[1:, 1:, 2:], atol=1e-6)
    assert np.isnan(got[2]).all()
    assert np.isnan(got[:, 18:]).all()
    assert np.isnan(got[:, :, 20:]).all()
    # a turn, against scipy's linear interpolation
    clean = np.where(np.isfinite(volume), volume, 0)
    pose = pose_of((0.3, -0.2, 0), (0, 0, 4))
    turn = pose[:3, :3][::-1, ::-1] * np.array(spacing)[None, :] / np.array(spacing)[:, None]
    centre = (np.array(volume.shape) - 1) / 2
    offset = centre - turn @ centre + pose[:3, 3][::-1] / np.array(spacing)
    want = affine_transform(clean.astype(np.float64), turn, offset, order=1)
    got = moved_to(volume, pose, spacing)
    inner = np.isfinite(got)
    assert inner[:, 4:-4, 4:-4].sum() > 200
    np.testing.assert_allclose(
        got[:, 4:-4, 4:-4][inner[:, 4:-4, 4:-4]], want[:, 4:-4, 4:-4][inner[:, 4:-4, 4:-4]], atol=1e-5
    )
    assert 1 <= (~inner[:, 4:-4, 4:-4]).sum() <= 4


def test_refused(monkeypatch):
    with pytest.raises(InputError, match=r"^--register: images of 9 x 30 voxels are too small, wanted 16"):
        register([np.ones((1, 9, 30))] * 2, (0.1, 0.2), SPACING)
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(InputError, match=r"^--register: needs SimpleITK, .* pip install 'qsim\[register\]'"):
        register([np.ones((1, 30, 30))] * 2, (0.1, 0.2), SPACING)


@pytest.mark.parametrize("signed", [True, False])
def test_the_flag_sees_motion_and_nothing_where_there_is_none(signed):
    a, t1 = brain()
    told = movement(series([np.eye(4)] * 5, a, t1, signed=signed), TI, SPACING)
    assert told.moved == ()
    assert told.unknown == ()
    assert max(told.displacement_mm) < 0.2
    for i, shift, turn in ((1, (1.2, -1.6, 0), 0), (4, (0, 4, 0), 0), (2, (0, 0, 0), 2), (3, (1, 0, 0), -1)):
        poses = [np.eye(4)] * 5
        poses[i] = pose_of(shift, (0, 0, turn))
        told = movement(series(poses, a, t1, signed=signed), TI, SPACING)
        assert told.moved == (i,)
        where = np.array(np.nonzero(a > 0)[::-1], dtype=float)
        where -= (np.array(a.shape[::-1])[:, None] - 1) / 2
        where[2] = 0
        far = poses[i][:3, :3] @ where + poses[i][:3, 3:] - where
        # over the object and two voxels around it, from images of half the size
        assert told.displacement_mm[i] == pytest.approx(np.sqrt(np.square(far).sum(0).mean()), rel=0.1, abs=0.1)


def test_the_flag_looks_through_slices():
    a, t1 = small(60, 100)
    poses = [np.eye(4)] * 5
    poses[2] = pose_of((0, 0, 3.0), (2.0, 0, 0))
    told = movement(series(poses, a, t1, signed=True, spacing=HALF), TI, HALF)
    assert told.moved == (2,)


def test_the_flag_is_silent_where_nothing_is_to_be_seen():
    a, t1 = brain()
    volumes = series([np.eye(4)] * 5, a, t1, signed=True)
    volumes[1] = np.random.default_rng(1).normal(size=a.shape).astype(np.float32)
    told = movement(volumes, TI, SPACING)
    assert told.unknown == (1,)
    assert 1 not in told.moved
    assert movement([np.ones((1, 8, 8))] * 3, TI[:3], SPACING) is None
    assert movement([np.zeros((1, 64, 64))] * 3, TI[:3], SPACING) is None
