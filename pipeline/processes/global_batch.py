# SPDX-License-Identifier: Apache-2.0
"""Parts that need the batch of all processes together: batch normalisation, and losses that are no means over images.

Gradients are scaled for `DistributedDataParallel` and for `average_gradients` of `pipeline.processes.distributed`,
which average over processes. With them, N processes take the same step as one process on the whole batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def world_size() -> int:
    """Return the number of processes of the run, which share its batches; 1 outside torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _SumOverProcesses(Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs, differentiable again."""

    @staticmethod
    def forward(ctx: Any, mine: torch.Tensor) -> torch.Tensor:
        """Return the sum, of the shape of `mine`."""
        total = mine.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        """Return the sum of the processes' gradients."""
        return _SumOverProcesses.apply(gradient.contiguous())


class _GatheredBatch(Function):
    """The items of all processes in the order of one process's batch."""

    @staticmethod
    def forward(ctx: Any, mine: torch.Tensor) -> torch.Tensor:
        """Return (N B, ...) of `mine` (B, ...)."""
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine)
        return torch.stack(parts, dim=1).flatten(0, 1)  # DistributedSampler gives process r the items r, r + N, ...

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        """Return the gradient of this process's items (B, ...)."""
        # All processes compute the same from the same batch, so the sum of their gradients is N times each one's own.
        return dist.get_world_size() * gradient[dist.get_rank() :: dist.get_world_size()]


def gather_batch(mine: torch.Tensor) -> torch.Tensor:
    """Return the batch of all processes (N B, ...) from this one's (B, ...), in the order of one process; collective.

    The same function of it must be computed by all processes. With one process it is `mine` itself.
    """
    return _GatheredBatch.apply(mine.contiguous()) if world_size() > 1 else mine


class GlobalBatchLoss(nn.Module):
    """Computes a loss that is no mean over images, such as a batch-wise Dice, on the batch of all processes.

    Args:
        loss: maps (predictions, labels) to a scalar.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, prediction: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of predictions (B, K, ...) against labels (B, 1, ...)."""
        return self.loss(gather_batch(prediction), gather_batch(labels))


class _SynchronisedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation by the mean and variance over the batches of all processes, on any device.

    Torch's `SyncBatchNorm` works only on CUDA. This one needs two short sums over the processes forwards and two
    backwards, and can be differentiated twice.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return `input` (B, C, ...) normalised; collective in training."""
        if world_size() == 1 or not (self.training or self.running_mean is None):
            return super().forward(input)
        self._check_input_dim(input)
        values = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        axes = [axis for axis in range(values.ndim) if axis != 1]
        positions = values.new_tensor([values.numel() // values.shape[1]])
        sums = _SumOverProcesses.apply(torch.cat([values.sum(axes), positions]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        # From differences, not from squares: large means would cancel the digits of a small variance.
        variance = _SumOverProcesses.apply((values - _along_channels(mean, values)).square().sum(axes)) / count
        self._update_running_statistics(mean.detach(), variance.detach() * count / (count - 1))
        normal = (values - _along_channels(mean, values)) * _along_channels((variance + self.eps).rsqrt(), values)
        if self.weight is not None:
            normal = normal * _along_channels(self.weight, values) + _along_channels(self.bias, values)
        return normal.to(input.dtype)

    @torch.no_grad()
    def _update_running_statistics(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Let the running statistics follow the batch's mean and unbiased variance, each (C,)."""
        if not self.track_running_stats or self.running_mean is None:
            return
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


class SynchronisedBatchNorm1d(_SynchronisedBatchNorm, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` over the batches of all processes."""


class SynchronisedBatchNorm2d(_SynchronisedBatchNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` over the batches of all processes."""


class SynchronisedBatchNorm3d(_SynchronisedBatchNorm, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` over the batches of all processes."""


_SYNCHRONISED = {
    nn.BatchNorm1d: SynchronisedBatchNorm1d,
    nn.BatchNorm2d: SynchronisedBatchNorm2d,
    nn.BatchNorm3d: SynchronisedBatchNorm3d,
}


def synchronise_batch_norm(network: nn.Module) -> nn.Module:
    """Let every batch normalisation of `network` see the batches of all processes; returns `network` itself.

    The modules are changed in place: taps on them, references to their parameters, and names stay valid.
    """
    for module in network.modules():
        for kind, synchronised in _SYNCHRONISED.items():
            if isinstance(module, kind) and not isinstance(module, _SynchronisedBatchNorm):
                module.__class__ = synchronised
    return network


def _along_channels(vector: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return vector.reshape(1, -1, *[1] * (values.ndim - 2))
