# SPDX-License-Identifier: Apache-2.0
"""Classes at another size: those of torch's interpolated logits, by whichever way they are found."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from pipeline.inference import label_upsampling
from pipeline.inference.label_upsampling import first_of_largest, resized_classes

SIDES = st.integers(1, 17)
TIE = 1e-5  # logits of about 1 that are as near to each other may change places by the rounding of a float32


@pytest.fixture(autouse=True)
def only_mixed_cells_are_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_upsampling, "_DENSE_FROM_PER_CLASS", 2.0)


def dense(logits: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return torch's classes, and how far the best logit is ahead of the second."""
    interpolated = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    best = interpolated.topk(2, dim=1).values
    return interpolated.argmax(dim=1), best[:, 0] - best[:, 1]


def smooth_logits(seed: int, images: int, classes: int, height: int, width: int, cells: int) -> Tensor:
    """Return logits with patches of one class, the larger the fewer `cells` a side they are drawn from."""
    coarse = torch.randn(images, classes, cells, cells, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(height, width), mode="bicubic")


def test_by_hand() -> None:
    # Class 1 leads by -1, -1, 3 along a row. Twice as many pixels read at 0, 0.25, 0.75, 1.25, 1.75, 2: from 1.25 on
    # class 1 leads, which is before the middle between the second pixel and the third.
    lead = torch.tensor([-1.0, -1.0, 3.0])
    logits = torch.stack([torch.zeros(3), lead])[None, :, None, :]
    assert resized_classes(logits, (1, 6)).tolist() == [[[0, 0, 0, 0, 1, 1]]]
    lead[2] = 5.0  # now at 1.25 the lead is 0.5
    logits = torch.stack([torch.zeros(3), lead])[None, :, None, :]
    assert resized_classes(logits, (2, 6)).tolist() == [[[0, 0, 0, 1, 1, 1]] * 2]


def test_a_third_class_may_win_between_two() -> None:
    logits = torch.tensor([[4.0, 0.0], [0.0, 4.0], [3.0, 3.0]])[None, :, None, :]
    assert resized_classes(logits, (1, 6)).tolist() == [[[0, 0, 2, 2, 1, 1]]]


def test_of_equal_logits_the_first_class_is_taken() -> None:
    assert not resized_classes(torch.ones(2, 3, 4, 4), (7, 9)).any()
    logits = torch.tensor([[[1.0, 5.0]], [[2.0, 5.0]], [[2.0, 5.0]]])[None]
    assert first_of_largest(logits).tolist() == [[[1, 0]]]
    assert first_of_largest(logits.clone(), overwrite=True).tolist() == [[[1, 0]]]


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    images=st.integers(1, 3),
    classes=st.integers(2, 6),
    sides=st.tuples(SIDES, SIDES),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    cells=st.integers(1, 6),
    channels_last=st.booleans(),
)
def test_equals_torchs_interpolation(
    seed: int,
    images: int,
    classes: int,
    sides: tuple[int, int],
    size: tuple[int, int],
    cells: int,
    channels_last: bool,
) -> None:
    logits = smooth_logits(seed, images, classes, *sides, cells)
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    expected, lead = dense(logits, size)
    labels = resized_classes(logits, size)
    assert labels.dtype == torch.uint8
    assert labels.shape == expected.shape
    assert torch.equal(labels[lead > TIE].long(), expected[lead > TIE])


@pytest.mark.parametrize("size", [(512, 512), (300, 421), (224, 224), (100, 31)])
def test_equals_torchs_interpolation_at_the_sizes_of_scans(size: tuple[int, int]) -> None:
    logits = smooth_logits(0, 2, 9, 224, 224, 14)
    expected, lead = dense(logits, size)
    assert torch.equal(resized_classes(logits, size)[lead > TIE].long(), expected[lead > TIE])
    assert (lead > TIE).float().mean() > 0.9999


def test_many_mixed_cells_are_interpolated_densely_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(label_upsampling, "labels_from_cells", lambda *_: pytest.fail("picked pixels of pure noise"))
    logits = torch.randn(2, 4, 24, 24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resized_classes(logits, (60, 50)).long(), dense(logits, (60, 50))[0])


def test_few_mixed_cells_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(label_upsampling, "_interpolated_classes", lambda *_: pytest.fail("interpolated everything"))
    resized_classes(smooth_logits(0, 1, 3, 64, 64, 3), (150, 150))
