"""Networks by the `kind` that a config names. A new network adds a class with `build` and one entry here."""

from trainers.networks.resnet import ResNetNetwork
from trainers.networks.rim import RIMNetwork

NETWORKS = (RIMNetwork, ResNetNetwork)
MappingNetwork = RIMNetwork | ResNetNetwork

__all__ = ["NETWORKS", "MappingNetwork", "RIMNetwork", "ResNetNetwork"]
