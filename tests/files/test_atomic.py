# SPDX-License-Identifier: Apache-2.0
"""Files on a disk that ends: what was there stays, the reason is told in one line, nothing half written is left."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from pipeline.errors import InputError, find_disk_error
from pipeline.files.atomic import new_folder, remove_unfinished, replace_when_complete, write_json, write_tensors


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes: a disk that is full, for all that a writer sees."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_tensors_return_as_they_were(tmp_path):
    write_tensors(tmp_path / "new" / "file.pt", {"a": torch.arange(3)})
    assert torch.equal(torch.load(tmp_path / "new" / "file.pt", weights_only=True)["a"], torch.arange(3))


def test_equal_tensors_make_equal_files(tmp_path):
    for name in ("one.pt", "other.pt"):
        write_tensors(tmp_path / name, {"a": torch.arange(3)})
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "other.pt").read_bytes()


@pytest.mark.parametrize("size", [0, 500, 100_000])
def test_full_disk_keeps_the_file_before(tmp_path, size):
    target = tmp_path / "last.pt"
    write_tensors(target, {"a": torch.zeros(3)})
    before = target.read_bytes()
    message = r"cannot write .*last.pt: File too large; the one there before is intact; free space"
    with largest_file(size), pytest.raises(InputError, match=message):
        write_tensors(target, {"a": torch.zeros(1_000_000)})
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


def test_full_disk_is_told_of_text_too(tmp_path):
    with largest_file(10), pytest.raises(InputError, match=r"cannot write .*: File too large; free space"):
        write_json(tmp_path / "file.json", list(range(100)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_disk_that_fails_at_the_last_moment(tmp_path, monkeypatch, code):
    """Network disks tell at the sync that they are full."""

    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match=os.strerror(code)):
        write_json(tmp_path / "file.json", {})
    assert not list(tmp_path.iterdir())


def test_disk_has_every_file_before_its_name_is_given(tmp_path, monkeypatch):
    # A power cut keeps what was synced, and may keep any rename.
    done = []
    real = {name: getattr(os, name) for name in ("fsync", "rename", "replace")}

    def synced(descriptor):
        done.append(("synced", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        return real["fsync"](descriptor)

    def named(call, source, target):
        done.append(("named", os.path.basename(target)))
        return real[call](source, target)

    monkeypatch.setattr(os, "fsync", synced)
    for call in ("rename", "replace"):
        monkeypatch.setattr(os, call, lambda source, target, call=call: named(call, source, target))
    with new_folder(tmp_path / "made") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "scan.bin").write_bytes(bytes(100))
        (folder / "top.txt").write_text("text")
    assert {("synced", name) for name in ("scan.bin", "inner", "top.txt")} <= set(done[: done.index(("named", "made"))])
    assert done[-1] == ("synced", tmp_path.name)
    done.clear()
    write_json(tmp_path / "a.json", {})
    assert [step for step, _ in done] == ["synced", "named", "synced"]
    assert done[1:] == [("named", "a.json"), ("synced", tmp_path.name)]


def test_other_failures_of_a_writer_keep_their_traceback(tmp_path):
    with pytest.raises(FileNotFoundError), replace_when_complete(tmp_path / "copy"):
        open(tmp_path / "missing").close()


def test_disk_error_is_found_behind_wrappers():
    wrapped = RuntimeError("wrapped")
    wrapped.__context__ = full = OSError(errno.ENOSPC, "No space left on device")
    assert find_disk_error(wrapped) is full
    assert find_disk_error(FileNotFoundError(errno.ENOENT, "No such file or directory")) is None


def test_only_what_a_killed_writer_left_is_removed(tmp_path):
    kept = [".123", ".lock", ".a.last.pt", "123.last.pt", "last.pt"]
    for name in [*kept, ".123.last.pt", ".4.model.pt"]:
        (tmp_path / name).touch()
    (tmp_path / ".5.folder").mkdir()
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, ".5.folder"])


def test_killed_writer_leaves_the_file_before_and_a_name_that_is_recognised(tmp_path):
    write_json(tmp_path / "file.json", {"a": 1})
    code = (
        "import os, signal; from pipeline.files.atomic import replace_when_complete\n"
        f"with replace_when_complete({str(tmp_path / 'file.json')!r}) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]
    assert (tmp_path / "file.json").read_text() == '{\n  "a": 1\n}\n'


@pytest.mark.parametrize("way", ["report_input_errors(); {}", "run_command(lambda: {})"])
@pytest.mark.parametrize(
    ("statement", "code", "message"),
    [
        ("os.write(os.open('/dev/full', os.O_WRONLY), b'a')", 2, "error: cannot write: No space left on device"),
        ("os.kill(os.getpid(), signal.SIGINT)", 130, "error: stopped by Ctrl-C"),
    ],
)
def test_full_disk_and_ctrl_c_are_one_line(way, statement, code, message):
    # A process that was started in the background may ignore Ctrl-C, and its children with it.
    listening = "import os, signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{listening}; from pipeline.errors import *; {way.format(statement)}"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == code
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1
