# SPDX-License-Identifier: Apache-2.0
"""Several processes of one run, started by torchrun: who is who, and what they share. One process is rank 0 of 1."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pipeline.errors import InputError
from pipeline.processes import lost_ranks
from pipeline.processes.global_batch import synchronise_batch_norm, world_size

TIMEOUT_VARIABLE = "GRAPHFLOW_TIMEOUT_MINUTES"
_DEFAULT_TIMEOUT_MINUTES = 30.0
_POLL_S = 0.2
# What torchrun's processes tell each other beside the group; None where somebody else has made the group.
_store: dist.Store | None = None
_waits = 0


def rank() -> int:
    """Return the number of this process among all of the run, 0 outside torch.distributed."""
    return dist.get_rank() if _running() else 0


def is_main() -> bool:
    """Tell whether this is the process that writes files."""
    return rank() == 0


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()


def start() -> None:
    """Join the other processes if several were started: NCCL between GPUs, gloo for what is on CPUs.

    torchrun starts them, or anybody who gives each its RANK, and all of them WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
    Who waits for a process that neither answers nor ends gives up after 30 minutes, or after what the environment
    variable GRAPHFLOW_TIMEOUT_MINUTES says. A process that has ended is named at once (see `lost_ranks`).

    Raises:
        InputError: that variable is no positive number, or the others cannot be found by the variables.
    """
    global _store
    if (os.environ.get("WORLD_SIZE") or "1") == "1" or _running():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local_device())
    _store, own_rank, processes = _meet()
    atexit.register(lost_ranks.leave, _store, own_rank, processes)
    lost_ranks.report_ends(_store, own_rank, processes)
    told_once = sys.excepthook
    timeout = _timeout()
    _store.set_timeout(timeout)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=dist.PrefixStore("group", _store),
        rank=own_rank,
        world_size=processes,
        timeout=timeout,
    )
    sys.excepthook = told_once  # torch's own puts the rank before each line, and loses the lines of a hook that exits
    atexit.register(stop)
    if not is_main():  # one voice is enough
        logging.getLogger().setLevel(logging.WARNING)


def _meet() -> tuple[dist.Store, int, int]:
    """Return what the processes share, the number of this one, and how many there are."""
    timeout = timedelta(minutes=_DEFAULT_TIMEOUT_MINUTES)
    with contextlib.suppress(InputError):  # refused as soon as the others can be told
        timeout = _timeout()
    try:
        return next(dist.rendezvous("env://", timeout=timeout))
    except (ValueError, RuntimeError) as error:
        told = str(error).strip().splitlines()[0]
        raise InputError(
            f"cannot meet the other processes of WORLD_SIZE {os.environ['WORLD_SIZE']} ({told}); start them by"
            " torchrun, or give each its RANK, and all the same WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
        ) from error


def _timeout() -> timedelta:
    given = os.environ.get(TIMEOUT_VARIABLE, str(_DEFAULT_TIMEOUT_MINUTES))
    try:
        return timedelta(minutes=_positive(float(given)))
    except (ValueError, OverflowError) as error:
        raise InputError(f"{TIMEOUT_VARIABLE} is {given!r}; give minutes, such as 30") from error


def _positive(number: float) -> float:
    if not number > 0:
        raise ValueError
    return number


def stop() -> None:
    """Leave the process group, if there is one."""
    if _running():
        dist.destroy_process_group()


def local_device() -> torch.device:
    """Return this process's GPU, by the number that torchrun gives it on its machine, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def share_of(batch_size: int) -> int:
    """Return how many items of a batch this process takes; `InputError` unless all processes get as many."""
    processes = world_size()
    if batch_size % processes:
        raise InputError(
            f"--batch_size {batch_size} cannot be shared by {processes} processes; give a multiple of them"
        )
    return batch_size // processes


def data_parallel(network: nn.Module, device: torch.device) -> nn.Module:
    """Return `network` on `device`, its gradients averaged over all processes; the network itself for one process.

    Batch normalisation sees the global batch: torch's `SyncBatchNorm` on GPUs, ours on CPUs. So nothing is left to
    broadcast before each forward pass, which would also wait for the others where processes validate unequal scans.
    """
    network = network.to(device)
    if world_size() == 1:
        return network
    if device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return nn.parallel.DistributedDataParallel(network, device_ids=[device.index], forward_sync_buffers=False)
    return nn.parallel.DistributedDataParallel(synchronise_batch_norm(network), forward_sync_buffers=False)


def synchronise_modules(modules: nn.Module) -> None:
    """Give modules that no wrapper looks after the parameters and buffers of rank 0; collective.

    Their batch normalisation sees the batch of all processes from here on. What trains them must call
    `average_gradients` before each step.
    """
    if world_size() == 1:
        return
    synchronise_batch_norm(modules)
    for tensor in (*modules.parameters(), *modules.buffers()):
        dist.broadcast(tensor.detach(), src=0)


def check_coordinated(network: nn.Module) -> None:
    """Raise `InputError` where several processes would train a network each, unknown to one another."""
    processes = world_size()
    if processes > 1 and not isinstance(network, nn.parallel.DistributedDataParallel):
        raise InputError(
            f"{processes} processes would train {processes} networks: add the bundle's multi_gpu.yaml to --config_file"
        )


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes, for parameters that no wrapper looks after; collective.

    A gradient that some processes lack counts as zero there; one that all lack stays missing.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if world_size() == 1 or not trained:
        return
    there = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.float32)
    own = [torch.zeros_like(item) if item.grad is None else item.grad for item in trained]
    message = torch.cat([there.to(own[0].device), *(gradient.flatten().float() for gradient in own)])
    dist.all_reduce(message)  # one message, so that no process waits for a gradient that another has not got
    means = (message / world_size()).split([len(trained), *(item.numel() for item in trained)])
    for item, known, mean in zip(trained, means[0].tolist(), means[1:], strict=True):
        item.grad = mean.view_as(item).to(item.dtype) if known else None


def averaged(terms: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the mean over all processes of each tensor, all of one shape, without its graph; collective."""
    if world_size() == 1 or not terms:
        return {name: term.detach() for name, term in terms.items()}
    values = torch.stack([term.detach().float() for term in terms.values()])
    dist.all_reduce(values)
    return dict(zip(terms, values / world_size(), strict=True))


def gathered(mine: Any) -> list[Any]:
    """Return what every process holds (primitives and tensors on the CPU), in the order of ranks; collective."""
    if world_size() == 1:
        return [mine]
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, mine)
    return parts


def largest(mine: int) -> int:
    """Return the largest of the numbers that the processes hold; collective, and no GPU waits for it."""
    if world_size() == 1:
        return mine
    numbers = [torch.tensor(mine) for _ in range(world_size())]
    dist.all_gather(numbers, torch.tensor(mine))
    return max(int(number) for number in numbers)


def wait_for_all() -> None:
    """Wait until every process has come here, however long that takes: shares of a folder are of unequal length.

    Collectives give up after a while, and rightly so in training.
    """
    global _waits
    if world_size() == 1:
        return
    if _store is None:
        dist.barrier()
        return
    _waits += 1
    name = f"waiting/{_waits}"
    _store.add(name, 1)
    while _store.add(name, 0) < world_size():
        ended = lost_ranks.ended_ranks(_store, rank(), world_size())
        if ended and _store.add(name, 0) < world_size():  # or it came here, and was the last, a moment ago
            raise dist.DistError(ended)
        time.sleep(_POLL_S)
