# SPDX-License-Identifier: Apache-2.0
"""What tests of the bundles begin with; a module that needs other data has a `dataset_dir` of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep import phantom_ct
from tests.bundles.bundle_commands import ROOT


@pytest.fixture
def in_repository_root(monkeypatch):
    """Work where the paths of the bundles begin; a configuration that gives a key twice is refused."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MONAI_FAIL_ON_DUPLICATE_CONFIG", "1")


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory) -> Path:
    """Return four tiny phantoms: two to train on, one to select by, one to test on."""
    folder = tmp_path_factory.mktemp("data") / "phantom"
    assert phantom_ct.main(["--output", str(folder), "--cases", "4", "--size", "40", "--slices", "8"]) == 0
    return folder


@pytest.fixture(scope="module")
def checkpoint(dataset_dir, tmp_path_factory) -> Path:
    """Return the file of an untrained network that fits the module's dataset."""
    # Not above: pytest's main process, which runs no test, reads this file too and would wait for MONAI.
    from tests.bundles.untrained import untrained

    return untrained(tmp_path_factory.mktemp("model") / "model.pt", dataset_dir)
