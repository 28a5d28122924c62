# SPDX-License-Identifier: Apache-2.0
"""Files read in a thread, each while the one before is worked on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class ReadAhead(Iterator[Result], Generic[Item, Result]):
    """Iterates over `read(item)` of each item; as soon as a result is handed out, the next is read.

    It keeps no reference to a result that it has handed out, so that at most one waits in memory. What `read` raises,
    `next` raises; the iteration can go on after it.
    """

    def __init__(self, read: Callable[[Item], Result], items: Iterable[Item]) -> None:
        self._read, self._items = read, iter(items)
        self._pool = ThreadPoolExecutor(1)
        self._next = self._begin_next()

    def _begin_next(self) -> Future[Result] | None:
        for item in self._items:
            return self._pool.submit(self._read, item)
        self._pool.shutdown(wait=False)
        return None

    def __next__(self) -> Result:
        if self._next is None:
            raise StopIteration
        reading, self._next = self._next, None
        try:
            return reading.result()
        finally:
            self._next = self._begin_next()
