"""What every study writes, and how: whole or not at all, into a folder of its own, with where the numbers come from."""

import hashlib
import json
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from generators.schedulers import run as run_tasks
from qsim.errors import InputError
from qsim.evaluation.study import one_torch_thread

Job = TypeVar("Job")
Done = TypeVar("Done")


def claim(out: Path, digest: str, provenance: Mapping[str, Any]) -> None:
    """Claim the folder for this study, or recognise it.

    Args:
        out: folder of the results.
        digest: of all that decides the numbers.
        provenance: written at once, so that the folder is recognised if the study is killed.
    Raises: InputError if it holds something else.
    """
    record = out / "provenance.json"
    if record.is_file():
        try:
            found = json.loads(record.read_text(encoding="utf-8")).get("digest")
        except (ValueError, AttributeError):
            raise InputError(f"{record}: not readable; take another --out, or remove the folder") from None
        if found != digest:
            raise InputError(
                f"{out}: holds a study of another config, scans, weights or version of qsim; take another "
                "--out, or remove the folder"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and holds no study; take another --out")
    out.mkdir(parents=True, exist_ok=True)
    replace(record, json_text(provenance))


@contextmanager
def progress_bar(unit: str, total: int, completed: int = 0) -> Iterator[tuple[Progress, Any]]:
    """A bar on the terminal, and nothing where there is none."""
    console = Console(stderr=True)
    columns = (
        TextColumn("study"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress, progress.add_task("study", total=total, completed=completed)


def run_in_order(jobs: Sequence[Job], run: Callable[[Job], Done], unit: str, workers: int) -> list[Done]:
    """Run jobs on threads under a bar; their results in the order of the jobs, whatever finished first."""
    found: dict[str, Done] = {}
    with one_torch_thread(), progress_bar(unit, len(jobs)) as (progress, bar):

        def done(name: str, result: Done) -> None:
            found[name] = result
            progress.advance(bar)

        run_tasks(run, {str(i): job for i, job in enumerate(jobs)}, workers, "threads", done)
    return [found[str(i)] for i in range(len(jobs))]


def say(message: str) -> None:
    """One line on the terminal, not broken."""
    Console(stderr=True, highlight=False).print(message, soft_wrap=True)


def versions() -> dict[str, str]:
    """Versions of what made the numbers."""
    packages = {name: version(name) for name in ("qsim", "numpy", "scipy", "torch", "matplotlib")}
    return {**packages, "python": platform.python_version(), "platform": platform.platform()}


def commit() -> str | None:
    """Commit of the checkout this runs from, with "-dirty" if files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent.parent.parent
    if not (here / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def sha256_of(files: Iterable[Path]) -> dict[str, str]:
    """Of every file that was read, by its path."""
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def json_text(content: Mapping[str, Any]) -> str:
    """JSON of a mapping, NaN refused."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
