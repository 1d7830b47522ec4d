"""`qsim study` of kind `segmentation` with tiny networks: its files, any workers, resumed, and refused."""

import csv
import json
import shutil
from itertools import product

import nibabel
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from rich.console import Console

from generators.reading import read_config
from qsim.errors import InputError
from qsim.evaluation.studies.segmentation_results import SCORES
from tests.trainers.segmentation.test_heart_training import qsim
from trainers.checkpoint import load_tensors
from trainers.segmentation.physics_bank import physics_bank
from trainers.segmentation.predict import load_masker
from trainers.segmentation.running import dice_of
from trainers.segmentation.slices import SeriesSet, prepared, read_domain
from trainers.studies.block_runner import Command
from trainers.studies.registry import read_study
from trainers.studies.segmentation import run_segmentation
from trainers.studies.segmentation_config import SegmentationStudyConfig

TIMES = (0.12, 0.5, 1.1, 2.5)


def recoveries(folder, subjects, seed, dark=False):
    """Files of inversion recoveries of a disc in a body, by closed form; the list of a config."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    x, y = np.indices((48, 48))
    ti, files = np.array(TIMES), []
    for number in range(subjects):
        cx, cy, radius = *rng.uniform(18, 30, 2), rng.uniform(6, 10)
        disc = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
        body = (x - 24) ** 2 + (y - 24) ** 2 < 20**2
        t1 = np.where(disc, 0.4, 1.3) if dark else np.where(disc, 1.0, 0.3)
        clean = body[..., None] * (1 - 2 * np.exp(-ti / t1[..., None]))
        image = np.abs(clean + 0.03 * rng.standard_normal(clean.shape))[:, :, None]
        given = {"times": list(TIMES)}
        for name, array in (("image", image.astype(np.float32)), ("mask", disc[:, :, None].astype(np.uint8))):
            path = folder / f"p{number}_{name}.nii"
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
            given[name] = str(path)
        files.append(given)
    return files


PHYSICS = {"copies": 2, "models": [{"kind": "saturation_recovery", "ts": [0.3, 0.8]}], "artefacts": [], "share": 0.5}


def mapping(files, others, **changes):
    given = {
        "kind": "segmentation",
        "seed": 3,
        "data": {"train": {"name": "own", "files": files, "images": 1}, "size": 64, "folds": 2},
        "tests": [{"name": "far", "files": others, "images": 1}],
        "seeds": 2,
        "training": {"epochs": 1, "batch": 2, "lr": 1e-3, "precision": "fp32"},
        "network": {"encoder": "resnet10", "decoder": [8, 8, 8, 8, 8], "dropout": 0.2},
        "sets": [
            {"name": "A", "augment": {"kind": "rotation_scaling"}},
            {"name": "C", "augment": {"kind": "additional"}, "physics": PHYSICS},
        ],
        "samples": 2,
        "draws": 50,
    }
    return given | changes


def study(files, others, **changes):
    return SegmentationStudyConfig.model_validate(mapping(files, others, **changes))


def table(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recoveries")
    return recoveries(folder / "own", 5, 1), recoveries(folder / "far", 3, 2, dark=True)


@pytest.fixture(scope="module")
def done(material, tmp_path_factory):
    """A study of two folds, two seeds and two sets; its folder."""
    out = tmp_path_factory.mktemp("segmentation") / "study"
    run_segmentation(study(*material), out)
    yield out
    # 60 MB a checkpoint
    shutil.rmtree(out)


def test_every_image_of_every_network_has_its_line(done):
    lines = table(done / "images.csv")
    single = [line for line in lines if line["seed"] != "ensemble"]
    # 5 subjects in folds of 3 and 2: what is left out once, and the far ones by each fold
    for name, seed in product("AC", "01"):
        own = [line for line in single if (line["set"], line["seed"]) == (name, seed)]
        tested = {line["name"].split(" ")[0] for line in own if line["split"] == "test"}
        assert tested == {f"p{i}_image" for i in range(5)}
        assert len([line for line in own if line["split"] == "test"]) == 5
        assert len([line for line in own if line["split"] == "train"]) == 5
        assert len([line for line in own if line["split"] == "far"]) == 2 * 3
    together = [line for line in lines if line["seed"] == "ensemble"]
    assert len(together) == 2 * (5 + 2 * 3)
    assert all(0 <= float(line["dice"]) <= 1 for line in lines)
    assert all(line[score] for line in together for score in SCORES)
    assert not any(line[score] for line in single for score in SCORES)


def test_the_table_is_what_the_networks_on_disk_say(done, material):
    """Each network read back and judged anew, its Dice against the table; and the mean of the long table by hand."""
    config = study(*material)
    far = config.tests[0]
    slices = prepared(read_domain(far, config.data.target, done / "data", "tests[0]", 1, Console(quiet=True)), 1, 64)
    lines = table(done / "images.csv")
    means = []
    for fold, seed in product("01", "01"):
        found = load_masker(done / "networks" / f"fold{fold}_seed{seed}_set1", "cpu")(slices.images)
        dice = dice_of(found.probability, slices.masks)
        told = [
            float(line["dice"])
            for line in lines
            if (line["set"], line["fold"], line["seed"], line["split"]) == ("C", fold, seed, "far")
        ]
        np.testing.assert_allclose(told, dice, rtol=1e-4)
        means.append(dice.mean())
    asked = {"estimator": "C", "tissue": "far", "metric": "mean", "draw": "all", "parameter": "dice"}
    (row,) = [each for each in table(done / "results.csv") if asked.items() <= each.items()]
    assert float(row["value"]) == pytest.approx(np.mean(means), rel=1e-4)
    assert row["n"] == "4"


def test_networks_are_of_their_fold_seed_and_set(done):
    left_out = {}
    for fold, seed, number in product(range(2), range(2), range(2)):
        _, header = load_tensors(done / "networks" / f"fold{fold}_seed{seed}_set{number}" / "model.safetensors")
        assert header["config"]["data"]["fold"] == fold
        assert header["config"]["seed"] == 3 + seed
        assert (header["config"]["physics"] is None) == (number == 0)
        assert not set(header["left_out"]) & set(header["trained_on"])
        left_out.setdefault(fold, set()).add(tuple(header["left_out"]))
    assert all(len(each) == 1 for each in left_out.values())
    (first,), (second,) = left_out[0], left_out[1]
    assert not set(first) & set(second)


def test_the_page_and_the_provenance(done, material):
    page = (done / "report.html").read_text(encoding="utf-8")
    assert len(page) < 3e6
    assert "far" in page
    assert "<script src" not in page
    provenance = json.loads((done / "provenance.json").read_text())
    assert provenance["complete"]
    # image and mask of 5 and of 3 subjects
    assert len(provenance["files"]) == 16
    assert len(provenance["digest"]) == 64


def test_a_second_call_computes_nothing(done, material):
    def kept():
        folders = ("blocks", "networks", "data")
        return {
            path: path.stat().st_mtime_ns for name in folders for path in (done / name).rglob("*") if path.is_file()
        }

    before, images, results = kept(), (done / "images.csv").read_bytes(), (done / "results.csv").read_bytes()
    assert len([path for path in before if path.suffix == ".npz"]) == 8 + 4
    run_segmentation(study(*material), done)
    assert kept() == before
    assert (done / "images.csv").read_bytes() == images
    assert (done / "results.csv").read_bytes() == results
    # a block that has gone comes back from its network
    (done / "blocks" / "fold1_seed0_set1.npz").unlink()
    run_segmentation(study(*material), done)
    assert (done / "images.csv").read_bytes() == images


@pytest.mark.slow
def test_processes_give_the_same_numbers(done, material, tmp_path):
    run_segmentation(study(*material), tmp_path / "two", Command(workers=2))
    assert (tmp_path / "two" / "images.csv").read_bytes() == (done / "images.csv").read_bytes()
    for row, other in zip(table(tmp_path / "two" / "results.csv"), table(done / "results.csv"), strict=True):
        assert row == other
    shutil.rmtree(tmp_path / "two")


def test_another_study_in_the_folder_is_refused(done, material):
    with pytest.raises(InputError) as error:
        run_segmentation(study(*material, draws=60), done)
    assert str(done) in str(error.value)
    with pytest.raises(InputError, match="--estimator"):
        run_segmentation(study(*material), done, Command(estimators=("a:b",)))


def test_the_registry_reads_it(material, tmp_path):
    (tmp_path / "study.yaml").write_text(json.dumps(mapping(*material)))
    chosen, read = read_study(tmp_path / "study.yaml")
    assert read == study(*material)
    assert read.folds == (0, 1)
    assert chosen.run is run_segmentation


def test_contrasts_are_made_once_whatever_their_share(material, tmp_path):
    config = study(*material)
    series = read_domain(config.data.train, config.data.target, tmp_path, "data.train", 1, Console(quiet=True))
    physics = config.sets[1].physics
    made = physics_bank(series, physics, 64, tmp_path)
    assert made.shape == (5, 2, 64, 64)
    assert (float(made.min()), float(made.max())) == pytest.approx((0.0, 1.0), abs=0.1)
    assert float(made.min()) >= 0
    assert float(made.max()) <= 1
    (file,) = tmp_path.iterdir()
    before = file.stat().st_mtime_ns
    seldom = physics.model_copy(update={"share": 0.1})
    assert torch.equal(physics_bank(series, seldom, 64, tmp_path), made)
    assert file.stat().st_mtime_ns == before
    others = [
        physics_bank(series, physics.model_copy(update={"seed": 9}), 64, tmp_path),
        physics_bank(series, physics, 32, tmp_path),
    ]
    assert len(list(tmp_path.iterdir())) == 3
    assert not torch.equal(others[0], made)
    assert others[1].shape == (5, 2, 32, 32)


def test_contrasts_lie_where_the_images_lie(material, tmp_path):
    """A body in a corner of an image that is no square, in the square that a network sees."""
    y, x = np.indices((40, 56))
    body = torch.from_numpy((y - 14) ** 2 + (x - 38) ** 2 < 10**2)
    recovery = torch.tensor([abs(1 - 2 * np.exp(-ti / 0.9)) for ti in TIMES]).float()
    image = (
        recovery[:, None, None] * body
        + 0.005 * torch.randn(4, 40, 56, generator=torch.Generator().manual_seed(1)).abs()
    )
    series = SeriesSet((image,), (body,), np.zeros(1, np.int64), ("a",), ((1.0, 1.0),), (TIMES,), "x")
    made = physics_bank(series, study(*material).sets[1].physics, 64, tmp_path)
    shown = prepared(series, 1, 64)
    assert made.shape == (1, 2, 64, 64)
    for copy in made[0]:
        for found in (copy, shown.images[0]):
            bright = found > 0.5 * found[shown.masks[0]].median()
            both, either = (bright & shown.masks[0]).sum(), (bright | shown.masks[0]).sum()
            assert float(both / either) > 0.85


def test_series_without_a_recovery_have_no_physics(material, tmp_path):
    files, _ = material
    for changes, said in (({"times": None}, "times"), ({"times": [0.1, 0.1, 0.1, 0.1]}, "physics: p4_image")):
        wrong = [*files[:4], {**files[4], **changes}]
        series = read_domain(
            study(wrong, files).data.train, ("myocardium",), tmp_path, "data.train", 1, Console(quiet=True)
        )
        with pytest.raises(InputError, match=said) as error:
            physics_bank(series, study(wrong, files).sets[1].physics, 64, tmp_path)
        assert str(error.value).startswith("physics: p4_image: ")
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


SET = {"name": "A", "augment": {"kind": "rotation_scaling"}}
REFUSED = {
    "a fold that is none": ({"use_folds": [2]}, "use_folds[0]: got 2"),
    "a fold twice": ({"use_folds": [1, 1]}, "use_folds[1]: got 1"),
    "no other domain": ({"tests": []}, "tests"),
    "sets of one name": ({"sets": [SET, SET]}, "sets[1].name: A is given twice"),
    "no set": ({"sets": []}, "sets"),
    "a set called test": ({"sets": [{**SET, "name": "test"}]}, "sets[0].name: test is what"),
    "a bar in a name": ({"sets": [{**SET, "name": "a|b"}]}, "sets[0].name"),
    "one pass": ({"samples": 1}, "samples: one pass"),
    "passes without dropout": (
        {"samples": 3, "network": {"encoder": "resnet10", "decoder": [8] * 5}},
        "samples: a network without dropout has none",
    ),
    "no seeds": ({"seeds": 0}, "seeds"),
    "a fold of the data": (
        {"data": {"train": {"name": "own", "store": "a"}, "fold": 1}},
        "data.fold: unknown key",
    ),
}


@pytest.mark.parametrize(("changes", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_configs_are_refused_by_their_field(material, tmp_path, changes, said):
    (tmp_path / "study.yaml").write_text(json.dumps(mapping(*material, **changes)))
    with pytest.raises(InputError) as error:
        read_config(tmp_path / "study.yaml", SegmentationStudyConfig)
    assert len(str(error.value).splitlines()) == 1
    assert said in str(error.value)


def test_data_that_do_not_fit_leave_no_folder(material, tmp_path):
    files, others = material
    own = {"name": "own", "files": files, "images": 1}
    wrong = {
        r"tests\[0\]\.files\[1\]\.image: .*no such file": {
            "tests": [{"name": "far", "files": [others[0], {**others[1], "image": "nowhere.nii"}]}]
        },
        r"tests\[0\]: images: .* has 4, and 5 are asked for": {
            "tests": [{"name": "far", "files": others, "images": 5}]
        },
        r"data\.folds: got 6 groups for 5 subjects": {"data": {"train": own, "size": 64, "folds": 6}},
        r"tests\[0\]: .*no\.zarr": {"tests": [{"name": "far", "store": str(tmp_path / "no.zarr")}]},
    }
    for said, changes in wrong.items():
        with pytest.raises(InputError, match=said) as error:
            run_segmentation(study(files, others, **changes), tmp_path / "out")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists(), said


def test_the_command_refuses_in_one_line(material, tmp_path, monkeypatch, capsys):
    files, others = material
    (tmp_path / "study.yaml").write_text(json.dumps(mapping(files, [{**others[0], "mask": "nowhere.nii"}])))
    code, said = qsim(monkeypatch, capsys, "study", tmp_path / "study.yaml", "--out", tmp_path / "out")
    assert code == 2
    assert len(said.strip().splitlines()) == 1
    assert "tests[0].files[0].mask: " in said
    assert not (tmp_path / "out").exists()


def test_names_keep_domains_apart(material):
    files, others = material
    far = {"name": "far", "files": others}
    for tests, said in (([far, far], r"tests\[1\].name: far is given twice"), ([{**far, "name": "train"}], "train is")):
        with pytest.raises(ValidationError, match=said):
            study(files, others, tests=tests)
