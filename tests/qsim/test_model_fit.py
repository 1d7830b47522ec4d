"""Residuals, chi-square and the choice between models, against theory and scipy."""

import numpy as np
import pytest
import torch
from scipy import stats

from qsim.errors import InputError
from qsim.estimators.least_squares import LeastSquares
from qsim.evaluation.model_fit import compare_models, model_fit, sign_changes
from qsim.information import crb
from qsim.signals import BiExponential, OffsetDecay, SpinLock

TSL = tuple(np.linspace(0.0, 0.12, 10).tolist())
MONO, OFFSET, BI = SpinLock(tsl=TSL), OffsetDecay(tsl=TSL), BiExponential(tsl=TSL)
N, SIGMA = 20000, 0.01


def noisy(clean, sigma=SIGMA, seed=0):
    g = torch.Generator().manual_seed(seed)
    return clean + sigma * torch.randn(clean.shape, generator=g, dtype=torch.float64)


def voxels(model, values, n=N):
    return model(torch.tensor(values, dtype=torch.float64)[:, None].expand(-1, n))


def fit(model, images):
    return LeastSquares(model)(images).kappa


@pytest.fixture(scope="module")
def mono():
    images = noisy(voxels(MONO, [0.65, 0.045]))
    return images, {"mono": (MONO, fit(MONO, images)), "offset": (OFFSET, fit(OFFSET, images))}


def test_chi_square_of_the_right_model_has_its_distribution(mono):
    images, fits = mono
    found = model_fit(*fits["mono"], images, SIGMA)
    assert found.freedom == 8
    # Kolmogorov's 99.9 % point for 20,000 values: .0138; the model is linear enough at SNR 65
    assert stats.kstest(found.chi_square.numpy(), stats.chi2(8).cdf).statistic < 0.0138
    assert stats.kstest(found.p_value.numpy(), "uniform").statistic < 0.0138
    np.testing.assert_allclose(found.p_value[:50], stats.chi2(8).sf(found.chi_square[:50].numpy()), rtol=1e-10)
    # standard error of the mean: sqrt(2 / 8 / 20000)
    assert float(found.reduced.mean()) == pytest.approx(1, abs=0.012)
    np.testing.assert_allclose(found.rms.square() * len(TSL) / SIGMA**2, found.chi_square)
    np.testing.assert_allclose(MONO(fits["mono"][1]) + found.residual, images, atol=1e-15)


def test_chi_square_of_a_wrong_model_is_noncentral():
    """A constant of .1 under a decay: what the mono-exponential cannot take up is the noncentrality."""
    clean = voxels(OFFSET, [0.65, 0.045, 0.1], 4000)
    images = noisy(clean)
    found = model_fit(MONO, fit(MONO, images), images, SIGMA)
    best = fit(MONO, clean[:, :1])
    noncentrality = float((MONO(best) - clean[:, :1]).square().sum()) / SIGMA**2
    # mean of noncentral chi-square f + nc, SD sqrt(2 f + 4 nc), over 4000 voxels
    assert float(found.chi_square.mean()) == pytest.approx(8 + noncentrality, rel=0.02)
    assert float((found.p_value < 0.01).double().mean()) > 0.9
    z = sign_changes(found.residual)
    assert float(z.mean()) < -0.5


def test_sign_changes_of_noise_and_of_an_arc():
    noise = noisy(torch.zeros(31, 5000, dtype=torch.float64), 1.0)
    z = sign_changes(noise)
    assert float(z.mean()) == pytest.approx(0, abs=0.05)
    assert float(z.std()) == pytest.approx(1, abs=0.04)
    arc = torch.linspace(-1, 1, 31, dtype=torch.float64)[:, None].square() - 0.3
    # 2 changes of 30: (2 - 15) / sqrt(7.5)
    assert float(sign_changes(arc)[0]) == pytest.approx(-13 / 7.5**0.5)
    assert torch.isnan(sign_changes(torch.full((5, 2), torch.nan))).all()


def test_aic_takes_the_larger_nested_model_in_15_7_percent(mono):
    images, fits = mono
    found = compare_models(images, fits, SIGMA)
    expected = float(stats.chi2(1).sf(2))
    assert expected == pytest.approx(0.157, abs=0.001)
    # standard error of a share of 20,000: .26 %; four of them
    assert found.share()["offset"] == pytest.approx(expected, abs=0.0103)
    # the weights of a pair: 1 / (1 + exp((2 - LR) / 2))
    ratio = found.values[0] - found.values[1] + 2
    np.testing.assert_allclose(found.weights[1], 1 / (1 + torch.exp((2 - ratio) / 2)), rtol=1e-9)
    np.testing.assert_allclose(found.weights.sum(0), 1.0)
    assert bool((ratio > -1e-6).all())


def test_bic_takes_it_as_seldom_as_its_penalty_says(mono):
    images, fits = mono
    found = compare_models(images, fits, SIGMA, "bic")
    assert found.share()["offset"] == pytest.approx(float(stats.chi2(1).sf(np.log(len(TSL)))), abs=0.0095)


def test_unknown_sigma_follows_the_f_distribution(mono):
    """N log(RSS1 / RSS2) > penalty is an F test of 1 and N - 3 degrees of freedom."""
    images, fits = mono
    n = len(TSL)
    for criterion, extra in (("aic", 2.0), ("aicc", 2 + 2 * 4 * 5 / (n - 5) - 2 * 3 * 4 / (n - 4))):
        threshold = (n - 3) * np.expm1(extra / n)
        expected = float(stats.f(1, n - 3).sf(threshold))
        found = compare_models(images, fits, None, criterion)
        assert found.share()["offset"] == pytest.approx(expected, abs=0.011)


@pytest.mark.parametrize("offset", [0.015, 0.03])
def test_power_at_a_known_offset(offset):
    """LR is noncentral chi-square_1; the noncentrality is what the smaller model leaves of the noise-free series."""
    truth = [0.65, 0.03, offset]
    clean = voxels(OFFSET, truth)
    images = noisy(clean, 0.015)
    left = (MONO(fit(MONO, clean[:, :1])) - clean[:, :1]).square().sum()
    expected = float(stats.ncx2(1, float(left) / 0.015**2).sf(2))
    assert 0.3 < expected < 0.95
    # near the bound of C too, as it must be for a small offset; the bound is a second-order figure
    bound = float(crb(OFFSET, torch.tensor(truth, dtype=torch.float64), 0.015).sd[2])
    assert expected == pytest.approx(float(stats.ncx2(1, (offset / bound) ** 2).sf(2)), abs=0.06)
    found = compare_models(images, {"mono": (MONO, fit(MONO, images)), "offset": (OFFSET, fit(OFFSET, images))}, 0.015)
    # standard error .35 %, and 1 % for the curvature of the model
    assert found.share()["offset"] == pytest.approx(expected, abs=0.02)


def test_three_models_of_a_biexponential_series():
    truth = torch.tensor([0.65, 0.5, 0.01, 0.08], dtype=torch.float64)[:, None].expand(-1, 300)
    images = noisy(BI(truth), 0.003)
    fits = {name: (model, fit(model, images)) for name, model in (("mono", MONO), ("offset", OFFSET), ("bi", BI))}
    found = compare_models(images, fits, 0.003)
    assert found.names == ("mono", "offset", "bi")
    # what the two others leave of the noise-free series, as for the power above: the offset is the better of them
    left = float((OFFSET(fit(OFFSET, BI(truth[:, :1]))) - BI(truth[:, :1])).square().sum())
    expected = float(stats.ncx2(1, left / 0.003**2).sf(2))
    assert expected > 0.8
    # standard error 2 %, and the fraction may lie on its bound
    assert found.share()["bi"] == pytest.approx(expected, abs=0.06)
    assert found.share()["mono"] == 0
    # by hand: chi-square and twice the rows
    by_hand = ((images - BI(fits["bi"][1])) / 0.003).square().sum(0) + 8
    np.testing.assert_allclose(found.values[2], by_hand)
    fewer = compare_models(images, fits, 0.003, fitted={"bi": 0})
    np.testing.assert_allclose(fewer.values[2], by_hand - 8)


def test_voxels_without_estimates(mono):
    images, fits = mono
    one, two = fits["mono"][1].clone(), fits["offset"][1].clone()
    one[:, :2], two[:, 0] = torch.nan, torch.nan
    found = compare_models(images, {"mono": (MONO, one), "offset": (OFFSET, two)}, SIGMA)
    assert found.best[:2].tolist() == [-1, 1]
    assert found.weights[:, 0].tolist() == [0, 0]
    assert found.weights[:, 1].tolist() == [0, 1]
    assert sum(found.share(torch.arange(N) < 2).values()) == 1
    assert torch.isnan(model_fit(MONO, one, images, SIGMA).p_value[:2]).all()
    none = compare_models(images[:, :0], {"mono": (MONO, one[:, :0])}, SIGMA)
    assert np.isnan(none.share()["mono"])


def test_maps_of_sigma_and_float32():
    images = noisy(voxels(MONO, [0.65, 0.045], 12)).reshape(10, 3, 4)
    kappa = fit(MONO, images)
    sigmas = torch.full((3, 4), SIGMA, dtype=torch.float64)
    sigmas[0] *= 2
    one, other = model_fit(MONO, kappa, images, sigmas), model_fit(MONO, kappa, images, SIGMA)
    np.testing.assert_allclose(4 * one.chi_square[0], other.chi_square[0])
    np.testing.assert_allclose(one.chi_square[1:], other.chi_square[1:])
    single = model_fit(MONO, kappa.float(), images.float(), SIGMA)
    # images of 1e-7 relative against a noise of 1 %: 1e-5 of a chi-square
    np.testing.assert_allclose(single.chi_square, other.chi_square, rtol=1e-3)


def test_a_perfect_fit_and_refusals(mono):
    images, fits = mono
    clean = voxels(MONO, [0.5, 0.05], 2)
    kappa = torch.tensor([0.5, 0.05], dtype=torch.float64)[:, None].expand(-1, 2)
    both = compare_models(clean, {"mono": (MONO, kappa), "again": (MONO, kappa)}, None)
    np.testing.assert_allclose(both.weights, 0.5)
    assert model_fit(MONO, kappa, clean, SIGMA, fitted=10).p_value.isnan().all()
    for sigma in (0.0, -1.0, torch.zeros(N)):
        with pytest.raises(InputError, match=r"^sigma: must be positive"):
            model_fit(*fits["mono"], images, sigma)
    with pytest.raises(InputError, match=r"^sigma: has shape"):
        compare_models(images, fits, torch.ones(3))
    with pytest.raises(InputError, match=r"^criterion: aicc"):
        compare_models(images, fits, SIGMA, "aicc")
    with pytest.raises(InputError, match=r"^fits: at least one"):
        compare_models(images, {}, SIGMA)
    with pytest.raises(InputError, match=r"^fits: 10 images are too few for the aicc of bi"):
        compare_models(images, {"bi": (BI, torch.ones(4, N, dtype=torch.float64))}, None, "aicc", {"bi": 8})
    with pytest.raises(InputError, match=r"^residual: at least 2"):
        sign_changes(torch.zeros(1, 3))
