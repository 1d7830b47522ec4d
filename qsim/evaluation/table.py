"""The long table of a study: one row per statistic, for each draw and for all draws together.

Rows of one draw say what that draw gave. Rows of `all` draws: statistics over voxels are those of the voxels of all
draws together, and their 95 % interval is that value +- t(0.975, D - 1) SD / sqrt(D), SD that of the D draws' own
statistics; for sizes of errors (CV, RMSE, ratios, bounds) the same is done with logarithms. Slopes are means, and
`rmse_over_<opponent>` geometric means over draws, with their t-intervals. `n` counts the voxels (of all draws together)
that have a value; of `slope_between_draws` the draws, of `cpu_seconds_per_image` the images.
"""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from math import nan
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from qsim.estimators.base import Status
from qsim.evaluation.metrics import (
    Interval,
    around,
    over_draws,
    ratio_over_draws,
    share,
    slope,
    slope_between_draws,
    summarise,
)
from qsim.evaluation.study import BOUNDS, Block, MethodResult

ALL = "all"
STATISTICS = ("median", "mean", "rms", "p5", "p25", "p75", "p95")
# those that every draw has a row of; the others only all draws together
_PER_DRAW = ("median", "mean", "p95")
# the root of the mean square is asked for of errors only: RMSE over voxels and repeats together
_RMS_OF = "rmse"
# opponents that every other method is compared with, in the same images
OPPONENTS = ("least-squares", "shared-b", "empirical-bayes")


class Row(NamedTuple):
    """One line of results.csv; the field names are its header."""

    study: str
    estimator: str
    tissue: str
    parameter: str
    snr: float
    sigma: float
    draw: int | str
    metric: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class _Context:
    """What the rows of one SNR share."""

    study: str
    snr: float
    sigma: float
    draws: tuple[int, ...]

    def row(
        self, who: str, where: str, parameter: str, draw: int | str, metric: str, value: Interval | float, n: int
    ) -> Row:
        value = value if isinstance(value, Interval) else Interval(value, nan, nan)
        return Row(
            self.study, who, where, parameter, self.snr, self.sigma, draw, metric, value.value, value.low, value.high, n
        )


def rows_of_snr(study: str, parameters: Sequence[str], blocks: Sequence[Block]) -> Iterator[Row]:
    """Rows of one SNR.

    Args:
        study: kind of the study, first column.
        parameters: names of the rows of kappa.
        blocks: one per draw, all at the same SNR and with the same methods and tissues.
    """
    about = _Context(study, blocks[0].snr, blocks[0].sigma, tuple(block.draw for block in blocks))
    regions = [block.regions() for block in blocks]
    used = [name for name in regions[0] if any(region[name].any() for region in regions)]
    methods = list(blocks[0].methods)
    for where in used:
        inside = [region[where] for region in regions]
        for q, parameter in enumerate(parameters):
            yield from _truth(about, where, parameter, [b.kappa[q, m] for b, m in zip(blocks, inside, strict=True)])
            for bound in blocks[0].bounds:
                values = [b.bounds[bound][q, m] for b, m in zip(blocks, inside, strict=True)]
                # the bound of what is known is 0: no bound
                if any(np.any(v > 0) for v in values):
                    yield from _voxel_metric(about, f"bound-{bound}", where, parameter, "bound", values)
        for who in methods:
            results = [block.methods[who] for block in blocks]
            for q, parameter in enumerate(parameters):
                yield from _parameter(about, who, where, parameter, q, blocks, results, inside)
            yield from _status(about, who, where, blocks, results, inside)
        yield from _against_opponents(about, where, parameters, blocks, inside)
    for who in methods:
        seconds = np.array([block.methods[who].cpu_seconds for block in blocks])
        n = sum(block.repeats for block in blocks)
        yield about.row(who, "", "", ALL, "cpu_seconds_per_image", over_draws(seconds), n)


# one array per draw; their lengths differ
Values = Sequence[Float[np.ndarray, " _"]]
Masks = Sequence[Bool[np.ndarray, " _"]]


def _voxel_metric(about: _Context, who: str, where: str, parameter: str, metric: str, values: Values) -> Iterator[Row]:
    """Statistics of a voxel metric, per draw and pooled."""
    per_draw = [summarise(v) for v in values]
    for draw, summary in zip(about.draws, per_draw, strict=True):
        for name in _PER_DRAW:
            yield about.row(who, where, parameter, draw, f"{metric}_{name}", getattr(summary, name), summary.n)
    pooled = summarise(np.concatenate(values))
    for name in STATISTICS:
        if name == "rms" and metric != _RMS_OF:
            continue
        own = np.array([getattr(summary, name) for summary in per_draw])
        interval = around(getattr(pooled, name), own, positive=metric != "relative_bias")
        yield about.row(who, where, parameter, ALL, f"{metric}_{name}", interval, pooled.n)


def _truth(about: _Context, where: str, parameter: str, values: Values) -> Iterator[Row]:
    """Mean and SD of the true values in a region [SI]: how much there is to find within a tissue."""
    statistics: tuple[tuple[str, Callable[[Float[np.ndarray, " v"]], float]], ...] = (
        ("truth_mean", lambda v: float(v.mean()) if v.size else nan),
        ("truth_sd", lambda v: float(v.std()) if v.size else nan),
    )
    for metric, statistic in statistics:
        per_draw = np.array([statistic(v) for v in values])
        for draw, value, v in zip(about.draws, per_draw, values, strict=True):
            yield about.row("truth", where, parameter, draw, metric, float(value), v.size)
        yield about.row("truth", where, parameter, ALL, metric, over_draws(per_draw), sum(v.size for v in values))


def _parameter(
    about: _Context,
    who: str,
    where: str,
    parameter: str,
    q: int,
    blocks: Sequence[Block],
    results: Sequence[MethodResult],
    inside: Masks,
) -> Iterator[Row]:
    """Bias, CV, RMSE, RMSE over bound, and slopes of one parameter in one region."""
    if not any(result.n[q].any() for result in results):
        return
    for metric, field in (("relative_bias", "bias"), ("cv", "cv"), ("rmse", "rmse")):
        values = [getattr(result, field)[q, m] for result, m in zip(results, inside, strict=True)]
        yield from _voxel_metric(about, who, where, parameter, metric, values)
    values = [np.abs(result.noise_free[q, m]) for result, m in zip(results, inside, strict=True)]
    yield from _medians(about, who, where, parameter, "noise_free_error", values)

    for bound in blocks[0].bounds:
        values = [
            _ratio(result.rmse[q, m], block.bounds[bound][q, m])
            for result, block, m in zip(results, blocks, inside, strict=True)
        ]
        if any(np.isfinite(v).any() for v in values):
            yield from _medians(about, who, where, parameter, f"rmse_over_bound_{bound}", values)

    pairs = [(result.mean[q, m], block.kappa[q, m]) for result, block, m in zip(results, blocks, inside, strict=True)]
    if where not in ("pure", "mixed"):
        slopes = np.array([slope(estimate.astype(np.float64), truth) for estimate, truth in pairs])
        if np.isfinite(slopes).any():
            counts = [int(np.isfinite(estimate).sum()) for estimate, _ in pairs]
            for draw, value, n in zip(about.draws, slopes, counts, strict=True):
                yield about.row(who, where, parameter, draw, "slope_within", float(value), n)
            yield about.row(who, where, parameter, ALL, "slope_within", over_draws(slopes), sum(counts))
        means = np.array([_means(estimate, truth) for estimate, truth in pairs])
        between = slope_between_draws(means[:, 0], means[:, 1])
        if np.isfinite(between.value):
            n = int(np.isfinite(means[:, 0]).sum())
            yield about.row(who, where, parameter, ALL, "slope_between_draws", between, n)


def _means(estimate: Float[np.ndarray, " v"], truth: Float[np.ndarray, " v"]) -> tuple[float, float]:
    """Mean estimate and mean truth over the voxels that have both."""
    finite = np.isfinite(estimate)
    return (float(estimate[finite].mean()), float(truth[finite].mean())) if finite.any() else (nan, nan)


def _ratio(above: Float[np.ndarray, " v"], below: Float[np.ndarray, " v"]) -> Float[np.ndarray, " v"]:
    """Voxel by voxel, NaN where the bound is 0 (known) or infinite (not identifiable)."""
    fit = np.isfinite(below) & (below > 0)
    return np.divide(above, below, out=np.full(above.shape, nan), where=fit)


def _medians(about: _Context, who: str, where: str, parameter: str, metric: str, values: Values) -> Iterator[Row]:
    """Median over voxels of a ratio or the size of an error, per draw and pooled."""
    per_draw = [summarise(v) for v in values]
    for draw, summary in zip(about.draws, per_draw, strict=True):
        yield about.row(who, where, parameter, draw, metric, summary.median, summary.n)
    pooled = summarise(np.concatenate(values))
    interval = around(pooled.median, np.array([summary.median for summary in per_draw]), positive=True)
    yield about.row(who, where, parameter, ALL, metric, interval, pooled.n)


def _status(
    about: _Context,
    who: str,
    where: str,
    blocks: Sequence[Block],
    results: Sequence[MethodResult],
    inside: Masks,
) -> Iterator[Row]:
    """Failure and at-bound rates over voxels and repeats [%]; failed: not converged or not computed."""
    events = {
        "failure_rate": (Status.NOT_CONVERGED, Status.NOT_COMPUTED),
        "at_bound_rate": (Status.AT_BOUND,),
        "not_converged_rate": (Status.NOT_CONVERGED,),
        "not_computed_rate": (Status.NOT_COMPUTED,),
    }
    for metric, states in events.items():
        counts = [result.status[[int(s) for s in states]].sum(0)[m] for result, m in zip(results, inside, strict=True)]
        per_draw = np.array([share(c, block.repeats) for c, block in zip(counts, blocks, strict=True)])
        for draw, value, c in zip(about.draws, per_draw, counts, strict=True):
            yield about.row(who, where, "", draw, metric, float(value), c.size)
        interval = around(share(np.concatenate(counts), blocks[0].repeats), per_draw, positive=False)
        yield about.row(who, where, "", ALL, metric, interval, sum(c.size for c in counts))


def _against_opponents(
    about: _Context, where: str, parameters: Sequence[str], blocks: Sequence[Block], inside: Masks
) -> Iterator[Row]:
    """Median RMSE over that of an opponent in the same images, paired by draw; below 1 the method is better."""
    methods = list(blocks[0].methods)
    for opponent in OPPONENTS:
        if opponent not in methods:
            continue
        for who in methods:
            if who == opponent:
                continue
            for q, parameter in enumerate(parameters):
                pairs = [
                    [summarise(block.methods[name].rmse[q, m]) for name in (who, opponent)]
                    for block, m in zip(blocks, inside, strict=True)
                ]
                ratios = np.array([a.median / b.median if b.n and b.median > 0 else nan for a, b in pairs])
                if not np.isfinite(ratios).any():
                    continue
                metric = f"rmse_over_{opponent}"
                for draw, value, (a, _) in zip(about.draws, ratios, pairs, strict=True):
                    yield about.row(who, where, parameter, draw, metric, float(value), a.n)
                n = sum(a.n for a, _ in pairs)
                yield about.row(who, where, parameter, ALL, metric, ratio_over_draws(ratios), n)


def csv_text(rows: Iterable[Row]) -> str:
    """The table as CSV: six significant digits, what does not exist left blank."""
    file = StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Row._fields)
    for row in rows:
        writer.writerow([_text(field) for field in row])
    return file.getvalue()


def _text(field: float | int | str) -> str:
    if isinstance(field, float):
        return "" if np.isnan(field) else f"{field:.6g}"
    return str(field)


def _number(text: str) -> float:
    return float(text) if text else nan


def read_csv(path: Path) -> list[Row]:
    """Read a table back; blanks become NaN.

    Raises: ValueError if the columns are not those of a study.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != Row._fields:
            raise ValueError(f"{path}: not a study table; its columns are {', '.join(reader.fieldnames or ())}")
        return [
            Row(
                line["study"],
                line["estimator"],
                line["tissue"],
                line["parameter"],
                _number(line["snr"]),
                _number(line["sigma"]),
                line["draw"] if line["draw"] == ALL else int(line["draw"]),
                line["metric"],
                _number(line["value"]),
                _number(line["low"]),
                _number(line["high"]),
                int(line["n"]),
            )
            for line in reader
        ]


class Table:
    """The rows of all draws together, by name."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = {
            (row.estimator, row.tissue, row.parameter, row.snr, row.metric): row for row in rows if row.draw == ALL
        }

    def get(self, estimator: str, tissue: str, parameter: str, snr: float, metric: str) -> Row | None:
        """The row, or None if the study has no such figure."""
        return self._rows.get((estimator, tissue, parameter, snr, metric))

    def value(self, estimator: str, tissue: str, parameter: str, snr: float, metric: str) -> float:
        """Its value, NaN if the study has no such figure."""
        row = self.get(estimator, tissue, parameter, snr, metric)
        return nan if row is None else row.value


__all__ = ["ALL", "BOUNDS", "OPPONENTS", "STATISTICS", "Row", "Table", "csv_text", "read_csv", "rows_of_snr"]
