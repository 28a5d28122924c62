# SPDX-License-Identifier: Apache-2.0
"""A folder that one process at a time may write to; the kernel opens the lock when that process dies."""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import logging
import os
import platform
from pathlib import Path

from pipeline.errors import InputError

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
_held: dict[Path, tuple[int, bool]] = {}  # of each folder that this process has: the open lock file, was it made here


def lock_folder(folder: str | os.PathLike[str]) -> None:
    """Take `folder` until this process ends; make it if it is missing. Nothing happens if this process has it already.

    At a normal end the lock file is removed, and the folder too if it was made here and nothing was put into it.

    Raises:
        InputError: another process has it, or it cannot be written.
    """
    place = Path(folder).resolve()
    if place in _held:
        return
    made = not place.exists()
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock = _open_locked(place / LOCK_FILE)
    except BlockingIOError as error:
        raise InputError(
            f"{folder} is in use by {_holder(place / LOCK_FILE)}: wait for its end, or choose another --run_dir"
        ) from error
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}; choose another --run_dir") from error
    os.ftruncate(lock, 0)
    os.write(lock, f"process {os.getpid()} on {platform.node()}".encode())
    _held[place] = (lock, made)
    atexit.register(unlock_folder, place)


def unlock_folder(folder: str | os.PathLike[str]) -> None:
    """Give back a folder that this process has; nothing happens if it has it not."""
    place = Path(folder).resolve()
    if place not in _held:
        return
    lock, made = _held.pop(place)
    with contextlib.suppress(OSError):  # the folder is gone, or not empty
        (place / LOCK_FILE).unlink(missing_ok=True)
        if made:
            place.rmdir()
    os.close(lock)


def _open_locked(path: Path) -> int:
    """Return the open file at `path`, locked; raises `BlockingIOError` if another process has locked it."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP):
                logger.warning("%s is on a disk without locks: see to it that no other run writes there", path.parent)
                return lock
            os.close(lock)
            raise
        if _is_at(path, lock):
            return lock
        os.close(lock)  # its holder ended and removed the file in this very moment


def _is_at(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "another process"
    except OSError:
        return "another process"
