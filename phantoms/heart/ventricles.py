"""Edges of both ventricles in one plane.

The left ventricle is a ring of two star-shaped outlines about one centre, endocardium rho and epicardium rho + w, so
that the wall measures w along every ray. Both narrow towards the apex as an ellipsoid does: at z below mid-ventricle,
with the tip at A and the widest plane B above mid-ventricle,

    t(z) = sqrt((1 - ((z + B) / (A + B))^2) / (1 - (B / (A + B))^2)).

The right one is a star-shaped outline of its own that the left one covers in part: what is left is its crescent.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from phantoms.drawn.outlines import Star
from phantoms.heart.subject import Subject

Plane = Float[np.ndarray, "y x"]
ANGLES = np.linspace(-np.pi, np.pi, 360, endpoint=False)
# from mid-ventricle to the widest plane [mm]: to be sourced
_WIDEST_MM = 20.0
# exponent of the right cavity's outline: 2 is an ellipse, more is fuller
_FULL = 2.0


@dataclass(frozen=True, slots=True)
class Edges:
    """Signed distances in one plane, negative inside [mm].

    Attributes:
        endocardium, epicardium: of the left ventricle.
        right: of the right cavity.
        right_wall: of the outside of its wall.
        radius_mm: of the endocardium at `ANGLES`.
        outer_mm: mean radius of the epicardium.
    """

    endocardium: Plane
    epicardium: Plane
    right: Plane
    right_wall: Plane
    radius_mm: Float[np.ndarray, " angles"]
    outer_mm: float


def narrowing(z_mm: float, apex_mm: float) -> float:
    """Width of the cavity relative to mid-ventricle [1].

    Args:
        z_mm: below mid-ventricle.
        apex_mm: from there to the tip.
    """
    along = (z_mm + _WIDEST_MM) / (apex_mm + _WIDEST_MM)
    middle = _WIDEST_MM / (apex_mm + _WIDEST_MM)
    # above the widest plane the cavity stays as wide
    return float(np.sqrt((1 - max(along, 0.0) ** 2) / (1 - middle**2)))


def left_outlines(subject: Subject, z_mm: float) -> tuple[Star, Star]:
    """Endocardium and epicardium, z below mid-ventricle [mm]."""
    t = narrowing(z_mm, subject["apex_mm"])
    radius = subject["lv_radius_mm"] * t
    bend, axis = subject.shapes["endocardium"], np.pi * subject.places["endocardium"][0]
    # (a - b) / (a + b) is the second harmonic of an ellipse, to second order
    inner = radius * np.array(
        [
            [1.0, 0.0],
            [0.0, 0.0],
            [subject["eccentricity"] * np.cos(2 * axis), subject["eccentricity"] * np.sin(2 * axis)],
            [0.012 * bend[0], 0.012 * bend[1]],
            [0.006 * bend[2], 0.006 * bend[3]],
        ]
    )
    # the wall, too, is thinner near the apex: half as much as the cavity is narrower
    wall, uneven = subject["wall_mm"] * (0.5 + 0.5 * t), subject["wall_unevenness"]
    # thickest somewhere at the septum
    thick = subject["rv_angle"] + (subject.places["wall"][0] - 0.5) * np.pi
    turn = 2 * np.pi * subject.places["wall"][1]
    bend = subject.shapes["wall"]
    around = wall * np.array(
        [
            [1.0, 0.0],
            [0.75 * uneven * np.cos(thick), 0.75 * uneven * np.sin(thick)],
            [0.35 * uneven * np.cos(turn), 0.35 * uneven * np.sin(turn)],
            [0.01 * bend[0], 0.01 * bend[1]],
            [0.01 * bend[2], 0.01 * bend[3]],
        ]
    )
    centre = (subject["centre_y_mm"], subject["centre_x_mm"])
    return _star(centre, inner), _star(centre, inner + around)


def right_outline(subject: Subject, z_mm: float) -> Star:
    """The right cavity as if the left ventricle did not cover it, z below mid-ventricle [mm].

    In the frame of the septum, u towards the right ventricle: an ellipse whose tip lies the cavity's size beyond the
    left epicardium and which passes through both insertions, pulled out towards the acute margin.
    """
    t = narrowing(z_mm, subject["apex_mm"])
    outer = left_outlines(subject, z_mm)[1].cosines[0]
    # the right ventricle ends above the left one's tip
    tip = outer + subject["rv_size_mm"] * t**1.5
    middle = 0.45 * outer
    insertion = outer * np.array([np.cos(subject["rv_span"]), np.sin(subject["rv_span"])])
    along = tip - middle
    # of the two half lengths, that on the side of the insertions
    ahead = along if insertion[0] > middle else middle + 0.25 * outer
    across = insertion[1] / (1 - (abs(insertion[0] - middle) / ahead) ** _FULL) ** (1 / _FULL)
    local = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    # behind, where the left ventricle covers it, it is shorter: nothing may come out at its far side
    length = np.where(np.cos(local) > 0, along, middle + 0.25 * outer)
    radius = (np.abs(np.cos(local) / length) ** _FULL + np.abs(np.sin(local) / across) ** _FULL) ** (-1 / _FULL)
    bend = subject.shapes["right"]
    # the tip stays where it is: the factor is 1 there
    margin = -1.05 + 0.1 * bend[0]
    pull = np.cos(3 * (local - margin)) - np.cos(3 * margin)
    radius *= 1 + (0.08 + 0.02 * bend[1]) * pull + 0.012 * bend[2] * (np.cos(2 * local) - 1)
    angle = subject["rv_angle"]
    direction = np.array([np.sin(angle), np.cos(angle)])
    centre = np.array([subject["centre_y_mm"], subject["centre_x_mm"]]) + middle * direction
    return star_through(_pair(centre), radius, angle, 6)


def star_through(centre_mm: tuple[float, float], radii: Float[np.ndarray, " n"], angle: float, harmonics: int) -> Star:
    """Star-shaped outline through radii at evenly spaced directions, from `angle` on [mm]."""
    spectrum = np.fft.rfft(radii)[: harmonics + 1] / len(radii)
    spectrum[1:] *= 2
    turned = spectrum * np.exp(-1j * angle * np.arange(harmonics + 1))
    return Star(centre_mm, tuple(float(c) for c in turned.real), tuple(float(-s) for s in turned.imag[1:]))


def drawn_edges(subject: Subject) -> Callable[[float, Plane, Plane], Edges]:
    """Edges at z below mid-ventricle [mm] on points (y, x) [mm], of a heart without label maps."""

    def at(z_mm: float, y: Plane, x: Plane) -> Edges:
        inner, outer = left_outlines(subject, z_mm)
        right = right_outline(subject, z_mm).distance(y, x)
        return Edges(
            endocardium=inner.distance(y, x),
            epicardium=outer.distance(y, x),
            right=right,
            right_wall=right - subject["rv_wall_mm"],
            radius_mm=inner.radius(ANGLES)[0],
            outer_mm=outer.cosines[0],
        )

    return at


def _star(centre: tuple[float, float], terms: Float[np.ndarray, "k 2"]) -> Star:
    return Star(centre, tuple(float(c) for c in terms[:, 0]), tuple(float(s) for s in terms[1:, 1]))


def _pair(point: Float[np.ndarray, "2"]) -> tuple[float, float]:
    return float(point[0]), float(point[1])
