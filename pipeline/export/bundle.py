# SPDX-License-Identifier: Apache-2.0
"""A trained student as a standalone MONAI bundle: it runs wherever MONAI does, without this project."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from shutil import make_archive

import torch

import pipeline
from pipeline.errors import InputError
from pipeline.export.bundle_card import model_card
from pipeline.export.bundle_configs import LOGGING, classes_of_project, inference_config, metadata
from pipeline.export.bundle_parity import check_bundle, check_images
from pipeline.export.bundle_scripts import bundle_scripts
from pipeline.export.parity import Agreement
from pipeline.files.atomic import new_folder, replace_when_complete
from pipeline.networks.saved_model import SavedModel


def write_bundle(
    model: SavedModel, destination: Path, images: Sequence[Path] = (), report: Path | None = None
) -> Agreement | None:
    """Write a standalone bundle of a model, whole or not at all; return how far its masks agree with the network's.

    Args:
        model: to export, on the CPU.
        destination: a new folder, or where its name ends in `.zip` a new archive of one; its name without that is the
            bundle's. Its parents are made.
        images: NIfTI files, or pictures for models of slides, that bundle and network segment alike; none: not checked.
        report: the folder of an evaluation of this model, whose figures go into the model card.

    Raises:
        InputError: `destination` exists or cannot be written; the network or a transform is from a package that a
            bundle cannot contain; a report is of another model; an image cannot be read.
        ParityError: the bundle gives other masks, or none; nothing is written then.
    """
    destination = Path(destination)
    if destination.exists():
        raise InputError(f"{destination} exists; choose a new name, or remove it first")
    check_images(model, images)
    name = destination.name.removesuffix(".zip")
    files = _files(model, name, report)
    if name == destination.name:
        with new_folder(destination) as folder:
            _fill(folder, files, model)
            return check_bundle(folder, model, images)
    with tempfile.TemporaryDirectory() as parent, replace_when_complete(destination) as archive:
        folder = Path(parent, name)
        _fill(folder, files, model)
        found = check_bundle(folder, model, images)
        make_archive(str(archive.with_suffix("")), "zip", parent, name)
    return found


def _files(model: SavedModel, name: str, report: Path | None) -> dict[str, str]:
    """Return the bundle's text files by their paths in it."""
    config = inference_config(model)
    scripts = bundle_scripts(classes_of_project(config))
    return {
        "LICENSE": _license(),
        "docs/README.md": model_card(model, name, report),
        "configs/metadata.json": json.dumps(metadata(model, name), indent=2) + "\n",
        "configs/inference.json": json.dumps(config, indent=2) + "\n",
        "configs/logging.conf": LOGGING,
        **{str(path): text for path, text in scripts.items()},
    }


def _fill(folder: Path, files: dict[str, str], model: SavedModel) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "models").mkdir()
    # Nothing but the weights: around them, MONAI Label would find none of its names and run an untrained network.
    weights = {key: value.detach().cpu().clone() for key, value in model.network.state_dict().items()}
    torch.save(weights, folder / "models" / "model.pt")


def _license() -> str:
    """Return this project's licence: from its repository, or from what pip has installed."""
    beside = Path(pipeline.__file__).resolve().parents[1] / "LICENSE"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    try:
        text = distribution("graphflow-segmentation").read_text("licenses/LICENSE")
    except PackageNotFoundError:
        text = None
    if text is None:
        raise InputError(f"no LICENSE beside {beside.parent / 'pipeline'}; install graphflow-segmentation again")
    return text
