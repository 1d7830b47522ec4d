"""What makes networks of posteriors faster changes nothing but rounding."""

from dataclasses import replace

import pytest
import torch
from scipy import special

import trainers
from qsim.signals import InversionRecovery
from qsim.signals.decays import T2Prep
from trainers import mixture_estimator
from trainers.networks.mixture.likelihood import bessel_ratio
from trainers.networks.mixture.parts import SafeConv
from trainers.networks.mixture.residual import ResidualMixtureNetwork

TI = (0.15, 0.3, 0.5, 0.9, 1.4, 2.0)


def test_bessel_ratio_against_scipy():
    x = torch.cat((torch.logspace(-30, 8, 4000), torch.linspace(0.01, 60, 4000)))
    exact = torch.from_numpy(special.ive(1, x.double().numpy()) / special.ive(0, x.double().numpy()))
    apart = (bessel_ratio(x).double() / exact - 1).abs()
    assert float(apart.max()) < 4e-7
    # what it took the place of
    assert float(apart.max()) < float(((torch.special.i1e(x) / torch.special.i0e(x)).double() / exact - 1).abs().max())
    # x / 2 near 0, odd, 1 far away
    ends = torch.tensor([0.0, 1e-37, 1e12, 3e38, -3e38, -2.0])
    expected = torch.tensor([0.0, 5e-38, 1.0, 1.0, -1.0, -float(special.iv(1, 2.0) / special.iv(0, 2.0))])
    torch.testing.assert_close(bessel_ratio(ends), expected, rtol=4e-7, atol=0)
    assert bessel_ratio(torch.tensor(torch.nan)).isnan()


@pytest.mark.parametrize("channels", [32, 20])
def test_the_layout_of_a_convolution_changes_nothing(channels):
    """Channels that are no multiple of 16 are those whose gradients were no number."""
    g = torch.Generator().manual_seed(0)
    conv = SafeConv(channels, channels, 3, padding=2, dilation=2)
    x = torch.randn(2, channels, 14, 11, generator=g)
    outer = torch.randn(2, channels, 14, 11, generator=g)
    with torch.autocast("cpu", torch.bfloat16):
        (conv(x) * outer).sum().backward()
    found = conv.weight.grad
    # the gradient of a weight, from its definition: its row and column of the kernel shift the input
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2)).double()
    shifted = padded[:, :, 4:18, 2:13]
    expected = torch.einsum("boyx,biyx->oi", outer.double(), shifted)
    assert float((found[:, :, 2, 1] - expected).norm() / expected.norm()) < 0.01


def series(model, shape, sigma, seed=0):
    g = torch.Generator().manual_seed(seed)
    t = torch.where(torch.rand(shape, generator=g) < 0.5, 0.8, 1.3) * (0.08 if isinstance(model, T2Prep) else 1.0)
    rows = [torch.full(shape, 0.8), t] if isinstance(model, T2Prep) else [torch.full(shape, 0.8), 1.9 + 0 * t, t]
    signal = model(torch.stack(rows))
    return torch.hypot(signal + sigma * torch.randn(signal.shape, generator=g), torch.zeros(()))


def estimator(kind):
    rim = replace(trainers.load("rim-t1", model=InversionRecovery(ti=TI)), bf16=False)
    if kind == "rim":
        return rim
    network = ResidualMixtureNetwork(features=8, dilations=(1, 3))
    net = network.build(rim.model, rim.model.parameters, torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        # untrained it answers empirical Bayes whatever its layers say
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=g))
    return replace(rim, net=net.eval())


@pytest.mark.parametrize("kind", ["rim", "residual"])
@pytest.mark.parametrize("map_of_sigma", [False, True])
def test_only_a_window_about_the_mask_is_computed(monkeypatch, kind, map_of_sigma):
    """The same values as of the whole slices, in a stack whose masks differ; a mask that touches the border too."""
    net, shape = estimator(kind), (2, 44, 40)
    images = series(net.model, shape, 0.05)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[0, 14:24, 15:21] = True
    mask[1, 16:22, 18:27] = True
    mask[0, 17, 18] = False
    sigma = torch.linspace(0.04, 0.06, 44)[:, None].expand(shape) if map_of_sigma else 0.05
    known = {"B": torch.tensor(1.9)}
    shapes = []
    real = mixture_estimator.likelihood_of

    def seen(model, slices, *args, **named):
        shapes.append(tuple(slices.shape[-2:]))
        return real(model, slices, *args, **named)

    monkeypatch.setattr(mixture_estimator, "likelihood_of", seen)
    for where in (mask, mask.roll((-14, -15), (1, 2))):
        near = net(images, sigma, where, known)
        ends = net.quantiles(images, (0.1, 0.9), sigma, where, known)
        with monkeypatch.context() as patched:
            patched.setattr(mixture_estimator, "_window", lambda *_: (slice(None), slice(None)))
            whole = net(images, sigma, where, known)
            whole_ends = net.quantiles(images, (0.1, 0.9), sigma, where, known)
        torch.testing.assert_close(near.kappa, whole.kappa, rtol=1e-5, atol=1e-6, equal_nan=True)
        torch.testing.assert_close(near.covariance, whole.covariance, rtol=1e-4, atol=1e-8, equal_nan=True)
        torch.testing.assert_close(ends, whole_ends, rtol=1e-5, atol=1e-6, equal_nan=True)
        assert torch.equal(near.status, whole.status)
        assert torch.equal(near.kappa[2].isfinite(), where)
    # layers of 3 x 3 with dilations 1, 2, 4; of the residual network 1 (stem), 1, 1, 3, 1
    reach = 7
    size = (10 + 2 * reach, 12 + 2 * reach)
    corner = (10 + reach, 12 + reach)
    assert shapes == [size, size, shape[1:], shape[1:], corner, corner, shape[1:], shape[1:]]
