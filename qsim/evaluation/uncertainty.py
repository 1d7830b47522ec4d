"""Whether the uncertainty of an estimate is honest: coverage with width, sparsification, calibration, CRPS.

Every function takes lists of voxels in float64 numpy, of one parameter, from whatever estimator. `error` is always
estimate - truth. A voxel that holds NaN, or an SD that is not positive and finite where one is needed, is left out and
counted in `left_out`: a method that gives no uncertainty in its worst voxels must not look better for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize_scalar
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

Law = Literal["gaussian", "laplace"]
Ends = tuple[Float[np.ndarray, " v"], Float[np.ndarray, " v"]]


@dataclass(frozen=True, slots=True)
class Counted:
    """A figure, the voxels behind it, and those that were left out."""

    value: float
    n: int
    left_out: int


# laws


def laplace_sd(b: Float[np.ndarray, "*s"] | float) -> Float[np.ndarray, "*s"]:
    """SD of a Laplace distribution of scale b: its variance is 2 b^2 [unit of b]."""
    return np.asarray(np.sqrt(2.0) * np.asarray(b, dtype=np.float64))


def half_width(scale: Float[np.ndarray, "*s"] | float, level: float, law: Law = "gaussian") -> Float[np.ndarray, "*s"]:
    """Half the central interval of that probability: 1.96 SD at 95 %, of a Laplace distribution log(20) b = 3.0 b.

    Args:
        scale: SD, or b of a Laplace distribution.
    """
    return np.asarray(np.asarray(scale, dtype=np.float64) * _quantile((1 + level) / 2, law))


def _quantile(p: Float[np.ndarray, "*p"] | float, law: Law) -> Float[np.ndarray, "*p"]:
    """Quantile of the law with scale 1."""
    p = np.asarray(p, dtype=np.float64)
    if law == "gaussian":
        return np.asarray(ndtri(p))
    tail = np.minimum(p, 1 - p)
    return np.asarray(np.sign(p - 0.5) * -np.log(2 * tail))


# coverage


@dataclass(frozen=True, slots=True)
class Coverage:
    """Of one group of voxels.

    Attributes:
        group: "all", a tissue, or "error tercile 1" (the smallest errors) to 3.
        nominal, observed: share of intervals that hold the truth [1].
        median_width, mean_width: of the intervals [SI].
        n, left_out: voxels.
    """

    group: str
    nominal: float
    observed: float
    median_width: float
    mean_width: float
    n: int
    left_out: int


def coverage(
    estimate: Float[np.ndarray, " v"],
    uncertainty: Float[np.ndarray, " v"] | Ends,
    truth: Float[np.ndarray, " v"],
    *,
    level: float = 0.95,
    law: Law = "gaussian",
    tissues: Mapping[str, Bool[np.ndarray, " v"]] | None = None,
) -> list[Coverage]:
    """How often intervals hold the truth, and how wide they are: over all voxels, per tissue, per tercile of |error|.

    A method whose intervals are honest on average may still be too sure just where it errs: the terciles show it. Those
    of an ideal Gaussian cover 100, 100 and 85 %.

    Args:
        uncertainty: scale of the law (SD, or b of a Laplace distribution), or the ends of intervals [SI].
        level: nominal, of intervals that are given or made from the scale.
        tissues: which voxels are each tissue.
    """
    if isinstance(uncertainty, tuple):
        lower, upper = (np.asarray(end, dtype=np.float64) for end in uncertainty)
    else:
        half = half_width(uncertainty, level, law)
        lower, upper = estimate - half, estimate + half
    error = np.abs(estimate - truth)
    valid = np.isfinite(error) & ~np.isnan(lower) & ~np.isnan(upper)
    groups: dict[str, Bool[np.ndarray, " v"]] = {"all": np.ones(error.shape, dtype=bool), **(tissues or {})}
    # by rank, so that the terciles are equal in number; what is left out has none
    rank = np.full(error.shape, -1)
    rank[valid] = np.argsort(np.argsort(error[valid], kind="stable"), kind="stable") * 3 // max(int(valid.sum()), 1)
    groups |= {f"error tercile {i + 1}": rank == i for i in range(3)}
    rows = []
    for name, group in groups.items():
        used = group & valid
        n, left_out = int(used.sum()), int((group & ~valid).sum())
        if n == 0:
            rows.append(Coverage(name, level, nan, nan, nan, 0, left_out))
            continue
        holds = (lower[used] <= truth[used]) & (truth[used] <= upper[used])
        width = upper[used] - lower[used]
        rows.append(
            Coverage(name, level, float(holds.mean()), float(np.median(width)), float(width.mean()), n, left_out)
        )
    return rows


# sparsification


@dataclass(frozen=True, slots=True)
class Sparsification:
    """Error of what is left when the most uncertain voxels are removed.

    Attributes:
        fraction: removed, from 0 [1].
        curve: error of the rest, removed by uncertainty [SI].
        oracle: removed by the error itself: no order is better.
        random: removed at random: the error does not change on average.
        metric: "rmse" or "mae".
        ause: mean of (curve - oracle) / curve[0] over the fractions: 0 for an ideal order [1].
        aurg: mean of (random - curve) / curve[0]: 0 for an order that says nothing, negative for a wrong one [1].
        n, left_out: voxels.
    """

    fraction: Float[np.ndarray, " f"]
    curve: Float[np.ndarray, " f"]
    oracle: Float[np.ndarray, " f"]
    random: Float[np.ndarray, " f"]
    metric: Literal["rmse", "mae"]
    ause: float
    aurg: float
    n: int
    left_out: int


def sparsification(
    error: Float[np.ndarray, " v"],
    uncertainty: Float[np.ndarray, " v"],
    metric: Literal["rmse", "mae"] = "rmse",
    steps: int = 100,
) -> Sparsification:
    """Sparsification curves.

    Voxels of the same uncertainty are removed together in every proportion (each counts with their mean error), so that
    a constant uncertainty gives the random curve, whatever the order of the voxels.

    Args:
        uncertainty: any number that grows with it; an infinite one is removed first.
        steps: fractions 0, 1/steps, ..., 1 - 1/steps; their areas are means over them.
    Source: Ilg et al. 2018, doi:10.1007/978-3-030-01234-2_40 (AUSE); Poggi et al. 2020,
        doi:10.1109/CVPR42600.2020.00329 (AURG).
    """
    valid = np.isfinite(error) & ~np.isnan(uncertainty)
    n, left_out = int(valid.sum()), int((~valid).sum())
    fraction = np.arange(steps) / steps
    if n == 0:
        empty = np.full(steps, nan)
        return Sparsification(fraction, empty, empty, empty, metric, nan, nan, 0, left_out)
    loss = np.abs(error[valid].astype(np.float64)) ** (2 if metric == "rmse" else 1)
    _, place, count = np.unique(uncertainty[valid], return_inverse=True, return_counts=True)
    tied = (np.bincount(place, loss) / count)[place]
    kept = n - np.floor(fraction * n + 1e-9).astype(np.int64)

    def left(order: Int[np.ndarray, " v"], of: Float[np.ndarray, " v"]) -> Float[np.ndarray, " f"]:
        mean = np.cumsum(of[order])[kept - 1] / kept
        return np.sqrt(mean) if metric == "rmse" else mean

    curve = left(np.argsort(place, kind="stable"), tied)
    oracle = left(np.argsort(loss, kind="stable"), loss)
    random = np.full(steps, curve[0])
    whole = curve[0] if curve[0] > 0 else nan
    ause, aurg = float(np.mean(curve - oracle) / whole), float(np.mean(random - curve) / whole)
    return Sparsification(fraction, curve, oracle, random, metric, ause, aurg, n, left_out)


def spearman(error: Float[np.ndarray, " v"], uncertainty: Float[np.ndarray, " v"]) -> Counted:
    """Rank correlation of |error| and uncertainty, ties with their mean rank; NaN where one of them is constant.

    For Gaussian errors whose SD are known exactly it is far below 1: a voxel of large SD may have a small error.
    """
    valid = np.isfinite(error) & ~np.isnan(uncertainty)
    n = int(valid.sum())
    if n < 2:
        return Counted(nan, n, int((~valid).sum()))
    a, b = rankdata(np.abs(error[valid])), rankdata(uncertainty[valid])
    a, b = a - a.mean(), b - b.mean()
    spread = float(np.sqrt(np.sum(a * a) * np.sum(b * b)))
    return Counted(float(np.sum(a * b)) / spread if spread > 0 else nan, n, int((~valid).sum()))


# calibration


@dataclass(frozen=True, slots=True)
class Calibration:
    """Quantiles against how often the truth lies below them, and SD against RMSE.

    Attributes:
        levels, observed: of the quantiles [1].
        quantile_error: mean |observed - level|: expected calibration error of quantiles [1].
        sd, rmse: of bins of equal number, ascending in SD: root mean square SD, and root mean square error [SI].
        ence: mean over the bins of |sd - rmse| / sd [1].
        sharpness: root mean square SD of all [SI].
        n, left_out: voxels.
    """

    levels: Float[np.ndarray, " l"]
    observed: Float[np.ndarray, " l"]
    quantile_error: float
    sd: Float[np.ndarray, " b"]
    rmse: Float[np.ndarray, " b"]
    ence: float
    sharpness: float
    n: int
    left_out: int


def calibration_error(
    error: Float[np.ndarray, " v"],
    scale: Float[np.ndarray, " v"],
    law: Law = "gaussian",
    levels: Float[np.ndarray, " l"] | None = None,
    bins: int = 10,
) -> Calibration:
    """Calibration of a predicted law.

    The quantile of level p is estimate + scale q_p; the truth should lie below it in a share p of the voxels. That is
    over all voxels together; the ENCE holds voxels of similar SD against their own error.

    Args:
        scale: SD, or b of a Laplace distribution [SI].
        levels: None: .05, .10, ..., .95.
        bins: of the ENCE; with exact SD it still is about sqrt(bins / (pi n)), the scatter of an RMSE.
    Source: Kuleshov et al. 2018, arXiv:1807.00263 Eq. 4 (as a mean of moduli); Levi et al. 2022, doi:10.3390/s22155540
        Eq. 8 (ENCE).
    """
    levels = np.arange(1, 20) / 20 if levels is None else levels
    valid = np.isfinite(error) & np.isfinite(scale) & (scale > 0)
    e, s = error[valid].astype(np.float64), scale[valid].astype(np.float64)
    n, left_out = int(valid.sum()), int((~valid).sum())
    if n == 0:
        none = np.full(bins, nan)
        return Calibration(levels, np.full(levels.shape, nan), nan, none, none, nan, nan, 0, left_out)
    scaled = np.sort(-e / s)
    observed = np.searchsorted(scaled, _quantile(levels, law), side="right") / n
    sd = s if law == "gaussian" else laplace_sd(s)
    pieces = np.array_split(np.argsort(sd, kind="stable"), min(bins, n))
    of_sd = np.array([np.sqrt(np.mean(sd[piece] ** 2)) for piece in pieces])
    of_error = np.array([np.sqrt(np.mean(e[piece] ** 2)) for piece in pieces])
    return Calibration(
        levels,
        observed,
        float(np.mean(np.abs(observed - levels))),
        of_sd,
        of_error,
        float(np.mean(np.abs(of_sd - of_error) / of_sd)),
        float(np.sqrt(np.mean(sd**2))),
        n,
        left_out,
    )


# proper scores: the smaller the better, and only the truth's own law reaches the smallest


def crps_gaussian(error: Float[np.ndarray, "*s"], sd: Float[np.ndarray, "*s"] | float) -> Float[np.ndarray, "*s"]:
    """Continuous ranked probability score of a Gaussian, integral of (F(x) - 1[x >= truth])^2 [SI].

        sd (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)),   z = error / sd

    |error| where sd is 0; NaN where it is negative or NaN.
    Source: Gneiting et al. 2005, doi:10.1175/MWR2904.1 Eq. 5.
    """
    e, s = np.broadcast_arrays(np.abs(np.asarray(error, dtype=np.float64)), np.asarray(sd, dtype=np.float64))
    z = np.divide(e, s, out=np.zeros(e.shape), where=s > 0)
    phi = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    spread = s * (z * (2 * ndtr(z) - 1) + 2 * phi - 1 / np.sqrt(np.pi))
    return np.where(s > 0, spread, np.where(s == 0, e, nan))


def crps_laplace(error: Float[np.ndarray, "*s"], b: Float[np.ndarray, "*s"] | float) -> Float[np.ndarray, "*s"]:
    """The same of a Laplace distribution of scale b, |error| + b exp(-|error| / b) - 3 b / 4 [SI].

    |error| where b is 0; NaN where it is negative or NaN.
    Source: Jordan et al. 2019, doi:10.18637/jss.v090.i12, appendix A.
    """
    e, s = np.broadcast_arrays(np.abs(np.asarray(error, dtype=np.float64)), np.asarray(b, dtype=np.float64))
    z = np.divide(e, s, out=np.zeros(e.shape), where=s > 0)
    return np.where(s > 0, e + s * np.exp(-z) - 0.75 * s, np.where(s == 0, e, nan))


def mean_crps(error: Float[np.ndarray, " v"], scale: Float[np.ndarray, " v"] | float, law: Law = "gaussian") -> Counted:
    """Mean over the voxels that have one [SI]."""
    score = crps_gaussian(error, scale) if law == "gaussian" else crps_laplace(error, scale)
    valid = np.isfinite(score)
    n = int(valid.sum())
    return Counted(float(score[valid].mean()) if n else nan, n, int((~valid).sum()))


def constant_width_crps(error: Float[np.ndarray, " v"], law: Law = "gaussian") -> tuple[Counted, float]:
    """The opponent: the mean CRPS of the one scale that is best for all voxels together, and that scale [SI].

    It knows the errors, which no method does; a method that scores worse tells nothing by its differences.
    """
    finite = error[np.isfinite(error)].astype(np.float64)
    largest = float(np.abs(finite).max()) if finite.size else 0.0
    if largest == 0:
        return mean_crps(error, 0.0, law), 0.0
    found = minimize_scalar(  # type: ignore[no-untyped-call]
        lambda scale: mean_crps(finite, scale, law).value,
        bounds=(0.0, 2 * largest),
        method="bounded",
        options={"xatol": 1e-7 * largest},
    )
    return mean_crps(error, float(found.x), law), float(found.x)


def interval_score(
    lower: Float[np.ndarray, "*s"], upper: Float[np.ndarray, "*s"], truth: Float[np.ndarray, "*s"], level: float = 0.95
) -> Float[np.ndarray, "*s"]:
    """Width, and 2 / (1 - level) times the distance of a truth that lies outside: width and coverage in one [SI].

    Source: Gneiting and Raftery 2007, doi:10.1198/016214506000001437 Eq. 43.
    """
    below, above = np.maximum(lower - truth, 0), np.maximum(truth - upper, 0)
    return np.asarray(upper - lower + 2 / (1 - level) * (below + above))
