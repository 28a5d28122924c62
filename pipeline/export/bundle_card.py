# SPDX-License-Identifier: Apache-2.0
"""The model card of a standalone bundle: what `model.pt` knows of the model, and how to run it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.data.dataset.dataset import SCANS, SLIDES
from pipeline.described import TARGET
from pipeline.errors import InputError
from pipeline.export.bundle_configs import is_of_slides, network_title
from pipeline.networks.cost import parameter_count
from pipeline.networks.saved_model import SavedModel

_CARD = """\
# {name}

{title} that segments {organs} in {modality}.

It was exported from a `model.pt` of graphflow-segmentation and runs without that project. Research only, not for
clinical use.

## Run

It needs torch, monai and {packages}. From any directory:

```sh
python -m monai.bundle run --config_file BUNDLE/configs/inference.json --dataset_dir {given} --output_dir MASKS
```

`--dataset_dir` is a folder of {kind} files, or one of them.
Each gives a mask `*_seg{suffix}` of uint8 labels on its own grid.

## Labels

{labels}

## Network

| | |
|---|---|
| class | {network} |
| parameters | {parameters:,} |
| {size_name} | {size} |
| weights | `models/model.pt`, a plain `state_dict`; SHA-256 of the model file they come from: `{sha256}` |

## Preprocessing

As in training, by `configs/inference.json`:

{preprocessing}

## Training

{training}

## Figures

{figures}

## Licence

The files of `scripts` are Apache-2.0, see `LICENSE`. Whether the weights may be shared depends on the data that they
were trained on.
"""


# Of the recipe: told elsewhere in the card, or nobody's business.
_UNTOLD = ("network", "preprocessing", "patients")
# Of a report: its table of classes, and which of the columns the card has, under which heads.
_TABLES = {
    SCANS: (
        "per_organ.csv",
        {"organ": "organ", "n_cases": "cases", "dice_mean": "mean Dice", "hd95_mm_mean": "mean HD95, mm"},
    ),
    SLIDES: (
        "per_class.csv",
        {"class": "class", "n_images": "images", "iou": "IoU", "dice_mean": "Dice", "hd95_px_mean": "HD95, pixels"},
    ),
}


def model_card(model: SavedModel, name: str, report: Path | None = None) -> str:
    """Return `docs/README.md` of a bundle called `name`, with the figures of a report if it is given.

    Raises `InputError` for a report that cannot be read, or is of another model.
    """
    slides = is_of_slides(model)
    recipe = {key: value for key, value in model.extra.get("recipe", {}).items() if key not in _UNTOLD}
    return _CARD.format(
        name=name,
        title=network_title(model),
        organs=", ".join(organ for value, organ in model.labels.items() if value),
        modality=model.modality,
        packages="pytorch-ignite, fire, scipy and Pillow" if slides else "nibabel, pytorch-ignite and fire",
        given="PICTURES" if slides else "SCANS",
        kind=".png, .jpg or .tif" if slides else ".nii.gz or .nii",
        suffix=".png" if slides else ".nii.gz",
        labels=_rows(model.labels, ("value", "label")),
        network=model.network_arguments["name"],
        parameters=parameter_count(model.network),
        **_size(model),
        sha256=model.sha256,
        preprocessing="\n".join(f"- {_in_words(step)}" for step in model.preprocessing),
        training=_rows(recipe, ("setting", "value")) or "Not told by the model file.",
        figures=_chosen(model) if report is None else _reported(model, report),
    )


def _size(model: SavedModel) -> dict[str, str]:
    if is_of_slides(model):
        return {"size_name": "tile", "size": f"{model.tile_px} pixels of the slide, seen at {model.size}"}
    if isinstance(model.size, int):
        return {"size_name": "slice", "size": f"resized to {model.size} x {model.size}"}
    return {"size_name": "patch", "size": " x ".join(map(str, model.size)) + " voxels"}


def _rows(content: Mapping[Any, Any], head: tuple[str, str]) -> str:
    """Return a table of what a mapping holds; what is null is left out."""
    rows = [(key, value) for key, value in content.items() if value is not None]
    lines = [f"| {key} | {value if isinstance(value, str) else json.dumps(value)} |" for key, value in rows]
    return "\n".join([f"| {head[0]} | {head[1]} |", "|---|---|", *lines]) if lines else ""


def _in_words(step: Mapping[str, Any]) -> str:
    options = ", ".join(f"{key} {value}" for key, value in step.items() if key not in (TARGET, "keys", "reader"))
    return step[TARGET].rpartition(".")[2] + (f": {options}" if options else "")


def _chosen(model: SavedModel) -> str:
    chosen = dict(model.extra.get("selection", {}))
    if not chosen:
        return "The model file has none: evaluate the model on your own data."
    told = ", ".join(f"{key} {value:.4g}" for key, value in chosen.items())
    return f"At its choice on the validation cases: {told}. The file has no figures of a test set."


def _reported(model: SavedModel, report: Path) -> str:
    kind = SLIDES if is_of_slides(model) else SCANS
    file, columns = _TABLES[kind]
    try:
        summary = json.loads((report / "summary.json").read_text(encoding="utf-8"))
        with open(report / file, newline="", encoding="utf-8") as lines:
            organs = list(csv.DictReader(lines))
        dataset, sha256 = summary["dataset"], summary["checkpoint"]["sha256"]
        rows = [" | ".join(["", *(one[column] for column in columns), ""]).strip() for one in organs]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{report} is no report on {kind}; give the run_dir of an evaluation") from error
    if sha256 != model.sha256:
        raise InputError(f"{report} is of another model than {model.path}; evaluate this one first")
    head = [f"| {' | '.join(columns.values())} |", "|---" * len(columns) + "|"]
    return "\n".join([f"On the test cases of {dataset}, by the project's own evaluation:", "", *head, *rows])
