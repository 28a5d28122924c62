# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator

from pipeline.errors import InputError, find_input_error
from pipeline.evaluation import OrganDice, OrganHD95, PerOrganReport, score_case
from pipeline.evaluation.engine.cases import count_pairs, engine_cases, tensor_confusion_matrix
from pipeline.evaluation.overlap import confusion_matrix

LABELS = {0: "background", 1: "liver", 2: "spleen"}
AFFINE = torch.diag(torch.tensor([2.0, 1.0, 3.0, 1.0], dtype=torch.float64))


class Passes(torch.nn.Module):
    """A network whose prediction is its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def volume(liver: int | None, spleen: int | None) -> torch.Tensor:
    """(1, 8, 8, 8) uint8 with a cube of each organ that begins at the given x, or without it."""
    labels = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    for value, start in ((1, liver), (2, spleen)):
        if start is not None:
            labels[0, start : start + 3, 3 * value - 2 : 3 * value + 1, 2:5] = value
    return labels


# case: (prediction, label). Liver: hit, 2 mm off; spleen: missed, absent.
CASES = {
    "b": (volume(1, None), volume(1, 4)),
    "a": (volume(2, None), volume(1, None)),
}
DICE = {"liver": (1 + 2 / 3) / 2, "spleen": 0.0}


def items(cases=CASES, affine: torch.Tensor = AFFINE) -> list[dict]:
    return [
        {"case": case, "image": MetaTensor(prediction, affine=affine), "label": MetaTensor(label, affine=affine)}
        for case, (prediction, label) in cases.items()
    ]


def evaluate(
    data: list[dict], handlers=(), batch_size: int = 1, decollate: bool = True, metric=None, network=None, more=None
):
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(data), batch_size=batch_size),
        network=network or Passes(),
        key_val_metric={"val_mean_dice": metric or OrganDice(LABELS)},
        additional_metrics=more,
        val_handlers=list(handlers),
        decollate=decollate,
    )
    evaluator.logger.setLevel(logging.CRITICAL)
    evaluator.run()
    return evaluator


def read(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def refused(match: str, *arguments, **keywords) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 (ignite passes on what a handler raises)
        evaluate(*arguments, **keywords)
    cause = find_input_error(caught.value)
    assert cause is not None
    assert match in str(cause)


@pytest.mark.parametrize("decollate", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2])
class TestBothFormsOfABatch:
    def test_key_metric_by_hand(self, batch_size, decollate):
        evaluator = evaluate(items(), batch_size=batch_size, decollate=decollate)
        assert evaluator.state.metrics["val_mean_dice"] == pytest.approx((DICE["liver"] + DICE["spleen"]) / 2)
        assert evaluator.state.metric_details["val_mean_dice"] == pytest.approx(DICE)
        assert evaluator.state.best_metric == evaluator.state.metrics["val_mean_dice"]

    def test_report_by_hand(self, batch_size, decollate, tmp_path):
        report = PerOrganReport(tmp_path, LABELS, dataset="toy", seeds={"training": 3})
        evaluate(items(), [report], batch_size, decollate)
        rows = read(tmp_path / "per_case.csv")
        assert [(row["case"], row["organ"], row["status"]) for row in rows] == [
            ("a", "liver", "ok"),
            ("a", "spleen", "absent"),
            ("b", "liver", "ok"),
            ("b", "spleen", "missed"),
        ]
        assert (rows[0]["hd95_mm"], rows[0]["dice"]) == ("2.000000", "0.666667")
        assert rows[0]["volume_label_ml"] == f"{27 * 6 / 1000:.6f}"
        assert rows[3]["hd95_mm"] == "inf"
        mean = read(tmp_path / "per_organ.csv")[-1]
        assert (mean["organ"], mean["n_cases"], mean["n_missed"], mean["n_absent"]) == ("mean", "2", "1", "1")
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert (summary["dataset"], summary["seeds"]["training"], summary["checkpoint"]) == ("toy", 3, None)
        assert [case["case"] for case in summary["cases"]] == ["a", "b"]
        assert summary["cases"][0]["spacing_mm"] == [2, 1, 3]
        assert all(value >= 0 for value in summary["cases"][0]["seconds"].values())


def test_metric_equals_the_report(tmp_path):
    evaluator = evaluate(items(), [PerOrganReport(tmp_path, LABELS)])
    mean = read(tmp_path / "per_organ.csv")[-1]
    assert float(mean["dice_mean"]) == pytest.approx(evaluator.state.metrics["val_mean_dice"], abs=1e-6)


class TestHD95:
    def test_by_hand(self):
        # The liver of a is off by one voxel of 2 mm, that of b is exact; the spleen of b is missed: the diagonal of
        # 8 x 8 x 8 voxels of 2 x 1 x 3 mm.
        diagonal_mm = math.hypot(16, 8, 24)
        state = evaluate(items(), more={"val_hd95_mm": OrganHD95(LABELS)}).state
        assert state.metric_details["val_hd95_mm"] == pytest.approx({"liver": 1.0, "spleen": diagonal_mm})
        assert state.metrics["val_hd95_mm"] == pytest.approx((1.0 + diagonal_mm) / 2)

    def test_equals_the_report(self, tmp_path):
        state = evaluate(items(), [PerOrganReport(tmp_path, LABELS)], more={"val_hd95_mm": OrganHD95(LABELS)}).state
        mean = read(tmp_path / "per_organ.csv")[-1]
        assert float(mean["hd95_penalised_mm_mean"]) == pytest.approx(state.metrics["val_hd95_mm"], abs=1e-6)

    def test_is_nan_where_voxels_have_no_size(self):
        state = evaluate(items(), more={"val_hd95_mm": OrganHD95(LABELS, spacing_known=False)}).state
        assert math.isnan(state.metrics["val_hd95_mm"])

    def test_label_without_an_affine_is_refused(self):
        data = [{**item, "label": item["label"].as_tensor()} for item in items()]
        refused("label of case b has no affine", data, more={"val_hd95_mm": OrganHD95(LABELS)})


def test_absent_organs_give_nan_where_nothing_is_selected():
    empty = {"a": (volume(None, None), volume(None, None))}
    state = evaluate(items(empty), metric=OrganDice(LABELS, allow_absent=True)).state
    assert math.isnan(state.metrics["val_mean_dice"])


def test_metric_starts_afresh_in_every_validation():
    metric = OrganDice(LABELS)
    first = evaluate(items(), metric=metric).state.metrics["val_mean_dice"]
    assert evaluate(items(), metric=metric).state.metrics["val_mean_dice"] == first


def test_metric_needs_no_case_names():
    data = [{key: item[key] for key in ("image", "label")} for item in items()]
    assert evaluate(data).state.metric_details["val_mean_dice"] == pytest.approx(DICE)


def test_images_are_cases_too():
    data = [{**item, "image": item["image"][..., 3], "label": item["label"][..., 3]} for item in items()]
    assert evaluate(data).state.metric_details["val_mean_dice"] == pytest.approx(DICE)


def test_oblique_and_float_labels(tmp_path):
    turned = torch.eye(4, dtype=torch.float64)
    angle = torch.tensor(0.3)
    turned[:2, :2] = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    data = items(affine=turned @ AFFINE)
    data = [{**item, "label": item["label"].float()} for item in data]
    evaluate(data, [PerOrganReport(tmp_path, LABELS)])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["cases"][0]["spacing_mm"] == pytest.approx([2, 1, 3], abs=1e-6)


def test_sheared_labels_are_measured_as_their_affine_says(tmp_path):
    sheared = AFFINE.clone()
    sheared[2, 1] = 0.75  # a step of 1 mm along y climbs by 0.75: voxels are 2 x 1 x 3 mm3 still, edges of 1.25 mm
    state = evaluate(
        items(affine=sheared), [PerOrganReport(tmp_path, LABELS)], more={"val_hd95_mm": OrganHD95(LABELS)}
    ).state
    rows = read(tmp_path / "per_case.csv")
    assert rows[0]["volume_label_ml"] == f"{27 * 6 / 1000:.6f}"
    diagonal_mm = math.hypot(16, 8, 24 + 8 * 0.75)
    assert state.metric_details["val_hd95_mm"]["spleen"] == pytest.approx(diagonal_mm)
    mean = read(tmp_path / "per_organ.csv")[-1]
    assert float(mean["hd95_penalised_mm_mean"]) == pytest.approx(state.metrics["val_hd95_mm"], abs=1e-6)


def test_table_is_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "pipeline.evaluation"):
        evaluate(items(), [PerOrganReport(tmp_path, LABELS)])
    assert str(tmp_path) in caplog.text
    assert "0.833" in caplog.text


def test_published_convention_and_unknown_voxel_size(tmp_path):
    handlers = [
        PerOrganReport(tmp_path / "published", LABELS, protocol="transunet"),
        PerOrganReport(tmp_path / "voxels", LABELS, spacing_known=False),
    ]
    evaluate(items(), handlers)
    assert read(tmp_path / "published" / "per_case_transunet.csv")[0]["hd95_voxels"] == "1.000000"
    row = read(tmp_path / "voxels" / "per_case.csv")[0]
    assert (row["dice"], row["hd95_mm"], row["volume_label_ml"]) == ("0.666667", "", "")


def test_plain_tensors_have_no_mm(tmp_path):
    data = [{**item, "label": item["label"].as_tensor()} for item in items()]
    refused("label of case b has no affine", data, [PerOrganReport(tmp_path, LABELS)])
    evaluate(data, [PerOrganReport(tmp_path, LABELS, spacing_known=False)])


class TestRefusals:
    def test_no_organ_anywhere(self):
        refused("none of 1 cases has an organ", items({"a": (volume(None, None), volume(None, None))}))

    def test_case_twice(self, tmp_path):
        data = [items()[0]] * 2
        refused("case b came twice", data)

    def test_case_without_a_name(self, tmp_path):
        data = [{key: item[key] for key in ("image", "label")} for item in items()]
        refused("no key 'case'", data, [PerOrganReport(tmp_path, LABELS)])

    def test_logits(self):
        data = [{**item, "image": item["image"].repeat(3, 1, 1, 1)} for item in items()]
        refused("prediction of case b has 3 channels; give a label map", data)

    @pytest.mark.parametrize("value", [0.5, float("nan"), -1.0, 256.0])
    def test_values_that_are_no_labels(self, value):
        prediction = volume(1, 4).float()
        prediction[0, 0, 0, 0] = value
        refused("prediction of case a is no label map", items({"a": (prediction, volume(1, 4))}))

    def test_unknown_organ(self, tmp_path):
        prediction = volume(1, 4)
        prediction[0, 0, 0, 0] = 9
        data = items({"a": (prediction, volume(1, 4))})
        refused("prediction holds values from 0 to 9", data)

    def test_other_grid(self, tmp_path):
        class Crops(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x[..., :-1]

        refused("prediction has the shape (8, 8, 7), label (8, 8, 8)", items(), network=Crops())

    def test_missing_key(self):
        engine = Engine(lambda engine, batch: None)
        engine.state.batch, engine.state.output = [{"case": "a"}], [{"pred": volume(1, 1)}]
        with pytest.raises(InputError, match="output lacks label; it has pred"):
            list(engine_cases(engine))

    @pytest.mark.parametrize("labels", [{}, {0: "background"}])
    def test_no_organ_declared(self, labels):
        with pytest.raises(InputError, match="name one organ"):
            OrganDice(labels)

    def test_nothing_is_written_after_a_failure(self, tmp_path):
        refused("case b came twice", [items()[0]] * 2, [PerOrganReport(tmp_path, LABELS)], metric=OrganDice(LABELS))
        assert list(tmp_path.iterdir()) == []

    def test_checkpoint_is_checked_before_the_run(self, tmp_path):
        with pytest.raises(InputError, match="cannot read"):
            PerOrganReport(tmp_path, LABELS, checkpoint=tmp_path / "none.pt")


@pytest.mark.parametrize("classes", [2, 9, 256])
def test_counts_by_torch_equal_those_by_numpy(classes):
    prediction, label = (torch.randint(0, classes, (20, 15, 10), dtype=torch.uint8) for _ in range(2))
    expected = confusion_matrix(prediction.numpy(), label.numpy(), classes)
    np.testing.assert_array_equal(count_pairs(prediction, label, classes).numpy(), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_counts_on_a_gpu_equal_those_on_the_cpu():
    prediction, label = (torch.randint(0, 9, (40, 30, 20), dtype=torch.uint8) for _ in range(2))
    expected = confusion_matrix(prediction.numpy(), label.numpy(), 9)
    np.testing.assert_array_equal(tensor_confusion_matrix(prediction.cuda(), label.cuda(), 9), expected)
    with pytest.raises(InputError, match="prediction holds values from 0 to"):
        tensor_confusion_matrix(prediction.cuda(), label.cuda(), 5)


def _rank_of_two(rank: int, folder: str) -> None:
    """Score one case on each rank and one, `c`, on both, as a sampler that fills up the last round does."""
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    try:
        cases = {list(CASES)[rank]: list(CASES.values())[rank], "c": (volume(0, 0), volume(0, 0))}
        evaluator = evaluate(items(cases), [PerOrganReport(f"{folder}/report", LABELS)])
        Path(folder, f"rank{rank}").write_text(repr(evaluator.state.metrics["val_mean_dice"]))
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_two_ranks_give_the_report_of_one(tmp_path):
    torch.multiprocessing.start_processes(_rank_of_two, (str(tmp_path),), nprocs=2, start_method="fork")
    cases = {**CASES, "c": (volume(0, 0), volume(0, 0))}
    alone = evaluate(items(cases), [PerOrganReport(tmp_path / "alone", LABELS)])
    for name in ("per_case.csv", "per_organ.csv"):
        assert (tmp_path / "report" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    expected = repr(alone.state.metrics["val_mean_dice"])
    assert [Path(tmp_path, f"rank{rank}").read_text() for rank in range(2)] == [expected] * 2


def test_report_rows_are_those_of_score_case(tmp_path):
    evaluate(items(), [PerOrganReport(tmp_path, LABELS)])
    organs = {1: "liver", 2: "spleen"}
    expected = [
        row
        for case in sorted(CASES)
        for row in score_case(case, *(part[0].numpy() for part in CASES[case]), organs, (2.0, 1.0, 3.0))
    ]
    rows = read(tmp_path / "per_case.csv")
    assert [row["dice"] for row in rows] == ["" if np.isnan(row.dice) else f"{row.dice:.6f}" for row in expected]
