"""Views, training and answers of the segmentation of hearts: it learns, resumes to the bit, and says what it is."""

import fcntl
import io
import json
import os
import shutil
import sys
from math import log

import jaxtyping
import nibabel
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from torch import nn

from qsim.errors import InputError
from tests.trainers.segmentation.test_heart_slices import HEARTS
from trainers import cli
from trainers.checkpoint import load_tensors, save_tensors
from trainers.fit import DivergedError
from trainers.segmentation import training as training_module
from trainers.segmentation.augment import Additional, RotationScaling
from trainers.segmentation.config import SegmentationConfig
from trainers.segmentation.network import SegmentationNet
from trainers.segmentation.predict import Masker, Prediction, load_masker
from trainers.segmentation.running import dice_of
from trainers.segmentation.slices import Slices, prepared, read_domain
from trainers.segmentation.training import follow, train_segmentation
from trainers.segmentation.views import Views, collated, loader
from trainers.segmentation.views_picture import views_picture

QUIET = Console(quiet=True)
CPU = torch.device("cpu")
TINY = {"encoder": "resnet10", "decoder": [8, 8, 8, 8, 8]}
# of the smallest resnet with moments, twice over, 60 MB each: not left behind
pytestmark = pytest.mark.usefixtures("swept")


@pytest.fixture(autouse=True)
def swept(tmp_path):
    yield
    shutil.rmtree(tmp_path, ignore_errors=True)


# --- views ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slices():
    """Seven images: image i is i / 10 in its mask, which is i + 1 voxels wide, and 0 elsewhere; two of each series."""
    images, masks = torch.zeros(7, 32, 32), torch.zeros(7, 32, 32, dtype=torch.bool)
    for i in range(7):
        images[i, 8:20, 8 : 9 + i], masks[i, 8:20, 8 : 9 + i] = (i + 1) / 10, True
    return Slices(images, masks, np.arange(7) // 2, tuple("abcdefg"))


def number_of(view):
    return round(float(view.images.max()) * 10) - 1


def test_an_epoch_shows_each_image_once_in_another_order(slices):
    views = Views(slices, None, 5)
    assert len(views) == 7
    orders = [[number_of(views.view(7 * epoch + k)) for k in range(7)] for epoch in range(4)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len({tuple(order) for order in orders}) > 2
    other = [number_of(Views(slices, None, 6).view(k)) for k in range(7)]
    assert other != orders[0]


def test_a_view_is_an_image_with_its_own_mask(slices):
    for position in range(7):
        view = Views(slices, None, 5).view(position)
        assert view.images.shape == (1, 1, 32, 32)
        assert torch.equal(view.images[0, 0] > 0, view.masks[0])
        # turned and scaled together
        turned = Views(slices, RotationScaling(), 5).view(position)
        assert float(((turned.images[0, 0] > (number_of(view) + 1) / 20) == turned.masks[0]).float().mean()) > 0.99


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_order_of_asking_change_nothing(slices, workers):
    synthetic = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    views = Views(slices, Additional(), 7, synthetic, 0.5)
    expected = collated([views.view(position) for position in range(3, 12)][::1])
    backwards = collated([views.view(position) for position in reversed(range(3, 12))])
    assert torch.equal(backwards.images.flip(0), expected.images)
    batches = list(loader(views, range(3, 12), 4, workers))
    assert [len(batch.masks) for batch in batches] == [4, 4, 1]
    again = collated(batches)
    assert torch.equal(again.images, expected.images)
    assert torch.equal(again.masks, expected.masks)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_other_contrasts(slices, share):
    """Contrast c of series s is 10 + s + c / 10 everywhere: the image tells which it is."""
    synthetic = (10 + torch.arange(4)[:, None] + torch.arange(3)[None] / 10)[:, :, None, None].expand(4, 3, 32, 32)
    views = Views(slices, None, 2, synthetic, share)
    plain = Views(slices, None, 2)
    made, contrasts = [], set()
    for position in range(210):
        view, before = views.view(position), plain.view(position)
        # the mask stays that of the image
        assert torch.equal(view.masks, before.masks)
        made.append(bool(view.images.max() > 5))
        if not made[-1]:
            assert torch.equal(view.images, before.images)
            continue
        value = float(view.images.mean())
        assert int(value) - 10 == number_of(before) // 2
        contrasts.add(round(10 * (value % 1)))
    # binomial, 4 SD
    assert np.mean(made) == pytest.approx(share, abs=4 * (share * (1 - share) / 210) ** 0.5)
    assert contrasts == ({0, 1, 2} if share else set())


# --- training ---------------------------------------------------------------------------------------------------------


def discs(folder, subjects=6, size=64, seed=0):
    """Files of bright discs in noise, two contrasts each, and their masks; the list of a config."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    x, y = np.indices((size, size))
    files = []
    for number in range(subjects):
        centre, radius = rng.uniform(0.3, 0.7, 2) * size, rng.uniform(0.14, 0.22) * size
        disc = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
        image = np.abs(np.stack([disc, 0.8 * disc], -1) + 0.2 * rng.standard_normal((size, size, 2)))[:, :, None]
        given = {}
        for name, array in (("image", image.astype(np.float32)), ("mask", disc[:, :, None].astype(np.uint8))):
            path = folder / f"s{number}_{name}.nii"
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
            given[name] = str(path)
        files.append(given)
    return files


def mapping(files, **changes):
    data = {"train": {"name": "discs", "files": files}, "size": 64, "folds": 3, **changes.pop("data", {})}
    given = {
        "kind": "segmentation", "seed": 1, "data": data, "augment": {"kind": "rotation_scaling"}, "network": TINY,
        "epochs": 2, "batch": 4, "lr": 1e-3, "precision": "fp32", "validate_every": 100, "checkpoint_every": 100,
    }  # fmt: skip
    return {**given, **changes}


def config(files, **changes):
    return SegmentationConfig.model_validate(mapping(files, **changes))


def weights(run):
    return load_tensors(run / "model.safetensors")[0]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return discs(tmp_path_factory.mktemp("discs"))


@pytest.fixture(scope="module")
def learnt(files, tmp_path_factory):
    """A network that has learned discs."""
    out = tmp_path_factory.mktemp("learnt") / "run"
    train_segmentation(config(files, epochs=24, lr=2e-3, validate_every=12), out, device="cpu", console=QUIET)
    yield out
    shutil.rmtree(out)


def test_it_learns_discs_that_it_was_not_shown(learnt, tmp_path):
    series = read_domain(
        config(discs(tmp_path, subjects=4, seed=9)).data.train, ("myocardium",), tmp_path, "tests[0]", 1, QUIET
    )
    unseen = prepared(series, 2, 64)
    found = load_masker(learnt, "cpu")(unseen.images)
    assert found.members.shape == (1, 8, 64, 64)
    assert float(dice_of(found.probability, unseen.masks).min()) > 0.8
    lines = [json.loads(line) for line in (learnt / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert [line["epoch"] for line in lines] == list(range(1, 25))
    # 4 subjects of 2 images
    assert lines[-1]["iteration"] == 24 * 8 // 4
    assert [line["epoch"] for line in lines if "validation" in line] == [12, 24]
    assert lines[-1]["validation"]["dice_left_out"] > 0.8


def test_the_file_says_what_it_is(learnt, files):
    _, header = load_tensors(learnt / "model.safetensors")
    assert header["kind"] == "segmentation"
    assert SegmentationConfig.model_validate(header["config"]).epochs == 24
    assert sorted(header["trained_on"] + header["left_out"]) == [f"s{i}_image" for i in range(6)]
    assert len(header["left_out"]) == 2
    assert header["versions"]["torch"]
    # 64 voxels of 1 mm
    assert header["field_mm"] == 64.0
    assert header["progress"]["iteration"] == 48


def test_a_picture_of_the_first_views(learnt, files, tmp_path):
    with Image.open(learnt / "views.png") as picture:
        shown = np.asarray(picture.convert("RGB")).astype(int)
    assert shown.shape[1] > shown.shape[0] > 300
    # outlines are coloured, the images are grey
    coloured = np.ptp(shown, axis=2) > 60
    assert 0.001 < coloured.mean() < 0.1
    views = Views(Slices(torch.zeros(2, 32, 32), torch.zeros(2, 32, 32).bool(), np.arange(2), ("a", "b")), None, 1)
    views_picture(tmp_path / "empty.png", views, "no target")
    assert not list(tmp_path.glob("*.partial"))


def test_a_finished_run_has_nothing_left_to_do(learnt, files):
    before = (learnt / "model.safetensors").stat().st_mtime_ns
    said = io.StringIO()
    again = config(files, epochs=24, lr=2e-3, validate_every=12)
    train_segmentation(again, learnt, resume=True, device="cpu", console=Console(file=said, width=200))
    assert "nothing left to do" in said.getvalue()
    assert (learnt / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="exists already; add --resume"):
        train_segmentation(again, learnt, device="cpu", console=QUIET)
    with pytest.raises(InputError, match=r"was started with another config \(lr differ\)"):
        train_segmentation(
            config(files, epochs=24, validate_every=12), learnt, resume=True, device="cpu", console=QUIET
        )


DECAYING = {
    **HEARTS,
    "model": {"kind": "spin_lock", "tsl": [0.0, 0.05]},
    "tissues": {"kind": "jacobs2025", "field_strength": 3.0},
}


class Stopped(Exception):
    pass


@pytest.mark.parametrize(("stops", "average"), [((4,), 0.0), ((1, 3), 0.9)], ids=str)
def test_a_stopped_training_goes_on_to_the_bit(files, tmp_path, monkeypatch, stops, average):
    """Dropout, augmentation, batches across epochs and a last one of two: 3 epochs of 6 images in batches of 4."""
    asked = config(
        files, epochs=3, checkpoint_every=1, augment={"kind": "additional"}, network={**TINY, "dropout": 0.3},
        data={"folds": 2}, average=average,
    )  # fmt: skip
    train_segmentation(asked, tmp_path / "whole", device="cpu", console=QUIET)
    left = list(stops)

    class Interrupting(training_module.Bar):
        def update(self, state):
            super().update(state)
            if left and state.iteration == left[0]:
                left.pop(0)
                raise Stopped

    monkeypatch.setattr(training_module, "Bar", Interrupting)
    out = tmp_path / "parts"
    for number in range(len(stops)):
        with pytest.raises(Stopped):
            train_segmentation(asked, out, resume=number > 0, device="cpu", console=QUIET)
        assert not (out / "model.safetensors").exists()
        # half a line of a log that was being written
        with (out / "metrics.jsonl").open("a") as file:
            file.write('{"iteration": 1, "ep')
    torch.manual_seed(123)
    train_segmentation(asked, out, resume=True, device="cpu", console=QUIET)
    assert not left
    assert equal(weights(out), weights(tmp_path / "whole"))
    lines, whole = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (out, tmp_path / "whole")
    )
    for key in ("iteration", "loss", "epoch", "updates"):
        assert [line[key] for line in lines] == [line[key] for line in whole]


def test_the_running_mean_of_the_weights(files, tmp_path):
    """By hand from the weights after each update, which trainings of one and two epochs end with."""
    runs = {}
    for epochs in (1, 2):
        for average in (0.0, 0.5):
            out = tmp_path / f"{epochs}_{average}"
            # 8 images an epoch, one update
            train_segmentation(config(files, epochs=epochs, batch=8, average=average), out, device="cpu", console=QUIET)
            runs[epochs, average] = weights(out)
    name = next(key for key in runs[1, 0.0] if key.endswith("segmentation_head.0.weight"))
    # share (1 + u) / (10 + u) of update u = 1, counted from 0; the start is not on disk, so from the mean after u = 0
    keep = 2 / 11
    mean = keep * runs[1, 0.5][name] + (1 - keep) * runs[2, 0.0][name]
    torch.testing.assert_close(runs[2, 0.5][name], mean)
    assert not torch.equal(runs[2, 0.5][name], runs[2, 0.0][name])


def test_a_mean_keeps_no_more_than_it_is_asked_to():
    net, mean = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    with torch.no_grad():
        net.weight.fill_(3.0)
        net.num_batches_tracked.fill_(7)
    follow(mean, net, 0.25, update=1000)
    assert mean.weight.tolist() == [2.5, 2.5, 2.5]
    assert int(mean.num_batches_tracked) == 7


def test_the_fold_that_is_left_out_teaches_nothing(files, tmp_path):
    """Other voxels in the subjects of the fold change no weight; in one of the others they do."""
    asked = config(files, epochs=1)
    header = load_tensors(train_segmentation(asked, tmp_path / "run", device="cpu", console=QUIET))[1]
    rng = np.random.default_rng(5)

    def with_noise_in(names, folder):
        changed = discs(folder)
        for each in changed:
            if any(name in each["image"] for name in names):
                noise = rng.random((64, 64, 1, 2)).astype(np.float32)
                nibabel.save(nibabel.Nifti1Image(noise, np.eye(4)), each["image"])
        out = folder / "run"
        train_segmentation(config(changed, epochs=1), out, device="cpu", console=QUIET)
        return weights(out)

    before = weights(tmp_path / "run")
    assert equal(with_noise_in(header["left_out"], tmp_path / "left"), before)
    assert not equal(with_noise_in(header["trained_on"][:1], tmp_path / "own"), before)


def test_folds_are_left_out_by_their_number(files, tmp_path):
    left_out = []
    for fold in range(3):
        asked = config(files, epochs=1, batch=8, data={"fold": fold})
        file = train_segmentation(asked, tmp_path / str(fold), device="cpu", console=QUIET)
        left_out += load_tensors(file)[1]["left_out"]
    assert sorted(left_out) == [f"s{i}_image" for i in range(6)]


def test_a_loss_that_is_no_number_ends_the_training(files, tmp_path):
    with pytest.raises(DivergedError, match="lower lr") as error:
        train_segmentation(config(files, lr=1e30, epochs=8), tmp_path / "run", device="cpu", console=QUIET)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_data_that_changed_since_the_checkpoint_are_refused(tmp_path, monkeypatch):
    own = discs(tmp_path / "data")
    asked = config(own, epochs=2, checkpoint_every=1)

    class Interrupting(training_module.Bar):
        def update(self, state):
            if state.iteration == 3:
                raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(training_module, "Bar", Interrupting)
        with pytest.raises(Stopped):
            train_segmentation(asked, tmp_path / "run", device="cpu", console=QUIET)
    discs(tmp_path / "data", seed=3)
    with pytest.raises(InputError, match="data differ from those of the checkpoint"):
        train_segmentation(asked, tmp_path / "run", resume=True, device="cpu", console=QUIET)


def test_what_cannot_be_learned_from_leaves_no_folder(files, tmp_path):
    single = tmp_path / "single.nii"
    nibabel.save(
        nibabel.Nifti1Image(np.random.default_rng(0).random((64, 64, 1)).astype(np.float32), np.eye(4)), single
    )
    wrong = {
        r"data\.train\.files\[0\]\.mask: .*no such file": mapping([{**files[0], "mask": "nowhere.nii"}]),
        r"data\.train: images: single has 1, and 2 are asked for": mapping(
            [*files, {**files[0], "image": str(single)}]
        ),
        r"data\.folds: got 7 groups for 6 subjects": mapping(files, data={"folds": 7}),
        r"data\.folds: 5 of 4 subjects": mapping([], data={"train": {"name": "h", "generate": HEARTS}, "folds": 5}),
        r"physics: .*spin_lock of data\.train is no inversion": mapping(
            [], data={"train": {"name": "h", "generate": DECAYING}, "folds": 2}, physics={}
        ),
        r"physics: .*s0_image of data\.train has no inversion times": mapping(files, physics={}),
        r"data\.train: .*no\.zarr": mapping(files, data={"train": {"name": "a", "store": str(tmp_path / "no.zarr")}}),
    }
    for said, content in wrong.items():
        with pytest.raises(InputError, match=said) as error:
            train_segmentation(
                SegmentationConfig.model_validate(content), tmp_path / "run", device="cpu", console=QUIET
            )
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists(), said


def test_the_smallest_square_and_a_last_image_alone(files, tmp_path):
    """At 32 voxels the coarsest level is one voxel: of one image there is no variance to normalise by."""
    small = config(files[:3], epochs=1, batch=3, data={"size": 32})
    with pytest.raises(InputError, match="batch") as error:
        train_segmentation(small, tmp_path / "run", device="cpu", console=QUIET)
    assert "\n" not in str(error.value)
    train_segmentation(
        config(files[:3], epochs=1, batch=2, data={"size": 32}), tmp_path / "even", device="cpu", console=QUIET
    )
    train_segmentation(config(files[:3], epochs=1, batch=3), tmp_path / "larger", device="cpu", console=QUIET)


def test_hearts_are_made_once_in_the_folder_of_the_run(tmp_path, monkeypatch):
    asked = config([], epochs=2, checkpoint_every=1, data={"train": {"name": "hearts", "generate": HEARTS}, "folds": 2})
    train_segmentation(asked, tmp_path / "whole", device="cpu", console=QUIET)
    header = load_tensors(tmp_path / "whole" / "model.safetensors")[1]
    assert sorted(header["trained_on"] + header["left_out"]) == [f"heart {i}" for i in range(4)]

    class Interrupting(training_module.Bar):
        def update(self, state):
            if state.iteration == 2:
                raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(training_module, "Bar", Interrupting)
        with pytest.raises(Stopped):
            train_segmentation(asked, tmp_path / "parts", device="cpu", console=QUIET)
    said = io.StringIO()
    train_segmentation(
        asked, tmp_path / "parts", resume=True, device="cpu", workers=2, console=Console(file=said, width=200)
    )
    assert "made" not in said.getvalue()
    assert equal(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    assert [path.name for path in (tmp_path / "parts" / "data").iterdir()] == ["data_train.zarr"]


def test_a_whole_data_set_is_read_while_another_process_holds_it(tmp_path):
    """Processes of a study read one store; `build` would shut them out."""
    domain = config([], data={"train": {"name": "hearts", "generate": HEARTS}, "folds": 2}).data.train
    first = read_domain(domain, ("myocardium",), tmp_path, "data.train", 1, QUIET)
    handle = os.open(tmp_path / "data_train.zarr", os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        again = read_domain(domain, ("myocardium",), tmp_path, "data.train", 1, QUIET)
    finally:
        os.close(handle)
    assert again.digest == first.digest
    assert all(torch.equal(a, b) for a, b in zip(again.images, first.images, strict=True))


# --- command line -----------------------------------------------------------------------------------------------------


def qsim(monkeypatch, capsys, *arguments):
    """Exit status and what was said on stderr."""
    monkeypatch.setattr(sys, "argv", ["qsim", *map(str, arguments)])
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    return ended.value.code, capsys.readouterr().err


def test_the_command_trains(files, tmp_path, monkeypatch, capsys):
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(mapping(files, epochs=1, batch=8)))
    arguments = ("train", tmp_path / "train.yaml", "--out", tmp_path / "run", "--device", "cpu")
    assert qsim(monkeypatch, capsys, *arguments)[0] == 0
    assert {"model.safetensors", "config.json", "metrics.jsonl"} <= {path.name for path in (tmp_path / "run").iterdir()}
    code, said = qsim(monkeypatch, capsys, *arguments)
    assert code == 2
    assert "exists already" in said
    code, said = qsim(monkeypatch, capsys, *arguments, "--resume")
    assert code == 0
    # a terminal breaks lines where it is narrow
    assert "nothing left to do" in " ".join(said.split())


BAD = {
    "a fold too many": ({"data": {"fold": 3}}, "data.fold: got 3, wanted 0 to 2"),
    "a square too small": ({"data": {"size": 16}}, "data.size"),
    "an unknown encoder": ({"network": {"encoder": "vgg"}}, "network.encoder"),
    "an augmentation nobody knows": ({"augment": {"kind": "mirror"}}, "augment.kind: got 'mirror'"),
    "a single image at a time": ({"batch": 1}, "batch"),
    "no rate": ({"lr": 0}, "lr"),
    "a misspelt key": ({"epoch": 3}, "epoch: unknown key; did you mean epochs?"),
    "no epochs": ({"epochs": 0}, "epochs"),
    "no times for physics": ({"physics": {}}, "physics: "),
}


@pytest.mark.parametrize(("changes", "said"), BAD.values(), ids=BAD.keys())
def test_the_command_refuses_in_one_line(files, tmp_path, monkeypatch, capsys, changes, said):
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(mapping(files, **changes)))
    code, message = qsim(monkeypatch, capsys, "train", tmp_path / "train.yaml", "--out", tmp_path / "run")
    assert code == 2
    assert len(message.strip().splitlines()) == 1
    assert said in message


# --- answers ----------------------------------------------------------------------------------------------------------


def h(p):
    return -(p * log(p) + (1 - p) * log(1 - p))


def test_figures_of_two_members_by_hand():
    first = torch.tensor([[[0.9, 0.8], [0.6, 0.2]]])
    second = torch.tensor([[[0.7, 0.1], [0.3, 0.4]]])
    found = Prediction(torch.stack([first, second]))
    mean = [0.8, 0.45, 0.45, 0.3]
    np.testing.assert_allclose(found.probability.flatten(), mean, rtol=1e-6)
    assert found.mask.flatten().tolist() == [True, False, False, False]
    entropy = [h(p) for p in mean]
    mutual = [
        h(m) - (h(a) + h(b)) / 2 for m, a, b in zip(mean, (0.9, 0.8, 0.6, 0.2), (0.7, 0.1, 0.3, 0.4), strict=True)
    ]
    np.testing.assert_allclose(found.entropy.flatten(), entropy, rtol=1e-5)
    np.testing.assert_allclose(found.mutual.flatten(), mutual, rtol=1e-4)
    scores = found.scores()
    # masks of 3 and of 1 voxels, 1 shared: Dice 2 x 1 / 4
    np.testing.assert_allclose(scores["disagreement"], [0.5])
    np.testing.assert_allclose(scores["entropy_per_target"], [sum(entropy) / 2.0], rtol=1e-5)
    np.testing.assert_allclose(scores["mutual_per_target"], [sum(mutual) / 2.0], rtol=1e-4)


def test_three_members_disagree_by_pairs_and_nobody_with_nobody_agrees():
    members = torch.zeros(3, 2, 4, 4)
    members[0, 0, :2], members[1, 0, :1], members[2, 0, 2:] = 1.0, 1.0, 1.0
    found = Prediction(members)
    # 8, 4 and 8 voxels: Dice 8 / 12, 0, 0; where no member finds anything they agree
    np.testing.assert_allclose(found.scores()["disagreement"], [1 - (8 / 12) / 3, 0.0])
    # certain members: no entropy of their own, so that all of it is mutual; an empty image counts as one voxel
    np.testing.assert_allclose(found.mutual, found.entropy)
    assert found.scores()["entropy_per_target"][1] == 0
    assert not found.entropy.isnan().any()
    one_third = h(1 / 3)
    # 16 voxels of one image: 4 that two found, 12 that one found
    np.testing.assert_allclose(found.scores()["entropy_per_target"][0], 16 * one_third / (20 / 3), rtol=1e-5)


def test_one_member_cannot_disagree():
    found = Prediction(torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(1)))
    scores = found.scores()
    assert np.isnan(scores["disagreement"]).all()
    assert scores["disagreement"].shape == (3,)
    np.testing.assert_array_equal(scores["mutual_per_target"], 0)
    assert (scores["entropy_per_target"] > 0).all()


def test_dice_of_images():
    probability = torch.tensor([[[0.5, 0.4]], [[0.1, 0.1]], [[0.9, 0.9]]])
    masks = torch.tensor([[[True, True]], [[False, False]], [[False, False]]])
    np.testing.assert_allclose(dice_of(probability, masks), [2 / 3, 1.0, 0.0])


class Told(SegmentationNet):
    """A network whose logit is that of a number, through dropout."""

    def __init__(self, logit, dropout=0.0):
        nn.Module.__init__(self)
        self.logit, self.drop = logit, nn.Dropout(dropout)

    def forward(self, images):
        return self.drop(torch.full_like(images[:, 0], self.logit))


def told(files, *nets, **changes):
    return Masker(tuple(net.eval() for net in nets), (config(files),) * len(nets), CPU, **changes)


def test_an_ensemble_is_the_mean_of_its_members(files):
    images = torch.zeros(20, 6, 6)
    found = told(files, Told(log(0.9 / 0.1)), Told(log(0.2 / 0.8)))(images)
    assert found.members.shape == (2, 20, 6, 6)
    np.testing.assert_allclose(found.probability, 0.55, rtol=1e-5)
    np.testing.assert_allclose(found.scores()["disagreement"], 1.0)


def test_passes_with_dropout_are_members_and_leave_the_stream_alone(files):
    images = torch.zeros(3, 16, 16)
    masker = told(files, Told(log(0.8 / 0.2), 0.5), samples=40)
    before = torch.get_rng_state()
    found, again = masker(images), masker(images)
    assert torch.equal(torch.get_rng_state(), before)
    assert not masker.nets[0].training
    assert not masker.nets[0].drop.training
    assert found.members.shape == (40, 3, 16, 16)
    assert torch.equal(found.members, again.members)
    # half of the draws are sigmoid(0), half sigmoid(2 log 4) = 16 / 17
    assert set(found.members.flatten().mul(1e4).round().tolist()) == {5000.0, round(16e4 / 17)}
    assert float(found.probability.mean()) == pytest.approx((0.5 + 16 / 17) / 2, abs=0.01)
    # no two passes are the same
    assert len({tuple(member.flatten().tolist()) for member in found.members}) == 40
    assert not torch.equal(found.members, told(files, Told(log(4), 0.5), samples=40, seed=1)(images).members)


def untrained(path, files, **changes):
    """A file as a training leaves it, with the weights it would start with."""
    asked = config(files, **changes)
    net = asked.network.build(torch.Generator().manual_seed(changes.get("seed", 1)))
    header = {"kind": "segmentation", "config": asked.model_dump(mode="json"), "data_digest": "x"}
    save_tensors(path, {f"net/{key}": each for key, each in net.state_dict().items()}, header)
    return path


def test_several_files_are_an_ensemble(files, tmp_path):
    runs = [untrained(tmp_path / f"{seed}.safetensors", files, seed=seed) for seed in (1, 2)]
    images = torch.rand(2, 64, 64, generator=torch.Generator().manual_seed(1))
    both = load_masker(runs, "cpu")
    assert both.names == ("1", "2")
    assert both.size == 64
    assert len(set(both.digests)) == 2
    alone = [load_masker(run, "cpu")(images).members for run in runs]
    assert torch.equal(both(images).members, torch.cat(alone))
    assert not torch.equal(*alone)


def test_networks_that_do_not_fit_are_refused(files, tmp_path):
    plain = untrained(tmp_path / "plain.safetensors", files)
    other = untrained(tmp_path / "other.safetensors", files, data={"size": 96})
    with pytest.raises(InputError, match=r"other\.safetensors: sees 96 voxels, plain sees 64"):
        load_masker([plain, other], "cpu")
    with pytest.raises(InputError, match=r"samples: .*plain\.safetensors has no dropout"):
        load_masker(plain, "cpu", samples=5)
    dropping = untrained(tmp_path / "dropping.safetensors", files, network={**TINY, "dropout": 0.2})
    assert len(load_masker(dropping, "cpu", samples=2)(torch.rand(1, 64, 64)).members) == 2
    with pytest.raises(InputError, match="none was given"):
        load_masker([])
    tensors, header = load_tensors(plain)
    save_tensors(tmp_path / "kind.safetensors", tensors, {**header, "kind": "decoupled"})
    save_tensors(tmp_path / "old.safetensors", tensors, {**header, "config": {**header["config"], "epochs": "many"}})
    wide = config(files, network={**TINY, "decoder": [16] * 5}).model_dump(mode="json")
    save_tensors(tmp_path / "wide.safetensors", tensors, {**header, "config": wide})
    (tmp_path / "text.safetensors").write_text("no network")
    for name, said in (
        ("kind", "is no network of kind: segmentation"),
        ("old", "does not fit this version of qsim"),
        ("wide", "wide"),
        ("text", "text"),
        ("absent", "absent"),
    ):
        with pytest.raises(InputError, match=said) as error:
            load_masker(tmp_path / f"{name}.safetensors", "cpu")
        assert "\n" not in str(error.value)
