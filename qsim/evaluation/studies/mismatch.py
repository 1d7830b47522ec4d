"""Simulate with one model, fit with another: what the wrong model does to the result, without noise and with it.

A case is a truth over one of its rows and several fits of the same images. Its noise, images and statistics are those
of `grid`. What a fit cannot know shows as a bias that no number of images removes; what it need not fit shows as a
smaller SD, so which fit is better is a matter of the SNR:

    RMSE^2 = bias^2 + SD^2

The bound beside a fit is the Cramér-Rao bound of the model that is *fitted*, at its noise-free fit: the SD that an
efficient fit of that model has. It is no bound of the true problem where the model is wrong.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
import torch
from jaxtyping import Float

from qsim.evaluation.studies.grid import METRICS, Contender, Statistics, Truth, point_name, rows_of
from qsim.evaluation.table import ALL, Row
from qsim.information import crb
from qsim.kspace.noise import REFERENCE_SIGNAL, coils_of, sigma_of
from qsim.parameters import PARAMETERS
from qsim.signals.base import SignalModel


@dataclass(frozen=True, slots=True)
class Fit:
    """One fit of a case.

    Attributes:
        contender: the method, under the name of the fit.
        model: that is fitted.
        row: of the estimate that is held against the truth.
    """

    contender: Contender
    model: SignalModel
    row: str

    @property
    def name(self) -> str:
        return self.contender.name


@dataclass(frozen=True, slots=True)
class Case:
    """One truth and the fits of its images.

    Attributes:
        name, text: of the case; what it is about.
        truth: what is simulated, over the points of `axis`.
        axis: row of the truth that varies.
        log: whether its axis is a logarithmic one.
        measured: row of the truth that the fits are held against.
        fits: in the order of the config.
    """

    name: str
    text: str
    truth: Truth
    axis: str
    log: bool
    measured: str
    fits: Sequence[Fit]

    @property
    def points(self) -> Float[np.ndarray, " p"]:
        """Values of the axis [SI]."""
        return self.truth.row(self.axis).double().numpy()

    @property
    def point_names(self) -> list[str]:
        """As in the column `tissue` of the table."""
        unit = PARAMETERS[self.axis].unit
        if unit == "s":
            return [f"{self.name}, {point_name(self.axis, float(value))}" for value in self.points]
        end = "" if unit == "1" else f" {unit}"
        return [f"{self.name}, {self.axis} {value:.6g}{end}" for value in self.points]


def brightest_is_reference(model: SignalModel, kappa: torch.Tensor) -> torch.Tensor:
    """The rows with A such that the brightest image of all points is 0.65, the reference of every SNR."""
    rows = [parameter.name for parameter in model.parameters]
    scaled = kappa.clone()
    scaled[rows.index("A")] = 1.0
    scaled[rows.index("A")] = REFERENCE_SIGNAL / model(scaled).abs().max()
    return scaled


def fitted_bound(case: Case, fit: Fit, kappa: Float[np.ndarray, "q p"], snr: float) -> Float[np.ndarray, " p"]:
    """Cramér-Rao bound of the SD in the fitted model, relative to the truth [%].

    Args:
        kappa: noise-free fit; where a row of the model is missing in it there is no bound (NaN) [SI].
    """
    rows = [parameter.name for parameter in fit.model.parameters]
    estimated = [parameter.name for parameter in fit.contender.estimator.parameters]
    true = case.truth.row(case.measured).double().numpy()
    if rows != estimated or not np.isfinite(kappa).all():
        return np.full(true.shape, nan)
    shared = fit.contender.pools
    bound = crb(
        fit.model,
        torch.from_numpy(kappa),
        sigma_of(snr),
        shared=shared,
        n_voxels=case.truth.voxels if shared else 1,
        known=fit.contender.known,
        coils=coils_of(case.truth.noise),
    )
    return 100 * bound.sd[rows.index(fit.row)].numpy() / true


def case_rows(case: Case, fit: Fit, snr: float, found: Statistics, bound: Float[np.ndarray, " p"]) -> Iterator[Row]:
    """Rows of results.csv of one fit at one SNR."""
    names = case.point_names
    yield from rows_of("mismatch", fit.name, case.measured, names, snr, found, bound)
    for name, value in zip(names, bound.tolist(), strict=True):
        yield Row("mismatch", fit.name, name, case.measured, snr, sigma_of(snr), ALL, "bound", value, nan, nan, 1)


GRID_HEADER = (
    *("case", "fit", "measured", "axis", "snr", "sigma", "point", "truth", "bound"),
    *METRICS,
    "noise_free_bias",
    "n",
)


def grid_lines(
    case: Case, fit: Fit, snr: float, found: Statistics, bound: Float[np.ndarray, " p"]
) -> Iterator[Sequence[str | float | int]]:
    """One line of grid.csv for each point, in SI units and percent."""
    true = case.truth.row(case.measured).tolist()
    for i, point in enumerate(case.points.tolist()):
        yield (
            *(case.name, fit.name, case.measured, case.axis, snr, sigma_of(snr), point, true[i], float(bound[i])),
            *(float(found[metric][0, i]) for metric in METRICS),
            *(float(found["noise_free"][i]), int(found["n"][0, i])),
        )
