"""The rows of a `blurriness` study, and what its page says."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from jaxtyping import Float

from qsim.evaluation.metrics import Interval, over_draws
from qsim.evaluation.studies.blurriness import REGIONS, SCENARIOS, Errors, Structure, p_value
from qsim.evaluation.table import ALL, Row
from qsim.kspace.noise import sigma_of


@dataclass(frozen=True, slots=True)
class Blurriness:
    """All that was found.

    Attributes:
        structures: in the order of the config.
        parameter: what they change.
        methods: names, in the order of the tables, painters last.
        painters: those of them that look at no image.
        snrs: of the study.
        repeats: noise realisations of each scenario.
        errors: of each SNR and draw, by name of the method.
        bounds: of each SNR and draw, by name of the bound: scenario, structure, region [%].
        bound_of: the bound that each method is held against.
    """

    structures: Sequence[Structure]
    parameter: str
    methods: Sequence[str]
    painters: Sequence[str]
    snrs: Sequence[float]
    repeats: int
    errors: Mapping[float, Sequence[Mapping[str, Errors]]]
    bounds: Mapping[float, Sequence[Mapping[str, Float[np.ndarray, "2 s 2"]]]]
    bound_of: Mapping[str, str]

    def bias(self, method: str, snr: float, structure: int, region: int, scenario: int) -> list[float]:
        """Median over repeats of the relative error of the region's mean, in each draw [%]."""
        return [float(np.median(e[method].error[scenario, structure, region])) for e in self.errors[snr]]

    def spread(self, method: str, snr: float, structure: int, region: int, scenario: int) -> list[float]:
        """CV over repeats, mean over the voxels of the region, in each draw [%]."""
        return [float(e[method].spread[scenario, structure, region]) for e in self.errors[snr]]

    def rmse(self, method: str, snr: float, structure: int, region: int, scenario: int) -> list[float]:
        """RMS over repeats of the relative error of the region's mean, in each draw [%]."""
        squares = [e[method].error[scenario, structure, region] ** 2 for e in self.errors[snr]]
        return [float(np.sqrt(square.mean())) for square in squares]

    def bound(self, name: str, snr: float, structure: int, region: int, scenario: int) -> list[float]:
        """Bound of the CV, mean over the voxels of the region, in each draw [%]."""
        return [float(bound[name][scenario, structure, region]) for bound in self.bounds[snr]]

    @property
    def bound_names(self) -> list[str]:
        return list(next(iter(self.bounds.values()))[0])

    def recovery(self, method: str, snr: float, structure: int) -> list[float]:
        """Contrast against the ring over the true contrast, median over repeats, in each draw [1]."""
        return [float(np.median(e[method].recovery[structure])) for e in self.errors[snr]]

    def p_values(self, method: str, snr: float, structure: int, region: int) -> list[float]:
        """Of the t-test of E1 against E2 over the repeats, in each draw."""
        return [p_value(*(e[method].error[s, structure, region] for s in (0, 1))) for e in self.errors[snr]]

    def change(self, method: str, snr: float, structure: int, region: int) -> Interval:
        """Bias of E2 less that of E1, mean over draws with its t-interval [%]."""
        before, after = (np.array(self.bias(method, snr, structure, region, s)) for s in (0, 1))
        return over_draws(after - before)


def rows(found: Blurriness) -> Iterator[Row]:
    """The long table: `tissue` is "structure, region"; metrics carry the scenario."""
    for snr in found.snrs:
        yield from _bounds(found, snr)
        for method in found.methods:
            for k, structure in enumerate(found.structures):
                for r, region in enumerate(REGIONS):
                    where = f"{structure.name}, {region}"
                    for metric, values in _metrics(found, method, snr, k, r).items():
                        yield from _rows(found, method, where, snr, metric, values)
                    change = found.change(method, snr, k, r)
                    yield _row(found, method, where, snr, ALL, "relative_bias_change", change, len(found.errors[snr]))


def _bounds(found: Blurriness, snr: float) -> Iterator[Row]:
    for name in found.bound_names:
        for k, structure in enumerate(found.structures):
            for r, region in enumerate(REGIONS):
                for s, scenario in enumerate(SCENARIOS):
                    values = found.bound(name, snr, k, r, s)
                    where = f"{structure.name}, {region}"
                    yield from _rows(found, f"bound-{name}", where, snr, f"bound_{scenario}", values)


def _metrics(found: Blurriness, method: str, snr: float, structure: int, region: int) -> dict[str, list[float]]:
    metrics = {}
    for s, scenario in enumerate(SCENARIOS):
        metrics[f"relative_bias_{scenario}"] = found.bias(method, snr, structure, region, s)
        metrics[f"cv_{scenario}"] = found.spread(method, snr, structure, region, s)
        metrics[f"rmse_{scenario}"] = found.rmse(method, snr, structure, region, s)
    metrics["p_value"] = found.p_values(method, snr, structure, region)
    if region == 0:
        metrics["contrast_recovery"] = found.recovery(method, snr, structure)
    return metrics


def _rows(
    found: Blurriness, method: str, where: str, snr: float, metric: str, values: Sequence[float]
) -> Iterator[Row]:
    for draw, value in enumerate(values):
        yield _row(found, method, where, snr, draw, metric, Interval(value, nan, nan), found.repeats)
    if metric == "p_value":
        known = [p for p in values if p == p]
        share = 100 * sum(p < 0.05 for p in known) / len(known) if known else nan
        yield _row(found, method, where, snr, ALL, "significant_rate", Interval(share, nan, nan), len(known))
        return
    yield _row(found, method, where, snr, ALL, metric, over_draws(np.array(values)), found.repeats * len(values))


def _row(
    found: Blurriness, method: str, where: str, snr: float, draw: int | str, metric: str, value: Interval, n: int
) -> Row:
    interval = value.value, value.low, value.high
    return Row("blurriness", method, where, found.parameter, snr, sigma_of(snr), draw, metric, *interval, n)
