# SPDX-License-Identifier: Apache-2.0
"""Seconds and peak memory from `.nii.gz` to `.nii.gz`: this package, stock MONAI, and the original loop over slices.

They take turns, each time in a process of its own, with the same weights: a student trained for a minute on the same
kind of made-up scan. Seconds are without imports and loading of weights, but for the exported student, run by
`python -m pipeline.segment` with OpenVINO where that is installed: its seconds are those of the whole command.
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
from pipeline.inference import segment_files
from pipeline.networks import build_network, save_model
from pipeline.segment.runtimes import OPENVINO, is_installed

EXPORTED = "exported"
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
AIM_GB = 1.0


def this_package(scan: Path, output: Path, network: nn.Module, size: int) -> None:
    """Segment a scan as the bundles do."""
    model = SimpleNamespace(
        network=network,
        network_arguments={"in_channels": 1},
        labels={value: f"organ {value}" for value in range(CLASSES)},
        preprocessing=PREPROCESSING,
        size=size,
        tile_px=None,
        sha256="",
    )
    segment_files(scan, output, model)


WAYS = {"this package": this_package, "stock MONAI": stock_monai, "original loop": original_loop}


def measure(way: str, folder: Path, network: str, size: int) -> None:
    """Segment the folder's scan and print the cost as JSON; meant for a process of its own, whose peak it reports."""
    student = build_network(network, in_channels=1, out_channels=CLASSES).eval()
    student.load_state_dict(torch.load(folder / f"{network}.pt"))
    cpu, wall = time.process_time(), time.perf_counter()
    WAYS[way](folder / "scan.nii.gz", folder / network / way, student, size)
    cost = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "gb": peak_bytes() / 1e9}
    print(json.dumps(cost))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one block for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=60)
    parser.add_argument("--networks", nargs="+", default=["mobile_unet", "enet"])
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
        print(f"{SIDE} x {SIDE} x {given.slices} int16, {given.threads} threads, medians of {given.rounds} rounds")
        for network in given.networks:
            _report(network, folder, given)
    return 0


def _in_own_process(way: str, folder: Path, network: str, size: int) -> None:
    if way == "train":
        student = trained_student(network, size)
        torch.save(student.state_dict(), folder / f"{network}.pt")
        labels = {0: "background", **{value: f"organ {value}" for value in range(1, CLASSES)}}
        saved = folder / f"{network}.model.pt"
        save_model(saved, student, labels=labels, preprocessing=PREPROCESSING, size=size, modality="CT")
    else:
        measure(way, folder, network, size)


def _report(network: str, folder: Path, given: argparse.Namespace) -> None:
    """Train, let the ways take turns, and print their costs and how far their masks agree."""
    _run("train", network, folder, given)
    ways = {way: lambda way=way: json.loads(_run(way, network, folder, given).splitlines()[-1]) for way in WAYS}
    if is_installed(OPENVINO):
        _export(network, folder)
        ways[EXPORTED] = lambda: _run_exported(network, folder)
    costs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(given.rounds):
        for way, of_way in costs.items():
            of_way.append(ways[way]())
    medians = {
        way: {key: statistics.median(one[key] for one in of_way) for key in of_way[0]} for way, of_way in costs.items()
    }
    own_mask = _mask(folder / network / "this package")
    print(f"{network}, {np.count_nonzero(own_mask) / own_mask.size:.1%} of the voxels are organs")
    for way, cost in medians.items():
        same = np.count_nonzero(_mask(folder / network / way) == own_mask) / own_mask.size
        aim = f"   {_times(way, cost, medians)}" if way in AIMS else f"   (aim {AIM_GB:g} GB)"
        print(
            f"  {way:14s} {cost['cpu']:6.1f} CPU s {cost['wall']:6.1f} s  peak {cost['gb']:.2f} GB"
            f"   {same:.2%} of voxels as ours{aim}",
            flush=True,
        )


def _times(way: str, cost: dict[str, float], medians: dict[str, dict[str, float]]) -> str:
    """Return how many times the CPU seconds of ours an opponent takes."""
    ours = [name for name in ("this package", EXPORTED) if name in medians]
    times = [f"{cost['cpu'] / medians[name]['cpu']:.1f} x {name}" for name in ours]
    return f"{', '.join(times)} (aim {AIMS[way]:g} x)"


def _export(network: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pipeline.export", folder / f"{network}.model.pt", folder / f"{network}.xml"]
    command += ["--format", "openvino", "--slices", folder / "scan.nii.gz"]
    subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
    (folder / network / EXPORTED).mkdir(parents=True)


def _run_exported(network: str, folder: Path) -> dict[str, float]:
    """Return the cost of the whole command that segments with an exported student."""
    output = folder / network / EXPORTED / "scan.nii.gz"
    command = [sys.executable, "-m", "pipeline.segment", str(folder / f"{network}.xml"), str(folder / "scan.nii.gz")]
    # By a small process between: the peak of a child begins with that of the process that starts it.
    told = subprocess.run([sys.executable, "-c", _MEASURED, *command, str(output), "--overwrite"], **_TEXT).stdout
    return json.loads(told.splitlines()[-1])


def _run(way: str, network: str, folder: Path, given: argparse.Namespace) -> str:
    command = [sys.executable, "-m", "benchmarks.inference_speed", "--one", way, str(folder), "--networks", network]
    command += ["--size", str(given.size), "--threads", str(given.threads)]
    return subprocess.run(command, **_TEXT).stdout


def _mask(folder: Path) -> np.ndarray:
    return np.asanyarray(nib.load(folder / "scan.nii.gz").dataobj)


if __name__ == "__main__":
    raise SystemExit(main())
