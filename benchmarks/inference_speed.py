# SPDX-License-Identifier: Apache-2.0
"""Seconds and peak memory from `.nii.gz` to `.nii.gz`: this package by each backend, stock MONAI, the original's loop.

They take turns, each time in a process of its own, with the same weights: a student trained for a minute on the same
kind of made-up scan. Seconds are without imports, loading of weights and export in memory. Exported students are run by
`python -m pipeline.segment`; the cost of the same command for one slice is taken off, and told beside as start-up.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import torch
from torch import nn

from benchmarks.inference_memory import CLASSES, PREPROCESSING, SIDE, peak_bytes
from benchmarks.inference_opponents import original_loop, stock_monai
from benchmarks.phantom_student import trained_student, write_phantom
from pipeline.inference import backend_of, network_on, segment_files
from pipeline.inference.backends import TORCH
from pipeline.networks import load_model, save_model
from pipeline.runtimes.runners import OPENVINO, RUNTIMES, is_installed

EXPORTED = "exported, "
ONE_SLICE = "one_slice.nii.gz"
_TEXT = {"check": True, "stdout": subprocess.PIPE, "text": True}
_MEASURED = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
subprocess.run(sys.argv[1:], check=True)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
wall = time.perf_counter() - started
print(json.dumps({"cpu": usage.ru_utime + usage.ru_stime, "wall": wall, "gb": peak / 1e9}))
"""
AIMS = {"stock MONAI": 6.0, "original loop": 3.0}  # how many times their CPU seconds are to be ours
AIM_GB, AIM_SECONDS_OF_150_SLICES = 1.0, {"enet": 3.0}  # seconds without start-up, on two cores
AIM_START_SECONDS, AIM_START_GB = 1.5, 0.2  # of exported students
LABELS = {0: "background", **{value: f"organ {value}" for value in range(1, CLASSES)}}


def this_package(scan: Path, output: Path, network: nn.Module, size: int) -> None:
    """Segment a scan as the bundles do; the network may be a `RuntimeNetwork`."""
    model = SimpleNamespace(
        network=network,
        network_arguments={"in_channels": 1},
        labels=LABELS,
        preprocessing=PREPROCESSING,
        size=size,
        tile_px=None,
        modality="CT",
        sha256="",
    )
    segment_files(scan, output, model)


OPPONENTS = {"stock MONAI": stock_monai, "original loop": original_loop}


def ways_here() -> list[str]:
    """Return the names of all ways that this machine has: backends, exported students, opponents."""
    runtimes = [name for name in RUNTIMES if is_installed(name)]
    return [TORCH, *runtimes, *(EXPORTED + name for name in runtimes), *OPPONENTS]


def measure(way: str, folder: Path, network: str, size: int) -> None:
    """Segment the folder's scan and print the cost as JSON; meant for a process of its own, whose peak it reports."""
    model = load_model(folder / f"{network}.pt")
    student = model.network.eval() if way in OPPONENTS else network_on(model, backend_of(way, "cpu"))
    cpu, wall = time.process_time(), time.perf_counter()
    OPPONENTS.get(way, this_package)(folder / "scan.nii.gz", folder / network / way, student, size)
    cost = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "gb": peak_bytes() / 1e9}
    print(json.dumps(cost))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one block for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=60)
    parser.add_argument("--networks", nargs="+", default=["mobile_unet", "enet"])
    parser.add_argument("--ways", nargs="+", default=ways_here(), help="some of: " + "; ".join(ways_here()))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    if given.one:
        logging.disable(logging.INFO)
        warnings.simplefilter("ignore")
        _in_own_process(given.one[0], Path(given.one[1]), given.networks[0], given.size)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_phantom(folder / "scan.nii.gz", given.slices)
        write_phantom(folder / ONE_SLICE, 1)
        print(f"{SIDE} x {SIDE} x {given.slices} int16, {given.threads} threads, medians of {given.rounds} rounds")
        for network in given.networks:
            _report(network, folder, given)
    return 0


def _in_own_process(way: str, folder: Path, network: str, size: int) -> None:
    if way == "train":
        student, saved = trained_student(network, size), folder / f"{network}.pt"
        save_model(saved, student, labels=LABELS, preprocessing=PREPROCESSING, size=size, modality="CT")
    else:
        measure(way, folder, network, size)


def _report(network: str, folder: Path, given: argparse.Namespace) -> None:
    """Train, let the ways take turns, and print their costs and how far their masks agree."""
    _run("train", network, folder, given)
    costs: dict[str, list[dict[str, float]]] = {way: [] for way in given.ways}
    for _ in range(given.rounds):
        for way, of_way in costs.items():
            of_way.append(_cost(way, network, folder, given))
    medians = {
        way: {key: statistics.median(one[key] for one in of_way) for key in of_way[0]} for way, of_way in costs.items()
    }
    first = given.ways[0]
    own_mask = _mask(folder / network / first)
    print(f"{network}, {np.count_nonzero(own_mask) / own_mask.size:.1%} of the voxels are organs")
    for way, cost in medians.items():
        same = np.count_nonzero(_mask(folder / network / way) == own_mask) / own_mask.size
        aim = f"   {_times(way, cost, medians)}" if way in AIMS else f"   (aims {_own_aims(network, given.slices)})"
        start = _start(cost) if "start" in cost else ""
        print(
            f"  {way:21s} {cost['cpu']:6.1f} CPU s {cost['wall']:6.1f} s  peak {cost['gb']:.2f} GB"
            f"{start}   {same:.2%} of voxels as {first}{aim}",
            flush=True,
        )


def _start(cost: dict[str, float]) -> str:
    aims = f"(aims {AIM_START_SECONDS:g} s, {AIM_START_GB:g} GB)"
    return f", start-up {cost['start']:.1f} s, {cost['start_gb']:.2f} GB {aims}"


def _own_aims(network: str, slices: int) -> str:
    seconds = AIM_SECONDS_OF_150_SLICES.get(network)
    return f"{AIM_GB:g} GB" + (f", {seconds * slices / 150:.1f} s" if seconds else "")


def _cost(way: str, network: str, folder: Path, given: argparse.Namespace) -> dict[str, float]:
    if way.startswith(EXPORTED):
        return _run_exported(way.removeprefix(EXPORTED), network, folder)
    return json.loads(_run(way, network, folder, given).splitlines()[-1])


def _times(way: str, cost: dict[str, float], medians: dict[str, dict[str, float]]) -> str:
    """Return how many times the CPU seconds of ours an opponent takes."""
    ours = [name for name in medians if name not in AIMS]
    times = [f"{cost['cpu'] / medians[name]['cpu']:.1f} x {name}" for name in ours]
    return f"{'; '.join(times)} (aim {AIMS[way]:g} x)"


def _run_exported(runtime: str, network: str, folder: Path) -> dict[str, float]:
    """Return the cost of the command that segments with an exported student, and that of its start-up, apart."""
    student, masks = _exported(runtime, network, folder), folder / network / (EXPORTED + runtime)
    masks.mkdir(parents=True, exist_ok=True)
    start = _cost_of_command(student, folder / ONE_SLICE, masks / ONE_SLICE)
    whole = _cost_of_command(student, folder / "scan.nii.gz", masks / "scan.nii.gz")
    scan = {key: whole[key] - start[key] for key in ("cpu", "wall")}
    return {**scan, "gb": whole["gb"], "start": start["wall"], "start_gb": start["gb"]}


def _cost_of_command(student: Path, scan: Path, mask: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "pipeline.segment", student, scan, mask, "--overwrite"]
    # By a small process between: the peak of a child begins with that of the process that starts it.
    told = subprocess.run([sys.executable, "-c", _MEASURED, *map(str, command)], **_TEXT).stdout
    return json.loads(told.splitlines()[-1])


def _exported(runtime: str, network: str, folder: Path) -> Path:
    """Return the file of the exported student, made if it isn't there."""
    file_format, suffix = ("openvino", ".xml") if runtime == OPENVINO else ("onnx", ".onnx")
    student = folder / f"{network}{suffix}"
    if not student.is_file():
        command = [sys.executable, "-m", "pipeline.export", folder / f"{network}.pt", student]
        command += ["--format", file_format, "--slices", folder / "scan.nii.gz"]
        subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
    return student


def _run(way: str, network: str, folder: Path, given: argparse.Namespace) -> str:
    command = [sys.executable, "-m", "benchmarks.inference_speed", "--one", way, str(folder), "--networks", network]
    command += ["--size", str(given.size), "--threads", str(given.threads)]
    return subprocess.run(command, **_TEXT).stdout


def _mask(folder: Path) -> np.ndarray:
    return np.asanyarray(nib.load(folder / "scan.nii.gz").dataobj)


if __name__ == "__main__":
    raise SystemExit(main())
