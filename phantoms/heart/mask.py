"""The mask that segmentation of the left ventricle learns, and hearts that know it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from phantoms.base import VolumePhantom, as_fractions
from phantoms.files.export import labels_of
from qsim.errors import InputError


@dataclass(frozen=True, slots=True)
class HeartVolumes(VolumePhantom):
    """A split of the cohort, whose regions are the parts of the left ventricle."""

    @property
    def region_names(self) -> tuple[str, ...]:
        """What regions 1 and 2 are."""
        return "myocardium of the left ventricle", "blood pool of the left ventricle"

    def regions(self, subject: int) -> UInt8[np.ndarray, "*space"]:
        """Left ventricle of a subject, as `ventricle` has it, of the tissue with the largest share.

        Args:
            subject: as in `Crop`.
        """
        fractions = as_fractions(self.volumes[self.ids.index(subject)])
        return ventricle(labels_of(fractions), self.tissues)


def ventricle(labels: UInt8[np.ndarray, "*space"], tissues: tuple[str, ...]) -> UInt8[np.ndarray, "*space"]:
    """Left ventricle: 1 its myocardium (scar and papillary muscles included), 2 its blood pool, 0 all else.

    Args:
        labels: as stores hold them: 1 + index of the tissue with the largest share, 0 background.
        tissues: names, in that order.
    Raises: InputError if there is no myocardium among the tissues, or a label stands for none of them.
    """
    if "myocardium" not in tissues:
        raise InputError(f"tissues: a mask of the left ventricle needs myocardium, got {', '.join(tissues) or 'none'}")
    highest = int(labels.max(initial=0))
    if highest > len(tissues):
        raise InputError(f"labels: {highest} stands for no tissue; there are {len(tissues)}")
    of_label = np.zeros(len(tissues) + 1, dtype=np.uint8)
    for label, tissue in enumerate(tissues, start=1):
        of_label[label] = {"myocardium": 1, "scar": 1, "lv_blood": 2}.get(tissue, 0)
    return of_label[labels]
