"""A trained segmenter from a run's folder, a file, or the name of a shipped network."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from qsim.errors import InputError
from trainers.checkpoint import load_tensors, restore_weights
from trainers.infer import find_network
from trainers.quality.config import DecoupledConfig
from trainers.quality.network import Answer
from trainers.quality.segmenter import Segmenter
from trainers.quality.stage import precision_of


class InPrecision(nn.Module):
    """A network that runs in the precision of its training."""

    def __init__(self, net: nn.Module, config: DecoupledConfig, device: torch.device) -> None:
        super().__init__()
        self.net, self._config, self._device = net, config, device

    def forward(self, images: torch.Tensor) -> Answer:
        """The answer in float32."""
        with precision_of(self._config, self._device):
            found = self.net(images)
        return Answer(*(each.float() for each in found))


def load_segmenter(run: str | Path, device: str | torch.device = "cpu") -> Segmenter:
    """A trained network, ready to segment.

    Args:
        run: folder of a run, a .safetensors file, or the name of a shipped network.
        device: torch device; `auto` is CUDA where there is one.
    Raises: InputError if there is none, it is damaged, or it maps instead of segmenting.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        raise InputError("--device cuda: there is no CUDA device; take cpu")
    return segmenter_of(find_network(run), torch.device(device))


def segmenter_of(path: Path, device: torch.device) -> Segmenter:
    """The segmenter of a network's file; the last network of a cascade, or the network of one of its stages.

    Raises: InputError.
    """
    tensors, header = load_tensors(path)
    config = config_of(header, path)
    sources = tuple(header["sources"])
    net = config.network.build(1 + len(config.data.target), sources[1:], torch.Generator())
    restore_weights(net, tensors, path)
    net.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    net.eval()
    x, y, z = config.patch
    spacing = header["spacing_mm"]
    return Segmenter(
        net=InPrecision(net.requires_grad_(False), config, device),
        sources=sources,
        target=config.data.target,
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        patch=(x, y, z),
        calibration=header.get("calibration"),
        device=device,
        name=path.stem if path.stem != "model" else path.parent.name,
        digest=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def config_of(header: dict[str, Any], path: Path) -> DecoupledConfig:
    """The config that a network's file holds.

    Raises: InputError if it is another kind of network, or of another version.
    """
    if header.get("kind") != "decoupled":
        raise InputError(f"{path}: maps parameters and segments nothing; use it with qsim map")
    try:
        return DecoupledConfig.model_validate(header["config"])
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{path}: its config does not fit this version of qsim ({first['msg']}); train again"
        ) from None
