"""What lies around the heart, in one plane: chest wall with ribs, lungs, liver, stomach, spine and aorta.

The chest is a star-shaped outline, its walls added around it, so that layers never cross. Distances within it are those
of `outlines`, from tables over the angle: d = (r - rho) / sqrt(1 + (rho' / rho)^2).

Where everything lies follows from the direction of the spine: to the right of an oblique human slice, down for swine on
their backs. All arrangements are to be sourced: they are drawn after what such slices look like.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from phantoms.drawn.outlines import ellipse
from phantoms.drawn.painting import covered, ellipse_region, frame_of, strip
from phantoms.heart.subject import Subject
from phantoms.heart.ventricles import Plane

Surroundings = Literal["human", "swine"]
Region = tuple[str | None, Plane]
_N = 720
_DIAPHRAGM_MM = 3.0
_FREE_WALL_MM = 4.0


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Where things lie.

    Attributes:
        back: direction of the spine from the middle of the chest [rad].
        keel: how far the chest is drawn out towards the sternum [1].
        liver_mm: middle of the liver's dome across from the left ventricle [mm].
        dome_mm: half width of the dome, and how far it falls away below [mm].
        stomach: whether it is seen.
        rests: whether the heart rests on the diaphragm.
        spine_mm: half lengths of the vertebra, from front to back and across [mm].
        rib_mm: half lengths of a rib along the wall and through it; from one to the next [mm].
        vessel_mm: mean radius of the vessels of the lung [mm].
    """

    back: float
    keel: float
    liver_mm: float
    dome_mm: tuple[float, float]
    stomach: bool
    rests: bool
    spine_mm: tuple[float, float]
    rib_mm: tuple[float, float, float]
    vessel_mm: float


ARRANGEMENTS: dict[str, Arrangement] = {
    "human": Arrangement(0.22, 0.0, -38.0, (118.0, 105.0), True, True, (15.0, 21.0), (7.0, 3.6, 27.0), 2.2),
    "swine": Arrangement(1.62, 0.11, -40.0, (88.0, 78.0), False, False, (10.0, 12.0), (5.0, 2.8, 19.0), 1.6),
}


@dataclass(frozen=True, slots=True)
class _Chest:
    """Polar frame of the chest.

    Attributes:
        centre: (y, x) [mm].
        theta, r: of the points [rad; mm].
        inside: radii of the inside of the wall at `_N` angles from -pi on [mm].
    """

    centre: tuple[float, float]
    theta: Plane
    r: Plane
    inside: Float[np.ndarray, " n"]

    def distance(self, radii: Float[np.ndarray, " n"]) -> Plane:
        """Signed distance from a star-shaped outline about its centre, to first order [mm]."""
        slope = (np.roll(radii, -1) - np.roll(radii, 1)) * _N / (4 * np.pi)
        norm = np.sqrt(1 + (slope / radii) ** 2)
        return (self.r - self.at(radii)) / self.at(norm)

    def at(self, table: Float[np.ndarray, " n"]) -> Plane:
        """Look up a table over the angle, linearly."""
        place = (self.theta + np.pi) * (_N / (2 * np.pi))
        low = place.astype(np.int64) % _N
        share = place - np.floor(place)
        found: Plane = table[low] * (1 - share) + table[(low + 1) % _N] * share
        return found

    def point(self, direction: float, inwards_mm: float) -> tuple[float, float]:
        """A point at some depth from the inside of the wall (y, x) [mm]."""
        radius = float(np.interp(direction, _angles(), self.inside, period=2 * np.pi)) - inwards_mm
        return self.centre[0] + radius * float(np.sin(direction)), self.centre[1] + radius * float(np.cos(direction))


def surround(
    subject: Subject, surroundings: Surroundings, outer_mm: float, y: Plane, x: Plane, voxel_mm: tuple[float, float]
) -> list[Region]:
    """Regions around the heart, from the bottom to the top.

    Args:
        outer_mm: radius of the left epicardium at the middle slice.
    """
    plan = ARRANGEMENTS[surroundings]
    chest = _chest(subject, plan, outer_mm, y, x)
    layers, body = subject.shapes["layers"], _angles()
    front = np.cos(body - plan.back - np.pi)
    # thicker where muscles lie: beside the spine and on the front
    wall = subject["chest_wall_mm"] * (1 + 0.25 * front**2 + _harmonics(layers[:4], 0.06, 2))
    wall = wall + 0.9 * subject["chest_wall_mm"] * np.exp(6 * (np.cos(body - plan.back) - 1))
    fat = subject["fat_mm"] * np.maximum(1 + 0.15 * front + _harmonics(layers[4:], 0.12, 2), 0.4)

    # muscles touch in places: the fat that parts the outer ones from the ribs is no ring
    between = 0.06 * float(wall.mean()) * np.maximum(0.6 + _harmonics(layers, 0.7, 2), 0)

    inside = chest.distance(chest.inside)
    regions: list[Region] = [
        ("fat", covered(chest.distance(chest.inside + wall + fat), voxel_mm)),
        ("muscle", covered(chest.distance(chest.inside + wall), voxel_mm)),
        ("fat", strip(chest.distance(chest.inside + 0.62 * wall), chest.at(between), voxel_mm)),
        ("marrow", covered(_ribs(subject, plan, chest, wall), voxel_mm)),
        ("lung", covered(inside, voxel_mm)),
    ]
    regions += _vessels(subject, plan, chest, voxel_mm, y, x)
    # fat between the heart and the sternum
    heart = (subject["centre_y_mm"], subject["centre_x_mm"])
    sternum = chest.point(plan.back + np.pi, -0.45 * subject["chest_wall_mm"])
    pad = _capsule(heart, sternum, (0.35 * outer_mm, 0.62 * outer_mm), y, x)
    # and where it rests on the diaphragm
    ground = (heart[0] + outer_mm + subject["diaphragm_mm"] + 8, heart[1] + 0.8 * plan.liver_mm)
    if plan.rests:
        pad = np.minimum(pad, _capsule(heart, ground, (0.6 * outer_mm, 0.75 * outer_mm), y, x))
    regions.append(("fat", covered(np.maximum(pad, inside), voxel_mm)))
    regions += _abdomen(subject, plan, inside, outer_mm, y, x, voxel_mm)
    regions += _back(subject, plan, chest, y, x, voxel_mm)
    bone = (0.3 * subject["chest_wall_mm"], 0.75 * subject["chest_wall_mm"])
    # its flat side towards the heart
    distance = ellipse(sternum, (bone[1], bone[0]), plan.back, y, x)
    regions.append(("marrow", covered(distance, voxel_mm)))
    return regions


def _angles() -> Float[np.ndarray, " n"]:
    return np.arange(_N) * (2 * np.pi / _N) - np.pi


def _harmonics(bend: Float[np.ndarray, " n"], size: float, first: int) -> Float[np.ndarray, " m"]:
    """Sum of harmonics from `first` on, each of two numbers, falling off."""
    angles = _angles()
    total = np.zeros(_N)
    for i in range(len(bend) // 2):
        k = first + i
        total += size / (1 + i) * (bend[2 * i] * np.cos(k * angles) + bend[2 * i + 1] * np.sin(k * angles))
    return total


def _chest(subject: Subject, plan: Arrangement, outer_mm: float, y: Plane, x: Plane) -> _Chest:
    """Lay the chest around the heart: so far from it towards the sternum as the gap says."""
    tilt = subject["thorax_tilt"]
    angles = _angles() - tilt
    half = subject["thorax_y_mm"], subject["thorax_x_mm"]
    # a chest is more of a box than an ellipse
    power = 2.35
    inside = (np.abs(np.sin(angles) / half[0]) ** power + np.abs(np.cos(angles) / half[1]) ** power) ** (-1 / power)
    inside = inside * (1 + _harmonics(subject.shapes["body"][:6], 0.012, 2))
    front = plan.back + np.pi
    inside = inside * (1 + plan.keel * np.exp(5 * (np.cos(_angles() - front) - 1)))
    reach = outer_mm + (subject["rv_size_mm"] + subject["rv_wall_mm"]) * max(
        float(np.cos(subject["rv_angle"] - front)), 0.3
    )
    away = float(np.interp(front, _angles(), inside, period=2 * np.pi)) - reach - subject["chest_gap_mm"]
    # from the heart towards the back, and across
    towards = np.array([np.sin(plan.back), np.cos(plan.back)])
    across = np.array([np.cos(plan.back), np.sin(plan.back)])
    heart = np.array([subject["centre_y_mm"], subject["centre_x_mm"]])
    middle = heart + away * towards + subject["thorax_shift_mm"] * across
    dy, dx = y - middle[0], x - middle[1]
    return _Chest((float(middle[0]), float(middle[1])), np.arctan2(dy, dx), np.hypot(dy, dx), inside)


def _ribs(subject: Subject, plan: Arrangement, chest: _Chest, wall: Float[np.ndarray, " n"]) -> Plane:
    """Ribs cut across, evenly along the wall: each an ellipse along it."""
    along, through, apart = plan.rib_mm
    length = chest.inside * (2 * np.pi / _N)
    n = max(int(length.sum() / apart), 1)
    # arc length in units of ribs
    arc = (np.cumsum(length) - length) * n / length.sum() + subject.places["ribs"][0]
    place = (chest.theta + np.pi) * (_N / (2 * np.pi))
    low = place.astype(np.int64) % _N
    number = arc[low] + (place - np.floor(place)) * length[low] * n / length.sum()
    u = ((number + 0.5) % 1 - 0.5) * float(length.sum()) / n
    v = chest.r - chest.at(chest.inside + 0.3 * wall)
    p, q = u / along, v / through
    size = np.maximum(np.hypot(p, q), 1e-9)
    distance: Plane = (size - 1) / np.maximum(np.hypot(p / along, q / through) / size, 1e-9)
    return distance


def _vessels(
    subject: Subject, plan: Arrangement, chest: _Chest, voxel_mm: tuple[float, float], y: Plane, x: Plane
) -> list[Region]:
    """Vessels of the lung, larger towards its middle; blood, as the aorta."""
    numbers = subject.shapes["vessels"].reshape(-1, 3)
    share_of, frame = np.zeros(chest.r.shape), frame_of(y, x, voxel_mm)
    reach = float(chest.inside.mean())
    for turn, far, size in numbers:
        angle, far_off = 1.7 * float(turn), reach * (0.42 + 0.2 * float(far))
        middle = np.add(chest.centre, (far_off * np.sin(angle), far_off * np.cos(angle)))
        radius = plan.vessel_mm * (1.2 - far_off / reach) * (1 + 0.3 * float(size))
        spot = ellipse_region(frame, middle, (radius, radius))
        np.maximum(share_of[spot.box], spot.share, out=share_of[spot.box])
    return [("aorta", share_of * covered(chest.distance(chest.inside) + 4, voxel_mm))]


def _abdomen(
    subject: Subject,
    plan: Arrangement,
    inside: Plane,
    outer_mm: float,
    y: Plane,
    x: Plane,
    voxel_mm: tuple[float, float],
) -> list[Region]:
    """Diaphragm, fat below it, liver, and the stomach with its gas."""
    bend = subject.shapes["abdomen"]
    top = subject["centre_y_mm"] + outer_mm + subject["diaphragm_mm"]
    middle = subject["centre_x_mm"] + plan.liver_mm + 6 * bend[0]
    width, height = plan.dome_mm[0] * (1 + 0.06 * bend[1]), plan.dome_mm[1]
    dome = ellipse((top + height, middle), (height, width), 0.04 * float(bend[2]), y, x)
    left: Plane = np.full(y.shape, np.inf)
    if plan.stomach:
        # the left dome, lower than the liver's
        place = (top + 78 + 5 * float(bend[3]), subject["centre_x_mm"] + 62 + 6 * float(bend[4]))
        left = ellipse(place, (72.0, 62.0), 0.0, y, x)
    below = np.maximum(np.minimum(dome, left), inside)
    regions: list[Region] = [
        # liver and fat begin within the diaphragm: of two edges in one place some of the lower would show
        ("fat", covered(below + _DIAPHRAGM_MM / 2, voxel_mm)),
        ("liver", covered(np.maximum(dome, inside) + _DIAPHRAGM_MM / 2, voxel_mm)),
        ("muscle", strip(below + _DIAPHRAGM_MM / 2, _DIAPHRAGM_MM / 2, voxel_mm)),
    ]
    # hepatic veins run towards the dome
    numbers = subject.shapes["vessels"][:24].reshape(-1, 4)
    veins: Plane = np.full(y.shape, np.inf)
    for turn, far, size, lean in numbers:
        start = (top + height * (0.5 + 0.16 * float(far)), middle + 0.32 * width * float(turn))
        end = (start[0] + 9 + 5 * float(size), start[1] + 10 * float(lean))
        veins = np.minimum(veins, _capsule(start, end, (1.2 * plan.vessel_mm, 0.7 * plan.vessel_mm), y, x))
    regions.append(("aorta", covered(np.maximum(veins, np.maximum(dome, inside) + 10), voxel_mm)))
    if plan.stomach:
        stomach = ellipse((place[0] - 14, place[1] + 2), (44.0, 38.0), 0.3 * float(bend[5]), y, x)
        stomach = np.maximum(stomach, inside + _DIAPHRAGM_MM)
        # gas rises to the front, at the left of the picture
        level = x - (place[1] - 12 + 9 * float(bend[6]))
        regions += [
            ("muscle", covered(stomach, voxel_mm)),
            (None, covered(np.maximum(stomach + _FREE_WALL_MM, level), voxel_mm)),
        ]
    return regions


def _back(
    subject: Subject, plan: Arrangement, chest: _Chest, y: Plane, x: Plane, voxel_mm: tuple[float, float]
) -> list[Region]:
    """Vertebra in its bed of fat and muscle, canal behind it, and the aorta before it, on the left of the body."""
    bend = subject.shapes["spine"]
    direction = plan.back + 0.05 * float(bend[0])
    deep, broad = (half * (1 + 0.05 * float(bend[1])) for half in plan.spine_mm)
    vertebra = chest.point(direction, 0.55 * deep)
    canal = chest.point(direction, -0.75 * deep)
    # ellipses lie with their second half length along the direction
    regions: list[Region] = [
        ("fat", covered(ellipse(vertebra, (broad + 6, deep + 5), direction, y, x), voxel_mm)),
        ("marrow", covered(ellipse(vertebra, (broad, deep), direction, y, x), voxel_mm)),
        ("fat", covered(ellipse(canal, (0.42 * broad, 0.36 * deep), direction, y, x), voxel_mm)),
        ("muscle", covered(ellipse(canal, (0.28 * broad, 0.24 * deep), direction, y, x), voxel_mm)),
    ]
    radius = subject["aorta_mm"]
    # the body's left: up in the oblique human slice, at the right of an animal seen from its feet
    side = -1.0
    away = (0.9 * broad + 0.4 * radius) * side
    before = deep + 0.75 * radius
    aorta = (
        vertebra[0] - before * np.sin(direction) + away * np.cos(direction),
        vertebra[1] - before * np.cos(direction) - away * np.sin(direction),
    )
    distance = np.hypot(y - aorta[0], x - aorta[1]) - radius
    return [*regions, ("fat", covered(distance - 2.0, voxel_mm)), ("aorta", covered(distance, voxel_mm))]


def _capsule(
    start: tuple[float, float], end: tuple[float, float], radii: tuple[float, float], y: Plane, x: Plane
) -> Plane:
    """Signed distance from a band about a line whose half width goes from one number to the other [mm]."""
    ey, ex = end[0] - start[0], end[1] - start[1]
    py, px = y - start[0], x - start[1]
    t = np.clip((py * ey + px * ex) / (ey * ey + ex * ex), 0, 1)
    return np.hypot(py - t * ey, px - t * ex) - radii[0] - t * (radii[1] - radii[0])
