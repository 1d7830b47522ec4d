"""The methods of a study: what its config and its command name, and the estimators that come of it."""

import hashlib
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from generators.config import GeneratorConfig
from phantoms import Deformed, WithStructures
from qsim.errors import InputError
from qsim.estimators import ESTIMATORS, Estimate, Estimator, TissuePrior, build_estimator, build_foreign, rehearse
from qsim.parameters import Parameter
from qsim.signals.base import SignalModel
from trainers.studies.network_options import network_name, network_options, of_option, runs_of


class ModelEntry(BaseModel):
    """A trained network among the estimators.

    Attributes:
        model: folder of the run, or name of a shipped network.
        name: in tables; that of the shipped network or of the run's task, and the options, if not given.
        options: of the network, as `{contrast: 2.0, noise: rician}` or `{samples: 20, images: "0,2"}`; most networks
            have none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    model: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1)] | None = None
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)


class MethodEntry(BaseModel):
    """A method with options, or one that is told the truth of some rows.

    Attributes:
        method: name of the method.
        name: in tables; the method's own, and what it is told, if not given.
        known: rows whose true values the method is given.
        options: of the method, as `{weight: 500}`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    method: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1)] | None = None
    known: tuple[str, ...] = ()
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)


Entry = str | MethodEntry | ModelEntry


def check_shapes(given: Any) -> Any:
    """The entries, mappings as what their keys say they are: else each mistake is told of every kind of entry.

    For validators in mode "before".

    Raises: ValueError, one line, of an entry that is neither a name nor a method nor a network.
    """
    if not isinstance(given, list | tuple):
        return given
    found: list[Entry] = []
    for i, entry in enumerate(given):
        keys = set(entry) if isinstance(entry, dict) else set()
        if isinstance(entry, str | ModelEntry | MethodEntry):
            found.append(entry)
        elif "model" in keys and keys <= set(ModelEntry.model_fields):
            found.append(_entry(ModelEntry, entry, f"estimators[{i}]"))
        elif "method" in keys and keys <= set(MethodEntry.model_fields):
            found.append(_entry(MethodEntry, entry, f"estimators[{i}]"))
        else:
            raise ValueError(
                f"estimators[{i}]: got {entry!r}, wanted a name ({', '.join(ESTIMATORS)}), "
                "{model: run, options: {...}}, or {method: name, known: [rows], options: {...}}"
            )
        last = found[-1]
        if isinstance(last, ModelEntry):
            network_options(last.options, f"estimators[{i}].options.")
        known = _known(last) if not isinstance(last, ModelEntry) else ()
        twice = [row for j, row in enumerate(known) if row in known[:j]]
        if twice:
            raise ValueError(f"estimators[{i}].known: {twice[0]} is given twice")
    return found


# what each key of an entry holds, and what each item of it
_KEYS = {
    "model": ("a folder or a name", ""),
    "method": ("the name of a method", ""),
    "name": ("a name", ""),
    "known": ("a list of rows", "the name of a row"),
    "options": ("a mapping of options", "a number, true, false or a word"),
}


def _entry(kind: type[ModelEntry] | type[MethodEntry], given: dict[str, Any], place: str) -> ModelEntry | MethodEntry:
    """Raises: ValueError, one line, starting with the place."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
    key, *item = mistake["loc"]
    whole, each = _KEYS[str(key)]
    if not item:
        inside, wanted = "", whole
    elif item[-1] == "[key]":
        inside, wanted = "", "words as keys"
    else:
        inside, wanted = f"[{item[0]}]" if isinstance(item[0], int) else f".{item[0]}", each
    raise ValueError(f"{place}.{key}{inside}: wanted {wanted}, got {mistake['input']!r}")


def check_entries(entries: Sequence[Entry], model: SignalModel, prior: TissuePrior | None = None) -> None:
    """Refuse methods that do not exist, do not fit the model, or are given twice.

    Raises: ValueError, starting with the place in the list.
    """
    for i, entry in enumerate(entries):
        if entry in entries[:i]:
            raise ValueError(f"estimators[{i}]: {_text(entry)} is given twice")
        if isinstance(entry, ModelEntry):
            continue
        rows = [parameter.name for parameter in model.parameters]
        unknown = [row for row in _known(entry) if row not in rows]
        if unknown:
            raise ValueError(
                f"estimators[{i}].known: {', '.join(unknown)} is no row of the model, which has {', '.join(rows)}"
            )
        try:
            _build(entry, model, prior)
        except InputError as error:
            name = entry if isinstance(entry, str) else entry.method
            text = str(error).removeprefix("estimators: ").removeprefix(f"{name}: estimators: ")
            raise ValueError(f"estimators[{i}]: {text}") from None


def takes_prior(entry: Entry) -> bool:
    """Whether a method of this package asks for the distributions of the tissues."""
    name = entry.method if isinstance(entry, MethodEntry) else entry
    return isinstance(name, str) and name in ESTIMATORS and ESTIMATORS[name].takes_prior


@dataclass(frozen=True, slots=True)
class Renamed:
    """An estimator under another name."""

    name: str
    estimator: Estimator

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.estimator.parameters

    @property
    def pools(self) -> tuple[str, ...]:
        return pools(self.estimator)

    def __call__(
        self,
        images: Tensor,
        sigma: float | Tensor | None = None,
        mask: Tensor | None = None,
        known: Mapping[str, Tensor] | None = None,
    ) -> Estimate:
        return self.estimator(images, sigma=sigma, mask=mask, known=known)


def pools(estimator: Estimator) -> tuple[str, ...]:
    """Parameters that an estimator takes as common to voxels."""
    named: tuple[str, ...] = getattr(estimator, "pools", ())
    return named


@dataclass(frozen=True, slots=True)
class Weights:
    """A trained network of a study, as provenance records it."""

    run: str
    sha256: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A method of a study.

    Attributes:
        estimator: under its name in tables.
        told: rows whose true values it is given.
        weights: of a network.
        held_out: False: a network whose training may have held the anatomy of the study.
        source: of a user's own method: where it stands, and the sha256 of that file.
    """

    estimator: Estimator
    told: tuple[str, ...] = ()
    weights: Weights | None = None
    held_out: bool = True
    source: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.estimator.name


def choose(
    entries: Sequence[Entry],
    own: Sequence[str],
    model: SignalModel,
    *,
    data: GeneratorConfig | None = None,
    prior: TissuePrior | None = None,
    device: str = "cpu",
    taken: Sequence[str] = (),
    given: Sequence[str] = (),
) -> tuple[Chosen, ...]:
    """Build the methods of a study.

    Args:
        entries: of the config.
        own: the user's own, "module:object".
        model: signal model of the series.
        data: of the study; None: it has no anatomy, so no network can have seen it.
        prior: of the tissues, for methods that take one.
        device: where networks run.
        taken: names that no method may have.
        given: rows that every method but networks is told.
    Raises: InputError naming the place in the list, or the option.
    """
    chosen = [_choose(entry, i, model, data, prior, device) for i, entry in enumerate(entries)]
    chosen += [_own(where, model) for where in own]
    names = [*(each.name for each in chosen), *taken]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"estimators: two are called {', '.join(twice)}; name one of them: {{model: ..., name: ...}} or "
            "{method: ..., name: ...}"
        )
    for i, each in enumerate(chosen):
        if each.weights is not None:
            continue
        try:
            rehearse(each.estimator, model, tuple(dict.fromkeys((*each.told, *given))))
        except InputError as error:
            text = str(error).removeprefix("estimators: ")
            raise InputError(f"estimators[{i}]: {text}" if i < len(entries) else f"--estimator: {text}") from None
    return tuple(chosen)


def _choose(
    entry: Entry,
    number: int,
    model: SignalModel,
    data: GeneratorConfig | None,
    prior: TissuePrior | None,
    device: str,
) -> Chosen:
    if isinstance(entry, ModelEntry):
        return _load(entry, number, model, data, device)
    estimator, told = _build(entry, model, prior), _known(entry)
    given = entry.name if isinstance(entry, MethodEntry) else None
    name = given or (f"{estimator.name}, {', '.join(told)} known" if told else estimator.name)
    return Chosen(estimator if name == estimator.name else Renamed(name, estimator), told)


def _build(entry: str | MethodEntry, model: SignalModel, prior: TissuePrior | None) -> Estimator:
    if isinstance(entry, str):
        return build_estimator(entry, model, prior=prior)
    return build_estimator(entry.method, model, entry.options, prior)


def _known(entry: str | MethodEntry) -> tuple[str, ...]:
    return entry.known if isinstance(entry, MethodEntry) else ()


def _text(entry: Entry) -> str:
    return entry if isinstance(entry, str) else str(entry.model_dump(exclude_defaults=True))


def _load(entry: ModelEntry, number: int, model: SignalModel, data: GeneratorConfig | None, device: str) -> Chosen:
    """A network, and whether it cannot have seen the anatomy of the study."""
    from trainers.infer import find_network, load_estimator

    options = network_options(entry.options, f"estimators[{number}].options.")
    runs = runs_of(entry.model, options)
    try:
        network = load_estimator(
            runs, model, device, contrast=options.contrast, noise=options.noise, **options.of_relaxation
        )
    except InputError as error:
        key = "options." if of_option(str(error)) else "model: "
        raise InputError(f"estimators[{number}].{key}{error}") from None
    trained = network.trained_on
    if data is not None and trained is not None and trained.seed == data.seed:
        raise InputError(
            f"data.seed: {data.seed} is the seed of the training data of {entry.model}: the draws of the study would "
            "have the tissue values and B of training samples; choose another"
        )
    files = [find_network(run) for run in (entry.model, *options.ensemble)]
    sums = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    # the files of runs all have one name
    names = [file.name for file in files] if len(files) == 1 else [entry.model, *options.ensemble]
    name = entry.name or network_name(entry.model, network.name, entry.options)
    return Chosen(
        estimator=network if name == network.name else Renamed(name, network),
        weights=Weights(entry.model, dict(zip(names, sums, strict=True))),
        held_out=data is None or (trained is not None and _apart(trained, data)),
    )


def _apart(trained: GeneratorConfig, data: GeneratorConfig) -> bool:
    """Whether a training set and a study hold disjoint anatomy: train and test of one way to split it, or two kinds."""
    # structures lie in an anatomy, and a deformed one is still its own: it is what train and test may share
    theirs, ours = (
        spec.phantom if isinstance(spec, WithStructures | Deformed) else spec
        for spec in (trained.phantom_spec, data.phantom_spec)
    )
    if theirs.kind != ours.kind:
        return True
    one_split = theirs == ours and trained.slice_axis == data.slice_axis
    return one_split and (trained.split, data.split) == ("train", "test")


def _own(where: str, model: SignalModel) -> Chosen:
    """The user's own method, from a module that Python finds or that lies in the current folder."""
    module_name, _, path = where.partition(":")
    if not module_name or not path:
        raise InputError(f"--estimator: got {where!r}, wanted module:object, for example my_fit:build")
    here = str(Path.cwd())
    if here not in sys.path:
        # as `python -m` does; processes are started with the same path
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise InputError(f"--estimator: {module_name} cannot be imported: {error}") from None
        raise InputError(
            f"--estimator: there is no module {module_name!r}, neither installed nor in this folder"
        ) from None
    except SystemExit:
        raise InputError(f"--estimator: {module_name} cannot be imported: it calls sys.exit") from None
    except Exception as error:
        raise InputError(f"--estimator: {module_name} cannot be imported: {type(error).__name__}: {error}") from None
    file = getattr(found, "__file__", None)
    for step in path.split("."):
        if not hasattr(found, step):
            raise InputError(f"--estimator: {module_name} has no {path!r}")
        found = getattr(found, step)
    if not callable(found):
        raise InputError(f"--estimator: {where} is no function or class that builds an estimator for a signal model")
    try:
        estimator = build_foreign(path, where, found, model, {})
    except InputError as error:
        raise InputError(f"--estimator: {str(error).removeprefix('estimators: ')}") from None
    source = {"from": where}
    if file is not None:
        source["sha256"] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return Chosen(estimator, source=source)
