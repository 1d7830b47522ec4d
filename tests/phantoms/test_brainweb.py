"""Label models: counts of real data, fractions by hand, and files that must be refused."""

import gzip
import os
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from generators import GeneratorConfig, make_samples
from generators.reading import read_config
from phantoms import BrainWeb
from phantoms.base import as_fractions
from phantoms.brains.blocks import block_fractions
from phantoms.brains.closing import closed_brain
from qsim.errors import InputError

ROOT = Path(os.environ.get("QSIM_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "brainweb_labels"
real = pytest.mark.skipif(not ROOT.is_dir(), reason="no BrainWeb data: set QSIM_TEST_DATA to the folder of test data")


def save(file, labels, spacing=(1.0, 1.0, 1.0)):
    nibabel.save(nibabel.Nifti1Image(labels, np.diag([*spacing, 1.0])), file)
    return str(file)


def some_labels(seed=0, shape=(12, 13, 40), high=4):
    return np.random.default_rng(seed).integers(0, high, size=shape).astype(np.uint8)


def volumes_ml(phantom):
    volume = as_fractions(phantom.volumes[0])
    return dict(
        zip(phantom.tissues, volume.sum(axis=(1, 2, 3), dtype=float) * np.prod(phantom.spacing_mm) / 1000, strict=True)
    )


@real
def test_discrete_model_has_the_published_counts():
    phantom = BrainWeb(path=str(ROOT / "brainweb_normal_discrete_1mm.nii.gz")).load("train", 2)
    counts = {tissue: round(ml * 1000) for tissue, ml in volumes_ml(phantom).items()}
    assert counts == {
        "csf": 371945,
        "gm": 902912 + 5987,  # and glial matter
        "wm": 674777,
        "fat": 145101 + 297860,  # and connective tissue
        "muscle": 616200,
        "skin": 721034,
        "skull": 362561,
    }


@real
@pytest.mark.parametrize("block", [2, 3])
def test_half_millimetre_brain_keeps_its_volumes(block):
    # bw_folders.json: voxels of 0.125 mm^3
    spec = BrainWeb(path=str(ROOT / "bw_folder01_vessel-gm-wm_05mm.nii.gz"), labels="vessel-gm-wm", block=block)
    phantom = spec.load("test", 2)
    assert phantom.spacing_mm == pytest.approx((block / 2,) * 3)
    ml = volumes_ml(phantom)
    # shares of 27 voxels are rounded to 2^-15
    rel = 1e-12 if block == 2 else 1e-4
    assert ml["vessel"] == pytest.approx(208240 / 8000, rel=rel)
    assert ml["gm"] == pytest.approx(7709189 / 8000, rel=rel)
    assert ml["wm"] == pytest.approx(5174874 / 8000, rel=rel)
    # sulcal and ventricular CSF of adults: 100 to 400 ml; this closing leaves out what lies outside the gyri
    assert 150 < ml["csf"] < 400


@real
def test_subjects_of_a_pattern_are_split():
    spec = BrainWeb(path=str(ROOT / "bw_folder1*_05mm.nii.gz"), labels="vessel-gm-wm", block=4)
    assert [f.name[9:11] for f in spec.files()] == ["10", "11", "12"]
    assert spec.load("test", 2).ids == (2,)


CONFIG = Path(__file__).parents[2] / "configs" / "sabidussi2021" / "generate_t1_brainweb.yaml"


def ten_brains():
    """The phantom of the shipped config, its files where the test data are."""
    config = read_config(CONFIG, GeneratorConfig)
    return config, replace(config.phantom_spec, path=str(ROOT / "bw_folder*_05mm.nii.gz"))


@real
def test_ten_brains_train_and_two_test():
    _, spec = ten_brains()
    # nothing is read for this
    assert [f.name[9:11] for f in spec.files()] == [f"{i:02}" for i in range(1, 13)]
    train, test = spec.describe(2).split("; test subjects ")
    assert train.count("_05mm") == 10
    assert test.count("_05mm") == 2
    assert "the files hold no CSF" in train


@real
@pytest.mark.slow
def test_ten_brains_are_one_training_anatomy():
    config, spec = ten_brains()
    data = config.model_copy(update={"phantom": spec})
    samples = make_samples(data, range(300))
    # uniform over the ten; each is missed with probability 2e-14
    assert set(samples.subject.tolist()) == set(range(10))
    assert {"csf", "gm", "wm", "vessel"} == set(spec.tissues)
    assert samples.images.shape == (300, 31, 40, 40)
    phantom = spec.load("train", 2)
    gm, wm = (phantom.tissues.index(name) for name in ("gm", "wm"))
    ml = np.array([as_fractions(volume).sum(axis=(1, 2, 3), dtype=float) / 1000 for volume in phantom.volumes])
    # README of the data: GM 894 to 1109 ml and WM 573 to 743 ml over 19 brains, all different
    assert 893 < ml[:, gm].min() < ml[:, gm].max() < 1110
    assert 572 < ml[:, wm].min() < ml[:, wm].max() < 744
    assert len(np.unique(ml[:, gm])) == 10


def test_thick_slices_average_along_one_axis(tmp_path):
    labels = some_labels(5, (6, 8, 40))
    phantom = BrainWeb(path=save(tmp_path / "a.nii.gz", labels), block=(1, 2, 4), gap=1).load("train", 2)
    assert phantom.spacing_mm == (1.0, 2.0, 4.0)
    np.testing.assert_allclose(phantom.affine @ [0, 0, 0, 1], [0, 0.5, 1.5, 1])
    share = (labels == 2).reshape(6, 4, 2, 10, 4).mean(axis=(2, 4))
    np.testing.assert_array_equal(as_fractions(phantom.volumes[0])[1], share)


def test_twelve_classes_and_their_raw_numbers(tmp_path):
    index = some_labels(6, (9, 8, 40), high=12)
    tissues = {}
    for scheme, times in (("twelve", 1), ("twelve-raw-short", 16)):
        path = save(tmp_path / f"{scheme}.nii.gz", (index * times).astype(np.uint8))
        phantom = BrainWeb(path=path, labels=scheme).load("test", 2)
        tissues[scheme] = volumes_ml(phantom)
        # every tissue of the paper's table is there
        assert phantom.tissues == ("csf", "gm", "wm", "fat", "muscle", "skin", "skull", "vessel", "marrow")
    assert tissues["twelve"] == tissues["twelve-raw-short"]
    assert tissues["twelve"]["fat"] * 1000 == pytest.approx(np.isin(index, (4, 9)).sum())
    assert tissues["twelve"]["marrow"] * 1000 == pytest.approx((index == 11).sum())


def test_blocks_average_one_hot_labels():
    index = some_labels(3, (6, 4, 8))
    for block, step in ((1, 0), (2, 0), (4, 0), (3, 2.0**-15)):
        fractions = as_fractions(block_fractions(index, 3, block))
        padded = np.pad(index, [(0, -n % block) for n in index.shape])
        for t in range(3):
            for corner in np.ndindex(*fractions.shape[1:]):
                cube = padded[tuple(slice(c * block, (c + 1) * block) for c in corner)]
                assert abs(fractions[(t, *corner)] - np.mean(cube == t + 1)) <= step


def test_spacing_and_affine_of_blocks(tmp_path):
    path = save(tmp_path / "a.nii.gz", some_labels(), spacing=(0.5, 1.0, 2.0))
    phantom = BrainWeb(path=path, block=2).load("train", 2)
    assert phantom.spacing_mm == (1.0, 2.0, 4.0)
    # the first block holds voxels 0 and 1: its centre lies between theirs
    np.testing.assert_allclose(phantom.affine @ [0, 0, 0, 1], [0.25, 0.5, 1.0, 1])
    np.testing.assert_allclose(phantom.affine @ [1, 1, 1, 1], [1.25, 2.5, 5.0, 1])


def test_custom_mapping(tmp_path):
    labels = some_labels()
    path = save(tmp_path / "a.nii.gz", labels)
    phantom = BrainWeb(path=path, labels={1: "liver", 2: "background", 3: "gm"}).load("test", 2)
    assert phantom.tissues == ("gm", "liver")
    assert volumes_ml(phantom)["liver"] * 1000 == pytest.approx(np.sum(labels == 1))


def test_labels_above_255_and_whole_floats(tmp_path):
    labels = some_labels().astype(np.int16) * 500
    for dtype in (np.int16, np.float32):
        path = save(tmp_path / f"{np.dtype(dtype).name}.nii.gz", labels.astype(dtype))
        phantom = BrainWeb(path=path, labels={500: "csf", 1000: "gm", 1500: "wm"}).load("train", 2)
        assert volumes_ml(phantom)["wm"] * 1000 == pytest.approx(np.sum(labels == 1500))


def test_csf_fills_a_ventricle_and_a_sulcus_but_not_the_outside():
    # a solid ball of radius 30 mm with a ball of 10 mm inside and a slit of 4 mm from the surface inward
    x, y, z = np.indices((80, 80, 80)) - 40
    r = np.sqrt(x**2 + y**2 + z**2)
    ventricle = r < 10
    slit = (np.abs(x) < 2) & (z > 14) & (r < 30)
    brain = (r < 30) & ~ventricle & ~slit
    inside = closed_brain(brain, (1.0, 1.0, 1.0))
    assert inside[ventricle].all()
    assert inside[slit & (r < 27)].all()
    assert inside[brain].all()
    assert not inside[r > 31.5].any()
    # the same anatomy at half the voxel size, on a grid that does not divide by two
    fine = closed_brain(np.repeat(np.repeat(np.repeat(brain, 2, 0), 2, 1), 2, 2)[:159], (0.5, 0.5, 0.5))
    np.testing.assert_array_equal(fine[::2, ::2, ::2], inside)


def test_vessel_scheme_names_its_csf(tmp_path):
    x, y, z = np.indices((50, 50, 50)) - 25
    r = np.sqrt(x**2 + y**2 + z**2)
    labels = np.select([r < 8, r < 16, r < 20], [0, 3, 2], 0).astype(np.uint8)
    labels[0, 0, 0] = 1
    phantom = BrainWeb(path=save(tmp_path / "a.nii.gz", labels), labels="vessel-gm-wm").load("train", 2)
    assert phantom.tissues == ("csf", "gm", "wm", "vessel")
    assert as_fractions(phantom.volumes[0])[0, 25, 25, 25] == 1
    assert volumes_ml(phantom)["vessel"] * 1000 == 1


def test_only_the_split_asked_for_is_read(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.nii.gz", some_labels(i))
    (tmp_path / "2.nii.gz").write_bytes(b"broken")
    spec = BrainWeb(path=str(tmp_path))
    assert spec.load("train", 2).ids == (0, 1)
    with pytest.raises(InputError, match=r"2\.nii\.gz"):
        spec.load("test", 2)


def test_a_rewritten_file_is_read_again(tmp_path):
    path = save(tmp_path / "a.nii.gz", np.ones((8, 8, 30), dtype=np.uint8))
    assert volumes_ml(BrainWeb(path=path).load("train", 2))["csf"] > 0
    save(tmp_path / "a.nii.gz", np.full((8, 8, 30), 2, dtype=np.uint8))
    os.utime(path, ns=(0, 12345))
    assert volumes_ml(BrainWeb(path=path).load("train", 2))["csf"] == 0


def test_unknown_labels_are_named(tmp_path):
    labels = some_labels()
    labels[0, 0, :2] = (77, 200)
    with pytest.raises(InputError, match=r"a\.nii\.gz holds the labels 77, 200, which phantom\.labels"):
        BrainWeb(path=save(tmp_path / "a.nii.gz", labels)).load("train", 2)


def truncated_gzip(file):
    save(file, some_labels())
    file.write_bytes(file.read_bytes()[:-900])


def corrupt_gzip(file):
    save(file, some_labels())
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 60] = b"\0" * 60
    file.write_bytes(bytes(content))


def short_data(file):
    # a complete gzip stream whose NIfTI content ends early
    save(file, some_labels())
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:2000]))


BROKEN = {
    "truncated gzip": truncated_gzip,
    "corrupt gzip": corrupt_gzip,
    "short data": short_data,
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("not an image"),
    "fractions": lambda file: save(file, some_labels().astype(np.float32) + 0.25),
    "negative": lambda file: save(file, some_labels().astype(np.int16) - 1),
    "nan": lambda file: save(file, np.full((5, 5, 5), np.nan, dtype=np.float32)),
    "4D": lambda file: save(file, np.ones((5, 5, 5, 2), dtype=np.uint8)),
    "background": lambda file: save(file, np.zeros((5, 5, 5), dtype=np.uint8)),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_bad_files_are_refused_by_name(tmp_path, kind):
    file = tmp_path / "bad.nii.gz"
    BROKEN[kind](file)
    with pytest.raises(InputError, match=r"^phantom\.path: .*bad\.nii\.gz"):
        BrainWeb(path=str(file)).load("train", 2)


def test_bad_paths(tmp_path):
    with pytest.raises(InputError, match=r"^phantom\.path: /no/such\.nii does not exist"):
        BrainWeb(path="/no/such.nii").load("train", 2)
    with pytest.raises(InputError, match=r"holds no \.nii"):
        BrainWeb(path=str(tmp_path)).load("train", 2)
    a = save(tmp_path / "a.nii.gz", some_labels())
    with pytest.raises(InputError, match="named twice"):
        BrainWeb(path=(a, a)).load("train", 2)
    b = save(tmp_path / "b.nii.gz", some_labels(1), spacing=(2.0, 2.0, 2.0))
    c = save(tmp_path / "c.nii.gz", some_labels(2))
    with pytest.raises(InputError, match="give files of one voxel size"):
        BrainWeb(path=(a, b, c)).load("train", 2)
    with pytest.raises(InputError, match=r"phantom\.test_subjects: 3 of 3 files leaves none for split: train"):
        BrainWeb(path=(a, b, c), test_subjects=3).load("train", 2)
    with pytest.raises(InputError, match=r"phantom\.test_subjects: 0 of 3 files leaves none for split: test"):
        BrainWeb(path=(a, b, c), test_subjects=0).load("test", 2)
    with pytest.raises(InputError, match=r"phantom\.test_subjects: 4 of 3 files"):
        BrainWeb(path=(a, b, c), test_subjects=4).load("test", 2)


def test_folders_may_keep_train_and_test_apart(tmp_path):
    paths = tuple(save(tmp_path / f"{name}.nii.gz", some_labels(seed)) for seed, name in enumerate("abc"))
    all_test = BrainWeb(path=paths, test_subjects=3)
    assert all_test.load("test", 2).ids == (0, 1, 2)
    assert all_test.files_of("test") == all_test.files()
    assert "train subjects none; test subjects a.nii.gz" in all_test.describe(2)
    all_train = BrainWeb(path=paths, test_subjects=0)
    assert all_train.load("train", 2).ids == (0, 1, 2)
    alone = BrainWeb(path=paths[0], test_share=1.0)
    assert alone.slabs(2) == {"train": (), "test": ((0, 40),)}
    assert alone.load("test", 2).slabs == (((0, 40),),)
    assert alone.describe(2).endswith("a.nii.gz, test only")
    with pytest.raises(InputError, match=r"phantom\.test_share: 1 leaves nothing of a\.nii\.gz for split: train"):
        alone.load("train", 2)
    assert replace(alone, test_share=0.0).slabs(0) == {"train": ((0, 12),), "test": ()}
    both = BrainWeb(path=paths)
    assert (both.files_of("train"), both.files_of("test")) == (both.files()[:2], both.files()[2:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": ""}, "path"),
        ({"path": ()}, "path"),
        ({"labels": {}}, "labels"),
        ({"labels": {0: "gm"}}, "labels"),
        ({"labels": {-1: "gm"}}, "labels"),
        ({"block": 0}, "block"),
        ({"test_subjects": -1}, "test_subjects"),
        ({"test_share": 1.1}, "test_share"),
        ({"gap": -1}, "gap"),
    ],
)
def test_refusals_name_the_field(change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        BrainWeb(**({"path": "a.nii"} | change))
