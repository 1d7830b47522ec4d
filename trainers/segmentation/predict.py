"""What networks say of images: probabilities, masks, and how far several answers disagree.

    member m: p_m = sigmoid(logits)      several runs are a deep ensemble, passes with dropout are members too

    probability = mean p_m,   mask = probability >= .5
    entropy     = H(probability),   mutual = entropy - mean H(p_m)              [nats], H(p) = -p ln p - (1-p) ln(1-p)

    disagreement of an image = 1 - mean over pairs of Dice(p_m >= .5, p_n >= .5)

Source: Lakshminarayanan et al. 2017, arXiv:1612.01474 (ensembles); Gal and Ghahramani 2016, arXiv:1506.02142 (dropout);
    Roy et al. 2019, doi:10.1016/j.neuroimage.2019.03.042 (overlap between samples as a figure of a structure).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import ValidationError
from torch import Tensor

from qsim.errors import InputError
from trainers.checkpoint import load_tensors, restore_weights
from trainers.devices import device_of
from trainers.global_stream import GLOBAL_STREAM
from trainers.infer import find_network
from trainers.relaxation.uncertainty import dropout_active, has_dropout
from trainers.segmentation.config import SegmentationConfig
from trainers.segmentation.network import SegmentationNet
from trainers.segmentation.running import THRESHOLD, dice_of, probabilities


@dataclass(frozen=True, slots=True)
class Prediction:
    """Answers of one or several members.

    Attributes:
        members: probability of the target by each [1].
    """

    members: Float[Tensor, "m i y x"]

    @property
    def probability(self) -> Float[Tensor, "i y x"]:
        """Mean over the members."""
        return self.members.mean(0)

    @property
    def mask(self) -> Bool[Tensor, "i y x"]:
        """Where it is at least a half."""
        return self.probability >= THRESHOLD

    @property
    def entropy(self) -> Float[Tensor, "i y x"]:
        """Of the mean probability [nats]."""
        return _entropy(self.probability)

    @property
    def mutual(self) -> Float[Tensor, "i y x"]:
        """Entropy of the mean less the mean entropy, what the members do not agree on [nats]; 0 for one member."""
        return (self.entropy - _entropy(self.members).mean(0)).clamp(min=0)

    def scores(self) -> dict[str, Float[np.ndarray, " i"]]:
        """How uncertain each image is; the more the worse.

        disagreement: see above; NaN for one member.
        entropy_per_target, mutual_per_target: sum over the image over sum of the probability (at least one voxel).
        """
        target = self.probability.flatten(1).sum(1).clamp(min=1.0).double()

        def per_target(values: Float[Tensor, "i y x"]) -> Float[np.ndarray, " i"]:
            return (values.flatten(1).sum(1).double() / target).numpy()

        return {
            "disagreement": self._disagreement(),
            "entropy_per_target": per_target(self.entropy),
            "mutual_per_target": per_target(self.mutual),
        }

    def _disagreement(self) -> Float[np.ndarray, " i"]:
        if len(self.members) < 2:
            return np.full(self.members.shape[1], np.nan)
        pairs = [dice_of(a, b >= THRESHOLD) for a, b in combinations(self.members, 2)]
        return np.asarray(1 - np.mean(pairs, 0))


def _entropy(p: Float[Tensor, "*i y x"]) -> Float[Tensor, "*i y x"]:
    return torch.special.entr(p) + torch.special.entr(1 - p)


@dataclass(frozen=True, slots=True)
class Masker:
    """Trained networks, ready to segment prepared images.

    Attributes:
        nets: in evaluation mode, on `device`; trained on the same size.
        configs: of their trainings.
        device: where they are.
        samples: passes of each with dropout; 0: one without.
        seed: of dropout.
        names: of the networks, for messages.
        digests: SHA-256 of their files.
        field_mm: field of view of the trainings, which their square shows [mm]; None: not told.
    """

    nets: tuple[SegmentationNet, ...]
    configs: tuple[SegmentationConfig, ...]
    device: torch.device
    samples: int = 0
    seed: int = 0
    names: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    field_mm: float | None = None

    @property
    def size(self) -> int:
        """Side of the square that the networks see [voxels]."""
        return self.configs[0].data.size

    def __call__(self, images: Float[Tensor, "i y x"]) -> Prediction:
        """The answers for images as `prepared` makes them."""
        members = []
        for net, config in zip(self.nets, self.configs, strict=True):
            if not self.samples:
                members.append(probabilities(net, images, config, self.device))
                continue
            with GLOBAL_STREAM, torch.random.fork_rng(devices=[]), dropout_active(net):
                torch.manual_seed(self.seed)
                members.extend(probabilities(net, images, config, self.device) for _ in range(self.samples))
        return Prediction(torch.stack(members))


def load_masker(runs: str | Path | Sequence[str | Path], device: str = "auto", samples: int = 0) -> Masker:
    """Trained networks.

    Args:
        runs: folder of a run or a .safetensors file; several are a deep ensemble.
        device: `auto` is CUDA where there is one.
        samples: passes of Monte Carlo dropout of each network; 0: none.
    Raises: InputError if one is missing, damaged or of another kind, they see other sizes, or have no dropout.
    """
    several = (runs,) if isinstance(runs, str | Path) else tuple(runs)
    if not several:
        raise InputError("model: none was given")
    place = device_of(device)
    nets, configs, names, digests, fields = [], [], [], [], []
    for run in several:
        path = find_network(run)
        tensors, header = load_tensors(path)
        config = config_of(header, path)
        net = config.network.build(torch.Generator())
        restore_weights(net, tensors, path)
        net.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
        nets.append(net.eval().requires_grad_(False))
        configs.append(config)
        names.append(path.stem if path.stem != "model" else path.parent.name)
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
        fields.append(header.get("field_mm"))
        if config.data.size != configs[0].data.size:
            raise InputError(
                f"{path}: sees {config.data.size} voxels, {names[0]} sees {configs[0].data.size}; an ensemble has one "
                "size"
            )
        if samples and not has_dropout(net):
            raise InputError(f"samples: {path} has no dropout; train one with network.dropout, or leave samples out")
    return Masker(
        tuple(nets), tuple(configs), place, samples, names=tuple(names), digests=tuple(digests), field_mm=fields[0]
    )


def config_of(header: dict[str, Any], path: Path) -> SegmentationConfig:
    """The config that a network's file holds.

    Raises: InputError if it is another kind of network, or of another version.
    """
    if header.get("kind") != "segmentation":
        raise InputError(f"{path}: is no network of kind: segmentation")
    try:
        return SegmentationConfig.model_validate(header["config"])
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{path}: its config does not fit this version of qsim ({first['msg']}); train again"
        ) from None
