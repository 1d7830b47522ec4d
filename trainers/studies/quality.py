"""`qsim study` of kind `quality`: what the variances of networks say of images, clean and with every artefact.

    blocks   image003_clean                     the image as it is
             image003_<source>_draw0            after an artefact of that source
             ladder_<source>_2                  the first image after that rung of the ladder

A block holds what every model says of one image; it is a pure function of (config, name). A row of `images.csv` is one
image and one model: the columns are those of `quality_answers`, and

    dice_clean, dice_change                     Dice of the clean image; Dice less that, so the loss with its sign
    volume_paper_sd                             the paper's error bar, Eq. 8 less that of the clean image [mm^3]
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.evaluation.blocks import Arrays
from qsim.evaluation.pages.quality_page import quality_page
from qsim.evaluation.studies.quality_results import Example, QualityResults, Seen, correlations, with_twins
from qsim.evaluation.studies.quality_table import HEADER, figure_names, image_lines, rows
from trainers.quality.segmenter import Segmentation
from trainers.studies.block_runner import Command, finish
from trainers.studies.outputs import replace as replace_file
from trainers.studies.outputs import say
from trainers.studies.quality_answers import judged
from trainers.studies.quality_config import QualityConfig
from trainers.studies.quality_images import CleanImage, ImageSet, files_of, image_set, spoiled
from trainers.studies.quality_models import check_apart, check_models, check_spacing, checksums, members
from trainers.studies.study_files import columns_text, open_files, write_files

_BAR = "|"
# voxels along the longer side of a slice that is kept for the page
_SHOWN = 96


@dataclass(frozen=True, slots=True)
class _Block:
    """What one block is of.

    Attributes:
        image, repeat: numbers; the repeat of a ladder is its rung.
        source: None: clean.
        ladder: whether it is a rung.
    """

    image: int
    source: str | None = None
    repeat: int = 0
    ladder: bool = False

    @property
    def drawn(self) -> bool:
        """Whether the page shows it."""
        return self.image == 0 and self.repeat == 0 and not self.ladder


@dataclass(frozen=True, slots=True)
class _Job:
    """What every block is made from."""

    config: QualityConfig
    images: ImageSet
    blocks: Mapping[str, _Block]
    sums: Mapping[str, str]
    device: str


def run_quality(config: QualityConfig, out: Path, command: Command = Command()) -> Path:  # noqa: B008  frozen
    """Run the study, or finish one of the same config; returns the path of the report.

    Args:
        config: the study.
        out: folder of images.csv, results.csv, report.html, provenance.json, the blocks and the data.
        command: where it runs.
    Raises: InputError naming the field at fault, or the folder if it holds another study.
    """
    if command.estimators:
        raise InputError(
            f"--estimator: a study of kind quality judges segmentations; leave out {command.estimators[0]}"
        )
    if command.scheduler == "threads" and command.workers > 1 and any(entry.samples for entry in config.models):
        # a network whose dropout draws must not be asked by another thread at the same time
        command = replace(command, scheduler="processes")
    sums = checksums(config)
    target = check_models(config, sums, command.device)
    notes = check_apart(config)
    files = {**{f"model {run}": checksum for run, checksum in sums.items()}, **files_of(config)}
    digest = open_files(config, (), out, files)
    began = time.monotonic()
    images = image_set(config, target, out / "data", command.workers)
    first_of = [0] if images.digital else []
    spacings = [("data", images.read(i).spacing_mm) for i in first_of]
    spacings += [(f"images[{i}]", images.read(images.digital + i).spacing_mm) for i in range(len(config.images))]
    check_spacing(config, sums, command.device, spacings)
    job = _Job(config, images, _blocks(config, len(images)), sums, command.device)
    found = finish(out / "blocks", digest, list(job.blocks), partial(_compute, job=job), "images", command)
    results = _gathered(job, found)
    ranks = correlations(results)
    replace_file(out / "images.csv", columns_text([*HEADER, *figure_names(results)], image_lines(results)))
    page = quality_page(results, ranks, notes)
    path = write_files(config, (), out, rows(results, ranks), None, page, files)
    say(f"study: {len(found)} images in {time.monotonic() - began:.0f} s; open {path}")
    return path


def _blocks(config: QualityConfig, images: int) -> dict[str, _Block]:
    found: dict[str, _Block] = {}
    for image in range(images):
        found[f"image{image:03d}_clean"] = _Block(image)
        for source in config.kinds:
            for repeat in range(config.repeats):
                found[f"image{image:03d}_{source}_draw{repeat}"] = _Block(image, source, repeat)
    for source in config.ladder:
        for rung in range(len(config.rungs(source))):
            found[f"ladder_{source}_{rung}"] = _Block(0, source, rung, ladder=True)
    return found


def _compute(key: str, job: _Job) -> Arrays:
    """The block of that name, wherever this runs."""
    config, block = job.config, job.blocks[key]
    clean = job.images.read(block.image)
    streams = Streams(config.seed, block.image * config.repeats + (0 if block.ladder else block.repeat))
    image, severity = clean.values, 0.0
    if block.source is not None:
        if block.ladder:
            # one stream for all rungs: the same noise and places, stronger and stronger
            artefacts, stage = config.rungs(block.source)[block.repeat :][:1], f"ladder/{block.source}"
        else:
            source = next(each for each in config.sources if each.name == block.source)
            artefacts, stage = source.kinds, f"sources/{block.source}"
        image, severity = spoiled(clean, artefacts, streams, stage)
    arrays: dict[str, Shaped[np.ndarray, "..."]] = {"severity": np.array(severity)}
    # dropout of every image draws for itself
    own = Streams(config.seed, int(streams.rng(f"dropout/{key}").integers(2**31)))
    for number, entry in enumerate(config.models):
        networks = members(entry, job.sums, job.device)
        figures, said = judged(networks, image, clean, entry.samples, own)
        arrays[f"names{_BAR}{number}"] = np.array(list(figures))
        arrays[f"values{_BAR}{number}"] = np.array(list(figures.values()))
        if block.drawn:
            arrays |= _slice(number, clean, image.numpy(), said)
    return arrays


def _slice(number: int, clean: CleanImage, image: Shaped[np.ndarray, "x y z"], said: Segmentation) -> Arrays:
    """Of the model of that number: the slice across the last axis with most of the target, thinned if it is large."""
    at = int(clean.target.sum((0, 1)).argmax())
    step = -(-max(image.shape[:2]) // _SHOWN)

    def cut(values: Shaped[np.ndarray, "x y z"]) -> Shaped[np.ndarray, "y x"]:
        # the first axis to the right, the second up: a page counts its rows from above
        return np.ascontiguousarray(values[::step, ::step, at].T[::-1])

    shown = {
        "image": cut(image),
        "truth": cut(clean.target),
        "predicted": cut(said.probabilities.argmax(0).numpy() == 1),
    }
    shown |= {f"variance{_BAR}{name}": cut(each.numpy()) for name, each in said.variances.items()}
    return {f"slice{_BAR}{number}{_BAR}{name}": values for name, values in shown.items()}


def _gathered(job: _Job, found: Sequence[Arrays]) -> QualityResults:
    config, images = job.config, job.images
    pairs = list(zip(job.blocks.values(), found, strict=True))
    test = [(block, arrays) for block, arrays in pairs if not block.ladder]
    # a ladder starts from the clean image
    rungs = [(block, arrays) for block, arrays in pairs if block.ladder or block == _Block(0)]
    seen, ladder_seen = (_seen(config, [block for block, _ in each]) for each in (test, rungs))
    seen = replace(seen, severity=_severities(test))
    ladder_seen = replace(ladder_seen, severity=_severities(rungs))
    names = [entry.name for entry in config.models]
    heads = [members(entry, job.sums, job.device)[0].sources[1:] for entry in config.models]
    return QualityResults(
        target=images.target,
        kinds=config.kinds,
        names=images.names,
        anatomy=np.array(images.anatomy),
        measured=np.arange(len(images)) >= images.digital,
        seen=seen,
        figures={name: with_twins(seen, _columns(test, i)) for i, name in enumerate(names)},
        sources=dict(zip(names, heads, strict=True)),
        ladder_seen=ladder_seen,
        ladder={name: with_twins(ladder_seen, _columns(rungs, i)) for i, name in enumerate(names)}
        if config.ladder
        else {},
        examples={name: _examples(test, i) for i, name in enumerate(names)},
        seed=config.seed,
        draws=config.draws,
        members={entry.name: 1 + len(entry.ensemble) for entry in config.models},
        samples={entry.name: entry.samples for entry in config.models},
    )


def _seen(config: QualityConfig, blocks: Sequence[_Block]) -> Seen:
    kinds: dict[str | None, int] = {None: 0}
    kinds |= {name: number for number, name in enumerate(config.kinds, 1)}
    return Seen(
        np.array([block.image for block in blocks]),
        np.array([kinds[block.source] for block in blocks]),
        np.array([block.repeat for block in blocks]),
        np.zeros(len(blocks)),
    )


def _severities(pairs: Sequence[tuple[_Block, Arrays]]) -> Shaped[np.ndarray, " i"]:
    return np.array([float(arrays["severity"]) for _, arrays in pairs])


def _columns(pairs: Sequence[tuple[_Block, Arrays]], number: int) -> dict[str, Shaped[np.ndarray, " i"]]:
    """Figures of the model of that number, by name; NaN where an image has none."""
    lines = [
        dict(zip(a[f"names{_BAR}{number}"].tolist(), a[f"values{_BAR}{number}"].tolist(), strict=True))
        for _, a in pairs
    ]
    names = dict.fromkeys(name for line in lines for name in line)
    return {name: np.array([line.get(name, np.nan) for line in lines]) for name in names}


def _examples(pairs: Sequence[tuple[_Block, Arrays]], number: int) -> tuple[Example, ...]:
    found = []
    for block, arrays in pairs:
        if block.drawn:
            start = f"slice{_BAR}{number}{_BAR}"
            own = {name.removeprefix(start): each for name, each in arrays.items() if name.startswith(start)}
            variance = f"variance{_BAR}"
            variances = {k.removeprefix(variance): each for k, each in own.items() if k.startswith(variance)}
            found.append(Example(block.source or "clean", own["image"], own["truth"], own["predicted"], variances))
    return tuple(found)
