"""The progress of a training, on a terminal or in a log."""

import math
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from trainers.checkpoint import Progression


class Bar:
    """Progress with loss, rate and time left on a terminal; one final line elsewhere."""

    def __init__(self, console: Console, iterations: int, active: bool) -> None:
        self._console, self._iterations, self._active = console, iterations, active
        self._live = active and console.is_terminal
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}  loss {task.fields[loss]:.4g}  {task.fields[rate]:.1f} it/s"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._live,
            transient=True,
        )
        self._task = self._progress.add_task("", total=iterations, loss=math.nan, rate=0.0)
        self._first: tuple[int, float] | None = None
        self._loss: float | None = None

    def __enter__(self) -> "Bar":
        self._progress.start()
        self._began = time.perf_counter()
        return self

    def update(self, state: Progression) -> None:
        """Show where the training stands."""
        if self._first is None:
            self._first = state.iteration - 1, self._began
        total, count = state.losses
        self._loss = total / count
        passed = time.perf_counter() - self._began
        rate = (state.iteration - self._first[0]) / max(passed, 1e-9)
        self._progress.update(self._task, completed=state.iteration, loss=self._loss, rate=rate)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._progress.stop()
        if not self._active or kind is not None:
            return
        passed = time.perf_counter() - self._began
        loss = "nothing left to do" if self._loss is None else f"loss {self._loss:.4g}, {passed:.0f} s"
        self._console.print(f"trained {self._iterations} iterations, {loss}")
