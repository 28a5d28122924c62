# SPDX-License-Identifier: Apache-2.0
"""A made-up CT scan, and students trained on it for a minute: their masks are smooth, as those of real students are.

Random weights make another class of nearly every pixel, and what depends on the borders of classes costs many times as
much then.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.inference_memory import CLASSES, SIDE, scan_header
from pipeline.data import CT_WINDOW, resize_images
from pipeline.networks import build_network

_AIR_HU, _BODY_HU, _NOISE_HU = -1000.0, 40.0, 15.0
_CROP, _BATCH, _STEPS = 96, 4, 120


def phantom_slice(random: np.random.Generator, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """Return an axial slice (side, side) float in HU, and its labels uint8: a body with eight wavy organs."""
    x, y = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side), indexing="ij")
    image = np.where(x**2 + 1.8 * y**2 < 0.8, _BODY_HU, _AIR_HU)
    labels = np.zeros((side, side), np.uint8)
    for organ in range(1, CLASSES):
        angle = 2 * np.pi * organ / (CLASSES - 1)
        dx, dy = x - 0.5 * np.cos(angle) - random.normal(0, 0.02), y - 0.35 * np.sin(angle) - random.normal(0, 0.02)
        wave = 1 + 0.15 * np.sin(5 * np.arctan2(dy, dx) + random.uniform(0, 2 * np.pi))
        inside = np.hypot(dx, dy) < (0.06 + 0.012 * organ) * wave
        image[inside], labels[inside] = -100.0 + 40 * organ, organ
    return image + random.normal(0, _NOISE_HU, image.shape), labels


def write_phantom(path: Path, slices: int) -> None:
    """Write a scan of such slices, int16, stored LPS so that every slice must be turned."""
    random = np.random.default_rng(0)
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(scan_header(slices))
        for _ in range(slices):
            image, _ = phantom_slice(random)
            stream.write(np.flip(image, (0, 1)).astype("<i2").tobytes(order="F"))


def trained_student(network: str, size: int) -> nn.Module:
    """Return a student trained for a minute on crops of such slices at `size`."""
    torch.manual_seed(0)
    random = np.random.default_rng(1)
    slices = [phantom_slice(random) for _ in range(24)]
    images = torch.stack([torch.from_numpy(image).float() for image, _ in slices])[:, None]
    images = resize_images(((images - CT_WINDOW.low) / (CT_WINDOW.high - CT_WINDOW.low)).clamp(0, 1), (size, size))
    labels = torch.stack([torch.from_numpy(label).float() for _, label in slices])[:, None]
    labels = F.interpolate(labels, size=(size, size), mode="nearest-exact").long()
    student = build_network(network, in_channels=1, out_channels=CLASSES)
    optimizer = torch.optim.Adam(student.parameters(), lr=5e-3)
    weights = torch.tensor([0.2] + [1.0] * (CLASSES - 1))
    for _ in range(_STEPS):
        some_images, some_labels = _crops(images, labels, random)
        optimizer.zero_grad()
        F.cross_entropy(student(some_images), some_labels, weights).backward()
        optimizer.step()
    return student.eval()


def _crops(images: Tensor, labels: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return crops (B, 1, C, C) of random slices, and their labels (B, C, C)."""
    found = []
    for _ in range(_BATCH):
        index, (top, left) = random.integers(len(images)), random.integers(images.shape[-1] - _CROP + 1, size=2)
        found.append([maps[index, :, top : top + _CROP, left : left + _CROP] for maps in (images, labels)])
    some_images, some_labels = zip(*found, strict=True)
    return torch.stack(some_images), torch.stack(some_labels)[:, 0]
