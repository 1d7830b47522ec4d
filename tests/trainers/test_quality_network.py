"""The network of decoupled uncertainty: sizes, starts, weights counted by hand, what each part sees."""

from math import exp

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from scipy.special import softmax
from scipy.stats import entropy
from torch import nn
from torch.nn import functional

from qsim.errors import InputError
from trainers.checkpoint import load_tensors, save_tensors
from trainers.quality import heads as heads_module
from trainers.quality.heads import ContextHeads, SoftBounds
from trainers.quality.network import DecoupledUNet, monte_carlo

SOURCES = ("noise", "spike", "blur")
SMALL = (2, 3, 4)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def build(seed=0, sources=SOURCES, classes=2, **options):
    return DecoupledUNet(**{"features": SMALL} | options).build(classes, sources, stream(seed)).eval()


def images(*size, seed=7, count=2):
    return torch.rand(count, 1, *size, generator=stream(seed))


def stirred(net, seed=5):
    """All weights moved, also those that start at 0."""
    generator = stream(seed)
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return net


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """MONAI is imported once, outside of what is measured here."""
    import monai.networks.nets.dynunet  # noqa: F401


def count(module):
    return sum(weight.numel() for weight in module.parameters())


def test_weights_counted_by_hand():
    def level(before, features):
        # two convolutions without bias, each with an affine instance norm
        return 27 * before * features + 27 * features**2 + 4 * features

    down = level(1, 8) + level(8, 16) + level(16, 32)
    up = 8 * 32 * 16 + level(32, 16) + 8 * 16 * 8 + level(16, 8)
    net = DecoupledUNet(heads="plain").build(2, SOURCES, stream())
    assert count(net.segmentation.body) == down + up == 85_144
    assert count(net.segmentation) == 85_162
    assert count(net.heads) == 4 * (8 + 1)
    context = DecoupledUNet().build(2, SOURCES, stream())
    raw = 27 * 8 + 8 + 27 * 8 * 16 + 16 + 27 * 16 * 24 + 24 + 27 * 24 * 32 + 32
    # features, two logits, their entropy, the probability of the target
    seen = 8 + 2 + 2
    voxel = (24 + 1) * 8 + (seen + 8 + 8 + 1) * 16 + (16 + 1) * 4
    whole = (2 * (seen + 8 + 16 + 24 + 32) + 2 * (seen + 8) + 1) * 64 + (64 + 1) * 64 + 64 * 3
    assert count(context.heads) == raw + voxel + whole
    task = DecoupledUNet(heads="plain").build(3, (), stream())
    assert count(task.heads) == 9
    assert count(task.segmentation) == 85_144 + 27


@pytest.mark.parametrize("heads", ["plain", "context"])
def test_starts_at_the_same_log_variance_everywhere(heads):
    net = build(heads=heads)
    answer = net(images(8, 12, 8))
    assert answer.logits.shape == (2, 2, 8, 12, 8)
    assert answer.log_variance.shape == (2, 4, 8, 12, 8)
    wanted = torch.tensor([-1.0, -2, -2, -2])[:, None, None, None].expand(2, 4, 8, 12, 8)
    torch.testing.assert_close(answer.log_variance, wanted, rtol=0, atol=1e-6)
    other = build(heads=heads, sources=(), start_task=0.5)(images(8, 8, 8)).log_variance
    torch.testing.assert_close(other, torch.full((2, 1, 8, 8, 8), 0.5), rtol=0, atol=1e-6)


@pytest.mark.parametrize("heads", ["plain", "context"])
@pytest.mark.parametrize("size", [(31, 40, 33), (31, 40, 40), (5, 8, 1), (3, 3, 3)])
def test_any_size_comes_back_and_equals_the_padded_run(heads, size):
    net = stirred(build(heads=heads))
    x = images(*size, count=1)
    with torch.no_grad():
        answer = net(x)
        assert answer.logits.shape == (1, 2, *size)
        assert answer.log_variance.shape == (1, 4, *size)
        # by indices, not by the padding that the network uses; one voxel at the bottom would have no SD
        whole = [-(-side // 4) * 4 for side in size]
        whole = [8, 8, 8] if whole == [4, 4, 4] else whole
        padded = x
        for axis, (side, to) in enumerate(zip(size, whole, strict=True), 2):
            padded = padded.index_select(axis, torch.arange(to).clamp(max=side - 1))
        features, logits = net.segment(padded)
        crop = (..., *(slice(side) for side in size))
        torch.testing.assert_close(answer.logits, logits[crop], rtol=1e-5, atol=1e-5)
        if heads == "plain":
            found = net.uncertainty(features, logits, padded)[crop]
            torch.testing.assert_close(answer.log_variance, found, rtol=1e-5, atol=1e-5)
            assert not answer.of_image.any()


def test_the_scales_of_the_raw_branch_halve_the_image():
    heads = build().heads
    assert isinstance(heads, ContextHeads)
    with torch.no_grad():
        found = [tuple(each.shape[1:]) for each in heads._raw(images(24, 20, 19, count=1))]
    assert found == [(8, 24, 20, 19), (16, 12, 10, 10), (24, 6, 5, 5), (32, 3, 3, 3)]


def test_weights_come_from_the_generator_and_the_global_stream_stays():
    before = torch.get_rng_state()
    first, again, other = build(3), build(3), build(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    moved = build(3)
    torch.set_rng_state(before)
    differ = []
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
        assert torch.equal(weight, moved.state_dict()[name]), name
        differ.append(not torch.equal(weight, other.state_dict()[name]))
    assert sum(differ) > 10
    # the segmentation starts alike whatever reads its uncertainty
    plain = build(3, heads="plain").segmentation.state_dict()
    assert all(torch.equal(weight, plain[name]) for name, weight in first.segmentation.state_dict().items())


def test_the_body_is_normalised_by_each_image_and_the_raw_branch_not_at_all():
    net = stirred(build())
    norms = [module for module in net.segmentation.modules() if isinstance(module, nn.InstanceNorm3d)]
    assert len(norms) == 10
    assert all(module.affine and not module.track_running_stats for module in norms)
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    assert not any(isinstance(module, kinds) for module in net.heads.modules())
    x = images(16, 16, 16)
    with torch.no_grad():
        features, logits = net.segment(x)
        # a brighter image is the same to the body, but not to the heads
        brighter, _ = net.segment(30 * x)
        torch.testing.assert_close(brighter, features, rtol=0.02, atol=0.02)
        said, louder = net.uncertainty(features, logits, x), net.uncertainty(features, logits, 30 * x)
        assert float((said - louder).abs().mean()) > 0.1
        # each image by itself
        torch.testing.assert_close(net(x[1:]).log_variance, net(x).log_variance[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", ["plain", "context"])
def test_training_and_use_agree_but_for_what_is_left_out_of_the_whole(heads):
    net = stirred(build(heads=heads, dropout=0.0))
    x = images(8, 8, 12)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        trained, used, other = net.train()(x), net.eval()(x), net.train()(x)
    for each in (trained, other):
        assert torch.equal(each.logits, used.logits)
        assert torch.equal(each.log_variance[:, 0], used.log_variance[:, 0])
    if heads == "plain":
        assert torch.equal(trained.log_variance, used.log_variance)
    else:
        assert not torch.equal(trained.of_image, other.of_image)
    # Monte Carlo dropout draws segmentations, and leaves nothing out here
    with pytest.raises(InputError, match="dropout: the network has none"):
        monte_carlo(net)


def test_what_the_image_adds_is_bounded():
    net = build()
    with torch.no_grad():
        net.heads.of_whole.weight.fill_(1e4)
        said = net(images(8, 8, 8)).of_image
    assert not said[:, 0].any()
    assert said[:, 1:].abs().max() == pytest.approx(3.0)


def test_the_image_as_a_whole_moves_all_voxels_alike():
    """The scalar of each head: features that differ in one corner change the answer in the far one."""
    net = stirred(build())
    x = images(16, 16, 16, count=1)
    with torch.no_grad():
        features, logits = net.segment(x)
        before = net.uncertainty(features, logits, x)
        features[..., 12:, 12:, 12:] += 10
        after = net.uncertainty(features, logits, x)
    # unbounded numbers, of voxels whose own channels are the same
    bounds = SoftBounds(-7.0, 4.0)
    line = [[bounds.inverse(y) for y in maps[0, 1, 0, 0, :12].tolist()] for maps in (before, after)]
    shift = torch.tensor(line[1]) - torch.tensor(line[0])
    assert abs(float(shift.mean())) > 1e-3
    torch.testing.assert_close(shift, shift.mean().expand(12), rtol=1e-3, atol=1e-5)
    # how hard the task is in a voxel is told by its own channels
    torch.testing.assert_close(before[0, 0, 0, 0, :12], after[0, 0, 0, 0, :12])


def test_statistics_are_standardised_by_the_images_a_training_begins_with():
    heads = stirred(build()).heads
    assert isinstance(heads, ContextHeads)
    net = build()
    seen = [(*net.segment(x), x) for x in (k * images(12, 12, 12, seed=k, count=2) for k in range(1, 5))]
    heads.begin(seen)
    with torch.no_grad():
        told = torch.cat([heads._told(heads_module._seen(*answer), heads._raw(x)) for *answer, x in seen])
    vary = told.std(0) > 1e-2
    standard = ((told - heads.centre) / heads.scale)[:, vary].numpy()
    np.testing.assert_allclose(standard.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(standard.std(0, ddof=1), 1, rtol=1e-4)


@pytest.mark.parametrize("heads", ["plain", "context"])
def test_answers_are_float32_under_autocast_and_heads_compute_in_it(heads):
    net = stirred(build(heads=heads))
    x = images(8, 8, 8)
    with torch.no_grad():
        features, logits = net.segment(x)
        exact = net.uncertainty(features, logits, x)
        with torch.autocast("cpu", torch.bfloat16):
            answer = net(x)
            assert torch.equal(net.uncertainty(features, logits, x), exact)
        laid = net.to(memory_format=torch.channels_last_3d)(x.to(memory_format=torch.channels_last_3d))
    assert answer.logits.dtype == answer.log_variance.dtype == torch.float32
    # bfloat16 has 8 bits
    torch.testing.assert_close(answer.logits, logits, rtol=0.1, atol=0.1)
    torch.testing.assert_close(laid.logits, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(laid.log_variance, exact, rtol=1e-4, atol=1e-4)


def test_every_weight_learns_and_the_parts_apart():
    net = stirred(build())
    x = images(8, 8, 8)
    answer = net(x)
    (answer.logits.square().mean() + answer.log_variance.square().mean()).backward()
    assert all(weight.grad is not None and float(weight.grad.abs().sum()) > 0 for weight in net.parameters())
    net.zero_grad(set_to_none=True)
    with torch.no_grad():
        features, logits = net.segment(x)
    net.uncertainty(features, logits, x).mean().backward()
    assert all(weight.grad is None for weight in net.segmentation.parameters())
    assert all(weight.grad is not None for weight in net.heads.parameters())


def test_weights_are_stored_once_each(tmp_path):
    net, other = stirred(build()), build(9)
    weights = net.state_dict()
    assert len({weight.data_ptr() for weight in weights.values()}) == len(weights)
    save_tensors(tmp_path / "model.safetensors", weights, {})
    stored, _ = load_tensors(tmp_path / "model.safetensors")
    held = count(net) + sum(each.numel() for each in net.buffers())
    assert sum(weight.numel() for weight in stored.values()) == held
    other.load_state_dict(stored)
    x = images(8, 8, 8)
    with torch.no_grad():
        assert torch.equal(other(x).log_variance, net(x).log_variance)


def test_monte_carlo_draws_by_dropout_alone():
    net = build(dropout=0.3).eval()
    assert {type(m) for m in net.modules() if "Dropout" in type(m).__name__} == {nn.Dropout}
    x = images(8, 8, 8)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sure = net(x).logits
        with monte_carlo(net):
            first, second = net(x).logits, net(x).logits
        assert torch.equal(net(x).logits, sure)
    assert not torch.equal(first, second)
    assert not any(module.training for module in net.modules())
    with pytest.raises(InputError, match="dropout: the network has none"):
        monte_carlo(build())


def test_soft_bounds():
    bounds = SoftBounds(-7.0, 4.0)
    x = torch.linspace(-12, 9, 85, dtype=torch.float64)
    y = bounds(x)
    assert (y.diff() > 0).all()
    assert (y > -7).all()
    assert (y < 4).all()
    for here, there in zip(x.tolist(), y.tolist(), strict=True):
        assert bounds.inverse(there) == pytest.approx(here, abs=1e-8)
    # close to the number itself: what is missing is at most that of one softplus at each end
    for number in (-4.0, -2.0, -1.0, 0.0, 1.0):
        off = float(bounds(torch.tensor(number, dtype=torch.float64))) - number
        assert abs(off) < 1.01 * (exp(-7 - number) + exp(number - 4))
    assert float(bounds(torch.tensor(-500.0, dtype=torch.float64))) == pytest.approx(-7, abs=1e-12)
    assert float(bounds(torch.tensor(500.0, dtype=torch.float64))) == pytest.approx(4, abs=1e-12)
    # float32, far outside: exp(-23) and exp(-26) of the slope are left, not 0
    far = torch.tensor([-30.0, 30.0], requires_grad=True)
    (slope,) = torch.autograd.grad(bounds(far).sum(), far)
    assert slope.tolist() == pytest.approx([exp(-23), exp(-26)], rel=1e-3)
    inside = torch.linspace(-9, 6, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bounds, (inside,))
    for y_outside in (-7.0, 4.0, 5.0):
        with pytest.raises(ValueError, match="is not between -7 and 4"):
            bounds.inverse(y_outside)


def test_refuses_what_it_cannot_build():
    adapter = TypeAdapter(DecoupledUNet)
    assert adapter.validate_python({"kind": "decoupled_unet", "features": [4, 8, 16, 32]}).features == (4, 8, 16, 32)
    for wrong, told in (
        ({"features": [8, 16]}, "features"),
        ({"features": [8, 0, 4]}, "features"),
        ({"dropout": 1.0}, "dropout"),
        ({"low": 5.0}, "low must be below high"),
        ({"start_task": -8.0}, "start_task must be between -7"),
        ({"start_artefact": 4.0}, "start_artefact must be between -7"),
        ({"heads": "attention"}, "heads"),
    ):
        with pytest.raises(ValidationError, match=told):
            adapter.validate_python(wrong)
    with pytest.raises(InputError, match="sources: the task is always the first"):
        build(sources=("task", "noise"))
    with pytest.raises(InputError, match="classes: got 1"):
        build(classes=1)


def test_the_raw_branch_is_plain_convolutions():
    """The same numbers by the definition: loops over the 27 neighbours instead of a convolution."""
    heads = stirred(build()).heads
    assert isinstance(heads, ContextHeads)
    x = images(8, 6, 9, count=1)

    def convolved(of, layer, stride):
        around = functional.pad(of, (1,) * 6)
        out = 0
        for i in range(3):
            for j in range(3):
                for k in range(3):
                    seen = around[..., i : i + of.shape[2], j : j + of.shape[3], k : k + of.shape[4]]
                    out = out + torch.einsum("gf,bfxyz->bgxyz", layer.weight[..., i, j, k], seen)
        out = out + layer.bias[:, None, None, None]
        out = out[..., ::stride, ::stride, ::stride]
        return torch.where(out > 0, out, 0.01 * out)

    with torch.no_grad():
        found = heads._raw(x)
        wanted = convolved(x, heads.fine, 1)
        for layer, seen in zip((None, *heads.coarser), found, strict=True):
            wanted = wanted if layer is None else convolved(wanted, layer, 2)
            torch.testing.assert_close(seen, wanted, rtol=1e-4, atol=1e-5)


def test_what_the_whole_image_tells():
    """Mean and log of the SD of each channel, by numpy."""
    channels = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(1)) * 2 + 1
    flat = channels.numpy().reshape(2, 3, -1)
    wanted = np.concatenate((flat.mean(2), np.log(flat.std(2))), 1)
    np.testing.assert_allclose(heads_module._statistics(channels).numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_what_is_told_of_the_target_is_weighted_by_its_probability():
    """Weights of 0 and 3 at the corners of a known half: numpy's mean and SD of that half, times n / (n + 1 / 3)."""
    channels = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(1)) * 2 + 1
    weights = torch.zeros(2, 4, 5, 6)
    weights[:, :2] = 3.0
    half = channels.numpy()[:, :, :2].reshape(2, 3, -1)
    share = half.shape[2] * 3 / (half.shape[2] * 3 + 1)
    mean = half.mean(2) * share
    variance = ((half - mean[:, :, None]) ** 2).mean(2) * share
    wanted = np.concatenate((mean, np.log(np.sqrt(variance))), 1)
    np.testing.assert_allclose(heads_module._statistics(channels, weights).numpy(), wanted, rtol=1e-4, atol=1e-5)
    nothing = heads_module._statistics(channels, torch.zeros(2, 4, 5, 6))
    np.testing.assert_allclose(nothing[:, :3].numpy(), 0)


def test_heads_see_the_entropy_and_the_probability_of_the_target():
    generator = torch.Generator().manual_seed(2)
    features, logits = torch.randn(2, 4, 3, 3, 3, generator=generator), torch.randn(2, 3, 3, 3, 3, generator=generator)
    seen = heads_module._seen(features, logits).numpy()
    p = softmax(logits.numpy().astype(float), axis=1)
    np.testing.assert_array_equal(seen[:, :4], features.numpy())
    np.testing.assert_array_equal(seen[:, 4:7], logits.numpy())
    np.testing.assert_allclose(seen[:, 7], entropy(p, axis=1), rtol=1e-5)
    np.testing.assert_allclose(seen[:, 8], p[:, 1:].sum(1), rtol=1e-5)


def test_the_image_s_part_is_what_every_voxel_shares():
    """Before the bounds, the log variances less the image's part are those of heads that know voxels only."""
    net = stirred(build())
    x = images(8, 8, 8)
    with torch.no_grad():
        full = net(x)
        assert full.of_image[:, 1:].abs().min() > 1e-3
        assert not full.of_image[:, 0].any()
        net.heads.of_whole.weight.zero_()
        alone = net(x)
    bounds, at = net.heads.bounds, (0, 2, 3, 4, 5)
    before = [bounds.inverse(float(each.log_variance[at])) for each in (full, alone)]
    assert before[0] - before[1] == pytest.approx(float(full.of_image[0, 2]), abs=1e-4)
