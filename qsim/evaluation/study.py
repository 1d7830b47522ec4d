"""The Monte Carlo study of noise: the same noisy images for every method, around truths that are known exactly.

One block is one draw of the truth at one SNR. A block is a pure function of (truth, methods, design, SNR): neither the
order of the blocks nor the number of workers changes a number, so a study may stop after any block and go on later.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from qsim.distributions import Streams
from qsim.estimators.base import Estimate, Estimator, Status
from qsim.estimators.reference import population_constant, tissue_prior_mean, true_tissue_mean
from qsim.evaluation.metrics import VoxelMoments
from qsim.information import crb
from qsim.kspace.noise import Noise, coils_of, sigma_of
from qsim.parameters import Parameter
from qsim.signals.base import SignalModel, SpatialModel

# voxels whose majority tissue holds less than this are `mixed`: they have no single true value
PURE = 0.9
BOUNDS = ("free", "shared", "known")


@dataclass(frozen=True, slots=True)
class Case:
    """The truth of one draw.

    Attributes:
        draw: its number.
        signal: noise-free images [units of A].
        kappa: true maps of the majority tissue, 0 in the background [SI].
        labels: 1 + index in `tissues`; 0 background.
        purity: share of the majority tissue [1].
        tissues: names of the tissues.
    """

    draw: int
    signal: Float[Tensor, "n *space"]
    kappa: Float[Tensor, "q *space"]
    labels: UInt8[Tensor, "*space"]
    purity: Float[Tensor, "*space"]
    tissues: tuple[str, ...]

    @property
    def mask(self) -> Bool[Tensor, "*space"]:
        """Voxels of the study: those with a tissue."""
        return self.labels > 0


@dataclass(frozen=True, slots=True)
class Design:
    """What all blocks share.

    Attributes:
        model: the signal model, whose rows name the parameters.
        noise: kind of the noise; its distribution of sigma is not used.
        seed: seed of the noise.
        repeats: realisations of the noise per truth and SNR.
        shared: parameters that are one number per image (B): what the shared and the known bound are about.
        nuisance: rows that are not estimated (fields, rows that are no target): every bound takes them as known, which
            flatters the bound, never a method.
        told: rows whose true values a method is given, by its name.
        keep_maps: draws whose first estimate is kept as a picture.
        clock: what times are taken with; CPU time of the calling thread unless an estimator runs elsewhere [s].
    """

    model: SignalModel
    noise: Noise
    seed: int
    repeats: int
    shared: tuple[str, ...] = ()
    nuisance: tuple[str, ...] = ()
    told: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    keep_maps: tuple[int, ...] = (0,)
    clock: Callable[[], float] = time.thread_time


@dataclass(frozen=True, slots=True)
class MethodResult:
    """What one method made of one block; rows of the model that it does not estimate are NaN with n = 0.

    Attributes:
        bias, cv, rmse: per voxel [%].
        mean: of the estimates over repeats [SI].
        noise_free: relative error of the estimate from the images without noise: what partial volume, bounds and the
            method itself do to it, whatever the noise [%].
        n: repeats with a finite estimate.
        status: repeats with each `Status`; without a finite estimate of every row of the method: not computed.
        cpu_seconds: per image, on one thread.
        first: map of the first repeat, NaN outside the mask [SI]; empty if it was not kept.
    """

    bias: Float[np.ndarray, "q v"]
    cv: Float[np.ndarray, "q v"]
    rmse: Float[np.ndarray, "q v"]
    mean: Float[np.ndarray, "q v"]
    noise_free: Float[np.ndarray, "q v"]
    n: Int[np.ndarray, "q v"]
    status: Int[np.ndarray, "4 v"]
    cpu_seconds: float
    first: Float[np.ndarray, "..."]


@dataclass(frozen=True, slots=True)
class Block:
    """One draw at one SNR.

    Attributes:
        draw, snr, sigma, repeats: which, and how often [1, 1, units of A, 1].
        kappa: true values of the masked voxels [SI].
        labels, purity: of the masked voxels.
        mask: where those voxels are.
        tissues: names of the tissues; label k is tissue k - 1.
        bounds: Cramér-Rao bound at the truth, relative to it, by name of `BOUNDS` [%]. `shared`: over all masked
            voxels of this image.
        methods: results by name.
    """

    draw: int
    snr: float
    sigma: float
    repeats: int
    kappa: Float[np.ndarray, "q v"]
    labels: UInt8[np.ndarray, " v"]
    purity: Float[np.ndarray, " v"]
    mask: Bool[np.ndarray, "*space"]
    tissues: tuple[str, ...]
    bounds: Mapping[str, Float[np.ndarray, "q v"]]
    methods: Mapping[str, MethodResult]

    def regions(self) -> dict[str, Bool[np.ndarray, " v"]]:
        """Voxels of each tissue (pure ones), of all tissues together (`pure`), and the `mixed` ones apart."""
        pure = self.purity >= PURE
        regions = {name: pure & (self.labels == k + 1) for k, name in enumerate(self.tissues)}
        return {**regions, "pure": pure, "mixed": ~pure}


def noisy_images(
    signal: Float[Tensor, "n *space"], noise: Noise, snr: float, seed: int, draw: int, repeat: int
) -> Float[Tensor, "n *space"]:
    """One realisation: a stream of its own for each (draw, SNR, repeat), the same for every method.

        sigma = 0.65 / SNR

    Args:
        signal: noise-free images [units of A].
        snr: signal of white matter over sigma [1].
    """
    generator = Streams(seed, draw).torch_generator(f"study noise, snr {float(snr)!r}, repeat {repeat}")
    normals = [torch.empty(signal.shape).normal_(generator=generator) for _ in range(noise.channels)]
    sigma = torch.full((1,) * signal.ndim, sigma_of(snr))
    return noise.add(signal.float(), sigma, normals)


@dataclass(frozen=True, slots=True)
class Painted:
    """An opponent that looks at no image: it returns one fixed map.

    Attributes:
        name: as in tables.
        parameters: rows of the map.
        kappa: the map [SI].
    """

    name: str
    parameters: tuple[Parameter, ...]
    kappa: Float[Tensor, "q *space"]

    def __call__(
        self,
        images: Float[Tensor, "n *space"],
        sigma: float | Tensor | None = None,
        mask: Bool[Tensor, "*space"] | None = None,
        known: Mapping[str, Tensor] | None = None,
    ) -> Estimate:
        """The map, whatever the images."""
        del images, sigma, known
        inside = torch.ones_like(self.kappa[0], dtype=torch.bool) if mask is None else mask
        status = torch.where(inside, int(Status.OK), int(Status.NOT_COMPUTED)).to(torch.uint8)
        return Estimate(kappa=torch.where(inside, self.kappa, torch.nan), status=status)


def painters(
    case: Case, model: SignalModel, prior: Float[Tensor, "t q"], weights: Float[Tensor, " t"]
) -> tuple[Painted, ...]:
    """Opponents that paint means: population-constant, tissue-prior-mean, true-tissue-mean.

    Args:
        case: the truth of one draw; the second knows its labels, the third its maps.
        prior: mean of each parameter in each tissue, by the table the truth is drawn from [SI].
        weights: share of each tissue in the population [1].
    """
    maps = {
        "population-constant": population_constant(prior, weights, case.labels),
        "tissue-prior-mean": tissue_prior_mean(prior, case.labels),
        "true-tissue-mean": true_tissue_mean(case.kappa, case.labels),
    }
    return tuple(Painted(name, model.parameters, kappa.float()) for name, kappa in maps.items())


PAINTERS = ("population-constant", "tissue-prior-mean", "true-tissue-mean")


def relative_bounds(case: Case, design: Design, snr: float) -> dict[str, Float[np.ndarray, "q v"]]:
    """Cramér-Rao bound of each masked voxel at its truth, in percent of it.

    `free`: every row free in every voxel. `shared`: the rows of `design.shared` are one number over all masked voxels.
    `known`: those rows are known. Without such rows only `free` is there. `design.nuisance` is known in all of them.

    Rician and non-central chi noise have bounds of their own.

    Assumes: in a mixed voxel the kappa of its majority tissue. Where the readout mixes voxels, the
    bound is that of the same readout without the mixing.
    """
    kappa, sigma = case.kappa[:, case.mask].double(), sigma_of(snr)
    model = design.model.pointwise if isinstance(design.model, SpatialModel) else design.model
    given = design.nuisance
    shared = tuple(name for name in design.shared if name not in given)
    coils = coils_of(design.noise)
    bounds = {"free": crb(model, kappa, sigma, known=given, coils=coils)}
    if shared:
        bounds["shared"] = crb(model, kappa, sigma, shared=shared, known=given, coils=coils)
        bounds["known"] = crb(model, kappa, sigma, known=(*shared, *given), coils=coils)
    return {name: bound.cv.numpy() for name, bound in bounds.items()}


def run_block(case: Case, methods: Sequence[Estimator], design: Design, snr: float) -> Block:
    """Estimate `design.repeats` noisy versions of one truth with every method.

    Args:
        case: the truth.
        methods: estimators with different names.
        snr: signal of white matter over sigma [1].
    """
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise ValueError(f"methods: a name occurs twice in {', '.join(names)}")
    mask, sigma = case.mask, sigma_of(snr)
    truth = case.kappa[:, mask].numpy()
    n_voxels = truth.shape[1]
    moments = {name: VoxelMoments(truth) for name in names}
    status = {name: np.zeros((len(Status), n_voxels), dtype=np.int64) for name in names}
    seconds = dict.fromkeys(names, 0.0)
    first: dict[str, Float[np.ndarray, "..."]] = dict.fromkeys(names, np.empty(0, dtype=np.float32))

    known = {name: told(case, design.model, design.told.get(name, ())) for name in names}
    for repeat in range(design.repeats):
        images = noisy_images(case.signal, design.noise, snr, design.seed, case.draw, repeat)
        for method in methods:
            # a copy: a method that works in place must not change what the next one sees
            copy = images.clone()
            start = design.clock()
            estimate = method(copy, sigma=sigma, mask=mask, known=known[method.name])
            kappa = estimate.kappa.detach().cpu()
            seconds[method.name] += design.clock() - start
            rows = rows_by_name(method, kappa, design.model)
            moments[method.name].add(rows[:, mask].numpy())
            state = estimate.status.cpu()[mask].numpy()
            # a method that calls a voxel fine and returns no number for it has failed there
            lost = ~np.isfinite(kappa[:, mask].numpy()).all(0)
            state = np.where(lost & (state != int(Status.NOT_CONVERGED)), int(Status.NOT_COMPUTED), state)
            status[method.name] += state[None] == np.arange(len(Status))[:, None]
            if repeat == 0 and case.draw in design.keep_maps:
                first[method.name] = torch.where(mask, rows, torch.nan).float().numpy()

    clean = design.noise.add(
        case.signal.float(),
        torch.ones((1,) * case.signal.ndim),
        # a tensor for each channel: the noise writes into them
        [torch.zeros_like(case.signal, dtype=torch.float32) for _ in range(design.noise.channels)],
    )
    noise_free = {}
    for method in methods:
        estimate = method(clean.clone(), sigma=sigma, mask=mask, known=known[method.name])
        rows = rows_by_name(method, estimate.kappa.detach().cpu(), design.model)
        noise_free[method.name] = _relative_error(rows[:, mask].numpy(), truth)

    results = {
        name: MethodResult(
            bias=moments[name].bias.astype(np.float32),
            cv=moments[name].cv.astype(np.float32),
            rmse=moments[name].rmse.astype(np.float32),
            mean=moments[name].mean.astype(np.float32),
            noise_free=noise_free[name],
            n=moments[name].n.astype(np.int32),
            status=status[name].astype(np.int32),
            cpu_seconds=seconds[name] / design.repeats,
            first=first[name],
        )
        for name in names
    }
    return Block(
        draw=case.draw,
        snr=snr,
        sigma=sigma,
        repeats=design.repeats,
        kappa=truth.astype(np.float64),
        labels=case.labels[mask].numpy(),
        purity=case.purity[mask].numpy().astype(np.float32),
        mask=mask.numpy(),
        tissues=case.tissues,
        bounds={name: bound.astype(np.float32) for name, bound in relative_bounds(case, design, snr).items()},
        methods=results,
    )


def told(case: Case, model: SignalModel, rows: Sequence[str]) -> dict[str, Tensor] | None:
    """True values of some rows, as `known` of an estimator: a map, or one number where the whole mask shares it."""
    if not rows:
        return None
    found = {}
    for parameter, row in zip(model.parameters, case.kappa, strict=True):
        if parameter.name in rows:
            inside = row[case.mask]
            one = inside.numel() > 0 and bool((inside == inside[0]).all())
            found[parameter.name] = inside[0] if one else row
    return found


def _relative_error(estimate: Float[np.ndarray, "q v"], truth: Float[np.ndarray, "q v"]) -> Float[np.ndarray, "q v"]:
    """100 (est - truth) / truth [%], NaN where the truth is 0."""
    error = np.divide(estimate - truth, truth, out=np.full(truth.shape, np.nan, dtype=truth.dtype), where=truth != 0)
    return (100 * error).astype(np.float32)


def rows_by_name(method: Estimator, kappa: Float[Tensor, "k *space"], model: SignalModel) -> Float[Tensor, "q *space"]:
    """Rows of an estimate in the order of the model; a row that the method does not estimate is NaN."""
    names = [parameter.name for parameter in method.parameters]
    blank = torch.full_like(kappa[0], torch.nan)
    return torch.stack([kappa[names.index(p.name)] if p.name in names else blank for p in model.parameters])


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """One thread per torch operation inside, so that times are those of one core and workers do not fight."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
