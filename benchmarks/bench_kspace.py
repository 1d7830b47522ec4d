"""Artefacts at 128^3 beside TorchIO and MONAI: speed, and how far each is from the physics written out.

CPU seconds on one thread, best of several, opponents and ours in turn within one run. The opponents get what they take:
a real float32 tensor; ours gets complex64 and ends, as theirs do, in a real image (`magnitude`), draw included. Every
strength is fixed, so that none of the calls does nothing. TorchIO is called with a Subject, as its users do; the second
figure is its artefact alone, on a plain tensor.

    python benchmarks/bench_kspace.py [--quick]
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torchio
from torch import Tensor
from torchio.transforms.augmentation.intensity.random_motion import Motion as TorchIOMotion
from torchio.transforms.augmentation.intensity.random_spike import Spike as TorchIOSpike

from qsim.kspace import (
    Artefact,
    BiasField,
    Distortion,
    Gibbs,
    KSpaceNoise,
    LowPass,
    Motion,
    RFSpike,
    corrupt,
    magnitude,
)
from qsim.kspace.motion.trajectory import RandomWalk, Sudden

SIZE = 128
# the figures of TorchIO's motion and of the target for translations per line [ms]
TRANSLATIONS, MOTION = 60.0, 193.0
Run = Callable[[], object]


def head(size: int) -> Tensor:
    """An ellipsoid with texture inside, zero outside: real, float32."""
    axis = torch.linspace(-1, 1, size)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    texture = 1 + 0.2 * torch.sin(9 * x + 4 * y) * torch.cos(7 * z - 3 * x)
    return ((x / 0.7) ** 2 + (y / 0.85) ** 2 + (z / 0.8) ** 2 < 1) * texture


def milliseconds(runs: Sequence[Run], repeats: int) -> list[float]:
    """Best CPU time of each: a few calls in a row, so that memory is warm, and three rounds, for a busy machine."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(3):
        for run, taken in zip(runs, times, strict=True):
            run()
            for _ in range(max(repeats // 3, 1)):
                begin = time.process_time()
                run()
                taken.append(time.process_time() - begin)
    return [1000 * min(taken) for taken in times]


def ours(artefact: Artefact[Any], images: Tensor) -> Tensor:
    """Draw, apply, magnitude."""
    drawn = artefact.draw(tuple(images.shape), np.random.default_rng(1))
    return magnitude(artefact.apply(images, drawn))


def row(what: str, theirs: float | None, own: float, required: str, met: bool | None, more: str = "") -> None:
    ratio = "" if theirs is None else f"{theirs / own:.2f} x"
    shown = "" if theirs is None else f"{theirs:.1f}"
    verdict = "" if met is None else ("yes" if met else "NO")
    print(f"{what:44s} {shown:>9s} {own:>9.1f} {ratio:>9s} {required:>12s} {verdict:>5s}  {more}")


class TorchIO:
    """The opponent's calls, with a Subject and without."""

    def __init__(self, image: Tensor) -> None:
        self.channel = image
        self.subject = torchio.Subject(image=torchio.ScalarImage(tensor=image[None]))
        self.spike = torchio.RandomSpike(num_spikes=(1, 1), intensity=(2.0, 2.0))
        self.place = np.array([[0.55, 0.43, 0.61]])
        self.motion = torchio.RandomMotion(degrees=5, translation=5, num_transforms=2)

    def spike_alone(self, intensity: float = 2.0) -> Tensor:
        return TorchIOSpike(self.place, intensity).add_artifact(self.channel, self.place, intensity)


def bench_opponents(image: Tensor, repeats: int) -> None:
    images = image.to(torch.complex64)[None]
    theirs = TorchIO(image)
    whole, alone, own = milliseconds(
        [lambda: theirs.spike(theirs.subject), theirs.spike_alone, lambda: ours(RFSpike(amplitude=2), images)], repeats
    )
    row("RF spike against TorchIO RandomSpike", whole, own, ">= 3 x", whole >= 3 * own, f"theirs alone {alone:.1f} ms")
    bench_motion(theirs, images, repeats)
    import monai.transforms as monai

    channels = image[None]
    opponents: list[tuple[str, Callable[[Tensor], object], Artefact[Any], float]] = [
        (
            "noise + magnitude against MONAI RandRicianNoise",
            monai.RandRicianNoise(prob=1, std=0.1, sample_std=False),
            KSpaceNoise(sigma=0.1),
            2.0,
        ),
        ("bias field against MONAI RandBiasField", monai.RandBiasField(prob=1), BiasField(strength=0.3), 3.0),
        ("Gibbs (ellipse) against MONAI GibbsNoise", monai.GibbsNoise(0.5), Gibbs(kept=0.5, support="ellipse"), 1.5),
        ("Gibbs (box) against MONAI GibbsNoise", monai.GibbsNoise(0.5), Gibbs(kept=0.5), 1.5),
    ]
    for what, opponent, artefact, required in opponents:
        whole, own, without = milliseconds(
            [
                lambda opponent=opponent: opponent(channels),  # type: ignore[misc]
                lambda artefact=artefact: ours(artefact, images),  # type: ignore[misc]
                lambda artefact=artefact: artefact.apply(  # type: ignore[misc]
                    images, artefact.draw(tuple(images.shape), np.random.default_rng(1))
                ),
            ],
            repeats,
        )
        row(what, whole, own, f">= {required:g} x", whole >= required * own)
        row("    the same, images stay complex", whole, without, f">= {required:g} x", whole >= required * without)


def bench_motion(theirs: TorchIO, images: Tensor, repeats: int) -> None:
    """Two movements, and a translation of its own for every line."""
    angle = math.radians(5)
    moves = Motion(trajectory=Sudden(events=2, translation=5, rotation=angle), line_time=0.005)
    slides = Motion(trajectory=RandomWalk(translation=0.3), line_time=0.005)
    whole, own, per_line = milliseconds(
        [
            lambda: theirs.motion(theirs.subject),
            lambda: ours(moves, images),
            lambda: ours(slides, images),
        ],
        max(repeats // 2, 3),
    )
    row("motion, 2 movements, against TorchIO RandomMotion", whole, own, ">= 1 x", whole >= own)
    limit = TRANSLATIONS / MOTION
    row("translation per line against the same", whole, per_line, f">= {1 / limit:.2f} x", per_line <= limit * whole)


def bench_chain(image: Tensor, repeats: int) -> None:
    """Transforms shared between neighbours, against the same artefacts one after another."""
    images = image.to(torch.complex64)[None]
    chain = [RFSpike(amplitude=2), KSpaceNoise(sigma=0.1), LowPass(factor=3, axes=(-1,)), Gibbs(kept=0.6)]

    def apart() -> Tensor:
        result, rng = images, np.random.default_rng(1)
        for artefact in chain:
            result = artefact.apply(result, artefact.draw(tuple(result.shape), rng))
        return magnitude(result)

    one, together = milliseconds(
        [apart, lambda: magnitude(corrupt(images, chain, np.random.default_rng(1)).images)], repeats
    )
    row("chain spike, noise, low-pass, Gibbs against apart", one, together, "", None)


def bench_alone(image: Tensor, repeats: int) -> None:
    """What has no opponent, and a series of 31 images of 256 x 256, as an inversion recovery."""
    distortion = Distortion(delta_b0=100.0, bandwidth=50.0, te=0.005)
    moves = Motion(trajectory=Sudden(events=2, translation=5, rotation=math.radians(5)), line_time=0.005)
    (own,) = milliseconds([partial(ours, distortion, image.to(torch.complex64)[None])], repeats)
    row("distortion", None, own, "", None)
    slices = head(256)[::8][:31].contiguous()
    series = (slices * torch.exp(0.3j * torch.linspace(-1, 1, 256))).to(torch.complex64)
    chain = (moves, BiasField(strength=0.3), distortion, RFSpike(amplitude=2), KSpaceNoise(sigma=0.1), Gibbs(kept=0.5))
    for artefact in chain:
        (own,) = milliseconds([partial(ours, artefact, series)], repeats)
        row(f"{artefact.kind}, series of 31 x 256 x 256", None, own, "", None)
    (own,) = milliseconds([lambda: magnitude(corrupt(series, chain, np.random.default_rng(1)).images)], repeats)
    row("all six as a chain, series of 31 x 256 x 256", None, own, "", None)


def spike_errors(image: Tensor) -> None:
    """|m + wave|, the wave written out, against what comes out; the error over the height of the wave."""
    theirs = TorchIO(image)
    images, artefact = image.to(torch.complex64)[None], RFSpike(amplitude=2)
    drawn = artefact.draw(tuple(images.shape), np.random.default_rng(1))
    place = np.floor(theirs.place[0] * SIZE).astype(int) - SIZE // 2
    largest = float(torch.fft.fftn(image, norm="ortho").abs().max())
    # theirs has its phase origin at voxel 0
    true = (image + wave(image.shape, place, 2 * largest, 0.0, origin=0)).abs()
    height = 2 * largest / math.sqrt(image.numel())
    result = theirs.spike_alone()
    spike = drawn.spikes[0]
    own_true = (image + wave(image.shape, spike.k, spike.amplitude * largest, spike.phase, origin=SIZE // 2)).abs()
    own = magnitude(artefact.apply(images, drawn))[0]
    print(
        f"RF spike, RMS error over the height of the wave: TorchIO {rms(result - true) / height:.2f}, "
        f"{100 * float((result < 0).float().mean()):.0f} % negative; ours {rms(own - own_true) / height:.0e}, none"
    )


def wave(shape: Sequence[int], k: Sequence[int], amplitude: float, phase: float, origin: int) -> Tensor:
    """A exp(i psi) / sqrt(N) exp(2 pi i k . (r - origin) / N)."""
    turns = torch.zeros(tuple(shape), dtype=torch.float64)
    for axis, (number, n) in enumerate(zip(k, shape, strict=True)):
        along = int(number) * (torch.arange(n, dtype=torch.float64) - origin) / n
        turns = turns + along.reshape([-1 if axis == a else 1 for a in range(len(shape))])
    return amplitude / math.sqrt(math.prod(shape)) * torch.exp(1j * (2 * math.pi * turns + phase))


def rms(values: Tensor) -> float:
    return float(values.abs().double().square().mean().sqrt())


def noise_errors() -> None:
    """Mean of the background, which is Rician: sqrt(pi / 2) = 1.2533 sigma."""
    empty = torch.zeros(1, 64, 64, 64)
    theirs = torchio.RandomNoise(mean=0, std=(1, 1))(empty)
    own = ours(KSpaceNoise(sigma=1), empty.to(torch.complex64))
    import monai.transforms as monai

    text = f"TorchIO RandomNoise {float(theirs.mean()):+.3f}, "
    text += f"MONAI {float(monai.RandRicianNoise(prob=1, std=1, sample_std=False)(empty).mean()):.3f}, "
    print(f"noise, mean of the background over sigma (1.253 for a magnitude): {text}ours {float(own.mean()):.3f}")


def resolution_errors() -> None:
    """A wave beyond the new Nyquist frequency must go; where it is folded it comes back at another."""
    n, f = 120, 42
    line = torch.cos(2 * math.pi * f * torch.arange(n) / n + 0.4)
    image = line[:, None, None].expand(n, 8, 8).contiguous()
    torch.manual_seed(0)
    theirs = torchio.RandomAnisotropy(axes=(0,), downsampling=(3, 3))(image[None])[0]
    along_x = image.permute(2, 1, 0).to(torch.complex64)[None]
    own = ours(LowPass(factor=3, axes=(-1,)), along_x)[0].permute(2, 1, 0)
    shares = [float(spectrum(each)[1:].max() / spectrum(image).max()) for each in (theirs, own)]
    print(
        "low-pass, amplitude left of a wave beyond the new Nyquist frequency, folded to another: "
        f"TorchIO RandomAnisotropy {100 * shares[0]:.0f} %, ours {100 * shares[1]:.1e} %"
    )


def spectrum(image: Tensor) -> Tensor:
    """Amplitudes along the first axis."""
    return torch.fft.rfft(image.double(), dim=0).abs()[:, 4, 4]


def rotation_errors() -> None:
    """How far a rotation of 5 degrees moves the centre of the image."""
    n = 65
    axis = torch.arange(n) - n // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    blob = torch.exp(-(x**2 + y**2 + z**2) / 50.0)
    image = torchio.ScalarImage(tensor=blob[None]).as_sitk()
    turn = TorchIOMotion(np.array([[0, 0, 5.0]]), np.zeros((1, 3)), np.array([0.5]), "linear")
    transforms = turn.get_rigid_transforms(turn.degrees, turn.translation, image)
    moved = torchio.ScalarImage.from_sitk(turn.resample_images(image, transforms, "linear")[1]).data[0]
    weight = moved / moved.sum()
    off = [float((weight * each).sum()) for each in (z, y, x)]
    print(
        f"rotation by 5 degrees, {n}^3 voxels, default affine: the centre of the image moves by "
        f"{math.hypot(*off):.1f} voxels in TorchIO; 0 in ours, which turns about voxel N // 2"
    )


def flat_motion_errors() -> None:
    """In 2D TorchIO takes all of k-space from one pose: the image is moved, and shows no artefact."""
    flat = head(64)[32]
    motion = TorchIOMotion(np.zeros((2, 3)), np.array([[3.0, 0, 0], [5.0, 0, 0]]), np.array([0.3, 0.6]), "linear")
    theirs = motion(flat[None, :, :, None])[0, :, :, 0]
    off = min(rms(theirs - torch.roll(flat, n, 0)) / rms(flat) for n in range(-5, 6))
    print(f"motion with two shifts in 2D: TorchIO's result is the image shifted whole, to {off:.1e} (RMS)")


def monai_errors(image: Tensor) -> None:
    import monai.transforms as monai

    off = rms(monai.GibbsNoise(0.0)(image[None])[0] - image) / rms(image)
    own = rms(ours(Gibbs(kept=1, support="ellipse"), image.to(torch.complex64)[None])[0] - image) / rms(image)
    print(f"Gibbs at no strength, relative RMS change: MONAI alpha = 0 {off:.1e}, ours kept = 1 {own:.1e}")
    fields = []
    for seed in range(20):
        field = monai.RandBiasField(prob=1)
        field.set_random_state(seed)
        fields.append(float(torch.as_tensor(field(torch.ones(1, 24, 24, 24))).double().log().mean().exp()))
    print(
        f"bias field, geometric mean of the field over 20 draws: MONAI {min(fields):.2f} to {max(fields):.2f}, ours 1"
    )


class Noisy(torch.utils.data.Dataset[Tensor]):
    """Zeros with the noise of a transform."""

    def __init__(self, transform: Callable[[Tensor], Tensor]) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return torch.as_tensor(self.transform(torch.zeros(1, 8, 8, 8)))


class Zeros(Noisy):
    def __init__(self) -> None: ...

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(1, 8, 8, 8, dtype=torch.complex64)


def worker_errors() -> None:
    """The same four items by one worker and by two, from the same seed."""
    from trainers.augment import CorruptedDataset

    opponents: dict[str, Any] = {"TorchIO RandomNoise": Noisy(torchio.RandomNoise())}
    import monai.transforms as monai

    opponents["MONAI RandRicianNoise"] = Noisy(monai.RandRicianNoise(prob=1))
    opponents["ours"] = CorruptedDataset(Zeros(), [KSpaceNoise(sigma=1)], seed=1)
    for name, dataset in opponents.items():
        runs = []
        for workers in (1, 2):
            torch.manual_seed(0)
            loader = torch.utils.data.DataLoader(
                dataset, batch_size=None, num_workers=workers, multiprocessing_context="fork"
            )
            runs.append([item[0] if isinstance(item, list | tuple) else item for item in loader])
        same = sum(torch.equal(one, two) for one, two in zip(*runs, strict=True))
        repeated = len(runs[1]) - len({item.numpy().tobytes() for item in runs[1]})
        print(f"{name}: {same} of 4 items alike with one worker and with two; repeated among two workers: {repeated}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    repeats = 4 if parser.parse_args().quick else 15
    torch.set_num_threads(1)
    image = head(SIZE).float()
    print(f"{SIZE}^3, CPU ms on one thread, best of {repeats}; magnitude and draw included\n")
    print(f"{'what':44s} {'theirs':>9s} {'ours':>9s} {'ratio':>9s} {'required':>12s} {'met':>5s}")
    bench_opponents(image, repeats)
    bench_chain(image, repeats)
    bench_alone(image, max(repeats // 3, 2))
    print("\nRight or wrong, against the physics written out:\n")
    spike_errors(image)
    noise_errors()
    resolution_errors()
    rotation_errors()
    flat_motion_errors()
    monai_errors(image)
    worker_errors()


if __name__ == "__main__":
    main()
