"""Your own method as an `Estimator`: a fit of one series, or an object with `predict`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.errors import InputError
from qsim.estimators.base import Estimate
from qsim.estimators.voxels import gather, scatter, statuses
from qsim.parameters import Parameter
from qsim.signals.base import SignalModel


@runtime_checkable
class Predictor(Protocol):
    """An object in the style of scikit-learn, trained already."""

    def predict(self, X: Float[np.ndarray, "v n"]) -> Float[np.ndarray, "v q"]:
        """Rows of kappa [SI] of each series, a row of X."""
        ...


@dataclass(frozen=True, slots=True)
class VoxelByVoxel:
    """A function of one series, called for every voxel.

    Attributes:
        name: as in tables.
        model: signal model of the series.
        fit: takes one series (n,) [units of A] and returns the rows of kappa [SI]; a RuntimeError or ValueError (what
            scipy raises when a fit fails) marks the voxel as not converged.
    """

    name: str
    model: SignalModel
    fit: Callable[[Float[np.ndarray, " n"]], Float[np.ndarray, " q"]]

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.model.parameters

    def __call__(
        self,
        images: Float[Tensor, "n *space"],
        sigma: float | Tensor | None = None,
        mask: Bool[Tensor, "*space"] | None = None,
        known: Mapping[str, Tensor] | None = None,
    ) -> Estimate:
        """Fit every voxel; sigma is not used.

        Raises: InputError if something is known, or the function returns another number of rows.
        """
        del sigma
        series, where = _series(images, self.model, mask, known, self.name)
        found = np.full((series.shape[0], len(self.parameters)), np.nan)
        for v, one in enumerate(series):
            try:
                rows = np.asarray(self.fit(one), dtype=np.float64)
            except (RuntimeError, ValueError):
                continue
            if rows.shape != (len(self.parameters),):
                raise InputError(f"{self.name}: returned shape {rows.shape} for a voxel, {_wanted(self.parameters)}")
            found[v] = rows
        return _estimate(found, images, where, self.parameters)


@dataclass(frozen=True, slots=True)
class FromPredict:
    """An object with `predict`, called once for all voxels.

    Attributes:
        name: as in tables.
        model: signal model of the series.
        predictor: trained for it.
    """

    name: str
    model: SignalModel
    predictor: Predictor

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.model.parameters

    def __call__(
        self,
        images: Float[Tensor, "n *space"],
        sigma: float | Tensor | None = None,
        mask: Bool[Tensor, "*space"] | None = None,
        known: Mapping[str, Tensor] | None = None,
    ) -> Estimate:
        """Predict every voxel; sigma is not used.

        Raises: InputError if something is known, or the object returns another shape.
        """
        del sigma
        series, where = _series(images, self.model, mask, known, self.name)
        wanted = series.shape[0], len(self.parameters)
        found = np.asarray(self.predictor.predict(series), dtype=np.float64) if len(series) else np.empty(wanted)
        if found.shape != wanted:
            raise InputError(
                f"{self.name}: returned shape {found.shape} for {len(series)} voxels, {_wanted(self.parameters)} each"
            )
        return _estimate(found, images, where, self.parameters)


def _wanted(parameters: tuple[Parameter, ...]) -> str:
    return f"wanted {', '.join(p.name for p in parameters)}"


def _series(
    images: Float[Tensor, "n *space"],
    model: SignalModel,
    mask: Bool[Tensor, "*space"] | None,
    known: Mapping[str, Tensor] | None,
    name: str,
) -> tuple[Float[np.ndarray, "v n"], Bool[Tensor, "*space"]]:
    if known:
        raise InputError(f"known: {', '.join(known)} cannot be used by {name}")
    y, where = gather(images, model, mask)
    return y.T.double().cpu().numpy(), where


def _estimate(
    found: Float[np.ndarray, "v q"],
    images: Float[Tensor, "n *space"],
    where: Bool[Tensor, "*space"],
    parameters: tuple[Parameter, ...],
) -> Estimate:
    kappa = torch.from_numpy(found.T.copy()).to(images.device)
    finite = torch.isfinite(kappa).all(0)
    status = statuses(kappa, parameters, finite, where)
    return Estimate(scatter(kappa.to(images.dtype), where), status)
