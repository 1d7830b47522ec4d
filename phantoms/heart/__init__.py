"""Short-axis slices of hearts in their surroundings, in two domains, and the mask of the left ventricle."""

from phantoms.heart.mask import HeartVolumes, ventricle
from phantoms.heart.spec import Heart, clinical_t1, preclinical_t1rho
from phantoms.heart.subject import TISSUES, Subject

__all__ = ["TISSUES", "Heart", "HeartVolumes", "Subject", "clinical_t1", "preclinical_t1rho", "ventricle"]
