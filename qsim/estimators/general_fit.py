"""Least squares of any signal model: a coarse grid, then Levenberg-Marquardt from its best local minima.

No grid proves a global minimum: models of one or two nonlinear rows are searched densely enough for it
in practice (tested against dense grids), more rows are not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.errors import InputError
from qsim.estimators.base import Estimate
from qsim.estimators.descent.identify import check_free
from qsim.estimators.descent.levenberg_marquardt import Minimum, join, minimise, replaced
from qsim.estimators.descent.start_grid import coarse_starts
from qsim.estimators.descent.voxel_problem import Coordinates, GaussianLikelihood, Problem, check_voxelwise
from qsim.estimators.noise_level import given, noise_level
from qsim.estimators.voxels import gather, known_map, noise_covariance, scatter, statuses
from qsim.parameters import RELAXATION_TIMES, Parameter
from qsim.signals.base import SignalModel


@dataclass(frozen=True, slots=True)
class GeneralFit:
    """Least squares per voxel of any `SignalModel` (extended phase graphs, Bloch models, a user's own).

    Attributes:
        model: its voxels must not mix.
        covariance: also return the inverse Fisher information at the estimate, with `sigma`, or where that is None
            with an estimate of it (`noise_level`).
        starts: local minima of the grid that are followed.
        bounds: other ranges to search than those of the parameters [SI]. A multi-echo train is the same at REL_B1 and
            2 - REL_B1: {"REL_B1": (0.2, 1.0)} chooses.
    Assumes: real Gaussian noise of one sigma per voxel.   Not: Rician noise at low SNR, whose mean is raised.
    """

    model: SignalModel
    covariance: bool = False
    starts: int = 3
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        check_voxelwise(self.model, self.name)
        if self.starts < 1:
            raise InputError(f"estimators: {self.name}: starts must be at least 1, got {self.starts}")
        names = [p.name for p in self.model.parameters]
        for name, (low, high) in self.bounds.items():
            if name not in names:
                raise InputError(f"bounds.{name}: the model has no such row; it has {', '.join(names)}")
            if not low < high or (name in RELAXATION_TIMES and not low > 0):
                raise InputError(f"bounds.{name}: needs low < high (above 0 for times), got {low} and {high}")

    @property
    def name(self) -> str:
        return "least-squares"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Rows of the estimate, with the ranges that are searched."""
        return bounded(self.model.parameters, self.bounds)

    def __call__(
        self,
        images: Float[Tensor, "n *space"],
        sigma: float | Tensor | None = None,
        mask: Bool[Tensor, "*space"] | None = None,
        known: Mapping[str, Tensor] | Mapping[str, float] | None = None,
    ) -> Estimate:
        """Fit every voxel.

        Args:
            images: the series [units of A].
            sigma: noise SD, used for the covariance only; it does not change the estimate [units of A].
            mask: voxels to fit; None: all.
            known: numbers or maps of any rows, which are not fitted [SI].
        Raises: InputError if the series, the mask, sigma or `known` does not fit the model, or the model cannot tell
            its free rows apart.
        """
        y, where = gather(images, self.model, mask)
        fixed = resolve_known(self.model, known, where)
        noise = None if sigma is None else given(sigma, where)
        check_free(self.model, fixed)
        found = least_squares(self.model, self.parameters, y.double(), fixed, self.starts)
        coordinates = Coordinates.of(self.parameters)
        kappa = restore(coordinates.settled(found.theta), self.parameters, fixed)
        kappa = shorter_first(kappa, self.parameters, fixed)
        status = statuses(kappa, self.parameters, found.converged, where, tuple(fixed))
        maps = scatter(kappa.to(images.dtype), where)
        if not self.covariance:
            return Estimate(maps, status, noise_level=noise)
        if noise is None and y.shape[1]:
            freedom = self.model.n_images - (len(self.parameters) - len(fixed))
            noise = noise_level(images, None, where, lambda: (2 * found.objective, freedom))
        level = kappa.new_ones(1) if noise is None else noise.at(where)
        covariance = noise_covariance(self.model, kappa, level, tuple(fixed))
        variances, full = covariance_maps(covariance, where, images.dtype)
        return Estimate(maps, status, {"noise": variances}, full, noise)


def bounded(parameters: tuple[Parameter, ...], bounds: Mapping[str, tuple[float, float]]) -> tuple[Parameter, ...]:
    """The parameters, with other ranges where they are given."""
    return tuple(
        Parameter(p.name, p.symbol, p.unit, *bounds[p.name], p.scale, p.start, p.suffix) if p.name in bounds else p
        for p in parameters
    )


def covariance_maps(
    covariance: Float[Tensor, "q q v"], where: Bool[Tensor, "*space"], dtype: torch.dtype
) -> tuple[Float[Tensor, "q *space"], Float[Tensor, "q q *space"]]:
    """Variances and covariances, in place and in the dtype of the images."""
    q = covariance.shape[0]
    covariance = covariance.to(dtype)
    variances = scatter(torch.einsum("iiv->iv", covariance), where)
    return variances, scatter(covariance.flatten(0, 1), where).reshape(q, q, *where.shape)


def resolve_known(
    model: SignalModel, known: Mapping[str, Tensor] | Mapping[str, float] | None, where: Bool[Tensor, "*space"]
) -> dict[str, Tensor]:
    """Known rows at the voxels, by name.

    Raises: InputError if a row is no row of the model, its map does not fit, or it holds values out of range.
    """
    names = tuple(p.name for p in model.parameters)
    found = {name: known_map(known, name, where, names, model.parameters) for name in names}
    return {name: values for name, values in found.items() if values is not None}


def restore(
    kappa: Float[Tensor, "q v"], parameters: tuple[Parameter, ...], fixed: Mapping[str, Tensor]
) -> Float[Tensor, "q v"]:
    """kappa with the known rows as they were given: their logarithm was taken on the way."""
    return torch.stack(
        [fixed[p.name].expand_as(row) if p.name in fixed else row for p, row in zip(parameters, kappa, strict=True)]
    )


def shorter_first(
    kappa: Float[Tensor, "q v"], parameters: tuple[Parameter, ...], fixed: Mapping[str, Tensor]
) -> Float[Tensor, "q v"]:
    """Two decays side by side are the same with their names exchanged: the shorter time is the short one."""
    names = [p.name for p in parameters]
    pair = next((n for n in names if n.endswith("_SHORT")), None)
    if pair is None or "FRACTION" not in names or any(n in fixed for n in (pair, pair[:-6], "FRACTION")):
        return kappa
    short, long, fraction = names.index(pair), names.index(pair[:-6]), names.index("FRACTION")
    swapped = kappa.clone()
    swapped[short], swapped[long], swapped[fraction] = kappa[long], kappa[short], 1 - kappa[fraction]
    return torch.where(kappa[short] > kappa[long], swapped, kappa)


def least_squares(
    model: SignalModel,
    parameters: tuple[Parameter, ...],
    y: Float[Tensor, "n v"],
    fixed: Mapping[str, Tensor],
    starts: int,
) -> Minimum:
    """The best of several descents; the objective is half the sum of squares.

    Args:
        parameters: rows with the ranges to search.
        y: float64 [units of A].
        fixed: known rows: one number or one per voxel.
        starts: how many descents.
    """
    coordinates = Coordinates.of(parameters)
    free = tuple(i for i, p in enumerate(parameters) if p.name not in fixed)
    problem = Problem(model, GaussianLikelihood(), coordinates, free)
    pieces = []
    for kappa, series in coarse_starts(model, parameters, y, fixed, starts):
        best = minimise(problem, series, None, coordinates.theta(kappa[:, 0]))
        for start in kappa[:, 1:].unbind(1):
            at = torch.nonzero(torch.isfinite(start).all(0)).squeeze(1)
            if at.numel():
                tried = minimise(problem, series[:, at], None, coordinates.theta(start[:, at]))
                best = replaced(best, tried, at)
        pieces.append(best)
    return join(pieces, len(parameters), y)
