# SPDX-License-Identifier: Apache-2.0
"""Synapse in both its forms, made small: label numbers, split, orientation, HU, and incomplete downloads."""

import builtins
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from data_prep.synapse import main, to_synapse
from data_prep.synapse_protocol import BTCV_TO_SYNAPSE, LABELS, TEST, TRAINING, TRAINING_SLICES, VALIDATION
from data_prep.synapse_slices import DISPLAYED, Axes, axes_by_organs
from pipeline.data import load_dataset, read_label, read_volume
from pipeline.errors import InputError

# Where organs lie in RAS, in fractions of each side (right, front, up).
PLACES = {3: (0.2, 0.3, 0.3), 4: (0.8, 0.3, 0.2), 5: (0.7, 0.6, 0.7), 7: (0.1, 0.3, 0.7), 8: (0.3, 0.8, 0.6)}
SHAPE = (20, 16, 10)


def abdomen(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A scan in RAS order: HU, and blocks of Synapse labels where the organs lie."""
    image = np.random.default_rng(seed).integers(-300, 500, SHAPE).astype(np.int16)
    image.flat[:2] = -1000, 1000
    label = np.zeros(SHAPE, np.uint8)
    for value, place in PLACES.items():
        start = [int(fraction * side) - 1 for fraction, side in zip(place, SHAPE, strict=True)]
        label[tuple(slice(begin, begin + 3) for begin in start)] = value
    return image, label


def raw_btcv(folder: Path, numbers: list[int], subfolders: bool = True) -> Path:
    to_btcv = np.zeros(9, np.uint8)
    for btcv, synapse in BTCV_TO_SYNAPSE.items():
        to_btcv[synapse] = btcv
    for number in numbers:
        image, label = abdomen(number)
        label = to_btcv[label]
        label[-1, -1, :] = 9  # a vena cava, which Synapse does not score
        for kind, array in (("img", image), ("label", label)):
            path = folder / (kind if subfolders else "") / f"{kind}{number:04d}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([-0.8, 0.8, 3.0, 1.0])), path)
    return folder


def transunet(folder: Path, training: list[str], test: list[str], lists: bool = True, axes: Axes = DISPLAYED) -> Path:
    (folder / "train_npz").mkdir(parents=True)
    (folder / "test_vol_h5").mkdir()
    names = []
    for case in (*training, *test):
        image, label = abdomen(int(case[4:]))
        image = (np.clip(image, -125, 275) + 125.0) / 400.0
        slices, labels = (from_ras(array, axes) for array in (image, label.astype(np.float32)))
        if case in test:
            with h5py.File(folder / "test_vol_h5" / f"{case}.npy.h5", "w") as file:
                file["image"], file["label"] = slices.astype(np.float32), labels
            continue
        for z in range(len(slices)):
            names.append(f"{case}_slice{z:03d}")
            np.savez(folder / "train_npz" / f"{names[-1]}.npz", image=slices[z].astype(np.float32), label=labels[z])
    if lists:
        (folder / "lists_Synapse").mkdir()
        (folder / "lists_Synapse" / "train.txt").write_text("\n".join(names) + "\n")
        (folder / "lists_Synapse" / "test_vol.txt").write_text("\n".join(test) + "\n")
    return folder


def from_ras(array: np.ndarray, axes: Axes) -> np.ndarray:
    """Return (slices, rows, columns) whose axes point as `axes` says: the inverse of `Axes.to_ras`."""
    flipped = array[:: axes.right, :: axes.forward, :: axes.up]
    return np.transpose(flipped, np.argsort((axes.across, axes.front, 0)))


def run(source: Path, *more: str) -> int:
    return main(["--source", str(source), "--output", str(source.parent / "out"), *more])


def test_the_protocol_by_its_numbers():
    assert len(TRAINING) == 18
    assert len(TEST) == 12
    assert not set(TRAINING) & set(TEST)
    assert sum(TRAINING_SLICES.values()) == 2211
    assert set(VALIDATION) < set(TRAINING)
    assert len(VALIDATION) == 3


def test_thirteen_labels_become_eight():
    # BTCV: spleen, right kidney, left kidney, gallbladder, oesophagus, liver, stomach, aorta, cava, portal, pancreas, …
    expected = [0, 7, 4, 3, 2, 0, 5, 8, 1, 0, 0, 6, 0, 0]
    assert to_synapse(np.arange(14)).tolist() == expected
    names = {1: "spleen", 2: "right kidney", 3: "left kidney", 4: "gallbladder", 6: "liver", 7: "stomach", 8: "aorta"}
    assert {btcv: LABELS[expected[btcv]] for btcv in names} == names


@pytest.mark.parametrize("subfolders", [True, False])
def test_raw_btcv(tmp_path, subfolders, capsys):
    source = raw_btcv(tmp_path / "raw", [5, 6, 7, 1, 61], subfolders)
    assert run(source, "--allow-missing") == 0
    dataset = load_dataset(tmp_path / "out")
    assert dataset.labels == LABELS
    assert dataset.spacing_known
    assert dataset.intensity.to_dict() == {"rule": "window", "low": -125, "high": 275}
    assert [case.case for case in dataset.training] == ["case0005", "case0007"]
    assert [case.case for case in dataset.validation] == ["case0006"]
    assert [case.case for case in dataset.test] == ["case0001"]
    volume = read_volume(dataset.test[0].image)
    label = read_label(dataset.test[0].label, like=volume)
    assert np.array_equal(volume.array, abdomen(1)[0])
    assert np.array_equal(label.array, abdomen(1)[1])
    assert volume.spacing_mm == pytest.approx((0.8, 0.8, 3.0))
    said = capsys.readouterr()
    assert "found 5 images and 5 labels of BTCV" in said.out
    assert "case0002: no img0002.nii.gz and no label0002.nii.gz" in said.err
    assert "1 cases outside the published split are left out: case0061" in said.err


def test_a_complete_download_needs_no_permission(tmp_path, capsys):
    source = raw_btcv(tmp_path / "raw", [int(case[4:]) for case in (*TRAINING, *TEST)])
    assert run(source, "--link") == 0
    dataset = load_dataset(tmp_path / "out")
    assert [len(dataset.split(name)) for name in ("training", "validation", "test")] == [15, 3, 12]
    assert dataset.test[0].image.is_symlink()
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("validation", "cases"),
    [("none", []), ("case0005", ["case0005"]), ("case0007, case0005", ["case0005", "case0007"])],
)
def test_another_validation(tmp_path, validation, cases):
    source = raw_btcv(tmp_path / "raw", [5, 6, 7, 1])
    run(source, "--allow-missing", "--validation", validation)
    assert [case.case for case in load_dataset(tmp_path / "out").validation] == cases


def test_slices_and_volumes(tmp_path, capsys):
    source = transunet(tmp_path / "Synapse", ["case0005", "case0006"], ["case0001", "case0002"])
    assert run(source, "--allow-missing") == 0
    dataset = load_dataset(tmp_path / "out")
    assert not dataset.spacing_known
    assert [case.case for case in dataset.training] == ["case0005"]
    assert [case.case for case in dataset.validation] == ["case0006"]
    for case in (*dataset.training, *dataset.test):
        image, label = abdomen(int(case.case[4:]))
        volume = read_volume(case.image)
        assert np.array_equal(volume.array, np.clip(image, -125, 275))
        assert np.array_equal(read_label(case.label, like=volume).array, label)
        assert np.array_equal(volume.affine, np.eye(4))
    said = capsys.readouterr()
    assert "found 20 training slices of 2 cases (npz), 2 test volumes (h5)" in said.out
    assert "rows to the back, columns to the left, slices up" in said.out
    assert "this form has no voxel size" in said.err


ALL_AXES = [Axes(a, r, f, u) for a in (1, 2) for r in (-1, 1) for f in (-1, 1) for u in (-1, 1)]


@pytest.mark.parametrize("axes", ALL_AXES, ids=str)
def test_organs_tell_the_orientation(axes):
    image, label = abdomen()
    assert axes_by_organs([from_ras(label, axes)]) == axes
    assert np.array_equal(axes.to_ras(from_ras(image, axes)), image)


def test_real_organs_tell_the_orientation(shared_data):
    label = read_label(shared_data / "abdomen_ct/label_synapse8_3mm.nii.gz").array
    axes = Axes(across=1, right=-1, forward=1, up=-1)
    assert axes_by_organs([from_ras(label, axes)]) == axes


def test_turned_slices_come_back_axial(tmp_path):
    source = transunet(tmp_path / "s", ["case0005"], ["case0001"], axes=Axes(across=1, right=1, forward=-1, up=-1))
    run(source, "--allow-missing")
    assert np.array_equal(read_label(load_dataset(tmp_path / "out").test[0].label).array, abdomen()[1])


def test_without_organs_slices_are_taken_as_displayed(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(globals(), "PLACES", {1: (0.5, 0.3, 0.5)})
    run(transunet(tmp_path / "s", ["case0005"], ["case0001"]), "--allow-missing")
    assert "the organs do not tell the orientation" in capsys.readouterr().err
    assert axes_by_organs([]) is None


def test_an_incomplete_download_is_told_at_once(tmp_path, capsys):
    source = raw_btcv(tmp_path / "raw", [5, 1])
    (source / "label/label0005.nii.gz").unlink()
    with pytest.raises(InputError, match=r"29 problems in .*nothing was written"):
        run(source)
    said = capsys.readouterr().err
    assert "case0005: no label0005.nii.gz" in said
    assert "case0040: no img0040.nii.gz and no label0040.nii.gz" in said
    assert not (tmp_path / "out").exists()


def test_missing_slices_are_counted(tmp_path, capsys):
    source = transunet(tmp_path / "s", ["case0005"], ["case0001"])
    (source / "train_npz/case0005_slice003.npz").unlink()
    with pytest.raises(InputError, match="problems"):
        run(source)
    assert "case0005: 1 of 10 slices are missing (003)" in capsys.readouterr().err


def test_without_lists_the_published_counts_are_expected(tmp_path, capsys):
    run(transunet(tmp_path / "s", ["case0005"], ["case0001"], lists=False), "--allow-missing")
    assert "case0005: 107 of 117 slices are missing (010, 011, 012, 013, 014, …)" in capsys.readouterr().err


def save_slice(source: Path, **arrays: np.ndarray) -> None:
    np.savez(source / "train_npz/case0005_slice000.npz", **arrays)


def save_volume(source: Path, image: np.ndarray, label: np.ndarray) -> None:
    with h5py.File(source / "test_vol_h5/case0001.npy.h5", "w") as file:
        file["image"], file["label"] = image, label


PLANE = np.zeros((16, 20), np.float32)
STACK = np.zeros((4, 16, 20), np.float32)
BAD = {
    "no label": (lambda s: save_slice(s, image=PLANE), "case0005_slice000.npz: cannot read"),
    "no npz": (lambda s: (s / "train_npz/case0005_slice000.npz").write_text("<html>"), "cannot read"),
    "other shape": (lambda s: save_slice(s, image=PLANE, label=PLANE[:3]), "case0005_slice0"),
    "objects": (lambda s: save_slice(s, image=np.array([{}]), label=PLANE), "cannot read"),
    "no h5": (lambda s: (s / "test_vol_h5/case0001.npy.h5").write_text("<html>"), "case0001.npy.h5: cannot read"),
    "flat h5": (lambda s: save_volume(s, PLANE, PLANE), "case0001: image (16, 20)"),
    "in HU": (lambda s: save_volume(s, STACK - 125, STACK), "case0001: values -125..-125 are not within 0..1"),
    "nan": (lambda s: save_volume(s, STACK * np.nan, STACK), "case0001: values nan..nan"),
    "labels": (lambda s: save_volume(s, STACK, STACK + 13), "case0001: label values 13 are not among 0..8"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files(tmp_path, capsys, kind):
    source = transunet(tmp_path / "s", ["case0005"], ["case0001"])
    spoil, message = BAD[kind]
    spoil(source)
    with pytest.raises(InputError, match="1 problem"):
        run(source, "--allow-missing")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("problem")]
    assert message in line
    assert not (tmp_path / "out").exists()


def test_h5py_missing(tmp_path, monkeypatch):
    source = transunet(tmp_path / "s", ["case0005"], ["case0001"])
    real = builtins.__import__

    def without_h5py(name, *arguments):
        if name == "h5py":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_h5py)
    with pytest.raises(InputError, match="pip install h5py"):
        run(source)


def test_raw_labels_beyond_btcv(tmp_path, capsys):
    source = raw_btcv(tmp_path / "raw", [5])
    nib.save(
        nib.Nifti1Image(np.full(SHAPE, 14, np.uint8), np.diag([-0.8, 0.8, 3.0, 1.0])), source / "label/label0005.nii.gz"
    )
    with pytest.raises(InputError, match="1 problem"):
        run(source, "--allow-missing")
    assert "case0005" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ("case0001", "--validation: no case or patient 'case0001'"),
        ("case0x05", "did you mean 'case0005'"),
        (",".join(TRAINING), "takes all training cases"),
    ],
)
def test_bad_validation(tmp_path, capsys, validation, message):
    source = raw_btcv(tmp_path / "raw", [5, 1])
    with pytest.raises(InputError, match="1 problem"):
        run(source, "--allow-missing", "--validation", validation)
    assert message in capsys.readouterr().err


def test_neither_form_and_both(tmp_path):
    with pytest.raises(InputError, match="no folder at"):
        run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no Synapse data in .*expected img0001\.nii\.gz"):
        run(tmp_path / "empty")
    source = transunet(tmp_path / "s", ["case0005"], ["case0001"])
    raw_btcv(source / "raw", [5])
    with pytest.raises(InputError, match="point --source at the folder of one"):
        run(source)


def test_one_case_in_two_places(tmp_path, capsys):
    source = raw_btcv(tmp_path / "raw", [5])
    raw_btcv(source / "copy", [5])
    with pytest.raises(InputError, match="2 problems"):
        run(source, "--allow-missing")
    assert "two files of one name" in capsys.readouterr().err
