# SPDX-License-Identifier: Apache-2.0
"""Weights of pixels by the class: from equal weight for each pixel to equal weight for each class of the batch."""

from __future__ import annotations

import torch
import torch.distributed as dist

from pipeline.errors import InputError
from pipeline.processes.global_batch import world_size


def check_balance(owner: str, balance: float) -> float:
    """Return `balance` if it is a number from 0 to 1; `InputError` that names its owner otherwise."""
    good = isinstance(balance, int | float) and not isinstance(balance, bool) and 0 <= balance <= 1
    if not good:
        raise InputError(
            f"{owner}: balance is {balance!r}; it must be from 0 (each pixel counts the same) to 1 (each class does)"
        )
    return float(balance)


def pixel_weights(classes: torch.Tensor, out_channels: int, balance: float) -> torch.Tensor:
    """Return a weight for each pixel, with a mean of one over the batch of all processes; collective.

    With p_k the share of class k among all pixels of the batch, a pixel of class k weighs

        w_k = p_k^-balance / sum_j p_j^(1 - balance)        (j: classes that the batch has)

    so that class k as a whole counts in proportion to p_k^(1 - balance): to its area at 0, to the square root of its
    area at 0.5, and as much as any other class at 1. The mean of a loss times these weights, averaged over processes,
    is the loss of one process with the whole batch.

    Args:
        classes: (B, ...) integers from 0 to out_channels - 1.
        out_channels: number of classes K.
        balance: from 0 (pixels count alike) to 1 (classes count alike).

    Returns:
        Weights of the shape of `classes`, float32, without a graph.
    """
    if balance == 0:
        return torch.ones(classes.shape, device=classes.device)
    counts = torch.bincount(classes.flatten(), minlength=out_channels).float()
    if world_size() > 1:
        dist.all_reduce(counts)
    shares = counts / counts.sum()
    there = counts > 0
    weights = torch.where(there, shares.clamp(min=1e-12) ** -balance, 0.0)
    return (weights / (shares * weights).sum())[classes]


def known_classes(labels: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Return the class of each pixel (B, ...): the label's, or the teacher's likeliest where there is no label.

    Args:
        labels: (B, 1, ...); values outside 0 .. K - 1, such as -1, mean that the pixel has no label.
        teacher_logits: (B, K, ...).
    """
    classes = labels.squeeze(1).long()
    unknown = (classes < 0) | (classes >= teacher_logits.shape[1])
    return torch.where(unknown, teacher_logits.argmax(dim=1), classes)
