# SPDX-License-Identifier: Apache-2.0
"""The description of a network in an exported file, so that the file can be used without the model file.

Needs neither torch nor MONAI: programs that only segment read it too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.networks import SavedModel

FORMAT = "graphflow-segmentation student"
FORMAT_VERSION = 1
INPUT, OUTPUT = "images", "logits"  # names of the network's input and output in every format that has names


@dataclass(frozen=True)
class Description:
    """Network and data of an exported file, in plain values.

    Attributes:
        network: its name, such as "erfnet".
        in_channels: channels of the images.
        out_channels: number of classes, the background included.
        spatial_dims: 2 for images, 3 for volumes.
        size_divisor: sides of an image must be multiples of it.
        labels: class index -> name, 0 is the background.
        preprocessing: that of the training images, as plain data.
        size: side in pixels of the square training images; for a 3D network the sides (x, y, z) of patches in voxels.
        tile_px: slide pixels along the side of a training image; None for a network of scans.
        modality: of the training data.
        int8: weights and activations are rounded to 8 bits.
        source_sha256: of the model file, in hexadecimal.
    """

    network: str
    in_channels: int
    out_channels: int
    spatial_dims: int
    size_divisor: int
    labels: dict[int, str]
    preprocessing: list[dict[str, Any]]
    size: int | tuple[int, int, int]
    tile_px: int | None
    modality: str
    int8: bool
    source_sha256: str

    def to_metadata(self) -> dict[str, str]:
        """Return the description as text for each key: JSON, which every format can hold."""
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        return {key: json.dumps(value) for key, value in content.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: Path) -> Description:
        """Return what `to_metadata` gave; further keys are passed over. `path` is for the error.

        Raises:
            InputError: the file was not exported here, by a newer release, or lacks a part.
        """
        try:
            content = {key: json.loads(value) for key, value in metadata.items() if key in _KEYS}
            if content.get("format") != FORMAT:
                raise InputError(f"{path} is no exported student; make one with python -m pipeline.export")
            if content["format_version"] != FORMAT_VERSION:
                raise InputError(
                    f"{path} has format version {content['format_version']}, this release reads {FORMAT_VERSION}; "
                    "export it again"
                )
            content["labels"] = {int(value): str(name) for value, name in content["labels"].items()}
            size = content["size"]
            content["size"] = tuple(size) if isinstance(size, list) else int(size)
            return cls(**{key: content[key] for key in _FIELDS})
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise InputError(f"{path} has a damaged description ({error!r}); export it again") from error


_FIELDS = tuple(field.name for field in fields(Description))
_KEYS = ("format", "format_version", *_FIELDS)


def describe_model(model: SavedModel, int8: bool = False) -> Description:
    """Return the description of what is exported from `model`."""
    network = model.network
    return Description(
        network=str(model.network_arguments["name"]),
        in_channels=network.in_channels,
        out_channels=network.out_channels,
        spatial_dims=network.spatial_dims,
        size_divisor=network.size_divisor,
        labels=dict(model.labels),
        preprocessing=[dict(step) for step in model.preprocessing],
        size=model.size,
        tile_px=model.tile_px,
        modality=model.modality,
        int8=int8,
        source_sha256=model.sha256,
    )
