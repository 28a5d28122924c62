# SPDX-License-Identifier: Apache-2.0
"""The student that comes with the gastric bundle, on the tiles that come with it, as a newcomer runs it."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.networks import load_model
from tests.bundles.bundle_commands import ROOT, run

BUNDLE = ROOT / "bundles/gastric"
MODEL, EXAMPLES = BUNDLE / "models/model.pt", BUNDLE / "docs/examples"


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """Return the folder of the masks that the shipped student gives the examples."""
    output = tmp_path_factory.mktemp("examples") / "masks"
    assert run("gastric", "inference", "--input", EXAMPLES, "--output_dir", output).returncode == 0
    return output


@pytest.mark.parametrize("tile", sorted(path.stem for path in EXAMPLES.glob("*.jpg")))
def test_it_finds_the_glands_of_tiles_that_it_has_not_seen(masks, tile):
    found = tifffile.imread(masks / f"{tile}.tif") == 1
    drawn = np.asarray(Image.open(EXAMPLES / f"labels/{tile}.png")) > 0
    assert found.shape == drawn.shape == (224, 224)
    dice = 2 * np.count_nonzero(found & drawn) / (found.sum() + drawn.sum())
    assert dice > 0.93  # 0.947, 0.969 and 0.962 in the report of its training


def test_it_is_small_and_says_what_it_is():
    assert MODEL.stat().st_size < 2e6
    model = load_model(MODEL)
    assert (model.network_arguments["name"], model.labels) == ("enet", {0: "background", 1: "tumour"})
    assert (model.size, model.tile_px, model.modality) == (224, 224, "RGB slide")
