"""The T1-weighted images of shaw2021's configs against a simulation of every pulse."""

from pathlib import Path

import numpy as np
import pytest

from generators import GeneratorConfig
from generators.reading import read_config
from generators.sample import make_truth
from qsim.tissues import Sabidussi2021

FOLDER = Path(__file__).parents[2] / "configs" / "shaw2021"
CONFIGS = sorted(FOLDER.glob("generate_*.yaml"))
# two tissues whose borders are those of voxels: every voxel is pure
LAYERS = {
    "kind": "geometry",
    "size": [8, 4, 4],
    "spacing_mm": [1.0, 1.0, 1.0],
    "shapes": [
        {"shape": "box", "tissue": "gm", "extent_mm": [30.0, 30.0, 30.0]},
        {"shape": "box", "tissue": "wm", "extent_mm": [4.0, 30.0, 30.0]},
    ],
    "subjects": 2,
    "test_subjects": 1,
    "jitter_mm": 1e-9,
}


def every_pulse(model, a, t1, t2, delta_b0, rel_b1, shots=60):
    """|transverse magnetisation| after the pulse of the centre of k-space, once the shots repeat themselves.

    Magnetisation (x, y, z) through rotation matrices and relaxation, one pulse after the other; the transverse part is
    destroyed after the inversion and before each pulse (ideal spoiling), so off-resonance only turns its phase.
    """

    def turned(m, angle):
        c, s = np.cos(angle), np.sin(angle)
        return np.array([[1, 0, 0], [0, c, s], [0, -s, c]]) @ m

    def later(m, time):
        w = 2 * np.pi * delta_b0 * time
        x, y, z = m
        e1, e2 = np.exp(-time / t1), np.exp(-time / t2)
        return np.array([e2 * (np.cos(w) * x + np.sin(w) * y), e2 * (np.cos(w) * y - np.sin(w) * x), 1 + (z - 1) * e1])

    def spoiled(m):
        return np.array([0, 0, m[2]])

    readout, (ti,) = model.readout, model.preparation.ti
    pulses = readout.acquisition.lines
    m, signal, before = np.array([0.0, 0.0, 1.0]), 0.0, np.inf
    for _ in range(shots):
        m = later(spoiled(turned(m, np.pi * rel_b1)), ti)
        for pulse in range(pulses):
            m = turned(spoiled(m), readout.flip_angle * rel_b1)
            if pulse == pulses // 2:
                signal = a * np.hypot(m[0], m[1])
            m = later(m, readout.tr)
        m = later(spoiled(m), model.tr - ti - pulses * readout.tr)
        if abs(m[2] - before) < 1e-12:
            return signal
        before = m[2]
    raise AssertionError("no steady state")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_pure_voxel_is_what_its_pulses_make_of_it(path):
    config = read_config(path, GeneratorConfig)
    small = GeneratorConfig.model_validate(config.model_dump() | {"phantom": LAYERS, "patch": (8, 4, 4)})
    for index in range(2):
        truth = make_truth(small, index)
        assert (truth.purity > 1 - 1e-6).all()
        assert set(truth.labels.unique().tolist()) == {1, 2}
        # both tissues, values of their own and the fields of their place
        for voxel in ((0, 0, 0), (3, 1, 2), (5, 3, 3), (7, 2, 1)):
            values = (float(row[voxel]) for row in truth.kappa)
            expected = every_pulse(config.signal_model, *values)
            assert abs(float(truth.signal[(0, *voxel)])) == pytest.approx(expected, rel=1e-4)


def means():
    """A, T1 and T2 at the middle of the table's distributions, fields off."""
    table = Sabidussi2021().table()
    half = np.array([0.5])
    return {
        name: tuple(float(table[name].values[row].ppf(half)[0]) for row in ("A", "T1", "T2"))
        for name in ("csf", "gm", "wm")
    }


@pytest.mark.parametrize(
    ("name", "gm", "csf"),
    [("generate_mni_small", 0.63, 0.16), ("generate_brainweb", 0.73, 0.28), ("generate_heads", 0.63, 0.16)],
)
def test_contrast_and_noise_are_those_that_the_config_says(name, gm, csf):
    config = read_config(FOLDER / f"{name}.yaml", GeneratorConfig)
    signal = {tissue: every_pulse(config.signal_model, *row, 0.0, 1.0) for tissue, row in means().items()}
    assert signal["gm"] / signal["wm"] == pytest.approx(gm, abs=0.006)
    assert signal["csf"] / signal["wm"] == pytest.approx(csf, abs=0.006)
    low, high = config.noise_model.sigma.support
    assert signal["wm"] / low == pytest.approx(100, rel=0.04)
    assert signal["wm"] / high == pytest.approx(25, rel=0.04)


def test_the_inversion_time_of_the_bundled_brain_is_that_of_a_measured_one():
    # voxelmorph's example brain: mean of cortex 64, of white matter 101, of ventricles 23.5
    config = read_config(FOLDER / "generate_mni_small.yaml", GeneratorConfig)
    signal = {tissue: every_pulse(config.signal_model, *row, 0.0, 1.0) for tissue, row in means().items()}
    assert signal["gm"] / signal["wm"] == pytest.approx(64 / 101, abs=0.02)
    # the measured ventricles hold some of their walls
    assert 0 < signal["csf"] / signal["wm"] < 23.5 / 101


@pytest.mark.parametrize("split", ["train", "test"])
def test_blocks_of_the_bundled_brain_fit_both_splits(split):
    config = read_config(FOLDER / "generate_mni_small.yaml", GeneratorConfig)
    phantom = config.phantom_spec.load(split, config.slice_axis)
    crop = phantom.crop(config.patch, np.random.Generator(np.random.Philox(1)))
    assert crop.fractions.shape == (3, 64, 64, 64)
    assert crop.fractions.sum() > 0.3 * 64**3
