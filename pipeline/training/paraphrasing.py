# SPDX-License-Identifier: Apache-2.0
"""Training of the two paraphrasers: auto-encoders that bring the teacher's taps down to the student's channels."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.data import SliceDataset
from pipeline.distillation import FeatureTaps
from pipeline.errors import InputError
from pipeline.files.atomic import write_tensors
from pipeline.networks import Paraphraser
from pipeline.processes import distributed

logger = logging.getLogger(__name__)

FORMAT = "graphflow-paraphrasers-1"
_CHECKED_SLICES = 200  # spread over the split: enough for a percentage, quick on a CPU


class TeacherReconstruction(nn.Module):
    """The network that the trainer trains: images -> ((reconstruction, tap) of the shallow and of the deep tap).

    The teacher is frozen; only the paraphrasers have gradients.

    Args:
        teacher: trained network with `taps` and `tap_channels`.
        factor_channels: channels of the student's shallow and deep tap.
        inferer: runs the teacher on a batch; by default a plain call.
    """

    def __init__(
        self,
        teacher: nn.Module,
        factor_channels: Sequence[int],
        inferer: Callable[[torch.Tensor, nn.Module], torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.paraphrasers = nn.ModuleList(
            Paraphraser(channels, factor, teacher.spatial_dims)
            for channels, factor in zip(teacher.tap_channels, factor_channels, strict=True)
        )
        # Kept out of the registered modules: its weights are neither trained nor saved here.
        self._frozen = (teacher.eval().requires_grad_(False),)
        self._taps = FeatureTaps(teacher, teacher.taps)
        self._inferer = inferer or (lambda images, network: network(images))

    def forward(self, images: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """Return (reconstruction, tap), equal in shape (B, c, h, w), for each teacher tap on images (B, C, H, W)."""
        with torch.no_grad():
            self._inferer(images, self._frozen[0])
        return tuple(
            (paraphraser(tap), tap) for paraphraser, tap in zip(self.paraphrasers, self._taps.take(), strict=True)
        )


class ReconstructionLoss(nn.Module):
    """Sum over the taps of the mean squared error of the reconstruction; the labels are not used."""

    needs_labels = False

    def forward(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], labels: torch.Tensor) -> torch.Tensor:
        """Return the loss, a scalar, of `TeacherReconstruction`'s output: pairs of maps (B, c, h, w)."""
        return sum(F.mse_loss(reconstruction, tap) for reconstruction, tap in pairs)


@torch.no_grad()
def unexplained_variance(network: TeacherReconstruction, images: Sequence[torch.Tensor]) -> tuple[float, ...]:
    """Return, for each tap, the share of its variance that the reconstruction leaves unexplained (0 is perfect).

    Args:
        network: trained or not.
        images: batches (B, C, H, W) on the network's device.
    """
    network.eval()
    errors, totals = [0.0] * len(network.paraphrasers), [0.0] * len(network.paraphrasers)
    for batch in images:
        for index, (reconstruction, tap) in enumerate(network(batch)):
            errors[index] += float((reconstruction - tap).square().sum())
            totals[index] += float((tap - tap.mean(dim=(0, *range(2, tap.ndim)), keepdim=True)).square().sum())
    return tuple(error / total if total else float("nan") for error, total in zip(errors, totals, strict=True))


def save_paraphrasers(path: str | os.PathLike[str], paraphrasers: Sequence[Paraphraser], teacher_sha256: str) -> None:
    """Write both paraphrasers and the hash of the teacher's file that they belong to, atomically."""
    content = {
        "format": FORMAT,
        "teacher_sha256": teacher_sha256,
        "channels": [(paraphraser.in_channels, paraphraser.factor_channels) for paraphraser in paraphrasers],
        "spatial_dims": paraphrasers[0].spatial_dims,
        "state_dicts": [paraphraser.state_dict() for paraphraser in paraphrasers],
    }
    write_tensors(path, content)


def finish_paraphrasers(
    path: str | os.PathLike[str],
    network: TeacherReconstruction,
    slices: SliceDataset,
    teacher_sha256: str,
    batch_size: int = 16,
) -> None:
    """Write the trained paraphrasers and log how much of each tap's variance they leave unexplained on `slices`."""
    if not distributed.is_main():
        return
    device = next(network.parameters()).device
    every = max(1, len(slices) // _CHECKED_SLICES)
    chosen = torch.arange(0, len(slices), every).split(batch_size)
    shares = unexplained_variance(network, [slices.batch(indices)["image"].to(device) for indices in chosen])
    save_paraphrasers(path, network.paraphrasers, teacher_sha256)
    logger.info(
        "%s: variance left unexplained %.1f %% (shallow) and %.1f %% (deep)", path, *(100 * share for share in shares)
    )


def load_paraphrasers(
    path: str | os.PathLike[str] | None, teacher_sha256: str, device: str | torch.device = "cpu"
) -> tuple[Paraphraser, Paraphraser]:
    """Return the frozen (shallow, deep) paraphrasers of a file that `save_paraphrasers` wrote for this very teacher.

    Raises:
        InputError: no file, another kind of file, or paraphrasers of another teacher.
    """
    how = "run the paraphrase config for this teacher and student, then pass --paraphraser RUN_DIR/paraphraser.pt"
    if path is None or not os.path.isfile(path):
        raise InputError(f"no paraphraser file at {path}: {how}")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not its own
        raise InputError(f"{path} cannot be read as a paraphraser file: {how}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path} is not a paraphraser file: {how}")
    if content["teacher_sha256"] != teacher_sha256:
        raise InputError(f"{path} was trained on another teacher than the one given: {how}")
    paraphrasers = []
    for (channels, factor), state in zip(content["channels"], content["state_dicts"], strict=True):
        paraphraser = Paraphraser(channels, factor, content.get("spatial_dims", 2))
        paraphraser.load_state_dict(state)
        paraphrasers.append(paraphraser.to(device).eval().requires_grad_(False))
    shallow, deep = paraphrasers
    return shallow, deep
