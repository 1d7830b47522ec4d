"""Distributions against scipy.stats, and streams that depend on nothing but (seed, index, stage)."""

import numpy as np
import pytest
import torch
from scipy import stats

from qsim.distributions import (
    Constant,
    HalfNormal,
    LogUniform,
    Normal,
    Streams,
    Truncated,
    Uniform,
    draw,
    mean,
    require_positive,
)

# (ours, the same by scipy)
PAIRS = [
    (Uniform(low=-1.0, high=3.0), stats.uniform(-1.0, 4.0)),
    (LogUniform(low=0.0065, high=0.255), stats.loguniform(0.0065, 0.255)),
    (Normal(mean=1.4, sd=0.3), stats.norm(1.4, 0.3)),
    (HalfNormal(scale=0.2), stats.halfnorm(0.0, 0.2)),
    (Truncated(of=Normal(mean=0.03, sd=0.01), low=0.01, high=0.05), stats.truncnorm(-2, 2, 0.03, 0.01)),
    (Truncated(of=Normal(mean=0.0, sd=1.0), low=1.5), stats.truncnorm(1.5, np.inf)),
]


@pytest.mark.parametrize(("ours", "scipy"), PAIRS, ids=lambda d: type(d).__name__)
def test_matches_scipy(ours, scipy):
    u = np.linspace(0.001, 0.999, 501)
    np.testing.assert_allclose(ours.ppf(u), scipy.ppf(u), rtol=1e-10)
    x = scipy.ppf(u)
    np.testing.assert_allclose([ours.cdf(float(v)) for v in x], u, rtol=1e-9)
    np.testing.assert_allclose(mean(ours), scipy.mean(), rtol=1e-4)  # quadrature of unbounded tails


@pytest.mark.parametrize(("ours", "scipy"), PAIRS, ids=lambda d: type(d).__name__)
def test_draws_follow_the_distribution(ours, scipy):
    x = draw(ours, np.random.default_rng(7), 20_000)
    assert stats.kstest(x, scipy.cdf).pvalue > 1e-3
    low, high = ours.support
    assert low <= x.min()
    assert x.max() <= high


def test_inversion_depth_lies_below_two():
    """B = 2 - |z| 0.2: mean deficit .16, as statistics of the half-normal give sqrt(2 / pi) 0.2."""
    b = HalfNormal(scale=0.2, origin=2.0, below=True)
    assert mean(b) == pytest.approx(2 - 0.2 * np.sqrt(2 / np.pi), abs=1e-4)
    u = np.linspace(0.01, 0.99, 99)
    np.testing.assert_allclose(b.ppf(u), 2 - stats.halfnorm(0, 0.2).ppf(1 - u), rtol=1e-12)
    assert b.cdf(2.5) == 1.0
    assert b.cdf(1.8) == pytest.approx(stats.halfnorm(0, 0.2).sf(0.2))


def test_constant_is_constant():
    assert set(draw(Constant(value=0.02), np.random.default_rng(0), 5)) == {0.02}
    assert mean(Constant(value=0.02)) == pytest.approx(0.02)


def test_support_is_checked():
    require_positive(Truncated(of=Normal(mean=0.03, sd=0.01), low=0.01), "T2")
    with pytest.raises(ValueError, match=r"^T2 must stay positive.*truncate it"):
        require_positive(Normal(mean=0.03, sd=0.01), "T2")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Uniform(low=1.0, high=1.0), "low must be below high"),
        (lambda: LogUniform(low=0.0, high=1.0), "low must be positive"),
        (lambda: Normal(mean=0.0, sd=0.0), "sd must be positive"),
        (lambda: Normal(mean=float("nan"), sd=1.0), "mean must be a finite number"),
        (lambda: HalfNormal(scale=-1.0), "scale must be positive"),
        (lambda: Truncated(of=Normal(mean=0.0, sd=1.0), low=9.0), "less than 1e-6"),
        (lambda: Truncated(of=Normal(mean=0.0, sd=1.0)), "at least one"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_streams_are_independent_and_repeatable():
    stream = Streams(seed=3, index=5)
    again = Streams(seed=3, index=5)
    assert stream.rng("noise").random() == again.rng("noise").random()
    first = {Streams(seed, index).rng(stage).random() for seed in (0, 1) for index in (0, 1, 2) for stage in ("a", "b")}
    assert len(first) == 12
    x = torch.empty(50_000).normal_(generator=stream.torch_generator("noise"))
    y = torch.empty(50_000).normal_(generator=again.torch_generator("noise"))
    z = torch.empty(50_000).normal_(generator=Streams(seed=3, index=6).torch_generator("noise"))
    assert torch.equal(x, y)
    assert stats.kstest(x.numpy(), "norm").pvalue > 1e-3
    # correlation of independent normals: SD 1 / sqrt(n) = .0045
    assert abs(np.corrcoef(x, z)[0, 1]) < 0.02
