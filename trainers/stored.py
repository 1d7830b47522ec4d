"""What a network on disk says of itself, and a network with its weights in the place where it maps."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from generators.config import GeneratorConfig
from qsim.errors import InputError
from trainers.checkpoint import load_tensors, restore_weights
from trainers.config import TrainConfig


@dataclass(frozen=True, slots=True)
class Stored:
    """A network on disk.

    Attributes:
        path: the file.
        tensors: weights as "net/<name>".
        header: what `trainers.fit.describe` wrote, and `calibration` where there is one.
        config: of the training.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    header: Mapping[str, Any]
    config: TrainConfig

    def generator(self, plain: object) -> GeneratorConfig:
        """A generator config that the header holds.

        Raises: InputError if it is not one of this version.
        """
        try:
            return GeneratorConfig.model_validate(plain)
        except ValidationError as error:
            raise _unfit(self.path, error) from None

    def ready(self, net: nn.Module, device: torch.device) -> nn.Module:
        """A network of the config with these weights, to map with.

        Raises: InputError if the weights are those of another network.
        """
        restore_weights(net, self.tensors, self.path)
        net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        net.eval()
        return net.requires_grad_(False)


def read_network(path: Path) -> Stored:
    """Read a network's file.

    Raises: InputError if it is damaged, or of another version.
    """
    tensors, header = load_tensors(path)
    if header.get("kind") == "decoupled":
        raise InputError(f"{path}: segments and maps nothing; use it with qsim segment")
    try:
        return Stored(path, tensors, header, TrainConfig.model_validate(header["config"]))
    except ValidationError as error:
        raise _unfit(path, error) from None


def _unfit(path: Path, error: ValidationError) -> InputError:
    said = error.errors()[0]["msg"]
    return InputError(f"{path}: its config does not fit this version of qsim ({said})")
