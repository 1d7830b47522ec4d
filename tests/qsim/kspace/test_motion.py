"""Motion against objects moved in closed form and transforms written out as sums."""

import json
from math import pi

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from scipy.linalg import expm, logm

from qsim.kspace import Motion, corrupt
from qsim.kspace.acquired import Acquired
from qsim.kspace.motion.pose import poses_of
from qsim.kspace.motion.trajectory import Breathing, Drift, RandomWalk, Recorded, Sudden
from tests.qsim.kspace.oracle import dft, inverse_dft, random_images

ORDERS = ["linear", "centric", "segmented"]
LINE = 0.01


def rng(seed=1):
    return np.random.default_rng(seed)


def still(space, times=(0.0, 1e4)):
    """A recorded trajectory at rest."""
    return Recorded(times=times, parameters=((0.0,) * (3 if len(space) == 2 else 6),) * len(times))


def recorded(times, translations):
    """A recorded trajectory of translations."""
    d = len(translations[0])
    rest = (0.0,) * (d * (d - 1) // 2)
    return Recorded(times=tuple(times), parameters=tuple((*map(float, t), *rest) for t in translations))


def acted(motion, images, seed=1):
    """Images after motion, and its facts."""
    drawn = motion.draw(tuple(images.shape), rng(seed))
    after = motion.act(Acquired.of(torch.as_tensor(images), motion.ndim), drawn)
    return after.images().numpy(), dict(after.facts), drawn


def measured_at(n, shots, order, line_time, shot_time):
    """Time of each line of the centred spectrum: shot by shot, echo by echo."""
    lines = list(range(n))
    if order == "centric":
        lines.sort(key=lambda k: (abs(k - n // 2), k))
    times, train = np.full(n, np.nan), n // shots
    for shot in range(shots):
        own = lines[shot * train : (shot + 1) * train] if order == "segmented" else lines[shot::shots]
        for echo, line in enumerate(own):
            times[line] = shot * shot_time + echo * line_time
    return times


def k_of(n):
    return np.arange(n) - n // 2


def blobs(space, pose=None, edges=None, width=2.2, reach=5.0):
    """Gaussians in a pose, in closed form: m(x') with x' = A x + t."""
    d = len(space)
    edges = np.ones(d) if edges is None else np.array(edges)
    grid = np.stack(np.meshgrid(*[k_of(n) * e for n, e in zip(space, edges, strict=True)], indexing="ij"), -1)
    pose = np.eye(d + 1) if pose is None else pose
    points = (grid - pose[:d, d]) @ np.linalg.inv(pose[:d, :d]).T
    chosen = rng(17)
    total = np.zeros(space, complex)
    for _ in range(4):
        place, height = chosen.uniform(-reach, reach, d), chosen.normal() + 1j * chosen.normal()
        total += height * np.exp(-((points - place) ** 2).sum(-1) / (2 * width**2))
    return total


# --- identities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [(9, 8), (5, 6, 7), (1, 8), (4, 1, 6)])
@pytest.mark.parametrize("weights", ["spectral", "time", "none"])
def test_no_motion_is_the_identity(space, weights):
    images = random_images((2, *space))
    after, _, drawn = acted(Motion(trajectory=still(space), line_time=LINE, weights=weights), images)
    assert np.array_equal(after, images)
    assert drawn.severity == 0


@pytest.mark.parametrize("weights", ["spectral", "time"])
def test_another_place_is_no_motion_once_the_mean_is_taken_out(weights):
    images = random_images((2, 9, 8))
    moved = Recorded(times=(0, 1e4), parameters=((1.5, -2.0, 0.3),) * 2)
    after, _, drawn = acted(Motion(trajectory=moved, line_time=LINE, weights=weights), images)
    assert np.array_equal(after, images)
    assert drawn.severity == 0


@pytest.mark.parametrize("space", [(9, 8), (8, 9), (5, 6, 7), (6, 5, 4)])
def test_whole_voxels_are_a_circular_shift(space):
    images = random_images((2, *space))
    shift = (3, -2, 1)[: len(space)]
    motion = Motion(trajectory=recorded((0, 1e4), [shift] * 2), line_time=LINE, weights="none")
    after, facts, _ = acted(motion, images)
    np.testing.assert_allclose(after, np.roll(images, shift, range(1, images.ndim)), atol=1e-12)
    assert facts["poses"] == 0
    assert facts["rotation_error"] == 0


@pytest.mark.parametrize("rotation", [0.3, -0.2])
def test_a_pose_held_throughout_is_the_moved_object(rotation):
    space, parameters = (40, 41), (1.3, -0.7, rotation)
    motion = Motion(trajectory=Recorded(times=(0, 1e4), parameters=(parameters,) * 2), line_time=LINE, weights="none")
    after, _, _ = acted(motion, blobs(space)[None])
    pose = poses_of(np.array([[*parameters, 0, 0, 0]]), 2)[0]
    np.testing.assert_allclose(after[0], blobs(space, pose), atol=1e-6)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("space", "readout", "shots"), [((12, 9), -1, 3), ((9, 12), -2, 4), ((15, 8), -1, 1)])
def test_translation_from_line_to_line_is_a_phase_ramp(order, space, readout, shots):
    images = random_images((2, *space))
    n, along = space[1 - readout % 2], 1 - readout % 2
    shot_time = (n // shots) * LINE + 0.05
    motion = Motion(
        trajectory=recorded((0, 0.1, 10), [(0, 0), (1.3, -2.4), (-1.1, 3.7)]),
        line_time=LINE,
        order=order,
        shots=shots,
        shot_time=shot_time,
        readout=readout,
        weights="none",
    )
    after, _, _ = acted(motion, images)
    times = measured_at(n, shots, order, LINE, shot_time)
    d = np.stack([np.interp(times, (0, 0.1, 10), values) for values in ((0, 1.3, -1.1), (0, -2.4, 3.7))])
    # one row for each line, moved to where the phase axis stands
    turns = np.zeros(space)
    for axis, size in enumerate(space):
        k = k_of(size).reshape((-1, 1) if axis == 0 else (1, -1))
        turns = turns + k * d[axis].reshape((-1, 1) if along == 0 else (1, -1)) / size
    expected = inverse_dft(dft(images, (1, 2)) * np.exp(-2j * pi * turns), (1, 2))
    np.testing.assert_allclose(after, expected, atol=1e-12)


def test_an_image_of_other_rows_stands_for_the_same_field_of_view():
    images = random_images((1, 6, 7))
    motion = Motion(trajectory=recorded((0, 0.12), [(0, 0), (2.4, 0)]), line_time=LINE, lines=12, weights="none")
    after, _, _ = acted(motion, images)
    # every other of the 12 lines
    turns = 2.4 * (np.arange(6) * 2 * LINE / 0.12) * k_of(6) / 6
    expected = dft(images, (1, 2)) * np.exp(-2j * pi * turns)[:, None]
    np.testing.assert_allclose(dft(after, (1, 2)), expected, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_volumes_have_two_phase_axes(order):
    space, line = (5, 6, 7), 0.1
    images = random_images((1, *space))
    ends = np.array([(0.0, 0, 0), (1.7, -2.1, 0.9)])
    motion = Motion(trajectory=recorded((0, 3), ends), line_time=line, order=order, shots=2, weights="none")
    after, _, _ = acted(motion, images)
    inner = measured_at(6, 2, order, line, 0.3)
    partition = [sorted(range(5), key=lambda q: (abs(q - 2), q)).index(q) for q in range(5)]
    times = np.array([(q if order != "centric" else partition[q]) * 0.6 + inner for q in range(5)])
    spectrum = dft(images, (1, 2, 3))
    for q in range(5):
        for k in range(6):
            d = ends[1] * times[q, k] / 3
            along = d[0] * k_of(5)[q] / 5 + d[1] * k_of(6)[k] / 6 + d[2] * k_of(7) / 7
            spectrum[0, q, k] *= np.exp(-2j * pi * along)
    np.testing.assert_allclose(after, inverse_dft(spectrum, (1, 2, 3)), atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("space", "shots"), [((12, 9), 1), ((12, 8), 3), ((9, 7), 3)])
def test_a_sudden_move_splits_the_lines_between_two_images(order, space, shots):
    images = random_images((1, *space))
    half = space[0] // 2 * LINE - LINE / 2
    motion = Motion(
        trajectory=recorded((0, half, half + 1e-9, 1e3), [(0, 0), (0, 0), (2, -3), (2, -3)]),
        line_time=LINE,
        order=order,
        shots=shots,
        weights="none",
    )
    after, _, _ = acted(motion, images)
    later = measured_at(space[0], shots, order, LINE, space[0] // shots * LINE) > half
    assert later.sum() == space[0] - space[0] // 2
    first, second = dft(images, (1, 2)), dft(np.roll(images, (2, -3), (1, 2)), (1, 2))
    expected = np.where(later[:, None], second, first)
    np.testing.assert_allclose(dft(after, (1, 2)), expected, atol=1e-12)


# --- turns, stretches and voxels that are no cubes --------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_each_line_comes_from_the_object_as_it_lay_then(order):
    space = (40, 41)
    trajectory = Breathing(translation=1.5, rotation=0.1, period=0.17, depth_jitter=0.1)
    motion = Motion(trajectory=trajectory, line_time=LINE, order=order, weights="none", rotation_tolerance=0.0)
    after, facts, drawn = acted(motion, blobs(space)[None])
    times = measured_at(40, 1, order, LINE, 0.4)
    poses = poses_of(drawn.paths[0].parameters(times), 2)
    expected = np.stack([dft(blobs(space, pose), (0, 1))[line] for line, pose in enumerate(poses)])
    np.testing.assert_allclose(dft(after[0], (0, 1)), expected, atol=2e-6)
    assert facts["rotation_error"] < 1e-12


def test_each_line_of_a_volume_with_voxels_that_are_no_cubes():
    space, edges = (20, 23, 24), (1.2, 1.0, 0.9)
    trajectory = Sudden(events=2, translation=1.5, rotation=0.1)
    motion = Motion(trajectory=trajectory, line_time=LINE, weights="none", spacing_mm=edges)
    look = {"edges": edges, "width": 1.9, "reach": 2.5}
    after, facts, drawn = acted(motion, blobs(space, **look)[None])
    times = np.arange(20 * 23).reshape(20, 23) * LINE
    poses = poses_of(drawn.paths[0].parameters(times.ravel()), 3)
    expected = np.zeros(space, complex)
    for pose in np.unique(poses, axis=0):
        lines = np.all(poses == pose, axis=(1, 2)).reshape(20, 23)
        expected[lines] = dft(blobs(space, pose, **look), (0, 1, 2))[lines]
    assert facts["poses"] == 3
    np.testing.assert_allclose(dft(after[0], (0, 1, 2)), expected, atol=1e-4 * np.abs(expected).max())


def test_a_breath_may_stretch_the_object():
    space = (30, 31)
    motion = Motion(
        trajectory=Breathing(translation=1.0, scaling=0.06, shear=0.03, period=0.3, axis=-2),
        line_time=LINE,
        weights="none",
        rotation_tolerance=0.0,
    )
    after, _, drawn = acted(motion, blobs(space, reach=3.0)[None])
    poses = poses_of(drawn.paths[0].parameters(np.arange(30) * LINE), 2)
    assert np.abs(np.linalg.det(poses) - 1).max() > 0.05
    expected = np.stack([dft(blobs(space, pose, reach=3.0), (0, 1))[line] for line, pose in enumerate(poses)])
    # splines, not exact as turns are
    error = np.abs(dft(after[0], (0, 1)) - expected).max()
    assert error < 5e-3 * np.abs(expected).max()


def test_sharing_poses_costs_little_and_says_how_much():
    images = blobs((40, 41))[None]
    trajectory = Drift(translation=2.0, rotation=0.1)
    exact, facts, drawn = acted(Motion(trajectory=trajectory, line_time=LINE, rotation_tolerance=0.0), images)
    assert facts["poses"] == 40
    shared, fewer, _ = acted(Motion(trajectory=trajectory, line_time=LINE, rotation_tolerance=0.1), images)
    # 0.1 rad at the corner, 28.6 voxels from the centre; a pose stands for 0.2 voxels of it
    assert fewer["poses"] == pytest.approx(2.79 / 0.2, abs=1.5)
    assert 0 < fewer["rotation_error"] <= 0.1
    change = np.abs(shared - exact).max()
    assert 0 < change < 0.1 * np.abs(np.stack(np.gradient(images[0]))).max() * 2
    assert drawn.severity > 0


# --- series -----------------------------------------------------------------------------------------------------------


def test_within_every_image_moves_alike_unless_it_has_its_own():
    images = np.repeat(random_images((1, 9, 8)), 3, 0)
    same, _, drawn = acted(Motion(trajectory=Sudden(events=3, translation=2), line_time=LINE), images)
    assert len(drawn.paths) == 1
    np.testing.assert_allclose(same, same[:1].repeat(3, 0), atol=1e-12)
    own, _, drawn = acted(Motion(trajectory=Sudden(events=3, translation=2), line_time=LINE, per_image=True), images)
    assert len(drawn.paths) == 3
    assert np.abs(own[0] - own[1]).max() > 1e-3
    # the others may leave, the first stays as it is
    alone = Motion(trajectory=drawn_as_recorded(drawn.paths[0], 2), line_time=LINE)
    np.testing.assert_allclose(acted(alone, images[:1])[0][0], own[0], atol=1e-12)


def drawn_as_recorded(path, d):
    """What was drawn, at the times of the lines."""
    times = np.arange(200) * LINE
    parameters = path.parameters(times)[:, : d + d * (d - 1) // 2]
    return Recorded(times=tuple(times.tolist()), parameters=tuple(tuple(row) for row in parameters.tolist()))


def test_between_images_each_is_the_object_at_the_time_of_its_centre():
    images = random_images((3, 8, 9))
    # 8 lines, then a pause: images start at 0, 0.5, 1; k = 0 is line 4
    times = [0, 0.3, 0.301, 0.7, 0.701, 2]
    moves = [(0, 0), (0, 0), (2, -1), (2, -1), (-3, 1), (-3, 1)]
    motion = Motion(trajectory=recorded(times, moves), line_time=LINE, pause=0.42, scope="between", weights="none")
    after, _, drawn = acted(motion, images)
    expected = [np.roll(image, shift, (0, 1)) for image, shift in zip(images, moves[::2], strict=True)]
    np.testing.assert_allclose(after, expected, atol=1e-12)
    assert drawn.severity == pytest.approx(np.sqrt((0 + 5 + 10) / 3))
    # about their mean (of equal images: (-1/3, 0)) they lie as far from one another
    meant = Motion(trajectory=recorded(times, moves), line_time=LINE, pause=0.42, scope="between", weights="time")
    after, _, drawn = acted(meant, images)
    spectrum = dft(np.stack(expected), (1, 2))
    back = np.exp(-2j * pi * k_of(8)[:, None] / 8 / 3)
    np.testing.assert_allclose(dft(after, (1, 2)), spectrum * back, atol=1e-12)
    assert drawn.severity == pytest.approx(np.sqrt(15 / 3 - 1 / 9))


def test_a_trajectory_runs_on_over_a_series():
    images = random_images((3, 8, 9))
    motion = Motion(
        trajectory=recorded((0, 2), [(0, 0), (3.0, -2)]), line_time=LINE, pause=0.42, scope="series", weights="none"
    )
    after, _, _ = acted(motion, images)
    for i in range(3):
        part = (0.5 * i + np.arange(8) * LINE) / 2
        turns = 3.0 * part[:, None] * k_of(8)[:, None] / 8 - 2 * part[:, None] * k_of(9) / 9
        expected = dft(images[i], (0, 1)) * np.exp(-2j * pi * turns)
        np.testing.assert_allclose(dft(after[i], (0, 1)), expected, atol=1e-12)


# --- the mean pose ----------------------------------------------------------------------------------------------------


def steps(times, moves):
    """A recorded trajectory of jumps."""
    ends = [*times[1:], 1e4]
    every = [moment for start, end in zip(times, ends, strict=True) for moment in (start, end - 1e-9)]
    return recorded(every, [move for move in moves for _ in range(2)])


@pytest.mark.parametrize("weights", ["spectral", "time"])
@pytest.mark.parametrize("reference", ["image", "series"])
def test_the_weighted_mean_of_translations_is_taken_out(weights, reference):
    images = random_images((2, 12, 9)) * np.array([1, 5]).reshape(2, 1, 1)
    moves = [(1.0, 2.0), (-2.5, 0.5)]
    motion = Motion(trajectory=steps((0, 0.065), moves), line_time=LINE, weights=weights, reference=reference)
    after, facts, _ = acted(motion, images)
    energies = (np.abs(dft(images, (1, 2))) ** 2).sum(2)
    energies = energies / energies.sum(1, keepdims=True) if weights == "spectral" else np.full((2, 12), 1 / 12)
    energies = energies.mean(0, keepdims=True).repeat(2, 0) if reference == "series" else energies
    d = np.repeat(moves, (7, 5), 0)
    for i in range(2):
        about = d - energies[i] @ d
        turns = about[:, :1] * k_of(12)[:, None] / 12 + about[:, 1:] * k_of(9) / 9
        expected = dft(images[i], (0, 1)) * np.exp(-2j * pi * turns)
        np.testing.assert_allclose(dft(after[i], (0, 1)), expected, atol=1e-12 * np.abs(expected).max())
        noted = [row for row in facts["trajectory"] if row[0] in (i, None)]
        np.testing.assert_allclose(
            np.array(noted)[:, 1:4].astype(float), np.column_stack((np.arange(12) * LINE, about))
        )


def test_turns_are_taken_about_the_mean_of_the_group():
    images = blobs((16, 17))[None]
    motion = Motion(trajectory=RandomWalk(translation=4.0, rotation=0.5), line_time=LINE, weights="spectral")
    _, facts, drawn = acted(motion, images)
    left = poses_of(np.array([row[2:] for row in facts["trajectory"]]), 2)
    energies = (np.abs(dft(images, (1, 2))) ** 2).sum((0, 2))
    weights = energies / energies.sum()
    mean = np.tensordot(weights, np.array([logm(pose) for pose in left]), 1)
    assert np.abs(mean).max() < 1e-12
    given = poses_of(drawn.paths[0].parameters(np.arange(16) * LINE), 2)
    first = expm(np.tensordot(weights, np.array([logm(pose) for pose in given]), 1))
    # the published single step is where the mean is, but for what does not commute
    np.testing.assert_allclose(given @ np.linalg.inv(left), np.broadcast_to(first, left.shape), atol=0.05)


def test_an_image_without_signal_stays_so():
    images = random_images((2, 9, 8)) * np.array([0, 1]).reshape(2, 1, 1)
    after, _, _ = acted(Motion(trajectory=Drift(translation=3), line_time=LINE), images)
    assert np.all(after[0] == 0)
    alone, _, _ = acted(Motion(trajectory=Drift(translation=3), line_time=LINE), images[1:])
    np.testing.assert_allclose(after[1], alone[0], atol=1e-12)


def brain(n):
    """Ellipses that look like a head: skull, brain, ventricles."""
    y, x = np.meshgrid(k_of(n) / n, k_of(n) / n, indexing="ij")
    shape = np.zeros((n, n))
    for height, cy, cx, ry, rx in (
        (1.0, 0, 0, 0.42, 0.34),
        (-0.5, 0, 0, 0.38, 0.30),
        (0.3, 0.02, 0, 0.33, 0.25),
        (-0.4, 0, 0.06, 0.12, 0.04),
        (-0.4, 0, -0.06, 0.12, 0.04),
    ):
        shape += height * (((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1)
    return shape + 0j


def residual(weights, seed):
    motion = Motion(trajectory=Sudden(events=(1, 5), translation=4), line_time=LINE, weights=weights)
    _, facts, _ = acted(motion, brain(64)[None], seed)
    return np.linalg.norm(facts["residual_shift"][0])


def test_energies_leave_less_of_a_shift_than_time_does():
    by_energy, by_time, none = (
        np.array([residual(weights, seed) for seed in range(16)]) for weights in ("spectral", "time", "none")
    )
    assert by_energy.mean() < 0.5 * by_time.mean()
    assert by_energy.mean() < 0.5 * none.mean()


def test_a_whole_shift_is_found_again():
    for space in ((31, 40), (64, 65)):
        motion = Motion(trajectory=recorded((0, 1e4), [(2.3, -1.7)] * 2), line_time=LINE, weights="none")
        _, facts, _ = acted(motion, blobs(space)[None])
        # the magnitude of an object with a phase is not quite band-limited
        np.testing.assert_allclose(facts["residual_shift"], [[2.3, -1.7]], atol=5e-3)


# --- severity and facts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [(8, 9), (4, 5, 6)])
@pytest.mark.parametrize("edges", [None, (1.5, 0.8, 1.0)])
def test_severity_is_the_displacement_of_the_voxels(space, edges):
    d = len(space)
    edges = None if edges is None else edges[:d]
    parameters = rng(5).normal(size=(3, d * (d + 1) // 2)) * 0.3
    times = (0.0, 0.1, 9.0)
    trajectory = Recorded(times=times, parameters=tuple(tuple(row) for row in parameters.tolist()))
    motion = Motion(trajectory=trajectory, line_time=LINE, weights="none", spacing_mm=edges)
    drawn = motion.draw((1, *space), rng())
    lines = space[:-1]
    moments = np.arange(np.prod(lines)) * LINE
    every = np.stack([np.interp(moments, times, column) for column in parameters.T], 1)
    poses = poses_of(np.concatenate((every, np.zeros_like(every)), 1), d)
    scale = np.ones(d) if edges is None else np.array(edges)
    grid = np.stack([g.ravel() * s for g, s in zip(np.meshgrid(*map(k_of, space), indexing="ij"), scale, strict=True)])
    k2 = sum(g.astype(float) ** 2 for g in np.meshgrid(*map(k_of, lines), indexing="ij")).ravel()
    squares = [((pose[:d, :d] @ grid + pose[:d, d:] - grid) ** 2).sum(0).mean() for pose in poses]
    assert drawn.severity == pytest.approx(np.sqrt(np.average(squares, weights=1 / (1 + k2))), rel=1e-12)


def test_severity_grows_with_the_motion_and_not_with_where_it_happens():
    severities = [
        Motion(trajectory=Drift(translation=size), line_time=LINE).draw((1, 16, 15), rng()).severity
        for size in (0, 1, 2)
    ]
    assert severities[0] == 0
    assert severities[2] == pytest.approx(2 * severities[1])


def test_mm_are_voxels_times_their_edges():
    images = random_images((1, 9, 8))
    in_mm = Motion(
        trajectory=recorded((0, 1e3), [(4.0, -3.0)] * 2), line_time=LINE, weights="none", spacing_mm=(2.0, 3.0)
    )
    np.testing.assert_allclose(acted(in_mm, images)[0], np.roll(images, (2, -1), (1, 2)), atol=1e-12)


def test_what_was_found_out_is_json_and_short():
    images = random_images((3, 90, 8))
    motion = Motion(trajectory=RandomWalk(translation=1, rotation=0.01), line_time=LINE, scope="series")
    result = corrupt(torch.as_tensor(images), [motion], rng())
    (facts,) = json.loads(json.dumps(result.facts, allow_nan=False))
    assert {row[0] for row in facts["trajectory"]} == {0, 1, 2}
    assert len(facts["trajectory"]) <= 200
    assert all(len(row) == len(facts["trajectory_columns"]) == 8 for row in facts["trajectory"])
    assert len(facts["residual_shift"]) == 3
    assert len(facts["residual_shift"][0]) == 2


def test_a_drawn_trajectory_can_be_looked_at():
    motion = Motion(trajectory=Drift(translation=2, rotation=0.1), line_time=LINE, order="centric", scope="series")
    drawn = motion.draw((2, 9, 8), rng())
    seen = motion.sampled(drawn)
    assert seen.times.shape == (2, 9)
    assert seen.poses.shape == (2, 9, 3, 3)
    assert np.all(np.diff(seen.times.ravel()) > 0)
    np.testing.assert_allclose(
        seen.parameters, np.outer(seen.times.ravel() / 0.18, drawn.paths[0].end).reshape(2, 9, 6)
    )
    np.testing.assert_allclose(seen.poses.reshape(-1, 3, 3), poses_of(seen.parameters.reshape(-1, 6), 2))


def test_coils_move_as_one():
    images = random_images((2, 3, 9, 8))
    motion = Motion(trajectory=Drift(translation=2.5), line_time=LINE, ndim=2, weights="time")
    together, _, _ = acted(motion, images)
    apart = np.stack([acted(motion, images[:, c])[0] for c in range(3)], 1)
    np.testing.assert_allclose(together, apart, atol=1e-12)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"line_time": 0.0}, "^line_time must lie in"),
        ({"line_time": 500.0}, "^line_time .* divide by 1000"),
        ({"shots": 0}, "^shots must be at least 1"),
        ({"shot_time": -1.0}, "^shot_time must be a positive"),
        ({"lines": 0}, "^lines must be at least 1"),
        ({"pause": -1.0}, "^pause must be at least 0"),
        ({"pause": 1.0}, "^pause has no meaning"),
        ({"per_image": True, "scope": "series"}, "^per_image has no meaning"),
        ({"reference": "image", "scope": "between"}, "^reference: image would"),
        ({"reference": "image", "weights": "none"}, "^reference has no meaning"),
        ({"rotation_tolerance": -1.0}, "^rotation_tolerance must be"),
        ({"spacing_mm": (1.0, 0.0)}, "^spacing_mm must be positive"),
        ({"probability": 2.0}, "^probability must lie"),
    ],
)
def test_fields_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Motion(**{"trajectory": Drift(translation=1), "line_time": LINE, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"readout": 2}, "^readout: got 2; axes count from the end"),
        ({"shots": 2}, "^shots: 9 lines are no multiple of 2"),
        ({"shots": 3, "shot_time": 0.02}, "^shot_time must be at least 0.03 s"),
        ({"spacing_mm": (1.0, 1.0, 1.0)}, "^spacing_mm must hold 2"),
        ({"trajectory": still((9, 8), (0.0, 0.07))}, "^trajectory: recorded from 0 to 0.07 s, shorter than the lines"),
        ({"trajectory": still((9, 8), (0.01, 9.0))}, "^trajectory: recorded from 0.01 to 9 s"),
        ({"trajectory": still((9, 8), (0.0, 0.2)), "scope": "series"}, "measured from 0 to 0.26 s"),
        (
            {"trajectory": Recorded(times=(0.0, 9.0), parameters=((0.0,) * 12,) * 2)},
            "^trajectory: recorded with 12 parameters at each time; images of 2 axes need 3 .rigid. or 6",
        ),
    ],
)
def test_what_does_not_fit_the_images_is_refused(changes, message):
    motion = Motion(**{"trajectory": Drift(translation=1), "line_time": LINE, **changes})
    with pytest.raises(ValueError, match=message):
        motion.draw((3, 9, 8), rng())


def test_a_trajectory_that_just_reaches_the_last_line_is_long_enough():
    Motion(trajectory=still((9, 8), (0.0, 0.08)), line_time=LINE).draw((3, 9, 8), rng())


def test_a_series_of_another_length_is_refused():
    motion = Motion(trajectory=Drift(translation=1), line_time=LINE, scope="series")
    drawn = motion.draw((3, 9, 8), rng())
    with pytest.raises(ValueError, match="the draw is for 3"):
        motion.apply(torch.as_tensor(random_images((2, 9, 8))), drawn)


def test_configs_name_motion():
    read = TypeAdapter(Motion).validate_python
    named = {"kind": "motion", "line_time": 0.01, "trajectory": {"kind": "sudden", "events": [1, 3], "rotation": 0.1}}
    assert read(named) == Motion(trajectory=Sudden(events=(1, 3), rotation=0.1), line_time=0.01)


@pytest.mark.parametrize("unit", [1e-30, 1e-22, 1e19, 1e30])
def test_the_unit_of_the_images_makes_no_difference(unit):
    images = torch.from_numpy(random_images((1, 17, 16)))
    motion = Motion(trajectory=Sudden(events=2, translation=2.0, rotation=0.1), line_time=LINE)
    expected, facts, _ = acted(motion, images.to(torch.complex64))
    after, same, _ = acted(motion, (images * unit).to(torch.complex64))
    np.testing.assert_allclose(after / unit, expected, atol=1e-5)
    np.testing.assert_allclose(same["residual_shift"], facts["residual_shift"], atol=1e-3)


def test_along_an_axis_of_one_voxel_nothing_moves():
    motion = Motion(trajectory=Sudden(translation=2.0, axis=-1), line_time=LINE, weights="none")
    images = random_images((1, 8, 1))
    after, _, drawn = acted(motion, images)
    assert drawn.severity == 0
    np.testing.assert_array_equal(after, images)
    turning = Motion(trajectory=Drift(rotation=0.2), line_time=LINE)
    for seed in range(5):
        with pytest.raises(ValueError, match=r"^trajectory: it turns or stretches axis -3, which is one voxel wide"):
            turning.draw((1, 1, 12, 12), rng(seed))


def test_a_large_turn_is_no_lucky_draw():
    motion = Motion(trajectory=Sudden(events=3, rotation=(0.5, 2.0)), line_time=LINE, weights="none")
    images = random_images((1, 12, 13))
    for seed in range(10):
        after, _, _ = acted(motion, images, seed)
        assert np.abs(after).max() < 10 * np.abs(images).max()


def test_one_recorded_trajectory_is_not_one_for_each_image():
    with pytest.raises(ValueError, match=r"^per_image has no meaning for a recorded trajectory"):
        Motion(trajectory=recorded((0, 1e4), [(1, 0)] * 2), line_time=LINE, per_image=True)
    with pytest.raises(ValueError, match=r"^scaling must lie in \[-1, 1\]"):
        Sudden(scaling=(1, 800))
