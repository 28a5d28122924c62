# SPDX-License-Identifier: Apache-2.0
"""The shapes of a network's feature maps, found on the meta device without values, memory or random numbers."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import InputError

_LEAST_SIDE = 8
# Coprime sides: a map with channels last, as in transformers, then fits no stride and is not taken for (B, C, ...).
_RATIOS = (3, 5, 7)
_SHOWN = 5


@dataclass(frozen=True)
class FeatureMap:
    """One feature map (B, channels, *sides) that a module of a network gives.

    Attributes:
        name: dotted name of the module.
        channels: of the map.
        strides: sides of the image divided by sides of the map, one number per axis.
        source: maps with the same source are one tensor, passed on by several modules.
    """

    name: str
    channels: int
    strides: tuple[int, ...]
    source: int

    @property
    def stride(self) -> str:
        """The stride as text: `4`, or `1 x 2 x 2` where the axes differ."""
        return str(self.strides[0]) if len(set(self.strides)) == 1 else " x ".join(map(str, self.strides))

    def __str__(self) -> str:
        return f"{self.name} ({self.channels} channels, stride {self.stride})"


def without_values(network: nn.Module) -> nn.Module:
    """Return a copy of the network on the meta device; the network itself is untouched, and its values not copied."""
    tensors = [*network.parameters(), *network.buffers()]
    for module in network.modules():
        tensors += [value for value in vars(module).values() if isinstance(value, Tensor)]
    memo: dict[int, Any] = {}
    for tensor in tensors:
        bare = tensor.detach().to("meta")
        memo[id(tensor)] = nn.Parameter(bare, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare
    return copy.deepcopy(network, memo)


def trial_sides(network: nn.Module) -> tuple[int, ...]:
    """Return sides of a small image that the network takes, different ones if it can."""
    divisor = network.size_divisor
    if network.fixed_size:
        return (divisor,) * network.spatial_dims
    return tuple(ratio * divisor * -(-_LEAST_SIDE // divisor) for ratio in _RATIOS[: network.spatial_dims])


def feature_maps(network: nn.Module) -> list[FeatureMap]:
    """Return the maps (B, C, ...) of all modules in the order in which they are ready: the modules that can be tapped.

    Left out are modules that run several times in one pass, maps that a later layer changes in place, maps with a side
    that does not divide the image's, and the logits.

    Args:
        network: with `in_channels`, `size_divisor`, `fixed_size` and `spatial_dims`.
    """
    sides = trial_sides(network)
    bare = without_values(network).eval()
    seen: list[tuple[str, Any, int]] = []
    for name, module in bare.named_modules():
        module.register_forward_hook(
            lambda module, inputs, output, name=name: seen.append((name, output, getattr(output, "_version", 0)))
        )
    with torch.no_grad():
        logits = bare(torch.empty(1, network.in_channels, *sides, device="meta"))
    runs = [name for name, _, _ in seen]
    maps = []
    for name, output, version in seen:
        if runs.count(name) > 1 or not isinstance(output, Tensor) or output is logits or output._version != version:
            continue
        strides = _strides(output, sides)
        if strides is not None:
            maps.append(FeatureMap(name, output.shape[1], strides, id(output)))
    return maps


def _strides(output: Tensor, sides: Sequence[int]) -> tuple[int, ...] | None:
    """Return the stride along each axis, or None for a tensor that is no feature map."""
    shape = output.shape[2:]
    if output.ndim != len(sides) + 2 or 0 in shape or any(side % own for side, own in zip(sides, shape, strict=True)):
        return None
    return tuple(side // own for side, own in zip(sides, shape, strict=True))


def distinct(maps: Iterable[FeatureMap]) -> list[FeatureMap]:
    """Return each tensor once, under the shortest name of those that hand it on and at the place of that one."""
    maps = list(maps)
    best: dict[int, FeatureMap] = {}
    for one in maps:
        other = best.get(one.source)
        if other is None or _length(one) < _length(other):
            best[one.source] = one
    return [one for one in maps if best[one.source] is one]


def _length(one: FeatureMap) -> tuple[int, int]:
    return one.name.count("."), len(one.name)


def check_taps(network: nn.Module, names: Any, maps: Sequence[FeatureMap]) -> tuple[int, ...]:
    """Return the channels of the named ones among the network's `feature_maps`.

    Raises `InputError` for names that are no list of two or more, or that give no feature map; the message lists the
    nearest that do, with channels and stride.
    """
    if isinstance(names, str) or not isinstance(names, Sequence) or len(names) < 2:
        raise InputError(f"taps are {names!r}; give a list of two or more module names, shallow to deep")
    if len(set(map(str, names))) < len(names):
        raise InputError(f"taps are {list(names)!r}; name each module once")
    channels = {one.name: one.channels for one in maps}
    for name in names:
        if name not in channels:
            raise InputError(_no_map(network, name, distinct(maps)))
    return tuple(channels[name] for name in names)


def _no_map(network: nn.Module, name: Any, maps: list[FeatureMap]) -> str:
    near = difflib.get_close_matches(str(name), [one.name for one in maps], n=_SHOWN, cutoff=0)
    named = {one.name: str(one) for one in maps}
    what = "has no module" if name not in dict(network.named_modules()) else "gives no feature map to tap at"
    return f"{type(network).__name__} {what} '{name}'; the nearest maps are {', '.join(named[each] for each in near)}"
