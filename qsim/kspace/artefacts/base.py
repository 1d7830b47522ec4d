"""What an artefact is: a frozen value that first draws, then applies.

    drawn = artefact.draw(images.shape, rng)        all that is random, as JSON holds it
    corrupted = artefact.apply(images, drawn)       complex in, complex out; the same draw gives the same image

The severity of a draw is 0 if and only if the draw changes nothing; what it measures is said by each artefact.
"""

from collections.abc import Mapping
from dataclasses import fields
from enum import IntEnum
from functools import lru_cache
from typing import Any, ClassVar, Literal, Protocol, TypeVar, get_type_hints, runtime_checkable

import numpy as np
from jaxtyping import Complex
from torch import Tensor

from qsim.kspace.acquired import Acquired, Json, space_of

Ndim = Literal[2, 3]


class Stage(IntEnum):
    """Where along the way of the signal an artefact happens; a chain keeps this order."""

    OBJECT = 0  # what is imaged: motion
    FIELD = 1  # fields it lies in: bias field, off-resonance
    READOUT = 2  # modulation from line to line: ghosts
    INTERFERENCE = 3  # what the receiver picks up besides: spikes, zippers
    NOISE = 4
    SAMPLING = 5  # which samples are kept: low-pass, Gibbs, wrap, partial Fourier


@runtime_checkable
class Drawn(Protocol):
    """What was drawn: a frozen dataclass of numbers, strings and tuples of them."""

    @property
    def severity(self) -> float:
        """0 if and only if nothing changes."""
        ...


D = TypeVar("D")


@runtime_checkable
class Artefact(Protocol[D]):
    """An artefact. `act` is its physics; `apply` is `applied` of this module.

    Attributes:
        stage: where in a chain it belongs.
        kind: its name in configs.
        probability: that a chain applies it to a series.
        ndim: axes of space it acts on, the last two or three; all but the first if None. Axes before them (images,
            coils) share the draw unless the artefact says that it is per image.
    """

    stage: ClassVar[Stage]

    @property
    def kind(self) -> str: ...

    @property
    def probability(self) -> float: ...

    @property
    def ndim(self) -> Ndim | None: ...

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> D:
        """Draw all that is random.

        Args:
            shape: of the images, `(n, *space)`.
        Raises: ValueError if the artefact cannot be on images of this shape.
        """
        ...

    def act(self, acquired: Acquired, drawn: D) -> Acquired:
        """Apply what was drawn to images that may be in k-space; what is found out goes into `facts`."""
        ...

    def apply(self, images: Complex[Tensor, "*lead_and_space"], drawn: D) -> Complex[Tensor, "*lead_and_space"]:
        """Apply what was drawn.

        Raises: ValueError if the images are real, not finite, require grad, or are not of the shape that was drawn
            for; or if the draw is that of another artefact.
        """
        ...


def applied(
    artefact: Artefact[D], images: Complex[Tensor, "*lead_and_space"], drawn: D
) -> Complex[Tensor, "*lead_and_space"]:
    """`apply` of every artefact: into the chain's form, act, back."""
    check_drawn(artefact, drawn)
    return artefact.act(Acquired.of(images, artefact.ndim), drawn).images()


def check_drawn(artefact: Artefact[D], drawn: object) -> None:
    """Refuse what another artefact drew; what `draw` says that it returns is what `act` takes.

    Raises: ValueError naming both.
    """
    wanted = _drawn_type(type(artefact))
    if wanted is not None and not isinstance(drawn, wanted):
        raise ValueError(f"drawn: a {artefact.kind} applies its own {wanted.__name__}, got {type(drawn).__name__}")


@lru_cache(maxsize=64)
def _drawn_type(cls: type) -> type | None:
    found = get_type_hints(cls.draw).get("return")  # type: ignore[attr-defined]
    return found if isinstance(found, type) else None


def check_common(probability: float, ndim: int | None) -> None:
    """Checks of the fields that every artefact has.

    Raises: ValueError, starting with the name of the field.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie in [0, 1], got {probability}")
    if ndim not in (None, 2, 3):
        raise ValueError(f"ndim must be 2 or 3, got {ndim}")


def check_space(acquired: Acquired, space: tuple[int, ...]) -> None:
    """Refuse images of another extent than the draw was made for.

    Raises: ValueError with both.
    """
    if acquired.space != space:
        raise ValueError(f"images of {acquired.space} voxels do not fit a draw for {space}; draw again for their shape")


def check_count(acquired: Acquired, count: int) -> None:
    """Refuse a series of another length than a draw per image was made for.

    Raises: ValueError with both.
    """
    if acquired.count != count:
        raise ValueError(f"images: got {acquired.count}, the draw is for {count}; draw again for their shape")


def check_axis(name: str, axis: int, space: tuple[int, ...]) -> int:
    """The axis of space counted from 0.

    Args:
        axis: counted from the last backwards: -1 is x. From the first it would be z of a volume and y of a slice.
    Raises: ValueError, starting with the name of the field, if there is no such axis.
    """
    n = len(space)
    if axis >= 0:
        raise ValueError(f"{name}: got {axis}; axes count from the end: -1 is x, -2 y, -3 z")
    if axis < -n:
        raise ValueError(f"{name}: axis {axis} does not exist; space has {n} axes, -1 (x) to -{n}")
    return axis % n


def drawn_for(shape: tuple[int, ...], ndim: int | None) -> tuple[int, tuple[int, ...]]:
    """Number of images and extent of space of images of a shape.

    Raises: ValueError if the shape has too few axes, or an empty one.
    """
    space = space_of(shape, ndim)
    lead = shape[: len(shape) - len(space)]
    return (int(lead[0]) if lead else 1), space


def as_json(drawn: Drawn) -> Mapping[str, Json]:
    """All that was drawn, severity included, as JSON holds it."""
    named = {field.name: _plain(getattr(drawn, field.name)) for field in fields(drawn)}  # type: ignore[arg-type]
    return {**named, "severity": float(drawn.severity)}


def _plain(thing: Any) -> Json:
    if hasattr(thing, "__dataclass_fields__"):
        return {field.name: _plain(getattr(thing, field.name)) for field in fields(thing)}
    if isinstance(thing, tuple | list):
        return [_plain(each) for each in thing]
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    raise TypeError(f"a draw holds numbers, strings and tuples of them, got {type(thing).__name__}")
