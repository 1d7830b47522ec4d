"""Networks by the `kind` that a config names. A new network adds a class with `build` and one entry here."""

from trainers.networks.local_mixture import LocalMixtureNetwork
from trainers.networks.resnet import ResNetNetwork
from trainers.networks.rim import RIMNetwork

NETWORKS = (RIMNetwork, ResNetNetwork, LocalMixtureNetwork)
MappingNetwork = RIMNetwork | ResNetNetwork | LocalMixtureNetwork

__all__ = ["NETWORKS", "LocalMixtureNetwork", "MappingNetwork", "RIMNetwork", "ResNetNetwork"]
