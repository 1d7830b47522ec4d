"""Fixtures that tests of studies share."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from trainers.config import TrainConfig
from trainers.fit import fit


@pytest.fixture(scope="session")
def tiny_rim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a RIM for inversion recovery after a few updates; it takes any inversion times."""
    discs = [
        {"shape": "disc", "tissue": "gm", "radius_mm": 9.0},
        {"shape": "disc", "tissue": "wm", "radius_mm": 5.0},
    ]
    data = {
        "seed": 3,
        "samples": 8,
        "patch": [12, 12],
        "phantom": {"kind": "geometry", "size": [24, 24], "spacing_mm": [1.0, 1.0], "shapes": discs},
        "tissues": {"kind": "sabidussi2021"},
        "model": {"kind": "inversion_recovery", "ti": [0.2, 0.4, 0.8, 1.6, 2.0]},
        "noise": {"kind": "gaussian", "sigma": {"kind": "constant", "value": 0.02}},
    }
    config = TrainConfig.model_validate(
        {
            "seed": 1,
            "data": {"generate": data},
            "task": {"kind": "rim"},
            "network": {"kind": "rim", "features": 4, "steps": 2},
            "iterations": 4,
            "batch": 4,
            "lr": 0.01,
            "validation": 0.0,
            "precision": "fp32",
        }
    )
    folder = tmp_path_factory.mktemp("runs") / "rim"
    fit(config, folder, device="cpu", console=Console(file=io.StringIO()))
    return folder
