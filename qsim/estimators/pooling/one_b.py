"""Which pooling finds the one B of an image, and how sure it is: what `shared-b` and `empirical-bayes` have in common.

| median SD of log T1 at known B | pooling: auto |
| --- | --- |
| under 2.5 % (12 % where the modulus has few kinks) | profile |
| above | histogram |
| 5 to 10 %, neighbours alike | histogram and block means, by their variances |
| above 10 %, neighbours alike | block means |
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
# "auto": median SD of log T1 at known B above which the histogram is used, and where the modulus has no say; the share
# of voxels that cross zero within the series from which it has
_NOISY, _NOISY_WITHOUT_KINKS = 0.025, 0.12
_CROSSING = 0.25
# the same SD above which block means and the histogram are both used, by their variances, and block means alone; the
# variance of the histogram over that of its curvature, as found in brains at SNR 5 to 10; and the scatter of blocks
# over that of the noise above which neighbours are not alike: the image has no layout, or no blocks of one tissue
_BOTH, _VERY_NOISY, _HISTOGRAM, _UNLIKE = 0.05, 0.1, 1.5, 1.1
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
        limit = _NOISY if _crossing(model, point) else _NOISY_WITHOUT_KINKS
        blocks = None
        if pooling == "auto" and spread > max(limit, _BOTH) and enough_blocks(where):
            blocks = homogeneous_blocks(images, where, noise.at(where))
            # against the noise that the fits show: sigma may be wrong
            some = Profile(model.ti, model.signed, sample(profile.y, len(point.a)))
            if blocks.scatter >= _UNLIKE * some.residual(point) / one**2:
                blocks = None
            elif spread > max(limit, _VERY_NOISY):
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


def _weighed(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """Two values by the inverse of their variances, and the variance: of that mean, and of what they disagree by.

        w = v_1 / (v_1 + v_2),   b = (1 - w) b_1 + w b_2,   v = v_1 v_2 / (v_1 + v_2) + w (1 - w) (b_1 - b_2)^2

    the variance of a mixture of two normals at b_1 and b_2 whose own variance is that of the mean.
    """
    (first, v_1), (second, v_2) = one, other
    total = 1 / v_1 + 1 / v_2
    if total == 0:
        return first, inf
    weight = 1 / v_2 / total
    return first + weight * (second - first), 1 / total + weight * (1 - weight) * (first - second) ** 2


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


def _crossing(model: InversionRecovery, point: Point) -> bool:
    """Whether the modulus has kinks in many voxels: at T1 log B, if that is one of the times of the series."""
    if model.signed or point.b <= 1:
        return False
    zero = point.u.exp() * log(point.b)
    within = (zero >= min(model.ti)) & (zero <= max(model.ti))
    return float(within.double().mean()) >= _CROSSING
