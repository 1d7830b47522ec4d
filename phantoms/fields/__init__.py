"""Fields: what changes DELTA_B0, REL_B1 and B by position or tissue, beside the tissue table."""

from phantoms.fields.base import WITHOUT_FIELDS, Field, Place, Ranges, Rows
from phantoms.fields.chemical_shift import ChemicalShift
from phantoms.fields.pulse_inversion import PulseInversion
from phantoms.fields.shim_box import ShimBox
from phantoms.fields.smooth import SmoothB0, SmoothB1, SmoothInversionEfficiency

FIELDS = (SmoothB0, SmoothB1, SmoothInversionEfficiency, ShimBox, ChemicalShift, PulseInversion)
AnyField = SmoothB0 | SmoothB1 | SmoothInversionEfficiency | ShimBox | ChemicalShift | PulseInversion

__all__ = [
    "FIELDS",
    "WITHOUT_FIELDS",
    "AnyField",
    "ChemicalShift",
    "Field",
    "Place",
    "PulseInversion",
    "Ranges",
    "Rows",
    "ShimBox",
    "SmoothB0",
    "SmoothB1",
    "SmoothInversionEfficiency",
]
