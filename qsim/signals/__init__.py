"""Signal models: images of a tissue before noise and artefacts.

Closed forms of an ideal scanner, extended phase graphs, and Bloch models of real sequences in real fields.
"""

from qsim.signals.base import CoherentModel, DifferentiableModel, SignalModel
from qsim.signals.bloch import Exchange, Spins, longitudinal, magnetisation, spins
from qsim.signals.decays import (
    BiExponential,
    GradientEcho,
    MonoExponential,
    OffsetDecay,
    SpinEcho,
    SpinLock,
    T2Prep,
    decay,
)
from qsim.signals.epg import epg_cpmg
from qsim.signals.joint_decay import SpinLockT2Prep
from qsim.signals.multi_echo import MultiEchoSpinEcho
from qsim.signals.preparations import (
    PREPARATIONS,
    AnyPreparation,
    Inversion,
    InversionPulse,
    Preparation,
    SpinLockPreparation,
    T2Preparation,
)
from qsim.signals.readout import READOUTS, AnyReadout, Ideal
from qsim.signals.recoveries import (
    InversionRecovery,
    InversionRecovery2P,
    LookLocker,
    SaturationRecovery,
    recovery,
)
from qsim.signals.sequences import MOLLI, Bloch, LookLockerTrain
from qsim.signals.slice_profile import SampledProfile, ShapedProfile, SliceProfile
from qsim.signals.spoiled import SpoiledGradientEcho
from qsim.signals.ssfp import BalancedSSFP
from qsim.signals.turbo import TurboSpinEcho
from qsim.signals.variable_flip_angle import VariableFlipAngle, ernst

ClosedForm = (
    InversionRecovery
    | InversionRecovery2P
    | SaturationRecovery
    | LookLocker
    | T2Prep
    | SpinLock
    | SpinLockT2Prep
    | SpinEcho
    | GradientEcho
    | OffsetDecay
    | BiExponential
    | VariableFlipAngle
)
AnyModel = ClosedForm | MultiEchoSpinEcho | Bloch | LookLockerTrain | MOLLI
MODELS = (
    InversionRecovery,
    InversionRecovery2P,
    SaturationRecovery,
    LookLocker,
    T2Prep,
    SpinLock,
    SpinLockT2Prep,
    SpinEcho,
    GradientEcho,
    OffsetDecay,
    BiExponential,
    VariableFlipAngle,
    MultiEchoSpinEcho,
    Bloch,
    LookLockerTrain,
    MOLLI,
)

__all__ = [
    "MODELS",
    "MOLLI",
    "PREPARATIONS",
    "READOUTS",
    "AnyModel",
    "AnyPreparation",
    "AnyReadout",
    "BalancedSSFP",
    "BiExponential",
    "Bloch",
    "ClosedForm",
    "CoherentModel",
    "DifferentiableModel",
    "Exchange",
    "GradientEcho",
    "Ideal",
    "Inversion",
    "InversionPulse",
    "InversionRecovery",
    "InversionRecovery2P",
    "LookLocker",
    "LookLockerTrain",
    "MonoExponential",
    "MultiEchoSpinEcho",
    "OffsetDecay",
    "Preparation",
    "SampledProfile",
    "SaturationRecovery",
    "ShapedProfile",
    "SignalModel",
    "SliceProfile",
    "SpinEcho",
    "SpinLock",
    "SpinLockPreparation",
    "SpinLockT2Prep",
    "Spins",
    "SpoiledGradientEcho",
    "T2Prep",
    "T2Preparation",
    "TurboSpinEcho",
    "VariableFlipAngle",
    "decay",
    "epg_cpmg",
    "ernst",
    "longitudinal",
    "magnetisation",
    "recovery",
    "spins",
]
