# SPDX-License-Identifier: Apache-2.0
"""Running a network of a pair once more inside a method: on other images, or for a gradient of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pipeline.distillation.method import NetworkPair, Tapped
from pipeline.errors import InputError
from pipeline.processes.distributed import world_size

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@contextmanager
def statistics_untouched(network: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch normalisation as they are; what is in training normalises by its batch."""
    tracking = [
        module
        for module in network.modules()
        if isinstance(module, BATCH_NORMS) and module.training and module.track_running_stats
    ]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


def run_again(pair: NetworkPair, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the logits (B, K, ...) of one of the pair's networks, in its mode, with a graph where gradients are on.

    The network stays as it is: the statistics of its batch normalisation are not updated.
    """
    with statistics_untouched(network):
        return pair.inferer(images, network)


def seen_images(view: Tapped) -> torch.Tensor:
    """Return the images (B, C, ...) of a view, without a graph, as plain floating tensors.

    Raises:
        RuntimeError: the view has no images.
    """
    if view.images is None:
        raise RuntimeError("this method runs the networks again and needs the images in the view")
    return torch.as_tensor(view.images).detach()


def check_twice_differentiable(method: str, network: nn.Module) -> None:
    """Raise `InputError` for a network whose gradient cannot be differentiated again.

    Batch normalisation that is synchronised over GPUs is such a case: torch has no second derivative of it.
    """
    if world_size() > 1 and any(isinstance(module, nn.SyncBatchNorm) for module in network.modules()):
        raise InputError(
            f"{method} differentiates the student twice, which batch normalisation over several GPUs cannot: "
            "train on one GPU"
        )
