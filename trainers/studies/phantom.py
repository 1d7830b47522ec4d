"""`qsim study` of kind `phantom`: its config, and how it is run (sabidussi2021, section 5.2)."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial, reduce
from math import nan
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from generators.config import Count, RootConfig, Seed
from generators.scene import scene
from phantoms.base import VolumePhantom
from phantoms.system_phantom import SystemPhantom
from qsim.errors import InputError
from qsim.estimators import Estimator
from qsim.evaluation.blocks import Arrays, block_key
from qsim.evaluation.pages.heat_report import Page
from qsim.evaluation.pages.phantom_page import About, View, lead, methods_text, sections, warnings_of
from qsim.evaluation.studies.phantom_rois import Phantom, Region, RoiStatistics, roi_statistics, rows
from qsim.evaluation.study import Case, Design, noisy_images, relative_bounds, told
from qsim.kspace.noise import sigma_of
from qsim.parameters import RELAXATION_TIMES
from qsim.signals.base import SignalModel
from qsim.tissue_tables import TISSUE_TABLES
from qsim.tissues import TissueSource
from trainers.map_inputs import _VOXELWISE
from trainers.network_estimator import NetworkEstimator
from trainers.studies.block_runner import Command, finish
from trainers.studies.measured import Mapped, Measured, fit_to_scale, map_volume
from trainers.studies.methods import (
    Chosen,
    Entry,
    MethodEntry,
    Renamed,
    check_entries,
    check_shapes,
    choose,
    pools,
)
from trainers.studies.outputs import say
from trainers.studies.phantom_parts import (
    PhantomData,
    Spheres,
    check_data,
    filled_in,
    object_mask,
    read_measured,
    relaxation_time,
    slice_of,
    twin_case,
    twin_spheres,
)
from trainers.studies.study_files import open_files, prior_of, write_files
from trainers.studies.study_plan import Snr, given_rows

# the twin's, where the config does not say
_SNR, _DRAWS, _REPEATS = (30.0,), 1, 4
# times of a signal model, by its attribute
_TIMES = ("ti", "te_prep", "ts", "te", "tsl")


class PhantomConfig(RootConfig):
    """A study on a phantom of known values: bias and repeatability of every region.

    Attributes:
        seed: of the twin's noise.
        data: `{twin: generator config}`, or `{scans: ..., regions: ..., nominal: ...}`.
        estimators: names, `{model: run}` for trained networks, or `{method, name, known, options}`.
        snr: 0.65 / sigma of the twin; [30] if not given.
        draws: of the twin: `repeats` scans each, with noise and fields of their own; 1 if not given.
        repeats: scans of the twin, 4 if not given; of scans their number, which need not be given.
        covered: lowest and highest nominal value of the regions that summaries are of, by parameter [s]; if not given
            the times of the series that all networks were trained on, as in the paper, or every region.
        parameter: the relaxation time; the model's first if not given.
        tissues: table whose distributions methods with a prior are told; only they need it.
    """

    seed: Seed
    kind: Literal["phantom"]
    data: PhantomData
    estimators: Annotated[tuple[Entry, ...], Field(min_length=1)]
    snr: Annotated[tuple[Snr, ...], Field(min_length=1)] | None = None
    draws: Count | None = None
    repeats: Count | None = None
    covered: dict[str, tuple[float, float]] | None = None
    parameter: str | None = None
    tissues: Annotated[reduce(or_, TISSUE_TABLES), Field(discriminator="kind")] | None = None  # type: ignore[valid-type]

    @field_validator("data", mode="before")
    @classmethod
    def _whole_slices(cls, given: Any) -> Any:
        return filled_in(given)

    @field_validator("estimators", mode="before")
    @classmethod
    def _names_or_models(cls, given: Any) -> Any:
        return check_shapes(given)

    @model_validator(mode="after")
    def _fits(self) -> "PhantomConfig":
        check_data(self.data)
        if self.parameter is not None and self.parameter not in RELAXATION_TIMES:
            raise ValueError(
                f"parameter: got {self.parameter}, wanted a relaxation time: {', '.join(RELAXATION_TIMES)}"
            )
        for name, ends in (self.covered or {}).items():
            if name not in RELAXATION_TIMES:
                raise ValueError(f"covered.{name}: is no relaxation time, wanted one of {', '.join(RELAXATION_TIMES)}")
            if not 0 <= ends[0] < ends[1]:
                raise ValueError(f"covered.{name}: got {list(ends)}, wanted [low, high] in seconds")
        if self.data.twin is None:
            for key in ("snr", "draws"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key}: does not go with data.scans, whose noise is what it is; leave it out")
            n = len(self.data.scans.series) if self.data.scans is not None else 0
            if self.repeats is not None and self.repeats != n:
                raise ValueError(f"repeats: got {self.repeats}, data.scans.series holds {n} scans; leave it out")
            return self
        twice = [f"{snr:g}" for i, snr in enumerate(self.snrs) if snr in self.snrs[:i]]
        if twice:
            raise ValueError(f"snr: {', '.join(twice)} is given twice")
        model = self.data.twin.signal_model
        times = [p.name for p in model.parameters if p.name in RELAXATION_TIMES]
        if self.parameter is not None and self.parameter not in times:
            raise ValueError(f"parameter: got {self.parameter}, the signal model has {', '.join(times) or 'none'}")
        check_entries(self.estimators, model, prior_of(self.tissue_source, self.estimators, model))
        return self

    @property
    def tissue_source(self) -> TissueSource | None:
        """Where the prior of methods comes from."""
        return self.tissues

    @property
    def snrs(self) -> tuple[float, ...]:
        """Of the twin."""
        return self.snr or _SNR

    @property
    def scans_of_twin(self) -> int:
        """Repeats of the twin."""
        return self.repeats or _REPEATS

    @property
    def draws_of_twin(self) -> int:
        """Draws of the twin."""
        return self.draws or _DRAWS


@dataclass(frozen=True, slots=True, eq=False)
class PhantomPlan:
    """A study, everything read and checked, nothing computed.

    Attributes:
        config: of the study; `data.files` filled in.
        model: of the series.
        parameter: the relaxation time.
        spheres: regions on the grid of the images.
        regions: in the order of the tables.
        methods: of the config and the command.
        whole: by method: whether it needs every voxel of the object, not those of the regions alone.
        measured: the scans; None: the twin.
        samples: slices of the twin.
        about: what they are, for the page.
        notes: what was taken for granted, a sentence each.
    """

    config: PhantomConfig
    model: SignalModel
    parameter: str
    spheres: Spheres
    regions: tuple[Region, ...]
    methods: tuple[Chosen, ...]
    whole: tuple[bool, ...]
    measured: Measured | None
    samples: tuple[int, ...]
    about: str
    notes: tuple[str, ...]

    @property
    def blocks(self) -> dict[str, tuple[int, float]]:
        """Draw and SNR of each block of a twin, or repeat of scans, by its name."""
        if self.measured is not None:
            return {f"repeat{c:03d}": (c, nan) for c in range(self.measured.repeats)}
        return {
            block_key(draw, snr): (draw, snr) for draw in range(self.config.draws_of_twin) for snr in self.config.snrs
        }

    @property
    def slice(self) -> int:
        """The slice that shows most of the regions."""
        return int(self.spheres.inside.sum((1, 2)).argmax())

    @property
    def shared(self) -> tuple[str, ...]:
        """Rows of the twin that are one number per image and changed by no field."""
        data = self.config.data.twin
        if data is None:
            return ()
        changed = {row for field in data.field_list for row in field.changes}
        once = set(data.table.per_sample) - changed
        return tuple(p.name for p in self.model.parameters if p.name in once)

    @property
    def nuisance(self) -> tuple[str, ...]:
        """Rows that every fit is given."""
        return () if self.config.data.twin is None else given_rows(self.config.data.twin)

    def told(self, method: Chosen) -> tuple[str, ...]:
        """Rows whose true values a method is given."""
        return tuple(dict.fromkeys((*method.told, *(() if method.weights else self.nuisance))))

    @property
    def bound_of(self) -> dict[str, str]:
        """The bound that each method is held against: what it knows, what it pools, and else every row free."""
        found = {}
        for method in self.methods:
            found[method.name] = "free"
            if self.shared and set(self.shared) <= set(self.told(method)):
                found[method.name] = "known"
            elif self.shared and (method.weights or set(pools(method.estimator)) & set(self.shared)):
                found[method.name] = "shared"
        return found


def run_phantom(config: PhantomConfig, out: Path, command: Command = Command()) -> Path:  # noqa: B008  frozen
    """Run the study, or finish one of the same config; returns the path of the report.

    Args:
        config: the study.
        out: folder of results.csv, report.html, provenance.json and the blocks.
        command: where it runs, and the user's own methods.
    Raises: InputError naming the field at fault, or the folder if it holds another study.
    """
    plan = make_phantom_plan(config, command)
    digest = open_files(plan.config, plan.methods, out)
    began = time.monotonic()
    blocks = finish(out / "blocks", digest, list(plan.blocks), partial(_compute, plan=plan), "blocks", command)
    found = _found(plan, blocks)
    view = View(
        labels=_upright(plan, plan.spheres.labels[plan.slice]),
        names={region.label: region.name for region in plan.regions},
        maps={m.name: _upright(plan, blocks[0][f"{i}/picture"]) for i, m in enumerate(plan.methods)},
    )
    measured = plan.measured
    about = About(
        twin=measured is None,
        what=plan.about,
        covered=_covered_text(plan),
        sigma_source=measured.sigma_source if measured is not None else "",
        networks=tuple(m.name for m in plan.methods if m.weights),
        told={m.name: plan.told(m) for m in plan.methods if plan.told(m)},
        notes=plan.notes,
    )
    page = Page(
        title="Phantom of known relaxation times",
        meta=_meta(plan, found),
        lead=lead(found, about),
        sections=sections(found, view, about),
        methods=methods_text(about),
        versions={},
        files="results.csv (every figure of this page) beside it",
        config="",
        digest=digest,
        warnings=warnings_of(found, about),
    )
    path = write_files(plan.config, plan.methods, out, rows(found), None, page)
    say(f"study: {len(blocks)} blocks in {time.monotonic() - began:.0f} s; open {path}")
    return path


def make_phantom_plan(config: PhantomConfig, command: Command = Command()) -> PhantomPlan:  # noqa: B008  frozen
    """Read the scans or the twin, the regions and the networks.

    Raises: InputError naming the field at fault.
    """
    data = config.data
    measured: Measured | None = None
    samples: tuple[int, ...] = ()
    if data.twin is not None:
        model: SignalModel = data.twin.signal_model
        parameter = config.parameter or relaxation_time([p.name for p in model.parameters])
        spheres, samples = twin_spheres(data, parameter)
        phantom = scene(data.twin).phantom
        about = phantom.description if isinstance(phantom, VolumePhantom) else type(phantom).__name__
        given = given_rows(data.twin)
    else:
        measured, spheres, parameter, files = read_measured(data, config.parameter)
        config = config.model_copy(update={"data": data.model_copy(update={"files": files})})
        model, given = measured.model, tuple(measured.known)
        about = f"{measured.repeats} scan{'s' if measured.repeats > 1 else ''}: {', '.join(measured.names)}"
        times = [p.name for p in model.parameters if p.name in RELAXATION_TIMES]
        if parameter not in times:
            raise InputError(f"parameter: got {parameter}, the signal model of the scans has {', '.join(times)}")
    try:
        prior = prior_of(config.tissue_source, config.estimators, model)
    except ValueError as error:
        raise InputError(str(error)) from None
    try:
        methods = choose(
            config.estimators,
            command.estimators,
            model,
            data=data.twin,
            prior=prior,
            device=command.device,
            given=given,
        )
    except InputError as error:
        # of a study on anatomy, whose `data` is the generator config itself
        text = str(error)
        raise InputError(f"data.twin.{text.removeprefix('data.')}" if text.startswith("data.") else text) from None
    notes = measured.notes if measured is not None else ()
    for i, method in enumerate(methods):
        if parameter not in [p.name for p in method.estimator.parameters]:
            raise InputError(f"estimators[{i}]: {method.name} does not estimate {parameter}")
        if measured is not None and method.told:
            raise InputError(f"estimators[{i}].known: the true {method.told[0]} of scans is not known; leave it out")
    if measured is not None:
        fitted = [fit_to_scale(method.estimator, measured) for method in methods]
        notes += tuple(note for _, note in fitted if note)
        methods = tuple(
            Chosen(estimator, m.told, m.weights, m.held_out, m.source)
            for m, (estimator, _) in zip(methods, fitted, strict=True)
        )
    regions = _regions(config, spheres, parameter, methods)
    return PhantomPlan(
        config=config,
        model=model,
        parameter=parameter,
        spheres=spheres,
        regions=regions,
        methods=methods,
        whole=tuple(_needs_all(config, i) for i in range(len(methods))),
        measured=measured,
        samples=samples,
        about=about,
        notes=tuple(notes),
    )


def _needs_all(config: PhantomConfig, number: int) -> bool:
    """Whether a method looks at other voxels than its own: all but those that are known not to."""
    if number >= len(config.estimators):
        return True
    entry = config.estimators[number]
    return (entry.method if isinstance(entry, MethodEntry) else entry) not in _VOXELWISE


def _regions(
    config: PhantomConfig, spheres: Spheres, parameter: str, methods: tuple[Chosen, ...]
) -> tuple[Region, ...]:
    """The regions, and which are covered.

    Raises: InputError if none is.
    """
    ends = (config.covered or {}).get(parameter)
    if config.covered and ends is None:
        raise InputError(f"covered: holds {', '.join(config.covered)}, the study is about {parameter}")
    ends = ends or _trained(methods) or (0.0, float("inf"))
    found = tuple(
        Region(label, spheres.names[label], value, ends[0] <= value <= ends[1])
        for label, value in spheres.nominal.items()
    )
    if not any(region.covered for region in found):
        low, high = min(spheres.nominal.values()), max(spheres.nominal.values())
        raise InputError(
            f"covered: no region has {parameter} from {ends[0]:g} to {ends[1]:g} s; they have {low:g} to {high:g} s"
        )
    return found


def _trained(methods: tuple[Chosen, ...]) -> tuple[float, float] | None:
    """Times between which every network was trained: lowest and highest of its series (sabidussi2021, section 5.2)."""
    spans = []
    for method in methods:
        network = method.estimator.estimator if isinstance(method.estimator, Renamed) else method.estimator
        if isinstance(network, NetworkEstimator) and network.trained_on is not None:
            model = network.trained_on.signal_model
            times = next((getattr(model, name) for name in _TIMES if getattr(model, name, None) is not None), None)
            if times is not None:
                spans.append((float(min(times)), float(max(times))))
    return (max(low for low, _ in spans), min(high for _, high in spans)) if spans else None


def _compute(key: str, plan: PhantomPlan) -> Arrays:
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


def _found(plan: PhantomPlan, blocks: list[Arrays]) -> Phantom:
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


def _upright(plan: PhantomPlan, values: Any) -> Any:
    """A slice as the page draws it, its last row on top: the twin's axes are u, v, of scans y, x."""
    return values.T if plan.measured is None else values


def _covered_text(plan: PhantomPlan) -> str:
    if plan.config.covered:
        low, high = plan.config.covered[plan.parameter]
        return f"{plan.parameter} from {1e3 * low:g} to {1e3 * high:g} ms, as the config says"
    trained = _trained(plan.methods)
    if trained:
        return (
            f"{plan.parameter} from {1e3 * trained[0]:g} to {1e3 * trained[1]:g} ms, the times that every network was "
            "trained with"
        )
    return "every region"


def _meta(plan: PhantomPlan, found: Phantom) -> str:
    if plan.measured is not None:
        return plan.about
    spec = plan.config.data.twin.phantom_spec if plan.config.data.twin is not None else None
    array = f"{spec.array.upper()} array" if isinstance(spec, SystemPhantom) else ""
    draws = f"{found.draws} draws × " if found.draws > 1 else ""
    return (
        f"digital twin of the ISMRM/NIST system phantom, {array} · {draws}{found.repeats} repeated scans at SNR "
        f"{', '.join(f'{snr:g}' for snr in found.snrs)} · seed {plan.config.seed}"
    )
