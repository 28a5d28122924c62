# SPDX-License-Identifier: Apache-2.0
"""Which items an epoch brings, and in what order: again the same after a resume."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from torch.utils.data import DistributedSampler


class ResumableSampler(DistributedSampler):
    """Torch's distributed sampler, which can leave out what a run has seen before it was stopped amid an epoch.

    It shuffles by seed and epoch, so the rest of the epoch is what it would have been. Its length stays that of a
    whole epoch: schedules count by it.
    """

    _seen = 0

    def leave_out(self, items: int) -> None:
        """Begin the next epoch, and that one alone, after `items` items of this process."""
        self._seen = items

    def __iter__(self) -> Iterator[int]:
        seen, self._seen = self._seen, 0
        return islice(super().__iter__(), seen, None)
