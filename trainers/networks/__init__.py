"""Networks by the `kind` that a config names. A new network adds a class with `build` and one entry here."""

from trainers.networks.mixture.local import LocalMixtureNetwork
from trainers.networks.mixture.residual import ResidualMixtureNetwork
from trainers.networks.resnet import ResNetNetwork
from trainers.networks.rim import RIMNetwork

NETWORKS = (RIMNetwork, ResNetNetwork, LocalMixtureNetwork, ResidualMixtureNetwork)
MixtureNetwork = LocalMixtureNetwork | ResidualMixtureNetwork
MappingNetwork = RIMNetwork | ResNetNetwork | MixtureNetwork

__all__ = [
    "NETWORKS",
    "LocalMixtureNetwork",
    "MappingNetwork",
    "MixtureNetwork",
    "RIMNetwork",
    "ResNetNetwork",
    "ResidualMixtureNetwork",
]
