"""Finished blocks of a study on disk: written whole or not at all, read back only by the study that wrote them."""

import json
import os
import zipfile
import zlib
from dataclasses import fields
from pathlib import Path

import numpy as np

from qsim.evaluation.study import Block, MethodResult

# of the layout below; a block of another layout is computed again
_LAYOUT = 2


def block_path(folder: Path, draw: int, snr: float) -> Path:
    """File of a block."""
    # all digits: two SNRs never share a file
    return folder / f"draw{draw:03d}_snr{repr(float(snr)).removesuffix('.0')}.npz"


def write_block(folder: Path, block: Block, digest: str) -> None:
    """Write a block beside its name first, then move it there: a killed study leaves no half of one."""
    arrays: dict[str, np.ndarray] = {name: getattr(block, name) for name in ("kappa", "labels", "purity", "mask")}
    arrays |= {f"bound/{name}": bound for name, bound in block.bounds.items()}
    for i, result in enumerate(block.methods.values()):
        arrays |= {f"{i}/{field.name}": np.asarray(getattr(result, field.name)) for field in fields(MethodResult)}
    about = {
        "layout": _LAYOUT,
        "digest": digest,
        "draw": block.draw,
        "snr": block.snr,
        "sigma": block.sigma,
        "repeats": block.repeats,
        "tissues": block.tissues,
        "methods": list(block.methods),
        "bounds": list(block.bounds),
    }
    path = block_path(folder, block.draw, block.snr)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_block(folder: Path, draw: int, snr: float, digest: str) -> Block | None:
    """The block, or None if there is none, it is damaged, or it belongs to another study: then it is computed again."""
    path = block_path(folder, draw, snr)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            about = json.loads(str(arrays["about"]))
            if about["layout"] != _LAYOUT or about["digest"] != digest:
                return None
            methods = {}
            for i, name in enumerate(about["methods"]):
                stored = {field.name: arrays[f"{i}/{field.name}"] for field in fields(MethodResult)}
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
    except (FileNotFoundError, zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError):
        return None
