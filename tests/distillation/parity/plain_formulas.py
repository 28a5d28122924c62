# SPDX-License-Identifier: Apache-2.0
"""What the written-out formulas share: random maps, views of them, and vectors, softmax and regions by loops."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped

CLASSES = 3
Vector = Sequence[float]


def maps(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(student: tuple[int, ...], teacher: tuple[int, ...], **known: object) -> NetworkPair:
    return NetworkPair(nn.Identity(), nn.Identity(), teacher, student, CLASSES, **known)


def view(seed: int, channels: tuple[int, ...], side: int = 4, batch: int = 2) -> Tapped:
    """Random taps of these channels and logits of the double size."""
    taps = tuple(maps(seed + index, batch, count, side, side) for index, count in enumerate(channels))
    return Tapped(taps, maps(seed + 9, batch, CLASSES, 2 * side, 2 * side))


def terms(method: DistillationMethod, student: Tapped, teacher: Tapped, labels: torch.Tensor | None = None) -> dict:
    """The method's terms in double precision, as numbers."""
    labels = torch.zeros(len(student.logits), 1, *student.logits.shape[2:]) if labels is None else labels
    found = method.double()(student, teacher, labels)
    return {name: float(value.detach()) for name, value in found.items()}


def dot(one: Vector, other: Vector) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def unit(vector: Vector) -> list[float]:
    length = math.sqrt(dot(vector, vector))
    return [value / length for value in vector]


def cosine(one: Vector, other: Vector) -> float:
    return dot(unit(one), unit(other))


def softmax(values: Vector, temperature: float = 1.0) -> list[float]:
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def divergence(target: Vector, found: Vector) -> float:
    """KL(target || found)."""
    return sum(p * math.log(p / q) for p, q in zip(target, found, strict=True))


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def pixels(features: torch.Tensor) -> list[list[float]]:
    """The vector of each pixel of (B, C, H, W), image by image, row by row."""
    return features.permute(0, 2, 3, 1).flatten(0, 2).tolist()


def regions(features: torch.Tensor, grid: int, of_region: object = np.mean) -> list[list[float]]:
    """The mean (or another figure) of each channel over each square of a grid, image by image, row by row."""
    step_down, step_right = (side // grid for side in features.shape[2:])
    found = []
    for image in features.detach().numpy():
        for row in range(grid):
            for column in range(grid):
                rows = slice(row * step_down, (row + 1) * step_down)
                columns = slice(column * step_right, (column + 1) * step_right)
                found.append([float(of_region(channel[rows, columns])) for channel in image])
    return found


def pointwise(convolution: nn.Module, features: torch.Tensor) -> np.ndarray:
    """A convolution of kernel 1, channel by channel."""
    weight = convolution.weight.detach().double().flatten(1).numpy()
    bias = np.zeros(len(weight)) if convolution.bias is None else convolution.bias.detach().double().numpy()
    return np.stack(
        [
            [sum(w * c for w, c in zip(row, image, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
            for image in np.asarray(features)
        ]
    )


def three_by_three(convolution: nn.Module, features: np.ndarray) -> np.ndarray:
    """A convolution of kernel 3 with zeros around the map, place of the kernel by place."""
    weight = convolution.weight.detach().double().numpy()
    found = np.zeros(1) if convolution.bias is None else convolution.bias.detach().double().numpy()[:, None, None]
    height, width = features.shape[2:]
    padded = np.pad(features, ((0, 0), (0, 0), (1, 1), (1, 1)))
    for down, right in product(range(3), repeat=2):
        seen = padded[:, :, down : down + height, right : right + width]
        found = found + np.einsum("oc,bcyx->boyx", weight[:, :, down, right], seen)
    return found


def normalised(norm: nn.Module, values: np.ndarray) -> np.ndarray:
    """Batch normalisation in training: by the mean and the variance of each channel over the batch."""
    centred = values - values.mean((0, 2, 3), keepdims=True)
    weight, bias = (vector.detach().double().numpy()[None, :, None, None] for vector in (norm.weight, norm.bias))
    return centred / np.sqrt((centred**2).mean((0, 2, 3), keepdims=True) + 1e-5) * weight + bias


def encoded(layers: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A paraphraser's encoder or a translator: convolutions of kernel 3, each with a LeakyReLU of slope 0.1."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            x = F.conv2d(x, layer.weight, layer.bias, padding=1)
            x = torch.where(x > 0, x, 0.1 * x)
    return x.detach()
