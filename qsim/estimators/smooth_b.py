"""Maximum likelihood with a smooth map of B: the fair opponent where B varies over the image.

    minimise sum_v 1 / (2 sigma_v^2) sum_n (|A_v (1 - B_v exp(-TI_n / T1_v))| - S_vn)^2 + w sum_v (L B)_v^2

over maps A >= 0, B in [0, 3] and T1 in its bounds; L is the graph Laplacian of the mask (`laplacian`: constants are
free on each connected piece, nothing else is; pieces do not see each other). Scaling images and sigma together changes
nothing, so w is that of images with the maximum 1; w = 500 is that of sabidussi2021 under this definition.

A and T1 of each voxel are eliminated: with phi_v(B) what the voxel explains at its best T1 (`depth_profile`), B
minimises -sum_v phi_v(B_v) / 2 sigma_v^2 + w |L B|^2. It is climbed from the best common B by Newton steps with the
curvature that is expected (`smooth_climb`). The weight is the one of largest evidence, with the likelihood a parabola
about the map, found again as the map moves (`smoothing_weight`).

Where the noise is so high that a voxel's T1 would be uncertain by more than 5 % if its B were known, the maximum over
T1 pulls B to one side. There the map of B maximises the likelihood with T1 marginalised over its histogram in the mask
(`depth_marginal`); A and T1 are then, as ever, the best at that B.

Source: sabidussi2021, doi:10.1016/j.media.2021.102220, section 4.4.1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.errors import InputError
from qsim.estimators.base import Estimate
from qsim.estimators.least_squares import LeastSquares
from qsim.estimators.noise_level import NoiseLevel, noise_level
from qsim.estimators.pooling.depth_marginal import SPACING, DepthMarginal
from qsim.estimators.pooling.depth_profile import DepthProfile
from qsim.estimators.pooling.laplacian import Domain
from qsim.estimators.pooling.smooth_climb import Climb, Local, Profiled
from qsim.estimators.pooling.smooth_variance import depth_variance
from qsim.estimators.shared_b import SharedB, no_voxels, pooled_covariance
from qsim.estimators.voxels import gather, known_map, noise_covariance, scatter, statuses
from qsim.parameters import T1, B, Parameter
from qsim.signals import InversionRecovery
from qsim.signals.base import SignalModel

_POOLING = ("auto", "profile", "histogram")
# nodes among which the weight is chosen
_NODES = 600
# a step that gains less than this [log-likelihood] is the last; a deviation of one standard error costs .5
_TOLERANCE = 1e-3
# the sums of the marginal likelihood, in 32 bits, are no better than some hundredths; and at that noise one map is as
# good as another that is half a unit of log-likelihood away
_MARGINAL_TOLERANCE = 0.5
# T1 is searched anew at the final map, and the climb goes on, so often
_RESEARCHES = 2
# voxels from which the residual, and the uncertainty of T1, are judged
_SAMPLE = 2000


@dataclass(frozen=True, slots=True)
class SmoothB:
    """Least squares with a smooth map of B (Gaussian maximum likelihood with a penalty).

    Attributes:
        model: an inversion recovery with free B.
        covariance: also return the covariance of A, B and T1 of each voxel: that with B known, and the variance of B
            under likelihood and penalty together (`smooth_variance`) carried to A and T1.
        weight: w above, with images scaled to a maximum of 1; 500 is sabidussi2021's; inf: one B per connected piece;
            0: chosen from the data.
        iterations: steps of the climb, at most.
        pooling: `profile`: the objective above as it stands; `histogram`: B with T1 marginalised; `auto`: the second
            where the noise is high.
    """

    pools: ClassVar[tuple[str, ...]] = ("B",)

    model: SignalModel
    covariance: bool = False
    weight: float = 0.0
    iterations: int = 50
    pooling: str = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.model, InversionRecovery) or getattr(self.model, "tr", None) is not None:
            given = type(self.model).__name__ + (" with tr" if isinstance(self.model, InversionRecovery) else "")
            raise InputError(
                f"estimators: smooth-b needs a model with B, inversion times and full recovery (inversion_recovery "
                f"without tr), got {given}; use least-squares"
            )
        if not self.weight >= 0:
            raise InputError(f"estimators: smooth-b: weight must not be negative, got {self.weight:g}")
        if self.iterations < 1:
            raise InputError(f"estimators: smooth-b: iterations must be at least 1, got {self.iterations}")
        if self.pooling not in _POOLING:
            raise InputError(
                f"estimators: smooth-b: pooling must be one of {', '.join(_POOLING)}, got {self.pooling!r}"
            )

    @property
    def name(self) -> str:
        return "smooth-b"

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
            images: the series; every axis of space counts as one along which B is smooth [units of A].
            sigma: noise SD; None: estimated, at last from the residuals of voxel-wise fits [units of A].
            mask: voxels to fit; None: all. B is smooth between neighbours in the mask.
            known: nothing can be known: with a map of B take least-squares.
        Raises: InputError if the series, the mask or sigma does not fit, or the noise cannot be estimated.
        """
        y, where = gather(images, self.model, mask)
        known_map(known, "B", where, ())
        if y.shape[1] == 0:
            return no_voxels(y, self.parameters, where, self.covariance)
        noise = noise_level(images, sigma, where, lambda: _residual(self.model, y))
        level = noise.at(where).to(images.device)
        there, weight, climb, converged = self._fit(y, level, where)
        depth = torch.from_numpy(there.b).to(images.device)
        assert there.u is not None
        found = self._profile(y).settle(depth, there.u)
        kappa = torch.stack((found.a, depth, found.u.exp().clamp(T1.lower, T1.upper)))
        settled = (found.step.abs() < 1e-4) & torch.from_numpy(converged).to(images.device)
        covariance = None
        if self.covariance:
            variance = depth_variance(climb, weight, there.curvature)
            covariance = pooled_covariance(self.model, kappa, level, torch.from_numpy(variance).to(images.device))
        return self._estimate(images, kappa, covariance, settled, where, noise)

    def _profile(self, y: Float[Tensor, "n v"]) -> DepthProfile:
        return DepthProfile(self.model.ti, self.model.signed, y)  # type: ignore[attr-defined]

    def _fit(
        self, y: Float[Tensor, "n v"], level: Float[Tensor, " v_or_1"], where: Bool[Tensor, "*space"]
    ) -> tuple[Local, float, Climb, Bool[np.ndarray, " v"]]:
        """The map of B and what belongs to it, the weight, and which voxels have settled."""
        profile = self._profile(y)
        domain = Domain(where.cpu().numpy())
        climb = Climb(domain, domain.blocks(_NODES), _TOLERANCE, self.iterations)
        profiled = Profiled(profile, level)
        common = _common(SharedB(self.model)(y, level if level.numel() > 1 else float(level)).kappa[1])
        here = profiled.start(np.full(domain.size, common))
        if self.pooling == "profile" or (self.pooling == "auto" and self._certain(profile, here, level)):
            weight = self.weight
            if weight == 0.0:
                here, weight = climb.choose(profiled, here)
            here, converged = climb.climb(profiled, here, weight)
            for _ in range(_RESEARCHES):
                better = profiled.best(here)
                gained = better.value - here.value
                here = better
                if gained < max(_TOLERANCE, here.rounding):
                    break
                here, converged = climb.climb(profiled, here, weight)
            return here, climb.effective(weight, here.curvature), climb, converged
        climb.tolerance = _MARGINAL_TOLERANCE
        marginal = DepthMarginal(profile, level, climb.blocks)
        marginal.fit(common)
        there = marginal.start(here.b)
        weight = self.weight
        if weight == 0.0:
            there, weight = climb.choose(marginal, there)
        there, converged = climb.climb(marginal, there, weight)
        weight = climb.effective(weight, there.curvature)
        at = profiled.start(there.b)
        return Local(there.b, there.value, there.slope, there.curvature, at.u, at.u_b), weight, climb, converged

    def _certain(self, profile: DepthProfile, here: Local, level: Float[Tensor, " v_or_1"]) -> bool:
        """Whether T1 of the typical voxel, were B known, is known better than the atoms of the histogram lie apart."""
        assert here.u is not None
        chosen = _sample(len(here.b)).to(here.u.device)
        depth = torch.from_numpy(here.b).to(here.u.device)[chosen]
        some = self._profile(profile.y.index_select(1, chosen)).follow(depth, here.u[chosen])
        kappa = torch.stack((some.a, depth, some.u.exp()))
        noise = level if level.numel() == 1 else level[chosen]
        variance = noise_covariance(self.model, kappa, noise, ("B",))[2, 2]
        return float(variance.sqrt().div(kappa[2]).median()) < SPACING

    def _estimate(
        self,
        images: Tensor,
        kappa: Float[Tensor, "q v"],
        covariance: Float[Tensor, "q q v"] | None,
        converged: Bool[Tensor, " v"],
        where: Bool[Tensor, "*space"],
        noise: NoiseLevel | None,
    ) -> Estimate:
        status = statuses(kappa, self.parameters, converged, where)
        maps = scatter(kappa.to(images.dtype), where)
        if covariance is None:
            return Estimate(maps, status, noise_level=noise)
        q = len(self.parameters)
        full = scatter(covariance.to(images.dtype).reshape(q * q, -1), where).reshape(q, q, *where.shape)
        return Estimate(maps, status, {"noise": torch.einsum("ii...->i...", full).clone()}, full, noise)


def _common(b: Float[Tensor, " v"]) -> float:
    """A start for the map: the shared B, unless it is at a bound or was not found."""
    shared = float(b.double().nanmedian())
    return shared if isfinite(shared) and 0.1 < shared < B.upper - 0.1 else B.start


def _sample(n: int) -> Tensor:
    """Numbers of at most `_SAMPLE` voxels, ascending, the same ones every time."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:_SAMPLE].sort().values


def _residual(model: SignalModel, y: Float[Tensor, "n v"]) -> tuple[Float[Tensor, " s"], int]:
    """Sum of squares that a fit with free B leaves of some voxels, and its degrees of freedom."""
    some = y.index_select(1, _sample(y.shape[1]).to(y.device))
    kappa = LeastSquares(model)(some).kappa.double()
    return (model(kappa) - some).square().sum(0), y.shape[0] - 3
