"""Speed and errors of the smooth map of B, one thread, in CPU seconds.

    python benchmarks/bench_smooth_b.py [--quick]

Two tables: the time of a whole image, 256 x 256 x 31; and RMSE, bias and spread of T1 over draws of a slice of the
brain that no training patch has seen (the generator of configs/sabidussi2021/study_t1_small.yaml), for B 1.9
everywhere and for a wave of 10 % from peak to peak. "known": least squares with the true B, the floor of all.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from generators import GeneratorConfig
from generators.sample import make_truth
from qsim.errors import InputError
from qsim.estimators import build_estimator
from qsim.kspace.noise import sigma_of
from qsim.signals import InversionRecovery
from tests.published import TABLE_1, TI_31

IR = InversionRecovery(ti=TI_31)
CONFIG = Path(__file__).parents[1] / "configs" / "sabidussi2021" / "study_t1_small.yaml"
TISSUES = ("csf", "gm", "wm")


def cpu_seconds(function):
    """Result and CPU seconds of one call."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def wave(shape, draw: int, spread: float):
    """B around 1.9 with `spread` from peak to peak over the image."""
    generator = torch.Generator().manual_seed(draw)
    phase, turn = (float(x) for x in torch.rand(2, generator=generator) * 6.28)
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape), indexing="ij")
    field = torch.sin(2.5 * (x * torch.tensor(turn).cos() + y * torch.tensor(turn).sin()) + phase)
    field = 2 * (field - field.min()) / (field.max() - field.min()) - 1
    return 1.9 * (1 + spread / 2 * field)


def synthetic(n: int, draw: int):
    """A and T1 of a square image of regions of grey and white matter and CSF, and its labels; no background."""
    generator = torch.Generator().manual_seed(draw)
    y, x = torch.meshgrid(torch.linspace(-1, 1, n), torch.linspace(-1, 1, n), indexing="ij")
    label = 1 + (torch.sin(9 * x + 3 * y + draw) + torch.sin(11 * y - 4 * x) > 0).long()
    label[x**2 + y**2 < 0.04] = 0
    table = torch.tensor([TABLE_1[name][:2] for name in TISSUES], dtype=torch.float64)
    spread = 1 + 0.05 * torch.randn(2, n, n, generator=generator, dtype=torch.float64)
    return table[label].movedim(-1, 0) * spread, label


def brain(draw: int, size: int):
    """The same of a slice of the brain that no training patch has seen, or None if its atlas is not there."""
    data = yaml.safe_load(CONFIG.read_text())["data"]
    try:
        truth = make_truth(GeneratorConfig(**{**data, "patch": [size, size], "samples": 1}), draw)
    except InputError as error:
        print(f"no brain: {error}")
        return None
    return truth.kappa[[0, 2]].double(), truth.labels.long() - 1


def bench_time(repeats: int) -> None:
    print("CPU seconds of 256 x 256 x 31, float32, slowest of the draws: weight chosen from the data, and 500")
    for snr in (3, 5, 10, 30, 100):
        for spread in (0.0, 0.1):
            seconds = []
            for draw in range(repeats):
                rows, label = synthetic(256, draw)
                kappa = torch.stack((rows[0], wave(label.shape, draw, spread), rows[1]))
                noise = torch.randn(31, 256, 256, generator=torch.Generator().manual_seed(draw))
                images = IR(kappa).float() + sigma_of(snr) * noise
                sigma = sigma_of(snr)
                fits = [build_estimator("smooth-b", IR, {"weight": w}) for w in (0.0, 500.0)]
                seconds.append([cpu_seconds(lambda f=fit, i=images, s=sigma: f(i, s))[1] for fit in fits])
            auto, fixed = zip(*seconds, strict=True)
            print(f"SNR {snr:3d}  B varies {100 * spread:3.0f} %   chosen {max(auto):5.2f}   500: {max(fixed):5.2f}")


def bench_errors(draws: int, size: int) -> None:
    methods = {
        "least-squares": ("least-squares", {}),
        "shared-b": ("shared-b", {}),
        "smooth-b": ("smooth-b", {}),
        "smooth-b 500": ("smooth-b", {"weight": 500.0}),
    }
    print(f"\nT1 of a brain slice, {size} x {size}, {draws} draws: RMSE, bias, spread [%] of csf, gm, wm; RMSE of B")
    for snr in (3, 5, 10, 30, 100):
        for spread in (0.0, 0.1):
            print(f"SNR {snr}, B varies by {100 * spread:.0f} %")
            errors: dict[str, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = {}
            for draw in range(draws):
                made = brain(draw, size)
                if made is None:
                    return
                rows, label = made
                inside = label >= 0
                b = wave(label.shape, draw, spread)
                kappa = torch.where(inside, torch.stack((rows[0], b, rows[1])), 0.0)
                kappa[2][~inside] = 1.0
                noise = torch.randn(31, *label.shape, generator=torch.Generator().manual_seed(100 + draw))
                images = IR(kappa).float() + sigma_of(snr) * noise
                found = {
                    title: build_estimator(name, IR, options)(images, sigma_of(snr), inside).kappa
                    for title, (name, options) in methods.items()
                }
                found["known"] = build_estimator("least-squares", IR)(images, mask=inside, known={"B": b}).kappa
                for title, maps in found.items():
                    t1 = (maps[2] / kappa[2] - 1)[inside]
                    errors.setdefault(title, []).append((t1, label[inside], (maps[1] - b)[inside]))
            for title, several in errors.items():
                t1, label, b = (torch.cat(column) for column in zip(*several, strict=True))
                parts = []
                for i, tissue in enumerate(TISSUES):
                    own = 100 * t1[label == i]
                    parts.append(
                        f"{tissue} {float(own.square().mean().sqrt()):6.2f} {float(own.mean()):+6.2f} "
                        f"{float(own.std()):6.2f}"
                    )
                print(f"  {title:14s} {'   '.join(parts)}   B {float(b.square().mean().sqrt()):.4f}", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer draws, a smaller slice")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    bench_time(1 if quick else 3)
    bench_errors(*((2, 96) if quick else (4, 160)))


if __name__ == "__main__":
    main()
