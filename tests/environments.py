# SPDX-License-Identifier: Apache-2.0
"""Virtual environments apart from that of the project, for tests of what other machines have installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def make_environment(folder: Path, *installed: str | Path) -> Path:
    """Make an environment anew, install into it by pip, and return its Python; skip where pip reaches no index.

    Args:
        folder: the environment; one that is there is emptied.
        installed: what follows `pip install`.
    """
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    python = python_of(folder)
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", *installed]
    result = subprocess.run(pip, capture_output=True, encoding="utf-8", check=False)  # pip draws bars
    if result.returncode and "connection" in result.stderr.lower():
        pytest.skip("pip reaches no package index to install from")
    assert result.returncode == 0, result.stderr[-3000:]
    return python


def python_of(folder: Path) -> Path:
    """Return the interpreter of an environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def without_project() -> dict[str, str]:
    """Return the environment variables without those by which Python finds the project."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
