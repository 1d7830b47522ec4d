"""The images of a study that are made worse, and the regions in which a network's uncertainty is read off.

snr <k>             more noise: in the ROI and in the body
square, lesion      in the object and in the rest of the ROI, and `... before` in the same places of the images as
                    they were
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.errors import InputError
from trainers.relaxation.cohort import Cohort
from trainers.relaxation.perturbations import Perturbation, Perturbed
from trainers.studies.self_supervised_config import Perturbations


@dataclass(frozen=True, slots=True)
class Case:
    """Images of some slices, and where they are looked at.

    Attributes:
        name: condition in the results.
        images: series of the slices [units of A].
        regions: masks by name; the first is drawn.
        drawn: the slice that is drawn.
    """

    name: str
    images: Float[Tensor, "s n y x"]
    regions: Mapping[str, Bool[np.ndarray, "s y x"]]
    drawn: int


def check_perturbed(spec: Perturbations, cohort: Cohort, slices: Sequence[int], seed: int) -> None:
    """Refuse a perturbation that the slices do not admit, or two of one name.

    Raises: InputError, starting with the field.
    """
    given: list[tuple[str, Perturbation | None]] = [(f"noise[{i}]", each) for i, each in enumerate(spec.noise)]
    given += [("square", spec.square), ("lesion", spec.lesion)]
    names: dict[str, str] = {}
    for field, each in given:
        if each is None:
            continue
        if each.name in names:
            raise InputError(f"perturbations.{field}: {each.name} is {names[each.name]} too; give each level once")
        names[each.name] = field
        try:
            each(cohort, slices, seed)
        except ValueError as error:
            # what is wrong with the whole of it starts with its name
            said = str(error).removeprefix(f"{each.name}")
            raise InputError(f"perturbations.{field}{said if said != str(error) else f'.{error}'}") from None


def perturbed(spec: Perturbations, cohort: Cohort, slices: Sequence[int], seed: int) -> Iterator[Case]:
    """The cases of a study, one in memory at a time.

    Raises: InputError if a perturbation has a place in none of the slices.
    """
    for noise in spec.noise:
        found = noise(cohort, slices, seed)
        chosen = list(found.slices)
        regions = {"roi": cohort.roi[chosen].numpy(), "body": cohort.body[chosen].numpy()}
        yield Case(f"snr {noise.snr:g}", found.images, regions, _largest(regions["roi"]))
    for name, each in (("square", spec.square), ("lesion", spec.lesion)):
        if each is not None:
            yield from _objects(name, each(cohort, slices, seed), cohort)


def _objects(name: str, found: Perturbed, cohort: Cohort) -> Iterator[Case]:
    chosen = list(found.slices)
    where = found.where.numpy()
    regions = {name: where, "roi": cohort.roi[chosen].numpy() & ~where}
    drawn = _largest(regions["roi"])
    yield Case(f"{name} before", cohort.images[chosen], regions, drawn)
    yield Case(name, found.images, regions, drawn)


def _largest(region: Bool[np.ndarray, "s y x"]) -> int:
    return int(region.sum((1, 2)).argmax())
