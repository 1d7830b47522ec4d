"""The heart itself, painted plane by plane over its surroundings."""

import numpy as np
from jaxtyping import Float

from phantoms.drawn.outlines import ellipse
from phantoms.drawn.painting import covered, paint, strip
from phantoms.heart.subject import TISSUES, Subject
from phantoms.heart.ventricles import ANGLES, Edges, Plane


def paint_heart(
    subject: Subject, edges: Edges, scarred: bool, y: Plane, x: Plane, voxel_mm: tuple[float, float]
) -> Float[np.ndarray, "t y x"]:
    """Shares of the tissues of the heart in one plane [1].

    From the bottom to the top: fat around both ventricles, the right one and its band, the left wall, its blood, the
    papillary muscles; the scar takes a share of the wall.
    """
    dy, dx = y - subject["centre_y_mm"], x - subject["centre_x_mm"]
    theta = np.arctan2(dy, dx)
    heart = np.minimum(edges.epicardium, edges.right_wall)
    regions: list[tuple[str | None, Plane]] = [
        ("fat", covered(heart - _fat_mm(subject, theta), voxel_mm)),
        ("rv_myocardium", covered(edges.right_wall, voxel_mm)),
        ("rv_blood", covered(edges.right, voxel_mm)),
    ]
    if subject["moderator_band_mm"] > 0:
        regions.append(("rv_myocardium", _band(subject, edges, dy, dx, voxel_mm)))
    regions.append(("myocardium", covered(edges.epicardium, voxel_mm)))
    regions.append(("lv_blood", covered(edges.endocardium, voxel_mm)))
    shares = paint(TISSUES, regions, (y.shape[0], y.shape[1]))
    wall, scar = TISSUES.index("myocardium"), TISSUES.index("scar")
    if scarred:
        # it takes of each voxel's wall alone; as a region it would cover what lies beside the wall, too
        shares[scar] = covered(scar_distance(subject, edges, theta, np.hypot(dy, dx)), voxel_mm) * shares[wall]
        shares[wall] -= shares[scar]
    for distance in _papillary(subject, edges, y, x):
        share = covered(distance, voxel_mm)
        shares *= 1 - share
        shares[wall] += share
    return shares


def scar_distance(subject: Subject, edges: Edges, theta: Plane, r: Plane) -> Plane:
    """Signed distance from a scar that reaches from the endocardium through the share s of the wall W, to first order.

    With u the angle from its middle over half the angle that it spans,

        d = (d_endocardium - s (1 - u^4) W) / sqrt(1 + (4 s W u^3 / (r u_1))^2),

    u_1 being half that angle: full depth in the middle, none at the ends [mm].
    """
    middle = 2 * np.pi * subject.places["scar"][0]
    half = subject["scar_angle"] / 2
    u = np.abs((theta - middle + np.pi) % (2 * np.pi) - np.pi) / half
    wall = edges.endocardium - edges.epicardium
    depth = subject["scar_transmural"] * wall
    slope = 4 * depth * np.minimum(u, 1) ** 3 / (np.maximum(r, 1e-3) * half)
    distance: Plane = (edges.endocardium - depth * (1 - u**4)) / np.sqrt(1 + slope**2)
    return distance


def _fat_mm(subject: Subject, theta: Plane) -> Plane:
    """Thickness of the fat: most in the grooves where the ventricles meet, and never below 0."""
    bend = subject.shapes["epicardial_fat"]
    towards = theta - subject["rv_angle"]
    grooves = sum(np.exp(4 * (np.cos(towards - side * (subject["rv_span"] + 0.15)) - 1)) for side in (-1, 1))
    patches = 1 + sum(
        0.25 * (bend[2 * k] * np.cos((k + 1) * theta) + bend[2 * k + 1] * np.sin((k + 1) * theta)) for k in range(3)
    )
    # little over the left ventricle's free wall
    share = 0.25 + 0.75 * (1 + np.cos(towards)) / 2
    thickness: Plane = subject["epicardial_fat_mm"] * (share * np.maximum(patches, 0.1) + 0.9 * grooves)
    return thickness


def _band(subject: Subject, edges: Edges, dy: Plane, dx: Plane, voxel_mm: tuple[float, float]) -> Plane:
    """Share of the moderator band: from septum to free wall, on the lower side of the cavity [1]."""
    angle = subject["rv_angle"] - 0.35
    across = np.cos(angle) * dy - np.sin(angle) * dx
    offset = 0.12 * edges.outer_mm * (1 + 0.5 * subject.shapes["right"][3])
    return strip(across + offset, subject["moderator_band_mm"] / 2, voxel_mm) * covered(edges.right, voxel_mm)


def _papillary(subject: Subject, edges: Edges, y: Plane, x: Plane) -> list[Plane]:
    """Papillary muscles: across from the septum, close to the wall."""
    n = subject.papillary_muscles
    spread = np.linspace(-1.05, 1.05, n) if n > 1 else np.zeros(n)
    shape = subject.shapes["papillary"].reshape(4, 4)
    # as the cavity narrows, so do they
    width = subject["papillary_mm"] * min(1.0, float(edges.radius_mm.mean()) / subject["lv_radius_mm"])
    found = []
    for side, (turn, size, gap, tilt) in zip(spread, shape[:n], strict=True):
        angle = subject["rv_angle"] + np.pi + side + 0.12 * turn
        half = width * (1 + 0.12 * size)
        wrapped = (angle + np.pi) % (2 * np.pi) - np.pi
        radius = float(np.interp(wrapped, ANGLES, edges.radius_mm, period=2 * np.pi))
        if radius <= 3 * half:
            # no room: the apex, or a slice of a map whose cavity lies aside
            continue
        away = radius - 0.9 * half - max(0.6 + 0.7 * gap, 0.0)
        centre = (
            float(subject["centre_y_mm"] + away * np.sin(angle)),
            float(subject["centre_x_mm"] + away * np.cos(angle)),
        )
        found.append(ellipse(centre, (1.15 * half, 0.9 * half), float(angle + 0.2 * tilt), y, x))
    return found
