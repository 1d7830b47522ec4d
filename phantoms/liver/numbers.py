"""Every number of the liver's anatomy: mean and standard deviation over subjects.

Frame, of an average subject: 0 is the middle of the abdominal cavity at the level of the porta hepatis; y to the back,
x to the patient's left, z to the head [mm]. Positions in the plane are stretched with the subject's cavity; sizes and
positions along z are not. A number is drawn as

    mean + variation sd q,   q standard normal, cut at +-2.

Source: "-" stands for "to be sourced": a plausible adult value, laid out by eye as an axial slice at that level looks,
and not taken from a measurement of a population.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, slots=True)
class Number:
    """Mean, standard deviation and source of one number; lengths in mm unless the name says otherwise."""

    mean: float
    sd: float
    source: str = "-"


_KIDNEY = "length 109 (right), 112 mm (left): Emamian et al. 1993, AJR 160:83, from memory"

# by organ: what stands before the dot; the numbers of an organ are drawn in this order from a stream of its own
NUMBERS: dict[str, Number] = {
    # level of the middle slice above the porta hepatis, and where the subject lies in the image
    "place.z": Number(0.0, 8.0),
    "place.y": Number(0.0, 4.0),
    "place.x": Number(0.0, 4.0),
    # abdominal cavity: half axes of a superellipse |x/a|^p + |y/b|^p = 1, and by how much it narrows towards the feet
    "cavity.side": Number(123.0, 7.0),
    "cavity.front": Number(78.0, 6.0),
    "cavity.back": Number(62.0, 3.5),
    "cavity.power_1": Number(2.35, 0.12),
    "cavity.taper_per_mm": Number(0.0005, 0.0003),
    # muscle wall
    "wall.side": Number(13.0, 1.6),
    "wall.front": Number(9.0, 1.3),
    "wall.back": Number(40.0, 3.0),
    "wall.power_1": Number(2.25, 0.1),
    "wall.furrow": Number(5.0, 2.0),
    # subcutaneous fat
    "fat.mean": Number(19.0, 4.0, "5 to 35 mm at this level in adults, to be sourced"),
    "fat.front": Number(0.0, 2.0),
    "fat.back": Number(3.0, 2.0),
    # ribs, cut obliquely: half axes of the marrow, angle between two, by how much they move along the wall per mm of z
    "ribs.long": Number(7.5, 0.9),
    "ribs.short": Number(3.0, 0.35),
    "ribs.angle_rad": Number(0.0, 0.12),
    "ribs.turn_rad_per_mm": Number(0.011, 0.001),
    # spine: vertebral body, canal
    "spine.y": Number(48.0, 2.0),
    "spine.x": Number(0.0, 1.5),
    "spine.half_y": Number(15.5, 1.0),
    "spine.half_x": Number(20.5, 1.3),
    "spine.canal_half_y": Number(7.5, 0.6, "sagittal diameter of about 15 mm, to be sourced"),
    "spine.canal_half_x": Number(10.0, 0.8),
    "spine.process": Number(15.0, 2.0),
    "spine.process_half_x": Number(3.6, 0.3),
    "spine.arch_y": Number(5.0, 0.4),
    "spine.arch_x": Number(5.5, 0.4),
    "spine.transverse_half_y": Number(4.0, 0.3),
    "spine.transverse_half_x": Number(14.0, 1.0),
    # dark shell of all bones
    "bone.shell": Number(1.2, 0.1),
    # crura of the diaphragm, from the middle of the vertebral body; psoas: half width at z = 0, less per mm upwards
    "crus.y": Number(-14.0, 1.0),
    "crus.x": Number(14.0, 1.0),
    "crus.half_y": Number(5.0, 0.7),
    "crus.half_x": Number(11.0, 1.2),
    "psoas.half_x": Number(9.0, 1.2),
    "psoas.taper_1": Number(0.12, 0.02),
    # great vessels
    "aorta.y": Number(20.0, 2.5),
    "aorta.x": Number(11.0, 3.0),
    "aorta.radius": Number(10.0, 1.1, "diameter of about 20 mm at the diaphragm, to be sourced"),
    "cava.y": Number(17.0, 2.0),
    "cava.x": Number(-25.0, 2.5),
    "cava.half_y": Number(8.5, 1.3),
    "cava.half_x": Number(12.0, 1.6),
    # kidneys: half axes; with the sinus (fat) and the fat around
    "kidney.right_y": Number(38.0, 4.0),
    "kidney.right_x": Number(-60.0, 5.0),
    "kidney.right_z": Number(-62.0, 12.0),
    "kidney.left_y": Number(36.0, 4.0),
    "kidney.left_x": Number(58.0, 5.0),
    "kidney.left_z": Number(-50.0, 12.0),
    "kidney.half_y": Number(27.0, 2.0),
    "kidney.half_x": Number(23.0, 2.0),
    "kidney.half_z": Number(55.0, 4.0, _KIDNEY),
    "kidney.tilt_rad": Number(0.45, 0.12),
    "kidney.around": Number(6.0, 1.5),
    "kidney.sinus_1": Number(0.5, 0.07),
    # spleen: size relative to `SPLEEN`; middle and half length along z
    "spleen.size_1": Number(1.0, 0.09),
    "spleen.y": Number(0.0, 5.0),
    "spleen.z": Number(8.0, 8.0),
    "spleen.half_z": Number(53.0, 6.0, "length of about 11 cm, to be sourced"),
    # stomach: size relative to `STOMACH`; wall; level of the air, as a share of the height from the front
    "stomach.size_1": Number(0.93, 0.17),
    "stomach.y": Number(0.0, 4.0),
    "stomach.x": Number(0.0, 5.0),
    "stomach.wall": Number(4.5, 0.7, "3 to 6 mm when filled, to be sourced"),
    "stomach.air_1": Number(0.25, 0.14),
    # gallbladder
    "gallbladder.y": Number(-16.0, 6.0),
    "gallbladder.x": Number(-38.0, 5.0),
    "gallbladder.z": Number(-36.0, 9.0),
    "gallbladder.half_y": Number(17.0, 2.5),
    "gallbladder.half_x": Number(11.5, 1.8),
    "gallbladder.half_z": Number(30.0, 4.0),
    "gallbladder.tilt_rad": Number(-0.4, 0.2),
    # liver: width of the left lobe relative to `LIVER`; fissure of the round ligament: half width and upper end
    "liver.left_1": Number(1.0, 0.15),
    "liver.fissure": Number(1.7, 0.4),
    "liver.fissure_z": Number(-2.0, 4.0),
    # vessels and ducts in the liver: radii
    "vessels.portal": Number(6.0, 0.6, "portal vein 10 to 13 mm wide, to be sourced"),
    "vessels.hepatic": Number(4.6, 0.5),
    "vessels.duct_1": Number(0.2, 0.03),
}

# standard deviations of what is not one number
OUTLINE_SD = 0.012  # of the cavity's radius, per mode cos, sin (2 to 5 theta) [1]
POINTS_SD = 3.5  # of control points of liver, spleen and stomach, neighbours alike [mm]
POINTS_TILT_SD = 0.05  # of the same per mm of z [1]
NODES_SD = 4.0  # of the nodes of the vessels [mm]
BEND_SD = 0.35  # of the angles of their branches [rad]
# what is the same for all: fat between neighbours, between organs and wall, parenchyma over the vessels [mm]
BETWEEN_MM = 1.5
CAPSULE_MM = 2.0
OVER_VESSELS_MM = 3.0

Points = tuple[tuple[float, float], ...]

# Outlines (y, x) at the levels z of `LEVELS`, straight lines between them; they go round from the falciform ligament at
# the front over the right side, the back, the vena cava and the hilum to the left lobe. Beyond the cavity they are cut.
LEVELS: tuple[float, float, float] = (-40.0, 0.0, 40.0)
LIVER: tuple[Points, Points, Points] = (
    (
        (-70, -22), (-74, -60), (-58, -106), (-15, -136), (25, -132), (56, -104), (50, -78), (26, -62), (8, -52),
        (-4, -48), (-18, -44), (-30, -40), (-36, -24), (-42, -8), (-54, 8), (-66, 10), (-72, -4),
    ),
    (
        (-84, -12), (-84, -56), (-62, -108), (-15, -138), (28, -134), (60, -104), (68, -66), (46, -40), (24, -38),
        (10, -18), (-2, -10), (-8, -28), (-21, -14), (-30, 10), (-42, 36), (-58, 58), (-82, 24),
    ),
    (
        (-86, -6), (-86, -52), (-64, -106), (-15, -138), (30, -134), (62, -104), (70, -62), (44, -34), (26, -32),
        (16, -6), (2, 2), (-8, 2), (-16, 18), (-26, 44), (-38, 72), (-58, 86), (-84, 40),
    ),
)  # fmt: skip
# of those points, the ones that `liver.left_1` stretches away from x = 0
LEFT_LOBE: tuple[int, ...] = (13, 14, 15, 16)
# the right lobe ends at the line from the vena cava to the gallbladder (y, x); its first and second point
RIGHT_LOBE: tuple[tuple[float, float], tuple[float, float]] = ((17.0, -25.0), (-40.0, -44.0))
# fissure of the round ligament (y, x): where it ends at the front and at the lower surface
FISSURE: tuple[tuple[float, float], tuple[float, float]] = ((-62.0, -8.0), (-30.0, -3.0))
# (y, x) about their middles; the point of the spleen that stays where it is as the spleen becomes smaller
SPLEEN_HELD: tuple[float, float] = (4.0, 36.0)
SPLEEN_MIDDLE: tuple[float, float] = (26.0, 88.0)
SPLEEN: Points = (
    (-44, 34), (-26, 46), (0, 48), (24, 34), (38, 8), (36, -14), (22, -16), (6, -2), (-14, 10), (-34, 18),
)  # fmt: skip
STOMACH_MIDDLE: tuple[float, float] = (-14.0, 60.0)
STOMACH: Points = (
    (-44, 12), (-36, 38), (-8, 48), (20, 38), (38, 16), (38, -8), (22, -26), (2, -38), (-18, -36), (-36, -16),
)  # fmt: skip
# Vessels: nodes (y, x, z) and radii there relative to that of the trunk; -1: a trunk, others the number of the parent.
Nodes = tuple[tuple[int, float, float, float, float], ...]
PORTAL: Nodes = (
    (-1, 8.0, -8.0, -40.0, 1.0), (0, -2.0, -30.0, -4.0, 1.0), (1, 3.0, -58.0, 0.0, 0.8),
    (2, -24.0, -82.0, 6.0, 0.62), (2, 26.0, -84.0, -6.0, 0.62), (3, -40.0, -100.0, 22.0, 0.42),
    (3, -46.0, -78.0, -8.0, 0.42), (4, 36.0, -104.0, 14.0, 0.42), (4, 22.0, -108.0, -22.0, 0.42),
    (1, -20.0, -14.0, 6.0, 0.72), (9, -44.0, -4.0, 6.0, 0.62), (10, -46.0, 26.0, 14.0, 0.4),
    (10, -62.0, -26.0, 2.0, 0.4), (10, -60.0, 12.0, -8.0, 0.35),
)  # fmt: skip
# the splenic vein, from the trunk of the portal vein to the spleen
SPLENIC: Nodes = (
    (-1, 4.0, -12.0, -26.0, 0.7), (0, 10.0, 14.0, -18.0, 0.7), (1, 16.0, 34.0, -12.0, 0.65),
    (2, 24.0, 52.0, -6.0, 0.6), (3, 26.0, 74.0, 2.0, 0.5),
)  # fmt: skip
HEPATIC: Nodes = (
    (-1, 14.0, -26.0, 46.0, 1.0), (0, 10.0, -58.0, 34.0, 0.9), (1, 4.0, -84.0, 8.0, 0.68),
    (2, 4.0, -104.0, -18.0, 0.45), (2, -14.0, -106.0, 6.0, 0.42), (1, 34.0, -78.0, 22.0, 0.5),
    (5, 44.0, -96.0, -2.0, 0.38), (0, -14.0, -34.0, 32.0, 0.85), (7, -36.0, -44.0, 8.0, 0.64),
    (8, -54.0, -56.0, -18.0, 0.42), (8, -56.0, -34.0, -6.0, 0.4), (0, -10.0, -4.0, 38.0, 0.72),
    (11, -34.0, 26.0, 26.0, 0.56), (12, -50.0, 48.0, 12.0, 0.36), (12, -60.0, 18.0, 10.0, 0.36),
)  # fmt: skip


def levelled(z: float) -> Float[np.ndarray, "k 2"]:
    """Control points of the average liver at a level (beyond the outer levels as there) [mm]."""
    stack = np.asarray(LIVER, dtype=float)
    at = float(np.clip(z, LEVELS[0], LEVELS[-1]))
    i = 0 if at < LEVELS[1] else 1
    t = (at - LEVELS[i]) / (LEVELS[i + 1] - LEVELS[i])
    points: Float[np.ndarray, "k 2"] = (1 - t) * stack[i] + t * stack[i + 1]
    return points
