"""Measured series: weighted images with their timings and geometry, read from the formats that people have.

Names are imported when first used, so that the command line stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phantoms.series.base import Series as Series
    from phantoms.series.model import key_for as key_for
    from phantoms.series.model import model_and_notes as model_and_notes
    from phantoms.series.model import model_for as model_for
    from phantoms.series.opening import open_series as open_series

_MODULES = {
    "Series": "phantoms.series.base",
    "key_for": "phantoms.series.model",
    "model_and_notes": "phantoms.series.model",
    "model_for": "phantoms.series.model",
    "open_series": "phantoms.series.opening",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'phantoms.series' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
