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
from trainers.relaxation.task import SelfSupervisedTask
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
    Raises: InputError if the network states no uncertainty, or its training kept nobody for validation.
    """
    stored = read_network(find_network(run))
    config = stored.config
    task, network, chosen = config.mapping_task, config.mapping_network, config.data.cohort
    if not isinstance(task, SelfSupervisedTask) or not isinstance(network, UNetNetwork) or chosen is None:
        raise InputError(f"{stored.path}: is no unet that was trained on a cohort; its intervals cannot be calibrated")
    cohort = cohort_of(chosen)
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
    factors = {
        row: calibrate_by_sd([each[row] for each in said], [held[row]] * len(said), against=against) for row in said[0]
    }
    calibrate(run, factors)
    return factors
