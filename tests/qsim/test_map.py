"""Tissue priors from tables, and the mode of the posterior against dense grids and its limits."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from qsim.distributions import Constant, LogUniform, Normal, Truncated
from qsim.errors import InputError
from qsim.estimators import Status, TissuePrior, build_estimator
from qsim.estimators.magnitude import MagnitudeLikelihood
from qsim.estimators.maximum_a_posteriori import MaximumAPosteriori
from qsim.parameters import T1, T1RHO, T2, A, B
from qsim.signals import InversionRecovery, SpinEcho, SpinLock
from qsim.tissues import Sabidussi2021, Tissue, TissueTable, Variation

LOCK = SpinLock(tsl=(0.0, 0.01, 0.03, 0.05))
ECHO = SpinEcho(te=(0.01, 0.03, 0.06, 0.1))


def prior_of(*tissues, parameters=(A, T1RHO), weights=None):
    """Tissues as (median of each row), (spread of each row)."""
    share = torch.tensor(weights or [1 / len(tissues)] * len(tissues), dtype=torch.float64)
    medians = torch.tensor([t[0] for t in tissues], dtype=torch.float64)
    return TissuePrior(parameters, share, medians, torch.tensor([t[1] for t in tissues], dtype=torch.float64))


TWO = prior_of(((0.7, 0.04), (0.2, 0.1)), ((1.0, 0.09), (0.3, 0.25)), weights=[0.7, 0.3])


def drawn(prior, n, generator, weights=None):
    tissue = torch.multinomial(prior.weights, n, replacement=True, generator=generator)
    normals = torch.randn(n, len(prior.parameters), generator=generator, dtype=torch.float64)
    return (prior.median.log()[tissue] + prior.spread[tissue] * normals).exp().T


def log_posterior(a, t, series, sigma, prior, coils):
    """By scipy: Gaussian or Rician likelihood, and normals of the logarithms."""
    signal = a[..., None] * np.exp(-np.array(LOCK.tsl) / t[..., None])
    if coils:
        total = stats.rice.logpdf(series, signal / sigma, scale=sigma).sum(-1)
    else:
        total = stats.norm.logpdf(series, signal, sigma).sum(-1)
    parts = [
        math.log(w)
        + stats.norm.logpdf(np.log(a), math.log(m[0]), s[0])
        + stats.norm.logpdf(np.log(t), math.log(m[1]), s[1])
        for w, m, s in zip(prior.weights.tolist(), prior.median.tolist(), prior.spread.tolist(), strict=True)
    ]
    return total + np.logaddexp.reduce(parts)


@pytest.mark.parametrize("coils", [0, 1])
@pytest.mark.parametrize("snr", [2, 5, 20])
def test_mode_is_that_of_a_dense_grid(snr, coils):
    generator = torch.Generator().manual_seed(snr)
    truth, sigma = drawn(TWO, 25, generator), 0.65 / snr
    images = LOCK(truth) + sigma * torch.randn(4, 25, generator=generator, dtype=torch.float64)
    images = images.abs() if coils else images
    found = MaximumAPosteriori(LOCK, TWO, coils=coils)(images, sigma)
    assert bool((found.status == Status.OK).all())
    a, t = np.meshgrid(np.geomspace(0.2, 3, 200), np.geomspace(0.01, 0.4, 240), indexing="ij")
    for v in range(25):
        series = images[:, v].numpy()
        grid = log_posterior(a, t, series, sigma, TWO, coils).max()
        ours = log_posterior(*(row[None] for row in found.kappa[:, v].numpy()), series, sigma, TWO, coils)[0]
        assert ours > grid - 1e-9


def test_wide_prior_is_maximum_likelihood():
    generator = torch.Generator().manual_seed(1)
    images = LOCK(torch.tensor([[1.0], [0.045]]).double()).expand(4, 50)
    images = (images + 0.05 * torch.randn(4, 50, generator=generator, dtype=torch.float64)).abs()
    wide = prior_of(((1.0, 0.05), (1e4, 1e4)))
    gaussian = MaximumAPosteriori(LOCK, wide)(images, 0.05)
    # a parabola of SD 1e4 moves the mode by 1e-8 of the parameter's variance; the searches end within 1e-4 SD of 8 %
    torch.testing.assert_close(gaussian.kappa, build_estimator("least-squares", LOCK)(images).kappa, rtol=3e-5, atol=0)
    rician = MaximumAPosteriori(LOCK, wide, coils=1)(images, 0.05)
    torch.testing.assert_close(rician.kappa, MagnitudeLikelihood(LOCK)(images, 0.05).kappa, rtol=3e-5, atol=0)


def test_free_rows_are_not_restricted():
    """A prior on T1rho alone: A is the least-squares amplitude of the T1rho that is found."""
    only = prior_of(((0.04,), (0.1,)), parameters=(T1RHO,))
    images = LOCK(torch.tensor([[5.0], [0.06]]).double())
    found = MaximumAPosteriori(LOCK, only)(images, 0.5).kappa
    atom = LOCK(torch.stack((torch.ones(1).double(), found[1])))
    torch.testing.assert_close(found[0], (images * atom).sum(0) / (atom * atom).sum(0), rtol=1e-6, atol=0)
    assert 0.04 < float(found[1]) < 0.06


def test_better_than_least_squares_on_its_own_prior():
    """Table 1 at SNR 5, B of its own table: RMSE of T1 less than a third of least squares."""
    model = InversionRecovery(ti=tuple(0.03 * i for i in range(1, 32)))
    prior = TissuePrior.from_table(Sabidussi2021().table(), model.parameters, {"gm": 2.0, "wm": 2.0, "csf": 1.0})
    generator = torch.Generator().manual_seed(2)
    truth, sigma = drawn(prior, 400, generator), 0.65 / 5
    images = model(truth) + sigma * torch.randn(31, 400, generator=generator, dtype=torch.float64)

    def rmse(estimate):
        return float((estimate.kappa[2] / truth[2] - 1).square().mean().sqrt())

    ours = rmse(MaximumAPosteriori(model, prior)(images, sigma))
    assert ours < rmse(build_estimator("least-squares", model)(images)) / 3
    # and than the prior alone, whose own spread of log T1 is above 0.4
    constant = math.exp(float((prior.weights[:, None] * prior.median.log()).sum(0)[2]))
    assert ours < float((constant / truth[2] - 1).square().mean().sqrt()) / 2


def test_coverage_of_a_posterior_of_one_tissue():
    """Truths from the prior, Gaussian noise: 95 % intervals in log T hold 95 % of them."""
    one = prior_of(((0.8, 0.05), (0.2, 0.2)))
    generator = torch.Generator().manual_seed(3)
    truth, sigma = drawn(one, 4000, generator), 0.05
    images = LOCK(truth) + sigma * torch.randn(4, 4000, generator=generator, dtype=torch.float64)
    found = MaximumAPosteriori(LOCK, one, covariance=True)(images, sigma)
    relative = found.variances["noise"].sqrt() / found.kappa
    inside = ((found.kappa / truth).log().abs() < 1.96 * relative).double().mean(1)
    # three binomial SD, and a posterior that is not quite normal
    assert bool(((inside - 0.95).abs() < 0.015).all())


def grid_moments(a, t, series, sigma, prior, coils=0):
    """Mean and variance of log A and log T1rho over a dense grid of equal steps in both."""
    density = log_posterior(a, t, series, sigma, prior, coils)
    weight = np.exp(density - density.max())
    weight /= weight.sum()
    means = [float((weight * np.log(x)).sum()) for x in (a, t)]
    return means, [float((weight * np.log(x) ** 2).sum()) - m**2 for x, m in zip((a, t), means, strict=True)]


@pytest.mark.parametrize("coils", [0, 1])
@pytest.mark.parametrize("snr", [2, 5, 30])
def test_variance_is_that_of_a_dense_grid(snr, coils):
    """Also where two tissues fit: the curvature at the mode has a fifth of the variance there."""
    close = prior_of(((0.65, 0.0449), (0.05, 0.08)), ((0.65, 0.055), (0.05, 0.05)))
    for prior in (TWO, close):
        generator = torch.Generator().manual_seed(snr)
        truth, sigma = drawn(prior, 14, generator), 0.65 / snr
        images = LOCK(truth) + sigma * torch.randn(4, 14, generator=generator, dtype=torch.float64)
        images = images.abs() if coils else images
        found = MaximumAPosteriori(LOCK, prior, covariance=True, coils=coils)(images, sigma)
        a, t = np.meshgrid(np.geomspace(0.25, 2.5, 160), np.geomspace(0.015, 0.3, 200), indexing="ij")
        grid = np.array([grid_moments(a, t, images[:, v].numpy(), sigma, prior, coils)[1] for v in range(14)]).T
        ratio = (found.variances["noise"] / found.kappa.square()).numpy() / grid
        # Laplace per tissue: what is not normal about a posterior of 20 to 30 % width
        assert bool((abs(np.median(ratio, 1) - 1) < 0.04).all())
        assert bool((abs(ratio - 1) < 0.15).all())


def test_a_mode_on_a_bound():
    """T1rho ends at 4 s, where one tissue's prior still rises: half a normal's tail, by the grid."""
    beyond = prior_of(((0.7, 5.0), (0.1, 0.2)), ((0.72, 2.5), (0.1, 0.2)))
    images = LOCK(torch.tensor([[0.7, 0.71, 0.75], [3.9, 3.0, 2.0]]).double())
    for prior in (beyond, prior_of(((0.7, 5.0), (0.1, 0.2)))):
        found = MaximumAPosteriori(LOCK, prior, covariance=True)(images, 0.02)
        a, t = np.meshgrid(np.geomspace(0.5, 1, 150), np.geomspace(0.5, 4.0, 800), indexing="ij")
        for v in range(3):
            variance = grid_moments(a, t, images[:, v].numpy(), 0.02, prior)[1]
            ours = (found.variances["noise"][:, v] / found.kappa[:, v] ** 2).numpy()
            np.testing.assert_allclose(ours, variance, rtol=0.05)
    # with one tissue all three modes lie there
    assert bool((found.status == Status.AT_BOUND).all())


def test_one_tissue_is_the_curvature_at_the_mode():
    one = prior_of(((0.8, 0.05), (0.2, 0.2)))
    generator = torch.Generator().manual_seed(4)
    truth, sigma = drawn(one, 10, generator), 0.08
    images = LOCK(truth) + sigma * torch.randn(4, 10, generator=generator, dtype=torch.float64)
    found = MaximumAPosteriori(LOCK, one, covariance=True)(images, sigma)
    step = 1e-3
    for v in range(10):
        mode, series = np.log(found.kappa[:, v].numpy()), images[:, v].numpy()

        def at(i, j, mode=mode, series=series):
            point = np.exp(mode + step * np.array([i, j]))
            return -log_posterior(*point[:, None], series, sigma, one, 0)[0]

        cross = (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) / 4
        own = [at(1, 0) - 2 * at(0, 0) + at(-1, 0), at(0, 1) - 2 * at(0, 0) + at(0, -1)]
        curvature = np.array([[own[0], cross], [cross, own[1]]]) / step**2
        covariance = found.covariance[..., v].numpy() / np.outer(np.exp(mode), np.exp(mode))
        # the second differences err by step^2 / 12 of the fourth derivative, and rounding
        np.testing.assert_allclose(covariance, np.linalg.inv(curvature), rtol=1e-4)


@pytest.mark.parametrize(("snr", "least", "most"), [(5, 0.915, 1.2), (30, 0.935, 1.06)])
def test_coverage_of_a_posterior_of_two_tissues(snr, least, most):
    """Truths from the prior: log-Wald intervals, and the RMS error of log T1rho against the RMS of the stated SD.

    About the mode an interval holds less than 95 %, and the error is larger than the SD, by the square of the distance
    between mean and mode; from the curvature at the mode they were 87 % and 1.9 at SNR 5.
    """
    generator = torch.Generator().manual_seed(6)
    truth, sigma = drawn(TWO, 4000, generator), 0.65 / snr
    images = LOCK(truth) + sigma * torch.randn(4, 4000, generator=generator, dtype=torch.float64)
    found = MaximumAPosteriori(LOCK, TWO, covariance=True)(images, sigma)
    error, relative = (found.kappa / truth).log(), found.variances["noise"].sqrt() / found.kappa
    inside = (error.abs() < 1.96 * relative).double().mean(1)
    assert bool(((inside > least) & (inside < 0.965)).all())
    ratio = error.square().mean(1).sqrt() / relative.square().mean(1).sqrt()
    assert bool(((ratio > 0.96) & (ratio < most)).all())


def test_covariance_of_special_cases():
    """Float32, no voxels, sigma maps, and everything known."""
    fit = MaximumAPosteriori(LOCK, TWO, covariance=True)
    images = LOCK(torch.tensor([[0.7, 0.8, 0.9], [0.04, 0.06, 0.09]]).double()) + 0.01
    wanted = fit(images, 0.05)
    levels = torch.tensor([0.02, 0.05, 0.1]).double()
    mapped = fit(images, levels)
    for v in range(3):
        alone = fit(images[:, v], float(levels[v]))
        torch.testing.assert_close(mapped.covariance[..., v], alone.covariance, rtol=1e-6, atol=0)
    # images rounded to seven digits
    single = fit(images.float(), 0.05)
    assert single.covariance.dtype == torch.float32
    torch.testing.assert_close(single.covariance.double(), wanted.covariance, rtol=1e-4, atol=1e-9)
    none = fit(images, 0.05, torch.zeros(3, dtype=torch.bool))
    assert none.covariance.shape == (2, 2, 3)
    assert bool(none.covariance.isnan().all())
    known = fit(images, 0.05, known={"A": 0.7, "T1RHO": 0.04})
    assert bool((known.covariance == 0).all())


def test_known_row_leaves_the_variance_of_the_other():
    """A known: the posterior of log T1rho alone, on a line of the grid."""
    images = torch.tensor([[0.75], [0.6], [0.4], [0.3]]).double()
    found = MaximumAPosteriori(LOCK, TWO, covariance=True)(images, 0.15, known={"A": 0.8})
    t = np.geomspace(0.01, 0.4, 4000)[None]
    _, variance = grid_moments(np.full_like(t, 0.8), t, images[:, 0].numpy(), 0.15, TWO)
    assert found.covariance[0].abs().max() == 0
    assert float(found.covariance[1, 1, 0] / found.kappa[1, 0] ** 2) == pytest.approx(variance[1], rel=0.05)


def test_known_rows_tell_the_tissues_apart():
    """Two tissues of the same T2 range but different A: a known A decides which prior holds."""
    two = prior_of(((0.5, 0.04), (0.05, 0.1)), ((1.0, 0.16), (0.05, 0.1)), parameters=(A, T2))
    images = torch.tensor([[0.4, 0.8], [0.3, 0.6], [0.2, 0.4], [0.08, 0.16]]).double()
    found = MaximumAPosteriori(ECHO, two)(images, 10.0, known={"A": torch.tensor([0.5, 1.0])})
    torch.testing.assert_close(found.kappa[0], torch.tensor([0.5, 1.0]).double(), rtol=0, atol=0)
    # noise of 10 leaves nothing but the prior
    torch.testing.assert_close(found.kappa[1], torch.tensor([0.04, 0.16]).double(), rtol=1e-3, atol=0)


def test_moments_of_a_table():
    rng = np.random.default_rng(0)
    cut = Truncated(of=Normal(mean=0.08, sd=0.02), low=0.04, high=0.12)
    table = TissueTable(
        name="one",
        tissues=(
            Tissue(name="wm", values={"T2": cut, "A": Constant(value=0.7), "T1": Constant(value=1.0)}, source="-"),
        ),
        within={"T2": Variation(relative=0.05, absolute=0.004), "T1": Variation(relative=0.05)},
        per_sample={"B": Truncated(of=Normal(mean=1.8, sd=0.1), low=1.5, high=2.1)},
        field_strength=3.0,
    )
    prior = TissuePrior.from_table(table, ("T2", "A", B, T1))
    n = 1_000_000
    subject = 0.08 + 0.02 * stats.truncnorm.rvs(-2, 2, size=n, random_state=rng)
    values = np.log(subject + np.hypot(0.05 * subject, 0.004) * rng.standard_normal(n))
    # the sampling error of a million draws is 3e-4 of the SD
    assert math.log(float(prior.median[0, 0])) == pytest.approx(values.mean(), abs=1.5e-3 * values.std())
    assert float(prior.spread[0, 0]) == pytest.approx(values.std(), rel=3e-3)
    # a row without variation, one value per sample, and within alone
    assert prior.median[0, 1:].tolist() == pytest.approx([0.7, 1.797, 0.99875], rel=1e-3)
    assert float(prior.spread[0, 1]) == 1e-3
    b = 1.8 + 0.1 * stats.truncnorm.rvs(-3, 3, size=n, random_state=rng)
    assert float(prior.spread[0, 2]) == pytest.approx(np.log(b).std(), rel=3e-3)
    assert float(prior.spread[0, 3]) == pytest.approx(0.05, rel=5e-3)


def test_priors_that_cannot_be():
    table = Sabidussi2021().table()
    with pytest.raises(InputError, match=r"^prior\.T1RHO: the table"):
        TissuePrior.from_table(table, (A, T1RHO))
    with pytest.raises(InputError, match=r"^prior\.weights\.brain: no such tissue"):
        TissuePrior.from_table(table, (A,), {"brain": 1.0})
    with pytest.raises(InputError, match=r"^prior\.weights: every tissue has weight 0"):
        TissuePrior.from_table(table, (A,), {"gm": 0.0})
    with pytest.raises(InputError, match=r"^prior\.spread: A is free in some tissues"):
        prior_of(((1.0, 0.05), (0.0, 0.1)), ((1.0, 0.05), (0.1, 0.1)))
    with pytest.raises(InputError, match=r"^prior\.weights: must not be negative and must add up to 1"):
        prior_of(((1.0, 0.05), (0.1, 0.1)), weights=[0.5])
    tissue = Tissue(name="x", values={"DELTA_B0": Normal(mean=0.0, sd=10.0)}, source="-")
    field = TissueTable(name="t", tissues=(tissue,), field_strength=3.0)
    with pytest.raises(InputError, match=r"^prior\.DELTA_B0 of x: its distribution reaches"):
        TissuePrior.from_table(field, ("DELTA_B0",))
    log_uniform = Tissue(name="x", values={"A": LogUniform(low=0.1, high=1.0)}, source="-")
    found = TissuePrior.from_table(TissueTable(name="t", tissues=(log_uniform,), field_strength=3.0), (A,))
    # SD of a uniform variable of width log 10
    assert float(found.spread[0, 0]) == pytest.approx(math.log(10) / math.sqrt(12), rel=1e-6)


def test_refusals_and_bad_voxels():
    with pytest.raises(InputError, match="needs the distributions of the tissues"):
        build_estimator("map", LOCK)
    with pytest.raises(InputError, match=r"^estimators: map: .*the prior knows T1, the model has A, T1RHO"):
        build_estimator("map", LOCK, prior=prior_of(((1.0,), (0.1,)), parameters=(T1,)))
    fit = build_estimator("map", LOCK, {"coils": 1, "covariance": True}, prior=TWO)
    assert fit.name == "map"
    images = LOCK(torch.full((2, 5), 0.05).double() * torch.tensor([[16.0], [1.0]]))
    images[:, 0] = 0
    images[1, 1] = -0.1
    images[1, 2] = torch.nan
    found = fit(images, 0.05)
    assert (found.status == Status.NOT_COMPUTED).tolist() == [True, True, True, False, False]
    assert bool(torch.isfinite(found.covariance[..., 3:]).all())
    with pytest.raises(InputError, match=r"^sigma: must be positive"):
        fit(images, 0.0)
    with pytest.raises(InputError, match=r"^known\.A: must be positive"):
        fit(images, 0.05, known={"A": 0.0})
    none = fit(images, 0.05, torch.zeros(5, dtype=torch.bool))
    assert bool((none.status == Status.NOT_COMPUTED).all())
