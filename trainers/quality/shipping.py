"""Giving a trained network of image quality away: the file and the card of a shipped network.

    from trainers.quality.shipping import ship
    ship("runs/gm_quality", "gm-quality", Path("trainers/shipped"), made_by="configs/shaw2021/train_gm_quality.yaml",
         results="...", limits="...")

The file holds the weights, the calibration and what the training said of itself, but no folder of the machine that it
ran on. The card beside it is filled from the same header; what was measured is for the author to say.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsim.errors import InputError
from trainers.checkpoint import load_tensors
from trainers.infer import find_network
from trainers.quality.config import TASK, DecoupledConfig
from trainers.quality.loading import config_of
from trainers.shipping import free_files, give, grouped, own_header, weights_of


def ship(
    run: str | Path, name: str, folder: Path, *, made_by: str, results: str = "", limits: str = ""
) -> tuple[Path, Path]:
    """Write `<name>.safetensors` and its card `<name>.md`.

    Args:
        run: folder or file of the trained cascade.
        name: that `qsim segment --model` shall know.
        folder: `trainers/shipped` of this package; it must be there.
        made_by: config of the training, as its path in this project.
        results: what was measured, as Markdown.
        limits: what the network cannot do, as a Markdown list.
    Returns: both files.

    Raises: InputError if the run is no such network, is not calibrated, or files of that name are there.
    """
    files = free_files(name, Path(folder))
    path = find_network(run)
    tensors, header = load_tensors(path)
    config = config_of(header, path)
    if not header.get("calibration"):
        raise InputError(f"{path}: is not calibrated; ship the run itself, not the network of a stage")
    weights, kept = weights_of(tensors), _without_places(own_header(header))
    card = _card(name, made_by, config, kept, sum(each.numel() for each in weights.values()), results, limits)
    give(files, weights, kept, card)
    return files


def _without_places(said: Any) -> Any:
    """The same, with the last part of every path from the root of a file system."""
    if isinstance(said, Mapping):
        return {key: _without_places(each) for key, each in said.items()}
    if isinstance(said, list | tuple):
        return [_without_places(each) for each in said]
    if isinstance(said, str) and Path(said).is_absolute():
        return Path(said).name
    return said


def _card(
    name: str,
    made_by: str,
    config: DecoupledConfig,
    header: Mapping[str, Any],
    weights: int,
    results: str,
    limits: str,
) -> str:
    target, spacing = " and ".join(config.data.target), header["spacing_mm"]
    sources = ", ".join(source for source in header["sources"] if source != TASK)
    stages = ", ".join(
        f"{stage} {config.stage(stage).iterations} x {config.stage(stage).batch}" for stage in config.stage_names
    )
    calibration, volume = header["calibration"], header["calibration"].get("volume", {})
    level = volume.get("level")
    bars = f"the {100 * level:.0f} % interval of the volume of {config.data.target[0]}" if level else "no volume"
    size = " x ".join(f"{each:g}" for each in spacing)
    does = (
        f"Segments {target} in T1-weighted images of the brain, and says by variances how good the image is for that "
        f"and what spoils it: task, {sources}."
    )
    use = (
        f"`qsim segment T1W.nii.gz --model {name} --out DIR` writes labels, probabilities, a variance map of each "
        "source, and the volume with its error bar; an image of another voxel size is resampled, which is said."
    )
    data = (
        f"Simulated by this project's forward operators alone: {len(header['anatomies'])} anatomies "
        f"of {_data_sets(header['anatomies'])} data sets, MPRAGE of several inversion times, Rician noise; "
        f"{100 * config.corrupted:.0f} % of the images with artefacts. Calibrated on {calibration['images']} images of "
        f"{calibration['anatomies']} other anatomies: usual variances of clean images, {bars}."
    )
    window = " x ".join(map(str, config.patch))
    return f"""# {name}

{does}
`decoupled_unet` (docs/quality.md), {grouped(weights)} weights, recipe `{config.recipe}`.
Voxels of {size} mm, windows of {window}.

{use}

## Data
{data}

## Training
`qsim train {made_by}` (iterations x images: {stages}).

## Results
{results.strip() or "Not measured yet."}

## Limits
{limits.strip() or "- Simulated data only."}
- Not for clinical use.
"""


def _data_sets(anatomies: list[str]) -> int:
    """How many there are; an anatomy is named `<kind> <data set>.<subject>`."""
    return len({each.rpartition(".")[0] for each in anatomies})
