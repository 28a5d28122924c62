# SPDX-License-Identifier: Apache-2.0
"""Files and folders appear whole or not at all: written beside their final name, synced, then renamed.

A rename alone can reach the disk before what was written: after a power cut a whole name would stand for zeros.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, find_disk_error

_UNFINISHED = re.compile(r"\.\d+\..+")  # what `replace_when_complete` calls a file in the making


@contextmanager
def replace_when_complete(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success sync it and rename it to `path`, else remove it.

    The temporary name keeps the suffixes of `path` (writers choose the format by them) and begins with a dot and the
    process id, so that two processes never share one. Raises `InputError` when the folder cannot be written or the
    disk is full; a file that stood at `path` is then as it was.
    """
    final = Path(path)
    temporary = final.with_name(f".{os.getpid()}.{final.name}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    except OSError as error:
        raise InputError(f"cannot write {final}: {error.strerror}; choose another output folder") from error
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, final)
        _sync(final.parent)
    except Exception as error:
        disk = find_disk_error(error)
        if disk is None:
            raise
        kept = "the one there before is intact; " if final.exists() else ""
        raise InputError(f"cannot write {final}: {disk.strerror}; {kept}free space, then start again") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(output: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty temporary folder beside `output`; on success it becomes `output`, on failure it vanishes.

    Raises `InputError` where `output` exists with content (what a user has is never overwritten), the folder around it
    cannot be written, or the disk is full.
    """
    final = Path(os.path.abspath(output))
    _check_free(final)
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot write {final}: {error.strerror}; choose another output folder") from error
    try:
        yield temporary
        _check_free(final)
        sync_folder(temporary)
        os.rename(temporary, final)
        _sync(final.parent)
    except Exception as error:
        disk = find_disk_error(error)
        if disk is None:
            raise
        raise InputError(f"cannot write {final}: {disk.strerror}; free space or choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Return when the disk has all files in a folder, at any depth."""
    for place, _, files in os.walk(folder):
        for name in files:
            _sync(os.path.join(place, name))
        _sync(place)


def _sync(path: str | os.PathLike[str]) -> None:
    """Return when the disk has a file, or the names in a folder."""
    if os.path.isdir(path) and os.name == "nt":  # which opens no folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_free(final: Path) -> None:
    if final.is_dir() and not any(final.iterdir()):
        return
    if final.exists() or final.is_symlink():
        raise InputError(f"{final} exists already; remove it or choose another output folder")


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as indented JSON, atomically; NaN and infinities are refused, since JSON has no word for them."""
    with replace_when_complete(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_tensors(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` with `torch.save`, atomically.

    Torch gets an open file: given a path, it hides why the disk refused, and puts the file's name into the file.
    """
    import torch  # here alone: programs that write label maps start without it

    with replace_when_complete(path) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)


def remove_unfinished(folder: str | os.PathLike[str]) -> None:
    """Remove what a process that was killed while it wrote left in `folder`; no other process may be writing there."""
    for path in Path(folder).glob(".*"):
        if _UNFINISHED.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
