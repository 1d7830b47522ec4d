"""Where networks run: devices by the word of an option, mixed precision, and threads."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

from qsim.errors import InputError
from trainers.fit import resolve_precision


def devices_of(wanted: str) -> list[str]:
    """All devices of an option, `auto`, `cpu` or `cuda`: the CPU, or every CUDA device.

    Raises: InputError if CUDA is asked for and there is none.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return ["cpu"]
    if not torch.cuda.is_available():
        raise InputError("--device cuda: there is no CUDA device; take cpu")
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


def device_of(wanted: str) -> torch.device:
    """The first device of an option, see `devices_of`.

    Raises: InputError if CUDA is asked for and there is none.
    """
    return torch.device(devices_of(wanted)[0])


def mixed_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> AbstractContextManager[Any]:
    """A context in which networks multiply in bf16 where that is asked for."""
    if resolve_precision(wanted, device) == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def one_thread() -> None:
    """One thread each for torch and for the resampling of TorchIO, unless OMP_NUM_THREADS says otherwise."""
    from SimpleITK import ProcessObject

    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    torch.set_num_threads(threads)
    ProcessObject.SetGlobalDefaultNumberOfThreads(threads)  # type: ignore[no-untyped-call]
