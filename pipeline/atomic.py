# SPDX-License-Identifier: Apache-2.0
"""Files appear whole or not at all: written beside their final name, synced, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import InputError


@contextmanager
def replace_when_complete(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success sync it and rename it to `path`, else remove it.

    The temporary name keeps the suffixes of `path` (writers choose the format by them) and begins with a dot and the
    process id, so that two processes never share one. Raises `InputError` when the folder cannot be written.
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
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as indented JSON, atomically; NaN and infinities are refused, since JSON has no word for them."""
    with replace_when_complete(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
