"""Table 1 of sabidussi2021 as printed, and the refusal of tissues that cannot exist."""

import re

import numpy as np
import pytest
import torch
from scipy import stats

from phantoms.maps import vary
from qsim.distributions import Constant, Normal, Truncated, Uniform
from qsim.joint import Correlation, correlate
from qsim.reach import reach, unphysical_t2, varied
from qsim.tissues import (
    CustomTable,
    PerFieldStrength,
    Sabidussi2021,
    Stanisz2005,
    Tissue,
    TissueTable,
    Variation,
)

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


@pytest.mark.parametrize(
    ("row", "distribution", "message"),
    [
        ("REL_B1", Constant(value=-1.0), "REL_B1{} must stay positive, but its distribution reaches -1; truncate it"),
        ("REL_B1", Constant(value=0.0), "REL_B1{} must stay positive, but its distribution reaches 0"),
        ("REL_B1", Normal(mean=1.0, sd=0.5), "REL_B1{} must stay positive, but its distribution reaches -inf"),
        ("DELTA_B0", Constant(value=-2e5), "DELTA_B0{} is in hertz, got -2e+05 to -2e+05; no magnet"),
        # 4.75 SD beyond the mean, at the quantile of one in a million
        ("DELTA_B0", Normal(mean=0.0, sd=2.2e4), "DELTA_B0{} is in hertz, got -1.05e+05 to 1.05e+05"),
        ("DELTA_B0", Normal(mean=0.0, sd=1e308), "DELTA_B0{} is in hertz, got -inf to inf"),
        ("T9", Constant(value=1.0), "T9: no such parameter; known are A, B, M0"),
    ],
)
def test_fields_that_no_magnet_has_are_refused(row, distribution, message):
    one = Tissue(name="wm", values={"T1": Constant(value=0.8)}, source="x")
    with pytest.raises(ValueError, match=re.escape("values." + message.format(" of wm"))):
        Tissue(name="wm", values={row: distribution}, source="x")
    for table in (TissueTable, CustomTable):
        with pytest.raises(ValueError, match=re.escape("per_sample." + message.format(""))):
            table(name="t", tissues=(one,), field_strength=3.0, per_sample={row: distribution})


def test_fields_that_a_magnet_has_are_taken():
    values = {"REL_B1": Uniform(low=1e-3, high=2.0), "DELTA_B0": Normal(mean=0.0, sd=2e4)}
    assert dict(Tissue(name="wm", values=values, source="x").values) == values


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


# --- joint draws --------------------------------------------------------------------------------------------------


def tissue(correlations=(), **values):
    return Tissue(name="wm", values=values, source="this test", correlations=correlations)


def correlated(distributions, correlations, n=40_000, seed=1):
    """Draws of a tissue's parameters, as the generator makes them."""
    u = np.random.default_rng(seed).random((n, len(distributions)))
    together = correlate(u, tuple(distributions), correlations)
    return {row: d.ppf(together[:, i]) for i, (row, d) in enumerate(distributions.items())}


def test_the_covariance_of_two_normals_is_rho_sd_sd():
    """cov = rho sd_1 sd_2; its Monte Carlo error is sd_1 sd_2 sqrt((1 + rho^2) / n)."""
    n = 40_000
    for rho in (-0.9, -0.3, 0.6):
        x = correlated(
            {"T1": Normal(mean=1.4, sd=0.3), "T2": Normal(mean=0.1, sd=0.02)},
            (Correlation(rows=("T1", "T2"), rho=rho),),
            n,
        )
        error = 0.3 * 0.02 * np.sqrt((1 + rho**2) / n)
        assert np.cov(x["T1"], x["T2"])[0, 1] == pytest.approx(rho * 0.3 * 0.02, abs=4 * error)


def test_the_marginals_stay_exactly_what_they_are():
    """Kolmogorov-Smirnov against scipy, truncated ones included; Spearman's rho of a Gaussian copula."""
    rho = 0.7
    cut = Truncated(of=Normal(mean=0.03, sd=0.01), low=0.01, high=0.05)
    x = correlated({"T1": Uniform(low=0.5, high=1.5), "T2": cut}, (Correlation(rows=("T2", "T1"), rho=rho),))
    assert stats.kstest(x["T1"], stats.uniform(0.5, 1.0).cdf).pvalue > 1e-3
    assert stats.kstest(x["T2"], stats.truncnorm(-2, 2, 0.03, 0.01).cdf).pvalue > 1e-3
    # 6 / pi asin(rho / 2), doi:10.1007/0-387-28678-0; error about 1 / sqrt(n)
    expected = 6 / np.pi * np.arcsin(rho / 2)
    assert stats.spearmanr(x["T1"], x["T2"]).statistic == pytest.approx(expected, abs=4 / np.sqrt(40_000))


def test_rows_without_correlation_keep_their_numbers():
    u = np.random.default_rng(2).random((100, 4))
    rows = ("A", "T1", "T2", "T1RHO")
    assert correlate(u, rows, ()) is u
    together = correlate(u, rows, (Correlation(rows=("T1", "T2"), rho=0.5),))
    np.testing.assert_array_equal(together[:, [0, 1, 3]], u[:, [0, 1, 3]])
    assert not np.array_equal(together[:, 2], u[:, 2])
    # a row that is appended changes nothing, and a correlation with a row that is not there neither
    three = (Correlation(rows=("T1", "T2"), rho=0.5), Correlation(rows=("T2", "T1RHO"), rho=-0.4))
    np.testing.assert_array_equal(correlate(u[:, :3], rows[:3], three), correlate(u, rows, three)[:, :3])
    # one sample at a time or all together
    np.testing.assert_array_equal(
        np.vstack([correlate(one[None], rows, three) for one in u]), correlate(u, rows, three)
    )


def test_three_rows_have_the_correlations_that_were_asked_for():
    wanted = {("T1", "T2"): 0.6, ("T1", "T1RHO"): -0.2, ("T2", "T1RHO"): 0.5}
    normal = Normal(mean=0.0, sd=1.0)
    pairs = tuple(Correlation(rows=rows, rho=rho) for rows, rho in wanted.items())
    x = correlated({"T1": normal, "T2": normal, "T1RHO": normal}, pairs)
    for (one, other), rho in wanted.items():
        assert np.corrcoef(x[one], x[other])[0, 1] == pytest.approx(rho, abs=4 * (1 - rho**2) / np.sqrt(40_000))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Correlation(rows=("T1", "T1"), rho=0.1), "rows must be two different parameters"),
        (lambda: Correlation(rows=("T1", "T2"), rho=1.0), "rho must lie between -1 and 1, got 1.0"),
        (
            lambda: tissue((Correlation(rows=("T1", "T2"), rho=0.5),), T1=Uniform(low=1.0, high=2.0)),
            "correlations: wm has no T2, which T1 and T2 names",
        ),
        (
            lambda: tissue(
                (Correlation(rows=("A", "T1"), rho=0.5),), T1=Uniform(low=1.0, high=2.0), A=Constant(value=1.0)
            ),
            "correlations: A of wm is constant",
        ),
        (
            lambda: tissue(
                (Correlation(rows=("A", "T1"), rho=0.5), Correlation(rows=("T1", "A"), rho=0.4)),
                T1=Uniform(low=1.0, high=2.0),
                A=Uniform(low=1.0, high=2.0),
            ),
            "correlations: A, T1 is given twice",
        ),
        (
            lambda: tissue(
                (
                    Correlation(rows=("A", "T1"), rho=0.9),
                    Correlation(rows=("A", "T2"), rho=0.9),
                    Correlation(rows=("T1", "T2"), rho=-0.9),
                ),
                T1=Uniform(low=1.0, high=2.0),
                A=Uniform(low=1.0, high=2.0),
                T2=Uniform(low=0.1, high=0.2),
            ),
            "correlations: no joint distribution has these values together",
        ),
        (
            lambda: TissueTable(
                name="-",
                field_strength=3.0,
                per_sample={"A": Uniform(low=1.0, high=2.0)},
                tissues=(
                    tissue(
                        (Correlation(rows=("A", "T1"), rho=0.9),),
                        T1=Uniform(low=1.0, high=2.0),
                        A=Uniform(low=1.0, high=2.0),
                    ),
                ),
            ),
            "tissues: wm correlates A, which per_sample draws once",
        ),
        (
            lambda: TissueTable(
                name="-", field_strength=3.0, tissues=(tissue(),), within={"DELTA_B0": Variation(absolute=3.0)}
            ),
            "within: DELTA_B0 does not vary",
        ),
    ],
)
def test_impossible_correlations_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- tables per field strength --------------------------------------------------------------------------------------

# tissue: T2 and T1 with SD at 3 T, then at 1.5 T [ms] (doi:10.1002/mrm.20605, Table 1)
STANISZ = {
    "liver": (42, 3, 812, 64, 46, 6, 576, 30),
    "muscle": (50, 4, 1412, 13, 44, 6, 1008, 20),
    "myocardium": (47, 11, 1471, 31, 40, 6, 1030, 34),
    "kidney": (56, 4, 1194, 27, 55, 3, 690, 30),
    "cartilage": (27, 3, 1168, 18, 30, 4, 1024, 70),
    "wm": (69, 3, 1084, 45, 72, 4, 884, 50),
    "gm": (99, 7, 1820, 114, 95, 8, 1124, 50),
    "vessel": (275, 50, 1932, 85, 290, 30, 1441, 120),
}


@pytest.mark.parametrize(("strength", "first"), [(3.0, 0), (1.5, 4)])
def test_stanisz_as_printed(strength, first):
    table = Stanisz2005(field_strength=strength).table()
    assert set(table.names) == set(STANISZ)
    assert table.field_strength == strength
    for name, printed in STANISZ.items():
        t2, t2_sd, t1, t1_sd = (x / 1000 for x in printed[first : first + 4])
        values = table[name].values
        assert (values["T2"].of.mean, values["T2"].of.sd) == pytest.approx((t2, t2_sd))
        assert (values["T1"].of.mean, values["T1"].of.sd) == pytest.approx((t1, t1_sd))
        assert values["A"] == Constant(value=1.0)
        assert "A: to be sourced" in table[name].source
        assert ("T1RHO" in values) == (strength == 3.0 and name in ("liver", "myocardium"))
        assert unphysical_t2(table, table[name]) is None


def test_t1rho_of_liver_and_myocardium():
    """PMC5639155: healthy liver 44.9 +- 2.8 ms; myocardium 43.4 / 45.4 / 46.5 ms at 300 / 400 / 500 Hz."""
    for lock, (mean, sd) in {300.0: (43.4, 2.1), 400.0: (45.4, 2.6), 500.0: (46.5, 2.4)}.items():
        table = Stanisz2005(spin_lock=lock).table()
        t1rho = table["myocardium"].values["T1RHO"].of
        assert (1000 * t1rho.mean, 1000 * t1rho.sd) == pytest.approx((mean, sd))
        liver = table["liver"].values["T1RHO"].of
        assert (1000 * liver.mean, 1000 * liver.sd) == pytest.approx((44.9, 2.8))


def test_a_table_per_field_strength():
    def at(strength, t1):
        gm = Tissue(name="gm", values={"T1": Constant(value=t1)}, source="-")
        return CustomTable(name=f"{strength:g} T", tissues=(gm,), field_strength=strength)

    tables = (at(1.5, 1.1), at(3.0, 1.8))
    assert PerFieldStrength(field_strength=3.0, tables=tables).table()["gm"].values["T1"].value == 1.8
    with pytest.raises(ValueError, match=r"field_strength must be that of one .* got 7 T; there are 1\.5 T, 3 T"):
        PerFieldStrength(field_strength=7.0, tables=tables)
    with pytest.raises(ValueError, match="tables: two of them are of the same field strength"):
        PerFieldStrength(field_strength=3.0, tables=(at(3.0, 1.8), at(3.0, 1.7)))
    with pytest.raises(ValueError, match=r"field_strength must be 1\.5 or 3\.0 T, got 7"):
        Stanisz2005(field_strength=7.0)
    with pytest.raises(ValueError, match="spin_lock must be 300, 400 or 500 Hz"):
        Stanisz2005(spin_lock=100.0)


# --- where values lie -----------------------------------------------------------------------------------------------


def test_the_table_of_the_paper_never_has_t2_above_twice_t1():
    for within in ("qsim", "paper"):
        table = Sabidussi2021(within=within).table()
        assert all(unphysical_t2(table, tissue) is None for tissue in table.tissues)
    # with the authors' absolute 0.1 s, a T1 of skull of 0.2 s falls to a tenth, far below half of T2
    table = Sabidussi2021(within="authors").table()
    assert unphysical_t2(table, table["skull"]).startswith("skull: T2 can reach 0.0975 s where T1 can fall to 0.02 s")


def test_a_range_holds_what_is_drawn():
    """Of 300,000 voxels no more than 5 outside the range (0.6 expected), which is hardly wider than they are."""
    for variation in (Variation(relative=0.05), Variation(absolute=0.1), Variation(relative=0.4, absolute=0.02)):
        cut = Truncated(of=Normal(mean=0.4, sd=0.1), low=0.2, high=0.6)
        low, high = varied(reach(cut), variation)
        normals = torch.empty(300_000).normal_(generator=torch.Generator().manual_seed(1))
        for value in (0.2, 0.6):
            x = vary(torch.full_like(normals, value), normals, variation)
            assert ((x < low) | (x > high)).sum() <= 5
        # the upper end is reached to within the difference of 4.4 and 4.75 SD
        assert x.max() > high - 0.6 * np.hypot(variation.relative * 0.6, variation.absolute)
