# SPDX-License-Identifier: Apache-2.0
r"""Drawn tissue, stained with H&E, with healthy glands and cancer: a dataset of any size in seconds, no download.

python -m data_prep.phantom_slides --output DATASET --images 12 --side 512 --crop 256 --size 128
python -m data_prep.phantom_slides --whole-slide SLIDE.tif --side 20000

They prove that everything runs, and rank methods roughly; no accuracy claim rests on them. Each patient's pictures
share one stain, and every fourth picture is healthy. The second command draws one large slide to run inference on.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.building import print_summary
from data_prep.gastric import convert
from data_prep.phantom_shapes import smooth_noise
from data_prep.phantom_tissue import Stain, Tissue
from data_prep.phantom_whole_slide import LEAST_SLIDE_PX, write_whole_slide
from pipeline.command_line import CommandLine
from pipeline.data import Dataset, write_png
from pipeline.errors import InputError, run_command

PICTURES_A_PATIENT = 2
LEAST_PICTURES, LEAST_SIDE_PX = 6, 128
# What cancer covers of the tissue, in turn; about each the draws vary.
_CANCER_SHARES = (0.45, 0.25, 0.7, 0.0)
_SHARE_SPREAD = 0.08
# Every second picture or so shows the edge of the tissue.
_GLASS_SHARE = 0.3
# Distinct streams of draws from one seed: those of a picture are (seed, index).
_STAIN_STREAM = 1


def draw_picture(seed: int, index: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return picture `index`, RGB (side, side, 3) uint8, and its mask (side, side) uint8: 255 where there is cancer.

    Both depend on `seed`, `index` and `side` alone, and the stain on the patient.
    """
    random = np.random.default_rng([seed, index])
    stain = Stain.drawn(np.random.default_rng([seed, index // PICTURES_A_PATIENT, _STAIN_STREAM]))
    glass_share = random.uniform(-_GLASS_SHARE, _GLASS_SHARE)
    height = _slope(random, side, roughness=0.5)
    edge = np.quantile(height, max(0.0, glass_share))
    tissue = np.clip((height - edge) * side / 6, 0, 1) if glass_share > 0 else np.ones_like(height)
    share = _CANCER_SHARES[index % len(_CANCER_SHARES)]
    spread = random.uniform(-_SHARE_SPREAD, _SHARE_SPREAD)
    place = _slope(random, side, roughness=0.9)
    cancer = place > np.quantile(place, 1 - share - spread) if share else np.zeros(place.shape, bool)
    drawn = Tissue(random, tissue, cancer)
    return drawn.colours(stain), drawn.labels.astype(np.uint8) * 255


def _slope(random: np.random.Generator, side: int, roughness: float) -> np.ndarray:
    """Return (side, side) heights that rise from -1 to 1 in a random direction, with bumps of deviation `roughness`."""
    angle = random.uniform(0, 2 * np.pi)
    line = np.linspace(-1, 1, side, dtype=np.float32)
    bumps = smooth_noise(random, (side, side, 1), (4, 4, 1))[..., 0]
    return line[:, None] * np.float32(np.sin(angle)) + line * np.float32(np.cos(angle)) + np.float32(roughness) * bumps


def make(
    output: str | Path,
    images: int = 12,
    side: int = 512,
    colour: bool = False,
    crop_px: int | None = None,
    size: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Write a dataset folder of drawn pictures; returns the dataset.

    A quarter of the patients is for the test, a sixth for validation; `crop_px` and `size` are those of
    `data_prep.gastric.convert`, which writes it. Raises `InputError` for fewer than 6 pictures or sides that hold no
    gland, and as `convert` does.
    """
    limits = (("images", images, LEAST_PICTURES), ("side", side, LEAST_SIDE_PX), ("seed", seed, 0))
    _check_least(limits)
    if crop_px is not None and crop_px > side:
        raise InputError(f"--crop {crop_px} is larger than the pictures (--side {side}); give a smaller one")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        patients = {}
        for index in tqdm(range(images), desc="drawing", unit="picture", disable=None):
            case = f"phantom_{index:02d}"
            pixels, mask = draw_picture(seed, index, side)
            write_png(folder / "images" / f"{case}.png", pixels)
            write_png(folder / "masks" / f"{case}.png", mask)
            patients[case] = f"patient_{index // PICTURES_A_PATIENT:02d}"
        outcome = convert(
            folder / "images",
            folder / "masks",
            output,
            colour=colour,
            crop_px=crop_px,
            size=size,
            requests=_splits(sorted(set(patients.values()))),
            patients=_listed(folder / "patients.csv", patients),
            name="phantom_slides",
        )
    return outcome.dataset


def _check_least(limits: Sequence[tuple[str, int, int]]) -> None:
    for name, value, least in limits:
        if value < least:
            raise InputError(f"--{name} {value} is too small; give {least} or more")


def _splits(patients: Sequence[str]) -> dict[str, str]:
    """Return the requests of splits: the last quarter is for the test, the sixth before it for validation."""
    test, validation = max(1, round(len(patients) / 4)), max(1, round(len(patients) / 6))
    first = len(patients) - test
    return {"validation": ",".join(patients[first - validation : first]), "test": ",".join(patients[first:])}


def _listed(path: Path, patients: dict[str, str]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("case", "patient"), *patients.items()])
    return path


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    command = CommandLine(prog="python -m data_prep.phantom_slides", description=__doc__.split("\n")[0])
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--output", metavar="DIR", help="the dataset folder to make; must not exist")
    what.add_argument("--whole-slide", metavar="FILE", help="instead: one pyramidal TIFF to make; must not exist")
    add = command.add_argument
    add("--images", type=int, help=f"pictures, {PICTURES_A_PATIENT} of each patient (default 12)")
    add("--side", type=int, help="side of the squares in pixels (default 512; 20000 for a whole slide)")
    add("--color", "--colour", action="store_true", help="networks see RGB; default: grey, as in the paper")
    add("--crop", type=int, metavar="PX", help="side of the squares that training pictures are cut into")
    add("--size", type=int, metavar="PX", help="side that crops are shrunk to (default: that of the crop)")
    add("--seed", type=int, default=0, help="of all draws (default %(default)s)")
    return command


def _draw_whole_slide(given: argparse.Namespace) -> None:
    both = [f"--{name}" for name in ("images", "color", "crop", "size") if getattr(given, name)]
    if both:
        raise InputError(f"{', '.join(both)} is for datasets; leave it out with --whole-slide")
    side = 20_000 if given.side is None else given.side
    _check_least((("side", side, LEAST_SLIDE_PX), ("seed", given.seed, 0)))
    write_whole_slide(given.whole_slide, side, given.seed)
    print(f"wrote {given.whole_slide}: {side} x {side} pixels")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    given = parser().parse_args(arguments)
    if given.whole_slide is not None:
        _draw_whole_slide(given)
        return 0
    images, side = (default if value is None else value for value, default in ((given.images, 12), (given.side, 512)))
    print_summary(make(given.output, images, side, given.color, given.crop, given.size, given.seed))
    return 0


if __name__ == "__main__":
    run_command(main)
