# SPDX-License-Identifier: Apache-2.0
"""A folder that one process at a time may write to; the system opens the lock when that process dies."""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import os
import platform
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import InputError

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
WAIT_S = 0.2  # a holder that ends just now removes the file that was opened here: the next try finds a new one
_held: dict[Path, tuple[FileLock, bool]] = {}  # of each folder that this process has: its lock, was it made here


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
    lock = FileLock(place / LOCK_FILE, timeout=WAIT_S, thread_local=False, on_acquired=_sign)
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"{folder} is in use by {_holder(place / LOCK_FILE)}: wait for its end, or choose another --run_dir"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise InputError(f"cannot write {folder}: {error.strerror}; choose another --run_dir") from error
        logger.warning("%s is on a disk without locks: see to it that no other run writes there", place)
    _held[place] = (lock, made)
    atexit.register(unlock_folder, place)


def unlock_folder(folder: str | os.PathLike[str]) -> None:
    """Give back a folder that this process has; nothing happens if it has it not."""
    place = Path(folder).resolve()
    if place not in _held:
        return
    lock, made = _held.pop(place)
    with contextlib.suppress(OSError):  # Windows removes no open file: there the release does
        (place / LOCK_FILE).unlink()
    lock.release()
    if made:
        with contextlib.suppress(OSError):  # the folder is gone, or not empty
            place.rmdir()


def _sign(file: int) -> None:
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {platform.node()}".encode())


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "another process"
    except OSError:  # gone, or on Windows, which lets nobody read a locked file
        return "another process"
