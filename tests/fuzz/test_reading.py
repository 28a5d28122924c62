# SPDX-License-Identifier: Apache-2.0
"""Scans with spoiled bytes: read with the shape that their header promises, or refused in one line, and nothing else.

Each is read in a process of its own with limited memory, where a crash or a hang is seen. `make test-slow` tries more,
each time others; GRAPHFLOW_FUZZ_INPUTS says how many for each format.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.fuzz_files import FORMATS, SHAPE, Scan, nibabel_sum, promised_shape, seeds, spoiled
from tests.fuzz.fuzz_process import ReadingProcess

MOST_CPU_SECONDS = 10  # a damaged file of a few hundred bytes takes milliseconds
QUICK, LONG = 40, int(os.environ.get("GRAPHFLOW_FUZZ_INPUTS", "1000"))


@pytest.fixture(scope="module")
def process() -> Iterator[ReadingProcess]:
    reading = ReadingProcess()
    yield reading
    reading.close()


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scan]:
    return seeds(tmp_path_factory.mktemp("seeds"))


def check(scan: Scan, folder: Path, process: ReadingProcess) -> str:
    """Read one scan, and fail where the answer is neither right nor a refusal; returns which of the two it is."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = scan.write(folder)
    told = process.read(path)
    assert "fault" not in told, told["fault"]
    assert told["cpu_seconds"] < MOST_CPU_SECONDS
    if "refused" in told:
        assert "\n" not in told["refused"]
        assert str(folder) in told["refused"]  # which file
        assert "; " in told["refused"] or "limit" in told["refused"], told["refused"]  # what to do
        return "refused"
    assert told["finite"]
    assert all(0 < edge < 2000 for edge in told["spacing"])
    expected = promised_shape(scan)
    if expected is not None:
        assert tuple(told["shape"]) == expected
    total = nibabel_sum(path) if ".nii" in scan.read else None
    if total is not None and math.isfinite(total):
        assert told["sum"] == pytest.approx(total, rel=1e-5, abs=1e-3 * told["magnitude"])
    return "read"


@pytest.mark.parametrize("kind", [*FORMATS, "packed mhd"])
def test_unspoiled_scan_is_read(kind: str, scans: dict[str, Scan], tmp_path: Path, process: ReadingProcess) -> None:
    assert check(scans[kind], tmp_path / "x", process) == "read"
    assert process.read(tmp_path / "x" / scans[kind].read)["shape"] == list(SHAPE)


@pytest.mark.parametrize("kind", FORMATS)
def test_spoiled_scan_is_right_or_refused(
    kind: str, scans: dict[str, Scan], tmp_path: Path, process: ReadingProcess
) -> None:
    outcomes = try_many(scans[kind], QUICK, tmp_path, process, repeatable=True)
    assert outcomes["refused"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_many_spoiled_scans_are_right_or_refused(
    kind: str, scans: dict[str, Scan], tmp_path: Path, process: ReadingProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = try_many(scans[kind], LONG, tmp_path, process, repeatable=False)
    with capsys.disabled():
        print(f"\n{kind}: {outcomes.total()} inputs, {outcomes['read']} read, {outcomes['refused']} refused")


def try_many(scan: Scan, count: int, folder: Path, process: ReadingProcess, repeatable: bool) -> Counter[str]:
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=count,
        derandomize=repeatable,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(spoiled(scan))
    def attempt(changed: Scan) -> None:
        outcomes[check(changed, folder / "x", process)] += 1

    attempt()
    return outcomes
