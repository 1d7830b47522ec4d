"""Figures of a segmentation: hand-made arrays, closed forms, scipy."""

from itertools import pairwise
from math import e, inf, isnan, log, nan, pi, sqrt

import numpy as np
import pytest
from jaxtyping import TypeCheckError
from scipy import stats

from qsim.errors import InputError
from qsim.evaluation.segmentation import (
    bernoulli_spread,
    contrast_to_noise,
    diagonal_leads,
    dice,
    entropic_variance,
    entropy,
    grey_matter_snr,
    leakage,
    mean_entropy,
    noise_snr,
    paper_volume_error,
    per_target,
    relative_spread,
    scaled_probabilities,
    spearman,
    spearman_by_cluster,
    spearman_within,
    volume,
)

# arrays that do not match: where signatures are checked, they say it first
MISFIT = (InputError, TypeCheckError)


def mask(*flags):
    return np.array(flags, dtype=bool)


# overlap and quality of the image


def test_dice_by_hand():
    a, b = mask(1, 1, 1, 0, 0), mask(0, 1, 1, 1, 1)
    assert dice(a, b) == dice(b, a) == pytest.approx(2 * 2 / (3 + 4))
    assert dice(a, a) == 1
    assert dice(a, ~a) == 0
    none = mask(0, 0, 0, 0, 0)
    assert (dice(none, none), dice(a, none)) == (1, 0)
    with pytest.raises(MISFIT):
        dice(a, mask(1, 0))


def test_snr_and_cnr_by_hand():
    # grey matter 4, 6, 8: mean 6, SD 2; white 9, 10, 11: mean 10, SD 1; air
    image = np.array([4.0, 6.0, 8.0, 9.0, 10.0, 11.0, 0.0, 1.0])
    gm, wm, air = mask(1, 1, 1, 0, 0, 0, 0, 0), mask(0, 0, 0, 1, 1, 1, 0, 0), mask(0, 0, 0, 0, 0, 0, 1, 1)
    assert grey_matter_snr(image, gm) == pytest.approx(3)
    found = contrast_to_noise(image, gm, wm)
    assert found["pooled"] == pytest.approx(4 / sqrt(2.5))
    assert found["difference"] == pytest.approx(7)
    assert noise_snr(image, gm, air) == pytest.approx(6 * sqrt(2))
    assert isnan(noise_snr(image, gm, mask(0, 0, 0, 0, 0, 0, 1, 0)))
    assert isnan(noise_snr(np.where(air, 0.0, image), gm, air))
    assert grey_matter_snr(np.ones(8), gm) == inf
    with pytest.raises(InputError, match="wm: 1 voxels"):
        contrast_to_noise(image, gm, mask(0, 0, 0, 1, 0, 0, 0, 0))
    with pytest.raises(MISFIT):
        grey_matter_snr(image, mask(1, 1))


def test_noise_snr_of_a_magnitude_image_is_that_of_the_complex_noise():
    rng = np.random.default_rng(0)
    image = 0.05 * np.hypot(*rng.standard_normal((2, 100000)))
    air = np.arange(100000) >= 10
    image[:10] = 1.0
    # SD of a Rayleigh distribution by scipy; an SD from n draws is good to 0.3 % or so
    assert noise_snr(image, ~air, air) == pytest.approx(1 / (0.05 * stats.rayleigh.std()), rel=0.01)
    assert noise_snr(image, ~air, air, magnitude=True) == pytest.approx(1 / 0.05, rel=0.01)


# probabilities


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_entropy_is_that_of_scipy(dtype):
    p = np.random.default_rng(1).dirichlet([0.3, 1, 2], size=(4, 5)).transpose(2, 0, 1).astype(dtype)
    p[:, 0, 0] = [1, 0, 0]
    np.testing.assert_allclose(entropy(p), stats.entropy(p, axis=0), rtol=1e-5, atol=1e-7)
    assert entropy(p)[0, 0] == 0
    assert mean_entropy(p) == pytest.approx(stats.entropy(p, axis=0).mean(), rel=1e-6)
    inside = np.zeros((4, 5), dtype=bool)
    inside[1, 2:4] = True
    assert mean_entropy(p, inside) == pytest.approx(stats.entropy(p[:, 1, 2:4], axis=0).mean(), rel=1e-6)
    two = np.array([0.2, 0.5], dtype=dtype)
    np.testing.assert_allclose(entropy(np.stack([two, 1 - two])), [stats.bernoulli(0.2).entropy(), log(2)], rtol=1e-6)


def test_entropy_refuses_what_is_no_distribution():
    with pytest.raises(InputError, match="from 0 to 1"):
        entropy(np.array([[nan], [1.0]]))
    with pytest.raises(InputError, match="from 0 to 1"):
        entropy(np.array([[-0.1], [1.1]]))
    with pytest.raises(InputError, match="add up"):
        entropy(np.array([[0.5], [0.4]]))
    with pytest.raises(InputError, match="mask"):
        mean_entropy(np.full((2, 3), 0.5), np.zeros(3, dtype=bool))


def test_entropic_variance_gives_a_gaussian_its_own():
    sd = np.array([0.1, 1.0, 7.0])
    h = np.array([stats.norm(scale=s).entropy() for s in sd])
    np.testing.assert_allclose(entropic_variance(h), sd**2, rtol=1e-12)
    # statistics.md: a certain voxel
    assert float(entropic_variance(0.0)) == pytest.approx(1 / (2 * pi * e))


def test_scaled_probabilities_against_the_formula():
    rng = np.random.default_rng(2)
    f, variance = rng.normal(0, 3, (3, 4, 2)), rng.uniform(0.3, 4, (4, 2))
    powers = np.exp(f / variance)
    np.testing.assert_allclose(scaled_probabilities(f, variance), powers / powers.sum(axis=0), rtol=1e-12)
    # of two classes it is a logistic function
    logistic = 1 / (1 + np.exp(-(f[0] - f[1]) / variance))
    np.testing.assert_allclose(scaled_probabilities(f[:2], variance)[0], logistic, rtol=1e-12)


def test_scaled_probabilities_at_the_ends():
    f = np.array([[1000.0, 1.0, 5.0], [-1000.0, 1.0, 4.0]], dtype=np.float32)
    found = scaled_probabilities(f, np.array([1e-30, 1e-30, 1e30], dtype=np.float32))
    np.testing.assert_array_equal(found, np.array([[1, 0.5, 0.5], [0, 0.5, 0.5]], dtype=np.float32))
    assert found.dtype == np.float32
    for bad in (0.0, -1.0, nan, inf):
        with pytest.raises(InputError, match="variance"):
            scaled_probabilities(f, np.array([1.0, bad, 1.0], dtype=np.float32))
    with pytest.raises(MISFIT):
        scaled_probabilities(f, np.ones(2))
    with pytest.raises(InputError, match="logits"):
        scaled_probabilities(f * np.float32(nan), np.ones(3))


# volumes


def test_volume_by_hand():
    assert volume(mask(1, 0, 1, 1), 2.0) == 6
    p = np.array([0.5, 0.25, 1.0], dtype=np.float32)
    assert volume(p, 8.0) == 14
    assert bernoulli_spread(p) == 0.25 + 0.1875
    assert relative_spread(p) == 0.4375 / 1.75
    assert per_target(np.array([0.5, 0.0, 3.0]), p) == 2
    assert relative_spread(0 * p) == per_target(p, 0 * p) == 0
    for bad in (np.array([1.2]), np.array([nan])):
        with pytest.raises(InputError, match="probabilities"):
            volume(bad, 1.0)
    with pytest.raises(InputError, match="voxel_mm3"):
        volume(p, 0.0)


def test_spread_is_the_variance_of_the_count():
    p = np.random.default_rng(3).uniform(0, 1, 50)
    counts = (np.random.default_rng(4).random((20000, 50)) < p).sum(axis=1)
    # an SD from 20000 draws is good to 0.5 %
    assert bernoulli_spread(p) == pytest.approx(counts.var(), rel=0.04)


def test_the_papers_error_bar_by_hand():
    variance = np.array([0.5, 1.5, 3.0])
    found = paper_volume_error(variance, 1.0, 10.0)
    assert (found.sd, found.excess, found.below_reference) == (pytest.approx(20), pytest.approx(4), False)
    assert paper_volume_error(variance, 1 / 3, 10.0, per="voxel").sd == pytest.approx(20)
    below = paper_volume_error(variance, 7.0, 10.0)
    assert (below.sd, below.excess, below.below_reference) == (0, pytest.approx(-2), True)
    with pytest.raises(InputError, match="variance"):
        paper_volume_error(np.array([nan]), 0.0, 1.0)
    with pytest.raises(InputError, match="reference"):
        paper_volume_error(variance, -1.0, 1.0)


# leakage


def test_leakage_by_hand():
    clean = np.array([[1.0, 10.0], [3.0, 14.0], [1.0, 10.0], [3.0, 14.0]])
    # two anatomies: SD sqrt 2 and sqrt 8, though each stands twice
    rise = np.array([[2.0, 1.0], [4.0, 3.0], [1.0, 8.0], [1.0, 4.0]])
    found = leakage(clean + rise, clean, np.array([1, 1, 2, 2]))
    # rows are sources, columns artefacts
    np.testing.assert_allclose(found, [[3 / sqrt(2), 1 / sqrt(2)], [2 / sqrt(8), 6 / sqrt(8)]])
    np.testing.assert_array_equal(diagonal_leads(found), [True, True])


def test_leakage_where_there_is_nothing_to_say():
    clean = np.array([[1.0, 5.0], [2.0, 5.0], [4.0, 5.0]])
    found = leakage(clean + 1, clean, np.array([1, 0, 0]))
    # no image of artefact 2; the head of source 2 never changes
    np.testing.assert_array_equal(np.isnan(found), [[False, True], [True, True]])
    np.testing.assert_array_equal(diagonal_leads(found), [True, False])
    with pytest.raises(InputError, match="kind"):
        leakage(clean, clean, np.array([1, 2, 3]))
    with pytest.raises(InputError, match="different images"):
        leakage(clean[:1], clean[:1], np.array([1]))
    with pytest.raises(InputError, match="NaN"):
        leakage(clean * nan, clean, np.array([1, 1, 2]))
    with pytest.raises(MISFIT):
        leakage(clean, clean, np.array([1, 2]))


def test_the_two_readings_of_the_diagonal():
    # head 1 answers to everything; head 2 to its own artefact only
    matrix = np.array([[5.0, 4.0], [0.0, 3.0]])
    np.testing.assert_array_equal(diagonal_leads(matrix, "source"), [True, True])
    np.testing.assert_array_equal(diagonal_leads(matrix, "artefact"), [True, False])
    np.testing.assert_array_equal(diagonal_leads(matrix.T, "source"), [True, False])
    assert not diagonal_leads(np.ones((3, 3))).any()
    with pytest.raises(MISFIT):
        diagonal_leads(np.ones((2, 3)))


# rank correlations


def test_spearman_is_that_of_scipy():
    rng = np.random.default_rng(5)
    x = rng.integers(0, 6, 60).astype(float)
    y = x + rng.normal(0, 3, 60)
    oracle = stats.spearmanr(x, y)
    found = spearman(np.append(x, nan), np.append(y, 1.0))
    assert (found.rho, found.p) == (pytest.approx(oracle.statistic), pytest.approx(oracle.pvalue))
    assert (found.n, found.left_out) == (60, 1)
    # by hand: rho = 1 - 6 sum d^2 / (n (n^2 - 1)), d = 0, 1, 1, 0
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([1.0, 9, 4, 10])).rho == pytest.approx(1 - 6 * 2 / 60)
    assert isnan(spearman(x, np.full(60, inf)).rho)
    # infinity is a rank like another
    assert spearman(np.array([1.0, 2, inf]), np.array([1.0, 2, 7])).rho == pytest.approx(1)
    two = spearman(np.array([1.0, 2]), np.array([5.0, 3]))
    assert two.rho == pytest.approx(-1)
    assert isnan(two.p)
    with pytest.raises(MISFIT):
        spearman(x, y[:3])


def test_spearman_within_leaves_out_what_differs_between_groups():
    # falls in each group, rises from one to the other
    x, y = np.array([1.0, 2, 3, 11, 12, 13, 14]), np.array([3.0, 2, 1, 14, 13, 12, 11])
    group = np.array([1, 1, 1, 2, 2, 2, 2])
    assert spearman(x, y).rho > 0
    found, each = spearman_within(x, y, group)
    assert (found.rho, found.n) == (pytest.approx(-1), 7)
    # weights: 3 images of -1, 4 of +1; a group that is constant has no part
    mixed, each = spearman_within(x, np.array([3.0, 2, 1, 1, 2, 3, 4]), group)
    assert mixed.rho == pytest.approx((-3 + 4) / 7)
    assert (each[1].rho, each[2].rho) == (pytest.approx(-1), pytest.approx(1))
    flat, _ = spearman_within(x, np.array([3.0, 2, 1, 5, 5, 5, 5]), group)
    assert (flat.rho, flat.n, flat.left_out) == (pytest.approx(-1), 3, 4)


def test_interval_over_images_agrees_with_scipy():
    rng = np.random.default_rng(6)
    x, y = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 80).T
    found = spearman_by_cluster(x, y, np.arange(80), np.random.default_rng(7), 1000)
    oracle = stats.bootstrap(
        (x, y),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=1000,
        rng=np.random.default_rng(8),
    ).confidence_interval
    # an end of a percentile interval from 1000 draws scatters by about a tenth of an SD, 0.01
    assert (found.low, found.high) == (pytest.approx(oracle.low, abs=0.04), pytest.approx(oracle.high, abs=0.04))
    assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic)
    assert (found.clusters, found.n, found.undefined) == (80, 80, 0)
    assert found == spearman_by_cluster(x, y, np.arange(80), np.random.default_rng(7), 1000)


def test_interval_by_anatomy_does_not_count_copies():
    rng = np.random.default_rng(9)
    x, y = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 40).T
    anatomy = np.arange(40)
    once = spearman_by_cluster(x, y, anatomy, np.random.default_rng(1), 500)
    nine = (np.tile(each, 9) for each in (x, y, anatomy))
    copied = spearman_by_cluster(*nine, np.random.default_rng(1), 500)
    # nine copies of each image say nothing new; ties change the ranks' correlation in the third digit
    assert (copied.low, copied.high) == (pytest.approx(once.low, abs=0.01), pytest.approx(once.high, abs=0.01))
    assert (copied.clusters, copied.n) == (40, 360)
    # over images the interval would be a third as wide
    naive = spearman_by_cluster(np.tile(x, 9), np.tile(y, 9), np.arange(360), np.random.default_rng(1), 500)
    assert naive.high - naive.low < 0.5 * (copied.high - copied.low)


def test_draws_with_ties_are_those_of_scipy():
    """Every draw again, image by image."""
    rng = np.random.default_rng(10)
    x, y = rng.integers(0, 5, 24).astype(float), rng.integers(0, 4, 24).astype(float)
    anatomy = np.arange(24) // 3
    found = spearman_by_cluster(x, y, anatomy, np.random.default_rng(2), 60, level=0.5)
    drawn = []
    for pick in np.random.default_rng(2).integers(0, 8, size=(60, 8)):
        index = np.concatenate([np.flatnonzero(anatomy == each) for each in pick])
        drawn.append(stats.spearmanr(x[index], y[index]).statistic)
    assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.25, 0.75])))


def test_interval_within_groups_and_what_is_refused():
    x, y = np.array([1.0, 2, 3, 11, 12, 13]), np.array([3.0, 2, 1, 14, 13, 12])
    anatomy, group = np.array([1, 2, 3, 1, 2, 3]), np.array([1, 1, 1, 2, 2, 2])
    found = spearman_by_cluster(x, y, anatomy, np.random.default_rng(0), 200, group=group)
    assert (found.rho, found.low, found.high) == (pytest.approx(-1), pytest.approx(-1), pytest.approx(-1))
    # three anatomies of three: one in nine draws is a single one three times
    assert found.undefined / 200 == pytest.approx(1 / 9, abs=4 * sqrt(1 / 9 * 8 / 9 / 200))
    with pytest.raises(InputError, match="cluster: 1 anatomies"):
        spearman_by_cluster(x, y, np.ones(6, dtype=int), np.random.default_rng(0))
    with pytest.raises(MISFIT):
        spearman_by_cluster(x, y, anatomy, np.random.default_rng(0), group=group[:2])
    with pytest.raises(InputError, match="draws"):
        spearman_by_cluster(x, y, anatomy, np.random.default_rng(0), 0)


def test_entropy_grows_with_the_variance():
    f = np.tile(np.array([[2.0], [-1.0]]), (1, 5))
    h = entropy(scaled_probabilities(f, np.array([0.1, 0.5, 1.0, 4.0, 1e6])))
    assert all(a < b for a, b in pairwise(h))
    assert h[-1] == pytest.approx(log(2), abs=1e-9)
