# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.export.parity import Agreement, ParityError, agreement, check_parity

LABELS = {0: "background", 1: "liver", 2: "spleen", 3: "kidney"}


class Bright(nn.Module):
    """Marks pixels of 1 as liver and of 2 as spleen."""

    size_divisor = 1

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([(images == value).float() for value in range(4)], dim=1)


def images() -> Tensor:
    """Return five images of ten pixels: in the first six of liver, in the third two of spleen."""
    pixels = torch.zeros(5, 1, 2, 5)
    pixels[0].view(-1)[:6] = 1
    pixels[2].view(-1)[:2] = 2
    return pixels


def run(given: np.ndarray) -> np.ndarray:
    return Bright()(torch.from_numpy(given)).numpy()


def test_equal_masks():
    found = agreement(Bright(), run, images(), LABELS)
    assert found == Agreement({"liver": 1.0, "spleen": 1.0}, pixels=50, differing=0)
    check_parity(found, int8=False)


def test_dice_by_hand():
    def forgets(given: np.ndarray) -> np.ndarray:
        changed = given.copy()
        changed[:, 0, 0, 0] = np.where(changed[:, 0, 0, 0] == 1, 3, changed[:, 0, 0, 0])
        return run(changed)

    found = agreement(Bright(), forgets, images(), LABELS)
    # One of six pixels of liver has become kidney, which torch has nowhere: 2 x 5 / (6 + 5), and 0.
    assert found.dice == pytest.approx({"liver": 10 / 11, "spleen": 1.0, "kidney": 0.0})
    assert (found.differing, found.worst) == (1, 0.0)
    with pytest.raises(ParityError, match=r"liver 0\.90909, kidney 0\.00000"):
        check_parity(found, int8=False)


def test_points_lost_by_hand():
    truth = images().to(torch.uint8)
    truth[0].view(-1)[5] = 0  # torch finds six pixels of liver where there are five: 2 x 5 / (6 + 5)

    def forgets(given: np.ndarray) -> np.ndarray:
        changed = given.copy()
        changed[:, 0, 0, 0] *= changed[:, 0, 0, 0] != 1
        return run(changed)

    found = agreement(Bright(), forgets, images(), LABELS, truth)
    assert found.lost == pytest.approx({"liver": 10 / 11 - 8 / 10, "spleen": 0.0})
    with pytest.raises(ParityError, match=r"8 bits lose more than 0\.5 Dice points: liver 10\.91"):
        check_parity(found, int8=True)
    check_parity(replace(found, lost={"liver": 0.0049, "spleen": -0.02}), int8=True)


def test_without_organs_the_background_is_compared():
    assert agreement(Bright(), run, torch.zeros(1, 1, 3, 3), LABELS).dice == {"background": 1.0}


@pytest.mark.parametrize(("dice", "int8", "passes"), [(0.9991, False, True), (0.9989, False, False)])
def test_limits_of_full_precision(dice, int8, passes):
    _check(dice, int8, passes)


@pytest.mark.parametrize(("dice", "int8", "passes"), [(0.9951, True, True), (0.9949, True, False)])
def test_limits_of_8_bits(dice, int8, passes):
    _check(dice, int8, passes)


def _check(dice: float, int8: bool, passes: bool) -> None:
    found = Agreement({"liver": dice}, 1, 0)
    if passes:
        check_parity(found, int8)
        return
    with pytest.raises(ParityError):
        check_parity(found, int8)


def test_not_a_number_is_no_agreement():
    with pytest.raises(ParityError):
        check_parity(Agreement({"liver": float("nan")}, 1, 0), int8=False)


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        (lambda given: run(given) * np.float32("nan"), "NaN or infinite"),
        (lambda given: run(given)[:, :2], "gives"),
        (lambda given: run(given[:, :, :, :0]), "gives"),
        (lambda given: 1 / 0, "doesn't run"),
    ],
)
def test_an_export_that_gives_no_logits(broken, named):
    with pytest.raises(ParityError, match=named):
        agreement(Bright(), broken, images(), LABELS)


def test_one_image_and_several_are_tried():
    seen = []

    def counted(given: np.ndarray) -> np.ndarray:
        seen.append(len(given))
        return run(given)

    agreement(Bright(), counted, torch.cat([images(), images()]), LABELS)
    assert seen == [1, 4, 4, 1]
    seen.clear()
    agreement(Bright(), counted, images()[:1], LABELS)
    assert seen == [1]
