"""Magnetisation preparations as lists of events: inversion, T2 preparation, spin-lock clusters.

Each is a value whose call takes numbers or maps of the tissue and the fields, and returns Mz after it. A crusher
follows every preparation, so what it stores is longitudinal.
"""

from qsim.signals.inversion import Inversion, InversionPulse
from qsim.signals.preparation import Preparation
from qsim.signals.spin_lock import CLUSTERS, Cluster, SpinLockPreparation
from qsim.signals.t2_preparation import REFOCUSINGS, Refocusing, T2Preparation

__all__ = [
    "CLUSTERS",
    "PREPARATIONS",
    "REFOCUSINGS",
    "AnyPreparation",
    "Cluster",
    "Inversion",
    "InversionPulse",
    "Preparation",
    "Refocusing",
    "SpinLockPreparation",
    "T2Preparation",
]

PREPARATIONS = (SpinLockPreparation, T2Preparation, Inversion)
AnyPreparation = SpinLockPreparation | T2Preparation | Inversion
