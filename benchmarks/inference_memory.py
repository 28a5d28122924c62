# SPDX-License-Identifier: Apache-2.0
"""Seconds and peak memory of a whole scan from `.nii.gz` to `.nii.gz`, in a process of its own (aim: under 3 GB).

The scan is made up: int16, 512 x 512 x SLICES, soft tissue with noise, stored LPS so that every slice must be turned.
The network has random weights, which cost what trained ones do.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import torch

from pipeline.data import CT_WINDOW
from pipeline.inference import segment_files
from pipeline.networks import build_network

SIDE = 512
SPACING_MM = (0.75, 0.75, 1.0)
CLASSES = 9
SCALING = "pipeline.data.preprocessing.ScaleIntensityByRuled"
PREPROCESSING = [  # that of the Synapse bundle
    {
        "_target_": "monai.transforms.io.dictionary.LoadImaged",
        "keys": "image",
        "reader": "pipeline.data.VolumeReader",
        "image_only": True,
        "dtype": None,
    },
    {
        "_target_": "monai.transforms.utility.dictionary.EnsureChannelFirstd",
        "keys": "image",
        "channel_dim": "no_channel",
    },
    {
        "_target_": "monai.transforms.spatial.dictionary.Orientationd",
        "keys": "image",
        "axcodes": "RAS",
        "labels": None,
    },
    {"_target_": SCALING, "keys": "image", **CT_WINDOW.to_dict()},
]


def scan_header(slices: int) -> bytes:
    """Return what a `.nii` file begins with: int16 voxels, stored LPS so that every slice must be turned."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((SIDE, SIDE, slices))
    header.set_sform(np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0]), code="scanner")
    header.set_zooms(SPACING_MM)  # MONAI distrusts an affine that these contradict
    header["vox_offset"], header["magic"] = 352, b"n+1"
    return header.binaryblock + bytes(4)


def write_scan(path: Path, slices: int) -> None:
    """Write the scan slice by slice, so that making it takes no memory."""
    random = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE), indexing="ij")
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(scan_header(slices))
        for _ in range(slices):
            body = np.where(x**2 + 1.8 * y**2 < 0.8, 40.0, -1000.0) + random.normal(0, 20, (SIDE, SIDE))
            stream.write(body.astype("<i2").tobytes(order="F"))


def measure(path: Path, output: Path, network: str, size: int, slices_per_chunk: int | None, threads: int) -> None:
    """Segment one scan and print its cost as JSON; meant for a process of its own, whose peak it reports."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = SimpleNamespace(
        network=build_network(network, in_channels=1, out_channels=CLASSES).eval(),
        network_arguments={"in_channels": 1},
        labels={0: "background", **{value: f"organ {value}" for value in range(1, CLASSES)}},
        preprocessing=PREPROCESSING,
        size=size,
        tile_px=None,
        modality="CT",
        sha256="",
    )
    before = peak_bytes()
    segment_files(path, output, model, slices_per_chunk)
    seconds = json.loads((output / "scan.json").read_text())["seconds"]
    print(json.dumps({"seconds": seconds, "peak_gb": peak_bytes() / 1e9, "imports_gb": before / 1e9}))


def peak_bytes() -> int:
    """Return the most memory that this process has had."""
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=150)
    parser.add_argument("--networks", nargs="+", default=["enet", "mobile_unet", "erfnet", "fanet"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--slices-per-chunk", type=int, help="by default what inference chooses")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--measure", nargs=2, metavar=("SCAN", "OUTPUT"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.measure:
        logging.disable(logging.INFO)
        scan, output = map(Path, given.measure)
        measure(scan, output, given.networks[0], given.size, given.slices_per_chunk, given.threads)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "scan.nii.gz"
        write_scan(scan, given.slices)
        print(f"{SIDE} x {SIDE} x {given.slices} int16, {scan.stat().st_size / 1e6:.0f} MB, {given.threads} threads")
        for network in given.networks:
            _report(network, scan, given)
    return 0


def _report(network: str, scan: Path, given: argparse.Namespace) -> None:
    options = {"--size": given.size, "--slices-per-chunk": given.slices_per_chunk, "--threads": given.threads}
    command = [sys.executable, "-m", "benchmarks.inference_memory", "--networks", network]
    command += [str(part) for option in options.items() if option[1] is not None for part in option]
    command += ["--measure", str(scan), str(scan.parent / network)]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    print(
        f"{network:12s} {result['seconds']:7.1f} s   peak {result['peak_gb']:.2f} GB"
        f" (of which {result['imports_gb']:.2f} GB before the scan)",
        flush=True,
    )


if __name__ == "__main__":
    raise SystemExit(main())
