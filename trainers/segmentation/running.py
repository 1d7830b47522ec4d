"""How networks of this package are run: threads, device, precision, and what they answer."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.errors import InputError
from trainers.fit import resolve_precision
from trainers.segmentation.config import SegmentationConfig
from trainers.segmentation.network import SegmentationNet

# probability from which a voxel is the target [1]
THRESHOLD = 0.5
# images that are answered together
_TOGETHER = 8


def precision_of(config: SegmentationConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Mixed precision of the U-Net where it is asked for."""
    if resolve_precision(config.precision, device) == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def device_of(wanted: str) -> torch.device:
    """The device of an option.

    Raises: InputError if CUDA is asked for and there is none.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError("--device cuda: there is no CUDA device; take cpu")
    return torch.device("cuda")


def one_thread() -> None:
    """One thread each for torch and for the resampling of TorchIO, unless OMP_NUM_THREADS says otherwise."""
    from SimpleITK import ProcessObject

    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    torch.set_num_threads(threads)
    ProcessObject.SetGlobalDefaultNumberOfThreads(threads)  # type: ignore[no-untyped-call]


@torch.no_grad()
def probabilities(
    net: SegmentationNet, images: Float[Tensor, "i y x"], config: SegmentationConfig, device: torch.device
) -> Float[Tensor, "i y x"]:
    """The network's sigmoid, on the CPU; the network is in the mode that is wanted."""
    found = []
    for part in images.split(_TOGETHER):
        with precision_of(config, device):
            logits = net(part[:, None].to(device).contiguous(memory_format=torch.channels_last))
        found.append(logits.sigmoid().float().cpu())
    return torch.cat(found)


def dice_of(probability: Float[Tensor, "i y x"], masks: Bool[Tensor, "i y x"]) -> Float[np.ndarray, " i"]:
    """Dice score of every image, 2 |P T| / (|P| + |T|); 1 where both are empty."""
    inside = probability >= THRESHOLD
    both = (inside & masks).flatten(1).sum(1).double()
    sizes = (inside.flatten(1).sum(1) + masks.flatten(1).sum(1)).double()
    return torch.where(sizes > 0, 2 * both / sizes.clamp(min=1), 1.0).numpy()
