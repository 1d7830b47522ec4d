"""Fixtures that several packages share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

from generators.config import GeneratorConfig


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Torch on one thread: several are slower on a busy machine, and sums could differ in their last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Signatures unchecked, as for users: what they get for a wrong dtype is the library's own message."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of the real data, or skip."""
    named = os.environ.get("QSIM_TEST_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; name their folder in QSIM_TEST_DATA")
    return folder


DISCS: dict[str, Any] = {
    "kind": "geometry",
    "size": [30, 26],
    "spacing_mm": [1.0, 1.0],
    "shapes": [
        {"shape": "disc", "tissue": "csf", "radius_mm": 11.3},
        {"shape": "disc", "tissue": "gm", "radius_mm": 9.1, "centre_mm": [1.0, 0.5]},
        {"shape": "disc", "tissue": "wm", "radius_mm": 5.7},
    ],
}


@pytest.fixture(scope="session")
def generator_config() -> Callable[..., GeneratorConfig]:
    """A small generator config on analytic discs, with changes by key."""

    def make(**changes: Any) -> GeneratorConfig:
        mapping: dict[str, Any] = {
            "seed": 5,
            "samples": 21,
            "patch": [12, 11],
            "phantom": DISCS,
            "tissues": {"kind": "sabidussi2021"},
            "model": {"kind": "inversion_recovery", "ti": [0.1, 0.4, 0.9]},
            "noise": {"kind": "gaussian", "sigma": {"kind": "log_uniform", "low": 0.0065, "high": 0.255}},
        }
        return GeneratorConfig.model_validate(mapping | changes)

    return make
