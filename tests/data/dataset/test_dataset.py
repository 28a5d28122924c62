# SPDX-License-Identifier: Apache-2.0
"""The dataset folder: what a good one gives, and one error line for each way to get it wrong."""

import json
from pathlib import Path

import pytest
from monai.data import load_decathlon_datalist

from pipeline.data import CT_WINDOW, Case, Dataset, load_dataset, write_dataset_json
from pipeline.errors import InputError

LABELS = {"0": "background", "1": "liver", "2": "left kidney"}


def entry(case: str, patient: str | None = None) -> dict:
    return {
        "case": case,
        "patient": patient or case,
        "image": f"images/{case}.nii.gz",
        "label": f"labels/{case}.nii.gz",
    }


def content() -> dict:
    return {
        "name": "tiny",
        "modality": {"0": "CT"},
        "labels": dict(LABELS),
        "intensity": {"rule": "window", "low": -125, "high": 275},
        "spacing_known": True,
        "numTraining": 2,
        "numTest": 1,
        "training": [entry("a"), entry("b")],
        "validation": [entry("c")],
        "test": [entry("d")],
    }


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with files (any bytes: this module never reads voxels) for the cases a..d, each different."""
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for case in "abcd":
            (tmp_path / kind / f"{case}.nii.gz").write_bytes(f"{kind} of {case}".encode())
    return tmp_path


def write(folder: Path, declared: dict) -> Path:
    (folder / "dataset.json").write_text(json.dumps(declared), encoding="utf-8")
    return folder


def test_a_good_folder(folder):
    dataset = load_dataset(write(folder, content()))
    assert dataset.labels == {0: "background", 1: "liver", 2: "left kidney"}
    assert dataset.organs == {1: "liver", 2: "left kidney"}
    assert dataset.out_channels == 3
    assert (dataset.name, dataset.modality, dataset.spacing_known) == ("tiny", "CT", True)
    assert dataset.intensity == CT_WINDOW
    assert [case.case for case in dataset.split("training")] == ["a", "b"]
    assert dataset.datalist("test") == [
        {"case": "d", "image": str(folder / "images/d.nii.gz"), "label": str(folder / "labels/d.nii.gz")}
    ]


def test_the_file_itself_can_be_given(folder):
    write(folder, content())
    assert load_dataset(folder / "dataset.json") == load_dataset(str(folder))


def test_labels_beyond_nine_keep_their_order(folder):
    declared = content()
    declared["labels"] = {str(value): "background" if value == 0 else f"organ {value}" for value in range(11, -1, -1)}
    assert list(load_dataset(write(folder, declared)).labels) == list(range(12))


def test_write_and_load_round_trip(folder):
    case = {
        name: Case(name, f"patient {name}", folder / f"images/{name}.nii.gz", folder / f"labels/{name}.nii.gz")
        for name in "abc"
    }
    unlabelled = Case("d", "patient d", folder / "images/d.nii.gz", None)
    labels = {0: "background", 1: "spleen"}
    dataset = Dataset(
        "round",
        folder,
        "MR",
        labels,
        CT_WINDOW,
        (case["a"],),
        (case["b"],),
        (case["c"], unlabelled),
        spacing_known=False,
    )
    write_dataset_json(folder, dataset)
    assert load_dataset(folder) == dataset


def test_monai_reads_the_same_file(folder):
    write(folder, content())
    items = load_decathlon_datalist(str(folder / "dataset.json"), data_list_key="training", base_dir=str(folder))
    assert [item["image"] for item in items] == [item["image"] for item in load_dataset(folder).datalist("training")]


def test_linked_files_are_fine(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "scan.nii.gz"
    elsewhere.write_bytes(b"far away")
    (folder / "images/a.nii.gz").unlink()
    (folder / "images/a.nii.gz").symlink_to(elsewhere)
    assert load_dataset(write(folder, content())).training[0].image == folder / "images/a.nii.gz"


def test_a_path_with_spaces_and_letters_of_any_language(folder):
    declared = content()
    declared["test"][0]["image"] = "images/Bauch – größer.nii.gz"
    (folder / "images/d.nii.gz").rename(folder / "images/Bauch – größer.nii.gz")
    assert load_dataset(write(folder, declared)).test[0].image.is_file()


def test_no_folder_and_no_file(tmp_path):
    with pytest.raises(InputError, match=r"no dataset\.json at .*data_prep\.folder"):
        load_dataset(tmp_path)
    with pytest.raises(InputError, match=r"no dataset\.json at .*nowhere"):
        load_dataset(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "x",\n "labels": }', "is not JSON: .* in line 2"),
        ("[]", "holds a list"),
        ("", "is not JSON"),
        ('{"labels": {"1": "liver", "1": "spleen"}}', "key 1 stands twice"),
    ],
)
def test_files_that_are_no_dataset(tmp_path, text, message):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=message):
        load_dataset(tmp_path)


def test_not_utf8(tmp_path):
    (tmp_path / "dataset.json").write_bytes(b'{"name": "\xff\xfe"}')
    with pytest.raises(InputError, match="UTF-8"):
        load_dataset(tmp_path)


def change(path: str, value: object):
    """Return a function that sets the value at a dotted path, or deletes it where the value is None."""

    def apply(declared: dict) -> None:
        *parents, last = (int(key) if key.isdigit() and path[0] != "l" else key for key in path.split("."))
        target = declared
        for key in parents:
            target = target[key]
        if value is None:
            del target[last]
        else:
            target[last] = value

    return apply


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (change("labels", None), "lacks the key labels"),
        (change("intensity", None), "lacks the key intensity"),
        (change("validation", None), "lacks the key validation"),
        (change("training.0.patient", None), r"training\[0\] lacks patient"),
        (change("validation.0.label", None), r"validation\[0\] lacks label"),
        (change("training.1", "images/b.nii.gz"), r"training\[1\] must be an object"),
        (change("training", {"a": 1}), "training must be a list"),
        (change("training.0.case", 7), "case is 7"),
        (change("training.0.case", "x/y"), "holds a slash"),
        (change("training.0.case", "b"), "case b is listed twice"),
        (change("test.0.case", "a"), "case a is listed twice"),
        (change("test.0.patient", "a"), r"patient in more than one split: a \(test, training\)"),
        (change("training.0.image", "images/gone.nii.gz"), r"missing files: a \(images/gone\.nii\.gz\)"),
        (change("training.0.image", "../secret.nii.gz"), "leaves the dataset folder"),
        (change("training.0.image", "images/../../secret.nii.gz"), "leaves the dataset folder"),
        (change("training.0.image", "/etc/hostname"), "leaves the dataset folder"),
        (change("training.0.image", "images/b.nii.gz"), "one file in two places"),
        (change("training.0.label", "images/a.nii.gz"), "one file in two places"),
        (change("labels", {"0": "background"}), "one organ at least"),
        (change("labels", {"0": "background", "2": "liver"}), "without a gap"),
        (change("labels", {"1": "liver", "2": "spleen"}), "without a gap"),
        (change("labels", {"0": "background", "one": "liver"}), "whole numbers"),
        (change("labels", {"0": "background", "1": "liver", "2": "liver"}), "each used once"),
        (change("labels", {"0": "liver", "1": "background"}), "0 must be 'background'"),
        (change("modality", {"0": "CT", "1": "PET"}), "one image channel"),
        (change("modality", "CT"), "one image channel"),
        (change("intensity", {"rule": "window", "low": 9, "high": 1}), "not below"),
        (change("spacing_known", "yes"), "true or false"),
        (change("name", 3), "name must be text"),
    ],
)
def test_bad_declarations(folder, apply, message):
    declared = content()
    apply(declared)
    with pytest.raises(InputError, match=message) as caught:
        load_dataset(write(folder, declared))
    assert str(folder / "dataset.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_missing_files_are_listed_at_once(folder):
    for name in ("images/a", "labels/c", "labels/d"):
        (folder / f"{name}.nii.gz").unlink()
    with pytest.raises(InputError, match=r"3 missing files: a \(images/a.*c \(labels/c.*d \(labels/d"):
        load_dataset(write(folder, content()))


def test_a_misspelt_split_is_recognised(folder):
    declared = content()
    declared["trainning"] = declared.pop("training")
    with pytest.raises(InputError, match=r"lacks the key training; did you mean it by 'trainning'"):
        load_dataset(write(folder, declared))


def test_one_scan_copied_under_two_ids(folder):
    (folder / "images/d.nii.gz").write_bytes((folder / "images/a.nii.gz").read_bytes())
    with pytest.raises(InputError, match="cases a and d hold the same image"):
        load_dataset(write(folder, content()))


def test_one_scan_hard_linked_under_two_ids(folder):
    (folder / "images/d.nii.gz").unlink()
    (folder / "images/d.nii.gz").hardlink_to(folder / "images/a.nii.gz")
    with pytest.raises(InputError, match="one file in two places"):
        load_dataset(write(folder, content()))


def test_an_empty_split_is_told_when_it_is_asked_for(folder):
    declared = content()
    declared["validation"] = []
    dataset = load_dataset(write(folder, declared))
    with pytest.raises(InputError, match=r"no case in split 'validation' of .*dataset\.json: "):
        dataset.datalist("validation")


def test_test_cases_without_label(folder):
    declared = content()
    del declared["test"][0]["label"]
    dataset = load_dataset(write(folder, declared))
    assert dataset.test[0].label is None
    with pytest.raises(InputError, match="no label for d in split 'test'"):
        dataset.datalist("test")


def test_training_cases_without_label(folder):
    declared = content()
    unlabelled = declared["training"][0]
    del unlabelled["label"]
    dataset = load_dataset(write(folder, declared))
    assert dataset.unlabelled_cases == [unlabelled["case"]]
    labelled = dataset.training_datalist()
    assert [entry["case"] for entry in labelled] == [entry["case"] for entry in declared["training"][1:]]
    whole = dataset.training_datalist(0.5)
    assert whole[:-1] == labelled
    assert whole[-1] == {"case": unlabelled["case"], "image": str(folder / unlabelled["image"])}
    assert dataset.training_datalist(None) == whole


def test_nothing_is_labelled_or_nothing_is_not(folder):
    dataset = load_dataset(write(folder, content()))
    assert dataset.training_datalist(None) == dataset.datalist("training")
    with pytest.raises(InputError, match=r"--unlabelled_share: every training case of .* has a label"):
        dataset.training_datalist(0.5)
    declared = content()
    for case in declared["training"]:
        del case["label"]
    with pytest.raises(InputError, match=r"no training case of .* has a label"):
        load_dataset(write(folder, declared)).training_datalist(0.5)


@pytest.mark.parametrize("share", ["half", float("nan"), 1, -0.5, True])
def test_a_share_that_is_none_is_refused(folder, share):
    with pytest.raises(InputError, match=r"--unlabelled_share is .*; give a number from 0 to below 1"):
        load_dataset(write(folder, content())).training_datalist(share)


def test_unknown_split(folder):
    with pytest.raises(InputError, match="did you mean 'training'"):
        load_dataset(write(folder, content())).split("train")


def test_files_outside_cannot_be_written_down(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "x.nii.gz"
    case = Case("x", "x", outside, None)
    dataset = Dataset("n", folder, "CT", {0: "background", 1: "liver"}, CT_WINDOW, (), (), (case,))
    with pytest.raises(InputError, match="lies outside the dataset folder"):
        write_dataset_json(folder, dataset)
    assert not (folder / "dataset.json").exists()
