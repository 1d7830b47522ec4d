"""Whole sequences as signal models: preparation, readout and what the one leaves to the next.

    Mz -> preparation -> Mz' -> readout: signal of echo e = gain_e Mz' + offset_e -> recovery until the next preparation

All of it is affine in Mz, so a sequence that repeats has its steady state in closed form.
"""

from dataclasses import replace
from math import isfinite
from typing import Literal

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from qsim.kspace.order import echo_of_centre
from qsim.parameters import DELTA_B0, REL_B1, T1, T1RHO, T2, T2RHO, A, Parameter
from qsim.signals.base import check_times
from qsim.signals.bloch import Spins, longitudinal
from qsim.signals.preparations import AnyPreparation, InversionPulse
from qsim.signals.readout import AnyReadout, Ideal, aftermath, assembled, components, mixes_voxels, read
from qsim.signals.spoiled import SpoiledGradientEcho
from qsim.signals.ssfp import BalancedSSFP
from qsim.values import value


def unpack(kappa: Float[Tensor, "q *space"], parameters: tuple[Parameter, ...]) -> tuple[Tensor, Spins]:
    """A [1] and the spins of maps whose rows are `parameters`; rows that are not there stay None."""
    rows = dict(zip((parameter.name for parameter in parameters), kappa, strict=True))
    spin = Spins(
        t1=rows["T1"],
        t2=rows["T2"],
        t1rho=rows.get("T1RHO"),
        t2rho=rows.get("T2RHO"),
        delta_b0=rows["DELTA_B0"],
        rel_b1=rows["REL_B1"],
    )
    return rows["A"], spin


def recovered(mz: Tensor | float, t1: Float[Tensor, "*space"], time: float | Tensor) -> Tensor:
    """Mz after free recovery [M0]: 1 + (Mz - 1) exp(-t / T1)."""
    return 1 + (mz - 1) * torch.exp(-time / t1)


def _signed_readout(signed: bool, readout: AnyReadout) -> None:
    if signed and isinstance(readout, BalancedSSFP):
        raise ValueError("signed: a balanced_ssfp readout gives complex images; leave signed out, or use another")


@value
class Bloch:
    """A preparation and the readout that follows it, on tissue in real fields.

    Images are A times the magnetisation [M0] that the readout sees: a 10 degree pulse shows sin(10 degrees) = .17 of
    it, so sigma is chosen to the readout.

    Attributes:
        preparation: spin_lock, t2_prep or inversion; its times make the series.
        readout: ideal (the signal is Mz), spoiled_gradient_echo, balanced_ssfp or turbo_spin_echo.
        tr: from one preparation to the next; the magnetisation is then in its steady state over the shots. None: it
            recovers fully before each [s].
        t2rho: T2RHO is a row of kappa; else it is that of the Bloch equation.
        signed: keep the sign.
    """

    kind: Literal["bloch"] = "bloch"
    preparation: AnyPreparation
    readout: AnyReadout = Ideal()
    tr: float | None = None
    t2rho: bool = False
    signed: bool = False

    def __post_init__(self) -> None:
        if self.t2rho and not self.preparation.locks:
            raise ValueError(f"t2rho: a {self.preparation.kind} preparation has no spin-lock; leave it out")
        _signed_readout(self.signed, self.readout)
        if self.tr is None:
            return
        check_times("tr", (self.tr,))
        busy = max(self.preparation.durations) + self.readout.duration
        if self.tr < busy:
            raise ValueError(
                f"tr of {self.tr:g} s is shorter than preparation and readout together, {busy:.4g} s; "
                "raise it, or take more shots or a shorter train"
            )

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        locked = (T1RHO,) if self.preparation.locks else ()
        across = (T2RHO,) if self.t2rho else ()
        return A, T1, T2, *locked, *across, DELTA_B0, REL_B1

    @property
    def n_images(self) -> int:
        return len(self.preparation.times)

    @property
    def times(self) -> tuple[float, ...]:
        """Timings of the series [s]."""
        return self.preparation.times

    @property
    def mixes_voxels(self) -> bool:
        """Whether the order of k-space blurs the images along the phase axis, the last but one."""
        return mixes_voxels(self.readout)

    @property
    def pointwise(self) -> "Bloch":
        """The same sequence with the contrast at the centre of k-space and no blur."""
        if isinstance(self.readout, Ideal):
            return self
        acquisition = replace(self.readout.acquisition, encoding="centre")
        return replace(self, readout=replace(self.readout, acquisition=acquisition))

    def prepared(self, spin: Spins) -> Float[Tensor, "n *space"]:
        """Mz when the readout of each image starts [M0]."""
        if self.tr is None:
            return self.preparation.apply(spin)
        return steady_state(self.preparation, self.readout, spin, self.tr)

    def magnetisation(self, kappa: Float[Tensor, "q *space"]) -> Inexact[Tensor, "k *space"]:
        """What adds up within a voxel that tissues share [units of A].

        The images themselves, or where voxels mix: the signal of every image at every echo, or its coefficients in
        the temporal subspace, k = echoes (or rank) x images, images varying fastest.
        """
        a, spin = unpack(kappa, self.parameters)
        mz = self.prepared(spin)
        return (a * components(self.readout, spin, mz)).flatten(0, 1)

    def image(self, magnetisation: Inexact[Tensor, "k *space"]) -> Inexact[Tensor, "n *space"]:
        """Images of the mixed magnetisation [units of A]."""
        return assembled(self.readout, magnetisation.unflatten(0, (-1, self.n_images)))

    def coherent(self, kappa: Float[Tensor, "q *space"]) -> Inexact[Tensor, "n *space"]:
        """Signal before the modulus [units of A]."""
        a, spin = unpack(kappa, self.parameters)
        return read(self.readout, spin, self.prepared(spin), a)

    def __call__(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        signal = self.coherent(kappa)
        if not self.signed:
            return signal.abs()
        return signal.real if signal.is_complex() else signal


def steady_state(preparation: AnyPreparation, readout: AnyReadout, spin: Spins, tr: float) -> Float[Tensor, "n *space"]:
    """Mz after each preparation when preparation, readout and recovery repeat [M0].

    With Mz' = alpha Mz + beta of the preparation, g and o of the readout, E the recovery of what is left of tr,

        Mz = 1 + E (g (alpha Mz + beta) + o - 1)  =>  Mz = (1 + E (g beta + o - 1)) / (1 - E g alpha)

    Assumes: each image is measured after enough shots of its own preparation; every shot is alike.
    """
    gain, offset = aftermath(readout, spin)
    beta = preparation.apply(spin, 0.0)
    alpha = preparation.apply(spin, 1.0) - beta
    rest = beta.new_tensor([tr - readout.duration - used for used in preparation.durations])
    e = torch.exp(-rest.reshape(-1, *(1,) * spin.t1.ndim) / spin.t1)
    before = (1 + e * (gain * beta + offset - 1)) / (1 - e * gain * alpha)
    return alpha * before + beta


@value
class LookLockerTrain:
    """Look-Locker: an inversion, then spoiled pulses of one small angle until the last image.

    The cine Look-Locker of sabidussi2021 is this train at 10 degrees. Images are A sin(a) M at the inversion times,

        M(t) = M0* + (M_init - M0*) (E1 cos a)^(t / tr),    M0* = (1 - E1) / (1 - E1 cos a)

    so a fit of A (1 - B exp(-TI / T)) finds T = T1*, 1 / T1* = 1 / T1 - ln(cos a) / tr, not T1.

    Attributes:
        ti: inversion times, from the end of the pulse; between two pulses the closed form interpolates [s].
        flip_angle: nominal [rad].
        tr: time between pulses [s].
        inversion: the pulse.
        recovery: pause without pulses from the end of a train to the next inversion; 0: the train runs through, and
            the inversion meets what it left. None: full recovery [s].
        train: how long the train lasts after the inversion, a tr for each pulse; None: until the last image has been
            read, its largest time and one tr [s].
        signed: keep the sign.
    Source: Look and Locker 1970, doi:10.1063/1.1684482; Deichmann and Haase 1992, doi:10.1016/0022-2364(92)90347-A.
    """

    kind: Literal["look_locker_train"] = "look_locker_train"
    ti: tuple[float, ...]
    flip_angle: float
    tr: float
    inversion: InversionPulse = InversionPulse()
    recovery: float | None = None
    train: float | None = None
    signed: bool = False

    def __post_init__(self) -> None:
        check_times("ti", self.ti)
        check_times("tr", (self.tr,))
        if not self.tr > 0:
            raise ValueError(f"tr must be above 0 s, got {self.tr:g}")
        # at 90 degrees nothing is left for the next pulse
        if not 0 < self.flip_angle < 1.5707:
            raise ValueError(
                f"flip_angle must lie between 0 and pi / 2 rad, got {self.flip_angle:g}; "
                "multiply by pi / 180 if these are degrees"
            )
        if self.recovery is not None and not (isfinite(self.recovery) and self.recovery >= 0):
            raise ValueError(f"recovery must be at least 0 s, got {self.recovery}")
        if self.train is not None and not (isfinite(self.train) and self.train >= max(self.ti)):
            raise ValueError(f"train of {self.train:g} s ends before the last image at {max(self.ti):g} s; raise it")

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return A, T1, T2, DELTA_B0, REL_B1

    @property
    def n_images(self) -> int:
        return len(self.ti)

    @property
    def times(self) -> tuple[float, ...]:
        """Timings of the series [s]."""
        return self.ti

    def coherent(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        """Signed signal [units of A]."""
        a, spin = unpack(kappa, self.parameters)
        flip = self.flip_angle * spin.rel_b1
        rate = 1 / spin.t1 - torch.log(flip.cos()) / self.tr
        driven = -torch.expm1(-self.tr / spin.t1) / -torch.expm1(-self.tr * rate)
        start = self._inverted(spin, driven, rate)
        ti = start.new_tensor(self.ti).reshape(-1, *(1,) * spin.t1.ndim)
        return a * flip.sin() * (driven + (start - driven) * torch.exp(-ti * rate))

    def _inverted(self, spin: Spins, driven: Tensor, rate: Tensor) -> Tensor:
        """Mz at the end of the inversion pulse [M0]."""
        events = self.inversion.events()
        if self.recovery is None:
            return longitudinal(events, spin)[0]
        beta = longitudinal(events, spin, 0.0)[0]
        alpha = longitudinal(events, spin, 1.0)[0] - beta
        lasts = max(self.ti) + self.tr if self.train is None else self.train
        pulses, e = torch.exp(-lasts * rate), torch.exp(-self.recovery / spin.t1)
        # x = alpha (1 + (driven + (x - driven) pulses - 1) e) + beta
        return (alpha * (1 + (driven * (1 - pulses) - 1) * e) + beta) / (1 - alpha * pulses * e)

    def __call__(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        signal = self.coherent(kappa)
        return signal if self.signed else signal.abs()


@value
class MOLLI:
    """Modified Look-Locker inversion recovery: single-shot images, one in a heartbeat, in sets after an inversion each.

    The images stand in the order of acquisition: 5(3)3 is five images, three heartbeats of pause, three images.

    Attributes:
        scheme: images after each inversion.
        pauses: heartbeats without an image between the sets.
        ti_first: inversion time of the first image of each set, to the centre of k-space [s].
        rr: duration of a heartbeat [s].
        readout: single-shot, spoiled_gradient_echo or balanced_ssfp.
        inversion: the pulse.
        signed: keep the sign.
    Source: Messroghli et al. 2004, doi:10.1002/mrm.20110; 5(3)3: Kellman and Hansen 2014, doi:10.1186/1532-429X-16-2.
    """

    kind: Literal["molli"] = "molli"
    scheme: tuple[int, ...] = (5, 3)
    pauses: tuple[int, ...] = (3,)
    ti_first: tuple[float, ...]
    rr: float
    readout: SpoiledGradientEcho | BalancedSSFP
    inversion: InversionPulse = InversionPulse()
    signed: bool = False

    def __post_init__(self) -> None:
        if not self.scheme or min(self.scheme) < 1:
            raise ValueError(f"scheme must hold at least one image after each inversion, got {self.scheme}")
        if len(self.pauses) != len(self.scheme) - 1 or (self.pauses and min(self.pauses) < 0):
            raise ValueError(f"pauses must hold {len(self.scheme) - 1} counts of heartbeats, got {self.pauses}")
        if len(self.ti_first) != len(self.scheme):
            raise ValueError(f"ti_first must hold {len(self.scheme)} times, one for each set, got {len(self.ti_first)}")
        check_times("ti", self.ti_first)
        if not 0.2 <= self.rr <= 5:
            raise ValueError(
                f"rr must be a heartbeat of 0.2 to 5 s, got {self.rr:g}; divide by 1000 if in milliseconds"
            )
        _signed_readout(self.signed, self.readout)
        if self.readout.acquisition.shots > 1:
            raise ValueError("readout.acquisition.shots: MOLLI images are single-shot; set 1")
        if self.readout.acquisition.encoding != "centre":
            raise ValueError("readout.acquisition.encoding: got other than centre; MOLLI images take that contrast")
        if self.readout.duration > self.rr:
            raise ValueError(f"rr of {self.rr:g} s is shorter than the readout, {self.readout.duration:.4g} s")
        early = self.readout.time_of_centre
        if min(self.ti_first) < early:
            raise ValueError(
                f"ti_first of {min(self.ti_first):g} s is too early: the readout takes {early:.4g} s to the centre of "
                "k-space; raise it or shorten the train"
            )
        if any(self._gap(i) < 0 for i in range(1, len(self.scheme))):
            raise ValueError(
                "pauses: an inversion would fall into the set before it; raise the pause or lower ti_first"
            )

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return A, T1, T2, DELTA_B0, REL_B1

    @property
    def n_images(self) -> int:
        return sum(self.scheme)

    @property
    def times(self) -> tuple[float, ...]:
        """Inversion time of each image, in the order of acquisition [s]."""
        return tuple(first + k * self.rr for first, n in zip(self.ti_first, self.scheme, strict=True) for k in range(n))

    def _gap(self, number: int) -> float:
        """From the end of the last readout of the set before to the inversion pulse of set `number` [s]."""
        beats = self.pauses[number - 1] + 1
        centre_to_end = self.readout.duration - self.readout.time_of_centre
        return beats * self.rr - centre_to_end - self.ti_first[number] - self.inversion.width

    def coherent(self, kappa: Float[Tensor, "q *space"]) -> Inexact[Tensor, "n *space"]:
        """Signal before the modulus [units of A]."""
        a, spin = unpack(kappa, self.parameters)
        train = self.readout.train(spin)
        centre = echo_of_centre(self.readout.acquisition)
        pulse = self.inversion.events()
        between = self.rr - self.readout.duration
        mz = torch.ones_like(spin.t1)
        images = []
        for number, n in enumerate(self.scheme):
            if number:
                mz = recovered(mz, spin.t1, self._gap(number))
            mz = longitudinal(pulse, spin, mz)[0]
            wait = self.ti_first[number] - self.readout.time_of_centre
            for k in range(n):
                mz = recovered(mz, spin.t1, between if k else wait)
                images.append(a * (train.offset[centre] + train.gain[centre] * mz))
                mz = train.mz_gain * mz + train.mz_offset
        return torch.stack(images)

    def __call__(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        signal = self.coherent(kappa)
        return signal if self.signed else signal.abs()
