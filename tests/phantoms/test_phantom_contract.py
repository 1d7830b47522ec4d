"""What every phantom promises, whatever it is made of."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import stats

from phantoms import MNI, BrainWeb, Geometry
from phantoms.base import VolumePhantom, as_fractions, quantise, split_slabs
from phantoms.shapes.geometry import Ball, Box, Disc, Rectangle
from qsim.errors import InputError


def philox(seed):
    return np.random.Generator(np.random.Philox(seed))


def write_labels(file: Path, seed: int, shape=(20, 24, 40)) -> Path:
    """A ball of random labels 1 to 3 in background."""
    labels = philox(seed).integers(1, 4, size=shape).astype(np.uint8)
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    labels[sum(g**2 for g in grid) > 1] = 0
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), file)
    return file


BALLS = (
    Ball(tissue="csf", radius_mm=14.0),
    Ball(tissue="gm", radius_mm=11.5),
    Box(tissue="wm", extent_mm=(9.0, 9.0, 9.0)),
)
KINDS = ("mni", "one file", "several files", "blocks", "shapes 3D", "one shape 3D")


@pytest.fixture
def make(tmp_path):
    """Build a spec by name."""

    def build(name):
        if name == "mni":
            return MNI()
        if name == "one file":
            return BrainWeb(path=str(write_labels(tmp_path / "a.nii.gz", 1)))
        if name in ("several files", "blocks"):
            for i in range(4):
                write_labels(tmp_path / f"{i}.nii.gz", i, shape=(20, 24 + i, 41))
            return BrainWeb(path=str(tmp_path), test_subjects=2, block=3 if name == "blocks" else 1)
        return Geometry(size=(30, 33, 40), spacing_mm=(1.0, 1.0, 1.0), shapes=BALLS, subjects=1 if "one" in name else 4)

    return build


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("slice_axis", [0, 2])
def test_crops_are_fractions_of_the_patch_asked_for(make, name, slice_axis):
    spec = make(name)
    for split in ("train", "test"):
        phantom = spec.load(split, slice_axis)
        rng = philox(0)
        patches = [(4, 5), (5, 4), (1, 1), (2, 2, 2), (1, 2, 3)] * 4
        for patch in patches:
            crop = phantom.crop(patch, rng)
            assert crop.fractions.shape == (len(phantom.tissues), *patch)
            assert crop.fractions.dtype == np.float32
            assert crop.fractions.min() >= 0
            # summed in double precision: no float32 sum that happens to round down
            assert crop.fractions.sum(axis=0, dtype=float).max() <= 1
            assert len(crop.origin) == 3
            assert len(phantom.spacing_mm) == 3
            # writable and not a view: a caller may not change the phantom
            crop.fractions[:] = 0
            assert phantom.crop(patch, philox(5)).fractions.max() > 0


@pytest.mark.parametrize("name", KINDS)
def test_same_generator_same_crop(make, name):
    phantom = make(name).load("train", 2)
    for patch in ((5, 6), (3, 4, 2)):
        first, second = (phantom.crop(patch, philox(7)) for _ in range(2))
        np.testing.assert_array_equal(first.fractions, second.fractions)
        assert (first.subject, first.origin) == (second.subject, second.origin)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_train_and_test_share_no_voxel(make, name, slice_axis):
    spec = make(name)
    seen = {}
    for split in ("train", "test"):
        phantom = spec.load(split, slice_axis)
        rng = philox(3)
        voxels = set()
        for patch in [(3, 4)] * 300 + [(2, 2, 2)] * 300:
            crop = phantom.crop(patch, rng)
            depth = 1 if len(patch) == 2 else patch[slice_axis]
            voxels |= {(crop.subject, crop.origin[slice_axis] + d) for d in range(depth)}
        seen[split] = voxels
        assert split in phantom.description
    assert not seen["train"] & seen["test"]


@pytest.mark.parametrize("name", ["mni", "one file", "one shape 3D"])
@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_slabs_keep_their_gap(make, name, slice_axis):
    spec = make(name)
    slabs = spec.slabs(slice_axis)
    ((first, end),) = slabs["test"]
    (_, before), (after, _) = slabs["train"]
    assert first - before == spec.gap
    assert after - end == spec.gap


@pytest.mark.parametrize("name", ["several files", "shapes 3D"])
def test_subjects_are_disjoint_and_differ(make, name):
    spec = make(name)
    train, test = spec.load("train", 2), spec.load("test", 2)
    assert sorted(train.ids + test.ids) == [0, 1, 2, 3]
    for a in train.volumes:
        for b in test.volumes:
            assert a.shape != b.shape or np.mean(a != b) > 0.01


def test_whole_slice_needs_no_padding():
    phantom = MNI().load("train", 2)
    crop = phantom.crop((197, 233), philox(0))
    assert crop.origin[:2] == (0, 0)
    np.testing.assert_array_equal(crop.fractions, as_fractions(phantom.volumes[0][..., crop.origin[2]]))


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ((300, 300), "patch: 300 x 300 is larger than the anatomy, 197 x 233 voxels"),
        ((197, 234), "patch: 197 x 234 is larger than the anatomy, 197 x 233 voxels"),
        ((40, 40, 100), "larger than the anatomy, 197 x 233 x 91 voxels inside one slab along axis 2"),
        ((0, 4), "must be at least 1"),
        ((4,), "wanted two numbers"),
    ],
)
def test_refuses_what_does_not_fit(patch, message):
    with pytest.raises(InputError, match=message):
        MNI().load("train", 2).crop(patch, philox(0))


def test_a_block_fits_where_only_one_slab_is_thick_enough():
    # train has 57 and 91 slices
    phantom = MNI().load("train", 2)
    rng = philox(1)
    origins = {phantom.crop((8, 8, 70), rng).origin[2] for _ in range(50)}
    assert min(origins) >= 98
    assert max(origins) <= 189 - 70


def test_slice_axis_is_refused_by_name(make):
    for name in ("mni", "one file", "shapes 3D"):
        with pytest.raises(InputError, match="slice_axis: got 3"):
            make(name).load("train", 3)


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_a_crop_is_cut_where_it_says(slice_axis):
    # every voxel holds its own number, in steps of 2^-24
    shape = (9, 10, 11)
    numbers = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(1, *shape)
    volume = numbers * np.float32(2**-24) + np.float32(0.5)
    phantom = VolumePhantom(
        tissues=("gm",),
        spacing_mm=(1.0, 2.0, 3.0),
        volumes=(volume,),
        slabs=(((0, 3), (5, 9)),),
        slice_axis=slice_axis,
        ids=(4,),
    )
    rng = philox(2)
    for patch in [(4, 3), (3, 2, 3), (1, 1, 1), (2, 4)] * 50:
        crop = phantom.crop(patch, rng)
        extent = list(patch) if len(patch) == 3 else [*patch[:slice_axis], 1, *patch[slice_axis:]]
        cut = volume[(0, *(slice(o, o + n) for o, n in zip(crop.origin, extent, strict=True)))]
        np.testing.assert_array_equal(crop.fractions[0], cut.reshape(patch))
        first, last = crop.origin[slice_axis], crop.origin[slice_axis] + extent[slice_axis]
        assert last <= 3 or (first >= 5 and last <= 9)
        assert crop.subject == 4


def test_centres_are_uniform_over_the_tissue():
    # a cone: slices of very different size, and two slabs; 1 x 1 patches are their own centres
    shape = (15, 15, 24)
    grid = np.indices(shape).astype(float)
    inside = (grid[0] - 7) ** 2 + (grid[1] - 7) ** 2 < ((grid[2] + 1) / 3.2) ** 2
    volume = inside[None].astype(np.float32)
    phantom = VolumePhantom(
        tissues=("wm",), spacing_mm=(1.0,) * 3, volumes=(volume,), slabs=(((2, 9), (12, 24)),), slice_axis=2, ids=(0,)
    )
    counts = np.zeros(shape)
    rng = philox(11)
    n = 20000
    for _ in range(n):
        counts[phantom.crop((1, 1), rng).origin] += 1
    allowed = inside.copy()
    allowed[..., :2] = allowed[..., 9:12] = False
    assert counts[~allowed].sum() == 0
    expected = n / allowed.sum()
    assert stats.chisquare(counts[allowed], np.full(allowed.sum(), expected)).pvalue > 1e-3
    per_slice = allowed.sum(axis=(0, 1))
    used = per_slice > 0
    assert stats.chisquare(counts.sum(axis=(0, 1))[used], per_slice[used] * expected).pvalue > 1e-3


def test_subjects_are_uniform_whatever_their_size():
    small, large = np.ones((1, 4, 4, 4), dtype=np.float32), np.ones((1, 9, 9, 9), dtype=np.float32)
    phantom = VolumePhantom(
        tissues=("wm",),
        spacing_mm=(1.0,) * 3,
        volumes=(small, large),
        slabs=(((0, 4),), ((0, 9),)),
        slice_axis=0,
        ids=(3, 8),
    )
    rng = philox(4)
    drawn = [phantom.crop((2, 2), rng).subject for _ in range(2000)]
    assert set(drawn) == {3, 8}
    assert stats.binomtest(drawn.count(3), 2000, 0.5).pvalue > 1e-3
    # what the smaller one cannot give is refused whichever subject the draw would meet
    with pytest.raises(InputError, match="4 x 4"):
        phantom.crop((5, 5), rng)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_quantised_fractions_never_exceed_one(dtype):
    fractions = philox(0).dirichlet([0.4] * 5, size=2000).T
    steps = quantise(fractions, dtype)
    back = as_fractions(steps)
    one = 2**7 if dtype is np.uint8 else 2**15
    assert back.sum(axis=0, dtype=float).max() <= 1
    # half a step each; what five roundings add to the sum may be taken from the largest
    assert np.abs(back - fractions).max() <= 3 / one
    exact = np.array([[1.0, 0.5, 0.0], [0.0, 0.25, 0.0]])
    np.testing.assert_array_equal(as_fractions(quantise(exact, dtype)), exact)


def test_too_wide_a_gap_is_refused():
    with pytest.raises(InputError, match="leave nothing of 20"):
        split_slabs((10, 30), 40, 0.2, 9)


def test_two_dimensional_shapes():
    spec = Geometry(
        size=(40, 30),
        spacing_mm=(1.0, 1.0),
        shapes=(Disc(tissue="gm", radius_mm=10.0), Rectangle(tissue="wm", extent_mm=(5.5, 7.5))),
    )
    train, test = spec.load("train", 2), spec.load("test", 2)
    assert not set(train.ids) & set(test.ids)
    crop = train.crop((13, 14), philox(0))
    assert crop.fractions.shape == (2, 13, 14)
    assert len(crop.origin) == len(train.spacing_mm) == 2
    with pytest.raises(InputError, match="40 x 30"):
        train.crop((41, 30), philox(0))
    with pytest.raises(InputError, match="wanted two numbers"):
        train.crop((4, 4, 4), philox(0))
