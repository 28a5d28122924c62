# SPDX-License-Identifier: Apache-2.0
"""What a run with few labels asks for, checked: options that need a teacher, full batches, a teacher's labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence, Sized

from pipeline.data import DATASET_FILE, Dataset
from pipeline.distillation import Distiller
from pipeline.errors import InputError
from pipeline.networks import SavedModel
from pipeline.processes import distributed

logger = logging.getLogger(__name__)


def check_needs_distillation(distiller: Distiller | None, unlabelled_share: float = 0.0, view: str = "same") -> None:
    """Refuse (`InputError`) items without a label and a view of the student's own in a training without distillation.

    Args:
        distiller: of the run; None where there is no distillation.
        unlabelled_share: share of each batch that comes from cases without a label.
        view: of the student, "same" or "strong".
    """
    if distiller is None and unlabelled_share:
        raise InputError(
            "--unlabelled_share: a training without distillation learns nothing from cases without a label; name "
            "distill.yaml too, or leave it out"
        )
    if distiller is None and view != "same":
        raise InputError(
            f"--student_view {view}: only a distillation gives the student another view than the teacher's; name "
            "distill.yaml too, or leave it out"
        )


def check_labels_fill_a_batch(items: Sized, batch_size: int, dataset: Dataset, unlabelled_share: float = 0.0) -> None:
    """Refuse (`InputError`) fewer labelled items than one batch where training cases lack a label.

    A short batch is no fair control for a student whose batches are full by items without a label. Those have a sampler
    that checks them. A dataset with all labels may be as small as it is.

    Args:
        items: that the run trains on; without an `unlabelled_share`, all of them are labelled.
        batch_size: items of one iteration of all processes together.
        dataset: that they are of.
        unlabelled_share: share of each batch that comes from cases without a label.
    """
    if not unlabelled_share and dataset.unlabelled_cases and len(items) < batch_size:
        raise InputError(
            f"a batch has {batch_size} labelled items, but training has {len(items)}, since not all cases of "
            f"{dataset.folder / DATASET_FILE} have a label or keep it; give all runs that are compared --batch_size "
            f"{len(items)} or less, or more labels"
        )


def tell_of_other_labels(teacher: SavedModel | None, dataset: Dataset) -> None:
    """Warn of a teacher that learned from the labels of other patients than this run does, if its file tells.

    That may be meant, as with a teacher of another dataset. A comparison by the amount of labels would not be fair.
    """
    recipe = {} if teacher is None else teacher.extra.get("recipe") or {}
    if not distributed.is_main() or "labelled_patients" not in recipe:
        return
    theirs, mine = recipe["labelled_patients"], dataset.labelled_patients if dataset.unlabelled_cases else None
    if theirs != mine:
        logger.warning(
            "the teacher learned from the labels of %s, this run has those of %s%s; to compare amounts of labels, give "
            "both the same --labelled_patients",
            _counted(theirs),
            _counted(mine),
            ", not the same ones" if _counted(theirs) == _counted(mine) else "",
        )


def _counted(patients: Sequence[str] | None) -> str:
    """Return how many patients have labels, in words; None stands for all that there are."""
    if patients is None:
        return "all patients"
    return f"{len(patients)} patient{'' if len(patients) == 1 else 's'}"
