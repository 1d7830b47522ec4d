"""What all samples of a config share, and what is drawn for each of them before any signal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from generators.acquisition import artefacts_of
from generators.config import GeneratorConfig
from generators.fitting import field_ranges, hidden_rows, missing_rows, needed_rows, of_field, replaced_rows
from phantoms.base import Crop, Phantom, VolumePhantom
from phantoms.fields import Field, Place, Ranges, Rows
from phantoms.maps import Mixture
from qsim.distributions import Distribution, Streams
from qsim.errors import InputError
from qsim.joint import correlate
from qsim.kspace import Artefact
from qsim.signals.base import CoherentModel
from qsim.tissues import TissueTable, Variation


@dataclass(frozen=True, slots=True)
class Scene:
    """What all samples of a config share: the anatomy that was read and the table matched to it.

    Attributes:
        phantom: the anatomy.
        table: with the rows that are there without fields.
        model: the signal model.
        rows: of the model.
        hidden: further rows that only fields need.
        fields: in their order.
        ranges: where the rows lie when each field begins.
        slice_axis: axis across which slices are cut.
        artefacts: in their order, told the size of a voxel.
        order: with sampling: slices, the subject's place in the phantom and the slice of every sample.
        patch_spacing_mm: size of a voxel along the axes of a patch [mm].
    """

    phantom: Phantom
    table: TissueTable
    model: CoherentModel
    rows: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    fields: tuple[Field, ...] = ()
    ranges: tuple[Ranges, ...] = ()
    slice_axis: int = 2
    artefacts: tuple[Artefact[Any], ...] = ()
    order: tuple[tuple[int, int], ...] = ()
    patch_spacing_mm: tuple[float, ...] = ()

    @property
    def by_subject(self) -> bool:
        """Whether samples are the slices of subjects, see `generators.slices`."""
        return bool(self.order)

    @property
    def all_rows(self) -> tuple[str, ...]:
        """Rows of the model, then the hidden ones."""
        return (*self.rows, *self.hidden)

    @property
    def replaced(self) -> frozenset[str]:
        """Rows whose value in the table counts for nothing, because a field replaces it."""
        return replaced_rows(self.fields)


@lru_cache(maxsize=4)
def _scene(canonical: str) -> Scene:
    config = GeneratorConfig.model_validate_json(canonical)
    phantom = config.phantom_spec.load(config.split, config.slice_axis)
    table, fields = config.table, config.field_list
    missing = [name for name in phantom.tissues if name not in table.names]
    if missing:
        raise InputError(
            f"tissues: the phantom holds {', '.join(missing)}, which the table '{table.name}' does not; "
            f"it has {', '.join(table.names)}"
        )
    rows = tuple(parameter.name for parameter in config.signal_model.parameters)
    needed = needed_rows(rows, fields)
    for name in phantom.tissues:
        lacking = missing_rows(table, table[name], needed)
        if lacking:
            raise InputError(
                f"tissues: the phantom holds {name}, which has no {', '.join(lacking)} in the table '{table.name}'; "
                "give it there, or choose a phantom without this tissue"
            )
    if config.organ_motion is not None:
        config.organ_motion.check(phantom.tissues)
    order = _order(phantom, config)
    ranges = field_ranges(rows, fields, table, [table[name] for name in phantom.tissues])
    return Scene(
        phantom=phantom,
        table=table,
        model=config.signal_model,
        rows=rows,
        hidden=hidden_rows(rows, fields),
        fields=fields,
        ranges=ranges,
        slice_axis=config.slice_axis,
        artefacts=artefacts_of(config, _patch_spacing(phantom, config)),
        order=order,
        patch_spacing_mm=_patch_spacing(phantom, config),
    )


def _order(phantom: Phantom, config: GeneratorConfig) -> tuple[tuple[int, int], ...]:
    """Every slice of the split, where samples are slices."""
    if config.sampling == "patches":
        return ()
    if not isinstance(phantom, VolumePhantom):
        raise InputError(f"sampling: slices needs a phantom that is loaded as a volume, got {config.phantom_spec.kind}")
    order = phantom.slices()
    if config.samples > len(order):
        raise InputError(
            f"samples: {config.samples}, but with sampling: slices the {config.split} split of "
            f"{config.phantom_spec.kind} has {len(order)} slices; ask for at most that many, or for more subjects"
        )
    return order


def _patch_spacing(phantom: Phantom, config: GeneratorConfig) -> tuple[float, ...]:
    """Size of a voxel along the axes of a patch [mm]."""
    spacing = tuple(float(size) for size in phantom.spacing_mm)
    if len(config.patch) < len(spacing):
        return spacing[: config.slice_axis] + spacing[config.slice_axis + 1 :]
    return spacing


def scene(config: GeneratorConfig) -> Scene:
    """The anatomy and the tissue table of a config, read once per process.

    Raises: InputError naming a missing or unreadable phantom file, or a tissue that the table lacks.
    """
    return _scene(config.canonical)


def draw(distribution: Distribution, u: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Values of a distribution at uniform numbers."""
    # random() can return 0, where an unbounded distribution has no finite value
    return distribution.ppf(np.maximum(u, np.finfo(float).tiny))


def tissue_values(world: Scene, streams: Sequence[Streams]) -> Float[Tensor, "b t q"]:
    """Draw the value of each tissue in each sample; what is one per sample (B) is the same in every tissue [SI].

    Hidden rows follow those of the model; each has a stream of its own, so that all other draws stay as they were. Of a
    subject every tissue and row has its own: two series of the same subjects (T1rho, T2) find the same values.
    """
    tissues = [world.table[name] for name in world.phantom.tissues]
    if world.by_subject:
        names = [[f"tissues/{tissue.name}/{row}" for row in world.all_rows] for tissue in tissues]
        u = np.array([[[stream.rng(name).random() for name in of] for of in names] for stream in streams])
    else:
        u = np.stack([stream.rng("tissues").random((len(tissues), len(world.rows))) for stream in streams])
        for row in world.hidden:
            more = [stream.rng(f"hidden/{row}").random((len(tissues), 1)) for stream in streams]
            u = np.concatenate([u, np.stack(more)], axis=2)
    for t, tissue in enumerate(tissues):
        if tissue.correlations:
            u[:, t] = correlate(u[:, t], world.all_rows, tissue.correlations)
    values = np.empty_like(u)
    for q, row in enumerate(world.all_rows):
        if row in world.table.per_sample:
            values[:, :, q] = draw(world.table.per_sample[row], u[:, :1, q])
            continue
        for t, tissue in enumerate(tissues):
            values[:, t, q] = draw(tissue.values[row], u[:, t, q])
    return torch.from_numpy(values.astype(np.float32))


def within_tissue(
    world: Scene, streams: Sequence[Streams], patch: tuple[int, ...]
) -> tuple[Float[Tensor, "b q *space"], tuple[Variation, ...]]:
    """Standard normals of every row and voxel, and how much each row varies within a tissue."""
    within = tuple(world.table.within.get(row, Variation()) for row in world.all_rows)
    normals = torch.empty(len(streams), len(within), *patch)
    of_model = len(world.rows)
    if world.by_subject:
        for b, stream in enumerate(streams):
            for q, row in enumerate(world.all_rows):
                normals[b, q].normal_(generator=stream.torch_generator(f"within/{row}"))
        return normals, within
    for b, stream in enumerate(streams):
        # one per row, varying or not: so a row's normals do not depend on which rows vary
        normals[b, :of_model].normal_(generator=stream.torch_generator("within"))
        for q, row in enumerate(world.hidden):
            normals[b, of_model + q].normal_(generator=stream.torch_generator(f"hidden/{row}"))
    return normals, within


def through_fields(
    world: Scene,
    streams: Sequence[Streams],
    crops: Sequence[Crop],
    voxels: Mixture,
    kappa: Float[Tensor, "r b *space"],
    minor_kappa: Float[Tensor, "r p"],
) -> tuple[Float[Tensor, "q b *space"], Float[Tensor, "q p"]]:
    """Let each field change its rows, in place; then the hidden rows have served and are left out.

    Raises: InputError naming the number of the field that the phantom cannot carry.
    """
    if world.fields:
        rows = Rows(
            maps=dict(zip(world.all_rows, kappa, strict=True)),
            minor=dict(zip(world.all_rows, minor_kappa, strict=True)),
            mixture=voxels,
            tissues=world.phantom.tissues,
        )
        places = [_place(world, crop, tuple(kappa.shape[2:])) for crop in crops]
        for i, (field, ranges) in enumerate(zip(world.fields, world.ranges, strict=True)):
            try:
                field.apply(rows, places, [_field_rng(stream, i) for stream in streams], ranges)
            except InputError as error:
                raise InputError(of_field(i, field, str(error))) from None
    return kappa[: len(world.rows)], minor_kappa[: len(world.rows)]


def draw_fields(world: Scene, stream: Streams) -> list[Mapping[str, object]]:
    """Kind and amplitudes of every field of a sample."""
    return [{"kind": field.kind, **field.drawn(_field_rng(stream, i))} for i, field in enumerate(world.fields)]


def _field_rng(stream: Streams, number: int) -> np.random.Generator:
    return stream.rng(f"fields/{number}")


def _place(world: Scene, crop: Crop, patch: tuple[int, ...]) -> Place:
    phantom = world.phantom
    block, axis = patch, world.slice_axis
    if len(patch) < len(crop.origin):
        block = (*patch[:axis], 1, *patch[axis:])
    extent = None
    if isinstance(phantom, VolumePhantom):
        extent = tuple(phantom.volumes[phantom.ids.index(crop.subject)].shape[1:])
    return Place(
        origin=crop.origin,
        block=block,
        spacing_mm=phantom.spacing_mm,
        extent=extent,
        slice_axis=axis if len(block) == 3 else None,
        patch=patch,
    )
