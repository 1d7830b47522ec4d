"""Maximum likelihood under the noise of magnitudes: Rician, or non-central chi for the root of sum of squares.

    maximise sum_n log p(m_n | |S_n(kappa)|, sigma),   p of `qsim.kspace.magnitude_likelihood`

A Gaussian fit takes the noise floor, about 1.25 sigma for one coil, for signal: decays come out too slow. Here the
floor is part of the model. Mono-exponential decays have a search of their own (`magnitude_decay`); every other model
starts from the best local minima of a coarse least-squares grid, of the magnitudes and of sqrt(m^2 - 2 L sigma^2), and
descends by Levenberg-Marquardt from the two of them that are the most likely; a closed form also from its global
least-squares minimum.

Source: Sijbers et al. 1998, doi:10.1109/42.712125; Karlsen et al. 1999,
doi:10.1002/(SICI)1522-2594(199903)41:3<614::AID-MRM26>3.0.CO;2-1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.errors import InputError
from qsim.estimators.base import Estimate
from qsim.estimators.descent.identify import check_free
from qsim.estimators.descent.levenberg_marquardt import Minimum, join, minimise, replaced
from qsim.estimators.descent.magnitude_decay import MagnitudeDecay
from qsim.estimators.descent.observed_information import covariance_at
from qsim.estimators.descent.start_grid import coarse_starts
from qsim.estimators.descent.voxel_problem import ChiLikelihood, Coordinates, Problem, before_modulus, check_voxelwise
from qsim.estimators.general_fit import covariance_maps, least_squares, resolve_known, restore, shorter_first
from qsim.estimators.noise_level import NoiseLevel, noise_level
from qsim.estimators.projection.closed_fits import search, usable
from qsim.estimators.voxels import gather, scatter, statuses
from qsim.kspace.magnitude_likelihood import bessel_terms
from qsim.parameters import Parameter
from qsim.signals import (
    ClosedForm,
    InversionRecovery,
    InversionRecovery2P,
    LookLocker,
    MonoExponential,
    SaturationRecovery,
    VariableFlipAngle,
)
from qsim.signals.base import SignalModel

# local minima of the grid, of the magnitudes and of the corrected ones, and how many of all are followed
_STARTS = 3
_FOLLOWED = 2
# voxels that sigma is estimated from, and rounds of it
_SAMPLE = 2000
_ROUNDS = 12


@dataclass(frozen=True, slots=True)
class MagnitudeLikelihood:
    """Rician or non-central chi maximum likelihood per voxel, for any model.

    Attributes:
        model: its voxels must not mix; what is fitted is the modulus of its signal.
        covariance: also return the inverse of the observed information at the estimate; where that is not positive
            definite, of the expected one.
        coils: L; 1 is Rician (one coil, or a SENSE-like combination), more the root of sum of squares of L coils with
            independent noise.
    Assumes: sigma is that of the real and of the imaginary channel, the same in each coil.
    """

    model: SignalModel
    covariance: bool = False
    coils: int = 1

    def __post_init__(self) -> None:
        check_voxelwise(self.model, self.name)
        if self.coils < 1:
            raise InputError(f"estimators: {self.name}: coils must be at least 1, got {self.coils}")

    @property
    def name(self) -> Literal["rician", "noncentral-chi"]:
        return "rician" if self.coils == 1 else "noncentral-chi"

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
        """Fit every voxel.

        Args:
            images: magnitudes; a voxel with a negative one is not computed [units of A].
            sigma: noise SD per real channel, a number or a map; None: estimated from the images [units of A].
            mask: voxels to fit; None: all.
            known: numbers or maps of any rows, which are not fitted [SI].
        Raises: InputError if the series, the mask, sigma or `known` does not fit the model, or the model cannot tell
            its free rows apart.
        """
        y, where = gather(images, self.model, mask)
        inside, upright = where, (y >= 0).all(0)
        if not bool(upright.all()):
            where, y = where.masked_scatter(where, upright), y[:, upright]
        fixed = resolve_known(self.model, known, where)
        check_free(self.model, fixed)
        y = y.double()
        level = magnitude_noise(self.model, images, y, sigma, inside, fixed, self.coils)
        noise = level.at(where)
        kappa, converged = fit_magnitude(self.model, y, noise, fixed, self.coils)
        status = statuses(kappa, self.parameters, converged, where, tuple(fixed))
        maps = scatter(kappa.to(images.dtype), where)
        if not self.covariance:
            return Estimate(maps, status, noise_level=level)
        free = tuple(i for i, p in enumerate(self.parameters) if p.name not in fixed)
        coordinates = Coordinates.of(self.parameters)
        problem = Problem(before_modulus(self.model), ChiLikelihood(self.coils), coordinates, free)
        covariance = covariance_at(problem, y, noise, kappa)
        variances, full = covariance_maps(covariance, where, images.dtype)
        return Estimate(maps, status, {"noise": variances}, full, level)


def fit_magnitude(
    model: SignalModel,
    y: Float[Tensor, "n v"],
    sigma: Float[Tensor, " v_or_1"],
    fixed: Mapping[str, Tensor],
    coils: int,
) -> tuple[Float[Tensor, "q v"], Bool[Tensor, " v"]]:
    """kappa and whether the search converged."""
    parameters = model.parameters
    if isinstance(model, MonoExponential) and not fixed:
        a, t, _, converged = MagnitudeDecay(model.times, parameters[1], coils)(y, sigma)
        return torch.stack((a, t)), converged
    coordinates = Coordinates.of(parameters)
    free = tuple(i for i, p in enumerate(parameters) if p.name not in fixed)
    problem = Problem(before_modulus(model), ChiLikelihood(coils), coordinates, free)
    # the modulus whatever the model would keep: these are magnitudes
    flat = Modulus(model)
    corrected = (y.square() - 2 * coils * sigma.square()).clamp_min(0).sqrt()
    plain = coarse_starts(flat, parameters, y, fixed, _STARTS)
    lowered = coarse_starts(flat, parameters, corrected, fixed, _STARTS)
    exact = _closed_start(model, y, fixed)
    pieces, first = [], 0
    for (one, series), (two, _) in zip(plain, lowered, strict=True):
        part = slice(first, first + series.shape[1])
        own = sigma if sigma.numel() == 1 else sigma[part]
        sure = None if exact is None else exact[:, part]
        pieces.append(_follow(problem, series, own, torch.cat((one, two), 1), sure))
        first += series.shape[1]
    found = join(pieces, len(parameters), y)
    kappa = restore(coordinates.settled(found.theta), parameters, fixed)
    return shorter_first(kappa, parameters, fixed), found.converged


def _closed_start(
    model: SignalModel, y: Float[Tensor, "n v"], fixed: Mapping[str, Tensor]
) -> Float[Tensor, "q v"] | None:
    """The global least-squares minimum of the magnitudes, within the bounds; NaN where there is none.

    The fit is then nowhere less likely than that of least squares. None: the model or what is known has no such search.
    """
    if not isinstance(model, ClosedForm) or not set(fixed) <= set(usable(model)):
        return None
    if "REL_B1" not in fixed and isinstance(model, VariableFlipAngle):
        return None
    if isinstance(model, InversionRecovery | InversionRecovery2P | SaturationRecovery | LookLocker):
        model = replace(model, signed=False)
    found = search(model, y, fixed)
    kappa = torch.stack([row.clamp(p.lower, p.upper) for row, p in zip(found.kappa, model.parameters, strict=True)])
    there = torch.isfinite(kappa).all(0)
    if found.computed is not None:
        there = there & found.computed
    return torch.where(there, restore(kappa.double(), model.parameters, fixed), torch.nan)


def _follow(
    problem: Problem,
    series: Float[Tensor, "n v"],
    sigma: Float[Tensor, " v_or_1"],
    starts: Float[Tensor, "q k v"],
    sure: Float[Tensor, "q v"] | None,
) -> Minimum:
    """Descend from the most likely starts, and from `sure` where it is not NaN; the best minimum of each voxel."""
    values = []
    for start in starts.unbind(1):
        value = problem.likelihood.terms(series, problem.model(start), sigma)[0].sum(0)
        values.append(torch.where(torch.isfinite(value), value, -torch.inf))
    chosen = torch.stack(values).topk(_FOLLOWED, 0).indices
    best: Minimum | None = None
    followed = [starts.gather(1, number.expand(starts.shape[0], 1, -1))[:, 0] for number in chosen]
    for start in followed if sure is None else [*followed, sure]:
        at = torch.nonzero(torch.isfinite(start).all(0)).squeeze(1)
        own = sigma if sigma.numel() == 1 else sigma[at]
        theta = problem.coordinates.theta(start[:, at])
        tried = minimise(problem, series[:, at], own, theta)
        best = tried if best is None else replaced(best, tried, at)
    assert best is not None  # _FOLLOWED is not 0, and the first start of every voxel exists
    return best


@dataclass(frozen=True, slots=True)
class Modulus:
    """The modulus of a model's images."""

    model: SignalModel

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.model.parameters

    @property
    def n_images(self) -> int:
        return self.model.n_images

    def __call__(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        return self.model(kappa).abs()


def magnitude_noise(
    model: SignalModel,
    images: Float[Tensor, "n *space"],
    y: Float[Tensor, "n v"],
    sigma: float | Tensor | None,
    where: Bool[Tensor, "*space"],
    fixed: Mapping[str, Tensor],
    coils: int,
) -> NoiseLevel:
    """Sigma as given, from the background if there is one, else together with the fit.

    Where the residuals are all there is, sigma is the fixed point of

        sigma^2 = sum (m^2 - 2 m nu r + nu^2) / ((2 L N - Q) V)

    over a sample of voxels, each fitted with the sigma of the round before: at high SNR the residual on N - Q degrees
    of freedom, without signal E[m^2] / 2 L.

    Raises: InputError if sigma is not positive, or there is nothing to estimate it from.
    """
    rows = model.n_images, len(model.parameters) - len(fixed)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(y.shape[1], generator=generator)[:_SAMPLE].to(y.device)
    held = {n: v if v.numel() == 1 else v[chosen] for n, v in fixed.items()}

    def residual() -> tuple[Tensor, int]:
        found = least_squares(Modulus(model), model.parameters, y[:, chosen], held, _FOLLOWED)
        return 2 * found.objective, rows[0] - rows[1]

    level = noise_level(images, sigma, where, residual, coils)
    if y.shape[1] == 0:
        return level
    if level.source != "residual" or level.sigma.ndim > 0:
        return level
    series = y[:, chosen]
    # voxels that the model does not fit are left out
    squares, freedom = residual()
    series = series[:, squares <= 6 * freedom * level.sigma.square()]
    held = {n: v if v.numel() == 1 else v[squares <= 6 * freedom * level.sigma.square()] for n, v in held.items()}
    found = level.sigma.double().reshape(1)
    for _ in range(_ROUNDS):
        kappa, _converged = fit_magnitude(model, series, found, held, coils)
        nu = model(kappa).abs()
        _, short, _ = bessel_terms(series * nu / found.square(), coils)
        total = ((series - nu).square() + 2 * series * nu * short).sum()
        last, found = found, (total / ((2 * coils * rows[0] - rows[1]) * series.shape[1])).sqrt().reshape(1)
        if bool((found / last - 1).abs() < 1e-3):
            break
    if not bool(torch.isfinite(found) & (found > 0)):
        raise InputError("sigma: the residuals are zero, so the noise cannot be estimated from them; give sigma")
    text = f"sigma {float(found):.3g}, estimated together with the magnitude fit of {series.shape[1]} voxels"
    return NoiseLevel(found.reshape(()), "residual", text)
