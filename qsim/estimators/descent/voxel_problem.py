"""One estimation problem per voxel: likelihood, prior, coordinates, and the derivatives of what is minimised.

    F(theta) = -sum_n log p(S_n | signal_n(theta)) - log p(theta)

theta holds log T for relaxation times (and every row with a log-normal prior), the row itself for the others. With the
Jacobian J of the signal by theta and the score s_n = d log p / d signal,

    grad F = -J s,    H = J W J',    W_n = max(-d s_n / d signal, floor)

and H is positive. W = 1 / sigma^2 is exact for Gaussian noise; for magnitudes it is at most that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.errors import InputError
from qsim.information import jacobian
from qsim.information.rician_bound import magnitude_information
from qsim.kspace.magnitude_likelihood import magnitude_terms
from qsim.parameters import RELAXATION_TIMES, Parameter
from qsim.signals.base import CoherentModel, DifferentiableModel, SignalModel

# smallest weight of an image, in 1 / sigma^2: magnitudes near zero have a log-likelihood that is nearly flat, or convex
_FLOOR = 0.05

Terms = tuple[Tensor, Tensor, Tensor]


@runtime_checkable
class Likelihood(Protocol):
    """Log-density of one image given its noise-free signal."""

    def terms(
        self, images: Float[Tensor, "n v"], signal: Float[Tensor, "n v"], sigma: Float[Tensor, " v_or_1"]
    ) -> Terms:
        """log p without its constants, and its first and second derivative by the signal."""
        ...

    def information(self, signal: Float[Tensor, "n v"], sigma: Float[Tensor, " v_or_1"]) -> Float[Tensor, "n v"]:
        """Fisher information about the signal."""
        ...


@dataclass(frozen=True, slots=True)
class GaussianLikelihood:
    """log p = -(S - s)^2 / 2 sigma^2."""

    def terms(
        self, images: Float[Tensor, "n v"], signal: Float[Tensor, "n v"], sigma: Float[Tensor, " v_or_1"]
    ) -> Terms:
        weight = 1 / sigma.square()
        residual = images - signal
        first = residual * weight
        return -residual * first / 2, first, -weight.expand_as(residual)

    def information(self, signal: Float[Tensor, "n v"], sigma: Float[Tensor, " v_or_1"]) -> Float[Tensor, "n v"]:
        return (1 / sigma.square()).expand_as(signal)


@dataclass(frozen=True, slots=True)
class ChiLikelihood:
    """Rician (one coil) or non-central chi; the signal may carry its sign, and is then smooth through zero.

    Attributes:
        coils: L.
    """

    coils: int = 1

    def terms(
        self, images: Float[Tensor, "n v"], signal: Float[Tensor, "n v"], sigma: Float[Tensor, " v_or_1"]
    ) -> Terms:
        return magnitude_terms(images, signal, sigma, self.coils)

    def information(self, signal: Float[Tensor, "n v"], sigma: Float[Tensor, " v_or_1"]) -> Float[Tensor, "n v"]:
        return magnitude_information(signal, sigma, self.coils)


@runtime_checkable
class LogPrior(Protocol):
    """A prior on theta, the same for every voxel."""

    def terms(self, theta: Float[Tensor, "q v"]) -> Terms:
        """-log p (v), its gradient (q, v), and a positive diagonal curvature (q, v)."""
        ...


@dataclass(frozen=True, slots=True)
class Coordinates:
    """theta: which rows are searched in their logarithm, and the range of each.

    Attributes:
        parameters: rows of kappa.
        log: of each row, whether theta is its logarithm.
    """

    parameters: tuple[Parameter, ...]
    log: tuple[bool, ...]

    @classmethod
    def of(cls, parameters: tuple[Parameter, ...], also: Sequence[str] = ()) -> "Coordinates":
        """Relaxation times, and the rows named in `also`, by their logarithm."""
        return cls(parameters, tuple(p.name in RELAXATION_TIMES or p.name in also for p in parameters))

    def theta(self, kappa: Float[Tensor, "q *v"]) -> Float[Tensor, "q *v"]:
        return torch.stack([row.log() if log else row for row, log in zip(kappa, self.log, strict=True)])

    def kappa(self, theta: Float[Tensor, "q *v"]) -> Float[Tensor, "q *v"]:
        return torch.stack([row.exp() if log else row for row, log in zip(theta, self.log, strict=True)])

    def slopes(self, kappa: Float[Tensor, "q *v"]) -> Float[Tensor, "q *v"]:
        """d kappa / d theta."""
        rows = [row if log else torch.ones_like(row) for row, log in zip(kappa, self.log, strict=True)]
        return torch.stack(rows)

    def bounds(self, device: torch.device) -> tuple[Float[Tensor, "q 1"], Float[Tensor, "q 1"]]:
        """Range of theta."""
        ends = torch.tensor(
            [[p.lower for p in self.parameters], [p.upper for p in self.parameters]],
            dtype=torch.float64,
            device=device,
        )
        lower, upper = (self.theta(end[:, None]) for end in ends)
        return lower, upper

    def settled(self, theta: Float[Tensor, "q v"]) -> Float[Tensor, "q v"]:
        """kappa, with rows that rest on a bound exactly on it: exp(log x) may miss x by a rounding."""
        kappa = self.kappa(theta)
        lower, upper = self.bounds(theta.device)
        for i, p in enumerate(self.parameters):
            kappa[i] = torch.where(theta[i] == lower[i], p.lower, torch.where(theta[i] == upper[i], p.upper, kappa[i]))
        return kappa


@dataclass(frozen=True, slots=True)
class Problem:
    """What is minimised.

    Attributes:
        model: of the signal that the likelihood wants.
        likelihood: of the images.
        coordinates: theta.
        free: numbers of the rows that are estimated; the others keep their start.
        prior: on theta, if there is one.
    """

    model: SignalModel
    likelihood: Likelihood
    coordinates: Coordinates
    free: tuple[int, ...]
    prior: LogPrior | None = None


@dataclass(frozen=True, slots=True)
class Partial:
    """A model of some of its rows, the others given: so that derivatives are only taken where they are wanted."""

    model: SignalModel
    rest: Float[Tensor, "q v"]
    free: tuple[int, ...]

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return tuple(self.model.parameters[i] for i in self.free)

    @property
    def n_images(self) -> int:
        return self.model.n_images

    def __call__(self, kappa: Float[Tensor, "f v"]) -> Float[Tensor, "n v"]:
        rows = list(self.rest)
        for i, row in zip(self.free, kappa, strict=True):
            rows[i] = row
        return self.model(torch.stack(rows))


@dataclass(frozen=True, slots=True)
class Coherent:
    """A model as its real signal before the modulus, or as the modulus of a complex one.

    Attributes:
        model: with a method `coherent`.
        modulus: take it.
    """

    model: CoherentModel
    modulus: bool

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.model.parameters

    @property
    def n_images(self) -> int:
        return self.model.n_images

    def __call__(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        signal = self.model.coherent(kappa)
        return signal.abs() if self.modulus else signal


def before_modulus(model: SignalModel) -> SignalModel:
    """The model whose modulus is nu: signed where its signal is real, so that no zero of it is a kink."""
    point = torch.tensor([[p.start] for p in model.parameters], dtype=torch.float64)
    if not isinstance(model, CoherentModel):
        return model
    if model.coherent(point).is_complex():
        return Coherent(model, modulus=True)
    if isinstance(model, DifferentiableModel):
        # the closed forms: their derivatives are those of the signal with its sign
        return replace(model, signed=True) if hasattr(model, "signed") else model  # type: ignore[type-var]
    return Coherent(model, modulus=False)


def check_voxelwise(model: SignalModel, name: str) -> None:
    """Refuse a model whose readout mixes the voxels of an image.

    Raises: InputError.
    """
    if getattr(model, "mixes_voxels", False):
        raise InputError(
            f"estimators: {name} fits voxel by voxel, but this readout mixes voxels; set "
            "readout.acquisition.encoding: centre"
        )


def gradient(
    problem: Problem,
    images: Float[Tensor, "n v"],
    sigma: Float[Tensor, " v_or_1"],
    theta: Float[Tensor, "q v"],
) -> tuple[Float[Tensor, " v"], Float[Tensor, "f v"], Float[Tensor, "f f v"]]:
    """F, its gradient by the free rows of theta, and H; F is infinite where the model gives no finite signal."""
    free = list(problem.free)
    kappa = problem.coordinates.kappa(theta)
    signal = problem.model(kappa)
    if isinstance(problem.model, DifferentiableModel):
        rows = problem.model.jacobian(kappa)[free]
    else:
        rows = jacobian(Partial(problem.model, kappa, problem.free), kappa[free])
    rows = rows * problem.coordinates.slopes(kappa)[free][:, None]
    value, first, second = problem.likelihood.terms(images, signal, sigma)
    weight = torch.maximum(-second, _FLOOR / sigma.square())
    objective = -value.sum(0)
    slope = -(rows * first).sum(1)
    size = len(free)
    hessian = rows.new_zeros(size, size, rows.shape[-1])
    for i in range(size):
        weighted = rows[i] * weight
        for j in range(i + 1):
            hessian[i, j] = hessian[j, i] = (weighted * rows[j]).sum(0)
    if problem.prior is not None:
        cost, push, stiff = problem.prior.terms(theta)
        objective = objective + cost
        slope = slope + push[free]
        for i, row in enumerate(free):
            hessian[i, i] += stiff[row]
    broken = ~(torch.isfinite(objective) & torch.isfinite(slope).all(0) & torch.isfinite(hessian).all(0).all(0))
    return torch.where(broken, torch.inf, objective), slope, hessian


def known_rows(
    parameters: tuple[Parameter, ...], known: Mapping[str, Tensor], voxels: int, device: torch.device
) -> Float[Tensor, "q v"]:
    """kappa with the known rows filled in, NaN in the others."""
    rows = torch.full((len(parameters), voxels), torch.nan, dtype=torch.float64, device=device)
    for i, p in enumerate(parameters):
        if p.name in known:
            rows[i] = known[p.name]
    return rows
