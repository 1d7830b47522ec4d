"""A chain of artefacts as a transform of TorchIO 1.x.

    CorruptTransform([RFSpike()], seed=1, key="id", phase="zero")

What is drawn is a pure function of (seed, epoch, key), where the key tells subjects apart. TorchIO's own transforms
draw from torch's global state, so that their data depend on the number of loader workers.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchio import IntensityTransform, Subject

from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.kspace import Artefact, with_spacing
from trainers.augment import Corruption, Output, Phase, SharedEpoch, as_complex, check_choices, finished


class CorruptTransform(IntensityTransform):
    """Corrupts the intensity images of a subject.

    The axes x, y, z of TorchIO are -1, -2, -3 of the artefacts; channels are the images of a series. An axis of one
    voxel is left out (the image is 2D), unless an artefact asks for `ndim: 3`. Artefacts that know lengths
    (`spacing_mm`) get them from the image. TorchIO's random state decides nothing, not even `p`.

    Args:
        artefacts: in the order of the scanner.
        seed: of all draws.
        epoch: an image is corrupted anew in each; see `set_epoch`.
        key: name of a number or text of the subject that tells subjects apart, for instance its id; None: the bytes
            of its images do, so that equal images are corrupted alike. A number stands for itself (so in the history).
        together: the images of a subject are one series: one draw, and noise that differs between them.
            False: each has draws of its own.
        phase, output: as in `CorruptedDataset`.
        severity: entry of the subject that gets the severities (artefact,), or (image, artefact) if not together.
        p: probability that a subject is corrupted at all.
        copy, include, exclude: as in every transform of TorchIO.
    """

    def __init__(
        self,
        artefacts: Sequence[Artefact[Any]],
        seed: int,
        epoch: int = 0,
        key: str | int | None = None,
        together: bool = True,
        phase: Phase = "given",
        output: Output = "magnitude",
        severity: str = "severity",
        p: float = 1.0,
        copy: bool = True,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
    ) -> None:
        # p of TorchIO comes from torch's global state
        super().__init__(p=1, copy=copy, include=include, exclude=exclude)
        check_choices(phase, output)
        if not 0 <= p <= 1:
            raise ValueError(f"p must lie in [0, 1], got {p}")
        self.artefacts, self.seed, self.key, self.together = tuple(artefacts), seed, key, together
        self.phase, self.output, self.severity, self.p = phase, output, severity, p
        Corruption(self.artefacts, seed, epoch)
        self._epoch = SharedEpoch(epoch)
        self.args_names = ["artefacts", "seed", "epoch", "key", "together", "phase", "output", "severity"]

    @property
    def epoch(self) -> int:
        """Present epoch."""
        return self._epoch.number

    def set_epoch(self, epoch: int) -> None:
        """Draw anew; call it before the loader is iterated. Workers that are kept (persistent) are told too."""
        self._epoch.set(epoch)

    def apply_transform(self, subject: Subject) -> Subject:
        images = {name: image.data for name, image in self.get_images_dict(subject).items()}
        if not images:
            return subject
        if self.severity in subject:
            raise InputError(f"severity: the subject holds {self.severity!r} already; give another name")
        number = self._number(subject, images)
        rows = [[0.0] * len(self.artefacts)] * (1 if self.together else len(images))
        # a number of the subject of its own, whatever the artefacts draw
        if Streams(self.seed, number).rng(f"epoch {self.epoch}/p").random() < self.p:
            # TorchIO lets numpy raise where it is silent everywhere else
            with np.errstate(all="warn", under="ignore"):
                rows = [
                    self._corrupt(subject, {name: images[name] for name in names}, number)
                    for names in ([list(images)] if self.together else [[name] for name in images])
                ]
            arguments = {**self._get_reproducing_arguments(), "key": number}  # type: ignore[no-untyped-call]
            subject.add_transform(self, arguments)
        severity = torch.tensor(rows, dtype=torch.float32)
        subject[self.severity] = severity[0] if self.together else severity
        subject.update_attributes()
        return subject

    def _add_transform_to_subject_history(self, subject: Subject) -> None:
        """Written by `apply_transform`, where it is known whether something happened, and under which number."""

    def _number(self, subject: Subject, images: Mapping[str, Tensor]) -> int:
        if isinstance(self.key, int):
            return self.key
        if self.key is None:
            return _digest(*(data.contiguous().cpu().numpy().tobytes() for data in images.values()))
        if self.key not in subject:
            raise InputError(f"key: the subject has no {self.key!r}, it has {', '.join(map(str, subject))}")
        named = subject[self.key]
        if isinstance(named, str):
            return _digest(named.encode())
        if isinstance(named, int | np.integer) and named >= 0:
            return int(named)
        raise InputError(f"key: {self.key!r} must be a text or a number from 0 on, got {named!r}")

    def _corrupt(self, subject: Subject, images: Mapping[str, Tensor], number: int) -> list[float]:
        """Corrupt images as one series, in place of the subject's own; severities."""
        names = list(images)
        spacing_mm = _spacing_mm(subject, names)
        # x y z becomes z y x
        series = [as_complex(data, self.phase).permute(0, 3, 2, 1) for data in images.values()]
        if len({data.shape[1:] for data in series}) > 1:
            shapes = ", ".join(f"{name} {tuple(data.shape[1:])}" for name, data in images.items())
            raise InputError(f"together: images of one series need one extent, got {shapes}; set together=False")
        # one layout of memory: the last bits of a transform follow it
        stacked = torch.cat(series).contiguous()
        space = tuple(stacked.shape[1:])
        flat = 1 in space and all(artefact.ndim != 3 for artefact in self.artefacts)
        # z first, if several axes have one voxel
        dropped = space.index(1) if flat else None
        kept = [axis for axis in range(3) if axis != dropped]
        voxel = tuple(spacing_mm[axis] for axis in kept)
        artefacts = [with_spacing(artefact, voxel) for artefact in self.artefacts]
        chain = Corruption(artefacts, self.seed, self.epoch)
        part = "" if self.together else f"image {names[0]}"
        corrupted = chain(stacked.reshape(stacked.shape[0], *(space[axis] for axis in kept)), number, part)
        back = corrupted.images.reshape(stacked.shape).permute(0, 3, 2, 1)
        for name, data in zip(names, back.split([len(data) for data in series]), strict=True):
            subject.get_image(name).set_data(finished(data, self.output).contiguous())
        return list(corrupted.severity)


def _spacing_mm(subject: Subject, names: Sequence[str]) -> tuple[float, float, float]:
    """Voxel size z y x [mm].

    Raises: InputError if the images of a series differ in it.
    """
    each = {name: subject.get_image(name).spacing for name in names}
    first = each[names[0]]
    if any(not np.allclose(spacing, first, rtol=1e-3) for spacing in each.values()):
        raise InputError(f"together: images of one series need one voxel size, got {each}; set together=False")
    return float(first[2]), float(first[1]), float(first[0])


def _digest(*parts: bytes) -> int:
    """A number of 64 bits that tells contents apart."""
    digest = blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "big")
