"""What networks of this package answer, and how good that is."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trainers.devices import mixed_precision
from trainers.segmentation.config import SegmentationConfig
from trainers.segmentation.network import SegmentationNet

# probability from which a voxel is the target [1]
THRESHOLD = 0.5
# images that are answered together
_TOGETHER = 8


@torch.no_grad()
def probabilities(
    net: SegmentationNet, images: Float[Tensor, "i y x"], config: SegmentationConfig, device: torch.device
) -> Float[Tensor, "i y x"]:
    """The network's sigmoid, on the CPU; the network is in the mode that is wanted."""
    found = []
    for part in images.split(_TOGETHER):
        with mixed_precision(config.precision, device):
            logits = net(part[:, None].to(device).contiguous(memory_format=torch.channels_last))
        found.append(logits.sigmoid().float().cpu())
    return torch.cat(found)


def dice_of(probability: Float[Tensor, "i y x"], masks: Bool[Tensor, "i y x"]) -> Float[np.ndarray, " i"]:
    """Dice score of every image, 2 |P T| / (|P| + |T|); 1 where both are empty."""
    inside = probability >= THRESHOLD
    both = (inside & masks).flatten(1).sum(1).double()
    sizes = (inside.flatten(1).sum(1) + masks.flatten(1).sum(1)).double()
    return torch.where(sizes > 0, 2 * both / sizes.clamp(min=1), 1.0).numpy()
