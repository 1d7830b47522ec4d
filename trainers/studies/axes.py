"""Axes of studies: a list of values, or values between two ends."""

from math import isfinite, log
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Discriminator, Tag
from torch import Tensor

from qsim.values import value


@value
class Steps:
    """Values between two ends, both included.

    Attributes:
        low, high: ends.
        n: how many.
        log: equally spaced in the logarithm.
    """

    low: float
    high: float
    n: int
    log: bool = False

    def __post_init__(self) -> None:
        if not (isfinite(self.low) and isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low must be below high, got low {self.low:g} and high {self.high:g}")
        if not 2 <= self.n <= 1001:
            raise ValueError(f"n must lie between 2 and 1001, got {self.n}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be above 0 on a logarithmic axis, got {self.low:g}")


def _shape(given: Any) -> str:
    return "steps" if isinstance(given, dict | Steps) else "list"


# a list of values, or {low, high, n, log}; the tag keeps mistakes to one line
Axis = Annotated[
    Annotated[tuple[float, ...], Tag("list")] | Annotated[Steps, Tag("steps")],
    Discriminator(_shape),
]


def axis_values(points: Axis) -> Float[Tensor, " p"]:
    """The values of an axis."""
    if not isinstance(points, Steps):
        return torch.tensor(points, dtype=torch.float64)
    if points.log:
        return torch.linspace(log(points.low), log(points.high), points.n, dtype=torch.float64).exp()
    # linspace leaves 1e-15 where 0 or 1 is meant
    return torch.tensor(np.round(np.linspace(points.low, points.high, points.n), 12))
