"""How an apparent T1rho or T2 depends on B0 and B1: noise-free images of a preparation, fitted on a grid of fields.

    bias(delta_b0, rel_b1) = (T_apparent - T) / T,    T_apparent from least squares of |Mz| over the times of the series

For each preparation and tissue the biases form a map; its figures are taken over the whole grid and over a central
region that stands for a shimmed field.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.estimators import Status
from qsim.evaluation.studies.apparent import (
    FITS,
    TOLERANCE,
    Fit,
    Fitted,
    TissueTimes,
    fit,
    fit_models,
    label,
    noise_free_row,
    pulses,
    target,
    truth,
)
from qsim.evaluation.table import Row
from qsim.signals.preparations import SpinLockPreparation, T2Preparation
from qsim.values import value

STUDY = "prep_robustness"
# what rounding adds to a point on the edge of a region
_SLACK = 1e-9
FieldPreparation = SpinLockPreparation | T2Preparation


@value
class Central:
    """The fields of a shimmed and calibrated scan.

    Attributes:
        delta_b0: largest off-resonance on either side [Hz].
        rel_b1: largest deviation of B1 from its nominal value on either side [1].
    """

    delta_b0: float = 100.0
    rel_b1: float = 0.1

    def __post_init__(self) -> None:
        for name in ("delta_b0", "rel_b1"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name):g}")

    def inside(self, delta_b0: Float[np.ndarray, " x"], rel_b1: Float[np.ndarray, " y"]) -> Bool[np.ndarray, "y x"]:
        """Points of a grid within it, its edge included."""
        return (np.abs(rel_b1 - 1) <= self.rel_b1 + _SLACK)[:, None] & (np.abs(delta_b0) <= self.delta_b0 + _SLACK)


@dataclass(frozen=True, slots=True)
class Robustness:
    """One preparation on one tissue, over a grid of fields (rel_b1 down, delta_b0 across).

    Attributes:
        name: of the preparation.
        pulses: `hard`, or their amplitude.
        family: kind of the preparation.
        parameter: what it measures.
        tissue: name.
        true: its true value [s].
        delta_b0: [Hz].
        rel_b1: [1].
        fits: by number of parameters.
        negative: where an image is negative before the modulus, which no decay can follow.
    """

    name: str
    pulses: str
    family: str
    parameter: str
    tissue: str
    true: float
    delta_b0: Float[np.ndarray, " x"]
    rel_b1: Float[np.ndarray, " y"]
    fits: Mapping[Fit, Fitted]
    negative: Bool[np.ndarray, "y x"]

    def bias(self, which: Fit) -> Float[np.ndarray, "y x"]:
        """Relative bias of a fit [%]."""
        return self.fits[which].relative_bias(self.true)


def robustness(
    preparation: FieldPreparation,
    tissue: TissueTimes,
    delta_b0: Float[Tensor, " x"],
    rel_b1: Float[Tensor, " y"],
    name: str | None = None,
) -> Robustness:
    """Apparent times of a preparation over a grid of fields.

    Args:
        preparation: its times are the series.
        tissue: its relaxation times.
        delta_b0: off-resonances [Hz].
        rel_b1: actual over nominal transmit fields, of pulses and lock [1].
        name: in tables; None: made from the preparation.
    Assumes: full recovery before each preparation, an ideal readout, magnitude images without noise.
    """
    fields = {"delta_b0": delta_b0.double()[None, :], "rel_b1": rel_b1.double()[:, None]}
    if isinstance(preparation, SpinLockPreparation):
        mz = preparation(t1=tissue.t1, t2=tissue.t2, t1rho=tissue.t1rho, **fields)
    else:
        mz = preparation(t1=tissue.t1, t2=tissue.t2, **fields)
    images = mz.abs()
    return Robustness(
        name=name or label(preparation),
        pulses=pulses(preparation),
        family=preparation.kind,
        parameter=target(preparation).name,
        tissue=tissue.name,
        true=truth(preparation, tissue),
        delta_b0=delta_b0.numpy(),
        rel_b1=rel_b1.numpy(),
        fits={which: fit(model, images) for which, model in fit_models(preparation).items()},
        negative=(mz < 0).any(0).numpy(),
    )


@dataclass(frozen=True, slots=True)
class Figures:
    """What a map of biases comes to over a region.

    Attributes:
        median, p5, p95: of the relative bias over the points that have an estimate [%].
        abs_p95: 95th percentile of its size, by which preparations are ranked [%].
        max_abs: largest size of it [%].
        worst: (delta_b0 [Hz], rel_b1 [1]) where that is.
        share_within: points whose apparent time is within 5 % of the truth and whose fit did not fail [%].
        failed: points whose fit did not converge or was not computed [%].
        at_bound: points whose fit ended at an end of its range [%].
        negative: points with an image that is negative before the modulus [%].
        n: points with an estimate.
    """

    median: float
    p5: float
    p95: float
    abs_p95: float
    max_abs: float
    worst: tuple[float, float]
    share_within: float
    failed: float
    at_bound: float
    negative: float
    n: int


def figures(result: Robustness, which: Fit, region: Bool[np.ndarray, "y x"] | None = None) -> Figures:
    """Figures of a fit over the points of `region`; None: all."""
    region = np.ones_like(result.negative) if region is None else region
    bias, status = result.bias(which), result.fits[which].status
    known = region & np.isfinite(bias)
    total = int(region.sum())

    def share(points: Bool[np.ndarray, "y x"]) -> float:
        return 100 * int((points & region).sum()) / total if total else float("nan")

    good = (status == int(Status.OK)) & (np.abs(bias) <= TOLERANCE + _SLACK)
    failed = (status == int(Status.NOT_CONVERGED)) | (status == int(Status.NOT_COMPUTED))
    rates = {
        "share_within": share(good),
        "failed": share(failed),
        "at_bound": share(status == int(Status.AT_BOUND)),
        "negative": share(result.negative),
    }
    if not known.any():
        nan = float("nan")
        return Figures(median=nan, p5=nan, p95=nan, abs_p95=nan, max_abs=nan, worst=(nan, nan), n=0, **rates)
    p5, median, p95 = np.percentile(bias[known], (5, 50, 95))
    y, x = np.unravel_index(np.where(known, np.abs(bias), -1.0).argmax(), bias.shape)
    return Figures(
        median=float(median),
        p5=float(p5),
        p95=float(p95),
        abs_p95=float(np.percentile(np.abs(bias[known]), 95)),
        max_abs=float(abs(bias[y, x])),
        worst=(float(result.delta_b0[x]), float(result.rel_b1[y])),
        n=int(known.sum()),
        **rates,
    )


def nominal(result: Robustness, which: Fit) -> float:
    """Relative bias at the point of the grid nearest to no off-resonance and nominal B1 [%]."""
    y, x = int(np.abs(result.rel_b1 - 1).argmin()), int(np.abs(result.delta_b0).argmin())
    return float(result.bias(which)[y, x])


def estimator_name(result: Robustness, which: Fit) -> str:
    """Preparation, pulses and fit in one name, the column `estimator` of the long table."""
    return f"{result.name}, {result.pulses}, {which}"


def rows(results: Sequence[Robustness], central: Central) -> Iterator[Row]:
    """The long table: every figure over the whole grid, and with the prefix `central_` over the central region."""
    for result in results:
        regions = {"": None, "central_": central.inside(result.delta_b0, result.rel_b1)}
        for which in FITS:
            who = estimator_name(result, which)
            for prefix, region in regions.items():
                found = figures(result, which, region)
                numbers = {
                    "relative_bias_median": found.median,
                    "relative_bias_p5": found.p5,
                    "relative_bias_p95": found.p95,
                    "relative_bias_abs_p95": found.abs_p95,
                    "relative_bias_max_abs": found.max_abs,
                    "worst_delta_b0": found.worst[0],
                    "worst_rel_b1": found.worst[1],
                    "share_within_5": found.share_within,
                    "failure_rate": found.failed,
                    "at_bound_rate": found.at_bound,
                    "negative_rate": found.negative,
                }
                for metric, number in numbers.items():
                    yield noise_free_row(STUDY, who, result.tissue, result.parameter, prefix + metric, number, found.n)
            yield noise_free_row(
                STUDY, who, result.tissue, result.parameter, "relative_bias_nominal", nominal(result, which), 1
            )


GRID_HEADER = (
    *("preparation", "pulses", "tissue", "parameter", "delta_b0", "rel_b1", "true"),
    *("apparent_2p", "apparent_3p", "relative_bias_2p", "relative_bias_3p", "residual_2p", "residual_3p"),
    *("status_2p", "status_3p", "negative"),
)


def grid_rows(results: Sequence[Robustness]) -> Iterator[tuple[str | float | int, ...]]:
    """Every point of every grid, under `GRID_HEADER`: times [s], fields [Hz, 1], biases and residuals [%]."""
    for result in results:
        two, three = (result.fits[which] for which in FITS)
        bias = [result.bias(which) for which in FITS]
        head = (result.name, result.pulses, result.tissue, result.parameter)
        for y, b1 in enumerate(result.rel_b1.tolist()):
            for x, b0 in enumerate(result.delta_b0.tolist()):
                at = y, x
                yield (
                    *(*head, b0, b1, result.true),
                    *(float(two.time[at]), float(three.time[at]), float(bias[0][at]), float(bias[1][at])),
                    *(float(two.residual[at]), float(three.residual[at])),
                    *(Status(int(two.status[at])).name.lower(), Status(int(three.status[at])).name.lower()),
                    int(result.negative[at]),
                )
