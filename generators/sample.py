"""The file to read first: from a config to samples, one line per arrow.

anatomy -> tissue values -> parameter maps -> fields -> signal -> artefacts, noise. A sample is a pure function of
(config, seed, index): every stage has a random stream of its own, so neither the batch it is made in nor the worker
changes a bit.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from generators.acquisition import acquire, artefact_records, draw_artefacts, without_noise
from generators.config import GeneratorConfig
from generators.mixing import Anatomy, coherent_signal, mixed_signal
from generators.scene import Scene, draw, draw_fields, scene, through_fields, tissue_values, within_tissue
from generators.slices import cut, motion_record, moved_fractions, of_subject
from phantoms.maps import minor_parameters, mixture, parameter_maps
from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.kspace.artefacts.base import Stage

__all__ = ["Anatomy", "Samples", "Scene", "Truth", "draws", "make_sample", "make_samples", "make_truth", "scene"]

# numbers of a part whose images fit the processor's second-level cache together
_NUMBERS_IN_CACHE = 100_000


@dataclass(frozen=True, slots=True)
class Samples:
    """Training examples, with the names of the store's arrays.

    Attributes:
        images: noisy series [units of A].
        kappa: true maps of the majority tissue, 0 in the background [SI].
        labels: 1 + index of the majority tissue in the phantom's `tissues`; 0 background.
        purity: share of the majority tissue [1].
        sigma: noise SD per real channel [units of A].
        subject: subject of the phantom.
        origin: first voxel of the patch in the subject's volume.
        severity: of each artefact of the config; 0 where it was left out.
    """

    images: Float[Tensor, "b n *space"]
    kappa: Float[Tensor, "b q *space"]
    labels: UInt8[Tensor, "b *space"]
    purity: Float[Tensor, "b *space"]
    sigma: Float[Tensor, " b"]
    subject: Int[Tensor, " b"]
    origin: Int[Tensor, "b axis"]
    severity: Float[Tensor, "b artefact"]


@torch.no_grad()
def make_samples(config: GeneratorConfig, indices: Sequence[int]) -> Samples:
    """Make the samples of the given indices.

    Args:
        config: what the data set is made of.
        indices: numbers of the samples; the result does not depend on which are made together.
    Raises: InputError if the phantom cannot be read or a patch is larger than the anatomy.
    """
    if len(indices) == 0:
        raise ValueError("indices is empty")
    streams = [Streams(config.seed, int(index)) for index in indices]
    anatomy = make_anatomy(config, streams)
    sigma = draw_sigma(config, streams)
    model = config.signal_model
    artefacts = scene(config).artefacts
    images = torch.empty(len(streams), model.n_images, *config.patch)
    severity = torch.zeros(len(streams), len(artefacts))
    for part in _parts(len(streams), model.n_images * prod(config.patch)):
        if artefacts:
            signal = coherent_signal(model, anatomy, part).movedim(1, 0)
            for b, one in zip(range(part.start, part.stop), signal, strict=True):
                images[b], severity[b] = acquire(config, artefacts, one, float(sigma[b]), streams[b])
        else:
            signal = mixed_signal(model, anatomy, part).movedim(1, 0)
            add_noise(config, signal, sigma[part], streams[part], out=images[part])
    return Samples(
        images=images,
        kappa=(anatomy.kappa * (anatomy.voxels.labels > 0)).movedim(0, 1).contiguous(),
        labels=anatomy.voxels.labels,
        purity=anatomy.voxels.purity,
        sigma=sigma,
        subject=torch.tensor([crop.subject for crop in anatomy.crops], dtype=torch.int32),
        origin=torch.tensor([crop.origin for crop in anatomy.crops], dtype=torch.int32),
        severity=severity,
    )


def make_sample(config: GeneratorConfig, index: int) -> Samples:
    """`make_samples` of one index; its sample axis has length 1."""
    return make_samples(config, [index])


@dataclass(frozen=True, slots=True)
class Truth:
    """One sample before noise: what a study draws its realisations around.

    Attributes:
        signal: coherent signal without noise, after the artefacts of the config; the images are its modulus unless the
            model is signed [units of A].
        kappa, labels, purity: as in `Samples`.
        subject, origin: where it was cut.
    """

    signal: Float[Tensor, "n *space"]
    kappa: Float[Tensor, "q *space"]
    labels: UInt8[Tensor, "*space"]
    purity: Float[Tensor, "*space"]
    subject: int
    origin: tuple[int, ...]


@torch.no_grad()
def make_truth(config: GeneratorConfig, index: int) -> Truth:
    """The noise-free sample of an index: the same anatomy, tissues, maps and artefacts as `make_sample`.

    Whoever adds noise adds it to the images, after all artefacts: white, of the sigma that is stated.

    Raises: InputError if the config's artefacts hold noise of their own, which no bound knows of.
    """
    model, stream = config.signal_model, Streams(config.seed, index)
    anatomy = make_anatomy(config, [stream])
    artefacts = scene(config).artefacts
    if artefacts:
        for number, artefact in enumerate(artefacts):
            if artefact.stage == Stage.NOISE:
                raise InputError(
                    f"artefacts[{number}]: {artefact.kind} does not go with a study, which adds its noise itself; "
                    "leave it out"
                )
        coherent = coherent_signal(model, anatomy, slice(0, 1))[:, 0]
        drawn = draw_artefacts(config, artefacts, stream)
        signal = without_noise(artefacts, drawn, coherent, bool(getattr(model, "signed", False)))
    else:
        signal = mixed_signal(model, anatomy, slice(0, 1))[:, 0]
    return Truth(
        signal=signal,
        kappa=anatomy.kappa[:, 0] * (anatomy.voxels.labels[0] > 0),
        labels=anatomy.voxels.labels[0],
        purity=anatomy.voxels.purity[0],
        subject=anatomy.crops[0].subject,
        origin=anatomy.crops[0].origin,
    )


def make_anatomy(config: GeneratorConfig, streams: Sequence[Streams]) -> Anatomy:
    """Tissue and parameters of some samples, and what each image sees of them."""
    world = scene(config)
    crops = [cut(world, config, stream) for stream in streams]
    # what all slices of a subject share is drawn for the subject
    owners = of_subject(config, streams, crops)
    values = tissue_values(world, owners)
    normals, within = within_tissue(world, streams, config.patch)

    def with_parameters(fractions: Float[np.ndarray, "b t *space"]) -> Anatomy:
        voxels = mixture(torch.from_numpy(fractions), config.partial_volume)
        kappa = parameter_maps(values, normals, within, voxels.majority)
        minor_kappa = minor_parameters(values, normals, within, voxels.minor)
        kappa, minor_kappa = through_fields(world, owners, crops, voxels, kappa, minor_kappa)
        return Anatomy(crops, voxels, kappa, minor_kappa)

    still = np.stack([crop.fractions for crop in crops])
    moved = tuple(
        replace(with_parameters(seen), changed=torch.from_numpy((seen != still).any(1)))
        for seen in moved_fractions(world, config, streams, crops)
    )
    return replace(with_parameters(still), moved=moved)


def _parts(samples: int, numbers_per_sample: int) -> Iterator[slice]:
    """Slices of samples whose images fit the processor's cache; the numbers do not depend on them."""
    step = max(1, _NUMBERS_IN_CACHE // numbers_per_sample)
    for low in range(0, samples, step):
        yield slice(low, min(low + step, samples))


def draws(config: GeneratorConfig, index: int) -> Mapping[str, object]:
    """What was drawn for one sample, as JSON holds it: anatomy, tissue values [SI], fields, motion, artefacts, sigma.

    A row that a field replaces is not among the tissue values; hidden rows, which only fields use, are.
    """
    world = scene(config)
    stream = Streams(config.seed, index)
    crop = cut(world, config, stream)
    owner = of_subject(config, [stream], [crop])[0]
    values = tissue_values(world, [owner])[0]
    return {
        "subject": crop.subject,
        "origin": list(crop.origin),
        "sigma": float(draw_sigma(config, [stream])[0]),
        "tissues": {
            tissue: {row: float(values[t, q]) for q, row in enumerate(world.all_rows) if row not in world.replaced}
            for t, tissue in enumerate(world.phantom.tissues)
        },
        "fields": draw_fields(world, owner),
        "motion": motion_record(config, stream),
        "artefacts": artefact_records(config, world.artefacts, stream),
    }


def add_noise(
    config: GeneratorConfig,
    signal: Float[Tensor, "b n *space"],
    sigma: Float[Tensor, " b"],
    streams: Sequence[Streams],
    out: Float[Tensor, "b n *space"],
) -> None:
    """Write the noisy images of some samples into `out`; the normals of each come from its own stream."""
    noise, stage = config.noise_model, config.stage("noise")
    normals = [out, *(torch.empty_like(out) for _ in range(noise.channels - 1))]
    for b, stream in enumerate(streams):
        generator = stream.torch_generator(stage)
        for channel in normals:
            channel[b].normal_(generator=generator)
    noise.add(signal, sigma.reshape(-1, *(1,) * (signal.ndim - 1)), normals)


def draw_sigma(config: GeneratorConfig, streams: Sequence[Streams]) -> Float[Tensor, " b"]:
    """Noise SD of each sample [units of A]."""
    u = np.array([stream.rng("sigma").random() for stream in streams])
    return torch.from_numpy(draw(config.noise_model.sigma, u).astype(np.float32))
