# SPDX-License-Identifier: Apache-2.0
"""The teacher's taps after its paraphrasers, for the methods that compare taps channel by channel."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.distillation.method import NetworkPair, at_least_float32
from pipeline.errors import InputError


class FrozenParaphrasers(nn.Module):
    """Turns the teacher's taps into factors with the student's channels; without paraphrasers, taps stay as they are.

    Args:
        paraphrasers: trained (shallow, deep) paraphrasers, or None.
    """

    def __init__(self, paraphrasers: tuple[nn.Module, nn.Module] | None) -> None:
        super().__init__()
        self.paraphrasers = nn.ModuleList(paraphrasers or ()).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenParaphrasers:
        """Stay in evaluation mode whatever the mode."""
        return super().train(False)

    def forward(self, features: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Return the factors (B, c, ...) of the teacher's taps (B, C, ...), without a graph."""
        if not len(self.paraphrasers):
            return tuple(feature.detach() for feature in features)
        with torch.no_grad():
            return tuple(
                paraphraser.encode(at_least_float32(tap))
                for paraphraser, tap in zip(self.paraphrasers, features, strict=True)
            )


def check_paraphrasers(method: str, pair: NetworkPair) -> None:
    """Raise `InputError` unless the paraphrasers turn the teacher's taps into the channels of the student's.

    Without paraphrasers both must have equal channels.
    """
    teacher, student = tuple(pair.teacher_channels), tuple(pair.student_channels)
    if pair.paraphrasers is None:
        if teacher != student:
            raise InputError(
                f"{method} compares taps of {student} channels with the teacher's {teacher}: train paraphrasers with "
                "the paraphrase config and pass --paraphraser FILE"
            )
        return
    takes = tuple(paraphraser.in_channels for paraphraser in pair.paraphrasers)
    gives = tuple(paraphraser.factor_channels for paraphraser in pair.paraphrasers)
    if takes != teacher or gives != student:
        raise InputError(
            f"the paraphrasers turn {takes} into {gives} channels, but the teacher's taps have {teacher} and the "
            f"student's {student}: train paraphrasers for this pair with the paraphrase config"
        )
