"""The generator config: what a YAML file may say."""

import hashlib
import json
from collections.abc import Callable
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from generators.fitting import check_fields, check_model, check_places, check_tissues, completed
from phantoms import PHANTOMS
from phantoms.base import PhantomSpec, Split
from phantoms.fields import FIELDS
from phantoms.fields import Field as FieldOfMaps
from phantoms.organ_motion import OrganMotion
from qsim.distributions import DISTRIBUTIONS, Streams
from qsim.kspace import ARTEFACTS, Artefact
from qsim.kspace.artefacts.plain import field_kinds, plain
from qsim.kspace.chain import draw_chain
from qsim.kspace.noise import NOISES, AnyNoise
from qsim.signals import MODELS, AnyModel
from qsim.tissue_tables import TISSUE_TABLES
from qsim.tissues import TissueSource, TissueTable


def _union(kinds: tuple[type, ...]) -> Any:
    """Discriminated union of everything a registry holds, so that a plug-in adds a kind by adding a class."""
    if len(kinds) == 1:
        return kinds[0]
    return Annotated[reduce(or_, kinds), Field(discriminator="kind")]


_DISTRIBUTION_KEYS = {name for cls in DISTRIBUTIONS for name in cls.__dataclass_fields__} - {"kind"}


def _without_kind(value: Any, path: str) -> str | None:
    """Path of the first distribution or trajectory that does not say which it is."""
    if isinstance(value, list | tuple):
        children = [(f"{path}[{i}]", child) for i, child in enumerate(value)]
    elif isinstance(value, dict):
        if value and "kind" not in value and set(value) <= _DISTRIBUTION_KEYS:
            return path
        if "kind" not in value and path.rpartition(".")[2] == "trajectory":
            # the first kind that has these keys would be taken
            return path
        children = [(f"{path}.{key}".lstrip("."), child) for key, child in value.items()]
    else:
        return None
    return next((found for where, child in children if (found := _without_kind(child, where))), None)


def _plain_numbers(given: Any, kinds: frozenset[type], path: str) -> None:
    """Refuse what would quietly become a number or a truth: `true` for 1, "2" for 2, "no" for false."""
    if isinstance(given, list | tuple):
        for number, each in enumerate(given):
            _plain_numbers(each, kinds, f"{path}[{number}]")
    elif isinstance(given, dict):
        for cls in kinds:
            kind = getattr(cls, "__dataclass_fields__", {}).get("kind")
            if kind is not None and kind.default == given.get("kind"):
                for name, inner in field_kinds(cls).items():
                    _plain_numbers(given.get(name), inner, f"{path}.{name}")
    elif isinstance(given, bool | int | float | str):
        plain(path, given, kinds)


class RootConfig(BaseModel):
    """A config file: frozen, no unknown keys, no NaN, no infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _distributions_have_kinds(cls, mapping: Any) -> Any:
        # {low: 1, high: 2} would fit uniform and log_uniform alike
        nameless = _without_kind(mapping, "")
        if nameless:
            raise ValueError(f"{nameless}.kind: missing")
        return mapping

    @model_validator(mode="wrap")
    @classmethod
    def _artefacts_hold_numbers(cls, mapping: Any, validate: Callable[[Any], "RootConfig"]) -> "RootConfig":
        # what is not a number at all has been refused by then
        config = validate(mapping)
        if isinstance(mapping, dict):
            _plain_numbers(mapping.get("artefacts"), frozenset(ARTEFACTS), "artefacts")
        return config

    @property
    def canonical(self) -> str:
        """JSON text with sorted keys: the same text for the same config."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, allow_nan=False)


# keys that came after the first stores: at their default they are no part of the identity
_LATER = ("sampling", "motion")

Count = Annotated[int, Field(strict=True, ge=1)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63)]


class GeneratorConfig(RootConfig):
    """What a data set is made of. Times in seconds, SNR = 0.65 / sigma.

    Attributes:
        seed: seed of every random stream.
        samples: how many patches; a store can be grown, so it is not part of the data's identity.
        patch: extent in voxels, two numbers for slices, three for blocks.
        split: `train` or `test` anatomy: disjoint subjects, or disjoint slabs of one.
        slice_axis: axis of the volume across which 2D patches are cut.
        phantom, tissues, model, noise: by `kind`.
        partial_volume: signals of the tissues in a voxel add up by their share; False: the majority tissue fills it.
        store: `images`, or `maps` when the series is simulated while training.
        dtype: of the stored images; float16 halves the store (its rounding is 2.4 % of sigma at SNR 100).
        targets: rows to be learned or estimated; all of the model's if not given.
        fields: what changes DELTA_B0, REL_B1 and B by position or tissue, by `kind`, applied in this order.
        artefacts: of k-space, by `kind`, in the order of the scanner; drawn for each sample.
        sampling: `patches` at random, or whole `slices` of the split in their order; of these, tissue values and
            fields are drawn once per subject.
        motion: of organs between the images of a series; None: nothing moves.
    """

    seed: Seed
    samples: Count
    patch: tuple[Count, ...]
    phantom: _union(PHANTOMS)  # type: ignore[valid-type]
    tissues: _union(TISSUE_TABLES)  # type: ignore[valid-type]
    model: _union(MODELS)  # type: ignore[valid-type]
    noise: _union(NOISES)  # type: ignore[valid-type]
    split: Split = "train"
    slice_axis: Annotated[int, Field(strict=True, ge=0, le=2)] = 2
    partial_volume: Annotated[bool, Field(strict=True)] = True
    store: Literal["images", "maps"] = "images"
    dtype: Literal["float32", "float16"] = "float32"
    targets: tuple[str, ...] = ()
    artefacts: tuple[_union(ARTEFACTS), ...] = ()  # type: ignore[valid-type]
    fields: tuple[_union(FIELDS), ...] = ()  # type: ignore[valid-type]
    sampling: Literal["patches", "slices"] = "patches"
    motion: OrganMotion | None = None

    @field_validator("patch")
    @classmethod
    def _two_or_three(cls, patch: tuple[int, ...]) -> tuple[int, ...]:
        if len(patch) not in (2, 3):
            raise ValueError(f"patch must hold two numbers (a slice) or three (a block), got {len(patch)}")
        return patch

    @model_validator(mode="after")
    def _parts_fit(self) -> "GeneratorConfig":
        model, noise = self.signal_model, self.noise_model
        rows = [parameter.name for parameter in model.parameters]
        unknown = [name for name in self.targets if name not in rows]
        if unknown:
            raise ValueError(f"targets: {', '.join(unknown)} is no row of the model, which has {', '.join(rows)}")
        twice = sorted({name for name in self.targets if self.targets.count(name) > 1})
        if twice:
            raise ValueError(f"targets: {', '.join(twice)} given twice; name each row once")
        signed = bool(getattr(self.model, "signed", False))
        if noise.signed and not signed and hasattr(self.model, "signed"):
            raise ValueError("noise: kind signed needs a signed model; set model.signed: true")
        if signed and not noise.signed:
            raise ValueError("noise: a signed model needs kind: signed; gaussian and rician noise end in a magnitude")
        if self.store == "maps" and self.partial_volume:
            raise ValueError(
                "store: maps holds the majority tissue only and cannot mix signals; set partial_volume: false, "
                "or store: images"
            )
        if self.sampling == "slices" and len(self.patch) != 2:
            raise ValueError(f"patch must hold two numbers with sampling: slices, got {len(self.patch)}")
        if self.motion is not None and self.store == "maps":
            raise ValueError("motion: store: maps keeps no images that could differ; choose store: images")
        self._artefacts_fit()
        table = self.tissue_source.table()
        check_tissues(rows, self.field_list, table)
        check_fields(rows, self.field_list, table)
        check_places(self.field_list, self.phantom_spec, self.patch, self.slice_axis)
        check_model(model, self.field_list, table)
        return self

    def _artefacts_fit(self) -> None:
        """Try one draw of each: what cannot be on a patch of this shape says so now."""
        if self.artefact_list and self.store == "maps":
            raise ValueError("artefacts: store: maps keeps no images to put them on; choose store: images")
        for number, artefact in enumerate(self.artefact_list):
            if artefact.ndim is not None and artefact.ndim > len(self.patch):
                raise ValueError(f"artefacts[{number}].ndim: {artefact.ndim}, but a patch has {len(self.patch)} axes")
        draw_chain(self.artefact_list, (self.signal_model.n_images, *self.patch), Streams(self.seed, 0).rng)

    # the unions above are built at run time; these give them their types
    @property
    def signal_model(self) -> AnyModel:
        """The signal model."""
        return self.model

    @property
    def noise_model(self) -> AnyNoise:
        """The noise."""
        return self.noise

    @property
    def tissue_source(self) -> TissueSource:
        """Where the tissue table comes from."""
        return self.tissues

    @property
    def field_list(self) -> tuple[FieldOfMaps, ...]:
        """The fields, in their order."""
        return self.fields

    @property
    def organ_motion(self) -> OrganMotion | None:
        """What moves between the images of a series."""
        return self.motion

    @property
    def artefact_list(self) -> tuple[Artefact[Any], ...]:
        """The artefacts, in their order."""
        return self.artefacts

    @property
    def table(self) -> TissueTable:
        """The tissue table, with the values of rows that are there without fields (DELTA_B0 0, REL_B1 1)."""
        rows = [parameter.name for parameter in self.signal_model.parameters]
        return completed(self.tissue_source.table(), rows, self.field_list)

    @property
    def phantom_spec(self) -> PhantomSpec:
        """The phantom, not yet read from disk."""
        return self.phantom

    @property
    def target_rows(self) -> tuple[int, ...]:
        """Indices in kappa of the rows to be learned or estimated."""
        rows = [parameter.name for parameter in self.signal_model.parameters]
        return tuple(rows.index(name) for name in self.targets) if self.targets else tuple(range(len(rows)))

    def stage(self, name: str) -> str:
        """Random stream of what belongs to a measurement, not to the subject: noise, motion, artefacts.

        Series of the same subjects under two models are two measurements: with the streams of the subject, the noise of
        their images would be the same.
        """
        if self.sampling == "patches":
            return name
        model = json.dumps(self.model_dump(mode="json", include={"model"}), sort_keys=True, allow_nan=False)
        return f"{name}/{hashlib.sha256(model.encode()).hexdigest()}"

    @property
    def digest(self) -> str:
        """sha256 of all that decides what sample i holds: everything but `samples`."""
        content = self.model_dump(mode="json", exclude={"samples"})
        for name in _LATER:
            # so that a store made before the key was there can be grown
            if content[name] == type(self).model_fields[name].default:
                del content[name]
        return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
