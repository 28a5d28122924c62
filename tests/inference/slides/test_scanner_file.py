# SPDX-License-Identifier: Apache-2.0
"""A real scanner file, read whole and segmented by the student that comes with the bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from pipeline.data.slides.open import open_slide
from pipeline.inference import segment_slides
from pipeline.networks import load_model

STUDENT = Path(__file__).resolve().parents[3] / "bundles/gastric/models/model.pt"
HEIGHT, WIDTH = 2967, 2220


@pytest.fixture
def slide_file(shared_data: Path) -> Path:
    pytest.importorskip("imagecodecs", reason="its tiles are JPEG")
    return shared_data / "slides/CMU-1-Small-Region.svs"


def test_it_is_read_whole(slide_file: Path):
    with open_slide(slide_file) as slide:
        assert (slide.height, slide.width) == (HEIGHT, WIDTH)
        assert slide.pixel_um == pytest.approx(0.499)
        region, thumbnail = slide.read(0, 0, HEIGHT, WIDTH), slide.thumbnail(300)
        assert (slide.unreadable, slide.notes) == ([], [])
    assert region[:100, -100:].mean() > 235  # bare glass in the corner
    assert region[1500:1600, 1000:1100].mean() < 200  # tissue in the middle
    assert thumbnail.shape == (300, 224, 3)
    assert thumbnail.mean() == pytest.approx(region.mean(), abs=0.5)


def test_it_is_segmented_whole(slide_file: Path, tmp_path: Path):
    model = load_model(STUDENT)
    assert segment_slides(slide_file, tmp_path, model, overlap=0) == 0
    mask = tifffile.imread(tmp_path / "CMU-1-Small-Region.tif", key=0)
    told = json.loads((tmp_path / "CMU-1-Small-Region.json").read_text(encoding="utf-8"))
    assert mask.shape == (told["height"], told["width"]) == (HEIGHT, WIDTH)
    assert set(np.unique(mask)) <= set(model.labels)
    assert told["pixel_um"] == pytest.approx(0.499)
    assert told["classes"]["tumour"]["area_mm2"] == pytest.approx((mask == 1).sum() * 0.499e-3**2, rel=1e-4)
    assert told["tissue_share"] == pytest.approx(0.34, abs=0.05)  # by eye a third of the overview
    assert (tmp_path / "CMU-1-Small-Region_overview.png").is_file()
