"""The coordinates in which a network sees and learns the maps: scaled, and logarithmic where an error is relative."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.parameters import RELAXATION_TIMES, Parameter


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Learned coordinates u of the rows of kappa.

        u = log(kappa / start)            relaxation times, if `logarithmic`: positive whatever the network answers
        u = (kappa - start) / scale       every other row

    u is 0 at the start of an iterative method (A excepted), and an error of u is a relative error of the row.

    Attributes:
        parameters: rows, in order.
        logarithmic: False keeps every row linear (the update of sabidussi2021 Eq. 5).
    """

    parameters: tuple[Parameter, ...]
    logarithmic: bool

    def _is_log(self, parameter: Parameter) -> bool:
        return self.logarithmic and parameter.name in RELAXATION_TIMES

    def encode(self, kappa: Float[Tensor, "b q *space"]) -> Float[Tensor, "b q *space"]:
        """Coordinates of the maps. Assumes: relaxation times above 0 (fill the background first)."""
        rows = [
            torch.log(row / p.start) if self._is_log(p) else (row - p.start) / p.scale
            for p, row in zip(self.parameters, kappa.unbind(1), strict=True)
        ]
        return torch.stack(rows, 1)

    def decode(self, u: Float[Tensor, "b q *space"]) -> Float[Tensor, "b q *space"]:
        """Maps [SI] of the coordinates."""
        rows = [
            torch.exp(row) * p.start if self._is_log(p) else row * p.scale + p.start
            for p, row in zip(self.parameters, u.unbind(1), strict=True)
        ]
        return torch.stack(rows, 1)

    def derivative(self, kappa: Float[Tensor, "b q *space"]) -> Float[Tensor, "b q *space"]:
        """d kappa / d u at the maps `kappa` [SI]: the chain rule of the likelihood gradient."""
        rows = [
            row if self._is_log(p) else torch.full_like(row, p.scale)
            for p, row in zip(self.parameters, kappa.unbind(1), strict=True)
        ]
        return torch.stack(rows, 1)

    def fill(self, kappa: Float[Tensor, "b q *space"], where: Tensor) -> Float[Tensor, "b q *space"]:
        """`kappa`, with the start value of each row where `where` (b, *space) is true."""
        start = kappa.new_tensor([p.start for p in self.parameters]).reshape(-1, *(1,) * (kappa.ndim - 2))
        return torch.where(where[:, None], start, kappa)
