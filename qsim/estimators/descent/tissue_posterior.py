"""How certain a posterior mode is when it is not known which tissue the voxel is.

Likelihood times one tissue's prior has a mode m_t in theta (logarithms of the rows that the prior restricts and of
relaxation times) and a curvature 1 / C_t there, a normal of mass w_t (Laplace's approximation), and the posterior is
their sum:

    Cov theta = sum_t w_t (C_t + (m_t - m) (m_t - m)'),    m = sum_t w_t m_t
    w_t ~ share_t  p(S | m_t)  prior_t(m_t)  sqrt(det 2 pi C_t)

Exact where the signal is linear in theta. Not: a tissue with several modes of its own, as magnitudes of a recovery can
have near the null; only its highest one counts. A mode on a bound is one end of a normal that is cut there.
Source: Tierney and Kadane 1986, doi:10.1080/01621459.1986.10478240 (Laplace).
"""

from dataclasses import dataclass
from math import pi, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.estimators.descent.levenberg_marquardt import minimise
from qsim.estimators.descent.observed_information import covariance_at
from qsim.estimators.descent.voxel_problem import Problem, gradient

# steps with one tissue's prior, from where a search with it has been already
_FEW = 12
# tissues whose posterior is lower than the best one's by this many logarithms have no mass that counts (1e-13)
_NEGLIGIBLE = 30.0


@dataclass(frozen=True, slots=True)
class Ended:
    """Where a search with one tissue's prior ended.

    Attributes:
        problem: with that prior alone.
        share: logarithm of the tissue's weight in the mixture.
        theta: the end, near a mode.
    """

    problem: Problem
    share: float
    theta: Float[Tensor, "q v"]


def posterior_covariance(
    problem: Problem,
    y: Float[Tensor, "n v"],
    sigma: Float[Tensor, " v_or_1"],
    best: Float[Tensor, "q v"],
    ends: list[Ended],
) -> Float[Tensor, "q q v"]:
    """Of the sum of one normal per tissue [SI^2].

    A voxel with a tissue under which a row cannot be identified, so that its mass has no limit, gets the inverse
    curvature of the whole posterior at the mode instead, where that row is inf.
    """
    starts, heights = [], []
    for end in ends:
        # a tissue may have several modes: the one of the estimate, if it is the higher one
        values = [gradient(end.problem, y, sigma, theta)[0] for theta in (best, end.theta)]
        starts.append(torch.where(values[0] <= values[1], best, end.theta))
        heights.append(end.share - torch.minimum(*values))
    top = torch.stack(heights).amax(0)
    masses, means, spreads = [], [], []
    for end, start, height in zip(ends, starts, heights, strict=True):
        mass, mean, spread = torch.full_like(top, -torch.inf), best.clone(), y.new_zeros(len(best), *best.shape)
        at = torch.nonzero(~(height < top - _NEGLIGIBLE)).squeeze(1)
        if at.numel():
            own = sigma if sigma.numel() == 1 else sigma[at]
            mass[at], mean[:, at], spread[:, :, at] = _normal(end, y[:, at], own, start[:, at])
        masses.append(mass)
        means.append(mean)
        spreads.append(spread)
    weights = torch.softmax(torch.stack(masses), 0)
    # from the estimate, so that known rows are 0 to the last digit
    away = torch.stack(means) - best
    away = away - (weights[:, None] * away).sum(0)
    total = torch.zeros_like(spreads[0])
    for weight, shift, spread in zip(weights, away, spreads, strict=True):
        total += weight * (spread + shift[:, None] * shift[None])
    kappa = problem.coordinates.settled(best)
    slope = problem.coordinates.slopes(kappa)
    total = total * slope[:, None] * slope[None]
    open_ended = torch.nonzero(~torch.isfinite(total).all(0).all(0)).squeeze(1)
    if open_ended.numel():
        own = sigma if sigma.numel() == 1 else sigma[open_ended]
        total[:, :, open_ended] = covariance_at(problem, y[:, open_ended], own, kappa[:, open_ended])
    return total


def _normal(
    end: Ended, y: Float[Tensor, "n v"], sigma: Float[Tensor, " v_or_1"], start: Float[Tensor, "q v"]
) -> tuple[Float[Tensor, " v"], Float[Tensor, "q v"], Float[Tensor, "q q v"]]:
    """Log mass, mean and covariance in theta of the likelihood times one tissue's prior."""
    problem = end.problem
    found = minimise(problem, y, sigma, start, _FEW)
    kappa = problem.coordinates.settled(found.theta)
    slope = problem.coordinates.slopes(kappa)
    spread = covariance_at(problem, y, sigma, kappa) / (slope[:, None] * slope[None])
    mass = end.share - found.objective + _log_root(spread, problem.free)
    return _cut(problem, y, sigma, found.theta, mass, spread)


def _log_root(covariance: Float[Tensor, "q q v"], free: tuple[int, ...]) -> Float[Tensor, " v"]:
    """log sqrt det of the free rows, on a unit diagonal for the digits' sake; NaN where it is not finite."""
    rows = list(free)
    own = covariance[rows][:, rows].permute(2, 0, 1)
    sd = own.diagonal(dim1=1, dim2=2).sqrt()
    scaled = own / (sd[:, :, None] * sd[:, None])
    finite = torch.isfinite(scaled).all(-1).all(-1)
    root = torch.linalg.slogdet(torch.where(finite[:, None, None], scaled, 1.0))[1] / 2 + sd.log().sum(1)
    return torch.where(finite, root, torch.nan)


def _cut(
    problem: Problem,
    y: Float[Tensor, "n v"],
    sigma: Float[Tensor, " v_or_1"],
    theta: Float[Tensor, "q v"],
    mass: Float[Tensor, " v"],
    spread: Float[Tensor, "q q v"],
) -> tuple[Float[Tensor, " v"], Float[Tensor, "q v"], Float[Tensor, "q q v"]]:
    """Log mass, mean and covariance where a mode lies on a bound, one row after the other.

        p(d) ~ exp(-g d - d^2 / 2 c),  d >= 0 the way in,  a = g sqrt c,  lambda = sqrt(2 / pi) / erfcx(a / sqrt 2)
        mass x erfcx(a / sqrt 2) / 2,   E d = sqrt c (lambda - a),   Var d = c (1 - lambda (lambda - a))

    c is the row's variance without the bound. The other rows follow d by regression, as in any normal.
    Source: Johnson, Kotz and Balakrishnan, Continuous univariate distributions 1, 1994, 13.10.1.
    """
    lower, upper = problem.coordinates.bounds(theta.device)
    free = list(problem.free)
    inward = (theta <= lower).double() - (theta >= upper).double()
    at = torch.nonzero((inward[free] != 0).any(0)).squeeze(1)
    if at.numel() == 0:
        return mass, theta, spread
    own = sigma if sigma.numel() == 1 else sigma[at]
    slope = gradient(problem, y[:, at], own, theta[:, at])[1]
    mass, mean, spread = mass.clone(), theta.clone(), spread.clone()
    for number, row in enumerate(free):
        side = inward[row, at]
        c = spread[row, row, at]
        a = (side * slope[number]).clamp_min(0) * c.sqrt()
        tail = torch.special.erfcx(a / sqrt(2))
        ratio = sqrt(2 / pi) / tail
        # far out the difference of two large numbers is lost: an exponential of mean 1 / g
        narrower = torch.where(a < 100, 1 - ratio * (ratio - a), a.clamp_min(100) ** -2)
        shift = torch.where(a < 100, ratio - a, 1 / a.clamp_min(100))
        hit = (side != 0) & torch.isfinite(c)
        along = torch.where(hit, spread[:, row, at] / c, 0.0)
        mass[at] += torch.where(hit, (tail / 2).log(), 0.0)
        mean[:, at] += along * torch.where(hit, side * shift * c.sqrt(), 0.0)
        spread[:, :, at] -= along[:, None] * along[None] * torch.where(hit, c * (1 - narrower), 0.0)
    return mass, mean, spread
