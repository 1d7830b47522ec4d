"""Networks by the `kind` that a config names. A new network adds a class with `build` and one entry here."""

from trainers.networks.mixture.local import LocalMixtureNetwork
from trainers.networks.mixture.residual import ResidualMixtureNetwork
from trainers.networks.relaxation.two_stream import TwoStreamNetwork
from trainers.networks.relaxation.unet import UNetNetwork
from trainers.networks.resnet import ResNetNetwork
from trainers.networks.rim import RIMNetwork

NETWORKS = (RIMNetwork, ResNetNetwork, LocalMixtureNetwork, ResidualMixtureNetwork, UNetNetwork, TwoStreamNetwork)
MixtureNetwork = LocalMixtureNetwork | ResidualMixtureNetwork
RelaxationNetwork = UNetNetwork | TwoStreamNetwork
MappingNetwork = RIMNetwork | ResNetNetwork | MixtureNetwork | RelaxationNetwork

__all__ = [
    "NETWORKS",
    "LocalMixtureNetwork",
    "MappingNetwork",
    "MixtureNetwork",
    "RIMNetwork",
    "RelaxationNetwork",
    "ResNetNetwork",
    "ResidualMixtureNetwork",
    "TwoStreamNetwork",
    "UNetNetwork",
]
