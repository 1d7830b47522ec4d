"""Deformed anatomies: where their tissue comes from, that nothing folds, and what train and test share."""

import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.interpolate import RegularGridInterpolator

from generators import GeneratorConfig, make_samples
from phantoms import MNI, BrainWeb, Deformed, Geometry
from phantoms.base import VolumePhantom, as_fractions
from phantoms.brains.deformed import LARGEST_RATIO, interpolated
from phantoms.files.of_config import phantom_of_config
from phantoms.shapes.geometry import Ball, Disc
from qsim.errors import InputError

BALL = Geometry(
    size=(40, 44, 36),
    spacing_mm=(4.0, 4.0, 5.0),
    shapes=(Ball(tissue="gm", radius_mm=70.0), Ball(tissue="wm", radius_mm=50.0)),
    subjects=3,
    test_subjects=1,
)
DISC = Geometry(
    size=(60, 55),
    spacing_mm=(2.0, 3.0),
    shapes=(Disc(tissue="gm", radius_mm=50.0), Disc(tissue="wm", radius_mm=35.0)),
    subjects=2,
    test_subjects=1,
)


def philox(seed):
    return np.random.Generator(np.random.Philox(seed))


def one_file(tmp_path, spacing=4.0):
    """A ball of label 2 in label 3, as one subject that is split into slabs."""
    grid = np.indices((46, 40, 60)) - np.array([23, 20, 30])[:, None, None, None]
    r = np.sqrt((grid**2).sum(axis=0))
    file = tmp_path / "a.nii"
    affine = np.diag([spacing, spacing, spacing, 1.0])
    nibabel.save(nibabel.Nifti1Image(np.select([r < 12, r < 19], [2, 3], 0).astype(np.uint8), affine), file)
    return BrainWeb(path=str(file), gap=2)


def at_places(volume, origin, u_mm, spacing_mm):
    """Fractions at r + u by scipy's interpolator of a regular grid, background beyond it."""
    padded = np.pad(as_fractions(volume).astype(float), [(0, 0), *[(9, 9)] * len(origin)])
    axes = [np.arange(n) - 9.0 for n in padded.shape[1:]]
    block = u_mm.shape[1:]
    index = np.indices(block) + np.reshape(origin, (-1, *[1] * len(block)))
    places = index + u_mm / np.reshape(spacing_mm, (-1, *[1] * len(block)))
    return np.stack([RegularGridInterpolator(axes, tissue)(np.moveaxis(places, 0, -1)) for tissue in padded])


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("spec", "patch"), [(BALL, (20, 12, 18)), (BALL, (22, 17)), (DISC, (30, 21)), ("file", (14, 15, 7))]
)
def test_a_crop_is_the_subject_at_r_plus_u(tmp_path, spec, patch, split):
    inner = one_file(tmp_path) if spec == "file" else spec
    deformed, plain = Deformed(phantom=inner, subjects=3, seed=2).load(split, 2 - (inner is DISC)), None
    plain = inner.load(split, deformed.slice_axis)
    seen = set()
    for seed in range(12):
        crop = deformed.crop(patch, philox(seed))
        base, k = divmod(crop.subject, 3)
        seen.add(k)
        block = patch
        if len(patch) < len(crop.origin):
            block = (*patch[: deformed.slice_axis], 1, *patch[deformed.slice_axis :])
        u = deformed.displacement_mm(crop.subject, crop.origin, block)
        assert (np.abs(u).max() > 0) == (k > 0)
        expected = at_places(plain.volumes[plain.ids.index(base)], crop.origin, u, deformed.spacing_mm)
        # steps of 2^-15, and 2^-17 voxels of the displacement
        np.testing.assert_allclose(crop.fractions, expected.reshape(-1, *patch), rtol=0, atol=2**-14)
        assert crop.fractions.min() >= 0
        assert crop.fractions.sum(axis=0).max() <= 1
        if k == 0:
            window = tuple(slice(o, o + n) for o, n in zip(crop.origin, block, strict=True))
            whole = as_fractions(plain.volumes[plain.ids.index(base)])[(slice(None), *window)]
            np.testing.assert_array_equal(crop.fractions, whole.reshape(-1, *patch))
    assert seen == {0, 1, 2}


def test_a_long_length_is_a_shift():
    deformed = Deformed(phantom=BALL, subjects=4, displacement_mm=6.0, length_mm=1e7).load("test", 2)
    extent = BALL.size
    plain = as_fractions(BALL.load("test", 2).volumes[0])
    for subject in deformed.ids[1:]:
        u = deformed.displacement_mm(subject, (0, 0, 0), extent)
        shift = u[:, 0, 0, 0] / deformed.spacing_mm
        assert np.ptp(u.reshape(3, -1), axis=1).max() < 1e-3
        for at in (0, 17, 35):
            crop = deformed.whole_slice(deformed.ids.index(subject), at, extent[:2])
            # scipy moves the image the other way
            expected = ndimage.shift(plain, (0, *-shift), order=1, mode="grid-constant", prefilter=False)
            np.testing.assert_allclose(crop.fractions, expected[..., at], rtol=0, atol=1e-4)


def test_beyond_the_volume_is_background_and_sums_stay_below_one():
    thirds = np.full((3, 6, 5, 4), 1 / 3, dtype=np.float32)
    far = np.full((3, 2, 2, 2), 40.0)
    assert interpolated(thirds, far).max() == 0
    edge = np.zeros((3, 1, 1, 1))
    edge[0] = 5.25
    np.testing.assert_allclose(interpolated(thirds, edge), 0.75 / 3, atol=2**-15)
    inside = 1 + 2 * philox(0).random((3, 9, 9, 9))
    found = interpolated(thirds, inside)
    np.testing.assert_allclose(found, 1 / 3, atol=2**-15)
    assert found.sum(axis=0).max() <= 1


def test_displacements_have_the_spread_and_the_length_that_are_said():
    # two places 18 mm apart along x in 1500 anatomies
    deformed = Deformed(phantom=BALL, subjects=1501, displacement_mm=3.0, length_mm=24.0, seed=5).load("test", 2)
    first = deformed.ids[0]
    u = np.stack([deformed.displacement_mm(first + k, (3, 20, 7), (10, 1, 1)).reshape(3, -1) for k in range(1, 1501)])
    assert deformed.displacement_mm(first, (3, 20, 7), (10, 1, 1)).max() == 0
    np.testing.assert_allclose(u.mean(axis=0), 0, atol=4 * 3 / 1500**0.5)
    np.testing.assert_allclose(u.std(axis=0), 3.0, rtol=0.1)
    for lag in (4, 8):
        expected = 9 * np.exp(-((lag * 4.0) ** 2) / (2 * 24.0**2))
        found = (u[..., 0] * u[..., lag]).mean(axis=0)
        np.testing.assert_allclose(found, expected, atol=4 * 9 * 2**0.5 / 1500**0.5)
    # the axes do not depend on each other
    np.testing.assert_allclose(np.corrcoef(u[..., 0].T) - np.eye(3), 0, atol=4 / 1500**0.5)


def determinants(deformed, subject, first, stop):
    """det of the change of r + u over the change of r, by differences, in one slab along axis 2."""
    extent = deformed.volumes[deformed.ids.index(subject)].shape[1:3]
    u = deformed.displacement_mm(subject, (0, 0, first), (*extent, stop - first))
    jacobian = np.stack([np.stack(np.gradient(component, *deformed.spacing_mm)) for component in u])
    jacobian += np.eye(3)[:, :, None, None, None]
    return u, np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1)))


@pytest.mark.parametrize("split", ["train", "test"])
def test_nothing_folds_even_at_the_limit_and_slabs_map_onto_themselves(tmp_path, split):
    spec = Deformed(
        phantom=one_file(tmp_path, 3.0), subjects=13, displacement_mm=LARGEST_RATIO * 24.0, length_mm=24.0, seed=1
    )
    deformed = spec.load(split, 2)
    touched = []
    for first, stop in deformed.slabs[0]:
        for subject in deformed.ids[1:]:
            u, det = determinants(deformed, subject, first, stop)
            assert det.min() > 0.03
            at = np.arange(first, stop) + u[2] / 3.0
            # order along the axis is kept, and nothing comes from outside the slab
            assert np.diff(at, axis=-1).min() > 0
            inner = [at[..., 0], first] if first > 0 else [at[..., -1], stop - 1]
            np.testing.assert_allclose(*inner, rtol=0, atol=1e-9)
            low, high = (first if first > 0 else -np.inf), (stop - 1 if stop < 60 else np.inf)
            assert at.min() >= low - 1e-9
            assert at.max() <= high + 1e-9
            assert np.abs(u[2]).max() > 1.0
        touched.append((first, stop))
    assert touched == list(deformed.slabs[0])


def test_no_slice_shows_what_the_other_split_holds(tmp_path):
    # every slice a tissue of its own share: what is shown tells the slice that it came from
    ramp = np.zeros((1, 32, 32, 60), dtype=np.float32)
    ramp[0] = 0.5 + np.arange(60) / 128
    for slabs in (((0, 20), (40, 60)), ((25, 35),), ((30, 31),)):
        plain = VolumePhantom(("gm",), (2.0, 2.0, 2.0), (ramp,), (slabs,), 2, (0,))
        spec = Deformed(phantom=MNI(), subjects=5, seed=3)
        deformed = spec.of(plain)
        for i, at in deformed.slices():
            first, stop = next(slab for slab in slabs if slab[0] <= at < slab[1])
            if stop == 60 and at > 50:
                # there the end of the volume is seen, and background beyond it
                continue
            shown = deformed.whole_slice(i, at, (32, 32)).fractions[0, 12:20, 12:20]
            source = (shown - 0.5) * 128
            # in the middle nothing comes from beyond the other axes
            assert source.max() <= stop - 1 + 0.01
            assert source.min() >= first - 0.01 or first == 0
        with pytest.raises(InputError, match=r"^patch: slices 22 to 22 along axis 2 lie in no slab of this split"):
            deformed.whole_slice(1, 22, (32, 32))


@pytest.mark.parametrize(("patch", "slice_axis"), [((24, 20, 16), 2), ((24, 20), 1), ((24, 20), 0)])
def test_overlapping_crops_agree_to_the_bit_and_seeds_matter(patch, slice_axis):
    deformed = Deformed(phantom=BALL, subjects=2, seed=7).load("test", slice_axis)
    whole = {}
    for seed in range(60):
        crop = deformed.crop(patch, philox(seed))
        if crop.subject % 2 == 0:
            continue
        block = patch if len(patch) == 3 else (*patch[:slice_axis], 1, *patch[slice_axis:])
        content = crop.fractions.reshape(2, *block)
        seen, values = whole.setdefault("all", (np.zeros(BALL.size, bool), np.zeros((2, *BALL.size), np.float32)))
        window = tuple(slice(o, o + n) for o, n in zip(crop.origin, block, strict=True))
        known = seen[window]
        np.testing.assert_array_equal(values[(slice(None), *window)][:, known], content[:, known])
        values[(slice(None), *window)] = content
        seen[window] = True
    assert whole["all"][0].sum() > 10_000
    # a block and a slice agree to rounding
    again = Deformed(phantom=BALL, subjects=2, seed=7).load("test", 2)
    for at in (11, 18):
        flat = again.whole_slice(1, at, BALL.size[:2]).fractions
        seen = whole["all"][0][..., at]
        np.testing.assert_allclose(flat[:, seen], whole["all"][1][..., at][:, seen], rtol=0, atol=2**-14)
    other = Deformed(phantom=BALL, subjects=2, seed=8).load("test", 2)
    assert np.abs(other.whole_slice(1, 18, BALL.size[:2]).fractions - flat).max() > 0.2


def test_volumes_are_kept_on_average_and_little_changed_in_a_head():
    # the mean over draws is exact: u has the same distribution everywhere
    deformed = Deformed(phantom=BALL, subjects=25, seed=4).load("test", 2)
    plain = as_fractions(BALL.load("test", 2).volumes[0]).sum(axis=(1, 2, 3), dtype=float)
    totals = np.zeros((25, 2))
    for i, at in ((i, at) for i in range(25) for at in range(36)):
        totals[i] += deformed.whole_slice(i, at, BALL.size[:2]).fractions.sum(axis=(1, 2), dtype=float)
    np.testing.assert_allclose(totals[0], plain, rtol=1e-6)
    relative = totals[1:] / plain - 1
    # heads differ by 8 % (SD), as the large ones of one spread do
    assert np.abs(relative).max() < 0.25
    error = relative.std(axis=0, ddof=1) / 24**0.5
    assert (np.abs(relative.mean(axis=0)) < 3.5 * error).all()
    assert error.max() < 0.025


def test_train_and_test_are_those_of_the_phantom():
    spec = Deformed(phantom=BALL, subjects=4)
    train, test = spec.load("train", 2), spec.load("test", 2)
    assert train.ids == (0, 1, 2, 3, 4, 5, 6, 7)
    assert test.ids == (8, 9, 10, 11)
    assert {i // 4 for i in train.ids} == set(BALL.load("train", 2).ids)
    # anatomies of a subject share its volume: nothing is held twice
    assert len({id(volume) for volume in train.volumes}) == 2
    assert train.description.startswith(BALL.load("train", 2).description)
    assert len(train.slices()) == 4 * len(BALL.load("train", 2).slices())
    u = [train.displacement_mm(subject, (9, 9, 9), (4, 4, 4)) for subject in (1, 2, 5)]
    assert min(np.abs(u[0] - u[1]).max(), np.abs(u[0] - u[2]).max()) > 0.5


def test_a_single_slice_is_deformed_in_its_plane_alone(tmp_path):
    file = tmp_path / "slice.nii"
    numbers = np.ones((30, 26, 1), dtype=np.uint8)
    nibabel.save(nibabel.Nifti1Image(numbers, np.eye(4)), file)
    deformed = Deformed(phantom=BrainWeb(path=str(file)), subjects=2).load("test", 2)
    crop = deformed.whole_slice(1, 0, (30, 26))
    assert (crop.fractions[0, 13:17, 11:15] == 1).all()
    u = deformed.displacement_mm(1, (0, 0, 0), (30, 26, 1))
    assert (u[2] == 0).all()
    assert (u[:2] != 0).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"subjects": 0}, r"^subjects must be at least 1"),
        ({"displacement_mm": 0.0}, r"^displacement_mm must be above 0 mm"),
        ({"length_mm": float("nan")}, r"^length_mm must be above 0 mm"),
        ({"seed": -1}, r"^seed must be at least 0"),
        (
            {"displacement_mm": 5.0},
            r"^displacement_mm: 5 mm over a length_mm of 30 mm would fold the anatomy; give at most 4\.5 mm, or a "
            r"length_mm of at least 33\.3333 mm$",
        ),
    ],
)
def test_refusals_name_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        Deformed(phantom=BALL, **fields)


CONFIG = """
seed: 3
samples: 12
patch: [44, 36]
phantom:
  kind: deformed
  subjects: 3
  phantom:
    kind: geometry
    size: [44, 36]
    spacing_mm: [3.0, 3.0]
    shapes: [{shape: disc, tissue: gm, radius_mm: 45.0}, {shape: disc, tissue: wm, radius_mm: 30.0}]
    subjects: 2
    test_subjects: 1
tissues: {kind: sabidussi2021}
model:
  kind: bloch
  preparation: {kind: inversion, ti: [0.1, 0.9]}
fields:
  - {kind: b0, region: brain}
  - {kind: b1, region: brain}
noise: {kind: rician, sigma: {kind: constant, value: 0.01}}
"""


def test_a_config_names_it_and_fields_lie_on_it(tmp_path):
    file = tmp_path / "generate.yaml"
    file.write_text(CONFIG)
    spec, split, axis = phantom_of_config(file)
    assert spec == Deformed(phantom=spec.phantom, subjects=3)
    from generators.reading import read_config

    config = read_config(file, GeneratorConfig)
    assert config.phantom_spec == spec
    samples = make_samples(config, range(12))
    assert set(samples.subject.tolist()) == {0, 1, 2}
    phantom = spec.load(split, 1)
    del axis
    for subject, labels, kappa in zip(samples.subject, samples.labels, samples.kappa, strict=True):
        # the whole slice: the same anatomy whenever it is drawn
        u = phantom.displacement_mm(int(subject), (0, 0), (44, 36))
        shown = at_places(phantom.volumes[0], (0, 0), u, (3.0, 3.0))
        with_background = np.concatenate([1 - shown.sum(axis=0, keepdims=True), shown])
        clear = with_background.max(axis=0) > 0.51
        assert clear.mean() > 0.95
        np.testing.assert_array_equal(labels.numpy()[clear], with_background.argmax(axis=0)[clear])
        b1 = kappa[-1][labels > 0]
        assert b1.std() > 0.005
    alone = make_samples(config, [7])
    torch.testing.assert_close(alone.images[0], samples.images[7], rtol=0, atol=0)
