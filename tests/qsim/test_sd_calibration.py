"""Intervals that hold in every group of like SD, on fresh data of known distributions."""

from itertools import pairwise
from math import erf

import numpy as np
import pytest
from scipy.stats import binom

from qsim.evaluation.calibration import SdCalibration, calibrate_sd


def voxels(n, seed):
    """SDs of 1 to 20 ms; the stated ones are too small below 5 ms, and too large above."""
    rng = np.random.default_rng(seed)
    true = 1e-3 * np.exp(rng.uniform(0, np.log(20), n))
    stated = 5e-3 * (true / 5e-3) ** 1.4
    return rng.normal(0, true), stated


def test_each_group_of_fresh_data_is_covered():
    factors = calibrate_sd(*voxels(40_000, 1))
    error, stated = voxels(40_000, 2)
    half = 1.959964 * factors(stated) * stated
    edges = np.quantile(stated, np.linspace(0, 1, 11))
    for low, high in pairwise(edges):
        here = (stated >= low) & (stated <= high)
        covered = (np.abs(error[here]) < half[here]).mean()
        # a factor within a group is log-linear: the ends keep a few percent of the change
        assert covered == pytest.approx(0.95, abs=0.02)
    # one factor for all would be right on average alone
    one = np.quantile(np.abs(error) / stated, 0.95)
    smallest = stated < edges[1]
    assert (np.abs(error[smallest]) < one * stated[smallest]).mean() < 0.93 or (
        np.abs(error[~smallest]) < one * stated[~smallest]
    ).mean() > 0.97


def test_what_comes_out_rises_with_what_is_stated():
    rng = np.random.default_rng(3)
    stated = np.exp(rng.normal(0, 1, 3000))
    # errors that fall as the stated SD rises
    factors = calibrate_sd(rng.normal(0, 1 / stated), stated)
    grid = np.geomspace(stated.min() / 3, stated.max() * 3, 500)
    assert (np.diff(grid * factors(grid)) >= -1e-12 * grid[1:]).all()


def test_an_honest_sd_needs_no_factor():
    rng = np.random.default_rng(4)
    stated = rng.uniform(1, 3, 20_000)
    factors = calibrate_sd(rng.normal(0, stated), stated)
    assert len(factors.factor) == 12
    # SD of a 95 % quantile of 1666 voxels: 2.6 % of it
    assert factors.factor == pytest.approx([1.0] * 12, abs=0.09)
    # beyond the groups the factor is that of the last; where nothing is stated there is none
    said = factors(np.array([1e-9, 1e9, np.nan, 0.0]))
    assert said[[0, 1]].tolist() == pytest.approx([factors.factor[0], factors.factor[-1]])
    assert np.isnan(said[2])


def test_the_order_statistic_by_hand():
    """100 errors of 1 to 100 SDs of one group: the 96th of (100 + 1) x 0.95 = 95.95."""
    found = calibrate_sd(np.arange(1.0, 101.0) * np.where(np.arange(100) % 2, 1, -1), np.ones(100))
    assert found.factor == (pytest.approx(96 / 1.959964, rel=1e-6),)
    half = calibrate_sd(np.arange(1.0, 101.0), np.ones(100), level=erf(1 / 2**0.5))
    # 68.27 %: the 69th, over 1 SD
    assert half.factor == (pytest.approx(69.0, rel=1e-6),)
    # all in all at least 95 % of fresh errors of the same distribution
    assert binom(100, 0.96).mean() >= 95


def test_what_is_no_calibration():
    with pytest.raises(ValueError, match=r"^error: 99 voxels with an SD"):
        calibrate_sd(np.ones(120), np.concatenate((np.ones(99), np.zeros(20), [np.nan])))
    for sd, factor in (((), ()), ((1.0,), (1.0, 2.0)), ((2.0, 1.0), (1.0, 1.0)), ((1.0,), (0.0,))):
        with pytest.raises(ValueError, match=r"^sd: "):
            SdCalibration(sd, factor)


def test_arguments_out_of_their_range(unchecked):
    error, sd = np.ones(300), np.ones(300)
    with pytest.raises(ValueError, match=r"^sd: 200 of 300 errors; give one for each"):
        calibrate_sd(error, sd[:200])
    for level in (0.0, 1.0, 1.5, np.nan):
        with pytest.raises(ValueError, match=r"^level: must lie between 0 and 1"):
            calibrate_sd(error, sd, level=level)
    with pytest.raises(ValueError, match=r"^groups: must be at least 1, got 0"):
        calibrate_sd(error, sd, groups=0)


def test_beyond_the_groups_the_factor_stays():
    factors = SdCalibration((1.0, 4.0), (2.0, 8.0))
    # log-linear between: 2 lies half-way between 1 and 4, the factor between 2 and 8 at 4
    given = np.array([0.0, 0.5, 1.0, 2.0, 4.0, 9.0, np.inf])
    assert factors(given) == pytest.approx([2.0, 2.0, 2.0, 4.0, 8.0, 8.0, 8.0])
    assert np.isnan(factors(np.array([np.nan]))).all()
