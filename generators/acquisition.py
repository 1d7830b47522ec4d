"""From the coherent signal of a sample to its images: artefacts, noise, modulus.

    motion, fields, ghosts, spikes  ->  complex noise  ->  which samples are kept  ->  modulus

Noise enters before samples are thrown away, as on a scanner: a low-pass takes the noise where it takes the signal, and
`sigma` is that of the samples as they were measured. `gaussian` noise is no receiver's: it is added after the modulus.
Without artefacts nothing of this is computed, and a sample has the bytes that it had before there were any.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from generators.config import GeneratorConfig
from qsim.distributions import Streams
from qsim.kspace.acquired import Json
from qsim.kspace.artefacts.base import Artefact, Drawn, Stage
from qsim.kspace.chain import apply_chain, as_records, draw_chain, with_spacing
from qsim.kspace.fourier import magnitude
from qsim.kspace.noise import Noise, coils_of

# what may follow the severity in a docstring, and where its first sentence ends
_NEXT_PART = re.compile(r"\b(?:Facts|Not|Source|Assumes):")
_SENTENCE_END = re.compile(r"(?<=\.)\s+(?=[A-Z`])")


def artefacts_of(config: GeneratorConfig, spacing_mm: tuple[float, ...]) -> tuple[Artefact[Any], ...]:
    """The artefacts of a config, told the size of a voxel where they ask for it and the config does not say.

    Args:
        config: of the data set.
        spacing_mm: of the axes of a patch.
    """
    return tuple(with_spacing(artefact, spacing_mm) for artefact in config.artefact_list)


def draw_artefacts(
    config: GeneratorConfig, artefacts: Sequence[Artefact[Any]], stream: Streams
) -> tuple[Drawn | None, ...]:
    """What is drawn for one sample."""
    shape = (config.signal_model.n_images, *config.patch)
    return draw_chain(artefacts, shape, lambda stage: stream.rng(config.stage(stage)))


def artefact_records(
    config: GeneratorConfig, artefacts: Sequence[Artefact[Any]], stream: Streams
) -> list[dict[str, Json]]:
    """Kind and draw of every artefact of a sample, as JSON holds it."""
    return as_records(artefacts, draw_artefacts(config, artefacts, stream))


def severity_of(drawn: Sequence[Drawn | None]) -> Float[Tensor, " artefact"]:
    """Severity of each draw; 0 where the artefact was left out."""
    return torch.tensor([0.0 if each is None else float(each.severity) for each in drawn])


def acquire(
    config: GeneratorConfig,
    artefacts: Sequence[Artefact[Any]],
    signal: Inexact[Tensor, "n *space"],
    sigma: float,
    stream: Streams,
) -> tuple[Float[Tensor, "n *space"], Float[Tensor, " artefact"]]:
    """Images of one sample, and the severity of each artefact.

    Args:
        config: of the data set.
        artefacts: of `artefacts_of`.
        signal: coherent, complex where the model says so [units of A].
        sigma: noise SD per real channel of the measured samples [units of A].
        stream: random streams of the sample.
    """
    drawn = draw_artefacts(config, artefacts, stream)
    before, after = split(artefacts, drawn)
    images = _through(signal.to(torch.complex64), before)
    noise, generator = config.noise_model, stream.torch_generator(config.stage("noise"))
    if coils_of(noise) or noise.signed:
        coils = [_noisy(images if c == 0 else None, sigma, generator, images) for c in range(max(coils_of(noise), 1))]
        coils = [_through(coil, after) for coil in coils]
        return _seen(noise, coils), severity_of(drawn)
    clean = magnitude(_through(images, after))
    return clean.add_(torch.empty_like(clean).normal_(generator=generator), alpha=sigma), severity_of(drawn)


def without_noise(
    artefacts: Sequence[Artefact[Any]], drawn: Sequence[Drawn | None], signal: Inexact[Tensor, "n *space"], signed: bool
) -> Float[Tensor, "n *space"]:
    """The signal after its artefacts, for those who add white noise to the images: modulus, or real part if signed."""
    images = apply_chain(signal.to(torch.complex64), artefacts, drawn).images
    return images.real.clone() if signed else magnitude(images)


Chosen = Sequence[tuple[Artefact[Any], Drawn]]


def split(artefacts: Sequence[Artefact[Any]], drawn: Sequence[Drawn | None]) -> tuple[Chosen, Chosen]:
    """Those that happen, before the noise of the receiver and after it."""
    pairs = [(artefact, each) for artefact, each in zip(artefacts, drawn, strict=True) if each is not None]
    return [pair for pair in pairs if pair[0].stage < Stage.SAMPLING], [
        pair for pair in pairs if pair[0].stage == Stage.SAMPLING
    ]


def _through(images: Tensor, chosen: Chosen) -> Tensor:
    if not chosen:
        return images
    artefacts, drawn = zip(*chosen, strict=True)
    return apply_chain(images, artefacts, drawn).images


def _noisy(images: Tensor | None, sigma: float, generator: torch.Generator, like: Tensor) -> Tensor:
    """Complex white noise, on the images if there are any: the coils of a root of sum of squares share one signal."""
    real, imaginary = (torch.empty_like(like.real).normal_(generator=generator) for _ in range(2))
    noise = torch.complex(real, imaginary).mul_(sigma)
    return noise if images is None else noise.add_(images)


def _seen(noise: Noise, coils: Sequence[Tensor]) -> Tensor:
    """The real part of a signed image, the root of the sum of squares of the coils of any other."""
    if noise.signed:
        return coils[0].real.clone()
    if len(coils) == 1:
        return magnitude(coils[0])
    return torch.stack([magnitude(coil).square_() for coil in coils]).sum(0).sqrt_()


def severity_text(artefact: Artefact[Any]) -> str:
    """What its severity measures, from the sentence of its docstring that says so."""
    text = (type(artefact).__doc__ or "").partition("Severity:")[2]
    line = " ".join(_NEXT_PART.split(text, maxsplit=1)[0].split())
    return _SENTENCE_END.split(line, maxsplit=1)[0]
