"""One minus the Dice score (jacobs2025, section 2.2)."""

from jaxtyping import Bool, Float
from torch import Tensor

# keeps an image without a target at 0 where nothing is predicted, and moves any other by less than one voxel does
_SMOOTH = 1.0


def one_minus_dice(logits: Float[Tensor, "b y x"], target: Bool[Tensor, "b y x"]) -> Float[Tensor, ""]:
    """The loss, mean over images.

        1 - (2 sum p t + 1) / (sum p + sum t + 1),   p = sigmoid(logits)

    MONAI's DiceLoss with `sigmoid`, `smooth_nr` and `smooth_dr` 1: its own 1e-5 is less than the sum of all p of an
    image without a target, which then costs .2 and more though nothing is predicted.
    """
    from monai.losses.dice import DiceLoss  # takes three seconds

    loss = DiceLoss(sigmoid=True, smooth_nr=_SMOOTH, smooth_dr=_SMOOTH)
    found: Tensor = loss(logits[:, None].float(), target[:, None].float())
    return found
