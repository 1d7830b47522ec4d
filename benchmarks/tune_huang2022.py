"""Equal tuning of every network of a study of configs/huang2022, on a fold that the study does not judge.

    python benchmarks/tune_huang2022.py configs/huang2022/study_t1rho_small.yaml --out tuning/t1rho_small

Each network is trained once with each learning rate and each split of the same number of examples into updates, and
judged on the subjects of that fold: the error of its maps against the truth, in the region of interest, mean over the
inputs. That is more than a user without truth could do, and the same for all. Networks that differ from another in
`task.weights` or `task.corrupt` alone take what that one takes. What is finished is not trained again.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from qsim.errors import InputError
from qsim.evaluation.studies.cohort_maps import judge
from trainers.studies.cohort_networks import answers, cohort_of, references, series_of, split_of, train
from trainers.studies.registry import read_study
from trainers.studies.self_supervised_config import NetworkEntry, SelfSupervisedConfig

ERROR, SLOPE = "rmae_truth", "slope_subjects_truth"
METRICS = (ERROR, "rmae_fit", SLOPE)
NAMES = {"T1RHO": "T1rho", "T2": "T2"}


def tuned(config: SelfSupervisedConfig) -> Iterator[int]:
    """Numbers of the networks that are tuned."""
    for number, entry in enumerate(config.networks):
        if not entry.task.weights and entry.task.corrupt is None:
            yield number


def judged(path: Path, number: int, fold: int, lr: float, batch: int, iterations: int, out: Path) -> dict[str, Any]:
    """One training, held against the truth; from its file if that is there."""
    torch.set_num_threads(1)
    name = f"net{number:02d}_lr{lr:g}_batch{batch}x{iterations}"
    record = out / f"{name}.json"
    if record.is_file():
        found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        return found
    config = study(path)
    entry: NetworkEntry = config.networks[number].model_copy(update={"lr": lr, "iterations": iterations})
    keys = config.training.model_copy(update={"batch": batch, "validate_every": iterations})
    config = config.model_copy(update={"training": keys})
    cohort = cohort_of(config.cohort)
    slices = split_of(cohort, config.cohort, fold).judged
    against = references(config.cohort, slices)
    # a seed that no run of the study has
    trained = train(config.train_config(entry, fold, 1000), entry, cohort, out / name, "cpu")
    images = series_of(trained, cohort.images[list(slices)], cohort.model)
    result: dict[str, Any] = {"name": entry.name, "lr": lr, "batch": batch, "iterations": iterations}
    sums: dict[str, float] = {}
    for chosen in trained.inputs:
        for row, answer in answers(trained, images, chosen).items():
            values = judge(answer, against[row]).values
            for metric in METRICS:
                key = f"{row} {metric}"
                sums[key] = sums.get(key, 0.0) + values[("roi", metric)] / len(trained.inputs)
    result |= sums
    record.with_suffix(".part").write_text(json.dumps(result), encoding="utf-8")
    record.with_suffix(".part").replace(record)
    return result


def study(path: Path) -> SelfSupervisedConfig:
    """Raises: InputError if the file is no such study."""
    _, config = read_study(path)
    if not isinstance(config, SelfSupervisedConfig):
        raise InputError(f"{path}: kind: wanted a study of kind self_supervised")
    return config


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """As Markdown: mean absolute error of each row [ms] and slope; the rate with the least relative error is bold."""
    rates = sorted({each["lr"] for each in found})
    lines = [
        "| network | batch x updates | " + " | ".join(f"rate {rate:g}" for rate in rates) + " |",
        "| --- " * (2 + len(rates)) + "|",
    ]
    groups: dict[tuple[str, str, str], dict[float, Mapping[str, Any]]] = {}
    for each in found:
        rows = [key.split()[0] for key in each if key.endswith(ERROR)]
        of = each["name"], " / ".join(NAMES.get(row, row) for row in rows), f"{each['batch']} x {each['iterations']}"
        groups.setdefault(of, {})[each["lr"]] = each
    for (name, maps, updates), tried in groups.items():
        best = min(tried, key=lambda rate: score(tried[rate], tried.values()))
        cells = [_cell(tried[rate], rate == best) if rate in tried else "" for rate in rates]
        lines.append(f"| {name}: {maps} | {updates} | {' | '.join(cells)} |")
    return "\n".join(lines)


def score(one: Mapping[str, Any], all_rates: Iterable[Mapping[str, Any]]) -> float:
    """Sum over rows of the error over the mean error of all rates [1]."""
    others = list(all_rates)
    keys = [key for key in one if key.endswith(ERROR)]
    return sum(one[key] / (sum(each[key] for each in others) / len(others)) for key in keys)


def _cell(one: Mapping[str, Any], best: bool) -> str:
    errors = " / ".join(f"{one[key]:.2f}" for key in one if key.endswith(ERROR))
    slopes = " / ".join(f"{one[key]:.2f}" for key in one if key.endswith(SLOPE))
    return f"{f'**{errors}**' if best else errors} (slope {slopes})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, judge, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fold", type=int, default=1)
    parser.add_argument("--lr", type=float, nargs="+", default=[0.001, 0.003, 0.01])
    parser.add_argument("--batch", type=int, nargs="+", help="as many examples in all as the study has", default=None)
    parser.add_argument("--only", nargs="*", help="names of networks", default=None)
    parser.add_argument("--workers", type=int, default=1)
    chosen = parser.parse_args(arguments)
    config = study(chosen.study)
    if chosen.fold in config.folds:
        raise InputError(f"--fold: {chosen.fold} is judged by the study; take another, tuning must not see it")
    chosen.out.mkdir(parents=True, exist_ok=True)
    jobs = []
    for number in tuned(config):
        entry = config.networks[number]
        if chosen.only is not None and entry.name not in chosen.only:
            continue
        examples = (entry.iterations or config.training.iterations) * config.training.batch
        for batch in chosen.batch or [config.training.batch]:
            jobs += [(number, chosen.fold, lr, batch, examples // batch) for lr in chosen.lr]
    found = []
    with ProcessPoolExecutor(chosen.workers) as pool:
        waiting = {pool.submit(judged, chosen.study, *job, chosen.out): job for job in jobs}
        for each in as_completed(waiting):
            found.append((waiting[each], each.result()))
            print(each.result(), flush=True)
    print(table([each for _, each in sorted(found, key=lambda pair: pair[0])]))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
