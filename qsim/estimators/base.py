"""The type that a log-ratio, a maximum-likelihood fit, a dictionary and a trained network share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from qsim.estimators.noise_level import NoiseLevel
from qsim.parameters import Parameter
from qsim.signals.base import SignalModel


class Status(IntEnum):
    """What became of a voxel. Its estimate is kept in every case but the last."""

    OK = 0
    AT_BOUND = 1
    NOT_CONVERGED = 2
    NOT_COMPUTED = 3


@dataclass(frozen=True, slots=True)
class Estimate:
    """Maps and what is known about them.

    Attributes:
        kappa: estimated rows, in the order of the estimator's `parameters` [SI]; NaN where not computed.
        status: one `Status` per voxel.
        variances: by source: "noise", "aleatoric", "epistemic"; they add up; may be empty [SI^2].
        covariance: of the noise, between rows, if the method knows it [SI^2].
        noise_level: the sigma that was used and where it comes from, if the method uses one.
    """

    kappa: Float[Tensor, "q *space"]
    status: UInt8[Tensor, "*space"]
    variances: Mapping[str, Float[Tensor, "q *space"]] = field(default_factory=dict)
    covariance: Float[Tensor, "q q *space"] | None = None
    noise_level: NoiseLevel | None = None


@runtime_checkable
class Estimator(Protocol):
    """A mapping method, built for a `SignalModel` whose times it knows."""

    @property
    def name(self) -> str:
        """As in configs and tables."""
        ...

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Rows of the estimate, in order."""
        ...

    def __call__(
        self,
        images: Float[Tensor, "n *space"],
        sigma: float | Tensor | None = None,
        mask: Bool[Tensor, "*space"] | None = None,
        known: Mapping[str, Tensor] | None = None,
    ) -> Estimate:
        """Map a series.

        Args:
            images: the series [units of A].
            sigma: noise SD per real channel [units of A]; None: estimated from the data where the method needs it.
            mask: voxels to estimate; None: all.
            known: measured fields or a known B, by parameter name [SI].
        Raises: InputError if the series does not fit the model, or something in `known` cannot be used.
        """
        ...


def check_series(images: Tensor, model: SignalModel) -> None:
    """Refuse a series whose length is not that of the model.

    Raises: ValueError with both lengths.
    """
    if images.shape[0] != model.n_images:
        raise ValueError(f"images: the series holds {images.shape[0]} images, the model has {model.n_images} times")


def computable(images: Float[Tensor, "n *space"], mask: Bool[Tensor, "*space"] | None) -> Bool[Tensor, "*space"]:
    """Voxels that can be estimated: inside the mask, all images finite, not all of them zero."""
    # one pass over the series: the sum of moduli is finite if all of them are, and 0 if all of them are
    total = images.abs().sum(0)
    fit = torch.isfinite(total) & (total > 0)
    return fit if mask is None else fit & mask
