# SPDX-License-Identifier: Apache-2.0
"""Worker processes of a grid, with configs that take no time instead of trainings."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pipeline.grid import PlannedRun, Step, execute_runs

CONFIG = """
imports: [$import pathlib, $import time, $import os, $import signal]
initialize: []
proof: null
word: done
run: ["${expression}"]
"""
EXPRESSIONS = {
    "write": "pathlib.Path(@proof).write_text(@word)",
    "fail": "pathlib.Path('/nowhere/file').read_text()",
    "die": "os._exit(9)",
    "nothing": "0",
    "sleep": "time.sleep(600)",
}


@pytest.fixture
def configs(tmp_path) -> Path:
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "metadata.json").write_text("{}")
    (folder / "train.yaml").write_text("{}")  # the configs below are overlays on it
    for name, expression in EXPRESSIONS.items():
        (folder / f"{name}.yaml").write_text(CONFIG.replace("{expression}", expression))
    return folder


def _planned_run(root: Path, name: str, config: str, *needs: str) -> PlannedRun:
    proof = root / name / "proof"
    options = {"proof": str(proof), "word": name}
    return PlannedRun(name, root / name, (Step(config, options),), proof, name, needs)


def test_runs_follow_what_they_need_and_one_that_fails_does_not_end_the_others(tmp_path, configs):
    runs = [
        _planned_run(tmp_path, "second", "write", "first"),
        _planned_run(tmp_path, "first", "write"),
        _planned_run(tmp_path, "broken", "fail"),
        _planned_run(tmp_path, "after_broken", "write", "broken"),
        _planned_run(tmp_path, "unproven", "nothing"),
        _planned_run(tmp_path, "dead", "die"),
        _planned_run(tmp_path, "last", "write", "first"),
    ]
    outcome = execute_runs(runs, configs)
    assert sorted(outcome.done) == ["first", "last", "second"]
    assert outcome.done.index("first") < outcome.done.index("second")
    assert (tmp_path / "second/proof").read_text() == "second"
    assert set(outcome.failed) == {"broken", "after_broken", "unproven", "dead"}
    assert "broken, which it needs" in outcome.failed["after_broken"]
    assert "was not written" in outcome.failed["unproven"]
    assert "code 9" in outcome.failed["dead"]
    assert "Traceback" in (tmp_path / "broken/log.txt").read_text()
    assert not outcome.left


def test_what_is_done_is_not_run_again(tmp_path, configs):
    run = _planned_run(tmp_path, "first", "fail")
    run.folder.mkdir()
    run.proof.write_text("of an earlier call")
    outcome = execute_runs([run], configs)
    assert (outcome.done, outcome.failed) == (["first"], {})


def test_when_time_is_up_running_and_waiting_runs_are_left_for_the_next_call(tmp_path, configs):
    runs = [_planned_run(tmp_path, "long", "sleep"), _planned_run(tmp_path, "waiting", "write", "long")]
    started = time.monotonic()
    outcome = execute_runs(runs, configs, seconds=2)
    assert outcome.left == ["long", "waiting"]
    assert not outcome.failed
    assert time.monotonic() - started < 50  # the sleeper was stopped, not waited for


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two runs at once need two cores to be told from one")
def test_two_runs_at_once(tmp_path, configs):
    """Each waits for a file that the other writes: one after another they would never end."""
    wait = "next(0 for _ in iter(int, 1) if pathlib.Path(@word).exists() or time.sleep(0.05))"
    meet = f"[pathlib.Path(@proof).write_text('here'), {wait}]"
    (configs / "meet.yaml").write_text(CONFIG.replace("{expression}", meet))
    runs = []
    for mine, other in (("a", "b"), ("b", "a")):
        proof = tmp_path / mine / "proof"
        options = {"proof": str(proof), "word": str(tmp_path / other / "proof")}
        runs.append(PlannedRun(mine, tmp_path / mine, (Step("meet", options),), proof))
    assert sorted(execute_runs(runs, configs, jobs=2, seconds=120).done) == ["a", "b"]
