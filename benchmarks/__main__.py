# SPDX-License-Identifier: Apache-2.0
"""All benchmarks in one run: `python -m benchmarks`, or `make bench`. They print; nothing fails on a slow machine."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import torch

# Each in a process of its own: peak memory is a property of a process.
BENCHMARKS = (
    ["benchmarks.distillation_step"],
    ["benchmarks.exported_students"],
    ["benchmarks.gradient_shares"],
    ["benchmarks.graph_flow_reach"],
    ["benchmarks.hd95", "--medpy"],
    ["benchmarks.inference_memory"],
    ["benchmarks.inference_speed", "--slices", "150", "--rounds", "1", "--networks", "enet", "mobile_unet", "erfnet"],
    ["benchmarks.nnunet_speed"],
    ["benchmarks.slide_memory", "--side", "8000"],
    ["benchmarks.training_speed", "--precision", "float32", "--width", "0.25", "--batch", "2"],
)


def processor() -> str:
    """Return the name of the CPU; Linux alone tells the model."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> int:
    """Run each benchmark and return 1 if any failed."""
    gpu = f"CUDA {torch.cuda.is_available()}"
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {gpu}", flush=True)
    codes = []
    for benchmark in BENCHMARKS:
        print(f"\n== {' '.join(benchmark)}", flush=True)
        codes.append(subprocess.run([sys.executable, "-m", *benchmark], check=False).returncode)
    return int(any(codes))


if __name__ == "__main__":
    raise SystemExit(main())
