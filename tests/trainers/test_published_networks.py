"""The networks of sabidussi2021 as the text of the paper has them, and as the package of its authors has them."""

import io
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console
from scipy import stats

from generators.reading import read_config, read_yaml
from qsim.errors import InputError
from qsim.signals import InversionRecovery, T2Prep
from trainers.config import TrainConfig
from trainers.data import Batch
from trainers.fit import fit
from trainers.infer import load_estimator
from trainers.networks import ResNetNetwork, RIMNetwork
from trainers.networks.rim import sum_of_squares_gradient
from trainers.tasks import ResNetTask, RIMTask, supervised

FOLDER = Path(__file__).parents[2] / "configs" / "sabidussi2021" / "networks"
TI = (0.15, 0.3, 0.5, 0.7, 0.9)
TE = (0.01, 0.04, 0.16)
MODEL = InversionRecovery(ti=TI)
# of the authors' package; small
RIM = RIMNetwork(
    features=4, steps=2, update="modulus", gradient="sum", start="seconds", activation="relu", weights="torch"
)
RESNET = ResNetNetwork(stem=4, widths=(4, 4, 6, 6), norm="images", skip="norm", update="maps")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def recovery(kappa, ti):
    a, b, t1 = kappa.abs()
    return (a * (1 - b * torch.exp(-ti[:, None] / t1))).abs()


def decay(kappa, te):
    a, t2 = kappa.abs()
    return a * torch.exp(-te[:, None] / t2)


@pytest.mark.parametrize("case", ["recovery", "decay"])
def test_the_gradient_is_that_of_the_sum_of_squares_written_out(case):
    """Against torch.autograd, moduli inside, what is no number set to 0; maps below 0, of 0, at the null."""
    signal, model = (recovery, MODEL) if case == "recovery" else (decay, T2Prep(te_prep=TE))
    times = torch.tensor(model.times, dtype=torch.float64)
    g = generator(3)
    kappa = 0.3 + 2 * torch.rand(len(model.parameters), 40, generator=g, dtype=torch.float64)
    kappa[:, 10:20] *= torch.where(torch.rand(kappa[:, 10:20].shape, generator=g) < 0.5, -1.0, 1.0)
    kappa[:, 0] = 0.0
    kappa[0, 1] = 0.0
    kappa[-1, 2] = 0.0
    if case == "recovery":
        # exp(-TI / T1) is 1, so f = A (1 - 1) is exactly 0 in every image
        kappa[:, 3] = torch.tensor([0.7, 1.0, 1e30])
    images = torch.randn(len(times), 40, generator=g, dtype=torch.float64)
    kappa.requires_grad_()
    (slope,) = torch.autograd.grad((signal(kappa, times) - images).square().sum(), kappa)
    expected = torch.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)
    seen = sum_of_squares_gradient(model, kappa.detach(), images)
    torch.testing.assert_close(seen, expected, rtol=1e-10, atol=1e-12)
    assert seen[:, 0].abs().max() == 0
    assert seen[-1, 2] == 0
    if case == "recovery":
        assert seen[:, 3].abs().max() == 0


def test_the_gradient_of_one_image_by_hand():
    """A 1, B 2, T1 1 s, TI 2 ln 2: E = 1/4, f = 1/2, S = .3: 2 x .2 x (1 - B E, -A E, -A B TI E / T1^2)."""
    ti = 2 * math.log(2)
    kappa = torch.tensor([[1.0], [2.0], [1.0]], dtype=torch.float64)
    seen = sum_of_squares_gradient(InversionRecovery(ti=(ti,)), kappa, torch.tensor([[0.3]], dtype=torch.float64))
    torch.testing.assert_close(seen[:, 0], torch.tensor([0.2, -0.1, -0.2 * ti], dtype=torch.float64))
    # every image counts: twice the series, twice the gradient
    twice = sum_of_squares_gradient(
        InversionRecovery(ti=(ti, ti)), kappa, torch.tensor([[0.3], [0.3]], dtype=torch.float64)
    )
    torch.testing.assert_close(twice, 2 * seen)


def test_the_update_is_the_modulus_of_the_sum():
    """The answer is held at (-2, -5, .5): A |.5 - 2|, then |1.5 - 2|; B |2 - 5|, then |3 - 5|; T1 1.5, then 2 s."""
    net = RIM.build(MODEL, MODEL.parameters, generator())
    with torch.no_grad():
        net.out.weight.zero_()
        net.out.bias.copy_(torch.tensor([-2.0, -5.0, 0.5]))
    images = torch.full((1, len(TI), 3, 4), 0.5)
    kappa = net.coordinates.decode(net(images, None)[0])
    torch.testing.assert_close(kappa[0, :, 0, 0], torch.tensor([1.5, 3.0, 1.5]))
    torch.testing.assert_close(kappa[1, :, 2, 3], torch.tensor([0.5, 2.0, 2.0]))


def test_both_start_at_what_they_say():
    """The package: maximum of the images, 2, 1 s, also for T2. The same maps from `fixed` in its units, but T2 .1 s."""
    images = torch.rand(2, 3, 4, 5, generator=generator(2))
    for start, t2 in (("seconds", 1.0), ("fixed", 0.1)):
        for update in ("modulus", "additive", "log"):
            spec = RIMNetwork(features=4, start=start, update=update, gradient="sum")
            net = spec.build(model := T2Prep(te_prep=TE), model.parameters, generator())
            kappa = net.coordinates.decode(net.start(images))
            torch.testing.assert_close(kappa[:, 0], images.amax(1))
            torch.testing.assert_close(kappa[:, 1], torch.full((2, 4, 5), t2))
            net = spec.build(model := InversionRecovery(ti=TI[:3]), model.parameters, generator())
            kappa = net.coordinates.decode(net.start(images))
            torch.testing.assert_close(kappa[:, 0], images.amax(1))
            torch.testing.assert_close(kappa[:, 1], torch.full((2, 4, 5), 2.0))
            torch.testing.assert_close(kappa[:, 2], torch.ones(2, 4, 5))


@pytest.mark.parametrize(("model", "q"), [(MODEL, 3), (T2Prep(te_prep=TE), 2)])
def test_weights_of_the_rim(model, q):
    """3 x 3 from 2 Q to 36, two GRUs of three gates from input and state, two 3 x 3, 1 x 1 to Q: 41 475 for Q = 3."""
    f = 36
    expected = (9 * 2 * q * f + f) + 2 * 2 * 3 * (f * f + f) + 2 * (9 * f * f + f) + (f * q + q)
    if q == 3:
        assert expected == 41_475
    for whose in ("paper", "authors"):
        name = f"rim_{whose}_t1_31_full" if q == 3 else f"rim_{whose}_t2_full"
        spec = read_config(FOLDER / f"{name}.yaml", TrainConfig).mapping_network
        net = spec.build(model, model.parameters, generator())
        assert sum(w.numel() for w in net.parameters()) == expected


def test_weights_of_the_residual_network_of_the_package():
    """Six stages of two blocks: 3 x 3 convolutions with bias and normalisation, 1 x 1 and normalisation between."""
    spec = read_config(FOLDER / "resnet_authors_t1_31_full.yaml", TrainConfig).mapping_network
    stages = (40, 80, 160, 160, 80, 40)
    expected = 31 * 40 + 40 + 2 * 40
    before = 40
    for c in stages:
        expected += (9 * before * c + c + 2 * c) + 3 * (9 * c * c + c + 2 * c)
        if c != before:
            expected += before * c + c + 2 * c
        before = c
    expected += 40 * 3 + 3
    net = spec.build(InversionRecovery(ti=tuple(0.1 + 0.02 * i for i in range(31))), MODEL.parameters, generator())
    assert sum(w.numel() for w in net.parameters()) == expected
    assert len(net.blocks) == 12


def test_the_start_of_torch():
    """Uniform in +-1 / sqrt(fan-in), by Kolmogorov and Smirnov, as torch's own layers; the last layer like the rest."""
    spec = RIMNetwork(update="modulus", gradient="sum", start="seconds", weights="torch")
    net = spec.build(MODEL, MODEL.parameters, generator(5))
    own = torch.nn.GRUCell(36, 36)
    bound = 36**-0.5
    for weight in (net.first.of_state.weight, net.second.of_input.weight, *own.parameters()):
        # torch's own layer is held to the same bound; its few numbers come from the global stream and are not tested
        assert weight.abs().max() <= bound
    for weight, fan_in in (
        (net.first.of_input.weight, 36),
        (net.middle[0].weight, 9 * 36),
        (net.into.weight, 9 * 6),
        (net.out.weight, 36),
        (net.second.of_state.bias, 36),
    ):
        scaled = (weight.detach().flatten() * fan_in**0.5).numpy()
        assert stats.kstest(scaled, stats.uniform(-1, 2).cdf).pvalue > 1e-3
    again = spec.build(MODEL, MODEL.parameters, generator(5))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def batch_of(y=6, x=7):
    g = generator(1)
    kappa = torch.stack((0.5 + torch.rand(2, y, x, generator=g), torch.full((2, y, x), 1.9), torch.ones(2, y, x)), 1)
    labels = torch.full((2, y, x), 2, dtype=torch.uint8)
    labels[:, :2] = 0
    kappa[:, :, :2] = 0.0
    images = (MODEL(kappa.clamp_min(0.1).movedim(1, 0)) * (labels > 0)).movedim(0, 1)
    images = images + 0.05 * torch.randn(images.shape, generator=g)
    purity = (labels > 0).float()
    return Batch(images, kappa, labels, purity, torch.tensor([0.05, 0.05]), torch.tensor([0, 1]))


@pytest.mark.parametrize("kind", ["rim", "resnet"])
def test_the_loss_of_the_package_is_a_plain_mean(kind):
    """torch.nn.MSELoss over all steps, rows and voxels, background included, of the maps in SI units."""
    batch = batch_of()
    spec, task = (RIM, RIMTask) if kind == "rim" else (RESNET, ResNetTask)
    learning = supervised(task(weighting="equal", voxels="all"), spec, MODEL, ())
    net = spec.build(MODEL, MODEL.parameters, generator())
    answer = net(batch.series, None)
    expected = torch.nn.functional.mse_loss(answer, batch.kappa[:, None].expand_as(answer))
    loss = learning.loss(net, batch)["total"]
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(torch.isfinite(w.grad).all() for w in net.parameters())
    # the validation is told of tissue only, as for every network
    assert learning.metrics(net, batch)["count"] == (batch.labels > 0).sum()


@pytest.mark.parametrize("spec", [RIMNetwork(), RIMNetwork(update="log"), ResNetNetwork()])
def test_a_logarithm_of_the_background_is_refused(spec):
    task = RIMTask if spec.kind == "rim" else ResNetTask
    with pytest.raises(InputError, match=r"^task\.voxels: .*take tissue"):
        supervised(task(voxels="all"), spec, MODEL, ())


def test_an_image_normalises_itself_in_the_package_only():
    images = batch_of().series * torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1)
    theirs = RESNET.build(MODEL, MODEL.parameters, generator())
    paper = ResNetNetwork(stem=4, widths=(4, 4, 6, 6), norm="batch", update="additive")
    ours = paper.build(MODEL, MODEL.parameters, generator())
    for net, same in ((theirs, False), (ours, True)):
        net.train()(images)
        net.eval()
        alone = torch.cat([net(images[i : i + 1]) for i in range(2)])
        assert torch.allclose(net(images), alone, rtol=1e-4, atol=1e-5) is same
    # no running statistics; what the first normalisation passes on has mean 0 and variance 1 in each channel
    assert dict(theirs.named_buffers()) == {}
    x = theirs.stem[0](images[:1])
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(theirs.stem[1](x), (x - mean) / (variance + 1e-5).sqrt(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(theirs.train()(images), theirs.eval()(images))


def test_the_posterior_needs_its_own_gradient():
    with pytest.raises(ValueError, match=r"^gradient: update posterior"):
        RIMNetwork(update="posterior", gradient="sum")


PAIRS = [(kind, whose) for kind in ("rim", "resnet") for whose in ("paper", "authors")]


def config_of(kind, whose, which, size):
    return read_yaml(FOLDER / f"{kind}_{whose}_{which}_{size}.yaml")


@pytest.mark.parametrize(("kind", "whose"), PAIRS)
def test_configs_differ_in_times_and_length_only(kind, whose):
    for which in ("t1_23", "t1_25", "t1_31", "t2"):
        small, full = (config_of(kind, whose, which, size) for size in ("small", "full"))
        for config in (small, full):
            held_out = round(config["validation"] * config["data"]["generate"]["samples"])
            assert config["data"]["generate"]["samples"] - held_out == config["iterations"] * config["batch"]
        assert (full["iterations"], full["batch"], full["lr"]) == (3000, 24, 1e-3)
        for name in ("iterations", "validate_every", "checkpoint_every"):
            small[name] = full[name]
        small["data"]["generate"]["samples"] = full["data"]["generate"]["samples"]
        assert small == full
    recoveries = [config_of(kind, whose, f"t1_{n}", "full") for n in (23, 25, 31)]
    assert [len(c["data"]["generate"]["model"].pop("ti")) for c in recoveries] == [23, 25, 31]
    assert recoveries[0] == recoveries[1] == recoveries[2]


@pytest.mark.parametrize(("kind", "whose"), PAIRS)
@pytest.mark.parametrize("which", ["t1_23", "t2"])
def test_a_training_from_end_to_end(kind, whose, which, tmp_path):
    """Two updates on tiny patches of a disc; the network that comes out maps a series of the same times."""
    config = config_of(kind, whose, which, "small")
    data = config["data"]["generate"]
    disc = {"shape": "disc", "tissue": "gm", "radius_mm": 4.0}
    data |= {
        "samples": 5,
        "patch": [10, 10],
        "phantom": {"kind": "geometry", "size": [16, 16], "spacing_mm": [1.0, 1.0], "shapes": [disc]},
    }
    config |= {"iterations": 2, "batch": 2, "validation": 0.2, "precision": "fp32"}
    config["network"] |= {"features": 4, "steps": 2} if kind == "rim" else {"stem": 4, "widths": [4, 4, 6, 6]}
    training = TrainConfig.model_validate(config)
    file = fit(training, tmp_path / "run", device="cpu", console=Console(file=io.StringIO()))
    estimator = load_estimator(file)
    images = 0.2 + 0.5 * torch.rand(estimator.model.n_images, 9, 8, generator=generator(4))
    estimate = estimator(images)
    assert [p.name for p in estimator.parameters] == (["A", "B", "T1"] if which != "t2" else ["A", "T2"])
    assert torch.isfinite(estimate.kappa).all()
    if whose == "authors":
        # in SI units: what the network answers is the map
        with torch.inference_mode():
            answer = estimator.net(images[None], None, True)[0, -1]
        torch.testing.assert_close(estimate.kappa, answer)
    if (kind, whose) == ("rim", "authors"):
        assert (estimate.kappa >= 0).all()
