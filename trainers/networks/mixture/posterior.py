"""The posterior of a voxel under a mixture of normals, with a likelihood that is normal about a working point.

    prior       sum_m w_m N(u; mu_m, s_m^2)
    likelihood  N(u*; u, d^2),   u* = x + g d^2,   1 / d^2 = H (score g, Fisher information H at the working point x)
    posterior   sum_m r_m N(u; p_m, v_m)
        r_m ~ w_m N(u*; mu_m, s_m^2 + d^2)
        v_m = s_m^2 d^2 / (s_m^2 + d^2),   p_m = (u* s_m^2 + mu_m d^2) / (s_m^2 + d^2)

A voxel whose data contradict its neighbourhood is kept: the class that expects it elsewhere loses its share r_m.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# share of a class that is always left in the loss: a class of share 0 has no slope [1]
_LEAST = 1e-8


@dataclass(frozen=True, slots=True)
class Mixture:
    """A mixture of normals of u = log T in every voxel.

    Attributes:
        share: r, adds up to 1 over the classes [1].
        mean: p [log s].
        variance: v [1].
    """

    share: Float[Tensor, "b m y x"]
    mean: Float[Tensor, "b m y x"]
    variance: Float[Tensor, "b m y x"]

    @property
    def centre(self) -> Float[Tensor, "b y x"]:
        """Posterior mean of log T."""
        return (self.share * self.mean).sum(1)

    @property
    def spread(self) -> Float[Tensor, "b y x"]:
        """Posterior variance of log T."""
        return (self.share * (self.variance + (self.mean - self.centre[:, None]).square())).sum(1)

    def surprise(self, truth: Float[Tensor, "b y x"]) -> Float[Tensor, "b y x"]:
        """-log density of the true log T, up to log(2 pi) / 2: the loss."""
        away = (truth[:, None] - self.mean).square() / self.variance
        return -torch.logsumexp((self.share + _LEAST).log() - (away + self.variance.log()) / 2, 1)

    def quantile(self, level: float, sweeps: int = 26) -> Float[Tensor, "b y x"]:
        """Quantile of log T, by bisection between those of the classes."""
        ends = self.mean + torch.special.ndtri(self.mean.new_tensor(level)) * self.variance.sqrt()
        low, high = ends.amin(1), ends.amax(1)
        for _ in range(sweeps):
            middle = (low + high) / 2
            below = torch.special.ndtr((middle[:, None] - self.mean) * self.variance.rsqrt())
            under = (self.share * below).sum(1) < level
            low, high = torch.where(under, middle, low), torch.where(under, high, middle)
        return (low + high) / 2


def posterior(
    log_weight: Float[Tensor, "b m y x"],
    mean: Float[Tensor, "b m y x"],
    variance: Float[Tensor, "b m y x"],
    observed: Float[Tensor, "b y x"],
    noise: Float[Tensor, "b y x"],
) -> Mixture:
    """Prior times likelihood.

    Args:
        log_weight: log w, up to a constant per voxel.
        mean, variance: mu and s^2.
        observed, noise: u* and d^2.
    """
    u, d = observed[:, None], noise[:, None]
    total = variance + d
    share = torch.softmax(log_weight - ((u - mean).square() / total + total.log()) / 2, 1)
    return Mixture(share, (u * variance + mean * d) / total, variance * d / total)
