"""Reading a config file, and saying what is wrong with it in one line per mistake."""

import difflib
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from phantoms import ANATOMIES, PHANTOMS, Deformed, WithStructures
from phantoms.fields import FIELDS
from phantoms.shapes.geometry import SHAPES
from phantoms.shapes.structures import STRUCTURES
from qsim.distributions import DISTRIBUTIONS
from qsim.errors import InputError
from qsim.kspace import ARTEFACTS
from qsim.kspace.motion.trajectory import TRAJECTORIES
from qsim.kspace.noise import NOISES
from qsim.signals import MODELS, PREPARATIONS, READOUTS, SampledProfile, ShapedProfile
from qsim.tissue_tables import TISSUE_TABLES

Config = TypeVar("Config", bound=BaseModel)


def _default(cls: type, key: str) -> str:
    return str(cls.__dataclass_fields__[key].default)  # type: ignore[attr-defined]


# a config file is written by hand; a larger one is not a config
_LARGEST_FILE = 1_000_000
# unions that pydantic tells apart by trying: the key that names the member, and the members
_TRIED: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("kind", DISTRIBUTIONS),
    ("shape", SHAPES),
    ("kind", PREPARATIONS),
    ("kind", READOUTS),
    ("kind", (SampledProfile, ShapedProfile)),
    ("kind", TRAJECTORIES),
    ("kind", ANATOMIES),
    ("shape", STRUCTURES),
)
# class of a member: that key, its value, the values of all members
_PLAIN_UNIONS = {
    cls.__name__: (key, _default(cls, key), tuple(_default(each, key) for each in members))
    for key, members in _TRIED
    for cls in members
}
_HOLDERS = tuple(_default(cls, "kind") for cls in (WithStructures, Deformed))
_DISTRIBUTION_NAMES = tuple(_default(cls, "kind") for cls in DISTRIBUTIONS)
# unions that pydantic tells apart by their kind, by the key that holds one
_REGISTRIES = {
    "phantom": PHANTOMS,
    "tissues": TISSUE_TABLES,
    "model": MODELS,
    "noise": NOISES,
    "fields": FIELDS,
    "artefacts": ARTEFACTS,
}
# members of a union of plain values, as a sentence says them
_PLAIN = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "a text"}
_SEVERAL, _NAMES, _KEYED = "tuple[", "literal[", "dict["


def read_config(path: Path, kind: type[Config]) -> Config:
    """Read a config from a YAML file.

    Raises: InputError with one line per mistake, each naming the file and the path of the field.
    """
    mapping = read_yaml(path)
    untagged = _untagged(mapping)
    if untagged:
        raise InputError("\n".join(f"{path}: {line}" for line in untagged))
    try:
        return kind.model_validate(mapping)
    except ValidationError as error:
        raise InputError("\n".join(f"{path}: {line}" for line in describe(error, mapping, kind))) from None


def _untagged(mapping: Mapping[str, Any]) -> list[str]:
    """What is no single kind by its keys alone: pydantic would take whichever member of the union fits.

    An empty phantom would be one of several, a structure without a shape a square.
    """
    holder = mapping.get("phantom")
    if not isinstance(holder, dict) or holder.get("kind") not in _HOLDERS:
        return []
    lines = []
    inner, structures = holder.get("phantom"), holder.get("structures")
    if isinstance(inner, dict) and "kind" not in inner:
        lines.append(f"phantom.phantom.kind: missing; wanted {_either([_default(cls, 'kind') for cls in ANATOMIES])}")
    for i, structure in enumerate(structures if isinstance(structures, list) else []):
        if isinstance(structure, dict) and "shape" not in structure:
            shapes = _either([_default(cls, "shape") for cls in STRUCTURES])
            lines.append(f"phantom.structures[{i}].shape: missing; wanted {shapes}")
    return lines


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader (no code, no objects) that also refuses aliases and duplicate keys.

    Aliases let a file of a kilobyte stand for gigabytes; of a key given twice, one would be silently ignored.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="anchors and aliases (*name) are refused", problem_mark=mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key {key} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises: InputError if the file is missing, too large, not YAML, or not a mapping of names.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise InputError(f"{path}: larger than 1 MB; this is not a config")
        mapping = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)  # noqa: S506  a SafeLoader
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file in UTF-8") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply; this is not a config") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{path}{line}: {error.problem or error.context}") from None
    except InputError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: not valid YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(mapping, dict) or not all(isinstance(key, str) for key in mapping):
        raise InputError(f"{path}: must hold `key: value` lines at its top level")
    return mapping


def describe(error: ValidationError, mapping: Mapping[str, Any], root: type[BaseModel]) -> list[str]:
    """One line per mistake: the path of the field as the user wrote it, what came, what was wanted."""
    lines: dict[str, None] = {}
    everything = error.errors(include_url=False)
    mistakes, sentences = _of_amounts(everything, mapping)
    lines.update(dict.fromkeys(sentences))
    for mistake in mistakes:
        if mistake["type"] == "too_short" and mistake["input"] and _has_wrong_items(mistake, everything):
            # pydantic counts the items that were right
            continue
        here, path = _locate(mistake["loc"], mapping, mistake["type"])
        if path is not None:
            lines[_sentence(path, here, mistake, root)] = None
    return [*lines, *_not_offered(mistakes, everything, mapping)]


def _of_amounts(mistakes: Sequence[ErrorDetails], mapping: Mapping[str, Any]) -> tuple[list[ErrorDetails], list[str]]:
    """One sentence for each value that may be a number, a pair or a distribution: every alternative complains of it.

    A mapping is meant as a distribution, whose own mistakes are kept.
    """
    at: dict[tuple[int | str, ...], list[str]] = {}
    for mistake in mistakes:
        for depth, step in enumerate(mistake["loc"]):
            if str(step) in _PLAIN or str(step).startswith((_SEVERAL, _NAMES, _KEYED)):
                at.setdefault(mistake["loc"][:depth], []).append(str(step))
    kept, sentences = [], []
    for mistake in mistakes:
        above = next((place for place in at if mistake["loc"][: len(place)] == place), None)
        if above is None:
            kept.append(mistake)
            continue
        given = _given(above, mapping)
        member = mistake["loc"][len(above)]
        if isinstance(given, dict) and (member in _PLAIN_UNIONS or str(member).startswith(_KEYED)):
            kept.append(mistake)
        elif not isinstance(given, dict) or not (
            _mixed(above, mistakes) or any(m.startswith(_KEYED) for m in at[above])
        ):
            _, path = _locate(above, mapping, "")
            if path is not None:
                wanted = _alternatives(at[above], _mixed(above, mistakes))
                sentences.append(f"{path}: got {_short(given)}, wanted {wanted}")
    return kept, sentences


def _given(place: tuple[int | str, ...], mapping: Mapping[str, Any]) -> Any:
    """What the user wrote at a place that pydantic names, union tags left out."""
    here: Any = mapping
    for step in place:
        known = isinstance(here, dict) and step in here
        if known or (isinstance(here, list | tuple) and isinstance(step, int) and step < len(here)):
            here = here[step]
    return here


def _mixed(place: tuple[int | str, ...], mistakes: Sequence[ErrorDetails]) -> bool:
    """Whether a distribution could stand there, too."""
    depth = len(place)
    return any(
        len(one["loc"]) > depth and one["loc"][:depth] == place and str(one["loc"][depth]) in _PLAIN_UNIONS
        for one in mistakes
    )


def _alternatives(members: Sequence[str], mixed: bool) -> str:
    """The members of such a union in words."""
    plain = [name for name in dict.fromkeys(members) if name in _PLAIN]
    # every whole number is a number
    said = [_PLAIN[name] for name in plain if not (name == "int" and "float" in plain)]
    # literal['one','two']
    said += [f"one of {name[len(_NAMES) : -1].replace(',', ', ')}" for name in dict.fromkeys(members) if _NAMES in name]
    if any(name.startswith(_KEYED) for name in members):
        said.append("a mapping of keys and values")
    said += dict.fromkeys(_items(name, mixed) for name in members if name.startswith(_SEVERAL))
    return _either([*said, *(["a distribution {kind: ...}"] if mixed else [])])


def _items(member: str, mixed: bool) -> str:
    """A member such as tuple[float,float] or tuple[str,...] in words."""
    # commas within brackets belong to what an item may be
    flat = re.sub(r"\[[^\[\]]*\]", "", member[len(_SEVERAL) : -1])
    items = [item.strip() for item in flat.split(",")]
    if items[-1] == "...":
        return "a list of them"
    if len(items) == 2 and mixed:
        # what stands for a distribution are its ends
        return "a pair [low, high]"
    many = {2: "two", 3: "three", 4: "four"}.get(len(items), str(len(items)))
    return f"a list of {many} {'whole numbers' if set(items) == {'int'} else 'numbers'}"


def _has_wrong_items(of: ErrorDetails, mistakes: Sequence[ErrorDetails]) -> bool:
    """Whether a list of which pydantic complains has items of which it complains too."""
    depth = len(of["loc"])
    return any(len(other["loc"]) > depth and other["loc"][:depth] == of["loc"] for other in mistakes)


def _not_offered(
    mistakes: Sequence[ErrorDetails], everything: Sequence[ErrorDetails], mapping: Mapping[str, Any]
) -> list[str]:
    """One line for each union none of whose members has the user's `kind`: they all complain of it.

    Args:
        everything: mistakes, those of values that may be a number or a distribution included.
    """
    offered: dict[tuple[int | str, ...], dict[str, Any]] = {}
    for mistake in mistakes:
        *above, member, key = mistake["loc"] if len(mistake["loc"]) > 1 else ("", "")
        if mistake["type"] == "literal_error" and member in _PLAIN_UNIONS and key == _PLAIN_UNIONS[str(member)][0]:
            offered.setdefault(tuple(above), {})[str(member)] = mistake["input"]
    lines = []
    for union, members in offered.items():
        first = next(iter(members))
        depth = len(union)
        tried = {one["loc"][depth] for one in everything if len(one["loc"]) > depth and one["loc"][:depth] == union}
        # of a value that may be a number too
        tried = {member for member in tried if str(member) not in _PLAIN and not str(member).startswith(_SEVERAL)}
        _, path = _locate((*union, _PLAIN_UNIONS[first][0]), mapping, "literal_error")
        if tried <= set(members) and path is not None:
            names = ", ".join(repr(_PLAIN_UNIONS[member][1]) for member in members)
            lines.append(f"{path}: got {members[first]!r}, wanted one of {names}")
    return lines


def _locate(loc: tuple[int | str, ...], mapping: Mapping[str, Any], kind: str) -> tuple[Any, str | None]:
    """Container and path of a mistake, without the union tags that pydantic adds to it.

    The path is None if the mistake belongs to a member of a union that the user's `kind` did not choose.
    """
    path = ""
    here: Any = mapping
    above: Any = mapping
    for position, step in enumerate(loc):
        if isinstance(here, dict) and step in here:
            path += f".{step}"
            above, here = here, here[step]
        elif isinstance(here, list | tuple) and isinstance(step, int) and step < len(here):
            path += f"[{step}]"
            above, here = here, here[step]
        elif kind == "missing" and position == len(loc) - 1:
            path += f"[{step}]" if isinstance(step, int) else f".{step}"
            above = here
        elif step in _PLAIN_UNIONS and isinstance(here, dict):
            key, name, _ = _PLAIN_UNIONS[str(step)]
            chosen = here.get(key)
            if chosen != name:
                return above, None
    return above, path.lstrip(".")


def _sentence(path: str, here: Any, mistake: ErrorDetails, root: type[BaseModel]) -> str:
    kind, message, given, ctx = mistake["type"], mistake["msg"], mistake["input"], mistake.get("ctx", {})
    if kind == "missing":
        return f"{path}: missing"
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{path}: unknown key{_closest(path, here, root)}"
    if kind == "union_tag_invalid":
        return f"{path}.kind: got {ctx['tag']!r}, wanted one of {ctx['expected_tags']}"
    if kind == "union_tag_not_found":
        return f"{path}.kind: missing"
    if kind in ("dataclass_type", "model_attributes_type"):
        member = _PLAIN_UNIONS.get(str(mistake["loc"][-1]))
        return f"{path}: got {_short(given)}, wanted {_wanted(path, member)}"
    if kind in ("value_error", "assertion_error"):
        text = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
        name = path.rsplit(".", 1)[-1]
        if not path or text.startswith(name):
            # the message names the field itself
            return path.removesuffix(name) + text
        return f"{path}.{text}"
    if kind == "tuple_type" and path == "artefacts":
        return f"{path}: got {_short(given)}, wanted a list of artefacts, each a mapping with a kind"
    if kind == "too_short" and path == "artefacts":
        return f"{path}: empty; name at least one"
    if kind == "dict_type":
        return f"{path}: got {_short(given)}, wanted a mapping of keys and values"
    return f"{path}: {message[0].lower()}{message[1:]}, got {_short(given)}"


def _wanted(path: str, member: tuple[str, str, tuple[str, ...]] | None) -> str:
    """What stands where something that is no mapping was given; of a union, all that it can be."""
    inner = path.endswith("phantom.phantom")
    registry = ANATOMIES if inner else _REGISTRIES.get(path.rsplit(".", 1)[-1].partition("[")[0])
    if registry is not None:
        return f"a mapping with a kind: {_either([_default(cls, 'kind') for cls in registry])}"
    if member is None:
        return "a mapping of keys and values"
    if member[2] == _DISTRIBUTION_NAMES:
        return "a mapping with a kind, such as {kind: constant, value: 0.1}"
    return f"a mapping with a {member[0]}: {_either(member[2])}"


def _either(names: Sequence[str]) -> str:
    return " or ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _short(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= 120 else text[:117] + "..."


# kinds that occur in two places are told apart by the key that holds them
_HELD_BY = {"preparation": PREPARATIONS, "model": MODELS}


def _says(cls: type, key: str, name: str, path: str) -> bool:
    """Whether `key: name` means the class at this path."""
    holder = path.rsplit(".", 2)[-2].partition("[")[0]
    there = _HELD_BY.get(holder)
    known = key in cls.__dataclass_fields__  # type: ignore[attr-defined]
    return known and _default(cls, key) == name and (there is None or cls in there)


def _closest(path: str, here: Any, root: type[BaseModel]) -> str:
    """A hint for a misspelt key, from the keys of the root config or of the class that `kind` names."""
    known = list(root.model_fields)
    if "." in path:
        given = here if isinstance(here, dict) else {}
        kinds = (
            *(cls for group in _REGISTRIES.values() for cls in group),
            *(cls for _, group in _TRIED for cls in group),
        )
        chosen = [
            cls for cls in kinds for key in ("kind", "shape") if key in given and _says(cls, key, str(given[key]), path)
        ]
        known = [field.name for cls in chosen for field in fields(cls)]
    close = difflib.get_close_matches(path.rsplit(".", 1)[-1], known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known are {', '.join(known)}" if known else ""
