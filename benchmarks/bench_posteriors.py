"""Figures of a posterior network's card: error, shrinkage, lesions, coverage, on anatomy that it has never seen.

    python benchmarks/bench_posteriors.py NETWORK [--decay] [--noise rician] [--times random] [--snr 3 10] [--draws 6]

Test split of MNI, crops of 112 x 112, one draw of tissue values and B each; the same noisy series go to the network, to
maximum likelihood and to empirical Bayes, all at the network's own pooled B. Over the voxels of all draws: median of
the RMSE over repeats [%], of |mean error| (with the noise of few repeats in it) [%]; slope of estimate on truth within
tissues (mean over tissues and draws); of 5 x 5 lesions of T + 40 % in white matter: contrast found over contrast, mean;
of single voxels of .4 times T (recoveries: .4 s) in grey matter: median error of the mean [%]; coverage of 95 %
intervals by tissue, and the median of the posterior's SD over that of the likelihood at known B. CPU-seconds are of one
thread, per 256 x 256 voxels.
"""

import argparse
import time

import numpy as np
import torch
from scipy.ndimage import binary_erosion

import trainers
from generators.config import GeneratorConfig
from generators.sample import make_samples
from qsim.distributions import Streams
from qsim.estimators import build_estimator
from qsim.signals import InversionRecovery, T2Prep
from trainers.networks.mixture.families import likelihood_of

TI = tuple(
    t / 1000
    for t in (
        139, 166, 193, 219, 246, 272, 299, 325, 352, 379, 405, 432, 458, 485, 511, 538,
        565, 591, 618, 644, 671, 697, 724, 751, 777, 804, 838, 857, 883, 915, 937,
    )
)  # fmt: skip
TE = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
TISSUES = ("csf", "gm", "wm")
SIZE = 112


def data(decay: bool) -> GeneratorConfig:
    """Scenes of the test split, maps only."""
    model = {"kind": "t2_prep", "te_prep": list(TE)} if decay else {"kind": "inversion_recovery", "ti": list(TI)}
    return GeneratorConfig.model_validate(
        {
            "seed": 2021,
            "samples": 64,
            "patch": [SIZE, SIZE],
            "split": "test",
            "phantom": {"kind": "mni"},
            "tissues": {"kind": "sabidussi2021"},
            "partial_volume": False,
            "store": "maps",
            "model": model,
            "noise": {"kind": "gaussian", "sigma": {"kind": "constant", "value": 0.1}},
        }
    )


def spots(inside: np.ndarray, rng: np.random.Generator, count: int, apart: int) -> list[tuple[int, int]]:
    """Up to `count` voxels, no two nearer than `apart` along both axes."""
    found: list[tuple[int, int]] = []
    for y, x in rng.permutation(np.argwhere(inside)).tolist():
        if len(found) < count and all(max(abs(y - b), abs(x - a)) >= apart for b, a in found):
            found.append((y, x))
    return found


def scene(config: GeneratorConfig, draw: int, decay: bool) -> dict[str, torch.Tensor]:
    """Maps, labels (0 background, 1 to 3), lesions and points of one draw."""
    sample = make_samples(config, [draw])
    kappa, labels = sample.kappa[0].clone(), sample.labels[0].to(torch.int64)
    rng = Streams(2021, draw).rng("structures")
    time_map = kappa[-1]
    lesion, point = torch.zeros_like(labels), torch.zeros_like(labels)
    white = binary_erosion((labels == 3).numpy(), np.ones((9, 9)))
    for number, (y, x) in enumerate(spots(white, rng, 4, 12)):
        lesion[y - 2 : y + 3, x - 2 : x + 3] = number + 1
    grey = binary_erosion((labels == 2).numpy(), np.ones((3, 3))) & ~binary_erosion(
        (labels == 2).numpy(), np.ones((9, 9))
    )
    for y, x in spots(grey & (lesion == 0).numpy(), rng, 6, 6):
        point[y, x] = 1
    around = time_map[(labels == 3)].mean()
    time_map[lesion > 0] *= 1.4
    time_map[point > 0] = 0.4 * (time_map[labels == 2].mean() if decay else 1.0)
    return {"kappa": kappa, "labels": labels, "lesion": lesion, "point": point, "around": around}


def slopes(found: torch.Tensor, truth: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Slope of estimate on truth within each tissue of at least 100 voxels."""
    answer = []
    for label in (1, 2, 3):
        chosen = labels == label
        if int(chosen.sum()) >= 100:
            away = truth[chosen] - truth[chosen].mean()
            answer.append(float((away * found[chosen]).sum() / away.square().sum()))
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network")
    parser.add_argument("--decay", action="store_true")
    parser.add_argument("--noise", choices=("gaussian", "rician"), default="gaussian")
    parser.add_argument("--assumed", choices=("gaussian", "rician"), help="of the network; as the noise if not given")
    parser.add_argument("--times", choices=("paper", "random"), default="paper")
    parser.add_argument("--contrast", type=float)
    parser.add_argument("--snr", type=float, nargs="+", default=[3, 5, 10, 30, 60, 100])
    parser.add_argument("--draws", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = data(given.decay)
    base = config.signal_model
    best = "rician" if given.decay and given.noise == "rician" else "least-squares" if given.decay else "shared-b"
    names = ["SNR", best, "empirical-bayes", "network [%]", "/ ML", "/ EB", "slope EB", "slope", "lesion EB", "lesion"]
    names += ["point [%]", "bias [%]", "cover csf gm wm", "lowest draw", "SD over likelihood's", "CPU-s"]
    print(f"{given.network}: {' | '.join(names)}")
    for snr in given.snr:
        sigma = 0.65 / snr
        rows: dict[str, list[torch.Tensor]] = {"ml": [], "eb": [], "net": [], "bias": [], "point": [], "width": []}
        inclines: dict[str, list[float]] = {"eb": [], "net": []}
        lesions: dict[str, list[float]] = {"eb": [], "net": []}
        covered: dict[str, list[torch.Tensor]] = {name: [] for name in TISSUES}
        lowest, seconds = 100.0, []
        for draw in range(given.draws):
            if given.times == "random":
                rng = Streams(77, draw).rng("times")
                if given.decay:
                    base = T2Prep(te_prep=tuple(np.sort(np.exp(rng.uniform(np.log(0.008), np.log(0.4), 7))).tolist()))
                else:
                    count = int(rng.integers(12, 32))
                    base = InversionRecovery(ti=tuple(np.sort(rng.uniform(0.139, 0.937, count)).tolist()))
            network = trainers.load(given.network, base, contrast=given.contrast, noise=given.assumed or given.noise)
            maximum, bayes = build_estimator(best, base), build_estimator("empirical-bayes", base)
            one = scene(config, draw, given.decay)
            labels = one["labels"]
            mask = labels > 0
            kappa = torch.where(mask, one["kappa"], 1.0)
            signal = base(kappa) * mask
            truth = kappa[-1]
            body = mask & (one["lesion"] == 0) & (one["point"] == 0)
            maps: dict[str, list[torch.Tensor]] = {"ml": [], "eb": [], "net": []}
            hits = []
            for repeat in range(given.repeats):
                g = Streams(2021, draw).torch_generator(f"noise {snr:g} {repeat}", torch.device("cpu"))
                noise = sigma * torch.randn(2, *signal.shape, generator=g)
                images = signal + noise[0]
                if given.noise == "rician":
                    images = torch.hypot(images, noise[1])
                begun = time.process_time()
                found = network(images, sigma, mask)
                seconds.append((time.process_time() - begun) * 65536 / int(mask.sum()))
                known = None if given.decay else {"B": found.kappa[1][mask][0]}
                maps["net"].append(found.kappa[-1])
                maps["ml"].append(maximum(images, sigma, mask, known).kappa[-1])
                maps["eb"].append(bayes(images, sigma, mask, known).kappa[-1])
                sd = found.variances["noise"][-1].sqrt() / found.kappa[-1]
                hits.append(((found.kappa[-1] / truth).log().abs() < 1.96 * sd).float())
                if repeat == 0:
                    depth = None if known is None else known["B"].reshape(1)
                    of = likelihood_of(
                        base,
                        images[None],
                        torch.full((1, 1, 1), sigma),
                        mask[None],
                        b=depth,
                        rician=given.noise == "rician",
                    )
                    information = of.local(truth.log()[None]).information[0] + 0.25
                    rows["width"].append((sd * information.sqrt())[body])
            for name, each in maps.items():
                stack = torch.stack(each)
                rows[name].append(100 * ((stack / truth - 1).square().mean(0).sqrt())[body])
                mean = stack.mean(0)
                if name != "ml":
                    inclines[name] += slopes(mean[body], truth[body], labels[body])
                    for number in range(1, int(one["lesion"].max()) + 1):
                        where = one["lesion"] == number
                        lesions[name].append(
                            float((mean[where].mean() - one["around"]) / (truth[where].mean() - one["around"]))
                        )
                if name == "net":
                    rows["bias"].append(100 * (mean / truth - 1).abs()[body])
                    rows["point"].append(100 * (mean / truth - 1)[one["point"] > 0])
            hit = torch.stack(hits)
            lowest = min(lowest, 100 * float(hit[:, body].mean()))
            for i, name in enumerate(TISSUES):
                covered[name].append(hit[:, body & (labels == i + 1)].flatten())
        middle = {name: float(torch.cat(each).median()) for name, each in rows.items()}
        cover = " ".join(f"{100 * float(torch.cat(each).mean()):.1f}" for each in covered.values())
        ml, eb, net = (middle[name] for name in ("ml", "eb", "net"))
        shrunk = [np.mean(each[name]) for each in (inclines, lesions) for name in ("eb", "net")]
        print(
            f"{snr:g} | {ml:.3g} | {eb:.3g} | {net:.3g} | {net / ml:.2f} | {net / eb:.2f} | "
            f"{' | '.join(f'{each:.2f}' for each in shrunk)} | {middle['point']:+.1f} | {middle['bias']:.2f} | "
            f"{cover} | {lowest:.0f} | {middle['width']:.2f} | {np.median(seconds):.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
