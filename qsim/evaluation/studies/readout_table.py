"""The long table of a `readout_bias` study, and every point of its sweeps."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from qsim.estimators import Status
from qsim.evaluation.metrics import over_draws
from qsim.evaluation.studies.apparent import FITS, Fit, noise_free_row
from qsim.evaluation.studies.readout_bias import Case, Errors, NoiseFree, Sweep
from qsim.evaluation.table import ALL, Row
from qsim.kspace.noise import sigma_of

STUDY = "readout_bias"
# fields of `Errors` by the name of the metric
METRICS = {
    "noise_free_bias": "noise_free",
    "relative_bias": "bias",
    "relative_bias_median": "median",
    "abs_error_median": "typical",
    "sd": "sd",
    "rmse": "rmse",
    "bound": "bound",
    "failure_rate": "failed",
    "at_bound_rate": "at_bound",
}


def estimator_name(case: Case, which: Fit) -> str:
    """Preparation, readout and fit in one name, the column `estimator` of the long table."""
    return f"{case.names[0]}, {case.names[1]}, {which}"


def noise_free_rows(case: Case, found: NoiseFree) -> Iterator[Row]:
    """Rows of the images without noise."""
    for which in FITS:
        fitted = found.fits[which]
        numbers = {
            "apparent": float(fitted.time[0]),
            "relative_bias": float(fitted.relative_bias(case.true)[0]),
            "residual": float(fitted.residual[0]),
        }
        for metric, number in numbers.items():
            yield noise_free_row(
                STUDY, estimator_name(case, which), case.tissue.name, case.parameter, metric, number, 1
            )
    who = estimator_name(case, "3p")
    if np.isfinite(found.constant):
        yield noise_free_row(STUDY, who, case.tissue.name, "C", "constant", found.constant, 1)


def noise_rows(case: Case, found: Mapping[Fit, Errors], snrs: Sequence[float]) -> Iterator[Row]:
    """Rows of the Monte Carlo study: every draw, and their mean with its 95 % t-interval."""
    for which, errors in found.items():
        who = estimator_name(case, which)
        for metric, field in METRICS.items():
            table = getattr(errors, field)
            for s, snr in enumerate(snrs):
                head = (STUDY, who, case.tissue.name, case.parameter, float(snr), sigma_of(snr))
                nan = float("nan")
                for draw, number in enumerate(table[:, s].tolist()):
                    yield Row(*head, draw, metric, number, nan, nan, errors.n)
                mean = over_draws(table[:, s])
                yield Row(*head, ALL, metric, mean.value, mean.low, mean.high, errors.n * len(table))


GRID_HEADER = (
    *("preparation", "readout", "tissue", "parameter", "axis", "value", "t1", "true"),
    *("apparent_2p", "apparent_3p", "relative_bias_2p", "relative_bias_3p", "residual_2p", "residual_3p"),
    *("status_2p", "status_3p"),
)


def grid_rows(case: Case, found: Sweep) -> Iterator[tuple[str | float | int, ...]]:
    """Every point of a sweep, under `GRID_HEADER`: times [s], biases and residuals [%], angles [rad]."""
    two, three = (found.fits[which] for which in FITS)
    bias = [found.bias(which) for which in FITS]
    head = (*case.names, case.tissue.name, case.parameter, found.axis)
    for y, t1 in enumerate(found.t1.tolist()):
        for x, number in enumerate(found.values.tolist()):
            at = y, x
            yield (
                *(*head, number, t1, float(found.true[y, 0])),
                *(float(two.time[at]), float(three.time[at]), float(bias[0][at]), float(bias[1][at])),
                *(float(two.residual[at]), float(three.residual[at])),
                *(Status(int(two.status[at])).name.lower(), Status(int(three.status[at])).name.lower()),
            )
