"""The networks of a study of quality: loaded once, matched with each other, and kept apart from their training."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from generators.config import GeneratorConfig
from generators.store import PatchStore
from qsim.errors import InputError
from trainers.checkpoint import load_tensors
from trainers.infer import find_network
from trainers.quality.config import BlockData
from trainers.quality.segmenter import Segmenter
from trainers.relaxation.uncertainty import has_dropout
from trainers.studies.quality_config import QualityConfig, QualityModel

# spacings that differ by less are those of the training, as in `qsim segment` [1]
_SAME_SPACING = 0.1


def checksums(config: QualityConfig) -> dict[str, str]:
    """sha256 of every network's file, by its run.

    Raises: InputError naming the model that is not there.
    """
    found = {}
    for number, entry in enumerate(config.models):
        for field, run in _runs(entry):
            try:
                found[run] = hashlib.sha256(find_network(run).read_bytes()).hexdigest()
            except InputError as error:
                raise InputError(f"models[{number}].{field}: {error}") from None
    return found


def members(entry: QualityModel, sums: Mapping[str, str], device: str) -> tuple[Segmenter, ...]:
    """The network of an entry, and those of its ensemble."""
    return tuple(_loaded(run, sums[run], device) for _, run in _runs(entry))


def _runs(entry: QualityModel) -> Iterator[tuple[str, str]]:
    yield "model", entry.model
    for i, run in enumerate(entry.ensemble):
        yield f"ensemble[{i}]", run


@lru_cache(maxsize=16)
def _loaded(run: str, checksum: str, device: str) -> Segmenter:
    assert checksum, "which tells the network of a run from an earlier one"
    return load(run, device)


def load(run: str, device: str) -> Segmenter:
    """A trained network, ready to use.

    Raises: InputError if the file is damaged or of another kind.
    """
    from trainers.quality.loading import load_segmenter

    return load_segmenter(run, torch.device(device))


def check_models(config: QualityConfig, sums: Mapping[str, str], device: str) -> str:
    """Match networks with the test and with each other; returns the tissue that they segment.

    Raises: InputError naming the model at fault.
    """
    target = ""
    for number, entry in enumerate(config.models):
        place = f"models[{number}]"
        try:
            found = members(entry, sums, device)
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
        first = found[0]
        target = target or first.target[0]
        if first.target[0] != target:
            raise InputError(f"{place}: segments {first.target[0]}, the models before it {target}; judge them apart")
        for i, other in enumerate(found[1:]):
            if other.target != first.target:
                raise InputError(
                    f"{place}.ensemble[{i}]: segments {', '.join(other.target)}, not {', '.join(first.target)}; take "
                    "runs of one training with other seeds"
                )
        for name in config.kinds:
            if name not in first.sources:
                raise InputError(
                    f"sources: {entry.name} has no source {name}; it has {', '.join(first.sources[1:]) or 'none'}"
                )
        if entry.samples:
            _check_dropout(place, first)
    return target


def _check_dropout(place: str, segmenter: Segmenter) -> None:
    if not has_dropout(segmenter.net):
        raise InputError(f"{place}.samples: the network was trained without dropout, all draws would be the same; 0")


def check_spacing(
    config: QualityConfig, sums: Mapping[str, str], device: str, spacings: Sequence[tuple[str, tuple[float, ...]]]
) -> None:
    """Refuse images at another voxel size than that of a training.

    Args:
        spacings: field and voxel size of the data [mm].
    Raises: InputError naming the data.
    """
    for entry in config.models:
        for segmenter in members(entry, sums, device):
            for field, spacing in spacings:
                if not np.allclose(spacing, segmenter.spacing_mm, rtol=_SAME_SPACING, atol=0):
                    said = " x ".join(f"{size:.3g}" for size in spacing)
                    learned = " x ".join(f"{size:.3g}" for size in segmenter.spacing_mm)
                    raise InputError(
                        f"{field}: voxels of {said} mm, {entry.name} learned {learned} mm; the study resamples "
                        "nothing: give images of that voxel size"
                    )


def check_apart(config: QualityConfig) -> tuple[str, ...]:
    """Refuse networks that were, or may have been, trained on the anatomies of the test.

    Returns: what the report says of anatomies that test and training share, a sentence each.
    Raises: InputError naming the data.
    """
    notes: list[str] = []
    for entry in config.models:
        for _, run in _runs(entry):
            header = load_tensors(find_network(run))[1]
            data = header.get("config", {}).get("data", {})
            for place, shared in _shared(config, data.get("train", ())):
                if not config.allow_training_anatomy:
                    raise InputError(
                        f"{place}: {run} {shared} these anatomies; take others, or the other split of the same "
                        "phantom, or set allow_training_anatomy: true, which the report then says"
                    )
                notes.append(f"{entry.name} {shared} anatomies of {place}: its figures are flattered.")
            # error bars that were fitted to the test hold by construction
            fitted = data.get("calibration") or data.get("validation", ())
            for place, shared in _shared(config, fitted):
                said = "was calibrated on" if shared == _WAS else "may have been calibrated on"
                notes.append(f"{entry.name} {said} anatomies of {place}: its calibrated intervals are flattered.")
    return tuple(dict.fromkeys(notes))


_WAS, _MAY = "was trained on", "may have been trained on"


def _shared(config: QualityConfig, trained: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Field of the test, and whether it was or may have been among these data."""
    text = repr([dict(each) for each in trained])
    for number, data in enumerate(config.data):
        said = [_of_pair(each, data) for each in trained]
        if any(said):
            yield f"data[{number}]", _WAS if _WAS in said else _MAY
    for number, image in enumerate(config.images):
        if str(image.labels) in text or str(image.image) in text:
            yield f"images[{number}]", _WAS


def _of_pair(trained: Mapping[str, Any], ours: BlockData) -> str:
    """Whether two data sets share anatomies; empty: they do not."""
    path = trained.get("store")
    if path is not None and ours.store is not None and Path(path).resolve() == ours.store.resolve():
        return _WAS
    theirs, here = _generator(trained), _generator(ours.model_dump(mode="json"))
    if theirs is None or here is None:
        return _MAY
    a, b = _anatomy(theirs), _anatomy(here)
    if a.kind != b.kind:
        return ""
    if a == b and theirs.slice_axis == here.slice_axis:
        return "" if {theirs.split, here.split} == {"train", "test"} else _WAS
    files = [_files(each, config.split) for each, config in ((a, theirs), (b, here))]
    return "" if all(files) and not files[0] & files[1] else _MAY


def _generator(data: Mapping[str, Any]) -> GeneratorConfig | None:
    """What a data set was made from; None: unknown."""
    if data.get("store") is not None:
        try:
            return PatchStore(data["store"]).config
        except (InputError, OSError):
            return None
    try:
        return GeneratorConfig.model_validate(data.get("generate"))
    except ValidationError:
        return None


def _anatomy(config: GeneratorConfig) -> Any:
    """The phantom that deformations and structures start from: they leave whose anatomy it is."""
    spec: Any = config.phantom_spec
    while hasattr(spec, "phantom"):
        spec = spec.phantom
    return spec


def _files(spec: Any, split: str) -> frozenset[str]:
    """Label files that a split of a phantom opens; empty: it opens none, or they are no longer there."""
    if not hasattr(spec, "files_of"):
        return frozenset()
    try:
        return frozenset(str(file.resolve()) for file in spec.files_of(split))
    except InputError:
        return frozenset()
