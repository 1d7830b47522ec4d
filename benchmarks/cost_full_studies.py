"""Smoke run of a full study of kind `self_supervised`, and what the whole of it would cost on one thread.

    python benchmarks/cost_full_studies.py CONFIG [--subjects 8] [--updates 2] [--samples 2] [--networks NAME ...]

CONFIG (configs/huang2022/study_t1rho_full.yaml, study_pair_full.yaml) is run end to end by `run_self_supervised` into a
temporary folder, with the images, batches, tasks, networks and perturbations of the config, but few subjects, one of
them for validation, one fold, one seed, a few iterations of each training and a few samples of dropout. Of networks
that differ only in what does not change their time (name, weights, disturbances, iterations, samples) the first runs
for all. CPU seconds of each stage, per slice or iteration, are then multiplied by the numbers of the full config:

    iterations      the fastest but for the first: forward, backward and step
    passes          one network once through one slice; dropout samples, inputs, perturbed images and the members of
                    an ensemble are so many passes
    numbers         errors, curves, intervals: the rest of a block, in proportion to its judged slices
    references      fits of all images, with and without noise, in every fold

Not counted: trainings that `patience` ends sooner, and what each further process makes anew (cohort and references).
"""

import argparse
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from unittest.mock import patch

import torch

# the project, and the modules beside this one wherever it is run from
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from stage_times import StageTimes

from generators.reading import read_config
from generators.sample import make_samples
from qsim.errors import InputError
from trainers import fit as fitting
from trainers.data import Batch
from trainers.relaxation.task import RelaxationLearning
from trainers.studies import cohort_networks
from trainers.studies import self_supervised as study
from trainers.studies.block_runner import Command
from trainers.studies.self_supervised_config import NetworkEntry, SelfSupervisedConfig

HOUR = 3600.0
Updates = Callable[[RelaxationLearning, torch.nn.Module, Batch], Iterator[torch.Tensor]]


class Watch(StageTimes):
    """CPU seconds of the stages of each block.

    Attributes:
        spent: by (block, stage) [s].
        iterations: of the training of each block, one by one, what is inside included [s].
    """

    def __init__(self) -> None:
        super().__init__(time.process_time)
        self.iterations: dict[str, list[float]] = defaultdict(list)
        self._block = ""

    def key(self, name: str) -> tuple[str, str]:
        return self._block, name

    def ended(self, name: str, seconds: float) -> None:
        if name == "iteration":
            self.iterations[self._block].append(seconds)

    def blocks(self) -> "patch":
        """Tell the blocks apart; what stands in no other stage is a block's `numbers`."""
        function = study._compute

        def around(key: str, job: study._Job) -> study.Arrays:
            self._block = key
            with self.stage("numbers"):
                found = function(key, job)
            self._block = ""
            return found

        return patch.object(study, "_compute", around)

    def updates(self) -> "patch":
        """An iteration of a training lasts until its last update is made, outside the generator of its losses."""
        function: Updates = RelaxationLearning.updates

        def around(learning: RelaxationLearning, net: torch.nn.Module, batch: Batch) -> Iterator[torch.Tensor]:
            with self.stage("iteration"):
                yield from function(learning, net, batch)

        return patch.object(RelaxationLearning, "updates", around)


def kind_of(entry: NetworkEntry) -> str:
    """What networks have in common that take the same time."""
    plain = entry.model_dump(mode="json", include={"contrast", "task", "network"})
    task = {name: value for name, value in plain["task"].items() if name not in ("weights", "corrupt", "beta")}
    return f"{plain['contrast']} {task} {plain['network']}"


def representatives(config: SelfSupervisedConfig) -> dict[str, NetworkEntry]:
    """The first network of each kind."""
    found: dict[str, NetworkEntry] = {}
    for entry in config.networks:
        found.setdefault(kind_of(entry), entry)
    return found


def chosen(config: SelfSupervisedConfig, names: Sequence[str]) -> SelfSupervisedConfig:
    """The study of some networks only; of all without names."""
    known = {entry.name for entry in config.networks}
    for name in names:
        if name not in known:
            raise InputError(f"--networks: {name!r} is not in the config; take some of {', '.join(sorted(known))}")
    kept = [entry.model_dump(mode="json") for entry in config.networks if not names or entry.name in names]
    return SelfSupervisedConfig.model_validate({**config.model_dump(mode="json"), "networks": kept})


def small(config: SelfSupervisedConfig, subjects: int, updates: int, samples: int) -> SelfSupervisedConfig:
    """The study that is run: few subjects, iterations and samples, one fold, one seed."""
    plain = config.model_dump(mode="json")
    generate = plain["cohort"]["generate"]
    if generate is None:
        raise InputError("cohort: comes from no generator; take a study that makes its own")
    generate["phantom"]["subjects"] = subjects
    generate["samples"] = subjects * generate["phantom"]["slices"]
    plain["cohort"]["validation"] = 1
    plain["training"] |= {"iterations": updates, "warmup": 0, "validate_every": updates}
    networks = []
    for entry in representatives(config).values():
        reduced = {"iterations": None, "samples": min(samples, entry.samples)}
        networks.append(entry.model_dump(mode="json") | reduced)
    return SelfSupervisedConfig.model_validate(
        plain | {"use_folds": [config.folds[0]], "seeds": 1, "networks": networks}
    )


@dataclass(frozen=True)
class Slices:
    """Numbers of slices: of all subjects, and of those with a region of interest in one fold.

    Attributes:
        made: all.
        judged, calibrated, trained: as in `Split`.
        validated: in a validation during the training.
    """

    made: float
    judged: float
    calibrated: float
    trained: float
    validated: float

    @property
    def fold(self) -> float:
        return self.judged + self.calibrated + self.trained


def slices_of(config: SelfSupervisedConfig) -> Slices:
    """Of the study that was run."""
    cohort = cohort_networks.cohort_of(config.cohort)
    split = cohort_networks.split_of(cohort, config.cohort, config.folds[0])
    validated = config.cohort.validation * len(cohort.images) / len(cohort.subjects)
    return Slices(len(cohort.images), len(split.judged), len(split.calibrated), len(split.trained), validated)


def full_slices(config: SelfSupervisedConfig, ran: Slices) -> Slices:
    """Of the full study, if as many of its slices hold a region of interest."""
    generate = config.cohort.generate
    assert generate is not None, "small() has checked it"
    share = ran.fold / ran.made
    subjects = generate.model_dump(mode="json")["phantom"]["subjects"]
    validated = config.cohort.validation * generate.samples / subjects
    judged, calibrated = share * generate.samples / config.cohort.folds, share * validated
    trained = share * generate.samples - judged - calibrated
    return Slices(generate.samples, judged, calibrated, trained, validated)


@dataclass(frozen=True)
class Cost:
    """CPU seconds of a kind of network.

    Attributes:
        iteration: of its training.
        setup: the rest of a training, validation apart.
        validated: one slice in a validation.
        once: one pass over one slice.
        numbers: the rest of judging, for each judged slice.
        inputs: that it is judged on.
    """

    iteration: float
    setup: float
    validated: float
    once: float
    numbers: float
    inputs: int


def passes(config: SelfSupervisedConfig, entry: NetworkEntry, slices: Slices, inputs: int, members: int = 1) -> float:
    """Passes over a slice when a network, or an ensemble of several members, is judged in one fold."""
    spec = config.perturbations
    cases = len(spec.noise) + 2 * (spec.square is not None) + 2 * (spec.lesion is not None)
    asked = inputs * slices.judged
    if entry.states or members > 1:
        asked += inputs * slices.calibrated
    if entry.perturbed:
        asked += cases * slices.judged
    return asked * max(1, entry.samples) * members


def cost_of(watch: Watch, key: str, config: SelfSupervisedConfig, entry: NetworkEntry, ran: Slices) -> Cost:
    """What was measured on the block of a network."""
    cohort = cohort_networks.cohort_of(config.cohort)
    shown = cohort if entry.contrast is None else cohort_networks.only(cohort, entry.contrast)
    inputs = len(entry.task.inputs or study.inputs(shown.model))
    spent = {stage: seconds for (block, stage), seconds in watch.spent.items() if block == key}
    return Cost(
        iteration=min(watch.iterations[key][1:]),
        setup=spent["training"],
        validated=spent["validation"] / ran.validated,
        once=spent["passes"] / passes(config, entry, ran, inputs),
        numbers=spent["numbers"] / ran.judged,
        inputs=inputs,
    )


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def megabytes(config: SelfSupervisedConfig) -> float:
    """What the cohort and its references hold of a slice [MB]."""
    cohort = cohort_networks.cohort_of(config.cohort)
    held = [getattr(cohort, each.name) for each in fields(cohort)]
    tensors = [each for each in (*held, *cohort.truth.values()) if isinstance(each, torch.Tensor)]
    maps = 2 * len(study.contrasts(cohort.model)) * cohort.images[0, 0].numel() * 8
    return (sum(each.nbytes for each in tensors) / len(cohort.images) + maps) / 1e6


@dataclass
class Bill:
    """CPU hours of the full study, by what they are spent on."""

    hours: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def of_networks(
        self, config: SelfSupervisedConfig, costs: dict[str, Cost], ran: Slices, full: Slices
    ) -> list[list[str]]:
        """Lines of the table of networks."""
        folds, lines = len(config.folds), []
        for entry in config.networks:
            cost = costs[kind_of(entry)]
            runs = folds * config.seeds
            iterations = entry.iterations or config.training.iterations
            validations = -(-iterations // config.training.validate_every)
            # only a fit of all slices grows with the cohort
            setup = cost.setup * (full.made / ran.made if entry.task.supervision == "fit" else 1.0)
            learning = iterations * cost.iteration + setup
            validating = validations * full.validated * cost.validated
            training = runs * (learning + validating) / HOUR
            of_fold = passes(config, entry, full, cost.inputs) * cost.once + full.judged * cost.numbers
            judging = runs * of_fold / HOUR
            together = 0.0
            if entry.ensemble and config.seeds > 1:
                members = passes(config, entry, full, cost.inputs, config.seeds)
                together = folds * (members * cost.once + full.judged * cost.numbers) / HOUR
            self.hours["updates of the trainings"] += runs * iterations * cost.iteration / HOUR
            self.hours["the rest of the trainings"] += training - runs * iterations * cost.iteration / HOUR
            self.hours["judging of networks"] += judging
            self.hours["judging of ensembles"] += together
            lines.append(
                [
                    *(entry.name, f"{cost.iteration:.2f}", f"{cost.validated:.2f}", f"{cost.once:.2f}"),
                    *(f"{of_fold / full.judged:.1f}", str(iterations), f"{training:.1f}", f"{judging + together:.2f}"),
                ]
            )
        return lines


def bench(config: SelfSupervisedConfig, subjects: int, updates: int, samples: int) -> None:
    """Run, measure, extrapolate, print."""
    tried = small(config, subjects, updates, samples)
    watch = Watch()
    began = time.process_time()
    series = [each for each in (tried.cohort.generate, tried.cohort.second_config) if each is not None]
    for each in series:
        # tables that a process makes once
        make_samples(each, [0])
    start = time.process_time() - began
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        for owner, attribute, name in (
            (cohort_networks, "open_cohort", "cohort"),
            (study, "references", "references"),
            (study, "train", "training"),
            (fitting._Run, "validate", "validation"),
            (study, "answers", "passes"),
        ):
            stack.enter_context(watch.timed(owner, attribute, name))
        stack.enter_context(watch.blocks())
        stack.enter_context(watch.updates())
        report = study.run_self_supervised(tried, Path(folder) / "study", Command())
        blocks = len(list((Path(folder) / "study" / "blocks").glob("*.npz")))
        said = f"{blocks} of {1 + len(tried.networks)} blocks, report of {report.stat().st_size / 1e6:.1f} MB"
    whole = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)

    ran = slices_of(tried)
    full = full_slices(config, ran)
    total = {
        name: sum(s for (_, stage), s in watch.spent.items() if stage == name) for name in ("cohort", "references")
    }
    alone = watch.spent[f"fold{tried.folds[0]}_alone", "numbers"]
    keys = [f"fold{tried.folds[0]}_seed0_net{number:02d}" for number in range(len(tried.networks))]
    costs = {
        kind: cost_of(watch, key, tried, entry, ran)
        for kind, key, entry in zip(representatives(config), keys, tried.networks, strict=True)
    }
    bill, folds = Bill(), len(config.folds)
    lines = bill.of_networks(config, costs, ran, full)
    again = any(entry.ensemble for entry in config.networks) and config.seeds > 1
    held = folds * (full.fold + (full.judged + full.calibrated if again else 0.0))
    bill.hours["cohort"] = (start + total["cohort"] / ran.made * full.made) / HOUR
    bill.hours["references"] = total["references"] / ran.fold * held / HOUR
    bill.hours["methods without a network"] = alone / ran.judged * folds * full.judged / HOUR

    size = " x ".join(str(n) for n in series[0].patch)
    wanted = tried.train_config(tried.networks[0], tried.folds[0], 0).precision
    precision = fitting.resolve_precision(wanted, torch.device("cpu"))
    print(
        f"Run: {ran.made:.0f} slices of {size} of {subjects} subjects, {ran.judged:.0f} judged, "
        f"{len(tried.networks)} of {len(config.networks)} networks, {updates} iterations of "
        f"{config.training.batch} slices, at most {samples} samples, {precision}: {whole / 60:.1f} CPU minutes; {said}."
    )
    print(
        f"Full: {full.made:.0f} slices, {full.judged:.0f} judged in each of {folds} folds, {config.seeds} seeds: "
        f"{folds * config.seeds * len(config.networks)} trainings.\n"
    )
    heads = ["network", "iteration [CPU s]", "validated slice [CPU s]", "pass of a slice [CPU s]"]
    heads += ["judged slice, whole [CPU s]", "iterations", "trainings [CPU h]", "judging [CPU h]"]
    print(table(heads, lines) + "\n")
    every = sum(bill.hours.values())
    each = {
        "cohort": f"{total['cohort'] / ran.made:.2f} a slice",
        "references": f"{total['references'] / ran.fold:.2f} a slice and fold",
        "methods without a network": f"{alone / ran.judged:.2f} a judged slice",
    }
    spent = sorted(bill.hours.items(), key=lambda item: -item[1])
    print(
        table(
            ["of the full study", "CPU s", "CPU h, one thread", "share [%]"],
            [
                *([what, each.get(what, ""), f"{h:.2f}", f"{100 * h / every:.2f}"] for what, h in spent),
                ["**together**", "", f"**{every:.0f}** ({every / 24:.0f} days)", ""],
            ],
        )
    )
    larger = (full.made - ran.made) * megabytes(tried) / 1e3
    print(
        f"\nMost of it: {spent[0][0]}. Peak memory of the run: {peak:.1f} GB; the full cohort holds {larger:.1f} more."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--updates", type=int, default=2, help="iterations of each training; the first is to warm up")
    parser.add_argument("--samples", type=int, default=2, help="of dropout, at most")
    parser.add_argument("--networks", nargs="+", default=[], help="names; all if not given")
    given = parser.parse_args()
    if given.updates < 2:
        raise InputError(f"--updates: got {given.updates}; the first is to warm up, so take at least 2")
    torch.set_num_threads(1)
    config = chosen(read_config(given.config, SelfSupervisedConfig), given.networks)
    bench(config, given.subjects, given.updates, given.samples)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
