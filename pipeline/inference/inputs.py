# SPDX-License-Identifier: Apache-2.0
"""Sources, divided among processes and read one after another, with a record of failures."""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.utils.data import IterableDataset, get_worker_info

from pipeline.errors import InputError
from pipeline.inference.sources import Source
from pipeline.processes import distributed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A scan or slide that could not be segmented, or only in part, and the reason."""

    case: str
    file: str
    error: str


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
        own = wanted[distributed.rank() :: distributed.world_size()]
        self._begin(own)
        return filter(None, map(self._read, own))

    def _begin(self, sources: Sequence[Source]) -> None:
        """Prepare for reading `sources`, in this order."""

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
        """Return the seconds since a source was asked for."""
        return time.perf_counter() - self._started[case]
