"""The config of a study of kind `phantom` (sabidussi2021, section 5.2)."""

from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from generators.config import Count, RootConfig, Seed
from qsim.parameters import RELAXATION_TIMES
from qsim.tissue_tables import TISSUE_TABLES
from qsim.tissues import TissueSource
from trainers.studies.methods import Entry, check_entries, check_shapes
from trainers.studies.phantom_parts import PhantomData, check_data, filled_in
from trainers.studies.study_files import prior_of
from trainers.studies.study_plan import Snr

# the twin's, where the config does not say
_SNR, _DRAWS, _REPEATS = (30.0,), 1, 4


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
        told = given.get("nominal") if isinstance(given, dict) else None
        for name, inner in told.items() if isinstance(told, dict) and "kind" not in told else ():
            # without this every label would be refused with a line of its own
            if isinstance(inner, dict) and "kind" in inner:
                raise ValueError(f"data.nominal: kind stands directly under nominal, not under {name}")
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
