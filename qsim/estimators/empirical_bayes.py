"""The posterior mean of every voxel, under the distribution of T that the image itself shows.

    E[T | S] = sum_k T_k w_k,   w_k ~ p_k exp(F_k^2 / 2 sigma^2),   F_k = max(0, S . d_k / |d_k|)

d_k are the signals of A = 1 on an even grid of log T; p is the histogram of T over the mask, fitted by EM to the
voxels (`pooled_b`; for an inversion recovery at the B pooled there). It is the mean of T, not of log T: of all
estimates that of the least squared error. A is summed over at its best value for each T (`pooled_b` says why).

A is the best amplitude at the mean T, not the mean of A_k = F_k / |d_k|: where T is short against the first time of the
series A_k grows as exp(t_1 / T_k), and the even part of p alone, be its weight 1e-9, would make that mean any number.
Its variance is that at known T, and that of T carried to it as the expected series has it (the delta method):

    A = max(0, S . d) / d . d   at T = E[T | S],    var A = sigma^2 / d . d + a'^2 var T,    a' = -A d . d' / d . d

There is no spatial term: what a voxel shows is drawn towards the T that is frequent in the image, not towards its
neighbours. One hundredth of p is spread evenly over log T, so that a rare lesion is not ruled out.

Source: Robbins 1956, doi:10.1525/9780520313880-015; Laird 1978, doi:10.1080/01621459.1978.10480103.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, log
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.errors import InputError
from qsim.estimators.base import Estimate
from qsim.estimators.least_squares import LeastSquares
from qsim.estimators.noise_level import NoiseLevel, noise_level
from qsim.estimators.pooling.one_b import pool
from qsim.estimators.pooling.pooled_b import band_of, evidence, fit_histogram
from qsim.estimators.pooling.profile import sample
from qsim.estimators.shared_b import no_voxels, pooled_covariance, require_recovery
from qsim.estimators.voxels import gather, known_map, noise_covariance, scatter, statuses
from qsim.information import jacobian
from qsim.parameters import Parameter
from qsim.signals import InversionRecovery, InversionRecovery2P
from qsim.signals.base import SignalModel
from qsim.signals.decays import MonoExponential

# atoms and voxels of the histogram, and its EM steps
_BINS, _POOLED, _SWEEPS = 256, 16384, 50
_BLOCK = 2048
# part of the histogram that is even
_EVEN = 0.01
# the sums over the grid are right to 1e-4 if its step is this part of the SD of log T in the sharper voxels
_RESOLVED, _SHARP = 1.5, 0.1
_MOST = 2048
# elements of one chunk of the posterior
_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class EmpiricalBayes:
    """Posterior mean of T per voxel under the image's own histogram of T, the best A there, and B of `shared-b`.

    Attributes:
        model: an inversion recovery with full recovery, with or without B, or a decay with one time.
        covariance: also return the posterior covariance as that of the noise, with the share of B's own variance. That
            of T is the posterior's; A, which is the best amplitude at the mean T, has its own at that T plus T's.
    Assumes: real Gaussian noise; T of the voxels from one distribution, whatever its form.
    Not: where a grid of 2048 values of T is too coarse (noise of log T under about .2 %) the histogram has no weight,
        and the estimate is that of maximum likelihood.
    """

    model: SignalModel
    covariance: bool = False

    pools: ClassVar[tuple[str, ...]] = ("B",)

    def __post_init__(self) -> None:
        if isinstance(self.model, InversionRecovery):
            require_recovery(self.name, self.model)
        elif not isinstance(self.model, InversionRecovery2P | MonoExponential):
            raise InputError(
                f"estimators: empirical-bayes needs an inversion recovery or a decay with one time, got "
                f"{type(self.model).__name__}; use least-squares"
            )

    @property
    def name(self) -> str:
        return "empirical-bayes"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.model.parameters

    def __call__(
        self,
        images: Float[Tensor, "n *space"],
        sigma: float | Tensor | None = None,
        mask: Bool[Tensor, "*space"] | None = None,
        known: Mapping[str, Tensor] | Mapping[str, float] | None = None,
    ) -> Estimate:
        """Map a series.

        Args:
            images: the series [units of A].
            sigma: noise SD, a number or a map; None: estimated from the background or the residuals [units of A].
            mask: voxels to estimate, from which the histogram is taken; None: all.
            known: {"B": number} with inversion_recovery.
        Raises: InputError if the series, the mask, sigma or `known` does not fit.
        """
        y, where = gather(images, self.model, mask)
        free_b = isinstance(self.model, InversionRecovery)
        given = known_map(known, "B", where, ("B",) if free_b else ())
        if given is not None and given.numel() > 1:
            raise InputError("known.B: empirical-bayes takes one number; for a map of B use least-squares")
        if y.shape[1] == 0:
            return no_voxels(y, self.parameters, where, self.covariance)
        start = self._start(images, y, where, sigma, None if given is None else float(given))
        noise = start.noise.at(where)
        scaled = _Scaled(y, noise)
        number = self._resolution(start, noise)
        if number > _MOST:
            kappa = start.likeliest(self, y)
            covariance = start.covariance(self, kappa, noise) if self.covariance else None
        else:
            kappa, spread = self._posterior(scaled, start, number)
            covariance = spread + start.share(self, kappa, noise) if self.covariance else None
        fixed = ("B",) if given is not None else ()
        status = statuses(kappa, self.parameters, start.converged, where, fixed)
        maps = scatter(kappa.to(images.dtype), where)
        if covariance is None:
            return Estimate(maps, status, noise_level=start.noise)
        covariance = covariance.to(images.dtype)
        q = len(self.parameters)
        full = scatter(covariance.reshape(q * q, -1), where).reshape(q, q, *where.shape)
        return Estimate(maps, status, {"noise": scatter(torch.einsum("iiv->iv", covariance), where)}, full, start.noise)

    def _start(
        self, images: Tensor, y: Tensor, where: Tensor, sigma: float | Tensor | None, b: float | None
    ) -> "_Start":
        """Noise and B, and the likeliest values of some voxels."""
        model = self.model
        if isinstance(model, InversionRecovery):
            found = pool(model, images, y, where, sigma, b, "auto")
            kappa = torch.stack((found.a, torch.full_like(found.a, found.b), found.u.exp())).double()
            noise = found.noise or noise_level(images, sigma, where, lambda: self._residual(y, kappa))
            return _Start(noise, kappa, kappa, found.b, found.variance, found.converged)
        few = sample(y, _POOLED)
        kappa = LeastSquares(model)(few).kappa.double()
        noise = noise_level(images, sigma, where, lambda: self._residual(few, kappa))
        return _Start(noise, kappa, None, None, 0.0, torch.ones(y.shape[1], dtype=torch.bool, device=y.device))

    def _residual(self, y: Tensor, kappa: Tensor) -> tuple[Tensor, int]:
        return (self.model(kappa) - y).square().sum(0), self.model.n_images - 2

    def _resolution(self, start: "_Start", noise: Float[Tensor, " v_or_1"]) -> int:
        """Values of T that the sharper voxels need."""
        time = self.parameters[-1]
        few = start.kappa[:, :: max(1, start.kappa.shape[1] // 512)]
        typical = noise.median().reshape(1)
        covariance = noise_covariance(self.model, few, typical, ("B",))
        spread = (covariance[-1, -1].sqrt() / few[-1]).nan_to_num(posinf=1.0).quantile(_SHARP)
        wanted = log(time.upper / time.lower) / max(float(spread) * _RESOLVED, 1e-9)
        return max(_BINS, ceil(min(wanted, 2 * _MOST)))

    def _signals(self, u: Float[Tensor, " k"], b: float | None) -> Float[Tensor, "k n"]:
        """Series of A = 1."""
        rows = [torch.ones_like(u), u.exp()] if b is None else [torch.ones_like(u), torch.full_like(u, b), u.exp()]
        return self.model(torch.stack(rows)).T

    def _grid(self, number: int, device: torch.device) -> Float[Tensor, " k"]:
        time = self.parameters[-1]
        return torch.linspace(log(time.lower), log(time.upper), number, dtype=torch.float64, device=device)

    def _histogram(self, y: Float[Tensor, "n v"], b: float | None) -> Float[Tensor, " k"]:
        """Histogram of log T of the voxels; adds up to 1.

        Args:
            y: in units of the noise.
        """
        rows = self._signals(self._grid(_BINS, y.device), b)
        rows = (rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)).float()
        best = torch.cat([(rows @ chunk).argmax(0) for chunk in y.split(_BLOCK, dim=1)])
        series = y[:, best.argsort(stable=True)].split(_BLOCK, dim=1)
        return fit_histogram([evidence(rows, part, band_of(rows, part)) for part in series], _BINS, _SWEEPS)

    def _posterior(
        self, y: "_Scaled", start: "_Start", number: int
    ) -> tuple[Float[Tensor, "q v"], Float[Tensor, "q q v"]]:
        """Mean and covariance of every voxel, B at its value [SI]."""
        u = self._grid(number, y.y.device)
        bins = self._histogram(y.sample(_POOLED), start.b).double()
        # the density of log T between the middles of the bins
        place = torch.linspace(0, _BINS - 1, number, dtype=torch.float64, device=u.device)
        low = place.floor().clamp_max(_BINS - 2).long()
        p = torch.lerp(bins[low], bins[low + 1], place - low)
        p = ((1 - _EVEN) * p / p.sum() + _EVEN / number).float()
        signals = self._signals(u, start.b)
        length = signals.norm(dim=1).clamp_min(1e-12)
        rows = (signals / length[:, None]).float()
        t = u.exp().float()
        # per atom: 1, T, T^2
        powers = torch.stack((torch.ones_like(t), t, t * t))
        parts = []
        for chunk in y.chunks(max(1, _CHUNK // number)):
            fit = (rows @ chunk).clamp_min_(0)
            top = fit.amax(0).square().div_(2)
            weight = fit.square_().div_(2).sub_(top).exp_().mul_(p[:, None])
            total, *moments = (powers @ weight).double()
            mean, square = (moment / total for moment in moments)
            parts.append(self._amplitude(chunk, mean, (square - mean * mean).clamp_min(0), start.b))
        columns = torch.cat(parts, dim=1)
        q = len(self.parameters)
        units = torch.ones_like(columns[:q])
        units[0] = y.unit
        kappa, covariance = columns[:q] * units, columns[q:].reshape(q, q, -1)
        return kappa, covariance * units * units[:, None]

    def _amplitude(
        self, y: Float[Tensor, "n c"], mean: Float[Tensor, " c"], variance: Float[Tensor, " c"], b: float | None
    ) -> Float[Tensor, "m c"]:
        """Mean of every row, then the covariance row by row, in units of the noise.

        Args:
            y: in units of the noise.
            mean, variance: of T [s, s^2].
        """
        ones, q = torch.ones_like(mean), len(self.parameters)
        unit = torch.stack((ones, mean) if b is None else (ones, torch.full_like(mean, b), mean))
        signal, slope = self.model(unit), jacobian(self.model, unit)[-1]
        # a series that has decayed to nothing holds no amplitude: the variance says so
        length = signal.square().sum(0).clamp_min(1e-24)
        a = (signal * y).sum(0).clamp_min(0) / length
        follows = -a * (signal * slope).sum(0) / length
        covariance = mean.new_zeros(q, q, len(mean))
        covariance[0, 0], covariance[-1, -1] = 1 / length + follows.square() * variance, variance
        covariance[0, -1] = covariance[-1, 0] = follows * variance
        unit[0] = a
        return torch.cat((unit, covariance.reshape(q * q, -1)))


@dataclass(frozen=True, slots=True)
class _Scaled:
    """Series in units of their noise, made where they are needed.

    Attributes:
        y: the series [units of A].
        unit: the noise of each voxel, or of all [units of A].
    """

    y: Float[Tensor, "n v"]
    unit: Float[Tensor, " v_or_1"]

    def sample(self, size: int) -> Float[Tensor, "n s"]:
        if self.unit.numel() == 1:
            return (sample(self.y, size) / self.unit).float()
        both = sample(torch.cat((self.y, self.unit[None].to(self.y.dtype))), size)
        return (both[:-1] / both[-1]).float()

    def chunks(self, size: int) -> list[Float[Tensor, "n c"]]:
        units = self.unit.split(size) if self.unit.numel() > 1 else [self.unit] * -(-self.y.shape[1] // size)
        return [(part / unit).float() for part, unit in zip(self.y.split(size, dim=1), units, strict=True)]


@dataclass(frozen=True, slots=True)
class _Start:
    """What is known before the posterior.

    Attributes:
        noise: sigma.
        kappa: likeliest values of some voxels [SI].
        every: of all voxels, if they are there.
        b, variance: B and its variance; None: the model has none.
        converged: per voxel.
    """

    noise: NoiseLevel
    kappa: Float[Tensor, "q s"]
    every: Float[Tensor, "q v"] | None
    b: float | None
    variance: float
    converged: Bool[Tensor, " v"]

    def likeliest(self, method: EmpiricalBayes, y: Float[Tensor, "n v"]) -> Float[Tensor, "q v"]:
        if self.every is not None:
            return self.every
        return LeastSquares(method.model)(y).kappa.double()

    def covariance(self, method: EmpiricalBayes, kappa: Tensor, sigma: Tensor) -> Float[Tensor, "q q v"]:
        if isinstance(method.model, InversionRecovery):
            return pooled_covariance(method.model, kappa, sigma, self.variance)
        return noise_covariance(method.model, kappa, sigma, ())

    def share(self, method: EmpiricalBayes, kappa: Tensor, sigma: Tensor) -> Float[Tensor, "q q v"] | float:
        """What the variance of B adds, if T followed B as freely as in maximum likelihood: at most that."""
        if not isinstance(method.model, InversionRecovery) or self.variance == 0:
            return 0.0
        known = pooled_covariance(method.model, kappa, sigma, 0.0)
        share = pooled_covariance(method.model, kappa, sigma, self.variance) - known
        return torch.where(torch.isfinite(known), share, 0.0)
