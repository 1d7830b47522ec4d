"""`qsim study` of kind `self_supervised` from the command line: whole, interrupted, on two workers, and refused."""

import csv
import json
import shutil
import sys
from dataclasses import replace
from threading import Thread

import jaxtyping
import pytest
import torch

from qsim.errors import InputError
from tests.trainers.test_cohort import generate
from tests.trainers.test_relaxation_task import circles, config, train
from trainers import cli
from trainers.checkpoint import MODEL, load_tensors
from trainers.studies import self_supervised
from trainers.studies.self_supervised_check import check_study
from trainers.studies.self_supervised_config import SelfSupervisedConfig

UNET = {"kind": "unet", "features": 2, "levels": 2, "up": "bilinear"}
LIVERS = generate(model={"kind": "spin_lock", "tsl": [0.0, 0.01, 0.03, 0.05]})
PLAIN = {**UNET, "scale": "none", "dropout": 0.0}
TASK = {"kind": "self_supervised", "augment": None}
LEVEL = {"kind": "added_noise", "snr": 4}


def study(**changes):
    return {
        "kind": "self_supervised",
        "seed": 3,
        "cohort": {"generate": LIVERS, "folds": 3, "validation": 1},
        "use_folds": [0],
        "seeds": 2,
        "training": {"iterations": 4, "batch": 3, "lr": 0.01, "warmup": 1, "precision": "fp32"},
        "networks": [
            {"name": "bayes", "task": TASK, "network": UNET, "samples": 2, "ensemble": True, "perturbed": True},
            {"name": "plain", "task": TASK, "network": {**UNET, "scale": "none", "dropout": 0.0}},
        ],
        "alone": ["two-point", "population-constant", "least-squares"],
        "perturbations": {"noise": [{"kind": "added_noise", "snr": 4}]},
    } | changes


def call(*arguments):
    """Exit code of the command, with signatures unchecked as for users."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["qsim", *map(str, arguments)])
            cli.main()
    except SystemExit as left:
        return int(left.code or 0)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    return 0


def run(folder, mapping, capsys, *options):
    file = folder.with_suffix(".yaml")
    # JSON is YAML without anchors
    file.write_text(json.dumps(mapping))
    code = call("study", file, "--out", folder, *options)
    return code, capsys.readouterr().err


def numbers(folder):
    """Lines of results.csv but the times of computing."""
    with (folder / "results.csv").open(newline="") as file:
        return [line for line in csv.reader(file) if not any(cell.startswith("cpu_seconds") for cell in line)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "whole"
    file = folder.with_suffix(".yaml")
    file.write_text(json.dumps(study()))
    assert call("study", file, "--out", folder) == 0
    return folder


def test_what_a_study_leaves(finished):
    assert (finished / "report.html").is_file()
    assert (finished / "provenance.json").is_file()
    assert len(list((finished / "blocks").glob("*.npz"))) == 1 + 2 * 2 + 1
    assert len(list((finished / "networks").glob("*/model.safetensors"))) == 4
    text = (finished / "results.csv").read_text()
    for method in ("bayes", "bayes, ensemble", "plain", "two-point", "population-constant", "least-squares"):
        for shown in ("all images",) if method in ("population-constant", "least-squares") else ("0, 30 ms",):
            assert f"{method}; {shown}; plain" in text
    assert "bayes; 0, 30 ms; calibrated" in text
    assert "plain; 0, 30 ms; calibrated" not in text
    assert "bayes; 0, 30 ms; snr 4" in text


@pytest.fixture
def no_page(monkeypatch):
    """The figures take most of a small study's time, and no number comes from them."""
    given = self_supervised.cohort_page

    def bare(results, **words):
        return given(replace(results, maps={}, curves={}), **words)

    monkeypatch.setattr(self_supervised, "cohort_page", bare)


@pytest.mark.usefixtures("no_page")
def test_a_study_goes_on_to_the_same_numbers(finished, tmp_path, capsys):
    """A block and the network behind it are lost."""
    folder = tmp_path / "broken"
    shutil.copytree(finished, folder)
    (folder / "results.csv").unlink()
    (folder / "blocks" / "fold0_seed1_net00.npz").unlink()
    shutil.rmtree(folder / "networks" / "fold0_seed1_net00")
    # the other network had only begun
    for name in ("model", "checkpoint"):
        (folder / "networks" / "fold0_seed0_net01" / f"{name}.safetensors").unlink()
    (folder / "blocks" / "fold0_seed0_net01.npz").unlink()
    code, error = run(folder, study(), capsys)
    assert code == 0, error
    assert numbers(folder) == numbers(finished)


@pytest.mark.usefixtures("no_page")
@pytest.mark.slow  # 15 s of CPU: a second study from its beginning
def test_two_workers_give_the_same_numbers(finished, tmp_path, capsys):
    code, error = run(tmp_path / "two", study(), capsys, "--workers", "2")
    assert code == 0, error
    assert numbers(tmp_path / "two") == numbers(finished)


def test_trainings_side_by_side_are_those_alone(tmp_path):
    """Dropout of one thread must not draw from the numbers of another."""
    cohort = circles()
    configs = [config(network={"dropout": 0.25}, iterations=15, seed=seed) for seed in (1, 2)]
    for cfg in configs:
        train(tmp_path / f"alone{cfg.seed}", cfg, cohort)
    threads = [Thread(target=train, args=(tmp_path / f"beside{cfg.seed}", cfg, cohort)) for cfg in configs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for cfg in configs:
        alone, beside = (load_tensors(tmp_path / f"{name}{cfg.seed}" / MODEL)[0] for name in ("alone", "beside"))
        assert all(torch.equal(alone[name], beside[name]) for name in alone)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"alone": ["empirical-bayes"]}, r"^alone\[0\]: empirical-bayes needs the noise SD"),
        ({"training": {"keep": "best"}}, r"^cohort\.validation: training\.patience and keep"),
        ({"training": {"patience": 2}}, r"^cohort\.validation: training\.patience and keep"),
        (
            {"networks": [{"name": "a", "task": TASK | {"supervision": "truth"}, "network": PLAIN}]},
            r"\.supervision: tr",
        ),
        (
            {"networks": [{"name": "a", "task": TASK | {"supervision": "fit"}, "network": UNET}]},
            r"^networks\[0\]\.netw",
        ),
    ],
)
def test_what_measured_series_do_not_admit(changes, said):
    cohort = replace(circles(), sigma=None, truth={})
    plain = {"alone": ["rician"], "networks": [], "cohort": {"store": "/nowhere", "folds": 3, "validation": 0}}
    plain |= {"perturbations": {}}
    given = study(**plain, calibrate="fit", seeds=1)
    check_study(SelfSupervisedConfig.model_validate(given), cohort)
    if "networks" in changes:
        given["cohort"] = given["cohort"] | {"validation": 1}
    with pytest.raises(InputError, match=said):
        check_study(SelfSupervisedConfig.model_validate(given | changes), cohort)


def network(**changes):
    return [{"name": "a", "task": TASK, "network": UNET, "perturbed": True} | changes]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"alone": ["three-point"]}, "alone[0]: got 'three-point'"),
        ({"use_folds": [3]}, "use_folds[0]: got 3"),
        ({"use_folds": [0, 0]}, "use_folds[1]: got 0"),
        ({"networks": network(network={**UNET, "dropout": 0.0}, samples=5)}, "samples: a network without dropout"),
        ({"networks": network() * 2}, "networks[1].name: a is given twice"),
        (
            {"networks": [*network(task=TASK | {"rows": ["T1RHO"]}), *network(task=TASK | {"rows": ["T1RHO"]})]},
            "networks[1].name: a is given twice",
        ),
        ({"networks": network(name="two-point")}, "networks[0].name: two-point is a method"),
        ({"cohort": {"generate": LIVERS, "folds": 3, "validation": 0}}, "cohort.validation: intervals"),
        ({"cohort": {"generate": LIVERS, "folds": 7, "validation": 1}}, "folds: got 7 groups for 6 subjects"),
        ({"networks": [], "alone": []}, "networks: empty"),
        ({"limits": [0.2, 0.005]}, "limits: must rise"),
        ({"networks": network(perturbed=False)}, "perturbations: no network is perturbed"),
        ({"training": {"iterations": 4, "warmup": 4}}, "training.warmup: must be below training.iterations, 4"),
        (
            {"networks": network(task=TASK | {"inputs": [[0, 1], [0, 1]]})},
            "networks[0].task.inputs[1]: [0, 1] is given",
        ),
        ({"networks": network(task=TASK | {"rows": ["T2"]})}, "networks[0].task.rows: T2 is no contrast"),
        ({"networks": network(contrast="T2")}, "networks[0].contrast: T2 is none of the cohort, which has T1RHO"),
        ({"networks": network(name="a|b")}, "networks[0].name: got 'a|b'; leave out"),
        (
            {"networks": [*network(ensemble=True), *network(name="a, ensemble")]},
            "networks[1].name: a, ensemble is what the networks of networks[0] are called together",
        ),
        ({"alone": ["two-point", "two-point"]}, "alone[1]: two-point is given twice"),
        ({"training": {"batch": 1}}, "training.batch: 1 on 1 device"),
        ({"perturbations": {"noise": [LEVEL, LEVEL]}}, "perturbations.noise[1]: SNR 4 is noise[0] too"),
        ({"perturbations": {"noise": [LEVEL | {"snr": 1e6}]}}, "perturbations.noise[0].snr: got 1e+06"),
        (
            {"perturbations": {"square": {"kind": "bright_square", "side": 65}}},
            "perturbations.square: has a place in no slice",
        ),
        (
            {"perturbations": {"lesion": {"kind": "unseen_lesion", "diameter_mm": 20, "time": {"T2": 0.2}}}},
            "perturbations.lesion.time: is given for T2, the series has T1RHO",
        ),
    ],
)
def test_what_is_refused_in_one_line(changes, said, tmp_path, capsys):
    code, error = run(tmp_path / "refused", study(**changes), capsys)
    assert code == 2, error
    assert said in error
    assert error.strip().count("\n") == 0
    # a folder that was begun would refuse the right config
    assert not (tmp_path / "refused").exists()
