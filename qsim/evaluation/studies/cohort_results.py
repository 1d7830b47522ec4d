"""What a study of mapping methods on a cohort has found: figures by condition, method, input, region and parameter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

# what a method was shown that sees the whole series
ALL_IMAGES = "all images"


class Figure(NamedTuple):
    """Where a figure belongs.

    Attributes:
        condition: `plain`, or what was done to the images: `snr 10`, `square`, `square before`, `lesion`, ...
        method: as in tables.
        shown: what the method was shown, as "0, 30 ms" or "0, 30, 34.6 ms"; "all images".
        region: `roi`, `body`, `lesion`, `left`, `right`, `inside`, `outside`, ...
        parameter: row of kappa.
        metric: as in `cohort_maps`; times in ms.
    """

    condition: str
    method: str
    shown: str
    region: str
    parameter: str
    metric: str


@dataclass(frozen=True, slots=True)
class Curve:
    """Error of the voxels that are left when the most uncertain ones are taken out.

    Attributes:
        fractions: taken out [1].
        method, oracle, random: mean absolute error of the rest: by uncertainty, by the error itself, by chance [ms].
    """

    fractions: Float[np.ndarray, " f"]
    method: Float[np.ndarray, " f"]
    oracle: Float[np.ndarray, " f"]
    random: Float[np.ndarray, " f"]


@dataclass(frozen=True, slots=True)
class Maps:
    """What is drawn of one slice.

    Attributes:
        shared: `image`, `roi`, `truth`, `fit` [ms], as far as they are known.
        methods: of each `estimate`, `aleatoric`, `epistemic` [ms], as far as it has them.
        spacing_mm: of the voxels (y, x).
    """

    shared: Mapping[str, Float[np.ndarray, "y x"]]
    methods: Mapping[str, Mapping[str, Float[np.ndarray, "y x"]]]
    spacing_mm: tuple[float, float]


@dataclass(frozen=True, slots=True)
class CohortResults:
    """All that a report is made of.

    Attributes:
        values: of every figure, one number per run (fold and seed); NaN where a run has none.
        runs: names of the runs, as "fold 0, seed 1".
        methods: in the order of the tables.
        inputs: in their order.
        parameters: rows that were mapped.
        curves: sparsification by method and parameter, over all runs together.
        maps: by condition and parameter.
    """

    values: Mapping[Figure, Float[np.ndarray, " r"]]
    runs: Sequence[str]
    methods: Sequence[str]
    inputs: Sequence[str]
    parameters: Sequence[str]
    curves: Mapping[tuple[str, str], Curve]
    maps: Mapping[tuple[str, str], Maps]

    def get(
        self,
        method: str,
        parameter: str,
        metric: str,
        region: str = "roi",
        shown: str = "mean",
        condition: str = "plain",
    ) -> Float[np.ndarray, " r"]:
        """The numbers of a figure; NaN for each run if there is none. `shown` "mean": the mean over the inputs."""
        if shown != "mean":
            missing = np.full(len(self.runs), np.nan)
            return self.values.get(Figure(condition, method, shown, region, parameter, metric), missing)
        each = [self.get(method, parameter, metric, region, one, condition) for one in (*self.inputs, ALL_IMAGES)]
        found = [numbers for numbers in each if np.isfinite(numbers).any()]
        return np.mean(found, 0) if found else np.full(len(self.runs), np.nan)
