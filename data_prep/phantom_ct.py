# SPDX-License-Identifier: Apache-2.0
r"""Drawn CT scans of the abdomen with the eight Synapse organs: a dataset of any size in seconds, without a download.

python -m data_prep.phantom_ct --output DATASET --cases 12

They prove that everything runs, and rank methods roughly; no accuracy claim rests on them. Voxel orders and voxel
sizes vary as they do between scanners, and some patients have no gallbladder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from data_prep.building import by_split, finish, print_summary, relocated, write_nifti
from data_prep.phantom_anatomy import draw
from data_prep.phantom_shapes import Grid
from data_prep.synapse_protocol import LABELS
from pipeline.command_line import CommandLine
from pipeline.data import CT_WINDOW, Case, Dataset
from pipeline.errors import InputError, run_command
from pipeline.files.atomic import new_folder

# Voxel orders that scanners and converters write; one scan is tilted as well, like a gantry.
ORIENTATIONS = ("LAS", "RAS", "LPS", "RPI", "LAS", "PSR")
TILTED = 4
TILT_DEGREES = 9.0
# Gallbladders are often removed: this one in six, counted from 0, is.
WITHOUT_GALLBLADDER = 3
_PERIOD = 6

_HEIGHT_MM = 200.0
# Each slice averages what lies in its thickness.
_LAYERS = 3
_NOISE_HU = 14.0


def draw_scan(
    random: np.random.Generator, size: int, slices: int, gallbladder: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a scan: HU int16 and labels uint8, both (size, size, slices) in RAS order, and the affine."""
    field_mm = random.uniform(340, 385)
    pixel_mm, thickness_mm = field_mm / size, _HEIGHT_MM * random.uniform(0.96, 1.04) / slices
    grid = _grid(size, slices * _LAYERS, pixel_mm, thickness_mm / _LAYERS)
    canvas = draw(grid, random, softness_mm=pixel_mm, gallbladder=gallbladder)
    hu = canvas.hu.reshape(size, size, slices, _LAYERS).mean(3)
    below, middle, above = np.moveaxis(canvas.labels.reshape(size, size, slices, _LAYERS), 3, 0)
    # The label of two layers out of three; where all differ, that of the middle.
    labels = np.where(below == above, below, middle)
    affine = np.diag([pixel_mm, pixel_mm, thickness_mm, 1.0])
    affine[:3, 3] = -0.5 * np.array([size - 1, size - 1, slices - 1]) * np.diag(affine)[:3]
    return _measured(hu, random), np.ascontiguousarray(labels), affine


def _grid(size: int, layers: int, pixel_mm: float, layer_mm: float) -> Grid:
    """Return the positions of (size, size, layers) voxels in mm from the middle."""
    sides = ((size, pixel_mm), (size, pixel_mm), (layers, layer_mm))
    return Grid([(np.arange(count) - (count - 1) / 2) * step_mm for count, step_mm in sides])


def _measured(hu: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return what a scanner makes of `hu`: blurred a little, with grainy noise and a slow drift, as int16."""
    blurred = ndimage.gaussian_filter(hu, (0.45, 0.45, 0))
    grain = ndimage.gaussian_filter(random.standard_normal(hu.shape).astype(np.float32), (0.6, 0.6, 0))
    drift = ndimage.zoom(random.standard_normal((3, 3, 3)), np.array(hu.shape) / 3, order=1)
    noisy = blurred + grain / grain.std() * _NOISE_HU + 3 * drift
    return np.clip(np.rint(noisy), -1024, 3071).astype(np.int16)


def stored(array: np.ndarray, affine: np.ndarray, index: int) -> nib.Nifti1Image:
    """Return a RAS volume in the voxel order (and tilt) that scan `index` is stored in."""
    if index % len(ORIENTATIONS) == TILTED:
        affine = _tilt() @ affine
    order = nib.orientations.axcodes2ornt(ORIENTATIONS[index % len(ORIENTATIONS)])
    change = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), order)
    return nib.Nifti1Image(array, affine).as_reoriented(change)


def _tilt() -> np.ndarray:
    angle = np.deg2rad(TILT_DEGREES)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn


def write_scan(folder: Path, index: int, seed: int, size: int, slices: int) -> Case:
    """Draw and write scan `index`; it is the same whatever the number of cases."""
    case = f"phantom_{index:02d}"
    random = np.random.default_rng([seed, index])
    gallbladder = index % _PERIOD != WITHOUT_GALLBLADDER
    hu, labels, affine = draw_scan(random, size, slices, gallbladder)
    paths = folder / "images" / f"{case}.nii.gz", folder / "labels" / f"{case}.nii.gz"
    for path, array in zip(paths, (hu, labels), strict=True):
        image = stored(array, affine, index)
        write_nifti(path, np.asarray(image.dataobj), image.affine)
    return Case(case, f"patient_{index:02d}", *paths)


def make(output: str | Path, cases: int = 12, size: int = 96, slices: int = 24, seed: int = 0) -> Dataset:
    """Write a dataset folder of drawn scans; returns the dataset.

    A quarter of the patients is for the test, a sixth for validation. Raises `InputError` for fewer than 3 cases, or
    slices too few or too small to hold the organs.
    """
    for name, value, least in (("cases", cases, 3), ("size", size, 32), ("slices", slices, 8), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"--{name} {value} is too small; give {least} or more")
    with new_folder(output) as folder:
        indices = tqdm(range(cases), desc="drawing", unit="scan", disable=None)
        written = [write_scan(folder, index, seed, size, slices) for index in indices]
        names = [case.case for case in written]
        test, validation = max(1, round(cases / 4)), max(1, round(cases / 6))
        training = cases - test - validation
        splits = by_split(
            written,
            {
                "training": names[:training],
                "validation": names[training : training + validation],
                "test": names[training + validation :],
            },
        )
        dataset = finish(folder, Dataset("phantom_ct", folder, "CT", LABELS, CT_WINDOW, **splits))
    return relocated(dataset, output)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    command = CommandLine(prog="python -m data_prep.phantom_ct", description=__doc__.split("\n")[0])
    add = command.add_argument
    add("--output", required=True, metavar="DIR", help="the dataset folder to make; must not exist")
    add("--cases", type=int, default=12, help="scans, each of a patient of its own (default %(default)s)")
    add("--size", type=int, default=96, help="side of the square slices in pixels (default %(default)s)")
    add("--slices", type=int, default=24, help="slices a scan, over 20 cm (default %(default)s)")
    add("--seed", type=int, default=0, help="of all draws (default %(default)s)")
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    given = parser().parse_args(arguments)
    print_summary(make(given.output, given.cases, given.size, given.slices, given.seed))
    return 0


if __name__ == "__main__":
    run_command(main)
