"""The log-ratio of two images of a decay: what scanners compute on line, in closed form.

T = (t_2 - t_1) / log(S_1 / S_2),   A = S_1 exp(t_1 / T)

Of a series with a spin-lock and a T2 preparation both times, from the common image and the last of each contrast
(`joint_logarithm`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.errors import InputError
from qsim.estimators.base import Estimate
from qsim.estimators.joint_logarithm import from_three, plane_covariance, three_images
from qsim.estimators.noise_level import NoiseLevel, noise_level
from qsim.estimators.projection.closed_fits import search
from qsim.estimators.voxels import gather, known_map, scatter, statuses
from qsim.parameters import Parameter
from qsim.signals import MonoExponential, SpinLockT2Prep
from qsim.signals.base import SignalModel


@dataclass(frozen=True, slots=True)
class TwoPoint:
    """Log-ratio of two images of a mono-exponential decay.

    T is limited to its physical range, with status at bound: a ratio S_1 / S_2 of 1 or less gives the upper end, like
    every T above it. There A is the least-squares amplitude of the two images. Where one of the two images is not
    positive there is no logarithm: not computed. Other images of the series are not looked at.

    Attributes:
        model: a mono-exponential decay (t2_prep, spin_lock, spin_echo, gradient_echo) or spin_lock_t2_prep.
        covariance: also return the covariance by the delta method, with `sigma`, or where that is None with the noise
            of the background or of the residuals of a least-squares fit to all images.
        first, last: numbers of the two images, from 0; -1: those of the shortest and of the longest time. Of
            spin_lock_t2_prep they are not chosen.
    Assumes: noise small against both images.   Not: the noise floor of magnitudes at low SNR, which raises S_2 and
        with it T; the mean of 1 / log of a noisy ratio, which is above T as well (the median is not).
    Source: huang2022 (two spin-lock times).
    """

    model: SignalModel
    covariance: bool = False
    first: int = -1
    last: int = -1

    def __post_init__(self) -> None:
        if isinstance(self.model, SpinLockT2Prep):
            if (self.first, self.last) != (-1, -1):
                raise InputError(
                    "estimators: two-point: first, last: spin_lock_t2_prep takes the common image and the last of each "
                    "contrast; leave them out, and give a series of three images for others"
                )
            three_images(self.model)
            return
        times = times_of_decay(self.name, self.model)
        for name, number in (("first", self.first), ("last", self.last)):
            if not -1 <= number < len(times):
                raise InputError(
                    f"estimators: two-point: {name}: got {number}; the series holds the images 0 to {len(times) - 1} "
                    "(-1: chosen by time)"
                )
        first, last = self.images
        if times[first] == times[last]:
            raise InputError(f"estimators: two-point needs two different times, got {times[first]:g} s twice")

    @property
    def name(self) -> str:
        return "two-point"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.model.parameters

    @property
    def images(self) -> tuple[int, ...]:
        """Numbers of the two images; of spin_lock_t2_prep the common one and the last of each contrast."""
        if isinstance(self.model, SpinLockT2Prep):
            return three_images(self.model)
        times = times_of_decay(self.name, self.model)
        numbers = range(len(times))
        first = min(numbers, key=times.__getitem__) if self.first == -1 else self.first
        return first, (max(numbers, key=times.__getitem__) if self.last == -1 else self.last)

    def __call__(
        self,
        images: Float[Tensor, "n *space"],
        sigma: float | Tensor | None = None,
        mask: Bool[Tensor, "*space"] | None = None,
        known: Mapping[str, Tensor] | Mapping[str, float] | None = None,
    ) -> Estimate:
        """Map every voxel.

        Args:
            images: the series [units of A].
            sigma: noise SD, used for the covariance only [units of A].
            mask: voxels to map; None: all.
            known: must be empty.
        Raises: InputError if the series, the mask, sigma or `known` does not fit the model.
        """
        used = self.images
        y, where = gather(images, self.model, mask)
        known_map(known, self.parameters[1].name, where, ())
        y, where = positive(y, where, used)
        kappa = self._closed_form(y)

        def residual() -> tuple[Float[Tensor, " v"], int]:
            return least_misfit(self.model, y), len(y) - len(kappa)

        level = noise_level(images, sigma, where, residual) if self.covariance or sigma is not None else None
        if level is None or not self.covariance:
            return decay_estimate(kappa, None, self.parameters, where, level)
        if isinstance(self.model, SpinLockT2Prep):
            locked, prepared = (tuple(times[i] for i in used) for times in (self.model.tsl, self.model.te_prep))
            unit = plane_covariance(kappa, locked, prepared, weighted=True)
        else:
            times = times_of_decay(self.name, self.model)
            chosen = torch.tensor([times[i] for i in used], dtype=torch.float64, device=y.device)[:, None]
            unit = log_covariance(kappa, chosen, True)
        return decay_estimate(kappa, unit, self.parameters, where, level)

    def _closed_form(self, y: Float[Tensor, "n v"]) -> Float[Tensor, "q v"]:
        """The rows of the estimate from images that are positive."""
        if isinstance(self.model, SpinLockT2Prep):
            used = list(self.images)
            locked, prepared = (tuple(times[i] for i in used) for times in (self.model.tsl, self.model.te_prep))
            return from_three(y[used], locked, prepared)
        times, (first, last) = times_of_decay(self.name, self.model), self.images
        parameter = self.parameters[1]
        s1, s2 = y[first], y[last]
        t1, t2 = times[first], times[last]
        t = (t2 - t1) / torch.log(s1 / s2)
        # a ratio of 1 or less: no decay can be seen, which is that of the longest T
        t = torch.where(t > 0, t, torch.inf).clamp(parameter.lower, parameter.upper)
        # both images: exact where T is theirs, the least-squares amplitude where T is limited
        e = torch.exp(t1 / t), torch.exp((t1 - t2) / t)
        a = e[0] * (s1 + e[1] * s2) / (1 + e[1] * e[1])
        return torch.stack((a, t))


def times_of_decay(method: str, model: SignalModel) -> tuple[float, ...]:
    """Times of a mono-exponential decay [s].

    Raises: InputError if the model is none, or its times are all the same.
    """
    if not isinstance(model, MonoExponential):
        raise InputError(
            f"estimators: {method} needs a mono-exponential decay (t2_prep, spin_lock, spin_echo, gradient_echo) or "
            f"spin_lock_t2_prep, got {type(model).__name__}; use least-squares or dictionary"
        )
    if len(set(model.times)) < 2:
        raise InputError(f"estimators: {method} needs at least two different times, got {len(set(model.times))}")
    return model.times


def least_misfit(model: SignalModel, y: Float[Tensor, "n v"]) -> Float[Tensor, " v"]:
    """Sum of squares that a least-squares fit of all images leaves [units of A squared]."""
    assert isinstance(model, MonoExponential | SpinLockT2Prep)  # other models are refused before
    return search(model, y, {}).objective


def positive(
    y: Float[Tensor, "n v"], where: Bool[Tensor, "*space"], images: tuple[int, ...] | None = None
) -> tuple[Float[Tensor, "n k"], Bool[Tensor, "*space"]]:
    """Only the voxels that have a logarithm in those images (None: in all), and where they are."""
    used = y if images is None else y[list(images)]
    fit = used.amin(0) > 0
    if bool(fit.all()):
        return y, where
    kept = where.clone()
    kept[where] = fit
    return y[:, fit], kept


def log_covariance(kappa: Float[Tensor, "2 v"], times: Float[Tensor, "n 1"], weighted: bool) -> Float[Tensor, "2 2 v"]:
    """Covariance of (A, T) of the straight line through log S, for a sigma of 1, by the delta method [SI^2].

        x = (log A, 1 / T),   log S_n = x_1 - t_n x_2 + noise of SD sigma / S_n,   C = H (sum w^2 / S^2 X X') H

    with X = (1, -t_n), H the inverse of sum w X X', w = S^2 or 1, and S the signal of the estimate itself.
    """
    a, t = kappa.double()
    # every quotient below is free of the scale of S: A = 1 here
    s2 = torch.exp(-2 * (times - times.min()) / t)
    w = s2 if weighted else torch.ones_like(s2)
    centre = (w * times).sum(0) / w.sum(0)
    late = times - centre
    spread = (w * late * late).sum(0)
    v = s2 if weighted else 1 / s2
    level, slope = v.sum(0) / w.sum(0) ** 2, (v * late * late).sum(0) / spread**2
    both = -(v * late).sum(0) / (w.sum(0) * spread)
    # from the line's height at the centre to log A, its height at t = 0: x_1 = height + centre x_2
    log_a = level + 2 * centre * both + centre * centre * slope
    cross = both + centre * slope
    # dA = A d log A, dT = -T^2 d(1 / T); the signal is A exp(-t_0 / T) times what was used
    first = torch.exp(-times.min() / t)
    rows = torch.stack((log_a / first**2, -cross * t * t / (a * first**2), slope * t**4 / (a * first) ** 2))
    return torch.stack((rows[0], rows[1], rows[1], rows[2])).unflatten(0, (2, 2))


def decay_estimate(
    kappa: Float[Tensor, "q v"],
    unit_covariance: Float[Tensor, "q q v"] | None,
    parameters: tuple[Parameter, ...],
    where: Bool[Tensor, "*space"],
    level: NoiseLevel | None,
) -> Estimate:
    """The maps; the covariance is that of a sigma of 1."""
    finite = torch.isfinite(kappa).all(0)
    status = statuses(kappa, parameters, finite, where)
    maps = scatter(kappa, where)
    if unit_covariance is None or level is None:
        return Estimate(maps, status, noise_level=level)
    covariance = (unit_covariance * level.at(where) ** 2).to(kappa.dtype)
    rows = len(kappa)
    variances = scatter(torch.stack([covariance[i, i] for i in range(rows)]), where)
    full = scatter(covariance.flatten(0, 1), where).reshape(rows, rows, *where.shape)
    return Estimate(maps, status, {"noise": variances}, full, level)
