"""The residual network of posteriors: empirical Bayes untrained, its invariances, from config to estimates."""

import io
import math

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console

import trainers
from qsim.errors import InputError
from qsim.estimators.base import Estimate, Status
from qsim.signals import InversionRecovery, SpinEcho, T2Prep
from tests.conftest import DISCS
from trainers.config import TrainConfig
from trainers.data import Generated, simulate
from trainers.fit import fit
from trainers.networks.mixture.families import likelihood_of
from trainers.networks.mixture.residual import ResidualMixtureNetwork
from trainers.networks.mixture.start import start
from trainers.tasks import supervised

TI = (0.15, 0.22, 0.31, 0.43, 0.55, 0.68, 0.8, 0.93)
MODEL = InversionRecovery(ti=TI)
SMALL = {"kind": "residual_mixture", "features": 6, "dilations": [1, 2]}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def scene(sigma, shape=(1, 14, 12), b=1.93, model=MODEL):
    """Two tissues side by side, and their noisy images (b, n, y, x)."""
    g = generator(1)
    t1 = torch.tensor([0.75, 1.35])[(torch.arange(shape[-1]) * 2) // shape[-1]].expand(shape)
    t1 = t1 * (1 + 0.05 * torch.randn(shape, generator=g))
    kappa = torch.stack((torch.full(shape, 0.8), torch.full(shape, b), t1))
    images = model(kappa).movedim(0, 1)
    return kappa, images + sigma * torch.randn(images.shape, generator=g)


def given(images, sigma, mask=None):
    """What a network is given: the likelihood, and the mask."""
    mask = torch.ones(len(images), *images.shape[2:], dtype=torch.bool) if mask is None else mask
    b = images.new_full((len(images),), 1.93)
    return likelihood_of(MODEL, images, torch.full((len(images), 1, 1), sigma), mask, b=b), mask


def network(disturbed=True):
    """As at the start of a training, or with every weight moved, so that every layer takes part."""
    net = ResidualMixtureNetwork(features=6, dilations=(1, 2)).build(MODEL, MODEL.parameters, generator())
    net.eval().requires_grad_(False)
    g = generator(5)
    for weight in net.parameters() if disturbed else ():
        weight += 0.15 * torch.randn(weight.shape, generator=g)
    return net


@pytest.mark.parametrize("sigma", [0.01, 0.2])
def test_untrained_it_is_empirical_bayes(sigma):
    """Both normals lie at the mean; logit 1.5 gives the one of its SD a share of .82, the other is e^.7 as wide."""
    _, images = scene(sigma)
    likelihood, mask = given(images, sigma)
    begun = start(likelihood, mask)
    share, mean, variance = network(disturbed=False)(likelihood, mask)[:, 0].unbind(1)
    torch.testing.assert_close(mean, begun.x[:, None].expand_as(mean))
    torch.testing.assert_close(variance[:, 0].sqrt(), begun.s)
    torch.testing.assert_close(variance[:, 1].sqrt(), begun.s * math.exp(0.7))
    torch.testing.assert_close(share[:, 0], torch.full_like(begun.s, 1 / (1 + math.exp(-1.5))))
    torch.testing.assert_close(share.sum(1), torch.ones_like(begun.s))


def test_a_sample_is_the_same_alone_and_in_a_batch():
    net = network()
    _, images = scene(0.05, shape=(3, 11, 9))
    whole = net(*given(images, 0.05))
    assert whole.shape == (3, 1, 3, 2, 11, 9)
    for i in range(3):
        torch.testing.assert_close(net(*given(images[i : i + 1], 0.05))[0], whole[i], rtol=2e-4, atol=2e-4)


def test_what_lies_outside_the_mask_counts_for_nothing():
    net = network()
    _, images = scene(0.05)
    mask = torch.ones(1, 14, 12, dtype=torch.bool)
    mask[:, :5] = False
    other = images.clone()
    other[:, :, :5] = 3.0
    one, two = (net(*given(each, 0.05, mask))[..., 5:, :] for each in (images, other))
    assert torch.equal(one, two)


def test_the_unit_of_the_images_changes_nothing():
    net = network()
    _, images = scene(0.05)
    one, two = (net(*given(k * images, k * 0.05)) for k in (1024, 1))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_neighbours_count_as_far_as_the_dilations_reach():
    """Stem 3 x 3, blocks of dilation 1 and 2 each with a plain convolution: 1 + (1 + 1) + (2 + 1) = 6 voxels; the means
    of voxels that look alike add 2. Brightness is over the RMS of the image, and the histogram is of all: both are
    held still by a change that moves two voxels' series about.
    """
    net = network()
    likelihood, mask = given(scene(0.05, shape=(1, 3, 40))[1], 0.05)
    before = net(likelihood, mask)
    series = likelihood.series.clone()
    series[..., 1, [2, 4]] = series[..., 1, [4, 2]]
    after = net(given(series, 0.05)[0], mask)
    changed = ((before - after).abs() > 1e-4 * before.abs().clamp_min(1)).any(1).any(1).any(1)[0].any(0)
    assert changed[2:5].all()
    assert changed[7]
    assert not changed[4 + 6 + 2 + 1 :].any()


DATA = {
    "seed": 3,
    "samples": 24,
    "patch": [12, 11],
    "phantom": DISCS,
    "tissues": {"kind": "sabidussi2021"},
    "model": {"kind": "inversion_recovery", "ti": list(TI)},
    "noise": {"kind": "gaussian", "sigma": {"kind": "log_uniform", "low": 0.0065, "high": 0.255}},
    "partial_volume": False,
    "store": "maps",
}


def config(data=DATA, task=None, net=None):
    return TrainConfig.model_validate(
        {
            "seed": 1,
            "data": {"generate": data},
            "task": {"kind": "local_mixture"} | (task or {}),
            "network": SMALL | (net or {}),
            "iterations": 4,
            "batch": 4,
            "lr": 0.003,
            "precision": "fp32",
        }
    )


def test_training_lowers_the_loss():
    cfg = config()
    data = cfg.data.generate
    task = supervised(cfg.mapping_task, cfg.mapping_network, data.signal_model, (), data.noise.kind)
    net = cfg.mapping_network.build(task.model, task.parameters, generator(4))
    batch = simulate(Generated(data).take(range(12)), data, 1, task.variety)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        loss = task.loss(net, batch)["total"]
        optimiser.zero_grad()
        loss.backward()
        # nothing but the head learns first: the gains of the blocks are 0
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    assert all(float(block.gain.detach().abs()) > 1e-3 for block in net.blocks)


def test_from_a_config_to_an_estimate(tmp_path):
    """Trained, loaded for other times, and an estimate at low noise near the truth."""
    path = fit(config(), tmp_path / "run", device="cpu", console=Console(file=io.StringIO()))
    other = InversionRecovery(ti=(0.1, 0.2, 0.5, 0.9, 1.5, 2.5))
    found = trainers.load(path, other)
    kappa, images = scene(0.005, shape=(1, 20, 18), model=other)
    estimate = found(images[0], 0.005)
    assert isinstance(estimate, Estimate)
    assert estimate.kappa.shape == (3, 20, 18)
    assert estimate.covariance.shape == (3, 3, 20, 18)
    assert (estimate.status == int(Status.OK)).all()
    assert float((estimate.kappa / kappa[:, 0] - 1).abs().flatten(1).median(1).values.max()) < 0.03
    low, high = found.quantiles(images[0], (0.025, 0.975), 0.005)
    assert (low < high).all()
    assert float(((low < kappa[2, 0]) & (kappa[2, 0] < high)).float().mean()) > 0.7
    with pytest.raises(InputError, match="contrast: a residual_mixture has none, a local_mixture has"):
        trainers.load(path, contrast=2.0)
    with pytest.raises(InputError, match="was trained on"):
        trainers.load(path, T2Prep(te_prep=(0.01, 0.05, 0.1)))


@pytest.mark.parametrize("net", [{"dilations": []}, {"dilations": [0]}, {"features": 0}, {"contrast": 2.0}])
def test_bad_networks(net):
    with pytest.raises(ValidationError, match=next(iter(net))):
        config(net=net)


def test_it_takes_decays_and_refuses_what_has_no_family():
    model = SpinEcho(te=(0.01, 0.03, 0.06, 0.1))
    net = ResidualMixtureNetwork(**{k: v for k, v in SMALL.items() if k != "dilations"}).build(
        model, model.parameters, generator()
    )
    images = model(torch.full((2, 1, 5, 4), 0.09)).movedim(0, 1)
    mask = torch.ones(1, 5, 4, dtype=torch.bool)
    found = net(likelihood_of(model, images, torch.full((1, 1, 1), 0.001), mask, rician=True), mask)
    # in a field of one T2 the start may lie on the grid, whose steps are log(1250) / 127
    torch.testing.assert_close(found[0, 0, 1], torch.full((2, 5, 4), math.log(0.09)), rtol=0.0, atol=0.0285)
    short = InversionRecovery(ti=TI, tr=2.0)
    with pytest.raises(InputError, match=r"network\.kind: a mixture network maps"):
        ResidualMixtureNetwork().build(short, short.parameters, generator())
