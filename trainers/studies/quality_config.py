"""What a YAML file may say of a study of image quality (shaw2021, section 7)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from generators.config import Count, RootConfig, Seed, _union
from phantoms.brains.label_schemes import LABEL_SCHEMES
from qsim.kspace import ARTEFACTS
from qsim.kspace.artefacts.base import Artefact
from trainers.quality.config import BlockData, SourceConfig

# what block names and columns of the tables are made of
_Name = Annotated[str, Field(pattern=r"^[^|/\n]+$")]


class QualityModel(RootConfig):
    """A network that is judged.

    Attributes:
        name: in tables and figures.
        model: folder of a run, a .safetensors file, or the name of a shipped network; its segmentation and variances
            are judged.
        ensemble: further runs. The mean probability of `model` and these has an entropy and a mutual information,
            which are compared with the variances.
        samples: draws of Monte Carlo dropout, for the same comparison; 0: none.
    """

    name: _Name
    model: str
    ensemble: tuple[str, ...] = ()
    samples: Annotated[int, Field(strict=True, ge=0)] = 0

    @model_validator(mode="after")
    def _fits(self) -> "QualityModel":
        if self.samples == 1:
            raise ValueError("samples: one draw of dropout has no spread; give at least 2, or 0")
        runs = (self.model, *self.ensemble)
        if len(set(runs)) < len(runs):
            raise ValueError("ensemble: a run is named twice (model is a member itself); name each once")
        return self


class LabelledImage(RootConfig):
    """A measured image whose tissues are known.

    Attributes:
        image: NIfTI file, at the voxel size of the models: it is never resampled.
        labels: on its grid.
        scheme: what the numbers of the labels mean.
    """

    image: Path
    labels: Path
    scheme: str = "freesurfer"

    @field_validator("scheme")
    @classmethod
    def _known(cls, scheme: str) -> str:
        if scheme not in LABEL_SCHEMES:
            raise ValueError(f"scheme: there is no {scheme}; choose from {', '.join(LABEL_SCHEMES)}")
        return scheme


class QualityConfig(RootConfig):
    """A study of how well the variances of networks tell the quality of an image.

    Attributes:
        seed: of all that is drawn.
        models: networks.
        data: clean digital images, whole blocks.
        images: clean measured images.
        sources: the artefacts of the test; names are sources of the models.
        repeats: draws of every source for each image.
        ladder: artefacts of growing strength, by source, for the first image: its volume and error bars (Fig. 5).
        draws: of the bootstrap.
        allow_training_anatomy: judge networks on anatomies that they were, or may have been, trained on; the report
            says so.
    """

    seed: Seed
    kind: Literal["quality"]
    models: Annotated[tuple[QualityModel, ...], Field(min_length=1)]
    data: tuple[BlockData, ...] = ()
    images: tuple[LabelledImage, ...] = ()
    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)]
    repeats: Count = 1
    ladder: Mapping[str, Annotated[tuple[_union(ARTEFACTS), ...], Field(min_length=2)]] = Field(  # type: ignore[valid-type]
        default_factory=dict
    )
    draws: Count = 1000
    allow_training_anatomy: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="after")
    def _fits(self) -> "QualityConfig":
        if not (self.data or self.images):
            raise ValueError("data: missing, and so is images; name what the models are judged on")
        for field, names in (("models", [each.name for each in self.models]), ("sources", self.kinds)):
            twice = [name for i, name in enumerate(names) if name in names[:i]]
            if twice:
                raise ValueError(f"{field}: {twice[0]} is named twice")
        for name in self.ladder:
            if name not in self.kinds:
                raise ValueError(f"ladder.{name}: is no source of the test, which has {', '.join(self.kinds)}")
            for number, artefact in enumerate(self.rungs(name)):
                if artefact.probability != 1:
                    raise ValueError(f"ladder.{name}[{number}].probability: every rung happens; leave it out")
        return self

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the sources of the test."""
        return tuple(source.name for source in self.sources)

    # the union above is built at run time; this gives it its type
    def rungs(self, source: str) -> tuple[Artefact[Any], ...]:
        """Artefacts of the ladder of a source."""
        artefacts: tuple[Artefact[Any], ...] = self.ladder[source]
        return artefacts
