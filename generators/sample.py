"""The file to read first: from a config to samples, one line per arrow.

anatomy -> tissue values -> parameter maps -> fields -> signal -> artefacts, noise. A sample is a pure function of
(config, seed, index): every stage has a random stream of its own, so neither the batch it is made in nor the worker
changes a bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from jaxtyping import Float, Inexact, Int, UInt8
from torch import Tensor

from generators.acquisition import acquire, artefact_records, draw_artefacts, without_noise
from generators.config import GeneratorConfig
from generators.scene import Scene, draw, draw_fields, scene, through_fields, tissue_values, within_tissue
from phantoms.base import Crop
from phantoms.maps import Mixture, minor_parameters, mixture, parameter_maps
from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.kspace.artefacts.base import Stage
from qsim.kspace.noise import Noise
from qsim.signals import ClosedForm
from qsim.signals.base import CoherentModel, SpatialModel, real_signal

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
    anatomy = _anatomy(config, streams)
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
            add_noise(config.noise_model, signal, sigma[part], streams[part], out=images[part])
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
    anatomy = _anatomy(config, [stream])
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


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Tissue and its parameters, before any signal.

    Attributes:
        crops: where each patch was cut.
        voxels: which tissues share each voxel.
        kappa: maps of the tissue with the largest share, background included [SI].
        minor_kappa: parameters of the other tissues, in the order of `voxels.minor` [SI].
    """

    crops: Sequence[Crop]
    voxels: Mixture
    kappa: Float[Tensor, "q b *space"]
    minor_kappa: Float[Tensor, "q p"]


def _anatomy(config: GeneratorConfig, streams: Sequence[Streams]) -> Anatomy:
    world = scene(config)
    crops = [world.phantom.crop(config.patch, stream.rng("anatomy")) for stream in streams]
    voxels = mixture(torch.from_numpy(np.stack([crop.fractions for crop in crops])), config.partial_volume)
    values = tissue_values(world, streams)
    normals, within = within_tissue(world, streams, config.patch)
    kappa = parameter_maps(values, normals, within, voxels.majority)
    minor_kappa = minor_parameters(values, normals, within, voxels.minor)
    kappa, minor_kappa = through_fields(world, streams, crops, voxels, kappa, minor_kappa)
    return Anatomy(crops, voxels, kappa, minor_kappa)


def _parts(samples: int, numbers_per_sample: int) -> Iterator[slice]:
    """Slices of samples whose images fit the processor's cache; the numbers do not depend on them."""
    step = max(1, _NUMBERS_IN_CACHE // numbers_per_sample)
    for low in range(0, samples, step):
        yield slice(low, min(low + step, samples))


def draws(config: GeneratorConfig, index: int) -> Mapping[str, object]:
    """What was drawn for one sample, as JSON holds it: anatomy, tissue values [SI], fields, artefacts, sigma.

    A row that a field replaces is not among the tissue values; hidden rows, which only fields use, are.
    """
    world = scene(config)
    stream = Streams(config.seed, index)
    crop = world.phantom.crop(config.patch, stream.rng("anatomy"))
    values = tissue_values(world, [stream])[0]
    return {
        "subject": crop.subject,
        "origin": list(crop.origin),
        "sigma": float(draw_sigma(config, [stream])[0]),
        "tissues": {
            tissue: {row: float(values[t, q]) for q, row in enumerate(world.all_rows) if row not in world.replaced}
            for t, tissue in enumerate(world.phantom.tissues)
        },
        "fields": draw_fields(world, stream),
        "artefacts": artefact_records(config, world.artefacts, stream),
    }


def mixed_signal(model: CoherentModel, anatomy: Anatomy, part: slice) -> Float[Tensor, "n b *space"]:
    """Coherent signal of some of the samples: signals mix, before any modulus; relaxation times do not.

        S = sum_k share_k S(kappa of tissue k)

    Where the readout mixes voxels, magnetisations mix within them first, and one readout follows. Of a complex signal:
    its modulus, or its real part if the model is signed.
    """
    return real_signal(model, coherent_signal(model, anatomy, part))


def coherent_signal(model: CoherentModel, anatomy: Anatomy, part: slice) -> Inexact[Tensor, "n b *space"]:
    """The same with its phase, where the model has one."""
    if isinstance(model, SpatialModel) and model.mixes_voxels:
        signal = model.image(_mixed_tissue(model.magnetisation, anatomy, part))
    elif isinstance(model, ClosedForm):
        signal = _mixed(model.coherent, anatomy, part)
    else:
        signal = _mixed_tissue(model.coherent, anatomy, part)
    # one sum instead of a test of every voxel: what is not finite stays so in it
    total = signal.sum() if signal.is_complex() else signal.sum(dtype=torch.float64)
    if not bool(torch.isfinite(total)):
        raise InputError(
            "model: the signal of some voxel is not finite: its relaxation is faster than the pulses or the lock "
            "(short T2, REL_B1 near 0), or a field is far too large; narrow tissues or fields"
        )
    return signal


def _mixed(function: Callable[[Tensor], Tensor], anatomy: Anatomy, part: slice) -> Inexact[Tensor, "n b *space"]:
    """Sum over the tissues of each voxel of share x function(kappa of the tissue)."""
    signal = function(anatomy.kappa[:, part]).mul_(anatomy.voxels.purity[part])
    minor = anatomy.voxels.minor
    if len(minor.share) == 0:
        return signal
    first, last = torch.searchsorted(minor.sample, torch.tensor((part.start, part.stop))).tolist()
    if last > first:
        other = function(anatomy.minor_kappa[:, first:last]).mul_(minor.share[first:last])
        voxels = signal[0, 0].numel()
        flat = (minor.sample[first:last] - part.start) * voxels + minor.voxel[first:last]
        signal.reshape(len(signal), -1).index_add_(1, flat, other)
    return signal


def _mixed_tissue(function: Callable[[Tensor], Tensor], anatomy: Anatomy, part: slice) -> Inexact[Tensor, "n b *space"]:
    """The same sum, computed only where there is tissue: worth the copies where a voxel costs more than they do."""
    purity, minor = anatomy.voxels.purity[part], anatomy.voxels.minor
    held = torch.nonzero(purity.flatten() > 0)[:, 0]
    first, last = torch.searchsorted(minor.sample, torch.tensor((part.start, part.stop))).tolist()
    voxels = purity[0].numel()
    where = torch.cat((held, (minor.sample[first:last] - part.start) * voxels + minor.voxel[first:last]))
    share = torch.cat((purity.flatten().index_select(0, held), minor.share[first:last]))
    majority = anatomy.kappa[:, part].flatten(1).index_select(1, held)
    signal = function(torch.cat((majority, anatomy.minor_kappa[:, first:last]), 1)).mul_(share)
    mixed = torch.zeros(len(signal), purity.numel(), dtype=signal.dtype).index_add_(1, where, signal)
    return mixed.reshape(-1, *purity.shape)


def add_noise(
    noise: Noise,
    signal: Float[Tensor, "b n *space"],
    sigma: Float[Tensor, " b"],
    streams: Sequence[Streams],
    out: Float[Tensor, "b n *space"],
) -> None:
    """Write the noisy images of some samples into `out`; the normals of each come from its own stream."""
    normals = [out, *(torch.empty_like(out) for _ in range(noise.channels - 1))]
    for b, stream in enumerate(streams):
        generator = stream.torch_generator("noise")
        for channel in normals:
            channel[b].normal_(generator=generator)
    noise.add(signal, sigma.reshape(-1, *(1,) * (signal.ndim - 1)), normals)


def draw_sigma(config: GeneratorConfig, streams: Sequence[Streams]) -> Float[Tensor, " b"]:
    """Noise SD of each sample [units of A]."""
    u = np.array([stream.rng("sigma").random() for stream in streams])
    return torch.from_numpy(draw(config.noise_model.sigma, u).astype(np.float32))
