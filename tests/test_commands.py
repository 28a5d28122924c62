# SPDX-License-Identifier: Apache-2.0
"""The list of commands, and that each answers `--help` and a mistyped option before torch is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.commands import commands_of

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = commands_of(ROOT / "pipeline") | commands_of(ROOT / "data_prep")
# Runs a command, and says at its end which slow packages it imported.
PROGRAM = """
import atexit, runpy, sys
atexit.register(lambda: print("imported:", sorted({"torch", "monai"} & sys.modules.keys())))
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def typed(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    )


def test_all_commands_are_found_with_a_sentence_each():
    assert {"pipeline.evaluation", "pipeline.comparison.figures", "data_prep.folder", "data_prep.check"} <= set(
        COMMANDS
    )
    assert not {"pipeline", "data_prep", "data_prep.splits", "pipeline.errors"} & set(COMMANDS)
    assert all(10 < len(sentence) <= 120 for sentence in COMMANDS.values()), COMMANDS


@pytest.mark.parametrize("command", ["pipeline", *COMMANDS])
def test_help_comes_before_torch(command):
    done = typed(command, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("imported: []")


@pytest.mark.parametrize("command", ["pipeline", *COMMANDS])
def test_a_mistyped_option_is_told_before_torch(command):
    done = typed(command, "--no-such-option")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stdout.strip() == "imported: []"


@pytest.mark.parametrize("package", ["pipeline", "data_prep"])
def test_the_package_lists_them(package):
    listed = typed(package).stdout
    for name, sentence in commands_of(ROOT / package).items():
        assert any(name in line and sentence in line for line in listed.splitlines())
