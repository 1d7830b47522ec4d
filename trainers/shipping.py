"""What all shipped networks have in common: a name that is free, weights and a header, and a card beside them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from qsim.errors import InputError
from trainers.checkpoint import save_tensors, write_text

# what `save_tensors` writes into every header
_OF_FILE = ("format", "version")


def free_files(name: str, folder: Path) -> tuple[Path, Path]:
    """`<name>.safetensors` and its card `<name>.md`, neither of which is there yet.

    Args:
        folder: `trainers/shipped` of this package; it must be there.
    Raises: InputError if the name does not fit, the folder is missing, or a file of that name is there.
    """
    if not re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name):
        raise InputError(f"name: wanted lower-case words and numbers joined by -, as t1rho-liver, got {name!r}")
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder; make it, or name that of the shipped networks")
    files = folder / f"{name}.safetensors", folder / f"{name}.md"
    for file in files:
        if file.exists():
            raise InputError(f"{file}: exists already; remove it first, or take another name")
    return files


def weights_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's own, without what the training was using."""
    return {key: tensor for key, tensor in tensors.items() if key.startswith("net/")}


def own_header(header: Mapping[str, Any]) -> dict[str, Any]:
    """What the training said of itself, without what the file says of its format."""
    return {key: each for key, each in header.items() if key not in _OF_FILE}


def give(files: tuple[Path, Path], weights: Mapping[str, Tensor], header: Mapping[str, Any], card: str) -> None:
    """Write both files; the card is composed before, so that what it cannot say leaves no network without one."""
    save_tensors(files[0], weights, header)
    write_text(files[1], card)


def grouped(number: int) -> str:
    """A number with its thousands apart."""
    return f"{number:,}".replace(",", " ")
