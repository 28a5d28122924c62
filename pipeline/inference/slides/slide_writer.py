# SPDX-License-Identifier: Apache-2.0
"""The outputs of inference on slides: a pyramidal label map, a picture and a description beside it for each."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine
from tqdm import tqdm

from pipeline.data.scans.volumes import label_counts
from pipeline.data.slides.base import UNREADABLE, Slide, Unreadable
from pipeline.data.slides.palette import colour_of
from pipeline.data.slides.pictures import write_png
from pipeline.errors import InputError
from pipeline.files.atomic import replace_when_complete, write_json
from pipeline.inference.case_writer import CaseWriter
from pipeline.inference.slides.label_pyramid import write_label_pyramid
from pipeline.inference.slides.overview import Overview, with_legend
from pipeline.inference.slides.slide_dataset import SlideDataset
from pipeline.inference.slides.tiles import LabelBands

logger = logging.getLogger(__name__)

_UM2_PER_MM2 = 1e6
_MOST_NAMED = 8


class SlideLabelWriter(CaseWriter):
    """An ignite handler that writes `CASE.tif`, `CASE_overview.png` and `CASE.json` for each slide of an evaluator.

    Reads `engine.state.output["pred"]`, the `LabelBands` of one slide. The labels are computed band by band while they
    are written. The evaluator needs `slide_batch` as `prepare_batch`, and `decollate=False`. If a slide fails, nothing
    half-written stays, the failure is recorded, and the others go on; a single slide raises `InputError`. A slide with
    unreadable parts is written, with `UNREADABLE` at these pixels, and is also listed in `failures.csv`. So is a slide
    with an unreadable smaller level, although the labels do not depend on it.

    See `CaseWriter` for the check of the folder, the protection of sources, finished cases, tables and arguments;
    `slides` is its `dataset`.
    """

    suffixes = (".tif", "_overview.png", ".json")

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        slides: SlideDataset,
        labels: Mapping[int, str],
        checkpoint_sha256: str = "",
        settings: Mapping[str, Any] | None = None,
        overwrite: bool = True,
    ) -> None:
        super().__init__(output_dir, slides, labels, checkpoint_sha256, settings, overwrite)

    def _write_batch(self, engine: Engine) -> None:
        (case,) = engine.state.batch["case"]
        bands: LabelBands = engine.state.output["pred"]
        try:
            self.write(case, bands)
        except InputError as error:
            self.dataset.skip(self._sources[case], error)
        finally:
            bands.slide.close()

    def write(self, case: str, bands: LabelBands) -> Path:
        """Compute and write label map, overview and description of one slide; returns the map."""
        slide, path = bands.slide, self._path(case, ".tif")
        overview = Overview(bands.thumbnail, bands.shape, UNREADABLE)
        counts = np.zeros(256, np.int64)
        try:
            # The map gets its name last: where it is, the others are too.
            with (
                replace_when_complete(path) as temporary,
                closing(_observed(case, bands, overview, counts)) as observed,  # no thread reads on after a failure
            ):
                write_label_pyramid(temporary, observed, bands.shape, slide.pixel_um)
                damaged = bool(_unreadable_parts(slide) or _notes_on_levels(slide))
                description = self._description(case, bands, overview, counts)
                write_png(self._path(case, "_overview.png"), with_legend(overview.picture(), _legend(description)))
                description |= self._completion_record(case, temporary, damaged)
                write_json(self._path(case, ".json"), description)
        except OSError as error:
            raise InputError(
                f"cannot write {path}: {error.strerror}; free some space or choose another folder"
            ) from error
        self._add(path, description)
        parts = _unreadable_parts(slide)
        damage = ([_named(parts, path)] if parts else []) + _notes_on_levels(slide)
        if damage:
            self.dataset.record(self._sources[case], "; ".join(damage))
        logger.info("%s: %.1f s, %s", case, description["seconds"], path)
        return path

    def _description(self, case: str, bands: LabelBands, overview: Overview, counts: np.ndarray) -> dict[str, Any]:
        slide, tiles = bands.slide, bands.tiles
        area_mm2 = None if slide.pixel_um is None else slide.pixel_um**2 / _UM2_PER_MM2
        tissue = None if bands.background is None else overview.tissue(bands.background)
        return {
            "case": case,
            "input": str(slide.path),
            "height": slide.height,
            "width": slide.width,
            "pixel_um": slide.pixel_um,
            "tissue_share": None if tissue is None else round(float(tissue.mean()), 6),
            "classes": {
                name: {
                    "label": value,
                    "colour": colour_of(value),
                    "pixels": int(counts[value]),
                    "area_mm2": None if area_mm2 is None else round(int(counts[value]) * area_mm2, 6),
                    "share_of_tissue": _share(overview.labels == value, tissue),
                }
                for value, name in sorted(self.labels.items())
                if value != 0
            },
            "tiles": {"total": tiles.total, "run": tiles.run, "background": tiles.total - tiles.run},
            "unreadable_pixels": int(counts[UNREADABLE]),
            "unreadable": [asdict(part) for part in _unreadable_parts(slide)],
            "notes": [*slide.notes, *_notes_on_levels(slide)],
            "seconds": round(self.dataset.seconds_since_start(case), 3),
        }


def _legend(description: Mapping[str, Any]) -> dict[str, str]:
    """Return a line for each class of a slide's description, with its share of the tissue, and its colour."""
    lines = {}
    for name, found in description["classes"].items():
        share = found["share_of_tissue"]
        size = f"{found['pixels']:,} pixels" if share is None else f"{100 * share:.1f} % of the tissue"
        lines[f"{name}: {size}"] = found["colour"]
    return lines


def _observed(case: str, bands: LabelBands, overview: Overview, counts: np.ndarray) -> Iterator[np.ndarray]:
    """Pass bands on, with a bar of progress, while the overview and the counts (256,) of labels take them in."""
    top = 0
    for band in tqdm(bands, desc=case, unit="row of tiles", disable=None):
        overview.add(top, band)
        counts += label_counts(band.T[None])  # it loops over the last axis, here the rows
        top += len(band)
        yield band


def _share(inside: np.ndarray, tissue: np.ndarray | None) -> float | None:
    """Return which share of the tissue lies `inside`, by the pixels of the thumbnail; None without tissue."""
    if tissue is None or not tissue.any():
        return None
    return round(float(inside[tissue].mean()), 6)


def _unreadable_parts(slide: Slide) -> list[Unreadable]:
    """Return the unreadable parts of level 0, which the label map lacks."""
    return [part for part in slide.unreadable if part.level == 0]


def _notes_on_levels(slide: Slide) -> list[str]:
    return [
        f"level {part.level} cannot be read ({part.reason}); the labels do not depend on it, but copy the slide anew"
        for part in slide.unreadable
        if part.level > 0
    ]


def _named(parts: list[Unreadable], path: Path) -> str:
    named = [f"{part.width} x {part.height} at x={part.left}, y={part.top} ({part.reason})" for part in parts]
    more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    return f"unreadable pixels, {UNREADABLE} in {path}: {'; '.join(named[:_MOST_NAMED])}{more}; copy the slide anew"
