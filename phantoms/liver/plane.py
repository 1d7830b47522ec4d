"""Outlines of one subject in one plane, in the image."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from phantoms.drawn.outlines import curve
from phantoms.liver import numbers as table
from phantoms.liver.raster import Tubes
from phantoms.liver.subject import Subject

ANGLES = np.linspace(0, 2 * np.pi, 144, endpoint=False)
# points of an outline per control point
_PER_SPAN = 6


@dataclass(frozen=True, slots=True)
class Plane:
    """Outlines of a subject in one plane; positions in the image [mm].

    Attributes:
        subject: whose.
        z: level in the subject [mm].
    """

    subject: Subject
    z: float

    def place(self, y: float, x: float) -> Float[np.ndarray, "2"]:
        """From the frame of the average subject to the image."""
        return self.places(np.array([[y, x]]))[0]

    def places(self, points: Float[np.ndarray, "k 2"]) -> Float[np.ndarray, "k 2"]:
        """From the frame of the average subject to the image: stretched with the cavity, and moved."""
        n = self.subject.numbers
        front = n["cavity.front"] / table.NUMBERS["cavity.front"].mean
        back = n["cavity.back"] / table.NUMBERS["cavity.back"].mean
        side = n["cavity.side"] / table.NUMBERS["cavity.side"].mean
        y, x = points.T
        return np.stack([np.where(y < 0, front, back) * y + self._down, side * x + n["place.x"]], axis=1)

    @property
    def _down(self) -> float:
        """Moves the body's middle to the image's."""
        n = self.subject.numbers
        front = n["cavity.front"] + n["wall.front"] + n["fat.mean"] + n["fat.front"]
        back = n["cavity.back"] + n["wall.back"] + n["fat.mean"] + n["fat.back"]
        return n["place.y"] - (back - front) / 2

    def cavity(self) -> Float[np.ndarray, "n 2"]:
        """Outline of the cavity."""
        n = self.subject.numbers
        return self._superellipse(n["cavity.side"], n["cavity.front"], n["cavity.back"], n["cavity.power_1"])

    def wall(self) -> Float[np.ndarray, "n 2"]:
        """Outer side of the muscles, with a furrow over the spine."""
        n = self.subject.numbers
        side, front, back = (n[f"cavity.{to}"] + n[f"wall.{to}"] for to in ("side", "front", "back"))
        outline = self._superellipse(side, front, back, n["wall.power_1"])
        furrow = n["wall.furrow"] * np.exp(-((np.angle(np.exp(1j * (ANGLES - np.pi / 2))) / 0.2) ** 2))
        outline[:, 0] -= furrow
        return outline

    def _superellipse(self, side: float, front: float, back: float, power: float) -> Float[np.ndarray, "n 2"]:
        """1 / rho^p = |cos / side|^p + |sin / front or back|^p, times 1 + modes and the taper."""
        c, s = np.cos(ANGLES), np.sin(ANGLES)
        rho = (np.abs(c / side) ** power + np.abs(s / np.where(s < 0, front, back)) ** power) ** (-1 / power)
        modes = np.concatenate([[np.cos(k * ANGLES), np.sin(k * ANGLES)] for k in (2, 3, 4, 5)])
        n = self.subject.numbers
        rho *= (1 + self.subject.outline @ modes) * (1 + n["cavity.taper_per_mm"] * self.z)
        return np.stack([rho * s + self._down, rho * c + n["place.x"]], axis=1)

    def skin(self, wall: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Outline of the body."""
        n = self.subject.numbers
        thick = n["fat.mean"] + n["fat.back"] * _towards(np.pi / 2, 0.8) + n["fat.front"] * _towards(-np.pi / 2, 0.8)
        return _outwards(wall, thick)

    def liver(self) -> Float[np.ndarray, "n 2"]:
        """Outline of the liver, where the cavity does not cut it."""
        points = table.levelled(self.z)
        left = [i for i in table.LEFT_LOBE if points[i, 1] > 0]
        points[left, 1] *= self.subject.numbers["liver.left_1"]
        return curve(self.places(points + self._bend("liver")), _PER_SPAN)

    def right_lobe(self, y: Float[np.ndarray, " ny"], x: Float[np.ndarray, " nx"]) -> Bool[np.ndarray, "ny nx"]:
        """Where the image lies to the right of the line from the vena cava to the gallbladder."""
        (y0, x0), (y1, x1) = self.places(np.array(table.RIGHT_LOBE))
        return x < x0 + (y[:, None] - y0) * (x1 - x0) / (y1 - y0)

    def spleen(self) -> Float[np.ndarray, "n 2"] | None:
        """Outline of the spleen; None where the plane misses it."""
        n = self.subject.numbers
        size = n["spleen.size_1"] * cut((self.z - n["spleen.z"]) / n["spleen.half_z"])
        if size < 0.25:
            return None
        points = np.array(table.SPLEEN) + self._bend("spleen")
        # it keeps to the wall while it shrinks
        hold = np.array(table.SPLEEN_HELD)
        middle = np.add(table.SPLEEN_MIDDLE, (n["spleen.y"], 0.0))
        return curve(self.places(middle + hold + size * (points - hold)), _PER_SPAN)

    def stomach(self) -> Float[np.ndarray, "n 2"]:
        """Outer side of the stomach's wall."""
        n = self.subject.numbers
        points = n["stomach.size_1"] * (np.array(table.STOMACH) + self._bend("stomach"))
        middle = np.add(table.STOMACH_MIDDLE, (n["stomach.y"], n["stomach.x"]))
        return curve(self.places(middle + points), _PER_SPAN)

    def tubes(self, tubes: Tubes) -> Tubes:
        """Tubes in the image."""
        starts, ends = (np.column_stack([self.places(each[:, :2]), each[:, 2]]) for each in (tubes.starts, tubes.ends))
        return Tubes(starts, ends, tubes.radii)

    def ducts(self) -> Tubes:
        """Bile ducts, in front of the portal branches, in the image."""
        share = self.subject.numbers["vessels.duct_1"]
        branches = self.tubes(self.subject.portal.part(slice(self.subject.ducts)))
        thin = share * branches.radii
        # where they would be narrower than half a millimetre they are left out
        there = thin.min(axis=1) > 0.5
        starts, ends = branches.starts.copy(), branches.ends.copy()
        starts[:, 0] -= branches.radii[:, 0] + thin[:, 0]
        ends[:, 0] -= branches.radii[:, 1] + thin[:, 1]
        return Tubes(starts[there], ends[there], thin[there])

    def _bend(self, organ: str) -> Float[np.ndarray, "k 2"]:
        offset, tilt = self.subject.bends[organ]
        return offset + tilt * self.z


def _towards(angle: float, width: float) -> Float[np.ndarray, " n"]:
    """1 at an angle, falling to 0 beyond a width."""
    away = np.angle(np.exp(1j * (ANGLES - angle)))
    return np.exp(-((away / width) ** 4))


def cut(at: float) -> float:
    """Size of the section of a ball of radius 1, `at` from its middle; 0 beyond."""
    return float(np.sqrt(max(0.0, 1 - at * at)))


def _outwards(outline: Float[np.ndarray, "n 2"], by_mm: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 2"]:
    """Every point moved along its normal."""
    tangent = np.roll(outline, -1, axis=0) - np.roll(outline, 1, axis=0)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1)
    normal *= np.sign((normal * (outline - outline.mean(axis=0))).sum(axis=1, keepdims=True))
    return outline + by_mm[:, None] * normal / np.linalg.norm(normal, axis=1, keepdims=True)
