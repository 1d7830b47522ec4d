"""The cascade: what a stage learns and leaves alone, resuming to the bit, teachers side by side, one file."""

import json

import numpy as np
import pytest
import torch
from rich.console import Console

from qsim.errors import InputError
from tests.trainers.test_quality_views import GENERATE, SOURCES, mapping
from trainers.checkpoint import load_tensors
from trainers.infer import load_estimator
from trainers.quality import stage as stage_module
from trainers.quality.calibrate import Measured, summary
from trainers.quality.cascade import train_cascade, waves
from trainers.quality.config import DecoupledConfig
from trainers.quality.loading import load_segmenter
from trainers.quality.losses import cross_entropy
from trainers.quality.network import Answer, DecoupledNet
from trainers.quality.recipes import Recipe, asked
from trainers.quality.shipping import ship
from trainers.quality.stage import learning_rate, plateau_of
from trainers.quality.views import Pairs

QUIET = Console(quiet=True)


def tiny(recipe, **changes):
    stages = {"task": {"iterations": 3}, "student": {"iterations": 3}}
    stages["heads" if recipe == "qsim" else "teacher"] = {"iterations": 3}
    data = {
        "train": [{"generate": {**GENERATE, "samples": 3}}],
        "validation": [{"generate": {**GENERATE, "samples": 3, "split": "test"}}],
    }
    given = mapping(
        recipe=recipe, stages=stages, data=data, sources=SOURCES[:2], validation_views=2, checkpoint_every=2,
        log_every=1,
        network={"features": [4, 4, 4], "heads": "context" if recipe == "qsim" else "plain"}, precision="fp32",
    )  # fmt: skip
    return DecoupledConfig(**{**given, **changes})


@pytest.fixture(scope="module")
def qsim_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("qsim") / "run"
    train_cascade(tiny("qsim"), out, console=QUIET)
    return out


def weights(run, stage, part):
    tensors, _ = load_tensors(run / "stages" / stage / "model.safetensors")
    return {key: each for key, each in tensors.items() if key.startswith(f"net/{part}.")}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_heads_learn_while_the_segmentation_is_frozen(qsim_run):
    assert equal(weights(qsim_run, "heads", "segmentation"), weights(qsim_run, "student", "segmentation"))
    assert not equal(weights(qsim_run, "student", "segmentation"), weights(qsim_run, "task", "segmentation"))
    assert not equal(weights(qsim_run, "heads", "heads"), weights(qsim_run, "student", "heads"))


def test_the_file_segments_and_says_where_it_comes_from(qsim_run):
    segmenter = load_segmenter(qsim_run)
    assert segmenter.sources == ("task", "noise", "spike")
    assert segmenter.target == ("gm",)
    assert segmenter.spacing_mm == (1.0, 1.0, 1.0)
    answer = segmenter(torch.rand(18, 20, 22, generator=torch.Generator().manual_seed(1)))
    assert answer.probabilities.shape == (2, 18, 20, 22)
    assert torch.allclose(answer.probabilities.sum(0), torch.ones(18, 20, 22))
    assert set(segmenter.calibration["clean"]) == {"task", "noise", "spike"}
    # nine images are too few for an error bar, and that is said
    assert "20" in segmenter.calibration["volume"]["missing"]
    _, header = load_tensors(qsim_run / "model.safetensors")
    assert header["stage"] == "heads"
    assert str(qsim_run) not in json.dumps(header)
    with pytest.raises(InputError, match="qsim segment"):
        load_estimator(qsim_run)


def test_a_shipped_network_answers_as_its_run_and_knows_no_machine(qsim_run, tmp_path):
    made_by = "configs/shaw2021/train_gm_quality.yaml"
    with pytest.raises(InputError, match=r"lower-case words"):
        ship(qsim_run, "GM", tmp_path, made_by=made_by)
    with pytest.raises(InputError, match="is not calibrated; ship the run itself"):
        ship(qsim_run / "stages" / "heads", "gm-tiny", tmp_path, made_by=made_by)
    assert not list(tmp_path.iterdir())
    file, card = ship(qsim_run, "gm-tiny", tmp_path, made_by=made_by, results="Dice 0.9.", limits="- No tumours.")
    with pytest.raises(InputError, match=r"gm-tiny\.safetensors: exists already"):
        ship(qsim_run, "gm-tiny", tmp_path, made_by=made_by)
    shipped, run = load_segmenter(file), load_segmenter(qsim_run)
    image = torch.rand(18, 20, 22, generator=torch.Generator().manual_seed(1))
    assert torch.equal(shipped(image).logits, run(image).logits)
    assert (shipped.name, shipped.calibration) == ("gm-tiny", run.calibration)
    tensors, header = load_tensors(file)
    assert str(tmp_path.parent) not in json.dumps(header)
    text = card.read_text()
    for said in ("Segments gm", "noise, spike", "Dice 0.9.", "- No tumours.", "--model gm-tiny", made_by):
        assert said in text
    assert f"{sum(each.numel() for each in tensors.values()):,}".replace(",", " ") in text


def test_a_stopped_stage_goes_on_to_the_bit(qsim_run, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    stops = iter((3, 6))  # in the first stage after its checkpoint, in the third before any

    class Interrupting(stage_module.Bar):
        count, at = 0, next(stops)

        def update(self, state):
            cls = type(self)
            cls.count += 1
            if cls.count == cls.at:
                cls.count, cls.at = 0, next(stops, -1)
                raise Stopped
            super().update(state)

    monkeypatch.setattr(stage_module, "Bar", Interrupting)
    for resume in (False, True):
        with pytest.raises(Stopped):
            train_cascade(tiny("qsim"), tmp_path / "run", resume=resume, console=QUIET)
    train_cascade(tiny("qsim"), tmp_path / "run", resume=True, console=QUIET)
    for stage in ("task", "student", "heads"):
        for part in ("segmentation", "heads"):
            assert equal(weights(tmp_path / "run", stage, part), weights(qsim_run, stage, part)), (stage, part)
        lines = (tmp_path / "run" / "stages" / stage / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["iteration"] for line in lines] == [1, 2, 3]
    ours, theirs = (load_tensors(run / "model.safetensors")[1]["calibration"] for run in (tmp_path / "run", qsim_run))
    assert ours == theirs


def test_teachers_side_by_side_are_those_one_by_one(tmp_path):
    for workers in (1, 2):
        train_cascade(tiny("paper"), tmp_path / str(workers), workers=workers, console=QUIET)
    for stage in ("task", "teacher-noise", "teacher-spike", "student"):
        for part in ("segmentation", "heads"):
            assert equal(weights(tmp_path / "1", stage, part), weights(tmp_path / "2", stage, part)), stage
    assert load_segmenter(tmp_path / "1" / "stages" / "teacher-spike").sources == ("task", "spike")


def test_the_order_of_the_stages():
    assert waves(tiny("qsim")) == [("task",), ("student",), ("heads",)]
    assert waves(tiny("paper")) == [("task",), ("teacher-noise", "teacher-spike"), ("student",)]


def test_a_folder_of_another_config_is_refused(qsim_run):
    with pytest.raises(InputError, match="another config"):
        train_cascade(tiny("qsim", seed=2), qsim_run, resume=True, console=QUIET)
    with pytest.raises(InputError):
        train_cascade(tiny("qsim"), qsim_run, console=QUIET)


def test_absent_anatomies_leave_no_folder(tmp_path):
    absent = {**GENERATE, "phantom": {"kind": "brainweb", "path": str(tmp_path / "nowhere")}}
    data = {"train": [{"generate": absent}], "validation": [{"generate": {**GENERATE, "split": "test"}}]}
    with pytest.raises(InputError, match=r"data.train\[0\].generate: phantom.path: .*nowhere does not exist"):
        train_cascade(tiny("qsim", data=data), tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()
    large = {**GENERATE, "patch": [300, 16, 16]}
    data = {"train": [{"generate": GENERATE}, {"generate": large}], "validation": [{"generate": GENERATE}]}
    with pytest.raises(InputError, match=r"data.train\[1\].generate: patch: 300 x 16 x 16 is larger than the anatomy"):
        train_cascade(tiny("qsim", data=data), tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()


class Told(DecoupledNet):
    """A network whose answer is given: logits by whether the image is bright, variances as they are set."""

    def __init__(self, clean, spoiled):
        torch.nn.Module.__init__(self)
        self.variances = {False: clean, True: spoiled}

    def segment(self, images):
        sure = torch.where(images.mean() > 0.5, 0.5, 4.0)
        return images, torch.cat([-images * 0 - sure, images * 0 + sure], 1)

    def uncertainty(self, features, logits, images):
        told = self.variances[bool(images.mean() > 0.5)]
        return told.log().reshape(1, -1, 1, 1, 1).expand(len(images), -1, *images.shape[2:])

    def forward(self, images):
        features, logits = self.segment(images)
        said = self.uncertainty(features, logits, images)
        return Answer(logits, said, said.new_zeros(said.shape[:2]))


def pairs_of(present):
    # the clean view is dark and surely segmented, the spoiled one bright and unsure; all of it is grey matter
    clean, spoiled = torch.full((1, 1, 4, 4, 4), 0.1), torch.full((1, 1, 4, 4, 4), 0.9)
    return Pairs(
        clean, spoiled, torch.ones(1, 4, 4, 4, dtype=torch.int64), torch.tensor([present]), torch.ones(1, 2), torch.zeros(1, dtype=torch.int64)  # noqa: E501
    )  # fmt: skip


def test_loss_of_the_heads_is_least_where_the_source_says_what_it_cost():
    """Of a constant pair the least loss is at sigma_t^2 = 2 CE clean - eps and the present source at the excess."""
    recipe = Recipe("heads", tiny("qsim", heads={"together": 0.0, "silence": 1.0, "carried": 1.0, "image_level": 1.0}))
    unsure, sure = torch.tensor([[-0.5, 0.5]]), torch.tensor([[-4.0, 4.0]])
    ce = [float(cross_entropy(each.reshape(1, 2, 1), torch.ones(1, 1, dtype=torch.int64))) for each in (sure, unsure)]
    epsilon = 1e-4
    task = max(2 * ce[0] - epsilon, 1e-4)
    excess = 2 * (ce[1] - ce[0])
    pairs = pairs_of((False, True))

    def loss(noise, spike, own_task=task):
        net = Told(torch.tensor([own_task, 1e-4, 1e-4]), torch.tensor([own_task, noise, spike]))
        return float(recipe.loss(net, pairs, {}, epsilon))

    best = loss(1e-4, excess)
    for noise, spike in ((1e-4, 0.7 * excess), (1e-4, 1.4 * excess), (0.3 * excess, 0.7 * excess), (excess, 1e-4)):
        assert loss(noise, spike) > best + 1e-3, (noise, spike)


def test_two_sources_are_asked_for_their_sum():
    mean, excess = torch.tensor([[0.2, 0.3, 0.1]]), torch.tensor([0.5])
    t, m = asked(mean, torch.tensor([[True, True, False]]), excess)
    assert torch.allclose(t, torch.tensor([[0.5, 0.0, 0.0, 0.0]]))
    assert torch.allclose(m, torch.tensor([[0.5, 0.0, 0.0, 0.1]]))


def test_learning_rates():
    stage = tiny(
        "qsim",
        stages={name: {"iterations": 1000, "lr": 0.01, "schedule": "cosine"} for name in ("task", "student", "heads")},
    ).stages.task
    assert learning_rate(stage, 0) == pytest.approx(0.01 / 20)
    assert learning_rate(stage, 500) == pytest.approx(0.005)
    assert learning_rate(stage, 999) < 1e-7
    config = tiny("paper")
    full = plateau_of(config, config.stages.task.model_copy(update={"iterations": 30000}))
    assert (full.window, full.patience) == (100, 500)
    # the noise of a few batches is no plateau
    short = plateau_of(config, config.stages.task.model_copy(update={"iterations": 350}))
    assert (short.window, short.patience) == (50, 200)


def test_usual_variance_is_that_of_clean_images():
    rng = np.random.default_rng(1)
    found = [
        Measured(anatomy, kind, 1000.0, 1000.0 + rng.normal(), float(rng.uniform(0.1, 0.5)), (0.1, 0.02 * (1 + anatomy % 3) + kind, 0.5), 0.06)  # noqa: E501
        for anatomy in range(12) for kind in range(3)
    ]  # fmt: skip
    said = summary(tiny("qsim"), found)
    usual = 0.02 * (1 + np.arange(12) % 3)
    assert said["clean"]["noise"] == pytest.approx({"mean": usual.mean(), "sd": usual.std(ddof=1)})
    assert said["clean"]["spike"] == pytest.approx({"mean": 0.5, "sd": 0.0})
    assert (said["images"], said["anatomies"]) == (36, 12)
    assert said["volume"]["anatomies"] == 12
