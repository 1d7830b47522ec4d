"""Where the tasks of a build run: threads or processes of this machine, or the workers of a Dask cluster."""

import os
import signal
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context, parent_process

from generators.tasks import ShardTask, make_shard
from qsim.errors import InputError

# how often a distributed task is tried again after an exception; a dead worker's tasks move to others anyway
_RETRIES = 1
# how long to wait for a scheduler and its first worker [s]
_PATIENCE = 30

Progress = Callable[[int, int], None]


def check_scheduler(scheduler: str) -> None:
    """Refuse what is neither a kind of workers nor an address.

    Raises: InputError.
    """
    if scheduler not in ("threads", "processes") and "://" not in scheduler:
        raise InputError(f"scheduler: wanted threads, processes or an address like tcp://host:8786, got {scheduler!r}")


def run(tasks: list[ShardTask], workers: int, scheduler: str, progress: Progress | None) -> None:
    """Run all tasks; the first error ends it.

    Args:
        tasks: one per shard.
        workers: tasks at a time on this machine.
        scheduler: `threads`, `processes`, or the address of a Dask scheduler.
        progress: called with the samples done and in all.
    Raises: InputError if the cluster cannot be reached or a process died; what a task raised.
    """
    total = sum(task.stop - task.start for task in tasks)
    done = 0

    def finished(samples: int) -> None:
        nonlocal done
        done += samples
        if progress is not None:
            progress(done, total)

    if progress is not None:
        progress(0, total)
    if "://" in scheduler:
        _run_distributed(tasks, scheduler, finished)
    else:
        _run_here(tasks, min(workers, len(tasks)), scheduler, finished)


def _run_here(tasks: list[ShardTask], workers: int, scheduler: str, finished: Callable[[int], None]) -> None:
    from dask.base import compute
    from dask.callbacks import Callback
    from dask.delayed import delayed

    sizes = {f"shard-{task.number}": task.stop - task.start for task in tasks}
    jobs = [delayed(make_shard, pure=False)(task, dask_key_name=f"shard-{task.number}") for task in tasks]

    def after(key: str, *_: object) -> None:
        if key in sizes:
            finished(sizes[key])

    pool: ProcessPoolExecutor | ThreadPoolExecutor
    if scheduler == "processes":
        # never fork: Zarr and torch hold threads, which do not survive it
        pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)
    else:
        pool = ThreadPoolExecutor(workers)
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
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _run_distributed(tasks: list[ShardTask], address: str, finished: Callable[[int], None]) -> None:
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
        futures = [
            client.submit(make_shard, task, key=f"shard-{task.number}-{run}", retries=_RETRIES, pure=False)
            for task in tasks
        ]
        try:
            for future in as_completed(futures, loop=client.loop):  # type: ignore[no-untyped-call]
                finished(future.result())
        except BaseException:
            client.cancel(futures)  # type: ignore[no-untyped-call]
            raise
