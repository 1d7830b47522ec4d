"""`qsim bound --design`: which times would tell more than those of the config."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isfinite, sqrt
from typing import cast

from generators.bound import Problem, Protocol, finite, names_of
from qsim.errors import InputError
from qsim.information.design import Limits, Wanted, propose_times, time_field, with_times
from qsim.kspace.noise import sigma_of

# relaxation times that the times of a series measure
_MEASURED = {
    "ti": ("T1",),
    "ts": ("T1",),
    "te": ("T2_SHORT", "T2", "T2STAR"),
    "te_prep": ("T2",),
    "tsl": ("T1RHO_SHORT", "T1RHO"),
}
# largest number of times, and sum of them [s], that a design is made for
_MOST_TIMES, _LONGEST_SUM = 200, 3600.0


@dataclass(frozen=True, slots=True)
class Gain:
    """Bound of one parameter of one tissue under the given protocol and the proposed one [%], and their ratios [1]."""

    tissue: str
    parameter: str
    cv_given: float | None
    cv_proposed: float | None
    gain: float | None
    gain_per_sqrt_image: float | None
    gain_per_sqrt_time: float | None


@dataclass(frozen=True, slots=True)
class Design:
    """A proposed protocol.

    Attributes:
        times_given, times: of the config and proposed [s].
        problem: whose bound was made small.
        worst_cv: largest bound over tissues [%].
        least_cv: what no other choice of as many times within the limits goes below [%].
    """

    times_given: tuple[float, ...]
    times: tuple[float, ...]
    what: str
    problem: Problem
    snr: float
    sigma: float
    voxels: int
    minimum: float
    maximum: float
    total: float
    worst_cv: float
    least_cv: float
    rows: tuple[Gain, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """What a design is asked for.

    Attributes:
        n: how many times.
        low, high: limits of each time [s].
        total: largest sum of the times [s].
        problem: whose bound is to be small.
    """

    n: int
    low: float
    high: float
    total: float
    problem: Problem

    @property
    def step(self) -> float:
        """Times are multiples of it [s]."""
        return 0.001 if self.high - self.low >= 0.02 else 0.00001


def read_request(
    of: Protocol, n: int | None, low: float | None, high: float | None, total: float | None, problem: str | None
) -> Request | None:
    """The request of the command's options; None without --design.

    Args:
        total: None: no limit.
        problem: None: shared where something is shared, else free.
    Raises: InputError naming the option at fault.
    """
    if n is None:
        for option, given in (("--min", low), ("--max", high), ("--total", total), ("--problem", problem)):
            if given is not None:
                raise InputError(f"{option}: goes with --design; give the number of times there")
        return None
    for option, given in (("--min", low), ("--max", high)):
        if given is None:
            raise InputError(f"{option}: missing; --design needs the limits of the times in seconds")
    assert low is not None
    assert high is not None
    if problem not in (None, "free", "shared", "known"):
        raise InputError(f"--problem: got {problem!r}, wanted free, shared or known")
    chosen: Problem = "shared" if of.shared else "free"
    if problem is not None:
        # checked above
        chosen = cast(Problem, problem)
    if chosen != "free" and not of.shared:
        raise InputError(f"--problem: {chosen}, but this config draws nothing once per sample; take free")
    # refuses a model whose times are not free
    time_field(of.model)
    asked = Request(n, low, high, n * high if total is None else total, chosen)
    _check(of, asked)
    return asked


def design(of: Protocol, asked: Request, snrs: Sequence[float], n_voxels: int) -> Design:
    """Times that make the worst tissue's bound of the relaxation time smallest, and the gain over the config's.

    Args:
        snrs: of which the middle one counts; under Gaussian noise the times do not depend on it.
    Raises: InputError if the times of the model are not free.
    """
    n, low, high, limit, problem, step = asked.n, asked.low, asked.high, asked.total, asked.problem, asked.step
    name = time_field(of.model)
    rows = _wanted_rows(of, name)
    snr = sorted(snrs)[len(snrs) // 2]
    sigma = sigma_of(snr)
    wanted = Wanted(
        kappa=of.kappa,
        sigma=sigma,
        rows=rows,
        shared=of.shared if problem == "shared" else (),
        n_voxels=n_voxels,
        known=(*of.known, *of.shared) if problem == "known" else of.known,
        coils=of.coils,
    )
    proposal = propose_times(of.model, wanted, Limits(n, low, high, limit, step))
    given = of.model.times  # type: ignore[attr-defined]
    before = of.bound(problem, sigma, n_voxels).cv
    after = of.bound(problem, sigma, n_voxels, proposal.times).cv
    gains = []
    for t, tissue in enumerate(of.tissues):
        for row in rows:
            old, new = (finite(float(cv[of.names.index(row), t])) for cv in (before, after))
            gain = None if old is None or new is None else old / new
            per_image, per_time = (
                None if gain is None or not used > 0 else gain * sqrt(spent / used)
                for spent, used in ((len(given), n), (sum(given), sum(proposal.times)))
            )
            gains.append(Gain(tissue, row, old, new, gain, per_image, per_time))
    return Design(
        times_given=given,
        times=proposal.times,
        what=name,
        problem=problem,
        snr=snr,
        sigma=sigma,
        voxels=n_voxels,
        minimum=low,
        maximum=high,
        total=limit,
        worst_cv=max(gain.cv_proposed or 0.0 for gain in gains),
        least_cv=proposal.least_cv,
        rows=tuple(gains),
    )


def _wanted_rows(of: Protocol, field: str) -> tuple[str, ...]:
    """Relaxation times among the targets: those that the times of the series measure, else all."""
    times = [p.name for p in of.model.parameters if p.unit == "s" and p.name in of.targets and p.name not in of.shared]
    if not times:
        raise InputError(
            f"targets: no relaxation time among {names_of(of.targets)}; add the one that is to be measured"
        )
    return tuple(name for name in times if name in _MEASURED[field]) or tuple(times)


def _check(of: Protocol, asked: Request) -> None:
    """Refuse limits that no times keep. Raises: InputError naming the option."""
    n, low, high, total, problem, step = asked.n, asked.low, asked.high, asked.total, asked.problem, asked.step
    left = [name for name in of.unknown if name not in of.shared]
    # what is shared needs one image more than a voxel's own rows take up
    needed = of.unknown if problem == "free" else left
    fewest = len(left) + 1 if problem == "shared" else len(needed)
    if n < fewest:
        remedy = " or take --problem known" if problem != "known" and of.shared else ""
        beside = f" beside the shared {', '.join(of.shared)}" if problem == "shared" else ""
        raise InputError(
            f"--design: {n} images cannot tell {', '.join(needed)}{beside}; take at least {fewest}{remedy}"
        )
    if n > _MOST_TIMES:
        raise InputError(f"--design: at most {_MOST_TIMES} times, got {n}")
    for option, time in (("--min", low), ("--max", high), ("--total", total)):
        if not (isfinite(time) and time >= 0):
            raise InputError(f"{option}: must be a time in seconds, 0 or more, got {time:g}")
    for option, time in (("--max", high), ("--min", low)):
        try:
            with_times(of.model, (time,))
        except ValueError as error:
            raise InputError(f"{option}: {error}") from None
    if not low < high:
        raise InputError(f"--min: {low:g} s is not below --max, {high:g} s; lower it or raise --max")
    if total > max(_LONGEST_SUM, n * high):
        raise InputError(f"--total: must be in seconds, got {total:g}; divide by 1000 if it is in milliseconds")
    shortest = n * step * ceil(low / step - 1e-6)
    if total < shortest - 1e-9:
        raise InputError(
            f"--total: {total:g} s cannot hold {n} times of at least {low:g} s; raise it to {shortest:g} or more, or "
            "lower --min or --design"
        )
