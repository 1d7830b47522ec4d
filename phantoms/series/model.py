"""The signal model of a series: the key of its times chooses it, `--signal` overrides the choice.

    InversionTime -> inversion_recovery      SpinLockTime -> spin_lock      SaturationTime -> saturation_recovery
    EchoTime -> spin_echo (MEGRE: gradient_echo)      T2PrepTime -> t2_prep      FlipAngle -> spoiled_gradient_echo
    SpinLockTime and T2PrepTime, where both differ between the images -> spin_lock_t2_prep

A recovery with negative values is signed or a magnitude, which its values tell (`phantoms.series.sign`). Decays and
flip angles have no sign: their values are fitted as they are, those below zero too.
"""

from collections.abc import Sequence

from phantoms.series.base import Series
from phantoms.series.sidecars import KEYS
from phantoms.series.sign import OPTION, find_sign
from qsim.errors import InputError
from qsim.signals import (
    BiExponential,
    GradientEcho,
    InversionRecovery,
    InversionRecovery2P,
    LookLocker,
    MultiEchoSpinEcho,
    OffsetDecay,
    SaturationRecovery,
    SignalModel,
    SpinEcho,
    SpinLock,
    SpinLockT2Prep,
    T2Prep,
    VariableFlipAngle,
)

# kind of the signal -> key of its times
_KEYS = {
    "inversion_recovery": "InversionTime",
    "inversion_recovery_2p": "InversionTime",
    "look_locker": "InversionTime",
    "saturation_recovery": "SaturationTime",
    "t2_prep": "T2PrepTime",
    "spin_echo": "EchoTime",
    "gradient_echo": "EchoTime",
    "multi_echo_spin_echo": "EchoTime",
    "offset_decay": "EchoTime",
    "biexponential": "EchoTime",
    "spin_lock": "SpinLockTime",
    "spin_lock_t2_prep": "SpinLockTime",
    "spoiled_gradient_echo": "FlipAngle",
}
_KINDS = {
    "InversionTime": "inversion_recovery",
    "EchoTime": "spin_echo",
    "SpinLockTime": "spin_lock",
    "T2PrepTime": "t2_prep",
    "SaturationTime": "saturation_recovery",
    "FlipAngle": "spoiled_gradient_echo",
}
# 5 T1 of T1 = 2 s, longer than that of any tissue but fluid: a longer TR is taken for full recovery [s]
LONG_TR = 10.0
# of every tissue in an echo train, which its T2 hardly depends on [s]
_TRAIN_T1 = 1.0


def key_for(signal: str) -> str:
    """Key of the times of a kind of signal; what `open_series` is given where there is no sidecar.

    Raises: InputError if the kind is unknown, or needs more than times.
    """
    if signal not in _KEYS:
        raise InputError(f"--signal: got {signal!r}, wanted one of {', '.join(_KEYS)}")
    return _KEYS[signal]


def model_for(series: Series, signal: str | None = None, signed: bool | None = None) -> SignalModel:
    """The signal model of a series.

    A finite TR is part of an inversion recovery where RepetitionTime is under 10 s, which is 5 T1 of T1 = 2 s. With
    three free parameters T1 does not depend on it: only A and B do.

    Args:
        signal: kind; None: by the key of the times.
        signed: whether the sign is kept; None: told by the values.
    Raises: InputError naming the file and the field.
    """
    return model_and_notes((series,), signal, signed)[0]


def model_and_notes(
    repeats: Sequence[Series],
    signal: str | None = None,
    signed: bool | None = None,
    words: tuple[str, str] = OPTION,
) -> tuple[SignalModel, tuple[str, ...]]:
    """The signal model of repeats of one protocol, with the times of the first, and what became of negative values.

    Args:
        signal, signed: as for `model_for`.
        words: how the user says that the sign is kept, and that it is not.
    Raises: InputError naming the file and the field.
    """
    model = _of_sign(repeats[0], signal, False)
    left_out = _left_out(repeats[0], model)
    if hasattr(model, "signed"):
        sign, notes = find_sign(repeats, signed, words)
        return _of_sign(repeats[0], signal, sign), (*left_out, *notes)
    if signed:
        raise InputError(f"--signed: does not go with {type(model).__name__}, whose signal is never negative")
    if not any(series.signed for series in repeats):
        return model, left_out
    note = (
        f"{type(model).__name__} is never negative, values below zero are taken for noise: fitted as they are, except "
        "by log-linear and rician, which give no value in such voxels"
    )
    return model, (*left_out, note)


def _left_out(series: Series, model: SignalModel) -> tuple[str, ...]:
    """A note where the signal was chosen so that T2 preparations that differ are no part of it."""
    if not series.te_prep or isinstance(model, SpinLockT2Prep):
        return ()
    kind = getattr(model, "kind", type(model).__name__)
    return (f"T2PrepTime differs between the images and is no part of {kind} (--signal spin_lock_t2_prep takes it)",)


def _of_sign(series: Series, signal: str | None, signed: bool) -> SignalModel:
    kind = signal if signal is not None else _kind(series)
    key = key_for(kind)
    who = str(series.files[0]) if series.files else series.name
    if (key == "FlipAngle") != (series.key == "FlipAngle"):
        raise InputError(f"--signal: {kind} needs {key}, {who} comes with {series.key or 'times without a name'}")
    try:
        return _built(kind, series, signed, who)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{who}: {error}") from None


def _kind(series: Series) -> str:
    if series.key not in KEYS:
        who = str(series.files[0]) if series.files else series.name
        raise InputError(f"--signal: nothing says what the times of {who} are; give it, one of {', '.join(_KEYS)}")
    if series.te_prep:
        return "spin_lock_t2_prep"
    return "gradient_echo" if series.suffix == "MEGRE" else _KINDS[series.key]


def _built(kind: str, series: Series, signed: bool, who: str) -> SignalModel:
    times = series.times
    if kind == "inversion_recovery":
        tr = series.protocol.get("RepetitionTime")
        return InversionRecovery(ti=times, signed=signed, tr=tr if tr is not None and tr < LONG_TR else None)
    if kind == "inversion_recovery_2p":
        return InversionRecovery2P(ti=times, signed=signed)
    if kind == "look_locker":
        return LookLocker(ti=times, signed=signed)
    if kind == "saturation_recovery":
        return SaturationRecovery(ts=times, signed=signed)
    if kind == "multi_echo_spin_echo":
        return MultiEchoSpinEcho(te=times, t1=_TRAIN_T1, signed=signed)
    if kind == "spoiled_gradient_echo":
        interval = series.protocol.get("RepetitionTime")
        if interval is None:
            raise InputError(
                f"{who}: its sidecar has no RepetitionTimeExcitation or RepetitionTime [s], which a series of flip "
                "angles needs"
            )
        return VariableFlipAngle(flip_angles=times, tr=interval)
    if kind == "spin_lock_t2_prep":
        if not series.te_prep:
            raise InputError(
                f"{who}: {kind} needs SpinLockTime and T2PrepTime in the sidecar, one number for each image, both with "
                "different ones (--times gives one list); a series with one of them is spin_lock or t2_prep"
            )
        return SpinLockT2Prep(tsl=times, te_prep=series.te_prep)
    return _decay(kind, times, series.key == "SpinLockTime")


def _decay(kind: str, times: tuple[float, ...], spin_lock: bool) -> SignalModel:
    if kind == "t2_prep":
        return T2Prep(te_prep=times)
    if kind == "spin_lock":
        return SpinLock(tsl=times)
    if kind == "gradient_echo":
        return GradientEcho(te=times)
    if kind == "offset_decay":
        return OffsetDecay(tsl=times) if spin_lock else OffsetDecay(te=times)
    if kind == "biexponential":
        return BiExponential(tsl=times) if spin_lock else BiExponential(te=times)
    return SpinEcho(te=times)
