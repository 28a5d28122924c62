# SPDX-License-Identifier: Apache-2.0
"""Masks as people draw them (0 and 1, 0 and 255, class numbers, colours) become class indices, or are refused."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.data import read_mask_colours
from pipeline.errors import InputError

_HEX = re.compile(r"#([0-9a-fA-F]{6})")
_BLACK = 0x000000
_WHITE_GREY = 255
_JPEG = (".jpg", ".jpeg")
# How many values or colours one line lists.
_MOST_LISTED = 6


class MaskReader:
    """Reads masks of the classes `labels` (value to name, 0 the background).

    `colours`: name of a class to `"#rrggbb"`, for coloured masks; black is the background unless it is named too.
    `threshold`: grey values above it are class 1. Without either, grey values are class indices, and with one class 0
    and 255 as well as 0 and 1; a mask in colour must then hold black and one more colour, the same in all masks.
    Raises `InputError` for names, colours and thresholds that do not fit the classes.
    """

    def __init__(
        self, labels: Mapping[int, str], colours: Mapping[str, str] | None = None, threshold: int | None = None
    ) -> None:
        self._classes = len(labels)
        self._example = labels[max(labels)]
        self._colours = None if colours is None else _values_by_colour(colours, labels)
        self._threshold = threshold
        self._only_colour: int | None = None
        if threshold is not None:
            self._check_threshold(threshold)

    def read(self, path: str | Path) -> np.ndarray:
        """Return a mask as (H, W) uint8 class indices; `InputError` with the values that mean nothing, and counts."""
        pixels = read_mask_colours(path)
        if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
            pixels = pixels[..., 0]  # grey, saved as colour
        if self._threshold is not None:
            return self._above_threshold(path, pixels)
        if Path(path).suffix.lower() in _JPEG:
            raise InputError(f"{path} is a JPEG, and JPEG masks blur values; {self._jpeg_advice()}")
        if self._colours is not None:
            return self._by_colour(path, _codes(pixels))
        return self._by_value(path, pixels) if pixels.ndim == 2 else self._by_only_colour(path, _codes(pixels))

    def _check_threshold(self, threshold: int) -> None:
        if self._colours is not None:
            raise InputError("give --mask-colors or --mask-threshold, not both")
        if self._classes != 2:
            raise InputError(f"--mask-threshold tells one class from the background, not {self._classes - 1}")
        if not 0 <= threshold < _WHITE_GREY:
            raise InputError(f"--mask-threshold {threshold} is not in 0..254; 127 is the middle")

    def _jpeg_advice(self) -> str:
        return "save as PNG" + (" or give --mask-threshold 127" if self._classes == 2 and not self._colours else "")

    def _above_threshold(self, path: str | Path, pixels: np.ndarray) -> np.ndarray:
        if pixels.ndim == 3:
            raise InputError(
                f"{path} is in colour, and --mask-threshold is for grey; save it as PNG, use --mask-colors"
            )
        if 0 < pixels.max() <= 1 <= self._threshold:
            raise InputError(
                f"{path} holds 0 and 1, all below --mask-threshold {self._threshold}; leave the option out"
            )
        return (pixels > self._threshold).astype(np.uint8)

    def _by_value(self, path: str | Path, pixels: np.ndarray) -> np.ndarray:
        counts = np.bincount(pixels.ravel(), minlength=256)
        present = set(np.flatnonzero(counts).tolist())
        if self._classes == 2 and present <= {0, _WHITE_GREY}:
            return (pixels == _WHITE_GREY).astype(np.uint8)
        unknown = {str(value): int(counts[value]) for value in sorted(present) if value >= self._classes}
        if unknown:
            known = "0 and 1, or 0 and 255" if self._classes == 2 else f"0..{self._classes - 1}"
            raise InputError(f"{path} holds {_listed(unknown)}, which name no class; known are {known}: correct it")
        return pixels

    def _by_colour(self, path: str | Path, codes: np.ndarray) -> np.ndarray:
        labels = np.zeros(codes.shape, np.uint8)
        known = np.zeros(codes.shape, bool)
        for code, value in (self._colours or {}).items():
            here = codes == code
            labels[here] = value
            known |= here
        if not known.all():
            named = ", ".join(map(_name, self._colours or {}))
            raise InputError(
                f"{path} holds {_listed(_colour_counts(codes[~known]))}, which name no class; known are {named}: "
                "correct it or --mask-colors"
            )
        return labels

    def _by_only_colour(self, path: str | Path, codes: np.ndarray) -> np.ndarray:
        """Return 1 where a mask of black and one colour has the colour; another one elsewhere is another class."""
        present = np.unique(codes).tolist()
        if self._classes != 2 or len(present) != 2 or present[0] != _BLACK:
            example = f'--mask-colors "{self._example}=#rrggbb"'
            raise InputError(f"{path} holds {_listed(_colour_counts(codes))}; say what they mean: {example}")
        if self._only_colour is None:
            self._only_colour = present[1]
        if self._only_colour != present[1]:
            first, other = _name(self._only_colour), _name(present[1])
            raise InputError(
                f"{path} is drawn in {other}, masks before it in {first}; say what they mean: --mask-colors"
            )
        return (codes != _BLACK).astype(np.uint8)


def parse_colours(text: str) -> dict[str, str]:
    """Return `"cancer=#ff0000, background=#ffffff"` as name to colour; `InputError` where it reads otherwise."""
    colours: dict[str, str] = {}
    for part in text.split(","):
        name, equals, colour = (piece.strip() for piece in part.rpartition("="))
        if not equals or not name or name in colours:
            raise InputError(
                f'--mask-colors: {part.strip()!r} is not a name of its own with a colour, "cancer=#ff0000"'
            )
        colours[name] = colour
    return colours


def _values_by_colour(colours: Mapping[str, str], labels: Mapping[int, str]) -> dict[int, int]:
    """Return colour (0xrrggbb) to class index, black for the background unless it is named."""
    values = {name: value for value, name in labels.items()}
    by_colour: dict[int, int] = {}
    for name, colour in {**({} if labels[0] in colours else {labels[0]: _name(_BLACK)}), **colours}.items():
        match = _HEX.fullmatch(colour)
        if match is None:
            raise InputError(f"--mask-colors: {colour!r} of {name} is no colour such as #ff0000")
        if name not in values:
            close = difflib.get_close_matches(name, values, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(values)}"
            raise InputError(f"--mask-colors: no class {name!r}; {hint}")
        if by_colour.setdefault(int(match[1], 16), values[name]) != values[name]:
            raise InputError(f"--mask-colors: {colour} stands for two classes; background is black unless it is named")
    missing = [name for name, value in values.items() if value not in by_colour.values()]
    if missing:
        raise InputError(f"--mask-colors: no colour for {', '.join(missing)}; name one for each class")
    return by_colour


def _codes(pixels: np.ndarray) -> np.ndarray:
    """Return grey (H, W) or RGB (H, W, 3) uint8 as colours 0xrrggbb (H, W), uint32."""
    wide = (pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)).astype(np.uint32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def _name(code: int) -> str:
    return f"#{code:06x}"


def _colour_counts(codes: np.ndarray) -> dict[str, int]:
    values, counts = np.unique(codes, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {_name(int(values[index])): int(counts[index]) for index in order}


def _listed(counts: Mapping[str, int]) -> str:
    """Return what is in a mask and how many pixels of each, such as `7 (12 pixels), 9 (1 pixel)`."""
    parts = [f"{name} ({count} pixel{'s' if count != 1 else ''})" for name, count in counts.items()]
    more = [f"{len(parts) - _MOST_LISTED} more"] if len(parts) > _MOST_LISTED else []
    return ", ".join(parts[:_MOST_LISTED] + more)
