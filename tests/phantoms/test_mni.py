"""The MNI152 phantom against nilearn's own loaders, anatomy and published volumes."""

import subprocess
import sys

import numpy as np
import pytest

from phantoms import MNI
from phantoms.base import as_fractions
from phantoms.brains.mni import sharpened


@pytest.fixture(scope="module")
def plain():
    return as_fractions(MNI(sharpen=1.0).load("train", 2).volumes[0])


@pytest.fixture(scope="module")
def default():
    return as_fractions(MNI().load("train", 2).volumes[0])


def test_unsharpened_fractions_are_those_nilearn_loads(plain):
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template

    brain = load_mni152_brain_mask(resolution=1).get_fdata() > 0
    gm_image = load_mni152_gm_template(resolution=1)
    gm, wm = gm_image.get_fdata(), load_mni152_wm_template(resolution=1).get_fdata()
    step = 2.0**-15
    np.testing.assert_allclose(plain[1], np.where(brain, gm, 0), atol=1.5 * step)
    np.testing.assert_allclose(plain[2], np.where(brain, wm, 0), atol=1.5 * step)
    assert plain.sum(axis=0, dtype=float).max() <= 1
    # the rest of the mask is CSF: every voxel of the brain is full, to a rounding of three
    np.testing.assert_allclose(plain.sum(axis=0), brain, atol=2 * step)
    np.testing.assert_array_equal(MNI().load("train", 2).affine, gm_image.affine)


@pytest.mark.parametrize("which", ["plain", "default"])
def test_volumes_are_those_of_an_adult_brain(which, request):
    csf, gm, wm = request.getfixturevalue(which).sum(axis=(1, 2, 3), dtype=float) / 1000  # ml
    # the ICBM152 2009a space is larger than a typical head: its brain mask holds 1.89 l
    assert csf + gm + wm == pytest.approx(1887, rel=0.01)
    # BrainWeb's brains, in a space of the same size: GM 894 to 1109 ml, WM 573 to 743 ml
    assert 894 < gm < 1109
    assert 573 < wm < 743
    # GM / WM of adults by MRI: 1.1 to 1.7 between studies and sexes (e.g. Luders et al. 2002, Allen et al. 2002)
    assert 1.1 < gm / wm < 1.75


def test_sharpening_leaves_labels_and_sums(plain, default):
    np.testing.assert_allclose(default.sum(axis=0), plain.sum(axis=0), atol=3 * 2.0**-15)
    largest = np.sort(plain, axis=0)
    clear = largest[-1] - largest[-2] > 2.0**-10
    np.testing.assert_array_equal(default.argmax(axis=0)[clear], plain.argmax(axis=0)[clear])


def test_sharpened_shares_of_pure_voxels_are_those_documented(plain, default):
    def pure(fractions):
        brain = fractions.sum(axis=0) >= 0.5
        largest, label = fractions.max(axis=0), fractions.argmax(axis=0)
        return [float(np.mean(largest[brain & (label == t)] >= 0.9)) for t in range(3)]

    assert pure(plain) == pytest.approx([0.12, 0.24, 0.48], abs=0.006)
    assert pure(default) == pytest.approx([0.64, 0.83, 0.83], abs=0.006)


def test_sharpened_by_hand():
    fractions = np.array([[0.2, 0.0, 0.5], [0.6, 0.0, 0.5]])
    # 0.2^2 = 0.04, 0.6^2 = 0.36, scaled back to their sum of 0.8
    np.testing.assert_allclose(sharpened(fractions, 2.0), [[0.08, 0.0, 0.5], [0.72, 0.0, 0.5]], atol=1e-12)
    # 1e-30 to the 20th underflows, the ratio does not
    np.testing.assert_allclose(sharpened(np.array([[1e-30], [1e-30]]), 20.0), [[1e-30], [1e-30]], rtol=1e-6)


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_test_slab_holds_cortex_white_matter_and_ventricles(slice_axis, default):
    ((start, stop),) = MNI().slabs(slice_axis)["test"]
    slab = np.take(default, range(start, stop), axis=1 + slice_axis)
    whole = default.sum(axis=(1, 2, 3))
    share = slab.sum(axis=(1, 2, 3)) / whole
    assert share.min() > 0.1
    # the bodies of both lateral ventricles, (+-6, -3, 18) mm
    for x in (-6, 6):
        voxel = [x + 98, -3 + 134, 18 + 72]
        voxel[slice_axis] -= start
        assert voxel[slice_axis] in range(stop - start)
        assert slab[(0, *voxel)] > 0.5


def test_sagittal_test_slab_is_its_own_mirror_image(default):
    # the template is symmetric about x = 0 mm, index 98: an off-centre slab would have its twin in the training data
    assert np.abs(default - default[:, ::-1]).mean() < 1e-3
    ((start, stop),) = MNI().slabs(0)["test"]
    assert start + stop - 1 == 2 * 98


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sharpen": 0.5}, "sharpen"),
        ({"sharpen": float("nan")}, "sharpen"),
        ({"test_share": 0.0}, "test_share"),
        ({"gap": -1}, "gap"),
    ],
)
def test_refusals_name_the_field(change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        MNI(**change)


def test_importing_phantoms_stays_light():
    heavy = ("nibabel", "nilearn", "scipy.ndimage", "matplotlib")
    code = f"import sys, phantoms, phantoms.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
