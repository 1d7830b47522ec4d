"""Weighted linear least squares of the logarithm of a decay: a closed form for any number of images.

    minimise sum_n w_n (log S_n - log A + t_n / T)^2,   w_n = S_n^2

because noise of SD sigma on S is noise of SD sigma / S on log S. The measured S_n^2 are noisy weights, and large where
the noise is positive, so the fit is made twice: the second time with the squares of the signal of the first. Of a
series with a spin-lock and a T2 preparation the line is a plane (`joint_logarithm`).

Source: Salvador et al. 2005, doi:10.1002/hbm.20076 (weights S^2); Veraart et al. 2013,
doi:10.1016/j.neuroimage.2013.05.028 (weights from the fitted signal, and when the logarithm is biased).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.estimators.base import Estimate
from qsim.estimators.joint_logarithm import plane, plane_covariance
from qsim.estimators.noise_level import noise_level
from qsim.estimators.projection.decay_search import total
from qsim.estimators.two_point import decay_estimate, least_misfit, log_covariance, positive, times_of_decay
from qsim.estimators.voxels import gather, known_map
from qsim.parameters import Parameter
from qsim.signals import SpinLockT2Prep
from qsim.signals.base import SignalModel

# voxels of one chunk, whose work then stays in the cache
_VOXELS = 8192
_DEVICE_VOXELS = 1 << 20
# least weight, as a part of the largest: with less, float32 would have only one image and no line. Images under a
# thousandth of the largest are noise in any case
_LEAST = 1e-6


@dataclass(frozen=True, slots=True)
class LogLinear:
    """Linear least squares of log S of a mono-exponential decay, weighted with the squared signal.

    T is limited to its physical range, with status at bound: a line that does not fall gives the upper end. There A is
    that of the line with this T. A voxel with an image that is not positive has no logarithm there: not computed.

    Attributes:
        model: a mono-exponential decay (t2_prep, spin_lock, spin_echo, gradient_echo) or spin_lock_t2_prep.
        covariance: also return the covariance by the delta method, with `sigma`, or where that is None with the noise
            of the background or of the residuals of a least-squares fit.
        weighted: False: all images weigh the same, as in a plain straight line through the logarithms.
    Assumes: noise small against every image that weighs; mean log S is below log of the mean by sigma^2 / 2 S^2.
        Not: the noise floor of magnitudes, sqrt(pi / 2) sigma, which late images do not fall below: T is too long.
    """

    model: SignalModel
    covariance: bool = False
    weighted: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.model, SpinLockT2Prep):
            times_of_decay(self.name, self.model)

    @property
    def name(self) -> str:
        return "log-linear"

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
        """Fit every voxel.

        Args:
            images: the series [units of A].
            sigma: noise SD, used for the covariance only; one per voxel does not change the weights [units of A].
            mask: voxels to fit; None: all.
            known: must be empty.
        Raises: InputError if the series, the mask, sigma or `known` does not fit the model.
        """
        model = self.model
        y, where = gather(images, model, mask)
        known_map(known, self.parameters[1].name, where, ())
        y, where = positive(y, where)
        if isinstance(model, SpinLockT2Prep):
            kappa = plane(y, model.tsl, model.te_prep, self.weighted)
        else:
            kappa = self._lines(y)

        def residual() -> tuple[Float[Tensor, " v"], int]:
            return least_misfit(model, y), len(y) - len(kappa)

        level = noise_level(images, sigma, where, residual) if self.covariance or sigma is not None else None
        if not self.covariance:
            return decay_estimate(kappa, None, self.parameters, where, level)
        if isinstance(model, SpinLockT2Prep):
            unit = plane_covariance(kappa, model.tsl, model.te_prep, self.weighted)
        else:
            times = torch.tensor(times_of_decay(self.name, model), dtype=torch.float64, device=y.device)
            unit = log_covariance(kappa, times[:, None], self.weighted)
        return decay_estimate(kappa, unit, self.parameters, where, level)

    def _lines(self, y: Float[Tensor, "n v"]) -> Float[Tensor, "2 v"]:
        """A and T, chunk by chunk."""
        axis = y.new_tensor(times_of_decay(self.name, self.model))[:, None]
        kappa = y.new_empty(2, y.shape[1])
        size = _VOXELS if y.device.type == "cpu" else _DEVICE_VOXELS
        for start in range(0, y.shape[1], size):
            here = slice(start, start + size)
            kappa[:, here] = _line(y[:, here].contiguous(), axis, self.parameters[1], self.weighted)
        return kappa


def _line(
    y: Float[Tensor, "n v"], times: Float[Tensor, "n 1"], parameter: Parameter, weighted: bool
) -> Float[Tensor, "2 v"]:
    """A and T."""
    # squares as parts of the largest, whatever the unit
    largest = y.amax(0)
    share = y / largest
    log_s = share.log()
    w = (share * share).clamp_min(_LEAST) if weighted else torch.ones_like(share)
    height, rate = _fall(log_s, w, times, parameter)
    if weighted:
        # the height cancels: weights have no unit
        w = torch.exp((times - times.min()) * (-2 * rate)).clamp_min(_LEAST)
        height, rate = _fall(log_s, w, times, parameter)
    t = (1 / rate).clamp(parameter.lower, parameter.upper)
    return torch.stack((height.exp() * largest, t))


def _fall(
    log_s: Float[Tensor, "n v"], w: Float[Tensor, "n v"], times: Float[Tensor, "n 1"], parameter: Parameter
) -> tuple[Float[Tensor, " v"], Float[Tensor, " v"]]:
    """log A, and 1 / T within its bounds."""
    sum_w = total(w)
    late = times - total(w * times) / sum_w
    pull = w * late
    rate = (-total(pull * log_s) / total(pull * late)).clamp(1 / parameter.upper, 1 / parameter.lower)
    return total(w * (log_s + times * rate)) / sum_w, rate
