"""A network of image quality on a whole volume, window by window.

    volume -> windows of the training's patch, half overlapping -> logits, variances without the image's part
           -> Gaussian-weighted mean of either;    variances x exp(the image's part, one for the volume)

The mean is that of variances, not of log variances: what adds up to the total variance of a voxel, and is averaged over
an image, is the variance. Windows near their border see less of the surroundings, so they count less there (SD of the
weights: an eighth of the window). A volume smaller than the window is padded with zeros, and the answer is cropped.
Every window is computed, those of air too: what a network says of air is part of its answer.

What heads say of the image as a whole is said of the volume: its log is averaged over the windows, weighted by the
share of the body in each (all alike where there is none), and windows leave no edges in the maps.
"""

from collections.abc import Callable
from math import ceil

import torch
from jaxtyping import Float
from torch import Tensor, nn

Progress = Callable[[int, int], None]
# voxels above this are the body, in images divided by their `intensity_scale` [1]
_BODY = 0.1


def count_windows(space: tuple[int, ...], patch: tuple[int, ...], overlap: float) -> int:
    """Windows that cover a volume."""
    count = 1
    for size, width in zip(space, patch, strict=True):
        step = max(int(width * (1 - overlap)), 1)
        count *= ceil(max(size - width, 0) / step) + 1
    return count


def by_windows(
    net: nn.Module,
    image: Float[Tensor, "x y z"],
    patch: tuple[int, int, int],
    *,
    overlap: float,
    device: torch.device,
    progress: Progress | None = None,
) -> tuple[Float[Tensor, "k x y z"], Float[Tensor, "s x y z"]]:
    """Logits and variances of a volume of any size, on the CPU.

    Args:
        net: gives an answer with `logits` (b, k, x, y, z), `log_variance` (b, s, x, y, z) and `of_image` (b, s).
        image: scaled [units of the training].
        patch: size of a window.
        overlap: of neighbouring windows, 0 to below 1 [part of the window].
        device: where the network is; the volume itself stays on the CPU.
        progress: called with windows done and windows in all.
    """
    from monai.inferers.utils import sliding_window_inference

    space = (int(image.shape[0]), int(image.shape[1]), int(image.shape[2]))
    total, done, classes = count_windows(space, patch, overlap), 0, 0
    of_image: list[Tensor] = []
    body: list[Tensor] = []

    def answer(window: Tensor) -> Tensor:
        nonlocal done, classes
        found = net(window)
        classes = int(found.logits.shape[1])
        done += int(window.shape[0])
        if progress is not None:
            progress(done, total)
        whole = found.of_image.float()
        of_image.append(whole.cpu())
        body.append((window > _BODY).flatten(1).float().mean(1).cpu())
        by_voxel = (found.log_variance.float() - whole[:, :, None, None, None]).exp()
        # one tensor, and a new one: the weights are multiplied into it in place
        return torch.cat((found.logits.float(), by_voxel), dim=1)

    with torch.no_grad():
        both = sliding_window_inference(
            image.float().cpu()[None, None],
            patch,
            1,
            answer,
            overlap=overlap,
            mode="gaussian",
            sw_device=device,
            device=torch.device("cpu"),
        )
    assert isinstance(both, Tensor)
    return both[0, :classes], both[0, classes:] * _mean(torch.cat(of_image), torch.cat(body)).exp()


def _mean(of_image: Float[Tensor, "w s"], body: Float[Tensor, " w"]) -> Float[Tensor, "s 1 1 1"]:
    """Mean over the windows, weighted by the share of the body in each."""
    weights = body if bool(body.any()) else torch.ones_like(body)
    return ((of_image * weights[:, None]).sum(0) / weights.sum())[:, None, None, None]
