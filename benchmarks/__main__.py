# SPDX-License-Identifier: Apache-2.0
"""All benchmarks in one run: `python -m benchmarks`, or `make bench`. They print; nothing fails on a slow machine."""

from __future__ import annotations

import subprocess
import sys

import torch

# Each in a process of its own: peak memory is a property of a process.
BENCHMARKS = (
    ["benchmarks.distillation_step"],
    ["benchmarks.exported_students"],
    ["benchmarks.gradient_shares"],
    ["benchmarks.graph_flow_reach"],
    ["benchmarks.hd95", "--medpy"],
    ["benchmarks.inference_memory"],
    ["benchmarks.inference_speed", "--slices", "40"],
    ["benchmarks.nnunet_speed"],
    ["benchmarks.slide_memory", "--side", "8000"],
    ["benchmarks.training_speed", "--precision", "float32", "--width", "0.25", "--batch", "2"],
)


def main() -> int:
    """Run each benchmark and return 1 if any failed."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, CUDA {torch.cuda.is_available()}", flush=True)
    codes = []
    for benchmark in BENCHMARKS:
        print(f"\n== {' '.join(benchmark)}", flush=True)
        codes.append(subprocess.run([sys.executable, "-m", *benchmark], check=False).returncode)
    return int(any(codes))


if __name__ == "__main__":
    raise SystemExit(main())
