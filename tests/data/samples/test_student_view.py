# SPDX-License-Identifier: Apache-2.0
"""The student's view: pixels stay, values change, and rectangles come from items of the same kind with their labels."""

from __future__ import annotations

import pytest
import torch

from pipeline.data import Cut, StudentView
from pipeline.errors import InputError
from pipeline.unlabelled import UNLABELLED

SHAPES = {2: (6, 1, 16, 16), 3: (6, 1, 12, 12, 8)}


def labels_of(images: torch.Tensor) -> torch.Tensor:
    """Return a label for each item, its number; the last two items have none."""
    labels = torch.arange(len(images), dtype=torch.uint8).reshape(-1, *[1] * (images.ndim - 1))
    labels = labels.expand(len(images), 1, *images.shape[2:]).clone()
    labels[-2:] = UNLABELLED
    return labels


def test_cut_by_hand():
    inside = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    inside[0, :, :2, :2] = True  # the first takes a quarter of the second, the second nothing
    cut = Cut(inside, torch.tensor([1, 0]))
    maps = torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2)])
    assert cut(maps)[0].tolist() == [[[1, 0], [0, 0]]] * 3
    assert cut(maps)[1].tolist() == [[[1, 1], [1, 1]]] * 3
    assert cut(torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)]))[0].sum() == 16


@pytest.mark.parametrize("axes", SHAPES)
def test_rectangles_come_with_their_labels_from_the_same_kind(axes):
    images = torch.rand(SHAPES[axes])
    labels = labels_of(images)
    changed = torch.zeros(len(images), dtype=torch.bool)
    view = StudentView("strong")
    for _ in range(20):
        _, seen, cut = view(images, labels)
        torch.testing.assert_close(seen, torch.where(cut.inside, labels[cut.partners], labels))
        assert (seen[-2:] == UNLABELLED).all()
        assert (seen[:-2] != UNLABELLED).all()
        share = cut.inside.flatten(1).float().mean(dim=1)
        changed |= share > 0
        assert (share <= 0.5).all()  # 40 %, and what whole pixels add
    assert changed.all()


def test_geometry_stays():
    """A bright square is where it was, wherever nothing was pasted; noise and blur are small beside it."""
    images = torch.full((4, 1, 32, 32), 0.1)
    images[:, :, 8:24, 8:24] = 0.9
    labels = (images > 0.5).to(torch.uint8)
    view = StudentView("strong", seed=1)
    for _ in range(10):
        seen, _, cut = view(images, labels)
        own = ~cut.inside
        for image, label, mine in zip(seen, labels, own, strict=True):
            inner, outer = image[mine & (label == 1)], image[mine & (label == 0)]
            assert inner.mean() > outer.mean() + 0.2


def test_values_stay_in_range_and_differ_from_item_to_item():
    images = torch.rand(1, 3, 16, 16).expand(5, 3, 16, 16)
    seen, _, _ = StudentView("strong")(images, torch.zeros(5, 1, 16, 16, dtype=torch.uint8))
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert len({round(float(image.mean()), 6) for image in seen}) == 5


def test_same_is_the_very_batch():
    images = torch.rand(2, 1, 8, 8)
    labels = labels_of(torch.rand(2, 1, 8, 8))
    seen, truth, cut = StudentView("same")(images, labels)
    assert seen is images
    assert truth is labels
    assert cut is None


def test_draws_resume_and_inputs_stay():
    images = torch.rand(4, 1, 8, 8)
    labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    kept = images.clone()
    view = StudentView("strong", seed=5)
    view(images, labels)
    state = view.state_dict()
    first = view(images, labels)[0]
    again = StudentView("strong", seed=0)
    again.load_state_dict(state)
    torch.testing.assert_close(again(images, labels)[0], first, rtol=0, atol=0)
    torch.testing.assert_close(images, kept, rtol=0, atol=0)


def test_unknown_view_is_refused():
    with pytest.raises(InputError, match="--student_view 'weak' is unknown; choose one of same, strong"):
        StudentView("weak")
