"""The network of local mixtures: its closed forms against integrals, its start against brute force, its invariances."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from safetensors.torch import load_file
from scipy import integrate, optimize, stats

import trainers
from generators.config import GeneratorConfig
from generators.sample import make_samples
from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.estimators import build_estimator
from qsim.estimators.base import Estimator, Status
from qsim.signals import InversionRecovery
from trainers import fit as loop
from trainers.config import TrainConfig
from trainers.data import Generated, simulate
from trainers.fit import fit, learning_rate
from trainers.networks.mixture.families import Recovery, likelihood_of
from trainers.networks.mixture.local import LocalMixtureNetwork
from trainers.networks.mixture.parts import box
from trainers.networks.mixture.posterior import posterior
from trainers.networks.mixture.start import start
from trainers.protocols import Protocols
from trainers.tasks import supervised
from trainers.variety import Variety

TI = (0.15, 0.22, 0.31, 0.43, 0.55, 0.68, 0.8, 0.93)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture_of(b=2, m=3, y=2, x=3):
    """Log-weights, means, variances, observed and noise of a few voxels, all different."""
    g = generator(1)
    weight = torch.randn(b, m, y, x, generator=g).double()
    mean = 0.6 * torch.randn(b, m, y, x, generator=g).double()
    variance = 0.01 + 0.3 * torch.rand(b, m, y, x, generator=g).double()
    observed = torch.randn(b, y, x, generator=g).double()
    noise = 0.02 + 0.2 * torch.rand(b, y, x, generator=g).double()
    return weight, mean, variance, observed, noise


def scene(sigma, seed=0, shape=(1, 20, 18), b=1.93, ti=TI):
    """Three tissues side by side: maps (3, b, y, x), and noisy images (b, n, y, x)."""
    g = generator(seed)
    t1 = torch.tensor([0.75, 1.35, 3.2])[(torch.arange(shape[-1]) * 3) // shape[-1]].expand(shape)
    t1 = t1 * (1 + 0.05 * torch.randn(shape, generator=g))
    a = 0.8 * (1 + 0.05 * torch.randn(shape, generator=g))
    kappa = torch.stack((a, torch.full(shape, b), t1))
    images = InversionRecovery(ti=ti)(kappa).movedim(0, 1)
    return kappa, images + sigma * torch.randn(images.shape, generator=g)


def told(images, sigma, b=1.93, ti=TI):
    """Arguments of the network, in the precision of the images."""
    n = len(images)
    times = images.new_tensor(ti).expand(n, -1)
    counted = torch.ones_like(times, dtype=torch.bool)
    mask = torch.ones(n, *images.shape[2:], dtype=torch.bool)
    return images, images.new_full((n, 1, 1), sigma), images.new_full((n,), b), times, counted, mask


def like(images, sigma, b, times, counted, mask):
    """The likelihood of the arguments above, and the mask: what a network is given."""
    return likelihood_of(InversionRecovery(ti=TI), images, sigma, mask, times=times, counted=counted, b=b), mask


def network(**spec):
    spec = {"features": 6, "classes": 3, "steps": 2} | spec
    model = InversionRecovery(ti=TI)
    return LocalMixtureNetwork(**spec).build(model, model.parameters, generator()).eval().requires_grad_(False)


def test_the_posterior_is_prior_times_likelihood():
    """Mean, variance and density against integrals over log T1."""
    weight, mean, variance, observed, noise = mixture_of()
    found = posterior(weight, mean, variance, observed, noise)
    share = torch.softmax(weight, 1)
    for v in [(0, 0, 0), (1, 1, 2)]:
        row = (v[0], slice(None), *v[1:])
        w, mu, s = share[row].numpy(), mean[row].numpy(), variance[row].sqrt().numpy()
        centre, d = float(observed[v]), float(noise[v]) ** 0.5

        def joint(u, w=w, mu=mu, s=s, centre=centre, d=d):
            return float((w * stats.norm.pdf(u, mu, s)).sum() * stats.norm.pdf(centre, u, d))

        def moment(k, low=-6.0, high=6.0, joint=joint):
            return integrate.quad(lambda u: u**k * joint(u), low, high, limit=400, epsabs=1e-13, epsrel=1e-11)[0]

        total = moment(0)
        expected = moment(1) / total
        assert float(found.centre[v]) == pytest.approx(expected, abs=1e-8)
        assert float(found.spread[v]) == pytest.approx(moment(2) / total - expected**2, rel=1e-7)
        # a share of 1e-8 is added to every class, and log(2 pi) / 2 left out
        density = -np.log(joint(0.3) / total) - np.log(2 * np.pi) / 2
        assert float(found.surprise(torch.full_like(observed, 0.3))[v]) == pytest.approx(density, rel=1e-5, abs=1e-6)
        for level in (0.025, 0.5, 0.9):
            end = optimize.brentq(lambda q: moment(0, high=q) / total - level, -5, 5, xtol=1e-9)  # noqa: B023
            assert float(found.quantile(level)[v]) == pytest.approx(end, abs=2e-6)


def test_a_class_that_the_data_contradict_loses_its_share():
    """Prior all but certain of 0 at SD .05, data at 1 +- .1, a rare class that allows it: the data win."""
    one = torch.ones(1, 1, 1).double()
    weight = torch.tensor([3.0, 0.0]).double().reshape(1, 2, 1, 1)
    variance = torch.tensor([0.05**2, 0.5**2]).double().reshape(1, 2, 1, 1)
    found = posterior(weight, torch.zeros(1, 2, 1, 1).double(), variance, one, 0.01 * one)
    assert float(found.share[0, 0]) < 1e-10
    assert float(found.centre) == pytest.approx(0.25 / 0.26, rel=1e-6)


@pytest.mark.parametrize("signed", [False, True])
def test_score_and_information_of_a_voxel(signed):
    """Score: slope of the profile likelihood by differences; information: that of (A, u) with A taken out."""
    model = InversionRecovery(ti=TI, signed=signed)
    kappa, _ = scene(0.0, shape=(1, 3, 4))
    kappa = kappa.double()
    kappa[1] = 1.93
    images = model(kappa).movedim(0, 1)
    images = images + 0.02 * torch.randn(images.shape, generator=generator(3)).double()
    arguments = told(images, 0.03)
    like = Recovery(images, arguments[3], arguments[4], arguments[1], b=arguments[2], signed=signed)
    u = (kappa[2] * 1.1).log()

    def fitted(u):
        d = model(torch.stack((torch.ones_like(u), kappa[1], u.exp()))).movedim(0, 1)
        a = (images * d).sum(1) / d.square().sum(1)
        return a, -(images - a[:, None] * d).square().sum(1) / (2 * 0.03**2)

    here = like.local(u)
    torch.testing.assert_close(here.amplitude, fitted(u)[0])
    step = 1e-5
    slope = (fitted(u + step)[1] - fitted(u - step)[1]) / (2 * step)
    torch.testing.assert_close(here.score, slope, rtol=1e-6, atol=1e-5)
    for v in [(0, 0, 0), (0, 2, 3)]:

        def signal(x, v=v):
            row = torch.stack((x[0], kappa[1][v], x[1].exp()))
            return model(row.reshape(3, 1))[:, 0]

        at = torch.stack((here.amplitude[v], u[v]))
        jacobian = torch.autograd.functional.jacobian(signal, at) / 0.03
        information = jacobian.T @ jacobian
        expected = 1 / torch.linalg.inv(information)[1, 1]
        torch.testing.assert_close(here.information[v], expected, rtol=1e-8, atol=0.0)


def test_how_time_and_amplitude_follow_b():
    """The likeliest u and A of a series without noise, B told wrong by +-1e-4, against the slopes."""
    kappa, _ = scene(0.0, shape=(1, 2, 3))
    kappa = kappa.double()
    kappa[1] = 1.93
    model = InversionRecovery(ti=TI)
    images = model(kappa).movedim(0, 1)
    arguments = told(images, 0.03)

    def at_depth(b):
        depth = torch.full((1,), b, dtype=torch.float64)
        return Recovery(images, arguments[3], arguments[4], arguments[1], b=depth)

    def likeliest(b):
        u, one = kappa[2].log(), at_depth(b)
        for _ in range(40):
            here = one.local(u)
            u = u + here.score / here.information
        return u, one.local(u).amplitude

    up, down = likeliest(1.93 + 1e-4), likeliest(1.93 - 1e-4)
    slopes = at_depth(1.93).slopes(kappa[2].log(), kappa[0])
    torch.testing.assert_close(slopes.u_by_b, (up[0] - down[0]) / 2e-4, rtol=1e-4, atol=1e-6)
    by_b = slopes.amplitude_by_b + slopes.amplitude_by_u * slopes.u_by_b
    torch.testing.assert_close(by_b, (up[1] - down[1]) / 2e-4, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.004, 0.03, 0.15])
def test_the_start_is_empirical_bayes(sigma):
    """Against the posterior on a grid four times as fine, under a histogram from plain EM in numpy."""
    _, images = scene(sigma, shape=(1, 30, 30))
    found = start(*like(*told(images, sigma)))
    y = images[0].reshape(len(TI), -1).double().numpy() / sigma
    u = np.linspace(np.log(0.08), np.log(6.5), 509)
    rows = np.abs(1 - 1.93 * np.exp(-np.array(TI) / np.exp(u)[:, None]))
    fit = np.maximum(rows / np.linalg.norm(rows, axis=1, keepdims=True) @ y, 0)
    log_likelihood = fit**2 / 2 - (fit**2 / 2).max(0)
    likelihood = np.exp(log_likelihood)
    # every fourth value carries the histogram, as in the grid of the network
    p = np.full(128, 1 / 128)
    for _ in range(48):
        p = p * (likelihood[::4] / (p @ likelihood[::4])).mean(1)
    fine = np.interp(u, u[::4], p)
    weight = (fine / fine.sum() * 0.99 + 0.01 / len(u))[:, None] * likelihood
    weight = weight / weight.sum(0)
    mean = u @ weight
    sd = np.sqrt(np.maximum(u**2 @ weight - mean**2, 0))
    away = (found.x.numpy().reshape(-1) - mean) / sd
    if sigma == 0.15:
        # the same histogram up to the further steps of the faster EM
        assert np.sqrt(np.mean(away**2)) < 0.3
        assert np.median(found.s.numpy().reshape(-1) / sd) == pytest.approx(1, abs=0.15)
    else:
        # the data decide: the fine grid's maximum and its width
        likeliest = u[log_likelihood.argmax(0)]
        width = found.d.numpy().reshape(-1)
        assert np.median(np.abs(found.u.numpy().reshape(-1) - likeliest) / width) < (1.5 if sigma < 0.01 else 0.25)
        assert np.sqrt(np.mean((found.x.numpy().reshape(-1) - mean) ** 2)) < (0.004 if sigma < 0.01 else 0.02)


def test_a_sample_is_the_same_alone_and_in_a_batch():
    net = network()
    _, images = scene(0.05, shape=(3, 11, 9))
    arguments = told(images, 0.05)
    whole = net(*like(*arguments))
    for i in range(3):
        torch.testing.assert_close(net(*like(*(t[i : i + 1] for t in arguments)))[0], whole[i], rtol=2e-4, atol=2e-4)


def test_times_that_do_not_count_change_nothing():
    net = network()
    _, images = scene(0.05, shape=(1, 9, 8))
    images, sigma, b, times, counted, mask = told(images, 0.05)
    padded = torch.cat((images, torch.full((1, 3, 9, 8), 7.0)), 1)
    longer = torch.cat((times, torch.full((1, 3), 0.5)), 1)
    which = torch.cat((counted, torch.zeros(1, 3, dtype=torch.bool)), 1)
    expected = net(*like(images, sigma, b, times, counted, mask))
    torch.testing.assert_close(net(*like(padded, sigma, b, longer, which, mask)), expected, rtol=2e-4, atol=2e-4)


def test_the_unit_of_the_images_changes_nothing():
    net = network()
    _, images = scene(0.05, shape=(1, 9, 8))
    images, sigma, *rest = told(images, 0.05)
    one, two = (net(*like(k * images, k * sigma, *rest)) for k in (1024, 1))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_what_lies_outside_the_mask_counts_for_nothing():
    net = network()
    _, images = scene(0.05, shape=(1, 12, 10))
    images, sigma, b, times, counted, mask = told(images, 0.05)
    mask[:, :5] = False
    other = images.clone()
    other[:, :, :5] = 3.0
    one, two = (net(*like(each, sigma, b, times, counted, mask))[..., 5:, :] for each in (images, other))
    assert torch.equal(one, two)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 7), (2, 5, 1), (1, 13, 6)])
def test_any_size_any_number_of_times(shape):
    ti = (0.11, 0.35, 0.36, 0.9, 2.4)
    _, images = scene(0.03, shape=shape, ti=ti)
    found = network()(*like(*told(images, 0.03, ti=ti)))
    assert found.shape == (shape[0], 2, 3, 6, *shape[1:])
    torch.testing.assert_close(found[:, :, 0].sum(2), torch.ones(shape[0], 2, *shape[1:]))
    assert (found[:, :, 2] > 0).all()


def test_where_the_noise_is_low_the_likelihood_decides():
    """At SNR 1000 the answer of an untrained network is the likeliest T1, within a fifth of its SD."""
    _, images = scene(0.0008)
    arguments = told(images, 0.0008)
    _, mean, variance = network()(*like(*arguments))[:, -1].unbind(1)
    likelihood, mask = like(*arguments)
    u = start(likelihood, mask).u
    for _ in range(20):
        here = likelihood.local(u)
        u = u + (here.score / here.information).clamp(-0.02, 0.02)
    # the class that holds the share has the mean; all of them agree here
    away = (mean[:, 0] - u) * here.information.sqrt()
    assert float(away.abs().median()) < 0.2
    assert float((variance[:, 0] * here.information).median()) == pytest.approx(1, abs=0.05)


def test_contrast_widens_the_last_prior_only_where_it_is_noisy():
    net = network()
    _, noisy = scene(0.2)
    _, clear = scene(0.005)

    def spread(images, sigma, contrast):
        return net(*like(*told(images, sigma)), contrast=contrast)[:, -1, 2, 0]

    assert (spread(noisy, 0.2, 3.0) > 1.1 * spread(noisy, 0.2, 1.0)).float().mean() > 0.9
    torch.testing.assert_close(spread(clear, 0.005, 3.0), spread(clear, 0.005, 1.0), rtol=0.02, atol=0.0)


def test_box_against_the_sum():
    maps = torch.rand(1, 2, 6, 5, generator=generator(2))
    found = box(maps, 1)
    assert float(found[0, 1, 0, 0]) == pytest.approx(float(maps[0, 1, :2, :2].sum()), rel=1e-5)
    assert float(found[0, 0, 3, 2]) == pytest.approx(float(maps[0, 0, 2:5, 1:4].sum()), rel=1e-5)


DATA = {
    "seed": 3,
    "samples": 40,
    "patch": [16, 15],
    "phantom": {"kind": "mni"},
    "tissues": {"kind": "sabidussi2021"},
    "model": {"kind": "inversion_recovery", "ti": list(TI)},
    "noise": {"kind": "gaussian", "sigma": {"kind": "log_uniform", "low": 0.0065, "high": 0.255}},
    "partial_volume": False,
    "store": "maps",
}
PROTOCOLS = {"least": 5, "most": 9, "share": 0.6}
LESIONS = {"shortest": 0.3, "longest": 3.0}


def config(data=DATA, task=None, net=None, **changes) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "seed": 1,
            "data": {"generate": data},
            "task": {"kind": "local_mixture", "protocols": PROTOCOLS, "lesions": LESIONS} | (task or {}),
            "network": {"kind": "local_mixture", "features": 6, "classes": 3, "steps": 2} | (net or {}),
            "iterations": 12,
            "batch": 6,
            "lr": 0.003,
            "checkpoint_every": 5,
            "validate_every": 6,
            "log_every": 3,
            "precision": "fp32",
        }
        | changes
    )


def train(cfg: TrainConfig, out: Path, **options) -> Path:
    return fit(cfg, out, device="cpu", console=Console(file=io.StringIO()), **options)


def test_training_lowers_the_loss():
    """The mean over 12 samples, 30 iterations apart, noise and times the same."""
    cfg = config()
    data = cfg.data.generate
    task = supervised(cfg.mapping_task, cfg.mapping_network, data.signal_model, ())
    net = cfg.mapping_network.build(task.model, task.parameters, generator(4))
    batch = Generated(data).take(range(12))
    batch = simulate(batch, data, 1, task.variety)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.005)
    losses = []
    for _ in range(30):
        loss = task.loss(net, batch)["total"]
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05


def test_a_stopped_run_resumes_to_the_same_bits(tmp_path):
    whole = train(config(), tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(cfg, iteration):
        if iteration == 7:
            raise Stop
        return learning_rate(cfg, iteration)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "learning_rate", stop)
        with pytest.raises(Stop):
            train(config(), tmp_path / "broken")
    resumed = train(config(), tmp_path / "broken", resume=True)
    one, two = load_file(whole), load_file(resumed)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    # and it is an estimator of any times
    other = InversionRecovery(ti=(0.1, 0.2, 0.5, 0.9, 1.5))
    found = trainers.load(whole, other)
    assert isinstance(found, Estimator)
    kappa, _ = scene(0.0, shape=(1, 20, 20))
    images = other(kappa[:, 0]) + 0.02 * torch.randn(5, 20, 20, generator=generator(8))
    estimate = found(images, 0.02)
    assert estimate.kappa.shape == (3, 20, 20)
    assert estimate.covariance.shape == (3, 3, 20, 20)


def test_protocols_are_drawn_per_position():
    """The times and the series of a sample depend on its position alone; a share keeps those of the data."""
    data = GeneratorConfig.model_validate(DATA)
    protocols = Protocols(**PROTOCOLS)
    batch = Generated(data).take(range(8))
    positions = torch.arange(100, 108)
    whole = simulate(replace(batch, positions=positions), data, 1, Variety(protocols=protocols))
    assert whole.series.shape == (8, 9, 16, 15)
    few = Generated(data).take([5, 2])
    few = simulate(replace(few, positions=positions[[5, 2]]), data, 1, Variety(protocols=protocols))
    assert torch.equal(few.series, whole.series[[5, 2]])
    assert torch.equal(few.times, whole.times[[5, 2]])
    drawn = [protocols.draw(Streams(1, i).rng("training protocol"), TI) for i in range(400)]
    kept = sum(each == TI for each in drawn)
    # binomial: SD 9.8
    assert 160 - 40 < kept < 160 + 40
    own = [each for each in drawn if each != TI]
    assert {len(each) for each in own} == set(range(5, 10))
    assert all(list(each) == sorted(each) and each[0] >= 0.139 and each[-1] <= 0.937 for each in own)


def test_times_of_their_own_need_maps(tmp_path):
    with pytest.raises(InputError, match=r"task.protocols: .*store: maps"):
        train(config(data=DATA | {"store": "images"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    data = GeneratorConfig.model_validate(DATA | {"store": "images"})
    with pytest.raises(InputError, match=r"task.protocols"):
        simulate(Generated(data).take([0]), data, 1, Variety(protocols=Protocols()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {"protocols": {"least": 2}}}, "least must be from 3"),
        ({"task": {"protocols": {"least": 9, "most": 5}}}, "least must be from 3 to most, got 9 and 5"),
        ({"task": {"protocols": {"first": 0.9, "last": 0.3}}}, "first must be before last"),
        ({"task": {"jitter": -1.0}}, "jitter"),
        ({"task": {"lesions": {"shortest": 3.0, "longest": 0.3}}}, "shortest must be below longest"),
        ({"net": {"contrast": 0.5}}, "contrast"),
        ({"net": {"kind": "rim"}}, "network"),
    ],
)
def test_bad_configs(changes, message):
    with pytest.raises(ValidationError, match=message):
        config(**changes)


def test_other_models_are_refused(tmp_path):
    model = {"kind": "saturation_recovery", "ts": [0.2, 0.5, 0.9]}
    with pytest.raises(InputError, match=r"network.kind: a mixture network maps .* not SaturationRecovery"):
        train(config(data=DATA | {"model": model}, task={"protocols": None}), tmp_path / "run")
    chi = {"kind": "noncentral_chi", "coils": 4, "sigma": DATA["noise"]["sigma"]}
    with pytest.raises(InputError, match=r"noise.kind: a mixture network has a Gaussian or a Rician likelihood"):
        train(config(data=DATA | {"noise": chi}), tmp_path / "run")


def test_background_and_mixed_voxels_teach_nothing():
    cfg = config(task={"protocols": None})
    data = cfg.data.generate
    task = supervised(cfg.mapping_task, cfg.mapping_network, data.signal_model, ())
    samples = make_samples(data, [0])
    batch = simulate(Generated(data).take([0]), data, 1)
    assert batch.labels.equal(samples.labels)
    mixed = batch.purity.clone()
    mixed[:, :4] = 0.5
    batch = replace(batch, purity=mixed)
    other = batch.kappa.clone()
    other[:, 2, :4] *= 1.7
    other[:, 2][batch.labels == 0] = 5.0
    net = network()
    changed = replace(batch, kappa=other)
    assert torch.equal(task.loss(net, batch)["total"], task.loss(net, changed)["total"])


@pytest.fixture(scope="module")
def shipped():
    return trainers.load("rim-t1", InversionRecovery(ti=TI))


def test_at_low_noise_it_has_the_values_and_the_covariance_of_shared_b(shipped):
    _, images = scene(0.0025, shape=(1, 30, 30))
    mapped = shipped(images[0], 0.0025)
    reference = build_estimator("shared-b", InversionRecovery(ti=TI), {"covariance": True})(images[0], 0.0025)
    sd = reference.variances["noise"][2].sqrt()
    assert float(((mapped.kappa[2] - reference.kappa[2]) / sd).abs().median()) < 0.15
    ratio = mapped.covariance / reference.covariance
    # a little below 1: the neighbours say something even here
    assert ((ratio.flatten(2).median(2).values > 0.9) & (ratio.flatten(2).median(2).values < 1.03)).all()
    torch.testing.assert_close(mapped.variances["noise"], torch.einsum("ii...->i...", mapped.covariance))


def test_a_stack_equals_its_slices(shipped, monkeypatch):
    _, images = scene(0.05, shape=(3, 12, 14))
    stack = images.movedim(0, 1)
    known = {"B": torch.tensor(1.93)}
    sigma = torch.tensor([0.04, 0.05, 0.07]).reshape(3, 1, 1).expand(3, 12, 14)
    whole = shipped(stack, sigma, known=known)
    assert (whole.kappa[1] == 1.93).all()
    for z in range(3):
        one = shipped(stack[:, z], sigma[z], known=known)
        torch.testing.assert_close(whole.kappa[:, z], one.kappa, rtol=1e-3, atol=1e-3)
    monkeypatch.setattr("trainers.mixture_estimator._VOXELS", 2 * 12 * 14)
    torch.testing.assert_close(shipped(stack, sigma, known=known).kappa, whole.kappa, rtol=1e-3, atol=1e-3)


def test_voxels_that_cannot_be_computed(shipped):
    _, images = scene(0.05, shape=(1, 20, 18))
    images = images[0].clone()
    images[2, 3, 4] = torch.nan
    mask = torch.ones(20, 18, dtype=torch.bool)
    mask[:2] = False
    expected = ~mask
    expected[3, 4] = True
    found = shipped(images, 0.05, mask)
    assert torch.equal(found.status == int(Status.NOT_COMPUTED), expected)
    assert torch.equal(torch.isnan(found.kappa).any(0), expected)
    assert torch.equal(torch.isnan(found.covariance).any(0).any(0), expected)
    ends = shipped.quantiles(images, (0.025, 0.5, 0.975), 0.05, mask)
    assert torch.equal(torch.isnan(ends).any(0), expected)
    assert (ends.diff(dim=0)[:, ~expected] > 0).all()
    nothing = shipped(images, 0.05, torch.zeros_like(mask))
    assert (nothing.status == int(Status.NOT_COMPUTED)).all()


def test_wrong_series_are_refused(shipped):
    _, images = scene(0.05, shape=(1, 20, 18))
    with pytest.raises(InputError, match="holds 4 images"):
        shipped(images[0, :4], 0.05)
    with pytest.raises(InputError, match="axes"):
        shipped(images[0, :, 0], 0.05)
    with pytest.raises(InputError, match="known: T1"):
        shipped(images[0], 0.05, known={"T1": images[0, 0]})
    with pytest.raises(InputError, match="sigma"):
        shipped(images[0], 0.0)
    with pytest.raises(InputError, match="levels"):
        shipped.quantiles(images[0], (0.0, 0.5), 0.05)


def test_a_series_that_says_nothing_about_b_is_not_converged(shipped):
    """Times after the recovery: flat series, any B fits."""
    late = InversionRecovery(ti=tuple(8.0 + 0.5 * i for i in range(8)))
    kappa, _ = scene(0.0, shape=(1, 12, 12))
    images = late(kappa[:, 0]) + 0.2 * torch.randn(8, 12, 12, generator=generator(2))
    assert (trainers.load("rim-t1", late)(images, 0.2).status == int(Status.NOT_CONVERGED)).all()


def test_weights_of_another_network_are_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(InputError, match=r"initial: rim-t1 is another network \(.*features 32.*\); take that network"):
        train(config(initial="rim-t1"), tmp_path / "run")
    with pytest.raises(InputError, match=r"initial: .*rim-t9"):
        train(config(initial="rim-t9"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_training_begins_with_the_weights_it_is_given(tmp_path):
    """At a rate of nearly 0 they are still there after an update."""
    first = train(config(), tmp_path / "first")
    second = train(config(initial=str(tmp_path / "first"), iterations=1, lr=1e-9, seed=9), tmp_path / "second")
    one, two = load_file(first), load_file(second)
    assert all(torch.allclose(one[name], two[name], atol=1e-7) for name in one)


@pytest.mark.parametrize(
    ("task", "message"),
    [({"protocols": {"first": 139.0, "last": 937.0}}, r"task.protocols.last: ti must be in seconds")],
)
def test_milliseconds_in_the_task_are_refused(tmp_path, task, message):
    with pytest.raises(InputError, match=message):
        train(config(task=task), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["recolour", "lesions"])
def test_milliseconds_of_relaxation_times_are_refused(name):
    spec = {"shortest": 200.0, "longest": 4200.0} | ({"share": 0.5} if name == "recolour" else {})
    with pytest.raises(ValidationError, match=f"{name}: longest must be in seconds, got 4200"):
        config(task={name: spec})
