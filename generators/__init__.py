"""From a config to patches on disk.

    from generators import GeneratorConfig, make_samples, make_sample, draws, PatchStore

Names are imported when first used, so that `import generators` and the command line stay light.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from generators.config import GeneratorConfig as GeneratorConfig
    from generators.sample import Samples as Samples
    from generators.sample import draws as draws
    from generators.sample import make_sample as make_sample
    from generators.sample import make_samples as make_samples
    from generators.store import PatchStore as PatchStore

_HOME = {
    "GeneratorConfig": "generators.config",
    "PatchStore": "generators.store",
    "Samples": "generators.sample",
    "draws": "generators.sample",
    "make_sample": "generators.sample",
    "make_samples": "generators.sample",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'generators' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
