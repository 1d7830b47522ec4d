"""A real Dask cluster on loopback; one of its two workers dies in the middle."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from numpy.testing import assert_array_equal

from generators.build import build
from generators.config import GeneratorConfig
from generators.sample import Samples, make_samples
from generators.store import PatchStore, verify
from qsim.errors import InputError

Make = Callable[..., GeneratorConfig]


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Address of a `dask scheduler` with `dask worker` processes, on ports the system chose."""
    file, log = folder / "scheduler.json", (folder / "cluster.log").open("wb")
    dask = [sys.executable, "-m", "dask"]
    listening = ["--host", "127.0.0.1", "--no-dashboard"]
    working = ["--nthreads", "1", "--no-nanny", "--local-directory", str(folder)]
    processes: list[subprocess.Popen[bytes]] = []

    def start(command: list[str]) -> None:
        processes.append(subprocess.Popen([*dask, *command], stdout=log, stderr=log))

    try:
        start(["scheduler", "--port", "0", "--scheduler-file", str(file), *listening])
        while (address := written_address(file)) is None:
            with pytest.raises(subprocess.TimeoutExpired):
                processes[0].wait(timeout=0.1)
        for _ in range(workers):
            start(["worker", address, *listening, *working])
        yield address, processes[1:]
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait(timeout=30)
        log.close()


def written_address(file: Path) -> str | None:
    """The address in a scheduler's file; None while the file is absent or half-written."""
    try:
        return str(json.loads(file.read_text())["address"])
    except (FileNotFoundError, json.JSONDecodeError):
        return None


@pytest.mark.timeout(180)
def test_a_worker_dies_and_the_arrays_are_the_same(generator_config: Make, tmp_path: Path) -> None:
    from distributed import Client

    config, path = generator_config(samples=60), tmp_path / "s.zarr"
    with cluster(tmp_path, workers=2) as (address, workers):
        with Client(address, set_as_default=False) as client:  # type: ignore[no-untyped-call]
            client.wait_for_workers(2, timeout=60)

        def kill_one(done: int, total: int) -> None:
            if 0 < done < total and workers[0].poll() is None:
                workers[0].send_signal(signal.SIGKILL)
                workers[0].wait(timeout=30)

        built = build(config, path, scheduler=address, shard=2, chunk=2, progress=kill_one)
        assert workers[0].returncode == -signal.SIGKILL
        assert workers[1].poll() is None
    assert built.made == 60
    stored, made = PatchStore(path).read(0, 60), make_samples(config, range(60))
    for name in Samples.__slots__:
        assert_array_equal(getattr(stored, name).numpy(), getattr(made, name).numpy(), err_msg=name)
    assert verify(path) == []


def test_no_scheduler(generator_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generators.schedulers._PATIENCE", 0.5)
    # port 9 (discard) has no scheduler
    with pytest.raises(InputError, match=r"scheduler: tcp://127\.0\.0\.1:9 cannot be reached"):
        build(generator_config(), tmp_path / "s.zarr", scheduler="tcp://127.0.0.1:9")
    with pytest.raises(InputError, match="unfinished"):
        PatchStore(tmp_path / "s.zarr")
