"""Seconds of the stages of a run, each less those of the stages inside it: for benchmarks that look inside."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch


class StageTimes:
    """A stopwatch of stages.

    Attributes:
        clock: seconds that count, of the processor or of the wall [s].
        spent: by `key` of the stage [s].
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.spent: dict[object, float] = defaultdict(float)
        self._inner = [0.0]

    def key(self, name: str) -> object:
        """What the seconds of a stage that begins now are counted for."""
        return name

    def ended(self, name: str, seconds: float) -> None:
        """A stage has ended after so many seconds, the stages inside included [s]."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What is done here counts as this stage."""
        began, key = self.clock(), self.key(name)
        self._inner.append(0.0)
        yield
        whole = self.clock() - began
        self.spent[key] += whole - self._inner.pop()
        self._inner[-1] += whole
        self.ended(name, whole)

    def timed(self, owner: object, attribute: str, name: str) -> "patch":
        """Count the calls of a function as a stage."""
        function = getattr(owner, attribute)

        def around(*args: object, **named: object) -> object:
            with self.stage(name):
                return function(*args, **named)

        return patch.object(owner, attribute, around)
