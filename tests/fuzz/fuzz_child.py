# SPDX-License-Identifier: Apache-2.0
"""The process that reads hostile files: one path a line on stdin, one JSON object a line on stdout.

It may crash, hang or run out of memory without harm to the tests. Memory beyond what the imports took is limited.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path

import numpy as np

from pipeline.data.scans.volumes import read_volume
from pipeline.errors import InputError

MORE_MEMORY_BYTES = 1 << 30
MAX_VOXEL_BYTES = 16 << 20


def answer(path: Path) -> dict[str, object]:
    """Return what reading gave: an array in numbers, a refusal, or what must not happen."""
    try:
        volume = read_volume(path, MAX_VOXEL_BYTES)
    except InputError as error:
        if isinstance(error.__cause__, MemoryError):
            return {"fault": f"memory: {traceback.format_exc()}"}
        return {"refused": str(error)}
    except BaseException:
        return {"fault": traceback.format_exc()}
    values = volume.array.astype(np.float64)
    return {
        "shape": volume.array.shape,
        "finite": bool(np.isfinite(values).all() and np.isfinite(volume.affine).all()),
        "spacing": volume.spacing_mm,
        "sum": float(values.sum()),
        "magnitude": float(np.abs(values).max()),
    }


def limit_memory() -> None:
    """Let the process take no more than `MORE_MEMORY_BYTES` beside what it has."""
    if not Path("/proc/self/statm").exists():  # not on Linux: then time alone is watched
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MORE_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get among the answers
    limit_memory()
    for line in sys.stdin:
        before = time.process_time()
        told = answer(Path(line.rstrip("\n")))
        answers.write(json.dumps({**told, "cpu_seconds": time.process_time() - before}) + "\n")
        answers.flush()
