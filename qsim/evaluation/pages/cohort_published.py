"""What huang2022 and huang2023 print: RMAE in the ROI against the fit of four images, of 52 and 51 subjects.

Neither paper gives an interval, a number of runs or an error against a truth. Methods have the names they have in the
configs: `two-point` is the papers' "2-TSL" and "Two-point", `two-stream` their "Two-Steam", `supervised on fit` the
"Supervised Learning" of huang2022, `SL` that of huang2023.
"""

from collections.abc import Mapping

from qsim.values import value


@value
class Printed:
    """A table of a paper.

    Attributes:
        source: paper and table.
        unit: of the numbers.
        numbers: by method, then by column.
    """

    source: str
    unit: str
    numbers: Mapping[str, Mapping[str, float]]

    def column(self, name: str) -> dict[str, float]:
        """One column, of the methods that have a number there."""
        return {method: line[name] for method, line in self.numbers.items() if name in line}


METHODS_2022 = Printed(
    source="huang2022 Table 2",
    unit="ms",
    numbers={
        "two-point": {"T1RHO": 7.55},
        "two-stream": {"T1RHO": 4.28},
        "supervised on fit": {"T1RHO": 5.82},
        "proposed": {"T1RHO": 3.60},
    },
)

# columns: second spin-lock time [ms]
INPUTS_2022 = Printed(
    source="huang2022 Table 3",
    unit="ms",
    numbers={
        "two-point": {"10": 11.39, "30": 8.69, "50": 2.28},
        "two-stream": {"10": 5.68, "30": 3.62, "50": 3.53},
        "supervised on fit": {"10": 9.23, "30": 4.75, "50": 3.50},
        "proposed": {"10": 3.84, "30": 3.54, "50": 3.44},
    },
)

ABLATION_2022 = Printed(
    source="huang2022 Table 4",
    unit="ms",
    numbers={
        "baseline": {"T1RHO": 3.72},
        "baseline + epistemic": {"T1RHO": 3.68},
        "baseline + aleatoric": {"T1RHO": 3.62},
        "proposed": {"T1RHO": 3.60},
    },
)

# the sum of a variance in ms^2 and a squared scale of the image signal (Eq. 9) has no unit
REGIONS_2022 = Printed(
    source="huang2022 Table 5",
    unit="the paper's own",
    numbers={"proposed": {"left": 3.25, "right": 3.74, "inside": 3.21, "outside": 3.65}},
)

METHODS_2023 = Printed(
    source="huang2023 Table II",
    unit="ms",
    numbers={
        "two-point": {"T1RHO": 7.51, "T2": 5.21},
        "STSM": {"T1RHO": 3.54, "T2": 4.08},
        "ST": {"T1RHO": 3.54, "T2": 3.87},
        "SL": {"T1RHO": 5.11, "T2": 4.12},
        "baseline": {"T1RHO": 3.45, "T2": 3.51},
        "HETEU": {"T1RHO": 3.32, "T2": 3.32},
        "HOMOU": {"T1RHO": 3.28, "T2": 3.33},
    },
)

# what was done to the contrast of T2 in the loss, as the configs' names of the methods end
CORRUPTED_2023: Mapping[str, Printed] = {
    "T2 x100": Printed(
        source="huang2023 Table III",
        unit="ms",
        numbers={
            "baseline": {"T1RHO": 3.62, "T2": 3.44},
            "HETEU": {"T1RHO": 3.53, "T2": 3.49},
            "HOMOU": {"T1RHO": 3.45, "T2": 3.44},
        },
    ),
    "T2 x10000": Printed(
        source="huang2023 Table III",
        unit="ms",
        numbers={
            "baseline": {"T1RHO": 3.88, "T2": 3.67},
            "HETEU": {"T1RHO": 3.56, "T2": 3.40},
            "HOMOU": {"T1RHO": 3.44, "T2": 3.45},
        },
    ),
    "T2 motion": Printed(
        source="huang2023 Table III",
        unit="ms",
        numbers={"baseline": {"T1RHO": 3.55}, "HETEU": {"T1RHO": 3.44}, "HOMOU": {"T1RHO": 3.39}},
    ),
}

# one pass of the network for both maps, one fit of four images for one map
SECONDS_2023 = Printed(
    source="huang2023 Table IV",
    unit="s",
    numbers={"least-squares": {"seconds": 0.088}, "HOMOU": {"seconds": 0.017}},
)
