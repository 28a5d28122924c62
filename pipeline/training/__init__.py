# SPDX-License-Identifier: Apache-2.0
"""Training: the trainer, its losses, what it saves and the folder of a run."""

from pipeline.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "checkpoints": ("BestModelSaver", "TrainingStateSaver"),
        "clock": ("TrainingClock",),
        "interruption": ("Stopped",),
        "label_checks": ("check_labels_fill_a_batch", "check_needs_distillation", "tell_of_other_labels"),
        "losses": ("segmentation_loss",),
        "paraphrasing": (
            "ReconstructionLoss",
            "TeacherReconstruction",
            "finish_paraphrasers",
            "load_paraphrasers",
            "save_paraphrasers",
            "unexplained_variance",
        ),
        "initial_weights": ("take_weights",),
        "progress": ("Progress", "say_distillation_is_next", "say_what_is_next"),
        "run_folder": ("check_run_folder", "record_run"),
        "sampler": ("ResumableSampler", "SharedBatchSampler", "training_sampler"),
        "schedule": ("OptimizerStepSchedule", "optimizer_steps"),
        "trainer": ("DistillationTrainer", "autocast_dtype", "trained_parameters"),
        "validation": ("IntervalAndLastValidation",),
    },
)
