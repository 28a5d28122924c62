# SPDX-License-Identifier: Apache-2.0
"""Seconds and peak memory of a whole slide from TIFF to TIFF, in a process of its own (aim: under 2 GB).

The slide is made up: a pyramidal TIFF of SIDE x SIDE pixels in tiles, two pieces of stained noise on glass. It is
segmented by the student that the repository holds, with each backend that is installed.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tifffile
import torch

from benchmarks.inference_memory import peak_bytes
from pipeline.inference import segment_slides
from pipeline.inference.backends import TORCH
from pipeline.networks import load_model
from pipeline.runtimes.runners import RUNTIMES, is_installed

TILE = 512
REDUCTION = 4
PIXEL_UM = 0.25
STUDENT = Path(__file__).parents[1] / "bundles/gastric/models/model.pt"
# Centre and half axes of the two pieces, as shares of the side: rows, columns.
PIECES = (((0.36, 0.4), (0.28, 0.32)), ((0.75, 0.7), (0.18, 0.22)))
STAIN, GLASS = np.array([186.0, 110.0, 160.0], np.float32), np.array([243.0, 242.0, 244.0], np.float32)


def write_slide(path: Path, side: int) -> None:
    """Write the slide tile by tile, so that making it takes no memory."""
    noise = np.random.default_rng(0).normal(size=(8, TILE, TILE, 1)).astype(np.float32)
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        level_side = side
        while True:
            writer.write(
                _tiles(level_side, noise),
                shape=(level_side, level_side, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="zlib",
                compressionargs={"level": 1},
                subfiletype=int(level_side < side),
                resolution=(1e4 / PIXEL_UM * level_side / side,) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )
            if level_side <= TILE:
                return
            level_side //= REDUCTION


def _tiles(side: int, noise: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the tiles of a level (TILE, TILE, 3) uint8; noise (N, TILE, TILE, 1) tells nuclei from stroma."""
    for number, (top, left) in enumerate((y, x) for y in range(0, side, TILE) for x in range(0, side, TILE)):
        y, x = np.arange(top, top + TILE)[:, None] / side, np.arange(left, left + TILE)[None] / side
        pieces = [((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1 for (cy, cx), (ry, rx) in PIECES]
        grain = noise[number % len(noise)]
        picture = np.where(np.logical_or(*pieces)[..., None], STAIN + 35 * grain, GLASS + grain)
        yield np.clip(picture, 0, 255).astype(np.uint8)


def measure(path: Path, output: Path, backend: str, given: argparse.Namespace) -> None:
    """Segment one slide and print its cost as JSON; meant for a process of its own, whose peak it reports."""
    torch.set_num_threads(given.threads)
    model = load_model(given.model)
    before = peak_bytes()
    segment_slides(path, output, model, tiles_per_batch=given.tiles_per_batch, backend=backend)
    told = json.loads((output / "slide.json").read_text())
    print(json.dumps({**told, "peak_gb": peak_bytes() / 1e9, "imports_gb": before / 1e9}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line about the slide and one for each backend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20000)
    parser.add_argument("--model", type=Path, default=STUDENT, help="a student of slides")
    parser.add_argument("--backends", nargs="+", default=[TORCH, *filter(is_installed, RUNTIMES)])
    parser.add_argument("--tiles-per-batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--measure", nargs=2, metavar=("SLIDE", "OUTPUT"), type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.measure:
        logging.disable(logging.INFO)
        measure(*given.measure, given.backends[0], given)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        slide = Path(folder) / "slide.tif"
        write_slide(slide, given.side)
        print(
            f"{given.side} x {given.side} RGB, {slide.stat().st_size / 1e6:.0f} MB, {given.threads} threads", flush=True
        )
        for backend in given.backends:
            _report(slide, backend, given)
    return 0


def _report(slide: Path, backend: str, given: argparse.Namespace) -> None:
    output = slide.parent / backend
    command = [sys.executable, "-m", "benchmarks.slide_memory", "--measure", slide, output]
    command += ["--backends", backend, "--model", given.model]
    command += ["--tiles-per-batch", given.tiles_per_batch, "--threads", given.threads]
    run = subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, text=True)
    told = json.loads(run.stdout.splitlines()[-1])
    tiles = told["tiles"]
    written = sum(file.stat().st_size for file in output.iterdir())
    print(
        f"{backend:12s} {told['seconds']:7.1f} s   peak {told['peak_gb']:.2f} GB"
        f" (of which {told['imports_gb']:.2f} GB before the slide), {tiles['run']} of {tiles['total']} tiles run,"
        f" {written / 1e6:.0f} MB written",
        flush=True,
    )


if __name__ == "__main__":
    raise SystemExit(main())
