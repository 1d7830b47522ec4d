"""Where tasks run: threads or processes of this machine, or the workers of a Dask cluster."""

import os
import signal
import threading
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context, parent_process
from typing import TypeVar

import torch

from qsim.errors import InputError

# how often a distributed task is tried again after an exception; a dead worker's tasks move to others anyway
_RETRIES = 1
# how long to wait for a scheduler and its first worker [s]
_PATIENCE = 30

Progress = Callable[[int, int], None]
Task = TypeVar("Task")
Result = TypeVar("Result")


def check_scheduler(scheduler: str) -> None:
    """Refuse what is neither a kind of workers nor an address.

    Raises: InputError.
    """
    if scheduler not in ("threads", "processes") and "://" not in scheduler:
        raise InputError(f"scheduler: wanted threads, processes or an address like tcp://host:8786, got {scheduler!r}")


def run(
    call: Callable[[Task], Result],
    tasks: Mapping[str, Task],
    workers: int,
    scheduler: str,
    finished: Callable[[str, Result], None],
) -> None:
    """Run all tasks; the first error ends it.

    Args:
        call: a function of a module, which processes and clusters can find by its name.
        tasks: what it is called with, by a name that tells them apart.
        workers: tasks at a time on this machine.
        scheduler: `threads`, `processes`, or the address of a Dask scheduler.
        finished: called in this thread with the name and the result of each, in the order in which they end.
    Raises: InputError if the cluster cannot be reached or a process died; what a task raised.
    """
    if not tasks:
        return
    if "://" in scheduler:
        _run_distributed(call, tasks, scheduler, finished)
    else:
        _run_here(call, tasks, min(workers, len(tasks)), scheduler, finished)


def _run_here(
    call: Callable[[Task], Result],
    tasks: Mapping[str, Task],
    workers: int,
    scheduler: str,
    finished: Callable[[str, Result], None],
) -> None:
    from dask.base import compute
    from dask.callbacks import Callback
    from dask.delayed import delayed

    jobs = [delayed(call, pure=False)(task, dask_key_name=f"task-{name}") for name, task in tasks.items()]

    def after(key: str, result: Result, *_: object) -> None:
        if key.startswith("task-") and (name := key.removeprefix("task-")) in tasks:
            finished(name, result)

    pool: ProcessPoolExecutor | ThreadPoolExecutor
    if scheduler == "processes":
        # never fork: Zarr and torch hold threads, which do not survive it
        pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)
    else:
        pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        with Callback(posttask=after):  # type: ignore[no-untyped-call]
            compute(*jobs, scheduler=scheduler, pool=pool, chunksize=1, optimize_graph=False)  # type: ignore[no-untyped-call]
    except BrokenExecutor:
        raise InputError(
            "a worker process died (out of memory? or a script without `if __name__ == '__main__'`?); run the same "
            "again to go on, with fewer workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """In a worker process: leave Ctrl-C to the parent, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _run_distributed(
    call: Callable[[Task], Result],
    tasks: Mapping[str, Task],
    address: str,
    finished: Callable[[str, Result], None],
) -> None:
    from distributed import Client, as_completed

    try:
        client = Client(address, timeout=_PATIENCE, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise InputError(f"scheduler: {address} cannot be reached ({error}); start one with `dask scheduler`") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError:
            raise InputError(
                f"scheduler: {address} has no workers; start some with `dask worker {address} --nthreads 1`"
            ) from None
        run = uuid.uuid4().hex
        futures = {
            client.submit(call, task, key=f"{name}-{run}", retries=_RETRIES, pure=False): name
            for name, task in tasks.items()
        }
        try:
            for future in as_completed(futures, loop=client.loop):  # type: ignore[no-untyped-call]
                finished(futures[future], future.result())
        except BaseException:
            client.cancel(list(futures))  # type: ignore[no-untyped-call]
            raise
