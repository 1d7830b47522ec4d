"""What a network of relaxation times does on bodies that no training saw: the table of a shipped network's card.

    python benchmarks/judge_liver_networks.py RUN CONFIG [--subjects 8] [--seed 777]

RUN is a network's folder, file or shipped name; CONFIG is that of its training, whose generated cohort is drawn anew
with another seed and with the papers' times. Each input is held against the truth, beside the limited two-point time
and that of images averaged over the voxels of 7 x 7 that look alike (`bilateral-7`), which no training made.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

import trainers
from generators.reading import read_config
from qsim.errors import InputError
from qsim.evaluation.studies.cohort_maps import judge
from qsim.evaluation.studies.cohort_reference import Answer
from trainers.config import TrainConfig
from trainers.relaxation.cohort_config import CohortConfig
from trainers.relaxation.contrasts import Contrast, Input, contrasts, inputs
from trainers.studies.cohort_networks import cohort_of, label_of, references
from trainers.studies.cohort_opponents import alone

# of huang2022 and huang2023 [s]
TSL = (0.0, 0.01, 0.03, 0.05)
TE = (0.0, 0.0182, 0.0346, 0.051)
LIMITS = (0.005, 0.2)
NAMES = {"T1RHO": "T1rho", "T2": "T2"}
HEADS = (
    "input",
    "map",
    "RMAE [ms]",
    "two-point [ms]",
    "bilateral-7 [ms]",
    "bias [ms]",
    "slope of subjects' means",
    "concordance",
    "lesions (bilateral-7)",
    "median error, body (bilateral-7) [ms]",
    "Spearman of SD and error, body",
    "coverage, body / ROI [%]",
    "median width, body / ROI [ms]",
)


def new_cohort(path: Path, subjects: int, seed: int) -> CohortConfig:
    """The cohort of a training with other bodies and the papers' times.

    Raises: InputError if the config is none of a generated cohort.
    """
    config = read_config(path, TrainConfig)
    cohort = config.data.cohort
    if cohort is None or cohort.generate is None:
        raise InputError(f"{path}: data.cohort.generate: missing; give the config of a training on drawn bodies")
    given = cohort.model_dump(mode="json", exclude_unset=True)
    made = given["generate"]
    made |= {"seed": seed, "samples": subjects * made["phantom"]["slices"]}
    made["phantom"] |= {"subjects": subjects, "seed": seed}
    made["model"]["preparation"]["tsl"] = TSL
    if given.get("second"):
        given["second"]["te"] = TE
    return CohortConfig.model_validate({**given, "fold": None, "validation": 0})


def line(
    estimate: Answer, images: torch.Tensor, contrast: Contrast, chosen: Input, reference: object, label: str
) -> list[str]:
    """One row of the table."""
    own = judge(estimate, reference).values
    point, alike = (
        judge(alone(name, images, contrast, chosen, LIMITS, None), reference).values
        for name in ("two-point", "bilateral-7")
    )
    roi, body = ("roi", "rmae_truth"), ("body", "median_error_truth")
    shown = ("lesion", "lesion_recovery_fit")
    return [
        label,
        NAMES[contrast.row.name],
        f"{own[roi]:.2f}",
        f"{point[roi]:.2f}",
        f"{alike[roi]:.2f}",
        f"{own['roi', 'bias_truth']:+.2f}",
        f"{own['roi', 'slope_subjects_truth']:.2f}",
        f"{own['roi', 'concordance_subjects_truth']:.2f}",
        f"{own[shown]:.2f} ({alike[shown]:.2f})",
        f"{own[body]:.1f} ({alike[body]:.1f})",
        f"{own['body', 'spearman_truth']:.2f}",
        f"{100 * own['body', 'coverage_95_truth']:.1f} / {100 * own['roi', 'coverage_95_truth']:.1f}",
        f"{own['body', 'width_median']:.1f} / {own['roi', 'width_median']:.1f}",
    ]


def table(run: str, config: CohortConfig) -> str:
    """As Markdown."""
    cohort = cohort_of(config)
    slices = tuple(int(i) for i in np.flatnonzero(cohort.roi.flatten(1).any(1).numpy()))
    images, against = cohort.images[list(slices)], references(config, slices)
    lines = ["| " + " | ".join(HEADS) + " |", "| --- " * len(HEADS) + "|"]
    for chosen in inputs(cohort.model):
        estimator = trainers.load(run, model=cohort.model, images=chosen)
        found = estimator(images.movedim(1, 0))
        for i, row in enumerate(estimator.parameters):
            sd = {name: each[i].double().sqrt().numpy() for name, each in found.variances.items()}
            answer = Answer(found.kappa[i].double().numpy(), sd.get("aleatoric"), sd.get("epistemic"))
            contrast = next(each for each in contrasts(cohort.model) if each.row.name == row.name)
            cells = line(answer, images, contrast, chosen, against[row.name], label_of(cohort.model, chosen))
            lines.append("| " + " | ".join(cells) + " |")
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the bodies, ask the network, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("config", type=Path)
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--seed", type=int, default=777)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    config = new_cohort(chosen.config, chosen.subjects, chosen.seed)
    assert config.generate is not None
    phantom = config.generate.phantom_spec
    print(
        f"{chosen.subjects} bodies x {phantom.slices} slices of no training (seed {chosen.seed}), against the truth, "
        "20 passes of dropout. RMAE: mean absolute error in the region of interest; lesions: contrast shown, over that "
        "of a fit of all images without noise; coverage and width of the calibrated 95 % interval.\n"
    )
    print(table(chosen.run, config))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
