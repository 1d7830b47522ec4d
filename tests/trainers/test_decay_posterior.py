"""Posteriors of decays with Rician noise, from a training to estimates with a covariance."""

import io

import pytest
import torch
from rich.console import Console

import trainers
from qsim.errors import InputError
from qsim.estimators.base import Status
from qsim.information import fisher_information
from qsim.signals import InversionRecovery, SpinEcho, T2Prep
from tests.conftest import DISCS
from trainers.config import TrainConfig
from trainers.fit import fit

TE = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
MODEL = T2Prep(te_prep=TE)
DATA = {
    "seed": 3,
    "samples": 16,
    "patch": [12, 11],
    "phantom": DISCS,
    "tissues": {"kind": "sabidussi2021"},
    "model": {"kind": "t2_prep", "te_prep": list(TE)},
    "noise": {"kind": "rician", "sigma": {"kind": "log_uniform", "low": 0.0065, "high": 0.255}},
    "partial_volume": False,
    "store": "maps",
}
PROTOCOLS = {"least": 4, "most": 8, "first": 0.008, "last": 0.4, "spacing": "log"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = TrainConfig.model_validate(
        {
            "seed": 1,
            "data": {"generate": DATA},
            "task": {"kind": "local_mixture", "protocols": PROTOCOLS, "scene": 100},
            "network": {"kind": "local_mixture", "features": 6, "classes": 3, "steps": 2},
            "iterations": 6,
            "batch": 4,
            "lr": 0.003,
            "precision": "fp32",
        }
    )
    return fit(config, tmp_path_factory.mktemp("runs") / "t2", device="cpu", console=Console(file=io.StringIO()))


def magnitudes(sigma, shape=(24, 20), model=MODEL, seed=2):
    """A and T2 of two tissues that vary by 15 %, and Rician magnitudes."""
    g = torch.Generator().manual_seed(seed)
    t2 = torch.tensor([0.06, 0.11])[(torch.arange(shape[-1]) * 2) // shape[-1]].expand(shape)
    t2 = t2 * (1 + 0.15 * torch.randn(shape, generator=g)).clamp_min(0.5)
    kappa = torch.stack((0.8 + 0.1 * torch.rand(shape, generator=g), t2))
    noise = sigma * torch.randn(2, model.n_images, *shape, generator=g)
    return kappa, torch.hypot(model(kappa) + noise[0], noise[1])


def test_the_likelihood_is_that_of_the_data_or_as_asked(run):
    assert trainers.load(run).rician
    assert trainers.load(run, noise="rician").rician
    assert not trainers.load(run, noise="gaussian").rician
    # T2 of 50 ms at SNR 8: late magnitudes are a floor, which the Gaussian likelihood takes for signal
    kappa = torch.stack((torch.full((24, 20), 0.8), torch.full((24, 20), 0.05)))
    noise = 0.1 * torch.randn(2, 6, 24, 20, generator=torch.Generator().manual_seed(4))
    images = torch.hypot(MODEL(kappa) + noise[0], noise[1])
    t2 = {kind: trainers.load(run, noise=kind)(images, 0.1).kappa[1] for kind in (None, "gaussian", "rician")}
    assert torch.equal(t2[None], t2["rician"])
    assert float(t2["gaussian"].median()) > 1.2 * 0.05
    assert float(t2["rician"].median()) == pytest.approx(0.05, rel=0.08)


def test_rows_and_covariance_at_high_snr_are_those_of_the_bound(run):
    """SNR 400: the neighbours say next to nothing, and the covariance of (A, T2) is the inverse Fisher information."""
    sigma = 0.002
    kappa, images = magnitudes(sigma)
    found = trainers.load(run)(images, sigma)
    assert found.kappa.shape == (2, 24, 20)
    assert found.covariance.shape == (2, 2, 24, 20)
    assert (found.status == int(Status.OK)).all()
    bound = torch.linalg.inv(fisher_information(MODEL, kappa.double(), sigma, coils=1).movedim((0, 1), (2, 3)))
    bound = bound.movedim((2, 3), (0, 1))
    ratio = (found.covariance / bound).flatten(2)
    # at most 1, as the neighbours say a little
    assert ((ratio.median(2).values > 0.93) & (ratio.median(2).values < 1.01)).all()
    torch.testing.assert_close(found.covariance[0, 1], found.covariance[1, 0])
    torch.testing.assert_close(found.variances["noise"], torch.einsum("ii...->i...", found.covariance))
    assert (torch.linalg.eigvalsh(found.covariance.movedim((0, 1), (2, 3))) > 0).all()
    away = (found.kappa - kappa) / torch.einsum("ii...->i...", bound).sqrt()
    # 480 voxels: the RMS has an SD of 3 %
    assert ((away.flatten(1).square().mean(1).sqrt() - 1).abs() < 0.1).all()
    low, high = trainers.load(run).quantiles(images, (0.025, 0.975), sigma)
    half = 1.96 * found.variances["noise"][1].sqrt() / found.kappa[1]
    torch.testing.assert_close((high / low).log() / 2, half, rtol=0.03, atol=0.0)


def test_other_times(run):
    """One that was not trained on, of as many images as nothing in the data has."""
    model = T2Prep(te_prep=(0.012, 0.03, 0.045, 0.07, 0.1, 0.15, 0.2, 0.25, 0.4))
    kappa, images = magnitudes(0.005, model=model)
    found = trainers.load(run, model)(images, 0.005)
    assert float((found.kappa[1] / kappa[1] - 1).abs().median()) < 0.02
    # an echo decays as a preparation does
    again = trainers.load(run, SpinEcho(te=model.te_prep))(images, 0.005)
    assert torch.equal(again.kappa, found.kappa)
    with pytest.raises(InputError, match="was trained on"):
        trainers.load(run, InversionRecovery(ti=TE))


def test_a_negative_magnitude_is_not_computed(run):
    _, images = magnitudes(0.05)
    images[3, 2, 5] = -0.01
    wrong = torch.zeros(24, 20, dtype=torch.bool)
    wrong[2, 5] = True
    found = trainers.load(run)(images, 0.05)
    assert torch.equal(found.status == int(Status.NOT_COMPUTED), wrong)
    assert torch.equal(found.kappa.isnan().any(0), wrong)
    assert torch.equal(found.covariance.isnan().any(0).any(0), wrong)
    # zero is a magnitude
    images[3, 2, 5] = 0.0
    assert (trainers.load(run)(images, 0.05).status != int(Status.NOT_COMPUTED)).all()
    # noise about 0 may be negative
    images[3, 2, 5] = -0.01
    assert (trainers.load(run, noise="gaussian")(images, 0.05).status != int(Status.NOT_COMPUTED)).all()


def test_nothing_can_be_told_of_a_decay(run):
    _, images = magnitudes(0.05)
    estimator = trainers.load(run)
    assert estimator.pools == ()
    for known in ({"B": torch.tensor(1.9)}, {"T2": images[0]}, {"A": torch.tensor(0.8)}):
        with pytest.raises(InputError, match=rf"^known: {next(iter(known))}: .* can be told nothing"):
            estimator(images, 0.05, known=known)
    # nothing is known of an empty mapping
    assert torch.equal(estimator(images, 0.05, known={}).kappa, estimator(images, 0.05).kappa)
