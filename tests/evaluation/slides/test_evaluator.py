# SPDX-License-Identifier: Apache-2.0
"""Slides through MONAI's evaluator: the key metric, both protocols, what is refused."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import Lambdad

from pipeline.data import SLIDE_INTENSITY, preprocessing_of
from pipeline.errors import InputError, find_input_error
from pipeline.evaluation import PerOrganReport, PooledIoU
from pipeline.inference import CentreCropInferer
from tests.evaluation.slides.tissue_masks import CANCER, IMAGES, IOU, IOU_BACKGROUND, LABELS, MIOU, mask, read
from tests.preprocessing import tile_preprocessing

PREPROCESSING = preprocessing_of(tile_preprocessing(SLIDE_INTENSITY))


class Passes(torch.nn.Module):
    """A network of two classes that calls bright pixels cancer; with `labels_only` its map is the image itself."""

    def __init__(self, labels_only: bool = False) -> None:
        super().__init__()
        self.labels_only = labels_only

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.labels_only else torch.cat([0.5 - x, x - 0.5], dim=1)


def evaluate(data: list[dict], *handlers, network=None, metric=None, **more) -> SupervisedEvaluator:
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(data), batch_size=more.pop("batch_size", 1)),
        network=network or Passes(labels_only=True),
        key_val_metric={"val_miou": metric or PooledIoU(LABELS)},
        val_handlers=list(handlers),
        decollate=more.pop("decollate", False),
        **more,
    )
    evaluator.logger.setLevel(logging.CRITICAL)
    evaluator.run()
    return evaluator


def items(images=IMAGES, tensor=MetaTensor) -> list[dict]:
    return [
        {
            "case": name,
            "image": tensor(torch.from_numpy(prediction)[None]),
            "label": tensor(torch.from_numpy(label)[None]),
        }
        for name, (prediction, label) in images.items()
    ]


def refused(match: str, *arguments, **keywords) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 (ignite passes on what a handler raises)
        evaluate(*arguments, **keywords)
    cause = find_input_error(caught.value)
    assert cause is not None
    assert match in str(cause)


class TestPooledIoU:
    @pytest.mark.parametrize("decollate", [True, False])
    def test_by_hand(self, decollate):
        evaluator = evaluate(items(), decollate=decollate)
        assert evaluator.state.metrics["val_miou"] == pytest.approx(MIOU)
        assert evaluator.state.metric_details["val_miou"] == {"background": IOU_BACKGROUND, "cancer": IOU}
        assert evaluator.state.best_metric == evaluator.state.metrics["val_miou"]

    def test_starts_afresh_in_every_validation(self):
        metric = PooledIoU(CANCER)
        assert [evaluate(items(), metric=metric).state.metrics["val_miou"] for _ in range(2)] == [
            pytest.approx(MIOU)
        ] * 2

    def test_equals_the_report(self, tmp_path):
        evaluator = evaluate(items(), PerOrganReport(tmp_path, LABELS, kind="slides"))
        pooled = json.loads((tmp_path / "summary.json").read_text())["pooled"]
        assert evaluator.state.metrics["val_miou"] == pooled["miou"]

    def test_doubles_of_other_ranks_count_once(self, monkeypatch):
        def gathered(mine):
            return {**mine, **dict(list(mine.items())[:1]), "other": np.array([[3, 0], [0, 5]])}

        monkeypatch.setattr("pipeline.evaluation.engine.metrics.merged", gathered)
        details = evaluate(items()).state.metric_details["val_miou"]
        assert details == {"background": (20 + 3) / (30 + 3), "cancer": (4 + 5) / (14 + 5)}

    def test_labels_without_any_class_are_refused_whatever_is_predicted(self):
        images = {name: IMAGES[name] for name in ("invented", "empty")}
        refused("no label of 2 images has a class beside the background", items(images))

    def test_nothing_scored(self):
        metric = PooledIoU(LABELS)
        metric.reset()
        with pytest.raises(InputError, match="no case was scored"):
            metric.compute()

    def test_an_image_twice(self):
        refused("case shifted came twice", [items()[0]] * 2)

    def test_no_class(self):
        with pytest.raises(InputError, match="name one organ beside the background"):
            PooledIoU({0: "background"})


class TestThroughTheEvaluator:
    def test_full(self, tmp_path):
        report = PerOrganReport(tmp_path, LABELS, protocol="full", spacing_known=False, kind="slides", dataset="toy")
        evaluate(items(), report)
        rows = read(tmp_path / "per_image.csv")
        assert (rows[2]["image"], rows[2]["hd95_px"]) == ("shifted", "1.000000")
        assert read(tmp_path / "per_class.csv")[-1]["iou"] == f"{MIOU:.6f}"
        case = json.loads((tmp_path / "summary.json").read_text())["cases"][2]
        assert (case["case"], case["shape"], case["spacing_mm"]) == ("shifted", [5, 4], None)
        assert "image_shape" not in case

    def test_plain_tensors_have_pixels_too(self, tmp_path):
        evaluate(items(tensor=lambda tensor: tensor), PerOrganReport(tmp_path, LABELS, kind="slides"))
        assert read(tmp_path / "per_image.csv")[2]["hd95_px"] == "1.000000"

    @pytest.mark.parametrize("batch_size", [1, 2])
    def test_paper(self, tmp_path, batch_size):
        """The evaluator's postprocessing brings labels to the centres before handlers and metrics see them.

        With tile_px = 4 * size one pixel of the network spans 4 of the image. Image and label are half planes whose
        border lies at column 32 and 40 of 64: 8 and 10 of 16 in the map, and the rows 64 to 69 are not scored.
        """
        image = torch.zeros(1, 70, 64, dtype=torch.uint8)
        image[..., 32:] = 255
        label = torch.zeros(1, 70, 64, dtype=torch.uint8)
        label[..., 40:] = 1
        data = [{"case": name, "image": MetaTensor(image), "label": MetaTensor(label)} for name in "ab"]
        centres = CentreCropInferer(16, 64, PREPROCESSING)
        report = PerOrganReport(tmp_path, LABELS, protocol="paper", kind="slides", settings=centres.settings)
        evaluator = evaluate(
            data,
            report,
            network=Passes(),
            batch_size=batch_size,
            inferer=centres,
            postprocessing=Lambdad(keys="label", func=centres.centres_of),
        )
        (row, _) = read(tmp_path / "per_image_paper.csv")
        counts = [int(row[name]) for name in ("true_positive", "false_positive", "false_negative", "true_negative")]
        assert counts == [16 * 6, 16 * 2, 0, 16 * 8]
        assert row["hd95_px"] == "2.000000"
        assert evaluator.state.metrics["val_miou"] == pytest.approx((6 / 8 + 8 / 10) / 2)
        summary = json.loads((tmp_path / "summary_paper.json").read_text())
        assert summary["settings"] == {**centres.settings}
        case = summary["cases"][0]
        assert (case["shape"], case["image_shape"], case["unscored_px"]) == ([16, 16], [70, 64], 6 * 64)

    def test_published_centre_sees_the_same_border_elsewhere(self, tmp_path):
        """All moves by one pixel of the network, prediction and label alike, so a border inside keeps its figures."""
        image = torch.zeros(1, 64, 64, dtype=torch.uint8)
        image[..., 32:] = 255
        data = [{"case": "a", "image": MetaTensor(image), "label": MetaTensor((image > 0).to(torch.uint8))}]
        centres = CentreCropInferer(16, 64, PREPROCESSING, published_centre=True)
        evaluate(
            data,
            PerOrganReport(tmp_path, LABELS, protocol="paper", kind="slides", settings=centres.settings),
            network=Passes(),
            inferer=centres,
            postprocessing=Lambdad(keys="label", func=centres.centres_of),
        )
        (row,) = read(tmp_path / "per_image_paper.csv")
        assert (row["accuracy"], row["pixels_label"]) == ("1.000000", f"{16 * 7}")
        assert json.loads((tmp_path / "summary_paper.json").read_text())["settings"]["published_centre"] is True

    def test_labels_that_nobody_brought_to_the_centres(self, tmp_path):
        image = torch.zeros(1, 64, 64, dtype=torch.uint8)
        data = [{"case": "a", "image": image, "label": image}]
        refused(
            "prediction has the shape (16, 16), label (64, 64)",
            data,
            network=Passes(),
            inferer=CentreCropInferer(16, 64, PREPROCESSING),
        )

    def test_unreadable_pixels_are_told(self, tmp_path):
        data = items({"a": (np.full((4, 4), 255, np.uint8), mask(4, 4))})
        refused(
            "case a: prediction holds 16 pixels of 255",
            data,
            PerOrganReport(tmp_path, LABELS, kind="slides"),
            metric=PooledIoU({value: f"{value}" for value in range(256)}),
        )
        assert list(tmp_path.iterdir()) == []

    def test_volumes_are_refused(self, tmp_path):
        volume = torch.ones(1, 4, 4, 4, dtype=torch.uint8)
        report = PerOrganReport(tmp_path, LABELS, protocol="full")
        refused(
            "slides are images (H, W); score scans with mm", [{"case": "a", "image": volume, "label": volume}], report
        )

    def test_protocol_of_the_other_kind(self, tmp_path):
        with pytest.raises(InputError, match="'mm' is for scans, but these are slides; choose one of full, paper"):
            PerOrganReport(tmp_path / "new", LABELS, protocol="mm", kind="slides")
        assert not (tmp_path / "new").exists()
