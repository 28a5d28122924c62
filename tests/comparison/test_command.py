# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.comparison.__main__ import main
from pipeline.comparison.cost import Cost
from pipeline.data.dataset.dataset import Case, Dataset, write_dataset_json
from pipeline.data.dataset.intensity import default_intensity
from pipeline.errors import InputError
from tests.comparison.run_folders import make_scan_run, taught_by

DICE = {"case_1": {"liver": 0.9, "spleen": 0.5}, "case_2": {"liver": 0.8, "spleen": 0.0}}
BETTER = {"case_1": {"liver": 0.95, "spleen": 0.6}, "case_2": {"liver": 0.9, "spleen": 0.2}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """Teacher, student alone and kd of a dataset whose name is a formula. Tests must not write into them."""
    folder = tmp_path_factory.mktemp("runs")
    teacher = make_scan_run(folder / "teacher", BETTER, network="fanet", width=0.0625, dataset="=toy")
    alone = make_scan_run(folder / "alone", DICE, dataset="=toy")
    kd = make_scan_run(folder / "kd", BETTER, distillation=taught_by(teacher), dataset="=toy")
    return [teacher, alone, kd]


def run(runs: list[Path], output: Path, *more: str) -> int:
    return main([*map(str, runs), "--output", str(output), *more])


def refused(match: str, runs: list[Path], output: Path, *more: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        run(runs, output, *more)
    assert "\n" not in str(caught.value)


def read(output: Path) -> list[dict[str, str]]:
    with open(output / "comparison.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def labels_in(output: Path) -> list[str]:
    return [row["label"] for row in read(output)]


@pytest.fixture(scope="module")
def written(folders, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("made") / "comparison"
    assert run(folders, output, "--title", "Mine <i>") == 0
    return output


def test_all_files_are_there_and_nothing_else(written):
    names = sorted(path.name for path in written.iterdir())
    assert names == ["comparison.csv", "comparison.html", "comparison.md", "figures"]
    figures = {path.suffix for path in (written / "figures").iterdir()}
    assert figures == {".png", ".svg"}


def test_table_text_and_page_tell_the_same(written):
    rows = read(written)
    assert labels_in(written) == ["teacher FANet 0.0625", "ENet alone", "ENet + kd"]
    assert float(rows[2]["dice_difference"]) == pytest.approx((0.075 + 0.15) / 2)
    markdown = (written / "comparison.md").read_text(encoding="utf-8")
    page = (written / "comparison.html").read_text(encoding="utf-8")
    for text in (markdown, page):
        assert "+0.113 (0.075 to 0.150)" in text
        assert "ENet + kd" in text
        assert "Fewer than 3 seeds" in text
    assert "# Mine &lt;i>" in markdown
    assert "<h1>Mine &lt;i&gt;</h1>" in page
    assert "give --dataset FOLDER" in page
    assert "Made by `" in markdown


@pytest.mark.usefixtures("measured")
def test_a_second_comparison_needs_leave_and_takes_the_old_pictures_away(folders, written, tmp_path, capsys):
    output = shutil.copytree(written, tmp_path / "comparison")
    (output / "figures" / "99_older.png").write_bytes(b"")
    (output / "mine.txt").write_text("kept")
    refused("holds a comparison already", folders, output)
    assert (output / "figures" / "99_older.png").exists()
    assert run(folders[1:], output, "--overwrite") == 0
    assert not (output / "figures" / "99_older.png").exists()
    assert (output / "mine.txt").read_text() == "kept"
    assert labels_in(output) == ["ENet alone", "ENet + kd"]
    printed = capsys.readouterr().out
    assert "ENet + kd" in printed
    assert f"comparison in {output}" in printed


@pytest.fixture
def measured(monkeypatch) -> None:
    """Costs that take no time."""
    monkeypatch.setattr(
        "pipeline.comparison.tables.rows.costs_of", lambda arms: [Cost(1_000_000, 2_000_000_000, 3.0) for _ in arms]
    )


BAD_RUNS = {
    "no folder": (lambda runs, folder: [*runs, folder / "nowhere"], "is no folder"),
    "one run": (lambda runs, folder: runs[:1], "1 run given"),
    "the same run twice": (lambda runs, folder: [*runs, runs[1]], "are both ENet alone of seed 0"),
    "other data": (lambda runs, folder: [runs[1], make_scan_run(folder / "x", DICE)], "the dataset is =toy and toy"),
}


@pytest.mark.parametrize("bad", BAD_RUNS)
def test_bad_runs_leave_no_output(bad, folders, tmp_path):
    choose, message = BAD_RUNS[bad]
    refused(message, choose(folders, tmp_path), tmp_path / "comparison")
    assert not (tmp_path / "comparison").exists()


@pytest.mark.usefixtures("measured")
def test_a_failure_while_drawing_leaves_no_file(folders, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise InputError("a mask cannot be read")

    monkeypatch.setattr("pipeline.comparison.write.draw_all", fail)
    refused("a mask cannot be read", folders, tmp_path / "comparison")
    assert list((tmp_path / "comparison").iterdir()) == []


def test_output_that_is_a_file(folders, tmp_path):
    (tmp_path / "file").write_text("")
    refused("choose another output folder", folders, tmp_path / "file")


def dataset_folder(folder: Path, name: str, *cases: str) -> Path:
    (folder / "data").mkdir()
    files = {case: (folder / "data" / f"{case}.nii.gz", folder / "data" / f"{case}_label.nii.gz") for case in cases}
    for path in (path for pair in files.values() for path in pair):
        path.write_bytes(path.name.encode())
    test = tuple(Case(case, case, *pair) for case, pair in files.items())
    labels = {0: "background", 1: "liver", 2: "spleen"}
    dataset = Dataset(name, folder / "data", "MR", labels, default_intensity("MR"), (), (), test)
    return write_dataset_json(folder / "data", dataset).parent


@pytest.mark.parametrize(
    ("name", "cases", "message"),
    [
        ("other", ("case_1", "case_2"), r"is other \(scans\), but the runs were scored on =toy"),
        ("=toy", ("case_1",), "lacks 1 cases of the reports, such as case_2"),
    ],
)
def test_another_dataset_is_refused(folders, tmp_path, name, cases, message):
    data = dataset_folder(tmp_path, name, *cases)
    refused(message, folders, tmp_path / "comparison", "--dataset", str(data))
    assert not (tmp_path / "comparison").exists()


def test_exit_code_is_2_and_the_error_one_line(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "pipeline.comparison", "nowhere", "--output", "out"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(root)})
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: nowhere is no folder")
    assert done.stdout == ""
