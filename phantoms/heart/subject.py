"""What is drawn for one heart, each number from its own stream: changing one field moves no other number."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from phantoms.drawn.cohort import subject_rng
from qsim.distributions import AnyDistribution, Normal, Truncated, draw

TISSUES = (
    *("myocardium", "scar", "lv_blood", "rv_myocardium", "rv_blood"),
    *("lung", "liver", "fat", "muscle", "marrow", "aorta"),
)
Numbers = Mapping[str, AnyDistribution]
# free shapes: what, and how many standard normal numbers
_SHAPES = {
    "endocardium": 4,
    "wall": 4,
    "epicardial_fat": 6,
    "right": 4,
    "body": 8,
    "layers": 8,
    "abdomen": 8,
    "spine": 4,
    "papillary": 16,
    "scar": 2,
    "vessels": 96,
}


# no outline is bent so far that it meets another
_BEND = Truncated(of=Normal(mean=0.0, sd=1.0), low=-2.0, high=2.0)


@dataclass(frozen=True, slots=True)
class Subject:
    """One heart.

    Attributes:
        values: of the fields of `Heart` that are quantities, by name.
        shapes: numbers of the free shapes, standard normal times `variation`, by what they shape.
        places: numbers that say where, uniform in [0, 1), by what they place.
        papillary_muscles: how many.
    """

    values: Mapping[str, float]
    shapes: Mapping[str, Float[np.ndarray, "_"]]
    places: Mapping[str, Float[np.ndarray, "_"]]
    papillary_muscles: int

    def __getitem__(self, name: str) -> float:
        return self.values[name]


def draw_subject(seed: int, subject: int, numbers: Numbers, papillary_muscles: int, variation: float) -> Subject:
    """Draw one heart."""

    def rng(part: str) -> np.random.Generator:
        return subject_rng("heart", seed, subject, part)

    return Subject(
        values={name: float(draw(quantity, rng(name), 1)[0]) for name, quantity in numbers.items()},
        shapes={what: variation * draw(_BEND, rng(f"shape {what}"), n) for what, n in _SHAPES.items()},
        places={what: rng(f"place {what}").uniform(size=8) for what in ("endocardium", "wall", "scar", "ribs")},
        papillary_muscles=papillary_muscles,
    )
