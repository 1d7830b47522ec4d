"""What one voxel says about u = log T of its relaxation time, its amplitude always at its best.

    S_n = A d_n(u),   t = dd/du,   z = S / sigma,   nu = A d / sigma           d and t: `recovery`, `decay`

Gaussian noise:
    A(u) = max(0, S . d / d . d)
    score        g = A (S . t - A t . d) / sigma^2
    information  H = A^2 (t . t - (t . d)^2 / d . d) / sigma^2                  (Fisher's, A free)
    F(u)         = S . d / |d| sigma                     F^2 / 2: log-likelihood at the best A, less that of A = 0

Rician noise (magnitudes of one complex channel; `qsim.kspace.magnitude_likelihood`), r = I_1 / I_0 at z nu:
    A(u)         sum_n (z r - nu) d = 0                  Newton's steps, or A = sum z r d / d . d where they would climb
    g = A (s . t - s . d (w t . d) / (w d . d)) / sigma,   s = z r - nu
    H = A^2 (w t . t - (w t . d)^2 / w d . d) / sigma^2,   w: the share of the information that a magnitude keeps
    F^2 / 2      = sum_n log I_0(z nu) - nu . nu / 2

The Rician F is taken on every sixth value of a grid, at an A by a bound of r that is right to 5 %; its distance from
the Gaussian F^2 / 2, which is smooth, is interpolated between. Posterior means on the grid are right to .1 SD for
decays; for recoveries, whose distance has kinks, to .3 SD, in the median to .01 (12 times, SNR 20).

Every sample of a batch has times of its own; shorter lists are filled up with times that do not count.
Source: Rician likelihood: Sijbers et al. 1998, doi:10.1109/42.712125.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.information.rician_bound import information_factor

# length and information below which a series says nothing [1]
NOTHING = 1e-9
# steps for the amplitude under Rician noise: on the grid, and where it is wanted exactly
_FEW, _SWEEPS = 3, 6
# every so many values of a grid have a Rician likelihood of their own; numbers of one chunk of them, in the cache
_EVERY, _CHUNK = 6, 1 << 17
# of `bessel_ratio`: the polynomial, lowest power first, and the scale of its variable
_RATIO_SCALE = 4.5
_RATIO = (
    0.222222229, -0.0740753689, 0.115269791, -0.0737059126, 0.0930224921, -0.0816559026, 0.0881507162, -0.0576311628,
    0.0184029254,
)  # fmt: skip


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
        amplitude_variance: of A at known u and B, over sigma^2: 1 / w d . d.
        amplitude_by_u: dA/du.
        amplitude_by_b, u_by_b: dA/dB and du/dB; None of a model without B.
    """

    amplitude_variance: Float[Tensor, "b y x"]
    amplitude_by_u: Float[Tensor, "b y x"]
    amplitude_by_b: Float[Tensor, "b y x"] | None
    u_by_b: Float[Tensor, "b y x"] | None


class VoxelLikelihood(ABC):
    """Series of a batch with what is known of them. Not to be changed once it is made.

    Not a dataclass: what hands batches to several devices would take a frozen one apart.

    Attributes:
        series: S; 0 where a time does not count, and outside the mask [units of A].
        times: [s].
        counted: whether a time is one of the sample's.
        sigma: noise SD of each sample or voxel, of a magnitude per real channel [units of A].
        rician: whether the series are magnitudes with Rician noise; else the noise is Gaussian.
    """

    # ends of the grid of T [s], its middle [log s], and the SD of log T that the grid can still show
    shortest: ClassVar[float]
    longest: ClassVar[float]
    typical: ClassVar[float]
    resolved: ClassVar[float]

    def __init__(
        self,
        series: Float[Tensor, "b n y x"],
        times: Float[Tensor, "b n"],
        counted: Bool[Tensor, "b n"],
        sigma: Float[Tensor, "b ys xs"],
        rician: bool = False,
    ) -> None:
        self.series, self.times, self.counted, self.sigma, self.rician = series, times, counted, sigma, rician

    @abstractmethod
    def family(self, u: Float[Tensor, " k"]) -> Float[Tensor, "b k n"]:
        """d of the values u."""

    @abstractmethod
    def shapes(self, u: Float[Tensor, "b y x"]) -> tuple[Tensor, Tensor, Tensor | None]:
        """d, t and dd/dB of every voxel (b n y x); the last is None of a model without B."""

    def rows(self, u: Float[Tensor, " k"]) -> Float[Tensor, "b k n"]:
        """Series of the values u, of length 1."""
        d = self.family(u)
        return d / d.norm(dim=2, keepdim=True).clamp_min(NOTHING)

    def signal(self, u: Float[Tensor, "b y x"], amplitude: Float[Tensor, "b y x"]) -> Float[Tensor, "b n y x"]:
        """Series without noise."""
        return amplitude[:, None] * self.shapes(u)[0]

    @property
    def _keeps_sign(self) -> bool:
        return False

    def fit(self, u: Float[Tensor, " k"]) -> Float[Tensor, "b k v"]:
        """F of the values u, for all voxels in a row; not negative, but for a model whose signal keeps its sign."""
        b, n = self.series.shape[:2]
        rows = self.rows(u)
        z = (self.series / self.sigma[:, None]).reshape(b, n, -1)
        gaussian = rows @ z
        if self._keeps_sign:
            return gaussian
        gaussian.clamp_min_(0)
        if not self.rician:
            return gaussian
        return torch.stack([_rician_fit(f, d, s) for f, d, s in zip(gaussian, rows, z, strict=True)])

    def local(self, u: Float[Tensor, "b y x"]) -> Local:
        """Best amplitude, score and information at u."""
        d, t, _ = self.shapes(u)
        if self.rician:
            z = self.series / self.sigma[:, None]
            a = rician_amplitude(z, d, 1, _SWEEPS)
            nu = a[:, None] * d
            left = z * bessel_ratio(z * nu) - nu
            w = information_factor(nu, 1)
            length = (w * d * d).sum(1).clamp_min(NOTHING)
            slope = (w * t * d).sum(1)
            score = a * ((left * t).sum(1) - (left * d).sum(1) * slope / length)
            information = a.square() * ((w * t * t).sum(1) - slope.square() / length)
            return Local(a * self.sigma, score, information.clamp_min(0))
        length = d.square().sum(1).clamp_min(NOTHING)
        slope = (t * d).sum(1)
        amplitude = ((self.series * d).sum(1) / length).clamp_min(0)
        over = amplitude / self.sigma.square()
        score = over * ((self.series * t).sum(1) - amplitude * slope)
        return Local(amplitude, score, over * amplitude * (t.square().sum(1) - slope.square() / length))

    def slopes(self, u: Float[Tensor, "b y x"], amplitude: Float[Tensor, "b y x"]) -> Slopes:
        """How A and u follow each other and B at u, to the first order at the best fit.

        dA/du = -A (w t . d) / w d . d,      dA/dB = -A (w k . d) / w d . d,      k = dd/dB
        du/dB = -(w t . k - (w t . d)(w k . d) / w d . d) / (w t . t - (w t . d)^2 / w d . d)
        """
        d, t, k = self.shapes(u)
        w = None
        if self.rician:
            # at A = 0 a magnitude tells nothing of A, but A is wrong by no more than about its noise
            least = self.sigma / d.square().sum(1).clamp_min(NOTHING).sqrt()
            w = information_factor(torch.maximum(amplitude, least)[:, None] * d / self.sigma[:, None], 1)
        weigh = d if w is None else w * d
        length = (weigh * d).sum(1).clamp_min(NOTHING)
        by_u = (weigh * t).sum(1)
        if k is None:
            return Slopes(1 / length, -amplitude * by_u / length, None, None)
        by_b = (weigh * k).sum(1)
        along = t if w is None else w * t
        u_by_b = -((along * k).sum(1) - by_u * by_b / length)
        u_by_b = u_by_b / ((along * t).sum(1) - by_u.square() / length).clamp_min(NOTHING)
        return Slopes(1 / length, -amplitude * by_u / length, -amplitude * by_b / length, u_by_b)


def bessel_ratio(x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """r = I_1 / I_0, to 3e-7, at a tenth of the time of two Bessel functions.

        r = x / (2 + x r_2),   r_2 = I_2 / I_1 = x v p(v),   v = 4.5 / (x^2 + 4.5^2)^1/2

    p is the polynomial of the least largest error of r (by Lawson's weights) against scipy's `ive`.
    Source: recurrence of the ratios: DLMF 10.29.1.
    """
    # beyond this r is 1 in float32, and a square would overflow further on
    x = x.clamp(-1e9, 1e9)
    v = x.square().add_(_RATIO_SCALE**2).rsqrt_().mul_(_RATIO_SCALE)
    p = v * _RATIO[-1] + _RATIO[-2]
    for coefficient in _RATIO[-3::-1]:
        p = p.mul_(v).add_(coefficient)
    return x / p.mul_(v).mul_(x).mul_(x).add_(2)


def rough_bessel_ratio(x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Lower bound of r, at most 5 % below: x / (1/2 + sqrt(x^2 + 9/4)).

    Source: Amos 1974, doi:10.1090/S0025-5718-1974-0333287-7.
    """
    return x / (x.square().add_(2.25).sqrt_().add_(0.5))


def rician_amplitude(
    z: Float[Tensor, "*#s"], d: Float[Tensor, "*#s"], dim: int, sweeps: int, *, rough: bool = False
) -> Float[Tensor, "*v"]:
    """A / sigma of the most likely amplitude of d_n along `dim`, at least 0.

    Args:
        z: magnitudes over sigma [1].
        d: series of A = 1; broadcast against z [1].
        rough: by the bound of r, in fewer passes.
    """
    ratio = rough_bessel_ratio if rough else bessel_ratio
    square = d.square()
    length = square.sum(dim).clamp_min(NOTHING)
    power = z.square()
    floor = (power - 1).clamp_min(0).sqrt()
    # not 0, which is a stationary point whatever the data
    a = ((floor * d).sum(dim) / length).clamp_min(0.3)
    along = z * d
    strength = along.square()
    for _ in range(sweeps):
        x = along * a.unsqueeze(dim)
        r = ratio(x)
        towards = (along * r).sum(dim)
        # 1 - r^2 - r / x
        curve = x.clamp_min_(1e-6).reciprocal_().add_(r).mul_(r).neg_().add_(1)
        bend = curve.mul_(strength).sum(dim) - length
        newton = a - (towards - a * length) / bend.clamp_max(-1e-6)
        # near a minimum of the likelihood, or far from its top, the step that cannot climb down is taken
        trusted = (bend < -0.1 * length) & (newton > 0) & (newton < 3 * a + 1)
        a = torch.where(trusted, newton, towards / length)
    return a


def _rician_fit(
    gaussian: Float[Tensor, "k v"], rows: Float[Tensor, "k n"], z: Float[Tensor, "n v"]
) -> Float[Tensor, "k v"]:
    """F of one sample."""
    last = len(rows) - 1
    at = torch.tensor(sorted({*range(0, last + 1, _EVERY), last}), device=rows.device)
    coarse = rows[at]
    per_chunk = max(1, _CHUNK // coarse.numel())
    parts = []
    for first in range(0, z.shape[1], per_chunk):
        piece = z[:, first : first + per_chunk]
        one, d = piece[None], coarse[:, :, None]
        a = rician_amplitude(one, d, 1, _FEW, rough=True)
        x = one * (a[:, None] * d)
        value = (torch.special.i0e(x).log() + x).sum(1) - a.square() * coarse.square().sum(1)[:, None] / 2
        parts.append(value - gaussian[at, first : first + per_chunk].square() / 2)
    apart = torch.cat(parts, 1)
    # linear between the values that have their own
    place = torch.arange(last + 1, device=rows.device)
    right = torch.searchsorted(at, place).clamp(1, len(at) - 1)
    share = ((place - at[right - 1]) / (at[right] - at[right - 1])).to(apart.dtype)[:, None]
    between = apart[right - 1] * (1 - share) + apart[right] * share
    return (gaussian.square() + 2 * between).clamp_min(0).sqrt()
