# SPDX-License-Identifier: Apache-2.0
"""Folders as other tools lay them out become datasets by one command; what they cannot become is told in one line."""

from __future__ import annotations

import codecs
import json
import re
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from data_prep.check import check_dataset
from data_prep.folder import main
from data_prep.layouts import import_command, layout_of
from pipeline.data import load_dataset, read_label, read_volume
from pipeline.errors import InputError

AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])


def image_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-900, 900, (6, 7, 4)).astype(np.int16)


def label_of(seed: int, organs: int = 2) -> np.ndarray:
    label = np.random.default_rng(seed).integers(0, organs + 1, (6, 7, 4)).astype(np.uint8)
    label.flat[: organs + 1] = range(organs + 1)
    return label


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), path)
    return path


def describe(folder: Path, **content: object) -> None:
    (folder / "dataset.json").write_text(json.dumps(content))


def edit(folder: Path, **content: object) -> None:
    describe(folder, **json.loads((folder / "dataset.json").read_text()) | content)


@pytest.fixture
def decathlon(tmp_path: Path) -> Path:
    """Task02 as it is downloaded: three scans with labels, two without, and macOS's companions of them."""
    folder = tmp_path / "Task02_Heart"
    for seed, name in enumerate(("la_003", "la_004", "la_005", "la_001", "la_002")):
        kind = "Tr" if seed < 3 else "Ts"
        write(folder / f"images{kind}" / f"{name}.nii.gz", image_of(seed))
        (folder / f"images{kind}" / f"._{name}.nii.gz").write_bytes(b"Mac OS X")
        if seed < 3:
            write(folder / "labelsTr" / f"{name}.nii.gz", label_of(seed, organs=1))
    training = [f"la_00{number}.nii.gz" for number in (3, 4, 5)]
    describe(
        folder,
        name="LeftAtrium",
        tensorImageSize="3D",
        modality={"0": "MRI"},
        labels={"0": "background", "1": "left atrium"},
        numTraining=3,
        numTest=2,
        training=[{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in training],
        test=["./imagesTs/la_001.nii.gz", "./imagesTs/la_002.nii.gz"],
    )
    return folder


@pytest.fixture
def nnunet(tmp_path: Path) -> Path:
    """Raw data of nnU-Net v2: five scans with labels, one without."""
    folder = tmp_path / "Dataset009_Spleen"
    for seed in range(5):
        write(folder / "imagesTr" / f"sp_{seed}_0000.nii.gz", image_of(seed))
        write(folder / "labelsTr" / f"sp_{seed}.nii.gz", label_of(seed))
    write(folder / "imagesTs" / "sp_9_0000.nii.gz", image_of(9))
    describe(
        folder,
        channel_names={"0": "CT"},
        labels={"background": 0, "spleen": 1, "liver": 2},
        numTraining=5,
        file_ending=".nii.gz",
    )
    return folder


def run(source: Path, *more: str) -> int:
    return main(["--source", str(source), "--output", str(source.parent / "out"), *more])


def imported(source: Path, *more: str):
    assert run(source, *more) == 0
    return load_dataset(source.parent / "out")


def refused(source: Path, match: str, *more: str) -> None:
    with pytest.raises(InputError, match=match) as error:
        run(source, *more)
    assert "\n" not in str(error.value)
    assert not (source.parent / "out").exists()


def cases(dataset) -> tuple[list[str], ...]:
    return tuple([case.case for case in dataset.split(split)] for split in ("training", "validation", "test"))


def test_decathlon(decathlon, capsys):
    dataset = imported(decathlon, "--validation", "la_005.nii.gz")
    assert (dataset.modality, dataset.labels) == ("MR", {0: "background", 1: "left atrium"})
    assert cases(dataset) == (["la_003", "la_004"], ["la_005"], [])
    assert np.array_equal(read_volume(dataset.training[0].image).array, image_of(0))
    assert np.array_equal(read_label(dataset.training[0].label).array, label_of(0, organs=1))
    assert sorted(path.name for path in (dataset.folder / "unlabelled").iterdir()) == ["la_001.nii.gz", "la_002.nii.gz"]
    said = capsys.readouterr()
    assert "a folder of the Medical Segmentation Decathlon" in said.out
    assert f"without label: 2 scans to segment, in {dataset.folder / 'unlabelled'}" in said.out
    assert said.err == "warning: the test split is empty\n"


def test_decathlon_without_its_test_scans(decathlon, capsys):
    for path in (decathlon / "imagesTs").glob("la*"):
        path.unlink()
    assert cases(imported(decathlon, "--test", "la_003")) == (["la_004", "la_005"], [], ["la_003"])
    assert capsys.readouterr().err.count("is not there, though dataset.json names it") == 2


def test_lists_of_validation_and_labelled_test_scans_are_the_split(decathlon):
    for name in ("la_001", "la_002"):
        write(decathlon / "labelsTs" / f"{name}.nii.gz", label_of(7, organs=1))
    pair = {"image": "imagesTs/la_00{}.nii.gz", "label": "labelsTs/la_00{}.nii.gz"}
    one, two = ({key: path.format(number) for key, path in pair.items()} for number in (1, 2))
    edit(decathlon, validation=[one], test=[two])
    assert cases(imported(decathlon)) == (["la_003", "la_004", "la_005"], ["la_001"], ["la_002"])


def test_files_that_are_not_listed_are_left_out_and_told(decathlon, capsys):
    edit(decathlon, training=json.loads((decathlon / "dataset.json").read_text())["training"][:2])
    assert cases(imported(decathlon, "--test", "la_003"))[0] == ["la_004"]
    said = capsys.readouterr().err
    assert re.search(r"not listed in dataset.json, so left out: 1 files of .*imagesTr \(la_005.nii.gz\)", said)
    assert "numTraining is 3, but there are 2 labelled scans to train on" in said


def test_older_nnunet_lists_images_without_their_channel(decathlon):
    for path in decathlon.glob("images*/la*"):
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    dataset = imported(decathlon, "--test", "la_003_0000")
    assert cases(dataset) == (["la_004", "la_005"], [], ["la_003"])
    assert (dataset.folder / "unlabelled/la_001.nii.gz").is_file()


def test_nnunet(nnunet):
    dataset = imported(nnunet, "--validation", "sp_1", "--test", "sp_2_0000.nii.gz")
    assert (dataset.modality, dataset.labels) == ("CT", {0: "background", 1: "spleen", 2: "liver"})
    assert cases(dataset) == (["sp_0", "sp_3", "sp_4"], ["sp_1"], ["sp_2"])
    assert np.array_equal(read_volume(dataset.folder / "unlabelled/sp_9.nii.gz").array, image_of(9))


def test_labels_of_imagests_are_the_test_split(nnunet):
    write(nnunet / "labelsTs/sp_9.nii.gz", label_of(9))
    dataset = imported(nnunet)
    assert cases(dataset)[2] == ["sp_9"]
    assert len(dataset.validation) == 1  # a tenth, since models are chosen by it
    assert not (dataset.folder / "unlabelled").exists()


@pytest.mark.parametrize("listed", [True, False])
def test_scans_without_a_label_train_if_asked_for(decathlon, nnunet, listed, capsys):
    """Those of imagesTs too, which nobody can score."""
    folder, left = (decathlon, "la_004") if listed else (nnunet, "sp_4")
    (folder / f"labelsTr/{left}.nii.gz").unlink()
    if listed:
        entries = json.loads((folder / "dataset.json").read_text())["training"]
        edit(folder, training=[entries[0], {"image": entries[1]["image"]}, entries[2]])
    held = "la_003" if listed else "sp_0"
    refused(folder, "1 problem", "--test", held)
    assert "; add it, or give --train-unlabelled" in capsys.readouterr().err
    dataset = imported(folder, "--train-unlabelled", "--test", held)
    assert sorted(dataset.unlabelled_cases) == (["la_001", "la_002", "la_004"] if listed else ["sp_4", "sp_9"])
    assert cases(dataset)[2] == [held]
    assert not (dataset.folder / "unlabelled").exists()


def test_a_validation_scan_of_a_list_needs_its_label(decathlon, capsys):
    edit(decathlon, validation=[{"image": "imagesTs/la_001.nii.gz"}])
    refused(decathlon, "1 problem", "--train-unlabelled")
    assert "validation: imagesTs/la_001.nii.gz has no label in dataset.json\n" in capsys.readouterr().err


FOLDS = [{"train": ["sp_0", "sp_1", "sp_2", "sp_3"], "val": ["sp_4"]}, {"train": ["sp_4", "sp_3"], "val": ["sp_0"]}]


def folds_of(nnunet: Path, folds: object = FOLDS) -> str:
    path = nnunet.parent / "splits_final.json"
    path.write_bytes(codecs.BOM_UTF8 + json.dumps(folds, indent=1).replace("\n", "\r\n").encode())
    return str(path)


def test_a_fold_of_nnunet_is_the_split(nnunet):
    write(nnunet / "labelsTs/sp_9.nii.gz", label_of(9))
    dataset = imported(nnunet, "--split", folds_of(nnunet), "--fold", "0")
    assert cases(dataset) == (["sp_0", "sp_1", "sp_2", "sp_3"], ["sp_4"], ["sp_9"])


@pytest.mark.parametrize(
    ("folds", "fold", "message"),
    [
        (FOLDS, [], "it holds 2 folds; choose one by --fold 0 to --fold 1"),
        (FOLDS, ["--fold", "2"], "fold 2 is not there: it holds 2 folds"),
        ([{"train": []}], ["--fold", "0"], "as nnU-Net writes them"),
        ({"training": ["sp_0"]}, ["--fold", "0"], "has no folds"),
    ],
)
def test_folds_that_cannot_be(nnunet, folds, fold, message):
    refused(nnunet, message, "--split", folds_of(nnunet, folds), *fold)


def test_cases_that_a_fold_forgets(nnunet, capsys):
    refused(nnunet, "1 problem", "--split", folds_of(nnunet), "--fold", "1")
    assert "in no split: sp_1, sp_2" in capsys.readouterr().err


def test_a_fold_needs_its_file(nnunet):
    refused(nnunet, "name that file with --split", "--fold", "1")


def test_a_folder_without_dataset_json(nnunet):
    (nnunet / "dataset.json").unlink()
    refused(nnunet, "says whether it is CT or MR; give --modality")
    refused(nnunet, "names the organs; give --organs", "--modality", "CT")
    assert len(imported(nnunet, "--modality", "CT", "--organs", "spleen,liver", "--test", "sp_1").training) == 4


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ({"channel_names": {"0": "FLAIR", "1": "T1w"}}, [], r"2 channels \(FLAIR, T1w\), and a network here sees one"),
        ({"channel_names": {"0": "T2"}}, [], "give --modality"),
        ({}, ["--modality", "MR"], "--modality MR, but .*dataset.json says CT"),
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, [], "whole are regions"),
        ({"labels": {"background": 0, "spleen": 1, "ignore": 2}}, [], "'ignore' marks voxels"),
        ({"labels": {"background": 0, "spleen": 1, "liver": 4}}, [], "must count 0, 1, 2, … without a gap"),
        ({"labels": {}}, [], "dataset.json: labels must be an object"),
        ({"training": [{"image": ["a_0000.nii.gz", "a_0001.nii.gz"], "label": "a"}]}, [], "several channels"),
        ({"training": [{"image": "../x.nii.gz", "label": "a.nii.gz"}]}, [], "leaves the dataset folder"),
        ({"training": ["imagesTr/sp_0_0000.nii.gz"]}, [], "no scans with labels|1 problem"),
        ({"training": [7]}, [], "training holds 7; each entry is a path"),
        ({"test": "imagesTs", "training": []}, [], "test must be a list"),
    ],
)
def test_what_dataset_json_cannot_say(nnunet, content, more, message):
    edit(nnunet, **content)
    refused(nnunet, message, *more)


def test_images_of_several_channels(nnunet):
    write(nnunet / "imagesTr/sp_0_0001.nii.gz", image_of(20))
    refused(nnunet, r"several channels of sp_0 \(sp_0_0000, sp_0_0001\)")
    patterns = ["--image-pattern", "imagesTr/{case}_0001", "--label-pattern", "labelsTr/{case}"]
    refused(nnunet, "4 problems", *patterns, "--modality", "CT", "--training", "sp_0")
    for seed in range(1, 5):
        write(nnunet / f"imagesTr/sp_{seed}_0001.nii.gz", image_of(20 + seed))
    dataset = imported(nnunet, *patterns, "--modality", "CT", "--test", "sp_0")
    assert np.array_equal(read_volume(dataset.test[0].image).array, image_of(20))
    assert dataset.labels[2] == "liver"


def test_a_missing_file_of_the_list(decathlon, capsys):
    (decathlon / "labelsTr/la_004.nii.gz").unlink()
    refused(decathlon, "problem")
    assert re.search("labelsTr/la_004.nii.gz is not there, though dataset.json names it", capsys.readouterr().err)


def test_one_name_in_training_and_test(nnunet, capsys):
    write(nnunet / "imagesTs/sp_0_0000.nii.gz", image_of(30))
    refused(nnunet, "1 problem")
    assert "two scans of the name sp_0" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 2])
def test_two_scans_and_the_default_split_leave_nobody_to_train(nnunet, capsys, count):
    for seed in range(count, 5):
        (nnunet / f"imagesTr/sp_{seed}_0000.nii.gz").unlink()
        (nnunet / f"labelsTr/sp_{seed}.nii.gz").unlink()
    refused(nnunet, "1 problem")
    said = capsys.readouterr().err
    assert "no case is left to train on: of 2 cases, 1 in validation and 1 in test" in said or count == 1
    assert "are left" in said or count == 2


@pytest.mark.parametrize(("text", "modality"), [("mri", "MR"), ("MRI", "MR"), ("mr", "MR"), ("ct", "CT")])
def test_modality_in_other_words(nnunet, text, modality):
    (nnunet / "dataset.json").unlink()
    dataset = imported(nnunet, "--modality", text, "--organs", "spleen,liver", "--test", "sp_1")
    assert dataset.modality == modality


def test_a_modality_that_is_none(nnunet, capsys):
    with pytest.raises(SystemExit):
        run(nnunet, "--modality", "PET")
    assert "'PET' is neither CT nor MR" in capsys.readouterr().err


def save_nrrd(path: Path, array: np.ndarray, **fields: str) -> None:
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing((2.0, 2.0, 5.0))
    for key, value in fields.items():
        image.SetMetaData(key, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path), useCompression=True)


def segments(*names: str) -> dict[str, str]:
    return {
        key: text
        for index, name in enumerate(names)
        for key, text in (
            (f"Segment{index}_Name", name),
            (f"Segment{index}_LabelValue", str(index + 1)),
            (f"Segment{index}_Layer", "0"),
        )
    }


@pytest.fixture
def slicer(tmp_path: Path) -> Path:
    """What Slicer saves by default; the second user drew the spleen first."""
    folder = tmp_path / "slicer"
    for seed, names in enumerate((("liver", "Milz ä"), ("Milz ä", "liver"))):
        save_nrrd(folder / f"p{seed}.nrrd", image_of(seed))
        save_nrrd(folder / f"p{seed}.seg.nrrd", label_of(seed), **segments(*names))
    save_nrrd(folder / "p2.nrrd", image_of(2))
    return folder


def test_slicer_files_are_pairs_and_segments_go_by_their_names(slicer):
    dataset = imported(slicer, "--modality", "MR", "--test", "p1")
    assert dataset.labels == {0: "background", 1: "liver", 2: "Milz ä"}
    assert np.array_equal(read_label(dataset.training[0].label).array, label_of(0))
    swapped = np.array([0, 2, 1], np.uint8)[label_of(1)]
    assert np.array_equal(read_label(dataset.test[0].label).array, swapped)
    assert (dataset.folder / "unlabelled/p2.nii.gz").is_file()


def test_a_slicer_scan_without_a_segmentation_trains_if_asked_for(slicer):
    dataset = imported(slicer, "--modality", "MR", "--test", "p1", "--train-unlabelled")
    assert cases(dataset) == (["p0", "p2"], [], ["p1"])
    assert dataset.unlabelled_cases == ["p2"]


def test_slicer_files_in_two_folders(slicer, tmp_path):
    (tmp_path / "segmentations").mkdir()
    for path in slicer.glob("*.seg.nrrd"):
        path.rename(tmp_path / "segmentations" / path.name)
    (slicer / "p2.nrrd").unlink()
    arguments = [
        "--images",
        str(slicer),
        "--labels",
        str(tmp_path / "segmentations"),
        "--output",
        str(tmp_path / "out"),
    ]
    assert main([*arguments, "--modality", "MR", "--test", "p0", "--organs", "Milz ä,liver"]) == 0
    assert np.array_equal(read_label(tmp_path / "out/labels/p1.nii.gz").array, label_of(1))


def test_segments_that_are_no_organ(slicer, capsys):
    refused(slicer, "2 problems", "--modality", "MR", "--organs", "liver,kidney", "--test", "p1")
    assert "segments Milz ä are none of liver, kidney; rename them in Slicer" in capsys.readouterr().err


def test_segments_that_nobody_named_go_by_value(slicer):
    for seed in (0, 1):
        save_nrrd(slicer / f"p{seed}.seg.nrrd", label_of(seed), **segments("Segment_1", "Segment_2"))
    refused(slicer, "give --organs", "--modality", "MR")
    dataset = imported(slicer, "--modality", "MR", "--organs", "liver,spleen", "--test", "p1")
    assert np.array_equal(read_label(dataset.test[0].label).array, label_of(1))


def test_segments_that_overlap(slicer):
    fields = {**segments("liver", "spleen"), "Segment1_Layer": "1"}
    save_nrrd(slicer / "p0.seg.nrrd", label_of(0), **fields)
    refused(slicer, "segments overlap, so a voxel has no single label", "--modality", "MR")


def test_two_segments_of_one_value(slicer):
    save_nrrd(slicer / "p0.seg.nrrd", label_of(0), **{**segments("liver", "spleen"), "Segment1_LabelValue": "1"})
    refused(slicer, "each needs a name and a value of its own", "--modality", "MR")


@pytest.mark.parametrize(
    ("image", "label", "image_pattern", "label_pattern"),
    [
        ("{}_t2.nii.gz", "{}_seg.nii.gz", "{case}_t2", "{case}_seg"),
        ("{}/t2.nii", "{}/seg.nii.gz", "{case}/t2.nii", "{case}/seg"),
        ("{0}/{0}-t2w.nii.gz", "{0}/{0}-seg.nii.gz", "{case}/{case}-t2w", "{case}/{case}-seg.nii.gz"),
        ("{}.nii.gz", "{}_seg.nii.gz", None, "{case}_seg"),
        ("{}/2021/a [1].nii.gz", "masks/x{}y.nii.gz", "{case}/*/a [1]", "masks/x{case}y"),
    ],
)
def test_patterns(tmp_path, image, label, image_pattern, label_pattern):
    source = tmp_path / "hospital"
    for seed, case in enumerate(("Anna", "Bo_2", "Ç.3")):
        write(source / image.format(case), image_of(seed))
        write(source / label.format(case), label_of(seed))
        (source / ".hidden").mkdir(exist_ok=True)
        write(source / ".hidden/t2.nii", image_of(seed))
    given = [] if image_pattern is None else ["--image-pattern", image_pattern]
    more = ["--label-pattern", label_pattern, "--modality", "MR", "--organs", "a,b", "--test", "Anna"]
    dataset = imported(source, *given, *more)
    assert cases(dataset) == (["Bo_2", "Ç.3"], [], ["Anna"])
    assert np.array_equal(read_volume(dataset.test[0].image).array, image_of(0))
    assert np.array_equal(read_label(dataset.test[0].label).array, label_of(0))


def test_patterns_in_two_folders(tmp_path):
    for seed in (0, 1):
        write(tmp_path / f"scans/{seed}_t2.nii.gz", image_of(seed))
        write(tmp_path / f"scans/{seed}_t1.nii.gz", image_of(seed + 5))
        write(tmp_path / f"truth/{seed}.nii.gz", label_of(seed))
    folders = [
        "--images",
        str(tmp_path / "scans"),
        "--labels",
        str(tmp_path / "truth"),
        "--output",
        str(tmp_path / "o"),
    ]
    assert main([*folders, "--image-pattern", "{case}_t2", "--modality", "MR", "--organs", "a,b", "--test", "0"]) == 0
    assert np.array_equal(read_volume(tmp_path / "o/images/1.nii.gz").array, image_of(1))


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["--image-pattern", "t2"], r"pattern 't2' lacks \{case\}"),
        (
            ["--image-pattern", "{case}_t9"],
            r"no image below .* fits the pattern '\{case\}_t9'; correct --image-pattern",
        ),
        (["--label-pattern", "masks/{case}"], "no label below .* fits"),
        (["--images", "x"], "give --source alone"),
    ],
)
def test_patterns_that_fit_nothing(nnunet, patterns, message):
    refused(nnunet, message, *patterns, "--modality", "CT")


def test_patterns_tell_who_is_alone_and_who_is_double(nnunet, capsys):
    write(nnunet / "imagesTr/sp_0_0000.nii", image_of(40))
    (nnunet / "labelsTr/sp_2.nii.gz").unlink()
    patterns = ["--image-pattern", "imagesTr/{case}_0000", "--label-pattern", "labelsTr/{case}"]
    refused(nnunet, "2 problems", *patterns, "--modality", "CT", "--test", "sp_1")
    said = capsys.readouterr().err
    assert "imagesTr/sp_2_0000.nii.gz has no label of case sp_2" in said
    assert "two images of one name: imagesTr/sp_0_0000.nii and imagesTr/sp_0_0000.nii.gz" in said


def test_folders_of_no_layout(tmp_path, decathlon):
    refused(tmp_path / "nowhere", "no folder at .*correct --source")
    refused(tmp_path / "Task02_Heart/imagesTr", "in no layout known here")
    with pytest.raises(InputError, match=r"holds 1 datasets, such as .*Task02_Heart; give one of them as --source"):
        main(["--source", str(tmp_path), "--output", str(tmp_path.parent / "never")])
    imported(decathlon, "--test", "la_003")
    with pytest.raises(InputError, match="is a dataset folder already"):
        main(["--source", str(tmp_path / "out"), "--output", str(tmp_path / "again")])


def test_the_command_that_imports_a_folder(decathlon, nnunet, slicer, tmp_path):
    assert [layout_of(folder) for folder in (decathlon, nnunet, slicer, tmp_path)] == [
        "a folder of the Medical Segmentation Decathlon",
        "a folder of nnU-Net",
        "a folder of 3D Slicer",
        None,
    ]
    start = "python -m data_prep.folder --source"
    assert import_command(decathlon) == f"{start} {decathlon} --output NEW-FOLDER"
    assert import_command(slicer) == f"{start} {slicer} --modality CT-OR-MR --output NEW-FOLDER"
    plain = tmp_path / "my data"
    (plain / "images").mkdir(parents=True)
    (plain / "labels").mkdir()
    assert import_command(plain) == (f"{start} '{plain}' --modality CT-OR-MR --organs NAME,NAME --output NEW-FOLDER")


def test_the_check_prints_that_command_and_the_command_works(decathlon, tmp_path, monkeypatch):
    with pytest.raises(
        InputError, match="is a folder of the Medical Segmentation Decathlon, no dataset folder yet"
    ) as error:
        check_dataset(decathlon)
    command = shlex.split(str(error.value).partition("import it by: ")[2])
    assert command[:3] == ["python", "-m", "data_prep.folder"]
    monkeypatch.chdir(tmp_path)
    assert main([*command[3:], "--test", "la_003"]) == 0
    assert check_dataset("NEW-FOLDER").errors == 0


def test_the_check_of_a_plain_folder(tmp_path, nnunet):
    (nnunet / "dataset.json").unlink()
    with pytest.raises(InputError, match=r"is a folder of imagesTr and labelsTr, .* --organs NAME,NAME"):
        check_dataset(nnunet / "dataset.json")
    with pytest.raises(InputError, match="make a dataset folder with"):
        check_dataset(tmp_path)


def test_training_on_such_a_folder_is_told_where_to_go(decathlon, nnunet):
    for folder in (decathlon, nnunet):
        with pytest.raises(
            InputError, match=r"dataset\.json: is of another tool, .*; python -m data_prep\.check FOLDER"
        ):
            load_dataset(folder)
