"""The synthetic contrasts of a data set, made once and kept beside it, in a file named by all that decides them."""

import hashlib
import json
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from generators.cli import bar
from qsim.errors import InputError
from trainers.checkpoint import load_tensors, save_tensors
from trainers.segmentation.physics import bank
from trainers.segmentation.physics_config import Physics
from trainers.segmentation.preparation import Frame, normalised
from trainers.segmentation.slices import SeriesSet


def physics_bank(series: SeriesSet, physics: Physics, size: int, folder: Path) -> Float[Tensor, "s copies size size"]:
    """Contrasts of every series, as a network is shown them; made, or read from `folder`.

    Raises: InputError naming the series whose maps cannot be found.
    """
    # how often they are shown changes nothing of them
    content = json.dumps([series.digest, physics.model_dump(mode="json", exclude={"share"}), size], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    file = folder / f"physics_{digest[:12]}.safetensors"
    if file.is_file():
        return load_tensors(file)[0]["images"]
    try:
        with bar("synthetic contrasts", "series") as advance:
            found = bank(
                series.images,
                series.times,
                series.spacing_mm,
                physics,
                physics.seed,
                series.names,
                None if advance is None else lambda done: advance(done, len(series)),
            )
    except InputError as error:
        raise InputError(f"physics: {error}") from None
    shown = []
    for number, copies in enumerate(found):
        frame = Frame((int(copies.shape[1]), int(copies.shape[2])), size)
        try:
            shown.append(torch.stack([frame.there(normalised(each)) for each in copies]))
        except InputError as error:
            raise InputError(f"physics: {series.names[number]}: {error}") from None
    images = torch.stack(shown)
    save_tensors(file, {"images": images}, {"kind": "physics", "digest": digest})
    return images
