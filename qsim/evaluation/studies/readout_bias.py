"""What a readout adds to an apparent relaxation time: fits of two and of three parameters behind each of them.

A readout sees gain Mz + offset. The offset, what recovers towards the steady state of its pulses before the centre of
k-space, is the same in every image: a fit without a constant takes it for a slower decay. With noise, the constant
costs precision; which fit is better is a matter of the SNR.

SNR = 0.65 / sigma on images that are scaled so that the image without preparation (Mz = M0) of the same readout and
tissue, in nominal fields, is 0.65: the SNR of every readout is that of its own image without preparation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qsim.distributions import Streams
from qsim.estimators import Status
from qsim.evaluation.studies.apparent import (
    Fit,
    Fitted,
    TissueTimes,
    fit,
    fit_models,
    target,
    truth,
)
from qsim.information import crb
from qsim.kspace.noise import REFERENCE_SIGNAL, sigma_of
from qsim.kspace.order import Acquisition
from qsim.signals.preparations import AnyPreparation
from qsim.signals.readout import AnyReadout, Ideal, components
from qsim.signals.sequences import Bloch
from qsim.signals.spins import spins
from qsim.signals.turbo import TurboSpinEcho

SWEEPS = ("flip_angle", "echoes", "rel_b1")


@dataclass(frozen=True, slots=True)
class Case:
    """One sequence on one tissue.

    Attributes:
        preparation, readout: what is played.
        names: of the two, in tables.
        tissue: its relaxation times.
        tr: from one preparation to the next; None: full recovery [s].
    """

    preparation: AnyPreparation
    readout: AnyReadout
    names: tuple[str, str]
    tissue: TissueTimes
    tr: float | None = None

    @property
    def parameter(self) -> str:
        """What it measures."""
        return target(self.preparation).name

    @property
    def true(self) -> float:
        """Its true value [s]."""
        return truth(self.preparation, self.tissue)


def series(
    case: Case,
    t1: Float[Tensor, " v"] | None = None,
    t2: Float[Tensor, " v"] | None = None,
    t1rho: Float[Tensor, " v"] | None = None,
    rel_b1: Float[Tensor, " v"] | None = None,
) -> Float[Tensor, "n v"]:
    """Noise-free magnitude images on resonance [M0].

    Args:
        t1, t2, t1rho: relaxation times instead of those of the tissue [s].
        rel_b1: actual over nominal transmit field; None: 1.
    """
    model = Bloch(preparation=case.preparation, readout=case.readout, tr=case.tr)
    given = {"T1": t1, "T2": t2, "T1RHO": t1rho, "REL_B1": rel_b1}
    else_ = {
        "A": 1.0,
        "T1": case.tissue.t1,
        "T2": case.tissue.t2,
        "T1RHO": case.tissue.t1rho,
        "DELTA_B0": 0.0,
        "REL_B1": 1.0,
    }
    rows = [
        given[p.name] if given.get(p.name) is not None else torch.tensor([else_[p.name]], dtype=torch.float64)
        for p in model.parameters
    ]
    return model(torch.stack(torch.broadcast_tensors(*rows)))


def unprepared(case: Case) -> float:
    """Magnitude of the image without preparation, Mz = M0, in nominal fields [M0]."""
    spin = spins(t1=torch.tensor([case.tissue.t1], dtype=torch.float64), t2=case.tissue.t2)
    return float(components(case.readout, spin, torch.ones(1, 1, dtype=torch.float64))[0, 0].abs())


@dataclass(frozen=True, slots=True)
class NoiseFree:
    """Apparent times of the noise-free images of a case.

    Attributes:
        fits: of one voxel, by number of parameters.
        constant: the constant of the three-parameter decay, of its signal at time 0 [%]; NaN of an inversion.
        signal: of the image without preparation [M0].
    """

    fits: Mapping[Fit, Fitted]
    constant: float
    signal: float


def noise_free(case: Case) -> NoiseFree:
    """Both fits of the noise-free images."""
    images = series(case)
    fits = {which: fit(model, images) for which, model in fit_models(case.preparation).items()}
    kappa = fits["3p"].kappa[:, 0]
    constant = float("nan") if case.parameter == "T1" else 100 * float(kappa[2] / (kappa[0] + kappa[2]))
    return NoiseFree(fits, constant, unprepared(case))


# --- sweeps -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sweep:
    """Both fits over T1 (down) and one property of the readout or of the field (across).

    Attributes:
        axis: `flip_angle` [rad] (of a turbo spin echo: of its refocusing pulses), `echoes` before the centre of a
            linear order, or `rel_b1`, which scales preparation and readout alike.
        values: of it.
        t1: [s].
        true: true value of what is measured, by T1 [s].
        fits: maps, by number of parameters.
    """

    axis: str
    values: Float[np.ndarray, " x"]
    t1: Float[np.ndarray, " y"]
    true: Float[np.ndarray, "y 1"]
    fits: Mapping[Fit, Fitted]

    def bias(self, which: Fit) -> Float[np.ndarray, "y x"]:
        """Relative bias [%]."""
        return self.fits[which].relative_bias(self.true)


def swept(readout: AnyReadout, axis: str, number: float) -> AnyReadout:
    """The readout with another flip angle [rad], or with so many echoes before the centre of a linear order."""
    if isinstance(readout, Ideal) or axis == "rel_b1":
        return readout
    if axis == "flip_angle":
        if isinstance(readout, TurboSpinEcho):
            return replace(readout, refocusing_angle=number)
        return replace(readout, flip_angle=number)
    # echo of the centre, line lines // 2, in an order from one end to the other
    return replace(readout, acquisition=Acquisition(lines=max(2 * int(number), 1)))


def sweep(case: Case, axis: str, values: Float[Tensor, " x"], t1: Float[Tensor, " y"]) -> Sweep:
    """Both fits of the noise-free images over a grid.

    Args:
        axis: what `values` are, one of `SWEEPS`.
        t1: in place of that of the tissue [s].
    """
    columns = []
    for number in values.tolist():
        changed = replace(case, readout=swept(case.readout, axis, number))
        b1 = torch.full_like(t1, number) if axis == "rel_b1" else None
        columns.append(series(changed, t1=t1, rel_b1=b1))
    images = torch.stack(columns, -1)
    true = t1 if case.parameter == "T1" else torch.full_like(t1, case.true)
    return Sweep(
        axis=axis,
        values=values.numpy(),
        t1=t1.numpy(),
        true=true[:, None].numpy(),
        fits={which: fit(model, images) for which, model in fit_models(case.preparation).items()},
    )


# --- noise ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trials:
    """Draws of tissue and realisations of noise, the same for every case, SNR and fit.

    Attributes:
        factors: of T1, T2 and T1rho in each draw [1].
        normals: standard normal noise of each draw, image and repeat.
    """

    factors: Float[np.ndarray, "d 3"]
    normals: Float[Tensor, "n d r"]


def trials(seed: int, draws: int, repeats: int, spread: float, n_images: int) -> Trials:
    """Trials of a series of `n_images` images.

    Args:
        spread: T1, T2 and T1rho are drawn apart from each other, uniformly within 1 -+ this of the tissue's [1].
    """
    streams = [Streams(seed, draw) for draw in range(draws)]
    factors = np.stack([s.rng("tissues").uniform(1 - spread, 1 + spread, 3) for s in streams])
    normals = [
        torch.randn(n_images, repeats, generator=s.torch_generator("noise"), dtype=torch.float64) for s in streams
    ]
    return Trials(factors, torch.stack(normals, 1))


@dataclass(frozen=True, slots=True)
class Errors:
    """Errors of one fit, per draw (down) and SNR (across), of the true value of the draw [%].

    Attributes:
        noise_free: relative bias without noise.
        bias, median: mean and median relative error over the repeats.
        typical: median size of the relative error, which a few repeats at the end of the range do not move.
        sd: SD over the repeats (ddof 0, so that rmse^2 = bias^2 + sd^2).
        rmse: root mean square of the relative error.
        bound: Cramér-Rao bound of the SD of an unbiased estimate in the fitted model, at its noise-free fit.
        failed, at_bound: share of the repeats.
        n: repeats with an estimate.
    """

    noise_free: Float[np.ndarray, "d s"]
    bias: Float[np.ndarray, "d s"]
    median: Float[np.ndarray, "d s"]
    typical: Float[np.ndarray, "d s"]
    sd: Float[np.ndarray, "d s"]
    rmse: Float[np.ndarray, "d s"]
    bound: Float[np.ndarray, "d s"]
    failed: Float[np.ndarray, "d s"]
    at_bound: Float[np.ndarray, "d s"]
    n: int


def monte_carlo(case: Case, trial: Trials, snrs: Sequence[float]) -> dict[Fit, Errors]:
    """Errors of both fits under Gaussian noise added to the magnitude.

    Args:
        trial: draws and noise, of the length of the series.
        snrs: 0.65 / sigma of images whose image without preparation is 0.65.
    """
    t1, t2, t1rho = torch.tensor(trial.factors).T
    tissue = case.tissue
    clean = series(
        case, t1=t1 * tissue.t1, t2=t2 * tissue.t2, t1rho=None if tissue.t1rho is None else t1rho * tissue.t1rho
    )
    clean = clean * (REFERENCE_SIGNAL / unprepared(case))
    clean = clean.expand(-1, len(t1))
    factor = {"T1": t1, "T2": t2, "T1RHO": t1rho}[case.parameter].numpy()
    true = factor * case.true
    sigmas = [sigma_of(snr) for snr in snrs]
    noisy = torch.stack([clean[..., None] + sigma * trial.normals for sigma in sigmas], 2)
    found: dict[Fit, Errors] = {}
    for which, model in fit_models(case.preparation).items():
        ideal = fit(model, clean)
        result = fit(model, noisy)
        row = [p.name for p in model.parameters].index(case.parameter)
        bounds = [crb(model, torch.tensor(ideal.kappa), sigma).sd[row].numpy() / true for sigma in sigmas]
        error = 100 * (result.time / true[:, None, None] - 1)
        lost = np.isin(result.status, (int(Status.NOT_CONVERGED), int(Status.NOT_COMPUTED)))
        found[which] = Errors(
            noise_free=np.repeat(ideal.relative_bias(true)[:, None], len(snrs), 1),
            bias=np.nanmean(error, -1),
            median=np.nanmedian(error, -1),
            typical=np.nanmedian(np.abs(error), -1),
            sd=np.nanstd(error, -1),
            rmse=np.sqrt(np.nanmean(error**2, -1)),
            bound=100 * np.stack(bounds, 1),
            failed=100 * lost.mean(-1),
            at_bound=100 * (result.status == int(Status.AT_BOUND)).mean(-1),
            n=trial.normals.shape[-1],
        )
    return found
