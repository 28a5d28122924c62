# SPDX-License-Identifier: Apache-2.0
"""The two configs of a standalone bundle: `inference.json`, which MONAI's tools run, and `metadata.json`.

The keys are those by which MONAI Label, Deploy, Slicer and `monai.bundle` find and replace the parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

from pipeline import __version__
from pipeline.described import TARGET
from pipeline.errors import InputError
from pipeline.export.bundle_scripts import PACKAGE, SCRIPTS, script_name
from pipeline.networks.build import NETWORKS
from pipeline.networks.saved_model import SavedModel

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
VERSION = "0.1.0"
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
# Without this file, MONAI begins with a warning. Ignite tells of each epoch, and of errors that are raised too.
LOGGING = """\
[loggers]
keys=root,ignite

[handlers]
keys=console

[formatters]
keys=line

[logger_root]
level=INFO
handlers=console

[logger_ignite]
level=CRITICAL
handlers=
qualname=ignite

[handler_console]
class=StreamHandler
formatter=line
args=(sys.stdout,)

[formatter_line]
format=%(levelname)s %(message)s
"""
_CONTRIBUTORS = "Graph Flow segmentation contributors"
# MONAI puts a bundle on sys.path in `run` alone; some tools build its parts without.
_REQUIRES = {"_requires_": "@scripts_importable"}
_BUNDLE_ROOT = (
    "$next((os.path.dirname(os.path.dirname(os.path.abspath(word.partition('=')[2] or word))) for word in sys.argv"
    " if word.endswith('inference.json')), '.')"
)


def is_of_slides(model: SavedModel) -> bool:
    """Tell whether a model segments pictures of slides; otherwise it segments scans."""
    return model.tile_px is not None


def inference_config(model: SavedModel) -> dict[str, Any]:
    """Return `inference.json` of a bundle; its classes outside of MONAI are those of the bundle's `scripts`.

    Raises `InputError` for a network or transform of another package than MONAI and this project.
    """
    parts = _parts_of_slides(model) if is_of_slides(model) else _parts_of_scans(model)
    return {
        "imports": ["$import glob", "$import os", "$import sys"],
        "bundle_root": _BUNDLE_ROOT,
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "dataset_dir": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "ckpt_path": "$@bundle_root + '/models/model.pt'",
        "datalist": parts["datalist"],
        "network_def": _network(model),
        "network": "$@network_def.to(@device)",
        "preprocessing": {TARGET: "Compose", "transforms": parts["preprocessing"]},
        "dataset": {
            TARGET: "Dataset",
            "data": "$[{'image': path} for path in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {TARGET: "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            TARGET: script_name("pipeline.export.bundle_inferer.LabelsOnDevice"),
            "inferer": {**parts["inferer"], **_REQUIRES},
            "device": None,
            **_REQUIRES,
        },
        "postprocessing": {TARGET: "Compose", "transforms": parts["postprocessing"]},
        "handlers": [
            {
                TARGET: "CheckpointLoader",
                "load_path": "@ckpt_path",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
                "strict": True,
            }
        ],
        "evaluator": {
            TARGET: "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        # MONAI runs on no scans at all without a word.
        "run": [
            "$@datalist or (print('error: no image in', @dataset_dir + '; give --dataset_dir', file=sys.stderr),"
            " sys.exit(2))",
            "$@evaluator.run()",
        ],
        "scripts_importable": "$sys.path.insert(0, os.path.abspath(@bundle_root)) if @bundle_root != '.' else None",
    }


def classes_of_project(config: Any) -> Iterator[str]:
    """Yield the dotted names in this project of the classes that a config takes from `scripts`."""
    if isinstance(config, Mapping):
        target = config.get(TARGET, "")
        if target.startswith(f"{SCRIPTS}."):
            yield PACKAGE + target.removeprefix(SCRIPTS)
    if isinstance(config, Mapping | list):
        for part in config.values() if isinstance(config, Mapping) else config:
            yield from classes_of_project(part)


def _parts_of_scans(model: SavedModel) -> dict[str, Any]:
    if isinstance(model.size, int):
        inferer = {TARGET: script_name("pipeline.inference.SliceWiseInferer"), "size": model.size}
        inferer["slices_per_chunk"] = None  # by the device: fewer on a CPU
    else:
        inferer = {TARGET: script_name("pipeline.inference.PatchInferer"), "patch_size": list(model.size)}
        inferer["patches_per_batch"] = max(16 // model.size[2], 1)
    _loading, *steps = model.preprocessing
    return {
        "datalist": "$[@dataset_dir] if os.path.isfile(@dataset_dir) else sorted(glob.glob(@dataset_dir + '/*.nii*'))",
        "preprocessing": [{TARGET: "LoadImaged", "keys": "image"}, *(_transform(model, step) for step in steps)],
        "inferer": inferer,
        "postprocessing": [
            {
                TARGET: "Invertd",
                "keys": "pred",
                "transform": "@preprocessing",
                "orig_keys": "image",
                "nearest_interp": True,
            },
            {TARGET: "CastToTyped", "keys": "pred", "dtype": "$torch.uint8"},
            _saving(resample=False),
        ],
    }


def _parts_of_slides(model: SavedModel) -> dict[str, Any]:
    mode = "L" if model.network_arguments["in_channels"] == 1 else "RGB"
    preprocessing = {
        TARGET: script_name("pipeline.data.Preprocessing"),
        "transforms": [_transform(model, step) for step in model.preprocessing],
        "description": [],
        **_REQUIRES,
    }
    return {
        "datalist": "$[@dataset_dir] if os.path.isfile(@dataset_dir) else sorted(path for path in"
        f" glob.glob(@dataset_dir + '/*') if path.lower().endswith({PICTURES}))",
        "preprocessing": [
            {
                TARGET: "LoadImaged",
                "keys": "image",
                "reader": "PILReader",
                "converter": f"$lambda picture: picture.convert('{mode}')",
                "reverse_indexing": False,
            },
            {TARGET: "EnsureChannelFirstd", "keys": "image"},
        ],
        "inferer": {
            TARGET: script_name("pipeline.inference.TileInferer"),
            "size": model.size,
            "tile_px": model.tile_px,
            "preprocessing": preprocessing,
            "overlap": 0.25,
            "tiles_per_batch": 8,
            "background": 220,
        },
        "postprocessing": [
            {TARGET: "Transposed", "keys": "pred", "indices": [0, 2, 1]},  # MONAI's writer takes (C, W, H)
            _saving(output_ext=".png", writer="PILWriter", resample=False),
        ],
    }


def _saving(**options: Any) -> dict[str, Any]:
    return {
        TARGET: "SaveImaged",
        "keys": "pred",
        "output_dir": "@output_dir",
        "output_postfix": "seg",
        "output_dtype": "uint8",
        "separate_folder": False,
        **options,
    }


def _transform(model: SavedModel, step: Mapping[str, Any]) -> dict[str, Any]:
    """Return a step of the model's preprocessing for a bundle, where there is no label to go with the image."""
    name, options = step[TARGET], {key: value for key, value in step.items() if key != TARGET}
    if options.get("channel_dim") == "no_channel":
        del options["channel_dim"]  # what the reader says of the file is the same, and holds for other readers too
    if not isinstance(options.get("keys", ""), str):
        options["allow_missing_keys"] = True
    return {TARGET: _target(model, name, "preprocessing"), **options, **_requires(name)}


def _network(model: SavedModel) -> dict[str, Any]:
    arguments = dict(model.network_arguments)
    name = arguments.pop("name")
    arguments.pop("taps", None)
    if name in NETWORKS:
        network_class = NETWORKS[name]
        arguments.pop("spatial_dims", None)
        name = f"{network_class.__module__}.{network_class.__qualname__}"
    elif "options" in arguments:
        arguments = arguments["options"]
    else:
        arguments = {key: _tuples(value) for key, value in arguments.items()}
    network = {TARGET: _target(model, name, "network"), **arguments, **_requires(name)}
    if name.startswith(f"{PACKAGE}."):
        return network
    return {
        TARGET: script_name("pipeline.networks.padding.with_size_divisor"),
        "network": network,
        "size_divisor": model.network.size_divisor,
        **_REQUIRES,
    }


def _tuples(value: Any) -> Any:
    """Return a list as an expression of a tuple, on which some classes of MONAI insist."""

    def as_tuple(part: Any) -> Any:
        """Turn lists into tuples, at every depth."""
        if isinstance(part, Mapping):
            return {key: as_tuple(item) for key, item in part.items()}
        return tuple(map(as_tuple, part)) if isinstance(part, list | tuple) else part

    return f"${as_tuple(value)!r}" if isinstance(value, list | tuple | Mapping) else value


def _target(model: SavedModel, name: str, what: str) -> str:
    if name.startswith("monai."):
        return name
    if name.startswith(f"{PACKAGE}."):
        return script_name(name)
    raise InputError(
        f"{model.path}: {name} of its {what} is in a package of your own, which a bundle does not carry; "
        "export another format, or move the class into pipeline"
    )


def _requires(name: str) -> dict[str, str]:
    return _REQUIRES if name.startswith(f"{PACKAGE}.") else {}


def metadata(model: SavedModel, name: str) -> dict[str, Any]:
    """Return `metadata.json` of a bundle called `name`; shapes and types in it are the network's own."""
    organs = [organ for value, organ in model.labels.items() if value]
    packages = ["nibabel", "pytorch-ignite", "fire", *(["Pillow", "scipy"] if is_of_slides(model) else [])]
    channels = model.network_arguments["in_channels"]
    return {
        "schema": SCHEMA,
        "name": name,
        "version": VERSION,
        "changelog": {VERSION: f"exported from a model.pt by graphflow-segmentation {__version__}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {package: version(package) for package in packages},
        "task": f"Segmentation of {', '.join(organs)} in {model.modality}",
        "description": f"{network_title(model)}, exported by graphflow-segmentation; it gives labels, not logits.",
        "authors": _CONTRIBUTORS,
        "copyright": f"Copyright (c) {_CONTRIBUTORS}",
        "data_source": "see docs/README.md",
        "data_type": "png, jpeg or tiff" if is_of_slides(model) else "nifti",
        "image_classes": f"{'one channel' if channels == 1 else f'{channels} channels'}, {model.modality}",
        "label_classes": "one channel, the values of channel_def",
        "pred_classes": "logits of the network; the inferer makes one channel of labels of them",
        "eval_metrics": {},
        "intended_use": "Research on small segmentation networks; not for clinical use",
        "references": [],
        "source_model_sha256": model.sha256,
        "network_data_format": {
            "inputs": {"image": {**_image_format(model), **_shape(model, channels)}},
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    **_shape(model, len(model.labels)),
                    "value_range": [],
                    "channel_def": {**{str(value): organ for value, organ in model.labels.items()}, "0": "background"},
                }
            },
        },
    }


def _image_format(model: SavedModel) -> dict[str, Any]:
    channels = model.network_arguments["in_channels"]
    return {
        "type": "image",
        "format": "hounsfield" if model.modality.upper() == "CT" else "magnitude",
        "modality": model.modality,
        "value_range": [0, 1],
        "channel_def": {"0": "image"} if channels == 1 else dict(zip("012", ("red", "green", "blue"), strict=True)),
    }


def _shape(model: SavedModel, channels: int) -> dict[str, Any]:
    divisor = model.network.size_divisor
    sides = [model.size] * 2 if isinstance(model.size, int) else list(model.size)
    return {
        "num_channels": channels,
        "spatial_shape": [-(-side // divisor) * divisor for side in sides],
        "dtype": "float32",
        "is_patch_data": len(sides) == 3,
    }


def network_title(model: SavedModel) -> str:
    """Return the network's class in words, such as "ENet (2D)"."""
    return f"{type(model.network).__name__} ({model.network.spatial_dims}D)"
