# SPDX-License-Identifier: Apache-2.0
"""Runs of the bundles that end suddenly: killed, told to stop, on a full disk; what they leave and how they go on."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from data_prep import phantom_ct
from pipeline.data import load_dataset
from tests.bundles.bundle_commands import (
    ONE_THREAD,
    ROOT,
    Running,
    assert_done,
    begin,
    command,
    error_line,
    run,
    run_in_two_processes,
    run_program,
    two_process_command,
)
from tests.bundles.untrained import untrained

KILLS, EPOCHS = 10, 12  # random moments in each of train and distill, spread over a run of so many epochs
SIZE = 64  # the least that the discriminator takes


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory) -> Path:
    """Return tiny phantoms: one to train on (8 slices), one to select by."""
    folder = tmp_path_factory.mktemp("data") / "phantom"
    assert phantom_ct.main(["--output", str(folder), "--cases", "3", "--size", "40", "--slices", "8"]) == 0
    return folder


@pytest.fixture(scope="module")
def options(dataset_dir, tmp_path_factory) -> dict[str, list[object]]:
    """Return the options of a run, by config; the teacher is untrained."""
    teacher = untrained(tmp_path_factory.mktemp("teacher") / "model.pt", dataset_dir, size=SIZE)
    shared = ["--dataset_dir", dataset_dir, "--batch_size", 2, "--seed", 1]
    with_discriminator = ["--method", "graph_flow", "--settings", "{'adversarial': 0.1}"]
    return {
        "train": [*shared, "--network", "enet", "--size", SIZE],
        "distill": [*shared, *with_discriminator, "--student", "enet", "--teacher", teacher],
    }


def start(config: str, *arguments: object, log: Path) -> Running:
    return begin(command("synapse", config, *arguments), log, log)


def wait_for(process: Running | subprocess.Popen[bytes], file: Path, newer_than: int = 0) -> int:
    """Wait until the process has written a file, or has ended; return the file's time of change."""
    while process.poll() is None:
        if file.exists() and file.stat().st_mtime_ns > newer_than:
            return file.stat().st_mtime_ns
        time.sleep(0.005)
    return file.stat().st_mtime_ns if file.exists() else 0


def end(process: Running | subprocess.Popen[bytes], number: int) -> int:
    process.send_signal(number)
    return process.wait()


def final_tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of the last state and of the best model, by its path."""
    tensors: dict[str, torch.Tensor] = {}

    def collect(part: object, path: str) -> None:
        if isinstance(part, torch.Tensor):
            tensors[path] = part
        elif isinstance(part, dict):
            for name, content in part.items():
                collect(content, f"{path}/{name}")
        elif isinstance(part, list | tuple):
            for index, content in enumerate(part):
                collect(content, f"{path}/{index}")
        elif isinstance(part, int | float):
            tensors[path] = torch.tensor(part, dtype=torch.float64)

    for name in ("last.pt", "model.pt"):
        collect(torch.load(run_dir / name, weights_only=True), name)
    return tensors


def assert_equal_to_the_bit(run_dir: Path, straight: Path) -> None:
    one, other = final_tensors(straight), final_tensors(run_dir)
    assert one.keys() == other.keys()
    assert [place for place in one if not torch.equal(one[place], other[place])] == []


def test_distillation_killed_then_told_to_stop_equals_one_that_never_stopped(options, tmp_path):
    arguments = [*options["distill"], "--epochs", 3]
    assert_done(run("synapse", "distill", *arguments, "--run_dir", tmp_path / "straight"))
    stopped = [*arguments, "--run_dir", tmp_path / "stopped", "--resume", "auto"]
    state, log = tmp_path / "stopped/last.pt", tmp_path / "log.txt"

    process = start("distill", *stopped, log=log)
    written = wait_for(process, state)
    assert end(process, signal.SIGKILL) == -signal.SIGKILL
    process = start("distill", *stopped, log=log)
    wait_for(process, state, newer_than=written)
    assert end(process, signal.SIGTERM) == 143
    assert "stopped by SIGTERM" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert_done(run("synapse", "distill", *stopped))
    assert_equal_to_the_bit(tmp_path / "stopped", tmp_path / "straight")
    left = ["last.pt", "model.pt", "model_last.pt", "run.json", "tensorboard", "time.json"]
    assert sorted(path.name for path in state.parent.iterdir()) == left


def test_second_run_in_a_folder_is_refused_and_the_first_goes_on(options, tmp_path):
    arguments = [*options["train"], "--epochs", 100, "--run_dir", tmp_path / "run"]
    first = start("train", *arguments, log=tmp_path / "log.txt")
    wait_for(first, tmp_path / "run/last.pt")
    second = run("synapse", "train", *arguments, "--resume", "auto")
    assert f"in use by process {first.pid} on " in error_line(second)
    assert end(first, signal.SIGTERM) == 143
    assert "go on with the same command and --resume True" in (tmp_path / "log.txt").read_text()


@pytest.mark.slow
def test_full_disk_is_one_line_and_keeps_the_last_good_state(options, tmp_path):
    """A limit on the size of files stands for the disk: the system refuses to write in the same way."""
    arguments = [*options["train"], "--epochs", 20, "--run_dir", tmp_path / "run", "--resume", "auto"]
    process = start("train", *arguments, log=tmp_path / "log.txt")
    wait_for(process, tmp_path / "run/last.pt")
    end(process, signal.SIGKILL)
    before = (tmp_path / "run/last.pt").read_bytes()
    limited = ["bash", "-c", f'ulimit -f {len(before) // 1024 - 1}; exec "$@"', "_"]
    program = [*limited, *command("synapse", "train", *arguments)]
    result = subprocess.run(program, env=ONE_THREAD, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "last.pt: File too large; the one there before is intact" in error_line(result)
    assert (tmp_path / "run/last.pt").read_bytes() == before
    assert not list((tmp_path / "run").glob(".*"))


VANISHING = """
import os, runpy, sys
import pipeline.data
split, part = sys.argv.pop(1), sys.argv.pop(1)
check = pipeline.data.load_dataset

def check_and_lose(*arguments, **options):
    dataset = check(*arguments, **options)
    os.unlink(dataset.datalist(split)[0][part])
    return dataset

pipeline.data.load_dataset = check_and_lose
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("split", "part"), [("training", "image"), pytest.param("validation", "label", marks=pytest.mark.slow)]
)
def test_scan_that_vanishes_after_the_check_is_one_line(options, dataset_dir, tmp_path, split, part):
    shutil.copytree(dataset_dir, tmp_path / "data")
    lost = load_dataset(tmp_path / "data").datalist(split)[0][part]
    arguments = [*options["train"], "--dataset_dir", tmp_path / "data", "--epochs", 1, "--run_dir", tmp_path / "run"]
    program = [sys.executable, "-c", VANISHING, split, part, *command("synapse", "train", *arguments)[3:]]
    result = run_program(program)
    assert Path(lost).name in error_line(result)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("config", ["train", "distill"])
def test_killed_at_ten_random_moments_equals_one_that_never_stopped(options, tmp_path, config):
    arguments = [*options[config], "--epochs", EPOCHS]
    process = start(config, *arguments, "--run_dir", tmp_path / "straight", log=tmp_path / "straight.txt")
    wait_for(process, tmp_path / "straight/run.json")
    began = time.monotonic()
    assert process.wait() == 0, (tmp_path / "straight.txt").read_text()[-3000:]
    seconds = time.monotonic() - began

    def go_on(number: int) -> Running:
        own = ["--run_dir", tmp_path / f"run_{number}", "--resume", "auto"]
        return start(config, *arguments, *own, log=tmp_path / "log.txt")

    draw, kills, number = random.Random(config), 0, 0
    while kills < KILLS:  # a run that came to its end first is compared, and another begun
        record = tmp_path / f"run_{number}/run.json"
        before = record.stat().st_mtime_ns if record.exists() else 0
        process = go_on(number)
        wait_for(process, record, newer_than=before)
        time.sleep(draw.uniform(0, 1.5 / KILLS) * seconds)
        code, state = end(process, signal.SIGKILL), record.with_name("last.pt")
        print(config, code, torch.load(state, weights_only=True)["position"] if state.exists() else "no state yet")
        print(*sorted(path.name for path in record.parent.iterdir()))
        if code == 0:
            assert_equal_to_the_bit(record.parent, tmp_path / "straight")
            number += 1
            continue
        assert code == -signal.SIGKILL, (tmp_path / "log.txt").read_text()[-3000:]
        kills += 1
    assert go_on(number).wait() == 0, (tmp_path / "log.txt").read_text()[-3000:]
    assert_equal_to_the_bit(tmp_path / f"run_{number}", tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.parametrize("config", ["train", "distill"])
def test_two_processes_told_to_stop_equal_two_that_never_did(options, tmp_path, config):
    arguments = [*options[config], "--epochs", 4]
    assert_done(run_in_two_processes("synapse", config, *arguments, "--run_dir", tmp_path / "straight"))
    stopped = [*arguments, "--run_dir", tmp_path / "stopped", "--resume", "auto"]
    state = tmp_path / "stopped/last.pt"
    program = two_process_command("synapse", config, *stopped)
    with open(tmp_path / "log.txt", "wb") as log:
        process = subprocess.Popen(program, env=ONE_THREAD, cwd=ROOT, stdout=log, stderr=log)
        wait_for(process, state)
        assert end(process, signal.SIGTERM) != 0
    assert (tmp_path / "log.txt").read_text().count("stopped by SIGTERM") == 1
    position = torch.load(state, weights_only=True)["position"]
    assert position["iteration"] < 4 * position["epoch_length"]
    assert_done(run_in_two_processes("synapse", config, *stopped))
    assert_equal_to_the_bit(tmp_path / "stopped", tmp_path / "straight")
