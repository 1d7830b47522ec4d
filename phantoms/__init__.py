"""Where the tissue is: anatomical and geometrical phantoms, and maps drawn on them.

Names are imported when first used, so that the command line stays light.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phantoms.brainweb import BrainWeb as BrainWeb
    from phantoms.geometry import Geometry as Geometry
    from phantoms.mni import MNI as MNI

    PHANTOMS = (MNI, BrainWeb, Geometry)
    AnyPhantomSpec = MNI | BrainWeb | Geometry


def __getattr__(name: str) -> object:
    if name not in ("MNI", "BrainWeb", "Geometry", "PHANTOMS", "AnyPhantomSpec"):
        raise AttributeError(f"module 'phantoms' has no attribute {name!r}")
    from phantoms.brainweb import BrainWeb
    from phantoms.geometry import Geometry
    from phantoms.mni import MNI

    specs: tuple[type, ...] = (MNI, BrainWeb, Geometry)
    public: dict[str, object] = {spec.__name__: spec for spec in specs}
    public |= {"PHANTOMS": specs, "AnyPhantomSpec": MNI | BrainWeb | Geometry}
    return public[name]
