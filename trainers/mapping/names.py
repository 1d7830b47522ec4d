"""What the maps of a series are called where another series of the same subject has maps of that name already.

The S0map of a MESE series and that of a MEGRE series are both `sub-01_S0map`. The second gets the suffix of its
series in the entity `acq`, as do the other maps of it: `sub-01_acq-MEGRE_S0map`, `sub-01_acq-MEGRE_T2starmap`. Series
are taken as different if both their files and their signal models are; anything else is a repetition, or a mistake, and
is refused or replaced as `--overwrite` says.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from phantoms.files.derivatives import MapName
from qsim.parameters import Parameter
from trainers.mapping.output import folder_of, suffix_of


def stems(name: MapName, written: Sequence[Parameter], rows: tuple[Parameter, ...]) -> list[str]:
    """Files of the maps of a method, without ending."""
    return sorted({str(name.folder(folder_of(p)) / name.stem(suffix_of(p, rows))) for p in written})


def told_apart(
    name: MapName, planned: Iterable[str], out: Path, kind: str, suffix: str, files: Sequence[str]
) -> tuple[MapName, tuple[str, ...]]:
    """A name that no other series has, and a note if it had to be made.

    Args:
        planned: files of the maps, without ending.
        kind: of the signal model.
        suffix: of the series; empty: `kind` stands for it.
        files: BIDS URIs of the series.
    """
    taken = [stem for stem in planned if _another(out / f"{stem}.json", kind, files)]
    if not taken:
        return name, ()
    kept = dict(name.entities)
    label = kept.pop("acq", "") + (suffix or re.sub("[^a-zA-Z0-9]", "", kind))
    found = replace(name, entities=(("acq", label), *kept.items()))
    return found, (f"{Path(taken[0]).name} is there, of another series: these maps are named acq-{label}",)


def _another(sidecar: Path, kind: str, files: Sequence[str]) -> bool:
    """Whether a map is there that was made of another series with another signal model."""
    try:
        said = json.loads(sidecar.read_text(encoding="utf-8"))
        sources, model = said["Sources"], said["SignalModel"]["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return model != kind and _paths(sources) != _paths(files)


def _paths(uris: Sequence[str]) -> list[str]:
    """What follows the name of the data set."""
    return [str(each).rpartition(":")[2] for each in uris]
