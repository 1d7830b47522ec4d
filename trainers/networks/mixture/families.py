"""The two families of series that have a likelihood of log T of their own: recoveries and decays.

    recovery    d = |1 - B e|,  e = exp(-TI / T)     t = -B e TI / T sign(1 - B e),   dd/dB = -e sign(1 - B e)
    decay       d = exp(-TE / T)                     t = d TE / T                      no B

A signed recovery is without the modulus.
"""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.errors import InputError
from qsim.signals import InversionRecovery
from qsim.signals.base import SignalModel
from qsim.signals.decays import MonoExponential
from trainers.networks.mixture.likelihood import VoxelLikelihood


class Recovery(VoxelLikelihood):
    """Of an inversion recovery at known B.

    Attributes:
        b: inversion depth of each sample [1].
        signed: whether the signal keeps its sign.
    """

    shortest: ClassVar[float] = 0.08
    longest: ClassVar[float] = 6.5
    typical: ClassVar[float] = 0.0
    resolved: ClassVar[float] = 0.04

    def __init__(
        self,
        series: Float[Tensor, "b n y x"],
        times: Float[Tensor, "b n"],
        counted: Bool[Tensor, "b n"],
        sigma: Float[Tensor, "b ys xs"],
        rician: bool = False,
        *,
        b: Float[Tensor, " b"],
        signed: bool = False,
    ) -> None:
        super().__init__(series, times, counted, sigma, rician)
        self.b, self.signed = b, signed

    @property
    def _keeps_sign(self) -> bool:
        return self.signed

    def family(self, u: Float[Tensor, " k"]) -> Float[Tensor, "b k n"]:
        e = torch.exp(-self.times[:, None] * torch.exp(-u)[None, :, None])
        d = 1 - self.b[:, None, None] * e
        return (d if self.signed else d.abs()) * self.counted[:, None]

    def shapes(self, u: Float[Tensor, "b y x"]) -> tuple[Tensor, Tensor, Tensor | None]:
        counted = self.counted[:, :, None, None].to(u.dtype)
        rate = self.times[:, :, None, None] * torch.exp(-u)[:, None]
        e = torch.exp(-rate).mul_(counted)
        d = counted - self.b[:, None, None, None] * e
        k = -e if self.signed else e.mul_(d.sign()).neg_()
        return d if self.signed else d.abs_(), k * rate.mul_(self.b[:, None, None, None]), k


class Decay(VoxelLikelihood):
    """Of a mono-exponential decay: T2 preparation, spin echo, gradient echo, spin-lock."""

    shortest: ClassVar[float] = 0.004
    longest: ClassVar[float] = 5.0
    # log of .11 s
    typical: ClassVar[float] = -2.2
    resolved: ClassVar[float] = 0.065

    def family(self, u: Float[Tensor, " k"]) -> Float[Tensor, "b k n"]:
        return torch.exp(-self.times[:, None] * torch.exp(-u)[None, :, None]) * self.counted[:, None]

    def shapes(self, u: Float[Tensor, "b y x"]) -> tuple[Tensor, Tensor, Tensor | None]:
        rate = self.times[:, :, None, None] * torch.exp(-u)[:, None]
        d = torch.exp(-rate).mul_(self.counted[:, :, None, None])
        return d, rate.mul_(d), None


def family_of(model: SignalModel) -> type[VoxelLikelihood]:
    """Which of the two a model is of; `times_of` has said that it is of one."""
    return Recovery if isinstance(model, InversionRecovery) else Decay


def times_of(model: SignalModel) -> tuple[float, ...]:
    """Times of a model that has a family [s].

    Raises: InputError if it has none, or fewer than two different times.
    """
    if (isinstance(model, InversionRecovery) and model.tr is None) or isinstance(model, MonoExponential):
        different = len(set(model.times))
        if different < 2:
            raise InputError(
                f"model: amplitude and relaxation time cannot be told apart from {different} different times; "
                "give at least 2"
            )
        return model.times
    raise InputError(
        "network.kind: a mixture network maps an inversion recovery with free B and full recovery (inversion_recovery, "
        "tr null) or a decay with one time (t2_prep, spin_echo, gradient_echo, spin_lock), "
        f"not {type(model).__name__}; use rim"
    )


def likelihood_of(
    model: SignalModel,
    series: Float[Tensor, "b n y x"],
    sigma: Float[Tensor, "b_or_1 ys xs"],
    mask: Bool[Tensor, "b y x"],
    *,
    times: Float[Tensor, "b n"] | None = None,
    counted: Bool[Tensor, "b n"] | None = None,
    b: Float[Tensor, " b"] | None = None,
    rician: bool = False,
) -> VoxelLikelihood:
    """Likelihood of a batch, in float32.

    Args:
        series: anything outside the mask and where a time does not count [units of A].
        sigma: noise SD per sample or voxel [units of A].
        times, counted: of each sample; None: those of the model, all of which count [s].
        b: inversion depth of each sample, of a model that has one [1].
        rician: whether the series are magnitudes with Rician noise.
    Raises: InputError if the model has no family, or Rician noise is asked for of a model that keeps its sign.
    """
    own = times_of(model)
    if times is None or counted is None:
        times = series.new_tensor(own).expand(len(series), -1)
        counted = torch.ones_like(times, dtype=torch.bool)
    seen = counted[:, :, None, None] & mask[:, None]
    values = torch.where(seen, series, 0.0).float()
    levels = sigma.float().expand(len(series), *sigma.shape[1:])
    if not isinstance(model, InversionRecovery):
        return Decay(values, times.float(), counted, levels, rician)
    if rician and model.signed:
        raise InputError("noise: Rician noise is that of magnitudes, and this model keeps its sign; take gaussian")
    assert b is not None, "a recovery needs B"
    return Recovery(values, times.float(), counted, levels, rician, b=b.float(), signed=model.signed)
