"""Which pooling finds the one B of an image, and how sure it is: what `shared-b` and `empirical-bayes` have in common.

| median SD of log T1 at known B | pooling: auto |
| --- | --- |
| under 2.5 % (3.5 or 12 % where the modulus has few or very few kinks) | profile |
| above | histogram |
| 5 to 7 % (14 % if the voxels are few), neighbours alike | histogram and block means, by their variances |
| above, neighbours alike | block means |

The bias of the histogram grows with the noise and does not depend on how many voxels there are; the blocks have less
of it, but a larger variance. So both are used where the noise is moderate, or the voxels are few (`_weighed`).
"""

from dataclasses import dataclass
from math import inf, log

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.errors import InputError
from qsim.estimators.noise_level import NoiseLevel, noise_level
from qsim.estimators.pooling.block_means import LEAST, SIZE, Blocks, enough_blocks, homogeneous_blocks, pool_blocks
from qsim.estimators.pooling.pooled_b import mean_square, pool_b
from qsim.estimators.pooling.profile import Begun, Point, Profile, sample
from qsim.estimators.voxels import noise_covariance
from qsim.information import crb
from qsim.signals import InversionRecovery

# voxels of the histogram, and those that say how noisy log T1 is
_POOLED, _JUDGED = 16384, 512
# "auto": median SD of log T1 at known B above which the histogram is used if at least this share of the voxels crosses
# zero within the series; below the last share the modulus has no say. A tenth of kinks is enough to bias the profile by
# up to five standard errors
_NOISY, _CROSSINGS = 0.025, ((0.25, 0.025), (0.1, 0.035), (0.0, 0.12))
# the same SD above which block means and the histogram are both used, and block means alone, of many voxels or few
_BOTH, _VERY_NOISY, _VERY_NOISY_FEW, _FEW = 0.05, 0.07, 0.14, 4096
# the variance of the histogram over that of its curvature, as found in brains at SNR 5 to 10; the correlation of its
# errors with those of the blocks; and the scatter of blocks over that of the noise above which neighbours are not
# alike: the image has no layout, or no blocks of one tissue
_HISTOGRAM, _ALIKE, _UNLIKE = 1.5, 0.5, 1.1
# quantile of that SD which the histogram's atoms must resolve
_SHARPER = 0.25
# SD of B above which the whole range of B is looked at, and above which B counts as not found: a quarter of its range
_UNSURE, _UNKNOWN = 0.02, 0.75
# voxels that say what the bound of B is
_BOUNDED = 2048


@dataclass(frozen=True, slots=True)
class Pooled:
    """One B and what was found on the way.

    Attributes:
        b: inversion depth [1].
        variance: of it, no less than the Cramér-Rao bound at these values; 0 if it was known [1].
        a, u: amplitude and log T1 of every voxel at that B [units of the images, log s].
        converged: per voxel.
        noise: the sigma that was used; None if none was needed.
    """

    b: float
    variance: float
    a: Float[Tensor, " v"]
    u: Float[Tensor, " v"]
    converged: Bool[Tensor, " v"]
    noise: NoiseLevel | None


def pool(
    model: InversionRecovery,
    images: Float[Tensor, "n *space"],
    y: Float[Tensor, "n v"],
    where: Bool[Tensor, "*space"],
    sigma: float | Tensor | None,
    b: float | None,
    pooling: str,
) -> Pooled:
    """B of the voxels, and A and T1 of each at that B.

    Args:
        y: series of the voxels `where`, at least one [units of A].
        b: if it is known; None: searched.
    Raises: InputError if there are fewer different times than parameters of a voxel, or sigma does not fit.
    """
    different, needed = len(set(model.ti)), 3 if b is None else 2
    if different < needed:
        remedy = "; give a known B, or more times" if different == 2 else ""
        raise InputError(
            f"images: A, T1{', B' if b is None else ''} need {needed} different times, got {different}{remedy}"
        )
    noise = noise_level(images, sigma, where, _nothing) if sigma is not None else None
    level = noise.at(where) if noise is not None else y.new_zeros(0, dtype=torch.float64)
    # voxels of different noise: each over its own
    weigh = level.numel() > 1
    profile = Profile(model.ti, model.signed, y / level if weigh else y)

    def pooled(point_b: float, variance: float, converged: bool, noise: NoiseLevel | None) -> Pooled:
        a = point.a * level.to(point.a.dtype) if weigh else point.a
        return Pooled(point_b, variance, a, point.u, point.ended & converged, noise)

    if b is not None:
        point = profile.at(b)
        return pooled(b, 0.0, True, noise)

    def found(b: float, variance: float, converged: bool) -> Pooled:
        return pooled(b, variance, converged and variance <= _UNKNOWN**2, noise)

    def in_blocks(blocks: Blocks) -> Pooled:
        b, variance, converged = pool_blocks(model.ti, model.signed, blocks)
        nonlocal point
        point = profile.at(b)
        # where sigma is not known: what the fits leave
        scale = one if one is not None else profile.residual(point) ** 0.5
        return found(b, max(variance, _least(model, point, scale)) if scale > 0 else variance, converged)

    one = 1.0 if weigh else (float(noise.sigma) if noise is not None else None)
    if pooling == "blocks":
        # the order of their scatter is all that is asked of sigma
        return in_blocks(_blocks(images, where, level if noise is not None else level.new_ones(1)))
    begun = None
    if noise is None and pooling != "profile":
        begun = profile.begin()
        noise = _estimated(model, images, where, begun, required=pooling == "histogram")
        one = float(noise.sigma) if noise is not None else None
    if pooling != "profile" and noise is not None and one is not None:
        point = begun.point if begun is not None else profile.glance()
        spread, sharp = _spread(model, point, one)
        share = _crossing(model, point)
        limit = next(noisy for least, noisy in _CROSSINGS if share >= least)
        blocks = None
        if pooling == "auto" and spread > max(limit, _BOTH) and enough_blocks(where):
            blocks = homogeneous_blocks(images, where, noise.at(where))
            # against the noise that the fits show: sigma may be wrong
            some = Profile(model.ti, model.signed, sample(profile.y, len(point.a)))
            if blocks.scatter >= _UNLIKE * some.residual(point) / one**2:
                blocks = None
            elif spread > max(limit, _VERY_NOISY if y.shape[1] > _FEW else _VERY_NOISY_FEW):
                return in_blocks(blocks)
        if pooling == "histogram" or spread > limit:
            result = pool_b(model.ti, model.signed, sample(profile.y, _POOLED) / one, spread=sharp)
            best, variance, converged = result.b, _HISTOGRAM * result.variance, result.converged
            if blocks is not None:
                depth, error, ended = pool_blocks(model.ti, model.signed, blocks)
                best, variance = _weighed((best, variance), (depth, error))
                converged &= ended
            point = profile.at(best)
            return found(best, max(variance, _least(model, point, one)), converged)
    point, converged = profile.maximise(begun)
    scale = one**2 if one is not None else profile.residual(point)
    # the sum of what is explained is 2 sigma^2 times the log-likelihood; its expected curvature is the information of B
    variance = 2 * scale / -point.curvature if point.curvature < 0 else inf
    if scale > 0:
        one = scale**0.5
        variance = max(variance, _least(model, point, one))
        # atoms of a histogram would be too coarse where T1 is known better
        if variance > _UNSURE**2 and _spread(model, point, one)[0] > _NOISY:
            few = sample(profile.y, _POOLED) / one
            variance = max(variance, mean_square(model.ti, model.signed, few, point.b))
    return found(point.b, variance, converged)


def _blocks(
    images: Float[Tensor, "n *space"], where: Bool[Tensor, "*space"], level: Float[Tensor, " v_or_1"]
) -> Blocks:
    """Raises: InputError."""
    if not enough_blocks(where):
        raise InputError(
            f"pooling: blocks needs images of two axes or more, and {LEAST} blocks of {SIZE} x {SIZE} voxels wholly "
            "inside the mask, one or more for every ten of its voxels; take auto"
        )
    return homogeneous_blocks(images, where, level)


def _weighed(histogram: tuple[float, float], blocks: tuple[float, float]) -> tuple[float, float]:
    """Two values of B by the inverse of their variances, the histogram's with a bias as large as their difference says.

        c = r (v_1 v_2)^1/2,   d = b_2 - b_1,   u_1 = v_1 + max(0, d^2 - (v_1 + v_2 - 2 c)),   w = u_1 / (u_1 + v_2)
        b = b_1 + w d,   v = (1 - w)^2 u_1 + 2 w (1 - w) c + w^2 v_2

    Both come from the same noise: r is .54 in 78 images. What they differ by beyond their errors is put down to the
    histogram, which is the biased one (the estimate of a variance between studies by its moments, DerSimonian and Laird
    1986, doi:10.1016/0197-2456(86)90046-2).
    """
    (first, v_1), (second, v_2) = histogram, blocks
    if v_1 == inf:
        return second, v_2
    if v_2 == inf:
        return first, v_1
    shared, apart = _ALIKE * (v_1 * v_2) ** 0.5, second - first
    biased = v_1 + max(0.0, apart**2 - (v_1 + v_2 - 2 * shared))
    w = biased / (biased + v_2)
    return first + w * apart, (1 - w) ** 2 * biased + 2 * w * (1 - w) * shared + w**2 * v_2


def _nothing() -> tuple[Tensor, int]:
    return torch.zeros(0), 0


def _residual(model: InversionRecovery, begun: Begun) -> tuple[Float[Tensor, " v"], int]:
    """Sum of squares that is left in the voxels of the first level, and their degrees of freedom."""
    point, y = begun.point, begun.profile.y.double()
    kappa = torch.stack((point.a, torch.full_like(point.a, point.b), point.u.exp())).double()
    return (model(kappa) - y).square().sum(0), model.n_images - 2


def _estimated(
    model: InversionRecovery, images: Tensor, where: Tensor, begun: Begun, required: bool
) -> NoiseLevel | None:
    """Sigma from the data; None where nothing shows it (images without noise, or no more than parameters)."""
    try:
        return noise_level(images, None, where, lambda: _residual(model, begun))
    except InputError:
        if required:
            raise
        return None


def with_noise(
    found: Pooled,
    model: InversionRecovery,
    images: Tensor,
    y: Tensor,
    where: Tensor,
    sigma: float | Tensor | None,
) -> Pooled:
    """The same with a sigma, for its covariance."""
    kappa = torch.stack((found.a, torch.full_like(found.a, found.b), found.u.exp())).double()
    few = slice(None, None, max(1, y.shape[1] // _POOLED))
    noise = noise_level(
        images, sigma, where, lambda: ((model(kappa[:, few]) - y[:, few]).square().sum(0), model.n_images - 2)
    )
    return Pooled(found.b, found.variance, found.a, found.u, found.converged, noise)


def _least(model: InversionRecovery, point: Point, sigma: float) -> float:
    """Cramér-Rao bound of the variance of B, at these values."""
    kappa = torch.stack((point.a, torch.full_like(point.a, point.b), point.u.exp()))
    few = sample(kappa, _BOUNDED)
    return float(crb(model, few, sigma, shared=("B",)).sd[1, 0]) ** 2 * few.shape[1] / kappa.shape[1]


def _spread(model: InversionRecovery, point: Point, sigma: float) -> tuple[float, float]:
    """SD of log T1 that the noise leaves at known B: the median over voxels, and that of the sharper ones."""
    few = slice(None, None, max(1, len(point.a) // _JUDGED))
    t1 = point.u[few].exp().double()
    kappa = torch.stack((point.a[few].double(), torch.full_like(t1, point.b), t1))
    covariance = noise_covariance(model, kappa, torch.full((1,), sigma, dtype=torch.float64, device=t1.device), ("B",))
    spread = covariance[2, 2].sqrt() / t1
    return float(spread.median()), float(spread.quantile(_SHARPER))


def _crossing(model: InversionRecovery, point: Point) -> float:
    """Share of voxels with kinks of the modulus within the series: at T1 log B, if that is one of its times."""
    if model.signed or point.b <= 1:
        return 0.0
    zero = point.u.exp() * log(point.b)
    within = (zero >= min(model.ti)) & (zero <= max(model.ti))
    return float(within.double().mean())
