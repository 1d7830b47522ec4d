"""Everything that turns images into maps, and the registry of the methods by name."""

from collections.abc import Callable
from importlib.metadata import entry_points

from qsim.errors import InputError
from qsim.estimators.base import Estimate, Estimator, Status
from qsim.signals.base import SignalModel

__all__ = ["ESTIMATORS", "Estimate", "Estimator", "Status", "build_estimator"]

_GROUP = "qsim.estimators"


def _least_squares(model: SignalModel) -> Estimator:
    """Voxel-wise least squares: variable projection with exact sign enumeration, every parameter free."""
    from qsim.estimators.least_squares import LeastSquares

    return LeastSquares(model)  # type: ignore[arg-type]  # refuses what it cannot fit


def _shared_b(model: SignalModel) -> Estimator:
    """Least squares with one B for the whole mask (profile likelihood)."""
    from qsim.estimators.shared_b import SharedB

    return SharedB(model)


ESTIMATORS: dict[str, Callable[[SignalModel], Estimator]] = {"least-squares": _least_squares, "shared-b": _shared_b}


def build_estimator(name: str, model: SignalModel) -> Estimator:
    """The estimator of that name for `model`.

    Names that are not built in are looked up in the entry-point group `qsim.estimators`: a package that declares
    `my-method = my_package:build` there, with `build(model) -> Estimator`, adds a method.

    Raises: InputError if the name is unknown, or the method does not exist for this model.
    """
    if name in ESTIMATORS:
        return ESTIMATORS[name](model)
    found = {point.name: point for point in entry_points(group=_GROUP)}
    if name in found:
        estimator = found[name].load()(model)
        if not isinstance(estimator, Estimator):
            raise InputError(f"estimators: {name} ({found[name].value}) does not build an Estimator, got {estimator!r}")
        return estimator
    known = ", ".join([*ESTIMATORS, *sorted(found)])
    raise InputError(f"estimators: unknown method {name!r}; known are {known}")
