# SPDX-License-Identifier: Apache-2.0
"""Slices kept on disk between runs: two raw files and an index, named by everything that shaped them."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import math
import os
import pydoc
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from torch import Tensor

from pipeline.described import TARGET
from pipeline.errors import InputError
from pipeline.files.atomic import sync_folder, write_json

# Raised when the meaning of the stored slices changes, so that older folders are not read.
CACHE_VERSION = 2
_IMAGES, _LABELS, _INDEX = "images.float32", "labels.uint8", "index.json"


def cache_key(datalist: Sequence[Mapping[str, str]], preprocessing: Sequence[Mapping[str, Any]], size: int) -> str:
    """Return a hash of the case files (path, size, time of change), the preprocessing and the slice size.

    For the preprocessing, the hash is over its description, and over the code of classes that are not MONAI's.
    """
    files = [
        (entry["case"], [_file_facts(entry[key]) for key in ("image", "label") if key in entry]) for entry in datalist
    ]
    code = [_code_of(name) for name in _classes(preprocessing)]
    content = [CACHE_VERSION, monai.__version__, torch.__version__, files, preprocessing, code, size]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def _classes(part: Any) -> list[str]:
    """Return the names of the classes of a description, those among the arguments of others too."""
    if isinstance(part, Mapping):
        own = [part[TARGET]] if TARGET in part else []
        return own + [name for value in part.values() for name in _classes(value)]
    return [name for item in part for name in _classes(item)] if isinstance(part, list | tuple) else []


def _code_of(name: str) -> str:
    """Return the source of a class, nothing for MONAI's, for which the version stands."""
    return "" if name.startswith("monai.") else inspect.getsource(pydoc.locate(name))


def _file_facts(path: str) -> list[Any]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; restore the file") from error
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns]


def open_slices(folder: Path) -> tuple[Tensor, Tensor, list[tuple[str, int]]]:
    """Return images (N, C, S, S) float32, labels (N, 1, S, S) uint8, and (case, position) of each slice.

    The tensors are mapped from disk and private: what a program writes to them never reaches the files. Raises
    `InputError` for a folder that is not whole.
    """
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        slices, channels, *sides = index["shape"]
        whole = (slices * math.prod(sides) * channels * 4, slices * math.prod(sides))
        there = tuple((folder / name).stat().st_size for name in (_IMAGES, _LABELS))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"slices in {folder} are damaged ({error}); remove it, and they are made anew") from error
    if there != whole:
        raise InputError(f"slices in {folder} are not whole, {there} of {whole} bytes; remove it: they are made anew")
    # Mode "c" (copy on write) rather than "r": torch warns about arrays that cannot be written.
    images = np.memmap(folder / _IMAGES, dtype=np.float32, mode="c", shape=(slices, channels, *sides))
    labels = np.memmap(folder / _LABELS, dtype=np.uint8, mode="c", shape=(slices, 1, *sides))
    return torch.from_numpy(images), torch.from_numpy(labels), [(case, int(z)) for case, z in index["slices"]]


class SliceWriter:
    """Appends the slices of one volume after another to the two raw files of `folder`."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self._size = size
        self._slices: list[tuple[str, int]] = []
        self._channels: int | None = None

    def append(self, case: str, images: Tensor, labels: Tensor) -> None:
        """Add the slices (D, C, S, S) of one volume; `InputError` when the disk is full or the channels differ."""
        channels = images.shape[1]
        if self._channels not in (None, channels):
            raise InputError(f"case {case} has {channels} channels, the cases before it {self._channels}")
        self._channels = channels
        needed, free = 4 * images.numel() + labels.numel(), shutil.disk_usage(self._folder).free
        if needed > free:
            raise InputError(f"{self._folder.parent} has {free / 1e9:.1f} GB left, too little; free space or move it")
        for name, values in ((_IMAGES, images.numpy()), (_LABELS, labels.numpy())):
            with open(self._folder / name, "ab") as file:
                file.write(np.ascontiguousarray(values))
        self._slices.extend((case, position) for position in range(len(images)))

    def finish(self) -> None:
        """Write the index, after which the folder is complete."""
        shape = [len(self._slices), self._channels, self._size, self._size]
        write_json(self._folder / _INDEX, {"shape": shape, "slices": self._slices})


@contextlib.contextmanager
def building(folder: Path, size: int) -> Iterator[SliceWriter]:
    """Yield a writer into a temporary folder, which becomes `folder` on success and is deleted otherwise."""
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot write {folder.parent}: {error.strerror}; choose another cache_dir") from error
    try:
        writer = SliceWriter(temporary, size)
        yield writer
        writer.finish()
        sync_folder(temporary)
        try:
            os.rename(temporary, folder)
        except OSError:
            # Another process (a second rank, say) finished the same slices first: theirs are as good.
            if not (folder / _INDEX).is_file():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
