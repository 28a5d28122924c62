# SPDX-License-Identifier: Apache-2.0
"""Model files: weights, how to build the network, and the meaning of its input and output.

A file holds tensors and plain values only and is read with `weights_only=True`: opening a stranger's file runs no code.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.described import TARGET, dotted_name, plain
from pipeline.errors import InputError
from pipeline.files.atomic import write_tensors
from pipeline.networks.adopted import build_adopted
from pipeline.networks.build import build_network

FORMAT = "graphflow-segmentation model"
FORMAT_VERSION = 2
DESCRIPTION = ("network_arguments", "labels", "preprocessing", "size", "modality", "extra")
_SHOWN = 5
_ADVICE = "give the model.pt of a training or distillation run"


@dataclass(frozen=True)
class SavedModel:
    """A trained network and all that segmenting with it needs.

    Attributes:
        network: as `build_network` makes it, in evaluation mode, on the device asked for.
        network_arguments: what `build_network` was called with (`name`, `in_channels`, `out_channels`, options), or
            `build_adopted`, which has the class for a `name` and `options` beside it.
        labels: class index -> name, 0 is the background.
        preprocessing: that of the training images, in the form for `pipeline.data.preprocessing_of`.
        size: side in pixels of the square training images; for a 3D network the sides (x, y, z) of its patches in
            voxels.
        tile_px: slide pixels along the side of a training image; None for a network of scans.
        modality: of the training data, such as "CT".
        extra: all other saved values: how the model was chosen, the command, versions.
        sha256: of the file, in hexadecimal.
        path: the file.
    """

    network: nn.Module
    network_arguments: dict[str, Any]
    labels: dict[int, str]
    preprocessing: list[dict[str, Any]]
    size: int | tuple[int, int, int]
    modality: str
    extra: dict[str, Any]
    sha256: str
    path: Path
    tile_px: int | None = None


def save_model(
    path: str | os.PathLike[str],
    network: nn.Module,
    *,
    labels: Mapping[int, str],
    preprocessing: Sequence[Mapping[str, Any]],
    size: int | Sequence[int],
    modality: str,
    tile_px: int | None = None,
    network_arguments: Mapping[str, Any] | None = None,
    **extra: Any,
) -> None:
    """Write a model file, atomically; it is the same whatever device, memory layout or wrapper the network has.

    Args:
        path: the file to write.
        network: built by `build_network`, bare or wrapped by `torch.compile` or distributed training.
        labels: class index -> name for all classes of the network, the background included.
        preprocessing: the transforms of the training images, as `pipeline.described.describe` gives them.
        size: side in pixels of the square training images; for 3D networks the sides (x, y, z) of patches in voxels.
        modality: of the training data.
        tile_px: for networks of slides, the slide pixels along the side of a training image.
        network_arguments: arguments of `build_network`; by default those that the network remembers.
        extra: further plain values to keep; loading puts them into `SavedModel.extra`.

    Raises:
        InputError: the folder cannot be written, labels and classes differ, or `size` doesn't fit the network's axes.
        TypeError: a value that is neither plain nor made of plain values.
        ValueError: the arguments do not build this network, so the file could never be loaded.
    """
    network = unwrapped(network)
    arguments = plain("network_arguments", network_arguments or getattr(network, "arguments", {}))
    if "name" not in arguments:
        raise ValueError("the network does not say how it was built: use build_network or adopt, or give the arguments")
    state = _detached(network.state_dict())
    skeleton = _skeleton(arguments, _own_module(arguments))
    difference = _difference(skeleton, state)
    if difference:
        raise ValueError(f"network_arguments {arguments} build another network than the one given: {difference}")
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "state_dict": state,
        "network_arguments": skeleton.arguments,
        "labels": _checked_labels(labels, skeleton.out_channels, "the model to save"),
        "preprocessing": plain("preprocessing", list(preprocessing)),
        "size": _checked_size(size, skeleton),
        "modality": str(modality),
        "tile_px": None if tile_px is None else int(tile_px),
        "extra": plain("extra", extra),
    }
    write_tensors(path, content)


def check_can_be_saved(network: nn.Module) -> None:
    """Refuse (`InputError`) a network that a model file could not describe; call it before the first iteration."""
    bare = unwrapped(network)
    arguments = getattr(bare, "arguments", {})
    if "name" not in arguments:
        raise InputError(f"model.pt could not build a {dotted_name(type(bare))} again; use pipeline.networks.adopt")
    difference = _difference(_skeleton(arguments, _own_module(arguments)), bare.state_dict())
    if difference:
        raise InputError(f"model.pt would build another {arguments['name']} than network_def: {difference}")


def load_model(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    expect: str | None = None,
    model_requirements: Mapping[str, Any] | None = None,
    preprocessing: Sequence[Mapping[str, Any]] | None = None,
) -> SavedModel:
    """Return the model that `save_model` wrote to `path`. No random number is drawn.

    Args:
        path: the file.
        device: where the network is to be.
        expect: name of the network that the file must hold, such as "fanet"; None takes any.
        model_requirements: `Dataset.model_requirements` of the dataset that the model is to be used on; None takes any.
        preprocessing: the transforms of the images that the network will see, which must equal the file's own list. A
            teacher sees its student's images. None takes any.

    Raises:
        InputError: no such file; a file that is empty, truncated, damaged, not a model or of a newer version; another
            network, other classes, channels, tiles or preprocessing than expected; weights that do not fit or are not
            finite; a device that is not there.
    """
    path = Path(path)
    raw = _read(path)
    content = _content(path, raw)
    arguments = dict(content["network_arguments"])
    if expect is not None and arguments.get("name") != expect:
        raise InputError(f"{path} holds network '{arguments.get('name')}', not '{expect}'; give a model.pt of {expect}")
    if model_requirements is not None:
        _check_dataset(path, content, model_requirements)
    if preprocessing is not None:
        _check_preprocessing(path, content["preprocessing"], preprocessing)
    network = _network(path, arguments, content["state_dict"])
    return SavedModel(
        network=to_device(network, device).eval(),
        network_arguments=network.arguments,
        labels=_checked_labels(content["labels"], network.out_channels, str(path)),
        preprocessing=[dict(one) for one in content["preprocessing"]],
        size=_size_of(content["size"]),
        modality=content["modality"],
        extra=dict(content["extra"]),
        sha256=hashlib.sha256(raw).hexdigest(),
        path=path,
        tile_px=content.get("tile_px"),
    )


def _check_dataset(path: Path, content: Mapping[str, Any], model_requirements: Mapping[str, Any]) -> None:
    """Refuse a dataset whose labels mean other organs, or whose images have other channels, than in training."""
    labels = model_requirements["labels"]
    learned = {int(value): name for value, name in content["labels"].items()}
    if dict(labels) != learned:
        raise InputError(
            f"{path} was trained on other organs ({', '.join(learned.values())}) than the dataset declares "
            f"({', '.join(labels.values())}); {_ADVICE} on this dataset"
        )
    trained = {
        "in_channels": content["network_arguments"].get("in_channels"),
        "tile_px": content.get("tile_px"),
    }
    for name, value in trained.items():
        if value != model_requirements[name]:
            raise InputError(
                f"{path} was trained with {name} {value}, the dataset has {model_requirements[name]}; "
                f"{_ADVICE} on this dataset"
            )


def _check_preprocessing(path: Path, learned: Sequence[Any], wanted: Sequence[Any]) -> None:
    """Refuse a model that learned from images which were prepared otherwise."""
    for learned_step, step in zip_longest(learned, wanted):
        if learned_step != step:
            raise InputError(
                f"{path} was trained with preprocessing {_step(learned_step)}, this run has {_step(step)}; {_ADVICE} "
                "with the same preprocessing"
            )


def _step(step: Mapping[str, Any] | None) -> str:
    """Return a transform in words, without its module."""
    if step is None:
        return "no such step"
    options = ", ".join(f"{key} {value}" for key, value in step.items() if key != TARGET)
    return f"{str(step.get(TARGET)).rpartition('.')[2]} ({options})"


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network inside the wrappers of distributed training and `torch.compile`."""
    while isinstance(network, nn.parallel.DistributedDataParallel | nn.DataParallel) or hasattr(network, "_orig_mod"):
        network = network._orig_mod if hasattr(network, "_orig_mod") else network.module
    return network


def _detached(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies in memory of their own: views would take their whole storage into the file.

    A tensor that the network holds under several names is copied, and stored, once.
    """
    copies: dict[tuple[Any, ...], Tensor] = {}
    detached = {}
    for key, value in state.items():
        place = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if place not in copies:
            copies[place] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        detached[key] = copies[place]
    return detached


def _checked_labels(labels: Mapping[Any, str], classes: int, where: str) -> dict[int, str]:
    """Return the labels in order with whole numbers as keys (JSON turns them into text): one for every class."""
    try:
        named = {int(label): str(name) for label, name in labels.items()}
    except (AttributeError, TypeError, ValueError):
        named = {}
    if sorted(named) != list(range(classes)):
        raise InputError(
            f"labels of {where} are {labels!r}, but its network has {classes} classes: name each of 0..{classes - 1}"
        )
    return dict(sorted(named.items()))


def _checked_size(size: Any, network: nn.Module) -> int | list[int]:
    """Return the size as plain numbers: one side for a 2D network, three for a 3D network."""
    if network.spatial_dims == 3:
        if not isinstance(size, Sequence) or len(size) != 3:
            raise InputError(f"size of a 3D network is {size!r}; give the three sides of its patches")
        return [int(side) for side in size]
    if isinstance(size, Sequence):
        raise InputError(f"size of a 2D network is {size!r}; give the one side of its slices")
    return int(size)


def _size_of(size: int | Sequence[int]) -> int | tuple[int, ...]:
    return tuple(size) if isinstance(size, Sequence) else size


def _skeleton(arguments: Mapping[str, Any], own_modules: Sequence[str] = ()) -> nn.Module:
    """Return the network without memory or values: built in no time, with no random number drawn."""
    with torch.device("meta"):
        if "options" in arguments:
            return build_adopted(**arguments, own_modules=own_modules)
        return build_network(**arguments)


def _own_module(arguments: Mapping[str, Any]) -> list[str]:
    """Return the module of the class of a network at hand, which needs no other trust."""
    return [str(arguments["name"]).rpartition(".")[0]]


def _difference(network: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Return in what names or shapes `state` differs from the network's own state, or an empty text."""
    expected = network.state_dict()
    shapes = [
        f"{key} {tuple(state[key].shape)} for {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    kinds = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": shapes,
    }
    return "; ".join(f"{len(keys)} {kind} ({_first(keys)})" for kind, keys in kinds.items() if keys)


def _first(keys: list[str]) -> str:
    return ", ".join(map(str, keys[:_SHOWN])) + (", ..." if len(keys) > _SHOWN else "")


def _read(path: Path) -> bytes:
    """Return the bytes of a whole and undamaged archive."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; {_ADVICE}")
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"no model file at {path}; {_ADVICE}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not raw:
        raise InputError(f"{path} is empty; copy it anew, or {_ADVICE}")
    if not raw.startswith(b"PK"):
        raise InputError(f"{path} is not a model file of this project; {_ADVICE}")
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            # torch does not compare the checksums: flipped bits would become other weights.
            damaged = archive.testzip()
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path} is truncated or damaged; copy it anew, or {_ADVICE}") from error
    if damaged is not None:
        raise InputError(f"{path} is damaged (wrong checksum of {damaged}); copy it anew, or {_ADVICE}")
    return raw


def _content(path: Path, raw: bytes) -> dict[str, Any]:
    """Return the content of a model file with every part that belongs to it."""
    try:
        content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for what it did not write or will not execute
        raise InputError(
            f"{path} is not a model file of this project, or holds objects that could run code; {_ADVICE}"
        ) from error
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        found = f"its keys are {_first(list(content))}" if isinstance(content, Mapping) else "it has no keys"
        raise InputError(f"{path} is not a model file of this project: {found}; {_ADVICE}")
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {version}, this release reads {FORMAT_VERSION}; use the release that wrote it"
        )
    lacking = [key for key in ("state_dict", *DESCRIPTION) if key not in content]
    if lacking:
        raise InputError(f"{path} lacks {', '.join(lacking)}; {_ADVICE}")
    steps = content["preprocessing"]
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise InputError(f"{path} has no list of transforms as preprocessing; {_ADVICE}")
    return dict(content)


def _network(path: Path, arguments: dict[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """Return the network that the file describes, with the file's weights."""
    try:
        network = _skeleton(arguments)
    except (InputError, TypeError) as error:
        raise InputError(f"{path} describes a network that this release cannot build: {error}") from error
    difference = _difference(network, state)
    if difference:
        raise InputError(f"{path} does not fit the network it names, {arguments['name']}: {difference}; {_ADVICE}")
    broken = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        raise InputError(f"{path} holds weights that are NaN or infinite ({_first(broken)}); train again")
    kinds = {key: value.dtype for key, value in network.state_dict().items()}
    network.load_state_dict({key: value.to(kinds[key]) for key, value in state.items()}, assign=True)
    return network


def to_device(network: nn.Module, device: str | torch.device) -> nn.Module:
    """Move a network to a device and return it; `InputError` where there is no such device."""
    try:
        return network.to(torch.device(device))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"device '{device}' cannot be used ({reason}); choose cpu, or cuda on a machine that has it"
        ) from error
