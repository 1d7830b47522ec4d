"""Table 1 of sabidussi2021 as printed, and the refusal of tissues that cannot exist."""

import pytest

from qsim.distributions import Constant, Normal, Truncated
from qsim.tissues import Sabidussi2021, Tissue, TissueTable, Variation

# tissue: T1 mean and SD [ms], T2 mean and SD [ms], mean of A (doi:10.1016/j.media.2021.102220, Table 1)
PRINTED = {
    "csf": (3500, 300, 2000, 300, 1.0),
    "gm": (1400, 300, 110, 30, 0.85),
    "wm": (780, 250, 80, 20, 0.65),
    "fat": (420, 100, 70, 20, 0.9),
    "muscle": (1200, 300, 50, 20, 0.7),
    "skin": (1230, 300, 50, 20, 0.7),
    "skull": (400, 100, 30, 10, 0.9),
    "vessel": (1980, 300, 275, 70, 1.0),
    "marrow": (580, 100, 50, 20, 0.8),
}


def test_table_1_as_printed():
    table = Sabidussi2021().table()
    assert set(table.names) == set(PRINTED)
    for name, (t1, t1_sd, t2, t2_sd, a) in PRINTED.items():
        values = table[name].values
        printed = {"T1": (t1 / 1000, t1_sd / 1000), "T2": (t2 / 1000, t2_sd / 1000), "A": (a, 0.3)}
        for row, (centre, sd) in printed.items():
            cut = values[row]
            assert isinstance(cut, Truncated)
            assert isinstance(cut.of, Normal)
            assert (cut.of.mean, cut.of.sd) == pytest.approx((centre, sd))
            assert cut.support == pytest.approx((centre - 2 * sd, centre + 2 * sd))
            assert cut.support[0] > 0
        assert "sabidussi2021" in table[name].source
    assert "2 SD" in table.truncation
    assert table.per_sample["B"].support == (1.0, 2.0)


@pytest.mark.parametrize("preset", ["qsim", "paper", "authors"])
def test_within_tissue_presets(preset):
    within = Sabidussi2021(within=preset).table().within
    assert "B" not in within
    if preset == "authors":
        assert [within[row].absolute for row in ("A", "T1", "T2")] == [0.05, 0.1, 0.01]
    else:
        assert all(within[row].relative == 0.05 for row in ("A", "T1", "T2"))


def test_a_relaxation_time_that_reaches_zero_is_refused():
    with pytest.raises(ValueError, match=r"values\.T2 of skull must stay positive"):
        Tissue(name="skull", values={"T2": Normal(mean=0.03, sd=0.01)}, source="Table 1, not cut")


def test_milliseconds_are_refused():
    with pytest.raises(ValueError, match=r"in seconds.*divide by 1000"):
        Tissue(name="gm", values={"T1": Constant(value=1400.0)}, source="a table in ms")


def test_unknown_parameters_and_doubled_names_are_refused():
    with pytest.raises(ValueError, match=r"values\.T3: no such parameter"):
        Tissue(name="gm", values={"T3": Constant(value=1.0)}, source="-")
    gm = Tissue(name="gm", values={"T1": Constant(value=1.4)}, source="-")
    with pytest.raises(ValueError, match="occurs twice"):
        TissueTable(name="-", tissues=(gm, gm), field_strength=3.0)
    with pytest.raises(ValueError, match="floor"):
        Variation(relative=0.1, floor=0.0)
