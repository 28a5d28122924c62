# SPDX-License-Identifier: Apache-2.0
"""The check of a dataset: every problem in one table, its exit codes, and the manifest."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from data_prep import check, findings
from data_prep.building import write_nifti
from data_prep.check import check_dataset, main
from data_prep.findings import Finding, Findings, table
from data_prep.phantom_slides import main as draw_tissue
from pipeline.data import SPLITS
from pipeline.errors import InputError

AFFINE = np.diag([-0.8, -0.8, 2.0, 1.0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good dataset of three scans, one a split, in a folder with a blank in its name."""
    root = tmp_path / "my data"
    declared = {
        "name": "toy",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver"},
        "intensity": {"rule": "window", "low": -125, "high": 275},
    }
    for seed, (case, split) in enumerate(zip("abc", SPLITS, strict=True)):
        image = np.random.default_rng(seed).integers(-1000, 1000, (4, 5, 6)).astype(np.int16)
        label = np.zeros((4, 5, 6), np.uint8)
        label[0, 0, : seed + 1] = 1
        write_nifti(root / f"images/{case}.nii.gz", image, AFFINE)
        write_nifti(root / f"labels/{case}.nii.gz", label, AFFINE)
        entry = {"case": case, "patient": case, "image": f"images/{case}.nii.gz", "label": f"labels/{case}.nii.gz"}
        declared[split] = [entry]
    (root / "dataset.json").write_text(json.dumps(declared))
    return root


def edit(folder: Path, **values: object) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def spoil(folder: Path) -> None:
    """Put one problem into each of four files, and two into a label."""
    (folder / "images/a.nii.gz").write_bytes(b"")
    label = np.full((4, 5, 6), 7, np.uint8)
    write_nifti(folder / "labels/b.nii.gz", label, AFFINE @ np.diag([1, 1, 2, 1]))
    (folder / "labels/c.nii.gz").unlink()
    entry = json.loads((folder / "dataset.json").read_text())["test"][0]
    edit(folder, labels={"0": "background", "2": "liver"}, test=[{**entry, "patient": "a"}])


def test_a_good_dataset(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out == f"0 errors, 0 notes in 3 cases of {folder}\n"


def test_table_by_hand() -> None:
    rows = [Finding("error", "a", "is empty", "copy it"), Finding("note", "long/b", "x\x1b[31m\n", "none")]
    assert table(rows) == (
        "severity  file    fact         remedy\n"
        "error     a       is empty     copy it\n"
        "note      long/b  x\\x1b[31m\\n  none"
    )


def test_a_long_cell_pushes_its_own_row_alone() -> None:
    lines = table([Finding("error", "f" * 80, "x", "y"), Finding("error", "g", "x", "y")]).split("\n")
    assert lines[1] == f"error     {'f' * 80}  x     y"
    assert lines[2] == f"error     g{' ' * (findings._WIDEST - 1)}  x     y"


@pytest.mark.parametrize(
    ("line", "file", "fact", "remedy"),
    [
        ("D/a.nii: is cut off, at 3; download it", "a.nii", "is cut off, at 3", "download it"),
        ("D/a.nii is cut off; one; two", "a.nii", "is cut off; one", "two"),
        ("D/a.nii is odd", "a.nii", "is odd", "replace the file, or take the case out"),
        ("no such file: D/a.nii; check the path", "a.nii", "no such file", "check the path"),
        ("no picture at D/a.nii; check the path", "a.nii", "no picture", "check the path"),
        ("cannot open D/a.nii: loop; check the path", "a.nii", "cannot open it: loop", "check the path"),
        ("D/a.nii has shape 1, but D/b.nii has 2; give it", "a.nii", "has shape 1, but b.nii has 2", "give it"),
    ],
)
def test_a_readers_line_in_columns(line: str, file: str, fact: str, remedy: str) -> None:
    found = Findings(Path("D"))
    found.refused(Path("D/a.nii"), InputError(line))
    assert found.rows == [Finding("error", file, fact, remedy)]


def test_every_problem_of_every_file_is_told_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(folder)
    assert main([str(folder)]) == 2
    lines = capsys.readouterr().out.splitlines()
    told = [
        "dataset.json .* labels: the values 0, 2 must count 0, 1, 2, … without a gap .* renumber them",
        "dataset.json .* patient a is in more than one split: test, training .* move all scans",
        "images/a.nii.gz .* is empty .* download or export it again",
        "labels/b.nii.gz .* does not lie on the grid of images/b.nii.gz: voxel edge off by 2 mm",
        "labels/c.nii.gz .* no such file .* check the path",
    ]
    for pattern, line in zip(told, lines[1:-1], strict=True):
        assert re.search(pattern.replace(" .* ", ".*"), line), lines
    assert lines[-1] == f"5 errors, 0 notes in 3 cases of {folder}"


def test_a_label_with_two_faults_has_two_rows(folder: Path) -> None:
    write_nifti(folder / "labels/b.nii.gz", np.full((4, 5, 6), 7, np.uint8), AFFINE @ np.diag([1, 1, 2, 1]))
    facts = [row.fact for row in check_dataset(folder).rows if row.severity == "error"]
    assert len(facts) == 2
    assert facts[0].startswith("does not lie on the grid of images/b.nii.gz")
    assert facts[1] == "unknown label values 7 (120 voxels)"


def test_manifest_by_hand(folder: Path, tmp_path: Path) -> None:
    assert main([str(folder), "--json", str(tmp_path / "new/manifest.json")]) == 0
    written = json.loads((tmp_path / "new/manifest.json").read_text())
    assert (written["dataset"], written["errors"], written["findings"]) == (str(folder), 0, [])
    case = written["cases"][1]
    content = (folder / "labels/b.nii.gz").read_bytes()
    assert (case["case"], case["patient"], case["split"]) == ("b", "b", "validation")
    assert case["label"] == {
        "file": "labels/b.nii.gz",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "shape": [4, 5, 6],
        "spacing_mm": [0.8, 0.8, 2.0],
        "type": "uint8",
        "notes": [],
        "values": {"0": 118, "1": 2},
    }


def test_manifest_of_a_bad_dataset_holds_what_could_be_read(folder: Path, tmp_path: Path) -> None:
    spoil(folder)
    assert main([str(folder), "--json", str(tmp_path / "manifest.json")]) == 2
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert written["errors"] == sum(row["severity"] == "error" for row in written["findings"])
    image = written["cases"][0]["image"]
    assert (image["file"], image["bytes"], "shape" in image) == ("images/a.nii.gz", 0, False)
    assert written["cases"][2]["label"] == {"file": "labels/c.nii.gz"}


@pytest.mark.parametrize("name", ["dataset.json", "images/a.nii.gz"])
def test_manifest_never_replaces_an_input(folder: Path, name: str) -> None:
    before = (folder / name).read_bytes()
    with pytest.raises(InputError, match="would overwrite a file of the dataset"):
        main([str(folder), "--json", str(folder / "images/.." / name)])
    assert (folder / name).read_bytes() == before


def test_the_file_itself_can_be_given(folder: Path) -> None:
    assert check_dataset(folder / "dataset.json").summary() == check_dataset(folder).summary()


def test_unreadable_declarations_are_rows_and_missing_ones_an_error(folder: Path, tmp_path: Path) -> None:
    (folder / "dataset.json").write_text("{")
    [row] = check_dataset(folder).rows
    assert (row.severity, row.file, row.remedy) == ("error", "dataset.json", "correct that line")
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError, match=r"no dataset\.json at"):
            check_dataset(path)


def test_all_mistakes_in_a_declaration_are_rows(folder: Path) -> None:
    entry = {"case": "x/y", "patient": 3, "image": "../a", "label": "labels/a.nii.gz"}
    values = {"name": 3, "modality": {}, "intensity": {"rule": "window", "low": 2, "high": 1}, "tile_px": -1}
    edit(folder, **values, labels={}, spacing_known=1, training=[7, {"case": "z"}, entry, {**entry, "patient": "p"}])
    rows = [row for row in check_dataset(folder).rows if row.severity == "error" and row.file == "dataset.json"]
    told = "\n".join(row.fact for row in rows)
    for part in (
        "name is 3",
        "modality is {}",
        "labels must name one organ",
        "low 2 is not below high 1",
        "tile_px is -1",
        "spacing_known is 1",
        "training[0] must be an object",
        "training[1] lacks patient, image",
        "training[2]: patient is 3",
        "training[3]: image '../a' leaves the dataset folder",
        "training[3]: case 'x/y' holds a slash",
    ):
        assert part in told
    assert all(row.remedy for row in rows)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"name": ' + "1" * 5000 + "}"],
    ids=["nested a hundred thousand deep", "number of 5000 digits"],
)
def test_json_that_the_parser_gives_up_on(folder: Path, text: str) -> None:
    (folder / "dataset.json").write_text(text)
    [row] = check_dataset(folder).rows
    assert (row.severity, row.file) == ("error", "dataset.json")


def test_result_does_not_depend_on_the_number_of_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(folder)
    several = check_dataset(folder).manifest()
    monkeypatch.setattr(check, "_workers", lambda declared: 1)
    assert check_dataset(folder).manifest() == several


def test_threads_are_as_many_as_memory_allows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = check.read_declaration(folder)
    monkeypatch.setattr(check.os, "cpu_count", lambda: 8)
    assert check._workers(declared) == 8
    largest = max((folder / "images").iterdir(), key=lambda path: path.stat().st_size).stat().st_size
    monkeypatch.setattr(check, "_MEMORY_BYTES", 3 * check._GROWTH * largest)
    assert check._workers(declared) == 3
    monkeypatch.setattr(check, "_MEMORY_BYTES", 1)
    assert check._workers(declared) == 1


def test_a_training_case_without_label_is_noted_with_its_use(folder: Path) -> None:
    training = json.loads((folder / "dataset.json").read_text())["training"]
    del training[0]["label"]
    edit(folder, training=training)
    (row,) = [row for row in check_dataset(folder).rows if row.fact == "has no label"]
    assert (row.file, row.severity) == (training[0]["image"], "note")
    assert row.remedy == "distillation alone learns from it; add the label if there is one"


def test_a_test_case_without_label_is_noted(folder: Path) -> None:
    entry = json.loads((folder / "dataset.json").read_text())["test"][0]
    del entry["label"]
    edit(folder, test=[entry])
    assert ("images/c.nii.gz", "has no label") in [(row.file, row.fact) for row in check_dataset(folder).rows]
    assert check_dataset(folder).errors == 0


def test_tissue_that_the_converter_made_is_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_tissue(["--output", str(tmp_path / "tissue"), "--side", "128", "--crop", "64", "--images", "6"])
    assert check_dataset(tmp_path / "tissue").errors == 0


def test_nothing_goes_to_stderr_where_no_terminal_is(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spoil(folder)
    assert main([str(folder)]) == 2
    printed = capfd.readouterr()
    assert printed.out.startswith("severity  file")
    assert printed.err == ""
