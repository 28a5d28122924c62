# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import codecs
import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

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
    assert set(rows) == {(case, organ) for case in "ab" for organ in ("label 1", "label 2")}
    assert rows["a", "label 1"]["hd95_mm"] == "2.000000"
    assert rows["a", "label 1"]["dice"] == "0.750000"
    assert rows["a", "label 1"]["volume_label_ml"] == f"{64 * 6 / 1000:.6f}"
    assert rows["a", "label 2"]["status"] == "absent"
    assert rows["b", "label 2"]["dice"] == "1.000000"
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


def test_organs_named_on_the_command_line(folders):
    assert run(folders, "--organs", "liver, spleen") == 0
    assert [row["organ"] for row in read(folders / "report" / "per_organ.csv")] == ["liver", "spleen", "mean"]


FOREIGN = {
    "decathlon": {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "spleen"},
        "numTraining": 2,
        "training": [{"image": "./imagesTr/gone.nii.gz", "label": "./labelsTr/gone.nii.gz"}],
        "test": ["./imagesTs/x.nii.gz"],
    },
    "nnunet": {"channel_names": {"0": "FLAIR", "1": "T1"}, "labels": {"background": 0, "liver": 1, "spleen": 2}},
    "ours without images": {
        "name": "mine",
        "labels": {"0": "background", "1": "liver", "2": "spleen"},
        "training": [{"case": "a", "patient": "a", "image": "gone.nii.gz", "label": "gone.nii.gz"}],
    },
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_only_the_labels_of_a_dataset_json_count(folders, kind):
    (folders / "dataset.json").write_bytes(codecs.BOM_UTF8 + json.dumps(FOREIGN[kind]).encode())
    for where in (folders, folders / "dataset.json"):
        assert run(folders, "--dataset", str(where)) == 0
        assert [row["organ"] for row in read(folders / "report" / "per_organ.csv")] == ["liver", "spleen", "mean"]


def test_values_with_gaps_have_names(folders):
    write(folders / "labels" / "b.nii.gz", cube(7))
    write(folders / "predictions" / "b.nii", cube(7))
    (folders / "x.json").write_text(json.dumps({"labels": {"liver": 1, "aorta": 7}}))
    assert run(folders, "--dataset", str(folders / "x.json")) == 0
    assert [row["label"] for row in read(folders / "report" / "per_organ.csv")] == ["1", "7", ""]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"labels": {"whole": [1, 2]}}, "dataset.json: labels: whole are regions"),
        ({"name": "no labels"}, "dataset.json: labels"),
    ],
)
def test_a_dataset_json_that_names_nothing(folders, content, message):
    (folders / "dataset.json").write_text(json.dumps(content))
    refused(folders, message, "--dataset", str(folders))
    refused(folders, "not both", "--dataset", str(folders), "--organs", "liver")
    (folders / "dataset.json").unlink()
    refused(
        folders, "no dataset.json at .*; correct --dataset, or name the organs by --organs", "--dataset", str(folders)
    )


@pytest.mark.parametrize("which", ["predictions", "labels"])
def test_the_channel_number_of_nnunet_is_no_part_of_the_name(folders, which):
    for path in (folders / which).iterdir():
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    assert run(folders) == 0
    assert [row["case"] for row in read(folders / "report" / "per_case.csv")] == ["a", "a", "b", "b"]


def save_segments(path: Path, labels: np.ndarray, *names: str) -> None:
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(labels[::-1, ::-1].T))
    image.SetSpacing((2.0, 1.0, 3.0))
    image.SetOrigin((-18.0, -8.0, 0.0))  # LPS: the grid of `AFFINE` with two axes turned
    for index, name in enumerate(names):
        image.SetMetaData(f"Segment{index}_Name", name)
        image.SetMetaData(f"Segment{index}_LabelValue", str(index + 1))
    path.parent.mkdir(exist_ok=True)
    SimpleITK.WriteImage(image, str(path))


def test_segments_of_slicer_are_scored_by_name(folders):
    """Values follow the order of drawing: in the second reader's file, 2 is the liver."""
    save_segments(folders / "first" / "a.seg.nrrd", cube(), "liver", "spleen")
    save_segments(folders / "second" / "a.seg.nrrd", cube(2, start=3), "spleen", "liver")
    for more in ([], ["--organs", "spleen,liver"]):
        assert run(folders, *more, predictions="second", labels="first") == 0
        rows = {row["organ"]: row for row in read(folders / "report" / "per_case.csv")}
        assert (rows["liver"]["dice"], rows["spleen"]["status"]) == ("0.750000", "absent")


@pytest.mark.parametrize("which", ["label", "prediction"])
def test_segments_that_slicer_cropped_are_scored_on_the_whole_grid(folders, which):
    """As Slicer saves them with "Crop to minimum extent": the organ alone, which the crop starts with."""
    whole, organ = folders / "whole" / "a.nii.gz", cube()
    write(whole, organ)
    kept = tuple(slice(found.min(), found.max() + 1) for found in np.nonzero(organ))
    affine = AFFINE.copy()
    affine[:, 3] = AFFINE @ (*(part.start for part in kept), 1)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(organ[kept].T))
    image.SetSpacing(np.linalg.norm(AFFINE[:3, :3], axis=0))
    image.SetDirection((np.diag([-1.0, -1, 1]) @ AFFINE[:3, :3] / np.linalg.norm(AFFINE[:3, :3], axis=0)).ravel())
    image.SetOrigin(np.diag([-1.0, -1, 1]) @ affine[:3, 3])
    (folders / "cropped").mkdir()
    SimpleITK.WriteImage(image, str(folders / "cropped" / "a.seg.nrrd"))
    paths = ("whole", "cropped") if which == "label" else ("cropped", "whole")
    assert run(folders, "--organs", "liver", predictions=paths[0], labels=paths[1]) == 0
    assert [row["dice"] for row in read(folders / "report" / "per_case.csv")] == ["1.000000"]


def test_segments_against_bare_numbers_need_names(folders):
    save_segments(folders / "first" / "a.seg.nrrd", cube(2), "spleen", "liver")
    refused(folders, "does not name its values, as other files do", "--allow-missing", labels="first")
    assert run(folders, "--allow-missing", "--organs", "liver,spleen", labels="first") == 0
    assert read(folders / "report" / "per_case.csv")[0]["dice"] == "0.750000"


def test_published_convention_has_files_of_its_own(folders):
    assert run(folders, "--protocol", "transunet") == 0
    assert {path.name for path in (folders / "report").iterdir()} == {
        "per_case_transunet.csv",
        "per_organ_transunet.csv",
        "summary_transunet.json",
        "report_transunet.html",
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
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("label ")]
    assert [line[7] for line in lines] == ["0.941", "0.944", "0.970", "0.971", "0.985", "0.809", "0.980", "0.946"]
