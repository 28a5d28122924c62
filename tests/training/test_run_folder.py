# SPDX-License-Identifier: Apache-2.0
"""One run a folder: who may enter, who is refused, and what a dead process leaves behind."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.files.folder_lock import LOCK_FILE, lock_folder, unlock_folder
from pipeline.training import check_run_folder

HOLD = """
import sys
from pipeline.files.folder_lock import lock_folder
lock_folder(sys.argv[1])
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "run"
    yield folder
    unlock_folder(folder)


@pytest.fixture
def holder(run_dir):
    """Another process that has the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("resume", [False, True, "auto"])
def test_second_run_is_refused_and_told_whose_the_folder_is(run_dir, holder, resume):
    (run_dir / "last.pt").touch()
    before = sorted(path.name for path in run_dir.iterdir())
    with pytest.raises(InputError, match=f"in use by process {holder.pid} on {platform.node()}: wait"):
        check_run_folder(run_dir, resume)
    assert sorted(path.name for path in run_dir.iterdir()) == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_dead_process_does_not_hold_the_folder(run_dir, holder, number):
    holder.send_signal(number)
    holder.wait()
    assert (run_dir / LOCK_FILE).exists()
    check_run_folder(run_dir)
    assert (run_dir / LOCK_FILE).read_text() == f"process {os.getpid()} on {platform.node()}"


def test_folder_made_for_a_run_that_wrote_nothing_is_removed_at_its_end(run_dir, holder):
    holder.communicate("")
    assert holder.returncode == 0
    assert not run_dir.exists()


@pytest.mark.parametrize("content", ["last.pt", None])
def test_folder_that_was_there_or_was_used_stays(run_dir, content):
    if content is None:
        run_dir.mkdir()
    check_run_folder(run_dir)
    if content is not None:
        (run_dir / content).touch()
    unlock_folder(run_dir)
    assert [path.name for path in run_dir.iterdir()] == ([content] if content else [])


def test_one_process_may_ask_twice(run_dir):
    check_run_folder(run_dir)
    check_run_folder(Path(os.path.relpath(run_dir)))
    unlock_folder(run_dir)
    unlock_folder(run_dir)


def test_lock_that_is_removed_while_it_is_opened_is_not_taken_for_one(run_dir, monkeypatch):
    """The holder ends between our opening its file and our locking it: the file has no name any more."""
    run_dir.mkdir()
    original, locked = fcntl.flock, []

    def remove_first(file: int, how: int) -> None:
        if not locked:
            (run_dir / LOCK_FILE).unlink()
        original(file, how)
        locked.append(file)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    lock_folder(run_dir)
    assert len(locked) == 2
    assert (run_dir / LOCK_FILE).exists()


def test_disk_without_locks_is_told(run_dir, monkeypatch, caplog):
    def refuse(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING):
        check_run_folder(run_dir)
    assert "is on a disk without locks" in caplog.text


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_folder_that_cannot_be_written_is_refused_before_anything_else(run_dir, monkeypatch, code):
    run_dir.mkdir()

    def refuse(*_) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match=f"cannot write .*run: {os.strerror(code)}; choose another --run_dir"):
        check_run_folder(run_dir)


def test_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write .*: Not a directory; choose another --run_dir"):
        check_run_folder(tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("content", "resume", "message"),
    [
        ([], False, None),
        ([], "auto", None),
        ([], True, "holds no last.pt to resume; start without --resume, or with --resume auto"),
        (["run.json"], "auto", None),
        (["last.pt"], False, r"holds a run already \(last.pt\)"),
        (["last.pt"], True, None),
        (["last.pt", "model.pt"], "auto", None),
        (["model.pt"], "auto", r"holds a run already \(model.pt\)"),
        (["model.pt"], True, "holds no last.pt"),
        ([], "yes", "--resume is 'yes'"),
    ],
)
def test_what_the_folder_holds_decides_with_resume(run_dir, content, resume, message):
    run_dir.mkdir()
    for name in content:
        (run_dir / name).touch()
    if message is None:
        check_run_folder(run_dir, resume)
        return
    with pytest.raises(InputError, match=message):
        check_run_folder(run_dir, resume)
    assert not (run_dir / LOCK_FILE).exists()


def test_what_a_killed_run_left_half_written_is_removed(run_dir):
    run_dir.mkdir()
    for name in (".77.last.pt", ".77.model.pt", "last.pt"):
        (run_dir / name).touch()
    check_run_folder(run_dir, "auto")
    assert sorted(path.name for path in run_dir.iterdir()) == [LOCK_FILE, "last.pt"]
