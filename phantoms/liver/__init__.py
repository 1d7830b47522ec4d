"""Axial slices of the upper abdomen: drawn subjects whose livers, vessels and surroundings fit together in 3D."""

from phantoms.liver.spec import Liver, LiverVolumes

__all__ = ["Liver", "LiverVolumes"]
