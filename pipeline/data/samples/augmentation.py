# SPDX-License-Identifier: Apache-2.0
"""Random changes to a batch of slices, on its own device: one resampling per batch, random numbers from the CPU."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import InputError

# "affine": the ranges are those by which a patient's position and a scanner's calibration vary, not more.
_ROTATION_DEGREES = 15.0
_SCALE = (0.85, 1.15)
_SHIFT_FRACTION = 0.10
_GAMMA = (0.8, 1.25)
_CONTRAST = (0.9, 1.1)
_BRIGHTNESS = 0.05


class BatchAugmentation:
    """The base of all augmentations of batches: one of the named `kinds`, its own random generator, a state to resume.

    `option` is the one that chooses the kind, for messages.

    The generator is on the CPU, so random numbers are the same on every device and no other generator is touched.
    `state_dict` lets a resumed run go on exactly. Raises `InputError` for a kind that is not in `kinds`.
    """

    kinds: ClassVar[tuple[str, ...]] = ()
    option: ClassVar[str] = "augmentation"

    def __init__(self, kind: str, seed: int = 0) -> None:
        if kind not in self.kinds:
            raise InputError(f"--{self.option} {kind!r} is unknown; choose one of {', '.join(self.kinds)}")
        self.kind = kind
        self._generator = torch.Generator(device="cpu").manual_seed(seed)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return new images (B, C, ...) and labels (B, 1, ...); the given ones are not changed."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the kind and the state of the generator: primitives and one tensor."""
        return {"kind": self.kind, "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the draws where `state_dict` left them; `InputError` for the state of another kind."""
        if state["kind"] != self.kind:
            raise InputError(f"the run was augmented by {state['kind']!r}, not {self.kind!r}; resume it with the same")
        # A checkpoint may have been mapped to the GPU on load; generator states live on the CPU.
        self._generator.set_state(state["generator"].cpu())

    def _uniform(self, batch: int, columns: int) -> Tensor:
        """Return (batch, columns) numbers in [0, 1)."""
        return torch.rand((batch, columns), generator=self._generator)


class SliceAugmentation(BatchAugmentation):
    """Augment slices and their labels together.

    Kinds:
        paper: the Synapse recipe. One half of the slices: a quarter turn k times (k in 0..3), then a flip along one
            axis. One quarter: a rotation by a whole angle in [-20, 19] degrees. The rest stays. Nearest neighbour for
            image and label, zeros outside.
        affine: rotation within 15 degrees, scale 0.85..1.15, shift within 10 % of the side, and mild gamma, contrast
            and brightness. No flips: left and right organs have labels of their own, so a mirrored slice teaches a
            wrong side. Images bilinear, labels nearest, zeros outside.
        none: everything stays.

    Images are expected in [0, 1].
    """

    kinds = ("paper", "affine", "none")

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return new `images` (B, 1, H, W) float and `labels` (B, 1, H, W) of the dtype given.

        Raises `ValueError` for other shapes, and for slices that are not square where quarter turns need it.
        """
        _check_shapes(images, labels, square=self.kind == "paper")
        if self.kind == "none":
            return images, labels
        if self.kind == "paper":
            return _warp(images, labels, self._draw_paper(len(images)), image_mode="nearest")
        matrices = self._draw_affine(len(images))
        return _warp(self._change_intensity(images), labels, matrices, image_mode="bilinear")

    def _draw_paper(self, batch: int) -> Tensor:
        """Return (B, 2, 3) matrices from output to input positions, in pixels from the centre, (column, row)."""
        choice, quarter, axis, angle = self._uniform(batch, 4).unbind(1)
        turned = _rotation(torch.floor(quarter * 4) * 90.0)
        flips = torch.ones(batch, 2)
        flips[torch.arange(batch), (axis < 0.5).long()] = -1.0
        # Output to input runs backwards: what is applied last (the flip) comes first.
        turned_and_flipped = turned * flips[:, None, :]
        rotated = _rotation(torch.floor(angle * 40) - 20)
        chosen = torch.where((choice < 0.5)[:, None, None], turned_and_flipped, rotated)
        chosen[choice >= 0.75] = torch.eye(2)
        return F.pad(chosen, (0, 1))

    def _draw_affine(self, batch: int) -> Tensor:
        """Return (B, 2, 3) matrices like `_draw_paper`; the shift is a fraction of each side."""
        angle, scale, *shift = self._uniform(batch, 4).unbind(1)
        turned = _rotation((2 * angle - 1) * _ROTATION_DEGREES)
        matrices = turned / between(scale, *_SCALE)[:, None, None]
        return torch.cat([matrices, (2 * torch.stack(shift, 1)[:, :, None] - 1) * _SHIFT_FRACTION], dim=2)

    def _change_intensity(self, images: Tensor) -> Tensor:
        """Return images in [0, 1] with another gamma, contrast about mid grey, and brightness per slice."""
        return change_intensity(images, self._uniform(len(images), 3), _GAMMA, _CONTRAST, _BRIGHTNESS)


def change_intensity(
    images: Tensor, draws: Tensor, gamma: tuple[float, float], contrast: tuple[float, float], brightness: float
) -> Tensor:
    """Return images (B, C, ...) in [0, 1] with another gamma, contrast about mid grey, and brightness.

    Args:
        images: not changed themselves.
        draws: (B, 3) numbers in [0, 1).
        gamma: range (low, high) of the exponent.
        contrast: range (low, high) of the factor.
        brightness: largest offset, up or down.
    """
    exponent, factor, offset = draws.unbind(1)
    # Drawn by logarithm, so that a darker and a brighter image are equally likely.
    exponent = torch.exp(between(exponent, *map(math.log, gamma)))
    exponent, factor, offset = (
        value.to(images).reshape(-1, *[1] * (images.ndim - 1))
        for value in (exponent, between(factor, *contrast), (2 * offset - 1) * brightness)
    )
    return (images.clamp(0, 1).pow(exponent).sub_(0.5).mul_(factor).add_(0.5 + offset)).clamp_(0, 1)


def between(uniform: Tensor, low: float, high: float) -> Tensor:
    """Return `uniform`, numbers in [0, 1) of any shape, scaled to the range from `low` to `high`."""
    return low + (high - low) * uniform


def _rotation(degrees: Tensor) -> Tensor:
    """Return (B, 2, 2) matrices that turn output positions (column, row) back, so the image turns counterclockwise."""
    radians = torch.deg2rad(degrees.double())
    cosine, sine = torch.cos(radians), torch.sin(radians)
    matrices = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
    # Quarter turns are exact zeros and ones: 6e-17 instead of 0 could tip a sample over to the next pixel.
    return torch.where(matrices.abs() < 1e-12, 0.0, matrices).float()


def _warp(images: Tensor, labels: Tensor, matrices: Tensor, image_mode: str) -> tuple[Tensor, Tensor]:
    """Resample both by `matrices` (B, 2, 3) in pixels (columns 0 and 1) and side fractions (column 2)."""
    height, width = images.shape[-2:]
    # affine_grid counts from -1 to 1 whatever the side; rotation must happen in pixels.
    aspect = torch.tensor([[1.0, height / width, 2.0], [width / height, 1.0, 2.0]])
    theta = (matrices * aspect).to(images)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    warped = F.grid_sample(images, grid, mode=image_mode, padding_mode="zeros", align_corners=False)
    carried = F.grid_sample(labels.to(images.dtype), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return warped, carried.to(labels.dtype)


def _check_shapes(images: Tensor, labels: Tensor, square: bool) -> None:
    if images.ndim != 4 or images.shape[1] != 1 or images.shape != labels.shape:
        raise ValueError(f"images {tuple(images.shape)} and labels {tuple(labels.shape)} must both be (B, 1, H, W)")
    if square and images.shape[-1] != images.shape[-2]:
        raise ValueError(f"quarter turns need square slices, not {images.shape[-2]} x {images.shape[-1]}")
