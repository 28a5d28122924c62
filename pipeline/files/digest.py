# SPDX-License-Identifier: Apache-2.0
"""What a file is known by: its SHA-256."""

from __future__ import annotations

import hashlib
import os

from pipeline.errors import InputError

_BLOCK = 1 << 20


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file in hexadecimal; `InputError` if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from error
    return digest.hexdigest()
