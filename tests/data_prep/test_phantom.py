# SPDX-License-Identifier: Apache-2.0
"""Drawn scans: shapes by hand, anatomy that holds in every case, and geometry that varies."""

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_prep.phantom_ct import draw_scan, main, make, stored
from data_prep.phantom_shapes import Canvas, Grid, smooth_noise
from data_prep.synapse_protocol import LABELS
from data_prep.synapse_slices import axes_by_organs
from pipeline.data import load_dataset, read_label, read_volume, to_ras
from pipeline.errors import InputError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make(tmp_path_factory.mktemp("phantom") / "data", cases=6, size=64, slices=16)


def millimetre_grid(side: int = 41) -> Grid:
    return Grid([np.arange(side) - side // 2] * 3)


def test_distance_from_a_ball():
    distance = millimetre_grid().ellipsoid((0, 0, 0), (10, 10, 10))
    middle = distance.shape[0] // 2
    assert distance[middle, middle, middle] == -10
    assert distance[middle + 10, middle, middle] == pytest.approx(0, abs=1e-4)
    assert distance[middle, middle + 16, middle] == pytest.approx(6, abs=1e-4)


def test_an_ellipsoid_turned_by_a_right_angle():
    grid = millimetre_grid()
    turned = grid.ellipsoid((0, 0, 0), (15, 5, 5), (0, 0, 90))
    assert np.allclose(turned, grid.ellipsoid((0, 0, 0), (5, 15, 5)), atol=1e-3)


def test_distance_from_a_straight_tube():
    distance = millimetre_grid().tube([(0, 0, -60), (0, 0, 60)], [5, 5], steps=200)
    # The line is a row of points 0.6 mm apart.
    assert distance[20, 20, 20] == pytest.approx(-5, abs=0.31)
    assert distance[33, 20, 20] == pytest.approx(8, abs=0.1)


def test_far_away_needs_no_computing():
    grid = Grid([np.arange(-100, 101, 4)] * 3)
    assert grid.ellipsoid((-90, -90, -90), (5, 5, 5))[-1, -1, -1] == 60


def test_noise_has_the_deviation_it_promises():
    noise = smooth_noise(np.random.default_rng(0), (60, 60, 60), (20, 20, 20))
    assert noise.shape == (60, 60, 60)
    assert noise.std() == pytest.approx(1, abs=0.05)
    assert np.abs(np.diff(smooth_noise(np.random.default_rng(0), (60, 60, 60), (4, 4, 4)), axis=0)).max() < 0.4


def test_edges_blend_over_the_softness():
    canvas = Canvas((3, 1, 1), softness_mm=2.0)
    canvas.paint(np.array([-2.0, 0.0, 0.5]).reshape(3, 1, 1), 1000.0, label=1)
    assert canvas.hu.ravel().tolist() == [1000, 0, -500]
    assert canvas.labels.ravel().tolist() == [1, 0, 0]


def test_a_dataset_of_six(dataset):
    assert load_dataset(dataset.folder) == dataset
    assert dataset.labels == LABELS
    assert [len(dataset.split(name)) for name in ("training", "validation", "test")] == [3, 1, 2]
    for case in (*dataset.training, *dataset.validation, *dataset.test):
        image = read_volume(case.image)
        label = read_label(case.label, like=image, labels=dataset.labels)
        assert image.array.dtype == np.int16
        assert label.array.dtype == np.uint8
        assert sorted(image.array.shape) == [16, 64, 64]


def test_orientations_and_spacings_vary(dataset):
    images = [nib.load(case.image) for case in (*dataset.training, *dataset.validation, *dataset.test)]
    assert len({nib.aff2axcodes(image.affine) for image in images}) >= 4
    assert len({image.header.get_zooms() for image in images}) == 6
    directions = [np.abs(image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)) for image in images]
    oblique = [bool(((direction > 0.01) & (direction < 0.99)).any()) for direction in directions]
    assert sum(oblique) == 1
    for image in images:
        assert max(image.header.get_zooms()) > 1.5 * min(image.header.get_zooms())
        assert image.header.get_sform(coded=True)[1] == image.header.get_qform(coded=True)[1] == 1
        assert np.allclose(image.get_qform(), image.get_sform(), atol=1e-3)


def test_organs_lie_where_they_belong(dataset):
    """Turned to RAS, every case has left organs left, kidneys behind, the liver above; sizes are an adult's."""
    for case in (*dataset.training, *dataset.validation, *dataset.test):
        volume = read_label(case.label)
        labels, affine = to_ras(volume.array, volume.affine)
        axes = axes_by_organs([np.transpose(labels, (2, 0, 1))])
        assert (axes.across, axes.right, axes.forward, axes.up) == (1, 1, 1, 1)
        ml = np.bincount(labels.ravel(), minlength=9) * np.linalg.det(affine[:3, :3]) / 1000
        for value, (least, most) in {1: (30, 120), 3: (50, 350), 4: (50, 350), 5: (700, 2600), 6: (20, 130)}.items():
            assert least < ml[value] < most, (case.case, LABELS[value], ml[value])
        assert 60 < ml[7] < 600
        assert 80 < ml[8] < 800


def test_one_in_six_has_no_gallbladder(dataset):
    cases = (*dataset.training, *dataset.validation, *dataset.test)
    without = [case.case for case in cases if not (read_label(case.label).array == 2).any()]
    assert without == ["phantom_03"]


def test_contrast_is_like_that_of_ct(dataset):
    image, label = (
        read(dataset.training[0]) for read in (lambda c: read_volume(c.image), lambda c: read_label(c.label))
    )
    medians = {LABELS[value]: np.median(image.array[label.array == value]) for value in (1, 3, 4, 5, 7)}
    assert all(40 < median < 170 for median in medians.values())
    # Organs differ by less than twice the noise: intensity alone tells nothing.
    assert abs(medians["liver"] - medians["spleen"]) < 30
    assert image.array.min() < -900


def test_cases_do_not_depend_on_how_many_there_are(dataset, tmp_path):
    fewer = make(tmp_path / "three", cases=3, size=64, slices=16)
    first, again = dataset.training[0], fewer.training[0]
    assert np.array_equal(read_volume(first.image).array, read_volume(again.image).array)
    other = make(tmp_path / "other", cases=3, size=64, slices=16, seed=1)
    assert not np.array_equal(read_volume(other.training[0].image).array, read_volume(first.image).array)


def test_a_stored_order_is_only_an_order():
    hu, _, affine = draw_scan(np.random.default_rng(0), 48, 10)
    for index in (0, 2, 3, 5):
        image = stored(hu, affine, index)
        array, back = to_ras(np.asarray(image.dataobj), image.affine)
        assert np.array_equal(array, hu)
        assert np.allclose(back, affine)


@pytest.mark.parametrize("arguments", [["--cases", "2"], ["--size", "16"], ["--slices", "4"], ["--seed", "-1"]])
def test_sizes_that_hold_no_abdomen(tmp_path, arguments):
    with pytest.raises(InputError, match=f"{arguments[0]} {arguments[1]} is too small"):
        main(["--output", str(tmp_path / "out"), *arguments])
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        main(["--output", str(tmp_path / "file" / "out")])


def test_the_command_writes_and_says_so(tmp_path, capsys):
    assert main(["--output", str(tmp_path / "out"), "--cases", "3", "--size", "32", "--slices", "8"]) == 0
    assert "training: 1 cases of 1 patients: phantom_00" in capsys.readouterr().out


def test_exit_codes(tmp_path):
    """A bad input is one line and code 2, from the command itself."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "data_prep.phantom_ct", "--output", str(tmp_path / "o"), "--cases", "1"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: --cases 1 is too small; give 3 or more\n"
