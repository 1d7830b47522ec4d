"""Likelihood of a magnitude: Rician for one coil, non-central chi for the root of sum of squares of L coils.

With z = m / sigma, theta = nu / sigma, x = z theta and I the modified Bessel functions,

    log p(m) = (2L - 1) log z - log sigma - (L - 1) log 2 - log Gamma(L) - (z - theta)^2 / 2 + g(x)
    g(x) = log [exp(-x) I_{L-1}(x) (2 / x)^{L-1} Gamma(L)]

g is 0 at x = 0 and smooth, and so are the derivatives, which need one ratio r(x) = I_L(x) / I_{L-1}(x) only:

    d log p / d theta = z r - theta,    d^2 log p / d theta^2 = z^2 r' - 1,    r' = 1 - r^2 - (2L - 1) r / x

Both are even in theta (odd, the first): the sign of a signal may be kept, and its zero is no kink. The ratio comes from
i1e / i0e for one coil, from the backward recurrence r_k = 1 / (2k / x + r_{k+1}) for more, and where x is large from
the series 1 - r = sum_k d_k x^-k, whose coefficients follow from the equation of r' and which keeps 1 - r and r' free
of cancellation: everything is computed in float64, whatever the images are.

Source: Gudbjartsson and Patz 1995, doi:10.1002/mrm.1910340618; Constantinides et al. 1997, doi:10.1002/mrm.1910380524;
recurrences: NIST DLMF 10.29.1, 10.29.2.
"""

from functools import lru_cache
from math import ceil, lgamma, log, sqrt

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_TERMS = 16
# nodes of the quadrature over z, and its reach on either side in sigma: the SD of z is at most 1
_NODES = 96
_REACH = 9.0

Numbers = float | Float[Tensor, "*ones"]


@lru_cache(maxsize=64)
def _series(coils: int) -> tuple[float, ...]:
    """d_k of 1 - I_L(x) / I_{L-1}(x) = sum_k d_k x^-k, from r' = 1 - r^2 - (2L - 1) r / x, order by order."""
    c = 2 * coils - 1
    d = [0.0, c / 2]
    for k in range(2, _TERMS + 1):
        products = sum(d[i] * d[k - i] for i in range(1, k))
        d.append(((k - 1 - c) * d[k - 1] + products) / 2)
    return tuple(d)


def _large(coils: int) -> float:
    """From this x on the series is exact to rounding."""
    return 40.0 + coils**2


def bessel_terms(
    x: Float[Tensor, "*s"], coils: int = 1
) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"], Float[Tensor, "*s"]]:
    """g(x), 1 - r(x) and r'(x) of the module's formulas, in float64.

    Args:
        x: product of the magnitude and the noise-free signal over sigma^2, at least 0 [1].
        coils: L.
    """
    if coils < 1:
        raise ValueError(f"coils must be at least 1, got {coils}")
    x = x.double()
    far = x > _large(coils)
    zeroth = torch.special.i0e(x)
    if coils == 1:
        ratio = torch.special.i1e(x) / zeroth
        ratio_over_x = torch.where(x < 1e-150, 0.5, ratio / x.clamp_min(1e-150))
    else:
        near = torch.where(far, 1.0, x)
        ratio_over_x = _ratio_over_x(near, coils)
        ratio = near * ratio_over_x
    short = 1 - ratio
    slope = 1 - ratio * ratio - (2 * coils - 1) * ratio_over_x
    if bool(far.any()):
        inverse = 1 / torch.where(far, x, 1e9)
        series, derivative = torch.zeros_like(x), torch.zeros_like(x)
        for k in range(_TERMS, 0, -1):
            series = (series + _series(coils)[k]) * inverse
            derivative = (derivative + k * _series(coils)[k]) * inverse
        short = torch.where(far, series, short)
        slope = torch.where(far, derivative * inverse, slope)
    logarithm = zeroth.log()
    if coils > 1:
        # I_{L-1} = I_0 r_1 r_2 ... r_{L-1}, each r_k = x h_k / 2k
        upper = 1 - short
        for k in range(coils - 1, 0, -1):
            h = 1 / (1 + x * upper / (2 * k))
            logarithm = logarithm + h.log()
            upper = x * h / (2 * k)
    return logarithm, short, slope


def _ratio_over_x(x: Float[Tensor, "*s"], coils: int) -> Float[Tensor, "*s"]:
    """I_L(x) / (x I_{L-1}(x)) for x that is not large, by the backward recurrence; 1 / 2L at 0."""
    # an error of the start shrinks by r_k^2 a step, exp(-M^2 / x) after M; Amos' lower bound starts within 1e-3
    top = coils + ceil(6 * sqrt(_large(coils)))
    ratio = x / (top - 0.5 + torch.sqrt(x * x + (top + 0.5) ** 2))
    over = ratio
    for k in range(top - 1, coils - 1, -1):
        over = 1 / (2 * k + x * ratio)
        ratio = x * over
    return over


def magnitude_terms(
    images: Float[Tensor, "*s"], signal: Float[Tensor, "*s"], sigma: Numbers, coils: int = 1
) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"], Float[Tensor, "*s"]]:
    """log p without what does not depend on the signal, and its two derivatives by the signal, in float64.

        -(m - |nu|)^2 / 2 sigma^2 + g,    (m r - |nu|) / sigma^2 sign(nu),    (m^2 r' / sigma^2 - 1) / sigma^2

    Args:
        images: magnitudes m, at least 0 [units of A].
        signal: noise-free nu; may carry a sign [units of A].
        sigma: noise SD per real channel [units of A].
        coils: L.
    """
    inverse = 1 / torch.as_tensor(sigma, dtype=torch.float64, device=images.device)
    z, theta = images.double() * inverse, signal.double() * inverse
    size = theta.abs()
    g, short, slope = bessel_terms(z * size, coils)
    difference = z - size
    score = difference - z * short
    score = torch.where(theta < 0, -score, score)
    return g - difference.square() / 2, score * inverse, (z * z * slope - 1) * inverse.square()


def magnitude_log_density(
    images: Float[Tensor, "*s"], signal: Float[Tensor, "*s"], sigma: Numbers, coils: int = 1
) -> Float[Tensor, "*s"]:
    """log p(m | nu, sigma) of the module's first formula, in the dtype of the images; minus infinity for m < 0."""
    scale = torch.as_tensor(sigma, dtype=torch.float64, device=images.device)
    kernel = magnitude_terms(images.clamp_min(0), signal, scale, coils)[0]
    constant = (coils - 1) * log(2) + lgamma(coils)
    z = images.double() / scale
    density = kernel + (2 * coils - 1) * z.clamp_min(0).log() - scale.log() - constant
    return torch.where(images < 0, -torch.inf, density).to(images.dtype)


def magnitude_score(
    images: Float[Tensor, "*s"], signal: Float[Tensor, "*s"], sigma: Numbers, coils: int = 1
) -> Float[Tensor, "*s"]:
    """d log p / d nu, in the dtype of the images [1 / units of A]."""
    return magnitude_terms(images, signal, sigma, coils)[1].to(images.dtype)


def magnitude_curvature(
    images: Float[Tensor, "*s"], signal: Float[Tensor, "*s"], sigma: Numbers, coils: int = 1
) -> Float[Tensor, "*s"]:
    """d^2 log p / d nu^2, in the dtype of the images [1 / units of A^2]."""
    return magnitude_terms(images, signal, sigma, coils)[2].to(images.dtype)


@lru_cache(maxsize=1)
def _legendre() -> tuple[tuple[float, ...], tuple[float, ...]]:
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return tuple(nodes.tolist()), tuple(weights.tolist())


def magnitude_moments(
    signal: Float[Tensor, "*s"], sigma: Numbers, coils: int = 1
) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
    """Mean and SD of the magnitude, in float64 [units of A].

        E[m] = sigma sqrt(pi / 2) Gamma(L + 1/2) / (Gamma(3/2) Gamma(L)) 1F1(-1/2; L; -nu^2 / 2 sigma^2)

    Args:
        signal: noise-free nu [units of A].
        sigma: noise SD per real channel [units of A].
        coils: L.
    """
    scale = torch.as_tensor(sigma, dtype=torch.float64, device=signal.device)
    theta = signal.double().abs() / scale
    centre = torch.sqrt(theta * theta + 2 * coils - 1)
    low, high = (centre - _REACH).clamp_min(0), centre + _REACH
    total, first, second = torch.zeros_like(theta), torch.zeros_like(theta), torch.zeros_like(theta)
    for node, weight in zip(*_legendre(), strict=True):
        z = low + (high - low) * (node + 1) / 2
        p = weight * (high - low) / 2 * magnitude_log_density(z, theta, 1.0, coils).exp()
        offset = z - centre
        total, first, second = total + p, first + p * offset, second + p * offset * offset
    first, second = first / total, second / total
    return (centre + first) * scale, (second - first * first).sqrt() * scale
