# SPDX-License-Identifier: Apache-2.0
"""What is refused is told in one line, once, however many processes refuse it and whoever started them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import phantom_ct
from tests.bundles.bundle_commands import (
    ONE_THREAD,
    command,
    elsewhere,
    only_error_line,
    run_by_hand,
    run_in_two_processes,
)
from tests.bundles.untrained import untrained

TEACHER = ["--teacher", "/nowhere/model.pt"]
MODEL = ["--checkpoint", "/nowhere/model.pt"]
REFUSED = {
    "no such dataset": ("train", ["--dataset_dir", "/nowhere", "--run_dir", "run"], "/nowhere"),
    "no dataset given": ("train", ["--run_dir", "run"], "not given on the command line: --dataset_dir"),
    "mistyped option": ("train", ["--epocs", "3"], "did you mean --epochs?"),
    "value of another kind": ("train", ["--epochs", "many"], "--epochs is 'many'"),
    "no such teacher": ("distill", ["--dataset_dir", "/nowhere", "--run_dir", "run", *TEACHER], "/nowhere"),
    "no teacher": ("paraphrase", ["--dataset_dir", "/nowhere", "--run_dir", "run"], "--teacher"),
    "no such dataset to evaluate": ("evaluate", ["--dataset_dir", "/nowhere", "--run_dir", "run", *MODEL], "/nowhere"),
    "path like a reference": ("inference", ["--input", "@Recent", "--output_dir", "out", *MODEL], "write ./@Recent"),
    "path like an expression": ("inference", ["--input", "$exit()", "--output_dir", "out", *MODEL], "write ./$exit()"),
    "path with a hash": ("inference", ["--input", "patient#2", "--output_dir", "out#2", *MODEL], "MONAI takes # in"),
    "no such model": ("inference", ["--input", "/nowhere", "--output_dir", "out", *MODEL], "/nowhere"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("bundle", ["synapse", "gastric"])
def test_processes_started_by_hand_tell_one_line_and_exit_with_2(bundle, case):
    config, arguments, expected = REFUSED[case]
    codes, told = run_by_hand(command(bundle, config, *arguments))
    assert codes == [2, 2], told
    assert expected in only_error_line(told)


@pytest.mark.parametrize(
    ("bundle", "case"),
    [
        ("synapse", "no such dataset"),
        *(pytest.param(bundle, case, marks=pytest.mark.slow) for bundle in ("synapse", "gastric") for case in REFUSED),
    ],
)
def test_processes_of_torchrun_tell_one_line(bundle, case):
    config, arguments, expected = REFUSED[case]
    result = run_in_two_processes(bundle, config, *arguments)
    assert result.returncode == 1  # torchrun's own, whatever its processes return
    assert "exitcode  : 2" in result.stderr
    assert expected in only_error_line(result.stderr)


def test_damaged_scans_stop_both_processes_with_one_line(tmp_path):
    folder = tmp_path / "phantom"
    assert phantom_ct.main(["--output", str(folder), "--cases", "4", "--size", "40", "--slices", "8"]) == 0
    for scan in sorted((folder / "images").iterdir())[1:]:
        scan.write_bytes(scan.read_bytes()[:-9])
    arguments = ["--dataset_dir", folder, "--run_dir", tmp_path / "run", "--checkpoint"]
    arguments += [untrained(tmp_path / "model.pt", folder, size=64), "--split", "training"]
    codes, told = run_by_hand(command("synapse", "evaluate", *arguments))
    assert codes == [2, 2], told
    assert "the gzip data end early" in only_error_line(told)


@pytest.mark.parametrize("limit", ["soon", "0"])
def test_time_limit_that_is_none_is_told_once(limit, monkeypatch):
    monkeypatch.setenv("GRAPHFLOW_TIMEOUT_MINUTES", limit)
    codes, told = run_by_hand(command("synapse", "train", "--dataset_dir", "/nowhere", "--run_dir", "run"))
    assert codes == [2, 2], told
    assert f"GRAPHFLOW_TIMEOUT_MINUTES is {limit!r}" in only_error_line(told)


@pytest.mark.parametrize("module", ["pipeline.evaluation", "data_prep.check"])
def test_command_of_one_process_is_done_by_the_first_alone(module, tmp_path):
    arguments = {
        "pipeline.evaluation": ["--predictions", "/nowhere", "--labels", "/nowhere", "--output", str(tmp_path / "out")],
        "data_prep.check": ["/nowhere"],
    }[module]
    codes, told = run_by_hand([sys.executable, "-m", module, *arguments])
    assert codes == [2, 0], told
    assert "/nowhere" in only_error_line(told)
    assert "process 1 has nothing to do" in told


def test_number_of_processes_without_their_addresses_is_one_line():
    program = command("synapse", "train", "--dataset_dir", "/nowhere", "--run_dir", "run")
    environment = {**ONE_THREAD, "WORLD_SIZE": "2"}
    result = subprocess.run(
        program, capture_output=True, text=True, check=False, env=environment, cwd=Path(elsewhere()) / "work"
    )
    assert result.returncode == 2, result.stderr
    assert "RANK" in only_error_line(result.stderr)
