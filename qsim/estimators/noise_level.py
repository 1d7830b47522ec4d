"""The noise of a series: as the user gives it, or estimated from the images, saying how."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.errors import InputError


@dataclass(frozen=True, slots=True)
class NoiseLevel:
    """Standard deviation of the noise per real channel, and where it comes from.

    Attributes:
        sigma: one number, or a map [units of the images].
        source: how it is known.
        text: one sentence for reports and terminals.
    """

    sigma: Float[Tensor, "*space_or_none"]
    source: Literal["given", "background", "repeats", "residual"]
    text: str

    def at(self, where: Bool[Tensor, "*space"]) -> Float[Tensor, " v_or_1"]:
        """Sigma of the voxels, in float64; one number stays one number [units of the images]."""
        return self.sigma.double().reshape(1) if self.sigma.ndim == 0 else self.sigma.double()[where]


def noise_level(
    images: Float[Tensor, "n *space"],
    sigma: float | Tensor | None,
    where: Bool[Tensor, "*space"],
    residual: Callable[[], tuple[Float[Tensor, " v"], int]],
) -> NoiseLevel:
    """What an estimator works with.

    Args:
        images: the series [units of A].
        sigma: given by the user: a number, or a map over the voxels; None: estimated [units of A].
        where: voxels that are estimated.
        residual: called if nothing better is there: sum of squared residuals of a voxel-wise fit, and its degrees of
            freedom per voxel.
    Raises: InputError if the given sigma is not positive, or nothing is left to estimate it from.
    """
    if sigma is not None:
        return given(sigma, where)
    squares, freedom = residual()
    if freedom < 1 or squares.numel() == 0:
        raise InputError(f"sigma: {images.shape[0]} images leave no residual to estimate the noise from; give sigma")
    # the median is not moved by voxels that the model does not fit; chi-square: median about f (1 - 2 / 9f)^3
    typical = squares.double().median() / (freedom * (1 - 2 / (9 * freedom)) ** 3)
    found = typical.clamp_min(0).sqrt()
    if not bool(found > 0):
        raise InputError("sigma: the residuals are zero, so the noise cannot be estimated from them; give sigma")
    text = f"sigma {float(found):.3g}, estimated from the residuals of a voxel-wise fit ({squares.numel()} voxels)"
    return NoiseLevel(found, "residual", text)


def given(sigma: float | Tensor, where: Bool[Tensor, "*space"]) -> NoiseLevel:
    """The user's own.

    Raises: InputError if it is not positive, or a map of another shape.
    """
    value = torch.as_tensor(sigma, dtype=torch.float64, device=where.device)
    if value.numel() == 1:
        value = value.reshape(())
    elif value.shape != where.shape:
        raise InputError(f"sigma: has shape {tuple(value.shape)}, the images {tuple(where.shape)}; give one or a map")
    used = value if value.ndim == 0 else value[where]
    if not bool((torch.isfinite(used) & (used > 0)).all()):
        raise InputError(
            "sigma: must be positive and finite in every voxel that is estimated; leave others out by the mask"
        )
    return NoiseLevel(value, "given", "sigma as given")
