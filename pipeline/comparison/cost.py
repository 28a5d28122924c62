# SPDX-License-Identifier: Apache-2.0
"""The cost of a network: parameters, multiply-adds of one image, and its latency on one thread of this CPU."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.comparison.arms import Arm
from pipeline.networks import PaddedInferer, SavedModel, load_model
from pipeline.networks.cost import multiply_adds, parameter_count

WARM_UP = 2
REPEATS = 15
FEWEST_REPEATS = 3
BUDGET_SECONDS = 10.0


@dataclass(frozen=True)
class Cost:
    """Cost of one image of the size that the network was trained at, batch 1.

    `multiply_adds` are those of convolutions and linear layers; `latency_ms_cpu_1thread` is a median on this machine.
    """

    parameters: int
    multiply_adds: int
    latency_ms_cpu_1thread: float


def costs_of(arms: Sequence[Arm]) -> list[Cost]:
    """Return the cost of each arm's network; equal networks are measured once."""
    known: dict[str, Cost] = {}
    costs = []
    for arm in arms:
        model = load_model(arm.runs[0].checkpoint)
        key = json.dumps([model.network_arguments, model.size], sort_keys=True)
        if key not in known:
            known[key] = model_cost(model)
        costs.append(known[key])
    return costs


def model_cost(model: SavedModel) -> Cost:
    """Return the cost of a saved model."""
    shape = image_shape(model)
    return Cost(
        parameters=parameter_count(model.network),
        multiply_adds=multiply_adds(model.network, shape),
        latency_ms_cpu_1thread=latency_ms(model.network, shape),
    )


def image_shape(model: SavedModel) -> tuple[int, ...]:
    """Return the shape of the image that a network sees, (C, H, W) or (C, D, H, W), padded to what it can take."""
    axes = getattr(model.network, "spatial_dims", 2)
    sides = [model.size] * axes if isinstance(model.size, int) else list(model.size)
    divisor = getattr(model.network, "size_divisor", 1)
    return model.network_arguments["in_channels"], *(math.ceil(side / divisor) * divisor for side in sides)


def latency_ms(network: nn.Module, shape: Sequence[int]) -> float:
    """Return the median milliseconds of one image (C, ...) on one thread, after a warm-up, in evaluation mode.

    It is repeated `REPEATS` times, fewer where that would take longer than `BUDGET_SECONDS`.
    """
    threads, image = torch.get_num_threads(), torch.zeros(1, *shape)
    inferer = PaddedInferer()
    seconds: list[float] = []
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for _ in range(WARM_UP):
                inferer(image, network)
            while len(seconds) < REPEATS and (len(seconds) < FEWEST_REPEATS or sum(seconds) < BUDGET_SECONDS):
                started = time.perf_counter()
                inferer(image, network)
                seconds.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return 1000 * statistics.median(seconds)
