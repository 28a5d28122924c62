# SPDX-License-Identifier: Apache-2.0
"""Drawn tissue: glands, stroma and nuclei as amounts of haematoxylin and eosin, and the colours that these give.

Sizes are pixels of about half a micrometre. Healthy glands are round, apart from each other, with one open lumen and
one row of slender nuclei at the rim. Cancer crowds them, bends their outlines, closes or splits their lumina and fills
them with larger, darker nuclei. Both vary so much that single glands, nuclei or colours tell nothing for certain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_prep.phantom_shapes import smooth_noise

# Optical densities (red, green, blue) of haematoxylin and eosin. Eosin lies between that of Ruifrok & Johnston (2001),
# which is magenta, and that of QuPath's default for H&E, which is orange.
_DENSITIES = ((0.65, 0.70, 0.29), (0.12, 0.92, 0.28))
# Distances between the centres of glands, healthy and cancerous, and the radii of the glands.
_SPACING = (80.0, 54.0)
_RADIUS = (32.0, 29.0)
_OUTLINE_WAVES = 6
# How many nuclei a pixel the stroma holds: slender ones of fibres, and round ones of inflammation where it is densest.
_SLENDER, _ROUND = 1 / 420, 1 / 75
# A nucleus is drawn into a square of twice this and one; at most 2,000 squares are in memory at once.
_REACH = 9
_NUCLEI_AT_ONCE = 2000


@dataclass(frozen=True)
class Stain:
    """How a laboratory stains and scans: optical densities (2, 3) of both dyes, and the colour (3,) of clear glass."""

    densities: np.ndarray
    glass: np.ndarray

    @classmethod
    def drawn(cls, random: np.random.Generator) -> Stain:
        """Return the stain of one patient."""
        vectors = np.array(_DENSITIES) + random.normal(0, (0.04, 0.02, 0.05), (2, 3))
        strengths = np.exp(random.normal(0, 0.16, (2, 1)))
        return cls((vectors * strengths).clip(0.01, None).astype(np.float32), random.uniform(236, 249, 3).astype("f4"))

    def colours(self, haematoxylin: np.ndarray, eosin: np.ndarray) -> np.ndarray:
        """Return what a camera sees of two amounts (H, W): (H, W, 3) float, by the law of Beer and Lambert."""
        density = haematoxylin[..., None] * self.densities[0] + eosin[..., None] * self.densities[1]
        return self.glass * np.exp(density * np.float32(-np.log(10)))


@dataclass(frozen=True)
class Nuclei:
    """Ellipses, each an entry of all arrays (N,): centre and half axes in pixels, angle in radians, haematoxylin."""

    row: np.ndarray
    column: np.ndarray
    long: np.ndarray
    short: np.ndarray
    angle: np.ndarray
    amount: np.ndarray

    def stamp(self, canvas: np.ndarray) -> None:
        """Draw all into `canvas` (H, W), which keeps the largest amount; edges are one pixel soft."""
        for start in range(0, len(self.row), _NUCLEI_AT_ONCE):
            part = slice(start, start + _NUCLEI_AT_ONCE)
            Nuclei(*(values[part] for values in vars(self).values()))._stamp(canvas)

    def _stamp(self, canvas: np.ndarray) -> None:
        row, column, long, short, angle, amount = (values[:, None, None] for values in vars(self).values())
        offsets = np.arange(-_REACH, _REACH + 1)
        rows = np.rint(row).astype(int) + offsets[:, None]
        columns = np.rint(column).astype(int) + offsets
        down, right = rows - row, columns - column
        along, across = right * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - right * np.sin(angle)
        relative = np.sqrt((along / long) ** 2 + (across / short) ** 2)
        cover = np.clip(0.5 + (1 - relative) * np.sqrt(long * short), 0, 1)
        inside = (rows >= 0) & (rows < canvas.shape[0]) & (columns >= 0) & (columns < canvas.shape[1]) & (cover > 0)
        values = (cover * amount)[inside]
        places = np.broadcast_to(rows, inside.shape)[inside], np.broadcast_to(columns, inside.shape)[inside]
        np.maximum.at(canvas, places, values.astype(canvas.dtype))


def joined(groups: list[Nuclei]) -> Nuclei:
    """Return all nuclei of several groups, of which there is at least one."""
    return Nuclei(*(np.concatenate(values) for values in zip(*(vars(group).values() for group in groups), strict=True)))


@dataclass(frozen=True)
class Gland:
    """One gland: centre, mean radius in pixels, how far from healthy (0) it is (1: wild), and whether it is cancer."""

    row: float
    column: float
    radius: float
    atypia: float
    cancer: bool


class Tissue:
    """A square of tissue in the making: amounts of both dyes and labels, all (side, side).

    `tissue`: 0..1, how much of each pixel is not glass. `cancer`: bool, where glands are cancerous.
    """

    def __init__(self, random: np.random.Generator, tissue: np.ndarray, cancer: np.ndarray) -> None:
        self.random, self.tissue, self.side = random, tissue, len(tissue)
        self.labels = cancer & (tissue > 0.5)
        self._cancer = self.labels.copy()
        self._glands = np.zeros(tissue.shape, np.float32)
        self._nuclei: list[Nuclei] = []
        self._draw_stroma()
        for gland in self._glands_without_overlap():
            self._draw_gland(gland)
        self._scatter_stroma_nuclei()
        self._draw_nuclei()
        self.labels &= tissue > 0.5

    def noise(self, blob_px: float) -> np.ndarray:
        """Return smooth noise (side, side) of deviation 1 with blobs of about `blob_px`."""
        blobs = max(1, round(self.side / blob_px))
        return smooth_noise(self.random, (self.side, self.side, 1), (blobs, blobs, 1))[..., 0]

    def _draw_stroma(self) -> None:
        """Lay wavy pink fibres with clefts between them; they run along the lines of equal height of a noise."""
        self._fibres = 2.2 * self.noise(90) + 0.35 * self.noise(25)
        waves = np.sin(7 * self._fibres)
        grain = self.noise(4)
        self.eosin = np.clip(0.24 + 0.05 * waves + 0.035 * grain + 0.03 * self.noise(120), 0.02, None)
        clefts = np.clip((waves + 0.4 * grain - 1.05) * 4, 0, 1) * np.clip(self.noise(60), 0, 1)
        self.eosin *= 1 - 0.8 * clefts
        self.haematoxylin = np.clip(0.045 + 0.012 * grain, 0.01, None)

    def _glands_without_overlap(self) -> Iterator[Gland]:
        """Yield glands on two jittered hexagonal grids, one of each kind, without those that would overlap much."""
        taken = np.zeros((0, 3))
        grade, order = self.random.uniform(0.55, 0.9), self.random.uniform(0.05, 0.35)
        for cancer in (True, False):
            for row, column in self._grid(_SPACING[cancer]):
                y, x = int(np.clip(row, 0, self.side - 1)), int(np.clip(column, 0, self.side - 1))
                if self.tissue[y, x] < 0.5 or self._cancer[y, x] != cancer:
                    continue
                atypia = float(np.clip(self.random.normal(grade if cancer else order, 0.14), 0, 1))
                radius = _RADIUS[cancer] * np.clip(self.random.normal(1, 0.1 + 0.2 * atypia), 0.5, 1.5)
                gap = np.hypot(taken[:, 0] - row, taken[:, 1] - column) - taken[:, 2] - radius
                if len(gap) and gap.min() < (-13 if cancer else 2):
                    continue
                taken = np.vstack([taken, (row, column, radius)])
                yield Gland(row, column, radius, atypia, cancer)

    def _grid(self, spacing: float) -> np.ndarray:
        """Return (N, 2) places in random order, about `spacing` apart, from a little outside the square."""
        rows, columns = np.mgrid[-1 : self.side / (0.866 * spacing) + 1, -1 : self.side / spacing + 1]
        columns = columns + 0.5 * (rows % 2) + self.random.uniform(0, 1)
        places = np.stack([rows * 0.866, columns], axis=-1).reshape(-1, 2) * spacing
        places += self.random.normal(0, 0.11 * spacing, places.shape)
        return self.random.permutation(places)

    def _draw_gland(self, gland: Gland) -> None:
        reach = int(1.6 * gland.radius) + 3
        top, left = int(gland.row) - reach, int(gland.column) - reach
        part = tuple(slice(max(0, start), max(0, min(self.side, start + 2 * reach))) for start in (top, left))
        rows, columns = np.ogrid[part]
        if rows.size == 0 or columns.size == 0:
            return
        down, right = (rows - gland.row).astype(np.float32), (columns - gland.column).astype(np.float32)
        outline = self._outline(gland)
        angle = np.arctan2(down, right)
        edge = np.interp(angle, *outline, period=2 * np.pi).astype(np.float32) * np.float32(gland.radius)
        distance = np.hypot(down, right)
        cover = np.clip((edge - distance) / 1.5 + 0.5, 0, 1) * (1 - self._glands[part])
        lumen = self._lumen(gland, down, right, distance, edge)
        self._fill(gland, part, cover, lumen, distance / edge, angle)
        self._glands[part] = np.maximum(self._glands[part], cover)
        inside = cover > 0.5
        self.labels[part][inside] = gland.cancer
        self._line_with_nuclei(gland, outline)

    def _outline(self, gland: Gland) -> tuple[np.ndarray, np.ndarray]:
        """Return angles and the outline's distances there, relative to the mean radius."""
        angles = np.linspace(-np.pi, np.pi, 128, endpoint=False)
        waves = np.arange(2, 2 + _OUTLINE_WAVES)
        heights = self.random.normal(0, 1, _OUTLINE_WAVES) * (0.05 + 0.22 * gland.atypia) / waves**0.7
        phases = self.random.uniform(0, 2 * np.pi, _OUTLINE_WAVES)
        outline = 1 + (heights[:, None] * np.cos(waves[:, None] * angles + phases[:, None])).sum(0)
        return angles, np.clip(outline, 0.5, 1.5)

    def _lumen(
        self, gland: Gland, down: np.ndarray, right: np.ndarray, distance: np.ndarray, edge: np.ndarray
    ) -> np.ndarray:
        """Return how much of each pixel is lumen, 0..1: one in the middle, or in cancer none, a slit or several."""
        if self.random.uniform() > gland.atypia**2:
            share = self.random.uniform(0.22, 0.5) * (1 - 0.35 * gland.atypia)
            return np.clip((share * edge - distance) / 1.5 + 0.5, 0, 1)
        lumen = np.zeros_like(distance)
        for _ in range(self.random.integers(0, 5)):
            y, x = self.random.normal(0, 0.33 * gland.radius, 2)
            turn, size = self.random.uniform(0, np.pi), gland.radius * self.random.uniform(0.08, 0.22)
            along = (down - y) * np.sin(turn) + (right - x) * np.cos(turn)
            across = (down - y) * np.cos(turn) - (right - x) * np.sin(turn)
            gap = size - np.hypot(along / self.random.uniform(1, 2.2), across)
            lumen = np.maximum(lumen, np.clip(gap / 1.5 + 0.5, 0, 1))
        return lumen

    def _fill(
        self,
        gland: Gland,
        part: tuple[slice, ...],
        cover: np.ndarray,
        lumen: np.ndarray,
        relative: np.ndarray,
        angle: np.ndarray,
    ) -> None:
        """Replace stroma by cytoplasm, pale with mucin in healthy cells, and by what the lumen holds."""
        mucin = np.clip(1 - 2.2 * gland.atypia, 0, 1) * self.random.uniform(0.5, 1)
        walls = np.cos(angle * round(gland.radius * 0.75)) > 0.75
        pale = mucin * (relative < 0.74) * ~walls
        eosin = 0.2 - 0.13 * pale + self.random.normal(0, 0.02)
        haematoxylin = 0.11 + 0.08 * gland.atypia - 0.03 * pale + self.random.normal(0, 0.015)
        secretion = self.random.uniform(0, 0.1) * (self.random.uniform() < 0.5)
        eosin = eosin * (1 - lumen) + (0.01 + secretion) * lumen
        haematoxylin = haematoxylin * (1 - lumen) + (0.005 + 0.3 * secretion) * lumen
        for canvas, amount in ((self.eosin, eosin), (self.haematoxylin, haematoxylin)):
            canvas[part] += cover * (amount - canvas[part])

    def _line_with_nuclei(self, gland: Gland, outline: tuple[np.ndarray, np.ndarray]) -> None:
        """Place nuclei along the rim, upright in one row; with atypia in more rows, turned, larger and darker."""
        random, wild = self.random, gland.atypia
        rows = 1 + round(np.clip(random.normal(2.2 * wild - 0.3, 0.5), 0, 2))
        for layer in range(rows):
            depth = 0.86 - 0.17 * layer
            count = int(2 * np.pi * gland.radius * depth / (6.0 + 1.6 * wild))
            angle = np.linspace(0, 2 * np.pi, count, endpoint=False) + random.uniform(0, 1)
            angle += random.normal(0, 0.03 + 0.12 * wild, count)
            place = depth + random.normal(0, 0.02 + 0.06 * wild, count)
            place *= np.interp(angle, *outline, period=2 * np.pi) * gland.radius
            size = (1 + 0.3 * wild) * np.exp(random.normal(0, 0.08 + 0.16 * wild, count))
            self._nuclei.append(
                Nuclei(
                    gland.row + place * np.sin(angle),
                    gland.column + place * np.cos(angle),
                    (4.1 * size).clip(2, 8),
                    ((2.1 + 0.7 * wild) * size).clip(1.5, 7),
                    angle + random.normal(0, 0.1 + 0.5 * wild, count),
                    (0.52 + 0.16 * wild) * np.exp(random.normal(0, 0.12 + 0.1 * wild, count)),
                )
            )

    def _scatter_stroma_nuclei(self) -> None:
        """Place slender nuclei along the fibres, and round dark ones in clouds of inflammation, outside of glands."""
        random, area = self.random, self.side**2
        down, right = np.gradient(self._fibres)
        cloud = np.clip(self.noise(130) - random.uniform(0, 1), 0, 1.5) / 1.5
        for count, slender in ((random.poisson(area * _SLENDER), True), (random.poisson(area * _ROUND), False)):
            y, x = random.uniform(0, self.side, (2, count))
            at = y.astype(int), x.astype(int)
            keep = self._glands[at] < 0.1
            if not slender:
                keep &= random.uniform(0, 1, count) < cloud[at] + 0.03
            y, x, at = y[keep], x[keep], tuple(index[keep] for index in at)
            size = np.exp(random.normal(0, 0.15, len(y)))
            along = np.arctan2(-right[at], down[at]) + random.normal(0, 0.3, len(y))
            amount = (0.5 if slender else 0.72) * np.exp(random.normal(0, 0.12, len(y)))
            long, short = (size * 5.2, size * 1.4) if slender else (size * 2.7, size * 2.5)
            self._nuclei.append(Nuclei(y, x, long.clip(1, 8), short, along, amount))

    def _draw_nuclei(self) -> None:
        nuclei = np.zeros_like(self.haematoxylin)
        joined(self._nuclei).stamp(nuclei)
        nuclei *= 1 + 0.16 * self.noise(2.5)
        self.haematoxylin = np.maximum(self.haematoxylin, nuclei)
        self.eosin *= 1 - 0.5 * np.clip(nuclei / 0.5, 0, 1)

    def colours(self, stain: Stain) -> np.ndarray:
        """Return the picture (side, side, 3) uint8 under a microscope: uneven section, slight blur, camera noise."""
        from scipy import ndimage  # here: --help must not wait for it

        thickness = self.tissue * (1 + 0.06 * self.noise(150))
        amounts = (ndimage.gaussian_filter(part * thickness, 0.7) for part in (self.haematoxylin, self.eosin))
        seen = stain.colours(*amounts)
        # Clear glass is saturated in most scanners, so that noise shows in tissue only.
        seen += self.random.normal(0, 1.6, seen.shape).astype(np.float32) * np.minimum(1, self.tissue * 4)[..., None]
        return np.clip(np.rint(seen), 0, 255).astype(np.uint8)
