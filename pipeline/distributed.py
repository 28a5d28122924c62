# SPDX-License-Identifier: Apache-2.0
"""Several processes of one run, started by torchrun: who is who, and what they share. One process is rank 0 of 1."""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pipeline.errors import InputError


def rank() -> int:
    """Return the number of this process among all of the run, 0 outside torch.distributed."""
    return dist.get_rank() if _running() else 0


def ranks() -> int:
    """Return how many processes the run has, 1 outside torch.distributed."""
    return dist.get_world_size() if _running() else 1


def is_main() -> bool:
    """Tell whether this is the process that writes files."""
    return rank() == 0


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()


def start() -> None:
    """Join the other processes if torchrun has started several: NCCL on GPUs, gloo on CPUs; nothing to do for one."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or _running():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local_device())
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    atexit.register(stop)
    if not is_main():  # one voice is enough
        logging.getLogger().setLevel(logging.WARNING)


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
    if batch_size % ranks():
        raise InputError(f"--batch_size {batch_size} cannot be shared by {ranks()} processes; give a multiple of them")
    return batch_size // ranks()


def data_parallel(network: nn.Module, device: torch.device) -> nn.Module:
    """Return `network` on `device`, its gradients averaged over all processes; the network itself for one process.

    On GPUs batch normalisation sees the whole batch (SyncBatchNorm, which torch has for CUDA alone).
    """
    network = network.to(device)
    if ranks() == 1:
        return network
    if device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return nn.parallel.DistributedDataParallel(network, device_ids=[device.index])
    return nn.parallel.DistributedDataParallel(network)


def check_coordinated(network: nn.Module) -> None:
    """Raise `InputError` where several processes would train a network each, unknown to one another."""
    if ranks() > 1 and not isinstance(network, nn.parallel.DistributedDataParallel):
        raise InputError(
            f"{ranks()} processes would train {ranks()} networks: add the bundle's multi_gpu.yaml to --config_file"
        )


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes, for parameters that no wrapper looks after."""
    if ranks() == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= ranks()


def gathered(mine: Any) -> list[Any]:
    """Return what every process holds (primitives and tensors on the CPU), in the order of ranks; collective."""
    if ranks() == 1:
        return [mine]
    parts: list[Any] = [None] * ranks()
    dist.all_gather_object(parts, mine)
    return parts
