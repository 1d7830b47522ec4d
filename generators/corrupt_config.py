"""What `qsim corrupt` is asked for: the config (the list of artefacts that a generator config holds), and the files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from generators.config import RootConfig, Seed, _union
from phantoms.files.raw import suffix_of
from qsim.kspace import ARTEFACTS
from qsim.kspace.artefacts.base import Artefact
from qsim.kspace.chain import check_order

# a data set has these, an image not
_OF_A_DATA_SET = {"phantom", "tissues", "model", "patch"}


class CorruptConfig(RootConfig):
    """What is done to an image.

    Attributes:
        artefacts: by `kind`, in the order of the scanner.
        seed: of every draw; the command line may give another.
    """

    artefacts: Annotated[tuple[_union(ARTEFACTS), ...], Field(min_length=1)]  # type: ignore[valid-type]
    seed: Seed | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_other_config(cls, mapping: Any) -> Any:
        if isinstance(mapping, dict) and not _OF_A_DATA_SET.isdisjoint(mapping):
            raise ValueError("this is a config of qsim generate; qsim corrupt takes its `artefacts` and a seed")
        return mapping

    @model_validator(mode="after")
    def _in_order(self) -> "CorruptConfig":
        check_order(self.artefact_list)
        return self

    @property
    def artefact_list(self) -> tuple[Artefact[Any], ...]:
        """The artefacts; the union above is built at run time, this gives it its type."""
        return self.artefacts


@dataclass(frozen=True, slots=True)
class Job:
    """What a command asks for.

    Attributes:
        image: path, with what is meant inside after a colon.
        out: the file to write, of the format of the image.
        seed: of the draws.
        config: what the config is called where its artefacts do not fit the image.
        kspace: a NumPy file holds k-space.
        slices: slices were acquired one by one: artefacts act on the last two axes.
        magnitude: write magnitudes (True) or complex images (False); None: as the file holds.
        scale: `01` brings the magnitudes of the whole series to 0..1.
        phase: NIfTI with the phase of a magnitude [rad].
        axes: letters of the axes of a NumPy or HDF5 array.
        picture: PNG; beside `out` if None.
        with_picture: whether there is one.
        overwrite: replace files that are there.
    """

    image: str
    out: Path
    seed: int
    config: str = ""
    kspace: bool = False
    slices: bool = False
    magnitude: bool | None = None
    scale: str | None = None
    phase: Path | None = None
    axes: str | None = None
    picture: Path | None = None
    with_picture: bool = True
    overwrite: bool = False

    @property
    def stem(self) -> str:
        """Name of the output without its suffix."""
        return self.out.name[: len(self.out.name) - len(suffix_of(self.out))]

    @property
    def json_file(self) -> Path:
        """Where it is said what was done."""
        return self.out.with_name(f"{self.stem}_corrupt.json")

    @property
    def picture_file(self) -> Path | None:
        """Where the picture goes."""
        if not self.with_picture:
            return None
        return self.picture or self.out.with_name(f"{self.stem}_corrupt.png")

    @property
    def stale_picture(self) -> Path | None:
        """A picture of an earlier run that would stay beside the new image."""
        beside = self.out.with_name(f"{self.stem}_corrupt.png")
        return beside if beside not in self.files and beside.is_file() else None

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is written."""
        drawn = self.picture_file
        return (self.out, self.json_file, *(() if drawn is None else (drawn,)))
