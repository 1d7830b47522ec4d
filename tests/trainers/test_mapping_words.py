"""What `qsim map` says where maps are in doubt, and of names that a font lacks."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from qsim.parameters import T1
from trainers.mapping import command
from trainers.mapping.quick_look import Panel, drawable, picture
from trainers.mapping.series import _doubt
from trainers.studies.phantom_config import PhantomConfig


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"ok": 0.024, "at bound": 0.976}, "97.6 % at a bound: is inversion_recovery the right signal model?"),
        (
            {"ok": 0.4, "at bound": 0.25, "not converged": 0.35},
            "25 % at a bound, 35 % not converged: is inversion_recovery the right signal model?",
        ),
        ({"ok": 0.5, "at bound": 0.5}, None),
        # left out by a mask is no failure of the model
        ({"ok": 0.1, "not computed": 0.9}, None),
    ],
)
def test_most_voxels_at_a_bound_put_the_model_in_doubt(shares: dict[str, float], said: str | None) -> None:
    assert _doubt(shares, "inversion_recovery") == (() if said is None else (f"warning: {said}",))


def test_letters_that_the_font_lacks_are_written_out(tmp_path: Path) -> None:
    assert drawable("ünï 测试 $1$") == r"ünï \u6d4b\u8bd5 \$1\$"
    ones = np.ones((4, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture([Panel(T1, ones, 2.0, ones > 0)], (1.0, 1.0), "ünï 测试 $1$", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_map_says_that_nothing_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "map_series", interrupted)
    np.save(tmp_path / "a.npy", np.ones((3, 1, 4, 4), np.float32))
    words = command.MapWords(
        method="least-squares", signal="inversion_recovery", times="0.1,0.5,2", axes="nzyx", voxel_mm="1,1,1"
    )
    with pytest.raises(KeyboardInterrupt):
        command.run(tmp_path / "a.npy", tmp_path / "out", words, as_json=False)
    assert capsys.readouterr().err == "qsim: stopped; nothing was written\n"
    assert not (tmp_path / "out").exists()


def test_a_kind_under_a_parameter_is_one_mistake() -> None:
    data = {"scans": {"series": ["a.nii"]}, "regions": "r.nii", "nominal": {"T1": {"kind": "csv", "path": "a.csv"}}}
    with pytest.raises(
        ValidationError, match=r"data\.nominal: kind stands directly under nominal, not under T1"
    ) as caught:
        PhantomConfig.model_validate({"seed": 1, "kind": "phantom", "data": data, "estimators": ["least-squares"]})
    assert caught.value.error_count() == 1
