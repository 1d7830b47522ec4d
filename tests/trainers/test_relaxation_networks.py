"""Networks of relaxation times: bounds, averages worked out by hand, and the size of the published network."""

from math import log

import numpy as np
import pytest
import torch
from torch import nn

from qsim.errors import InputError
from qsim.parameters import FRACTION, T1RHO, T2, C
from qsim.signals import InversionRecovery, SpinLock, SpinLockT2Prep
from trainers.networks.relaxation.answers import range_of
from trainers.networks.relaxation.trunk import UNet
from trainers.networks.relaxation.two_stream import TwoStreamNetwork
from trainers.networks.relaxation.unet import UNetNetwork

LOCKED = SpinLock(tsl=(0.0, 0.01, 0.03, 0.05))
BOTH = SpinLockT2Prep(tsl=(0.0, 0.01, 0.03, 0.0, 0.0), te_prep=(0.0, 0.0, 0.0, 0.02, 0.04))
LOW, HIGH = 0.005, 0.5


def build(model=LOCKED, rows=(T1RHO,), **changes):
    spec = UNetNetwork(**{"features": 2, "levels": 2, "up": "bilinear", "sizes": (1, 3, 5), "kernel": 3} | changes)
    return spec.build(model, rows, torch.Generator().manual_seed(3))


def shake(net, factor, seed=5):
    """Weights that no training would find."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if name != "log_scale":
                weight.copy_(factor * torch.randn(weight.shape, generator=generator))
    return net.requires_grad_(False)


def force(net, logits):
    """Let the last convolution of the first decoder say these numbers everywhere."""
    with torch.no_grad():
        net.trunk.decoders[0].out.weight.zero_()
        net.trunk.bias(0).copy_(torch.tensor(logits))
    return net.eval()


def noisy(b=3, k=2, side=12, seed=0):
    return 0.5 + 0.5 * torch.rand(b, k, side, side, generator=torch.Generator().manual_seed(seed))


def spans(*each, b=3):
    return torch.tensor([each] * b)


# ------------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize("factor", [1.0, 1e3])
@pytest.mark.parametrize("norm", ["batch", "channel"])
@pytest.mark.parametrize(
    ("inputs", "answer"),
    [("images", "bounded"), ("two_point", "bounded"), ("images", "averaging"), ("two_point", "averaging")],
)
def test_rows_are_bounded_whatever_the_weights_and_images(inputs, answer, norm, factor):
    net = shake(build(norm=norm, inputs=inputs, answer=answer, dropout=0.3), factor)
    odd = noisy()
    odd[0, 1] = 0.0
    odd[1, 0] = -1.0
    odd[2, :, 3:6] *= 1e4
    for images in (noisy(), odd):
        for training in (True, False):
            net.train(training)
            with torch.no_grad():
                found = net(images, spans(0.03))
            rows = found["rows"]
            assert rows.shape == (3, 1, 12, 12)
            assert float(rows.min()) >= LOW * (1 - 1e-5)
            assert float(rows.max()) <= HIGH * (1 + 1e-5)
            # 6 below where it starts
            assert float(found["log_scale"].min()) >= -9.5 - 1e-5


@pytest.mark.parametrize("factor", [1.0, 1e3])
def test_two_streams_are_bounded(factor):
    spec = TwoStreamNetwork(features=2, levels=2, up="bilinear", dropout=0.2)
    net = shake(spec.build(LOCKED, (T1RHO,), torch.Generator().manual_seed(1)), factor)
    found = net(noisy(), spans(0.03))
    assert float(found["rows"].min()) >= LOW * (1 - 1e-5)
    assert float(found["rows"].max()) <= HIGH * (1 + 1e-5)
    assert found["s0"].shape == (3, 1, 12, 12)
    assert float(found["s0"].min()) >= 0
    net = spec.build(LOCKED, (T1RHO,), torch.Generator().manual_seed(1)).eval()
    for stream in (net.of_time, net.of_s0):
        nn.init.normal_(stream.decoders[0].out.weight, generator=torch.Generator().manual_seed(2))
    # it is not told the times, and S0 is said by the first image alone
    said = net(noisy(), spans(0.03))
    assert torch.equal(net(noisy(), spans(0.01))["rows"], said["rows"])
    other = noisy()
    other[:, 1] *= 0.7
    assert torch.equal(net(other, spans(0.03))["s0"], said["s0"])
    assert not torch.equal(net(other, spans(0.03))["rows"], said["rows"])


def test_before_the_training_every_voxel_says_the_same():
    net = build().eval()
    found = net(noisy(), spans(0.03))
    # the typical T1rho of 50 ms, and a scale of e^-3.5
    assert found["rows"].detach().flatten().tolist() == pytest.approx([0.05] * 3 * 144, rel=1e-5)
    assert found["log_scale"].detach().flatten().tolist() == pytest.approx([-3.5] * 3 * 144, abs=5e-3)


def test_bounds_of_other_rows():
    """A constant is at most half of A, a share what a share can be; both start half-way."""
    for row, low, high, start in ((C, -0.5, 0.5, 0.0), (FRACTION, 0.0, 1.0, 0.5), (T2, LOW, HIGH, 0.1)):
        within = range_of(row, LOW, HIGH)
        assert (within.low, within.high, within.start) == (low, high, start)
        ends = within.value(torch.tensor([-100.0, 100.0, within.share()]))
        assert ends.tolist() == pytest.approx([low, high, start], rel=1e-5, abs=1e-6)


def test_every_kind_of_scale():
    assert "log_scale" not in build(scale="none")(noisy(), spans(0.03))
    for scale in ("constant", "head", "decoder"):
        net = build(BOTH, (T1RHO, T2), scale=scale)
        assert net.log_scale.requires_grad == (scale == "constant")
        shake(net, 0.5)
        found = net(noisy(k=3), spans(0.03, 0.02))["log_scale"]
        assert found.shape == (3, 2, 12, 12)
        spread = found.detach().flatten(2).std(2)
        assert bool((spread < 1e-6).all()) == (scale == "constant")
        assert len(net.trunk.decoders) == (2 if scale == "decoder" else 1)


# ------------------------------------------------------------------------------------------- averaging


@pytest.mark.parametrize("v", [-9.0, 0.0, 2.0])
def test_an_average_with_forced_weights_by_hand(v):
    """9 voxels of the square, row by row, then the mean over 5 x 5; softmax of 10 times the logits less p d."""
    logits = [0.1 * i for i in range(9)] + [0.3]
    net = force(build(answer="averaging", scale="none"), [*logits, v])
    images = noisy(b=1, k=2, side=12)
    images[:, 1] *= 0.6
    found = net(images, spans(0.03, b=1))["rows"][0, 0].detach().numpy()
    p = 300 * np.exp(4 * np.tanh(v / 4))
    first, later = images[0].double().numpy()

    def square(image, y, x, half):
        # a mean is over what lies inside
        return image[max(y - half, 0) : y + half + 1, max(x - half, 0) : x + half + 1].mean()

    for y, x in ((5, 6), (3, 9), (0, 0), (0, 11), (11, 4)):
        # beyond the border the edge is continued
        near = [(min(max(y + i, 0), 11), min(max(x + j, 0), 11)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        unlike = np.zeros(10)
        for image in (first, later):
            looks = [square(image, *place, 1) for place in near] + [square(image, y, x, 2)]
            unlike += (np.array(looks) - square(image, y, x, 1)) ** 2
        weights = np.exp(10 * np.array(logits) - p * unlike)
        weights /= weights.sum()
        means = [weights @ [*(image[place] for place in near), square(image, y, x, 2)] for image in (first, later)]
        assert found[y, x] == pytest.approx(0.03 / log(means[0] / means[1]), rel=1e-4)


def test_an_untrained_average_keeps_an_edge_that_a_plain_mean_blurs():
    """30 | 60 ms at SNR 50 after 30 ms: half-way between the first columns of each side a mean of 7 x 7 loses 6/7."""
    times = torch.full((1, 1, 24, 24), 0.03)
    times[..., 12:] = 0.06
    generator = torch.Generator().manual_seed(4)
    images = torch.cat((torch.ones_like(times), torch.exp(-0.03 / times)), 1)
    images = images + 0.02 * torch.randn(images.shape, generator=generator)
    net = build(answer="averaging", scale="none", kernel=7, sizes=(1,)).eval()
    found = net(images, spans(0.03, b=1))["rows"][0, 0].detach()
    near = found[4:-4, 12].mean() - found[4:-4, 11].mean()
    assert float(near) > 0.8 * 0.03
    # and averages as well: one voxel's two-point time has an SD of 0.02 T^2 / 0.03 sqrt(1 + e^(2 0.03 / T)) = 3.2 ms
    assert float(found[4:-4, 4:8].std()) < 0.0032 / 4


def test_an_image_without_decay_is_said_to_be_the_longest_time_and_one_of_noise_the_shortest():
    net = force(build(answer="averaging", scale="none"), [0.0] * 11)
    flat = torch.full((1, 2, 12, 12), 0.4)
    assert net(flat, spans(0.03, b=1))["rows"].detach().unique().tolist() == pytest.approx([HIGH])
    flat[:, 1] = 0.0
    # the floor of signal is 1e-3: a later image below it has decayed within 0.03 s / log(0.4 / 1e-3) = 5.007 ms
    assert net(flat, spans(0.03, b=1))["rows"].detach().unique().tolist() == pytest.approx([0.03 / log(400)], rel=1e-5)


@pytest.mark.parametrize("factor", [1.0, 1e3])
def test_without_noise_an_average_is_the_truth_for_any_weights(factor):
    """Two halves of 30 and 60 ms under a texture of A; the squares of 5 reach 2 voxels across."""
    a = noisy(b=2, k=1, side=24)
    t = torch.full((1, 1, 24, 24), 0.03)
    t[..., 12:] = 0.06
    inside = torch.ones(24, dtype=torch.bool)
    inside[10:14] = False
    net = shake(build(answer="averaging", inputs="two_point", scale="none"), factor)
    for interval in (0.01, 0.05):
        images = torch.cat((a, a * torch.exp(-interval / t)), 1)
        found = net(images, spans(interval, b=2))["rows"]
        torch.testing.assert_close(found[..., inside], t.expand(2, 1, 24, 24)[..., inside], rtol=1e-4, atol=0)
        # across the edge it is between the two
        assert float(found.min()) > 0.03 * (1 - 1e-4)
        assert float(found.max()) < 0.06 * (1 + 1e-4)


def test_two_contrasts_share_the_first_image():
    a = noisy(b=2, k=1)
    images = torch.cat((a, a * torch.exp(torch.tensor(-0.03 / 0.04)), a * torch.exp(torch.tensor(-0.02 / 0.025))), 1)
    net = shake(build(BOTH, (T1RHO, T2), answer="averaging"), 1.0).eval()
    rows = net(images, spans(0.03, 0.02, b=2))["rows"]
    torch.testing.assert_close(rows[:, 0], torch.full((2, 12, 12), 0.04), rtol=1e-4, atol=0)
    torch.testing.assert_close(rows[:, 1], torch.full((2, 12, 12), 0.025), rtol=1e-4, atol=0)


def test_the_time_between_the_images_is_told_or_not():
    """Seen as images alone, two images of any times are the same."""
    for inputs, told in (("images", False), ("two_point", True)):
        net = build(inputs=inputs, scale="none").eval()
        nn.init.normal_(net.trunk.decoders[0].out.weight, generator=torch.Generator().manual_seed(2))
        same = torch.equal(net(noisy(), spans(0.01))["rows"], net(noisy(), spans(0.05))["rows"])
        assert same != told


# ------------------------------------------------------------------------------------------- the parts


def test_the_published_network_has_the_published_size():
    """7763041 weights: what Buda et al. print for three channels in and one out."""
    net = UNet(3, (1,), 32, 5, "batch", "transposed", 0.25)
    assert sum(each.numel() for each in net.parameters()) == 7_763_041
    assert [block[0].out_channels for block in net.down] == [32, 64, 128, 256, 512]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"kernel": 4}, "kernel"),
        ({"sizes": (1, 2)}, "sizes"),
        ({"sizes": ()}, "sizes"),
        ({"shortest": 0.5, "longest": 0.5}, "shortest"),
        ({"shortest": 5.0, "longest": 500.0}, "longest"),
    ],
)
def test_what_is_no_network(changes, field):
    with pytest.raises(ValueError, match=rf"^(1 validation error[^$]*Value error, )?{field}\b"):
        UNetNetwork(**changes)


def test_models_that_are_no_decay_and_rows_too_many():
    generator = torch.Generator()
    with pytest.raises(InputError, match=r"^model: InversionRecovery is no decay"):
        UNetNetwork().build(InversionRecovery(ti=(0.1, 0.5)), (T1RHO,), generator)
    with pytest.raises(InputError, match=r"^network\.kind: two_stream maps one contrast"):
        TwoStreamNetwork().build(BOTH, (T1RHO,), generator)
    with pytest.raises(InputError, match=r"^task\.rows: two_stream answers one"):
        TwoStreamNetwork().build(LOCKED, (T1RHO, T2), generator)
    with pytest.raises(ValueError, match="shortest must be below longest"):
        TwoStreamNetwork(shortest=0.2, longest=0.1)
