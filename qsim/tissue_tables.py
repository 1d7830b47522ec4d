"""The tissue tables that configs can name."""

from qsim.organ_tissues import HeadT1w, Huang2022, Jacobs2025
from qsim.system_phantom import SystemPhantomTable
from qsim.tissues import CustomTable, PerFieldStrength, Sabidussi2021, Stanisz2005

TISSUE_TABLES = (
    Sabidussi2021,
    Stanisz2005,
    SystemPhantomTable,
    Huang2022,
    Jacobs2025,
    HeadT1w,
    CustomTable,
    PerFieldStrength,
)
