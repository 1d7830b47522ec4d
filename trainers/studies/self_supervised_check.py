"""What a study of kind `self_supervised` refuses before it writes anything or trains.

A folder that was claimed by a config that cannot run would refuse the right one; and a mistake in the last network, or
in a perturbation, would only be found when hours of training are over.
"""

from qsim.errors import InputError
from trainers.relaxation.cohort import FITTED, Cohort
from trainers.relaxation.contrasts import contrasts, inputs
from trainers.relaxation.task import RelaxationLearning
from trainers.studies.cohort_networks import only, split_of
from trainers.studies.cohort_perturbed import check_perturbed
from trainers.studies.self_supervised_config import SelfSupervisedConfig


def check_study(config: SelfSupervisedConfig, cohort: Cohort) -> None:
    """Refuse what does not fit the cohort.

    Raises: InputError, starting with the field.
    """
    try:
        inputs(cohort.model)
    except ValueError as error:
        raise InputError(f"cohort: {str(error).removeprefix('model: ')}") from None
    # two images leave no residual that would tell the noise
    few = min(len(each.images) for each in contrasts(cohort.model)) < 3
    for i, name in enumerate(config.alone):
        if cohort.sigma is None and (name == "empirical-bayes" or (name == "rician" and few)):
            raise InputError(
                f"alone[{i}]: {name} needs the noise SD, which two images do not tell; give sigma of every subject of "
                f"cohort.scans, or an alone without {name}"
            )
    if config.cohort.validation == 0 and (config.training.patience or config.training.keep == "best"):
        raise InputError("cohort.validation: training.patience and keep: best need subjects to validate on; keep some")
    for i in range(len(config.networks)):
        _check_network(config, i, cohort)
    for fold in config.folds:
        judged = split_of(cohort, config.cohort, fold).judged
        if any(entry.perturbed for entry in config.networks):
            check_perturbed(config.perturbations, cohort, judged, config.seed)


def _check_network(config: SelfSupervisedConfig, number: int, cohort: Cohort) -> None:
    """Match a network with its series, as its training does."""
    entry, place = config.networks[number], f"networks[{number}]"
    names = [each.row.name for each in contrasts(cohort.model)]
    if entry.contrast is not None and entry.contrast not in names:
        raise InputError(f"{place}.contrast: {entry.contrast} is none of the cohort, which has {', '.join(names)}")
    if entry.task.supervision == "truth" and not cohort.truth:
        raise InputError(f"{place}.task.supervision: truth is known of simulated cohorts only; take constraint or fit")
    series = cohort if entry.contrast is None else only(cohort, entry.contrast)
    fitted = [FITTED + each.row.name for each in contrasts(series.model)] if entry.task.supervision == "fit" else []
    try:
        learning = RelaxationLearning(entry.task, entry.network, series.model, (*series.truth, *fitted))
    except ValueError as error:
        raise InputError(f"{place}.{error}") from None
    try:
        learning.check_batch(config.training.batch, devices=1)
    except ValueError as error:
        raise InputError(f"training.{error}") from None
