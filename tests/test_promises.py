# SPDX-License-Identifier: Apache-2.0
"""The table of promises names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", (TESTS / "PROMISES.md").read_text(encoding="utf-8"))


def test_every_row_of_the_table_names_a_test():
    rows = [line for line in (TESTS / "PROMISES.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    promises = [row for row in rows if not row.startswith(("| promise", "| file"))]
    assert len(promises) > 30
    assert all("::" in row for row in promises), [row for row in promises if "::" not in row]


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_named_test_exists(file, test):
    text = (TESTS / file).read_text(encoding="utf-8")
    assert re.search(rf"^\s*def {test}\(", text, re.MULTILINE), f"{file} has no {test}"
