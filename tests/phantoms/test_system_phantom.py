"""The system phantom: values against the published files, geometry against volumes, random points and a real scan."""

import csv
import json
from math import exp, pi
from pathlib import Path

import nibabel
import numpy as np
import pytest

from generators.config import GeneratorConfig
from generators.reading import read_config
from generators.sample import make_truth
from phantoms import SystemPhantom
from phantoms.base import PhantomSpec, as_fractions
from phantoms.files.export import labels_of, write
from phantoms.system_phantom import PROTOCOLS, spheres
from qsim.errors import InputError
from qsim.system_phantom import SystemPhantomTable, nominal, sphere_names
from qsim.tissue_tables import TISSUE_TABLES

CONFIGS = Path(__file__).parents[2] / "configs" / "sabidussi2021"
# small and coarse: the whole body in few voxels, slices that touch
COARSE = {"matrix": (58, 52), "voxel_mm": (3.5, 3.9), "slices": 51, "slice_thickness_mm": 4.0, "gap_mm": 0.0}
ONE_SLICE = {"matrix": (120, 120), "voxel_mm": (1.0, 1.0), "slices": 9, "slice_thickness_mm": 3.0, "gap_mm": 1.0}


def rows_of(data_folder, name):
    file = data_folder / "nist_system_phantom" / name
    if not file.is_file():
        pytest.skip(f"no {file}")
    with file.open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def philox(seed):
    return np.random.Generator(np.random.Philox(seed))


def test_relaxation_times_are_the_published_ones(data_folder):
    seen = 0
    for row in rows_of(data_folder, "nist_reference_T1_T2.csv"):
        if row["note"]:
            continue
        array = "t1" if row["array"].startswith("T1") else "t2"
        serial = 41 if row["source"] == "K3290" else 42
        sphere = nominal(array, serial, float(row["field_T"]))[int(row["sphere"]) - 1]
        assert sphere.t1 == pytest.approx(float(row["T1_ms"]) / 1000, rel=1e-12)
        assert sphere.t2 == pytest.approx(float(row["T2_ms"]) / 1000, rel=1e-12)
        seen += 1
    assert seen == 14 * (4 + 2)


def test_temperature_and_density_are_the_published_ones(data_folder):
    for row in rows_of(data_folder, "nist_T1array_v2_3T_vs_temperature_ms.csv"):
        for listed in (16, 18, 20, 22, 24, 26):
            ours = nominal("t1", 42, 3.0, float(listed))[int(row["sphere"]) - 1]
            # at 20 the file is rounded to 0.01 ms, the calibration is not
            assert ours.t1 == pytest.approx(float(row[f"{listed}C"]) / 1000, abs=5.1e-6)
    for row in rows_of(data_folder, "nist_PD_array_percent.csv"):
        assert nominal("pd", 1, 1.5)[int(row["sphere"]) - 1].a == float(row["PD_percent"]) / 100


def test_two_versions_agree_with_the_table_that_holds_standard_deviations(data_folder):
    for row in rows_of(data_folder, "nist_T1array_3T_20C_with_sd_ms.csv"):
        number = int(row["sphere"]) - 1
        for version, serial in (("v1", 1), ("v2", 1000)):
            assert nominal("t1", serial, 3.0)[number].t1 == pytest.approx(
                float(row[f"{version}_T1_ms"]) / 1000, abs=5.1e-6
            )


def test_some_printed_numbers():
    """Without the files: sphere 1, 7 and 14 as printed; 21 degrees is halfway between 20 and 22."""
    assert [nominal("t1", 41, 3.0)[i].t1 for i in (0, 6, 13)] == pytest.approx([1.989, 0.24713, 0.021719])
    assert [nominal("t2", 41, 1.5)[i].t2 for i in (0, 6, 13)] == pytest.approx([0.9394, 0.09176, 0.00815])
    assert [nominal("t2", 42, 3.0)[i].t2 for i in (0, 6, 13)] == pytest.approx([0.552733, 0.063423, 0.005097])
    halfway = nominal("t1", 42, 3.0, 21.0)[0]
    assert halfway.t1 == pytest.approx((1.883965 + 1.93734) / 2)
    assert halfway.t2 is None
    assert nominal("t1", 42, 3.0, 17.5)[3].t1 == pytest.approx((0.67507 + 3 * 0.68688) / 4)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"serial": 0}, "serial is the number after 130-"),
        ({"field_strength": 7.0}, "field_strength must be 1.5 or 3.0 T, got 7"),
        ({"field_strength": 1.5}, "field_strength must be 3.0 T for serials from 130-0042"),
        ({"temperature": 26.5}, "temperature must lie between 16 and 26 degrees C"),
        ({"temperature": 15.9}, "temperature must lie between 16 and 26"),
        ({"temperature": float("nan")}, "temperature must be finite"),
        ({"serial": 41, "temperature": 22.0}, "temperature must be 20 degrees C for serials to 130-0041"),
    ],
)
def test_what_is_not_published_is_refused(conditions, message):
    asked = {"serial": 42, "field_strength": 3.0} | conditions
    with pytest.raises(ValueError, match=rf"^{message}"):
        SystemPhantomTable(**asked)
    with pytest.raises(ValueError, match=rf"^{message}"):
        nominal("t1", **asked)


def test_tables_of_other_arrays_are_refused():
    with pytest.raises(ValueError, match=r"^temperature must be 20 degrees C for the T2 array"):
        nominal("t2", 42, 3.0, 22.0)
    with pytest.raises(ValueError, match=r"^b must lie between 1 .* got 2.1"):
        SystemPhantomTable(serial=42, field_strength=3.0, b=2.1)
    with pytest.raises(ValueError, match=r"^pd_t1 must be in seconds"):
        SystemPhantomTable(serial=42, field_strength=3.0, pd_t1=250.0)


def test_table_holds_every_sphere_and_the_water():
    assert SystemPhantomTable in TISSUE_TABLES
    table = SystemPhantomTable(serial=42, field_strength=3.0, b=1.9).table()
    assert table.names == (*sphere_names("t1"), *sphere_names("t2"), *sphere_names("pd"), "water")
    assert table["t2_03"].values["T2"].ppf(np.array([0.1, 0.9])) == pytest.approx([0.267289] * 2)
    assert table.per_sample["B"].ppf(np.array([0.5])) == pytest.approx([1.9])
    assert set(table["pd_01"].values) == {"A"}
    assert set(table["t1_01"].values) == {"A", "T1", "T2"}
    # warm: T1 of the T1 array alone
    warm = SystemPhantomTable(serial=42, field_strength=3.0, temperature=23.0).table()
    assert "t2_01" not in warm.names
    assert set(warm["t1_01"].values) == {"A", "T1"}
    given = SystemPhantomTable(serial=1, field_strength=1.5, pd_t1=0.5, pd_t2=0.1).table()
    assert set(given["pd_01"].values) == {"A", "T1", "T2"}


def test_volumes_are_those_of_balls():
    """Slices that touch and hold the whole body: shares add up to 4/3 pi r^3."""
    spec = SystemPhantom(array="t2", centre_mm=0.0, **COARSE)
    fractions = spec.fractions()
    voxel = 3.5 * 3.9 * 4.0
    volumes = fractions.sum(axis=(1, 2, 3)) * voxel
    np.testing.assert_allclose(volumes[:14], 4 / 3 * pi * 7.5**3, rtol=1e-8)
    assert volumes[14] == pytest.approx(4 / 3 * pi * (100**3 - 14 * 10**3), rel=1e-8)
    assert fractions.min() >= 0
    assert fractions.sum(axis=0).max() <= 1 + 1e-9
    # middles, through the affine
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in spec.shape), indexing="ij"), axis=-1)
    world = grid @ spec.affine[:3, :3].T + spec.affine[:3, 3]
    for share, sphere in zip(fractions, spec.spheres, strict=False):
        middle = np.tensordot(share, world, 3) / share.sum()
        # the middle of a voxel stands for what fills it: exact only for whole voxels
        np.testing.assert_allclose(middle, sphere.centre_mm, atol=0.2)


def test_shares_are_those_of_random_points_in_each_slice():
    """Points in the thickness of a slice; none in the gap."""
    spec = SystemPhantom(array="t1", **ONE_SLICE)
    fractions = spec.fractions()
    sphere = spec.spheres[7]
    index = np.rint(np.linalg.solve(spec.affine, [*sphere.centre_mm, 1]))[:3].astype(int)
    rng, count = philox(3), 20_000
    partial = 0
    for _ in range(25):
        at = index + rng.integers(-9, 10, 3) * [1, 1, 0] + [0, 0, rng.integers(-2, 3)]
        middle = spec.affine[:3, :3] @ at + spec.affine[:3, 3]
        points = middle + (rng.random((count, 3)) - 0.5) * [1.0, 1.0, 3.0]
        distance = np.linalg.norm(points - sphere.centre_mm, axis=1)
        solution, water = (distance < 7.5).mean(), (distance > 10).mean()
        ours = fractions[(slice(None), *at)]
        # 4.5 standard errors of a share
        assert ours[7] == pytest.approx(solution, abs=4.5 * 0.5 / count**0.5)
        assert ours[14] == pytest.approx(water, abs=4.5 * 0.5 / count**0.5)
        partial += 0.05 < solution < 0.95
    assert partial >= 3


@pytest.mark.parametrize("field_strength", ["1.5T", "3.0T"])
def test_spheres_stand_as_in_a_real_scan(data_folder, field_strength):
    """Regions drawn on a scan of the T2 plate: the same arrangement, whatever the scan's scale, place and turn.

    Region k of the file is sphere 15 - k, seen from the other side.
    """
    file = data_folder / "nist_system_phantom" / f"T2plate_{field_strength}_Freiburg_rois.nii.gz"
    if not file.is_file():
        pytest.skip(f"no {file}")
    regions = np.asarray(nibabel.load(file).dataobj).squeeze()
    drawn = np.array([np.argwhere(regions == k).mean(axis=0) for k in range(14, 0, -1)]) * [1, -1]
    ours = np.array([sphere.centre_mm[:2] for sphere in spheres(["t2"])])
    drawn, ours = drawn - drawn.mean(axis=0), ours - ours.mean(axis=0)
    # least squares over turn and scale: complex numbers
    z, w = drawn @ [1, 1j], ours @ [1, 1j]
    factor = np.vdot(z, w) / np.vdot(z, z)
    assert abs(factor) == pytest.approx(250 / 256, rel=0.01)
    assert np.abs(factor * z - w).max() < 1.2


def test_regions_hold_nothing_but_their_sphere():
    spec = SystemPhantom(array="t1")
    regions, fractions = spec.rois(), as_fractions(spec.load("test", 2).volumes[0])
    assert regions.shape == spec.shape == (210, 210, 15)
    voxel, counts = 0.82 * 0.82 * 1.5, np.bincount(regions.ravel(), minlength=15)[1:]
    for t, sphere in enumerate(spec.spheres):
        inside = regions == 1 + t
        assert fractions[t][inside].min() == 1
        at = np.argwhere(inside) @ spec.affine[:3, :3].T + spec.affine[:3, 3]
        # the corner of a voxel is 0.95 mm from its middle
        assert np.linalg.norm(at - sphere.centre_mm, axis=1).max() < 0.7 * 7.5
        # less than half of the 70 % ball: half of it lies in the gaps
        assert 0.1 < counts[t] * voxel / (4 / 3 * pi * (0.7 * 7.5) ** 3) < 0.5
    assert set(np.unique(regions)) == set(range(15))
    wide = spec.rois(1.0)
    assert np.all(wide[regions > 0] == regions[regions > 0])
    assert (wide > 0).sum() > 2 * (regions > 0).sum()
    # the majority label of a region is its own number
    labels = labels_of(fractions)
    assert np.array_equal(labels[regions > 0], regions[regions > 0])


@pytest.mark.parametrize(("array", "slice_axis"), [("t1", 0), ("t1", 2), ("all", 1)])
def test_it_is_a_phantom_whose_spheres_are_the_test(array, slice_axis):
    places = {"slices": 35, "slice_thickness_mm": 3.9, "gap_mm": 0.0, "gap": 1}
    spec = SystemPhantom(array=array, matrix=(56, 54), voxel_mm=(3.0, 3.3), **places)
    assert isinstance(spec, PhantomSpec)
    seen = {}
    for split in ("train", "test"):
        phantom = spec.load(split, slice_axis)
        assert phantom.tissues == spec.tissues
        rng = philox(1)
        origins, filled = set(), np.zeros(len(phantom.tissues))
        for patch in [(30, 30)] * 150 + [(5, 4, 3)] * 100:
            crop = phantom.crop(patch, rng)
            depth = 1 if len(patch) == 2 else patch[slice_axis]
            origins |= {crop.origin[slice_axis] + d for d in range(depth)}
            assert crop.fractions.sum(axis=0, dtype=float).max() <= 1
            filled = np.maximum(filled, crop.fractions.max(axis=tuple(range(1, crop.fractions.ndim))))
        assert filled[-1] == 1
        # no sphere in train
        assert (filled[:-1].max() == 0) == (split == "train")
        seen[split] = origins
        assert split in phantom.description
    assert not seen["train"] & seen["test"]
    assert min(abs(a - b) for a in seen["train"] for b in seen["test"]) > spec.gap


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"matrix": (0, 3)}, "matrix must be at least 1"),
        ({"voxel_mm": (0.0, 1.0)}, "voxel_mm must be above 0"),
        ({"slices": 0}, "slices must be at least 1"),
        ({"slice_thickness_mm": float("inf")}, "slice_thickness_mm must be above 0 and finite"),
        ({"gap_mm": -1.0}, "gap_mm must be at least 0"),
        ({"centre_mm": float("nan")}, "centre_mm must be finite"),
        ({"outer_diameter_mm": 14.0}, "outer_diameter_mm must lie between the inner one"),
        ({"outer_diameter_mm": 23.0}, "outer_diameter_mm must lie between the inner one"),
        ({"gap": -1}, "gap must be at least 0"),
    ],
)
def test_impossible_phantoms_are_refused(fields, message):
    with pytest.raises(ValueError, match=rf"^{message}"):
        SystemPhantom(**fields)


def test_slices_that_miss_the_spheres_are_refused():
    small = {"matrix": (60, 60), "voxel_mm": (2.0, 2.0)}
    with pytest.raises(InputError, match=r"^phantom\.centre_mm: no slice along axis 2 holds a sphere"):
        SystemPhantom(slices=3, centre_mm=40.0, **small).load("test", 2)
    with pytest.raises(InputError, match=r"^phantom\.slices: no voxel is at least half t1_01, at \(0, 50, -56\.5\) mm"):
        SystemPhantom(matrix=(20, 20), voxel_mm=(2.0, 2.0)).load("test", 2)
    with pytest.raises(InputError, match=r"^phantom\.gap: the slices along axis 2 hold no water beyond the spheres"):
        SystemPhantom(slices=5, **small).load("train", 2)
    assert SystemPhantom(slices=5, **small).load("test", 2).slabs == (((0, 5),),)
    with pytest.raises(ValueError, match=r"^share: no voxel lies wholly in the inner 0\.7 of t1_01"):
        SystemPhantom(slices=3, slice_thickness_mm=12.0, **small).rois()
    with pytest.raises(ValueError, match=r"^share must lie in"):
        SystemPhantom().rois(0.0)


def truth_of(**changes):
    mapping = {
        "seed": 3,
        "samples": 1,
        "patch": [120, 120],
        "split": "test",
        "phantom": {"kind": "system_phantom", **ONE_SLICE, "slices": 1},
        "tissues": {"kind": "system_phantom", "serial": 41, "field_strength": 3.0},
        "model": {"kind": "inversion_recovery", "ti": [0.1, 0.4, 0.9]},
        "noise": {"kind": "rician", "sigma": {"kind": "constant", "value": 0.01}},
    }
    config = GeneratorConfig.model_validate(mapping | changes)
    return config, make_truth(config, 0)


def test_generated_series_follow_the_nominal_times():
    """The signal of a region is |1 - 2 exp(-TI / T1)|; of an edge, the mixture by volume before the modulus."""
    config, truth = truth_of()
    spec = config.phantom_spec
    labels = spec.rois()[:, :, truth.origin[2]]
    images = truth.signal.numpy()
    t1 = [1.989, 1.454, 0.9841, 0.706, 0.4967, 0.3515, 0.24713, 0.1753, 0.1259, 0.089, 0.0627, 0.04453, 0.03084]
    signed = []
    for t, time in enumerate([*t1, 0.021719]):
        expected = np.array([1 - 2 * exp(-ti / time) for ti in (0.1, 0.4, 0.9)])
        signed.append(expected)
        inside = images[:, labels == 1 + t]
        assert inside.shape[1] > 5
        np.testing.assert_allclose(
            np.abs(inside), np.abs(expected)[:, None] * np.ones(inside.shape[1]), rtol=1e-5, atol=1e-6
        )
    signed.append(np.array([1 - 2 * exp(-0.3 * ti) for ti in (0.1, 0.4, 0.9)]))
    fractions = spec.fractions()[:, :, :, truth.origin[2]]
    edge = (fractions.max(axis=0) < 0.9) & (fractions.sum(axis=0) > 0.2)
    assert edge.sum() > 200
    mixed = np.tensordot(np.array(signed).T, fractions[:, edge], 1)
    # shares are kept in steps of 2^-15
    np.testing.assert_allclose(np.abs(images[:, edge]), np.abs(mixed), atol=2e-4)


def test_what_no_table_holds_is_said_by_name():
    warm = {"kind": "system_phantom", "serial": 42, "field_strength": 3.0, "temperature": 22.0}
    with pytest.raises(
        InputError, match=r"t1_01, which has no T2 in the table '.*22 degrees C: T1 of the T1 array alone"
    ):
        truth_of(tissues=warm, model={"kind": "t2_prep", "te_prep": [0.01, 0.1]})
    with pytest.raises(InputError, match=r"the phantom holds t2_01, .* which the table '.*22 degrees C.*' does not"):
        truth_of(tissues=warm, phantom={"kind": "system_phantom", **ONE_SLICE, "slices": 1, "array": "t2"})
    with pytest.raises(InputError, match=r"pd_01, which has no T1"):
        truth_of(phantom={"kind": "system_phantom", **ONE_SLICE, "slices": 1, "array": "pd"})


def test_protocols_are_those_of_table_2():
    assert [len(protocol.ti) for protocol in PROTOCOLS.values()] == [23, 31, 25, 0, 0]
    assert PROTOCOLS["HP T2"].te_prep == (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
    # TR is two seconds longer than the preparation
    assert PROTOCOLS["IV T2"].tr == pytest.approx([2 + te for te in PROTOCOLS["IV T2"].te_prep])
    assert set(PROTOCOLS["HP T1"].tr) == {8.192}
    assert PROTOCOLS["HP T1"].ti == PROTOCOLS["IV T1 noisy"].ti[:-2]
    assert [protocol.repeats for protocol in PROTOCOLS.values()] == [4, 2, 2, 4, 2]
    # the phantom's slices and the volunteers' cover the same length
    covers = {n: p.slices * (p.slice_thickness_mm + p.gap_mm) for n, p in PROTOCOLS.items() if p.slices > 1}
    assert set(covers.values()) == {45.0}


def test_configs_of_the_twin_are_the_protocol():
    published = read_config(CONFIGS / "generate_t1_full.yaml", GeneratorConfig).signal_model.ti
    assert PROTOCOLS["IV T1"].ti == tuple(published)
    for name, times in (("t1", "ti"), ("t2", "te_prep")):
        config = read_config(CONFIGS / f"generate_phantom_{name}.yaml", GeneratorConfig)
        protocol = PROTOCOLS[f"HP {name.upper()}"]
        assert tuple(getattr(config.signal_model, times)) == getattr(protocol, times)
        spec = config.phantom_spec
        assert spec.array == name
        assert spec.shape == (*protocol.matrix, protocol.slices)
        assert (spec.voxel_mm, spec.slice_thickness_mm, spec.gap_mm) == (
            protocol.voxel_mm, protocol.slice_thickness_mm, protocol.gap_mm,
        )  # fmt: skip


def test_files_hold_the_phantom(tmp_path):
    spec = SystemPhantom(**ONE_SLICE | {"slices": 3})
    write(spec.load("test", 2), spec, "test", tmp_path / "out")
    labels = nibabel.load(tmp_path / "out" / "labels.nii.gz")
    np.testing.assert_allclose(labels.affine, spec.affine)
    np.testing.assert_allclose(labels.header.get_zooms(), (1, 1, 4))
    said = json.loads((tmp_path / "out" / "phantom.json").read_text())
    assert said["labels"]["1"] == "t1_01"
    assert said["labels"]["15"] == "water"
    regions = spec.rois()
    assert np.array_equal(np.asarray(labels.dataobj)[regions > 0], regions[regions > 0])
