"""Every mistake in a config is one line that names the field; nothing is ignored."""

import copy

import pytest
import yaml

from generators.config import GeneratorConfig
from generators.fitting import check_places
from generators.reading import read_config
from phantoms import MNI, BrainWeb, FuzzyBrain, Geometry, SystemPhantom, WithStructures
from phantoms.fields import ShimBox
from phantoms.shapes.geometry import Ball
from phantoms.shapes.structures import Point
from qsim.errors import InputError

GOOD = {
    "seed": 1,
    "samples": 10,
    "patch": [12, 12],
    "phantom": {"kind": "mni"},
    "tissues": {"kind": "sabidussi2021"},
    "model": {"kind": "inversion_recovery", "ti": [0.1, 0.5, 0.9]},
    "noise": {"kind": "gaussian", "sigma": {"kind": "log_uniform", "low": 0.0065, "high": 0.255}},
}


def changed(path, content):
    mapping = copy.deepcopy(GOOD)
    *above, last = path.split(".")
    here = mapping
    for key in above:
        here = here[key]
    here[last] = content
    return mapping


def complaint(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_config(path, GeneratorConfig)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(str(path)) for line in lines)
    return [line.removeprefix(f"{path}").lstrip(": ,") for line in lines]


def test_a_good_config_reads_back_as_itself(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    config = read_config(path, GeneratorConfig)
    assert config == GeneratorConfig(**GOOD)
    assert GeneratorConfig.model_validate_json(config.canonical) == config
    assert [p.name for p in config.signal_model.parameters] == ["A", "B", "T1"]


def test_the_digest_leaves_out_the_number_of_samples_only():
    digest = GeneratorConfig(**GOOD).digest
    assert GeneratorConfig(**changed("samples", 99)).digest == digest
    for path, content in [("seed", 2), ("model.ti", [0.1, 0.5, 0.8]), ("split", "test"), ("patch", [12, 13])]:
        assert GeneratorConfig(**changed(path, content)).digest != digest


@pytest.mark.parametrize(
    ("path", "content", "expected"),
    [
        ("samplse", 3, "samplse: unknown key; did you mean samples?"),
        ("model.tis", [0.1], "model.tis: unknown key; did you mean ti?"),
        ("model.ti", [139, 166], "model.ti must be in seconds, got 166; divide by 1000"),
        ("model.ti", [], "model.ti is empty"),
        ("model.ti", [-0.1], "model.ti must not be negative"),
        ("model.ti", [0.1, float("nan")], "model.ti[1]: input should be a finite number"),
        ("model.ti", "0.1", "model.ti: input should be a valid tuple"),
        ("model.kind", "invrec", "model.kind: got 'invrec', wanted one of 'inversion_recovery'"),
        ("noise.sigma", 0.1, "noise.sigma: got 0.1, wanted a mapping with a kind"),
        ("noise.sigma", {"low": 1, "high": 2}, "noise.sigma.kind: missing"),
        ("noise.sigma", {"kind": "lognormal", "low": 1}, "noise.sigma.kind: got 'lognormal', wanted one of"),
        ("noise.sigma", {"kind": "normal", "mean": 1, "sd": 0.1}, "noise.sigma must stay positive"),
        ("noise.sigma", {"kind": "uniform", "low": 2, "high": 1}, "noise.sigma.low must be below high"),
        ("noise.kind", "signed", "noise: kind signed needs a signed model"),
        ("model.signed", True, "noise: a signed model needs kind: signed"),
        ("samples", "abc", "samples: input should be a valid integer, got 'abc'"),
        ("samples", True, "samples: input should be a valid integer"),
        ("samples", 0, "samples: input should be greater than or equal to 1"),
        ("seed", -1, "seed: input should be greater than or equal to 0"),
        ("patch", [40], "patch must hold two numbers"),
        ("targets", ["T2"], "targets: T2 is no row of the model"),
        ("targets", ["T1", "A", "T1"], "targets: T1 given twice; name each row once"),
        ("model", 3, "model: got 3, wanted a mapping with a kind: inversion_recovery, "),
        ("phantom", "mni", "phantom: got 'mni', wanted a mapping with a kind: mni, brainweb, brainweb_fuzzy, geometry"),
        ("fields", ["b0"], "fields[0]: got 'b0', wanted a mapping with a kind: b0, b1, "),
        (
            "noise.sigma",
            {"kind": "truncated", "of": {"kind": "truncated", "of": 3, "low": 1.0}, "low": 1.0},
            "noise.sigma.of.kind: got 'truncated', wanted one of 'normal'",
        ),
        ("model", {"kind": "spin_lock", "tsl": [0.0, 0.01]}, "tissues: csf has no T1RHO"),
        ("artefacts", [{"kind": "rf_spike", "amplitude": -1}], "artefacts[0].amplitude must be at least 0, got -1"),
        ("artefacts", [{"kind": "rf_spke"}], "artefacts[0].kind: got 'rf_spke'"),
        ("store", "maps", "store: maps holds the majority tissue only"),
        ("split", "tarin", "split: input should be 'train' or 'test'"),
    ],
)
def test_one_clear_line(tmp_path, path, content, expected):
    lines = complaint(tmp_path, yaml.safe_dump(changed(path, content)))
    assert len(lines) == 1
    assert lines[0].startswith(expected)


def test_all_mistakes_at_once(tmp_path):
    mapping = changed("model.ti", [])
    mapping["seed"] = -1
    del mapping["patch"]
    assert complaint(tmp_path, yaml.safe_dump(mapping)) == [
        "seed: input should be greater than or equal to 0, got -1",
        "patch: missing",
        "model.ti is empty; give at least one time in seconds",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1, 2", "line 1: expected"),
        ("- 1\n", "must hold `key: value` lines"),
        ("seed: 1\nseed: 2\n", "line 1: the key seed is given twice"),
        ("a: &x [1]\nb: *x\n", "line 2: anchors and aliases"),
        ("!!python/object/apply:os.system ['true']\n", "line 1: could not determine a constructor"),
        ("{" * 5000, "nested too deeply"),
        ("a" * 1_000_001, "larger than 1 MB"),
    ],
)
def test_unreadable_and_malicious_files(tmp_path, text, expected):
    assert complaint(tmp_path, text)[0].startswith(expected)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml: cannot be read \(No such file"):
        read_config(tmp_path / "nowhere.yaml", GeneratorConfig)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match=r"binary\.yaml: not a text file"):
        read_config(tmp_path / "binary.yaml", GeneratorConfig)


@pytest.mark.parametrize(
    ("phantom", "expected"),
    [
        (
            {"kind": "brainweb", "path": "x", "block": [2, 2]},
            "block: got [2, 2], wanted a whole number or a list of three",
        ),
        ({"kind": "brainweb", "path": 5}, "path: got 5, wanted a text or a list of them"),
        ({"kind": "brainweb", "path": "x", "labels": "discret"}, "labels: got 'discret', wanted one of 'discrete', "),
        ({"kind": "brainweb", "path": "x", "labels": {"a": "gm"}}, "labels.a: input should be a valid integer"),
        ({"kind": "brainweb", "path": "x", "voxel_mm": [1, 1]}, "voxel_mm[2]: missing"),
        ({"kind": "brainweb_fuzzy", "fractions": ["a"]}, "fractions: got ['a'], wanted a mapping of keys and values"),
        (
            {"kind": "with_structures", "phantom": "mni", "structures": [{"shape": "point", "tissue": "csf"}]},
            "phantom: got 'mni', wanted a mapping with a kind: mni, brainweb, brainweb_fuzzy, geometry, system_phantom",
        ),
        # what pydantic would take for the first that fits
        (
            {"kind": "with_structures", "phantom": {}, "structures": [{"shape": "point", "tissue": "csf"}]},
            "phantom.kind: missing; wanted mni, ",
        ),
        (
            {"kind": "with_structures", "phantom": {"kind": "mni"}, "structures": [{"tissue": "csf"}]},
            "structures[0].shape: missing; wanted square, tumour, point or line",
        ),
        (
            {
                "kind": "with_structures",
                "phantom": {"kind": "mni"},
                "structures": [{"shape": "square", "tissue": "csf", "extent": 20}],
            },
            "structures[0].extent: got 20, wanted a list of two whole numbers or a list of three whole numbers",
        ),
    ],
)
def test_one_clear_line_for_what_a_phantom_holds(tmp_path, phantom, expected):
    (line,) = complaint(tmp_path, yaml.safe_dump(GOOD | {"phantom": phantom}))
    assert line.startswith(f"phantom.{expected}")


def test_the_axis_of_a_shim_box_lies_in_the_patch_of_every_phantom():
    anatomies = (
        MNI(),
        BrainWeb(path="x"),
        FuzzyBrain(fractions={"gm": "x"}),
        SystemPhantom(),
        Geometry(size=(8, 8, 8), spacing_mm=(1.0, 1.0, 1.0), shapes=(Ball(tissue="gm", radius_mm=3.0),)),
    )
    for anatomy in anatomies:
        for phantom in (anatomy, WithStructures(phantom=anatomy, structures=(Point(tissue="csf"),))):
            check_places([ShimBox(axis=2)], phantom, (4, 4), 1)
            check_places([ShimBox(axis=1)], phantom, (4, 4, 4), 1)
            with pytest.raises(
                ValueError, match=r"fields\[0\]\.axis must lie in the patch \(axis 0, 2 of the volume\)"
            ):
                check_places([ShimBox(axis=1)], phantom, (4, 4), 1)
