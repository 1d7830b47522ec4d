"""Speed and quality of dictionary matching, one thread, in CPU seconds.

    python benchmarks/bench_dictionary.py [--quick]

The time of building is that of a call with 16 voxels: with numbers for what is known, one dictionary; with maps, those
slices that 16 voxels touch, so the rest of the slices counts as matching. least-squares (the model fitted per voxel)
is timed on fewer voxels of the same run.
"""

import argparse
import sys
import time
from math import pi
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from qsim.estimators import Status, build_estimator
from qsim.information import crb
from qsim.kspace.order import Acquisition
from qsim.signals import MOLLI, BalancedSSFP, Bloch, LookLockerTrain, MultiEchoSpinEcho, SpinLockPreparation, T2Prep
from tests.published import TE_PREP

RANGES = {
    "A": (0.5, 1.5),
    "T1": (0.5, 2.0),
    "T2": (0.04, 0.12),
    "T1RHO": (0.03, 0.08),
    "DELTA_B0": (-100.0, 100.0),
    "REL_B1": (0.8, 1.1),
}
READOUT = BalancedSSFP(
    flip_angle=35 * pi / 180, tr=0.0027, acquisition=Acquisition(lines=48, shots=1, order="linear")
)  # fmt: skip
MODELS = {
    "t2_prep, 6 images": (T2Prep(te_prep=TE_PREP), "T2"),
    "multi_echo_spin_echo, 10 echoes, 150 degrees": (
        MultiEchoSpinEcho(te=tuple(0.01 * k for k in range(1, 11)), t1=1.0, refocusing_angle=150 * pi / 180),
        "T2",
    ),
    "look_locker_train, 12 images": (
        LookLockerTrain(ti=tuple(0.25 * k + 0.05 for k in range(12)), flip_angle=0.1, tr=0.01),
        "T1",
    ),
    "molli 5(3)3, balanced_ssfp": (MOLLI(ti_first=(0.12, 0.2), rr=0.9, readout=READOUT), "T1"),
    "bloch, BSL spin-lock, 4 images": (
        Bloch(preparation=SpinLockPreparation(cluster="BSL", tsl=(0.0, 0.01, 0.03, 0.05), fsl=400.0)),
        "T1RHO",
    ),
}


def cpu_seconds(function):
    """Result and CPU seconds of one call."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def bench(n: int, n_reference: int) -> None:
    """One table."""
    print(f"{n} voxels, float32, SNR 100 of the brightest image; least-squares on {n_reference}")
    print("known    building [CPU-s]   voxels/CPU-s   without building   least-squares/CPU-s   "
          "largest noise-free error   RMSE / bound (CV < 12 %)   not converged")  # fmt: skip
    for title, (model, row) in MODELS.items():
        print(title)
        names = [p.name for p in model.parameters]
        fit = build_estimator("dictionary", model)
        nuisance = [name for name in names[1:] if name not in fit.searched]
        for kind in ("numbers", "maps") if nuisance else ("none",):
            generator = torch.Generator().manual_seed(1)
            ends = torch.tensor([RANGES[name] for name in names], dtype=torch.float64)
            share = torch.rand(len(names), n, generator=generator, dtype=torch.float64)
            truth = ends[:, :1] + share * (ends[:, 1:] - ends[:, :1])
            if kind == "numbers":
                for name in nuisance:
                    truth[names.index(name)] = {"T1": 1.0, "T2": 0.07, "DELTA_B0": 0.0, "REL_B1": 0.95}[name]
            known = {name: truth[names.index(name)] for name in nuisance}
            if kind == "numbers":
                known = {name: float(values[0]) for name, values in known.items()}
            clean = model(truth)
            sigma = 0.01 * float(clean.max())
            y = (clean + sigma * torch.randn(clean.shape, generator=generator, dtype=torch.float64)).float()

            def first(count, kind=kind, known=known):
                return known if kind != "maps" else {name: values[:count] for name, values in known.items()}

            fit(y[:, :16], known=first(16))
            build = cpu_seconds(lambda fit=fit, y=y, first=first: fit(y[:, :16], known=first(16)))[1]
            found, seconds = cpu_seconds(lambda fit=fit, y=y, known=known: fit(y, known=known))
            few = slice(0, n_reference)
            reference = build_estimator("least-squares", model)
            slow = cpu_seconds(
                lambda reference=reference, y=y, few=few, first=first: reference(
                    y[:, few], known=first(n_reference) or None
                )
            )[1]
            quiet = fit(clean[:, few], known=first(n_reference))
            at = names.index(row)
            worst = float((quiet.kappa[at] / truth[at, few] - 1).abs().max())
            bound = crb(model, truth, sigma, known=nuisance)
            tight = bound.cv[at] < 12
            error = ((found.kappa[at].double() - truth[at]) / bound.sd[at])[tight]
            left = 100 * float((found.status == Status.NOT_CONVERGED).double().mean())
            print(
                f"{kind:8s} {build:10.3f} {n / seconds:18.0f} {n / max(seconds - build, 1e-9):14.0f} "
                f"{n_reference / slow:18.0f} {100 * worst:20.4f} % {float(error.square().mean().sqrt()):22.3f} "
                f"{left:18.2f} %"
            )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer voxels")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    bench(*((20_000, 500) if quick else (200_000, 2000)))


if __name__ == "__main__":
    main()
