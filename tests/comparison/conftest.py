# SPDX-License-Identifier: Apache-2.0
"""Finished runs that the tests of a comparison's pictures draw."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.data import Dataset, load_dataset
from tests.comparison.picture_runs import copied_runs, write_finished


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return write_finished(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def runs(finished, tmp_path) -> dict[str, Path]:
    return copied_runs(finished, tmp_path)


@pytest.fixture
def scans(finished) -> Dataset:
    return load_dataset(finished / "data")
