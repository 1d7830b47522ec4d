"""Series and masks of files and of simulated hearts: which images are shown, which subjects are kept apart."""

import io

import nibabel
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from rich.console import Console

from generators.build import build
from generators.config import GeneratorConfig
from generators.store import PatchStore
from phantoms.heart import ventricle
from qsim.errors import InputError
from trainers.segmentation.config import Domain, SegmentationData
from trainers.segmentation.physics_bank import physics_bank
from trainers.segmentation.physics_config import Physics
from trainers.segmentation.slices import SeriesSet, best_images, check_domains, prepared, read_domain, split_of

QUIET = Console(file=io.StringIO())
TARGET = ("myocardium", "scar")
HEARTS = {
    "seed": 4,
    "samples": 4,
    "sampling": "slices",
    "patch": [40, 36],
    "phantom": {
        "kind": "heart", "subjects": 4, "slices": 1, "test_subjects": 0, "matrix": [40, 36], "voxel_mm": [7.0, 7.0],
        "scar_share": 0.9,
    },
    "tissues": {"kind": "jacobs2025", "field_strength": 1.5},
    "model": {"kind": "inversion_recovery", "ti": [0.1, 0.5, 1.0, 2.5]},
    "noise": {"kind": "rician", "sigma": {"kind": "constant", "value": 0.02}},
}  # fmt: skip


def saved(folder, name, array, affine=None):
    path = folder / f"{name}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 1.5, 8.0, 1.0]) if affine is None else affine), path)
    return str(path)


def heart(folder, name="heart", shape=(20, 24, 3), n=4, **changes):
    """An image (x, y, z, n) and a mask with a target in slices 0 and 2; arrays as they were saved."""
    rng = np.random.default_rng(len(name))
    image = rng.random((*shape, n)).astype(np.float32)
    mask = np.zeros(shape, np.uint8)
    mask[5:11, 6:9, ::2] = 1
    arrays = {"image": image, "mask": mask, **changes}
    given = {part: saved(folder, f"{name}_{part}", arrays[part]) for part in ("image", "mask")}
    return given, arrays


def read(given, folder, target=TARGET):
    return read_domain(Domain.model_validate({"name": "own", **given}), target, folder, "data.train", 1, QUIET)


def refused(given, folder, **changes):
    with pytest.raises(InputError) as error:
        read(given, folder, **changes)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- which images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_best_images_are_those_of_the_highest_true_snr(seed):
    """A disc of known signal in noise of one SD: SNR is signal / sigma, and nothing tells it but the image."""
    rng = np.random.default_rng(seed)
    sigma, signals = 0.2, rng.permutation(np.linspace(0.3, 1.6, 9))
    y, x = np.indices((64, 64))
    body = (y - 30) ** 2 + (x - 35) ** 2 < 20**2
    noise = sigma * (rng.standard_normal((9, 64, 64)) + 1j * rng.standard_normal((9, 64, 64)))
    series = torch.from_numpy(np.abs(signals[:, None, None] * body + noise)).float()
    order = np.argsort(-signals / sigma)
    for count in range(1, 10):
        assert best_images(series, count) == tuple(sorted(order[:count].tolist()))
    # another gain of the scanner changes nothing
    assert best_images(1e-4 * series, 3) == best_images(series, 3)


def test_of_equal_images_the_first_are_taken():
    assert best_images(torch.ones(4, 3, 3), 2) == (0, 1)


def test_prepared_images_are_the_best_of_each_series_with_its_own_mask(tmp_path):
    given, arrays = heart(tmp_path)
    for n, gain in enumerate((1.0, 3.0, 0.5, 2.0)):
        arrays["image"][..., n] *= gain
    saved(tmp_path, "heart_image", arrays["image"])
    series = read({"files": [given]}, tmp_path)
    found = prepared(series, 2, 32)
    assert found.images.shape == found.masks.shape == (4, 32, 32)
    assert found.series.tolist() == [0, 0, 1, 1]
    assert [name.split("#")[1] for name in found.names] == ["1", "3", "1", "3"]
    assert len(set(found.names)) == 4
    assert (float(found.images.min()), float(found.images.max())) == (0.0, pytest.approx(1.0, abs=0.2))
    # 24 rows, 20 columns of 32: the mask of 3 rows of 6 columns grows with the square of 32 / 24
    assert int(found.masks[0].sum()) == pytest.approx(18 * (32 / 24) ** 2, rel=0.2)
    own = found.of((1,))
    assert own.names == found.names[2:]
    assert torch.equal(own.images, found.images[2:])


# --- folds ------------------------------------------------------------------------------------------------------------


def series_of(subjects):
    n = len(subjects)
    return SeriesSet(
        images=tuple(torch.rand(2, 4, 4) for _ in range(n)),
        masks=tuple(torch.ones(4, 4, dtype=torch.bool) for _ in range(n)),
        subject=np.array(subjects, dtype=np.int64),
        names=tuple(f"s{i}" for i in range(n)),
        spacing_mm=((1.0, 1.0),) * n,
        times=(None,) * n,
        digest="x",
    )


@pytest.mark.parametrize("n_folds", [2, 3, 5])
def test_folds_keep_subjects_apart_and_leave_each_series_out_once(n_folds):
    subjects = [3, 3, 9, 1, 0, 0, 0, 7, 2, 9, 5]
    series = series_of(subjects)
    left_out = []
    for fold in range(n_folds):
        split = split_of(series, n_folds, fold, 4)
        assert sorted(split.train + split.test) == list(range(len(subjects)))
        assert not {subjects[i] for i in split.train} & {subjects[i] for i in split.test}
        assert split.test
        assert split.train
        assert split_of(series, n_folds, fold, 4) == split
        left_out += split.test
    assert sorted(left_out) == list(range(len(subjects)))
    sizes = [len({subjects[i] for i in split_of(series, n_folds, fold, 4).test}) for fold in range(n_folds)]
    assert max(sizes) - min(sizes) <= 1


def test_another_seed_parts_otherwise():
    series = series_of(list(range(12)))
    assert len({split_of(series, 3, 0, seed).test for seed in range(6)}) > 3


def test_more_folds_than_subjects_are_refused():
    with pytest.raises(InputError, match=r"^data\.folds: got 3 groups for 2 subjects"):
        split_of(series_of([0, 0, 1, 1]), 3, 0, 0)


# --- simulated hearts -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hearts(tmp_path_factory):
    """Folder with the data set of four hearts, and its series."""
    folder = tmp_path_factory.mktemp("hearts")
    return folder, read({"generate": HEARTS}, folder)


def test_the_mask_of_a_heart_is_the_wall_of_its_ventricle(hearts):
    folder, series = hearts
    (path,) = folder.glob("*.zarr")
    store = PatchStore(path)
    samples = store.read(0, len(store))
    assert len(series) == len(store) == 4
    assert "scar" in store.tissues
    for i in range(4):
        expected = ventricle(samples.labels[i].numpy(), store.tissues) == 1
        assert expected.sum() > 5
        assert np.array_equal(series.masks[i].numpy(), expected)
        assert torch.equal(series.images[i], samples.images[i].float())
    assert series.subject.tolist() == samples.subject.tolist()
    assert len(set(series.subject.tolist())) == 4
    assert series.spacing_mm == ((7.0, 7.0),) * 4
    assert [len(each) for each in series.images] == [4] * 4
    # scar is muscle that has died: without it the wall has a gap
    without = read({"store": str(path)}, folder, target=("myocardium",))
    assert sum(int(m.sum()) for m in without.masks) < sum(int(m.sum()) for m in series.masks)


def test_only_times_from_an_inversion_are_inversion_times(hearts, tmp_path):
    """Physics reads a series as a recovery: it must not take the times of a decay for its own."""
    assert hearts[1].times == ((0.1, 0.5, 1.0, 2.5),) * 4
    echoes = {"kind": "t2_prep", "te_prep": [0.0, 0.02, 0.04, 0.06]}
    series = read({"generate": {**HEARTS, "samples": 1, "model": echoes}}, tmp_path)
    assert series.times == (None,)
    with pytest.raises(InputError, match=r"^physics: heart 0: .*times"):
        physics_bank(series, Physics(copies=1), 32, tmp_path)


def test_a_data_set_is_made_once_and_a_store_is_the_same(hearts):
    folder, series = hearts
    (path,) = folder.glob("*.zarr")
    data = [file for file in path.rglob("*") if file.is_file() and file.suffix != ".json"]
    before = {file: file.stat().st_mtime_ns for file in data}
    assert before
    again, stored = read({"generate": HEARTS}, folder), read({"store": str(path)}, folder)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    for other in (again, stored):
        assert other.digest == series.digest
        assert all(torch.equal(a, b) for a, b in zip(other.images, series.images, strict=True))


def test_a_target_that_no_tissue_is_named_after_is_refused(hearts):
    (path,) = hearts[0].glob("*.zarr")
    said = refused({"store": str(path)}, hearts[0], target=("myocardium", "spleen"))
    assert said.startswith("data.target: ")
    assert "spleen" in said
    assert "scar" in said
    data = SegmentationData.model_validate({"train": {"name": "a", "generate": HEARTS}, "target": ["spleen"]})
    with pytest.raises(InputError, match=r"data\.target: .*spleen"):
        check_domains(data)


def test_maps_and_blocks_are_refused(tmp_path):
    ball = {"shape": "ball", "tissue": "gm", "radius_mm": 5.0}
    block = {
        **HEARTS, "samples": 1, "sampling": "patches", "patch": [8, 8, 8], "tissues": {"kind": "sabidussi2021"},
        "phantom": {"kind": "geometry", "size": [12, 12, 12], "spacing_mm": [1.0, 1.0, 1.0], "shapes": [ball]},
    }  # fmt: skip
    flat = {**block, "patch": [8, 8], "phantom": {**block["phantom"], "size": [12, 12], "spacing_mm": [1.0, 1.0], "shapes": [{**ball, "shape": "disc"}]}}  # fmt: skip  # noqa: E501
    wrong = {
        "patch must hold two numbers": block,
        "store: maps holds no images": {**flat, "store": "maps", "partial_volume": False},
    }
    for number, (said, config) in enumerate(wrong.items()):
        with pytest.raises(ValidationError, match=said):
            Domain.model_validate({"name": "a", "generate": config})
        path = tmp_path / f"{number}.zarr"
        build(GeneratorConfig.model_validate(config), path)
        message = refused({"store": str(path)}, tmp_path, target=("gm",))
        assert message.startswith(f"data.train: {path}: ")
        assert said in message
    # a vessel thinner than a voxel is never the most of one
    flat["phantom"]["shapes"].append({"shape": "disc", "tissue": "csf", "radius_mm": 0.2})
    path = tmp_path / "thin.zarr"
    build(GeneratorConfig.model_validate(flat), path)
    assert refused({"store": str(path)}, tmp_path, target=("csf",)).endswith("no slice holds csf")


@pytest.mark.parametrize("given", [{}, {"store": "a", "files": [{"image": "a", "mask": "b"}]}])
def test_a_domain_is_of_one_origin(given):
    with pytest.raises(ValidationError, match="give one of generate"):
        Domain.model_validate({"name": "a", **given})


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_are_read_slice_by_slice_x_y_turned(tmp_path):
    given, arrays = heart(tmp_path)
    series = read({"files": [{**given, "times": [0.1, 0.2, 0.3, 0.4]}]}, tmp_path)
    # the middle slice has no target
    assert len(series) == 2
    for found, mask, z in zip(series.images, series.masks, (0, 2), strict=True):
        assert found.dtype == torch.float32
        np.testing.assert_array_equal(found, arrays["image"][:, :, z].transpose(2, 1, 0))
        np.testing.assert_array_equal(mask, arrays["mask"][:, :, z].T > 0)
    assert [name.rsplit(" ", 1)[1] for name in series.names] == ["0", "2"]
    # y, x
    assert series.spacing_mm == ((1.5, 2.0),) * 2
    assert series.times == ((0.1, 0.2, 0.3, 0.4),) * 2


def test_a_single_volume_is_a_series_of_one(tmp_path):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 900, (20, 24, 1)).astype(np.int16)
    mask = np.zeros((20, 24, 1), np.float32)
    mask[4:9, 5:7] = 0.3
    given, _ = heart(tmp_path, image=image, mask=mask)
    series = read({"files": [given]}, tmp_path)
    assert len(series) == 1
    assert series.images[0].shape == (1, 24, 20)
    assert int(series.masks[0].sum()) == 10
    assert series.times == (None,)
    np.testing.assert_array_equal(series.images[0][0], image[:, :, 0].T)
    with pytest.raises(InputError, match=r"images: .* has 1, and 2 are asked for") as error:
        prepared(series, 2, 32)
    assert "\n" not in str(error.value)


def test_files_of_one_subject_stay_together(tmp_path):
    files = [heart(tmp_path, name=name)[0] for name in ("a", "bb", "ccc", "dddd")]
    apart = read({"files": files}, tmp_path)
    assert len(set(apart.subject.tolist())) == 4
    assert apart.subject[0] == apart.subject[1]
    for each, subject in zip(files, ("one", "two", "one", None), strict=True):
        if subject:
            each["subject"] = subject
    together = read({"files": files}, tmp_path)
    assert len(set(together.subject.tolist())) == 3
    for fold in range(3):
        test = split_of(together, 3, fold, 0).test
        # slices 0, 1 are of a, 4, 5 of ccc
        assert len({0, 1, 4, 5} & set(test)) in (0, 4)
    assert together.digest != apart.digest


def test_other_voxels_have_another_digest(tmp_path):
    given, arrays = heart(tmp_path)
    before = read({"files": [given]}, tmp_path).digest
    assert read({"files": [given]}, tmp_path).digest == before
    arrays["mask"][0, 0, 0] = 1
    saved(tmp_path, "heart_mask", arrays["mask"])
    assert read({"files": [given]}, tmp_path).digest != before


def image_with(value, kind=np.float32):
    image = np.ones((20, 24, 3, 4), kind)
    image[3, 4, 1, 2] = value
    return image


def mask_with(value):
    mask = np.zeros((20, 24, 3), np.float32)
    mask[2:5, 2:5] = 1
    mask[9, 9] = value
    return mask


BAD = {
    "no image": ("image", None, {"image": "nowhere.nii.gz"}, "no such file"),
    "no mask": ("mask", None, {"mask": "nowhere.nii.gz"}, "no such file"),
    "a mask of other voxels": ("mask", np.ones((20, 23, 3), np.uint8), {}, "20 x 23 x 3"),
    "a mask of fewer slices": ("mask", np.ones((20, 24, 1), np.uint8), {}, "give the mask on the voxels of the image"),
    "a mask for each contrast": ("mask", np.ones((20, 24, 3, 4), np.uint8), {}, "4 volumes"),
    "an empty mask": ("mask", np.zeros((20, 24, 3), np.uint8), {}, "empty"),
    "a mask below 0": ("mask", mask_with(-1), {}, "below 0"),
    "a mask with NaN": ("mask", mask_with(np.nan), {}, "NaN"),
    "an image with NaN": ("image", image_with(np.nan), {}, "NaN or infinity"),
    "an image with infinity": ("image", image_with(np.inf), {}, "NaN or infinity"),
    "a complex image": ("image", image_with(1j, np.complex64), {}, "complex"),
    "five axes": ("image", np.ones((4, 4, 3, 4, 2), np.float32), {}, "shape"),
    "too few times": ("times", None, {"times": [0.1, 0.2]}, "got 2"),
}


@pytest.mark.parametrize(("field", "array", "changes", "said"), BAD.values(), ids=BAD.keys())
def test_files_that_do_not_fit_are_named(tmp_path, field, array, changes, said):
    good, _ = heart(tmp_path)
    bad, _ = heart(tmp_path, name="other", **({} if array is None else {field: array}))
    message = refused({"files": [good, {**bad, **changes}]}, tmp_path)
    assert message.startswith(f"data.train.files[1].{field}: ")
    assert said in message


def test_a_mask_of_another_place_is_refused(tmp_path):
    given, arrays = heart(tmp_path)
    moved = np.diag([2.0, 1.5, 8.0, 1.0])
    # what rounding does to a header is no other place
    moved[0, 3] = 0.005
    saved(tmp_path, "heart_mask", arrays["mask"], moved)
    assert len(read({"files": [given]}, tmp_path)) == 2
    moved[0, 3] = 2.0
    saved(tmp_path, "heart_mask", arrays["mask"], moved)
    message = refused({"files": [given]}, tmp_path)
    assert message.startswith("data.train.files[0].mask: ")
    assert "another place" in message


def test_a_text_file_is_no_image(tmp_path):
    given, _ = heart(tmp_path)
    (tmp_path / "notes.nii").write_text("not an image")
    message = refused({"files": [{**given, "image": str(tmp_path / "notes.nii")}]}, tmp_path)
    assert message.startswith("data.train.files[0].image: ")


def test_what_cannot_be_shown_is_named(tmp_path):
    flat = np.ones((20, 24, 1, 2), np.float32)
    mask = np.zeros((20, 24, 1), np.uint8)
    mask[5, 5] = 1
    given, _ = heart(tmp_path, name="flat", image=flat, mask=mask)
    series = read({"files": [given]}, tmp_path)
    with pytest.raises(InputError, match="flat_image, image 0: holds NaN, infinity, or one value only"):
        prepared(series, 1, 32)
    large = np.zeros((400, 400, 1), np.uint8)
    large[5, 5] = 1
    given, _ = heart(tmp_path, name="large", image=np.random.default_rng(0).random((400, 400, 1)), mask=large)
    with pytest.raises(InputError, match="size: at 32 voxels nothing is left of the mask of large_image"):
        prepared(read({"files": [given]}, tmp_path), 1, 32)


def test_a_config_of_files_is_checked_before_anything_is_made(tmp_path):
    good, _ = heart(tmp_path)
    more, _ = heart(tmp_path, name="other")
    data = {"train": {"name": "a", "files": [good, more]}, "folds": 2, "size": 32}
    check_domains(SegmentationData.model_validate(data))
    with pytest.raises(InputError, match=r"^data\.folds: got 3 groups for 2 subjects"):
        check_domains(SegmentationData.model_validate({**data, "folds": 3}))
    many = Domain.model_validate({"name": "b", "files": [good], "images": 5})
    with pytest.raises(InputError, match=r"^tests\[0\]: images: .* has 4, and 5 are asked for"):
        check_domains(SegmentationData.model_validate(data), (many,))
    bad = Domain.model_validate({"name": "b", "files": [{**good, "mask": "nowhere.nii"}]})
    with pytest.raises(InputError, match=r"^tests\[0\]\.files\[0\]\.mask: .*nowhere.nii"):
        check_domains(SegmentationData.model_validate(data), (bad,))
    assert len(list(tmp_path.iterdir())) == 4
