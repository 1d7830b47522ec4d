"""What is known of the tissues before the images: a log-normal per tissue, as a mixture."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from qsim.parameters import Parameter


@dataclass(frozen=True, slots=True)
class TissuePrior:
    """A mixture of tissues, each with a log-normal distribution of every row, independent of each other.

    Attributes:
        parameters: rows, in order.
        weights: share of each tissue; adds up to 1.
        median: of each row in each tissue [SI].
        spread: SD of the logarithm of each row in each tissue [1]; 0: the row is not restricted by the prior.
    """

    parameters: tuple[Parameter, ...]
    weights: Float[Tensor, " t"]
    median: Float[Tensor, "t q"]
    spread: Float[Tensor, "t q"]
