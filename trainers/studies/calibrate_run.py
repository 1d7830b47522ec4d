"""The intervals of a trained relaxation network, calibrated on the subjects that its training kept for validation.

from trainers.studies.calibrate_run import calibrate_run
calibrate_run("runs/t1rho_liver")
"""

from pathlib import Path
from typing import Literal

from qsim.errors import InputError
from qsim.evaluation.calibration import SdCalibration
from qsim.evaluation.studies.cohort_maps import calibrate_by_sd
from trainers.infer import find_network
from trainers.networks.relaxation.unet import UNetNetwork
from trainers.relaxation.shipping import calibrate
from trainers.relaxation.source import training_subjects
from trainers.relaxation.task_config import SelfSupervisedTask
from trainers.stored import read_network
from trainers.studies.cohort_networks import answers, cohort_of, references, trained_of
from trainers.studies.self_supervised_config import NetworkEntry

_SAMPLES = 20


def calibrate_run(
    run: str | Path, against: Literal["truth", "fit"] = "truth", samples: int = _SAMPLES
) -> dict[str, SdCalibration]:
    """Factors of the SD of each row, all inputs of the training together; written into the file of the network.

    Args:
        run: folder or file of a network that was trained on a cohort.
        against: the truth of a simulated cohort, or the fit of all images of measured series.
        samples: passes of Monte Carlo dropout, as in use; 0 of a network without dropout.
    Raises: InputError if the network states no uncertainty, its training kept nobody for validation, its data have
        changed, or an argument is out of its range.
    """
    if against not in ("truth", "fit"):
        raise InputError(f"against: wanted truth or fit, got {against!r}; measured series have a fit only")
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 0:
        raise InputError(f"samples: wanted a whole number, 0 or more, got {samples!r}; {_SAMPLES} are usual")
    stored = read_network(find_network(run))
    config = stored.config
    task, network, chosen = config.mapping_task, config.mapping_network, config.data.cohort
    if not isinstance(task, SelfSupervisedTask) or not isinstance(network, UNetNetwork) or chosen is None:
        raise InputError(f"{stored.path}: is no unet that was trained on a cohort; its intervals cannot be calibrated")
    cohort = cohort_of(chosen)
    if cohort.digest != stored.header["data_digest"]:
        raise InputError(
            f"{stored.path}: data.cohort: holds other data than those of the training, so that its validation subjects "
            "are not the same; bring these back, or train again"
        )
    if against == "truth" and not cohort.truth:
        raise InputError("against: the truth is known of simulated cohorts only; take fit")
    _, validation, _ = training_subjects(cohort, chosen)
    drawn = cohort.roi.flatten(1).any(1).numpy()
    slices = tuple(int(i) for i in cohort.slices_of(validation) if drawn[i])
    if not slices:
        raise InputError(f"{stored.path}: data.cohort.validation: its training kept nobody; train again with some")
    entry = NetworkEntry(name="network", task=task, network=network, samples=samples if network.dropout > 0 else 0)
    if not entry.states:
        raise InputError(f"{stored.path}: the network states no uncertainty; set network.scale or network.dropout")
    one = trained_of(stored, entry, cohort.model, tuple(cohort.truth))
    held = references(chosen, slices)
    said = [answers(one, cohort.images[list(slices)], each) for each in one.inputs]
    try:
        factors = {
            row: calibrate_by_sd([each[row] for each in said], [held[row]] * len(said), against=against)
            for row in said[0]
        }
    except ValueError as error:
        raise InputError(f"{stored.path}: data.cohort.validation: {error}; train again with more subjects") from None
    calibrate(run, factors)
    return factors
