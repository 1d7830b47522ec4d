"""Losses of decoupled uncertainty against numpy, scipy, MONAI and closed forms; the schedule against its definition."""

import json
from math import exp, log, log1p

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from scipy.special import log_softmax

from trainers.quality.losses import attenuated, consistency, cross_entropy, image_level, similarity, soft_dice
from trainers.quality.plateau import Plateau


def drawn(*shape, seed=3, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_cross_entropy_of_each_voxel_is_scipys():
    logits = 6 * drawn(2, 3, 4, 5, 2) - 3
    target = torch.randint(3, (2, 4, 5, 2), generator=torch.Generator().manual_seed(1), dtype=torch.int16)
    wanted = -np.take_along_axis(log_softmax(logits.numpy(), 1), target.numpy()[:, None].astype(int), 1)[:, 0]
    np.testing.assert_allclose(cross_entropy(logits, target).numpy(), wanted, rtol=1e-13)
    # two classes: log(1 + exp(-margin)); half precision is summed in float32
    two = torch.tensor([[0.0, 8.0]], dtype=torch.bfloat16)[..., None]
    found = cross_entropy(two, torch.tensor([[1]]))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(log1p(exp(-8)), rel=1e-4)


@pytest.mark.parametrize(("ce", "epsilon"), [(0.7, 0.05), (2.5, 1e-3), (0.03, 0.05), (0.01, 0.05)])
def test_equation_4_is_least_at_twice_the_cross_entropy_less_epsilon(ce, epsilon):
    best = 2 * ce - epsilon
    of = torch.tensor([[ce]], dtype=torch.float64)
    # by a dense grid of log variances, not by the derivative
    grid = torch.linspace(-14, 4, 180_001, dtype=torch.float64).exp()
    loss = attenuated(of.expand(1, len(grid)), grid[None], epsilon)[0]
    if best <= 0:
        assert loss.argmin() == 0
        assert (loss.diff() > 0).all()
        return
    assert grid[loss.argmin()].item() == pytest.approx(best, rel=2e-4)
    # the least value: CE / (2 CE) + 1/2 log(2 CE)
    at = torch.tensor([[best]], dtype=torch.float64)
    assert attenuated(of, at, epsilon).item() == pytest.approx(0.5 + 0.5 * log(2 * ce), rel=1e-13)


def test_equation_4_by_hand_and_its_bound_where_the_variance_vanishes():
    assert attenuated(torch.tensor([[3.0]]), torch.tensor([[0.0]]), 0.05).item() == pytest.approx(60 + 0.5 * log(0.05))
    assert attenuated(torch.tensor([[1.0]]), torch.tensor([[1.95]]), 0.05).item() == pytest.approx(0.5 + 0.5 * log(2))
    with pytest.raises(ValueError, match="epsilon: got 0; give a number above 0"):
        attenuated(torch.tensor([[3.0]]), torch.tensor([[0.0]]), 0.0)


def wanted_similarity(pseudo, own):
    """Of one map, with scipy's running mean, for the voxels whose neighbours are all inside."""
    c1, c2 = (0.01 * pseudo.max()) ** 2, (0.03 * pseudo.max()) ** 2
    m_p, m_v = uniform_filter(pseudo, 3), uniform_filter(own, 3)
    s_pp, s_vv = uniform_filter(pseudo**2, 3) - m_p**2, uniform_filter(own**2, 3) - m_v**2
    s_pv = uniform_filter(pseudo * own, 3) - m_p * m_v
    found = (2 * m_p * m_v + c1) * (2 * s_pv + c2) / ((m_p**2 + m_v**2 + c1) * (s_pp + s_vv + c2))
    return found[1:-1, 1:-1, 1:-1]


def test_similarity_is_that_of_scipys_mean_filter():
    pseudo, own = drawn(2, 3, 5, 6, 4), 3 * drawn(2, 3, 5, 6, 4, seed=4)
    # each image and source has its own range
    scale = torch.tensor([[1.0, 20, 0.02], [5, 0.3, 54]], dtype=torch.float64)[..., None, None, None]
    pseudo, own = pseudo * scale, own * scale
    found = similarity(pseudo, own)
    assert found.shape == (2, 3, 3, 4, 2)
    for b in range(2):
        for s in range(3):
            wanted = wanted_similarity(pseudo[b, s].numpy(), own[b, s].numpy())
            np.testing.assert_allclose(found[b, s].numpy(), wanted, rtol=1e-10)
    np.testing.assert_allclose(similarity(8 * pseudo, 8 * own).numpy(), found.numpy(), rtol=1e-12)
    np.testing.assert_allclose(similarity(pseudo, pseudo).numpy(), 1, rtol=1e-12)


def test_similarity_of_flat_maps():
    # without variance only the means count: (2 p v + C1) / (p^2 + v^2 + C1)
    p, v = 0.5, 2.0
    found = similarity(torch.full((1, 1, 3, 3, 3), p), torch.full((1, 1, 3, 3, 3), v))
    c1 = (0.01 * p) ** 2
    assert found.item() == pytest.approx((2 * p * v + c1) / (p * p + v * v + c1), rel=1e-5)
    nothing = torch.zeros(1, 1, 3, 3, 3)
    assert similarity(nothing, nothing).item() == pytest.approx(1)
    # float32, a map ten thousand times the teacher's: rounding must not break through
    wild = 50 * drawn(1, 1, 6, 6, 6, dtype=torch.float32)
    found = similarity(1e-4 * wild / 50, wild)
    assert float(found.abs().max()) < 0.05
    with pytest.raises(ValueError, match="give at least 3 along each axis"):
        similarity(torch.ones(1, 1, 3, 2, 3), torch.ones(1, 1, 3, 2, 3))


def test_equation_7_in_numpy():
    pseudo, own = drawn(2, 2, 4, 5, 3), drawn(2, 2, 4, 5, 3, seed=9)
    p, v = pseudo.numpy(), own.numpy()
    structure = np.mean([wanted_similarity(p[b, s], v[b, s]).mean() for b in range(2) for s in range(2)])
    slopes = sum(np.abs(np.diff(v, axis=a) - np.diff(p, axis=a)).mean() for a in (2, 3, 4))
    wanted = np.abs(p - v).mean() + slopes + 0.1 * (1 - structure)
    assert consistency(pseudo, own).item() == pytest.approx(wanted, rel=1e-12)
    # a constant offset has no slopes
    without = consistency(pseudo, pseudo + 0.25, ssim_weight=0.0)
    assert without.item() == pytest.approx(0.25, rel=1e-12)
    assert consistency(pseudo, pseudo).item() == pytest.approx(0, abs=1e-12)
    pseudo.requires_grad_()
    consistency(pseudo, own.requires_grad_()).backward()
    assert pseudo.grad is None
    # along one voxel, by central differences
    step = torch.zeros_like(own)
    step[0, 1, 2, 3, 1] = 1e-6
    with torch.no_grad():
        slope = float(consistency(pseudo, own + step) - consistency(pseudo, own - step)) / 2e-6
    assert float(own.grad[0, 1, 2, 3, 1]) == pytest.approx(slope, rel=1e-4)


def test_dice_agrees_with_monai_where_the_class_is_there():
    from monai.losses.dice import DiceLoss

    logits = 8 * drawn(2, 3, 6, 5, 4) - 4
    target = torch.randint(3, (2, 6, 5, 4), generator=torch.Generator().manual_seed(2))
    monai = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, smooth_nr=1.0, smooth_dr=1.0)
    assert soft_dice(logits, target).item() == pytest.approx(monai(logits, target[:, None]).item(), rel=1e-12)


def test_dice_by_hand_and_of_an_empty_target():
    # two voxels, p = 3/4 and 1/4 of the foreground, the first is true: 1 - (2 x 3/4 + 1) / (1 + 1 + 1)
    logits = torch.tensor([[[0.0, 0.0], [log(3), -log(3)]]], dtype=torch.float64)
    assert soft_dice(logits, torch.tensor([[1, 0]])).item() == pytest.approx(1 - 2.5 / 3, rel=1e-12)
    # a confident network and nothing to find: MONAI's smoothing of 1e-5 answers 0.17 to 1 here
    empty = torch.stack((torch.full((1, 40, 40, 40), 20.0), torch.zeros(1, 40, 40, 40)), 1)
    target = torch.zeros(1, 40, 40, 40, dtype=torch.int64)
    assert 0 <= soft_dice(empty, target).item() < 2e-4
    assert soft_dice(empty, target + 1).item() == pytest.approx(1, abs=1e-4)
    assert soft_dice(-empty, target + 1).item() == pytest.approx(0, abs=1e-4)


def test_the_image_level_loss_is_least_where_the_mean_is_the_excess():
    excess = torch.tensor([[0.0, 0.02, 0.7, 5.0]], dtype=torch.float64)
    grid = torch.linspace(0, 6, 60_001, dtype=torch.float64)
    for t in excess[0]:
        losses = torch.stack([image_level(t.reshape(1, 1), m.reshape(1, 1)) for m in grid[::100]])
        assert grid[::100][losses.argmin()].item() == pytest.approx(t.item(), abs=6e-3)
    # what it costs to be off: r - log r - 1 of r = (t + o) / (m + o), averaged
    mean = torch.tensor([[0.03, 0.02, 0.2, 9.0]], dtype=torch.float64)
    ratio = ((excess + 0.03) / (mean + 0.03)).numpy()
    gap = image_level(excess, mean) - image_level(excess, excess)
    assert gap.item() == pytest.approx((ratio - np.log(ratio) - 1).mean(), rel=1e-12)
    # noisy excesses, negative ones too: least at their mean
    noisy = torch.tensor([[-0.1], [0.5], [0.2]], dtype=torch.float64)
    best, beside = (image_level(noisy, torch.full_like(noisy, m)) for m in (0.2, 0.22))
    assert best < beside
    assert best < image_level(noisy, torch.full_like(noisy, 0.18))
    with pytest.raises(ValueError, match="offset: got 0"):
        image_level(excess, mean, offset=0.0)


def test_gradients_are_those_of_finite_differences():
    target = torch.randint(2, (1, 3, 4, 3), generator=torch.Generator().manual_seed(5))
    logits = (4 * drawn(1, 2, 3, 4, 3) - 2).requires_grad_()
    # the largest value, which sets the range of the similarity, is the teacher's
    pseudo, own = 1 + drawn(1, 2, 4, 3, 3), drawn(1, 2, 4, 3, 3, seed=7).requires_grad_()
    flat = (0.1 + drawn(1, 2, seed=8)).requires_grad_()
    variance = drawn(1, 3, 4, 3, seed=6).requires_grad_()
    for function, inputs in (
        (lambda f: cross_entropy(f, target), (logits,)),
        (lambda f, v: attenuated(cross_entropy(f, target), v, 0.05), (logits, variance)),
        (lambda v: consistency(pseudo, v), (own,)),
        (lambda f: soft_dice(f, target), (logits,)),
        (lambda m: image_level(torch.full_like(m, 0.4), m), (flat,)),
    ):
        assert torch.autograd.gradcheck(function, inputs)


SHORT = {"epsilon": 0.05, "lr": 0.01, "window": 4, "patience": 8, "threshold": 0.01}


def run(plateau, losses):
    for loss in losses:
        plateau = plateau.after(loss)
    return plateau


def test_epsilon_and_rate_are_halved_six_times_at_a_flat_loss_and_then_stay():
    plateau, halvings = Plateau(**SHORT), []
    for iteration in range(200):
        after = plateau.after(-0.3)
        if after.epsilon != plateau.epsilon:
            halvings.append(iteration + 1)
            assert (after.epsilon, after.lr) == (plateau.epsilon / 2, plateau.lr / 2)
        plateau = after
    # one window for the best mean, two without a better one
    assert halvings == [12, 24, 36, 48, 60, 72]
    assert plateau.ended
    assert plateau.epsilon == 0.05 / 64
    assert plateau.lr == 0.01 / 64


def test_a_loss_that_falls_by_more_than_the_threshold_is_no_plateau():
    falling = [1 - 0.003 * i for i in range(400)]
    assert run(Plateau(**SHORT), falling).epsilon == 0.05
    # 0.012 a window, but a threshold of 0.02: every second mean is better, so that never 8 iterations pass
    assert run(Plateau(**SHORT | {"threshold": 0.02}), falling).epsilon == 0.05
    # a fall of 0.00396 a window reaches the threshold too late
    assert run(Plateau(**SHORT), [1 - 0.00099 * i for i in range(12)]).epsilon == 0.025
    # a loss that oscillates within a window is smoothed away
    waves = [loss + 5 * (-1) ** i for i, loss in enumerate(falling)]
    assert run(Plateau(**SHORT), waves).epsilon == 0.05


def test_a_resumed_schedule_is_the_unbroken_one():
    losses = [float(x) for x in 1 / np.arange(1, 61) + np.random.default_rng(2).normal(0, 0.05, 60)]
    unbroken = run(Plateau(**SHORT), losses)
    assert unbroken.epsilon < 0.05
    for stop in range(60):
        state = json.loads(json.dumps(run(Plateau(**SHORT), losses[:stop]).state(), allow_nan=False))
        assert run(Plateau.from_state(state), losses[stop:]) == unbroken


def test_refuses_what_is_no_schedule():
    with pytest.raises(ValueError, match="loss: got nan"):
        Plateau(**SHORT).after(float("nan"))
    for change in ({"epsilon": 0.0}, {"lr": -1.0}, {"window": 0}, {"patience": 0}, {"threshold": -0.1}):
        (name,) = change
        with pytest.raises(ValueError, match=f"{name} must be"):
            Plateau(**SHORT | change)
