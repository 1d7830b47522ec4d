"""Finished blocks of a study on disk: written whole or not at all, read back only by the study that wrote them."""

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from qsim.evaluation.study import Block, MethodResult

# of the layout below; a block of another layout is computed again
_LAYOUT = 3
_DIGEST = "digest"

Arrays = dict[str, Shaped[np.ndarray, "..."]]


def write_arrays(path: Path, arrays: Mapping[str, Shaped[np.ndarray, "..."]], digest: str) -> None:
    """Write a block beside its name first, then move it there: a killed study leaves no half of one.

    Args:
        arrays: no objects; texts as arrays of a `str` dtype.
        digest: of all that decides the numbers.
    """
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **{_DIGEST: np.array(f"{_LAYOUT} {digest}")}, **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_arrays(path: Path, digest: str) -> Arrays | None:
    """The arrays, or None if there are none, they are damaged, or belong to another study: then they are made again."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored[_DIGEST]) != f"{_LAYOUT} {digest}":
                return None
            return {name: stored[name] for name in stored.files if name != _DIGEST}
    except (FileNotFoundError, zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError):
        return None


def block_key(draw: int, snr: float) -> str:
    """Name of a block of the noise study."""
    # all digits: two SNRs never share a file
    return f"draw{draw:03d}_snr{repr(float(snr)).removesuffix('.0')}"


def to_arrays(block: Block) -> Arrays:
    """A block of the noise study as arrays."""
    arrays: Arrays = {name: getattr(block, name) for name in ("kappa", "labels", "purity", "mask")}
    arrays |= {f"bound/{name}": bound for name, bound in block.bounds.items()}
    for i, result in enumerate(block.methods.values()):
        arrays |= {f"{i}/{field.name}": np.asarray(getattr(result, field.name)) for field in fields(MethodResult)}
    about = {
        "draw": block.draw,
        "snr": block.snr,
        "sigma": block.sigma,
        "repeats": block.repeats,
        "tissues": block.tissues,
        "methods": list(block.methods),
        "bounds": list(block.bounds),
    }
    return arrays | {"about": np.array(json.dumps(about))}


def from_arrays(arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> Block:
    """The block of `to_arrays`."""
    about = json.loads(str(arrays["about"]))
    methods = {}
    for i, name in enumerate(about["methods"]):
        stored: dict[str, Any] = {field.name: arrays[f"{i}/{field.name}"] for field in fields(MethodResult)}
        methods[name] = MethodResult(**{**stored, "cpu_seconds": float(stored["cpu_seconds"])})
    return Block(
        draw=about["draw"],
        snr=about["snr"],
        sigma=about["sigma"],
        repeats=about["repeats"],
        tissues=tuple(about["tissues"]),
        **{name: arrays[name] for name in ("kappa", "labels", "purity", "mask")},
        bounds={name: arrays[f"bound/{name}"] for name in about["bounds"]},
        methods=methods,
    )
