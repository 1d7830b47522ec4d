"""The regions of one plane of a subject, painted from the top down.

The cavity is a superellipse with a few modes; the muscle wall and the fat under the skin lie outside it, each of a
thickness that depends on the angle. Organs are outlines through control points, ellipsoids or tubes, cut by the plane.
"""

import numpy as np
from jaxtyping import Float

from phantoms.drawn.painting import Canvas, Frame, Region, ellipse_region
from phantoms.liver.lesions import Lesion
from phantoms.liver.numbers import BETWEEN_MM, CAPSULE_MM, FISSURE, OVER_VESSELS_MM
from phantoms.liver.plane import ANGLES, Plane, cut
from phantoms.liver.raster import Near, Tubes, near_polygon, tubes_region
from phantoms.liver.subject import PARTS


def paint_plane(
    canvas: Canvas,
    frame: Frame,
    plane: Plane,
    parenchyma: tuple[tuple[str, float], ...],
    lesions: tuple[Lesion, ...],
) -> Float[np.ndarray, "y x"]:
    """Paint one plane; the share of each voxel of it that is parenchyma of the right lobe [1].

    Args:
        canvas, frame: of the slice.
        plane: whose and where.
        parenchyma: what the liver is made of.
        lesions: in the image.
    """
    canvas.begin()
    outline = plane.cavity()
    wall = plane.wall()
    cavity = near_polygon(frame, outline, CAPSULE_MM + plane.subject.numbers["stomach.wall"] + 2 * frame.width)
    inner = cavity.region(-CAPSULE_MM)
    liver = near_polygon(frame, plane.liver(), OVER_VESSELS_MM + 2 * frame.width)
    body = liver.region().within(inner)
    _in_liver(canvas, frame, plane, liver.region(-OVER_VESSELS_MM).within(inner), body, lesions)
    _great_vessels(canvas, frame, plane)
    _spine(canvas, frame, plane)
    _kidneys(canvas, frame, plane, inner)
    seen = canvas.under(body, *parenchyma)
    right = np.zeros(canvas.shares.shape[1:])
    right[body.box] = seen
    right *= plane.right_lobe(frame.y, frame.x)
    canvas.under(liver.region(BETWEEN_MM).within(cavity.region()), ("fat", 1.0))
    spleen = plane.spleen()
    if spleen is not None:
        near = near_polygon(frame, spleen, BETWEEN_MM + 2 * frame.width)
        canvas.under(near.region().within(inner), ("spleen", 1.0))
        canvas.under(near.region(BETWEEN_MM).within(cavity.region()), ("fat", 1.0))
    _stomach(canvas, frame, plane, cavity)
    canvas.under(tubes_region(frame, plane.tubes(plane.subject.splenic), plane.z), ("liver_vessel", 1.0))
    _crura(canvas, frame, plane)
    canvas.under(cavity.region(), ("fat", 1.0))
    _ribs(canvas, frame, plane, outline, wall)
    canvas.under(near_polygon(frame, wall).region(), ("muscle", 1.0))
    canvas.under(near_polygon(frame, plane.skin(wall)).region(), ("fat", 1.0))
    return right


def _in_liver(
    canvas: Canvas, frame: Frame, plane: Plane, deep: Region, body: Region, lesions: tuple[Lesion, ...]
) -> None:
    n, z = plane.subject.numbers, plane.z
    for lesion in lesions:
        size = cut((z - lesion.middle_mm[2]) / lesion.half_mm[2])
        if size > 0:
            half = (size * lesion.half_mm[0], size * lesion.half_mm[1])
            whole = ellipse_region(frame, np.array(lesion.middle_mm[:2]), half)
            canvas.under(whole.within(body), ("lesion", 1.0))
    size = cut((z - n["gallbladder.z"]) / n["gallbladder.half_z"])
    if size > 0:
        half = (size * n["gallbladder.half_y"], size * n["gallbladder.half_x"])
        middle = plane.place(n["gallbladder.y"], n["gallbladder.x"])
        canvas.under(ellipse_region(frame, middle, half, n["gallbladder.tilt_rad"]), ("bile", 1.0))
    canvas.under(tubes_region(frame, plane.ducts(), z).within(deep), ("bile", 1.0))
    # the trunk of the portal vein comes from below the hilum: it is not cut by the liver's surface
    portal = plane.tubes(plane.subject.portal)
    canvas.under(tubes_region(frame, portal.part(slice(PARTS)), z), ("liver_vessel", 1.0))
    canvas.under(tubes_region(frame, portal, z).within(deep), ("liver_vessel", 1.0))
    canvas.under(tubes_region(frame, plane.tubes(plane.subject.hepatic), z).within(deep), ("liver_vessel", 1.0))
    # fissure of the round ligament: fat from the lower surface towards the front, below the left portal branch
    if z < n["liver.fissure_z"]:
        start, end = (np.append(place, z)[None] for place in plane.places(np.array(FISSURE)))
        fissure = tubes_region(frame, Tubes(start, end, np.full((1, 2), n["liver.fissure"])), z)
        canvas.under(fissure.within(body), ("fat", 1.0))


def _great_vessels(canvas: Canvas, frame: Frame, plane: Plane) -> None:
    n = plane.subject.numbers
    r = n["aorta.radius"]
    # the aorta leans to the front and the middle on its way down
    aorta = plane.place(n["aorta.y"] + 0.06 * plane.z, n["aorta.x"] + 0.05 * plane.z)
    canvas.under(ellipse_region(frame, aorta, (r, r)), ("aorta", 1.0))
    cava = plane.place(n["cava.y"] - 0.05 * plane.z, n["cava.x"] - 0.03 * plane.z)
    canvas.under(ellipse_region(frame, cava, (n["cava.half_y"], n["cava.half_x"]), -0.3), ("aorta", 1.0))


def _spine(canvas: Canvas, frame: Frame, plane: Plane) -> None:
    n = plane.subject.numbers
    y, x = plane.place(n["spine.y"], n["spine.x"])
    half_y, half_x = n["spine.half_y"], n["spine.half_x"]
    canal_y, canal_x = n["spine.canal_half_y"], n["spine.canal_half_x"]
    canal = np.array([y + half_y + canal_y + 1.5, x])
    # bone: marrow in a dark shell
    shell = n["bone.shell"]
    canvas.under(ellipse_region(frame, canal, (canal_y, canal_x)), ("csf", 1.0))
    parts = [
        (np.array([y, x]), (half_y, half_x), 0.0),
        (canal, (canal_y + n["spine.arch_y"], canal_x + n["spine.arch_x"]), 0.0),
        (
            np.array([canal[0] + canal_y + 0.6 * n["spine.process"], x]),
            (n["spine.process"], n["spine.process_half_x"]),
            0.0,
        ),
    ]
    transverse = n["spine.transverse_half_y"], n["spine.transverse_half_x"]
    for side in (1.0, -1.0):
        beside = np.array([canal[0] + 0.5, x + side * (canal_x + 0.85 * transverse[1])])
        parts.append((beside, transverse, 0.25 * side))
    canvas.under(ellipse_region(frame, canal, (canal_y + shell, canal_x + shell)))
    for middle, half, angle in parts:
        canvas.under(ellipse_region(frame, middle, half, angle, grow_mm=-shell), ("marrow", 1.0))
    for middle, half, angle in parts:
        canvas.under(ellipse_region(frame, middle, half, angle))


def _kidneys(canvas: Canvas, frame: Frame, plane: Plane, inner: Region) -> None:
    n = plane.subject.numbers
    for side, tilt in (("right", 1.0), ("left", -1.0)):
        at = (plane.z - n[f"kidney.{side}_z"]) / n["kidney.half_z"]
        size = cut(at)
        if size < 0.2:
            continue
        middle = plane.place(n[f"kidney.{side}_y"], n[f"kidney.{side}_x"])
        half, angle = (size * n["kidney.half_y"], size * n["kidney.half_x"]), tilt * n["kidney.tilt_rad"]
        hilum = cut(1.6 * at)
        if hilum > 0.2:
            towards = middle + np.array([-3.0, 6.0 * tilt])
            sinus = (1.1 * n["kidney.sinus_1"] * hilum * half[0], 0.8 * n["kidney.sinus_1"] * hilum * half[1])
            canvas.under(ellipse_region(frame, towards, sinus, angle), ("fat", 1.0))
        canvas.under(ellipse_region(frame, middle, half, angle).within(inner), ("kidney", 1.0))
        around = ellipse_region(frame, middle, half, angle, grow_mm=n["kidney.around"])
        canvas.under(around.within(inner), ("fat", 1.0))


def _stomach(canvas: Canvas, frame: Frame, plane: Plane, cavity: Near) -> None:
    n = plane.subject.numbers
    outline = plane.stomach()
    wall = n["stomach.wall"]
    near: Near = near_polygon(frame, outline, wall + 2 * frame.width)
    # where the cavity cuts it, it has a wall too
    whole = near.region().within(cavity.region(-CAPSULE_MM))
    hollow = near.region(-wall).within(cavity.region(-CAPSULE_MM - wall))
    top, bottom = outline[:, 0].min(), outline[:, 0].max()
    level = top + n["stomach.air_1"] * (bottom - top)
    rows = frame.y[hollow.box[0]]
    air = Region(hollow.box, hollow.share * np.clip(0.5 - (rows - level) / frame.voxel_mm[0], 0, 1)[:, None])
    canvas.under(air)
    canvas.under(hollow, ("stomach_fluid", 1.0))
    canvas.under(whole, ("stomach", 1.0))


def _crura(canvas: Canvas, frame: Frame, plane: Plane) -> None:
    n = plane.subject.numbers
    y, x = plane.place(n["spine.y"], n["spine.x"])
    for side in (-1.0, 1.0):
        # crus of the diaphragm before the spine; the psoas beside it, wider towards the feet
        crus = np.array([y + n["crus.y"], x + n["crus.x"] * side])
        canvas.under(ellipse_region(frame, crus, (n["crus.half_y"], n["crus.half_x"]), 0.7 * side), ("muscle", 1.0))
        wide = n["psoas.half_x"] - n["psoas.taper_1"] * plane.z
        if wide > 4:
            beside = np.array([y + 10, x + (n["spine.half_x"] + 0.6 * wide) * side])
            canvas.under(ellipse_region(frame, beside, (1.3 * wide, wide)), ("muscle", 1.0))


def _ribs(
    canvas: Canvas, frame: Frame, plane: Plane, inside: Float[np.ndarray, "n 2"], outside: Float[np.ndarray, "n 2"]
) -> None:
    """Ribs in the side of the wall; a rib comes round to the front on its way down, so the plane cuts it obliquely."""
    n = plane.subject.numbers
    middle = (inside + outside) / 2
    step = 0.34
    for side in (1.0, -1.0):
        shift = n["ribs.angle_rad"] - n["ribs.turn_rad_per_mm"] * plane.z
        for k in np.arange(-12, 13) * step + shift % step:
            # angle from the left, towards the back; the same on the right in the mirror
            if not -0.72 < k < 0.72:
                continue
            angle = k if side > 0 else np.pi - k
            i = int(np.argmin(np.abs(np.angle(np.exp(1j * (ANGLES - angle))))))
            # between the points of the outline as on them
            d = np.angle(np.exp(1j * (angle - ANGLES[i])))
            j = (i + (1 if d > 0 else -1)) % len(ANGLES)
            t = abs(d) / (ANGLES[1] - ANGLES[0])
            centre = (1 - t) * middle[i] + t * middle[j]
            tangent = middle[(i + 1) % len(middle)] - middle[i - 1]
            turned = float(np.arctan2(tangent[0], tangent[1]))
            half = (n["ribs.short"], n["ribs.long"])
            canvas.under(ellipse_region(frame, centre, half, turned), ("marrow", 1.0))
            canvas.under(ellipse_region(frame, centre, half, turned, grow_mm=n["bone.shell"]))
