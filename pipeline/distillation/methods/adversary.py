# SPDX-License-Identifier: Apache-2.0
"""The adversary of a pair of networks, for the methods that have one beside their own terms.

What a weight means depends on the image size and on the training of the discriminator. The gradient penalty acts on the
sum of the score map, but the student's term is its mean. For a discriminator that meets the penalty, 0.1 times the term
has a gradient at the logits of 6.6, 1.1, 0.5 and 0.19 times the cross-entropy's, with sides of 64, 96, 128 and 224
pixels. An untrained discriminator pulls much less: in one run at 64 pixels the share rose from 0.08 to 0.77 in 400
steps. So a share, held by the running estimate of `gradient_shares`, is safer than a weight.
It is taken at the student's parameters, not at the logits, so that it means the same for every term of every method.
The default is no adversary, but for Graph Flow's preset `paper`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.distillation.discriminator import SMALLEST, Discriminator
from pipeline.distillation.method import NetworkPair
from pipeline.distillation.methods.adversarial import AdversarialDistillation
from pipeline.distillation.settings import check_number
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


def weight_and_share(method: str, setting: str, value: float | Mapping[str, Any]) -> tuple[float, float | None]:
    """Return a weight and no share of a number, the weight 1 and the share of `{"share": number}`.

    Raises:
        InputError: a mapping with anything else, or a share that is not above 0. The message names the setting.
    """
    if not isinstance(value, Mapping):
        return value, None
    if set(value) != {"share"}:
        raise InputError(f"{method}: {setting} is {dict(value)!r}; give a weight, or {{'share': 0.1}}")
    return 1.0, check_number(method, f"the share of {setting}", value["share"])


def build_adversary(
    method: str, setting: str, pair: NetworkPair, strength: float | Mapping[str, float], kind: str
) -> AdversarialDistillation:
    """Return adversarial distillation for a pair.

    Args:
        method: name of the method that has it, for messages.
        setting: name of the setting that holds its strength, for messages.
        pair: the two networks.
        strength: weight of the student's term, or `{"share": number}`: its gradient as a share of the segmentation
            loss's.
        kind: "wgan-gp" or "hinge".

    Raises:
        InputError: the images are too small or volumes, or a setting is wrong.
    """
    weight, share = weight_and_share(method, setting, strength)
    check_adversary(method, setting, pair)
    adversary = AdversarialDistillation(Discriminator(pair.out_channels), pair.total_steps, weight, kind)
    adversary.gradient_share = share
    return adversary
