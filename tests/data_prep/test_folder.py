# SPDX-License-Identifier: Apache-2.0
"""Folders of scans and labels: what becomes of good ones, every problem told, nothing half-written."""

import codecs
import json
import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from data_prep.check import check_dataset
from data_prep.folder import main, read_labels
from pipeline.data import load_dataset, read_label, read_volume
from pipeline.errors import InputError

AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])


def write(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def scan(seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    image = random.integers(-900, 900, (6, 7, 4)).astype(np.int16)
    label = random.integers(0, 3, (6, 7, 4)).astype(np.uint8)
    label.flat[:3] = 0, 1, 2
    return image, label


@pytest.fixture
def source(tmp_path) -> Path:
    for index, name in enumerate(("s1", "s2", "s3", "s4")):
        image, label = scan(index)
        write(tmp_path / "images" / f"{name}.nii.gz", image)
        write(tmp_path / "labels" / f"{name}.nii.gz", label)
    return tmp_path


def run(source: Path, *more: str) -> int:
    folders = ["--images", str(source / "images"), "--labels", str(source / "labels"), "--output", str(source / "out")]
    organs = [] if "--labels-json" in more else ["--organs", "liver,right kidney"]
    return main([*folders, "--modality", "CT", *organs, *more])


def nothing_is_left(source: Path) -> bool:
    return not (source / "out").exists() and not any(path.name.startswith(".") for path in source.iterdir())


def test_four_scans_become_a_dataset(source, capsys):
    assert run(source, "--test", "s4", "--validation", "s1", "--name", "mine") == 0
    dataset = load_dataset(source / "out")
    assert dataset.name == "mine"
    assert dataset.labels == {0: "background", 1: "liver", 2: "right kidney"}
    assert [case.case for case in dataset.training] == ["s2", "s3"]
    assert [case.case for case in dataset.validation] == ["s1"]
    assert [case.case for case in dataset.test] == ["s4"]
    image, label = scan(3)
    assert np.array_equal(read_volume(dataset.test[0].image).array, image)
    assert np.array_equal(read_label(dataset.test[0].label).array, label)
    said = capsys.readouterr().out
    assert "training: 2 cases of 2 patients: s2 s3" in said
    assert f"wrote {source / 'out'}" in said


def test_files_are_copies_byte_for_byte(source):
    run(source)
    assert (source / "out/images/s2.nii.gz").read_bytes() == (source / "images/s2.nii.gz").read_bytes()
    assert not (source / "out/images/s2.nii.gz").samefile(source / "images/s2.nii.gz")


@pytest.mark.parametrize(("link", "is_symlink"), [(["--link"], True), (["--link", "hard"], False)])
def test_links(source, link, is_symlink):
    run(source, *link)
    placed = source / "out/images/s2.nii.gz"
    assert placed.samefile(source / "images/s2.nii.gz")
    assert placed.is_symlink() == is_symlink
    load_dataset(source / "out")


def test_patients_stay_together(source):
    (source / "patients.csv").write_text("case,patient\ns1,anna\ns2,anna\ns3,bert\ns4,carl\nother,dora\n")
    run(source, "--patients", str(source / "patients.csv"), "--test", "anna")
    dataset = load_dataset(source / "out")
    assert {case.case for case in dataset.test} == {"s1", "s2"}
    assert {case.patient for case in dataset.training} == {"bert", "carl"}


def test_patients_as_a_spreadsheet_saves_them(source):
    text = "Case;Patient;Age\r\ns1.nii.gz;anna;40\r\ns2;anna;40\r\ns3;bert;50\r\ns4_0000;carl;\r\n;;\r\n"
    (source / "patients.csv").write_bytes(codecs.BOM_UTF8 + text.encode())
    run(source, "--patients", str(source / "patients.csv"), "--test", "anna")
    dataset = load_dataset(source / "out")
    assert {case.case for case in dataset.test} == {"s1", "s2"}
    assert {case.patient for case in dataset.training} == {"bert", "carl"}


def test_a_dataset_json_saved_with_a_mark(source):
    run(source)
    path = source / "out/dataset.json"
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes().replace(b"\n", b"\r\n"))
    assert load_dataset(source / "out").labels[2] == "right kidney"


def test_a_split_file(source):
    (source / "split.json").write_text(json.dumps({"training": ["s1", "s2"], "validation": ["s3"], "test": ["s4"]}))
    run(source, "--split", str(source / "split.json"))
    assert [case.case for case in load_dataset(source / "out").training] == ["s1", "s2"]


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ([], {"rule": "window", "low": -125, "high": 275}),
        (["--modality", "MR"], {"rule": "percentiles", "low": 0.5, "high": 99.5}),
        (["--intensity", "window", "-200", "300.5"], {"rule": "window", "low": -200, "high": 300.5}),
    ],
)
def test_intensity(source, given, rule):
    run(source, *given)
    assert load_dataset(source / "out").intensity.to_dict() == rule


@pytest.mark.parametrize(
    "content",
    [
        {"0": "background", "1": "liver", "2": "spleen"},
        {"1": "liver", "2": "spleen"},
        {"background": 0, "liver": 1, "spleen": 2},
        {"name": "decathlon", "labels": {"0": "background", "1": "liver", "2": "spleen"}},
    ],
)
def test_labels_from_json(tmp_path, content):
    (tmp_path / "labels.json").write_text(json.dumps(content))
    assert read_labels(None, str(tmp_path / "labels.json")) == {0: "background", 1: "liver", 2: "spleen"}


def test_other_formats_become_nifti(source):
    (source / "images/s1.nii.gz").unlink()
    (source / "labels/s1.nii.gz").unlink()
    image, label = scan(9)
    for kind, array in (("images", image), ("labels", label)):
        itk = SimpleITK.GetImageFromArray(array.T)
        itk.SetSpacing((2.0, 2.0, 5.0))
        SimpleITK.WriteImage(itk, str(source / kind / "s1.mha"))
    run(source, "--test", "s1")
    (case,) = load_dataset(source / "out").test
    assert case.image.name == case.label.name == "s1.nii.gz"
    assert np.array_equal(read_volume(case.image).array, image)
    written = read_label(case.label, like=read_volume(case.image))
    assert np.array_equal(written.array, label)
    assert np.allclose(read_volume(case.image).affine, np.diag([-2.0, -2.0, 5.0, 1.0]))


def test_channel_numbers_of_nnunet(source):
    for path in (source / "images").iterdir():
        path.rename(path.with_name(path.name.replace(".nii.gz", "_0000.nii.gz")))
    run(source)
    assert (source / "out/images/s1.nii.gz").is_file()


def test_names_with_spaces_and_letters_of_any_language(source):
    for kind in ("images", "labels"):
        (source / kind / "s1.nii.gz").rename(source / kind / "Müller 1 – früh.nii.gz")
    run(source, "--test", "Müller 1 – früh")
    assert load_dataset(source / "out").test[0].image.is_file()


def test_oddities_are_said_but_allowed(source, capsys):
    image, _ = scan(0)
    write(source / "images/s1.nii.gz", (np.abs(image) % 256).astype(np.int16))
    for name in ("s1", "s2", "s3", "s4"):
        write(source / "labels" / f"{name}.nii.gz", np.zeros((6, 7, 4), np.uint8))
    run(source)
    said = capsys.readouterr().err
    assert "case s1: values 0..253 do not look like Hounsfield units" in said
    assert "case s2: the label s2.nii.gz is empty" in said
    assert "no training case has a right kidney" in said


@pytest.fixture
def half_labelled(source) -> Path:
    """Beside the four scans with labels, three without: u1 and u2, and s5 as another tool names its only channel."""
    for seed, name in ((10, "u1"), (11, "u2"), (12, "s5_0000")):
        write(source / "images" / f"{name}.nii.gz", scan(seed)[0])
    return source


@pytest.mark.parametrize("patterns", [[], ["--image-pattern", "{case}", "--label-pattern", "{case}"]])
@pytest.mark.parametrize("link", [[], ["--link"]])
def test_scans_without_a_label_train_if_asked_for(half_labelled, link, patterns, capsys):
    assert run(half_labelled, "--train-unlabelled", "--test", "0.25", "--validation", "0.25", *link, *patterns) == 0
    dataset = load_dataset(half_labelled / "out")
    assert [len(dataset.split(split)) for split in ("training", "validation", "test")] == [5, 1, 1]  # shares of four
    assert dataset.unlabelled_cases == (["s5_0000", "u1", "u2"] if patterns else ["s5", "u1", "u2"])
    declared = json.loads((half_labelled / "out/dataset.json").read_text())
    assert declared["training"][-1] == {"case": "u2", "patient": "u2", "image": "images/u2.nii.gz"}
    assert np.array_equal(read_volume(dataset.training[-1].image).array, scan(11)[0])
    assert not (half_labelled / "out/unlabelled").exists()
    assert "  without label: 3 of the training cases\n" in capsys.readouterr().out
    check = check_dataset(half_labelled / "out")
    assert check.errors == 0
    assert sum("distillation alone learns from it" in row.remedy for row in check.rows) == 3


def test_a_scan_without_a_label_is_refused_and_the_option_named(half_labelled, capsys):
    with pytest.raises(InputError, match="3 problems"):
        run(half_labelled)
    lines = capsys.readouterr().err.splitlines()
    assert all(line.endswith("; add it, or give --train-unlabelled") for line in lines)
    assert nothing_is_left(half_labelled)


def test_no_scan_of_a_patient_of_validation_or_test_trains(half_labelled, capsys):
    text = "case,patient\ns1,anna\nu1,anna\ns2,bert\nu2,bert\ns3,carl\ns4,carl\ns5,carl\n"
    (half_labelled / "patients.csv").write_text(text)
    given = ["--train-unlabelled", "--patients", str(half_labelled / "patients.csv"), "--test", "anna"]
    assert run(half_labelled, *given, "--validation", "bert") == 0
    dataset = load_dataset(half_labelled / "out")
    assert [(case.case, case.patient) for case in dataset.training] == [("s3", "carl"), ("s4", "carl"), ("s5", "carl")]
    assert sorted(path.name for path in (half_labelled / "out/unlabelled").iterdir()) == ["u1.nii.gz", "u2.nii.gz"]
    said = capsys.readouterr()
    assert "scan u1 has no label and does not train, because its patient anna is in test" in said.err
    assert "scan u2 has no label and does not train, because its patient bert is in validation" in said.err
    assert "  without label: 2 scans to segment" in said.out


def test_a_scan_without_a_label_is_never_scored(half_labelled, capsys):
    with pytest.raises(InputError, match="1 problem"):
        run(half_labelled, "--train-unlabelled", "--test", "u1")
    assert "--test: no case or patient 'u1'" in capsys.readouterr().err


@pytest.mark.parametrize("link", [[], ["--link"]])
def test_two_scans_of_one_name_of_which_one_has_a_label(source, link, capsys):
    write(source / "images/s1_0000.nii.gz", scan(10)[0])
    with pytest.raises(InputError, match="1 problem"):
        run(source, "--train-unlabelled", *link)
    assert "two scans of the name s1; rename one" in capsys.readouterr().err


def moved_affine() -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] = 3.0
    return affine


def not_finite() -> np.ndarray:
    image = scan(0)[0].astype(np.float32)
    image[0, 0, 0] = np.nan
    return image


BAD = {
    "no label": (lambda s: (s / "labels/s1.nii.gz").unlink(), "image .*s1.nii.gz has no label of its name"),
    "no image": (lambda s: (s / "images/s1.nii.gz").unlink(), "label .*s1.nii.gz has no image of its name"),
    "two names": (lambda s: write(s / "images/s1.nii", scan(0)[0]), "two images of one name: s1.nii and s1.nii.gz"),
    "other shape": (lambda s: write(s / "labels/s1.nii.gz", scan(0)[1][:5]), "case s1: .*shape 5 x 7 x 4"),
    "other place": (lambda s: write(s / "labels/s1.nii.gz", scan(0)[1], moved_affine()), "case s1: .*origin by 3 mm"),
    "other value": (lambda s: write(s / "labels/s1.nii.gz", scan(0)[1] * 3), "case s1: .*unknown label values 3.*6"),
    "blended": (lambda s: write(s / "labels/s1.nii.gz", scan(0)[1] * np.float32(0.7)), "case s1: .*whole numbers"),
    "nan": (lambda s: write(s / "images/s1.nii.gz", not_finite()), "case s1: .*1 of 168 voxels are NaN"),
    "4D": (lambda s: write(s / "images/s1.nii.gz", np.zeros((6, 7, 4, 3), np.int16)), "case s1: "),
    "truncated": (lambda s: os.truncate(s / "images/s1.nii.gz", 80), "case s1: .*s1.nii.gz"),
    "twice": (lambda s: write(s / "images/s1.nii.gz", scan(1)[0]), "cases s1 and s2 hold the same image"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_scan_is_told_and_nothing_is_left(source, capsys, kind):
    spoil, message = BAD[kind]
    spoil(source)
    with pytest.raises(InputError, match=r"1 problem in .*nothing was written"):
        run(source, "--test", "s4")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("problem: ")
    assert re.search(message, line)
    assert nothing_is_left(source)


def test_all_problems_are_told_at_once(source, capsys):
    for kind in ("nan", "other value"):
        BAD[kind][0](source)
    (source / "labels/s3.nii.gz").unlink()
    write(source / "labels/s2.nii.gz", scan(1)[1][:5])
    with pytest.raises(InputError, match="4 problems"):
        run(source, "--test", "s9")
    said = capsys.readouterr().err
    for part in ("s3.nii.gz has no label", "no case or patient 's9'", "case s1: ", "case s2: "):
        assert part in said


@pytest.mark.parametrize(
    ("csv", "message"),
    [
        ("case,patient\ns1,a\ns1,b\ns2,c\ns3,d\ns4,e\n", "case s1 has two patients, a and b"),
        ("case,patient\ns1,a\ns2,c\ns3,d\n", "no patient for case s4"),
        ("case,patient\ns1,a\ns2,a\ns3,d\ns4,e\n", "patient a is in test and in training"),
    ],
)
def test_bad_patients(source, capsys, csv, message):
    (source / "patients.csv").write_text(csv)
    with pytest.raises(InputError, match="1 problem"):
        run(source, "--patients", str(source / "patients.csv"), "--test", "s1")
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--patients", "nowhere.csv"], "cannot read nowhere.csv"),
        (["--images", "nowhere"], "no folder of images at nowhere"),
        (["--labels-json", "nowhere.json"], "cannot read nowhere.json"),
        (["--intensity", "window", "5", "1"], "--intensity: .*not below"),
        (["--intensity", "window", "a", "1"], "--intensity: a and 1 must be numbers"),
        (["--split", "x.json", "--test", "s1"], "give --split alone"),
    ],
)
def test_bad_arguments(source, more, message):
    with pytest.raises(InputError, match=message):
        run(source, *more)
    assert nothing_is_left(source)


def test_a_csv_of_other_columns(source):
    (source / "patients.csv").write_text("scan;person\ns1;a\n")
    with pytest.raises(InputError, match="lacks the columns case and patient"):
        run(source, "--patients", str(source / "patients.csv"))


def test_an_output_that_exists_is_never_touched(source):
    (source / "out").mkdir()
    (source / "out/thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        run(source)
    assert (source / "out/thesis.txt").read_text() == "mine"


def test_an_empty_output_folder_is_fine(source):
    (source / "out").mkdir()
    assert run(source) == 0


def test_output_inside_the_input(source):
    with pytest.raises(InputError, match="which is read"):
        run(source, "--output", str(source / "images/out"))


def test_images_given_as_labels(source):
    with pytest.raises(InputError, match="two folders"):
        run(source, "--labels", str(source / "images"))


def test_no_scans_at_all(source):
    for kind in ("images", "labels"):
        for path in (source / kind).iterdir():
            path.unlink()
        (source / kind / "readme.txt").write_text("soon")
    with pytest.raises(InputError, match="no scans with labels in"):
        run(source)


def test_the_chaos_split_in_one_command(shared_data, tmp_path):
    chaos = shared_data / "chaos_mr"
    arguments = ["--images", f"{chaos}/images", "--labels", f"{chaos}/labels", "--output", str(tmp_path / "chaos")]
    arguments += ["--modality", "MR", "--organs", "liver,right kidney,left kidney,spleen", "--link"]
    assert main([*arguments, "--test", "chaos_36,chaos_38,chaos_39", "--validation", "chaos_32,chaos_33"]) == 0
    dataset = load_dataset(tmp_path / "chaos")
    assert [case.case[-2:] for case in dataset.training] == ["01", "02", "03", "05", "10", "13", "15", "20", "21", "31"]
    assert [case.case[-2:] for case in dataset.test] == ["36", "38", "39"]
