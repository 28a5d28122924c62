# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures: where the optional real data lie, and one thread so that results and times do not wander."""

from __future__ import annotations

import os

# Before torch is loaded: two workers with two threads each on two cores would wait for each other most of the time.
os.environ["OMP_NUM_THREADS"] = "1"

from pathlib import Path

import pytest


@pytest.fixture
def shared_data() -> Path:
    """Folder of real scans beside the repository; the test is skipped where it is not there."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("GRAPHFLOW_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set GRAPHFLOW_SHARED_DATA to run this test")
    return folder
