"""Bloch models through training and the noise study: every network and every study takes them."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

from generators import GeneratorConfig, make_samples
from qsim.errors import InputError
from qsim.information import crb
from qsim.kspace.noise import sigma_of
from trainers.config import TrainConfig
from trainers.data import Generated, simulate
from trainers.fit import fit
from trainers.studies.evaluate import run_study
from trainers.studies.study_plan import StudyConfig, make_plan


def data(seed, encoding="centre", **changes):
    readout = {"kind": "spoiled_gradient_echo", "flip_angle": 0.2, "tr": 0.005}
    readout |= {"acquisition": {"lines": 16, "order": "centric", "encoding": encoding}}
    return {
        "seed": seed,
        "samples": 8,
        "patch": [16, 16],
        "phantom": {"kind": "mni"},
        "tissues": {"kind": "sabidussi2021"},
        "partial_volume": False,
        "model": {
            "kind": "bloch",
            "preparation": {"kind": "t2_prep", "te": [0.01, 0.04, 0.16], "refocusing": "MLEV4"},
            "readout": readout,
        },
        "fields": [{"kind": "b0", "region": "brain"}, {"kind": "b1", "region": "brain"}],
        "targets": ["A", "T2"],
        "noise": {"kind": "rician", "sigma": {"kind": "constant", "value": 0.005}},
        **changes,
    }


NETWORKS = {"rim": {"features": 8, "steps": 2}, "resnet": {"stem": 8, "widths": [8, 8]}}


def training(kind, encoding="centre"):
    return TrainConfig.model_validate(
        {
            "seed": 1,
            "data": {"generate": data(3, encoding)},
            "task": {"kind": kind},
            "targets": ["A", "T2"],
            "network": {"kind": kind}
            | ({"features": 8, "steps": 2} if kind == "rim" else {"stem": 8, "widths": [8, 8]}),
            "iterations": 2,
            "batch": 2,
            "lr": 0.001,
        }
    )


@pytest.mark.parametrize(("kind", "encoding"), [("rim", "centre"), ("resnet", "exact")])
def test_networks_train_and_a_study_holds_them(kind, encoding, tmp_path):
    fit(training(kind, encoding), tmp_path / "run", device="cpu")
    config = StudyConfig.model_validate(
        {
            "seed": 5,
            "kind": "noise",
            "data": data(9, encoding, split="test"),
            "estimators": [{"model": str(tmp_path / "run")}],
            "snr": [30.0],
            "draws": 2,
            "repeats": 2,
            "crop": [16, 16],
        }
    )
    report = run_study(config, tmp_path / "study").read_text(encoding="utf-8")
    assert "T1, DELTA_B0, REL_B1 known in all of them" in report
    with (tmp_path / "study" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    by_network = {row["parameter"] for row in rows if row["estimator"] == kind and row["metric"] == "rmse_median"}
    assert by_network == {"A", "T2"}

    # the bound is that of the targets, fields and T1 given; where voxels mix, of the contrast at the centre of k-space
    case = make_plan(config).cases[0]
    model = config.data.signal_model.pointwise
    bound = crb(model, case.kappa[:, case.mask], sigma_of(30.0), known=("T1", "DELTA_B0", "REL_B1"), coils=1)
    gm = case.labels[case.mask] == case.tissues.index("gm") + 1
    expected = np.median(bound.cv[2][gm])
    told = [
        float(row["value"])
        for row in rows
        if (row["estimator"], row["tissue"], row["parameter"], row["metric"], row["draw"])
        == ("bound-free", "gm", "T2", "bound_median", "0")
    ]
    assert told == pytest.approx([expected], rel=1e-5)


def test_a_rim_needs_voxels_that_do_not_mix(tmp_path):
    with pytest.raises(InputError, match=r"task.kind: rim evaluates the model voxel by voxel"):
        fit(training("rim", "exact"), tmp_path / "run", device="cpu")


def test_the_bound_of_a_bloch_model_is_that_of_its_derivatives():
    """Fisher information of a Bloch model by forward mode against finite differences of its signal."""
    config = StudyConfig.model_validate(
        {"seed": 5, "kind": "noise", "data": data(9, split="test"), "crop": [16, 16]}
        | {"estimators": [{"model": "none"}]}
    )
    model = config.data.signal_model
    kappa = torch.tensor([0.8, 1.2, 0.09, 25.0, 0.93], dtype=torch.float64)
    slopes = []
    for q in (0, 2):
        step = torch.zeros(5, dtype=torch.float64)
        step[q] = 1e-5 * kappa[q]
        slopes.append((model(kappa + step) - model(kappa - step)) / (2 * step[q]))
    j = torch.stack(slopes)
    expected = torch.linalg.inv(j @ j.T / 0.01**2).diagonal().sqrt()
    bound = crb(model, kappa, 0.01, known=("T1", "DELTA_B0", "REL_B1"))
    np.testing.assert_allclose(bound.sd[[0, 2]], expected, rtol=1e-6)
    assert float(bound.sd[1]) == 0


@pytest.mark.parametrize("encoding", ["centre", "exact"])
def test_maps_simulated_while_training_give_the_images_of_the_generator(encoding):
    """A background of any maps must not blur into the tissue."""
    noise = {"kind": "rician", "sigma": {"kind": "constant", "value": 1e-7}}
    config = GeneratorConfig.model_validate(data(3, encoding, store="maps", noise=noise))
    images = GeneratorConfig.model_validate(data(3, encoding, noise=noise))
    batch = Generated(config).take([0, 1])
    simulated = simulate(replace(batch, positions=torch.arange(2)), config, seed=1)
    np.testing.assert_allclose(simulated.series, make_samples(images, [0, 1]).images, atol=2e-6)
