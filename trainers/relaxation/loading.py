"""From a trained relaxation network, or several, to an estimator of a series.

A network sees one common image of a series and one later image of each contrast. It maps series of the relaxation times
that it learned, with the times of its training (`learned.py`).

A series of more images is refused: which of them the network shall see is the user's choice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from generators.config import GeneratorConfig
from qsim.errors import InputError
from qsim.estimators import Estimate
from qsim.estimators.base import check_series
from qsim.evaluation.calibration import Factor, factor_of
from qsim.parameters import Parameter
from qsim.signals.base import SignalModel
from trainers.networks import RelaxationNetwork
from trainers.networks.relaxation.answers import range_of
from trainers.relaxation.cohort import part_of
from trainers.relaxation.contrasts import Input, contrasts, inputs, intervals
from trainers.relaxation.estimator import RelaxationEstimator
from trainers.relaxation.learned import Learned, check_alike, check_calibration, data_of, learned_of, said, times_of
from trainers.relaxation.task_config import SelfSupervisedTask
from trainers.relaxation.uncertainty import has_dropout
from trainers.stored import Stored

Units = Literal["delta", "literal"]
# passes of Monte Carlo dropout (huang2022 section 3.4)
_SAMPLES = 20


@dataclass(frozen=True, slots=True)
class TrainedRelaxation:
    """Relaxation networks as an `Estimator` of a whole series, of which they see some images.

    Attributes:
        estimator: of these images.
        model: signal model of the series.
        images: numbers of the images that the networks see.
        trained_on: data of the training; None: measured, or unknown.
        notes: what a user should know of the answer, a sentence each.
    """

    estimator: RelaxationEstimator
    model: SignalModel
    images: tuple[int, ...]
    trained_on: GeneratorConfig | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.estimator.name

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.estimator.parameters

    def renamed(self, name: str) -> "TrainedRelaxation":
        """The same under another name in tables."""
        return replace(self, estimator=replace(self.estimator, name=name))

    def __call__(
        self,
        images: Float[Tensor, "n *space"],
        sigma: float | Tensor | None = None,
        mask: Bool[Tensor, "*space"] | None = None,
        known: Mapping[str, Tensor] | None = None,
    ) -> Estimate:
        """Map a series of one slice (n, y, x) or a stack of slices (n, z, y, x), as `RelaxationEstimator` does.

        Raises: InputError if the series does not fit the network.
        """
        try:
            check_series(images, self.model)
        except ValueError as error:
            raise InputError(f"{error}; {self.name} was loaded for these times") from None
        return self.estimator(images[list(self.images)], sigma=sigma, mask=mask, known=known)


def load_relaxation(
    stored: Sequence[Stored],
    model: SignalModel | None,
    device: torch.device,
    samples: int | None = None,
    units: Units | None = None,
    images: Sequence[int] | None = None,
) -> TrainedRelaxation:
    """Trained relaxation networks, ready to map.

    Args:
        stored: one network, or several that were trained alike as an ensemble.
        model: of the series; None: that of the training, if it has one input.
        samples: passes of Monte Carlo dropout; None: 20, or 0 of a network without dropout.
        units: see `RelaxationEstimator`; None: delta.
        images: numbers of the images that the networks see; None: the series holds just these.
    Raises: InputError if the series does not fit the networks, or these do not fit one another.
    """
    first = stored[0]
    trained, learned = times_of(first), learned_of(first)
    for number, other in enumerate(stored[1:], start=1):
        check_alike(first, other)
        if any(other.path.resolve() == each.path.resolve() for each in stored[:number]):
            raise InputError(
                f"ensemble: {other.path} is given twice, and a network does not differ from itself; name each once"
            )
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int)):
        raise InputError(f"samples: wanted a whole number, got {samples!r}; give 0 or more")
    if images is not None and not all(isinstance(i, int) and not isinstance(i, bool) for i in images):
        raise InputError(f"images: wanted numbers of images, counted from 0, got {images!r}; give them as (0, 2)")
    if model is None:
        model, images = _of_training(learned, trained, first, images)
    chosen = _chosen(learned, model, images)
    seen = _seen(learned, model, chosen)
    network = first.config.mapping_network
    assert isinstance(network, RelaxationNetwork), "the config has checked that task and network fit"
    nets = tuple(
        each.ready(network.build(trained, learned.rows, torch.Generator().manual_seed(0)), device) for each in stored
    )
    if samples is None:
        samples = _SAMPLES if has_dropout(nets[0]) else 0
    calibration, notes = _calibration(stored, units or "delta", tuple(row.name for row in learned.rows))
    # rows of other kinds have bounds of their own
    within = {row.name: range_of(row, network.shortest, network.longest) for row in learned.rows}
    estimator = RelaxationEstimator(
        name=learned.name,
        nets=nets,
        model=seen,
        rows=learned.rows,
        samples=samples,
        units=units or "delta",
        calibration=calibration,
        device=device,
        bf16=first.header["precision"] == "bf16",
        trained_intervals=learned.ranges if learned.told else None,
        bounds={name: (each.low, each.high) for name, each in within.items()},
    )
    return TrainedRelaxation(estimator, model, chosen, data_of(first), notes)


def _of_training(
    learned: Learned, trained: SignalModel, stored: Stored, images: Sequence[int] | None
) -> tuple[SignalModel, Sequence[int]]:
    """The series of the training, and its only input."""
    task = stored.config.mapping_task
    assert isinstance(task, SelfSupervisedTask), "only such networks are loaded here"
    found = task.inputs or inputs(trained)
    if images is not None:
        return trained, images
    if len(found) > 1:
        raise InputError(
            f"model: {learned.name} was trained on {learned.times_text} between the images; "
            "give the signal model of the series, which says the times at hand"
        )
    return trained, found[0]


def _chosen(learned: Learned, model: SignalModel, images: Sequence[int] | None) -> tuple[int, ...]:
    """Numbers of the images that the network sees."""
    wanted = 1 + len(learned.joined)
    here = tuple(each.row.name for each in contrasts(model))
    if not set(learned.names) <= set(here):
        raise InputError(_other(learned, here))
    if images is None:
        if model.n_images == wanted:
            return tuple(range(wanted))
        raise InputError(
            f"images: {learned.name} maps {' and '.join(learned.names)} from {wanted} images, and the series holds "
            f"{model.n_images}; choose the common first one and one later of each by their numbers from 0"
            f"{_example(learned, model)}"
        )
    chosen = tuple(images)
    wrong = [i for i in chosen if not 0 <= i < model.n_images]
    if wrong or len(set(chosen)) != wanted or len(chosen) != wanted:
        raise InputError(
            f"images: got {','.join(map(str, chosen))}; wanted {wanted} different ones of the series, "
            f"0 to {model.n_images - 1}{_example(learned, model)}"
        )
    return chosen


def _seen(learned: Learned, model: SignalModel, chosen: tuple[int, ...]) -> SignalModel:
    """Ideal decay of the images that the network sees."""
    try:
        seen = part_of(model, chosen)
        here = tuple(each.row.name for each in contrasts(seen))
        found: Input | None = inputs(seen)[0]
    except ValueError:
        here, found = learned.names, None
    if here != learned.names:
        raise InputError(_other(learned, here))
    times = (0.0,) if found is None else intervals(found, contrasts(seen))
    if found is None or len(found) != len(chosen) or min(times) <= 0:
        raise InputError(
            f"images: {','.join(map(str, chosen))} are not one image that all contrasts share and one later of "
            f"{' and of '.join(learned.names)}; choose such ones{_example(learned, model)}"
        )
    if not learned.knows(times):
        raise InputError(
            f"times: {said(times)} lie between the images, and {learned.name} was trained on {learned.times_text}; "
            f"take images that far apart{_example(learned, model)}, or a network of these times"
        )
    return seen


def _other(learned: Learned, here: tuple[str, ...]) -> str:
    ours, theirs = " and ".join(learned.names), " and ".join(here)
    return (
        f"model: {learned.name} learned {ours}, and these images tell {theirs}; "
        f"these are not the same property of tissue: take a network of {theirs}, or a series of {ours}"
    )


def _example(learned: Learned, model: SignalModel) -> str:
    """Images of the series that the network can map; empty if there are none."""
    here = {each.row.name: each for each in contrasts(model)}
    joined = tuple(here[name] for name in learned.names)
    for later in zip(*(each.images[1:] for each in joined), strict=False):
        found = (joined[0].images[0], *later)
        if all(each.images[0] == found[0] for each in joined) and learned.knows(intervals(found, joined)):
            return f", for example images={','.join(map(str, found))} ({said(intervals(found, joined))} apart)"
    return ""


def _calibration(
    stored: Sequence[Stored], units: Units, rows: tuple[str, ...]
) -> tuple[Mapping[str, Factor], tuple[str, ...]]:
    """Factors of the standard deviations by row, and what is to be said of them."""
    if units == "literal":
        return {}, (
            "units: literal: the aleatoric part is in units of the normalised signal, not of the map, as huang2022 "
            "Eq. 9 has it; the total adds both parts as they are, and nothing is calibrated",
        )
    if len(stored) > 1:
        return {}, ("the standard deviations of this ensemble are not calibrated; factors of its networks do not hold",)
    given = stored[0].header.get("calibration", {})
    check_calibration(stored[0].path, given, rows)
    missing = [name for name in rows if name not in given]
    words = f"the standard deviations of {' and '.join(missing)} are not calibrated"
    return {name: factor_of(factor) for name, factor in given.items()}, ((words,) if missing else ())
