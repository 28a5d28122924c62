# SPDX-License-Identifier: Apache-2.0
"""Segmentation networks of MONAI as teachers and students; a checkpoint can only name a network of this list.

The network stays MONAI's own, with MONAI's names of parameters, so that weights trained elsewhere fit. It gets
attributes that say how to build, pad and tap it.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.networks import nets
from monai.networks.layers import SkipConnection
from torch import Tensor, nn

from pipeline.described import plain
from pipeline.errors import InputError
from pipeline.networks.shapes import FeatureMap, check_taps, distinct, feature_maps, trial_sides, without_values

PACKAGE = "monai.networks.nets"
_GIVEN = ("spatial_dims", "in_channels", "out_channels")
_QUARTER = 4  # the stride of the published method's taps


@dataclass(frozen=True)
class Family:
    """Facts about a network class of MONAI that its signature does not tell.

    Attributes:
        divisor: the multiple that sides of images must be, from all arguments of the class.
        fixed_size: the network takes images of exactly that side.
        taps: default taps where the rule of `default_taps` finds none that are an encoder's and a decoder's.
        on_meta: the class can be built without values.
    """

    divisor: Callable[[Mapping[str, Any]], int]
    fixed_size: bool = False
    taps: tuple[str, ...] = ()
    on_meta: bool = True


def _product_per_axis(strides: Sequence[Any]) -> int:
    """Return the least common multiple over the axes of what the strides of all levels multiply to."""
    per_axis = [stride if isinstance(stride, Sequence) else (stride,) for stride in strides]
    axes = max(map(len, per_axis), default=1)
    return math.lcm(*(math.prod(one[axis % len(one)] for one in per_axis) for axis in range(axes)))


def _levels_of_channels(arguments: Mapping[str, Any]) -> int:
    return _product_per_axis(arguments["strides"][: len(arguments["channels"]) - 1])


def _image_side(arguments: Mapping[str, Any]) -> int:
    side = arguments["img_size"]
    sides = set(side) if isinstance(side, Sequence) else {side}
    if len(sides) != 1:
        raise InputError(f"img_size of UNETR is {side!r}; give one side for all axes")
    return sides.pop()


FAMILIES: dict[str, Family] = {
    "AttentionUnet": Family(_levels_of_channels),
    "BasicUNet": Family(lambda arguments: 16),
    "DynUNet": Family(lambda arguments: _product_per_axis(arguments["strides"])),
    "FlexibleUNet": Family(lambda arguments: 32),
    "HighResNet": Family(lambda arguments: 1),
    "MedNeXt": Family(lambda arguments: 2 ** len(arguments["blocks_down"])),
    "SegResNet": Family(lambda arguments: 2 ** (len(arguments["blocks_down"]) - 1)),
    "SwinUNETR": Family(lambda arguments: arguments["patch_size"] ** 5, on_meta=False),
    "UNETR": Family(_image_side, fixed_size=True, taps=("encoder3", "decoder4"), on_meta=False),
    "UNet": Family(_levels_of_channels),
    "VNet": Family(lambda arguments: 16),
}
MONAI_NETWORKS: tuple[str, ...] = tuple(f"{PACKAGE}.{name}" for name in FAMILIES)
UNSUITED: dict[str, str] = {
    "AHNet": "it takes no small images; use SegResNet",
    "BasicUNetPlusPlus": "it returns a list; use BasicUNet",
    "RegUNet": "it registers images; use UNet",
    "SegResNetDS": "it returns a list in training; use SegResNet",
    "SegResNetDS2": "it returns a list in training; use SegResNet",
    "SegResNetVAE": "it returns a pair; use SegResNet",
}
_REFUSED = {
    "deep_supervision": "the network would return several outputs, and distillation compares one",
    "pretrained": "it would load weights from elsewhere; weights come from model files",
}


def build_monai_network(
    name: str, in_channels: int, out_channels: int, spatial_dims: int = 2, taps: Sequence[str] | None = None, **options
) -> nn.Module:
    """Return a freshly initialised network of MONAI with the attributes of `SegmentationNetwork`.

    Args:
        name: one of `MONAI_NETWORKS`, such as "monai.networks.nets.SegResNet".
        in_channels: channels of the images.
        out_channels: number of classes K, the background included.
        spatial_dims: 2 for images, 3 for volumes.
        taps: dotted names of two or more modules to compare in distillation, shallow to deep; by default those of
            `default_taps`.
        options: further keyword arguments of the class, as plain values.

    Raises:
        InputError: a name that is not in the list; an option that the class does not have, refuses, or that makes it
            return anything but logits; taps that are no feature maps.
    """
    if name not in MONAI_NETWORKS:
        raise InputError(f"'{name}' {_why_not(name)}")
    short = name.rpartition(".")[2]
    family, network_class = FAMILIES[short], getattr(nets, short)
    if isinstance(spatial_dims, bool) or spatial_dims not in (2, 3):
        raise InputError(f"spatial_dims of '{name}' is {spatial_dims!r}; give 2 for images or 3 for volumes")
    options = _checked_options(name, network_class, options)
    given = {"in_channels": in_channels, "out_channels": out_channels, "spatial_dims": spatial_dims}
    network = _instantiated(name, network_class, {**given, **options}, family.on_meta)
    if spatial_dims == 2:
        drop_channels_not_images(network)
    arguments = inspect.signature(network_class).bind(**given, **options)
    arguments.apply_defaults()
    network.in_channels, network.out_channels, network.spatial_dims = in_channels, out_channels, spatial_dims
    network.size_divisor, network.fixed_size = family.divisor(arguments.arguments), family.fixed_size
    _check_output(name, network)
    maps = feature_maps(network)
    network.taps = tuple(taps) if isinstance(taps, list | tuple) else taps or family.taps or default_taps(network, maps)
    network.tap_channels = check_taps(network, network.taps, maps)
    network.arguments = plain("network_arguments", {"name": name, **given, **options, "taps": network.taps})
    return network


def default_taps(network: nn.Module, maps: Sequence[FeatureMap]) -> tuple[str, str]:
    """Return the last stage of the encoder and the last of the decoder at a quarter of the resolution.

    Stages are the modules with the fewest dots in their names. If encoder and decoder have none at a quarter, the
    nearest resolution that both have is taken. In a network that keeps the resolution, the stages half way and before
    the head are taken. The encoder ends with the last map of the largest stride.
    """
    skips = {name for name, module in network.named_modules() if isinstance(module, SkipConnection)}
    maps = [one for one in distinct(maps) if one.name not in skips]
    turn = max(range(len(maps)), key=lambda index: (math.prod(maps[index].strides), index))
    encoder, decoder = maps[:turn], maps[turn + 1 :]
    common = {one.strides for one in encoder} & {one.strides for one in decoder}
    if common:
        strides = min(common, key=lambda strides: (abs(math.log2(max(strides) / _QUARTER)), max(strides), strides))
        return tuple(_stages([one for one in part if one.strides == strides])[-1].name for part in (encoder, decoder))
    stages = _stages(maps) if len(_stages(maps)) > 1 else maps
    return stages[(len(stages) - 1) // 2].name, stages[-1].name


def _stages(maps: Sequence[FeatureMap]) -> list[FeatureMap]:
    fewest = min(one.name.count(".") for one in maps)
    return [one for one in maps if one.name.count(".") == fewest]


def _checked_options(name: str, network_class: type[nn.Module], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options as plain values with tuples for lists, which some classes insist on."""
    known = sorted(set(inspect.signature(network_class).parameters) - set(_GIVEN))
    for option, value in options.items():
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1, cutoff=0)[0]
            raise InputError(
                f"network '{name}' has no option '{option}'; did you mean '{near}'? Known: {', '.join(known)}, taps"
            )
        if option in _REFUSED and value:
            raise InputError(f"network '{name}' cannot have {option}={value!r}: {_REFUSED[option]}; leave it out")
    required = [one.name for one in inspect.signature(network_class).parameters.values() if one.default is one.empty]
    if lacking := [option for option in required if option not in (*_GIVEN, *options)]:
        raise InputError(f"network '{name}' needs the options {', '.join(lacking)} too")
    try:
        return {option: _tuples(plain(option, value)) for option, value in options.items()}
    except TypeError as error:
        raise InputError(f"network '{name}': {error}") from error


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _instantiated(name: str, network_class: type[nn.Module], arguments: dict[str, Any], on_meta: bool) -> nn.Module:
    """Return the network; one that cannot be built without values is built with them, and no random number is drawn."""
    try:
        if torch.get_default_device().type == "meta" and not on_meta:
            with torch.device("cpu"), torch.random.fork_rng(devices=[]):
                return network_class(**arguments)
        return network_class(**arguments)
    except ImportError as error:
        raise _needs_package(name, error) from error
    except Exception as error:  # MONAI's classes raise many kinds for arguments that do not go together
        raise InputError(f"network '{name}' cannot be built with {arguments}: {_first_line(error)}") from error


def drop_channels_not_images(network: nn.Module) -> None:
    """Replace `Dropout3d`, which has no parameters, by `Dropout2d` in a 2D network.

    MONAI's VNet always has `Dropout3d`. It takes a batch (B, C, H, W) for one volume of B channels and drops whole
    images.
    """
    for module in list(network.modules()):
        for key, child in module.named_children():
            if isinstance(child, nn.Dropout3d):
                setattr(module, key, nn.Dropout2d(child.p, child.inplace))


def _check_output(name: str, network: nn.Module) -> None:
    """Refuse a network that gives anything but logits of its image's size."""
    bare, sides = without_values(network), trial_sides(network)
    expected = (1, network.out_channels, *sides)
    for training in (True, False):
        try:
            with torch.no_grad():
                output = bare.train(training)(torch.empty(1, network.in_channels, *sides, device="meta"))
        except ImportError as error:
            raise _needs_package(name, error) from error
        except Exception as error:  # as above: some arguments are looked at in the forward pass only
            raise InputError(f"network '{name}' with these options fails on an image: {_first_line(error)}") from error
        if not isinstance(output, Tensor) or output.shape != expected:
            found = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise InputError(f"network '{name}' with these options gives {found}, not logits {expected}; change them")


def _needs_package(name: str, error: ImportError) -> InputError:
    return InputError(f"network '{name}' needs a package that is not installed: {_first_line(error)} Install it.")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _why_not(name: str) -> str:
    """Return why a name is refused, as the rest of a sentence."""
    short = name.rpartition(".")[2]
    if name == f"{PACKAGE}.{short}" and short in UNSUITED:
        return f"cannot be used: {UNSUITED[short]}"
    nearest, known = difflib.get_close_matches(name, MONAI_NETWORKS, n=1, cutoff=0)[0], ", ".join(MONAI_NETWORKS)
    return f"is not among the networks of MONAI that can be used; did you mean '{nearest}'? Known: {known}"
