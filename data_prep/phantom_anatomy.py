# SPDX-License-Identifier: Apache-2.0
"""A drawn abdomen: eight organs and what lies around them, with the sizes, places and HU of a contrast CT.

Positions are mm in RAS from the middle of the body: x to the right, y to the front, z to the head; the volume spans
about 200 mm from the dome of the liver to the lower ends of the kidneys. Sizes are of adults, HU those of the portal
venous phase, where the organs differ by little more than the noise.
"""

from __future__ import annotations

import numpy as np

from data_prep.phantom_shapes import Canvas, Grid, smooth_noise
from data_prep.synapse_protocol import LABELS

_VALUE = {name: value for value, name in LABELS.items()}
_FAT_HU = -100.0
_MUSCLE_HU = 55.0
_BONE_HU = 220.0


class Patient:
    """One body: how its organs deviate from the average. All draws happen here and in the order of painting."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.stature = float(np.clip(random.normal(1.0, 0.05), 0.9, 1.1))
        self.fat_mm = random.uniform(10, 28)
        self.contrast_hu = random.normal(0, 8)

    def random_position(self, centre: tuple[float, float, float], spread_mm: float = 4.0) -> np.ndarray:
        """Return a position about `centre`."""
        return (np.array(centre) + self.random.normal(0, spread_mm, 3)) * self.stature

    def random_radii(self, radii: tuple[float, float, float], spread: float = 0.08) -> np.ndarray:
        """Return radii about `radii`; one factor for the organ, a smaller one for each axis."""
        factor = self.random.normal(1, spread) * self.random.normal(1, spread / 2, 3)
        return np.array(radii) * np.clip(factor, 0.7, 1.35) * self.stature

    def random_rotation(self, degrees: tuple[float, float, float], spread: float = 6.0) -> np.ndarray:
        """Return rotations about `degrees`."""
        return np.array(degrees) + self.random.normal(0, spread, 3)

    def enhanced(self, hu: float, spread: float = 7.0) -> float:
        """Return the HU of an organ that takes up contrast: the patient's share, and the organ's own."""
        return float(hu + self.contrast_hu + self.random.normal(0, spread))


def draw(grid: Grid, random: np.random.Generator, softness_mm: float, gallbladder: bool = True) -> Canvas:
    """Return HU and labels at the positions of `grid`, which is deformed on the way."""
    patient = Patient(random)
    canvas = Canvas(grid.shape, softness_mm)
    _deform(grid, random)
    cavity = _body(canvas, grid, patient)
    inside = canvas.cover(cavity + 2)
    _bowel(canvas, grid, patient, inside)
    _vessels(canvas, grid, patient)
    _kidneys(canvas, grid, patient)
    _stomach(canvas, grid, patient, inside)
    _pancreas(canvas, grid, patient)
    _spleen(canvas, grid, patient, inside)
    _liver(canvas, grid, patient, inside)
    if gallbladder:
        _gallbladder(canvas, grid, patient)
    _chest(canvas, grid, patient, cavity)
    _spine(canvas, grid, patient)
    return canvas


def _deform(grid: Grid, random: np.random.Generator) -> None:
    """Shift the positions by smooth noise of some mm, so that no two organs have the same outline."""
    for blobs, deviation_mm in (((4, 4, 3), 5.0), ((9, 9, 5), 2.0)):
        noise = np.stack([smooth_noise(random, grid.shape, blobs) for _ in range(3)])
        grid.deform(np.float32(deviation_mm) * noise)


def _body(canvas: Canvas, grid: Grid, patient: Patient) -> np.ndarray:
    """Paint skin, fat, muscle wall and the fat between the organs; return the distance from the inside of the wall."""
    wide, deep = 148.0 * patient.stature, 98.0 * patient.stature
    x, y, _ = grid.points
    # A power above 2 makes the outline fuller than an ellipse, as bodies are; long in z, it is a cylinder.
    radius = (np.abs(x / wide) ** 2.4 + np.abs(y / deep) ** 2.4) ** (1 / 2.4)
    wall = (radius - 1) * float(np.sqrt(wide * deep))
    canvas.paint(wall - patient.fat_mm, 10.0)
    canvas.paint(wall - patient.fat_mm + 2.5, _FAT_HU)
    canvas.paint(wall, _MUSCLE_HU)
    canvas.paint(wall + 11, _FAT_HU)
    _ribs(canvas, grid, wall, patient)
    for side in (-1, 1):
        psoas = [(side * 26, -58, 30), (side * 36, -52, -50), (side * 44, -46, -110)]
        canvas.paint(grid.ellipsoid(patient.random_position((side * 34, -78, 0), 2), (26, 17, 400)), _MUSCLE_HU)
        canvas.paint(grid.tube(psoas, [7, 15, 19]), _MUSCLE_HU)
    return wall + 11


def _ribs(canvas: Canvas, grid: Grid, wall: np.ndarray, patient: Patient) -> None:
    """Paint ribs into the wall: bands that fall from back to front, and end below."""
    x, y, z = grid.points
    band = np.abs((z + 0.55 * (y + 60) + patient.random.uniform(0, 28)) % 28 - 14) - 4.5
    arch = -25 - z + 0.35 * np.abs(x) - 0.25 * y
    canvas.paint(np.maximum.reduce([np.abs(wall + 6) - 3.2, band, arch * 0.3]), _BONE_HU)


def _spine(canvas: Canvas, grid: Grid, patient: Patient) -> None:
    """Paint vertebrae with discs between them, the canal and the processes."""
    height = grid.points[2] + patient.random.uniform(0, 34)
    disc = np.abs(height % 34 - 17) - 5
    body = grid.ellipsoid((0, -58, 0), (22, 17, 2000))
    bone = patient.random.normal(_BONE_HU - 40, 25)
    canvas.paint(body, bone + 90)
    canvas.paint(body + 3, bone)
    canvas.paint(np.maximum(body, disc), 85.0)
    for centre, radii in (((0, -98, 0), (4, 17, 2000)), ((0, -84, 0), (28, 4.5, 2000)), ((0, -81, 0), (13, 11, 2000))):
        canvas.paint(np.maximum(grid.ellipsoid(centre, radii), 3 - disc), bone + 60)
    canvas.paint(grid.ellipsoid((0, -81, 0), (9, 7.5, 2000)), 30.0)


def _bowel(canvas: Canvas, grid: Grid, patient: Patient, inside: np.ndarray) -> None:
    """Paint loops of bowel: soft tissue that no label covers, some with gas or stool, like organs at first sight."""
    random = patient.random
    for _ in range(22):
        centre = np.array((random.uniform(-90, 90), random.uniform(0, 75), random.uniform(-110, -25)))
        loop = grid.tube([centre + random.normal(0, 22, 3) for _ in range(3)], random.uniform(8, 13, 3), steps=14)
        canvas.paint(loop, random.uniform(35, 85), within=inside)
        canvas.tint(loop + 4, float(random.choice([20.0, 45.0, 60.0])), within=inside)
    for side in (-1, 1):
        colon = grid.tube([(side * 108, 0, -110), (side * 106, 8, -55), (side * 92, 22, -12)], [17, 16, 14])
        stool = smooth_noise(random, grid.shape, (14, 14, 9)) * 120 - 60
        canvas.paint(colon, 60.0, within=inside)
        canvas.tint(colon + 3.5, np.clip(stool, -650, 90), within=inside)


def _vessels(canvas: Canvas, grid: Grid, patient: Patient) -> None:
    """Paint the aorta, and the vena cava and portal vein, which look alike and have no label."""
    sway = patient.random.normal(0, 3, 4)
    heights = (120, 40, -40, -120)
    aorta = [(-9 + sway[i], -30 + sway[3 - i] / 2, z) for i, z in enumerate(heights)]
    cava = [(24 + sway[3 - i], -30 + sway[i] / 2, z) for i, z in enumerate(heights)]
    width = np.array([12.5, 11.5, 10, 8.5]) * patient.random.normal(1, 0.08)
    hu = patient.enhanced(135, 12)
    canvas.paint(grid.tube(cava, [13, 12, 11, 11], steps=32), hu - 15)
    canvas.paint(grid.tube([(-8, 5, -12), (12, 8, 0), (38, 12, 22)], [6, 7, 7]), hu - 8)
    canvas.paint(grid.tube(aorta, width, steps=32), hu, _VALUE["aorta"])


def _kidneys(canvas: Canvas, grid: Grid, patient: Patient) -> None:
    """Paint both kidneys: beans with a bright cortex and a fatty hilum to the middle; the right one is lower."""
    hu = patient.enhanced(118)
    for name, side, height in (("right kidney", 1, -42), ("left kidney", -1, -26)):
        centre, radii = patient.random_position((side * 64, -46, height)), patient.random_radii((28, 25, 54))
        bean = grid.ellipsoid(centre, radii, patient.random_rotation((10, side * 12, side * 25), 4))
        hilum = grid.ellipsoid(centre + np.array([-side * 0.95 * radii[0], 8, 0]), (17, 11, 20))
        vein = [centre + np.array((-side * 14, 4, 0)), (side * 10, -24, height + 8)]
        canvas.paint(bean - 9, _FAT_HU)
        canvas.paint(np.maximum(bean, -hilum), hu, _VALUE[name])
        canvas.tint(np.maximum(bean + 8, -hilum + 3), hu - 28, within=canvas.cover(bean))
        canvas.paint(grid.tube(vein, [4, 5]), hu - 5)


def _stomach(canvas: Canvas, grid: Grid, patient: Patient, inside: np.ndarray) -> None:
    """Paint the stomach: a wall about food and, in some, gas that rises to the front."""
    path = [(-62, -8, 74), (-68, 18, 48), (-52, 42, 14), (-22, 54, -8), (12, 46, -6), (26, 32, 4)]
    width = np.array([24, 31, 27, 21, 15, 10]) * patient.random.uniform(0.8, 1.2)
    stomach = grid.tube([patient.random_position(point) for point in path], width, steps=30)
    canvas.paint(stomach, patient.enhanced(75), _VALUE["stomach"], within=inside)
    canvas.tint(stomach + 5, patient.random.uniform(10, 65), within=inside)
    if patient.random.random() < 0.6:
        level = patient.random.uniform(35, 60) - grid.points[1]
        canvas.tint(np.maximum(stomach + 5, level), -900.0, within=inside)


def _pancreas(canvas: Canvas, grid: Grid, patient: Patient) -> None:
    """Paint the pancreas: a lobed, winding tube from the duodenum to the spleen, the least distinct of the eight."""
    path = [(36, 4, -34), (30, 8, -18), (8, 14, -4), (-18, 4, 6), (-48, -12, 14), (-82, -22, 22)]
    pancreas = grid.tube([patient.random_position(point) for point in path], [14, 15, 11, 11, 12, 9], steps=30)
    lobes = smooth_noise(patient.random, grid.shape, (30, 24, 14))
    hu = patient.enhanced(90)
    canvas.paint(pancreas + 1.2 * lobes, hu + 6 * lobes, _VALUE["pancreas"])


def _spleen(canvas: Canvas, grid: Grid, patient: Patient, inside: np.ndarray) -> None:
    """Paint the spleen: a shell along the wall at the left back, hollowed towards the stomach."""
    centre = patient.random_position((-102, -26, 34))
    outer = grid.ellipsoid(centre, patient.random_radii((36, 52, 48), 0.12), patient.random_rotation((0, 0, -18)))
    hollow = grid.ellipsoid(centre + np.array([46, 20, -4]), (34, 38, 44))
    spleen = np.maximum(outer, -hollow)
    canvas.paint(spleen - 4, _FAT_HU, within=inside)
    canvas.paint(spleen, patient.enhanced(112), _VALUE["spleen"], within=inside)


def _liver(canvas: Canvas, grid: Grid, patient: Patient, inside: np.ndarray) -> None:
    """Paint the liver: a wedge from the right wall to the left lobe, with vessels a little brighter than itself."""
    x, y, z = grid.points
    right = grid.ellipsoid(
        patient.random_position((78, 2, 30)),
        patient.random_radii((72, 82, 76)),
        patient.random_rotation((0, 12, 12), 4),
    )
    left = patient.random_position((8, 42, 48)), patient.random_radii((70, 38, 34), 0.12)
    both = np.minimum(right, grid.ellipsoid(*left, patient.random_rotation((0, -14, 8), 4)))
    # The lower face rises from the right back to the left front; spine and great vessels keep their room.
    lower = (-62 - z) * 0.72 + (60 - x) * 0.34 + y * 0.2
    liver = np.maximum.reduce([both, lower, -grid.ellipsoid((-2, -52, 0), (50, 44, 2000))])
    hu = patient.enhanced(103)
    texture = 4 * smooth_noise(patient.random, grid.shape, (8, 8, 5))
    canvas.paint(liver, hu + texture, _VALUE["liver"], within=inside)
    _liver_vessels(canvas, grid, patient, hu + 30, canvas.cover(liver + 4) * inside)


def _liver_vessels(canvas: Canvas, grid: Grid, patient: Patient, hu: float, within: np.ndarray) -> None:
    start = np.array((32.0, 8.0, 28.0))
    for _ in range(7):
        end = start + patient.random.normal((40, 10, 8), (40, 40, 30))
        bend = (start + end) / 2 + patient.random.normal(0, 8, 3)
        canvas.tint(grid.tube([start, bend, end], [4.5, 3.5, 2], steps=16), hu, within)


def _gallbladder(canvas: Canvas, grid: Grid, patient: Patient) -> None:
    """Paint the gallbladder: a pear of bile below the liver, small in some."""
    pear = grid.ellipsoid(
        patient.random_position((50, 44, -22)),
        patient.random_radii((15, 23, 23), 0.18),
        patient.random_rotation((35, 0, 0)),
    )
    canvas.paint(pear - 2, 60.0)
    canvas.paint(pear, patient.random.normal(12, 6), _VALUE["gallbladder"])


def _chest(canvas: Canvas, grid: Grid, patient: Patient, cavity: np.ndarray) -> None:
    """Paint what is above the diaphragm: air in the lungs, and the heart between them."""
    x, y, z = grid.points
    top = float(patient.random_position((0, 0, 92), 5)[2])
    # Two domes, the right one higher, that fall steeply towards the wall and the back.
    right = top - ((x - 62) / 62) ** 2 * 34 - ((y - 8) / 80) ** 2 * 52
    left = top - 10 - ((x + 66) / 58) ** 2 * 36 - ((y - 8) / 80) ** 2 * 52
    middle = grid.ellipsoid((-6, 6, 0), (36, 60, 2000))
    lungs = np.maximum.reduce([np.maximum(right, left) - z, cavity, 6 - middle])
    diaphragm = (canvas.labels == 0) * canvas.cover(cavity)
    canvas.paint(lungs - 2.5, _MUSCLE_HU, within=diaphragm)
    canvas.paint(lungs, -850.0 + 40 * smooth_noise(patient.random, grid.shape, (16, 16, 8)))
    heart = np.maximum(grid.ellipsoid((-28, 34, top + 26), (56, 48, 32)), top - 4 - z)
    canvas.paint(np.maximum(heart, cavity), patient.enhanced(105))
