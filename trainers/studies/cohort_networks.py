"""One network of a study on a cohort: trained on some subjects, then asked about those that were left out."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor, nn

from qsim.evaluation.studies.cohort_reference import Answer, Reference
from qsim.signals.base import SignalModel
from trainers.checkpoint import MODEL
from trainers.config import TrainConfig
from trainers.fit import fit
from trainers.networks.relaxation.answers import range_of
from trainers.relaxation.cohort import Cohort, ideal, part_of
from trainers.relaxation.cohort import fit as fit_all
from trainers.relaxation.cohort_config import CohortConfig, open_cohort, without_noise
from trainers.relaxation.contrasts import Input, contrasts, intervals
from trainers.relaxation.estimator import RelaxationEstimator
from trainers.relaxation.source import cohort_source, training_subjects
from trainers.relaxation.task import RelaxationLearning
from trainers.stored import Stored, read_network
from trainers.studies.self_supervised_config import NetworkEntry


@lru_cache(maxsize=2)
def _opened(canonical: str) -> Cohort:
    return open_cohort(CohortConfig.model_validate_json(canonical))


def cohort_of(config: CohortConfig) -> Cohort:
    """The cohort of a config; made or read once in a process."""
    return _opened(config.model_copy(update={"fold": 0}).model_dump_json())


def only(cohort: Cohort, row: str) -> Cohort:
    """The series of one contrast alone."""
    contrast = next(each for each in contrasts(cohort.model) if each.row.name == row)
    return replace(
        cohort, images=cohort.images[:, list(contrast.images)], model=ideal(contrast), digest=f"{cohort.digest} {row}"
    )


def label_of(model: SignalModel, chosen: Input) -> str:
    """An input in tables: "0, 30 ms", "0, 30, 34.6 ms"."""
    found = contrasts(model)
    first = found[0].time(chosen[0])
    times = [first, *(first + each for each in intervals(chosen, found))]
    return ", ".join(f"{1e3 * each:.3g}" for each in times) + " ms"


@dataclass(frozen=True, slots=True)
class Split:
    """A fold: who is judged, and who the intervals are calibrated on.

    Attributes:
        judged, calibrated: numbers of the slices.
        trained: of the subjects that were learned from.
    """

    judged: tuple[int, ...]
    calibrated: tuple[int, ...]
    trained: tuple[int, ...]


def split_of(cohort: Cohort, config: CohortConfig, fold: int) -> Split:
    """Slices of a fold. A fold is judged on slices that hold a region of interest."""
    train, validation, left_out = training_subjects(cohort, config.model_copy(update={"fold": fold}))
    drawn = cohort.roi.flatten(1).any(1).numpy()

    def slices(subjects: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(int(i) for i in cohort.slices_of(subjects) if drawn[i])

    return Split(slices(left_out), slices(validation), slices(train))


@lru_cache(maxsize=8)
def _fits(canonical: str, slices: tuple[int, ...], clean: bool) -> Mapping[str, Float[np.ndarray, "s y x"]]:
    config = CohortConfig.model_validate_json(canonical)
    cohort = _opened(canonical)
    images = cohort.images[list(slices)]
    if clean:
        assert config.generate is not None, "only a generator knows its images without noise"
        images = without_noise(config.generate, slices)
        other = config.second_config
        if other is not None:
            images = torch.cat((images, without_noise(other, slices)[:, 1:]), 1)
    return {row: each.numpy().astype(np.float64) for row, each in fit_all(images, cohort.model).items()}


def references(config: CohortConfig, slices: tuple[int, ...]) -> Mapping[str, Reference]:
    """What maps of these slices are held against, by row."""
    canonical = config.model_copy(update={"fold": 0}).model_dump_json()
    cohort, chosen = _opened(canonical), list(slices)
    fits = _fits(canonical, slices, False)
    lesion = cohort.tissue("lesion")
    clean = _fits(canonical, slices, True) if config.generate is not None and lesion is not None else {}
    found = {}
    for contrast in contrasts(cohort.model):
        row = contrast.row.name
        body = cohort.body[chosen].numpy()
        truth = None
        if row in cohort.truth:
            # a body's voxels all have a relaxation time
            truth = np.where(body, cohort.truth[row][chosen].numpy().astype(np.float64), np.nan)
        found[row] = Reference(
            truth=truth,
            fit=fits[row],
            roi=cohort.roi[chosen].numpy(),
            body=body,
            lesion=None if lesion is None else lesion[chosen].numpy(),
            subject=cohort.subject[chosen].numpy(),
            noise_free=clean.get(row),
            bounds=(contrast.row.lower, contrast.row.upper),
        )
    return found


@dataclass(frozen=True, slots=True)
class Trained:
    """A network with what it takes to ask it.

    Attributes:
        entry: in the config.
        learning: its task on its series.
        net: in inference mode.
        bf16: as it was trained.
    """

    entry: NetworkEntry
    learning: RelaxationLearning
    net: nn.Module
    bf16: bool

    @property
    def inputs(self) -> tuple[Input, ...]:
        return self.learning.inputs

    def estimator(self, chosen: Input, nets: Sequence[nn.Module] = ()) -> RelaxationEstimator:
        """For the images of one input."""
        rows = self.learning.parameters
        network = self.learning.network
        within = {row.name: range_of(row, network.shortest, network.longest) for row in rows}
        return RelaxationEstimator(
            name=self.entry.name,
            nets=tuple(nets) or (self.net,),
            model=part_of(self.learning.model, chosen),
            rows=rows,
            samples=self.entry.samples,
            bf16=self.bf16,
            bounds={name: (each.low, each.high) for name, each in within.items()},
        )


def train(config: TrainConfig, entry: NetworkEntry, cohort: Cohort, out: Path, device: str) -> Trained:
    """Train a network, go on with it, or take it if it is finished.

    Raises: InputError as `trainers.fit`.
    """
    series = cohort if entry.contrast is None else only(cohort, entry.contrast)
    assert config.data.cohort is not None, "made by train_config"
    source = cohort_source(series, config.data.cohort, entry.task.supervision)
    if not (out / MODEL).is_file():
        with Path(os.devnull).open("w") as nowhere:
            fit(
                config,
                out,
                resume=out.exists(),
                device="cuda" if device.startswith("cuda") else "cpu",
                console=Console(file=nowhere),
                source=source,
            )
    return trained_of(read_network(out / MODEL), entry, series.model, source.rows)


def trained_of(stored: Stored, entry: NetworkEntry, model: SignalModel, maps: tuple[str, ...]) -> Trained:
    """A network from its file.

    Args:
        model: ideal decay of its series.
        maps: rows that its data know, see `RelaxationLearning`.
    Raises: InputError if the weights are those of another network.
    """
    learning = RelaxationLearning(entry.task, entry.network, model, maps, stored.config.seed)
    net = entry.network.build(model, learning.parameters, torch.Generator().manual_seed(0))
    return Trained(entry, learning, stored.ready(net, torch.device("cpu")), stored.header["precision"] == "bf16")


def series_of(trained: Trained, images: Float[Tensor, "s n y x"], model: SignalModel) -> Float[Tensor, "s n y x"]:
    """The images that the network's series holds, of those of the cohort."""
    if trained.entry.contrast is None:
        return images
    contrast = next(each for each in contrasts(model) if each.row.name == trained.entry.contrast)
    return images[:, list(contrast.images)]


def answers(
    trained: Trained, images: Float[Tensor, "s n y x"], chosen: Input, nets: Sequence[nn.Module] = ()
) -> dict[str, Answer]:
    """Maps of one input with their SDs, by row.

    Args:
        images: series of the network's contrasts.
        nets: an ensemble; empty: the network itself.
    """
    estimator = trained.estimator(chosen, nets)
    found = estimator(images[:, list(chosen)].movedim(1, 0))
    result = {}
    for i, row in enumerate(estimator.rows):
        sds = {name: each[i].double().sqrt().numpy() for name, each in found.variances.items()}
        result[row.name] = Answer(
            estimate=found.kappa[i].double().numpy(), aleatoric=sds.get("aleatoric"), epistemic=sds.get("epistemic")
        )
    return result


def seconds_of_slice(trained: Trained, images: Float[Tensor, "s n y x"], chosen: Input) -> float:
    """CPU time of one pass over one slice, on one thread [s]."""
    estimator = replace(trained.estimator(chosen), samples=0)
    series = images[:8, list(chosen)].movedim(1, 0)
    began = time.thread_time()
    estimator(series)
    return (time.thread_time() - began) / series.shape[1]
