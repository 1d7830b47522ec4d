"""From patches to networks, maps and reports.

    import trainers
    estimator = trainers.load("runs/rim")

Names are imported when first used, so that the command line stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainers.config import TrainConfig as TrainConfig
    from trainers.infer import load_estimator as load  # noqa: F401

_HOME = {
    "TrainConfig": ("trainers.config", "TrainConfig"),
    "load": ("trainers.infer", "load_estimator"),
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'trainers' has no attribute {name!r}")
    module, attribute = _HOME[name]
    return getattr(import_module(module), attribute)
