"""The ISMRM/NIST system phantom: where its spheres are. What is in them: `qsim.system_phantom`."""

from phantoms.system_phantom.geometry import Sphere, spheres
from phantoms.system_phantom.protocols import PROTOCOLS, Protocol
from phantoms.system_phantom.spec import SystemPhantom

__all__ = ["PROTOCOLS", "Protocol", "Sphere", "SystemPhantom", "spheres"]
