"""Maximum a posteriori: the likelihood of a voxel times what is known of the tissues.

    maximise sum_n log p(S_n | kappa, sigma) + log sum_t w_t prod_q N(log kappa_q; log median_tq, spread_tq)

Each tissue's mode is the start of one descent, with that tissue's log-normal as the prior; the best local minima of a
least-squares grid are the starts of others, with the whole mixture. The end with the highest posterior of the mixture
is followed to the mixture's own maximum. The voxels are independent: this is what the prior knowledge of a network is
worth without its neighbourhood.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.errors import InputError
from qsim.estimators.base import Estimate
from qsim.estimators.descent.identify import check_free
from qsim.estimators.descent.levenberg_marquardt import Minimum, join, minimise
from qsim.estimators.descent.start_grid import coarse_starts
from qsim.estimators.descent.tissue_posterior import Ended, posterior_covariance
from qsim.estimators.descent.voxel_problem import (
    ChiLikelihood,
    Coordinates,
    GaussianLikelihood,
    Likelihood,
    Problem,
    before_modulus,
    check_voxelwise,
    known_rows,
)
from qsim.estimators.general_fit import covariance_maps, least_squares, resolve_known, restore
from qsim.estimators.magnitude import magnitude_noise
from qsim.estimators.noise_level import NoiseLevel, noise_level
from qsim.estimators.prior import MixturePrior, TissuePrior
from qsim.estimators.voxels import gather, scatter, statuses
from qsim.parameters import Parameter
from qsim.signals.base import SignalModel

_CHUNK = 4096
# steps with one tissue's prior: enough to tell the tissues apart
_FEW = 12
# local minima of a least-squares grid that are tried beside the tissues
_GRID = 2
_SAMPLE = 2000


@dataclass(frozen=True, slots=True)
class MaximumAPosteriori:
    """The mode of the posterior per voxel, in the logarithms of the rows that the prior restricts.

    Attributes:
        model: its voxels must not mix.
        prior: of the tissues. Rows that it does not restrict are free; rows of the prior that the model does not have
            play no part.
        covariance: also return the covariance of the posterior, with the doubt which tissue the voxel is
            (`tissue_posterior`). It is taken in the logarithms, Var kappa = mode^2 Var log kappa, so that SD / mode is
            the posterior SD of log kappa, and log-Wald intervals belong to it. It is the spread about the posterior's
            mean, which is not the mode: where two tissues fit about as well, intervals about the mode hold too little.
        coils: 0: Gaussian noise; 1: Rician; more: non-central chi of so many coils.
    Assumes: rows independent of each other within a tissue; sigma known or estimated as one number.
    """

    model: SignalModel
    prior: TissuePrior
    covariance: bool = False
    coils: int = 0

    def __post_init__(self) -> None:
        check_voxelwise(self.model, self.name)
        if self.coils < 0:
            raise InputError(f"estimators: {self.name}: coils must be 0 (Gaussian) or more, got {self.coils}")
        names = [p.name for p in self.model.parameters]
        if not any(p.name in names for p in self.prior.parameters):
            raise InputError(
                f"estimators: {self.name}: the prior knows {', '.join(p.name for p in self.prior.parameters)}, the "
                f"model has {', '.join(names)}; give a prior of the model's rows"
            )

    @property
    def name(self) -> str:
        return "map"

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
        """Map every voxel.

        Args:
            images: the series; with `coils`, magnitudes: a voxel with a negative one is not computed [units of A].
            sigma: noise SD per real channel, a number or a map; None: estimated from the images [units of A].
            mask: voxels to estimate; None: all.
            known: numbers or maps of any rows; they are not estimated, but tell the tissues apart [SI].
        Raises: InputError if the series, the mask, sigma or `known` does not fit the model, or model and prior
            together cannot determine a row.
        """
        y, where = gather(images, self.model, mask)
        inside = where
        if self.coils:
            upright = (y >= 0).all(0)
            where = where.masked_scatter(where, upright)
            y = y[:, upright]
        y = y.double()
        fixed = resolve_known(self.model, known, where)
        mixture = MixturePrior(self.prior, self.parameters, None, y.device)
        restricted = [self.parameters[i].name for i in mixture.rows]
        for name in restricted:
            if name in fixed and not bool((fixed[name] > 0).all()):
                raise InputError(f"known.{name}: must be positive, since the prior of {name} is log-normal")
        check_free(self.model, fixed, self._typical_information(mixture))
        level = self._noise(images, y, sigma, inside, fixed)
        noise = level.at(where)
        coordinates = Coordinates.of(self.parameters, restricted)
        likelihood: Likelihood = ChiLikelihood(self.coils) if self.coils else GaussianLikelihood()
        model = before_modulus(self.model) if self.coils else self.model
        free = tuple(i for i, p in enumerate(self.parameters) if p.name not in fixed)
        problem = Problem(model, likelihood, coordinates, free, mixture)
        pieces = []
        spreads = [y.new_zeros(len(self.parameters), len(self.parameters), 0)]
        for first in range(0, y.shape[1], _CHUNK):
            part = slice(first, min(first + _CHUNK, y.shape[1]))
            own = noise if noise.numel() == 1 else noise[part]
            held = {n: v if v.numel() == 1 else v[part] for n, v in fixed.items()}
            best, ends = self._chunk(problem, y[:, part], own, held)
            pieces.append(best)
            if self.covariance:
                spreads.append(posterior_covariance(problem, y[:, part], own, best.theta, ends))
        found = join(pieces, len(self.parameters), y)
        kappa = restore(coordinates.settled(found.theta), self.parameters, fixed)
        status = statuses(kappa, self.parameters, found.converged, where, tuple(fixed))
        maps = scatter(kappa.to(images.dtype), where)
        if not self.covariance:
            return Estimate(maps, status, noise_level=level)
        variances, full = covariance_maps(torch.cat(spreads, 2), where, images.dtype)
        return Estimate(maps, status, {"noise": variances}, full, level)

    def _typical_information(self, mixture: MixturePrior) -> Float[Tensor, " q"]:
        """What the widest tissue tells of each row, in units of 1 / row^2."""
        information = torch.zeros(len(self.parameters), dtype=torch.float64)
        for column, row in enumerate(mixture.rows):
            information[row] = float(mixture.precision[:, column].min())
        return information

    def _noise(
        self,
        images: Float[Tensor, "n *space"],
        y: Float[Tensor, "n v"],
        sigma: float | Tensor | None,
        where: Bool[Tensor, "*space"],
        fixed: Mapping[str, Tensor],
    ) -> NoiseLevel:
        if self.coils:
            return magnitude_noise(self.model, images, y, sigma, where, fixed, self.coils)
        chosen = torch.randperm(y.shape[1], generator=torch.Generator().manual_seed(0))[:_SAMPLE].to(y.device)
        held = {n: v if v.numel() == 1 else v[chosen] for n, v in fixed.items()}

        def residual() -> tuple[Tensor, int]:
            found = least_squares(self.model, self.parameters, y[:, chosen], held, 2)
            return 2 * found.objective, self.model.n_images - (len(self.parameters) - len(fixed))

        return noise_level(images, sigma, where, residual)

    def _chunk(
        self, problem: Problem, y: Float[Tensor, "n v"], sigma: Float[Tensor, " v_or_1"], fixed: Mapping[str, Tensor]
    ) -> tuple[Minimum, list[Ended]]:
        """From every tissue, then on from the best; also where each tissue's own descent ended."""
        coordinates, mixture = problem.coordinates, problem.prior
        assert isinstance(mixture, MixturePrior)
        lower, upper = coordinates.bounds(y.device)
        rows = known_rows(self.parameters, fixed, y.shape[1], y.device)
        theta_known = coordinates.theta(rows)
        tissues: list[Ended] = []
        for tissue in range(self.prior.weights.numel()):
            if float(self.prior.weights[tissue]) == 0:
                continue
            component = MixturePrior(self.prior, self.parameters, tissue, y.device)
            single = Problem(problem.model, problem.likelihood, coordinates, problem.free, component)
            start = self._mode(component, coordinates, y, theta_known)
            start = torch.minimum(torch.maximum(start, lower), upper)
            share = float(self.prior.weights[tissue].double().log())
            tissues.append(Ended(single, share, minimise(single, y, sigma, start, _FEW).theta))
        ends = [tissue.theta for tissue in tissues]
        # least squares has minima of its own where a magnitude was folded at zero
        grid = torch.cat([kappa for kappa, _ in coarse_starts(self.model, self.parameters, y, fixed, _GRID)], 2)
        for start in grid.unbind(1):
            theta = torch.where(torch.isfinite(start).all(0), coordinates.theta(start), ends[0])
            ends.append(minimise(problem, y, sigma, torch.minimum(torch.maximum(theta, lower), upper), _FEW).theta)
        best = ends[0]
        lowest = y.new_full(y.shape[1:], torch.inf)
        for ended in ends:
            value = -problem.likelihood.terms(y, problem.model(coordinates.kappa(ended)), sigma)[0].sum(0)
            value = value + mixture.terms(ended)[0]
            better = value < lowest
            best, lowest = torch.where(better, ended, best), torch.where(better, value, lowest)
        return minimise(problem, y, sigma, best), tissues

    def _mode(
        self, component: MixturePrior, coordinates: Coordinates, y: Float[Tensor, "n v"], known: Float[Tensor, "q v"]
    ) -> Float[Tensor, "q v"]:
        """theta at a tissue's medians; rows without a prior at their usual value, amplitudes at the largest image."""
        rows = []
        for i, p in enumerate(self.parameters):
            usual = y.abs().amax(0) if p.name in ("A", "M0") else torch.full_like(y[0], p.start)
            if p.name == "C":
                usual = torch.zeros_like(usual)
            rows.append(usual.clamp_min(1e-30).log() if coordinates.log[i] else usual)
        theta = torch.stack(rows)
        for column, row in enumerate(component.rows):
            theta[row] = component.mean[0, column]
        return torch.where(torch.isnan(known), theta, known)
