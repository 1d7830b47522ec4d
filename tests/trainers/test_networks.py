"""Networks: what they see, what they must not see, and that gradients reach every weight."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.information import likelihood_gradient
from qsim.parameters import T1, A, B
from qsim.signals import InversionRecovery, T2Prep
from trainers.data import Batch
from trainers.losses import squared_error
from trainers.networks import ResNetNetwork, RIMNetwork
from trainers.networks.blocks import ConvGRU
from trainers.networks.coordinates import Coordinates
from trainers.networks.posterior import damped_step, quadratic, weighted_mean
from trainers.tasks import RIMTask, supervised

TI = (0.15, 0.25, 0.4, 0.55, 0.7, 0.94)
MODEL = InversionRecovery(ti=TI)
PAPER = RIMNetwork(features=4, steps=2, update="additive", gradient="per_n", start="fixed", padding="replicate")
SPECS = [
    RIMNetwork(features=6, steps=2),
    RIMNetwork(features=6, steps=2, update="log"),
    ResNetNetwork(stem=6, widths=(6, 8)),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(spec, model=MODEL, seed=0):
    return spec.build(model, tuple(model.parameters), generator(seed))


def series(model, b, y, x, sigma=0.02, seed=0):
    """Noisy images and the maps they came from, of random tissue."""
    g = generator(seed)
    a = 0.5 + torch.rand(b, y, x, generator=g)
    inversion = 1.6 + 0.4 * torch.rand(b, 1, 1, generator=g).expand(b, y, x)
    time = 0.4 + 2.6 * torch.rand(b, y, x, generator=g)
    kappa = torch.stack((a, inversion, time)) if len(model.parameters) == 3 else torch.stack((a, time / 10))
    images = model(kappa).movedim(0, 1)
    return images + sigma * torch.randn(images.shape, generator=g), kappa.movedim(0, 1)


@pytest.mark.parametrize("gradient", ["asinh", "per_n"])
@pytest.mark.parametrize("update", ["log", "additive"])
def test_rim_gradient_is_autograd_of_the_log_density(gradient, update):
    """The input equals d/du of the Gaussian log-density that torch.distributions gives, by autograd through decode."""
    net = build(RIMNetwork(features=4, gradient=gradient, update=update)).double()
    images, kappa = series(MODEL, 2, 3, 5)
    images, kappa = images.double(), kappa.double()
    sigma = torch.tensor([0.03, 0.2], dtype=torch.float64).reshape(2, 1, 1)
    u = net.coordinates.encode(kappa * 1.2).requires_grad_()
    prediction = MODEL(net.coordinates.decode(u).movedim(1, 0)).movedim(0, 1)
    spread = sigma[:, None] if gradient == "asinh" else torch.ones(2, 1, 1, 1, dtype=torch.float64)
    density = torch.distributions.Normal(prediction, spread.expand_as(prediction)).log_prob(images)
    (slope,) = torch.autograd.grad(-density.sum() / len(TI), u)
    expected = torch.asinh(slope) if gradient == "asinh" else slope
    seen = net.gradient(net.coordinates.decode(u.detach()), images.movedim(1, 0).contiguous(), sigma)
    torch.testing.assert_close(seen, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 6, 31, 40])
def test_one_rim_maps_series_of_every_length(n):
    """The same weights, any N; and repeating every image leaves the maps as they were (gradient per N)."""
    ti = tuple(float(t) for t in torch.linspace(0.14, 0.94, n))
    once, twice = InversionRecovery(ti=ti), InversionRecovery(ti=ti + ti)
    spec = RIMNetwork(features=4, steps=2, update="log", start="fixed")
    images, _ = series(once, 1, 7, 9)
    sigma = torch.full((1, 1, 1), 0.05)
    short = build(spec, once)(images, sigma)
    assert short.shape == (1, 2, 3, 7, 9)
    long = build(spec, twice)(torch.cat((images, images), 1), sigma)
    torch.testing.assert_close(long, short, rtol=1e-3, atol=1e-3)  # float32 sums in another order, then asinh at 0


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=6, deadline=None)
@given(y=st.integers(1, 13), x=st.integers(1, 13))
def test_any_image_size(spec, y, x):
    images, kappa = series(MODEL, 2, y, x)
    u = build(spec)(images, torch.full((2, 1, 1), 0.05))
    assert u.shape[0] == 2
    assert u.shape[2:] == kappa.shape[1:]


@pytest.mark.parametrize("spec", SPECS)
def test_an_image_alone_equals_itself_in_a_batch_also_in_training_mode(spec):
    net = build(spec).train()
    images, _ = series(MODEL, 3, 9, 8)
    sigma = torch.tensor([0.02, 0.2, 0.05]).reshape(3, 1, 1)
    together = net(images, sigma)
    alone = torch.cat([net(images[i : i + 1], sigma[i : i + 1]) for i in range(3)])
    # convolutions of another batch size round differently, and a Gauss-Newton step amplifies it
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=3e-4)


def test_batch_norm_is_frozen_at_inference():
    net = build(ResNetNetwork(stem=6, widths=(6, 8), norm="batch"))
    images, _ = series(MODEL, 3, 9, 8)
    net.train()(images)
    net.eval()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    alone = torch.cat([net(images[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(net(images), alone, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())


def test_resnet_sees_no_further_than_its_kernels():
    """Two blocks of two 3 x 3 kernels reach 4 voxels: a change 5 voxels away changes nothing."""
    net = build(ResNetNetwork(stem=6, widths=(6, 8)))
    images, _ = series(MODEL, 1, 1, 21)
    changed = images.clone()
    changed[..., 0] += 100
    difference = (net(changed) - net(images)).abs().amax((0, 1, 2, 3))
    assert (difference[:5] > 0).all()
    assert (difference[5:] == 0).all()


@pytest.mark.parametrize("gates", [1, 3])
def test_rim_reach_grows_with_the_steps(gates):
    """Three 3 x 3 kernels a step reach 3 voxels (37 wide after 6 steps), with 3 x 3 gates further."""
    net = build(RIMNetwork(features=4, steps=1, gates=gates, update="log"))
    images, _ = series(MODEL, 1, 1, 41)
    changed = images.clone()
    changed[..., 0] += 1
    sigma = torch.full((1, 1, 1), 0.05)
    difference = (net(changed, sigma) - net(images, sigma)).abs().amax((0, 1, 2, 3))
    reach = 3 if gates == 1 else 5
    assert (difference[reach + 1 :] == 0).all()
    assert difference[reach] > 0


@pytest.mark.parametrize(
    "spec",
    [
        RIMNetwork(features=4, steps=2),
        RIMNetwork(features=4, steps=2, update="log", gates=3, activation="relu"),
        PAPER,
        ResNetNetwork(stem=4, widths=(4, 6)),
    ],
)
def test_the_loss_reaches_every_weight(spec):
    net = build(spec)
    images, kappa = series(MODEL, 2, 6, 7)
    u = net(images, torch.full((2, 1, 1), 0.05))
    (u - net.coordinates.encode(kappa)[:, None]).square().mean().backward()
    # the bias of a convolution right before a normalisation over channels still matters: the channels differ
    still = [name for name, w in net.named_parameters() if w.grad is None or not w.grad.abs().sum() > 0]
    assert still == []


def test_rim_is_first_order():
    """The likelihood gradient is a constant: the result depends differentiably on the images only through A's start."""
    net = build(PAPER)
    images, _ = series(MODEL, 1, 5, 5)
    images.requires_grad_()
    net(images, torch.full((1, 1, 1), 0.05)).square().sum().backward()
    # only the maximum over the images (the start of A) carries a gradient back to them
    assert ((images.grad != 0).sum(1) <= 1).all()


def test_rim_starts_where_the_paper_says():
    """A = maximum over the images, B = 2, T1 = 1 s; T2 = 0.1 s."""
    images, _ = series(MODEL, 2, 4, 3)
    net = build(PAPER)
    start = net.coordinates.decode(net.start(images))
    torch.testing.assert_close(start[:, 0], images.max(1).values)
    assert torch.equal(start[:, 1], torch.full((2, 4, 3), 2.0))
    assert torch.equal(start[:, 2], torch.full((2, 4, 3), 1.0))
    model = T2Prep(te_prep=(0.01, 0.02, 0.04, 0.08))
    images, _ = series(model, 2, 4, 3)
    net = build(PAPER, model)
    torch.testing.assert_close(net.coordinates.decode(net.start(images))[:, 1], torch.full((2, 4, 3), 0.1))


def test_an_additive_update_survives_times_below_zero():
    """The first step takes T1 to exactly 0, the next below it: the answer stays what the updates add up to."""
    spec = RIMNetwork(update="additive", gradient="per_n", start="fixed", features=6, steps=3)
    model = InversionRecovery(ti=(0.15, 0.5, 0.9))
    net = spec.build(model, model.parameters, torch.Generator().manual_seed(0))
    with torch.no_grad():
        net.out.weight.zero_()
        net.out.bias.copy_(torch.tensor([0.0, 0.0, -1.0]))
    images = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    u = net(images, None)
    kappa = net.coordinates.decode(u[0])
    torch.testing.assert_close(kappa[:, 2, 0, 0], torch.tensor([0.0, -1.0, -2.0]))
    u.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    # at physical times it is the gradient at the maps themselves
    physical = torch.tensor([0.8, 1.9, 1.2]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
    series = images.detach().movedim(1, 0)
    expected = likelihood_gradient(model, physical.movedim(1, 0), series, per_sigma2=False).movedim(0, 1)
    torch.testing.assert_close(net.gradient(physical, series, None), expected)


def test_weights_of_the_paper():
    """41 475 weights for three maps, as in the authors' package (36 features, 1 x 1 gates)."""
    assert (
        sum(w.numel() for w in build(RIMNetwork(update="additive", gradient="per_n", start="fixed")).parameters())
        == 41_475
    )


def test_kaiming_start():
    net = build(ResNetNetwork(stem=64, widths=(64,)))
    weight = net.blocks[0].conv2.weight
    # SD of an SD over 36 864 weights: 0.4 %
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)
    assert net.blocks[0].conv2.bias.abs().max() == 0


@pytest.mark.parametrize("model", [MODEL, T2Prep(te_prep=(0.01, 0.03, 0.08, 0.2))])
def test_the_posterior_step_solves_its_equations(model):
    """(J'J / sigma^2 + P) d = P m - J'r / sigma^2 in float64, with J by autograd and the solution by torch.linalg."""
    images, kappa = series(model, 2, 2, 3)
    images, kappa = images.double(), 1.1 * kappa.double()
    sigma = torch.tensor([0.03, 0.2], dtype=torch.float64).reshape(2, 1, 1)
    c = Coordinates(tuple(model.parameters), logarithmic=True)
    q, g = kappa.shape[1], generator(5)
    towards = torch.randn(kappa.shape, generator=g).double()
    precision = 1 + 50 * torch.rand(kappa.shape, generator=g).double()
    slope, curvature = quadratic(model, kappa, c.derivative(kappa), images.movedim(1, 0), sigma)
    step, variances = damped_step(slope, curvature, towards, precision)
    for b, y, x in [(0, 0, 0), (0, 1, 2), (1, 0, 1)]:
        u = c.encode(kappa[b, :, y, x].reshape(1, q, 1)).reshape(q)

        def signal(u):
            return model(c.decode(u.reshape(1, q, 1))[0])[:, 0]

        jacobian = torch.autograd.functional.jacobian(signal, u) / sigma[b]
        residual = (signal(u) - images[b, :, y, x]) / sigma[b, 0]
        matrix = jacobian.T @ jacobian + torch.diag(precision[b, :, y, x])
        right = precision[b, :, y, x] * towards[b, :, y, x] - jacobian.T @ residual
        torch.testing.assert_close(step[b, :, y, x], torch.linalg.solve(matrix, right), rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(variances[b, :, y, x], torch.linalg.inv(matrix).diagonal(), rtol=1e-8, atol=1e-12)


def test_the_weighted_mean_of_neighbours():
    """Against the sum written out, borders included; a constant stays what it is."""
    g = generator(4)
    u, weight = torch.randn(1, 2, 6, 5, generator=g).double(), torch.rand(1, 2, 6, 5, generator=g).double()
    mean = weighted_mean(u, weight, 2)
    for y, x in [(0, 0), (3, 2), (5, 1)]:
        near = (..., slice(max(0, y - 2), y + 3), slice(max(0, x - 2), x + 3))
        expected = (u * weight)[near].sum((-2, -1)) / weight[near].sum((-2, -1))
        torch.testing.assert_close(mean[..., y, x], expected)
    torch.testing.assert_close(weighted_mean(torch.full_like(u, 0.7), weight, 2), torch.full_like(u, 0.7))


def test_an_untrained_posterior_is_a_regularised_fit():
    """With the answer held at m = 0, P = 4, many steps on a signed series without noise end at the truth."""
    model = InversionRecovery(ti=TI, signed=True)
    net = build(RIMNetwork(features=4, steps=40), model).double()
    with torch.no_grad():
        net.out.weight.zero_()
    kappa = series(MODEL, 1, 4, 5)[1].double()
    images = model(kappa.movedim(1, 0)).movedim(0, 1)
    estimate = net(images, torch.full((1, 1, 1), 1e-4, dtype=torch.float64), True)[:, 0]
    torch.testing.assert_close(net.coordinates.decode(estimate), kappa, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("b", [1.5, 2.0])
def test_the_dictionary_starts_on_the_right_side_of_the_null(b):
    """Magnitudes without noise, T1 0.2 to 4 s: the start changes sign where the truth does, give or take an image."""
    times = torch.linspace(0.2, 4.0, 40)
    kappa = torch.stack((torch.full((40,), 0.7), torch.full((40,), b), times)).reshape(3, 1, 40)
    ti = tuple(0.139 + 0.0266 * i for i in range(31))
    net = build(RIMNetwork(features=4), InversionRecovery(ti=ti))
    start = net.coordinates.decode(net.start(InversionRecovery(ti=ti)(kappa)[None]))[0]
    signed = InversionRecovery(ti=ti, signed=True)
    wrong = ((signed(start) > 0) != (signed(kappa) > 0)).sum(0)
    assert (wrong <= 1).float().mean() >= 0.9


def test_the_dictionary_start_of_a_decay_is_of_the_size_of_the_images():
    """An atom that has decayed before the first echo matches noise, with an amplitude of thousands."""
    model = T2Prep(te_prep=(0.01, 0.02, 0.04, 0.08, 0.16, 0.32))
    net = RIMNetwork(features=4).build(model, tuple(model.parameters), torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(1)
    a = torch.rand(2, 9, 8, generator=g) * 0.8 + 0.2
    t2 = torch.rand(2, 9, 8, generator=g) * 0.3 + 0.02
    images = model(torch.stack((a, t2))).movedim(0, 1) + 0.25 * torch.randn(2, 6, 9, 8, generator=g)
    start = net.coordinates.decode(net.start(images))
    assert float(start[:, 0].abs().max()) < 10 * float(images.max())
    # without noise the start is the nearest of 40 times, 23 % apart
    clean = net.coordinates.decode(net.start(model(torch.stack((a, t2))).movedim(0, 1)))
    torch.testing.assert_close(clean[:, 1], t2, rtol=0.13, atol=0.0)


def test_gru_equals_that_of_torch():
    ours = ConvGRU(5, 1, "zeros")
    with torch.no_grad():
        ours.of_input.bias.normal_(generator=generator(1))
        ours.of_state.bias.normal_(generator=generator(2))
    theirs = torch.nn.GRUCell(5, 5)
    theirs.load_state_dict(
        {
            "weight_ih": ours.of_input.weight[..., 0, 0],
            "weight_hh": ours.of_state.weight[..., 0, 0],
            "bias_ih": ours.of_input.bias,
            "bias_hh": ours.of_state.bias,
        }
    )
    x, h = torch.randn(2, 2, 5, 3, 4, generator=generator(3))
    rows = [t.movedim(1, -1).reshape(-1, 5) for t in (x, h)]
    torch.testing.assert_close(ours(x, h).movedim(1, -1).reshape(-1, 5), theirs(*rows))
    torch.testing.assert_close(ours(x, None).movedim(1, -1).reshape(-1, 5), theirs(rows[0], torch.zeros_like(rows[1])))


def test_coordinates_round_trip_and_meaning():
    c = Coordinates((A, B, T1), logarithmic=True)
    kappa = torch.tensor([0.7, 1.9, 2.2]).reshape(1, 3, 1, 1)
    torch.testing.assert_close(c.decode(c.encode(kappa)), kappa)
    torch.testing.assert_close(c.encode(kappa).flatten(), torch.tensor([-0.3, -0.1, math.log(2.2)]))
    step = 1e-3
    slope = (c.decode(c.encode(kappa) + step) - c.decode(c.encode(kappa) - step)) / (2 * step)
    torch.testing.assert_close(c.derivative(kappa), slope, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("fields", [{"widths": ()}, {"widths": (0,)}, {"stem": 1.5}])
def test_bad_networks_are_refused_in_configs(fields):
    from pydantic import TypeAdapter, ValidationError

    with pytest.raises(ValidationError):
        TypeAdapter(ResNetNetwork).validate_python({"kind": "resnet", **fields})


def test_squared_error_by_hand():
    """Two samples, one step right and one wrong; voxels outside do not count, a sample with none inside is 0."""
    truth = torch.zeros(3, 2, 1, 3)
    u = torch.zeros(3, 2, 2, 1, 3)
    u[0, 1, 0, 0, 0] = 2.0  # inside: second step, first row
    u[0, 1, 1, 0, 2] = 9.0  # outside
    u[1, :, 1] = 1.0  # both steps, second row, everywhere
    u[2] = 5.0
    inside = torch.tensor([[[True, True, False]], [[True, True, True]], [[False, False, False]]])
    error = squared_error(u, truth, inside, torch.tensor([1.0, 3.0]))
    # 2^2 / (2 steps, 2 rows, 2 voxels); 3 x 1 / 2 rows; nothing
    torch.testing.assert_close(error, torch.tensor([0.5, 1.5, 0.0]))


def test_background_and_mixed_voxels_teach_nothing():
    """Maps of voxels without a tissue of at least `purity` may be anything: the loss is the same."""
    spec = RIMTask(purity=0.9)
    task = supervised(spec, RIMNetwork(features=4, steps=2), MODEL, ())
    net = build(RIMNetwork(features=4, steps=2))
    images, kappa = series(MODEL, 1, 4, 4)
    labels = torch.full((1, 4, 4), 2, dtype=torch.uint8)
    purity = torch.ones(1, 4, 4)
    labels[0, 0], purity[0, 1] = 0, 0.8
    batch = Batch(images, kappa, labels, purity, torch.tensor([0.05]), torch.tensor([0]))
    other = kappa.clone()
    other[:, :, :2] = 0.0
    changed = Batch(images, other, labels, purity, torch.tensor([0.05]), torch.tensor([0]))
    assert torch.equal(task.loss(net, batch)["total"], task.loss(net, changed)["total"])
    assert task.metrics(net, batch)["count"] == 8
