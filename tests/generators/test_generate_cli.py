"""The commands generate, inspect and verify."""

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner

from generators import cli, preview, preview_figures
from generators.build import build
from generators.config import GeneratorConfig
from generators.store import PatchStore
from qsim.errors import InputError

Make = Callable[..., GeneratorConfig]

app = typer.Typer()
for command in (cli.generate, cli.inspect, cli.verify):
    app.command()(command)


@pytest.fixture(scope="module")
def folder(generator_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "config.yaml").write_text(yaml.safe_dump(generator_config().model_dump(mode="json")))
    assert call("generate", folder / "config.yaml", "--out", folder / "s.zarr") == 0
    return folder


def call(*arguments: object) -> int:
    return run(*arguments)[0]


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_generate_says_one_line(folder: Path, tmp_path: Path) -> None:
    code, output = run("generate", folder / "config.yaml", "--out", tmp_path / "s.zarr", "--samples", 5, "--workers", 2)
    assert code == 0
    assert re.fullmatch(r".*s\.zarr: 5 samples, 5 made in [\d.]+ s \(\d+ per second\)\n", output)
    assert len(PatchStore(tmp_path / "s.zarr")) == 5
    assert run("generate", folder / "config.yaml", "--out", folder / "s.zarr")[1].endswith(
        "21 samples, all there already\n"
    )


def test_generate_refuses(folder: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (("--samples", 0), "--samples: must be at least 1, got 0"),
        (("--workers", 0), "workers: must be at least 1"),
        (("--workers", 2, "--scheduler", "tcp://127.0.0.1:1"), "does not go with the address"),
    ):
        with pytest.raises(InputError, match=message):
            run("generate", folder / "config.yaml", "--out", tmp_path / "s.zarr", *arguments)
    with pytest.raises(InputError, match=r"missing\.yaml: cannot be read"):
        run("generate", tmp_path / "missing.yaml", "--out", tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()


def test_inspect_counts_what_is_there(folder: Path) -> None:
    code, output = run("inspect", folder / "s.zarr", "--json")
    assert code == 0
    found = json.loads(output)
    data = PatchStore(folder / "s.zarr").read(0, 21)
    assert found["samples"] == 21
    assert found["patch"] == [12, 11]
    assert found["times_s"] == [0.1, 0.4, 0.9]
    assert found["background"] == pytest.approx(float((data.labels == 0).double().mean()))
    assert found["sigma"] == pytest.approx([float(data.sigma.min()), float(data.sigma.max())])
    assert found["snr"] == pytest.approx([0.65 / float(data.sigma.max()), 0.65 / float(data.sigma.min())])
    tissue = data.labels > 0
    assert found["mixed"] == pytest.approx(float((data.purity[tissue] < 0.9).double().mean()))
    row = next(row for row in found["rows"] if (row["tissue"], row["parameter"]) == ("gm", "T1"))
    t1 = data.kappa[:, 2][data.labels == 2].double()
    assert row["unit"] == "s"
    assert row["share"] == pytest.approx(float((data.labels == 2).double().mean()))
    assert [row["low"], row["mean"], row["sd"], row["high"]] == pytest.approx(
        [float(t1.min()), float(t1.mean()), float(t1.std()), float(t1.max())]
    )
    assert found["attributes"]["digest"] == PatchStore(folder / "s.zarr").config.digest


def test_inspect_prints_milliseconds(folder: Path) -> None:
    output = run("inspect", folder / "s.zarr")[1]
    assert "100 to 900 ms" in output
    assert "SNR = 0.65 / sigma" in output
    assert re.search(r"wm .*T1 .* ms", output)


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (37.4, "37 per second"),
        (2.0, "2 per second"),
        (1.5, "90 per minute"),
        (0.25, "15 per minute"),
        (1 / 60, "60 per hour"),
    ],
)
def test_rates_are_counts_of_something(rate: float, text: str) -> None:
    assert cli.rate_text(rate) == text


def test_an_interrupted_command_says_what_stands(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("generators.build.build", interrupted)
    code, output = run("generate", folder / "config.yaml", "--out", tmp_path / "s.zarr")
    assert code == 130
    assert output == "qsim: stopped; the same command goes on\n"


def test_the_snr_of_a_sequence_is_that_of_its_images(generator_config: Make, tmp_path: Path) -> None:
    # small flip angles leave a part of A: 0.65 / sigma is not their SNR
    kind = {"kind": "spoiled_gradient_echo", "flip_angles": [0.05, 0.2, 0.3], "tr": 0.01}
    build(generator_config(model=kind), tmp_path / "s.zarr")
    store = PatchStore(tmp_path / "s.zarr")
    output = run("inspect", store.path, "--html", tmp_path / "page.html")[1]
    assert "0.65" not in output
    assert "0.65 /" not in (tmp_path / "page.html").read_text()
    found = preview.summarise(store)
    data = store.read(0, len(store))
    assert data.images is not None
    ratios = (data.images[:, 0].double().abs() / data.sigma.double()[:, None, None])[data.labels > 0]
    assert (found.snr, found.looked_at) == (None, len(store))
    assert found.first_over_sigma == pytest.approx(float(np.median(ratios.numpy())))
    assert f"first image / sigma {found.first_over_sigma:.3g}" in output


def test_colours_of_maps_leave_out_the_extremes() -> None:
    # 3 % of fluid at 2000 ms, 97 % of tissue from 30 to 60 ms
    values = np.concatenate([np.linspace(30, 60, 970), np.full(30, 2000.0), [np.nan]])
    low, high = preview_figures._shown("T2", values)
    assert (low, high) == (np.nanpercentile(values, 2), np.nanpercentile(values, 98))
    assert preview_figures._shown("REL_B1", np.array([0.8, 1.0, 1.1])) == pytest.approx((0.801, 1.199), abs=2e-3)


def test_many_tissues_have_colours_of_their_own() -> None:
    for count in (3, 10, 15, 20):
        assert len(set(preview_figures._tissue_colours(count))) == count


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"store": "maps", "partial_volume": False, "model": {"kind": "t2_prep", "te_prep": [0.01, 0.08]}},
        {
            "phantom": {"kind": "mni"},
            "patch": [5, 6, 7],
            "samples": 2,
            "model": {"kind": "spin_lock", "tsl": [0.02]},
            "tissues": {
                "kind": "table",
                "name": "x",
                "field_strength": 3.0,
                "tissues": [
                    {
                        "name": name,
                        "source": "made up",
                        "values": {
                            "A": {"kind": "constant", "value": 1.0},
                            "T1RHO": {"kind": "constant", "value": 0.1},
                        },
                    }
                    for name in ("csf", "gm", "wm")
                ],
            },
        },
    ],
)
def test_the_page_is_self_contained(generator_config: Make, tmp_path: Path, changes: dict[str, object]) -> None:
    config = generator_config(**changes)
    build(config, tmp_path / "s.zarr")
    page = tmp_path / "page.html"
    assert call("inspect", tmp_path / "s.zarr", "--html", page) == 0
    text = page.read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert len(pictures) == 2
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    # nothing from elsewhere, and small enough to send by mail
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert len(text) < 3_000_000
    assert config.digest in text


def test_verify(folder: Path, tmp_path: Path) -> None:
    assert call("verify", folder / "s.zarr") == 0
    code, output = run("verify", folder / "s.zarr", "--json")
    assert (code, json.loads(output)["whole"]) == (0, True)
    with pytest.raises(InputError, match="no such store"):
        run("verify", tmp_path / "s.zarr")


def test_verify_names_bad_shards(folder: Path, tmp_path: Path) -> None:
    run("generate", folder / "config.yaml", "--out", tmp_path / "s.zarr")
    file = tmp_path / "s.zarr/labels/c/0/0/0"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    code, output = run("verify", tmp_path / "s.zarr")
    assert code == 1
    assert output == "labels/c/0/0/0: checksum differs\n"
    code, output = run("verify", tmp_path / "s.zarr", "--json")
    assert code == 1
    assert json.loads(output)["wrong"] == ["labels/c/0/0/0: checksum differs"]
