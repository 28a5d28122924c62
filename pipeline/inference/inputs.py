# SPDX-License-Identifier: Apache-2.0
"""What a user names to be segmented: found, shared out over processes, read one after another, failures kept."""

from __future__ import annotations

import logging
import os
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch.utils.data import IterableDataset, get_worker_info

from pipeline.errors import InputError
from pipeline.processes import distributed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """What is segmented as one: a file, or a folder that stands for one image. `case` names its outputs."""

    case: str
    path: Path


Inputs = str | os.PathLike[str] | Sequence[str | os.PathLike[str] | Source]


@dataclass(frozen=True)
class Failure:
    """A scan or slide that could not be segmented, or not all of it, and why."""

    case: str
    file: str
    error: str


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


class SourceDataset(IterableDataset):
    """Reads sources one at a time: items are dictionaries with the image and its "case".

    A source that cannot be read is logged, kept in `failures`, and skipped, so that one bad file does not stop a
    folder; a single bad one raises `InputError`. Cases in `left_out` are not read. Under torch.distributed each rank
    reads its share of the others.
    """

    noun: ClassVar[str]

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self.failures: list[Failure] = []
        self.left_out: frozenset[str] = frozenset()
        self._started: dict[str, float] = {}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if get_worker_info() is not None:
            raise InputError(
                f"{self.noun}s are read in the main process, which keeps the failures: set num_workers to 0"
            )
        self.failures.clear()
        # A generator would hold each image while it waits; map and filter keep none.
        wanted = [source for source in self.sources if source.case not in self.left_out]
        return filter(None, map(self._read, wanted[distributed.rank() :: distributed.world_size()]))

    def _read(self, source: Source) -> dict[str, Any] | None:
        """Return the item of a source, None where it cannot be read and there are others."""
        self._started[source.case] = time.perf_counter()
        try:
            return self._item(source)
        except InputError as error:
            self.skip(source, error)
            return None

    @abstractmethod
    def _item(self, source: Source) -> dict[str, Any]:
        """Return the item of a source; `InputError` where it cannot be read."""

    def skip(self, source: Source, error: InputError) -> None:
        """Record that a source fails, so that the others go on; raises `error` if it is the only one."""
        if len(self.sources) == 1:
            raise error
        logger.warning("%s skipped: %s", source.case, error)
        self.record(source, str(error))

    def record(self, source: Source, error: str) -> None:
        """Keep a failure for `failures.csv`."""
        self.failures.append(Failure(source.case, str(source.path), error))

    def seconds_since_start(self, case: str) -> float:
        """Return the seconds since the reading of a source began."""
        return time.perf_counter() - self._started[case]
