# SPDX-License-Identifier: Apache-2.0
"""The bundles' commands as the README types them, and what they leave behind.

Bundles are whole: the commands run copies of them, from a directory that is neither theirs nor the repository's.
"""

from __future__ import annotations

import atexit
import csv
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@functools.cache
def elsewhere() -> Path:
    """Return a folder with copies of the bundles in `copies`, and `work` to run them from."""
    folder = Path(tempfile.mkdtemp(prefix="bundles_elsewhere_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in ("synapse", "gastric"):
        shutil.copytree(ROOT / "bundles" / name / "configs", folder / "copies" / name / "configs")
    (folder / "work").mkdir()
    return folder


def config_files(bundle: str, config: str, *overlays: str) -> str:
    """Return the files of a config: overlays on train.yaml have it before them."""
    base = ["train"] if config in ("paraphrase", "distill", "evaluate") else []
    return str([f"{elsewhere()}/copies/{bundle}/configs/{name}.yaml" for name in (*base, config, *overlays)])


def command(bundle: str, config: str, *arguments: object) -> list[str]:
    """Return a bundle's command."""
    program = [sys.executable, "-m", "monai.bundle", "run"]
    return [*program, "--config_file", config_files(bundle, config), *map(str, arguments)]


def run(bundle: str, config: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a bundle's command on one thread."""
    arguments = command(bundle, config, *arguments)
    return subprocess.run(
        arguments, capture_output=True, text=True, check=False, env=ONE_THREAD, cwd=elsewhere() / "work"
    )


def two_process_command(bundle: str, config: str, *arguments: object) -> list[str]:
    """Return a bundle's command with its overlay for several processes, on the CPU."""
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return [
        *program,
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        config_files(bundle, config, "multi_gpu"),
        *map(str, arguments),
    ]


def run_in_two_processes(bundle: str, config: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a bundle's command in two processes."""
    program = two_process_command(bundle, config, *arguments)
    return subprocess.run(
        program, capture_output=True, text=True, check=False, env=ONE_THREAD, cwd=elsewhere() / "work"
    )


def assert_done(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 0, result.stderr[-3000:]


def error_line(result: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that told what was wrong."""
    assert result.returncode == 2, result.stderr[-3000:]
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr[-3000:]
    return lines[0]


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))
