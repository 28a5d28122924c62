# SPDX-License-Identifier: Apache-2.0
"""What HD95 of eight organs costs on a whole CT, ours against MONAI and medpy (aim: a fifth, and a hundredth)."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from monai.metrics import HausdorffDistanceMetric
from scipy import ndimage

from pipeline.evaluation import hd95_mm, hd95_pooled_mm, organ_surface_distances, score_case

SHAPE = (512, 512, 150)
SPACING_MM = (0.77, 0.77, 3.0)
# Centre and half axes in mm of eight ellipsoids about as large as the organs and where they lie: x, y, z.
ORGANS = {
    "aorta": ((197, 215, 200), (11, 11, 130)),
    "gallbladder": ((140, 160, 220), (14, 16, 30)),
    "left kidney": ((265, 240, 200), (28, 30, 58)),
    "right kidney": ((125, 240, 190), (28, 30, 58)),
    "liver": ((110, 165, 290), (75, 85, 78)),
    "pancreas": ((200, 165, 225), (60, 14, 20)),
    "spleen": ((300, 225, 290), (32, 45, 55)),
    "stomach": ((235, 140, 290), (48, 50, 60)),
}


def label_pair(shape: tuple[int, int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a prediction and a label: uint8 maps of eight organs, borders uneven, the prediction off by some mm."""
    generator = np.random.default_rng(seed)
    # The organs keep their share of the field of view when a smaller volume is asked for.
    field = np.array(SHAPE) * SPACING_MM
    grid = np.meshgrid(
        *(np.linspace(0, edge, n, endpoint=False) for edge, n in zip(field, shape, strict=True)), indexing="ij"
    )
    maps = []
    for error_mm in (2.0, 0.0):
        waves = ndimage.zoom(generator.normal(size=(16, 16, 10)), np.array(shape) / (16, 16, 10), order=1)
        labels = np.zeros(shape, dtype=np.uint8)
        for value, (centre, half) in enumerate(ORGANS.values(), start=1):
            moved = np.array(centre) + generator.normal(scale=error_mm, size=3)
            radius = sum(((axis - middle) / edge) ** 2 for axis, middle, edge in zip(grid, moved, half, strict=True))
            labels[radius < 1 + 0.15 * waves] = value
        maps.append(np.asfortranarray(labels))  # the order of NIfTI files
    return maps[0], maps[1]


def timed(work: Callable[[], object], repeats: int = 1) -> tuple[object, float]:
    """Return the result of `work` and its shortest time in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return result, min(times)


def ours(prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return HD95 by both definitions, (organs, 2) mm: the larger directed one, and the pooled one."""
    organs = range(1, len(ORGANS) + 1)
    distances = organ_surface_distances(prediction, label, organs, SPACING_MM)
    return np.array([(hd95_mm(found), hd95_pooled_mm(found)) for _, found in distances])


def monai(prediction: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, float]:
    """Return HD95 of every organ, (organs,) mm, and the seconds of the metric alone, without making one-hot maps."""
    one_hot = [
        torch.stack([torch.from_numpy(labels == value) for value in range(len(ORGANS) + 1)])[None].contiguous()
        for labels in (prediction, label)
    ]
    metric = HausdorffDistanceMetric(include_background=False, percentile=95, reduction="none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        values, seconds = timed(lambda: metric(*one_hot, spacing=SPACING_MM))
    return values[0].numpy(), seconds


def medpy(prediction: np.ndarray, label: np.ndarray, organs: Sequence[int]) -> tuple[np.ndarray, float]:
    """Return medpy's HD95 of some organs on the full volume, as its users call it, and its seconds."""
    from medpy.metric.binary import hd95

    values, seconds = timed(lambda: [hd95(prediction == k, label == k, voxelspacing=SPACING_MM) for k in organs])
    return np.array(values), seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Print seconds, ratios and how far the values differ where the definition is the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--medpy", action="store_true", help="time medpy on all organs (minutes), not on one")
    parser.add_argument("--shape", type=int, nargs=3, default=SHAPE)
    options = parser.parse_args(arguments)
    prediction, label = label_pair(tuple(options.shape))
    voxels = np.bincount(label.ravel(order="K"), minlength=len(ORGANS) + 1)[1:]
    size = " x ".join(map(str, options.shape))
    print(f"HD95 of 8 organs, {size} at {SPACING_MM} mm, {voxels.min()} to {voxels.max()} voxels an organ")

    values, seconds = timed(lambda: ours(prediction, label), repeats=3)
    names = dict(enumerate(ORGANS, start=1))
    _, all_columns = timed(lambda: score_case("case", prediction, label, names, SPACING_MM), repeats=3)
    print(f"{'ours, both definitions':<34} {seconds:8.2f} s")
    print(f"{'ours, every column of the report':<34} {all_columns:8.2f} s")
    print(f"{'ours, by organ, mm':<34} {np.round(values[:, 0], 2)}", flush=True)

    theirs, monai_seconds = monai(prediction, label)
    apart = np.abs(theirs - values[:, 0]).max()
    print(f"{'MONAI, one-hot maps given':<34} {monai_seconds:8.2f} s  {monai_seconds / seconds:6.1f} x ours, ", end="")
    print(f"values at most {apart:.1e} mm apart", flush=True)

    organs = range(1, len(ORGANS) + 1) if options.medpy else [2]
    theirs, medpy_seconds = medpy(prediction, label, organs)
    apart = np.abs(theirs - values[np.array(organs) - 1, 1]).max()
    whole = medpy_seconds * len(ORGANS) / len(organs)
    how = "medpy" if options.medpy else f"medpy, 8 x the {names[2]}'s {medpy_seconds:.2f} s"
    print(f"{how:<34} {whole:8.2f} s  {whole / seconds:6.1f} x ours, values at most {apart:.1e} mm apart")


if __name__ == "__main__":
    main()
