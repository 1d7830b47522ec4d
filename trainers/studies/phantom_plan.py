"""A `phantom` study before anything is computed: scans or twin, regions and methods, read and checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan

from generators.scene import scene
from phantoms.base import VolumePhantom
from qsim.errors import InputError
from qsim.evaluation.blocks import block_key
from qsim.evaluation.studies.phantom_rois import Region
from qsim.parameters import RELAXATION_TIMES
from qsim.signals.base import SignalModel
from trainers.mapping.inputs import VOXELWISE
from trainers.mixture_estimator import MixtureEstimator
from trainers.network_estimator import NetworkEstimator
from trainers.studies.block_runner import Command
from trainers.studies.measured import Measured
from trainers.studies.measured_maps import fit_methods
from trainers.studies.methods import Chosen, MethodEntry, Renamed, choose, pools
from trainers.studies.phantom_config import PhantomConfig
from trainers.studies.phantom_parts import Spheres, read_measured, relaxation_time, twin_spheres
from trainers.studies.study_files import prior_of
from trainers.studies.study_plan import given_rows

# times of a signal model, by its attribute
_TIMES = ("ti", "te_prep", "ts", "te", "tsl")


@dataclass(frozen=True, slots=True, eq=False)
class PhantomPlan:
    """A study, everything read and checked, nothing computed.

    Attributes:
        config: of the study.
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
        files: sha256 of all that was read, by path.
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
    files: Mapping[str, str]

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


def make_phantom_plan(config: PhantomConfig, command: Command = Command()) -> PhantomPlan:  # noqa: B008  frozen
    """Read the scans or the twin, the regions and the networks.

    Raises: InputError naming the field at fault.
    """
    data = config.data
    measured: Measured | None = None
    files: dict[str, str] = {}
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
        methods, said = fit_methods(methods, measured)
        notes += said
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
        files=files,
    )


def _needs_all(config: PhantomConfig, number: int) -> bool:
    """Whether a method looks at other voxels than its own: all but those that are known not to."""
    if number >= len(config.estimators):
        return True
    entry = config.estimators[number]
    return (entry.method if isinstance(entry, MethodEntry) else entry) not in VOXELWISE


def _regions(
    config: PhantomConfig, spheres: Spheres, parameter: str, methods: tuple[Chosen, ...]
) -> tuple[Region, ...]:
    """The regions, and which are covered.

    Raises: InputError if none is.
    """
    ends = (config.covered or {}).get(parameter)
    if config.covered and ends is None:
        raise InputError(f"covered: holds {', '.join(config.covered)}, the study is about {parameter}")
    ends = ends or trained_times(methods) or (0.0, float("inf"))
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


def trained_times(methods: tuple[Chosen, ...]) -> tuple[float, float] | None:
    """Times between which every network was trained: lowest and highest of its series (sabidussi2021, section 5.2).

    A network that was trained on random times as well has all of theirs.
    """
    spans = []
    for method in methods:
        network = method.estimator.estimator if isinstance(method.estimator, Renamed) else method.estimator
        if isinstance(network, NetworkEstimator) and network.trained_on is not None:
            model = network.trained_on.signal_model
            times = next((getattr(model, name) for name in _TIMES if getattr(model, name, None) is not None), None)
            if times is None:
                continue
            seen = [*times]
            if isinstance(network, MixtureEstimator) and network.protocols is not None:
                drawn = network.protocols
                seen = [drawn.first, drawn.last, *(times if drawn.share < 1 else ())]
            spans.append((float(min(seen)), float(max(seen))))
    return (max(low for low, _ in spans), min(high for _, high in spans)) if spans else None
