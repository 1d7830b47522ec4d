"""`qsim segment` with networks of kind segmentation: a small U-Net of random weights, and one of a closed form."""

import gzip
import json
import sys
from math import exp, log

import matplotlib.image
import nibabel
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.phantoms.test_derivatives import validate
from trainers import cli
from trainers.checkpoint import save_tensors
from trainers.segmentation.config import SegmentationConfig
from trainers.segmentation.network import SegmentationNet
from trainers.segmentation.predict import Masker, load_masker
from trainers.segmentation.segment_command import HeartWords, segment_hearts
from trainers.segmentation.segment_figures import Maps, notes_of
from trainers.segmentation.segment_text import lines

SIZE = 64
# x, y, z, contrasts
SHAPE = (70, 90, 3, 2)
# oblique, with voxels of 1.5 x 2 x 8 mm
TURN = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = TURN * [1.5, 2.0, 8.0]
AFFINE[:3, 3] = [-20.0, 7.0, 5.0]
VOXEL_ML = 1.5 * 2.0 * 8.0 * 1e-3


def config(size=SIZE, dropout=0.0):
    return SegmentationConfig.model_validate(
        {
            "kind": "segmentation",
            "seed": 1,
            "data": {
                "train": {"name": "T1", "files": [{"image": "a.nii", "mask": "b.nii"}]},
                "size": size,
                "folds": 2,
            },
            "augment": {"kind": "rotation_scaling"},
            "network": {
                "kind": "flexible_unet",
                "encoder": "resnet10",
                "decoder": [8, 8, 8, 8, 8],
                "dropout": dropout,
            },
            "precision": "fp32",
        }
    )


def stored(folder, seed, **changes):
    """The run of a network that has learned nothing."""
    used = config(**changes)
    net = used.network.build(torch.Generator().manual_seed(seed))
    weight, bias = list(net.parameters())[-2:]
    # answers about a half, as different as those of a trained one
    with torch.no_grad():
        logits = net.eval()(torch.rand((1, 1, SIZE, SIZE), generator=torch.Generator().manual_seed(0)))
        gain = 2.0 / logits.std()
        weight.mul_(gain)
        bias.copy_(gain * (bias - logits.mean()))
    folder.mkdir()
    header = {"kind": used.kind, "config": used.model_dump(mode="json"), "data_digest": "", "trained_on": ["heart 1"]}
    save_tensors(folder / "model.safetensors", {f"net/{key}": each for key, each in net.state_dict().items()}, header)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two networks, one with dropout, one of another size, and a file of another kind."""
    folder = tmp_path_factory.mktemp("runs")
    stored(folder / "one", 1)
    stored(folder / "two", 2)
    stored(folder / "dropout", 3, dropout=0.3)
    stored(folder / "larger", 4, size=96)
    (folder / "decoupled").mkdir()
    save_tensors(folder / "decoupled/model.safetensors", {"net/a": torch.zeros(2)}, {"kind": "decoupled"})
    (folder / "maps").mkdir()
    save_tensors(folder / "maps/model.safetensors", {"net/a": torch.zeros(2)}, {"config": {}})
    return folder


class Bright(SegmentationNet):
    """Sees one voxel: the target is what is brighter than `at`."""

    def __init__(self, gain, at):
        nn.Module.__init__(self)
        self.gain, self.at = gain, at

    def forward(self, images):
        return self.gain * (images[:, 0] - self.at)


@pytest.fixture
def bright(monkeypatch):
    """Networks of a closed form in place of those of files; called with their gains."""

    def use(*gains, at=0.5):
        nets = tuple(Bright(gain, at).eval() for gain in gains)
        digests = tuple(f"{number:x}" * 64 for number in range(len(gains)))
        masker = Masker(
            nets, (config(),) * len(gains), torch.device("cpu"), names=("bright",) * len(gains), digests=digests
        )
        monkeypatch.setattr("trainers.segmentation.predict.load_masker", lambda *_: masker)

    return use


@pytest.fixture(autouse=True)
def no_picture(request, monkeypatch):
    """A picture takes a second; those tests draw it that look at it."""
    if "picture" not in request.node.name:
        monkeypatch.setattr("trainers.segmentation.segment_files.montage", lambda file, *_: file.write_bytes(b"png"))


@pytest.fixture
def run(monkeypatch, capsys, unchecked):
    """The console script: exit status, what it printed on stdout and on stderr."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["qsim", "segment", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as left:
            code = int(left.code or 0)
        told = capsys.readouterr()
        return code, told.out, told.err

    return command


def noisy(shape=SHAPE):
    return np.random.default_rng(5).random(shape, dtype=np.float32)


def save(file, values=None, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(noisy() if values is None else values, affine), file)
    return file


def squares():
    """In slice 0 contrast 1 is the brighter one, in slice 1 contrast 0, in slice 2 they are equal; 64 x 64: no scaling.

    The target is a square of 10 x 20 voxels in contrast 0, and one of 8 x 8 elsewhere in contrast 1.
    """
    values = np.zeros((64, 64, 3, 2), dtype=np.float32)
    values[10:20, 30:50, :, 0] = [2.0, 3.0, 1.0]
    values[40:48, 8:16, :, 1] = [9.0, 1.0, 200**0.5 / 8]
    return values


def read(folder, name):
    return nibabel.load(next(folder.rglob(name)))


def values_of(folder, name):
    return np.asarray(read(folder, name).dataobj)


def record_of(folder):
    """The JSON of the whole image, which has no description in its name."""
    return json.loads(next(file for file in folder.rglob("*_quality.json") if "_desc-" not in file.name).read_text())


def go(file, out, model="fake", **words):
    return segment_hearts(file, out, HeartWords(model=str(model), **words))


# grids and values


def test_maps_are_those_of_the_network_on_the_grid_of_the_image(tmp_path, runs):
    file = save(tmp_path / "sub-07_ses-2_run-1_T1rho.nii.gz")
    record = go(file, tmp_path / "out", runs / "one", image=1)
    folder = tmp_path / "out/sub-07/ses-2/anat"
    names = ("desc-lv_dseg", "desc-lv_probseg", "desc-entropy_quality")
    wanted = {f"sub-07_ses-2_run-1_{each}{end}" for each in names for end in (".nii.gz", ".json")}
    wanted |= {f"sub-07_ses-2_run-1_quality{end}" for end in (".json", ".png")}
    assert {each.name for each in folder.iterdir()} == wanted
    net = load_masker(runs / "one", "cpu").nets[0]
    for each in names:
        image = read(folder, f"*{each}.nii.gz")
        assert image.shape == SHAPE[:3]
        assert image.get_data_dtype() == (np.uint8 if "dseg" in each else np.float32)
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    probability = values_of(folder, "*probseg.nii.gz")
    for z in range(3):
        image = torch.from_numpy(noisy()[:, :, z, 1].T.copy())
        image = (image - image.min()) / (image.max() - image.min())
        # 90 voxels along y become 64, 70 along x become 49.8: 50, with 7 zeros on either side
        scaled = functional.interpolate(image[None, None], size=(64, 50), mode="bilinear", antialias=True)
        logits = net(functional.pad(scaled, (7, 7)))[0]
        answer = [logits.sigmoid(), torch.special.entr(logits.sigmoid()) + torch.special.entr((-logits).sigmoid())]
        back = [
            functional.interpolate(each[None, None, :, 7:57], size=(90, 70), mode="bilinear", antialias=True)[0, 0]
            for each in answer
        ]
        np.testing.assert_allclose(probability[:, :, z].T, back[0], atol=1e-5)
        np.testing.assert_allclose(values_of(folder, "*entropy_quality.nii.gz")[:, :, z].T, back[1], atol=1e-5)
        p = answer[0].sum().item()
        assert record.slices[z].entropy_per_target == pytest.approx(answer[1].sum().item() / p, rel=1e-4)
    labels = values_of(folder, "*dseg.nii.gz")
    np.testing.assert_array_equal(labels, probability >= 0.5)
    assert 0.01 < labels.mean() < 0.99
    assert record.volume.ml == pytest.approx(VOXEL_ML * probability.sum(dtype=float), rel=1e-5)
    assert record.volume.labels_ml == pytest.approx(VOXEL_ML * labels.sum(), rel=1e-5)
    for z, each in enumerate(record.slices):
        assert each.area_mm2 == pytest.approx(3.0 * probability[:, :, z].sum(dtype=float), rel=1e-5)
        assert each.labels_mm2 == pytest.approx(3.0 * labels[:, :, z].sum(), rel=1e-5)
        assert (each.image, each.disagreement, each.mutual_per_target, each.dice) == (1, None, None, None)


def test_the_contrast_of_the_highest_snr_is_taken_slice_by_slice(tmp_path, bright):
    bright(40.0)
    file = save(tmp_path / "a.nii", squares())
    record = go(file, tmp_path / "out")
    # equal ones: the first
    assert [each.image for each in record.slices] == [1, 0, 0]
    inside = np.stack([squares()[:, :, z, k] > 0 for z, k in enumerate((1, 0, 0))], axis=2)
    np.testing.assert_array_equal(values_of(tmp_path / "out", "*dseg.nii.gz"), inside)
    assert [each.labels_mm2 for each in record.slices] == pytest.approx([3 * 64, 3 * 200, 3 * 200])
    # away from the target the network says 1 / (1 + e^20) everywhere
    off = 1 / (1 + exp(20))
    assert record.volume.ml == pytest.approx(VOXEL_ML * (464 + off * (3 * 4096 - 2 * 464)), rel=1e-6)
    record = go(file, tmp_path / "zero", image=0)
    assert [each.image for each in record.slices] == [0, 0, 0]
    assert values_of(tmp_path / "zero", "*dseg.nii.gz").sum() == 600


def test_dice_is_that_of_hand_made_labels(tmp_path, bright):
    bright(40.0)
    file = save(tmp_path / "a.nii", squares()[..., 0])
    truth = np.zeros((64, 64, 3), dtype=np.int16)
    # 5 of 10 columns; all of it and as much again; none
    truth[15:20, 30:50, 0] = 7
    truth[10:20, 20:50, 1] = 1
    labels = save(tmp_path / "l.nii.gz", truth)
    record = go(file, tmp_path / "out", labels=labels)
    dices = [2 * 100 / (200 + 100), 2 * 200 / (200 + 300), 0.0]
    assert [each.dice for each in record.slices] == pytest.approx(dices)
    assert record.volume.dice == pytest.approx(2 * 300 / (600 + 400))
    assert record.volume.true_ml == pytest.approx(VOXEL_ML * 400)
    written = record_of(tmp_path / "out")
    assert written["volume"]["dice"] == record.volume.dice
    assert [each["dice"] for each in written["slices"]] == [each.dice for each in record.slices]
    told = lines(record)
    assert "truth 9.6 ml: error +4.8 ml (+50.0 %), Dice 0.600" in told[2]
    assert told[3].endswith(
        f"slice 0: 600 mm2, entropy {record.slices[0].entropy_per_target:.3g} nats a voxel of the target, Dice 0.667"
    )


def test_members_that_differ_have_mutual_information(tmp_path, bright):
    bright(40.0, -40.0)
    record = go(save(tmp_path / "a.nii", squares()[..., 0]), tmp_path / "out", ensemble=("other",))
    # one says yes where the other says no, both surely: all of ln 2 is mutual
    for name in ("entropy", "mutual"):
        np.testing.assert_allclose(values_of(tmp_path / "out", f"*desc-{name}_quality.nii.gz"), log(2), rtol=1e-5)
    assert record.members == 2
    for each in record.slices:
        assert each.disagreement == pytest.approx(1)
        assert each.mutual_per_target == pytest.approx(2 * log(2), rel=1e-5)
    assert [each["digest"] for each in record_of(tmp_path / "out")["models"]] == ["0" * 64, "1" * 64]


def test_an_ensemble_and_dropout_of_files(tmp_path, runs, run):
    file = save(tmp_path / "a.nii.gz", noisy((40, 33, 2)))
    code, said, _ = run(
        file, "--model", runs / "one", "--ensemble", runs / "two", "--out", tmp_path / "two", "--device", "cpu"
    )
    assert code == 0
    assert "a.nii.gz by one, two (2 members)" in said
    assert "disagreement" in said
    mutual = values_of(tmp_path / "two", "*mutual_quality.nii.gz")
    assert mutual.shape == (40, 33, 2)
    assert mutual.max() > 1e-4
    assert (mutual <= values_of(tmp_path / "two", "*entropy_quality.nii.gz") + 1e-6).all()
    assert validate(tmp_path / "two") == []
    for name in ("drop", "again"):
        code, said, _ = run(file, "--model", runs / "dropout", "--samples", 3, "--out", tmp_path / name, "--json")
        assert code == 0
    told = json.loads(said)
    assert (told["members"], told["samples"]) == (3, 3)
    assert values_of(tmp_path / "drop", "*mutual_quality.nii.gz").max() > 1e-4
    assert set(told["files"]) == {
        str(each.relative_to(tmp_path / "again")) for each in (tmp_path / "again/sub-a").rglob("*") if each.is_file()
    }
    for one in (tmp_path / "drop/sub-a").rglob("*.*"):
        assert one.read_bytes() == (tmp_path / "again" / one.relative_to(tmp_path / "drop")).read_bytes(), one.name


def test_a_slice_of_one_value_is_left_empty_and_said(tmp_path, bright):
    bright(40.0)
    values = squares()
    # of slice 1 one contrast is left, and slice 2 has none
    values[:, :, 1, 0], values[:, :, 2] = 100.0, 4.0
    record = go(save(tmp_path / "a.nii", values), tmp_path / "out")
    assert [each.image for each in record.slices] == [1, 1, None]
    assert record.slices[2].entropy_per_target is None
    assert not values_of(tmp_path / "out", "*dseg.nii.gz")[:, :, 2].any()
    assert record.notes == ("a.nii: slice 2 holds one value only and is left empty",)


@pytest.mark.parametrize(("trained_mm", "said"), [(None, False), (100.0, False), (70.0, True), (150.0, True)])
def test_another_field_of_view_is_said(trained_mm, said):
    """Slices 100 mm wide; the square of the networks is as wide as the slices of their training."""
    maps = Maps(np.ones((1, 4, 4)), np.zeros((1, 4, 4)), None)
    notes = notes_of("a.nii", maps, (0,), 100.0, trained_mm)
    assert bool(notes) == said
    assert not said or "100 mm wide" in notes[0]


def test_an_empty_mask_and_negative_values_are_said(tmp_path, bright):
    bright(40.0, at=2.0)
    values = squares()[..., 0]
    values[0, :32] = -1.0
    record = go(save(tmp_path / "a.nii", values), tmp_path / "out")
    assert record.notes == (
        "a.nii: 0.78 % of its values are negative; networks learn magnitudes",
        "no voxel has a probability of at least a half: the mask is empty",
    )
    assert record.volume.labels_ml == 0


# the picture


def test_the_picture_shows_outlines_and_entropy(tmp_path, bright):
    bright(4.0)
    file = save(tmp_path / "sub-$1_T1.nii", squares())
    truth = np.zeros((64, 64, 3), dtype=np.uint8)
    truth[12:22, 30:50] = 1
    for name in ("one", "two"):
        go(file, tmp_path / name, labels=save(tmp_path / "l.nii", truth))
    pictures = [next((tmp_path / name).rglob("*.png")) for name in ("one", "two")]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    pixels = matplotlib.image.imread(pictures[0])[..., :3]
    for colour in ("#E69F00", "#56B4E9"):
        wanted = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert (np.abs(pixels - wanted).max(2) < 0.02).sum() > 50, colour


def test_the_picture_of_many_slices_shows_twelve(tmp_path, bright, monkeypatch):
    from trainers.segmentation import segment_picture

    shown = []
    monkeypatch.setattr(segment_picture, "_grey", lambda axis, image, outlines, aspect: shown.append(aspect))
    bright(4.0)
    many = np.repeat(squares()[:, :, :1, 0], 20, axis=2)
    go(save(tmp_path / "a.nii", many), tmp_path / "out")
    assert shown == [pytest.approx(2 / 1.5)] * 12


# what is refused


def nan_image():
    values = noisy()
    values[1, 2, 0, 1], values[0, 0, 0, 0] = np.nan, np.inf
    return values


@pytest.mark.parametrize(
    ("values", "affine", "said"),
    [
        (nan_image(), AFFINE, "NaN or infinity in 2 of 37800 voxels; replace them"),
        (noisy().astype(np.complex64), AFFINE, "holds complex numbers, wanted real ones"),
        (noisy((15, 40, 3)), AFFINE, "has 15 x 40 voxels in a slice, wanted at least 16 along x and y"),
        (noisy((40, 15, 3)), AFFINE, "has 40 x 15 voxels in a slice"),
        (noisy((40, 40)), AFFINE, "has shape (40, 40), wanted (x, y, z, images) or one volume"),
        (np.full(SHAPE, 3.0, np.float32), AFFINE, "holds one value only in every slice; give an image"),
        (noisy(), "pixdim", "its affine (columns of 1.5 x 2 x 8) does not fit voxels of 1.5 x 3 x 8 mm"),
        (None, AFFINE, "no such file"),
    ],
)
def test_a_bad_image_is_one_line_and_status_2(tmp_path, runs, run, values, affine, said):
    file = tmp_path / "bad.nii.gz"
    if isinstance(affine, str):
        content = bytearray(gzip.decompress(save(file, values).read_bytes()))
        # the fourth number from byte 76 is that of y
        content[84:88] = np.float32(3.0).tobytes()
        file.write_bytes(gzip.compress(bytes(content)))
    elif values is not None:
        save(file, values, affine)
    code, _, err = run(file, "--model", runs / "one", "--out", tmp_path / "out")
    assert code == 2
    assert err.startswith(f"qsim: {file}")
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def mask(folder, values=None, affine=AFFINE):
    return save(folder / "l.nii.gz", np.zeros(SHAPE[:3], np.uint8) if values is None else values, affine)


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("one", lambda f, r: ("--source", "task"), "--source: is for networks of kind: decoupled, and "),
        ("one", lambda f, r: ("--scheme", "discrete"), "--scheme: is for networks of kind: decoupled"),
        ("one", lambda f, r: ("--no-resample",), "--no-resample: is for networks of kind: decoupled"),
        ("decoupled", lambda f, r: ("--image", 0), "--image: is for networks of kind: segmentation, and "),
        ("decoupled", lambda f, r: ("--samples", 3), "is of kind: decoupled; leave it out"),
        ("decoupled", lambda f, r: ("--ensemble", "x"), "--ensemble: is for networks of kind: segmentation"),
        ("maps", lambda f, r: ("--ensemble", "x"), "--ensemble: is for networks of kind: segmentation"),
        ("maps", lambda f, r: (), "holds 2 volumes, wanted one"),
        ("none", lambda f, r: ("--samples", 3), "neither a run of qsim train nor a shipped network"),
        ("one", lambda f, r: ("--samples", 3), "has no dropout; train one with network.dropout"),
        ("dropout", lambda f, r: ("--samples", 0), "--samples: got 0, wanted 1 or more"),
        ("one", lambda f, r: ("--image", 2), "--image: got 2, a.nii.gz holds 2 images, wanted 0 to 1"),
        ("one", lambda f, r: ("--image", -1), "--image: got -1, a.nii.gz holds 2 images"),
        ("one", lambda f, r: ("--ensemble", r / "none"), "none: neither a run of qsim train"),
        ("one", lambda f, r: ("--ensemble", r / "larger"), "sees 96 voxels, one sees 64"),
        ("one", lambda f, r: ("--ensemble", r / "decoupled"), "is no network of kind: segmentation"),
        ("one", lambda f, r: ("--ensemble", r / "one/model.safetensors"), "--ensemble: "),
        ("one", lambda f, r: ("--labels", mask(f, noisy())), "holds 2 volumes, wanted one for all contrasts"),
        ("one", lambda f, r: ("--labels", mask(f, noisy((70, 90, 2)))), "l.nii.gz has 70 x 90 x 2 voxels, a.nii.gz"),
        ("one", lambda f, r: ("--labels", mask(f, affine=np.eye(4))), "lies in another place than a.nii.gz"),
        ("one", lambda f, r: ("--labels", mask(f, noisy(SHAPE[:3]) - 1)), "holds NaN or values below 0"),
        ("one", lambda f, r: ("--labels", f / "none.nii"), "--labels: "),
    ],
)
def test_a_bad_option_is_one_line_and_status_2(tmp_path, runs, run, model, options, said):
    file = save(tmp_path / "a.nii.gz")
    code, _, err = run(file, "--model", runs / model, "--out", tmp_path / "out", *options(tmp_path, runs))
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_replaced_only_when_asked(tmp_path, bright):
    bright(40.0, -40.0)
    file = save(tmp_path / "a.nii", squares())
    go(file, tmp_path / "out", ensemble=("other",))
    before = {each: each.read_bytes() for each in (tmp_path / "out").rglob("*.*")}
    bright(40.0)
    with pytest.raises(Exception, match="exists already; name another folder, or add --overwrite"):
        go(file, tmp_path / "out")
    assert {each: each.read_bytes() for each in (tmp_path / "out").rglob("*.*")} == before
    go(file, tmp_path / "out", overwrite=True)
    # what the members of the other call did not agree on is not of this one
    assert sorted(each.name for each in (tmp_path / "out").rglob("*.nii.gz")) == [
        "sub-a_desc-entropy_quality.nii.gz",
        "sub-a_desc-lv_dseg.nii.gz",
        "sub-a_desc-lv_probseg.nii.gz",
    ]


def test_a_failure_leaves_nothing(tmp_path, bright, monkeypatch):
    file = save(tmp_path / "a.nii", squares())
    bright(float("nan"))
    with pytest.raises(Exception, match="answers with NaN or infinity; train it again"):
        go(file, tmp_path / "out")
    bright(40.0)
    monkeypatch.setattr("trainers.segmentation.segment_files.montage", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        go(file, tmp_path / "out")
    assert [each.name for each in tmp_path.iterdir()] == ["a.nii"]
