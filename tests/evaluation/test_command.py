# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.comparison.run_files import _diagonals
from pipeline.data.dataset.dataset import Case, Dataset, write_dataset_json
from pipeline.data.dataset.intensity import default_intensity
from pipeline.errors import InputError
from pipeline.evaluation.__main__ import main

AFFINE = np.diag([2.0, 1.0, 3.0, 1.0])


def write(path: Path, labels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, affine), path)
    return path


def cube(value: int = 1, start: int = 2) -> np.ndarray:
    labels = np.zeros((10, 9, 8), dtype=np.uint8)
    labels[start : start + 4, 2:6, 2:6] = value
    return labels


@pytest.fixture
def folders(tmp_path):
    """Two cases, a and b: a shifted by one voxel of 2 mm, b the same."""
    write(tmp_path / "labels" / "a.nii.gz", cube())
    write(tmp_path / "labels" / "b.nii.gz", cube(2))
    write(tmp_path / "predictions" / "a.nii.gz", cube(start=3))
    write(tmp_path / "predictions" / "b.nii", cube(2))
    return tmp_path


def run(folder: Path, *more: str, predictions: str = "predictions", labels: str = "labels") -> int:
    paths = ["--predictions", folder / predictions, "--labels", folder / labels, "--output", folder / "report"]
    return main([*map(str, paths), *more])


def read(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def refused(folder: Path, match: str, *more: str, **paths: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        run(folder, *more, **paths)
    assert "\n" not in str(caught.value)
    assert not list(folder.glob("report/*"))


def test_two_folders(folders, capsys):
    assert run(folders) == 0
    rows = {(row["case"], row["organ"]): row for row in read(folders / "report" / "per_case.csv")}
    assert set(rows) == {(case, organ) for case in "ab" for organ in ("label_1", "label_2")}
    assert rows["a", "label_1"]["hd95_mm"] == "2.000000"
    assert rows["a", "label_1"]["dice"] == "0.750000"
    assert rows["a", "label_1"]["volume_label_ml"] == f"{64 * 6 / 1000:.6f}"
    assert rows["a", "label_2"]["status"] == "absent"
    assert rows["b", "label_2"]["dice"] == "1.000000"
    printed = capsys.readouterr().out
    assert "0.750" in printed
    assert "0.875" in printed
    summary = json.loads((folders / "report" / "summary.json").read_text())
    assert [case["case"] for case in summary["cases"]] == ["a", "b"]
    assert summary["cases"][0]["spacing_mm"] == [2, 1, 3]
    assert summary["missing_predictions"] == []


def test_tilted_gantry_is_measured_as_its_affine_says(tmp_path):
    tilt = math.radians(20)
    affine = np.diag([1.0, math.cos(tilt), 5.0, 1.0])
    affine[2, 1] = math.sin(tilt)
    for folder, first in (("labels", 4), ("predictions", 7)):
        labels = np.zeros((40, 60, 20), dtype=np.uint8)
        labels[10:30, 15:45, first : first + 12] = 1
        labels[0, 0, 0] = 2 if folder == "labels" else 0
        write(tmp_path / folder / "tilt.nii.gz", labels, affine)
    assert run(tmp_path) == 0
    row, missed = read(tmp_path / "report" / "per_case.csv")
    assert float(row["volume_label_ml"]) == pytest.approx(7.2 * 5 * math.cos(tilt), abs=1e-3)  # 33.83, not 36
    assert float(row["hd95_mm"]) == pytest.approx(math.sqrt(250 - 150 * math.sin(tilt)), abs=1e-4)
    assert missed["hd95_mm"] == "inf"
    (_, organ, _) = read(tmp_path / "report" / "per_organ.csv")
    diagonal_mm = math.hypot(40, 60 * math.cos(tilt), 60 * math.sin(tilt) + 100)
    assert float(organ["hd95_penalised_mm_mean"]) == pytest.approx(diagonal_mm, abs=1e-4)
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert np.allclose(summary["cases"][0]["steps_mm"], affine[:3, :3], atol=1e-6)
    (entry,) = summary["cases"]
    assert _diagonals(tmp_path, "scans", {"cases": [entry]})["tilt"] == pytest.approx(diagonal_mm, abs=1e-4)


def test_two_files_are_a_pair_whatever_their_names(folders):
    write(folders / "other_tool.nii.gz", cube(start=3))
    assert run(folders, predictions="other_tool.nii.gz", labels="labels/a.nii.gz") == 0
    (row,) = read(folders / "report" / "per_case.csv")
    assert (row["case"], row["dice"]) == ("a", "0.750000")


def test_dataset_names_the_organs(folders):
    image = write(folders / "images" / "a.nii.gz", np.zeros((10, 9, 8), np.int16))
    case = Case("a", "patient", image, folders / "labels" / "a.nii.gz")
    labels = {0: "background", 1: "liver", 2: "spleen", 3: "aorta"}
    for known in (True, False):
        dataset = Dataset("toy", folders, "CT", labels, default_intensity("CT"), (case,), (), (), spacing_known=known)
        write_dataset_json(folders, dataset)
        assert run(folders, "--dataset", str(folders / "dataset.json")) == 0
        rows = read(folders / "report" / "per_organ.csv")
        assert [row["organ"] for row in rows] == ["liver", "spleen", "aorta", "mean"]
        assert rows[2]["n_absent"] == "2"
        assert rows[0]["hd95_mm_mean"] == ("2.000000" if known else "")
        assert rows[0]["dice_mean"] == "0.750000"


def test_published_convention_has_files_of_its_own(folders):
    assert run(folders, "--protocol", "transunet") == 0
    assert {path.name for path in (folders / "report").iterdir()} == {
        "per_case_transunet.csv",
        "per_organ_transunet.csv",
        "summary_transunet.json",
    }
    assert read(folders / "report" / "per_case_transunet.csv")[0]["hd95_voxels"] == "1.000000"


def test_axes_stored_in_another_order_are_the_same_grid(folders):
    flipped = AFFINE.copy()
    flipped[0, 0], flipped[0, 3] = -2.0, 2.0 * 9
    write(folders / "predictions" / "a.nii.gz", cube(start=3)[::-1], flipped)
    assert run(folders) == 0
    assert read(folders / "report" / "per_case.csv")[0]["dice"] == "0.750000"


def test_missing_and_extra_predictions_are_listed(folders):
    (folders / "predictions" / "b.nii").rename(folders / "predictions" / "c.nii")
    refused(folders, r"no prediction for b and no label for c .*--allow-missing")


def test_allow_missing_scores_the_rest_and_says_so(folders, caplog):
    (folders / "predictions" / "b.nii").rename(folders / "predictions" / "c.nii")
    assert run(folders, "--allow-missing") == 0
    assert {row["case"] for row in read(folders / "report" / "per_case.csv")} == {"a"}
    summary = json.loads((folders / "report" / "summary.json").read_text())
    assert (summary["missing_predictions"], summary["predictions_without_label"]) == (["b"], ["c"])
    assert "1 labels without prediction (b), 1 predictions without label (c)" in caplog.text


def test_hidden_and_other_files_are_passed_over(folders):
    (folders / "predictions" / "._a.nii.gz").write_bytes(b"resource fork")
    (folders / "predictions" / "failures.csv").touch()
    assert run(folders) == 0


def test_every_bad_case_is_told(folders):
    write(folders / "predictions" / "a.nii.gz", cube()[1:])
    write(folders / "predictions" / "b.nii", cube(2), np.diag([2.0, 1.0, 2.5, 1.0]))
    refused(folders, r"2 of 2 cases cannot be scored: case a: .*; case b: ")


def test_unknown_values_in_a_prediction(folders):
    write(folders / "predictions" / "b.nii", cube(7))
    refused(folders, r"case b: .*unknown label values 7 \(64 voxels\)")


def test_damaged_file(folders):
    path = folders / "predictions" / "a.nii.gz"
    path.write_bytes(path.read_bytes()[:-10])
    refused(folders, "1 of 2 cases cannot be scored: case a: ")


def test_one_case_twice(folders):
    write(folders / "predictions" / "a.nii", cube())
    refused(folders, "are one case by name")


def test_nothing_in_common(folders):
    write(folders / "other" / "z.nii.gz", cube())
    refused(folders, r"no case id is in both .*predictions \(a, b\) and .*other \(z\)", labels="other")


def test_label_given_as_its_own_prediction(folders):
    refused(folders, "both prediction and label of case a", predictions="labels")


def test_empty_folder_missing_folder_and_empty_labels(folders):
    (folders / "empty").mkdir()
    refused(folders, "holds no label map", predictions="empty")
    refused(folders, "no such file or folder", predictions="nowhere")
    write(folders / "zeros" / "a.nii.gz", cube(0))
    write(folders / "zeros" / "b.nii.gz", cube(0))
    refused(folders, "all voxels are 0", labels="zeros")


def test_exit_code_and_one_line_on_the_command_line(folders):
    command = [sys.executable, "-m", "pipeline.evaluation", "--predictions", "nowhere", "--labels", str(folders)]
    done = subprocess.run([*command, "--output", str(folders / "report")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: no such file or folder: nowhere; check the path"


def test_known_dice_of_a_real_abdomen(shared_data, tmp_path, capsys):
    folder = shared_data / "abdomen_ct"
    predictions = folder / "label_synapse8_3mm_v2fast.nii.gz"
    paths = ["--predictions", predictions, "--labels", folder / "label_synapse8_3mm.nii.gz", "--output", tmp_path]
    assert main([*map(str, paths)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("label_")]
    assert [line[6] for line in lines] == ["0.941", "0.944", "0.970", "0.971", "0.985", "0.809", "0.980", "0.946"]
