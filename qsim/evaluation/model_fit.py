"""Whether a model fits a series (residuals, chi-square and its p-value, runs of signs), and which of several does.

With noise of known sigma, f = N - Q images more than parameters, and the right model, chi-square has f degrees of
freedom: its mean is f, its p-value is uniform. A wrong model, ghosts or motion make it larger; a sigma that is taken
too large makes it smaller everywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qsim.errors import InputError
from qsim.signals.base import SignalModel

Criterion = Literal["aic", "aicc", "bic"]


@dataclass(frozen=True, slots=True)
class Fit:
    """How well one model fits, per voxel; NaN where the estimate is NaN.

    Attributes:
        residual: images - model(kappa) [units of A].
        rms: root mean square of the residual over the images [units of A].
        chi_square: sum of (residual / sigma)^2 [1].
        reduced: chi_square / f, about 1 where the model is right; NaN with f = 0 [1].
        p_value: probability of a chi-square at least as large if the model is right; NaN with f = 0 [1].
        freedom: f, images less fitted parameters.
    """

    residual: Float[Tensor, "n *space"]
    rms: Float[Tensor, "*space"]
    chi_square: Float[Tensor, "*space"]
    reduced: Float[Tensor, "*space"]
    p_value: Float[Tensor, "*space"]
    freedom: int


def model_fit(
    model: SignalModel,
    kappa: Float[Tensor, "q *space"],
    images: Float[Tensor, "n *space"],
    sigma: float | Tensor,
    fitted: int | None = None,
) -> Fit:
    """Residuals and chi-square, in float64.

    Args:
        kappa: the estimate [SI].
        images: what was fitted [units of A].
        sigma: noise SD, a number or a map; known apart from this fit: estimated from its residuals it makes the reduced
            chi-square 1 on average whatever the model [units of A].
        fitted: number of fitted parameters; None: all rows. Known rows are not fitted.
    Assumes: Gaussian noise; parameters inside their bounds (one on its bound takes less than a degree of freedom).
    Raises: InputError if sigma is not positive.
    """
    value = _positive(sigma, images)
    residual = images.double() - model(kappa.double())
    squares = residual.square().sum(0)
    freedom = images.shape[0] - (kappa.shape[0] if fitted is None else fitted)
    chi_square = squares / value.square()
    if freedom > 0:
        # upper tail of chi-square by the regularised incomplete gamma function
        half = torch.full_like(chi_square, freedom / 2)
        p_value, reduced = torch.special.gammaincc(half, chi_square / 2), chi_square / freedom
    else:
        reduced = p_value = torch.full_like(chi_square, torch.nan)
    return Fit(residual, (squares / images.shape[0]).sqrt(), chi_square, reduced, p_value, max(freedom, 0))


def sign_changes(residual: Float[Tensor, "n *space"]) -> Float[Tensor, "*space"]:
    """Standard score of the number of sign changes along the series: far below 0 where the residuals run in arcs.

        z = (changes - (N - 1) / 2) / sqrt((N - 1) / 4)

    It sees what chi-square may miss, a small misfit of long series, and needs no sigma.

    Args:
        residual: in the order of time [units of A].
    Assumes: independent residuals of either sign alike; fitted parameters, few against N, make changes more frequent.
    Source: Wald and Wolfowitz 1940, doi:10.1214/aoms/1177731909 (runs).
    """
    n = residual.shape[0]
    if n < 2:
        raise InputError(f"residual: at least 2 images are needed to see changes of sign, got {n}")
    known = torch.isfinite(residual).all(0)
    changes = ((residual[1:] < 0) != (residual[:-1] < 0)).sum(0).double()
    return torch.where(known, (changes - (n - 1) / 2) / ((n - 1) / 4) ** 0.5, torch.nan)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several models of the same series, per voxel.

    Attributes:
        names: of the models, in order.
        values: the criterion; NaN where a model has no estimate.
        weights: exp(-(value - lowest) / 2), scaled to sum 1: of AIC, the Akaike weights; 0 where there is no estimate.
        best: index of the lowest value; -1 where no model has an estimate.
        criterion: what `values` holds.
    """

    names: tuple[str, ...]
    values: Float[Tensor, "k *space"]
    weights: Float[Tensor, "k *space"]
    best: Int[Tensor, "*space"]
    criterion: Criterion

    def share(self, mask: Bool[Tensor, "*space"] | None = None) -> dict[str, float]:
        """Share of the voxels in which each model is the best; voxels without any are left out."""
        used = self.best >= 0 if mask is None else mask & (self.best >= 0)
        total = int(used.sum())
        return {
            name: float((self.best[used] == i).sum()) / total if total else torch.nan
            for i, name in enumerate(self.names)
        }


def compare_models(
    images: Float[Tensor, "n *space"],
    fits: Mapping[str, tuple[SignalModel, Float[Tensor, "q *space"]]],
    sigma: float | Tensor | None,
    criterion: Criterion = "aic",
    fitted: Mapping[str, int] | None = None,
) -> Comparison:
    """AIC, AICc or BIC of several maximum-likelihood estimates of one series.

        known sigma:     -2 log L = sum r^2 / sigma^2,   k = Q
        sigma None:      -2 log L = N log(sum r^2 / N),  k = Q + 1, sigma being fitted in each voxel
        AIC = -2 log L + 2 k,   AICc = AIC + 2 k (k + 1) / (N - k - 1),   BIC = -2 log L + k log N

    With a nested pair, AIC takes the larger model although the smaller is right with the probability that a chi-square
    of the difference in parameters exceeds twice that difference: 15.7 % for one parameter.

    Args:
        images: what all of them were fitted to [units of A].
        fits: by name, the model and its estimate.
        sigma: noise SD, a number or a map [units of A]; None: unknown.
        criterion: aicc corrects for a sigma fitted to few images; with a known sigma there is nothing to correct.
        fitted: number of fitted parameters by name, where it is not all rows.
    Raises: InputError if there is no model, sigma is not positive, aicc is asked for with a known sigma, or a model has
        too many parameters for its criterion.
    Source: Akaike 1974, doi:10.1109/TAC.1974.1100705; Hurvich and Tsai 1989, doi:10.1093/biomet/76.2.297 (AICc);
        Schwarz 1978, doi:10.1214/aos/1176344136 (BIC); Burnham and Anderson 2002, doi:10.1007/b97636 (weights).
    """
    if not fits:
        raise InputError("fits: at least one model is needed")
    if criterion == "aicc" and sigma is not None:
        raise InputError("criterion: aicc corrects for a sigma fitted to few images; use aic where sigma is known")
    n = images.shape[0]
    value = None if sigma is None else _positive(sigma, images)
    rows = []
    for name, (model, kappa) in fits.items():
        k = (fitted or {}).get(name, kappa.shape[0]) + (value is None)
        if n - k < (2 if criterion == "aicc" else 0):
            raise InputError(f"fits: {n} images are too few for the {criterion} of {name}, which fits {k} numbers")
        squares = (images.double() - model(kappa.double())).square().sum(0)
        deviance = n * torch.log(squares / n) if value is None else squares / value.square()
        penalty = k * log(n) if criterion == "bic" else 2.0 * k
        if criterion == "aicc":
            penalty += 2 * k * (k + 1) / (n - k - 1)
        rows.append(deviance + penalty)
    values = torch.stack(rows)
    comparable = torch.where(torch.isnan(values), torch.inf, values)
    lowest, best = comparable.min(0)
    none = torch.isnan(values).all(0)
    # a fit without any residual has -inf where sigma is unknown
    above = torch.where(comparable == lowest, 0.0, comparable - lowest)
    relative = torch.where(torch.isnan(values), 0.0, torch.exp(-above / 2))
    weights = relative / torch.where(none, 1.0, relative.sum(0))
    return Comparison(tuple(fits), values, weights, torch.where(none, -1, best), criterion)


def _positive(sigma: float | Tensor, images: Float[Tensor, "n *space"]) -> Tensor:
    value = torch.as_tensor(sigma, dtype=torch.float64, device=images.device)
    if value.ndim and value.shape != images.shape[1:]:
        raise InputError(f"sigma: has shape {tuple(value.shape)}, the images {tuple(images.shape[1:])}")
    if bool((value <= 0).any()) or not bool(torch.isfinite(value).any()):
        raise InputError("sigma: must be positive")
    return value
