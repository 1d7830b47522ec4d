"""What a report is made from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from markupsafe import Markup

from qsim.evaluation.table import Row
from qsim.parameters import PARAMETERS, Parameter
from qsim.signals.base import SignalModel
from qsim.tissues import TissueTable

_SYMBOLS = {
    "T1": "T<sub>1</sub>",
    "T2": "T<sub>2</sub>",
    "T2STAR": "T<sub>2</sub><sup>*</sup>",
    "T1RHO": "T<sub>1ρ</sub>",
    "T2RHO": "T<sub>2ρ</sub>",
    "M0": "M<sub>0</sub>",
    "DELTA_B0": "ΔB<sub>0</sub>",
    "REL_B1": "B<sub>1</sub><sup>rel</sup>",
}
TITLES = {"csf": "CSF", "gm": "Grey matter", "wm": "White matter", "pure": "All pure voxels", "mixed": "Mixed voxels"}


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the tables.

    Attributes:
        name: as in the table.
        role: `painter`: looks at no image and knows the labels or the truth.
        bound: the problem it solves: every row free, some rows shared by the mask, or those known.
        run: where a network, or a method of the user's own, came from.
    """

    name: str
    role: Literal["fit", "network", "painter"]
    bound: str = "free"
    run: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """Maps of one draw at one SNR: truth, and the estimate of one noise realisation by each method [SI]."""

    snr: float
    truth: Float[np.ndarray, "q *space"]
    mask: Bool[np.ndarray, "*space"]
    estimates: Mapping[str, Float[np.ndarray, "q *space"]]


@dataclass(frozen=True, slots=True)
class Report:
    """All that the page is made from.

    Attributes:
        rows: the long table.
        parameters: rows of kappa.
        shared: those that are one number per image.
        tissues: of the phantom.
        methods: in the order of the tables, painters last.
        snrs, draws, repeats: of the study.
        model, noise_kind, table: signal, noise, tissue values.
        pictures: of the first draw, one per SNR.
        anatomy: what it is and how train and test were kept apart.
        split: which of them this study used.
        crop: extent of the images in voxels.
        partial_volume: whether signals of tissues mix in a voxel.
        seeds, models, versions: by name; `models` with the checksum of the weights.
        config: text of the config.
        digest: of all that decides the numbers.
        device: where networks ran.
        seen: networks whose training may have held this anatomy.
        given: rows that no method is asked for and every bound takes as known.
        artefacts: kinds of the artefacts that the images carry.
    """

    rows: tuple[Row, ...]
    parameters: tuple[Parameter, ...]
    shared: tuple[str, ...]
    tissues: tuple[str, ...]
    methods: tuple[Method, ...]
    snrs: tuple[float, ...]
    draws: int
    repeats: int
    model: SignalModel
    noise_kind: str
    table: TissueTable
    pictures: tuple[Picture, ...]
    anatomy: str
    split: str
    crop: tuple[int, ...]
    partial_volume: bool
    seeds: Mapping[str, int]
    models: Mapping[str, str]
    versions: Mapping[str, str]
    config: str
    digest: str
    device: str
    seen: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    artefacts: tuple[str, ...] = ()

    @property
    def estimated(self) -> tuple[Parameter, ...]:
        """The rows that the page is about."""
        return tuple(p for p in self.parameters if p.name not in self.given)


def symbol(parameter: Parameter) -> Markup:
    """A parameter as HTML."""
    return Markup(_SYMBOLS.get(parameter.name, parameter.name))  # noqa: S704  constants of this module


def plain(name: str) -> str:
    """A parameter by its name, in letters alone: T1ρ."""
    return symbol(PARAMETERS[name]).striptags()


def title(tissue: str) -> str:
    return TITLES.get(tissue, tissue.replace("_", " ").capitalize())
