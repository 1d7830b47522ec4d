"""The U-Net against MONAI's own, any size, weights of their own stream; and the loss against Dice by hand."""

import socket
import urllib.request

import numpy as np
import pytest
import torch
from monai.losses.dice import DiceLoss
from monai.networks.nets.flexible_unet import FlexibleUNet as Monai
from pydantic import TypeAdapter, ValidationError
from torch.nn.modules.dropout import _DropoutNd

from trainers.segmentation.losses import one_minus_dice
from trainers.segmentation.network import FlexibleUNet

TINY = {"encoder": "resnet10", "decoder": (8, 8, 8, 8, 8)}


def built(seed=1, **changes):
    return FlexibleUNet(**{**TINY, **changes}).build(torch.Generator().manual_seed(seed))


def random(*shape, seed=3):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def net():
    return built().eval()


# --- network ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(31, 40), (100, 130), (128, 128), (1, 33), (32, 32)], ids=str)
@torch.no_grad()
def test_any_size_comes_back(net, shape):
    images = random(2, 1, *shape)
    found = net(images)
    assert found.shape == (2, *shape)
    assert found.dtype == torch.float32
    # as if somebody had put zeros below and to the right
    y, x = (-(-n // 32) * 32 for n in shape)
    larger = torch.zeros(2, 1, y, x)
    larger[:, :, : shape[0], : shape[1]] = images
    assert torch.equal(net(larger)[:, : shape[0], : shape[1]], found)


@pytest.mark.parametrize("encoder", ["resnet10", "efficientnet-b0"])
@torch.no_grad()
def test_it_is_the_network_of_monai(encoder):
    ours = built(encoder=encoder).eval()
    theirs = Monai(1, 1, encoder, pretrained=False, decoder_channels=TINY["decoder"], spatial_dims=2)
    theirs.load_state_dict({key.removeprefix("body."): each for key, each in ours.state_dict().items()})
    images = random(2, 1, 64, 96)
    found = ours(images)
    assert torch.equal(found, theirs.eval()(images)[:, 0])
    assert float(found.std()) > 0


def test_starting_weights_come_from_the_generator_alone():
    before = torch.get_rng_state()
    first = built(1).state_dict()
    torch.rand(17)
    again, other = built(1).state_dict(), built(2).state_dict()
    torch.set_rng_state(before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = [key for key in first if key.endswith("weight") and first[key].ndim == 4]
    assert len(drawn) > 10
    assert not any(torch.equal(first[key], other[key]) for key in drawn)


def test_the_global_stream_is_left_alone():
    before = torch.get_rng_state()
    built(5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("encoder", ["resnet18", "efficientnet-b0"])
def test_nothing_is_downloaded(encoder, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked for something")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    built(encoder=encoder)


def test_dropout_sits_in_the_decoder_only():
    dropping = {name: layer.p for name, layer in built(dropout=0.3).named_modules() if isinstance(layer, _DropoutNd)}
    assert dropping
    assert all(name.startswith("body.decoder.") for name in dropping)
    assert set(dropping.values()) == {0.3}
    assert not [layer for layer in built().modules() if isinstance(layer, _DropoutNd) and layer.p]


@torch.no_grad()
def test_dropout_draws_in_training_and_not_in_use():
    net, images = built(dropout=0.5), random(2, 1, 64, 64)
    net.eval()
    assert torch.equal(net(images), net(images))
    for layer in net.modules():
        if isinstance(layer, _DropoutNd):
            layer.train()
    assert not torch.equal(net(images), net(images))


def test_the_encoder_of_the_paper():
    """ResNet-50 has 23.5 million weights without its classifier (He et al. 2016); the decoder the rest."""
    net = FlexibleUNet().build(torch.Generator().manual_seed(1))
    encoder = sum(each.numel() for each in net.body.encoder.parameters())
    # one channel in place of three: 2 x 7 x 7 x 64 fewer
    assert encoder == pytest.approx(25_557_032 - 2048 * 1000 - 1000 - 2 * 49 * 64, rel=1e-3)
    assert sum(each.numel() for each in net.parameters()) == pytest.approx(32.1e6, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decoder": (8, 8, 8)}, "decoder must name the channels of 5 levels, got 3"),
        ({"decoder": (8, 8, 8, 8, 0)}, "decoder"),
        ({"encoder": "vgg16"}, "encoder"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_networks_that_cannot_be_are_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        TypeAdapter(FlexibleUNet).validate_python({**TINY, **changes})


# --- loss -------------------------------------------------------------------------------------------------------------


def test_the_loss_is_dice_by_hand():
    p = np.array([[0.9, 0.5, 0.1, 0.2], [0.3, 0.3, 0.8, 0.6]])
    t = np.array([[1, 1, 0, 0], [0, 0, 1, 0]])
    logits = torch.from_numpy(np.log(p / (1 - p))).reshape(2, 2, 2).float()
    # 1 - (2 x 1.4 + 1) / (1.7 + 2 + 1) and 1 - (2 x .8 + 1) / (2 + 1 + 1)
    expected = (1 - 3.8 / 4.7 + 1 - 2.6 / 4.0) / 2
    found = one_minus_dice(logits, torch.from_numpy(t > 0).reshape(2, 2, 2))
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_a_perfect_answer_costs_nothing_and_its_opposite_all():
    target = torch.zeros(1, 100, 100, dtype=torch.bool)
    target[:, 20:70, 30:80] = True
    logits = torch.where(target, 20.0, -20.0)
    assert float(one_minus_dice(logits, target)) < 1e-5
    assert float(one_minus_dice(-logits, target)) > 0.999


@pytest.mark.parametrize("size", [32, 128, 384])
def test_an_image_without_a_target_costs_nothing_where_nothing_is_found(size):
    """MONAI's own smoothing, 1e-5, is no more than the sum of all sigmoid(-20), and such an image would teach."""
    logits, empty = torch.full((1, size, size), -20.0), torch.zeros(1, size, size, dtype=torch.bool)
    assert float(one_minus_dice(logits, empty)) < 1e-3
    total = size**2 / (1 + np.exp(20))
    trap = float(DiceLoss(sigmoid=True)(logits[:, None], empty[:, None].float()))
    assert trap == pytest.approx(total / (total + 1e-5), rel=1e-4)
    assert trap > 0.1
    # what is found where nothing is costs nearly all
    wrong = logits.clone()
    wrong[:, :30, :30] = 20.0
    assert float(one_minus_dice(wrong, empty)) > 0.99


def test_the_gradient_of_the_loss():
    logits = random(2, 3, 4).double() * 4 - 2
    target = random(2, 3, 4, seed=8) > 0.5
    target[1] = False

    def by_hand(values):
        p, t = 1 / (1 + np.exp(-values)), target.numpy()
        return np.mean([1 - (2 * a[b].sum() + 1) / (a.sum() + b.sum() + 1) for a, b in zip(p, t, strict=True)])

    here, step = logits.numpy(), 1e-5
    expected = np.zeros(here.shape)
    for place in np.ndindex(here.shape):
        change = np.zeros(here.shape)
        change[place] = step
        expected[place] = (by_hand(here + change) - by_hand(here - change)) / (2 * step)
    single = logits.float().requires_grad_()
    (found,) = torch.autograd.grad(one_minus_dice(single, target), single)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)

    def in_double(values):
        return DiceLoss(sigmoid=True, smooth_nr=1, smooth_dr=1)(values[:, None], target[:, None].double())

    # of the formula in MONAI, which keeps double precision; the loss itself is in single
    assert torch.autograd.gradcheck(in_double, (logits.clone().requires_grad_(),))
    assert float(one_minus_dice(logits, target)) == pytest.approx(float(in_double(logits)), abs=1e-6)
