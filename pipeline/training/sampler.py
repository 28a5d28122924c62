# SPDX-License-Identifier: Apache-2.0
"""Which items an epoch has and in which order: after a resume, the same as without a stop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized
from itertools import islice

import torch
from torch.utils.data import DistributedSampler

from pipeline.data.dataset.labelled import check_share
from pipeline.errors import InputError


class ResumableSampler(DistributedSampler):
    """Torch's distributed sampler, which can skip the items that a run had seen when it was stopped in an epoch.

    It shuffles by seed and epoch, so the rest of the epoch is the same as without a stop. Its length stays that of a
    whole epoch, because schedules count by it.
    """

    _seen = 0

    def leave_out(self, items: int) -> None:
        """Skip the first `items` items of this process in the next epoch only."""
        self._seen = items

    def __iter__(self) -> Iterator[int]:
        seen, self._seen = self._seen, 0
        return islice(self._of_epoch(), seen, None)

    def _of_epoch(self) -> Iterator[int]:
        return super().__iter__()


class SharedBatchSampler(ResumableSampler):
    """Sampler of batches with a fixed number of unlabelled items each: first the labelled ones, then the others.

    An epoch is a pass over the larger of the two sets, or as many iterations as asked for. Each set is shuffled anew by
    seed and epoch; where an epoch needs more than the set has, it is shuffled and passed again. So every item of the
    larger set comes at least once, and items of one set come equally often, or once more than others.

    Several processes take turns within each batch, as in `DistributedSampler`. Together they see the batches of one
    process, and each process has the same shares of labelled and unlabelled items.

    Args:
        dataset: only its length counts.
        unlabelled_from: index of the first unlabelled item; all before it are labelled.
        batch_size: items of one iteration of all processes together.
        unlabelled_share: share of the batch, rounded to whole items; 0 leaves the unlabelled items out.
        iterations: iterations of an epoch; None is a pass.
        num_replicas: number of processes.
        rank: of this one.
        seed: of the order.

    Raises:
        InputError: a share that leaves a batch without labelled or without unlabelled items, a number of either that
            the processes cannot share equally, fewer items of either than one batch needs, or iterations that are no
            whole number from 1.
    """

    def __init__(
        self,
        dataset: Sized,
        unlabelled_from: int,
        batch_size: int,
        unlabelled_share: float,
        iterations: int | None = None,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, seed=seed)
        _check_iterations(iterations)
        unlabelled = round(batch_size * check_share(unlabelled_share))
        if unlabelled_share and not 0 < unlabelled < batch_size:
            enough = math.ceil(1 / min(unlabelled_share, 1 - unlabelled_share))
            raise InputError(
                f"--unlabelled_share {unlabelled_share} of a batch of {batch_size} is {unlabelled} without a label; "
                f"give --batch_size {enough} or more, or another share, so that there is at least one of each kind"
            )
        sets = {
            "labelled": (range(unlabelled_from), batch_size - unlabelled),
            "unlabelled": (range(unlabelled_from, len(dataset)), unlabelled),
        }
        for kind, (items, in_batch) in sets.items():
            if in_batch % num_replicas:
                raise InputError(
                    f"{in_batch} {kind} items of each batch cannot be shared by {num_replicas} processes; choose "
                    "--batch_size and --unlabelled_share so that they can"
                )
            if len(items) < in_batch:
                raise InputError(
                    f"a batch has {in_batch} {kind} items, but training has {len(items)}; choose a smaller "
                    f"--batch_size, another --unlabelled_share, or more {kind} cases"
                )
        self._sets = [(items, in_batch) for items, in_batch in sets.values() if in_batch]
        passes = (-(-len(items) // in_batch) for items, in_batch in self._sets)
        self.iterations = max(passes) if iterations is None else iterations
        self.num_samples = self.iterations * batch_size // num_replicas  # what torch calls the items of one process
        self.total_size = self.iterations * batch_size

    def _of_epoch(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        streams = [_shuffled(items, self.iterations * in_batch, generator) for items, in_batch in self._sets]
        for iteration in range(self.iterations):
            for stream, (_, in_batch) in zip(streams, self._sets, strict=True):
                first = iteration * in_batch
                yield from stream[first + self.rank : first + in_batch : self.num_replicas]


def _check_iterations(iterations: int | None) -> None:
    whole = isinstance(iterations, int) and not isinstance(iterations, bool)
    if iterations is not None and not (whole and iterations > 0):
        raise InputError(f"--epoch_iterations is {iterations!r}; give a whole number from 1, or leave it out")


def _shuffled(items: range, number: int, generator: torch.Generator) -> list[int]:
    """Return `number` items: passes over all of them, each in an order of its own, the last cut short."""
    passes = -(-number // len(items))
    orders = [torch.randperm(len(items), generator=generator) for _ in range(passes)]
    return [items[int(index)] for index in torch.cat(orders)[:number]]


def training_sampler(
    dataset: Sized,
    batch_size: int,
    unlabelled_share: float = 0.0,
    iterations: int | None = None,
    num_replicas: int = 1,
    rank: int = 0,
    seed: int = 0,
    needs_labels: bool = True,
) -> ResumableSampler:
    """Return the sampler of a training: a plain pass over all items, or one with given shares or a given length.

    Args:
        dataset: with `unlabelled_from`, where some items are unlabelled.
        batch_size: items of one iteration of all processes together.
        unlabelled_share: see `SharedBatchSampler`.
        iterations: of an epoch; None is a pass.
        num_replicas: number of processes.
        rank: of this one.
        seed: of the order.
        needs_labels: False for a training that uses no labels, where all items are alike unless shares are given.

    Raises:
        InputError: see `SharedBatchSampler`.
    """
    if not unlabelled_share and iterations is None:
        # An incomplete last batch is dropped: several processes must have as many batches as one process.
        whole = len(dataset) >= batch_size
        return ResumableSampler(dataset, num_replicas=num_replicas, rank=rank, seed=seed, drop_last=whole)
    told_apart = needs_labels or unlabelled_share
    first = getattr(dataset, "unlabelled_from", len(dataset)) if told_apart else len(dataset)
    return SharedBatchSampler(
        dataset, first, batch_size, unlabelled_share, iterations, num_replicas=num_replicas, rank=rank, seed=seed
    )
