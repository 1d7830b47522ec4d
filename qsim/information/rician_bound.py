"""How much of the Fisher information a magnitude keeps: Rician and non-central chi.

The magnitude m of L coils, each with complex noise of SD sigma per channel around a signal of root sum of squares nu,
has the score d log p / d nu = (m I_L(z) / I_{L-1}(z) - nu) / sigma^2 with z = m nu / sigma^2. So one image tells of nu

    J(x, L) / sigma^2,    J(x, L) = E[(m R(m x) - x)^2]  at  sigma = 1, x = nu / sigma,  R = I_L / I_{L-1},

against 1 / sigma^2 under Gaussian noise. J rises from x^2 / L at a dark signal to 1 - (L - 1/2) / x^2 at a bright one;
J / u with u = x^2 / (x^2 + L) is 1 at both ends and smooth between, and that is what is tabulated.
Source: Karlsen et al. 1999 (Rician); Bouhrara and Spencer 2018, PMC5843523 (non-central chi).
"""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import CubicSpline
from scipy.special import gammaln, ive
from torch import Tensor

# J to 2e-8 for 1 to 128 coils
_INTERVALS = 512
_NODES = 128
MOST_COILS = 128


def information_factor(ratio: Float[Tensor, "*s"], coils: int) -> Float[Tensor, "*s"]:
    """J(nu / sigma, L): share of the Gaussian Fisher information that a magnitude image keeps, 0 to 1 [1].

    Args:
        ratio: noise-free signal over sigma, nu / sigma, 0 or more [1].
        coils: L; 1 is Rician.
    Raises: ValueError if the number of coils is not 1 to 128.
    Accuracy: 2e-8, by a table that is made once for each number of coils.
    """
    coefficients = _on_device(coils, ratio.device)
    # beyond 1e100 the square overflows; J is 1 there
    square = ratio.double().clamp(max=1e100).square()
    u = square / (square + coils)
    position = u * _INTERVALS
    interval = position.floor().clamp_(max=_INTERVALS - 1)
    # a signal that is not a number has no interval
    number = torch.nan_to_num(interval, nan=0.0).long()
    offset = (position - interval).div_(_INTERVALS)
    share = torch.zeros_like(u)
    for power in coefficients:
        share = share * offset + power.index_select(0, number.flatten()).reshape(u.shape)
    return (share * u).to(ratio.dtype)


def magnitude_information(
    signal: Float[Tensor, "*s"], sigma: float | Float[Tensor, "*ones"], coils: int = 1
) -> Float[Tensor, "*s"]:
    """Fisher information of one magnitude about its signal, in float64 [1 / units of A^2].

    It tends to 1 / sigma^2 at high SNR and to nu^2 / (L sigma^4) at low SNR: a magnitude says nothing of a signal
    near zero (`information_factor`).
    """
    scale = torch.as_tensor(sigma, dtype=torch.float64, device=signal.device)
    return information_factor(signal.double().abs() / scale, coils) / scale.square()


@lru_cache(maxsize=16)
def _on_device(coils: int, device: torch.device) -> Float[Tensor, "4 k"]:
    return torch.tensor(_table(coils), device=device)


@lru_cache(maxsize=16)
def _table(coils: int) -> Float[np.ndarray, "4 k"]:
    """Coefficients of the cubic spline of J / u over u, highest power first."""
    if not 1 <= coils <= MOST_COILS:
        raise ValueError(f"coils must be 1 (Rician) to {MOST_COILS}, got {coils}")
    u = np.linspace(0, 1, _INTERVALS + 1)
    share = np.ones_like(u)
    inner = u[1:-1]
    share[1:-1] = _by_quadrature(np.sqrt(coils * inner / (1 - inner)), coils) / inner
    return np.ascontiguousarray(CubicSpline(u, share).c)  # type: ignore[no-untyped-call]


def _by_quadrature(x: Float[np.ndarray, " k"], coils: int) -> Float[np.ndarray, " k"]:
    """J by Gauss-Legendre quadrature over ten SD of the magnitude about sqrt(x^2 + 2 L - 1)."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    centre = np.sqrt(x**2 + 2 * coils - 1)
    low, high = np.maximum(centre - 10, 0), centre + 10
    half = (high - low)[:, None] / 2
    m = low[:, None] + half * (nodes + 1)
    z = m * x[:, None]
    # I_{L-1}(z) underflows where z << L; there its series has converged after two terms
    small = z < 0.01 * coils
    safe = np.where(small, 1.0, z)
    w = z**2 / 4
    below = ive(coils - 1, safe)
    ratio = np.where(small, z / (2 * coils) * (1 - w / (coils * (coils + 1))), ive(coils, safe) / below)
    # log of (L-1)! I_{L-1}(z) (2 / z)^(L-1), what the signal adds to the density of noise alone
    added = np.where(
        small,
        w / coils - w**2 / (2 * coils**2 * (coils + 1)),
        np.log(below) + safe - (coils - 1) * np.log(safe / 2) + gammaln(coils),
    )
    noise = (2 * coils - 1) * np.log(m) - m**2 / 2 - (coils - 1) * np.log(2) - gammaln(coils)
    density = np.exp(noise - x[:, None] ** 2 / 2 + added)
    score = m * ratio - x[:, None]
    return np.asarray((half * weights * density * score**2).sum(1))
