"""The console script: quick to start, one clear message and exit status 2 for bad input, lists and schemas."""

import json
import subprocess
import sys

import pytest

from qsim import __version__


def qsim(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "trainers.cli", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_imports_nothing_heavy():
    code = (
        "import sys, trainers.cli\n"
        "heavy = {'torch', 'numpy', 'scipy', 'zarr', 'dask', 'pydantic', 'nibabel', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_help_names_every_command():
    done = qsim("--help")
    assert done.returncode == 0
    for command in (
        "generate",
        "inspect",
        "verify",
        "train",
        "study",
        "bound",
        "corrupt",
        "map",
        "phantom",
        "list",
        "schema",
    ):
        assert command in done.stdout


def test_version():
    assert qsim("--version").stdout.strip() == f"qsim {__version__}"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("generate", "nowhere.yaml", "--out", "x.zarr"), "nowhere.yaml: cannot be read"),
        (("train", "nowhere.yaml", "--out", "run"), "nowhere.yaml: cannot be read"),
        (("study", "nowhere.yaml", "--out", "study"), "nowhere.yaml: cannot be read"),
        (("inspect", "nowhere.zarr"), "nowhere.zarr"),
        (("verify", "nowhere.zarr"), "nowhere.zarr"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path, arguments, expected):
    done = qsim(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert expected in done.stderr
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback(tmp_path):
    done = qsim("generate", "nowhere.yaml", "--out", "x.zarr", "--debug", cwd=tmp_path)
    assert "Traceback" in done.stderr


def test_list_and_schema():
    listed = json.loads(qsim("list", "--json").stdout)
    assert {"inversion_recovery", "t2_prep", "spin_lock", "spin_echo", "inversion_recovery_2p"} <= set(listed["models"])
    kinds = {
        "mni",
        "brainweb",
        "brainweb_fuzzy",
        "geometry",
        "system_phantom",
        "liver",
        "heart",
        "with_structures",
        "deformed",
    }
    assert kinds == set(listed["phantoms"])
    assert {"least-squares", "shared-b"} <= set(listed["estimators"])
    assert {"rim", "resnet"} <= set(listed["networks"])
    assert {"rf_spike", "k_space_noise"} <= set(listed["artefacts"])
    schema = json.loads(qsim("schema", "generate").stdout)
    assert "ti" in json.dumps(schema["$defs"]["InversionRecovery"])
    assert set(json.loads(qsim("schema", "artefacts").stdout)["properties"]) == {"artefacts", "seed"}
    assert set(json.loads(qsim("schema", "study").stdout)["properties"]) >= {"data", "estimators", "snr", "repeats"}
