"""Trained networks as estimators."""

import io

import pytest
import torch
from rich.console import Console

import trainers
from generators.sample import make_samples
from qsim.errors import InputError
from qsim.estimators.base import Estimator, Status
from qsim.signals import InversionRecovery, T2Prep
from tests.trainers.test_fit import GENERATE, RESNET, RIM, config
from trainers.fit import fit
from trainers.network_estimator import noise_sd

TI = tuple(GENERATE["model"]["ti"])
TI31 = tuple(0.139 + 0.0266 * i for i in range(31))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A RIM and a ResNet after a few updates."""
    folder = tmp_path_factory.mktemp("runs")
    for name, network in (("rim", RIM), ("resnet", RESNET)):
        cfg = config(network, iterations=12, validation=0.0)
        fit(cfg, folder / name, device="cpu", console=Console(file=io.StringIO()))
    return folder


@pytest.fixture(scope="module")
def sample():
    from generators.config import GeneratorConfig

    return make_samples(GeneratorConfig.model_validate(GENERATE | {"patch": [23, 17]}), [50])


@pytest.mark.parametrize("name", ["rim", "resnet"])
def test_it_is_an_estimator_of_its_targets(runs, sample, name):
    estimator = trainers.load(runs / name)
    assert isinstance(estimator, Estimator)
    assert estimator.name == name
    assert [p.name for p in estimator.parameters] == ["A", "B", "T1"]
    estimate = estimator(sample.images[0], 0.05)
    assert estimate.kappa.shape == (3, 23, 17)
    # loaded twice, the same maps
    assert torch.equal(trainers.load(runs / name / "model.safetensors")(sample.images[0], 0.05).kappa, estimate.kappa)


@pytest.mark.parametrize("name", ["rim", "resnet"])
def test_targets_choose_the_rows(tmp_path, sample, name):
    network = RIM if name == "rim" else RESNET
    cfg = config(network, iterations=2, targets=["T1"], validation=0.0)
    estimator = trainers.load(fit(cfg, tmp_path / "run", device="cpu", console=Console(file=io.StringIO())))
    assert [p.name for p in estimator.parameters] == ["T1"]
    assert estimator(sample.images[0], 0.05).kappa.shape == (1, 23, 17)


@pytest.mark.parametrize("name", ["rim", "resnet"])
def test_a_stack_equals_its_slices(runs, sample, name, monkeypatch):
    """Slice by slice, all at once, and in chunks when memory is short."""
    from trainers import network_estimator

    estimator = trainers.load(runs / name)
    stack = torch.stack([sample.images[0], sample.images[0].flip(-1), sample.images[0] * 0.9], 1)
    sigma = torch.tensor([0.03, 0.05, 0.1]).reshape(3, 1, 1).expand(3, 23, 17)
    whole = estimator(stack, sigma)
    for z in range(3):
        one = estimator(stack[:, z], sigma[z])
        torch.testing.assert_close(whole.kappa[:, z], one.kappa, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(network_estimator, "_VOXELS", 2 * 23 * 17)
    torch.testing.assert_close(estimator(stack, sigma).kappa, whole.kappa, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["rim", "resnet"])
def test_voxels_that_cannot_be_computed(runs, sample, name):
    estimator = trainers.load(runs / name)
    images = sample.images[0].clone()
    images[2, 3, 4] = torch.nan
    images[:, 5, 6] = 0
    mask = torch.ones(23, 17, dtype=torch.bool)
    mask[0] = False
    estimate = estimator(images, 0.05, mask)
    lost = estimate.status == int(Status.NOT_COMPUTED)
    expected = ~mask
    expected[3, 4] = expected[5, 6] = True
    assert torch.equal(lost, expected)
    assert torch.equal(torch.isnan(estimate.kappa).all(0), expected)
    assert torch.equal(torch.isnan(estimate.kappa).any(0), expected)
    # the mask chooses voxels, it does not hide them from their neighbours
    inside = mask & ~expected
    assert torch.equal(estimate.kappa[:, inside], estimator(images, 0.05).kappa[:, inside])
    assert (estimator(images, 0.05, torch.zeros_like(mask)).status == int(Status.NOT_COMPUTED)).all()


@pytest.mark.parametrize("name", ["rim", "resnet"])
def test_a_network_that_answers_no_number_has_not_computed_the_voxel(runs, sample, name):
    estimator = trainers.load(runs / name)
    with torch.no_grad():
        estimator.net.out.bias.fill_(torch.nan)
    assert (estimator(sample.images[0], 0.05).status == int(Status.NOT_COMPUTED)).all()


def test_values_out_of_range_are_marked_not_clipped(runs, sample):
    estimator = trainers.load(runs / "resnet")
    with torch.no_grad():
        estimator.net.out.bias.copy_(torch.tensor([0.0, 5.0, 0.0]))  # B = 2 + 5, its range ends at 3
        estimator.net.out.weight.zero_()
    estimate = estimator(sample.images[0])
    assert (estimate.status == int(Status.AT_BOUND)).all()
    torch.testing.assert_close(estimate.kappa[1], torch.full((23, 17), 7.0), rtol=0.01, atol=0.0)


def test_a_rim_takes_other_times_and_a_resnet_does_not(runs):
    other = InversionRecovery(ti=TI31)
    truth = torch.tensor([0.8, 1.9, 1.2]).reshape(3, 1, 1).expand(3, 12, 12)
    assert trainers.load(runs / "rim", other)(other(truth), 0.05).kappa.shape == (3, 12, 12)
    with pytest.raises(InputError, match="only the protocol it was trained on"):
        trainers.load(runs / "resnet", other)
    # signed images of a network that learned magnitudes
    with pytest.raises(InputError, match="was trained on"):
        trainers.load(runs / "rim", InversionRecovery(ti=TI31, signed=True))
    assert trainers.load(runs / "resnet", InversionRecovery(ti=TI)).model == InversionRecovery(ti=TI)
    with pytest.raises(InputError, match="trained on"):
        trainers.load(runs / "rim", T2Prep(te_prep=(0.01, 0.05)))


def test_wrong_series_are_refused(runs, sample):
    estimator = trainers.load(runs / "rim")
    images = sample.images[0]
    with pytest.raises(InputError, match="holds 4 images"):
        estimator(images[:4], 0.05)
    with pytest.raises(InputError, match="axes"):
        estimator(images[:, 0], 0.05)
    with pytest.raises(InputError, match="known: B"):
        estimator(images, 0.05, known={"B": images[0]})
    with pytest.raises(InputError, match="sigma"):
        estimator(images, 0.0)


def test_units_of_the_scanner(runs, sample):
    """A series in scanner units is refused with the remedy, and the remedy gives the same maps, A in scanner units."""
    images = sample.images[0]
    reference = trainers.load(runs / "rim")(images, 0.05)
    with pytest.raises(InputError, match="images_unit="):
        trainers.load(runs / "rim")(images * 1000, 50.0)
    scaled = trainers.load(runs / "rim", images_unit=1000.0)(images * 1000, 50.0)
    torch.testing.assert_close(scaled.kappa[0] / 1000, reference.kappa[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scaled.kappa[2], reference.kappa[2], rtol=1e-3, atol=1e-3)


def test_no_network_here(runs, tmp_path):
    with pytest.raises(InputError, match="neither a run"):
        trainers.load(tmp_path / "nowhere")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "checkpoint.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="--resume"):
        trainers.load(tmp_path / "half")


@pytest.mark.parametrize(("sigma", "size"), [(0.0065, 48), (0.065, 48), (0.2, 48), (0.065, 18)])
def test_the_noise_is_estimated_from_the_series(sigma, size):
    """Three tissues with 5 % variation and 31 inversion times; also where voxels are hardly ten times as many."""
    g = torch.Generator().manual_seed(1)
    model = InversionRecovery(ti=TI31)
    times = torch.tensor([0.78, 1.4, 3.5])[torch.randint(3, (size, size), generator=g)]
    times = times * (1 + 0.05 * torch.randn(size, size, generator=g))
    images = model(torch.stack((torch.full_like(times, 0.8), torch.full_like(times, 1.9), times)))
    images = images + sigma * torch.randn(images.shape, generator=g)
    everywhere = torch.ones(size, size, dtype=torch.bool)
    # over 20 seeds the SD of the estimate is 1.1 % at size 18 and 0.4 % at 48; at SNR 100 some signal is left in it
    assert noise_sd(images, everywhere, 3) == pytest.approx(sigma, rel=0.04 if size == 18 else 0.03)


def test_the_noise_of_a_short_series_is_not_guessed():
    with pytest.raises(InputError, match="give it"):
        noise_sd(torch.rand(3, 20, 20), torch.ones(20, 20, dtype=torch.bool), 3)
