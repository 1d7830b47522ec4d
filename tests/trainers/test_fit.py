"""The training loop: it learns, it stops with a reason, and a killed run ends as an unbroken one."""

import io
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from generators.reading import read_config
from generators.sample import make_samples
from qsim.errors import InputError
from trainers import fit as loop
from trainers.checkpoint import MODEL, STATE
from trainers.config import TrainConfig
from trainers.fit import DivergedError, fit, learning_rate
from trainers.infer import load_estimator

GENERATE = {
    "seed": 3,
    "samples": 40,
    "patch": [10, 11],
    "phantom": {"kind": "mni"},
    "tissues": {"kind": "sabidussi2021"},
    "model": {"kind": "inversion_recovery", "ti": [0.15, 0.3, 0.5, 0.7, 0.94]},
    "noise": {"kind": "gaussian", "sigma": {"kind": "log_uniform", "low": 0.0065, "high": 0.1}},
    "partial_volume": False,
}
RIM = {"kind": "rim", "features": 6, "steps": 2}
RESNET = {"kind": "resnet", "stem": 6, "widths": [6, 8]}


def mapping(network=RIM, **changes):
    return {
        "seed": 1,
        "data": {"generate": GENERATE},
        "task": {"kind": network["kind"]},
        "network": network,
        "iterations": 30,
        "batch": 6,
        "lr": 0.01,
        "checkpoint_every": 10,
        "validate_every": 15,
        "log_every": 5,
        "precision": "fp32",
    } | changes


def config(network=RIM, **changes) -> TrainConfig:
    return TrainConfig.model_validate(mapping(network, **changes))


def quiet() -> Console:
    return Console(file=io.StringIO())


def train(cfg: TrainConfig, out: Path, **options) -> Path:
    return fit(cfg, out, device="cpu", console=quiet(), **options)


def same(one: Path, two: Path) -> bool:
    a, b = load_file(one), load_file(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("network", [RIM, RESNET, RESNET | {"norm": "batch"}])
def test_a_stopped_run_resumes_to_the_same_bits(network, tmp_path):
    """Stopped after the checkpoint of iteration 10 by an error in the loop, as a crash would."""
    whole = train(config(network), tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(cfg, iteration):
        if iteration == 13:
            raise Stop
        return learning_rate(cfg, iteration)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "learning_rate", stop)
        with pytest.raises(Stop):
            train(config(network), tmp_path / "broken")
    assert not (tmp_path / "broken" / MODEL).exists()
    resumed = train(config(network), tmp_path / "broken", resume=True)
    assert same(whole, resumed)
    logs = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]
        for path in (tmp_path / "whole" / "metrics.jsonl", tmp_path / "broken" / "metrics.jsonl")
    ]
    assert logs[0] == logs[1]


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    """kill -9 of the command as soon as its first checkpoint is there, in the precision this machine picks."""
    keys = mapping(iterations=70, precision="auto", data={"generate": GENERATE, "workers": 0})
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(keys))
    script = (
        "import sys, torch; from pathlib import Path; torch.set_num_threads(1)\n"
        "from generators.reading import read_config; from trainers.config import TrainConfig\n"
        "from trainers.fit import fit\n"
        "fit(read_config(Path(sys.argv[1]), TrainConfig), Path(sys.argv[2]), device='cpu')\n"
    )
    out = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", script, str(file), str(out)], cwd=Path(__file__).parents[2])
    try:
        limit = time.monotonic() + 120
        while not (out / STATE).is_file() and process.poll() is None and time.monotonic() < limit:
            pass
    finally:
        process.kill()
        process.wait()
    assert (out / STATE).is_file()
    assert not (out / MODEL).exists(), "the run was over before it could be killed"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cfg = read_config(file, TrainConfig)
        resumed = train(cfg, out, resume=True)
        whole = train(cfg, tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    assert same(whole, resumed)
    assert list(out.glob("*.partial")) == []


@pytest.mark.parametrize(
    "network", [RIM | {"features": 16, "steps": 3}, {"kind": "resnet", "stem": 24, "widths": [24]}]
)
def test_a_network_overfits_one_patch(network, tmp_path):
    """One patch of three tissues, one noise: what is left is a fifth of the spread that a constant would leave."""
    one = GENERATE | {"samples": 1, "patch": [9, 9], "seed": 1}
    cfg = config(
        network,
        data={"generate": one},
        iterations=150,
        batch=1,
        validation=0.0,
        lr=0.01,
        schedule="cosine",
        log_every=150,
        checkpoint_every=150,
    )
    path = train(cfg, tmp_path / "run")
    sample = make_samples(cfg.data.generate, [0])
    estimate = load_estimator(path)(sample.images[0], float(sample.sigma[0]))
    inside = sample.labels[0] > 0
    truth = sample.kappa[0, 2][inside].log()
    error = estimate.kappa[2][inside].log() - truth
    assert truth.std().item() > 0.3
    assert error.square().mean().sqrt().item() < 0.2 * truth.std().item()


def test_validation_is_the_error_of_the_coordinates(tmp_path):
    """rmse_T1 of the log is the root mean square of log(estimate / truth) over the last samples."""
    path = train(config(), tmp_path / "run")
    logged = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["validation"]["rmse_T1"]
    estimator, total, count = load_estimator(path), 0.0, 0
    samples = make_samples(config().data.generate, [38, 39])
    for images, kappa, labels, sigma in zip(samples.images, samples.kappa, samples.labels, samples.sigma, strict=True):
        inside = labels > 0
        log_ratio = torch.log(estimator(images, float(sigma)).kappa[2] / kappa[2])[inside].double()
        total, count = total + log_ratio.square().sum().item(), count + int(inside.sum())
    assert logged == pytest.approx(math.sqrt(total / count), rel=1e-4)


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="--resume"):
        train(config(), tmp_path / "run")
    with pytest.raises(InputError, match="not a run"):
        train(config(), tmp_path / "run", resume=True)


def test_resume_with_another_config_is_refused(tmp_path):
    train(config(iterations=2), tmp_path / "run")
    with pytest.raises(InputError, match="lr"):
        train(config(iterations=2, lr=0.5), tmp_path / "run", resume=True)


def test_resume_of_a_finished_run_changes_nothing(tmp_path):
    path = train(config(iterations=2), tmp_path / "run")
    before = path.read_bytes()
    assert train(config(iterations=2), tmp_path / "run", resume=True) == path
    assert path.read_bytes() == before


def test_a_kill_between_the_last_two_files_loses_nothing(tmp_path, monkeypatch):
    whole = train(config(iterations=4), tmp_path / "whole")
    written = []

    class Killed(BaseException):
        pass

    def once(path, *rest):
        if written:
            raise Killed
        written.append(path.name)
        save(path, *rest)

    save = loop.save_tensors
    monkeypatch.setattr(loop, "save_tensors", once)
    with pytest.raises(Killed):
        train(config(iterations=4), tmp_path / "killed")
    monkeypatch.undo()
    assert same(whole, train(config(iterations=4), tmp_path / "killed", resume=True))


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    with pytest.raises(DivergedError, match=r"iteration \d+ the loss is"):
        train(config(RIM | {"update": "additive", "gradient": "per_n"}, lr=1e18, clip=None), tmp_path / "run")
    assert not (tmp_path / "run" / MODEL).exists()


def test_unknown_targets_are_refused(tmp_path):
    with pytest.raises(InputError, match="targets: T2"):
        train(config(targets=["T2"]), tmp_path / "run")


def test_a_missing_store_is_refused(tmp_path):
    with pytest.raises(InputError, match="nothing"):
        train(config(data={"store": str(tmp_path / "nothing.zarr")}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {}}, "give one of store"),
        ({"task": {"kind": "resnet"}}, "network.kind is rim"),
        ({"network": RIM | {"feature": 3}}, "network.feature"),
        ({"iterations": 0}, "iterations"),
        ({"lr": float("nan")}, "lr"),
        ({"task": {"kind": "rimm"}}, "task.kind"),
    ],
)
def test_mistakes_in_configs_are_named(changes, message, tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(mapping(**changes)))
    with pytest.raises(InputError, match=message):
        read_config(file, TrainConfig)


def test_learning_rate():
    cfg = config(schedule="cosine", warmup=4, lr=1.0, iterations=24)
    rates = [learning_rate(cfg, i) for i in range(24)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == 1.0
    assert rates[14] == pytest.approx(0.5)
    assert rates[23] < 0.01
    assert learning_rate(config(lr=1.0), 29) == 1.0
