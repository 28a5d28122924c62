# SPDX-License-Identifier: Apache-2.0
"""Training: the trainer, its losses, what it saves and the folder of a run."""

from pipeline.training.checkpoints import BestModelSaver, TrainingStateSaver
from pipeline.training.clock import TrainingClock
from pipeline.training.interruption import Stopped
from pipeline.training.losses import segmentation_loss
from pipeline.training.paraphrasing import (
    ReconstructionLoss,
    TeacherReconstruction,
    finish_paraphrasers,
    load_paraphrasers,
    save_paraphrasers,
    unexplained_variance,
)
from pipeline.training.progress import Progress
from pipeline.training.run_folder import check_run_folder, record_run
from pipeline.training.sampler import ResumableSampler, SharedBatchSampler, training_sampler
from pipeline.training.schedule import OptimizerStepSchedule, optimizer_steps
from pipeline.training.trainer import DistillationTrainer, autocast_dtype, check_unlabelled_share, trained_parameters
from pipeline.training.validation import IntervalAndLastValidation

__all__ = [
    "BestModelSaver",
    "DistillationTrainer",
    "IntervalAndLastValidation",
    "OptimizerStepSchedule",
    "Progress",
    "ReconstructionLoss",
    "ResumableSampler",
    "SharedBatchSampler",
    "Stopped",
    "TeacherReconstruction",
    "TrainingClock",
    "TrainingStateSaver",
    "autocast_dtype",
    "check_run_folder",
    "check_unlabelled_share",
    "finish_paraphrasers",
    "load_paraphrasers",
    "optimizer_steps",
    "record_run",
    "save_paraphrasers",
    "segmentation_loss",
    "trained_parameters",
    "training_sampler",
    "unexplained_variance",
]
