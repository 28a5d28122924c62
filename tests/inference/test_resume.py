# SPDX-License-Identifier: Apache-2.0
"""A folder of scans or slides: what an earlier run has done is kept, all else is done, and one manifest tells of it."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.data import IntensityRule
from pipeline.errors import InputError
from pipeline.inference import FAILURES_FILE, MANIFEST_FILE, segment_files, segment_slides
from pipeline.processes.bfloat16 import EMULATE
from tests.preprocessing import scan_preprocessing, tile_preprocessing

TO_ONE = IntensityRule("window", 0.0, 255.0)


class Threshold(nn.Module):
    """Label 1 above the middle; counts its runs, and can break off at one."""

    def __init__(self) -> None:
        super().__init__()
        self.runs, self.breaks_off_at = 0, 0

    def forward(self, images: Tensor) -> Tensor:
        self.runs += 1
        if self.runs == self.breaks_off_at:
            raise KeyboardInterrupt
        grey = images.mean(dim=1, keepdim=True)
        return torch.cat([0.5 - grey, grey - 0.5], dim=1)


def model_of(kind: str = "scans", sha256: str = "abc123") -> Any:
    slides = kind == "slides"
    return SimpleNamespace(
        network=Threshold(),
        network_arguments={"in_channels": 3 if slides else 1, "out_channels": 2},
        labels={0: "background", 1: "liver"},
        preprocessing=tile_preprocessing(TO_ONE) if slides else scan_preprocessing(TO_ONE),
        size=32 if slides else 8,
        tile_px=32 if slides else None,
        modality="synthetic",
        sha256=sha256,
    )


def save_scan(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 255, (8, 8, 4)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    return path


def save_slide(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 200, (64, 64, 3)).astype(np.uint8)
    tifffile.imwrite(path, pixels, tile=(32, 32), photometric="rgb", metadata=None)
    return path


KINDS = {
    "scans": (save_scan, segment_files, ".nii.gz"),
    "slides": (save_slide, segment_slides, ".tif"),
}


@pytest.fixture(params=KINDS)
def work(request, tmp_path):
    """Return how to segment a folder of two files, which network runs counted, and where its files are."""
    save, segment, ending = KINDS[request.param]
    for number, case in enumerate("ab"):
        save(tmp_path / "in" / (case + ending), number)

    def again(sha256: str = "abc123", **options: Any) -> int:
        """Segment the folder and return how often the network ran."""
        model = model_of(request.param, sha256)
        assert segment(tmp_path / "in", tmp_path / "out", model, **options) == 0
        return model.network.runs

    return SimpleNamespace(again=again, folder=tmp_path, ending=ending, save=save, segment=segment, kind=request.param)


def manifest(folder: Path, name: str = MANIFEST_FILE) -> list[dict[str, str]]:
    with open(folder / "out" / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def statuses(folder: Path) -> dict[str, str]:
    return {row["case"]: row["status"] for row in manifest(folder)}


def test_manifest_names_each_case_with_input_output_and_hash(work):
    work.again()
    first, second = manifest(work.folder)
    output = work.folder / "out" / f"a{work.ending}"
    assert first["case"] == "a"
    assert first["input"] == str(work.folder / "in" / f"a{work.ending}")
    assert first["output"] == str(output)
    assert first["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    assert 0 < float(first["seconds"]) < 60
    assert (first["status"], first["notes"], second["case"]) == ("done", "", "b")


def test_second_run_keeps_everything(work):
    assert work.again() > 0
    before = {path.name: path.stat().st_mtime_ns for path in (work.folder / "out").glob(f"*{work.ending}")}
    told = manifest(work.folder)
    assert work.again() == 0
    assert {path.name: path.stat().st_mtime_ns for path in (work.folder / "out").glob(f"*{work.ending}")} == before
    assert manifest(work.folder) == [{**row, "status": "kept"} for row in told]


def test_new_file_is_done_and_the_others_are_kept(work):
    work.again()
    work.save(work.folder / "in" / f"c{work.ending}", 2)
    assert work.again() > 0
    assert statuses(work.folder) == {"a": "kept", "b": "kept", "c": "done"}


def test_overwrite_does_all_anew(work):
    runs = work.again()
    assert work.again(overwrite=True) == runs
    assert statuses(work.folder) == {"a": "done", "b": "done"}


@pytest.mark.parametrize("options", [{"sha256": "another"}, {"sha256": ""}, {"amp_dtype": "bfloat16"}])
def test_another_model_or_setting_does_all_anew(work, options, monkeypatch):
    monkeypatch.setenv(EMULATE, "1")
    runs = work.again()
    assert work.again(**options) == runs


def test_changed_input_is_done_anew(work):
    work.again()
    work.save(work.folder / "in" / f"b{work.ending}", 7)
    work.again()
    assert statuses(work.folder) == {"a": "kept", "b": "done"}


def test_same_case_of_another_folder_is_done_anew(work):
    runs = work.again()
    os.rename(work.folder / "in", work.folder / "elsewhere")
    (work.folder / "in").mkdir()
    for file in (work.folder / "elsewhere").iterdir():
        os.rename(file, work.folder / "in" / file.name)
    assert work.again() == 0  # the very files, back in place
    os.rename(work.folder / "in", work.folder / "other")
    model = model_of(work.kind)
    assert work.segment(work.folder / "other", work.folder / "out", model) == 0
    assert model.network.runs == runs


@pytest.mark.parametrize("harm", ["cut the map", "remove the map", "cut the description", "list as description"])
def test_damaged_output_is_done_anew(work, harm):
    work.again()
    label_map, description = (work.folder / "out" / f"b{suffix}" for suffix in (work.ending, ".json"))
    whole = label_map.read_bytes()
    if harm == "cut the map":
        label_map.write_bytes(whole[:-1])
    elif harm == "remove the map":
        label_map.unlink()
    else:
        description.write_text("{" if harm == "cut the description" else "[]")
    work.again()
    assert statuses(work.folder) == {"a": "kept", "b": "done"}
    assert json.loads(description.read_text())["case"] == "b"
    assert len(label_map.read_bytes()) == len(whole)


def test_interrupted_run_goes_on_where_it_stopped(work):
    counted = model_of(work.kind)
    assert work.segment(work.folder / "in", work.folder / "straight", counted) == 0
    stopped = model_of(work.kind)
    stopped.network.breaks_off_at = counted.network.runs // 2 + 1
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        work.segment(work.folder / "in", work.folder / "out", stopped)
    assert work.again() == counted.network.runs // 2
    assert statuses(work.folder) == {"a": "kept", "b": "done"}
    for case in "ab":
        one, other = (work.folder / place / f"{case}{work.ending}" for place in ("straight", "out"))
        assert json.loads(one.with_name(f"{case}.json").read_text())["case"] == case
        read = tifffile.imread if work.kind == "slides" else lambda path: nib.load(path).get_fdata()
        np.testing.assert_array_equal(read(one), read(other))


def test_failed_case_is_tried_again_and_listed(tmp_path):
    save_scan(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "in" / "b.nii").write_bytes(b"")
    assert segment_files(tmp_path / "in", tmp_path / "out", model_of()) == 1
    assert segment_files(tmp_path / "in", tmp_path / "out", model_of()) == 1  # not 2: `a` is there
    assert statuses(tmp_path) == {"a": "kept", "b": "failed"}
    bad = manifest(tmp_path)[1]
    assert bad["notes"] == manifest(tmp_path, FAILURES_FILE)[0]["error"]
    assert (bad["output"], bad["sha256"], bad["seconds"]) == ("", "", "")
    save_scan(tmp_path / "in" / "b.nii")
    assert segment_files(tmp_path / "in", tmp_path / "out", model_of()) == 0
    assert statuses(tmp_path) == {"a": "kept", "b": "done"}


def test_slide_with_unreadable_parts_is_tried_again(tmp_path):
    path = save_slide(tmp_path / "in" / "a.tif")
    save_slide(tmp_path / "in" / "b.tif")
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[3]
    os.truncate(path, offset)
    for _ in range(2):
        assert segment_slides(tmp_path / "in", tmp_path / "out", model_of("slides")) == 1
        row = manifest(tmp_path)[0]
        assert row["status"] == "damaged"
        assert "unreadable pixels" in row["notes"]
    assert statuses(tmp_path)["b"] == "kept"


def test_series_is_known_by_all_its_files(tmp_path):
    from pipeline.inference.manifest import input_state

    (tmp_path / "series" / "deep").mkdir(parents=True)
    (tmp_path / "series" / "1.dcm").write_bytes(b"one")
    (tmp_path / "series" / "deep" / "2.dcm").write_bytes(b"three")
    before = input_state(tmp_path / "series")
    assert (before["files"], before["bytes"]) == (2, 8)
    (tmp_path / "series" / "deep" / "2.dcm").write_bytes(b"seven")
    os.utime(tmp_path / "series" / "deep" / "2.dcm", ns=(0, before["modified_ns"] + 1))
    assert input_state(tmp_path / "series") != before


def _segment_as_rank(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    try:
        model = model_of()
        code = segment_files(f"{folder}/in", f"{folder}/out", model)
        Path(folder, f"rank{rank}").write_text(json.dumps([code, model.network.runs]))
    finally:
        dist.destroy_process_group()


def run_as(ranks: int, folder: Path) -> list[list[int]]:
    """Segment the folder by several processes; return exit code and runs of the network of each."""
    (folder / "meeting").unlink(missing_ok=True)
    torch.multiprocessing.start_processes(_segment_as_rank, (ranks, str(folder)), nprocs=ranks, start_method="fork")
    return [json.loads((folder / f"rank{rank}").read_text()) for rank in range(ranks)]


@pytest.mark.parametrize(("cases", "ranks"), [("abcde", 2), ("ab", 3), ("a", 2)])
def test_processes_share_what_is_left_and_write_one_manifest(tmp_path, cases, ranks):
    for number, case in enumerate(cases):
        save_scan(tmp_path / "in" / f"{case}.nii.gz", number)
    assert [code for code, _ in run_as(ranks, tmp_path)] == [0] * ranks
    assert [row["case"] for row in manifest(tmp_path)] == list(cases)  # in order, none twice, none lost
    alone = tmp_path / "alone"
    assert segment_files(tmp_path / "in", alone, model_of()) == 0
    for case in cases:
        one, other = (nib.load(folder / f"{case}.nii.gz").get_fdata() for folder in (alone, tmp_path / "out"))
        np.testing.assert_array_equal(one, other)
    for case in cases[1:]:
        (tmp_path / "out" / f"{case}.nii.gz").unlink()
    runs = [count for _, count in run_as(ranks, tmp_path)]
    assert statuses(tmp_path) == {case: "kept" if case == cases[0] else "done" for case in cases}
    shares = [len(cases[1:][rank::ranks]) for rank in range(ranks)]
    assert [count > 0 for count in runs] == [share > 0 for share in shares]


def test_failure_on_one_rank_ends_all_with_its_code(tmp_path):
    for case in "ac":
        save_scan(tmp_path / "in" / f"{case}.nii")
    (tmp_path / "in" / "b.nii").write_bytes(b"")
    assert [code for code, _ in run_as(2, tmp_path)] == [1, 1]
    assert [row["case"] for row in manifest(tmp_path, FAILURES_FILE)] == ["b"]
    assert statuses(tmp_path) == {"a": "done", "b": "failed", "c": "done"}


def test_input_is_not_taken_for_an_output_of_an_earlier_run(tmp_path):
    save_scan(tmp_path / "in" / "a.nii.gz")
    with pytest.raises(InputError, match="is an input and would be overwritten"):
        segment_files(tmp_path / "in", tmp_path / "in", model_of())
