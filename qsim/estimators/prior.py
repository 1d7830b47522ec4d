"""What is known of the tissues before the images: a log-normal per tissue, as a mixture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log, pi

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import ndtr, ndtri
from torch import Tensor

from qsim.distributions import AnyDistribution
from qsim.errors import InputError
from qsim.parameters import PARAMETERS, Parameter
from qsim.tissues import TissueTable, Variation

# nodes of the quadratures over subjects and over the voxels of one tissue
_NODES = 200
# least SD of a logarithm: a row that a table gives as one number for all is known to a part in a thousand
_LEAST = 1e-3


@dataclass(frozen=True, slots=True)
class TissuePrior:
    """A mixture of tissues, each with a log-normal distribution of every row, independent of each other.

    Attributes:
        parameters: rows, in order.
        weights: share of each tissue; adds up to 1.
        median: of each row in each tissue [SI].
        spread: SD of the logarithm of each row in each tissue [1]; 0: the row is not restricted by the prior.
    """

    parameters: tuple[Parameter, ...]
    weights: Float[Tensor, " t"]
    median: Float[Tensor, "t q"]
    spread: Float[Tensor, "t q"]

    def __post_init__(self) -> None:
        shape = (self.weights.numel(), len(self.parameters))
        if self.weights.numel() == 0:
            raise InputError("prior.weights: holds no tissue")
        for name, rows in (("median", self.median), ("spread", self.spread)):
            if tuple(rows.shape) != shape:
                raise InputError(f"prior.{name}: has shape {tuple(rows.shape)}, wanted (tissues, rows) = {shape}")
        if not bool((self.weights >= 0).all()) or abs(float(self.weights.double().sum()) - 1) > 1e-6:
            raise InputError("prior.weights: must not be negative and must add up to 1")
        if not bool((torch.isfinite(self.median) & (self.median > 0)).all()):
            raise InputError("prior.median: must be positive and finite")
        if not bool((torch.isfinite(self.spread) & (self.spread >= 0)).all()):
            raise InputError("prior.spread: must be finite and not negative; 0 leaves a row free")
        mixed = ((self.spread > 0).any(0) & (self.spread == 0).any(0)).tolist()
        for parameter, wrong in zip(self.parameters, mixed, strict=True):
            # densities over different numbers of rows cannot be compared
            if wrong:
                raise InputError(
                    f"prior.spread: {parameter.name} is free in some tissues and restricted in others; "
                    "give it a spread in all of them, or in none"
                )

    @classmethod
    def from_table(
        cls,
        table: TissueTable,
        parameters: Sequence[Parameter | str],
        weights: Mapping[str, float] | None = None,
    ) -> "TissuePrior":
        """The log-normals with the moments of a table: between subjects and between the voxels of a tissue together.

            E and Var of log kappa,   kappa = X (1 + v z),   v^2 = relative^2 + (absolute / X)^2,   1 + v z > floor

        X is drawn between subjects (or per sample, as B), z is standard normal from voxel to voxel. Both integrals are
        quadratures. A row that never varies gets a spread of 0.001.

        Args:
            table: the tissues.
            parameters: rows that the prior is to restrict, or their names. A row that the table does not have for
                every tissue is refused.
            weights: share of each tissue by name, in any unit; tissues without a weight are left out. None: equal.
        Raises: InputError if a row or a tissue is not in the table, or a row can be 0 or negative.
        """
        rows = [PARAMETERS[p] if isinstance(p, str) else p for p in parameters]
        if weights is not None:
            for name in weights:
                if name not in table.names:
                    raise InputError(f"prior.weights.{name}: no such tissue; there are {', '.join(table.names)}")
        chosen = [t for t in table.tissues if weights is None or weights.get(t.name, 0.0) > 0]
        share = torch.tensor([1.0 if weights is None else weights[t.name] for t in chosen], dtype=torch.float64)
        if share.numel() == 0:
            raise InputError("prior.weights: every tissue has weight 0")
        moments = []
        for tissue in chosen:
            own = []
            for row in rows:
                distribution = table.per_sample.get(row.name, tissue.values.get(row.name))
                if distribution is None:
                    raise InputError(f"prior.{row.name}: the table '{table.name}' has no {row.name} of {tissue.name}")
                variation = None if row.name in table.per_sample else table.within.get(row.name)
                own.append(_log_moments(distribution, variation, f"prior.{row.name} of {tissue.name}"))
            moments.append(own)
        values = torch.tensor(moments, dtype=torch.float64).reshape(len(chosen), len(rows), 2)
        return cls(tuple(rows), share / share.sum(), values[..., 0].exp(), values[..., 1].clamp_min(_LEAST))


@lru_cache(maxsize=1)
def _quadrature() -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Nodes and weights of Gauss and Legendre on (0, 1); the same for every row of every tissue, and slow to find."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    u, share = (nodes + 1) / 2, weights / 2
    # shared by all callers
    u.setflags(write=False)
    share.setflags(write=False)
    return u, share


def _log_moments(distribution: AnyDistribution, variation: Variation | None, field: str) -> tuple[float, float]:
    """Mean and SD of log kappa over subjects and voxels."""
    if not distribution.support[0] > 0:
        raise InputError(f"{field}: its distribution reaches {distribution.support[0]:g}, a log-normal cannot; cut it")
    u, weights = _quadrature()
    centre = distribution.ppf(u)
    if variation is None or (variation.relative == 0 and variation.absolute == 0):
        values = np.log(centre)
        mean = float(weights @ values)
        return mean, float(np.sqrt(weights @ (values - mean) ** 2))
    size = np.sqrt(variation.relative**2 + (variation.absolute / centre) ** 2)
    # the normal of the voxels, cut where kappa would fall under its floor
    below = ndtr((variation.floor - 1) / size)[:, None]
    z = ndtri(below + (1 - below) * u)
    values = np.log(centre[:, None] * (1 + size[:, None] * z))
    joint = weights[:, None] * weights
    mean = float((joint * values).sum())
    return mean, float(np.sqrt((joint * (values - mean) ** 2).sum()))


class MixturePrior:
    """-log of the mixture's density over theta, for the Levenberg-Marquardt search.

        p(theta) = sum_t w_t prod_q N(theta_q; log median_tq, spread_tq),   theta = log kappa

    The density is that of the logarithms, so that its mode does not depend on units, and an infinite spread leaves the
    likelihood alone. With the responsibilities r_t = w_t p_t / p, gradient and curvature are those of the parabola

        sum_t r_t (theta - mu_t)^2 / 2 s_t^2

    that touches -log p from above: descending on it is a step of the EM algorithm.

    Args:
        prior: over rows in any order; rows that the model does not have are integrated out, which leaves the others.
        parameters: rows of theta.
        tissue: only this component, without its weight; None: the mixture.
        device: of theta.
    Source: Dempster, Laird and Rubin 1977, doi:10.1111/j.2517-6161.1977.tb01600.x.
    """

    def __init__(
        self, prior: TissuePrior, parameters: tuple[Parameter, ...], tissue: int | None, device: torch.device
    ) -> None:
        columns = {p.name: i for i, p in enumerate(prior.parameters)}
        spread = prior.spread.double()
        # rows of theta that the prior restricts, and where they stand in it
        self.rows = [
            i for i, p in enumerate(parameters) if p.name in columns and bool((spread[:, columns[p.name]] > 0).all())
        ]
        held = [columns[parameters[i].name] for i in self.rows]
        keep = slice(None) if tissue is None else slice(tissue, tissue + 1)
        self.mean = prior.median.double().log()[keep][:, held].to(device)
        self.precision = spread[keep][:, held].to(device) ** -2
        weights = prior.weights.double()[keep].to(device) if tissue is None else torch.ones(1, device=device).double()
        self.constant = weights.log() + self.precision.log().sum(1) / 2 - len(held) * log(2 * pi) / 2

    def terms(self, theta: Float[Tensor, "q v"]) -> tuple[Tensor, Tensor, Tensor]:
        """-log p (v), its gradient (q, v) and the curvature of the parabola (q, v)."""
        own = theta[self.rows]
        away = own[None] - self.mean[:, :, None]
        logs = self.constant[:, None] - (away.square() * self.precision[:, :, None]).sum(1) / 2
        share = torch.softmax(logs, 0)
        gradient, curvature = torch.zeros_like(theta), torch.zeros_like(theta)
        gradient[self.rows] = (share[:, None] * away * self.precision[:, :, None]).sum(0)
        curvature[self.rows] = torch.einsum("tv,tr->rv", share, self.precision)
        return -torch.logsumexp(logs, 0), gradient, curvature
