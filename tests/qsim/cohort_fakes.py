"""Results of a study on a cohort whose every number was chosen."""

import numpy as np

from qsim.evaluation.studies.cohort_results import CohortResults, Curve, Figure, Maps

RUNS = ("fold 0, seed 1", "fold 0, seed 2", "fold 0, seed 3")
# half-width of the 95 % t-interval of three values m - d, m, m + d: t(0.975, 2) d / sqrt(3)
T_975_2 = 4.302652729911275
STEP = np.array([-0.1, 0.0, 0.1])
INPUTS = ("0, 10 ms", "0, 30 ms", "0, 50 ms")
# RMAE against truth by input [ms]
SINGLE = {
    "two-point": (12.0, 7.0, 5.0),
    "two-stream": (5.0, 4.0, 3.6),
    "supervised on fit": (3.9, 3.6, 3.3),
    "supervised on truth": (3.2, 3.0, 2.8),
    "baseline": (4.1, 3.7, 3.6),
    "baseline + epistemic": (4.0, 3.7, 3.5),
    "baseline + aleatoric": (4.2, 3.9, 3.6),
    "proposed": (4.0, 3.6, 3.5),
    "qsim": (3.4, 3.1, 3.0),
    "qsim, ensemble": (3.3, 3.0, 2.9),
    "population-constant": (6.0, 6.0, 6.0),
}
ALL = {"least-squares": 3.0, "rician": 2.9}
STATED = ("proposed", "qsim", "qsim, ensemble")
JOINT = {
    "two-point": (7.0, 5.0),
    "STSM": (3.6, 4.0),
    "ST": (3.5, 3.8),
    "SL": (3.3, 3.2),
    "baseline": (3.4, 3.5),
    "HETEU": (3.1, 3.1),
    "HOMOU": (3.2, 3.0),
    "weights 0.1/0.9": (3.9, 3.0),
    "weights 0.3/0.7": (3.4, 3.1),
    "weights 0.5/0.5": (3.2, 3.3),
    "weights 0.9/0.1": (3.1, 4.4),
    "baseline, T2 x100": (3.5, 3.6),
    "HETEU, T2 x100": (3.1, 3.2),
    "HOMOU, T2 x100": (3.2, 3.1),
    "baseline, T2 x10000": (4.08, 3.6),
    "HETEU, T2 x10000": (3.162, 3.2),
    "HOMOU, T2 x10000": (3.264, 3.1),
    "baseline, T2 motion": (3.6, 9.0),
    "HETEU, T2 motion": (3.2, 8.0),
    "HOMOU, T2 motion": (3.3, 8.5),
}


def _disc(y, x, radius, size=48):
    at = np.arange(size)
    return (at[:, None] - y) ** 2 + (at[None] - x) ** 2 <= radius**2


def slices(methods, stated, milli=45.0, square=False):
    """A liver in a body in air, with a lesion."""
    rng = np.random.default_rng(3)
    body, liver, lesion = _disc(24, 24, 21), _disc(22, 16, 10), _disc(20, 14, 3)
    roi = _disc(22, 16, 8) & ~lesion
    truth = np.where(body, milli + 12 * ~liver + 15 * lesion, np.nan)
    image = np.where(body, 0.4 + 0.4 * liver, 0.02) + 0.5 * (square & _disc(26, 18, 2))
    shared = {"image": image, "roi": roi.astype(float), "truth": truth, "fit": truth + rng.normal(0, 3, truth.shape)}
    if square:
        shared["square"] = _disc(26, 18, 2).astype(float)
    maps = {}
    for i, name in enumerate(methods):
        maps[name] = {"estimate": truth + rng.normal(0, 2 + i / 2, truth.shape)}
        if name in stated:
            maps[name] |= {"aleatoric": np.where(body, 2.0 + ~liver, np.nan)}
            maps[name] |= {"epistemic": np.where(body, 0.5, np.nan) + 2.0 * (square & _disc(26, 18, 2))}
    return Maps(shared, maps, (1.5, 1.5))


def _curve():
    removed = np.arange(20) / 20
    return Curve(removed, 4 - 2 * removed, 4 * (1 - removed), np.full(20, 4.0))


def single(*, truth=True, runs=RUNS, pictures=True):
    """A study of T1rho."""
    step = STEP[: len(runs)]
    values = {}

    def put(method, metric, number, shown, region="roi", condition="plain"):
        values[Figure(condition, method, shown, region, "T1RHO", metric)] = number + step * (number != 0)

    errors = {(m, i): e for m, line in SINGLE.items() for i, e in zip(INPUTS, line, strict=True)}
    errors |= {(m, "all images"): e for m, e in ALL.items()}
    for (method, shown), error in errors.items():
        for kind in ("truth", "fit") if truth else ("fit",):
            more = 0.5 * (kind == "fit")
            put(method, f"rmae_{kind}", error + more, shown)
            put(method, f"rmae_{kind}", 2 * error + more, shown, "body")
            put(method, f"median_error_{kind}", 0.8 * error, shown)
            put(method, f"bias_{kind}", -error / 4, shown)
            put(method, f"rmse_{kind}", 1.3 * error, shown)
            put(method, f"slope_subjects_{kind}", 1.0 if method != "population-constant" else 0.0, shown)
            put(method, f"concordance_subjects_{kind}", 0.85, shown)
            put(method, f"slope_within_{kind}", 0.6, shown)
            put(method, f"lesion_recovery_{kind}", 0.7, shown, "lesion")
            if method in STATED:
                for region in ("roi", "body"):
                    put(method, f"spearman_{kind}", 0.55, shown, region)
                    put(method, f"ause_ratio_{kind}", 0.45, shown, region)
                    put(method, f"coverage_95_{kind}", 0.7, shown, region)
                    put(method, f"coverage_95_{kind}", 0.95, shown, region, "calibrated")
                    put(method, f"crps_{kind}", 2.4, shown, region)
                    put(method, f"crps_{kind}", 2.1, shown, region, "calibrated")
                    put(method, f"crps_constant_{kind}", 2.6, shown, region)
        if method == "two-point":
            put(method, "limited_share", 0.125, shown)
        if method not in STATED:
            continue
        for region, sd in (("left", 3.0), ("right", 4.0), ("inside", 3.2), ("outside", 3.9)):
            put(method, "sd_mean", sd, shown, region)
        for region in ("roi", "body"):
            put(method, "sd_mean", 3.3, shown, region)
            put(method, "width_median", 6.0, shown, region)
            put(method, "width_median", 12.0, shown, region, "calibrated")
            for snr, sd in ((5, 9.0), (10, 6.0), (20, 6.5 if method == "proposed" else 4.0)):
                put(method, "sd_mean", sd, shown, region, f"snr {snr}")
        put(method, "sd_mean_epistemic", 1.0, shown, "square", "square before")
        put(method, "sd_mean_epistemic", 2.5, shown, "square", "square")
        put(method, "sd_mean_epistemic", 1.0, shown, "roi", "square")
        put(method, "sd_mean_epistemic", 1.8, shown, "lesion", "lesion")
        put(method, "sd_mean_epistemic", 1.2, shown, "roi", "lesion")
    methods = (*SINGLE, *ALL)
    maps = {}
    if pictures:
        maps["plain", "T1RHO"] = slices(methods, STATED)
        maps["square before", "T1RHO"] = slices(methods, STATED)
        maps["square", "T1RHO"] = slices(methods, STATED, square=True)
    if pictures and not truth:
        del maps["plain", "T1RHO"].shared["truth"]
    curves = {(m, "T1RHO"): _curve() for m in STATED} if pictures else {}
    return CohortResults(values, runs, methods, INPUTS, ("T1RHO",), curves, maps)


def joint():
    """A study of T1rho and T2."""
    shown = ("0, 10, 18.2 ms", "0, 30, 34.6 ms")
    values = {}
    for method, line in JOINT.items():
        for parameter, error in zip(("T1RHO", "T2"), line, strict=True):
            for one in shown:
                for kind in ("truth", "fit"):
                    at = Figure("plain", method, one, "roi", parameter, f"rmae_{kind}")
                    values[at] = error * np.array([0.9, 1.0, 1.1])
    for method, one, seconds in (("least-squares", "all images", 0.3), ("HOMOU", shown[0], 0.02)):
        values[Figure("plain", method, one, "", "T1RHO", "cpu_seconds_per_slice")] = np.full(3, seconds)
    names = ("two-point", "SL", "baseline", "HETEU", "HOMOU")
    maps = {("plain", p): slices(names, (), milli) for p, milli in (("T1RHO", 45.0), ("T2", 30.0))}
    return CohortResults(values, RUNS, (*JOINT, "least-squares"), shown, ("T1RHO", "T2"), {}, maps)
