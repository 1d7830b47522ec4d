"""Sentences of the report against tables made by hand."""

import re
from math import inf, nan

import pytest
from markupsafe import Markup
from scipy import stats

from qsim.evaluation.pages.summary import Subject, few_repeats, headline, number, verdicts
from qsim.evaluation.table import Row, Table

SNRS = (3.0, 30.0, 100.0)


def subject(rows, methods=("least-squares", "shared-b", "rim")):
    found = [
        Row(
            "noise",
            who,
            where,
            "" if metric == "at_bound_rate" else "T1",
            snr,
            0.65 / snr,
            "all",
            metric,
            value,
            low,
            high,
            9,
        )
        for (who, where, snr, metric), (value, low, high) in rows.items()
    ]
    return Subject(
        table=Table(found),
        parameter="T1",
        symbol=Markup("T1"),
        tissues={"gm": "Grey matter", "csf": "CSF"},
        snrs=SNRS,
        repeats=100,
        methods=methods,
        networks=("rim",),
        references={"least-squares": "free", "shared-b": "shared", "rim": "shared"},
    )


def text(sentences):
    return re.sub(r"<[^>]+>", "", " ".join(sentences))


def said(about, name):
    return text(dict(verdicts(about))[name])


def test_beats_and_loses_follow_the_interval():
    metric = "rmse_over_shared-b"
    about = subject(
        {
            ("rim", "gm", 3.0, metric): (0.6, 0.5, 0.7),
            ("rim", "gm", 30.0, metric): (1.1, 0.9, 1.3),
            ("rim", "gm", 100.0, metric): (2.4, 2.0, 2.9),
            ("rim", "csf", 3.0, metric): (3.0, 2.0, 4.0),
            ("rim", "csf", 30.0, metric): (4.0, 3.0, 5.0),
            ("rim", "csf", 100.0, metric): (5.0, 4.0, 6.0),
        }
    )
    sentence = said(about, "rim")
    assert (
        "Grey matter: smaller at SNR 3 (×0.60); no clear difference at SNR 30 (×1.1); larger at SNR 100 (×2.4)"
        in sentence
    )
    assert "CSF: larger at every SNR (×3.0 to ×5.0)" in sentence


def test_without_an_interval_only_a_clear_difference_is_said():
    metric = "rmse_over_shared-b"
    about = subject({("rim", "gm", 3.0, metric): (0.97, nan, nan), ("rim", "gm", 30.0, metric): (0.90, nan, nan)})
    assert "smaller at SNR 30 (×0.90); no clear difference at SNR 3 (×0.97)" in said(about, "rim")


@pytest.mark.parametrize(
    ("slope", "rate", "verdict"),
    [
        ((0.1, 0.0, 0.2), 0.0, "It paints means: under 0.8 at SNR ≥ 30 in grey matter (SNR 100)"),
        ((0.7, 0.6, 0.8), 0.0, "It leans towards means"),
        ((0.95, 0.9, 1.0), 0.0, "it does not paint means"),
        ((0.5, -0.5, 1.5), 0.0, "Too noisy to tell"),
        ((0.5, 0.4, 0.6), 70.0, "voxels lie on a bound of the search: grey matter at SNR 100 (70 %)"),
    ],
)
def test_painting_is_told_from_noise_and_from_bounds(slope, rate, verdict):
    about = subject(
        {("rim", "gm", 100.0, "slope_within"): slope, ("rim", "gm", 100.0, "at_bound_rate"): (rate, nan, nan)}
    )
    assert verdict in said(about, "rim")


def test_an_efficient_fit_is_called_so_and_another_is_not():
    def fit(ratio, bias):
        return subject(
            {
                ("bound-shared", "gm", 30.0, "bound_median"): (2.0, nan, nan),
                ("shared-b", "gm", 30.0, "rmse_over_bound_shared"): (ratio, nan, nan),
                ("shared-b", "gm", 30.0, "relative_bias_median"): (bias, nan, nan),
                ("shared-b", "gm", 30.0, "noise_free_error"): (1.0, nan, nan),
            }
        )

    assert "it is efficient" in said(fit(1.02, 0.1), "shared-b")
    for ratio, bias in ((1.3, 0.1), (1.02, 0.5), (0.7, 0.0)):
        sentence = said(fit(ratio, bias), "shared-b")
        assert "outside the range" in sentence
        assert "grey matter at SNR 30" in sentence
        assert "0.50 bound" in sentence


def test_the_farthest_is_farthest_beyond_its_limit():
    """A bias of twice its limit is worse than an RMSE 5 % above its own."""
    rows = {}
    for tissue, ratio, bias in (("gm", 1.155, 0.0), ("csf", 1.0, 0.4)):
        rows[("shared-b", tissue, 30.0, "rmse_over_bound_shared")] = (ratio, nan, nan)
        rows[("bound-shared", tissue, 30.0, "bound_median")] = (1.0, nan, nan)
        rows[("shared-b", tissue, 30.0, "relative_bias_median")] = (bias, nan, nan)
    assert "2 of them lie outside" in said(subject(rows), "shared-b")
    assert "farthest CSF at SNR 30" in said(subject(rows), "shared-b")


def test_painters_that_win_are_named():
    about = subject(
        {
            ("rim", "gm", 3.0, "rmse_rms"): (12.0, nan, nan),
            ("tissue-prior-mean", "gm", 3.0, "rmse_rms"): (9.0, nan, nan),
            ("rim", "gm", 30.0, "rmse_rms"): (4.0, nan, nan),
            ("tissue-prior-mean", "gm", 30.0, "rmse_rms"): (9.0, nan, nan),
        }
    )
    assert "tissue-prior-mean has a smaller one in grey matter at SNR 3." in said(about, "rim")


def test_a_protocol_that_identifies_nothing_is_not_called_good():
    rows = {("bound-free", "gm", snr, "bound_median"): (inf, nan, nan) for snr in SNRS}
    rows[("rim", "pure", 3.0, "rmse_median")] = (10.0, nan, nan)
    assert "grey matter up to SNR 100 (not identifiable at SNR 3)" in text([headline(subject(rows))])


def test_the_headline_names_the_best_and_the_limits_of_the_protocol():
    rows = {
        ("rim", "pure", 3.0, "rmse_median"): (10.0, nan, nan),
        ("shared-b", "pure", 3.0, "rmse_median"): (20.0, nan, nan),
    }
    for snr in (30.0, 100.0):
        rows[("rim", "pure", snr, "rmse_median")] = (5.0, nan, nan)
        rows[("shared-b", "pure", snr, "rmse_median")] = (2.0, nan, nan)
    for snr, bound in zip(SNRS, (400.0, 40.0, 11.0), strict=True):
        rows[("bound-free", "gm", snr, "bound_median")] = (bound, nan, nan)
    sentence = text([headline(subject(rows))])
    assert "rim at SNR 3 (10 %); shared-b at SNR 30 and 100 (2.0 % and 2.0 %)" in sentence
    assert "grey matter up to SNR 30 (400 % at SNR 3)" in sentence


def test_numbers_are_printed_with_two_digits():
    printed = [number(x) for x in (0.0, 1e-4, 0.123, 1.26, 9.96, 12.4, 99.6, 1234.5, -0.004, -3.21, nan)]
    assert printed == ["0", "0.00", "0.12", "1.3", "10", "12", "100", "1234", "0.00", "−3.2", "–"]


def test_few_repeats_lower_the_median_rmse():
    for repeats in (3, 20, 100):
        assert few_repeats(repeats) == pytest.approx((stats.chi2.median(repeats) / repeats) ** 0.5)
