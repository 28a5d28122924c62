# SPDX-License-Identifier: Apache-2.0
"""The inputs of a segmentation: paths that a user names, found on disk before anything is read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError


@dataclass(frozen=True)
class Source:
    """One input: a file, or a folder that stands for one image. `case` names its outputs."""

    case: str
    path: Path


Inputs = str | os.PathLike[str] | Sequence[str | os.PathLike[str] | Source]


def find_sources(inputs: Inputs, noun: str, sources_in: Callable[[Path], list[Source]]) -> list[Source]:
    """Return the sources of `inputs`, a path or a list of paths and sources; these keep the names they have.

    `sources_in` gives the sources of one path that exists, `noun` is what messages call them. Raises `InputError` for
    paths that are missing (all of them in one message), and for two sources of one case name.
    """
    given = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    paths = [item.path if isinstance(item, Source) else Path(item) for item in given]
    missing = [str(path) for path in paths if not path.exists()]
    if missing or not paths:
        raise InputError(f"no such file or folder: {', '.join(missing) or 'nothing given'}; check the path")
    sources = [source for item in given for source in ([item] if isinstance(item, Source) else sources_in(Path(item)))]
    twice = [case for case, count in Counter(source.case for source in sources).items() if count > 1]
    if twice:
        files = ", ".join(str(source.path) for source in sources if source.case == twice[0])
        raise InputError(f"two {noun}s named {twice[0]} would share one output: {files}; rename or remove one")
    return sources


def visible_entries(folder: Path) -> list[Path]:
    """Return what a folder holds, sorted, without hidden files."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
