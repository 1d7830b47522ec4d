"""`qsim study` of kind `segmentation`: table 1 of jacobs2025, with physics as an augmentation and with uncertainty.

    blocks   fold0_seed1_set2        a network: trained in networks/, judged on train, test and the other domains
             fold0_together_set2     all seeds of that fold: a deep ensemble, with what it says of every image

A block is a pure function of (config, name). Data sets and synthetic contrasts are made before, in data/.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped
from rich.console import Console

from generators.store import PatchStore
from qsim.errors import InputError
from qsim.evaluation.blocks import Arrays
from qsim.evaluation.pages.segmentation_page import segmentation_page
from qsim.evaluation.studies.segmentation_results import TEST, TRAIN, Ensemble, Run, SegmentationResults, Shown
from qsim.evaluation.studies.segmentation_table import HEADER, image_lines, rows
from trainers.checkpoint import METRICS, claim
from trainers.devices import device_of, one_thread
from trainers.segmentation.config import SegmentationConfig
from trainers.segmentation.predict import Prediction, load_masker
from trainers.segmentation.running import dice_of
from trainers.segmentation.slices import Slices, check_domains, prepared, read_domain, split_of
from trainers.segmentation.training import Material, fit_network, read_material
from trainers.studies.block_runner import Command, finish
from trainers.studies.outputs import replace as replace_file
from trainers.studies.outputs import say
from trainers.studies.segmentation_config import SegmentationStudyConfig
from trainers.studies.study_files import columns_text, open_files, write_files

_BAR = "|"
_DATA, _NETWORKS = "data", "networks"
# best first
_SHOWN = ("best", "worst")


@dataclass(frozen=True, slots=True)
class _Job:
    """What every block is made from."""

    canonical: str
    out: Path
    device: str

    @property
    def config(self) -> SegmentationStudyConfig:
        return _read(self.canonical)


@lru_cache(maxsize=1)
def _read(canonical: str) -> SegmentationStudyConfig:
    return SegmentationStudyConfig.model_validate_json(canonical)


def run_segmentation(config: SegmentationStudyConfig, out: Path, command: Command = Command()) -> Path:  # noqa: B008
    """Run the study, or finish one of the same config; returns the path of the report.

    Args:
        config: the study.
        out: folder of images.csv, results.csv, report.html, provenance.json, the blocks, the data and the networks.
        command: where it runs.
    Raises: InputError naming the field at fault, or the folder if it holds another study.
    """
    if command.estimators:
        raise InputError(
            f"--estimator: a study of kind segmentation judges segmentations; leave out {command.estimators[0]}"
        )
    if command.scheduler == "threads" and command.workers > 1:
        # dropout draws from the one stream of a process: two trainings in it would take each other's numbers
        command = replace(command, scheduler="processes")
    device_of(command.device)
    check_domains(config.data, config.tests, physics=any(each.physics is not None for each in config.sets))
    digest = open_files(config, (), out, _files(config))
    began = time.monotonic()
    job = _Job(config.model_dump_json(), out.absolute(), command.device)
    (out / _DATA).mkdir(exist_ok=True)
    for number in range(len(config.sets)):
        _material(job.canonical, job.out, number, command.workers)
    _tests(job.canonical, job.out, command.workers)
    split_of(_material(job.canonical, job.out, 0, 1).series, config.data.folds, 0, config.data.split_seed)
    single, together = list(_single(config)), list(_together(config))
    blocks: dict[str, Arrays] = {}
    for keys, unit in ((single, "networks"), (together, "ensembles")):
        found = finish(out / "blocks", digest, keys, partial(_compute, job=job), unit, command)
        blocks |= dict(zip(keys, found, strict=True))
    results = _gathered(job, blocks)
    replace_file(out / "images.csv", columns_text(HEADER, image_lines(results)))
    path = write_files(config, (), out, rows(results), None, segmentation_page(results, _notes(config)), _files(config))
    say(f"study: {len(single)} networks in {time.monotonic() - began:.0f} s; open {path}")
    return path


def _files(config: SegmentationStudyConfig) -> dict[str, str]:
    """Checksums of what the config names and does not hold."""
    found = {}
    for domain in (config.data.train, *config.tests):
        if domain.store is not None:
            found[str(domain.store)] = PatchStore(domain.store).config.digest
        for each in domain.files:
            for file in (each.image, each.mask):
                found[str(file)] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def _notes(config: SegmentationStudyConfig) -> list[str]:
    """What limits the study, a sentence each."""
    found = []
    if len(config.folds) < config.data.folds:
        found.append(f"{len(config.folds)} of {config.data.folds} folds were run.")
    if any(domain.generate is not None for domain in (config.data.train, *config.tests)):
        found.append(
            "Simulated hearts: how far the two domains lie apart is what their configs say, not a measurement."
        )
    return found


def _single(config: SegmentationStudyConfig) -> Iterator[str]:
    for fold in config.folds:
        for seed in range(config.seeds):
            for number in range(len(config.sets)):
                yield f"fold{fold}_seed{seed}_set{number}"


def _together(config: SegmentationStudyConfig) -> Iterator[str]:
    for fold in config.folds:
        for number in range(len(config.sets)):
            yield f"fold{fold}_together_set{number}"


@lru_cache(maxsize=4)
def _material(canonical: str, out: Path, number: int, workers: int) -> Material:
    config = _read(canonical)
    return read_material(
        config.train_config(config.sets[number], 0, 0), out / _DATA, workers, Console(stderr=True, highlight=False)
    )


@lru_cache(maxsize=1)
def _tests(canonical: str, out: Path, workers: int) -> Mapping[str, Slices]:
    """Images of every further domain, by its name."""
    config, console = _read(canonical), Console(stderr=True, highlight=False)
    found = {}
    for i, domain in enumerate(config.tests):
        series = read_domain(domain, config.data.target, out / _DATA, f"tests[{i}]", workers, console)
        try:
            found[domain.name] = prepared(series, domain.images, config.data.size)
        except InputError as error:
            raise InputError(f"tests[{i}]: {error}") from None
    return found


def _compute(key: str, job: _Job) -> Arrays:
    """The block of that name, wherever this runs."""
    one_thread()
    fold, what, number = key.split("_")
    left_out, chosen = int(fold.removeprefix("fold")), int(number.removeprefix("set"))
    if what == "together":
        return _of_ensemble(job, left_out, chosen)
    return _of_network(job, left_out, int(what.removeprefix("seed")), chosen)


def _folder(job: _Job, fold: int, seed: int, number: int) -> Path:
    return job.out / _NETWORKS / f"fold{fold}_seed{seed}_set{number}"


def _judged(job: _Job, config: SegmentationConfig, number: int) -> dict[str, Slices]:
    """Images of every split for the networks of a fold."""
    material = _material(job.canonical, job.out, number, 1)
    split = split_of(material.series, config.data.folds, config.data.fold, config.data.split_seed)
    own = {TRAIN: material.slices.of(split.train), TEST: material.slices.of(split.test)}
    return own | dict(_tests(job.canonical, job.out, 1))


def _of_network(job: _Job, fold: int, seed: int, number: int) -> Arrays:
    config = job.config.train_config(job.config.sets[number], fold, seed)
    out = _folder(job, fold, seed, number)
    claim(out, config, True)
    material = _material(job.canonical, job.out, number, 1)
    fit_network(config, material, out, device_of(job.device), Console(quiet=True))
    masker = load_masker(out, job.device)
    arrays: Arrays = {}
    for name, slices in _judged(job, config, number).items():
        arrays[_BAR.join(("dice", name))] = dice_of(masker(slices.images).probability, slices.masks)
    lines = [json.loads(line) for line in (out / METRICS).read_text(encoding="utf-8").splitlines()]
    images = config.batch * sum(line["updates"] for line in lines)
    arrays["loss"] = np.array([line["loss"] for line in lines])
    for name in ("views", "steps"):
        arrays[f"seconds_{name}"] = np.array(sum(line[f"cpu_seconds_{name}"] for line in lines) / images)
    return arrays


def _of_ensemble(job: _Job, fold: int, number: int) -> Arrays:
    study = job.config
    config = study.train_config(study.sets[number], fold, 0)
    runs = [_folder(job, fold, seed, number) for seed in range(study.seeds)]
    masker = replace(load_masker(runs, job.device, study.samples), seed=study.seed)
    arrays: Arrays = {}
    for name, slices in _judged(job, config, number).items():
        if name == TRAIN:
            continue
        found = masker(slices.images)
        dice = dice_of(found.probability, slices.masks)
        arrays[_BAR.join(("dice", name))] = dice
        arrays[_BAR.join(("names", name))] = np.array(slices.names)
        arrays |= {_BAR.join(("score", name, score)): each for score, each in found.scores().items()}
        if name != TEST:
            for which, i in zip(_SHOWN, (int(dice.argmax()), int(dice.argmin())), strict=True):
                arrays |= _slice(name, which, i, slices, found)
    return arrays


def _slice(domain: str, which: str, i: int, slices: Slices, found: Prediction) -> Arrays:
    shown: dict[str, torch.Tensor] = {
        "image": slices.images[i],
        "truth": slices.masks[i],
        "predicted": found.mask[i],
        "entropy": found.entropy[i],
    }
    return {_BAR.join(("shown", domain, which, name)): each.numpy() for name, each in shown.items()} | {
        _BAR.join(("shown", domain, which, "number")): np.array(i)
    }


def _gathered(job: _Job, blocks: Mapping[str, Arrays]) -> SegmentationResults:
    config = job.config
    names = [each.name for each in config.sets]
    runs, ensembles = [], []
    for fold in config.folds:
        for number, name in enumerate(names):
            for seed in range(config.seeds):
                arrays = blocks[f"fold{fold}_seed{seed}_set{number}"]
                runs.append(Run(name, fold, seed, _starting(arrays, "dice")))
            arrays = blocks[f"fold{fold}_together_set{number}"]
            for domain, dice in _starting(arrays, "dice").items():
                ensembles.append(
                    Ensemble(
                        set=name,
                        fold=fold,
                        domain=domain,
                        names=tuple(arrays[_BAR.join(("names", domain))].tolist()),
                        dice=dice,
                        scores=_starting(arrays, f"score{_BAR}{domain}"),
                    )
                )
    single = [blocks[key] for key in _single(config)]
    return SegmentationResults(
        train_domain=config.data.train.name,
        domains=tuple(each.name for each in config.tests),
        sets=tuple(names),
        folds=config.folds,
        n_folds=config.data.folds,
        seeds=config.seeds,
        runs=tuple(runs),
        ensembles=tuple(ensembles),
        shown=tuple(_shown(config, blocks, ensembles)),
        curves={name: _curve(config, blocks, number) for number, name in enumerate(names)},
        baseline=names[0],
        draws=config.draws,
        seed=config.seed,
        members=config.seeds,
        samples=config.samples,
        seconds={
            "loader_per_image": float(np.mean([arrays["seconds_views"] for arrays in single])),
            "step_per_image": float(np.mean([arrays["seconds_steps"] for arrays in single])),
        },
    )


def _starting(arrays: Arrays, start: str) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Arrays whose name begins so, by the rest of it."""
    return {name.removeprefix(start + _BAR): each for name, each in arrays.items() if name.startswith(start + _BAR)}


def _curve(config: SegmentationStudyConfig, blocks: Mapping[str, Arrays], number: int) -> Shaped[np.ndarray, " e"]:
    """Loss by epoch, mean over the networks of a set."""
    found = [
        blocks[f"fold{fold}_seed{seed}_set{number}"]["loss"] for fold in config.folds for seed in range(config.seeds)
    ]
    # folds differ by a subject, and so may the number of whole epochs that were logged
    length = min(len(each) for each in found)
    return np.mean([each[:length] for each in found], 0)


def _shown(
    config: SegmentationStudyConfig, blocks: Mapping[str, Arrays], ensembles: Sequence[Ensemble]
) -> Iterator[Shown]:
    """Of every set and domain the best and the worst image, over all folds."""
    for number, chosen in enumerate(config.sets):
        for domain in config.tests:
            own = {each.fold: each for each in ensembles if (each.set, each.domain) == (chosen.name, domain.name)}
            for which, best in zip(_SHOWN, (max, min), strict=True):
                fold = best(own, key=lambda f: float(best(own[f].dice)))
                arrays = _starting(blocks[f"fold{fold}_together_set{number}"], _BAR.join(("shown", domain.name, which)))
                i = int(arrays["number"])
                yield Shown(
                    set=chosen.name,
                    domain=domain.name,
                    which="best" if which == "best" else "worst",
                    name=f"{own[fold].names[i]}, fold {fold}",
                    dice=float(own[fold].dice[i]),
                    image=arrays["image"],
                    truth=arrays["truth"],
                    predicted=arrays["predicted"],
                    entropy=arrays["entropy"],
                )
