"""Trajectories, poses and their mean, times of the lines."""

from math import pi

import numpy as np
import pytest
from pydantic import TypeAdapter
from scipy.linalg import expm, logm
from scipy.spatial.transform import Rotation

from qsim.distributions import Uniform
from qsim.kspace.motion.pose import (
    _exponential,
    about_mean,
    in_voxels,
    logarithms,
    n_parameters,
    parameters_of,
    poses_of,
    rotations,
)
from qsim.kspace.motion.sharing import shared_poses
from qsim.kspace.motion.timing import line_times, shot_of_line
from qsim.kspace.motion.trajectory import AnyTrajectory, Breathing, Drift, RandomWalk, Recorded, Sudden
from qsim.kspace.order import Acquisition, echo_of_line


def rng(seed=1):
    return np.random.default_rng(seed)


def some_poses(d, n=40, size=0.4, rigid=False, seed=3):
    parameters = rng(seed).normal(size=(n, n_parameters(d))) * size
    if rigid:
        parameters[:, n_parameters(d) // 2 :] = 0
    return poses_of(parameters, d)


# --- poses ------------------------------------------------------------------------------------------------------------


def test_a_positive_turn_about_z_takes_x_to_y_and_so_on_in_a_circle():
    x, y, z = np.eye(3)[::-1]
    for about, here, there in ((z, x, y), (x, y, z), (y, z, x)):
        np.testing.assert_allclose(rotations(about[None] * pi / 2, 3)[0] @ here, there, atol=1e-15)
    # the plane of a 2D image is that of x and y, axes stand as y, x
    np.testing.assert_allclose(rotations(np.array([[pi / 2]]), 2)[0] @ (0, 1), (1, 0), atol=1e-15)


def test_turns_are_those_of_scipy():
    w = rng().normal(size=(30, 3))
    # scipy counts x, y, z
    theirs = Rotation.from_rotvec(w[:, ::-1]).as_matrix()[:, ::-1, ::-1]
    np.testing.assert_allclose(rotations(w, 3), theirs, atol=1e-14)
    np.testing.assert_allclose(rotations(np.zeros((1, 3)), 3), np.eye(3)[None], rtol=0, atol=0)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("size", [1e-9, 0.3, 0.9])
def test_parameters_come_back_from_their_poses(d, size):
    parameters = rng(7).normal(size=(50, n_parameters(d))) * size
    np.testing.assert_allclose(parameters_of(poses_of(parameters, d)), parameters, atol=1e-13)


def test_turns_of_nearly_half_a_revolution_come_back():
    axes = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0, 0.8], [-0.48, 0.6, 0.64]])
    parameters = np.concatenate((np.zeros((5, 3)), axes * 3.1, np.zeros((5, 6))), 1)
    np.testing.assert_allclose(parameters_of(poses_of(parameters, 3)), parameters, atol=1e-12)


def test_voxels_that_are_no_cubes_make_a_turn_affine():
    edges = (3.0, 1.0, 0.5)
    poses = some_poses(3, rigid=True)
    inside = in_voxels(poses, edges)
    there = np.diag(1 / np.array(edges)) @ poses[:, :3, :3] @ np.diag(edges)
    np.testing.assert_allclose(inside[:, :3, :3], there, atol=1e-14)
    np.testing.assert_allclose(inside[:, :3, 3], poses[:, :3, 3] / edges, atol=1e-14)
    assert np.abs(there[0] @ there[0].T - np.eye(3)).max() > 0.1


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("rigid", [True, False])
def test_logarithms_are_those_of_scipy(d, rigid):
    poses = some_poses(d, rigid=rigid)
    np.testing.assert_allclose(logarithms(poses), [logm(pose) for pose in poses], atol=1e-13)


@pytest.mark.parametrize("angle", [0.0, 1e-10, 1e-5, 0.0099, 0.0101, 0.5, 2.9])
def test_logarithms_of_turns_are_those_of_scipy_at_any_angle(angle):
    w = np.array([0.36, -0.48, 0.8]) * angle
    pose = poses_of(np.array([[3.0, -7, 11, *w, 0, 0, 0, 0, 0, 0]]), 3)
    np.testing.assert_allclose([expm(logarithms(pose)[0])], pose, atol=3e-14)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("rigid", [True, False])
def test_the_logarithms_about_the_mean_add_up_to_nothing(d, rigid):
    poses, weights = some_poses(d, rigid=rigid), rng(8).random(40)
    moved, mean = about_mean(poses, weights)
    left = np.tensordot(weights / weights.sum(), np.array([logm(pose) for pose in moved]), 1)
    assert np.abs(left).max() < 1e-12
    np.testing.assert_allclose(mean @ moved, poses, atol=1e-13)


def test_the_mean_is_the_published_one_where_poses_commute():
    # turns in one plane about the centre commute, and so do translations
    angles, weights = rng(2).normal(size=20) * 0.5, rng(3).random(20)
    turning = poses_of(np.column_stack([np.zeros((20, 2)), angles, np.zeros((20, 3))]), 2)
    expected = expm(np.tensordot(weights, np.array([logm(pose) for pose in turning]), 1) / weights.sum())
    np.testing.assert_allclose(about_mean(turning, weights)[1], expected, atol=1e-13)
    shifts = rng(4).normal(size=(20, 3))
    shifting = poses_of(np.concatenate((shifts, np.zeros((20, 9))), 1), 3)
    moved, mean = about_mean(shifting, weights)
    np.testing.assert_allclose(mean[:3, 3], weights @ shifts / weights.sum(), atol=1e-14)
    np.testing.assert_allclose(moved[:, :3, 3], shifts - mean[:3, 3], atol=1e-14)


def test_equal_poses_are_exactly_no_motion():
    same = np.repeat(some_poses(3, 1), 7, 0)
    moved, mean = about_mean(same, np.ones(7))
    assert np.array_equal(moved, np.broadcast_to(np.eye(4), moved.shape))
    np.testing.assert_array_equal(mean, same[0])


def test_a_mean_of_half_revolutions_is_refused():
    turning = poses_of(np.array([[0, 0, 3.1, 0, 0, 0], [0, 0, -3.1, 0, 0, 0]]), 2)
    with pytest.raises(ValueError, match=r"^trajectory: turns by 3.1 rad"):
        about_mean(turning, np.ones(2))


# --- lines that share a pose ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [(31, 40), (12, 31, 40)])
@pytest.mark.parametrize("tolerance", [0.05, 0.5])
def test_shared_poses_stay_within_the_tolerance_at_every_voxel(space, tolerance):
    d = len(space)
    bent = np.sin(np.outer(rng().uniform(0, 2, 300), np.arange(1, n_parameters(d) + 1)))
    linear = poses_of(bent * 0.01, d)[:, :d, :d]
    chosen, stands, error = shared_poses(linear, space, tolerance)
    assert 0 < error <= tolerance * (1 + 1e-9)
    assert len(chosen) < 300
    ends = [(0, n - 1) for n in space]
    corners = np.stack([g.ravel() for g in np.meshgrid(*ends, indexing="ij")]) - np.array(space)[:, None] // 2
    apart = np.linalg.norm((linear - linear[chosen][stands]) @ corners, axis=1)
    assert apart.max() <= tolerance


def test_a_slow_turn_needs_as_many_poses_as_the_tolerance_says():
    angles = np.linspace(0, 0.1, 1000)
    linear = rotations(angles[:, None], 2)
    corner = np.hypot(32, 32)
    chosen, _, _ = shared_poses(linear, (64, 64), 0.1)
    # each stands for twice the tolerance
    assert len(chosen) == np.ceil(0.1 * corner / 0.2)


def test_without_a_tolerance_only_equal_poses_are_shared():
    linear = some_poses(3, 20)[:, :3, :3]
    chosen, stands, error = shared_poses(np.concatenate((linear, linear[::-1])), (9, 8, 7), 0.0)
    assert len(chosen) == 20
    assert error == 0
    np.testing.assert_array_equal(stands[:20], stands[20:][::-1])


# --- when lines are measured ------------------------------------------------------------------------------------------


def test_lines_of_a_linear_order_by_hand():
    acquisition = Acquisition(lines=6, shots=2, order="linear")
    expected = [0, 1, 0.1, 1.1, 0.2, 1.2]
    np.testing.assert_allclose(line_times(acquisition, 0.1, 1.0, 6, 1), [expected])


def test_lines_of_a_segmented_order_by_hand():
    acquisition = Acquisition(lines=6, shots=2, order="segmented")
    expected = [0, 0.1, 0.2, 1, 1.1, 1.2]
    np.testing.assert_allclose(line_times(acquisition, 0.1, 1.0, 6, 1), [expected])


def test_lines_of_a_centric_order_by_hand():
    # visited: 3 2 4 1 5 0, shots in turn
    acquisition = Acquisition(lines=6, shots=2, order="centric")
    expected = [1.2, 1.1, 1, 0, 0.1, 0.2]
    np.testing.assert_allclose(line_times(acquisition, 0.1, 1.0, 6, 1), [expected])


@pytest.mark.parametrize("order", ["linear", "centric", "segmented"])
@pytest.mark.parametrize(("lines", "shots"), [(24, 1), (24, 4), (15, 3), (15, 15)])
def test_every_shot_measures_every_echo_once(order, lines, shots):
    acquisition = Acquisition(lines=lines, shots=shots, order=order)
    pairs = set(zip(shot_of_line(acquisition).tolist(), echo_of_line(acquisition, lines).tolist(), strict=True))
    assert pairs == {(shot, echo) for shot in range(shots) for echo in range(lines // shots)}


def test_partitions_follow_one_another():
    linear = line_times(Acquisition(lines=4), 0.5, 2.0, 4, 3)
    np.testing.assert_allclose(linear, np.arange(12).reshape(3, 4) / 2)
    centric = line_times(Acquisition(lines=4, order="centric"), 0.5, 2.0, 4, 3)
    # the middle one first, then the negative side
    np.testing.assert_allclose(centric[1], [1.5, 0.5, 0, 1])
    np.testing.assert_allclose(centric[0], centric[1] + 2)
    np.testing.assert_allclose(centric[2], centric[1] + 4)


def test_an_image_of_other_rows_has_the_times_of_the_nearest_lines():
    whole = line_times(Acquisition(lines=12), 1.0, 12.0, 12, 1)
    half = line_times(Acquisition(lines=12), 1.0, 12.0, 6, 1)
    np.testing.assert_allclose(half, whole[:, ::2])


# --- kinds ------------------------------------------------------------------------------------------------------------


def test_events_add_up_and_may_end():
    drawn = Sudden(events=3, translation=2, rotation=0.1, hold=(1, 2)).draw(3, 10.0, rng())
    assert all(0 <= time <= 10 for time in drawn.times)
    for t in (0.0, 3.3, 5.1, 9.9):
        expected = np.zeros(12)
        for start, step, hold in zip(drawn.times, drawn.steps, drawn.holds, strict=True):
            assert 1 <= hold <= 2
            np.testing.assert_allclose(np.linalg.norm(step[:3]), 2)
            np.testing.assert_allclose(np.linalg.norm(step[3:6]), 0.1)
            expected += np.array(step) * (start <= t < start + hold)
        np.testing.assert_allclose(drawn.parameters(np.array([t]))[0], expected, atol=1e-15)


def test_event_times_are_uniform_over_the_acquisition():
    drawn = Sudden(events=1000, translation=1).draw(2, 8.0, rng())
    times = np.array(drawn.times)
    standard_error = 8 / np.sqrt(12 * 1000)
    assert abs(times.mean() - 4) < 4 * standard_error
    assert np.all(np.diff(times) >= 0)


def test_directions_are_uniform_over_the_sphere():
    steps = np.array(Sudden(events=1000, translation=1, rotation=0.1).draw(3, 8.0, rng()).steps)
    # of a uniform direction every component has mean 0 and mean square 1/3, with variance 4/45
    assert np.abs(steps[:, :3].mean(0)).max() < 4 * np.sqrt(1 / 3 / 1000)
    assert np.abs((steps[:, :3] ** 2).mean(0) - 1 / 3).max() < 4 * np.sqrt(4 / 45 / 1000)


@pytest.mark.parametrize(("d", "axis", "expected"), [(3, -2, [0, 1.5, 0, 0, 0.1, 0]), (2, -1, [0, 1.5, 0.1])])
def test_a_named_axis_is_kept(d, axis, expected):
    drawn = Drift(translation=1.5, rotation=0.1, axis=axis).draw(d, 4.0, rng())
    np.testing.assert_allclose(drawn.end[: n_parameters(d) // 2], expected)


def test_drift_goes_from_nothing_to_its_end():
    for smooth, half in ((False, 0.25), (True, (1 - np.cos(pi / 4)) / 2)):
        drawn = Drift(translation=(1, 2), scaling=0.1, shear=0.02, smooth=smooth).draw(2, 4.0, rng())
        there = drawn.parameters(np.array([0.0, 1.0, 4.0]))
        np.testing.assert_allclose(there, np.outer([0, half, 1], drawn.end), atol=1e-15)
        assert 1 <= np.linalg.norm(drawn.end[:2]) <= 2
        np.testing.assert_allclose(drawn.end[3:], [0.1, 0.1, 0.02])


def test_breathing_without_jitter_is_the_published_curve():
    drawn = Breathing(period=4, translation=10, axis=-3).draw(3, 30.0, rng())
    t = np.linspace(0, 30, 301)
    # x0 - b cos^2n(pi t / tau - phi): at full inhalation where a cycle is half over
    phi = pi * (drawn.starts[0] + 2) / 4
    np.testing.assert_allclose(drawn.parameters(t)[:, 0], 10 * np.cos(pi * t / 4 - phi) ** 6, atol=1e-12)
    # at rest most of the time: the mean of cos^6 is 5/16
    np.testing.assert_allclose(drawn.parameters(np.arange(4000) / 1000)[:, 0].mean(), 10 * 5 / 16, rtol=1e-12)


def test_breaths_differ_by_their_jitter_without_a_jump():
    drawn = Breathing(period=2, translation=1, depth_jitter=0.3, period_jitter=0.1, axis=-2).draw(2, 4000.0, rng())
    lengths, depths = np.diff(drawn.starts), np.array(drawn.depths)
    n = len(depths)
    assert n > 1900
    assert drawn.starts[0] <= 0
    assert drawn.starts[-1] > 4000
    for values, sd in ((np.log(lengths / 2), 0.1), (np.log(depths), 0.3)):
        assert abs(values.mean()) < 4 * sd / np.sqrt(n)
        assert abs(values.std() - sd) < 4 * sd / np.sqrt(2 * n)
    np.testing.assert_allclose(drawn.parameters(np.array(drawn.starts[1:-1])), 0, atol=1e-12)
    peaks = (np.array(drawn.starts[:-1]) + drawn.starts[1:]) / 2
    np.testing.assert_allclose(drawn.parameters(peaks[1:])[:, 0], depths[1:], rtol=1e-12)


def test_the_walk_spreads_with_the_root_of_time():
    paths = [RandomWalk(translation=0.5, rotation=0.02, steps=64).draw(3, 9.0, rng(i)) for i in range(400)]
    there = np.array([path.parameters(np.array([0.0, 9 / 4, 9.0])) for path in paths])
    assert np.all(there[:, 0] == 0)
    for place, time in ((1, 9 / 4), (2, 9.0)):
        expected = np.repeat([0.25 * time, 0.0004 * time], 3)
        measured = (there[:, place, :6] ** 2).mean(0)
        assert np.all(np.abs(measured / expected - 1) < 4 * np.sqrt(2 / 400))
    assert np.all(there[..., 6:] == 0)


def test_recorded_motion_is_joined_by_straight_lines():
    drawn = Recorded(times=(0, 2, 3), parameters=((0, 0, 0), (2, -4, 0.2), (2, -4, 0))).draw(2, 3.0, rng())
    np.testing.assert_allclose(
        drawn.parameters(np.array([0.5, 2.0, 2.5])),
        [[0.5, -1, 0.05, 0, 0, 0], [2, -4, 0.2, 0, 0, 0], [2, -4, 0.1, 0, 0, 0]],
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sudden(events=-1), "^events must be at least 0"),
        (lambda: Sudden(events=1, translation=(3, 1)), "^translation must go from low to high"),
        (lambda: Sudden(events=1, rotation=5), "^rotation must be in rad"),
        (lambda: Sudden(events=1, hold=-1), "^hold must be at least 0"),
        (lambda: Drift(scaling=float("nan")), "^scaling must be a finite"),
        (lambda: Breathing(period=0), "^period must be at least"),
        (lambda: Breathing(period=4, power=0), "^power must be at least 1"),
        (lambda: Breathing(period=4, depth_jitter=2.0), r"^depth_jitter must lie in \[0, 1\]"),
        (lambda: RandomWalk(translation=-1), "^translation must be at least 0"),
        (lambda: RandomWalk(steps=0), "^steps must be at least 1"),
        (lambda: Recorded(times=(), parameters=()), "^times must hold at least one"),
        (lambda: Recorded(times=(0, 0), parameters=((0, 0, 0),) * 2), "^times must rise"),
        (lambda: Recorded(times=(0, 1), parameters=((0, 0, 0),)), "^parameters must be as many as times"),
        (lambda: Recorded(times=(0, 1), parameters=((0, 0, 0), (0,) * 6)), "^parameters must be equally many"),
        (lambda: Recorded(times=(0,), parameters=((0, 0),)), "^parameters must be 3 or 6"),
        (lambda: Recorded(times=(0,), parameters=((0, 0, float("inf")),)), "^parameters must be finite"),
        (lambda: Drift(axis=-3).draw(2, 1.0, rng()), "^trajectory: axis -3 does not exist"),
        (lambda: Drift(axis=0), "^axis: got 0; axes count from the end"),
        (
            lambda: Recorded(times=(0,), parameters=((0, 0, 0),)).draw(3, 1.0, rng()),
            "^trajectory: recorded with 3 parameters",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_configs_name_trajectories_by_kind():
    read = TypeAdapter(AnyTrajectory).validate_python
    assert read({"kind": "drift", "translation": [1, 2]}) == Drift(translation=(1, 2))
    assert read({"kind": "breathing", "period": {"kind": "uniform", "low": 3.0, "high": 5.0}}) == Breathing(
        period=Uniform(low=3.0, high=5.0)
    )
    recorded = read({"kind": "recorded", "times": [0, 1], "parameters": [[0, 0, 0], [1, 2, 0.5]]})
    assert recorded == Recorded(times=(0, 1), parameters=((0, 0, 0), (1, 2, 0.5)))


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 9.9e-4, 1.01e-3, 0.3, 2.9])
def test_exponentials_of_rigid_motions_are_those_of_scipy(d, angle):
    step = np.zeros((d + 1, d + 1))
    w = rng(3).normal(size=(d, d))
    turn = w - w.T
    step[:d, :d] = angle * turn / (np.linalg.norm(turn) / np.sqrt(2))
    step[:d, d] = rng(4).normal(size=d) * 20
    np.testing.assert_allclose(_exponential(step), expm(step), rtol=1e-13, atol=1e-12)
