# SPDX-License-Identifier: Apache-2.0
"""The adversary of a pair of networks, for the methods that have one beside their own terms."""

from __future__ import annotations

from pipeline.distillation.discriminator import SMALLEST, Discriminator
from pipeline.distillation.method import NetworkPair
from pipeline.distillation.methods.adversarial import AdversarialDistillation
from pipeline.errors import InputError


def check_adversary(method: str, setting: str, pair: NetworkPair) -> None:
    """Raise `InputError` unless the discriminator can take the logits of the pair.

    `setting` is the one of `method` whose 0 leaves it out.
    """
    leave_out = f"pass --settings \"{{'{setting}': 0}}\" to leave it out"
    if pair.spatial_dims != 2:
        raise InputError(f"the discriminator of {method} judges slices, not volumes: {leave_out}")
    if pair.size is not None and pair.size < SMALLEST:
        raise InputError(
            f"the discriminator of {method} needs slices of {SMALLEST} pixels, the teacher's have {pair.size}: "
            f"{leave_out}, or train a teacher at a larger --size"
        )


def build_adversary(method: str, setting: str, pair: NetworkPair, weight: float, kind: str) -> AdversarialDistillation:
    """Return adversarial distillation for a pair.

    Args:
        method: name of the method that has it, for messages.
        setting: name of the setting that holds its weight, for messages.
        pair: the two networks.
        weight: weight of the student's term.
        kind: "wgan-gp" or "hinge".

    Raises:
        InputError: the images are too small or volumes, or a setting is wrong.
    """
    check_adversary(method, setting, pair)
    return AdversarialDistillation(Discriminator(pair.out_channels), pair.total_steps, weight, kind)
