"""`qsim study` of kind `quality` with networks of closed form: numbers by hand, any workers, resumed, and refused."""

import csv
import json
import sys
from contextlib import suppress
from dataclasses import dataclass
from math import log
from pathlib import Path

import jaxtyping
import nibabel
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from pydantic import ValidationError
from scipy.ndimage import uniform_filter
from scipy.stats import spearmanr
from torch import nn

from generators.config import GeneratorConfig
from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.evaluation.pages import quality_page
from qsim.evaluation.studies.quality_results import Seen, auc, with_twins
from qsim.kspace import KSpaceNoise
from trainers import cli
from trainers.checkpoint import save_tensors
from trainers.quality.config import BlockData
from trainers.quality.segmenter import Segmentation, Segmenter
from trainers.studies import quality_models
from trainers.studies.block_runner import Command
from trainers.studies.quality import run_quality
from trainers.studies.quality_answers import judged
from trainers.studies.quality_config import QualityConfig
from trainers.studies.quality_images import CleanImage, spoiled
from trainers.studies.quality_models import check_apart

BALLS = {
    "kind": "deformed",
    "subjects": 5,
    "displacement_mm": 2.0,
    "length_mm": 14.0,
    "phantom": {
        "kind": "geometry",
        "size": [24, 24, 24],
        "spacing_mm": [2.0, 2.0, 2.0],
        "shapes": [
            {"shape": "ball", "tissue": "csf", "radius_mm": 20.0},
            {"shape": "ball", "tissue": "gm", "radius_mm": 16.0, "centre_mm": [1.0, 0.0, 0.0]},
            {"shape": "ball", "tissue": "wm", "radius_mm": 9.0},
        ],
    },
}
HEADS = {
    "seed": 5,
    "samples": 6,
    "patch": [24, 24, 24],
    "phantom": BALLS,
    "tissues": {"kind": "sabidussi2021"},
    "model": {"kind": "inversion_recovery", "ti": [0.9]},
    "noise": {"kind": "gaussian", "sigma": {"kind": "constant", "value": 0.001}},
}
NOISE = {"name": "noise", "artefacts": [{"kind": "k_space_noise", "snr_db": [0, 20]}]}
BLUR = {"name": "blur", "artefacts": [{"kind": "low_pass", "factor": [2, 6]}]}


@dataclass(frozen=True, slots=True)
class Threshold(Segmenter):
    """Grey matter where the image is about `centre`; noise where it is rough, blur where it is not."""

    centre: float = 0.55

    def __call__(self, image, progress=None):
        values = image.numpy().astype(np.float64)
        level = 40 * (0.2**2 - (values - self.centre) ** 2)
        logits = torch.from_numpy(np.stack([-level / 2, level / 2])).float()
        rough = np.abs(values - uniform_filter(values, 3))
        maps = {"task": 0.1 + 0 * rough, "noise": rough, "blur": np.maximum(0.3 - rough, 0)}
        return Segmentation(
            logits, logits.softmax(0), {name: torch.from_numpy(each).float() for name, each in maps.items()}
        )


@dataclass(frozen=True, slots=True)
class Constant(Segmenter):
    """One probability in every voxel, through the dropout of its net."""

    probability: float = 0.5

    def __call__(self, image, progress=None):
        logit = torch.full_like(image, log(self.probability / (1 - self.probability)))
        logits = torch.stack([0 * logit, self.net(logit)])
        variances = {name: torch.full_like(image, value) for name, value in zip(self.sources, (0.5, 1, 3), strict=True)}
        return Segmentation(logits, logits.softmax(0), variances)


def fake(kind=Threshold, net=None, **given):
    fields = {
        "net": net or nn.Identity(),
        "sources": ("task", "noise", "blur"),
        "target": ("gm",),
        "spacing_mm": (2.0, 2.0, 2.0),
        "patch": (16, 16, 16),
        "calibration": CALIBRATION,
        "device": torch.device("cpu"),
    }
    return kind(**(fields | given))


CALIBRATION = {
    "volume": {
        "ratio": 1.0,
        "coefficients": [0.0, 1.0],
        "offset": None,
        "factor": 2.0,
        "level": 0.95,
        "law": "gaussian",
        "images": 60,
        "anatomies": 5,
        "spread_range": [1e-4, 1.0],
    }
}
NETWORKS = {
    "good": fake(),
    "other": fake(centre=0.5),
    "dropping": fake(Constant, net=nn.Dropout(0.5).eval(), probability=0.7),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Folder of files that say of their training what a run would say; networks of closed form are in their place."""
    folder = tmp_path_factory.mktemp("models")
    for name in NETWORKS:
        data = {"train": [{"store": None, "generate": TRAINED}], "validation": [], "calibration": []}
        header = {"kind": "decoupled", "config": {"data": data}}
        save_tensors(folder / f"{name}.safetensors", {"net/none": torch.zeros(1)}, header)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality_models, "load", lambda run, device: NETWORKS[Path(run).stem])
        yield folder
    quality_models._loaded.cache_clear()


# another kind of phantom
TRAINED = GeneratorConfig.model_validate({**HEADS, "phantom": {"kind": "mni"}}).model_dump(mode="json")


def study(folder, **changes):
    given = {
        "kind": "quality",
        "seed": 3,
        "models": [{"name": "good", "model": str(folder / "good.safetensors")}],
        "data": [{"generate": HEADS}],
        "sources": [NOISE, BLUR],
        "ladder": {"noise": [{"kind": "k_space_noise", "snr_db": snr} for snr in (20, 10, 0)]},
        "draws": 20,
    }
    return QualityConfig.model_validate(given | changes)


def table(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def column(lines, name):
    return np.array([float(line[name] or "nan") for line in lines])


@pytest.fixture(scope="module")
def done(loaded, tmp_path_factory):
    """A study of one model and one draw per source; its folder."""
    out = tmp_path_factory.mktemp("quality") / "study"
    run_quality(study(loaded), out)
    return out


def test_the_long_table_is_what_scipy_finds_in_the_table_of_images(done):
    lines = [line for line in table(done / "images.csv") if not line["kind"].startswith("ladder")]
    assert len(lines) == 6 * 3
    assert len({line["anatomy"] for line in lines}) > 2
    rows = table(done / "results.csv")

    def said(metric, kind, parameter):
        (row,) = [r for r in rows if (r["metric"], r["tissue"], r["parameter"]) == (metric, kind, parameter)]
        return float(row["value"] or "nan"), float(row["low"] or "nan"), float(row["high"] or "nan"), int(row["n"])

    dice, total = column(lines, "dice"), column(lines, "variance_artefacts")
    expected = spearmanr(total, dice)
    value, low, high, n = said("spearman_dice", "all", "variance_artefacts")
    assert_allclose(value, expected.statistic, rtol=1e-5)
    assert low <= value <= high
    assert n == 18
    assert_allclose(said("spearman_dice_p", "all", "variance_artefacts")[0], expected.pvalue, rtol=1e-4)
    kinds = np.array([line["kind"] for line in lines])
    each = [spearmanr(column(lines, "entropy")[kinds == k], dice[kinds == k]).statistic for k in ("noise", "blur")]
    assert_allclose(said("spearman_dice", "within", "entropy")[0], np.mean(each), rtol=1e-5)
    # the change of Dice is that from the clean line of the same image
    clean = {line["image"]: float(line["dice"]) for line in lines if line["kind"] == "clean"}
    change = dice - np.array([clean[line["image"]] for line in lines])
    corrupted = kinds != "clean"
    expected = spearmanr(total[corrupted], change[corrupted]).statistic
    assert_allclose(said("spearman_dice_change", "all", "variance_artefacts")[0], expected, rtol=1e-4)
    # leakage and AUC by their definitions
    rough = column(lines, "variance_noise")
    rise = (rough[kinds == "noise"] - rough[kinds == "clean"]).mean() / rough[kinds == "clean"].std(ddof=1)
    assert_allclose(said("leakage", "noise", "variance_noise")[0], rise, rtol=1e-3)
    assert said("diagonal_leads", "noise", "variance_noise")[0] == 1
    pairs = rough[kinds == "noise"][:, None] > rough[kinds == "clean"]
    assert_allclose(said("auc", "noise", "variance_noise")[0], pairs.mean(), rtol=1e-6)
    # intervals: 1.96 sigma of the paper, and the calibration's 2 V u = 2 x 8 mm^3 x S
    true, predicted = column(lines, "volume_true"), column(lines, "volume_predicted")
    inside = np.abs(predicted - true) <= 1.959964 * column(lines, "volume_paper_sd")
    assert_allclose(said("coverage_paper", "all", "volume")[0], 100 * inside.mean(), rtol=1e-5)
    assert_allclose(column(lines, "volume_high") - predicted, 16 * column(lines, "spread"), rtol=1e-4)
    assert_allclose(
        said("width_calibrated", "all", "volume")[0], (3200 * column(lines, "spread") / true).mean(), rtol=1e-4
    )


def test_the_ladder_grows_and_starts_from_the_clean_image(done):
    lines = [line for line in table(done / "images.csv") if line["kind"] == "ladder:noise"]
    assert_allclose(column(lines, "severity"), [0.1, 10**-0.5, 1.0], rtol=1e-5)
    assert np.all(np.diff(column(lines, "variance_noise")) > 0)
    assert {line["image"] for line in lines} == {"0"}


def test_the_page_is_whole_and_small(done):
    page = (done / "report.html").read_text(encoding="utf-8")
    assert len(page) < 3e6
    for words in ("Leakage of the heads", "as in Tables 1 and 2 of shaw2021", "−0.850", "n = 85", "Volume of"):
        assert words in page
    assert "<script src" not in page
    assert "http-equiv" not in page
    provenance = json.loads((done / "provenance.json").read_text())
    assert provenance["complete"]
    assert len(provenance["files"]) == 1


@pytest.mark.usefixtures("no_figures")
def test_workers_and_interruptions_change_no_number(loaded, done, tmp_path):
    run_quality(study(loaded), tmp_path / "two", Command(workers=2))
    assert (tmp_path / "two" / "images.csv").read_bytes() == (done / "images.csv").read_bytes()
    assert (tmp_path / "two" / "results.csv").read_bytes() == (done / "results.csv").read_bytes()
    before = (tmp_path / "two" / "blocks" / "image001_clean.npz").stat().st_mtime_ns
    (tmp_path / "two" / "blocks" / "image002_blur_draw0.npz").unlink()
    run_quality(study(loaded), tmp_path / "two")
    assert (tmp_path / "two" / "images.csv").read_bytes() == (done / "images.csv").read_bytes()
    assert (tmp_path / "two" / "blocks" / "image001_clean.npz").stat().st_mtime_ns == before


@pytest.fixture
def no_figures(monkeypatch):
    """A page without its figures, which take longer than all else."""
    for name in ("forest", "scatter", "box", "leakage", "example", "ladder"):
        monkeypatch.setattr(quality_page, f"{name}_figure", lambda *_: "data:,")


@pytest.mark.usefixtures("no_figures")
def test_measured_images_stand_apart_from_digital_ones(loaded, tmp_path):
    files = measured(tmp_path)
    models = [
        {"name": "good", "model": str(loaded / "good.safetensors"), "ensemble": [str(loaded / "other.safetensors")]},
        {"name": "dropping", "model": str(loaded / "dropping.safetensors"), "samples": 3},
    ]
    config = study(loaded, models=models, images=[files], data=[{"generate": {**HEADS, "samples": 2}}], ladder={})
    run_quality(config, tmp_path / "out")
    lines = table(tmp_path / "out" / "images.csv")
    assert len(lines) == 2 * 3 * 3
    own = [line for line in lines if line["measured"] == "1" and line["model"] == "good"]
    assert [line["kind"] for line in own] == ["clean", "noise", "blur"]
    # the cuboid of 6 x 8 x 10 voxels of 8 mm^3
    assert_allclose(column(own, "volume_true"), 6 * 8 * 10 * 8.0)
    assert column(own, "dice")[0] == 1.0
    who = {row["estimator"] for row in table(tmp_path / "out" / "results.csv")}
    assert who == {"good", "good; measured", "dropping", "dropping; measured"}
    # of two classes: from nothing, where all draws agree, to ln 2
    mutual = column([line for line in lines if line["model"] == "dropping"], "dropout_mutual")
    assert (mutual > 0).all()
    assert (mutual < np.log(2)).all()
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Measured images" in page
    assert "scan.nii.gz" in page


def measured(folder, spacing=2.0):
    values, labels = np.zeros((20, 20, 20), np.float32), np.zeros((20, 20, 20), np.uint8)
    values[4:16, 4:16, 4:16], labels[4:16, 4:16, 4:16] = 100.0, 2
    values[6:12, 6:14, 6:16], labels[6:12, 6:14, 6:16] = 55.0, 3
    affine = np.diag([spacing, spacing, spacing, 1.0])
    for name, array in (("scan", values), ("labels", labels)):
        nibabel.save(nibabel.Nifti1Image(array, affine), folder / f"{name}.nii.gz")
    return {"image": str(folder / "scan.nii.gz"), "labels": str(folder / "labels.nii.gz")}


def clean(shape=(4, 5, 6), voxel=2.0):
    values = torch.full(shape, 0.05)
    values[:, :2] = 1.0
    target = np.zeros(shape, bool)
    target[:2] = True
    return CleanImage(values, target, None, (1.0, 1.0, voxel), voxel)


def test_figures_of_a_constant_answer_are_those_by_hand():
    image = clean()
    found, _ = judged([fake(Constant, probability=0.7, calibration=None)], image.values, image, 0, Streams(0, 0))
    h = -(0.7 * log(0.7) + 0.3 * log(0.3))
    # 120 voxels of 2 mm^3, 60 of them true, all predicted; scaled logits: log(7 / 3) / 4.5
    p = 1 / (1 + (3 / 7) ** (1 / 4.5))
    scaled = -(p * log(p) + (1 - p) * log(1 - p))
    expected = {
        "dice": 2 * 60 / 180,
        "volume_true": 120.0,
        "volume_predicted": 168.0,
        "spread": 120 * 0.21,
        "entropic": 120 * np.exp(2 * scaled) / (2 * np.pi * np.e),
        "variance_artefacts": 4.0,
        "body_variance_noise": 1.0,
        "ratio_variance_blur": 3.0,
        "entropy": h,
    }
    assert_allclose([found[name] for name in expected], list(expected.values()), rtol=1e-5)
    assert "volume_low" not in found
    assert np.isnan(found["cnr_pooled_predicted"])
    nobody, _ = judged([fake(Constant, probability=0.3)], image.values, image, 0, Streams(0, 0))
    assert nobody["dice"] == 0
    assert np.isnan(nobody["ratio_entropy"])
    assert np.isnan(nobody["snr_predicted"])


def test_an_ensemble_disagrees_by_hand():
    image = clean()
    members = [fake(Constant, probability=p) for p in (0.2, 0.6)]
    found, _ = judged(members, image.values, image, 0, Streams(0, 0))

    def h(p):
        return -(p * log(p) + (1 - p) * log(1 - p))

    assert_allclose(found["ensemble_entropy"], h(0.4), rtol=1e-5)
    assert_allclose(found["ensemble_mutual"], h(0.4) - (h(0.2) + h(0.6)) / 2, rtol=1e-4)
    assert_allclose(found["ensemble_variance"], 0.04, rtol=1e-5)


def test_dropout_draws_for_itself_and_leaves_the_stream_alone():
    image = clean((8, 16, 32))
    network = fake(Constant, net=nn.Dropout(0.5).eval(), probability=0.7)
    before = torch.get_rng_state()
    found, _ = judged([network], image.values, image, 60, Streams(1, 0))
    again, _ = judged([network], image.values, image, 60, Streams(1, 0))
    assert torch.equal(torch.get_rng_state(), before)
    assert not network.net.training
    assert found["dropout_variance"] == again["dropout_variance"]
    # half of the draws are 0.5, half softmax(2 log(7 / 3)) = 49 / 58; variance of two values over 60 draws
    assert_allclose(found["dropout_variance"], ((49 / 58 - 0.5) / 2) ** 2 * 59 / 60, rtol=0.02)


def test_the_paper_has_no_error_bar_on_clean_images():
    seen = Seen(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), np.zeros(4, int), np.zeros(4))
    figures = {
        "dice": np.array([0.9, 0.7, 0.8, 0.85]),
        "entropic": np.array([10.0, 26.0, 30.0, 20.0]),
        "voxel_mm3": np.full(4, 3.0),
    }
    found = with_twins(seen, figures)
    assert_allclose(found["volume_paper_sd"], [0, 3 * 4, 0, 0])
    assert_allclose(found["dice_change"], [0, -0.2, 0, 0.05], atol=1e-12)


def test_the_area_under_the_curve_counts_pairs():
    assert auc(np.array([1.0, 3.0]), np.array([1.0, 2.0, 0.0])) == pytest.approx((0.5 + 0 + 1 + 3) / 6)


def test_rungs_share_their_noise():
    image = clean((16, 16, 16), 1.0)
    weak, strong = (spoiled(image, [KSpaceNoise(sigma=s)], Streams(2, 0), "ladder")[0] for s in (1e-4, 2e-4))
    bright = image.values > 0.5
    # at high SNR the modulus takes the real channel of the noise alone
    assert_allclose((strong - image.values)[bright], 2 * (weak - image.values)[bright], atol=1e-6)


REFUSED = {
    "a rung of an unknown source": ({"ladder": {"ghost": [{"kind": "low_pass", "factor": 2}] * 2}}, "ladder.ghost"),
    "nothing to judge on": ({"data": [], "images": []}, "data: missing"),
    "two sources of a name": ({"sources": [NOISE, NOISE]}, "sources: noise is named twice"),
    "one draw of dropout": ({"models": [{"name": "a", "model": "m", "samples": 1}]}, "samples: one draw"),
    "a scheme nobody knows": ({"images": [{"image": "a", "labels": "b", "scheme": "c"}]}, "there is no c"),
}


@pytest.mark.parametrize(("changes", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_configs_are_refused(loaded, changes, said):
    with pytest.raises(ValidationError, match=said):
        study(loaded, **changes)


def test_what_does_not_fit_the_models_is_refused(loaded, tmp_path, monkeypatch):
    motion = {**BLUR, "name": "motion"}
    with pytest.raises(InputError, match="sources: good has no source motion; it has noise, blur"):
        run_quality(study(loaded, sources=[motion], ladder={}), tmp_path / "a")
    with pytest.raises(InputError, match=r"models\[0\].model: .*neither a run"):
        run_quality(study(loaded, models=[{"name": "a", "model": str(tmp_path / "none")}]), tmp_path / "a")
    dropping = [{"name": "a", "model": str(loaded / "good.safetensors"), "samples": 4}]
    with pytest.raises(InputError, match=r"models\[0\].samples: .*without dropout"):
        run_quality(study(loaded, models=dropping), tmp_path / "a")
    images = [measured(tmp_path, 3.0)]
    with pytest.raises(InputError, match=r"images\[0\]: voxels of 3 x 3 x 3 mm, good learned 2 x 2 x 2"):
        run_quality(study(loaded, images=images, data=[], ladder={}), tmp_path / "b")
    with pytest.raises(InputError, match=r"images\[0\].labels: .* does not exist"):
        run_quality(study(loaded, images=[{**images[0], "labels": str(tmp_path / "no.nii")}]), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_anatomies_of_the_training_are_refused_or_said(loaded, tmp_path):
    same = GeneratorConfig.model_validate({**HEADS, "seed": 9, "phantom": BALLS["phantom"]}).model_dump(mode="json")
    data = {"train": [{"store": None, "generate": same}], "validation": [{"store": None, "generate": same}]}
    save_tensors(tmp_path / "good.safetensors", {"net/none": torch.zeros(1)}, {"config": {"data": data}})
    models = [{"name": "good", "model": str(tmp_path / "good.safetensors")}]
    small = [{"generate": {**HEADS, "samples": 2}}]
    # deformation does not make another person of it
    with pytest.raises(InputError, match=r"data\[0\]: .*was trained on these anatomies"):
        run_quality(study(loaded, models=models, data=small), tmp_path / "a")
    allowed = study(loaded, models=models, data=small, ladder={}, allow_training_anatomy=True)
    trained, calibrated = check_apart(allowed)
    assert trained.startswith("good was trained on anatomies of data[0]")
    assert calibrated.startswith("good was calibrated on anatomies of data[0]")


@pytest.mark.usefixtures("no_figures")
def test_the_command_runs_it(loaded, tmp_path, monkeypatch):
    content = study(loaded, data=[{"generate": {**HEADS, "samples": 1}}], ladder={}).model_dump(mode="json")
    (tmp_path / "study.yaml").write_text(json.dumps(content))
    jaxtyping.config.update("jaxtyping_disable", True)
    monkeypatch.setattr(sys, "argv", ["qsim", "study", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")])
    try:
        with suppress(SystemExit):
            cli.main()
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    # one anatomy: correlations without intervals, and the page says so
    assert "One anatomy" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_folders_keep_anatomies_apart(tmp_path):
    """Train and test in folders of their own share no file; one folder in two ways of splitting may."""
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        for subject in range(2):
            labels = np.random.default_rng(subject).integers(0, 4, (12, 12, 12)).astype(np.uint8)
            nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), tmp_path / part / f"{subject}.nii.gz")

    def data(part, split, test_subjects, shared=False):
        path = [str(tmp_path / each) for each in ("train", "test")] if shared else str(tmp_path / part)
        brains = {"kind": "brainweb", "path": path, "labels": "vessel-gm-wm", "test_subjects": test_subjects}
        return {"generate": {**HEADS, "split": split, "phantom": {**BALLS, "phantom": brains}}}

    def shared(trained, judged):
        return quality_models._of_pair(trained, BlockData.model_validate(judged))

    everyone = data("train", "train", 0)
    assert shared(everyone, data("test", "test", 2)) == ""
    assert shared(everyone, data("train", "test", 2)) == "may have been trained on"
    # the same four files, of which the last three are test: one of them is in the folder of the training
    assert shared(everyone, data("", "test", 3, shared=True)) == "may have been trained on"
    assert shared(everyone, data("", "test", 2, shared=True)) == ""
    # files that are no longer there tell nothing
    (tmp_path / "train").rename(tmp_path / "moved")
    assert shared(everyone, data("test", "test", 2)) == "may have been trained on"
