"""Intervals of an estimated parameter, per voxel: Wald, Wald of the logarithm, and profile likelihood.

    wald       estimate +- z SD
    log_wald   estimate x exp(+- z SD / estimate)
    profile    every T whose best amplitudes fit almost as well: (RSS(T) - min RSS) / sigma^2 <= chi-square_1(level)

A Wald interval takes the likelihood for a parabola, which holds where the bound's CV is small and no image of a
magnitude recovery lies on the kink of the modulus. A relaxation time that the series hardly identifies has a skew
likelihood, often without an upper end: the profile interval then reaches the end of the parameter's range and is marked
open there. Where it consists of pieces, its outermost ends are given.

Source: Venzon and Moolgavkar 1988, doi:10.2307/2347496 (profile intervals); Pawitan, In All Likelihood, 2001, 3.4.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from scipy.special import ndtri
from torch import Tensor

from qsim.errors import InputError
from qsim.estimators.base import Estimate, Status
from qsim.estimators.noise_level import NoiseLevel, given, noise_level
from qsim.estimators.projection.profile_residual import TimeProfiles, residual_of
from qsim.estimators.voxels import Known, gather, known_map, scatter
from qsim.parameters import Parameter
from qsim.signals import InversionRecovery, InversionRecovery2P, SaturationRecovery
from qsim.signals.base import SignalModel

# `choose` takes the log-Wald interval below this SD / estimate (where the bound is 10 %, the SD of the estimates that
# came out too small is well below it, and choosing by it costs a percent of coverage), and where every image is this
# many sigma from the kink
_NARROW = 0.05
_KINK = 2.0

METHODS = ("wald", "log-wald", "profile")


@dataclass(frozen=True, slots=True)
class Interval:
    """Ends of an interval in every voxel, NaN where none could be computed.

    Attributes:
        lower, upper: ends [SI].
        open_below, open_above: the end is that of the parameter's range: the data give none on this side, and the
            interval is one-sided.
        at_bound: the estimate lies on a bound, in this row or another: a Wald interval means little there.
        method: per voxel, index into `METHODS`.
        level: nominal coverage.
        text: one sentence for reports.
        noise_level: the sigma used, if the method uses the images.
    """

    lower: Float[Tensor, "*space"]
    upper: Float[Tensor, "*space"]
    open_below: Bool[Tensor, "*space"]
    open_above: Bool[Tensor, "*space"]
    at_bound: Bool[Tensor, "*space"]
    method: UInt8[Tensor, "*space"]
    level: float
    text: str
    noise_level: NoiseLevel | None = None

    @property
    def width(self) -> Float[Tensor, "*space"]:
        """Upper less lower end; of a one-sided interval the distance to the end of the range [SI]."""
        return self.upper - self.lower

    @property
    def one_sided(self) -> Bool[Tensor, "*space"]:
        """Where an end is that of the range."""
        return self.open_below | self.open_above


def wald(estimate: Estimate, row: int, level: float = 0.95, parameter: Parameter | None = None) -> Interval:
    """Estimate +- z SD, from the variances of the estimate, all sources together.

    Args:
        row: of kappa.
        parameter: of that row: ends beyond its range are put on it and marked open; None: left as they are.
    Assumes: the estimate is Gaussian about the truth.   Not: a bound's CV above 10 %, nor a magnitude near its zero.
    Raises: InputError if the estimate holds no variances.
    """
    value, sd = _value_and_sd(estimate, row)
    half = _z(level) * sd
    return _limited("wald", estimate, value - half, value + half, level, parameter)


def log_wald(estimate: Estimate, row: int, level: float = 0.95, parameter: Parameter | None = None) -> Interval:
    """Estimate x exp(+- z SD / estimate): the Wald interval of the logarithm, by the delta method.

    Args:
        row: of kappa; positive.
        parameter: of that row: ends beyond its range are put on it and marked open; None: left as they are.
    Returns: NaN where the estimate is not positive.
    Assumes: the logarithm of the estimate is Gaussian.
    Raises: InputError if the estimate holds no variances.
    """
    value, sd = _value_and_sd(estimate, row)
    value = torch.where(value > 0, value, torch.nan)
    factor = torch.exp(_z(level) * sd / value)
    return _limited("log-wald", estimate, value / factor, value * factor, level, parameter)


def profile(
    model: SignalModel,
    images: Float[Tensor, "n *space"],
    sigma: float | Tensor | None,
    estimate: Estimate,
    row: int,
    level: float = 0.95,
    known: Known = None,
) -> Interval:
    """The profile-likelihood interval of the relaxation time, under Gaussian noise.

    The profile is evaluated on a grid in log T over the whole range, its minimum found there or at the estimate, and
    each end by secant steps on the signed root of the likelihood ratio.

    Args:
        images: the series that was fitted [units of A].
        sigma: noise SD, a number or a map; None: that of the estimate, else estimated from the data [units of A].
        estimate: says which voxels; its value is one of the starts. Estimates that are not the maximum of this
            likelihood (with a prior, or pooled over voxels) need not lie in the interval.
        row: of the relaxation time.
        known: {"B": number or map} with inversion_recovery: B is not profiled.
    Assumes: real Gaussian noise of one sigma per voxel. A bound of another parameter that the profile runs along makes
        the interval too wide rather than too narrow.   Not: Rician noise at low SNR.
    Raises: InputError if the model has no closed form for its amplitudes, or `row` is not its relaxation time.
    """
    left, time = residual_of(model, known is not None and "B" in known)
    names = [p.name for p in model.parameters]
    if names.index(time.name) != row:
        raise InputError(f"row: profile intervals exist for {time.name}, row {names.index(time.name)}; got {row}")
    z = _z(level)
    y, where = gather(images, model, estimate.status != Status.NOT_COMPUTED)
    has_b = isinstance(model, InversionRecovery | SaturationRecovery)
    depth = known_map(known, "B", where, ("B",) if has_b else ())
    # 2: the inversion of a two-parameter model; -1: a decay, 0 - (-1) E
    b = y.new_tensor([-1.0 if time.name != "T1" else 2.0], dtype=torch.float64) if depth is None else depth
    start = estimate.kappa[row][where].double().clamp(time.lower, time.upper).log()
    voxels = TimeProfiles(left, y, start, b, time)

    noise = estimate.noise_level if sigma is None else None
    if noise is None:
        freedom = model.n_images - len(names) + (depth is not None)
        noise = noise_level(images, sigma, where, lambda: (voxels.least(), freedom))
    lower, upper, below, above = voxels.ends(z * noise.at(where))

    def placed(flags: Bool[Tensor, " v"]) -> Bool[Tensor, "*space"]:
        full = torch.zeros_like(where)
        full[where] = flags
        return full

    low, high = scatter(torch.stack((lower, upper)).exp().clamp(time.lower, time.upper).to(images.dtype), where)
    return Interval(
        low,
        high,
        placed(below),
        placed(above),
        estimate.status == Status.AT_BOUND,
        torch.full(where.shape, METHODS.index("profile"), dtype=torch.uint8, device=where.device),
        level,
        f"{100 * level:g} % profile-likelihood interval of {time.name}; {noise.text}",
        noise,
    )


def choose(
    model: SignalModel,
    images: Float[Tensor, "n *space"],
    sigma: float | Tensor | None,
    estimate: Estimate,
    row: int,
    level: float = 0.95,
    known: Known = None,
) -> Interval:
    """Log-Wald where the likelihood is surely a parabola, else profile.

    That is where the estimate's own SD is under 5 % of it, it lies on no bound, and no image of a magnitude recovery is
    within 2 sigma of its zero crossing: the kink of the modulus spoils Wald intervals however small the bound (90 %
    instead of 95 % of grey matter at SNR 10, B known, whose zero lies among the last of 31 times).

    Args: as those of `profile`; the estimate holds variances.
    Returns: `method` says which was taken where.
    """
    simple = log_wald(estimate, row, level, model.parameters[row])
    value, sd = _value_and_sd(estimate, row)
    narrow = (estimate.status == Status.OK) & (sd < _NARROW * value) & torch.isfinite(simple.width)
    noise = estimate.noise_level if sigma is None else given(sigma, estimate.status != Status.NOT_COMPUTED)
    if noise is None:
        # a sigma that is to be estimated needs all voxels
        full = profile(model, images, None, estimate, row, level, known)
        assert full.noise_level is not None  # `profile` always says what it used
        narrow &= ~_near_zero(model, estimate, full.noise_level)
    else:
        narrow &= ~_near_zero(model, estimate, noise)
        rest = torch.where(narrow, int(Status.NOT_COMPUTED), estimate.status).to(torch.uint8)
        full = profile(model, images, None, Estimate(estimate.kappa, rest, noise_level=noise), row, level, known)
    return Interval(
        torch.where(narrow, simple.lower, full.lower),
        torch.where(narrow, simple.upper, full.upper),
        torch.where(narrow, simple.open_below, full.open_below),
        torch.where(narrow, simple.open_above, full.open_above),
        simple.at_bound,
        torch.where(narrow, simple.method, full.method),
        level,
        f"{simple.text} where the likelihood is a parabola ({int(narrow.sum())} voxels); else {full.text}",
        full.noise_level,
    )


def _near_zero(model: SignalModel, estimate: Estimate, noise: NoiseLevel) -> Bool[Tensor, "*space"]:
    """Where an image of a magnitude recovery lies within 2 sigma of the kink of the modulus."""
    if not isinstance(model, InversionRecovery | InversionRecovery2P | SaturationRecovery) or model.signed:
        return torch.zeros_like(estimate.status, dtype=torch.bool)
    return (model(estimate.kappa.double()).abs() < _KINK * noise.sigma).any(0)


def _z(level: float) -> float:
    """Half width of a standard normal interval of that probability; its square is the quantile of chi-square_1."""
    if not 0 < level < 1:
        raise InputError(f"level: must lie between 0 and 1, got {level}")
    return float(ndtri((1 + level) / 2))


def _value_and_sd(estimate: Estimate, row: int) -> tuple[Tensor, Tensor]:
    if not estimate.variances:
        raise InputError("estimate: holds no variances; build the method with covariance: true")
    if not 0 <= row < estimate.kappa.shape[0]:
        raise InputError(f"row: the estimate has {estimate.kappa.shape[0]} rows, got {row}")
    total = torch.stack([rows[row] for rows in estimate.variances.values()]).sum(0)
    return estimate.kappa[row], total.sqrt()


def _limited(
    method: str, estimate: Estimate, lower: Tensor, upper: Tensor, level: float, parameter: Parameter | None
) -> Interval:
    """Ends beyond the range are put on it and marked."""
    below = above = torch.zeros_like(estimate.status, dtype=torch.bool)
    if parameter is not None:
        below, above = lower <= parameter.lower, upper >= parameter.upper
        lower, upper = lower.clamp_min(parameter.lower), upper.clamp_max(parameter.upper)
    return Interval(
        lower,
        upper,
        below,
        above,
        estimate.status == Status.AT_BOUND,
        torch.full_like(estimate.status, METHODS.index(method)),
        level,
        f"{100 * level:g} % {method} interval",
    )
