# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.evaluation import MM, TRANSUNET, protocol_named, score_case, write_report
from pipeline.evaluation.provenance import describe_run, sha256_of
from pipeline.evaluation.report import check_output_folder
from pipeline.evaluation.tables import text_table

ORGANS = {1: "liver", 2: "left kidney", 3: "spleen", 4: "aorta"}
PER_CASE = "case,organ,label,status,dice,iou,hd95_mm,hd95_pooled_mm,assd_mm,volume_label_ml,volume_prediction_ml"
PER_ORGAN = (
    "organ,label,n_cases,n_ok,n_missed,n_false_positive,n_absent,dice_mean,dice_std,dice_ci95_low,dice_ci95_high,"
    "hd95_mm_mean,hd95_mm_median,hd95_penalised_mm_mean,volume_error_ml_mean"
)


def maps() -> tuple[np.ndarray, np.ndarray]:
    """Liver hit, left kidney missed, spleen invented, aorta absent."""
    prediction, label = np.zeros((2, 8, 8, 8), dtype=np.uint8)
    prediction[1:4, 1:4, 1:4] = label[1:4, 1:4, 1:4] = 1
    label[6:, 6:, 6:] = 2
    prediction[6:, :2, 6:] = 3
    return prediction, label


def scores(case: str = "case_1", protocol=MM) -> list:
    return protocol.score(case, *maps(), ORGANS, (1.0, 1.0, 2.0))


def read(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_columns_are_the_documented_ones(tmp_path):
    write_report(tmp_path, MM, scores(), {})
    assert (tmp_path / "per_case.csv").read_text().splitlines()[0] == PER_CASE
    assert (tmp_path / "per_organ.csv").read_text().splitlines()[0] == PER_ORGAN
    assert [row["organ"] for row in read(tmp_path / "per_organ.csv")] == [*ORGANS.values(), "mean"]


def test_cells_of_each_status(tmp_path):
    write_report(tmp_path, MM, scores(), {})
    liver, kidney, spleen, aorta = read(tmp_path / "per_case.csv")
    assert (liver["dice"], liver["hd95_mm"], liver["volume_label_ml"]) == ("1.000000", "0.000000", "0.054000")
    assert (kidney["status"], kidney["dice"], kidney["hd95_mm"]) == ("missed", "0.000000", "inf")
    assert (spleen["status"], spleen["dice"], spleen["assd_mm"]) == ("false_positive", "0.000000", "inf")
    assert (aorta["status"], aorta["dice"], aorta["hd95_mm"]) == ("absent", "", "")
    diagonal = np.sqrt(8**2 + 8**2 + 16**2)
    kidney, aorta, mean = (read(tmp_path / "per_organ.csv")[index] for index in (1, 3, 4))
    assert (kidney["hd95_mm_mean"], kidney["hd95_penalised_mm_mean"]) == ("inf", f"{diagonal:.6f}")
    assert (aorta["n_absent"], aorta["dice_mean"], aorta["hd95_penalised_mm_mean"]) == ("1", "", "")
    assert (mean["label"], mean["n_cases"], mean["n_ok"], mean["n_missed"], mean["n_absent"]) == (
        "",
        "1",
        "1",
        "1",
        "1",
    )
    assert mean["dice_mean"] == f"{1 / 3:.6f}"


def test_summary_is_strict_json_and_names_its_source(tmp_path):
    checkpoint = tmp_path / "model.pt"
    checkpoint.write_bytes(b"weights")
    write_report(tmp_path, MM, scores(), {"dataset": "toy", **describe_run(checkpoint, {"training": 7})})

    def refuse(word: str) -> None:
        pytest.fail(f"{word} is not JSON")

    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    assert summary["protocol"] == "mm"
    assert summary["checkpoint"]["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert summary["seeds"] == {"training": 7, "bootstrap": 0}
    assert {"pipeline", "python", "monai", "torch", "numpy", "scipy"} <= summary["versions"].keys()
    assert summary["command"]
    results = {row["organ"]: row for row in summary["results"]}
    assert results["left kidney"]["hd95_mm_mean"] is None
    assert results["left kidney"]["n_missed"] == 1
    assert results["mean"]["dice_mean"] == pytest.approx(1 / 3)


def test_files_do_not_depend_on_the_order_of_the_cases(tmp_path):
    rows = scores("b") + scores("a")
    write_report(tmp_path / "one", MM, rows, {})
    write_report(tmp_path / "two", MM, rows[::-1], {})
    for name in MM.file_names():
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert [row["case"] for row in read(tmp_path / "one" / "per_case.csv")] == ["a"] * 4 + ["b"] * 4


def test_protocols_have_files_of_their_own(tmp_path):
    write_report(tmp_path, MM, scores(), {})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_report(tmp_path, TRANSUNET, scores(protocol=TRANSUNET), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        (*MM.file_names(), MM.page_name, *TRANSUNET.file_names(), TRANSUNET.page_name)
    )
    assert all((tmp_path / name).read_bytes() == content for name, content in before.items())
    text = (tmp_path / "per_case_transunet.csv").read_text()
    assert "mm" not in text.splitlines()[0]
    assert json.loads((tmp_path / "summary_transunet.json").read_text())["protocol"] == "transunet"


@pytest.mark.parametrize("name", ["=1+1", "+cmd", "-cmd", "@sum", "\tx"])
def test_names_are_no_formulas(tmp_path, name):
    rows = score_case(name, *maps(), {**ORGANS, 1: name}, (1, 1, 1))
    write_report(tmp_path, MM, rows, {})
    row = read(tmp_path / "per_case.csv")[0]
    assert row["case"] == row["organ"] == f"'{name}"


def test_negative_numbers_stay_numbers(tmp_path):
    rows = score_case("a", *maps(), ORGANS, (1, 1, 1))
    smaller = [replace(row, volume_prediction_ml=0.0) for row in rows]
    write_report(tmp_path, MM, smaller, {})
    assert float(read(tmp_path / "per_organ.csv")[0]["volume_error_ml_mean"]) == pytest.approx(-0.027)


def test_commas_quotes_and_unicode_survive(tmp_path):
    name = 'Leber, "links" é'
    write_report(tmp_path, MM, score_case(name, *maps(), ORGANS, (1, 1, 1)), {})
    assert read(tmp_path / "per_case.csv")[0]["case"] == name


def test_a_report_that_fails_leaves_the_old_one_whole(tmp_path):
    write_report(tmp_path, MM, scores(), {})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="JSON"):
        write_report(tmp_path, MM, scores("other"), {"speed": float("inf")})
    with pytest.raises(UnicodeEncodeError):
        write_report(tmp_path, MM, scores("\ud800"), {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_console_table_shows_counts_and_three_digits():
    table = MM.table(MM.summarise(scores()))
    header, liver, kidney, _, aorta, mean, note = table.splitlines()
    assert header.split()[:7] == ["organ", "cases", "ok", "missed", "false", "pos", "absent"]
    assert liver.split() == ["liver", "1", "1", "0", "0", "0", "1.000", "-", "0.00", "0.00", "0.00", "0.00"]
    assert kidney.split()[:9] == ["left", "kidney", "1", "0", "1", "0", "0", "0.000", "-"]
    assert "inf" in kidney
    assert aorta.split()[5:] == ["1", *"------"]
    assert mean.split()[:7] == ["mean", "1", "1", "1", "1", "1", "0.333"]
    assert "diagonal" in note


def test_console_table_of_the_published_convention_warns():
    assert "published Synapse figures alone" in TRANSUNET.table(TRANSUNET.summarise(scores(protocol=TRANSUNET)))


def test_text_table_aligns():
    assert text_table(("a", "bb"), [("ccc", "1"), ("d", "22")]) == "a    bb\nccc   1\nd    22"


def test_nothing_scored_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no case was scored"):
        write_report(tmp_path / "new", MM, [], {})
    assert not (tmp_path / "new").exists()


def test_unknown_protocol_is_an_error():
    with pytest.raises(InputError, match="choose one of mm, transunet"):
        protocol_named("voxels")


def test_output_that_cannot_be_written_is_told_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="choose another output folder"):
        check_output_folder(tmp_path / "file" / "report")
    assert list(check_output_folder(tmp_path / "new" / "report").iterdir()) == []


def test_checkpoint_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*model.pt"):
        sha256_of(tmp_path / "model.pt")
