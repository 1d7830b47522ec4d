"""Maximum likelihood with one B for all voxels: the fair opponent where B is constant over a patch or a mask.

    maximise sum_v log L_v(A_v, B, T1_v),   L_v = exp(-sum_n (|A_v (1 - B exp(-TI_n / T1_v))| - S_vn)^2 / 2 sigma_v^2)

For one B each voxel is a fit with one amplitude and one time (`pieces`). B itself is found in one of three ways:

profile: the B whose best A_v and T1_v explain most (`profile`). Where the noise is low it reaches the Cramér-Rao bound.
Where it is high it is biased, however many the voxels: each brings two unknowns of its own, and over the kinks of the
modulus their errors do not average out.

histogram: T1 of the voxels is summed over, under its own histogram, which is fitted to the same voxels (`pooled_b`).

blocks: the profile of the means of 3 x 3 voxels of one tissue, which hold a third of the noise (`block_means`). For
very high noise, in images in which neighbours are alike.

Given B, A and T1 of every voxel are those of the largest likelihood in any of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.errors import InputError
from qsim.estimators.base import Estimate
from qsim.estimators.pooling.one_b import pool, with_noise
from qsim.estimators.voxels import gather, known_map, scatter, statuses
from qsim.information import fisher_information, invert_information
from qsim.parameters import T1, Parameter
from qsim.signals import InversionRecovery
from qsim.signals.base import SignalModel

_POOLINGS = ("auto", "profile", "histogram", "blocks")


@dataclass(frozen=True, slots=True)
class SharedB:
    """Gaussian maximum likelihood with one B for the whole mask.

    Attributes:
        model: an inversion recovery with free B and full recovery.
        pooling: `profile`, `histogram`, `blocks` (the module says what they are), or `auto`: the histogram where the
            noise makes T1 of the median voxel uncertain by more than 2.5 % at known B, else the profile. Where fewer
            than a quarter of the voxels cross zero within the series, the profile is used up to 3.5 %; where fewer than
            a tenth do, or it keeps its sign, there are no kinks to mislead it, and it is used up to 12 %. The
            histogram's grid of T1 has steps of 1 % or more: with less noise than that neither its B nor the variance of
            it is to be trusted, nor where nearly all voxels have exactly one T1. Above 5 % `auto` takes the mean of
            histogram and blocks, above 7 % (of up to 4096 voxels 14 %) the blocks, if the images have two axes or more
            (a slice is the last two), 500 blocks lie wholly inside the mask, one or more for ten of its voxels, and the
            half of them that vary least do not vary more than the noise explains by a tenth: in a list of voxels, or an
            image whose neighbours have nothing in common, they do. `blocks` at less noise than that finds B biased: 5 %
            of variation within a block shows in its mean.
        covariance: also return the covariance of the noise: inverse Fisher information at known B, plus the share of B,
            whose variance follows from the curvature of its likelihood (of the histogram's 1.5 times that: `pooled_b`;
            of the blocks': from their slopes, `block_means`) and is at least the Cramér-Rao bound at the estimate.
            Where its SD is above .02, and T1 uncertain by more than 2.5 %, it is at least the mean square of B's
            distance under the likelihood of the whole range of B.
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
            found = with_noise(found, model, images, y, where, sigma)
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
