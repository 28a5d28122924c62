# SPDX-License-Identifier: Apache-2.0
"""The slides that a user names, opened one after another for a MONAI evaluator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.data import DataLoader

from pipeline.data.slides.base import Slide
from pipeline.data.slides.open import SLIDE_SUFFIXES, is_slide, open_slide
from pipeline.errors import InputError
from pipeline.inference.inputs import SourceDataset
from pipeline.inference.sources import Inputs, Source, find_sources, visible_entries

# Hamamatsu's old formats: the file of this suffix names JPEG files beside it, which are parts of the slide.
_INDEX_SUFFIXES, _PART_SUFFIXES = (".vms", ".vmu"), (".jpg", ".jpeg")


@dataclass(frozen=True)
class SlideFile(Source):
    """A slide on disk. `case` names its outputs."""


def find_slides(inputs: Inputs) -> list[Source]:
    """Return the slides of `inputs`: a file, a folder of files, or a list of both and of `SlideFile`.

    Cases bear the name of the file without its suffix. Hidden files and files of other formats in a folder are passed
    over. Raises `InputError` for missing paths, a folder without slides, and two slides of one case name.
    """
    return find_sources(inputs, SlideDataset.noun, _slides_in)


def _slides_in(path: Path) -> list[Source]:
    if not path.is_dir() or is_slide(path):
        return [SlideFile(path.stem, path)]
    entries = [entry for entry in visible_entries(path) if is_slide(entry)]
    if any(entry.suffix.lower() in _INDEX_SUFFIXES for entry in entries):
        entries = [entry for entry in entries if entry.suffix.lower() not in _PART_SUFFIXES]
    if not entries:
        raise InputError(f"no slide in {path}; give {', '.join(SLIDE_SUFFIXES)} files")
    return [SlideFile(entry.stem, entry) for entry in entries]


class SlideDataset(SourceDataset):
    """Opens slides one at a time: items are `{"image": Slide, "case": str}`; who takes an item closes the slide.

    A slide that cannot be opened is logged, kept in `failures`, and skipped; a single bad one raises `InputError`.
    Under torch.distributed each rank opens its share. Use it with `slide_loader` and `slide_batch`.

    MONAI's `SlidingPatchWSIDataset` is not used: its items are patches, so that one damaged tile ends the loader, and
    what puts the patches together again (`PatchInferer` with `AvgMerger`) holds the float logits of the whole slide.
    """

    noun = "slide"

    def __init__(self, inputs: Inputs) -> None:
        super().__init__(find_slides(inputs))

    def _item(self, source: Source) -> dict[str, Any]:
        return {"image": open_slide(source.path), "case": source.case}


def slide_loader(slides: SlideDataset) -> DataLoader:
    """Return a loader of one slide a batch: `{"image": [Slide], "case": [str]}`."""
    return DataLoader(slides, batch_size=1, num_workers=0, collate_fn=_one_slide)


def _one_slide(items: list[dict[str, Any]]) -> dict[str, Any]:
    (item,) = items
    return {key: [value] for key, value in item.items()}


def slide_batch(batch: Mapping[str, Any], *_: Any, **__: Any) -> tuple[Slide, None]:
    """Return the slide of a batch and no label, as the `prepare_batch` of a MONAI evaluator; no device is needed."""
    (slide,) = batch["image"]
    return slide, None
