"""Where the repeats of a `test_retest` study come from: a digital twin, or scans; and what the methods make of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8

from generators.sample import scene
from qsim.errors import InputError
from qsim.evaluation.blocks import Arrays
from qsim.evaluation.studies.test_retest_table import EVERYWHERE, Repeats
from qsim.evaluation.study import PURE, Case, Design, noisy_images, relative_bounds, rows_by_name, told
from qsim.kspace.noise import sigma_of
from qsim.signals.base import SignalModel
from trainers.studies.measured import Measured
from trainers.studies.measured_maps import map_repeat
from trainers.studies.methods import Chosen
from trainers.studies.study_plan import Plan


@dataclass(frozen=True, slots=True)
class Object:
    """What is scanned again and again.

    Attributes:
        mask: voxels of the study.
        labels: uint8 number of the tissue of every voxel, 0: none.
        numbers: tissues by name.
        pure: voxels that count as one tissue.
        spacing_mm: voxel size along each axis [mm].
    """

    mask: Bool[np.ndarray, "*space"]
    labels: UInt8[np.ndarray, "*space"]
    numbers: Mapping[str, int]
    pure: Bool[np.ndarray, "*space"]
    spacing_mm: tuple[float, ...]

    def regions(self) -> dict[str, Bool[np.ndarray, " v"]]:
        """Masked voxels of each tissue (pure ones), and all of them."""
        own, pure = self.labels[self.mask], self.pure[self.mask]
        return {EVERYWHERE: np.ones_like(pure), **{name: pure & (own == n) for name, n in self.numbers.items()}}


@dataclass(frozen=True, slots=True)
class TwinSource:
    """Repeats of noise around known truths.

    Attributes:
        plan: anatomy, methods.
        row: of the model that the study is about.
    """

    plan: Plan
    row: int

    @property
    def methods(self) -> tuple[Chosen, ...]:
        return self.plan.methods

    @property
    def files(self) -> Mapping[str, str]:
        """None is read."""
        return {}

    @property
    def keys(self) -> list[str]:
        """Names of the blocks: draw and SNR."""
        return list(self.plan.blocks)

    @property
    def unit(self) -> str:
        return "blocks (draw x SNR)"

    def objects(self) -> tuple[Object, ...]:
        """One for each draw."""
        data = self.plan.config.data
        spacing = scene(data).phantom.spacing_mm
        if len(spacing) > len(data.patch):
            spacing = spacing[: data.slice_axis] + spacing[data.slice_axis + 1 :]
        return tuple(
            Object(
                mask=case.mask.numpy(),
                labels=case.labels.numpy(),
                numbers={name: k + 1 for k, name in enumerate(case.tissues)},
                pure=(case.purity >= PURE).numpy(),
                spacing_mm=tuple(float(h) for h in spacing),
            )
            for case in self.plan.cases
        )

    def compute(self, key: str) -> Arrays:
        """Maps of every method and repeat of a block, and the bounds there."""
        plan, config = self.plan, self.plan.config
        draw, snr = plan.blocks[key]
        case = plan.cases[draw]
        design = Design(
            model=config.data.signal_model,
            noise=config.data.noise_model,
            seed=config.seed,
            repeats=config.repeats,
            shared=plan.shared,
            nuisance=plan.nuisance,
            told=plan.told,
        )
        arrays: Arrays = {f"bound/{name}": cv[self.row] for name, cv in relative_bounds(case, design, snr).items()}
        known = {m.name: told(case, design.model, plan.told[m.name]) for m in plan.methods}
        maps: dict[str, list[Float[np.ndarray, " v"]]] = {m.name: [] for m in plan.methods}
        for repeat in range(config.repeats):
            images = noisy_images(case.signal, design.noise, snr, design.seed, draw, repeat)
            for method in plan.methods:
                # a copy: a method that works in place must not change what the next one sees
                found = method.estimator(images.clone(), sigma=sigma_of(snr), mask=case.mask, known=known[method.name])
                rows = rows_by_name(method.estimator, found.kappa.detach().cpu(), design.model)
                maps[method.name].append(rows[self.row][case.mask].float().numpy())
        return arrays | {f"map/{name}": np.stack(found) for name, found in maps.items()}

    def repeats(self, blocks: Sequence[Arrays]) -> list[Repeats]:
        """The blocks in the order of `keys`, as the table takes them."""
        found = []
        objects = self.objects()
        for (draw, snr), arrays in zip(self.plan.blocks.values(), blocks, strict=True):
            case: Case = self.plan.cases[draw]
            found.append(
                Repeats(
                    draw=draw,
                    snr=snr,
                    sigma=sigma_of(snr),
                    maps={m.name: arrays[f"map/{m.name}"] for m in self.methods},
                    regions=objects[draw].regions(),
                    mask=objects[draw].mask,
                    truth=case.kappa[self.row][case.mask].double().numpy(),
                    bounds={n.removeprefix("bound/"): a for n, a in arrays.items() if n.startswith("bound/")},
                )
            )
        return found


@dataclass(frozen=True, slots=True)
class ScanSource:
    """Scans of one object.

    Attributes:
        measured: the scans.
        labels: of the tissues; None: the config gives none.
        numbers: tissues by name.
        methods: fitted to the unit of the scans.
        parameter: the relaxation time that the study is about.
        notes: a sentence each.
        files: sha256 of all that was read, by path.
    """

    measured: Measured
    labels: UInt8[np.ndarray, "z y x"] | None
    numbers: Mapping[str, int]
    methods: tuple[Chosen, ...]
    parameter: str
    notes: tuple[str, ...]
    files: Mapping[str, str]

    @property
    def keys(self) -> list[str]:
        """Names of the blocks: each scan."""
        return [f"scan{i + 1:02d}" for i in range(self.measured.repeats)]

    @property
    def unit(self) -> str:
        return "scans"

    def objects(self) -> tuple[Object, ...]:
        """The one that was scanned."""
        mask = self.measured.mask.numpy()
        labels = np.zeros(mask.shape, dtype=np.uint8) if self.labels is None else self.labels
        return (Object(mask, labels, self.numbers, np.ones_like(mask), self.measured.spacing_mm),)

    def compute(self, key: str) -> Arrays:
        """Maps of every method of a scan."""
        repeat, mask = self.keys.index(key), self.measured.mask
        arrays: Arrays = {}
        for method in self.methods:
            names = [p.name for p in method.estimator.parameters]
            found = map_repeat(self.measured, repeat, method.estimator).kappa
            arrays[f"map/{method.name}"] = found[names.index(self.parameter)][mask].float().numpy()
        return arrays

    def repeats(self, blocks: Sequence[Arrays]) -> list[Repeats]:
        """The scans, as the table takes them."""
        thing = self.objects()[0]
        return [
            Repeats(
                draw=0,
                snr=nan,
                sigma=nan if self.measured.sigma is None else float(self.measured.sigma),
                maps={m.name: np.stack([arrays[f"map/{m.name}"] for arrays in blocks]) for m in self.methods},
                regions=thing.regions(),
                mask=thing.mask,
                truth=None,
                bounds={},
            )
        ]


def read_labels(
    measured: Measured, path: str, wanted: Mapping[str, Sequence[int]]
) -> tuple[UInt8[np.ndarray, "z y x"], dict[str, int]]:
    """The tissues of the config in a segmentation image: voxels that hold one of a tissue's numbers.

    Raises: InputError, starting with the field, if the image lies elsewhere, or lacks a tissue.
    """
    image: Shaped[np.ndarray, "z y x"] = measured.volume("data.labels", path)
    whole: Int[np.ndarray, "z y x"] = np.rint(image).astype(np.int64)
    if not np.array_equal(whole, image):
        raise InputError(f"data.labels: {path}: holds fractions; wanted a segmentation of whole numbers")
    labels = np.zeros(image.shape, dtype=np.uint8)
    for k, (name, numbers) in enumerate(wanted.items()):
        inside = np.isin(whole, list(numbers))
        if not (inside & measured.mask.numpy()).any():
            there = ", ".join(str(n) for n in np.unique(whole)[:20])
            raise InputError(
                f"data.numbers.{name}: no voxel that can be mapped holds {', '.join(map(str, numbers))}; "
                f"{path} holds {there}"
            )
        labels[inside] = k + 1
    return labels, {name: k + 1 for k, name in enumerate(wanted)}


def row_of(model: SignalModel, parameter: str) -> int:
    """Place of a row among those of the model."""
    return [p.name for p in model.parameters].index(parameter)
