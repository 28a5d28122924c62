# SPDX-License-Identifier: Apache-2.0
"""A process that dies takes the others down within a minute, and one line names it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from pipeline.errors import InputError
from pipeline.processes import lost_ranks
from pipeline.processes.lost_ranks import describe_lost_ranks, find_connection_error, report_ends

ROOT = Path(__file__).resolve().parents[2]
CLOSED = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:31337")
HERE = platform.node()


@pytest.fixture
def store(monkeypatch) -> dist.HashStore:
    """Return the notes of rank 0, which is this very process."""
    monkeypatch.setattr(lost_ranks, "_SEARCH_S", 0.3)
    monkeypatch.setattr(sys, "excepthook", lambda *_: None)
    store = dist.HashStore()
    report_ends(store, 0, 3)
    return store


def note_address(store: dist.Store, rank: int, pid: int, host: str = HERE) -> None:
    own = store.get("address/0").decode().split(" ")
    store.set(f"address/{rank}", f"{host} {own[1]} {pid}")


def dead_process() -> int:
    """Return the id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_dead_process_of_this_machine_is_named(store):
    note_address(store, 1, dead := dead_process())
    note_address(store, 2, os.getpid())
    assert describe_lost_ranks(store, 0, 3, CLOSED).startswith(
        f"rank 1 on {HERE} (process {dead}) ended without a word"
    )


def test_process_whose_end_nobody_has_read_is_dead_too(store):
    process = subprocess.Popen([sys.executable, "-c", ""])
    note_address(store, 1, process.pid)
    note_address(store, 2, os.getpid())
    deadline = time.monotonic() + 60
    while lost_ranks._is_alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert f"rank 1 on {HERE} (process {process.pid}) ended" in describe_lost_ranks(store, 0, 3, CLOSED)
    process.wait()


def test_reason_is_told_across_machines(store):
    note_address(store, 1, os.getpid(), "node-a")
    note_address(store, 2, 99, "node-b")
    store.set("end/2", "the loss term 'edges' is nan")
    assert describe_lost_ranks(store, 0, 3, CLOSED) == "rank 2 on node-b ended: the loss term 'edges' is nan"


def test_rank_that_does_not_answer_is_told_from_one_that_lost_it_too(store):
    note_address(store, 1, 99, "node-a")
    note_address(store, 2, 99, "node-b")
    store.set("lost/2", "")
    line = describe_lost_ranks(store, 0, 3, RuntimeError("Timed out waiting 1800000ms"))
    assert line.startswith("no answer from rank 1 on node-a: it hangs")
    assert "Timed out waiting 1800000ms" in line


def failed_by(cause: Exception) -> RuntimeError:
    error = RuntimeError("failed to run the config")
    error.__cause__ = cause
    return error


def test_refusal_is_noted_and_told_with_its_code(store, capsys):
    with pytest.raises(SystemExit) as stop:
        sys.excepthook(RuntimeError, failed_by(InputError("slice 7 is broken")), None)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: slice 7 is broken\n"
    assert store.get("end/0").decode() == "slice 7 is broken"
    assert store.get("code/0").decode() == "2"


def test_defect_is_noted_and_goes_to_the_hook_before(store, monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: seen.append(error[1]))
    report_ends(store, 0, 3)
    error = failed_by(TypeError("a defect"))
    sys.excepthook(RuntimeError, error, None)
    assert seen == [error]
    assert store.get("end/0").decode() == "RuntimeError: failed to run the config"


def test_line_is_told_once_where_two_share_a_terminal(store, tmp_path, monkeypatch):
    with open(tmp_path / "terminal", "w") as first, open(tmp_path / "terminal", "a") as second:
        for stream in (first, second):
            monkeypatch.setattr(sys, "stderr", stream)
            with pytest.raises(SystemExit):
                sys.excepthook(RuntimeError, failed_by(InputError("slice 7 is broken")), None)
    assert (tmp_path / "terminal").read_text() == "error: slice 7 is broken\n"
    with open(tmp_path / "another", "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with pytest.raises(SystemExit):
            sys.excepthook(RuntimeError, failed_by(InputError("slice 7 is broken")), None)
    assert (tmp_path / "another").read_text() == "error: slice 7 is broken\n"


def test_lost_rank_passes_its_code_on(store):
    note_address(store, 1, os.getpid())
    note_address(store, 2, os.getpid())
    store.set("code/2", "2")
    store.set("end/2", "slice 7 is broken")
    with pytest.raises(SystemExit) as stop:
        sys.excepthook(RuntimeError, failed_by(CLOSED), None)
    assert stop.value.code == 2


def test_lost_connection_is_one_line_and_exit_code_1(store, capsys):
    note_address(store, 1, dead_process())
    note_address(store, 2, os.getpid())
    with pytest.raises(SystemExit) as stop:
        sys.excepthook(RuntimeError, failed_by(CLOSED), None)
    assert stop.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: rank 1 on ")
    assert not store.check(["end/0"])


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (CLOSED, True),
        (dist.DistBackendError("NCCL error: remote process exited or there was a network error"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (InputError("connection closed by peer"), False),
        (OSError(28, "No space left on device"), False),
        (ValueError("timeout"), False),
        (None, False),
    ],
)
def test_what_counts_as_a_lost_connection(error, lost):
    assert (find_connection_error(error) is not None) == lost


SCRIPT = """
import os, sys, time
from pipeline.processes import distributed
from pipeline.errors import report_input_errors
report_input_errors()
distributed.start()
for step in range(1000):
    if distributed.rank() == 1 and step == 3:
        open(sys.argv[2], "w").write(str(time.time()))
        exec(sys.argv[1])
    distributed.largest(step)
"""


def run_script(folder: Path, what: str, minutes: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Let rank 1 of two do `what` in the midst of the run; return what became of it and how long it took from there.

    What comes before, three interpreters that import torch, takes as long as the machine is busy.
    """
    (folder / "script.py").write_text(SCRIPT)
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    # torchrun looks ten times a second and ends the others: on a busy machine before rank 0 had its turn to speak.
    program.append("--monitor_interval=5")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GRAPHFLOW_TIMEOUT_MINUTES": minutes}
    program += [str(folder / "script.py"), what, str(folder / "began")]
    result = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
    ended = time.time()
    assert (folder / "began").exists(), result.stderr
    return result, ended - float((folder / "began").read_text())


def test_dead_rank_ends_the_run_within_a_minute_and_is_named(tmp_path):
    result, seconds = run_script(tmp_path, "os._exit(7)", "30")
    assert result.returncode != 0
    assert seconds < 60
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert line.startswith(f"error: rank 1 on {HERE} (process ")
    assert "exitcode  : 7" in result.stderr  # torchrun's own table


@pytest.mark.slow
def test_rank_that_hangs_ends_the_run_after_the_time_limit(tmp_path):
    result, seconds = run_script(tmp_path, "time.sleep(600)", "0.05")
    assert result.returncode != 0
    assert seconds < 120
    assert f"error: no answer from rank 1 on {HERE}: it hangs" in result.stderr
