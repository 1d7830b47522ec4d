"""What held-out images tell after the training: usual variances of clean images, and error bars of volumes."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console

from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.evaluation.segmentation import (
    entropic_variance,
    entropy,
    fit_volume_error,
    per_target,
    relative_spread,
    scaled_probabilities,
    volume,
)
from qsim.kspace import magnitude
from trainers.quality.blocks import Blocks, classes_of, make_stores, read_blocks
from trainers.quality.config import DecoupledConfig
from trainers.quality.loading import segmenter_of
from trainers.quality.scaling import intensity_scale
from trainers.quality.segmenter import Segmentation
from trainers.quality.views import spoiled


@dataclass(frozen=True, slots=True)
class Measured:
    """What one image of a calibration says.

    Attributes:
        anatomy: number of the subject.
        kind: number of the source that spoils it, from 1; 0: clean.
        predicted, true: volume of the first class of the target [mm^3].
        spread: sum p (1 - p) / sum p over the image [1].
        variances: of each source per voxel of the predicted target, the task first [1].
        entropic: Eq. 8 of shaw2021, mean over the image.
    """

    anatomy: int
    kind: int
    predicted: float
    true: float
    spread: float
    variances: tuple[float, ...]
    entropic: float

    @property
    def artefacts(self) -> float:
        """Of all artefacts together."""
        return sum(self.variances[1:])


def calibration_of(
    config: DecoupledConfig, out: Path, device: torch.device, workers: int, console: Console
) -> dict[str, Any]:
    """Calibrate the last network of a cascade on whole images that it was not trained on, clean and spoiled.

    Args:
        out: folder of the run.
        workers: processes side by side on a CPU; no number depends on it.
    Returns: `clean`: mean and SD over clean images of each source's variance per voxel of the predicted target, which
        the air around a head does not change; `entropic`: of the mean of Eq. 8; `volume`: see
        `qsim.evaluation.segmentation.VolumeCalibration`, or why there is none; as JSON holds it.

    Raises: InputError if an image cannot be segmented.
    """
    field = "data.calibration" if config.data.calibration else "data.validation"
    paths = make_stores(config.data.calibration or config.data.validation, out / "data", field, workers, console)
    blocks = read_blocks(paths, config.data.target, field)
    console.print(f"calibration on {len(blocks)} images, clean and with each source")
    last = out / "stages" / config.stage_names[-1] / "model.safetensors"
    if workers == 1 or device.type != "cpu":
        found = _part(config, last, blocks, range(len(blocks)), device)
    else:
        content = config.model_dump_json()
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            jobs = [
                pool.submit(_alone, content, last, list(paths), field, list(range(start, len(blocks), workers)))
                for start in range(workers)
            ]
            found = [measured for job in jobs for measured in job.result()]
    found.sort(key=lambda each: (each.anatomy, each.kind, each.predicted))
    return summary(config, found)


def summary(config: DecoupledConfig, found: Sequence[Measured]) -> dict[str, Any]:
    """What the images say together."""
    clean = [each for each in found if each.kind == 0]
    usual = {
        name: _moments(np.array([each.variances[number] for each in clean]))
        for number, name in enumerate(config.variances)
    }
    try:
        volumes: Mapping[str, Any] = fit_volume_error(
            np.array([each.predicted for each in found]),
            np.array([each.true for each in found]),
            np.array([each.spread for each in found]),
            np.array([each.artefacts for each in found]),
            anatomy=np.array([each.anatomy for each in found]),
        ).to_json()
    except InputError as error:
        volumes = {"missing": str(error)}
    return {
        "clean": usual,
        "entropic": _moments(np.array([each.entropic for each in clean])),
        "volume": dict(volumes),
        "images": len(found),
        "anatomies": len({each.anatomy for each in found}),
    }


def _moments(values: Float[np.ndarray, " i"]) -> dict[str, float]:
    return {"mean": float(values.mean()), "sd": float(values.std(ddof=1)) if values.size > 1 else 0.0}


def measured(
    answer: Segmentation, true: Float[np.ndarray, "x y z"], voxel_mm3: float, anatomy: int, kind: int
) -> Measured:
    """What an answer says beside the truth.

    Args:
        true: 1 where the first class of the target is.
    """
    p = answer.probabilities[1].double().numpy()
    variances = [each.double().numpy() for each in answer.variances.values()]
    h = entropy(scaled_probabilities(answer.logits.double().numpy(), np.sum(variances, axis=0)))
    return Measured(
        anatomy=anatomy,
        kind=kind,
        predicted=volume(p, voxel_mm3),
        true=volume(true, voxel_mm3),
        spread=relative_spread(p),
        variances=tuple(per_target(each, p) for each in variances),
        entropic=float(entropic_variance(h).mean()),
    )


def _part(
    config: DecoupledConfig, model: Path, blocks: Blocks, numbers: Sequence[int], device: torch.device
) -> list[Measured]:
    segmenter = segmenter_of(model, device)
    voxel = float(np.prod(blocks.spacing_mm))
    found = []
    for number in numbers:
        image = blocks.images[number] / intensity_scale(blocks.images[number])
        true = (classes_of(blocks.labels[number], blocks.tissues, config.data.target) == 1).double().numpy()
        whole = image.to(torch.complex64)[None]
        for kind in range(1 + len(config.sources)):
            present = tuple(kind == 1 + place for place in range(len(config.sources)))
            streams = Streams(config.seed, number)
            seen, _ = spoiled(whole, config.sources, present, streams, blocks.spacing_mm)
            answer = segmenter(magnitude(seen)[0])
            found.append(measured(answer, true, voxel, int(blocks.anatomy[number]), kind))
    return found


def _alone(content: str, model: Path, paths: list[Path], field: str, numbers: list[int]) -> list[Measured]:
    """A share of the images in a process of its own."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    config = DecoupledConfig.model_validate_json(content)
    blocks = read_blocks(paths, config.data.target, field)
    return _part(config, model, blocks, numbers, torch.device("cpu"))
