"""What one voxel says about u = log T1 of an inversion recovery at known B, its amplitude always at its best.

    d_n(u) = |1 - B e_n|,   e_n = exp(-TI_n exp(-u))                      (signed models: without the modulus)
    t = dd/du = -B e TI exp(-u) sign(1 - B e),   k = dd/dB = -e sign(1 - B e)
    A(u) = max(0, S . d / d . d)
    score        g = A (S . t - A t . d) / sigma^2
    information  H = A^2 (t . t - (t . d)^2 / d . d) / sigma^2            (Fisher's, A free)
    du/dB        -(t . k - (t . d)(k . d) / d . d) / (t . t - (t . d)^2 / d . d)     of the likeliest u at known B
    dA/du        -A (t . d) / d . d,      dA/dB = -A (k . d) / d . d      to the first order at the best fit

Every sample of a batch has times of its own; shorter lists are filled up with times that do not count.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# length and information below which a series says nothing [1]
_NOTHING = 1e-9


@dataclass(frozen=True, slots=True)
class Local:
    """The likelihood about one value of u per voxel.

    Attributes:
        amplitude: A at its best [units of the series].
        score: g.
        information: H.
    """

    amplitude: Float[Tensor, "b y x"]
    score: Float[Tensor, "b y x"]
    information: Float[Tensor, "b y x"]


@dataclass(frozen=True, slots=True)
class Slopes:
    """How the fitted values follow each other.

    Attributes:
        amplitude_variance: of A at known u and B, over sigma^2: 1 / d . d.
        amplitude_by_u, amplitude_by_b: dA/du, dA/dB.
        u_by_b: du/dB.
    """

    amplitude_variance: Float[Tensor, "b y x"]
    amplitude_by_u: Float[Tensor, "b y x"]
    amplitude_by_b: Float[Tensor, "b y x"]
    u_by_b: Float[Tensor, "b y x"]


@dataclass(frozen=True, slots=True)
class Recovery:
    """Series of a batch with what is known of them.

    Attributes:
        series: S; 0 where a time does not count [units of A].
        times: TI [s].
        counted: whether a time is one of the sample's.
        b: inversion depth of each sample [1].
        sigma: noise SD of each sample or voxel [units of A].
        signed: whether the signal keeps its sign.
    """

    series: Float[Tensor, "b n y x"]
    times: Float[Tensor, "b n"]
    counted: Bool[Tensor, "b n"]
    b: Float[Tensor, " b"]
    sigma: Float[Tensor, "b ys xs"]
    signed: bool = False

    def rows(self, u: Float[Tensor, " k"]) -> Float[Tensor, "b k n"]:
        """Series of the values u, of length 1."""
        e = torch.exp(-self.times[:, None] * torch.exp(-u)[None, :, None])
        d = 1 - self.b[:, None, None] * e
        d = (d if self.signed else d.abs()) * self.counted[:, None]
        return d / d.norm(dim=2, keepdim=True).clamp_min(_NOTHING)

    def _shapes(self, u: Float[Tensor, "b y x"]) -> tuple[Tensor, Tensor, Tensor]:
        """d, t, k of every voxel."""
        counted = self.counted[:, :, None, None].to(u.dtype)
        rate = self.times[:, :, None, None] * torch.exp(-u)[:, None]
        e = torch.exp(-rate).mul_(counted)
        d = counted - self.b[:, None, None, None] * e
        k = -e if self.signed else e.mul_(d.sign()).neg_()
        return d if self.signed else d.abs_(), k * rate.mul_(self.b[:, None, None, None]), k

    def local(self, u: Float[Tensor, "b y x"]) -> Local:
        """Best amplitude, score and information at u."""
        d, t, _ = self._shapes(u)
        length = d.square().sum(1).clamp_min(_NOTHING)
        slope = (t * d).sum(1)
        amplitude = ((self.series * d).sum(1) / length).clamp_min(0)
        over = amplitude / self.sigma.square()
        score = over * ((self.series * t).sum(1) - amplitude * slope)
        return Local(amplitude, score, over * amplitude * (t.square().sum(1) - slope.square() / length))

    def slopes(self, u: Float[Tensor, "b y x"], amplitude: Float[Tensor, "b y x"]) -> Slopes:
        """How A and u follow each other and B at u."""
        d, t, k = self._shapes(u)
        length = d.square().sum(1).clamp_min(_NOTHING)
        by_u, by_b = (t * d).sum(1), (k * d).sum(1)
        u_by_b = -((t * k).sum(1) - by_u * by_b / length)
        u_by_b = u_by_b / (t.square().sum(1) - by_u.square() / length).clamp_min(_NOTHING)
        return Slopes(1 / length, -amplitude * by_u / length, -amplitude * by_b / length, u_by_b)
