"""Errors of estimators over a grid of one parameter: the same noisy images for every method, point by point.

One image holds the whole grid, `voxels` voxels of every point, with axes (point, voxel): what a method takes as common
to the voxels (B) is common to all points, and a repeat is one such image with noise of its own. Statistics of a point
are those over its voxels and repeats together; their 95 % intervals come from how much the repeats differ, because the
voxels of one image share what a method pools.

    relative error e = (estimate - truth) / truth,    RMSE^2 = mean(e)^2 + SD(e)^2

Bounds are those of the noise that was added: Gaussian, or the magnitude of complex noise.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from qsim.distributions import Streams
from qsim.estimators.base import Estimate, Estimator, Status
from qsim.evaluation.metrics import around
from qsim.evaluation.table import ALL, Row
from qsim.information import crb
from qsim.kspace.noise import Noise, coils_of, sigma_of
from qsim.signals.base import CoherentModel, SignalModel, real_signal

# of a normal distribution: 95 % of it lie within this many SD
Z95 = 1.959963984540054
# sizes, whose intervals are those of their logarithms
_SIZES = ("cv", "sd", "rmse", "abs_error_median", "interval_width")
# told of images without noise: so large that a correction for noise is nothing, yet no division by zero
NOISE_FREE_SNR = 1e4
# statistics of a point, as in the tables
METRICS = (
    "relative_bias",
    "relative_bias_median",
    "cv",
    "sd",
    "rmse",
    "abs_error_median",
    "failure_rate",
    "at_bound_rate",
    "coverage",
    "interval_width",
    "interval_rate",
)
_LOST = (int(Status.NOT_CONVERGED), int(Status.NOT_COMPUTED))

Statistics = dict[str, Float[np.ndarray, "..."]]


@dataclass(frozen=True, slots=True)
class Truth:
    """What is simulated.

    Attributes:
        name: of its stream of noise.
        model: signal of every point.
        kappa: rows of the model at every point [SI].
        noise: kind of the noise; its distribution of sigma is not used.
        seed: of the noise.
        voxels: of each point in an image.
        repeats: images.
    """

    name: str
    model: SignalModel
    kappa: Float[Tensor, "q p"]
    noise: Noise
    seed: int
    voxels: int
    repeats: int

    def row(self, parameter: str) -> Float[Tensor, " p"]:
        """True values of a parameter at every point [SI]."""
        return self.kappa[[p.name for p in self.model.parameters].index(parameter)]


@dataclass(frozen=True, slots=True)
class Contender:
    """An estimator under its name in tables.

    Attributes:
        name: in tables.
        estimator: the method, built for the model that it fits.
        known: rows whose true values it is told.
    """

    name: str
    estimator: Estimator
    known: tuple[str, ...] = ()

    @property
    def pools(self) -> tuple[str, ...]:
        """Rows that it takes as one number per image, has, and is not told."""
        rows = [parameter.name for parameter in self.estimator.parameters]
        pools: tuple[str, ...] = getattr(self.estimator, "pools", ())
        return tuple(name for name in pools if name in rows and name not in self.known)

    @property
    def bound(self) -> str:
        """The bound it is held against: "free", "shared", "known B", ..."""
        return bound_name(self.pools, self.known)


def bound_name(shared: Sequence[str], known: Sequence[str]) -> str:
    """How a bound is called in tables."""
    parts = (["shared " + " ".join(shared)] if shared else []) + (["known " + " ".join(known)] if known else [])
    return ", ".join(parts) or "free"


def clean_images(truth: Truth) -> Float[Tensor, "n p v"]:
    """Coherent signal of every voxel, in float32 [units of A]."""
    model = truth.model
    signal = model.coherent(truth.kappa) if isinstance(model, CoherentModel) else model(truth.kappa)
    return real_signal(model, signal).float()[..., None].expand(-1, -1, truth.voxels).contiguous()


def noisy_images(truth: Truth, snr: float, repeat: int) -> Float[Tensor, "n p v"]:
    """One image series: a stream of its own for each (SNR, repeat), the same for every method.

    sigma = 0.65 / SNR
    """
    signal = clean_images(truth)
    generator = Streams(truth.seed, repeat).torch_generator(f"{truth.name}, snr {float(snr)!r}")
    normals = [torch.empty(signal.shape).normal_(generator=generator) for _ in range(truth.noise.channels)]
    return truth.noise.add(signal, torch.full((1, 1, 1), sigma_of(snr)), normals)


def told(truth: Truth, known: Sequence[str]) -> dict[str, Tensor] | None:
    """The true values that a method is given: one number where all points agree, else a map."""
    if not known:
        return None
    values = {name: truth.row(name) for name in known}
    return {
        name: row[0] if bool((row == row[0]).all()) else row[:, None].expand(-1, truth.voxels)
        for name, row in values.items()
    }


def run(truth: Truth, contender: Contender, parameter: str, measured: str, snr: float) -> Statistics:
    """Estimate every image, and the images without noise.

    Args:
        parameter: row of the estimate.
        measured: row of the truth that it is held against.
    Returns: by `METRICS`, with axes (all repeats together then each repeat, point) [%]; `n`: finite estimates;
        `noise_free`: relative error without noise, told the
        sigma of `NOISE_FREE_SNR`, by point [%]; `noise_free_held`: 1 where that estimate is at a bound;
        `noise_free_kappa`: the estimate, by row and point [SI].
    """
    true = truth.row(measured).double().numpy()
    known = told(truth, contender.known)
    sigma = sigma_of(snr)
    names = [p.name for p in contender.estimator.parameters]
    row = names.index(parameter)
    found: list[tuple[Float[np.ndarray, "p v"], Float[np.ndarray, "p v"], UInt8[np.ndarray, "p v"]]] = []
    for repeat in range(truth.repeats):
        estimate = contender.estimator(noisy_images(truth, snr, repeat), sigma=sigma, known=known)
        found.append((estimate.kappa[row].double().numpy(), _sd(estimate, row), estimate.status.numpy()))
    estimates, sds, states = zip(*found, strict=True)
    pooled = np.concatenate(estimates, -1), np.concatenate(sds, -1), np.concatenate(states, -1)
    parts = [_statistics(kappa, sd, status, true) for kappa, sd, status in (pooled, *found)]
    stacked: Statistics = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    signal = clean_images(truth)
    silent = [torch.zeros_like(signal) for _ in range(truth.noise.channels)]
    silence = truth.noise.add(signal, torch.ones(1, 1, 1), silent)
    # not the sigma of the SNR: a likelihood would correct for noise that is not there
    ideal = contender.estimator(silence, sigma=sigma_of(NOISE_FREE_SNR), known=known)
    kappa = ideal.kappa[..., 0].double().numpy()
    held = ideal.status[..., 0].numpy() == int(Status.AT_BOUND)
    return {
        **stacked,
        "noise_free": 100 * (kappa[row] / true - 1),
        "noise_free_held": held.astype(np.float64),
        "noise_free_kappa": kappa,
    }


def _sd(estimate: Estimate, row: int) -> Float[np.ndarray, "p v"]:
    """Standard deviation that the method itself states, over its sources; NaN if it states none [SI]."""
    if not estimate.variances:
        return np.full(estimate.status.shape, nan)
    total = torch.stack([variance[row].double() for variance in estimate.variances.values()]).sum(0)
    return total.sqrt().numpy()


def _statistics(
    estimate: Float[np.ndarray, "p k"],
    sd: Float[np.ndarray, "p k"],
    status: UInt8[np.ndarray, "p k"],
    true: Float[np.ndarray, " p"],
) -> dict[str, Float[np.ndarray, " p"]]:
    """Statistics of every point over its estimates [%].

    The interval of a time is that of its logarithm, estimate exp(-+1.96 SD / estimate): a time is positive, and its
    errors are skew to the long side.
    """
    finite = np.isfinite(estimate)
    n = finite.sum(-1)
    error = np.where(finite, estimate / true[:, None] - 1, nan)
    bias = _mean(error, finite)
    deviation = np.where(finite, error - bias[:, None], 0.0)
    freedom = np.where(n > 1, n - 1, 1)
    sd_one = np.sqrt(np.sum(deviation**2, -1) / freedom)
    lost = np.isin(status, _LOST) | ~finite
    stated = finite & np.isfinite(sd) & (sd > 0) & (estimate > 0)
    relative = Z95 * np.divide(sd, estimate, out=np.zeros_like(sd), where=stated)
    # past this the interval holds every time there is, and no figure needs its end
    factor = np.exp(np.minimum(relative, 300.0))
    center = np.where(stated, estimate / true[:, None], 1.0)
    covered = (center / factor <= 1) & (center * factor >= 1)
    width = np.where(stated, center * (factor - 1 / factor), nan)
    return {
        "relative_bias": 100 * bias,
        "relative_bias_median": 100 * _median(error, finite),
        "cv": np.where(n > 1, 100 * sd_one / np.abs(1 + bias), nan),
        "sd": np.where(n > 1, 100 * sd_one, nan),
        "rmse": 100 * np.sqrt(_mean(error**2, finite)),
        "abs_error_median": 100 * _median(np.abs(error), finite),
        "failure_rate": 100 * lost.mean(-1),
        "at_bound_rate": 100 * ((status == int(Status.AT_BOUND)) & finite).mean(-1),
        "coverage": 100 * _mean(covered.astype(np.float64), stated),
        "interval_width": 100 * _median(width, stated),
        "interval_rate": 100 * stated.mean(-1),
        "n": n.astype(np.float64),
    }


def _mean(values: Float[np.ndarray, "p k"], of: Bool[np.ndarray, "p k"]) -> Float[np.ndarray, " p"]:
    """Mean over some of the values; NaN where there are none."""
    n = of.sum(-1)
    total = np.where(of, values, 0.0).sum(-1)
    return np.divide(total, n, out=np.full(total.shape, nan), where=n > 0)


def _median(values: Float[np.ndarray, "p k"], of: Bool[np.ndarray, "p k"]) -> Float[np.ndarray, " p"]:
    """Median over some of the values (the lower of two); NaN where there are none."""
    ordered = np.sort(np.where(of, values, nan), -1)
    place = np.maximum(of.sum(-1) - 1, 0) // 2
    # NaN sorts to the end: without values the first one is NaN
    return np.take_along_axis(ordered, place[:, None], -1)[:, 0]


def relative_bound(
    truth: Truth, parameter: str, snr: float, shared: Sequence[str] = (), known: Sequence[str] = ()
) -> Float[np.ndarray, " p"]:
    """Cramér-Rao bound of the SD at every point, of the noise that is added, in percent of the truth.

    Args:
        shared: rows that are one number over all voxels of the image.
    """
    names = [p.name for p in truth.model.parameters]
    n_voxels = truth.voxels if shared else 1
    coils = coils_of(truth.noise)
    bound = crb(truth.model, truth.kappa, sigma_of(snr), shared=shared, n_voxels=n_voxels, known=known, coils=coils)
    return bound.cv[names.index(parameter)].numpy()


def point_name(parameter: str, value: float) -> str:
    """A point in the column `tissue` of the table: `T1 0.5 s`."""
    return f"{parameter} {value:.6g} s"


def rows_of(
    study: str,
    who: str,
    parameter: str,
    points: Sequence[str],
    snr: float,
    found: Mapping[str, Float[np.ndarray, "..."]],
    bound: Float[np.ndarray, " p"],
) -> Iterator[Row]:
    """Rows of results.csv of one method at one SNR.

    Args:
        points: names of the points.
        found: of `run`.
        bound: that the method is held against [%].
    """
    for i, point in enumerate(points):
        n = int(found["n"][0, i])

        def row(metric: str, value: float, low: float = nan, high: float = nan) -> Row:
            return Row(study, who, point, parameter, snr, sigma_of(snr), ALL, metric, value, low, high, n)  # noqa: B023

        for metric in METRICS:
            value, per_repeat = float(found[metric][0, i]), found[metric][1:, i]
            interval = around(value, per_repeat, positive=metric in _SIZES)
            yield row(metric, value, interval.low, interval.high)
            if metric == "rmse" and np.isfinite(bound[i]) and bound[i] > 0:
                ratio = [v / float(bound[i]) for v in (interval.value, interval.low, interval.high)]
                yield row("rmse_over_bound", *ratio)
            if metric == "interval_width" and np.isfinite(bound[i]) and bound[i] > 0:
                yield row("width_over_bound", value / (2 * Z95 * float(bound[i])))
        yield row("noise_free_bias", float(found["noise_free"][i]))


def bound_rows(
    study: str, name: str, parameter: str, points: Sequence[str], snr: float, bound: Float[np.ndarray, " p"]
) -> Iterator[Row]:
    """Rows of results.csv of one bound at one SNR."""
    for point, value in zip(points, bound.tolist(), strict=True):
        yield Row(study, f"bound: {name}", point, parameter, snr, sigma_of(snr), ALL, "bound", value, nan, nan, 1)


@dataclass(frozen=True, slots=True)
class GridStudy:
    """What the page is made from.

    Attributes:
        truth: what was simulated.
        parameter: row that varies.
        contenders: methods, in the order of the config.
        snrs: of the config.
        bounds: by (name, SNR), of the points [%].
        found: of `grid.run`, by (method, SNR).
    """

    truth: Truth
    parameter: str
    contenders: Sequence[Contender]
    snrs: Sequence[float]
    bounds: Mapping[tuple[str, float], Float[np.ndarray, " p"]]
    found: Mapping[tuple[str, float], Statistics]

    @property
    def points(self) -> Float[np.ndarray, " p"]:
        """Values of the parameter [s]."""
        return self.truth.row(self.parameter).double().numpy()

    @property
    def bound_names(self) -> list[str]:
        return list(dict.fromkeys(name for name, _ in self.bounds))

    @property
    def ascending(self) -> list[float]:
        return sorted(self.snrs)

    def of(self, each: Contender, snr: float, metric: str) -> Float[np.ndarray, " p"]:
        """A statistic of all repeats together, by point [%]."""
        return self.found[each.name, snr][metric][0]

    def own_bound(self, each: Contender, snr: float) -> Float[np.ndarray, " p"]:
        """The bound that a method is held against [%]."""
        return self.bounds[each.bound, snr]
