"""Options of a trained network, as the config of a study and `qsim map` name them, and its name in tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal, get_args

from qsim.errors import InputError

Given = Mapping[str, bool | int | float | str]
Noise = Literal["gaussian", "rician"]


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """What `trainers.load` can be told of a network; None: as the network has it."""

    contrast: float | None = None
    noise: Noise | None = None


def network_options(given: Given, place: str, others: Sequence[str] = ()) -> NetworkOptions:
    """Options of a network; whether it has them is known when it is loaded.

    Args:
        place: what messages start with, before the name of an option.
        others: further options, for the message.
    Raises: InputError, starting with the place and the option.
    """
    names = tuple(NetworkOptions.__dataclass_fields__)
    for name in given:
        if name not in names:
            raise InputError(f"{place}{name}: is no option of a network, wanted {' or '.join((*others, *names))}")
    contrast, noise = given.get("contrast"), given.get("noise")
    if contrast is not None and (isinstance(contrast, bool | str) or not (isfinite(contrast) and contrast >= 1)):
        raise InputError(f"{place}contrast: wanted a number of at least 1, got {contrast!r}")
    kinds: tuple[Noise, ...] = get_args(Noise)
    if noise is not None and noise not in kinds:
        raise InputError(f"{place}noise: wanted {' or '.join(kinds)}, got {noise!r}")
    return NetworkOptions(
        None if contrast is None else float(contrast), next((kind for kind in kinds if kind == noise), None)
    )


def of_option(message: str) -> bool:
    """Whether a message of `trainers.load` is about one of these."""
    return message.partition(":")[0] in NetworkOptions.__dataclass_fields__


def network_name(run: str, task: str, options: Given | None = None) -> str:
    """In tables: a shipped network by its own name, a run by that of its task; and the options.

    Args:
        run: as the user named it.
        task: the network's own name.
    """
    from trainers.infer import find_network

    said = [
        f"{name} {value:g}" if isinstance(value, int | float) else f"{name} {value}"
        for name, value in (options or {}).items()
    ]
    return ", ".join([run if find_network(run).stem == run else task, *said])
