# SPDX-License-Identifier: Apache-2.0
"""The runs of a grid: each a few commands that users could type, a folder, and a file that proves it done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.distillation import needs_paraphrasers
from pipeline.networks import tap_channels

TEACHER = "teacher"
PARAPHRASER_FILE, REPORT_FOLDER, REPORT_FILE = "paraphraser.pt", "report", "summary.json"
# What all trainings of a grid share and a paraphraser's has too; its learning rate is its own.
_SHARED_WITH_PARAPHRASER = ("batch_size", "augmentation", "precision", "cache_dir", "device")


@dataclass(frozen=True)
class Step:
    """One command of a bundle: the name of its config, and the options given to it."""

    config: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
        name: also of its folder.
        folder: where it writes.
        steps: its commands, in order; each goes on where an earlier call stopped.
        proof: the file that its last step writes; a run that has it is done.
        needs: names of the runs that must be done before.
        in_comparison: whether it is a row of the comparison.
    """

    name: str
    folder: Path
    steps: tuple[Step, ...]
    proof: Path
    needs: tuple[str, ...] = ()
    in_comparison: bool = True

    @property
    def is_done(self) -> bool:
        """Whether the run is there whole."""
        return self.proof.is_file()


@dataclass(frozen=True)
class Recipes:
    """Options of the bundle's configs: `training` for all networks, and what single kinds of runs have beside it."""

    training: Mapping[str, Any]
    teacher: Mapping[str, Any]
    student: Mapping[str, Any]
    paraphraser: Mapping[str, Any]
    evaluation: Mapping[str, Any]


def build_cells(
    run_dir: str | Path,
    dataset_dir: str,
    students: Sequence[str],
    methods: Mapping[str, Mapping[str, Any] | None],
    seeds: Sequence[int],
    recipes: Recipes,
) -> list[Cell]:
    """Return the runs of a grid: the teacher, then students with their methods and, before them, paraphrasers.

    Students whose taps have the same channels share their paraphrasers, as the seeds do.

    Args:
        run_dir: folder of the grid.
        dataset_dir: folder of the dataset.
        students: names of networks.
        methods: name to options of distill.yaml; None is training alone.
        seeds: seeds of the students; the teacher and the paraphrasers have the first.
        recipes: all other options.
    """
    root = Path(run_dir)
    teacher_options = {**recipes.training, **recipes.teacher, "seed": seeds[0]}
    cells = {TEACHER: _trained(root / TEACHER, dataset_dir, "train", teacher_options, recipes)}
    # Seeds outermost: a grid that is stopped early has all methods with fewer seeds, not some methods with all.
    for seed in seeds:
        for student in students:
            for method, options in methods.items():
                name = f"{student}_{method}_{seed}"
                mine = {**recipes.training, **recipes.student, **(options or {}), "seed": seed}
                if options is None:
                    cells[name] = _trained(root / name, dataset_dir, "train", {**mine, "network": student}, recipes)
                    continue
                mine |= {"student": student, "teacher": str(root / TEACHER / "model.pt")}
                needs = [TEACHER]
                if needs_paraphrasers(options):
                    paraphraser = _paraphraser(root, dataset_dir, student, seeds[0], recipes)
                    cells.setdefault(paraphraser.name, paraphraser)
                    mine["paraphraser"] = str(paraphraser.proof)
                    needs.append(paraphraser.name)
                cells[name] = _trained(root / name, dataset_dir, "distill", mine, recipes, needs)
    return list(cells.values())


def _trained(
    folder: Path,
    dataset_dir: str,
    config: str,
    options: Mapping[str, Any],
    recipes: Recipes,
    needs: Sequence[str] = (),
) -> Cell:
    """Return a run that trains a network and evaluates it."""
    report = folder / REPORT_FOLDER
    training = {"dataset_dir": dataset_dir, "run_dir": str(folder), "resume": "auto", **options}
    evaluation = {
        **{key: options[key] for key in ("device",) if key in options},
        **recipes.evaluation,
        "dataset_dir": dataset_dir,
        "checkpoint": str(folder / "model.pt"),
        "run_dir": str(report),
        "overwrite": True,  # what a run that was stopped left of its report
    }
    steps = (Step(config, training), Step("evaluate", evaluation))
    return Cell(folder.name, folder, steps, report / REPORT_FILE, tuple(needs))


def _paraphraser(root: Path, dataset_dir: str, student: str, seed: int, recipes: Recipes) -> Cell:
    """Return the run that trains the paraphrasers for all students with the taps of this one."""
    name = "paraphraser_" + "x".join(map(str, tap_channels(student)))
    options = {key: value for key, value in recipes.training.items() if key in _SHARED_WITH_PARAPHRASER}
    options |= {
        **recipes.paraphraser,
        "dataset_dir": dataset_dir,
        "run_dir": str(root / name),
        "resume": "auto",
        "seed": seed,
        "student": student,
        "teacher": str(root / TEACHER / "model.pt"),
    }
    proof = root / name / PARAPHRASER_FILE
    return Cell(name, root / name, (Step("paraphrase", options),), proof, (TEACHER,), in_comparison=False)
