# SPDX-License-Identifier: Apache-2.0
"""Protocols of slides: figures by hand, properties, parity with MONAI, bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.metrics import compute_confusion_matrix_metric, compute_iou, get_confusion_matrix

from pipeline.errors import InputError
from pipeline.evaluation import (
    FULL,
    MM,
    PAPER,
    TRANSUNET,
    confusion_matrix,
    mean_iou,
    overall_accuracy,
    pixel_counts,
    protocol_named,
    score_image,
    summarise_classes,
    write_report,
)
from pipeline.evaluation.slides.protocols import pooled_summary, unscored_px
from tests.evaluation.slides.tissue_masks import ACCURACY, CANCER, IMAGES, IOU, IOU_BACKGROUND, MIOU, mask, read

PER_IMAGE = (
    "image,class,label,status,accuracy,dice,iou,hd95_px,hd95_pooled_px,pixels_label,pixels_prediction,"
    "true_positive,false_positive,false_negative,true_negative,pixels_right"
)


def scores(images=IMAGES, organs=CANCER) -> list:
    return [row for name, pair in images.items() for row in score_image(name, *pair, organs)]


class TestByHand:
    def test_an_image_that_is_off_by_a_row(self):
        (row,) = score_image("shifted", *IMAGES["shifted"], CANCER)
        assert (row.image, row.case, row.class_, row.label, row.status) == ("shifted", "shifted", "cancer", 1, "ok")
        assert (row.accuracy, row.dice, row.iou) == (12 / 20, 8 / 16, 4 / 12)
        assert (row.true_positive, row.false_positive, row.false_negative, row.true_negative) == (4, 4, 4, 8)
        assert (row.pixels_label, row.pixels_prediction) == (8, 8)
        # Half of each contour lies on the other one, half one row beside it.
        assert (row.hd95_px, row.hd95_pooled_px, row.hd95_penalised_px) == (1.0, 1.0, 1.0)

    def test_invented_and_absent_and_missed(self):
        (invented,) = score_image("invented", *IMAGES["invented"], CANCER)
        assert (invented.status, invented.dice, invented.accuracy) == ("false_positive", 0.0, 8 / 10)
        assert (invented.hd95_px, invented.hd95_penalised_px) == (np.inf, np.sqrt(2**2 + 5**2))
        (missed,) = score_image("missed", *IMAGES["invented"][::-1], CANCER)
        assert (missed.status, missed.iou, missed.hd95_px) == ("missed", 0.0, np.inf)
        (absent,) = score_image("empty", *IMAGES["empty"], CANCER)
        assert (absent.status, absent.accuracy) == ("absent", 1.0)
        assert np.isnan([absent.dice, absent.iou, absent.hd95_px]).all()

    def test_distances_are_in_pixels_of_the_map(self):
        prediction, label = mask(40, 40), mask(40, 40)
        prediction[10, 10], label[14, 13] = 1, 1
        (row,) = score_image("a", prediction, label, CANCER, spacing_mm=(0.5, 0.5))
        assert row.hd95_px == 5.0

    def test_pooled_figures_of_three_images(self):
        background, cancer, mean = summarise_classes(scores())
        assert (cancer.n_images, cancer.n_ok, cancer.n_missed, cancer.n_false_positive, cancer.n_absent) == (
            3,
            1,
            0,
            1,
            1,
        )
        assert (cancer.accuracy, cancer.iou) == (ACCURACY, IOU)
        assert (cancer.precision, cancer.recall, cancer.specificity) == (4 / 10, 4 / 8, 20 / 26)
        assert cancer.f1 == 8 / 18
        assert (cancer.dice_mean, cancer.hd95_px_mean) == (0.25, np.inf)
        assert cancer.hd95_penalised_px_mean == (1 + np.sqrt(29)) / 2
        assert (background.accuracy, background.iou) == (ACCURACY, IOU_BACKGROUND)
        assert (background.precision, background.recall, background.specificity) == (20 / 24, 20 / 26, 4 / 8)
        assert (background.n_ok, background.n_absent) == (3, 0)
        assert np.isnan(background.dice_mean)
        assert (mean.class_, mean.label, mean.n_images, mean.n_ok) == ("mean", None, 3, 1)
        assert mean.accuracy == ACCURACY
        assert mean.iou == pytest.approx(MIOU)
        assert (mean.precision, mean.f1, mean.dice_mean) == (cancer.precision, cancer.f1, 0.25)

    def test_three_classes(self):
        """Row = label, column = prediction, as [[5, 1, 0], [2, 3, 1], [0, 0, 0]]: class 2 is invented."""
        label = np.repeat(np.array([0, 0, 1, 1, 1], np.uint8), [5, 1, 2, 3, 1])[None]
        prediction = np.repeat(np.array([0, 1, 0, 1, 2], np.uint8), [5, 1, 2, 3, 1])[None]
        rows = summarise_classes(score_image("a", prediction, label, {1: "tumour", 2: "stroma"}))
        _, tumour, stroma, mean = rows
        assert mean.accuracy == 8 / 12
        assert mean.iou == pytest.approx((5 / 8 + 3 / 7 + 0) / 3)
        assert tumour.accuracy == 8 / 12  # TP 3 and TN 5 of 12
        assert (stroma.n_false_positive, stroma.accuracy, stroma.iou) == (1, 11 / 12, 0.0)
        # Nobody labelled stroma: its recall is 0, not left out, since the prediction has it.
        assert (stroma.precision, stroma.recall, stroma.f1, stroma.specificity) == (0.0, 0.0, 0.0, 11 / 12)
        assert mean.precision == pytest.approx((3 / 4 + 0) / 2)

    def test_a_class_that_is_nowhere_does_not_count(self):
        rows = summarise_classes(scores({"a": (mask(4, 4, slice(0, 2)),) * 2}, {1: "tumour", 2: "stroma"}))
        assert (rows[-1].iou, rows[-1].f1, rows[-1].dice_mean) == (1.0, 1.0, 1.0)
        assert (rows[2].class_, rows[2].n_absent, rows[2].accuracy) == ("stroma", 1, 1.0)
        assert np.isnan([rows[2].iou, rows[2].precision, rows[2].recall, rows[2].f1]).all()

    def test_bootstrap_of_one_right_and_one_wrong_image(self):
        """Drawn twice of two, a quarter of the draws has the right image alone, and a quarter the wrong one."""
        images = {"right": (mask(2, 4, slice(0, 1)),) * 2, "wrong": (mask(2, 4, slice(0, 1)), mask(2, 4, slice(1, 2)))}
        mean = summarise_classes(scores(images))[-1]
        assert (mean.accuracy, mean.accuracy_ci95_low, mean.accuracy_ci95_high) == (0.5, 0.0, 1.0)
        assert (mean.iou, mean.iou_ci95_low, mean.iou_ci95_high) == (pytest.approx(1 / 3), 0.0, 1.0)

    def test_one_image_has_no_interval_and_equal_ones_no_spread(self):
        alone = summarise_classes(scores({"a": IMAGES["shifted"]}))[-1]
        assert np.isnan([alone.accuracy_ci95_low, alone.iou_ci95_high]).all()
        twice = summarise_classes(scores({"a": IMAGES["shifted"], "b": IMAGES["shifted"]}))[-1]
        assert (twice.accuracy_ci95_low, twice.accuracy_ci95_high) == (twice.accuracy, twice.accuracy)

    def test_pixels_that_the_paper_leaves_out(self):
        assert unscored_px(2048, 2048, 256) == 0
        assert unscored_px(300, 520, 256) == 300 * 520 - 256 * 512


class TestProperties:
    @pytest.fixture
    def random_images(self):
        rng = np.random.default_rng(0)
        return {f"{index}": tuple(rng.integers(0, 3, (2, 30, 20 + index), dtype=np.uint8)) for index in range(4)}

    def test_a_perfect_prediction(self, random_images):
        images = {name: (label, label) for name, (_, label) in random_images.items()}
        rows = summarise_classes(scores(images, {1: "a", 2: "b"}))
        for row in rows:
            figures = (row.accuracy, row.iou, row.precision, row.recall, row.specificity, row.f1)
            assert figures == (1.0,) * 6
            assert (row.accuracy_ci95_low, row.iou_ci95_high) == (1.0, 1.0)
        assert all((row.dice_mean, row.hd95_px_mean, row.hd95_penalised_px_mean) == (1.0, 0.0, 0.0) for row in rows[1:])

    def test_figures_are_those_of_one_large_image(self, random_images):
        organs = {1: "a", 2: "b"}
        whole = tuple(np.concatenate(parts, axis=1) for parts in zip(*random_images.values(), strict=True))
        many, one = (summarise_classes(scores(images, organs))[-1] for images in (random_images, {"whole": whole}))
        for name in ("accuracy", "iou", "precision", "recall", "specificity", "f1"):
            assert getattr(many, name) == pytest.approx(getattr(one, name))
        assert many.accuracy_ci95_low < many.accuracy < many.accuracy_ci95_high
        assert many.iou_ci95_low < many.iou < many.iou_ci95_high

    def test_order_of_images_does_not_matter(self, random_images):
        organs = {1: "a", 2: "b"}
        rows = scores(random_images, organs)
        assert summarise_classes(rows[::-1])[-1] == summarise_classes(rows)[-1]

    def test_agrees_with_monai(self, random_images):
        pairs = [(torch.from_numpy(one), torch.from_numpy(two)) for one, two in random_images.values()]
        one_hot = [
            [torch.nn.functional.one_hot(part.flatten().long(), 3).T[None, :, None].float() for part in pair]
            for pair in pairs
        ]
        counts = torch.stack([get_confusion_matrix(*pair)[0] for pair in one_hot]).sum(dim=0)
        rows = summarise_classes(scores(random_images, {1: "a", 2: "b"}))[:-1]
        for name, theirs in (
            ("accuracy", "accuracy"),
            ("precision", "precision"),
            ("recall", "sensitivity"),
            ("specificity", "specificity"),
            ("f1", "f1 score"),
            ("iou", "threat score"),
        ):
            expected = compute_confusion_matrix_metric(theirs, counts)
            assert [getattr(row, name) for row in rows] == pytest.approx(expected.tolist(), abs=1e-6)
        ious = [compute_iou(*pair, include_background=False)[0].tolist() for pair in one_hot]
        ours = [[row.iou for row in score_image("a", *pair, {1: "a", 2: "b"})] for pair in random_images.values()]
        np.testing.assert_allclose(ours, ious, atol=1e-6)

    def test_stacks_of_matrices_are_reduced_one_by_one(self, random_images):
        matrices = np.stack([confusion_matrix(*pair, 3) for pair in random_images.values()])
        assert mean_iou(matrices).tolist() == [float(mean_iou(matrix)) for matrix in matrices]
        assert overall_accuracy(matrices).tolist() == [float(overall_accuracy(matrix)) for matrix in matrices]
        np.testing.assert_array_equal(pixel_counts(matrices).specificity[1], pixel_counts(matrices[1]).specificity)


class TestReport:
    def test_files_and_columns(self, tmp_path):
        write_report(tmp_path, FULL, scores(), {})
        write_report(tmp_path, PAPER, scores(), {})
        assert {path.name for path in tmp_path.iterdir()} == {
            f"{name}{suffix}.{ending}"
            for suffix in ("", "_paper")
            for name, ending in (("per_image", "csv"), ("per_class", "csv"), ("summary", "json"), ("report", "html"))
        }
        assert (tmp_path / "per_image.csv").read_text().splitlines()[0] == PER_IMAGE
        assert (tmp_path / "per_image.csv").read_text() == (tmp_path / "per_image_paper.csv").read_text()
        rows = read(tmp_path / "per_image.csv")
        assert [(row["image"], row["class"], row["status"]) for row in rows] == [
            ("empty", "cancer", "absent"),
            ("invented", "cancer", "false_positive"),
            ("shifted", "cancer", "ok"),
        ]
        assert (rows[0]["dice"], rows[1]["hd95_px"], rows[2]["hd95_px"]) == ("", "inf", "1.000000")
        classes = read(tmp_path / "per_class.csv")
        assert [row["class"] for row in classes] == ["background", "cancer", "mean"]
        assert (classes[2]["accuracy"], classes[2]["iou"]) == (f"{ACCURACY:.6f}", f"{MIOU:.6f}")
        assert (classes[0]["dice_mean"], classes[1]["dice_mean"]) == ("", "0.250000")
        assert "matrix" not in classes[0]

    def test_summary(self, tmp_path):
        write_report(tmp_path, PAPER, scores(), {"settings": {"stride_px": 256}})
        summary = json.loads((tmp_path / "summary_paper.json").read_text())
        pooled = summary["pooled"]
        assert (pooled["accuracy"], pooled["miou"]) == (ACCURACY, pytest.approx(MIOU))
        assert (pooled["precision"], pooled["recall"], pooled["specificity"], pooled["f1"]) == (
            4 / 10,
            4 / 8,
            20 / 26,
            8 / 18,
        )
        assert pooled["confusion_matrix"] == [[20, 6], [4, 4]]
        assert (pooled["images"], pooled["pixels"]) == (3, 34)
        low, high = pooled["miou_ci95"]
        assert low <= pooled["miou"] <= high
        assert summary["protocol"] == "paper"
        assert "unscored_px" in summary["definitions"]["not scored"]
        assert "pixels of the map" in summary["definitions"]["hd95_px"]
        assert summary["results"][1]["class"] == "cancer"
        assert summary["results"][1]["hd95_px_mean"] is None

    def test_a_single_image_has_no_interval_in_json(self):
        rows = scores({"a": IMAGES["shifted"]})
        assert pooled_summary(rows, summarise_classes(rows))["accuracy_ci95"] == [None, None]

    def test_console_table(self):
        table = FULL.table(summarise_classes(scores()))
        header, background, cancer, mean, pooled, note = table.splitlines()
        assert header.split()[:3] == ["class", "images", "ok"]
        assert background.split()[:8] == ["background", "3", "3", "0", "0", "0", "0.706", "0.667"]
        assert cancer.split()[:8] == ["cancer", "3", "1", "0", "1", "1", "0.706", "0.286"]
        assert mean.split()[6:8] == ["0.706", "0.476"]
        assert pooled.startswith("ACC 0.7059 (95% interval 0.6000 to ")
        assert "inf where a class was missed or invented" in note

    @pytest.mark.parametrize("protocol", [FULL, PAPER])
    def test_protocols_are_known_by_name_and_kind(self, protocol):
        assert protocol_named(protocol.name) is protocol_named(protocol.name, "slides") is protocol
        with pytest.raises(InputError, match="is for slides, but these are scans; choose one of mm, transunet"):
            protocol_named(protocol.name, "scans")

    def test_protocols_of_scans_are_refused_for_slides(self):
        assert (protocol_named(None, "slides"), protocol_named(None, "scans"), protocol_named(None)) == (FULL, MM, MM)
        for protocol in (MM, TRANSUNET):
            with pytest.raises(InputError, match=f"'{protocol.name}' is for scans, but .* choose one of full, paper"):
                protocol_named(protocol.name, "slides")
        with pytest.raises(InputError, match="mm, transunet for scans or full, paper for slides"):
            protocol_named("pixels")


class TestBadMaps:
    @pytest.mark.parametrize(
        ("prediction", "label", "message"),
        [
            (mask(4, 4)[None], mask(4, 4)[None], r"shape \(1, 4, 4\), but slides are images"),
            (mask(4, 5), mask(4, 4), r"prediction has the shape \(4, 5\), label \(4, 4\)"),
            (mask(4, 4, slice(0, 1)) * 255, mask(4, 4), "holds 4 pixels of 255, which stands for places"),
            (mask(4, 4, slice(0, 1)) * 2, mask(4, 4), "prediction holds values from 0 to 2"),
            (mask(4, 4), mask(4, 4, slice(0, 1)) * 255, "label holds values from 0 to 255"),
            (mask(4, 4).astype(float), mask(4, 4), "prediction is float64"),
        ],
    )
    def test_is_one_line(self, prediction, label, message):
        with pytest.raises(InputError, match=message):
            score_image("a", prediction, label, CANCER)
