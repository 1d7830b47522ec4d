"""One drawn subject: its numbers, the bends of its outlines and the trees of its vessels, in 3D.

Everything is a function of the seed and the subject's number, part by part, so that neither other subjects nor the
slices asked for change it. Trees branch by a fixed plan that is bent per subject: radii at a fork follow Murray's law,

    r^3 = r_1^3 + r_2^3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, ndtri

from phantoms.drawn.cohort import subject_rng
from phantoms.liver.numbers import (
    BEND_SD,
    HEPATIC,
    LIVER,
    NODES_SD,
    NUMBERS,
    OUTLINE_SD,
    POINTS_SD,
    POINTS_TILT_SD,
    PORTAL,
    SPLEEN,
    SPLENIC,
    STOMACH,
    Nodes,
)
from phantoms.liver.raster import Tubes

KIND = "liver"
_CUT = 2.0
# cos, sin of 2 to 5 theta
_MODES = 8
# branches end where they would be thinner; how often a node's branch forks at most
_THINNEST_MM = 1.0
_FORKS = 4
# a named vessel bows by this share of its length (standard deviation), drawn as so many straight parts
_BOW = 0.06
PARTS = 4


@dataclass(frozen=True, slots=True)
class Subject:
    """What is drawn for one subject.

    Attributes:
        numbers: of `NUMBERS`, drawn.
        outline: share of the radius by which the modes of the cavity differ from a superellipse [1].
        bends: of the control points of an organ: offsets (y, x), and their change per mm of z [mm; 1].
        portal, hepatic, splenic: tubes in the frame of the average subject; ducts run along the first portal ones.
        ducts: number of portal tubes with a bile duct beside them.
    """

    numbers: dict[str, float]
    outline: Float[np.ndarray, "8"]
    bends: dict[str, tuple[Float[np.ndarray, "_ 2"], Float[np.ndarray, "_ 2"]]]
    portal: Tubes
    hepatic: Tubes
    splenic: Tubes
    ducts: int


def deviates(rng: np.random.Generator, *shape: int) -> Float[np.ndarray, "..."]:
    """Standard normal numbers cut at +-2."""
    low, high = ndtr(-_CUT), ndtr(_CUT)
    return np.asarray(ndtri(rng.uniform(low, high, shape)))


def draw_numbers(seed: int, subject: int, variation: float) -> dict[str, float]:
    """Draw the numbers of one subject, those of each organ from a stream of their own."""
    numbers: dict[str, float] = {}
    streams: dict[str, np.random.Generator] = {}
    for name, number in NUMBERS.items():
        organ = name.split(".")[0]
        if organ not in streams:
            streams[organ] = subject_rng(KIND, seed, subject, organ)
        numbers[name] = number.mean + variation * number.sd * float(deviates(streams[organ], 1)[0])
    return numbers


@lru_cache(maxsize=8)
def draw_subject(seed: int, subject: int, variation: float) -> Subject:
    """Draw one subject; with variation 0 all are the average one."""

    def stream(part: str) -> np.random.Generator:
        return subject_rng(KIND, seed, subject, part)

    numbers = draw_numbers(seed, subject, variation)
    bends = {
        organ: (
            variation * POINTS_SD * _alike(stream(f"{organ} points"), count),
            variation * POINTS_TILT_SD * _alike(stream(f"{organ} tilt"), count),
        )
        for organ, count in (("liver", len(LIVER[0])), ("spleen", len(SPLEEN)), ("stomach", len(STOMACH)))
    }
    portal, ducts = _tree(PORTAL, numbers["vessels.portal"], "portal", stream, variation)
    hepatic, _ = _tree(HEPATIC, numbers["vessels.hepatic"], "hepatic", stream, variation)
    splenic, _ = _tree(SPLENIC, numbers["vessels.portal"], "splenic", stream, variation, forks=-1)
    outline = variation * OUTLINE_SD * deviates(stream("outline"), _MODES)
    return Subject(
        numbers=numbers, outline=outline, bends=bends, portal=portal, hepatic=hepatic, splenic=splenic, ducts=ducts
    )


def _alike(rng: np.random.Generator, count: int) -> Float[np.ndarray, "k 2"]:
    """Deviates of points round an outline: neighbours alike (weights 1, 2, 1), standard deviation 1."""
    q = deviates(rng, count, 2)
    smooth: Float[np.ndarray, "k 2"] = (np.roll(q, 1, axis=0) + 2 * q + np.roll(q, -1, axis=0)) / np.sqrt(6)
    return smooth


def _tree(
    nodes: Nodes,
    trunk_mm: float,
    name: str,
    stream: Callable[[str], np.random.Generator],
    variation: float,
    forks: int = _FORKS,
) -> tuple[Tubes, int]:
    """Tubes of a tree, those between its named nodes first, and how many these are."""
    # the plan is the same for all subjects; they differ by what bends it
    plan = subject_rng(KIND, 0, 0, f"{name} plan")
    own = stream(name)
    places = np.array([node[1:4] for node in nodes], dtype=float)
    places += variation * NODES_SD * deviates(own, len(nodes), 3)
    radii = trunk_mm * np.array([node[4] for node in nodes], dtype=float)
    links = [(node[0], k) for k, node in enumerate(nodes) if node[0] >= 0]
    tubes: list[tuple[np.ndarray, np.ndarray, float, float]] = []
    for parent, k in links:
        # a branch begins hardly thicker than it ends, whatever it leaves
        first, last = min(float(radii[parent]), 1.15 * float(radii[k])), float(radii[k])
        bow = plan.normal(0, _BOW, 3) + variation * _BOW * deviates(own, 3)
        at = np.linspace(0, 1, PARTS + 1)[:, None]
        run = places[k] - places[parent]
        line = places[parent] + at * run + 4 * at * (1 - at) * np.linalg.norm(run) * bow
        thick = first + at[:, 0] * (last - first)
        tubes += [(line[i], line[i + 1], float(thick[i]), float(thick[i + 1])) for i in range(PARTS)]
    named = len(tubes)
    for parent, k in links:
        leaf = not any(node[0] == k for node in nodes)
        number = PARTS * links.index((parent, k))
        length = float(np.linalg.norm(places[k] - places[parent]))
        # side branches leave in the middle of a tube and at its end
        for part, reach in ((PARTS // 2, 0.5), (PARTS - 1, 0.75 if leaf else 0.5)):
            start, end, _, _ = tubes[number + part]
            along = (end - start) / max(float(np.linalg.norm(end - start)), 1e-9)
            radius = float(radii[k]) * (0.9 if leaf and part == PARTS - 1 else 0.5)
            tubes += _forked(end, along, radius, min(reach * length, 24.0), plan, own, variation, forks)
    starts, ends = (np.array([tube[i] for tube in tubes]) for i in (0, 1))
    return Tubes(starts, ends, np.array([tube[2:] for tube in tubes])), named


def _forked(
    origin: np.ndarray,
    along: np.ndarray,
    radius: float,
    run: float,
    plan: np.random.Generator,
    own: np.random.Generator,
    variation: float,
    forks: int,
) -> list[tuple[np.ndarray, np.ndarray, float, float]]:
    """Tubes that branch off one place, each into two, until they are too thin."""
    tubes = []
    todo = [(origin, along, radius, run, 0)]
    while todo:
        origin, along, radius, run, fork = todo.pop()
        if radius < _THINNEST_MM or fork > forks:
            continue
        bend = deviates(own, 4)
        b = plan.standard_normal(3) + variation * BEND_SD * bend[:3]
        # the vector product; numpy's own takes as long as all else here
        side = along[[1, 2, 0]] * b[[2, 0, 1]] - along[[2, 0, 1]] * b[[1, 2, 0]]
        side /= max(float(np.linalg.norm(side)), 1e-9)
        turn = 0.65 + variation * BEND_SD * 0.5 * float(bend[3])
        larger = plan.uniform(0.55, 0.72)
        # Murray's law: shares of the cube
        for sign, share in ((1.0, larger), (-1.0, 1 - larger)):
            child = radius * share ** (1 / 3)
            direction = np.cos(turn) * along + sign * np.sin(turn) * side
            tip = origin + run * direction
            tubes.append((origin, tip, child, 0.9 * child))
            todo.append((tip, direction, 0.9 * child, 0.75 * run, fork + 1))
    return tubes
