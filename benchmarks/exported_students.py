# SPDX-License-Identifier: Apache-2.0
"""Where the seconds of an exported student go, how far the floor is, and how they grow with scans and slices.

The profile runs the steps of `python -m pipeline.segment` one after another, each on its own; the command itself
overlaps them. The floor is the network's multiply-adds at the speed of a large matrix product on the same cores. Needs
OpenVINO or onnxruntime.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from benchmarks.inference_memory import CLASSES, PREPROCESSING
from benchmarks.inference_speed import LABELS
from benchmarks.phantom_student import trained_student, write_phantom
from pipeline.data.scans.geometry import to_ras
from pipeline.data.scans.volumes import read_volume, write_label_map
from pipeline.networks import build_network, multiply_adds, save_model
from pipeline.runtimes.resampling import labels_at, resize_images
from pipeline.runtimes.runners import fastest_runtime, load_student
from pipeline.segment.preprocessing import intensity_rule_of, scaled
from pipeline.segment.slicewise import SLICES_PER_CHUNK, warm_up

SLICES = 150
MATRIX = 2048  # its product takes long enough to be timed, and fits into the caches in blocks


class Clock:
    """CPU seconds of all threads, by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Count the time of a block to `step`."""
        started = time.process_time()
        yield
        self.seconds[step] += time.process_time() - started


def profile(student_file: Path, scan: Path, output: Path) -> dict[str, float]:
    """Return the CPU seconds of each step for one scan."""
    clock = Clock()
    with clock("load the student"):
        student = load_student(student_file)
    with clock("compile it for its size"):
        warm_up(student)
    with clock("read the scan"):
        volume = read_volume(scan)
    array, _ = to_ras(volume.array, volume.affine)
    low, high = intensity_rule_of(student.description.preprocessing).window(array)
    labels = np.empty(volume.array.shape, np.uint8, order="F")
    labels_ras, _ = to_ras(labels, volume.affine)
    side = student.description.size
    for start in range(0, array.shape[2], SLICES_PER_CHUNK):
        chosen = slice(start, start + SLICES_PER_CHUNK)
        with clock("scale intensities"):
            slices = scaled(array[..., chosen], low, high).transpose(2, 0, 1)
        with clock("shrink slices"):
            images = resize_images(slices, (side, side))[:, None]
        with clock("run the network"):
            logits = student.run(images)
        with clock("bring classes to the scan's grid"):
            labels_ras[..., chosen] = labels_at(logits, slices.shape[1:]).transpose(1, 2, 0)
    with clock("write the mask"):
        write_label_map(output, labels, volume)
    return dict(clock.seconds)


def multiply_adds_per_second(threads: int) -> float:
    """Return how many float32 multiply-adds a second this machine does in a large matrix product."""
    torch.set_num_threads(threads)
    matrix = torch.rand(MATRIX, MATRIX)
    fastest = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        fastest = min(fastest, time.perf_counter() - started)
    return MATRIX**3 / fastest


def seconds_of_command(student: Path, scan: Path, output: Path) -> float:
    """Return the wall seconds of `python -m pipeline.segment`, start-up included."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "pipeline.segment", str(student), str(scan), str(output), "--overwrite"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def straight_line(counts: Sequence[int], seconds: Sequence[float]) -> str:
    """Return the line through the points, and the farthest point from it, in words."""
    slope, start = np.polyfit(counts, seconds, 1)
    off = max(abs(start + slope * count - second) / second for count, second in zip(counts, seconds, strict=True))
    return f"{start:.1f} s + {slope:.3f} s each; no point is more than {off:.0%} off"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the profile and the two lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="enet")
    parser.add_argument("--slices", type=int, nargs="+", default=[100, 200, 400, 800])
    parser.add_argument("--scans", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--student", type=Path, help="an exported student in place of one that is trained here")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        student = given.student or _exported(given.network, given.size, folder)
        scans = {slices: folder / f"{slices}.nii.gz" for slices in {SLICES, *given.slices}}
        for slices, scan in scans.items():
            write_phantom(scan, slices)
        print(f"{given.network} by {fastest_runtime(student.suffix)}, 512 x 512 x {SLICES}, CPU s:")
        _print_profile(profile(student, scans[SLICES], folder / "mask.nii.gz"), given.network, given.size)
        seconds = [seconds_of_command(student, scans[slices], folder / "mask.nii.gz") for slices in given.slices]
        _print_line("slices", given.slices, seconds)
        seconds = []
        for count in given.scans:
            inputs = folder / f"scans_{count}"
            inputs.mkdir()
            for number in range(count):
                os.link(scans[SLICES], inputs / f"{number}.nii.gz")
            seconds.append(seconds_of_command(student, inputs, folder / f"masks_{count}"))
        _print_line("scans", given.scans, seconds)
    return 0


def _exported(network: str, size: int, folder: Path) -> Path:
    from pipeline.export.__main__ import main as export

    saved = folder / f"{network}.pt"
    save_model(
        saved, trained_student(network, size), labels=LABELS, preprocessing=PREPROCESSING, size=size, modality="CT"
    )
    student = folder / f"{network}.onnx"
    export([str(saved), str(student), "--format", "onnx"])
    return student


def _print_profile(seconds: dict[str, float], network: str, size: int) -> None:
    for step, value in seconds.items():
        print(f"  {step:33s} {value:5.2f}")
    print(f"  {'together':33s} {sum(seconds.values()):5.2f}")
    work = multiply_adds(build_network(network, in_channels=1, out_channels=CLASSES), (1, size, size))
    speed = multiply_adds_per_second(threads=1)
    floor = SLICES * work / speed
    print(f"  floor of the network: {floor:.1f} s at {speed / 1e9:.0f} G multiply-adds a second on one core")


def _print_line(what: str, counts: Sequence[int], seconds: Sequence[float]) -> None:
    told = ", ".join(f"{count}: {value:.1f} s" for count, value in zip(counts, seconds, strict=True))
    print(f"whole command over {what}: {told}\n  {straight_line(counts, seconds)}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
