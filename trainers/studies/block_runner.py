"""The blocks of a Monte Carlo study: each computed once, anywhere, and kept; the numbers do not depend on where."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from generators.schedulers import check_scheduler
from generators.schedulers import run as run_tasks
from qsim.errors import InputError
from qsim.evaluation.blocks import Arrays, read_arrays, write_arrays
from qsim.evaluation.study import one_torch_thread
from trainers.studies.outputs import progress_bar

Compute = Callable[[str], Mapping[str, Shaped[np.ndarray, "..."]]]


@dataclass(frozen=True, slots=True)
class Command:
    """What the command line says beside the config.

    Attributes:
        workers: blocks at a time on this machine; no number depends on it.
        scheduler: `threads`, `processes`, or the address of a Dask scheduler whose workers see the same folders; no
            number depends on it.
        device: where networks run; fits run on the CPU.
        estimators: the user's own methods, as "module:object", which studies of methods add to those of the config.
    """

    workers: int = 1
    scheduler: str = "threads"
    device: str = "cpu"
    estimators: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InputError(f"workers: got {self.workers}, wanted at least 1")
        check_scheduler(self.scheduler)


def threads_only(command: Command, kind: str) -> None:
    """Refuse what a study without blocks and without methods cannot use.

    Raises: InputError.
    """
    if command.scheduler != "threads":
        raise InputError(
            f"scheduler: a study of kind {kind} runs on threads of this machine, got {command.scheduler!r}"
        )
    if command.estimators:
        raise InputError(f"--estimator: a study of kind {kind} has fits of its own; leave out {command.estimators[0]}")


def complete(folder: Path, digest: str, keys: Sequence[str], compute: Compute, unit: str, command: Command) -> None:
    """Compute the blocks that are not there yet.

    Args:
        folder: of the blocks; made if it is not there.
        digest: of all that decides the numbers; a block of another digest is computed again.
        keys: names of the blocks, fit for files.
        compute: a block by its name; for processes and clusters a function of a module, bound to its plan by
            `functools.partial`.
        unit: what the progress bar counts.
    Raises: what `compute` raises; the blocks that were finished stay.
    """
    folder.mkdir(exist_ok=True)
    missing = [key for key in keys if read_arrays(_file(folder, key), digest) is None]
    task = partial(_keep, compute=compute, folder=str(folder.absolute()), digest=digest)
    with one_torch_thread(), progress_bar(unit, len(keys), len(keys) - len(missing)) as (progress, bar):
        run_tasks(
            task, {key: key for key in missing}, command.workers, command.scheduler, lambda *_: progress.advance(bar)
        )


def finish(
    folder: Path, digest: str, keys: Sequence[str], compute: Compute, unit: str, command: Command
) -> list[Arrays]:
    """`complete`, then the arrays of every block in the order of the keys."""
    complete(folder, digest, keys, compute, unit, command)
    return [read_finished(folder, digest, key) for key in keys]


def read_finished(folder: Path, digest: str, key: str) -> Arrays:
    """A block that `complete` has left.

    Raises: InputError if somebody took it away.
    """
    arrays = read_arrays(_file(folder, key), digest)
    if arrays is None:
        raise InputError(f"{folder}: the block {key} has gone; run the command again")
    return arrays


def _keep(key: str, compute: Compute, folder: str, digest: str) -> None:
    """One block, wherever this runs; nothing but its file comes back."""
    with one_torch_thread():
        arrays = compute(key)
    write_arrays(_file(Path(folder), key), arrays, digest)


def _file(folder: Path, key: str) -> Path:
    return folder / f"{key}.npz"
