"""Where the tissue is: anatomical and geometrical phantoms, and maps drawn on them.

Names are imported when first used, so that the command line stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phantoms.brains.brainweb import BrainWeb as BrainWeb
    from phantoms.brains.deformed import Deformed as Deformed
    from phantoms.brains.fuzzy import FuzzyBrain as FuzzyBrain
    from phantoms.brains.mni import MNI as MNI
    from phantoms.heart import Heart as Heart
    from phantoms.liver import Liver as Liver
    from phantoms.shapes.geometry import Geometry as Geometry
    from phantoms.shapes.lesions import WithStructures as WithStructures
    from phantoms.system_phantom import SystemPhantom as SystemPhantom

    ANATOMIES = (MNI, BrainWeb, FuzzyBrain, Geometry, SystemPhantom, Heart, Liver)
    PHANTOMS = (MNI, BrainWeb, FuzzyBrain, Geometry, SystemPhantom, Heart, Liver, WithStructures, Deformed)
    AnyPhantomSpec = MNI | BrainWeb | FuzzyBrain | Geometry | SystemPhantom | Heart | Liver | WithStructures | Deformed

# phantoms that stand by themselves, by their modules; and those that hold one of them
_ANATOMIES = {
    "MNI": "phantoms.brains.mni",
    "BrainWeb": "phantoms.brains.brainweb",
    "FuzzyBrain": "phantoms.brains.fuzzy",
    "Geometry": "phantoms.shapes.geometry",
    "SystemPhantom": "phantoms.system_phantom",
    "Heart": "phantoms.heart",
    "Liver": "phantoms.liver",
}
_HOLDERS = {"WithStructures": "phantoms.shapes.lesions", "Deformed": "phantoms.brains.deformed"}


def __getattr__(name: str) -> object:
    modules = _ANATOMIES | _HOLDERS
    if name in modules:
        return getattr(import_module(modules[name]), name)
    if name not in ("ANATOMIES", "PHANTOMS", "AnyPhantomSpec"):
        raise AttributeError(f"module 'phantoms' has no attribute {name!r}")
    names = _ANATOMIES if name == "ANATOMIES" else modules
    specs: tuple[type, ...] = tuple(getattr(import_module(names[spec]), spec) for spec in names)
    if name != "AnyPhantomSpec":
        return specs
    union: object = specs[0]
    for spec in specs[1:]:
        union = union | spec
    return union
