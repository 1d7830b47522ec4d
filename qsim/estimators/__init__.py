"""Everything that turns images into maps, and the registry of the methods by name."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, get_type_hints

from qsim.errors import InputError
from qsim.estimators.base import Estimate, Estimator, Status
from qsim.estimators.foreign import build_foreign, guarded, rehearse
from qsim.estimators.prior import TissuePrior
from qsim.signals.base import SignalModel

__all__ = [
    "ESTIMATORS",
    "Estimate",
    "Estimator",
    "Method",
    "Status",
    "TissuePrior",
    "build_estimator",
    "build_foreign",
    "installed",
    "method_options",
    "rehearse",
]

_GROUP = "qsim.estimators"
Option = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Method:
    """A method of this package.

    Attributes:
        where: "module:Class" of a dataclass whose first field is `model`, whose others are its options, and one of
            which may be `prior: TissuePrior`.
        text: one line about it.
    """

    where: str
    text: str

    @property
    def takes_prior(self) -> bool:
        """Whether it asks for the distributions of the tissues."""
        return "prior" in {field.name for field in fields(self.load())}

    def load(self) -> type:
        module, name = self.where.split(":")
        return getattr(import_module(module), name)


ESTIMATORS: dict[str, Method] = {
    "two-point": Method("qsim.estimators.two_point:TwoPoint", "Log-ratio of two images of a decay."),
    "log-linear": Method("qsim.estimators.log_linear:LogLinear", "Weighted straight line through the log of a decay."),
    "least-squares": Method(
        "qsim.estimators.least_squares:LeastSquares", "Voxel-wise least squares, to the global minimum."
    ),
    "rician": Method(
        "qsim.estimators.magnitude:MagnitudeLikelihood", "Voxel-wise maximum likelihood of magnitudes (Rician)."
    ),
    "map": Method(
        "qsim.estimators.maximum_a_posteriori:MaximumAPosteriori",
        "Voxel-wise mode of the posterior, given the tissues.",
    ),
    "smooth-b": Method("qsim.estimators.smooth_b:SmoothB", "Least squares with a smooth map of B."),
    "shared-b": Method("qsim.estimators.shared_b:SharedB", "Least squares with one B for the whole mask."),
    "empirical-bayes": Method(
        "qsim.estimators.empirical_bayes:EmpiricalBayes", "Voxel posterior mean under the image's own histogram of T."
    ),
    "dictionary": Method(
        "qsim.estimators.dictionary:Dictionary",
        "Matching with simulated signals: Bloch, Look-Locker, MOLLI, EPG models.",
    ),
}


def installed() -> dict[str, str]:
    """Methods that other packages bring, and where they stand."""
    return {point.name: point.value for point in entry_points(group=_GROUP)}


def method_options(name: str) -> dict[str, type]:
    """Options of a method of this package, and their types."""
    cls = ESTIMATORS[name].load()
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls) if field.name not in ("model", "prior")}


def build_estimator(
    name: str,
    model: SignalModel,
    options: Mapping[str, Option] = MappingProxyType({}),
    prior: TissuePrior | None = None,
) -> Estimator:
    """The estimator of that name for `model`.

    Names that are not built in are looked up in the entry-point group `qsim.estimators`: a package that declares
    `my-method = my_package:build` there, with `build(model) -> Estimator`, adds a method.

    Args:
        options: fields of the method's class, as `{"weight": 500.0}`.
        prior: of the tissues, for the methods that take one.
    Raises: InputError if the name or an option is unknown, or the method does not exist for this model.
    """
    if name in ESTIMATORS:
        return _built_in(name, model, options, prior)
    found = {point.name: point for point in entry_points(group=_GROUP)}
    if name in found:
        point = found[name]
        return build_foreign(name, point.value, guarded(point.value, point.load), model, options)
    known = ", ".join([*ESTIMATORS, *sorted(found)])
    raise InputError(f"estimators: unknown method {name!r}; known are {known}")


def _built_in(name: str, model: SignalModel, options: Mapping[str, Option], prior: TissuePrior | None) -> Estimator:
    cls = ESTIMATORS[name].load()
    types = method_options(name)
    for option, given in options.items():
        if option not in types:
            has = f"it has {', '.join(types)}" if types else "it has none"
            raise InputError(f"estimators: {name} has no option {option!r}; {has}")
        wanted = types[option]
        # a whole number is a number
        if not isinstance(given, wanted) and not (isinstance(given, int) and isinstance(1.0, wanted)):
            raise InputError(f"estimators: {name}: {option}: got {given!r}, wanted {_named(wanted)}")
    arguments: dict[str, Any] = {
        option: float(given) if type(given) is int and types[option] is float else given
        for option, given in options.items()
    }
    needed = {field.name: field for field in fields(cls)}
    if "prior" in needed:
        if prior is None and needed["prior"].default is MISSING:
            raise InputError(f"estimators: {name} needs the distributions of the tissues (prior)")
        arguments["prior"] = prior
    try:
        estimator: Estimator = cls(model, **arguments)
    except InputError:
        # names the method or the field itself
        raise
    except ValueError as error:
        raise InputError(f"estimators: {name}: {error}") from None
    return estimator


def _named(wanted: object) -> str:
    return getattr(wanted, "__name__", str(wanted))
