"""The whole training: blocks, every stage in the order of what it needs, calibration, one file at the end.

    task -> teacher, teacher, ... -> student          (paper; teachers side by side where there are devices or workers)
    task -> student -> heads                          (qsim)

A stage that has ended is not trained again; one that was stopped goes on from its checkpoint.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console

from generators.sample import scene
from qsim.distributions import Streams
from qsim.errors import InputError
from trainers.checkpoint import MODEL, check_claim, claim, load_tensors, save_tensors
from trainers.devices import devices_of, one_thread
from trainers.quality.blocks import make_stores, read_blocks
from trainers.quality.calibrate import calibration_of
from trainers.quality.config import DecoupledConfig
from trainers.quality.recipes import Recipe
from trainers.quality.stage import Anatomies, train_stage

DATA, STAGES = "data", "stages"


def train_cascade(
    config: DecoupledConfig,
    out: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    workers: int = 1,
    console: Console | None = None,
) -> Path:
    """Train every stage of a cascade.

    Args:
        config: what is learned, from what, how long.
        out: folder of the run: config.json, data/, stages/<name>/, and at the end model.safetensors.
        resume: go on with the same config in the same folder.
        device: `auto` is CUDA where there is one.
        workers: stages trained side by side in processes of their own where none needs the other, beside one for every
            further CUDA device; no number depends on it.
        console: where the progress goes; None: stderr.
    Returns: the file of the last network.

    Raises: InputError if the folder is taken, or data do not fit; DivergedError if a loss is no longer finite.
    """
    console = console or Console(stderr=True)
    one_thread()
    devices = devices_of(device)
    check_claim(out, config, resume)
    if (out / MODEL).is_file():
        console.print(f"{out}: nothing left to do")
        return out / MODEL
    _check_anatomies(config)
    claim(out, config, resume)
    (out / DATA).mkdir(exist_ok=True)
    train = make_stores(config.data.train, out / DATA, "data.train", workers, console)
    validation = make_stores(config.data.validation, out / DATA, "data.validation", workers, console)
    side_by_side = max(workers, len(devices))
    anatomies: Anatomies | None = None
    for wave in waves(config):
        left = [name for name in wave if not (out / STAGES / name / MODEL).is_file()]
        if len(left) > 1 and side_by_side > 1:
            _in_processes(config, left, train, validation, out / STAGES, devices, side_by_side)
            continue
        for name in left:
            console.print(f"stage {name}")
            anatomies = anatomies or read_anatomies(config, train, validation)
            train_stage(config, name, anatomies, out / STAGES, torch.device(devices[0]), console)
    last = config.stage_names[-1]
    tensors, header = load_tensors(out / STAGES / last / MODEL)
    calibration = calibration_of(config, out, torch.device(devices[0]), workers, console)
    save_tensors(out / MODEL, tensors, {**header, "calibration": calibration})
    return out / MODEL


def waves(config: DecoupledConfig) -> list[tuple[str, ...]]:
    """Stages that can be trained at the same time, in the order of their turns."""
    done: set[str] = set()
    found = []
    while len(done) < len(config.stage_names):
        ready = tuple(
            name for name in config.stage_names if name not in done and done.issuperset(Recipe(name, config).needs)
        )
        found.append(ready)
        done.update(ready)
    return found


def read_anatomies(config: DecoupledConfig, train: Sequence[Path], validation: Sequence[Path]) -> Anatomies:
    """The blocks of a cascade, read into memory.

    Raises: InputError naming the store at fault.
    """
    read = Anatomies(
        read_blocks(train, config.data.target, "data.train"),
        read_blocks(validation, config.data.target, "data.validation"),
    )
    for field, blocks in (("train", read.train), ("validation", read.validation)):
        extent = tuple(blocks.images.shape[1:])
        if any(n < p for n, p in zip(extent, config.patch, strict=True)):
            raise InputError(
                f"patch: {' x '.join(map(str, config.patch))} does not fit into the blocks of data.{field}, "
                f"{' x '.join(map(str, extent))}"
            )
    return read


def _check_anatomies(config: DecoupledConfig) -> None:
    """Read what the blocks are cut from, before a folder is made.

    Raises: InputError naming the data set at fault.
    """
    for field in ("train", "validation", "calibration"):
        for number, each in enumerate(getattr(config.data, field)):
            if each.generate is not None:
                try:
                    # a block that does not fit into the anatomy is found here too
                    scene(each.generate).phantom.crop(each.generate.patch, Streams(config.seed, number).rng("check"))
                except InputError as error:
                    raise InputError(f"data.{field}[{number}].generate: {error}") from None


def _in_processes(
    config: DecoupledConfig,
    names: Sequence[str],
    train: Sequence[Path],
    validation: Sequence[Path],
    folder: Path,
    devices: Sequence[str],
    side_by_side: int,
) -> None:
    """Train stages that do not need each other, each in a process of its own."""
    content = config.model_dump_json()
    # a forked process would share torch's threads and the CUDA context
    with ProcessPoolExecutor(min(side_by_side, len(names)), mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(_alone, content, name, list(train), list(validation), folder, devices[number % len(devices)])
            for number, name in enumerate(names)
        ]
        for job in jobs:
            job.result()


def _alone(content: str, name: str, train: list[Path], validation: list[Path], folder: Path, device: str) -> None:
    """One stage in a process of its own; its progress is one line at the end."""
    one_thread()
    config = DecoupledConfig.model_validate_json(content)
    with Path(os.devnull).open("w") as nowhere:
        train_stage(
            config, name, read_anatomies(config, train, validation), folder, torch.device(device), Console(file=nowhere)
        )
