"""The rows of an `uncertainty` study, and what its page says."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from qsim.evaluation.metrics import Interval, over_draws
from qsim.evaluation.studies.uncertainty_study import GROUPS, OF_SD, TOGETHER, Judged, metric_names
from qsim.evaluation.table import ALL, Row
from qsim.kspace.noise import sigma_of


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """All that was found.

    Attributes:
        parameter: whose uncertainty.
        level: nominal coverage.
        kinds: of intervals.
        methods: names of those that state an uncertainty, in the order of the tables.
        silent: why the others state none.
        refusals: why a method has no intervals of a kind, by (method, kind).
        tissues: of the anatomy.
        snrs: of the study.
        repeats: noise realisations of each draw.
        judged: of each SNR and draw, by method.
        bounds: of each SNR and draw, by method: median over the voxels of each region of the bound of the CV [%].
        bound_of: name of the bound that each method is held against.
    """

    parameter: str
    level: float
    kinds: tuple[str, ...]
    methods: Sequence[str]
    silent: Mapping[str, str]
    refusals: Mapping[tuple[str, str], str]
    tissues: Sequence[str]
    snrs: Sequence[float]
    repeats: int
    judged: Mapping[float, Sequence[Mapping[str, Judged]]]
    bounds: Mapping[float, Sequence[Mapping[str, Float[np.ndarray, " r"]]]]
    bound_of: Mapping[str, str]

    @property
    def regions(self) -> dict[int, str]:
        """Number and name of those with a voxel: tissues, and all together if there are two of them."""
        n = np.sum([judged[self.methods[0]].n[:, 0] for judged in next(iter(self.judged.values()))], axis=0)
        used = {r: name for r, name in enumerate(self.tissues) if n[r]}
        return used | ({len(self.tissues): TOGETHER} if len(used) > 1 else {})

    def values(self, method: str, snr: float, region: int, metric: str, group: int = 0) -> Float[np.ndarray, " d"]:
        """A figure of each draw."""
        place = metric_names(self.kinds).index(metric)
        return np.array([judged[method].figures[region, group, place] for judged in self.judged[snr]])

    def of(self, method: str, snr: float, region: int, metric: str, group: int = 0) -> Interval:
        """Mean over draws with its t-interval; of the coverage in a single draw the binomial interval."""
        values = self.values(method, snr, region, metric, group)
        if len(values) == 1 and metric.startswith("coverage"):
            return self.binomial(method, snr, region, metric, group, 0)
        return over_draws(values)

    def binomial(self, method: str, snr: float, region: int, metric: str, group: int, draw: int) -> Interval:
        """Coverage of one draw with its 95 % interval, were the voxels and repeats independent."""
        share = float(self.values(method, snr, region, metric, group)[draw])
        kind = metric.removeprefix("coverage_")
        missing = float(self.values(method, snr, region, f"undefined_rate_{kind}", group)[draw])
        n = int(self.judged[snr][draw][method].n[region, group])
        return wilson(share, round(n * (1 - missing / 100)) if missing == missing else 0)

    def bound(self, method: str, snr: float, region: int) -> Interval:
        """Bound of the CV in the problem of the method, median over voxels, mean over draws [%]."""
        return over_draws(np.array([bound[method][region] for bound in self.bounds[snr]]))

    def mean_curve(self, method: str, snr: float, region: int, field: str) -> Float[np.ndarray, "*curve"]:
        """A curve of `Judged`, mean over the draws that have one."""
        curves = np.stack([getattr(judged[method], field)[region] for judged in self.judged[snr]])
        there = ~np.isnan(curves)
        count = there.sum(0)
        return np.divide(np.where(there, curves, 0).sum(0), count, out=np.full(count.shape, nan), where=count > 0)


def wilson(share: float, n: int) -> Interval:
    """A share [%] with its 95 % interval over n independent trials.

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    if n == 0 or share != share:
        return Interval(share, nan, nan)
    p, z2 = share / 100, float(ndtri(0.975)) ** 2
    middle, half = p + z2 / (2 * n), sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))
    low, high = (100 * (middle + side * half) / (1 + z2 / n) for side in (-1, 1))
    return Interval(share, low, high)


def rows(found: Uncertainty) -> Iterator[Row]:
    """The long table: `tissue` is a tissue, or "tissue, tercile k" of |error|."""
    for snr in found.snrs:
        for method in found.methods:
            for region, name in found.regions.items():
                yield from _bound(found, method, snr, region, name)
                for group, tercile in enumerate(GROUPS):
                    where = f"{name}, {tercile}" if tercile else name
                    for metric in metric_names(found.kinds):
                        yield from _metric(found, method, snr, region, group, where, metric)


def _bound(found: Uncertainty, method: str, snr: float, region: int, where: str) -> Iterator[Row]:
    """Of the problem that the method solves: one row for each method, whoever shares it."""
    draws = [float(bound[method][region]) for bound in found.bounds[snr]]
    counts = [int(judged[method].n[region, 0]) // found.repeats for judged in found.judged[snr]]
    for draw, (value, n) in enumerate(zip(draws, counts, strict=True)):
        yield _row(found, method, where, snr, draw, "bound_median", Interval(value, nan, nan), n)
    yield _row(found, method, where, snr, ALL, "bound_median", found.bound(method, snr, region), sum(counts))


def _metric(
    found: Uncertainty, method: str, snr: float, region: int, group: int, where: str, metric: str
) -> Iterator[Row]:
    values = found.values(method, snr, region, metric, group)
    kind = metric.rsplit("_", 1)[-1]
    # what does not exist for this method or group has no row; an SD that nobody stated has, and its rate
    if (metric not in OF_SD and (method, kind) in found.refusals) or (group and metric in OF_SD[4:]):
        return
    counts = [int(judged[method].n[region, group]) for judged in found.judged[snr]]
    for draw, (value, n) in enumerate(zip(values, counts, strict=True)):
        interval = Interval(float(value), nan, nan)
        if metric.startswith("coverage"):
            interval = found.binomial(method, snr, region, metric, group, draw)
        yield _row(found, method, where, snr, draw, metric, interval, n)
    yield _row(found, method, where, snr, ALL, metric, found.of(method, snr, region, metric, group), sum(counts))


def _row(
    found: Uncertainty, method: str, where: str, snr: float, draw: int | str, metric: str, value: Interval, n: int
) -> Row:
    interval = value.value, value.low, value.high
    return Row("uncertainty", method, where, found.parameter, snr, sigma_of(snr), draw, metric, *interval, n)
