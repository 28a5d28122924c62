# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from medpy.metric import binary as medpy
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

from pipeline.errors import InputError
from pipeline.evaluation import (
    assd_mm,
    hausdorff_mm,
    hd95_mm,
    hd95_pooled_mm,
    organ_surface_distances,
    surface_distances,
)
from pipeline.evaluation.surface import diagonal_mm, surface_voxels, voxel_mm3

REDUCERS = (hd95_mm, hd95_pooled_mm, assd_mm, hausdorff_mm)


def mask(shape: tuple[int, ...], *box: tuple[int, int]) -> np.ndarray:
    """A boolean array, True in the half-open index ranges `box`."""
    array = np.zeros(shape, dtype=bool)
    array[tuple(slice(*span) for span in box)] = True
    return array


def blobs(seed: int, shape: tuple[int, ...] = (18, 15, 12)) -> tuple[np.ndarray, np.ndarray]:
    """Two overlapping irregular masks, clear of the frame by two voxels."""
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    masks = []
    for _ in range(2):
        centre = np.array(shape) / 2 + generator.uniform(-1.5, 1.5, len(shape))
        radii = np.array(shape) / generator.uniform(3.0, 4.5, len(shape))
        found = (((grid - centre) / radii) ** 2).sum(-1) <= 1
        found &= generator.random(shape) > 0.1
        found[tuple(np.round(centre).astype(int))] = True
        inner = np.zeros(shape, dtype=bool)
        inner[(slice(2, -2),) * len(shape)] = True
        masks.append(found & inner)
    return masks[0], masks[1]


def brute_force(prediction: np.ndarray, label: np.ndarray, spacing: tuple[float, ...]) -> list[np.ndarray]:
    """Both directed distance lists from the definition, voxel by voxel."""

    def points(array: np.ndarray) -> np.ndarray:
        found = []
        for index in np.argwhere(array):
            for axis in range(array.ndim):
                for step in (-1, 1):
                    beside = index.copy()
                    beside[axis] += step
                    inside_frame = 0 <= beside[axis] < array.shape[axis]
                    if not inside_frame or not array[tuple(beside)]:
                        found.append(tuple(index))
        return np.array(sorted(set(found))) @ (np.diag(spacing) if np.ndim(spacing) == 1 else np.transpose(spacing))

    ours, theirs = points(prediction), points(label)
    between = np.linalg.norm(ours[:, None] - theirs[None], axis=-1)
    return [between.min(axis=1), between.min(axis=0)]


def one_hot(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)[None, None].float()


class TestVectors:
    """Values derived by hand; the names T1 to T10 are those of the definition's vectors."""

    square = mask((30, 30), (10, 20), (10, 20))
    shifted = mask((30, 30), (10, 20), (13, 23))

    def test_t1_identical_squares(self):
        distances = surface_distances(self.square, self.square, (1, 1))
        assert distances.prediction_to_label_mm.size == distances.label_to_prediction_mm.size == 36
        assert [reduce(distances) for reduce in REDUCERS] == [0] * 4

    def test_t2_square_shifted_by_three(self):
        # Of the 36 edge voxels, the 10 of the column outside are 3 away, the rims between 2, 2, 1, 1, the rims in
        # common 0, and the column inside the other square 1 2 3 3 3 3 2 1: 30 + 6 + 18 = 54, and 54 / 36 = 1.5.
        distances = surface_distances(self.square, self.shifted, (1, 1))
        assert hausdorff_mm(distances) == 3
        assert hd95_mm(distances) == 3
        assert assd_mm(distances) == pytest.approx(1.5)  # equally many voxels on both sides

    @pytest.mark.parametrize(("spacing", "expected"), [((1, 2), 6), ((2, 1), 3)], ids=["T2b", "T2c"])
    def test_t2_spacing_belongs_to_its_axis(self, spacing, expected):
        assert hd95_mm(surface_distances(self.square, self.shifted, spacing)) == expected

    @pytest.mark.parametrize(
        ("spacing", "expected"), [((1, 1, 1), 5.0), ((5, 0.5, 2), math.hypot(2, 6))], ids=["T3", "T3b"]
    )
    def test_t3_single_voxels(self, spacing, expected):
        here, there = mask((10, 10, 10), (2, 3), (2, 3), (2, 3)), mask((10, 10, 10), (2, 3), (6, 7), (5, 6))
        distances = surface_distances(here, there, spacing)
        assert [reduce(distances) for reduce in REDUCERS] == pytest.approx([expected] * 4)

    def test_t4_one_stray_voxel(self):
        line = mask((1, 100 + 50), (0, 1), (0, 100))
        stray = line.copy()
        stray[0, 149] = True  # the line ends at 99
        distances = surface_distances(stray, line, (1, 1))
        assert hausdorff_mm(distances) == 50
        assert hd95_mm(distances) == 0
        assert assd_mm(distances) == pytest.approx(50 / 201)

    def test_t6_directed_percentile_is_not_the_pooled_one(self):
        long, short = mask((1, 280), (0, 1), (0, 280)), mask((1, 280), (0, 1), (0, 20))
        distances = surface_distances(long, short, (1, 1))
        assert hausdorff_mm(distances) == 260
        # 280 distances 0 x 20, 1, ..., 260: position 0.95 * 279 = 265.05, so 246 + 0.05.
        assert hd95_mm(distances) == pytest.approx(246.05)
        # pooled with the 20 zeros of the other direction: position 0.95 * 299 = 284.05 of 300, so 245.05.
        assert hd95_pooled_mm(distances) == pytest.approx(245.05)

    def test_t7_the_frame_is_outside(self):
        shape = (10, 12, 12)
        thin, thick = mask(shape, (0, 5), (1, 11), (1, 11)), mask(shape, (0, 6), (1, 11), (1, 11))
        # All voxels less the inner ones: 5*100 - 3*64 and 6*100 - 4*64; without the frame rule the first slice lacks.
        assert surface_voxels(thin).sum() == 308
        assert surface_voxels(thick).sum() == 344
        distances = surface_distances(thin, thick, (2, 1, 1))
        assert distances.prediction_to_label_mm.size == 308
        assert hd95_mm(distances) == 2.0

    @pytest.mark.parametrize(
        ("prediction", "label", "expected"),
        [(False, True, np.inf), (True, False, np.inf), (False, False, np.nan)],
        ids=["prediction empty", "label empty", "both empty"],
    )
    def test_t10_empty_masks(self, prediction, label, expected):
        distances = surface_distances(self.square & prediction, self.square & label, (1, 1))
        np.testing.assert_array_equal([reduce(distances) for reduce in REDUCERS], [expected] * 4)


class TestProperties:
    spacing = (0.8, 1.3, 3.0)

    @pytest.mark.parametrize("seed", range(5))
    def test_equals_the_definition_voxel_by_voxel(self, seed):
        prediction, label = blobs(seed, (9, 8, 7))
        distances = surface_distances(prediction, label, self.spacing)
        for ours, expected in zip(distances.directed_mm, brute_force(prediction, label, self.spacing), strict=True):
            np.testing.assert_allclose(np.sort(ours), np.sort(expected), atol=1e-12)

    @pytest.mark.parametrize("seed", range(5))
    def test_symmetry_and_order(self, seed):
        prediction, label = blobs(seed)
        forward = surface_distances(prediction, label, self.spacing)
        backward = surface_distances(label, prediction, self.spacing)
        for reduce in REDUCERS:
            assert reduce(forward) == pytest.approx(reduce(backward))
        assert hd95_mm(forward) <= hausdorff_mm(forward)

    @pytest.mark.parametrize("seed", range(3))
    def test_invariances(self, seed):
        prediction, label = blobs(seed)
        expected = self.values(prediction, label, self.spacing)
        shift = (2, -1, 1)
        moved = [np.roll(array, shift, axis=(0, 1, 2)) for array in (prediction, label)]
        assert self.values(*moved, self.spacing) == pytest.approx(expected)
        padded = [np.pad(array, ((1, 4), (0, 2), (3, 0))) for array in (prediction, label)]
        assert self.values(*padded, self.spacing) == pytest.approx(expected)
        box = tuple(slice(axis.min(), axis.max() + 1) for axis in np.nonzero(prediction | label))
        assert self.values(prediction[box], label[box], self.spacing) == pytest.approx(expected)
        for axes in ((1, 2, 0), (2, 1, 0), (0, 2, 1)):
            turned = [array.transpose(axes) for array in (prediction, label)]
            assert self.values(*turned, tuple(self.spacing[axis] for axis in axes)) == pytest.approx(expected)
        assert self.values(prediction[::-1], label[::-1], self.spacing) == pytest.approx(expected)
        layouts = [np.asfortranarray(prediction), np.ascontiguousarray(label)]
        assert self.values(*layouts, self.spacing) == pytest.approx(expected)

    def test_scales_with_the_spacing(self):
        prediction, label = blobs(7)
        tripled = [3 * value for value in self.values(prediction, label, self.spacing)]
        assert self.values(prediction, label, tuple(3 * edge for edge in self.spacing)) == pytest.approx(tripled)

    @pytest.mark.parametrize("axis", range(3))
    def test_one_slice_is_an_image(self, axis):
        prediction, label = blobs(3, (20, 16))
        spacing = list(self.spacing)
        del spacing[axis]
        volumes = [np.expand_dims(array, axis) for array in (prediction, label)]
        assert self.values(*volumes, self.spacing) == self.values(prediction, label, spacing)

    def test_organs_of_a_label_map_equal_their_masks(self):
        prediction, label = (first.astype(np.uint8) + 2 * second for first, second in (blobs(1), blobs(2)))
        prediction[0, 0, 0] = 5  # an organ that the label lacks
        organs = (3, 1, 2, 5, 9)
        found = dict(organ_surface_distances(prediction, label, organs, self.spacing))
        assert tuple(found) == organs
        for organ in organs:
            expected = surface_distances(prediction == organ, label == organ, self.spacing)
            np.testing.assert_array_equal(
                [reduce(found[organ]) for reduce in REDUCERS], [reduce(expected) for reduce in REDUCERS]
            )

    def test_nothing_lies_farther_apart_than_the_diagonal(self):
        shape = (4, 5, 6)
        corner, opposite = mask(shape, (0, 1), (0, 1), (0, 1)), mask(shape, (3, 4), (4, 5), (5, 6))
        assert diagonal_mm(shape, (2, 1, 1)) == pytest.approx(math.sqrt(64 + 25 + 36))
        assert hausdorff_mm(surface_distances(corner, opposite, (2, 1, 1))) < diagonal_mm(shape, (2, 1, 1))

    @staticmethod
    def values(prediction: np.ndarray, label: np.ndarray, spacing) -> list[float]:
        distances = surface_distances(prediction, label, spacing)
        return [reduce(distances) for reduce in REDUCERS]


@pytest.mark.parametrize("shape", [(18, 15, 12), (24, 20)], ids=["3D", "2D"])
@pytest.mark.parametrize("seed", range(3))
def test_parity_with_monai_and_medpy(seed, shape):
    prediction, label = blobs(seed, shape)
    spacing = (0.8, 1.3, 3.0)[: len(shape)]
    distances = surface_distances(prediction, label, spacing)
    pair = one_hot(prediction), one_hot(label)
    monai = {"include_background": True, "spacing": list(spacing)}
    assert hd95_mm(distances) == pytest.approx(compute_hausdorff_distance(*pair, percentile=95, **monai).item())
    assert hausdorff_mm(distances) == pytest.approx(compute_hausdorff_distance(*pair, **monai).item())
    symmetric = compute_average_surface_distance(*pair, symmetric=True, **monai).item()
    assert assd_mm(distances) == pytest.approx(symmetric)
    assert hd95_pooled_mm(distances) == pytest.approx(medpy.hd95(prediction, label, spacing))
    assert hausdorff_mm(distances) == pytest.approx(medpy.hd(prediction, label, spacing))
    assert assd_mm(distances) == pytest.approx(medpy.assd(prediction, label, spacing))


@pytest.mark.parametrize(
    ("prediction", "label", "spacing", "message"),
    [
        (np.zeros((3, 3), bool), np.zeros((3, 4), bool), (1, 1), "must be equal"),
        (np.zeros((3, 3), np.uint8), np.zeros((3, 3), bool), (1, 1), "prediction is uint8"),
        (np.zeros((3, 3), bool), np.zeros((3, 3), bool), (1, 1, 1), "needs 2 positive lengths"),
        (np.zeros((3, 3), bool), np.zeros((3, 3), bool), (1, 0), r"spacing_mm is \[1.0, 0.0\]"),
        (np.zeros((3, 3), bool), np.zeros((3, 3), bool), (1, np.nan), "positive lengths"),
    ],
)
def test_bad_input_is_refused(prediction, label, spacing, message):
    with pytest.raises(InputError, match=message):
        surface_distances(prediction, label, spacing)


class TestShearedGrid:
    """A gantry tilted by 20 degrees: a step along y climbs, one along z goes straight to the head by 5 mm."""

    tilt = math.radians(20)
    steps = np.array([[1, 0, 0], [0, math.cos(tilt), 0], [0, math.sin(tilt), 5.0]])
    label = mask((40, 60, 20), (10, 30), (15, 45), (4, 16))
    prediction = mask((40, 60, 20), (10, 30), (15, 45), (7, 19))  # three slices higher

    def test_distances_by_hand(self):
        distances = surface_distances(self.prediction, self.label, self.steps)
        # 15 mm straight down; the nearest point is five rows back, where the plane is 5 sin(20) mm lower.
        assert hd95_mm(distances) == pytest.approx(math.sqrt(15**2 - 2 * 15 * 5 * math.sin(self.tilt) + 5**2))
        assert hausdorff_mm(distances) == pytest.approx(15)  # of the first row, which has none behind it

    def test_volume_and_diagonal_by_hand(self):
        assert voxel_mm3(self.steps) == pytest.approx(5 * math.cos(self.tilt))
        longest = math.hypot(40, 60 * math.cos(self.tilt), 60 * math.sin(self.tilt) + 100)
        assert diagonal_mm((40, 60, 20), self.steps) == pytest.approx(longest)

    def test_a_rotation_changes_nothing(self):
        turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
        turned = surface_distances(self.prediction, self.label, turn @ self.steps)
        assert hd95_mm(turned) == pytest.approx(hd95_mm(surface_distances(self.prediction, self.label, self.steps)))
        straight = turn @ np.diag([0.7, 1.3, 2.5])
        by_matrix, by_lengths = (surface_distances(*blobs(3), spacing) for spacing in (straight, (0.7, 1.3, 2.5)))
        assert assd_mm(by_matrix) == pytest.approx(assd_mm(by_lengths))

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_agrees_with_the_definition(self, order):
        prediction, label = (np.asarray(array, order=order) for array in blobs(5))
        steps = np.array([[0.8, 0.3, 0.1], [0, 1.1, -0.4], [0.2, 0, 2.0]])
        directed = brute_force(prediction, label, steps)
        distances = surface_distances(prediction, label, steps)
        assert hd95_mm(distances) == pytest.approx(max(np.percentile(side, 95) for side in directed))
        assert assd_mm(distances) == pytest.approx(np.concatenate(directed).mean())

    def test_a_single_slice_keeps_the_shear_of_its_axes(self):
        steps = np.array([[1, 0.5, 0], [0, 1, 0], [0, 0, 3.0]])
        slices = [mask((9, 9, 1), (4, 5), (start, start + 1), (0, 1)) for start in (2, 4)]
        assert hd95_mm(surface_distances(*slices, steps)) == pytest.approx(2 * math.hypot(0.5, 1))

    @pytest.mark.parametrize(
        "steps", [np.zeros((3, 3)), np.ones((3, 3)), np.full((3, 3), np.nan), np.eye(2), [[1, 0, 0], [0, 1, 0]]]
    )
    def test_steps_that_span_no_volume_are_refused(self, steps):
        with pytest.raises(InputError, match="needs 3 positive lengths or steps"):
            surface_distances(self.prediction, self.label, steps)
