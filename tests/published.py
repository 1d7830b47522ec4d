"""Published or independently computed values, each with its source."""

# sabidussi2021, section 4.2: times of the simulated and measured series [s]
TI_31 = tuple(
    t / 1000
    for t in (
        *(139, 166, 193, 219, 246, 272, 299, 325, 352, 379, 405, 432, 458, 485, 511, 538),
        *(565, 591, 618, 644, 671, 697, 724, 751, 777, 804, 838, 857, 883, 915, 937),
    )
)
TI_23 = tuple(
    t / 1000
    for t in (
        *(172, 204, 237, 270, 303, 335, 368, 401, 434, 467, 499, 532),
        *(565, 598, 630, 663, 696, 729, 761, 794, 827, 860, 893),
    )
)
TE_PREP = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)

# sabidussi2021, Table 1: mean of A [1], T1 [s], T2 [s]
TABLE_1 = {"gm": (0.85, 1.4, 0.110), "wm": (0.65, 0.78, 0.080), "csf": (1.0, 3.5, 2.0)}

# Cramér-Rao bound of T1, 31 times, Table 1 means, B = 1.9, sigma .065: CV with B free, with B known [%]
# (computed apart from this package, printed with these digits)
CV_T1_FREE_KNOWN = {"gm": (82.0, 3.6), "wm": (45.0, 3.0), "csf": (346.0, 8.6)}
# the same at sigma .0255 for grey matter, by the number of voxels that share B [%]
CV_T1_GM_SHARED = {200: 2.68, 400: 2.13, 1600: 1.61, 20000: 1.41}
CV_T1_GM_KNOWN = 1.40
# bound of T2 of white matter with TE_PREP, by sigma [%]
CV_T2_WM = {0.0065: 2.5, 0.0255: 9.7, 0.0765: 29.0, 0.255: 97.0}

# mean and SD of a Rician magnitude of one coil with sigma 1, by the noise-free signal
RICIAN_MEAN_SD = {0.0: (1.2533, 0.6551), 3.0: (3.1726, 0.9668)}
# bias of a Rician magnitude [%], by signal / sigma
RICIAN_BIAS = {1.0: 54.9, 2.0: 13.6, 3.0: 5.75, 5.0: 2.02, 10.0: 0.50}
