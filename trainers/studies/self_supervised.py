"""`qsim study` of kind `self_supervised`: every network trained and judged fold by fold, seed by seed.

    blocks   <fold>_alone                       methods without a network
             <fold>_<seed>_<number>             a network: trained, asked about the subjects left out, judged
             <fold>_ensemble_<number>           the networks of all seeds together

A block is a pure function of (config, name); a training is kept under `networks/` with its checkpoints, so that a study
that was stopped goes on in the middle of one.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import nn

from qsim.errors import InputError
from qsim.evaluation.blocks import Arrays
from qsim.evaluation.calibration import SdCalibration
from qsim.evaluation.metrics import over_draws
from qsim.evaluation.pages.cohort_page import cohort_page
from qsim.evaluation.studies.cohort_maps import calibrate_by_sd, calibrated, curves, judge
from qsim.evaluation.studies.cohort_reference import MS, Answer, Reference
from qsim.evaluation.studies.cohort_results import ALL_IMAGES, CohortResults, Curve, Figure, Maps
from qsim.evaluation.table import ALL, Row
from trainers.relaxation.contrasts import contrasts, inputs
from trainers.studies.block_runner import Command, finish
from trainers.studies.cohort_networks import (
    Split,
    Trained,
    answers,
    cohort_of,
    label_of,
    references,
    seconds_of_slice,
    series_of,
    split_of,
    train,
)
from trainers.studies.cohort_opponents import alone, bounds, constant, of_all
from trainers.studies.cohort_perturbed import perturbed
from trainers.studies.outputs import say
from trainers.studies.self_supervised_check import check_study
from trainers.studies.self_supervised_config import OF_ALL, NetworkEntry, SelfSupervisedConfig
from trainers.studies.study_files import open_files, write_files

# what stands between the parts of a key in a block's file
_BAR = "|"
_SOURCES = ("estimate", "aleatoric", "epistemic")


@dataclass(frozen=True, slots=True)
class _Job:
    """What every block is made from."""

    config: SelfSupervisedConfig
    out: Path
    device: str


def run_self_supervised(config: SelfSupervisedConfig, out: Path, command: Command = Command()) -> Path:  # noqa: B008
    """Run the study, or finish one of the same config; returns the path of the report.

    Args:
        config: the study.
        out: folder of results.csv, report.html, provenance.json, the blocks and the networks.
        command: where it runs.
    Raises: InputError naming the field at fault, or the folder if it holds another study.
    """
    if command.scheduler == "threads" and command.workers > 1:
        # dropout draws from the one stream of a process: two trainings in it would take each other's numbers
        command = replace(command, scheduler="processes")
    if command.estimators:
        raise InputError(
            f"--estimator: a study of kind self_supervised has methods of its own; leave out {command.estimators[0]}"
        )
    cohort = cohort_of(config.cohort)
    check_study(config, cohort)
    found = contrasts(cohort.model)
    digest = open_files(config, (), out, {"cohort": cohort.digest})
    began = time.monotonic()
    job = _Job(config, out.absolute(), command.device)
    single = list(_single(config))
    blocks = dict(zip(single, _finish(single, job, digest, command, "networks"), strict=True))
    together = list(_ensembles(config))
    if together:
        blocks |= dict(zip(together, _finish(together, job, digest, command, "ensembles"), strict=True))
    results = _gathered(config, blocks, [each.row.name for each in found])
    page = cohort_page(
        results,
        title="Relaxation times learned without maps",
        meta=f"{cohort.name} of {len(cohort.subjects)} subjects · folds {', '.join(map(str, config.folds))} of "
        f"{config.cohort.folds} left out · {config.seeds} seeds · seed {config.seed}",
        methods=_methods(config),
    )
    path = write_files(config, (), out, _rows(results), None, page, {"cohort": cohort.digest})
    say(f"study: {len(blocks)} blocks in {time.monotonic() - began:.0f} s; open {path}")
    return path


def _finish(keys: Sequence[str], job: _Job, digest: str, command: Command, unit: str) -> list[Arrays]:
    return finish(job.out / "blocks", digest, keys, partial(_compute, job=job), unit, command)


def _single(config: SelfSupervisedConfig) -> Iterator[str]:
    for fold in config.folds:
        yield f"fold{fold}_alone"
        for seed in range(config.seeds):
            for number in range(len(config.networks)):
                yield f"fold{fold}_seed{seed}_net{number:02d}"


def _ensembles(config: SelfSupervisedConfig) -> Iterator[str]:
    for fold in config.folds:
        for number, entry in enumerate(config.networks):
            if entry.ensemble and config.seeds > 1:
                yield f"fold{fold}_ensemble_net{number:02d}"


def _compute(key: str, job: _Job) -> Arrays:
    """The block of that name, wherever this runs."""
    fold, *what = key.split("_")
    number = int(fold.removeprefix("fold"))
    if what == ["alone"]:
        return _of_alone(job, number)
    entry = job.config.networks[int(what[1].removeprefix("net"))]
    place = int(what[1].removeprefix("net"))
    if what[0] == "ensemble":
        members = [_trained(job, entry, place, number, seed) for seed in range(job.config.seeds)]
        return _judged(job, members, number, f"{entry.name}, ensemble", first=False)
    seed = int(what[0].removeprefix("seed"))
    first = number == job.config.folds[0] and seed == 0
    return _judged(job, [_trained(job, entry, place, number, seed)], number, entry.name, first=first)


def _trained(job: _Job, entry: NetworkEntry, place: int, fold: int, seed: int) -> Trained:
    config = job.config.train_config(entry, fold, seed)
    folder = job.out / "networks" / f"fold{fold}_seed{seed}_net{place:02d}"
    return train(config, entry, cohort_of(job.config.cohort), folder, job.device)


class _Found:
    """Figures of a block, by name."""

    def __init__(self) -> None:
        self.values: dict[Figure, float] = {}
        self.arrays: Arrays = {}

    def judge(self, condition: str, method: str, shown: str, row: str, answer: Answer, reference: Reference) -> None:
        for (region, metric), value in judge(answer, reference).values.items():
            self.values[Figure(condition, method, shown, region, row, metric)] = value

    def curve(self, method: str, row: str, answer: Answer, reference: Reference) -> None:
        found = curves(answer, reference, "roi", reference.against[0])
        self.arrays[_BAR.join(("curve", method, row))] = np.stack(found)

    def maps(self, method: str, row: str, answer: Answer, i: int, condition: str = "plain") -> None:
        for name in _SOURCES:
            values = getattr(answer, name)
            if values is not None:
                self.arrays[_BAR.join(("map", condition, method, row, name))] = MS * values[i]

    def packed(self) -> Arrays:
        names = np.array([_BAR.join(figure) for figure in self.values] or [""])
        return {"names": names, "values": np.array(list(self.values.values()) or [np.nan]), **self.arrays}


def _shown(reference: Reference) -> int:
    """The slice that is drawn: the largest region, with a lesion if there is one."""
    size = reference.roi.sum((1, 2)).astype(float)
    if reference.lesion is not None and reference.lesion.any():
        size = size * (reference.lesion.sum((1, 2)) > 0)
    return int(size.argmax())


def _of_alone(job: _Job, fold: int) -> Arrays:
    config, found = job.config, _Found()
    cohort = cohort_of(config.cohort)
    split = split_of(cohort, config.cohort, fold)
    against, trained_on = references(config.cohort, split.judged), references(config.cohort, split.trained)
    images = cohort.images[list(split.judged)]
    sigma = None if cohort.sigma is None else cohort.sigma[list(split.judged)]
    choices = inputs(cohort.model)
    first = fold == config.folds[0]
    for name in config.alone:
        if name in OF_ALL:
            began = time.thread_time()
            of_row = of_all(name, cohort, split.judged)
            seconds = (time.thread_time() - began) / len(split.judged)
            for row, answer in of_row.items():
                found.judge("plain", name, ALL_IMAGES, row, answer, against[row])
                found.values[Figure("plain", name, ALL_IMAGES, "", row, "cpu_seconds_per_slice")] = seconds
                if first:
                    found.maps(name, row, answer, _shown(against[row]))
            continue
        for contrast in contrasts(cohort.model):
            row = contrast.row.name
            if name == "population-constant":
                answer = constant(trained_on[row], against[row])
                found.judge("plain", name, ALL_IMAGES, row, answer, against[row])
                continue
            for i, chosen in enumerate(choices):
                answer = alone(name, images, contrast, chosen, config.limits, sigma)
                found.judge("plain", name, label_of(cohort.model, chosen), row, answer, against[row])
                if first and i == len(choices) // 2:
                    found.maps(name, row, answer, _shown(against[row]))
    for some in (*choices, None):
        shown = ALL_IMAGES if some is None else label_of(cohort.model, some)
        for row, value in bounds(cohort, split.judged, some, config.limits).items():
            found.values[Figure("plain", "bound", shown, "roi", row, "bound_sd")] = MS * value
    if first:
        for row, reference in against.items():
            i = _shown(reference)
            shared = {"image": images[i, 0].numpy(), "roi": reference.roi[i].astype(float)}
            shared["fit"] = MS * reference.fit[i]
            if reference.truth is not None:
                shared["truth"] = MS * reference.truth[i]
            for name, values in shared.items():
                found.arrays[_BAR.join(("shared", "plain", row, name))] = np.asarray(values, dtype=np.float64)
    return found.packed()


def _judged(job: _Job, members: Sequence[Trained], fold: int, name: str, *, first: bool) -> Arrays:
    """One network, or an ensemble, on the subjects left out."""
    config, found, one = job.config, _Found(), members[0]
    cohort = cohort_of(config.cohort)
    split = split_of(cohort, config.cohort, fold)
    against = references(config.cohort, split.judged)
    nets = [member.net for member in members]
    labels = [label_of(cohort.model, chosen) for chosen in inputs(cohort.model)]
    states = one.entry.states or len(nets) > 1
    factors = _factors(config, one, nets, split) if states else {}
    series = series_of(one, cohort.images[list(split.judged)], cohort.model)
    middle = len(one.inputs) // 2
    for k, chosen in enumerate(one.inputs):
        # inputs of one contrast alone stand beside those of all with the same times of it
        shown = labels[k] if len(one.inputs) == len(labels) else label_of(one.learning.model, chosen)
        for row, answer in answers(one, series, chosen, nets).items():
            found.judge("plain", name, shown, row, answer, against[row])
            if states:
                found.judge("calibrated", name, shown, row, calibrated(answer, factors[row]), against[row])
            if k == middle and len(nets) == 1:
                seconds = seconds_of_slice(one, series, chosen)
                found.values[Figure("plain", name, shown, "", row, "cpu_seconds_per_slice")] = seconds
            if k == middle and states:
                found.curve(name, row, answer, against[row])
            if k == middle and first:
                found.maps(name, row, answer, _shown(against[row]))
    for row, factor in factors.items():
        found.arrays[_BAR.join(("calibration", name, row))] = np.array([factor.sd, factor.factor])
    if one.entry.perturbed:
        _perturb(config, found, one, nets, split, name, first=first)
    return found.packed()


def _factors(
    config: SelfSupervisedConfig, one: Trained, nets: Sequence[nn.Module], split: Split
) -> dict[str, SdCalibration]:
    """Of the SDs of each row, with which the intervals hold on the validation subjects, all inputs together."""
    cohort = cohort_of(config.cohort)
    against = references(config.cohort, split.calibrated)
    series = series_of(one, cohort.images[list(split.calibrated)], cohort.model)
    said = [answers(one, series, chosen, nets) for chosen in one.inputs]
    return {
        row: calibrate_by_sd(
            [each[row] for each in said], [against[row]] * len(said), region="body", against=config.calibrate
        )
        for row in said[0]
    }


def _perturb(
    config: SelfSupervisedConfig,
    found: _Found,
    one: Trained,
    nets: Sequence[nn.Module],
    split: Split,
    name: str,
    *,
    first: bool,
) -> None:
    """What the network says of images that were made worse, of the middle input."""
    cohort, chosen = cohort_of(config.cohort), one.inputs[len(one.inputs) // 2]
    shown = label_of(one.learning.model, chosen)
    for case in perturbed(config.perturbations, cohort, split.judged, config.seed):
        said = answers(one, series_of(one, case.images, cohort.model), chosen, nets)
        for row, answer in said.items():
            for region, mask in case.regions.items():
                for metric, source in (("sd_mean", "total"), *((f"sd_mean_{each}", each) for each in _SOURCES[1:])):
                    sd: Float[np.ndarray, "s y x"] | None = getattr(answer, source)
                    if sd is not None and mask.any():
                        value = float(MS * sd[mask].mean())
                        found.values[Figure(case.name, name, shown, region, row, metric)] = value
            if first:
                found.maps(name, row, answer, case.drawn, case.name)
                found.arrays[_BAR.join(("shared", case.name, row, "image"))] = case.images[case.drawn, 0].numpy()
                region = next(iter(case.regions.values()))[case.drawn].astype(float)
                found.arrays[_BAR.join(("shared", case.name, row, "roi"))] = region


def _gathered(config: SelfSupervisedConfig, blocks: Mapping[str, Arrays], rows: Sequence[str]) -> CohortResults:
    """Figures of all blocks by run."""
    runs = [(fold, seed) for fold in config.folds for seed in range(config.seeds)]
    places = {run: i for i, run in enumerate(runs)}
    values: dict[Figure, Float[np.ndarray, " r"]] = {}
    held: dict[tuple[str, str], list[np.ndarray]] = {}
    maps: dict[tuple[str, str], tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]] = {}
    for key, arrays in blocks.items():
        fold, what = key.split("_")[:2]
        number = int(fold.removeprefix("fold"))
        # what no seed decides is the same in every run of its fold
        seeds = [int(what.removeprefix("seed"))] if what.startswith("seed") else range(config.seeds)
        where = [places[number, seed] for seed in seeds]
        for name, value in zip(arrays["names"].tolist(), arrays["values"].tolist(), strict=True):
            if name:
                figure = Figure(*name.split(_BAR))
                values.setdefault(figure, np.full(len(places), np.nan))[where] = value
        for name, array in arrays.items():
            kind, *parts = name.split(_BAR)
            if kind == "curve":
                held.setdefault((parts[0], parts[1]), []).append(array)
            elif kind == "shared":
                maps.setdefault((parts[0], parts[1]), ({}, {}))[0][parts[2]] = array
            elif kind == "map":
                condition, method, row, source = parts
                maps.setdefault((condition, row), ({}, {}))[1].setdefault(method, {})[source] = array
    cohort = cohort_of(config.cohort)
    networks = [entry.name for entry in config.networks]
    networks += [f"{entry.name}, ensemble" for entry in config.networks if entry.ensemble and config.seeds > 1]
    return CohortResults(
        values=values,
        runs=[f"fold {fold}, seed {seed}" for fold, seed in places],
        methods=list(dict.fromkeys((*config.alone, *networks))),
        inputs=[label_of(cohort.model, chosen) for chosen in inputs(cohort.model)],
        parameters=rows,
        curves={key: Curve(*np.mean(each, 0)) for key, each in held.items()},
        maps={key: Maps(shared, methods, cohort.spacing_mm) for key, (shared, methods) in maps.items()},
    )


def _rows(results: CohortResults) -> Iterator[Row]:
    """The table: every run, and the mean over runs with its interval. Methods are "name; input; condition"."""
    nan = float("nan")
    for figure, numbers in results.values.items():
        who = "; ".join((figure.method, figure.shown, figure.condition))
        known = np.isfinite(numbers)
        for run, value in enumerate(numbers):
            if known[run]:
                yield Row(
                    "self_supervised", who, figure.region, figure.parameter, nan, nan, run, figure.metric, float(value),
                    nan, nan, 1,
                )  # fmt: skip
        if known.any():
            mean = over_draws(numbers[known])
            yield Row(
                "self_supervised", who, figure.region, figure.parameter, nan, nan, ALL, figure.metric, mean.value,
                mean.low, mean.high, int(known.sum()),
            )  # fmt: skip


def _methods(config: SelfSupervisedConfig) -> list[tuple[str, str]]:
    """What each network is, in words of its config."""
    told = []
    for entry in config.networks:
        task, network = entry.task, entry.network
        scale = getattr(network, "scale", "none")
        parts = [
            f"{network.kind}, {network.features} features, {network.levels} levels, dropout {network.dropout:g}",
            f"supervision: {task.supervision}",
        ]
        if task.supervision == "constraint" and network.kind == "unet":
            parts.append(f"constraint pairs: {task.constraints}, {task.order}; updates: {task.backward}")
        if scale != "none" and task.supervision == "constraint":
            parts.append(f"Laplace scale: {scale}, beta {task.beta:g}")
        if getattr(network, "answer", "bounded") == "averaging":
            parts.append("answers by averaging; sees two-point times and the interval")
        if entry.contrast or task.rows:
            parts.append(f"of {entry.contrast or ', '.join(task.rows)}" + (" alone" if entry.contrast else ""))
        if task.weights:
            parts.append("weights " + ", ".join(f"{row} {weight:g}" for row, weight in task.weights.items()))
        if task.corrupt is not None:
            worse = task.corrupt
            parts.append(f"{worse.row} in the loss {'moved' if worse.motion else f'x {worse.scale:g}'}")
        lr, iterations = entry.lr or config.training.lr, entry.iterations or config.training.iterations
        parts.append(f"{iterations} iterations of {config.training.batch} at {lr:g}; {entry.samples} dropout samples")
        told.append((entry.name, "; ".join(parts)))
    return told
