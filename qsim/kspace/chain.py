"""The chain: artefacts after one another, each drawn first, transforms shared between neighbours.

    images -> [motion] -> [fields] -> [ghosts] -> [spikes] -> [noise] -> [which samples are kept] -> images

The order is that of the scanner and is kept: a low-pass before the noise would leave noise where nothing was sampled.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Complex
from torch import Tensor

from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.kspace.acquired import Acquired, Json, require_detached
from qsim.kspace.artefacts.base import Artefact, Drawn, as_json, check_drawn
from qsim.kspace.fourier import require_complex

Rng = Callable[[str], np.random.Generator]


@dataclass(frozen=True, slots=True)
class Corrupted:
    """Images after a chain.

    Attributes:
        images: complex, of the shape that was given.
        drawn: of each artefact; None where its probability left it out.
        severity: of each artefact; 0 where it was left out.
        facts: what each artefact found out about these images, as JSON holds it.
    """

    images: Complex[Tensor, "*lead_and_space"]
    drawn: tuple[Drawn | None, ...]
    severity: tuple[float, ...]
    facts: tuple[Mapping[str, Json], ...]


def corrupt(
    images: Complex[Tensor, "n *space"], artefacts: Sequence[Artefact[Any]], rng: np.random.Generator
) -> Corrupted:
    """Draw every artefact, then apply all of them.

    Args:
        images: complex series; with coils or without an axis of images, name `ndim` in the artefacts.
        artefacts: in the order of the scanner (`Stage`).
        rng: one number is taken from it.
    Raises: ValueError if images are real, empty or not finite; InputError if artefacts are out of order.
    """
    seed = int(rng.integers(2**63))
    drawn = draw_chain(artefacts, tuple(images.shape), Streams(seed, 0).rng)
    return apply_chain(images, artefacts, drawn)


def draw_chain(artefacts: Sequence[Artefact[Any]], shape: tuple[int, ...], rng: Rng) -> tuple[Drawn | None, ...]:
    """Draw every artefact from a stream of its own, so that one more leaves the others as they were.

    Args:
        shape: of the images.
        rng: generator of a stage by its name: `artefacts/<kind>/<how many of that kind came before>`.
    """
    check_order(artefacts)
    drawn: list[Drawn | None] = []
    for number, (artefact, stage) in enumerate(zip(artefacts, stages(artefacts), strict=True)):
        stream = rng(stage)
        happens = stream.random() < artefact.probability
        try:
            # drawn in any case: what cannot be on these images is refused by the first draw, not by a lucky one
            chosen = artefact.draw(shape, stream)
        except ValueError as error:
            raise InputError(f"artefacts[{number}].{error}") from None
        drawn.append(chosen if happens else None)
    return tuple(drawn)


def apply_chain(
    images: Complex[Tensor, "*lead_and_space"], artefacts: Sequence[Artefact[Any]], drawn: Sequence[Drawn | None]
) -> Corrupted:
    """Apply what was drawn; the same draws give the same images.

    Raises: ValueError if images are real, empty, not finite or require grad; InputError if artefacts are out of order,
        or a draw is that of another artefact.
    """
    if len(artefacts) != len(drawn):
        raise ValueError(f"drawn: got {len(drawn)} for {len(artefacts)} artefacts")
    check_order(artefacts)
    require_detached("images", images)
    require_complex(images)
    facts: list[Mapping[str, Json]] = []
    acquired: Acquired | None = None
    ndim: int | None = None
    for number, (artefact, chosen) in enumerate(zip(artefacts, drawn, strict=True)):
        if chosen is None:
            facts.append({})
            continue
        try:
            check_drawn(artefact, chosen)
        except ValueError as error:
            raise InputError(f"artefacts[{number}]: {error}") from None
        if acquired is None or artefact.ndim != ndim:
            acquired = Acquired.of(images if acquired is None else acquired.images(), artefact.ndim)
            ndim = artefact.ndim
        try:
            acquired = artefact.act(replace(acquired, facts={}), chosen)
        except ValueError as error:
            raise InputError(f"artefacts[{number}] ({artefact.kind}): {error}") from None
        facts.append(acquired.facts)
    severity = tuple(0.0 if chosen is None else float(chosen.severity) for chosen in drawn)
    result = images if acquired is None else acquired.images()
    return Corrupted(result, tuple(drawn), severity, tuple(facts))


def with_spacing(artefact: Artefact[Any], spacing_mm: tuple[float, ...]) -> Artefact[Any]:
    """The artefact, told the size of a voxel if it asks for it and was not told.

    Args:
        spacing_mm: along the axes of space; of them the last `ndim` where the artefact acts on fewer.
    """
    if getattr(artefact, "spacing_mm", ()) is not None:
        return artefact
    chosen = spacing_mm[-artefact.ndim :] if artefact.ndim else spacing_mm
    return replace(artefact, spacing_mm=chosen)  # type: ignore[type-var]


def stages(artefacts: Sequence[Artefact[Any]]) -> tuple[str, ...]:
    """Name of the random stream of each artefact."""
    kinds = [artefact.kind for artefact in artefacts]
    return tuple(f"artefacts/{kind}/{kinds[:i].count(kind)}" for i, kind in enumerate(kinds))


def check_order(artefacts: Sequence[Artefact[Any]]) -> None:
    """Refuse artefacts that are not in the order of the scanner.

    Raises: InputError naming the first that comes too late, and the right order.
    """
    for number, (before, after) in enumerate(pairwise(artefacts), 1):
        if after.stage < before.stage:
            right = ", ".join(artefact.kind for artefact in sorted(artefacts, key=lambda artefact: artefact.stage))
            raise InputError(
                f"artefacts[{number}]: {after.kind} ({after.stage.name.lower()}) cannot follow {before.kind} "
                f"({before.stage.name.lower()}) on a scanner; the order is {right}"
            )


def as_records(artefacts: Sequence[Artefact[Any]], drawn: Sequence[Drawn | None]) -> list[dict[str, Json]]:
    """Kind and draw of each artefact, as JSON holds it; `applied` says whether it happened."""
    return [
        {"kind": artefact.kind, "applied": chosen is not None, **({} if chosen is None else as_json(chosen))}
        for artefact, chosen in zip(artefacts, drawn, strict=True)
    ]
