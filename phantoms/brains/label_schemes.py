"""What the numbers of label models mean: BrainWeb's, FreeSurfer's, those of whole heads and of the abdomen."""

from typing import Literal

BACKGROUND = "background"
Scheme = Literal[
    "discrete",
    "vessel-gm-wm",
    "twelve",
    "twelve-raw-short",
    "twelve-komamri",
    "freesurfer",
    "synthseg",
    "totalseg-mr",
    "totalseg-ct",
]

# BrainWeb's own simulator gives glial matter the values of grey matter (T1 833 ms, T2 83 ms at 1.5 T). Connective
# tissue (500 ms, 70 ms there) is fat here: of the soft tissues of the head that our tables name it is nearest in T1 and
# T2, and KomaMRI calls it fat2.
DISCRETE = {1: "csf", 2: "gm", 3: "wm", 4: "fat", 5: "muscle", 6: "skin", 7: "skull", 8: "gm", 9: "fat"}
VESSEL_GM_WM = {1: "vessel", 2: "gm", 3: "wm"}
# The twenty normal brains: 6 is "muscle/skin", 9 the connective tissue around fat. 10, dura, has the values of CSF in
# BrainWeb's own table (T1 2569 ms, T2 329 ms at 1.5 T), and no tissue of our tables is nearer.
TWELVE = {
    1: "csf",
    2: "gm",
    3: "wm",
    4: "fat",
    5: "muscle",
    6: "skin",
    7: "skull",
    8: "vessel",
    9: "fat",
    10: "csf",
    11: "marrow",
}
# Numbers of the same classes in BrainWeb's raw short files, and in KomaMRI: 255 k / 11, rounded.
_RAW_SHORT = {16 * label: tissue for label, tissue in TWELVE.items()}
_KOMAMRI = {round(255 * label / 11): tissue for label, tissue in TWELVE.items()}

# FreeSurfer's aseg, by tissue (FreeSurferColorLUT). Deep grey nuclei are gm, the ventral diencephalon and the brain
# stem wm, as in CHARM; choroid plexus csf, in which it floats; hypointensities and lesions what surrounds them. 136,
# 137, 163 and 164 are parts of the lateral ventricles (SynthSeg's target labels 4, 5, 43, 44).
_ASEG = {
    "csf": (4, 5, 14, 15, 24, 31, 43, 44, 63, 72, 136, 137, 163, 164, 221),
    "gm": (3, 8, 10, 11, 12, 13, 17, 18, 26, 42, 47, 49, 50, 51, 52, 53, 54, 58, 80, 81, 82),
    "wm": (2, 7, 16, 25, 28, 41, 46, 57, 60, 77, 78, 79, 85, 192, 250, 251, 252, 253, 254, 255),
    "vessel": (30, 62),
}
# Outside the brain. SynthSeg names 507 only; its numbers are those of the CHARM atlas (SimNIBS), and lie where that
# names them: 506 in the orbits, 511 on the surface, 515 around the brain.
_OUTSIDE = {
    502: "vessel",  # arteries
    506: "csf",  # eyes: nearly water
    507: "muscle",  # other soft tissue: muscle and fat, not told apart
    508: "muscle",  # of the eye
    509: "skin",  # mucosa
    511: "skin",
    512: "wm",  # spinal cord
    514: "vessel",  # veins
    515: "skull",  # cortical bone
    516: "marrow",  # cancellous bone
    530: "wm",  # optic nerve
}
FREESURFER = {label: tissue for tissue, labels in _ASEG.items() for label in labels}
SYNTHSEG = FREESURFER | _OUTSIDE

# TotalSegmentator's tasks total_mr and total, as far as they name what lies in the abdomen; other labels are refused.
# Gullet and bowel are stomach, of whose layers they are, contents included. Discs, pancreas, adrenal glands, lungs,
# heart and cartilage are none of the tissues that `Liver` has, and are left out: background. So are fat and skin, which
# the program does not label. The spinal cord, labelled with what surrounds it, is csf.
_TOTALSEG_MR = {
    "liver": (5,),
    "liver_vessel": (25,),
    "bile": (4,),
    "stomach": (6, 12, 13, 14, 15),
    "spleen": (1,),
    "kidney": (2, 3),
    "muscle": (46, 47, 48, 49),
    "marrow": (18, 19),
    "csf": (21,),
    "aorta": (23, 24),
    BACKGROUND: (7, 8, 9, 10, 11, 20, 22),
}
_TOTALSEG_CT = {
    "liver": (5,),
    "liver_vessel": (64,),
    "bile": (4,),
    "stomach": (6, 15, 18, 19, 20),
    "spleen": (1,),
    "kidney": (2, 3),
    "muscle": (86, 87, 88, 89),
    # sacrum to the first thoracic vertebra; ribs
    "marrow": (*range(25, 44), *range(92, 116)),
    "csf": (79,),
    "aorta": (52, 63),
    BACKGROUND: (7, 8, 9, 10, 11, 12, 13, 14, 51, 117),
}

LABEL_SCHEMES: dict[str, dict[int, str]] = {
    "discrete": DISCRETE,
    "vessel-gm-wm": VESSEL_GM_WM,
    "twelve": TWELVE,
    "twelve-raw-short": _RAW_SHORT,
    "twelve-komamri": _KOMAMRI,
    "freesurfer": FREESURFER,
    "synthseg": SYNTHSEG,
    "totalseg-mr": {label: tissue for tissue, labels in _TOTALSEG_MR.items() for label in labels},
    "totalseg-ct": {label: tissue for tissue, labels in _TOTALSEG_CT.items() for label in labels},
}
