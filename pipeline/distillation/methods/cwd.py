# SPDX-License-Identifier: Apache-2.0
"""Channel-wise distillation: each channel of the student is high at the places where the teacher's is.

Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, arXiv 2011.13256:

    L = tau^2 / C sum_c KL(softmax_x(teacher_c(x) / tau) || softmax_x(student_c(x) / tau))

with the softmax over the places x of one channel c of one image, and the mean over the batch. The formula fits dense
prediction as it is. A channel has a sum of one however small its organ is, so that rare classes count as much as the
background. Adding a number to a channel changes nothing: the class of a pixel must be learnt from another loss.

Beside kd, at a share of 0.3, it added nothing to kd in ENet: a Dice of 0.708 on CHAOS MR (kd 0.707, alone 0.691; two
seeds), a mean IoU of 0.720 on a tenth of EBHI-Seg (kd 0.730, alone 0.721; three seeds) and 0.782 with all its labels
(kd 0.783, alone 0.774). See docs/results.md and docs/experiments.md.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from pipeline.distillation.adapters import Adapter
from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.settings import check_number

TEMPERATURE = 4.0


def spatial_log_probabilities(maps: torch.Tensor, temperature: float, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return the logarithm of the softmax over the places of each channel, (B, C, N) of maps (B, C, ...).

    Args:
        maps: (B, C, ...).
        temperature: tau > 0.
        mask: (B, 1, ...) bool, the places that take part, all by default; the others come back as 0.
    """
    scaled = maps.flatten(2) / temperature
    if mask is None:
        return F.log_softmax(scaled, dim=2)
    outside = ~mask.flatten(2)
    lowest = torch.finfo(scaled.dtype).min  # not -inf, which gives NaN where no place takes part
    return F.log_softmax(scaled.masked_fill(outside, lowest), dim=2).masked_fill(outside, 0.0)


def channel_divergence(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return tau^2 KL(teacher || student) over the places of a channel, the mean over channels and batch.

    Args:
        student: (B, C, ...).
        teacher: (B, C, ...), of the same size; no gradient reaches it.
        temperature: tau > 0.
        mask: see `spatial_log_probabilities`; an image without any counts as 0.
    """
    of_student, of_teacher = (
        spatial_log_probabilities(maps, temperature, mask) for maps in (student, teacher.detach())
    )
    divergence = F.kl_div(of_student, of_teacher, reduction="none", log_target=True).sum(dim=2)
    return temperature**2 * divergence.mean()


class ChannelWise(DistillationMethod):
    """`channel_divergence` of the logits and of the last tap: the terms `cwd_logits` and `cwd_features`.

    The published weights are 3 for logits and 50 for features, at temperature 4. On 64 x 64 pixels 3 gives the logits'
    term 8 to 17 times the gradient of the labels' loss, hence 0.25. Features are left out by default: they
    need an adapter that starts at random, and on logits alone the term already tells where each class lies.

    Args:
        pair: where channels of the last taps differ, a trained pointwise convolution brings the student's to the
            teacher's; it is made only if features count.
        weight: factor on both weights.
        logits: weight of the logits' term.
        features: weight of the features' term; 0 leaves it out.
        temperature: tau > 0.

    Raises:
        InputError: a weight is negative or not finite, or the temperature is not above 0.
    """

    def __init__(
        self,
        pair: NetworkPair,
        *,
        weight: float = 1.0,
        logits: float = 0.25,
        features: float = 0.0,
        temperature: float = TEMPERATURE,
    ) -> None:
        weights = {"cwd_logits": weight * logits, "cwd_features": weight * features}
        super().__init__(weights if features else {"cwd_logits": weights["cwd_logits"]})
        self.temperature = check_number("cwd", "temperature", temperature)
        last = pair.student_channels[-1], pair.teacher_channels[-1], pair.spatial_dims
        # The softmax over places takes away what is added to a whole channel, so the adapter adds nothing.
        self.adapter = Adapter(*last, bias=False) if features else None

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term `cwd_logits`, and `cwd_features` if features count.

        Shapes as in `DistillationMethod`.
        """
        terms = {"cwd_logits": channel_divergence(student.logits, teacher.logits, self.temperature)}
        if self.adapter is not None:
            mine, hint = self.adapter(student.features[-1], teacher.features[-1]), teacher.features[-1]
            terms["cwd_features"] = channel_divergence(mine, hint, self.temperature)
        return terms
