"""The blocks of a `phantom` study: estimates in every voxel of a region, and the statistics made from them."""

from collections.abc import Mapping
from math import nan
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from qsim.estimators import Estimator
from qsim.evaluation.blocks import Arrays
from qsim.evaluation.studies.phantom_rois import Phantom, RoiStatistics, roi_statistics
from qsim.evaluation.study import Case, Design, noisy_images, relative_bounds, told
from qsim.kspace.noise import sigma_of
from trainers.studies.measured_maps import Mapped, map_volume
from trainers.studies.phantom_parts import object_mask, slice_of, twin_case
from trainers.studies.phantom_plan import PhantomPlan


def compute_block(key: str, plan: PhantomPlan) -> Arrays:
    """The block of that name, wherever this runs: estimates and status of every voxel of a region."""
    if plan.measured is None:
        return _twin_block(plan, *plan.blocks[key])
    repeat, _ = plan.blocks[key]
    measured = plan.measured
    mask = object_mask(measured, plan.spheres)
    arrays: Arrays = {}
    for i, method in enumerate(plan.methods):

        def mapped(where: Bool[Tensor, "z y x"], estimator: Estimator = method.estimator) -> Mapped:
            return map_volume(measured.images[repeat], estimator, where, measured.sigma, measured.known)

        _keep(arrays, plan, i, mapped, mask, first=repeat == 0)
    return arrays


def _twin_block(plan: PhantomPlan, draw: int, snr: float) -> Arrays:
    config = plan.config
    twin = config.data.twin
    assert twin is not None
    case = twin_case(config.data, draw, plan.samples)
    arrays: Arrays = {f"bound/{name}": bound for name, bound in _bounds(plan, case, snr).items()}
    mask, sigma = case.labels > 0, sigma_of(snr)
    known = [told(case, plan.model, plan.told(method)) for method in plan.methods]
    for repeat in range(config.scans_of_twin):
        images = noisy_images(case.signal, twin.noise_model, snr, config.seed, draw, repeat)
        for i, method in enumerate(plan.methods):

            def mapped(
                where: Bool[Tensor, "z y x"], estimator: Estimator = method.estimator, own: Any = known[i]
            ) -> Mapped:
                return map_volume(images, estimator, where, sigma, own)  # noqa: B023  called at once

            _keep(arrays, plan, i, mapped, mask, first=repeat == 0 and draw == 0)
    return arrays


def _keep(
    arrays: Arrays, plan: PhantomPlan, number: int, mapped: Any, mask: Bool[Tensor, "z y x"], *, first: bool
) -> None:
    """Add the estimates of one repeat by one method; of the first the map of a slice, too."""
    inside = plan.spheres.inside
    # a method that knows no neighbours gives the regions the same values without the rest of the object
    where = mask if plan.whole[number] else torch.from_numpy(inside.copy())
    if first:
        where = where.clone()
        where[plan.slice] |= mask[plan.slice]
    found: Mapped = mapped(where)
    row = [p.name for p in plan.methods[number].estimator.parameters].index(plan.parameter)
    values = found.kappa[row].numpy()
    for name, held in (
        ("estimate", values[inside][None].astype(np.float32)),
        ("status", found.status.numpy()[inside][None].astype(np.uint8)),
    ):
        key = f"{number}/{name}"
        arrays[key] = np.concatenate((arrays[key], held)) if key in arrays else held
    if first:
        arrays[f"{number}/picture"] = values[plan.slice].astype(np.float32)


def _bounds(plan: PhantomPlan, case: Case, snr: float) -> Mapping[str, Any]:
    """Bound of the CV in every voxel of a region, at its truth [%]; what is shared is so within a slice."""
    twin, inside = plan.config.data.twin, plan.spheres.inside
    assert twin is not None
    design = Design(
        plan.model, twin.noise_model, plan.config.seed, plan.config.scans_of_twin, plan.shared, plan.nuisance
    )
    row = [p.name for p in plan.model.parameters].index(plan.parameter)
    found: dict[str, list[Any]] = {}
    for z in range(len(inside)):
        one = slice_of(case, z)
        here = inside[z][one.mask.numpy()]
        for name, bound in relative_bounds(one, design, snr).items():
            found.setdefault(name, []).append(bound[row][here])
    return {name: np.concatenate(parts).astype(np.float32) for name, parts in found.items()}


def statistics(plan: PhantomPlan, blocks: list[Arrays]) -> Phantom:
    """Statistics of every region."""
    labels = plan.spheres.labels[plan.spheres.inside]
    config, measured = plan.config, plan.measured
    snrs: tuple[float, ...] = config.snrs if measured is None else (nan,)
    found: dict[tuple[str, int, int], list[RoiStatistics]] = {}
    bounds: dict[tuple[int, int], dict[str, Any]] = {}
    if measured is not None:
        joined = {k: np.concatenate([block[k] for block in blocks]) for k in blocks[0] if not k.endswith("picture")}
        at = {(0, 0): joined}
    else:
        at = {(snrs.index(snr), draw): block for (draw, snr), block in zip(plan.blocks.values(), blocks, strict=True)}
    for (i, draw), arrays in at.items():
        for m, method in enumerate(plan.methods):
            found[method.name, i, draw] = [
                roi_statistics(
                    arrays[f"{m}/estimate"][:, labels == region.label],
                    arrays[f"{m}/status"][:, labels == region.label],
                    region.nominal,
                )
                for region in plan.regions
            ]
        named = {key.removeprefix("bound/"): values for key, values in arrays.items() if key.startswith("bound/")}
        if named:
            bounds[i, draw] = {
                name: np.array([float(np.median(values[labels == region.label])) for region in plan.regions])
                for name, values in named.items()
            }
    return Phantom(
        parameter=plan.parameter,
        regions=plan.regions,
        methods=[method.name for method in plan.methods],
        snrs=snrs,
        sigmas=[sigma_of(snr) for snr in snrs] if measured is None else [measured.sigma or nan],
        repeats=config.scans_of_twin if measured is None else measured.repeats,
        draws=config.draws_of_twin if measured is None else 1,
        found=found,
        bounds=bounds,
        bound_of=plan.bound_of,
    )
