"""Signal models: images of a tissue before noise and artefacts."""

from qsim.signals.base import CoherentModel, DifferentiableModel, SignalModel
from qsim.signals.closed_form import InversionRecovery, InversionRecovery2P, SpinEcho, SpinLock, T2Prep, decay, recovery

MODELS = (InversionRecovery, InversionRecovery2P, T2Prep, SpinLock, SpinEcho)
ClosedForm = InversionRecovery | InversionRecovery2P | T2Prep | SpinLock | SpinEcho

__all__ = [
    "MODELS",
    "ClosedForm",
    "CoherentModel",
    "DifferentiableModel",
    "InversionRecovery",
    "InversionRecovery2P",
    "SignalModel",
    "SpinEcho",
    "SpinLock",
    "T2Prep",
    "decay",
    "recovery",
]
