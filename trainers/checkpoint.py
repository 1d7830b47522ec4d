"""Networks and interrupted trainings on disk: safetensors with a JSON description in the header, nothing pickled.

A file is written beside its place and moved there when it is whole, so a kill leaves the old file or the new one.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from math import inf
from pathlib import Path
from platform import python_version
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from qsim.errors import InputError

MODEL, STATE, CONFIG, METRICS = "model.safetensors", "checkpoint.safetensors", "config.json", "metrics.jsonl"
_FORMAT, _VERSION = "qsim-network", 1


def versions() -> dict[str, str]:
    """What the weights were made with."""
    return {"qsim": version("qsim"), "torch": torch.__version__, "python": python_version()}


def write_text(path: Path, text: str) -> None:
    """Write a text file in one piece."""
    _write(path, text.encode())


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


def save_tensors(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and their description in one piece.

    Raises: InputError if the file cannot be written.
    """
    header = {"format": _FORMAT, "version": _VERSION, **description}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _write(path, save(plain, metadata={_FORMAT: json.dumps(header, allow_nan=False)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and their description.

    Raises: InputError if the file is missing, damaged, or was not written by this project.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_FORMAT, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: truncated or not a safetensors file ({error}); copy it again, or make it anew"
        ) from None
    if header.get("format") != _FORMAT:
        raise InputError(f"{path}: a safetensors file, but not a network of this project")
    if header["version"] > _VERSION:
        raise InputError(f"{path}: written by a newer version of qsim (format {header['version']}); update qsim")
    return tensors, header


def training_tensors(net: nn.Module, optimiser: Optimizer) -> dict[str, Tensor]:
    """Weights as `net/...`, and the optimiser's moments of each of them as `adam/<moment>/...`."""
    tensors = {f"net/{name}": tensor for name, tensor in net.state_dict().items()}
    for name, weight in net.named_parameters():
        tensors |= {f"adam/{moment}/{name}": value for moment, value in optimiser.state[weight].items()}
    return tensors


def restore_weights(net: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put stored weights into a network.

    Raises: InputError if names or shapes differ.
    """
    try:
        net.load_state_dict({name.removeprefix("net/"): t for name, t in tensors.items() if name.startswith("net/")})
    except RuntimeError as error:
        raise InputError(
            f"{path}: its weights do not fit the network of its config ({str(error).split(chr(10))[1].strip()})"
        ) from None


def restore_optimiser(net: nn.Module, optimiser: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put stored moments into the optimiser, in the memory layout of the weights, so that it goes on to the bit."""
    for name, weight in net.named_parameters():
        stored = {
            key.split("/")[1]: t for key, t in tensors.items() if key.startswith("adam/") and key.endswith(f"/{name}")
        }
        for moment, value in stored.items():
            like = torch.empty_like(weight) if value.shape == weight.shape else torch.empty_like(value)
            optimiser.state[weight][moment] = like.copy_(value).detach()


@dataclass
class Progression:
    """Where a training stands; part of the checkpoint.

    Attributes:
        iteration: updates made.
        seconds: wall time of all sessions [s].
        losses: sum of the losses since the last line of the log, and how many.
        metrics: of the last validation.
        best: least sum of the metrics of a validation.
        worse: validations since then.
    """

    iteration: int = 0
    seconds: float = 0.0
    losses: tuple[float, int] = (0.0, 0)
    metrics: dict[str, float] = field(default_factory=dict)
    best: float = inf
    worse: int = 0


def check_claim(out: Path, config: BaseModel, resume: bool) -> bool:
    """Whether the folder holds a run of the same config; False: it is to be begun.

    A stored config is read as a new one is: a key that did not exist when the run began has its default.

    Raises: InputError if it holds anything else, or that run without `resume`.
    """
    stored = out / CONFIG
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not resume:
            raise InputError(f"{out}: exists already; add --resume to go on with it, or choose another --out")
        if not stored.is_file():
            raise InputError(f"{out}: holds no {CONFIG}, so it is not a run of qsim train; choose another --out")
        try:
            began = type(config).model_validate_json(stored.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise InputError(
                f"{stored}: does not fit this version of qsim ({place}: {first['msg']}); choose another --out"
            ) from None
        before, now = began.model_dump(mode="json"), config.model_dump(mode="json")
        changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        if changed:
            raise InputError(
                f"{out}: was started with another config ({', '.join(changed)} differ); choose another --out"
            )
        return True
    return False


def claim(out: Path, config: BaseModel, resume: bool) -> None:
    """Make the folder of a run, or check that it is one of the same config, as `check_claim` does.

    Raises: InputError.
    """
    if check_claim(out, config, resume):
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({error.strerror or error})") from None
    write_text(out / CONFIG, json.dumps(config.model_dump(mode="json"), indent=1) + "\n")


def restore(out: Path, net: nn.Module, optimiser: Optimizer, description: Mapping[str, Any]) -> Progression:
    """Weights, moments and progress of the last checkpoint; every device of a training reads it.

    Raises: InputError if the data or the precision are not those of the checkpoint.
    """
    path = out / STATE
    state = Progression()
    if path.is_file():
        tensors, header = load_tensors(path)
        for key, what in (("data_digest", "data"), ("precision", "precision"), ("images_scale", "data")):
            if header[key] != description[key]:
                raise InputError(f"{path}: {what} differ from those of the checkpoint ({key}); choose another --out")
        restore_weights(net, tensors, path)
        restore_optimiser(net, optimiser, tensors)
        progress = header["progress"]
        state = Progression(
            progress["iteration"],
            progress["seconds"],
            (progress["losses"][0], progress["losses"][1]),
            progress["metrics"],
            progress.get("best", inf),
            progress.get("worse", 0),
        )
    return state


def resumed(
    path: Path, net: nn.Module, optimiser: Optimizer, data_digest: str
) -> tuple[Progression, dict[str, Tensor], dict[str, Any]]:
    """Put weights and moments of a checkpoint back; its progress, and tensors and header for what else it holds.

    Raises: InputError if its data are others.
    """
    tensors, header = load_tensors(path)
    if header["data_digest"] != data_digest:
        raise InputError(f"{path}: data differ from those of the checkpoint; choose another --out")
    restore_weights(net, tensors, path)
    restore_optimiser(net, optimiser, tensors)
    progress = header["progress"]
    losses = (progress["losses"][0], progress["losses"][1])
    return Progression(progress["iteration"], progress["seconds"], losses, progress["metrics"]), tensors, header


def best_weights(out: Path, state: Progression) -> dict[str, Tensor]:
    """The weights of the best validation of a training that goes on; empty at its start, or where they are not kept."""
    path = out / STATE
    if state.iteration == 0 or not path.is_file():
        return {}
    tensors, _ = load_tensors(path)
    return {name.removeprefix("best/"): each for name, each in tensors.items() if name.startswith("best/")}


def trim_log(out: Path, iteration: int) -> None:
    """Cut off the lines of the log after an iteration. One device only may do it: it writes."""
    log = out / METRICS
    if log.is_file():
        # a kill may leave half a line at the end
        whole = [line for line in log.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("}\n")]
        write_text(log, "".join(line for line in whole if json.loads(line)["iteration"] <= iteration))
