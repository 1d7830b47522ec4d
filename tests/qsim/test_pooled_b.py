"""B under a fitted histogram of T1: against EM in float64, against the profile, with what is known before.

And B from the means of blocks: against sums written out, its variance against its errors, and where it is taken.
"""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from qsim.errors import InputError
from qsim.estimators import build_estimator
from qsim.estimators.pooling.block_means import enough_blocks, homogeneous_blocks, pool_blocks
from qsim.estimators.pooling.pooled_b import mean_square, pool_b
from qsim.estimators.pooling.profile import Profile
from tests.published import TI_31
from tests.qsim.brain_like import IR, brain_like, noisy_images


def likelihood(images, b, sweeps=300, length=0.0):
    """Plain EM in float64 on 300 atoms: max over p of sum_v log sum_k p_k exp(F^2 / 2) |d_k|^-length."""
    t1 = torch.logspace(-1, np.log10(6), 300, dtype=torch.float64)
    atoms = (1 - b * torch.exp(-torch.tensor(TI_31, dtype=torch.float64) / t1[:, None])).abs()
    norm = atoms.norm(dim=1, keepdim=True)
    height = ((atoms / norm) @ images.double()).clamp_min(0).square() / 2 - length * norm.log()
    top = height.amax(0)
    weight = torch.exp(height - top)
    p = torch.full((300,), 1 / 300, dtype=torch.float64)
    for _ in range(sweeps):
        p = p * (weight @ (1 / (p @ weight))) / images.shape[1]
    return float((top + (p @ weight).log()).sum())


@pytest.mark.parametrize("sigma", [0.149, 0.072])
def test_b_is_the_maximum_of_the_likelihood(sigma):
    kappa, _ = brain_like(2, 1500)
    images = noisy_images(kappa, sigma, 102) / sigma
    found = pool_b(TI_31, False, images)
    assert found.converged
    here = likelihood(images, found.b)
    highest = max(likelihood(images, b) for b in np.linspace(found.b - 0.4, found.b + 0.4, 33))
    # a log-likelihood 1 below the best is 1.4 standard errors away; EM ends after 16 steps here, after 300 there
    assert here > highest - 1.0
    assert float(found.histogram.sum()) == pytest.approx(1, abs=1e-5)


def test_flat_prior_of_the_amplitude_fails():
    """Why F^2 is used as it is: with 1 / |d| as well, B runs to where the signals are small."""
    kappa, _ = brain_like(2, 800, b=1.85)
    images = noisy_images(kappa, 0.149, 102) / 0.149
    grid = np.arange(1.0, 2.3, 0.1)
    plain, flat = (
        grid[int(np.argmax([likelihood(images, b, sweeps=40, length=length) for b in grid]))] for length in (0.0, 1.0)
    )
    assert abs(plain - 1.85) < 0.25
    assert flat < 1.5


def test_better_than_the_profile_at_high_noise():
    """RMS error of B over eight draws at sigma .149; with 16 000 voxels .041 against .060 in twelve draws."""
    profile, pooled = [], []
    for draw in range(8):
        kappa, _ = brain_like(draw, 4000)
        images = noisy_images(kappa, 0.149, 100 + draw)
        b = float(kappa[1, 0])
        one = build_estimator("shared-b", IR, {"pooling": "profile"})(images, sigma=0.149)
        profile.append(float(one.kappa[1, 0]) - b)
        pooled.append(pool_b(TI_31, False, images / 0.149).b - b)
    rms = [float(np.sqrt(np.mean(np.square(errors)))) for errors in (profile, pooled)]
    assert rms[1] < 0.85 * rms[0]
    # eight draws: the RMS itself is known to a quarter
    assert rms[1] < 0.08


def test_prior_of_b_counts_as_it_should():
    """A normal prior that knows as much as the images puts B in the middle of both."""
    kappa, _ = brain_like(5, 1500, b=1.8)
    images = noisy_images(kappa, 0.149, 3) / 0.149
    plain = pool_b(TI_31, False, images)
    sd = plain.variance**0.5
    mean = plain.b - 2 * sd
    found = pool_b(TI_31, False, images, lambda b: -((b - mean) ** 2) / (2 * sd**2))
    # the likelihood is a parabola only nearly
    assert found.b == pytest.approx(plain.b - sd, abs=0.5 * sd)
    assert found.variance == pytest.approx(plain.variance / 2, rel=0.4)


def test_same_voxels_in_any_batch_and_signed_series():
    kappa, _ = brain_like(5, 1500, b=1.8)
    images = noisy_images(kappa, 0.149, 3) / 0.149
    assert pool_b(TI_31, False, images).b == pool_b(TI_31, False, images.clone()).b
    model = type(IR)(ti=TI_31, signed=True)
    signed = noisy_images(kappa, 0.149, 3, model) / 0.149
    # without the modulus the signs say where the zero crossing is: the standard error is about .01
    assert pool_b(TI_31, True, signed).b == pytest.approx(1.8, abs=0.05)


def test_a_flat_likelihood_has_the_variance_of_its_range():
    """Times of 6 s and more, T1 1.1 s: any B in [0, 3] will do, whatever little bump is the highest."""
    model = type(IR)(ti=(6.0, 7.0, 8.0, 9.0))
    kappa = torch.tensor([1.0, 1.9, 1.1], dtype=torch.float64)[:, None].repeat(1, 300)
    for seed in range(2):
        found = pool_b(model.ti, False, noisy_images(kappa, 0.02, seed, model) / 0.02)
        assert found.variance**0.5 > 0.75
    # a peak keeps its curvature
    peaked, _ = brain_like(5, 1500, b=1.8)
    images = noisy_images(peaked, 0.149, 3) / 0.149
    assert pool_b(TI_31, False, images).variance ** 0.5 < 0.1
    assert mean_square(TI_31, False, images, 1.8) ** 0.5 < 0.2
    assert mean_square(TI_31, False, images, 0.8) ** 0.5 == pytest.approx(1.0, abs=0.2)


def layout(seed, size=72, b=None, between=1.0):
    """The voxels of `brain_like` in patches of some 10 voxels: maps (A, B, T1), tissue, shape (3, size, size)."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.standard_normal((size, size)), 5, mode="wrap").ravel()
    kappa, label = brain_like(seed, size * size, b=b, between=between)
    # the tissues keep their shares: the voxels of each tissue fill the places of its rank in the field
    place = np.empty(size * size, dtype=np.int64)
    place[np.argsort(field)] = np.argsort(label.numpy(), kind="stable")
    return kappa[:, place].reshape(3, size, size), label[place].reshape(size, size)


def grains(kappa, sigma, seed):
    """Its images with noise."""
    return noisy_images(kappa.flatten(1), sigma, seed).reshape(31, *kappa.shape[1:])


def test_blocks_are_weighed_means_in_the_order_of_their_scatter():
    """Written out block by block, in 3D, on a mask with holes, with a map of sigma."""
    rng = np.random.default_rng(0)
    images, sigma = rng.standard_normal((5, 2, 7, 9)), 0.5 + rng.random((2, 7, 9))
    where = rng.random((2, 7, 9)) > 0.04
    found = homogeneous_blocks(torch.tensor(images), torch.tensor(where), torch.tensor(sigma[where]), share=0.3)
    rows = []
    for z, i, j in np.ndindex(2, 5, 7):
        if not where[z, i : i + 3, j : j + 3].all():
            continue
        y = images[:, z, i : i + 3, j : j + 3].reshape(5, 9)
        s = sigma[z, i : i + 3, j : j + 3].ravel()
        rows.append(((z, i, j), np.average(y, axis=1, weights=s**-2), s, y))
    scaled = np.stack([mean * (s**-2).sum() ** 0.5 for _, mean, s, _ in rows])
    axes = np.linalg.svd(scaled, full_matrices=False)[2][:4]
    scatter = [(((axes @ (y - mean[:, None])) / s) ** 2).sum() for _, mean, s, y in rows]
    best = np.sort(np.argsort(scatter)[: round(0.3 * len(rows))])
    np.testing.assert_allclose(found.y.numpy().T, scaled[best], rtol=1e-5, atol=1e-6)
    assert [tuple(x) for x in torch.nonzero(found.chosen).tolist()] == [rows[i][0] for i in best]
    every = [(((y - mean[:, None]) / s) ** 2).sum() / 40 for _, mean, s, y in rows]
    assert found.scatter == pytest.approx(np.mean(np.array(every)[best]), rel=1e-9)


@pytest.mark.parametrize("sigma", [0.2167, 0.13])
def test_chosen_blocks_hold_one_tissue(sigma):
    kappa, label = layout(1, 96)
    where = torch.ones(96, 96, dtype=torch.bool)
    chosen = homogeneous_blocks(grains(kappa, sigma, 3), where, torch.full((1,), sigma, dtype=torch.float64)).chosen[0]
    windows = label.unfold(0, 3, 1).unfold(1, 3, 1).flatten(2)
    mixed = windows.amin(2) != windows.amax(2)
    assert float(mixed.double().mean()) > 0.25
    # boundaries between grey and white matter of like signal are the last to be seen
    assert float(mixed[chosen].double().mean()) < 0.15


def test_variance_of_blocks_is_that_of_their_errors():
    """One truth, 12 draws of the noise: SD of B against the claimed SD, which holds a factor for the pull of the kinks;
    overlap makes it 2 to 3 times that of as many blocks on their own."""
    sigma, where = 0.15, torch.ones(64, 64, dtype=torch.bool)
    kappa, _ = layout(2, 64, b=1.85)
    level = torch.full((1,), sigma, dtype=torch.float64)
    found = [pool_blocks(TI_31, False, homogeneous_blocks(grains(kappa, sigma, s), where, level)) for s in range(12)]
    b, variance, converged = (np.array(column) for column in zip(*found, strict=True))
    assert converged.all()
    # the claimed variance is 1.4 times that of the slopes, or more; 12 draws: the SD is known to 20 %
    assert 0.5 < b.std(ddof=1) / np.sqrt(variance.mean()) < 1.3


def explained(y, times, b):
    """The best (S.d)^2 / d.d of each column of y, over 3000 log T1 and between them by a parabola."""
    t1 = np.geomspace(0.01, 6, 3000)
    atoms = np.abs(1 - b * np.exp(-np.array(times) / t1[:, None]))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    height = np.maximum(atoms @ y, 0) ** 2
    best = np.clip(height.argmax(0), 1, len(t1) - 2)
    low, top, high = (height[best + i, np.arange(y.shape[1])] for i in (-1, 0, 1))
    bend = 2 * top - low - high
    return top + np.where(bend > 0, (high - low) ** 2 / (8 * np.where(bend > 0, bend, 1)), 0)


def test_variance_of_blocks_written_out():
    """Slopes as differences of a dense search, their sum over pairs that overlap, and how far each side reaches."""
    kappa, _ = layout(4, 36, b=1.85)
    sigma = torch.full((1,), 0.2167, dtype=torch.float64)
    blocks = homogeneous_blocks(grains(kappa, 0.2167, 6), torch.ones(36, 36, dtype=torch.bool), sigma)
    b, variance, _ = pool_blocks(TI_31, False, blocks)
    y, first = blocks.y.double().numpy(), torch.nonzero(blocks.chosen[0]).numpy()

    def slopes(at):
        return (explained(y, TI_31, at + 1e-3) - explained(y, TI_31, at - 1e-3)) / 2e-3

    near = np.abs(first[:, None] - first[None]).max(-1) < 3
    spread = slopes(b) @ near @ slopes(b)
    # the reach over which the slope is taken is two standard errors of as many independent blocks
    reach = 2 * (2 / -Profile(TI_31, False, blocks.y).maximise()[0].curvature) ** 0.5
    bend = (slopes(b + reach).sum() - slopes(b - reach).sum()) / (2 * reach)
    sd = spread**0.5 / -bend
    sides = [2 * sd * spread**0.5 / abs(slopes(b + side * sd).sum()) for side in (-2, 2)]
    # a block that changes its peak within the difference counts otherwise: 3 % of a sum, twice squared
    assert variance == pytest.approx(1.4 * max(sd, *sides) ** 2, rel=0.15)


def test_auto_takes_blocks_where_neighbours_are_alike():
    """And not in a list of voxels, or where noise is low; of few voxels the mean of both."""
    few = grains(layout(3, 48, b=1.9)[0], 0.13, 1)
    names = ("blocks", "auto", "histogram")
    found = [
        build_estimator("shared-b", IR, {"pooling": name, "covariance": True})(few, 0.13).kappa[1, 0, 0]
        for name in names
    ]
    assert min(found[0], found[2]) < found[1] < max(found[0], found[2])
    kappa, _ = layout(3, 72, b=1.9)
    sigma = 0.2167
    images = grains(kappa, sigma, 1)

    def b(images, sigma=sigma, pooling="auto"):
        return float(build_estimator("shared-b", IR, {"pooling": pooling})(images, sigma).kappa[1].nanmedian())

    blocks = b(images, pooling="blocks")
    assert b(images) == b(images[:, None]) == blocks
    assert float(build_estimator("empirical-bayes", IR)(images, sigma).kappa[1, 0, 0]) == blocks
    # only the order of the scatter counts, so that a wrong sigma does no harm; a tenth of the SD of B
    for other in (0.8 * sigma, 1.2 * sigma, None):
        assert b(images, other) == pytest.approx(blocks, abs=2e-3)
    assert b(images.flatten(1)) == b(images, pooling="histogram") != blocks
    low = grains(kappa, 0.02, 1)
    assert b(low, 0.02) == b(low, 0.02, pooling="profile")


def test_where_there_are_no_blocks_to_take():
    full = torch.ones(64, 64, dtype=torch.bool)
    assert enough_blocks(full)
    assert not enough_blocks(torch.arange(64)[:, None].expand(64, 64) % 3 > 0)
    assert not enough_blocks(full[:20, :20])
    assert not enough_blocks(full.flatten())
    # in strips of three voxels one block begins for three voxels
    assert enough_blocks(torch.arange(64)[:, None].expand(64, 64) % 4 > 0)
    # voxels in no order: no block is of one tissue, which auto sees by their scatter
    sigma = 0.2167
    kappa, _ = layout(3, 64, b=1.9)
    order = torch.randperm(64 * 64, generator=torch.Generator().manual_seed(0))
    shuffled = kappa.flatten(1)[:, order].reshape(kappa.shape)
    level = torch.full((1,), sigma, dtype=torch.float64)
    alike, unlike = (homogeneous_blocks(grains(k, sigma, 1), full, level).scatter for k in (kappa, shuffled))
    assert alike < 1.05
    assert unlike > 1.1


def test_blocks_are_better_than_the_histogram_at_very_high_noise():
    errors = {"blocks": [], "histogram": []}
    for draw in range(4):
        kappa, _ = layout(draw, 64)
        for name, error in errors.items():
            found = build_estimator("shared-b", IR, {"pooling": name})(grains(kappa, 0.2167, 50 + draw), sigma=0.2167)
            error.append(float(found.kappa[1, 0, 0] - kappa[1, 0, 0]))
    rms = {name: float(np.sqrt(np.mean(np.square(error)))) for name, error in errors.items()}
    assert rms["blocks"] < 0.8 * rms["histogram"]


def test_intervals_of_b_from_blocks_cover():
    """Ten subjects at SNR 3 and 5."""
    z, where = [], torch.ones(64, 64, dtype=torch.bool)
    for draw in range(10):
        sigma = (0.2167, 0.13)[draw % 2]
        kappa, _ = layout(draw, 64)
        blocks = homogeneous_blocks(
            grains(kappa, sigma, 70 + draw), where, torch.full((1,), sigma, dtype=torch.float64)
        )
        b, variance, _ = pool_blocks(TI_31, False, blocks)
        z.append((b - float(kappa[1, 0, 0])) / variance**0.5)
    # of 10 that cover 95 %, three outside have a chance of 1 %
    assert np.sum(np.abs(z) < 1.96) >= 8
    assert 0.4 < np.sqrt(np.mean(np.square(z))) < 1.5


def test_blocks_refuse_what_holds_none():
    estimate = build_estimator("shared-b", IR, {"pooling": "blocks"})
    for shape in ((900,), (20, 20), (2, 600)):
        with pytest.raises(InputError, match="pooling: blocks needs images of two axes or more, and 500 blocks"):
            estimate(torch.ones(31, *shape), sigma=0.1)
