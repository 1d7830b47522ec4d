"""Maximum likelihood with one B for all voxels: the fair opponent where B is constant over a patch or a mask.

    maximise sum_v log L_v(A_v, B, T1_v),   L_v = exp(-sum_n (|A_v (1 - B exp(-TI_n / T1_v))| - S_vn)^2 / 2 sigma_v^2)

For one B each voxel is a fit with one amplitude and one time (`pieces`). B itself is found in one of two ways:

profile: the B whose best A_v and T1_v explain most (`profile`). Where the noise is low it reaches the Cramér-Rao bound.
Where it is high it is biased, however many the voxels: each brings two unknowns of its own, and over the kinks of the
modulus their errors do not average out.

histogram: T1 of the voxels is summed over, under its own histogram, which is fitted to the same voxels (`pooled_b`).

Given B, A and T1 of every voxel are those of the largest likelihood either way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, log
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.errors import InputError
from qsim.estimators.base import Estimate
from qsim.estimators.noise_level import NoiseLevel, noise_level
from qsim.estimators.pooling.pooled_b import mean_square, pool_b
from qsim.estimators.pooling.profile import Begun, Point, Profile, sample
from qsim.estimators.voxels import gather, known_map, noise_covariance, scatter, statuses
from qsim.information import crb, fisher_information, invert_information
from qsim.parameters import T1, Parameter
from qsim.signals import InversionRecovery
from qsim.signals.base import SignalModel

_POOLINGS = ("auto", "profile", "histogram")
# voxels of the histogram, and those that say how noisy log T1 is
_POOLED, _JUDGED = 16384, 512
# "auto": median SD of log T1 at known B above which the histogram is used, and where the modulus has no say; the share
# of voxels that cross zero within the series from which it has
_NOISY, _NOISY_WITHOUT_KINKS = 0.025, 0.12
_CROSSING = 0.25
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


@dataclass(frozen=True, slots=True)
class SharedB:
    """Gaussian maximum likelihood with one B for the whole mask.

    Attributes:
        model: an inversion recovery with free B and full recovery.
        pooling: `profile`, `histogram` (the module says what they are), or `auto`: the histogram where the noise makes
            T1 of the median voxel uncertain by more than 2.5 % at known B, else the profile. Where fewer than a quarter
            of the voxels cross zero within the series, or it keeps its sign, there are no kinks to mislead the profile,
            and it is used up to 12 %. The histogram's grid of T1 has steps of 1 % or more: with less noise than that
            neither its B nor the variance of it is to be trusted, nor where nearly all voxels have exactly one T1.
        covariance: also return the covariance of the noise: inverse Fisher information at known B, plus the share of B,
            whose variance follows from the curvature of its likelihood (of the histogram's: `pooled_b` says how well)
            and is at least the Cramér-Rao bound at the estimate. Where its SD is above .02, and T1 uncertain by more
            than 2.5 %, it is at least the mean square of B's distance under the likelihood of the whole range of B.
    Where the SD of B so found is above .75, a quarter of B's range, the series says next to nothing about B. No voxel
    is then ok: status is NOT_CONVERGED (AT_BOUND would say that B lies at an end). Give a known B, or earlier times.
    Assumes: real Gaussian noise.   Not: Rician noise at low SNR, whose mean is raised.
    """

    model: SignalModel
    pooling: str = "auto"
    covariance: bool = False

    pools: ClassVar[tuple[str, ...]] = ("B",)

    def __post_init__(self) -> None:
        require_recovery(self.name, self.model)
        if self.pooling not in _POOLINGS:
            raise InputError(f"pooling: wanted {', '.join(_POOLINGS)}, got {self.pooling!r}")

    @property
    def name(self) -> str:
        return "shared-b"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.model.parameters

    def __call__(
        self,
        images: Float[Tensor, "n *space"],
        sigma: float | Tensor | None = None,
        mask: Bool[Tensor, "*space"] | None = None,
        known: Mapping[str, Tensor] | Mapping[str, float] | None = None,
    ) -> Estimate:
        """Fit all voxels together.

        Args:
            images: the series [units of A].
            sigma: noise SD, a number, or a map by whose inverse square the voxels then weigh in B; None: estimated
                from the background or the residuals [units of A].
            mask: voxels that share B; None: all.
            known: {"B": number}: B is not searched.
        Raises: InputError if the series, the mask, sigma or `known` does not fit.
        """
        model = self.model
        assert isinstance(model, InversionRecovery)
        y, where = gather(images, model, mask)
        given = known_map(known, "B", where, ("B",))
        if given is not None and given.numel() > 1:
            raise InputError("known.B: shared-b takes one number; for a map of B use least-squares")
        if y.shape[1] == 0:
            return no_voxels(y, self.parameters, where, self.covariance)
        fixed = ("B",) if given is not None else ()
        found = pool(model, images, y, where, sigma, None if given is None else float(given), self.pooling)
        if self.covariance and found.noise is None:
            found = _with_noise(found, model, images, y, where, sigma)
        kappa = torch.stack((found.a, torch.full_like(found.a, found.b), found.u.exp().clamp(T1.lower, T1.upper)))
        status = statuses(kappa, self.parameters, found.converged, where, fixed)
        maps = scatter(kappa.to(images.dtype), where)
        if not self.covariance:
            return Estimate(maps, status, noise_level=found.noise)
        assert found.noise is not None
        covariance = pooled_covariance(model, kappa, found.noise.at(where), found.variance).to(images.dtype)
        variances = scatter(torch.einsum("iiv->iv", covariance), where)
        full = scatter(covariance.reshape(9, -1), where).reshape(3, 3, *where.shape)
        return Estimate(maps, status, {"noise": variances}, full, found.noise)


def no_voxels(
    y: Float[Tensor, "n 0"], parameters: tuple[Parameter, ...], where: Bool[Tensor, "*space"], covariance: bool
) -> Estimate:
    """What is returned where nothing can be computed: maps of NaN, those of the covariance too if it was asked for."""
    q = len(parameters)
    empty = y.new_zeros(q, 0)
    maps, status = scatter(empty, where), statuses(empty, parameters, where[where], where)
    if not covariance:
        return Estimate(maps, status)
    return Estimate(maps, status, {"noise": maps.clone()}, maps.new_full((q, q, *where.shape), torch.nan))


def require_recovery(name: str, model: SignalModel) -> None:
    """Raises: InputError if the model is not an inversion recovery with free B and full recovery."""
    if not isinstance(model, InversionRecovery):
        raise InputError(
            f"estimators: {name} needs a model with B and inversion times (inversion_recovery), got "
            f"{type(model).__name__}; use least-squares"
        )
    if getattr(model, "tr", None) is not None:
        raise InputError(f"estimators: {name} needs full recovery between inversions (tr null); use least-squares")


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

    begun = None
    if noise is None and pooling != "profile":
        begun = profile.begin()
        noise = _estimated(model, images, where, begun, required=pooling == "histogram")
    one = 1.0 if weigh else (float(noise.sigma) if noise is not None else None)
    if pooling != "profile" and one is not None:
        point = begun.point if begun is not None else profile.glance()
        spread, sharp = _spread(model, point, one)
        if pooling == "histogram" or spread > (_NOISY if _crossing(model, point) else _NOISY_WITHOUT_KINKS):
            result = pool_b(model.ti, model.signed, sample(profile.y, _POOLED) / one, spread=sharp)
            point = profile.at(result.b)
            return found(result.b, max(result.variance, _least(model, point, one)), result.converged)
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


def _with_noise(
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


def pooled_covariance(
    model: SignalModel,
    kappa: Float[Tensor, "3 v"],
    sigma: Float[Tensor, " v_or_1"],
    variance: float | Float[Tensor, " v"],
) -> Float[Tensor, "3 3 v"]:
    """Covariance of A, B, T1 of each voxel, if B has that variance [SI^2].

    C = C_known + g g^T var(B),   g = (dA/dB, 1, dT1/dB) as the maximum of the voxel follows B

    Where a parameter of the voxel cannot be identified (T1 where A = 0) its variance is inf, and it follows nothing.
    """
    information = fisher_information(model, kappa, sigma)
    own = [0, 2]
    known = invert_information(information[own][:, own])
    covariance = torch.zeros_like(information)
    for i, row in enumerate(own):
        for j, column in enumerate(own):
            covariance[row, column] = known[i, j]
    spread = torch.as_tensor(variance, dtype=torch.float64, device=kappa.device)
    follow = torch.ones_like(information[0])
    # inf x 0 would be NaN
    follow[own] = -torch.einsum("ijv,jv->iv", torch.where(torch.isfinite(known), known, 0.0), information[own, 1])
    product = follow[:, None] * follow[None]
    share = torch.where(product == 0, 0.0, product * spread)
    return covariance + torch.where(torch.isfinite(covariance), share, 0.0)
