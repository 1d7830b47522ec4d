"""What a config may say of physics as an augmentation: sequences, what is drawn of the tissue, fields, artefacts."""

from itertools import pairwise
from math import pi
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from generators.config import Count, RootConfig, Seed, _union
from phantoms.fields.chemical_shift import ChemicalShift
from qsim.distributions import Streams
from qsim.kspace import ARTEFACTS, BiasField, Ghosting, Gibbs, LowPass, Motion
from qsim.kspace.artefacts.base import Artefact
from qsim.kspace.chain import draw_chain, with_spacing
from qsim.kspace.motion.trajectory import Breathing
from qsim.kspace.order import Acquisition
from qsim.signals import (
    MODELS,
    AnyModel,
    BalancedSSFP,
    Bloch,
    Inversion,
    SaturationRecovery,
    SpinLockPreparation,
    SpoiledGradientEcho,
    T2Preparation,
)

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Range = tuple[Positive, Positive]

# rows that a series' own maps and what is drawn can fill
ROWS = ("A", "B", "T1", "T2", "T1RHO", "DELTA_B0", "REL_B1")
# extent of the image on which the artefacts of a config are tried [voxels]
_TRIED = 32


class Knot(RootConfig):
    """What a relaxation time, or the factor of A, may be where T1 has a value.

    Attributes:
        t1: as the series reads it [s].
        low, high: it is drawn log-uniformly between them, for each copy [s; 1].
    """

    t1: Positive
    low: Positive
    high: Positive

    @model_validator(mode="after")
    def _ordered(self) -> "Knot":
        if self.low > self.high:
            raise ValueError(f"low: {self.low:g} is above high, {self.high:g}; give the smaller first")
        return self


Knots = Annotated[tuple[Knot, ...], Field(min_length=1)]


def _knots(*rows: tuple[float, float, float]) -> tuple[Knot, ...]:
    return tuple(Knot(t1=t1, low=low, high=high) for t1, low, high in rows)


class Relations(RootConfig):
    """T2, T1RHO and the factor of A as functions of T1, drawn anew for every copy.

    A of a series holds its readout: of a MOLLI with balanced SSFP, A over the true one is about .20 in myocardium, .26
    in blood and .34 in fat. The default ranges of the factor lie about what undoes that.

    Between two knots the logarithm is a straight line in log T1, beyond the ends it is constant. T2 <= T1RHO <= T1 is
    kept: what was drawn otherwise is moved to the nearer end. The default T1 of the knots are fat, liver, muscle and
    myocardium, and blood as a MOLLI at 1.5 T reads them (at 3 T all but fat are about 1.4 times as long); the ranges
    go well beyond the tables of the project, `qsim.organ_tissues.heart` and `.liver` with their sources (T2: Stanisz
    2005, de Bazelaire 2004; of venous blood and most T1RHO: to be sourced), over 1.5 and 3 T.

    Attributes:
        t2: knots of T2, ascending in T1.
        t1rho: knots of T1RHO, ascending in T1.
        a: knots of the factor of A, ascending in T1.
    """

    # fat .060 to .068, marrow .049; liver .042 to .046; muscle .044 to .050, myocardium .040 to .047, scar .058 to
    # .066; blood .275 to .290 arterial, .120 to .180 venous [s]
    t2: Knots = _knots((0.35, 0.04, 0.1), (0.55, 0.03, 0.065), (0.95, 0.03, 0.07), (1.5, 0.08, 0.35))
    # fat .073, marrow .060; liver .045, fibrosis .053; muscle .055, myocardium .043 to .047, scar .078; blood .290 [s]
    t1rho: Knots = _knots((0.35, 0.045, 0.12), (0.55, 0.03, 0.08), (0.95, 0.035, 0.09), (1.5, 0.09, 0.4))

    a: Knots = _knots((0.35, 0.25, 1.2), (0.55, 0.6, 1.4), (0.95, 0.7, 1.5), (1.5, 0.5, 1.2))

    @field_validator("t2", "t1rho", "a")
    @classmethod
    def _ascending(cls, knots: tuple[Knot, ...]) -> tuple[Knot, ...]:
        at = [knot.t1 for knot in knots]
        if any(after <= before for before, after in pairwise(at)):
            raise ValueError(f"T1 of the knots must ascend, got {', '.join(f'{t1:g}' for t1 in at)}")
        return knots


class Fat(RootConfig):
    """Voxels of short T1 resonate beside water, by the chemical shift of `phantoms.fields.ChemicalShift`.

    Attributes:
        below: voxels whose T1 (median of 3 x 3) is shorter are fat [s].
        ppm: shift against water; the main peak of fat [1e-6].
        field_strength: of the scanner that is simulated; 3 T: -434 Hz [T].
    """

    below: Positive = 0.45
    ppm: float = -3.4
    field_strength: Positive = 3.0

    @property
    def shift(self) -> float:
        """What is added to DELTA_B0 [Hz]."""
        return ChemicalShift(ppm=self.ppm, field_strength=self.field_strength).shift

    @model_validator(mode="after")
    def _fits(self) -> "Fat":
        # its own checks, which name the field
        ChemicalShift(ppm=self.ppm, field_strength=self.field_strength)
        return self


class SpatialFields(RootConfig):
    """Smooth random fields over the slice (`phantoms.fields.smooth.Waves`), each number uniform between two.

        DELTA_B0 = mean + sd g(r),   REL_B1 = median exp(sd h(r))

    The defaults span the project's regions: of B0 `DEFAULT_B0` of heart and liver at 1.5 and 3 T (SD 15.5 to 59.5 Hz,
    mean 0 to 66 Hz), of B1 `DEFAULT_B1` of the same (median .80 to .96, SD .06 to .2), with their sources there.

    Attributes:
        b0_mean: [Hz].
        b0_sd: [Hz].
        b0_length_mm: length l of the Gaussian covariance exp(-d^2 / 2 l^2) [mm].
        b1_median: [1].
        b1_sd: of the logarithm [1].
        b1_length_mm: the same as of B0 [mm].
    """

    b0_mean: tuple[float, float] = (-70.0, 70.0)
    b0_sd: tuple[NotNegative, NotNegative] = (15.0, 60.0)
    b0_length_mm: Range = (30.0, 90.0)
    b1_median: Range = (0.75, 1.05)
    b1_sd: tuple[Share, Share] = (0.05, 0.2)
    b1_length_mm: Range = (30.0, 90.0)

    @field_validator("*")
    @classmethod
    def _ascending(cls, pair: tuple[float, float]) -> tuple[float, float]:
        return _ordered(pair)


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"{pair[0]:g} is more than {pair[1]:g}; give the smaller first")
    return pair


def _degrees(angle: float) -> float:
    return angle * pi / 180


def _ssfp(angle: float, tr: float, lines: int, shots: int = 1) -> BalancedSSFP:
    acquisition = Acquisition(lines=lines, shots=shots, order="linear" if shots == 1 else "centric")
    return BalancedSSFP(flip_angle=_degrees(angle), tr=tr, acquisition=acquisition)


def _spoiled(angle: float, tr: float, lines: int, shots: int = 1) -> SpoiledGradientEcho:
    acquisition = Acquisition(lines=lines, shots=shots, order="centric")
    return SpoiledGradientEcho(flip_angle=_degrees(angle), tr=tr, acquisition=acquisition)


# clusters that let B0 and B1 become bands, and clusters that compensate them; every kind of readout; other weightings
_DEFAULT_MODELS: tuple[AnyModel, ...] = (
    Bloch(
        preparation=SpinLockPreparation(
            cluster="SSL", tsl=(0.005, 0.015, 0.03, 0.06), fsl=(300.0, 500.0, 400.0, 350.0)
        ),
        readout=_ssfp(50.0, 0.0042, 64, shots=2),
        tr=3.0,
    ),
    Bloch(
        preparation=SpinLockPreparation(cluster="SSL", tsl=(0.005, 0.02, 0.045), fsl=(500.0, 300.0, 350.0)),
        readout=_ssfp(35.0, 0.003, 64),
        tr=4.0,
    ),
    Bloch(
        preparation=SpinLockPreparation(cluster="SSL", tsl=(0.01, 0.025, 0.05), fsl=(350.0, 500.0, 400.0)),
        readout=_spoiled(15.0, 0.005, 96, shots=4),
        tr=2.0,
    ),
    Bloch(
        preparation=SpinLockPreparation(cluster="RESL", tsl=(0.008, 0.02, 0.04), fsl=(300.0, 400.0, 500.0)),
        readout=_ssfp(60.0, 0.0038, 72, shots=2),
        tr=2.5,
    ),
    Bloch(
        preparation=SpinLockPreparation(cluster="BSL", tsl=(0.012, 0.03, 0.055), fsl=(500.0, 300.0, 400.0)),
        readout=_spoiled(12.0, 0.0045, 80, shots=2),
        tr=3.5,
    ),
    Bloch(
        preparation=SpinLockPreparation(cluster="PSCSL", tsl=(0.005, 0.025, 0.06), fsl=(400.0, 500.0, 300.0)),
        readout=_ssfp(40.0, 0.0028, 64),
        tr=3.0,
    ),
    Bloch(
        preparation=T2Preparation(te=(0.02, 0.04, 0.06), refocusing="MLEV4"),
        readout=_ssfp(45.0, 0.0032, 64),
        tr=3.0,
    ),
    Bloch(preparation=Inversion(ti=(0.05, 0.8, 1.6)), readout=_spoiled(12.0, 0.004, 64, shots=2), tr=4.0),
    SaturationRecovery(ts=(0.3, 0.6, 1.2)),
)

# mild: shading of the coil in most images, the rest in a fifth of them; ranges as docs/artefacts.md describes them
_DEFAULT_ARTEFACTS: tuple[Artefact[Any], ...] = (
    Motion(trajectory=Breathing(period=(3.0, 6.0), translation=(0.0, 5.0)), line_time=0.02, probability=0.2),
    BiasField(strength=(0.0, 0.5), probability=0.7),
    Ghosting(pattern="periodic", phase=(0.0, 0.4), amplitude=(0.0, 0.2), intact=(0.0, 0.1), probability=0.2),
    LowPass(factor=(1.0, 1.6), window="hamming", probability=0.2),
    Gibbs(kept=(0.5, 1.0), probability=0.2),
)


class Physics(RootConfig):
    """Images of other sequences from the series' own maps.

    Attributes:
        seed: of the copies.
        share: of the training images that are synthetic.
        copies: synthetic images of each series.
        t1_factor: T1 times this is that of another field strength; log-uniform, for each copy [1].
        relations: T2 and T1RHO, of the T1 that the series reads.
        variation: smooth variation of T2 and of T1RHO over the slice, SD of the logarithm, uniform, for each copy [1].
        variation_mm: its length, see `SpatialFields` [mm].
        fields: B0 and B1.
        fat: which voxels are off-resonance; None: none.
        models: sequences; one for each copy, and of its series one image. B of a closed-form recovery is that of a
            perfect pulse.
        artefacts: of k-space, each with its own probability, in the order of the scanner.
        snr: 99th percentile of the image without artefacts over the noise SD per real channel; log-uniform, for each
            copy. The noise is complex and white, also where no body is; the images are magnitudes (Rician) [1].
    """

    seed: Seed = 0
    share: Share = 0.5
    copies: Count = 8
    t1_factor: Range = (0.7, 1.5)
    relations: Relations = Relations()
    variation: tuple[Share, Share] = (0.02, 0.06)
    variation_mm: Positive = 15.0
    fields: SpatialFields = SpatialFields()
    fat: Fat | None = Fat()
    models: Annotated[tuple[_union(MODELS), ...], Field(min_length=1)] = _DEFAULT_MODELS  # type: ignore[valid-type]
    artefacts: tuple[_union(ARTEFACTS), ...] = _DEFAULT_ARTEFACTS  # type: ignore[valid-type]
    snr: Range = (12.0, 80.0)

    @field_validator("t1_factor", "variation", "snr")
    @classmethod
    def _ascending(cls, pair: tuple[float, float]) -> tuple[float, float]:
        return _ordered(pair)

    @model_validator(mode="after")
    def _parts_fit(self) -> "Physics":
        for number, model in enumerate(self.sequences):
            unknown = [row.name for row in model.parameters if row.name not in ROWS]
            if unknown:
                raise ValueError(
                    f"models[{number}]: {model.kind} needs {' and '.join(unknown)}, which the maps of a series do not "
                    f"tell and nothing here draws; there are {', '.join(ROWS)}"
                )
        for number, artefact in enumerate(self.chain):
            if artefact.ndim == 3:
                raise ValueError(f"artefacts[{number}].ndim: 3, but an image has 2 axes")
        # what cannot be on an image says so now
        told = tuple(with_spacing(artefact, (1.0, 1.0)) for artefact in self.chain)
        draw_chain(told, (1, _TRIED, _TRIED), Streams(0, 0).rng)
        return self

    # the unions above are built at run time; these give them their types
    @property
    def sequences(self) -> tuple[AnyModel, ...]:
        """The signal models."""
        return self.models

    @property
    def chain(self) -> tuple[Artefact[Any], ...]:
        """The artefacts, in their order."""
        return self.artefacts
