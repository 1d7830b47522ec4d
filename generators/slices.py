"""Where a sample is cut, what its slices share, and where its organs lie in each image.

| `sampling` | sample i | tissue values, fields |
| --- | --- | --- |
| patches | a patch at random | drawn for the sample |
| slices | slice i of the split, subject by subject | drawn for the subject |

With slices every tissue and row has a stream of its own, and so has the variation of a row within the tissues: two
configs of one seed and phantom, one of T1rho and one of T2, are two series of the same subjects. Noise and motion are
those of the measurement: their streams are named by the signal model too.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from generators.config import GeneratorConfig
from generators.scene import Scene
from phantoms.base import Crop, VolumePhantom
from qsim.distributions import Streams
from qsim.errors import InputError


def cut(world: Scene, config: GeneratorConfig, stream: Streams) -> Crop:
    """The anatomy of one sample.

    Raises: InputError if the patch is larger than the anatomy, or a slice is asked for that is not there.
    """
    if config.sampling == "patches":
        return world.phantom.crop(config.patch, stream.rng("anatomy"))
    phantom = world.phantom
    assert isinstance(phantom, VolumePhantom)
    if stream.index >= len(world.order):
        raise InputError(
            f"samples: sample {stream.index} was asked for, but with sampling: slices the {config.split} split of "
            f"{config.phantom_spec.kind} has {len(world.order)}; ask for at most that many, or for more subjects"
        )
    return phantom.whole_slice(*world.order[stream.index], config.patch)


def of_subject(config: GeneratorConfig, streams: Sequence[Streams], crops: Sequence[Crop]) -> Sequence[Streams]:
    """Streams of what is drawn once per subject, or once per sample where samples are patches."""
    if config.sampling == "patches":
        return streams
    return [Streams(config.seed, crop.subject) for crop in crops]


def moved_fractions(
    world: Scene, config: GeneratorConfig, streams: Sequence[Streams], crops: Sequence[Crop]
) -> Iterator[Float[np.ndarray, "b t *space"]]:
    """Shares of the tissues as every image after the first sees them; nothing if no organ moves."""
    motion = config.organ_motion
    if motion is None or motion.sd_mm == 0:
        return
    tissues, spacing = world.phantom.tissues, world.patch_spacing_mm
    n = config.signal_model.n_images
    drawn = [motion.draw(n, len(config.patch), stream.rng(config.stage("motion"))).shifts_mm for stream in streams]
    weights = [motion.weight(crop.fractions, tissues, spacing) for crop in crops]
    for image in range(1, n):
        yield np.stack(
            [
                crop.fractions if weight is None else motion.move(crop.fractions, weight, shifts[image], spacing)
                for crop, weight, shifts in zip(crops, weights, drawn, strict=True)
            ]
        )


def motion_record(config: GeneratorConfig, stream: Streams) -> Mapping[str, object] | None:
    """How the organs of a sample were moved, as JSON holds it; None if none can move."""
    if config.organ_motion is None:
        return None
    n = config.signal_model.n_images
    return config.organ_motion.draw(n, len(config.patch), stream.rng(config.stage("motion"))).as_json()
