"""CPU-seconds of a multi-echo spin echo on a 256 x 256 map, one thread, beside a mono-exponential decay.

    python benchmarks/bench_epg.py [--quick]

The loop is an extended phase graph as it is usually written: one voxel at a time, a 3 x 3 complex matrix per pulse.
"""

import argparse
import time
from cmath import exp as cexp
from collections.abc import Callable
from math import cos, exp, pi, sin

import numpy as np
import torch

from qsim.signals.decays import SpinEcho
from qsim.signals.epg import epg_cpmg
from qsim.signals.multi_echo import MultiEchoSpinEcho
from qsim.signals.slice_profile import ShapedProfile

ESP = 0.01
T1 = 1.0
PROFILE = ShapedProfile(shape="sinc", time_bandwidth=4.0, refocusing_factor=1.5)


def cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """Least process time of several runs, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def textbook(t1: float, t2: float, rel_b1: float, n: int) -> np.ndarray:
    """Echoes of one voxel: complex states F+, F-, Z of every half-interval order, rotated and shifted by matrices."""

    def rotation(angle: float, phase: float) -> np.ndarray:
        c, s, turn = cos(angle / 2) ** 2, sin(angle / 2) ** 2, cexp(1j * phase)
        return np.array(
            [
                [c, turn**2 * s, -1j * turn * sin(angle)],
                [s / turn**2, c, 1j / turn * sin(angle)],
                [-0.5j / turn * sin(angle), 0.5j * turn * sin(angle), cos(angle)],
            ]
        )

    e1, e2 = exp(-ESP / 2 / t1), exp(-ESP / 2 / t2)
    states = np.zeros((3, 2 * n + 2), dtype=complex)
    states[2, 0] = 1
    states = rotation(pi / 2 * rel_b1, pi / 2) @ states
    refocus = rotation(pi * rel_b1, 0.0)
    echoes = np.empty(n)

    def half_interval(states: np.ndarray) -> np.ndarray:
        states = states * np.array([e2, e2, e1])[:, None]
        states[2, 0] += 1 - e1
        states[0] = np.roll(states[0], 1)
        states[1] = np.append(states[1, 1:], 0)
        states[0, 0] = np.conj(states[1, 0])
        return states

    for echo in range(n):
        states = half_interval(refocus @ half_interval(states))
        echoes[echo] = states[0, 0].real
    return echoes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a 64 x 64 map, few repeats")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    size, repeats, sample = (64, 2, 20) if quick else (256, 7, 300)
    g = torch.Generator().manual_seed(0)
    t2 = 0.03 + 0.2 * torch.rand(size, size, generator=g)
    b1 = 0.8 + 0.4 * torch.rand(size, size, generator=g)
    kappa = torch.stack((torch.ones_like(t2), t2, b1))
    t1 = torch.full_like(t2, T1)
    print(f"{size} x {size} voxels, float32, one thread, CPU ms")
    print("echoes  decay  EPG  EPG and Mz  EPG, 60 positions  textbook loop  loop / EPG  largest difference")
    for n in (16, 32):
        te = tuple(ESP * i for i in range(1, n + 1))
        model = MultiEchoSpinEcho(te=te, t1=T1)
        sliced = MultiEchoSpinEcho(te=te, t1=T1, slice_profile=PROFILE)
        plain = SpinEcho(te=te)
        decay = cpu_seconds(lambda plain=plain: plain(kappa[:2]), repeats)
        epg = cpu_seconds(lambda model=model: model(kappa), repeats)
        both = cpu_seconds(lambda n=n: epg_cpmg(t1, t2, b1, ESP, n), repeats)
        thick = cpu_seconds(lambda sliced=sliced: sliced(kappa), 2)
        voxels = [(float(x), float(y)) for x, y in zip(t2.flatten()[:sample], b1.flatten()[:sample], strict=True)]
        started = time.process_time()
        loop = np.array([textbook(T1, x, y, n) for x, y in voxels])
        naive = (time.process_time() - started) / sample * size**2
        gap = np.abs(np.abs(loop.T) - model(kappa).reshape(n, -1)[:, :sample].numpy()).max()
        print(
            f"{n:6d} {1e3 * decay:6.1f} {1e3 * epg:5.1f} {1e3 * both:9.1f} {1e3 * thick:15.0f} {1e3 * naive:16.0f}"
            f" {naive / epg:10.0f} {gap:14.1e}"
        )


if __name__ == "__main__":
    main()
