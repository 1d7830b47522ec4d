"""A method of somebody else's: what it returns is checked, what it raises is said in one line."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.errors import InputError
from qsim.estimators.base import Estimate, Estimator, Status
from qsim.parameters import RELAXATION_TIMES, Parameter
from qsim.signals.base import SignalModel, real_signal


@dataclass(frozen=True, slots=True)
class Foreign:
    """An estimator whose code is not of this package.

    It works on copies, so that it cannot change what the next method sees. Whatever it raises, `sys.exit` included,
    becomes an InputError that names it.

    Attributes:
        where: "module:object".
        estimator: the user's.
    """

    where: str
    estimator: Estimator

    @property
    def name(self) -> str:
        return self.estimator.name

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.estimator.parameters

    @property
    def pools(self) -> tuple[str, ...]:
        """Parameters that it takes as common to voxels."""
        return tuple(getattr(self.estimator, "pools", ()))

    def __call__(
        self,
        images: Float[Tensor, "n *space"],
        sigma: float | Tensor | None = None,
        mask: Bool[Tensor, "*space"] | None = None,
        known: Mapping[str, Tensor] | None = None,
    ) -> Estimate:
        """Call it, and check what comes back.

        Raises: InputError that names the method.
        """
        given = None if known is None else {name: _copy(value) for name, value in known.items()}
        found = guarded(
            self.where, lambda: self.estimator(images.clone(), sigma=_copy(sigma), mask=_copy(mask), known=given)
        )
        self._check(found, tuple(images.shape[1:]))
        return found

    def _check(self, found: Any, space: tuple[int, ...]) -> None:
        if not isinstance(found, Estimate):
            raise self._wrong(f"returned {type(found).__name__}, wanted qsim.estimators.Estimate")
        q = len(self.parameters)
        self._shape("kappa", found.kappa, (q, *space))
        status = found.status
        if not isinstance(status, Tensor) or status.is_floating_point() or tuple(status.shape) != space:
            raise self._wrong(f"returned a status that is no integer tensor of shape {space}")
        if status.numel() and not bool(((status >= 0) & (status < len(Status))).all()):
            raise self._wrong(f"returned a status beyond 0 to {len(Status) - 1}")
        for source, variances in found.variances.items():
            self._shape(f"variances[{source!r}]", variances, (q, *space))
            if bool((variances < 0).any()):
                raise self._wrong(f"returned negative variances[{source!r}]")
        if found.covariance is not None:
            self._shape("covariance", found.covariance, (q, q, *space))

    def _shape(self, what: str, value: Any, wanted: tuple[int, ...]) -> None:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            said = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise self._wrong(f"returned {what} as {said}, wanted a tensor of real floating point numbers")
        if tuple(value.shape) != wanted:
            raise self._wrong(f"returned {what} of shape {tuple(value.shape)}, wanted {wanted}")

    def _wrong(self, what: str) -> InputError:
        return InputError(f"estimators: {self.name} ({self.where}) {what}")


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def guarded(where: str, call: Callable[[], Any]) -> Any:
    """Call somebody else's code.

    Raises: InputError with what it raised; an interrupt passes.
    """
    try:
        return call()
    except InputError as error:
        raise InputError(f"estimators: {where}: {error}") from None
    except SystemExit:
        raise InputError(f"estimators: {where} calls sys.exit") from None
    except Exception as error:
        raise InputError(f"estimators: {where} raised {type(error).__name__}: {error}") from error


def build_foreign(
    name: str,
    where: str,
    build: Callable[..., Any],
    model: SignalModel,
    options: Mapping[str, bool | int | float | str],
) -> Foreign:
    """The estimator of a user's own `build(model)`, or `build(model, **options)` where there are options.

    Raises: InputError if it does not build an Estimator of rows of the model.
    """
    found = guarded(where, lambda: build(model, **options))
    if not isinstance(found, Estimator):
        raise InputError(f"estimators: {name} ({where}) does not build an Estimator, got {found!r}")
    rows = [parameter.name for parameter in model.parameters]
    own = guarded(where, lambda: [parameter.name for parameter in found.parameters])
    times = [row for row in rows if row in RELAXATION_TIMES]
    if not own or set(own) - set(rows) or (times and not set(times) & set(own)):
        raise InputError(
            f"estimators: {name} ({where}) estimates {', '.join(own) or 'nothing'}; wanted rows of the model "
            f"({', '.join(rows)}), a relaxation time among them"
        )
    if not isinstance(found.name, str) or not found.name.strip():
        raise InputError(f"estimators: {name} ({where}) has no name for the tables; give it one")
    pools = getattr(found, "pools", ())
    if isinstance(pools, str) or set(pools) - set(rows):
        raise InputError(
            f"estimators: {name} ({where}): pools must be a tuple of rows of the model ({', '.join(rows)}), "
            f"got {pools!r}"
        )
    return Foreign(where, found)


def rehearse(estimator: Estimator, model: SignalModel, told: tuple[str, ...] = ()) -> None:
    """Let a method map a small noisy image, so that what it cannot do is said before a study begins.

    Args:
        told: rows that the study gives it as known.
    Raises: InputError of the method.
    """
    plain = getattr(model, "pointwise", model)
    a = torch.linspace(0.8, 1.2, 16).reshape(4, 4)
    start = {"B": 1.9, "FRACTION": 0.4}
    rows = [a if p.name == "A" else torch.full_like(a, start.get(p.name, p.start)) for p in model.parameters]
    kappa = torch.stack(rows)
    images = real_signal(model, plain(kappa))
    images = images + 0.01 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    # a magnitude, which every method takes
    images = images if getattr(model, "signed", False) else images.abs()
    known = {p.name: row for p, row in zip(model.parameters, kappa, strict=True) if p.name in told} or None
    if known is not None:
        # one number where all voxels share it, as a study hands it over
        known = {name: row[0, 0] if bool((row == row[0, 0]).all()) else row for name, row in known.items()}
    estimator(images, sigma=0.01, mask=torch.ones(4, 4, dtype=torch.bool), known=known)
