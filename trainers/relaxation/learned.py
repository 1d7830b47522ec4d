"""What a trained relaxation network learned, as its file says: rows, contrasts and times.

inputs: two_point                 any time between the two images within the range of the training, 20 % margin
inputs: images, or two_stream     the times of the training, to 1 %: such a network is not told the time, or does
                                  not see what follows from it
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from generators.config import GeneratorConfig
from qsim.errors import InputError
from qsim.evaluation.calibration import factor_of
from qsim.parameters import PARAMETERS, Parameter
from qsim.signals import SpinLock, SpinLockT2Prep, T2Prep
from qsim.signals.base import SignalModel
from trainers.networks import UNetNetwork
from trainers.relaxation.contrasts import Contrast, contrasts, inputs, intervals
from trainers.relaxation.task_config import SelfSupervisedTask
from trainers.stored import Stored

_TIMES: TypeAdapter[SpinLock | T2Prep | SpinLockT2Prep] = TypeAdapter(
    Annotated[SpinLock | T2Prep | SpinLockT2Prep, Field(discriminator="kind")]
)
# times that differ by less are the same [share]
_SAME = 0.01
# of a range of times, on both sides [share]; that of `RelaxationEstimator`
_BEYOND = 0.2


@dataclass(frozen=True, slots=True)
class Learned:
    """What a network learned.

    Attributes:
        rows: of its answer.
        joined: contrasts of the training.
        shown: times between the common image and that of each contrast, of every input of the training [s].
        told: whether it can use other times.
    """

    name: str
    rows: tuple[Parameter, ...]
    joined: tuple[Contrast, ...]
    shown: tuple[tuple[float, ...], ...]
    told: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Of the contrasts."""
        return tuple(each.row.name for each in self.joined)

    @property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """Shortest and longest time of each contrast [s]."""
        return tuple((min(times), max(times)) for times in zip(*self.shown, strict=True))

    @property
    def times_text(self) -> str:
        """The times of the training, in words."""
        if self.told:
            return " and ".join(f"{1e3 * low:g} to {1e3 * high:g} ms" for low, high in self.ranges)
        return ", ".join(said(each) for each in self.shown) + " alone"

    def knows(self, times: tuple[float, ...]) -> bool:
        """Whether it can map images that lie this far from the common one."""
        if self.told:
            ranges = zip(times, self.ranges, strict=True)
            return all(low * (1 - _BEYOND) <= time <= high * (1 + _BEYOND) for time, (low, high) in ranges)
        return any(all(map(_same, times, shown)) for shown in self.shown)


def _same(time: float, other: float) -> bool:
    return isclose(time, other, rel_tol=_SAME)


def said(times: Sequence[float]) -> str:
    """Times in words."""
    return " and ".join(f"{1e3 * time:g}" for time in times) + " ms"


def times_of(stored: Stored) -> SignalModel:
    """Ideal decay of the series of the training."""
    if "times" not in stored.header:
        raise InputError(f"{stored.path}: does not say the times of its training; train it again with this version")
    try:
        return _TIMES.validate_python(stored.header["times"])
    except ValidationError as error:
        raise InputError(
            f"{stored.path}: the times of its training cannot be read ({error.errors()[0]['msg']}); train it again"
        ) from None


def learned_of(stored: Stored) -> Learned:
    """What a network learned, as its file says.

    Raises: InputError if the file does not say the times of the training.
    """
    trained = times_of(stored)
    task, network = stored.config.mapping_task, stored.config.mapping_network
    assert isinstance(task, SelfSupervisedTask), "only such networks are loaded here"
    joined = contrasts(trained)
    shown = tuple(intervals(each, joined) for each in task.inputs or inputs(trained))
    rows = tuple(PARAMETERS[name] for name in stored.header["parameters"])
    told = isinstance(network, UNetNetwork) and network.inputs == "two_point"
    return Learned(task.kind, rows, joined, shown, told)


def check_alike(first: Stored, other: Stored) -> None:
    """Refuse an ensemble of networks that do not answer the same question in the same way."""
    ours, theirs = (
        {
            "network": each.config.mapping_network,
            "rows": each.header["parameters"],
            "times": each.header.get("times"),
            "task.inputs": getattr(each.config.mapping_task, "inputs", None),
            "task.kind": each.config.mapping_task.kind,
            "precision": each.header["precision"],
        }
        for each in (first, other)
    )
    differ = [name for name in ours if ours[name] != theirs[name]]
    if differ:
        raise InputError(
            f"{other.path}: differs from {first.path} in {', '.join(differ)}; "
            "take networks as an ensemble that were trained alike, with another seed or fold"
        )


def check_calibration(path: Path, given: object, rows: tuple[str, ...]) -> None:
    """Refuse what are no factors of these rows.

    Raises: InputError with the file.
    """
    if not isinstance(given, Mapping):
        raise InputError(f"{path}: calibration must hold a factor for each row, got {given!r}")
    for name, each in given.items():
        try:
            factor_of(each)
        except ValueError as error:
            raise InputError(f"{path}: calibration.{name}: {error}") from None
    unknown = [name for name in given if name not in rows]
    if unknown:
        raise InputError(f"{path}: calibration.{unknown[0]} is no row of the network, which has {', '.join(rows)}")


def data_of(stored: Stored) -> GeneratorConfig | None:
    """Generator config of the cohort; None: measured, or unknown."""
    plain = stored.header.get("generator") or stored.header["cohort"].get("generate")
    return None if plain is None else stored.generator(plain)
