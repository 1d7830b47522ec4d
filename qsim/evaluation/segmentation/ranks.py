"""Spearman's rank correlation of two figures of images: pooled, within groups, with an interval by anatomy.

Images where either figure is NaN are left out and counted. A figure that is the same in all images has no rank: NaN.
"""

from dataclasses import dataclass
from math import nan

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import spearmanr

from qsim.errors import InputError

# draws of a bootstrap that are held in memory together
_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Rank:
    """A rank correlation.

    Attributes:
        rho: [1].
        p: of no correlation, two-sided, images taken for independent (t distribution); NaN below three images.
        n, left_out: images.
    """

    rho: float
    p: float
    n: int
    left_out: int


@dataclass(frozen=True, slots=True)
class RankInterval:
    """A rank correlation with its interval over anatomies.

    Attributes:
        rho: of all images [1].
        low, high: percentiles of the draws [1].
        level: of the interval [1].
        clusters: anatomies drawn from.
        n, left_out: images.
        draws, undefined: draws, and those of them where a figure was constant, which have no part in the interval.
    """

    rho: float
    low: float
    high: float
    level: float
    clusters: int
    n: int
    left_out: int
    draws: int
    undefined: int


def spearman(x: Float[np.ndarray, " i"], y: Float[np.ndarray, " i"]) -> Rank:
    """Rank correlation over all images, ties with their mean rank.

    Raises: InputError if there are not as many x as y.
    """
    valid = _valid(x, y)
    n, left_out = int(valid.sum()), int((~valid).sum())
    a, b = x[valid], y[valid]
    if n < 2 or np.all(a == a[0]) or np.all(b == b[0]):
        return Rank(nan, nan, n, left_out)
    found = spearmanr(a, b)
    return Rank(float(found.statistic), float(found.pvalue) if n > 2 else nan, n, left_out)


def spearman_within(
    x: Float[np.ndarray, " i"], y: Float[np.ndarray, " i"], group: Int[np.ndarray, " i"]
) -> tuple[Rank, dict[int, Rank]]:
    """Rank correlation within each group (an artefact), and their mean weighted by their images.

    Differences between groups have no part in it: a figure that only tells noise from blur has 0.

    Returns: the mean, of p NaN; n are the images of groups that have a rho, all others are left out; and every group's.
    Raises: InputError if there is not one group per image.
    """
    _as_many(x, group=group)
    each = {int(g): spearman(x[group == g], y[group == g]) for g in np.unique(group)}
    known = [rank for rank in each.values() if not np.isnan(rank.rho)]
    n = sum(rank.n for rank in known)
    rho = sum(rank.n * rank.rho for rank in known) / n if n else nan
    return Rank(rho, nan, n, x.size - n), each


def spearman_by_cluster(
    x: Float[np.ndarray, " i"],
    y: Float[np.ndarray, " i"],
    cluster: Int[np.ndarray, " i"],
    rng: np.random.Generator,
    draws: int = 1000,
    *,
    group: Int[np.ndarray, " i"] | None = None,
    level: float = 0.95,
) -> RankInterval:
    """Rank correlation with a bootstrap interval: whole anatomies are drawn with replacement, not images.

    Images of one anatomy are alike, so that an interval over images would be too narrow. With few anatomies
    (below about 20) a percentile interval is too narrow still.

    Args:
        cluster: anatomy of each image.
        rng: of the draws.
        group: correlation within these (`spearman_within`); None: pooled.
        level: of the interval.
    Raises: InputError if a list has another length, there are fewer than two anatomies, or no draws.
    Source: Davison and Hinkley 1997, doi:10.1017/CBO9780511802843, section 3.8.
    """
    _as_many(x, cluster=cluster)
    if group is not None:
        _as_many(x, group=group)
    if draws < 1 or not 0 < level < 1:
        raise InputError(f"draws: must be at least 1 and level between 0 and 1, got {draws} and {level:g}")
    valid = _valid(x, y)
    a, b, anatomy = x[valid], y[valid], cluster[valid]
    within = np.zeros(a.size, dtype=np.int64) if group is None else group[valid]
    names, place = np.unique(anatomy, return_inverse=True)
    if names.size < 2:
        raise InputError(f"cluster: {names.size} anatomies; an interval over them needs at least 2")
    drawn = np.empty(draws)
    for start in range(0, draws, _AT_ONCE):
        picks = rng.integers(0, names.size, size=(min(_AT_ONCE, draws - start), names.size))
        # how often each anatomy was drawn: each of its images counts so many times
        times = np.stack([np.bincount(pick, minlength=names.size) for pick in picks])
        drawn[start : start + len(picks)] = _mean_rho(a, b, within, times[:, place])
    known = drawn[~np.isnan(drawn)]
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2]) if known.size else (nan, nan)
    n = int(valid.sum())
    return RankInterval(
        float(_mean_rho(a, b, within, np.ones((1, a.size), dtype=np.int64))[0]),
        float(low),
        float(high),
        level,
        int(names.size),
        n,
        x.size - n,
        draws,
        draws - int(known.size),
    )


def _mean_rho(
    a: Float[np.ndarray, " i"],
    b: Float[np.ndarray, " i"],
    group: Int[np.ndarray, " i"],
    times: Int[np.ndarray, "d i"],
) -> Float[np.ndarray, " d"]:
    """Mean of the correlation within groups, weighted by their images, of those that have one; of every draw."""
    total, n = np.zeros(len(times)), np.zeros(len(times))
    for g in np.unique(group):
        of = group == g
        rho = _rho(a[of], b[of], times[:, of])
        weight = np.where(np.isnan(rho), 0, times[:, of].sum(axis=1))
        total, n = total + weight * np.nan_to_num(rho), n + weight
    return np.divide(total, n, out=np.full(len(times), nan), where=n > 0)


def _rho(
    a: Float[np.ndarray, " i"], b: Float[np.ndarray, " i"], times: Int[np.ndarray, "d i"]
) -> Float[np.ndarray, " d"]:
    """Rank correlation with every image so many times; NaN where a figure is the same in all."""
    n = np.maximum(times.sum(axis=1, keepdims=True), 1)
    p, q = _mid_ranks(a, times), _mid_ranks(b, times)
    p, q = p - np.sum(times * p, axis=1, keepdims=True) / n, q - np.sum(times * q, axis=1, keepdims=True) / n
    square = np.sum(times * p * p, axis=1) * np.sum(times * q * q, axis=1)
    # ranks are halves of integers: unless all are one, their sums of squares are 1/2 at least
    return np.divide(np.sum(times * p * q, axis=1), np.sqrt(square), out=np.full(len(times), nan), where=square > 1e-3)


def _mid_ranks(a: Float[np.ndarray, " i"], times: Int[np.ndarray, "d i"]) -> Float[np.ndarray, "d i"]:
    """Ranks from 1, equal numbers with their mean rank."""
    _, place = np.unique(a, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(place.max() + 1))
    mass = np.add.reduceat(times[:, order], starts, axis=1)
    return np.asarray((np.cumsum(mass, axis=1) - mass + (mass + 1) / 2)[:, place])


def _valid(x: Float[np.ndarray, " i"], y: Float[np.ndarray, " i"]) -> np.ndarray:
    _as_many(x, y=y)
    return np.asarray(~np.isnan(x) & ~np.isnan(y))


def _as_many(x: np.ndarray, **other: np.ndarray) -> None:
    for name, each in other.items():
        if each.shape != x.shape:
            raise InputError(f"{name}: {each.size} numbers for {x.size} images; give one for each")
