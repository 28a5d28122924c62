# SPDX-License-Identifier: Apache-2.0
"""Items without a label: told by a single pixel, and left out of segmentation losses."""

from __future__ import annotations

import torch

from pipeline.unlabelled import UNLABELLED, labelled_items, of_labelled_items, with_teachers_classes


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.tensor([[[0, 1]], [[0, UNLABELLED]], [[2, 2]], [[UNLABELLED, UNLABELLED]]], dtype=torch.uint8)
    return torch.arange(24.0).reshape(4, 3, 2), labels


def test_one_pixel_tells():
    assert labelled_items(batch()[1]).tolist() == [True, False, True, False]


def test_losses_see_the_labelled_items_alone():
    logits, labels = batch()
    seen, truth = of_labelled_items(logits, labels)
    torch.testing.assert_close(seen, logits[[0, 2]])
    assert truth.tolist() == [[[0, 1]], [[2, 2]]]


def test_deep_supervision_loses_the_same_items_everywhere():
    logits, labels = batch()
    (first, (second,)), _ = of_labelled_items((logits, (2 * logits,)), labels)
    torch.testing.assert_close(first, logits[[0, 2]])
    torch.testing.assert_close(second, 2 * logits[[0, 2]])


def test_labelled_batch_is_handed_on_as_it_is():
    logits, labels = batch()
    seen, truth = of_labelled_items(logits[:1], labels[:1])
    assert seen.data_ptr() == logits.data_ptr()
    assert truth.data_ptr() == labels.data_ptr()


def test_teachers_classes_stand_where_a_whole_item_has_no_label():
    labels = torch.tensor([[[0, 9]], [[0, UNLABELLED]]], dtype=torch.uint8)
    logits = torch.tensor([[[5.0, 0.0], [0.0, 5.0]], [[0.0, 5.0], [5.0, 0.0]]])  # classes 0 1, and 1 0
    assert with_teachers_classes(labels, logits).tolist() == [[[0, 9]], [[1, 0]]]
