"""The phantom that a generator config names, for commands that need nothing else of it."""

from pathlib import Path
from typing import Annotated, cast

from phantoms.base import PhantomSpec, Split
from qsim.errors import InputError

# a config file is written by hand; a larger one is not a config
_LARGEST_FILE = 1_000_000


def phantom_of_config(path: Path) -> tuple[PhantomSpec, Split, int]:
    """Read the phantom, the split and the slice axis of a generator config; what else it says is not looked at.

    Raises: InputError that starts with the file.
    """
    import yaml
    from pydantic import Field, TypeAdapter, ValidationError

    import phantoms

    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise InputError(f"{path}: larger than 1 MB; this is not a config")
        text = path.read_text(encoding="utf-8")
        # aliases let a file of a kilobyte stand for gigabytes
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise InputError(f"{path}: anchors and aliases (*name) are refused")
        mapping = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(mapping, dict) or not isinstance(mapping.get("phantom"), dict):
        raise InputError(f"{path}: phantom: missing; wanted a generator config, which names one by its kind")
    split, slice_axis = mapping.get("split", "train"), mapping.get("slice_axis", 2)
    if split not in ("train", "test"):
        raise InputError(f"{path}: split: got {split}, wanted train or test")
    if type(slice_axis) is not int:
        raise InputError(f"{path}: slice_axis: got {slice_axis}, wanted 0, 1 or 2")
    try:
        # the union is built at run time
        adapter: TypeAdapter[PhantomSpec] = TypeAdapter(Annotated[phantoms.AnyPhantomSpec, Field(discriminator="kind")])
        spec = adapter.validate_python(mapping["phantom"])
    except ValidationError as error:
        first = error.errors()[0]
        # the first name is the kind
        field = ".".join(["phantom", *map(str, first["loc"][1:])])
        raise InputError(f"{path}: {field}: {first['msg'].removeprefix('Value error, ')}") from None
    return spec, cast("Split", split), slice_axis
