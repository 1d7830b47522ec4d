"""Options of a trained network, as the config of a study and `qsim map` name them, and its name in tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal, TypedDict, get_args

from qsim.errors import InputError

Given = Mapping[str, bool | int | float | str]
Noise = Literal["gaussian", "rician"]
Units = Literal["delta", "literal"]


class OfRelaxation(TypedDict, total=False):
    """What `trainers.load` can be told of a self_supervised network, as far as it is given."""

    samples: int
    units: Units
    images: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """What `trainers.load` can be told of a network; None: as the network has it.

    Attributes:
        ensemble: further networks that answer together with the one that is named.
    """

    contrast: float | None = None
    noise: Noise | None = None
    samples: int | None = None
    units: Units | None = None
    images: tuple[int, ...] | None = None
    ensemble: tuple[str, ...] = ()

    @property
    def of_relaxation(self) -> OfRelaxation:
        found: OfRelaxation = {}
        if self.samples is not None:
            found["samples"] = self.samples
        if self.units is not None:
            found["units"] = self.units
        if self.images is not None:
            found["images"] = self.images
        return found


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
    contrast, samples = given.get("contrast"), given.get("samples")
    if contrast is not None and (isinstance(contrast, bool | str) or not (isfinite(contrast) and contrast >= 1)):
        raise InputError(f"{place}contrast: wanted a number of at least 1, got {contrast!r}")
    kinds: tuple[Noise, ...] = get_args(Noise)
    scales: tuple[Units, ...] = get_args(Units)
    noise, units = given.get("noise"), given.get("units")
    if noise is not None and noise not in kinds:
        raise InputError(f"{place}noise: wanted {' or '.join(kinds)}, got {noise!r}")
    if units is not None and units not in scales:
        raise InputError(f"{place}units: wanted {' or '.join(scales)}, got {units!r}")
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 0):
        raise InputError(f"{place}samples: wanted a whole number, 0 or more, got {samples!r}")
    return NetworkOptions(
        None if contrast is None else float(contrast),
        next((kind for kind in kinds if kind == noise), None),
        samples if isinstance(samples, int) else None,
        next((kind for kind in scales if kind == units), None),
        _numbers(given["images"], place) if "images" in given else None,
        _runs(given["ensemble"], place) if "ensemble" in given else (),
    )


def _numbers(given: bool | float | str, place: str) -> tuple[int, ...]:
    try:
        # int() would take 1.5 for 1, but not its text
        return tuple(int(each) for each in str(given).split(","))
    except ValueError:
        raise InputError(
            f"{place}images: wanted numbers of images, counted from 0, separated by commas, as 0,2; got {given!r}"
        ) from None


def _runs(given: bool | float | str, place: str) -> tuple[str, ...]:
    found = tuple(each.strip() for each in given.split(",")) if isinstance(given, str) else ()
    if not found or not all(found):
        raise InputError(f"{place}ensemble: wanted runs separated by commas, as runs/b,runs/c; got {given!r}")
    return found


def runs_of(run: str, options: NetworkOptions) -> str | tuple[str, ...]:
    """The network that is named, with the further ones of its ensemble."""
    return (run, *options.ensemble) if options.ensemble else run


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
