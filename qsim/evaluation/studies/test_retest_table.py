"""The rows of a `test_retest` study, and what its page is made from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import stdtr

from qsim.evaluation.metrics import Interval, around, over_draws
from qsim.evaluation.repeatability import bland_altman, complete, concordance, icc, voxel_cv, within_subject
from qsim.evaluation.table import ALL, Row

# every voxel of the mask, whatever its tissue: what the paper averages over
EVERYWHERE = "all"
_NONE = Interval(nan, nan, nan)
# sizes of errors, whose intervals over draws are those of logarithms
_SIZES = ("cv", "within", "repeatability", "rmse", "bound")
# differences between draws that are rounding [1, of the largest value]
_FLAT = 1e-9

Voxels = Float[np.ndarray, " v"]


@dataclass(frozen=True, slots=True)
class Repeats:
    """What every method made of C repeats of one object.

    Attributes:
        draw: its number.
        snr: of the repeats; NaN where that is not known [1].
        sigma: noise SD; NaN where that is not known [units of the images].
        maps: relaxation time in every repeat and masked voxel, by method; NaN where a method gives none [s].
        regions: voxels by name; `EVERYWHERE` first.
        mask: where the voxels are.
        truth: in every masked voxel; None: nobody knows it [s].
        bounds: CV that the Cramér-Rao bound allows, by name of the bound; empty without truth [%].
    """

    draw: int
    snr: float
    sigma: float
    maps: Mapping[str, Float[np.ndarray, "c v"]]
    regions: Mapping[str, Bool[np.ndarray, " v"]]
    mask: Bool[np.ndarray, "*space"]
    truth: Voxels | None
    bounds: Mapping[str, Voxels]

    def placed(self, values: Voxels) -> Float[np.ndarray, "*space"]:
        """Values of the masked voxels as a map, NaN outside."""
        found: Float[np.ndarray, "*space"] = np.full(self.mask.shape, nan)
        found[self.mask] = values
        return found


class Found:
    """All rows of a study, and those of all draws together by name."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = tuple(rows)
        self._of_all = {(r.estimator, r.tissue, f"{r.snr:g}", r.metric): r for r in rows if r.draw == ALL}

    def get(self, estimator: str, region: str, snr: float, metric: str) -> Row | None:
        """The row of all draws, or None if the study has no such figure."""
        return self._of_all.get((estimator, region, f"{snr:g}", metric))

    def value(self, estimator: str, region: str, snr: float, metric: str) -> float:
        """Its value, NaN if the study has no such figure."""
        row = self.get(estimator, region, snr, metric)
        return nan if row is None else row.value


@dataclass(frozen=True, slots=True)
class _Figure:
    """One statistic of a region: its value with an interval that takes voxels as independent, and how many."""

    value: Interval
    n: int


def rows(study: str, parameter: str, settings: Sequence[Repeats], reference: str) -> Iterator[Row]:
    """Rows of every draw, and of all draws together, for each SNR.

    Statistics of all draws are those of their voxels together; their interval is that over draws (as in the study of
    noise), and with one draw the one that takes voxels as independent. Correlations of all draws are means over draws,
    of Fisher's z: the tissue values of draws differ, which would count as agreement. The p of a trend of all draws is
    that of a t-test of the draws' slopes against 0; p-values have no interval.

    Args:
        study: kind, first column.
        parameter: the relaxation time.
        settings: one for each draw and SNR.
        reference: the method that the others are compared with.
    """
    for snr in dict.fromkeys(f"{s.snr:g}" for s in settings):
        draws = [s for s in settings if f"{s.snr:g}" == snr]
        sigma = draws[0].sigma

        def row(who: str, where: str, draw: int | str, metric: str, value: Interval, n: int) -> Row:
            about = draws[0].snr, sigma  # noqa: B023  used before the next SNR
            return Row(study, who, where, parameter, *about, draw, metric, value.value, value.low, value.high, n)

        used = [name for name in draws[0].regions if any(s.regions[name].any() for s in draws)]
        for where in used:
            inside = [s.regions[where] for s in draws]
            for who in draws[0].maps:
                parts = [
                    _Part(
                        s.maps[who][:, m],
                        s.maps[reference][:, m] if who != reference else None,
                        None if s.truth is None else s.truth[m],
                    )
                    for s, m in zip(draws, inside, strict=True)
                ]
                for metric, value, n, draw in _tabulated(parts, _of_method, [s.draw for s in draws]):
                    yield row(who, where, draw, metric, value, n)
            for bound in draws[0].bounds:
                own = [_Part(s.bounds[bound][None, m], None, None) for s, m in zip(draws, inside, strict=True)]
                for metric, value, n, draw in _tabulated(own, _of_bound, [s.draw for s in draws]):
                    yield row(f"bound-{bound}", where, draw, metric, value, n)


@dataclass(frozen=True, slots=True)
class _Part:
    """Voxels of one region: estimates, those of the reference, truth."""

    values: Float[np.ndarray, "c v"]
    reference: Float[np.ndarray, "c v"] | None
    truth: Voxels | None


def _joined(parts: Sequence[_Part]) -> _Part:
    references = [p.reference for p in parts if p.reference is not None]
    truths = [p.truth for p in parts if p.truth is not None]
    return _Part(
        np.concatenate([p.values for p in parts], axis=1),
        np.concatenate(references, axis=1) if references else None,
        np.concatenate(truths) if truths else None,
    )


def _tabulated(
    parts: Sequence[_Part], figures: Callable[[_Part], dict[str, _Figure]], draws: Sequence[int]
) -> Iterator[tuple[str, Interval, int, int | str]]:
    per_draw = [figures(part) for part in parts]
    together = figures(_joined(parts)) if len(parts) > 1 else per_draw[0]
    for metric, figure in together.items():
        for draw, each in zip(draws, per_draw, strict=True):
            yield metric, each[metric].value, each[metric].n, draw
        if len(parts) == 1:
            yield metric, figure.value, figure.n, ALL
            continue
        values = np.array([each[metric].value.value for each in per_draw])
        if metric in ("icc", "reference_concordance"):
            value = _correlation(values)
        elif metric == "difference_trend_p":
            slopes = np.array([each["difference_trend"].value.value for each in per_draw])
            value = Interval(_p_of_mean(slopes), nan, nan)
        else:
            value = around(figure.value.value, values, positive=metric.startswith(_SIZES))
        yield metric, value, figure.n, ALL


def _correlation(per_draw: Voxels) -> Interval:
    """Mean of Fisher's z over draws, back again; without ends where a draw agrees perfectly."""
    if not (np.abs(per_draw) < 1).all():
        return Interval(over_draws(per_draw).value, nan, nan)
    z = over_draws(np.arctanh(per_draw))
    return Interval(*(float(np.tanh(each)) for each in (z.value, z.low, z.high)))


def _p_of_mean(per_draw: Voxels) -> float:
    """Two-sided p of a t-test of draws against 0; NaN with fewer than two, or where they do not differ.

    t = mean sqrt(n) / SD,   n - 1 degrees of freedom
    """
    known = per_draw[np.isfinite(per_draw)]
    if known.size < 2 or np.ptp(known) <= _FLAT * np.abs(known).max():
        return nan
    t = float(known.mean()) * sqrt(known.size) / float(known.std(ddof=1))
    return 2 * float(stdtr(known.size - 1, -abs(t)))


def _of_method(part: _Part) -> dict[str, _Figure]:
    cv = voxel_cv(part.values)
    cv = cv[np.isfinite(cv)]
    within = within_subject(part.values)
    pair = bland_altman(part.values[0], part.values[1])
    asked = part.values.shape[1]
    found = {
        "cv_median": _Figure(_plain(np.median, cv), cv.size),
        "cv_mean": _Figure(_plain(np.mean, cv), cv.size),
        "cv_p95": _Figure(_plain(lambda v: np.percentile(v, 95), cv), cv.size),
        "within_sd": _Figure(within.sd, within.n),
        "within_cv": _Figure(within.cv, within.n),
        "within_cv_log": _Figure(within.cv_log, within.n),
        "repeatability_coefficient": _Figure(within.coefficient, within.n),
        "icc": _Figure(icc(part.values), within.n),
        "difference": _Figure(pair.difference, pair.n),
        "limit_low": _Figure(pair.low, pair.n),
        "limit_high": _Figure(pair.high, pair.n),
        "difference_trend": _Figure(pair.trend, pair.n),
        "difference_trend_p": _Figure(Interval(pair.p_trend, nan, nan), pair.n),
        "failed": _Figure(Interval(100 * (1 - within.n / asked) if asked else nan, nan, nan), asked),
    }
    if part.truth is not None:
        found |= _against_truth(part.values, part.truth)
    if part.reference is not None:
        # as the paper: maps of one scan, not their mean
        against = bland_altman(part.reference[0], part.values[0])
        found |= {
            "reference_difference": _Figure(against.difference, against.n),
            "reference_limit_low": _Figure(against.low, against.n),
            "reference_limit_high": _Figure(against.high, against.n),
            "reference_concordance": _Figure(concordance(part.reference[0], part.values[0]), against.n),
        }
    return found


def _against_truth(values: Float[np.ndarray, "c v"], truth: Voxels) -> dict[str, _Figure]:
    inside = np.isfinite(values).all(0)
    known, right = complete(values), truth[inside].astype(np.float64)
    error = 100 * (known - right) / right
    return {
        "bias_median": _Figure(_plain(np.median, error.mean(0)), right.size),
        "bias_mean": _Figure(_plain(np.mean, error.mean(0)), right.size),
        "rmse": _Figure(_plain(lambda e: np.sqrt(np.mean(e**2)), error), right.size),
    }


def _of_bound(part: _Part) -> dict[str, _Figure]:
    bound = part.values[0].astype(np.float64)
    bound = bound[~np.isnan(bound)]
    return {
        "bound_median": _Figure(_plain(np.median, bound), bound.size),
        # the root of the mean square is what the within-subject CV of an efficient estimator is
        "bound_within_cv": _Figure(_plain(lambda v: np.sqrt(np.mean(v**2)), bound), bound.size),
    }


def _plain(
    statistic: Callable[[Float[np.ndarray, "*s"]], float | np.floating], values: Float[np.ndarray, "*s"]
) -> Interval:
    """A statistic without an interval; NaN of nothing."""
    return Interval(float(statistic(values)), nan, nan) if values.size else _NONE
