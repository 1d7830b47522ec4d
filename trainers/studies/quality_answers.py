"""What a network says of one image of a study of quality, as numbers; their names are those of the tables.

dice                                    of the first class of the target
volume_true, volume_predicted           voxels of the labels; sum of the probabilities [mm^3]
volume_low, volume_high                 calibrated interval, 95 % or the level of the model's calibration [mm^3]
spread, entropic                        sum of p (1 - p); sum of Eq. 8 over the image [voxel^2]
variance_<source>                       mean variance over the image; <source> `artefacts`: all but the task, Eq. 9
body_..., ratio_...                     the same inside the body; over the image, by the share of predicted target
entropy                                 mean entropy of the softmax [nats]; with body_ and ratio_, too
dropout_variance, dropout_mutual        Monte Carlo dropout: mean variance of the probability of the target, and
                                        mutual information of class and weights [nats]
ensemble_entropy, ensemble_mutual       of the mean probability of an ensemble, and its disagreement in nats
ensemble_variance, ensemble_dice        between members, of the probability of the target; of the mean's labels
snr, cnr_pooled, cnr_difference         Eq. 10 and both forms of Eq. 11, with `_predicted` or `_true` labels
"""

from collections.abc import Sequence
from math import nan

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.distributions import Streams
from qsim.evaluation.segmentation import (
    bernoulli_spread,
    contrast_to_noise,
    dice,
    entropic_variance,
    entropy,
    grey_matter_snr,
    relative_spread,
    scaled_probabilities,
    volume,
)
from trainers.global_stream import GLOBAL_STREAM
from trainers.quality.segmenter import TASK, Segmentation, Segmenter
from trainers.relaxation.uncertainty import dropout_active
from trainers.studies.quality_images import WHITE, CleanImage

ARTEFACTS = "artefacts"
Figures = dict[str, float]
_Map = Float[np.ndarray, "x y z"]
_Mask = Bool[np.ndarray, "x y z"]


def total_of(variances: Sequence[_Map]) -> _Map:
    """Variances of all sources together."""
    return np.asarray(np.sum(variances, axis=0))


def judged(
    networks: Sequence[Segmenter],
    image: Float[Tensor, "x y z"],
    clean: CleanImage,
    samples: int,
    streams: Streams,
) -> tuple[Figures, Segmentation]:
    """All figures of an image.

    Args:
        networks: the one that is judged, then the others of its ensemble.
        image: with or without artefacts.
        clean: the same image without, and its tissues.
        samples: draws of Monte Carlo dropout.
        streams: of these.
    """
    first = networks[0]
    said = first(image)
    values = image.numpy()
    labels = said.probabilities.argmax(0).numpy()
    predicted: _Mask = labels == 1
    white: _Mask | None = labels == 1 + first.target.index(WHITE) if WHITE in first.target else None
    found = {"dice": dice(predicted, clean.target)}
    found |= _volumes(first, said, clean)
    found |= _means(said, clean.body, predicted)
    found |= _contrast(values, predicted, white, "predicted") | _contrast(values, clean.target, clean.white, "true")
    if len(networks) > 1:
        found |= _ensemble([said, *(other(image) for other in networks[1:])], clean)
    if samples:
        found |= _dropout(first, image, samples, streams)
    return found, said


def _volumes(segmenter: Segmenter, said: Segmentation, clean: CleanImage) -> Figures:
    probability = said.probabilities[1].numpy()
    variances = [each.numpy() for each in said.variances.values()]
    h = entropy(scaled_probabilities(said.logits.numpy(), total_of(variances)))
    found = {
        "volume_true": volume(clean.target, clean.voxel_mm3),
        "volume_predicted": volume(probability, clean.voxel_mm3),
        "spread": bernoulli_spread(probability),
        "entropic": float(entropic_variance(h).sum(dtype=np.float64)),
        "voxel_mm3": clean.voxel_mm3,
    }
    calibration = segmenter.volume_calibration()
    if calibration is not None and found["spread"] > 0:
        artefacts = None if calibration.offset is None else said.artefacts_per_target()
        low, high = calibration.interval(found["volume_predicted"], relative_spread(probability), artefacts)
        found |= {"volume_low": float(low), "volume_high": float(high)}
    return found


def _means(said: Segmentation, body: _Mask, predicted: _Mask) -> Figures:
    """Mean variances and entropy: over the image, in the body, and by the share of the target."""
    maps = {f"variance_{name}": each.numpy() for name, each in said.variances.items()}
    artefacts = [each for name, each in maps.items() if name != f"variance_{TASK}"]
    if artefacts:
        maps[f"variance_{ARTEFACTS}"] = total_of(artefacts)
    maps["entropy"] = entropy(said.probabilities.numpy())
    share = float(predicted.mean())
    found: Figures = {}
    for name, values in maps.items():
        mean = float(values.mean(dtype=np.float64))
        found[name] = mean
        found[f"body_{name}"] = float(values[body].mean(dtype=np.float64)) if body.any() else nan
        found[f"ratio_{name}"] = mean / share if share else nan
    return found


def _contrast(values: _Map, grey: _Mask, white: _Mask | None, whose: str) -> Figures:
    """SNR and CNR; NaN where a tissue has fewer than two voxels, or is not known."""
    enough = np.count_nonzero(grey) > 1
    found = {f"snr_{whose}": grey_matter_snr(values, grey) if enough else nan}
    both = contrast_to_noise(values, grey, white) if enough and white is not None and white.sum() > 1 else {}
    return found | {f"cnr_{form}_{whose}": both.get(form, nan) for form in ("pooled", "difference")}


def _ensemble(said: Sequence[Segmentation], clean: CleanImage) -> Figures:
    each = np.stack([member.probabilities.numpy() for member in said])
    mean = each.mean(0)
    own = np.mean([entropy(member).mean(dtype=np.float64) for member in each])
    of_mean = float(entropy(mean).mean(dtype=np.float64))
    return {
        "ensemble_entropy": of_mean,
        "ensemble_mutual": of_mean - float(own),
        "ensemble_variance": float(each[:, 1].var(0).mean(dtype=np.float64)),
        "ensemble_dice": dice(mean.argmax(0) == 1, clean.target),
    }


def _dropout(segmenter: Segmenter, image: Float[Tensor, "x y z"], samples: int, streams: Streams) -> Figures:
    """Spread between draws of Monte Carlo dropout."""
    mean, square, own = np.zeros(0), np.zeros(0), 0.0
    for sample in range(samples):
        # dropout draws from the one stream of the process
        with GLOBAL_STREAM, torch.random.fork_rng(_devices(segmenter.device)), dropout_active(segmenter.net):
            torch.manual_seed(int(streams.rng(f"dropout/{sample}").integers(2**62)))
            drawn = segmenter(image).probabilities.double().numpy()
        own += float(entropy(drawn).mean()) / samples
        mean = drawn / samples if sample == 0 else mean + drawn / samples
        square = drawn[1] ** 2 / samples if sample == 0 else square + drawn[1] ** 2 / samples
    return {
        "dropout_variance": float(np.maximum(square - mean[1] ** 2, 0).mean()),
        "dropout_mutual": float(entropy(mean).mean()) - own,
    }


def _devices(device: torch.device) -> list[int]:
    """CUDA devices whose stream is put back afterwards."""
    return [device.index or 0] if device.type == "cuda" else []
