# SPDX-License-Identifier: Apache-2.0
"""Runs to draw pictures of: without files, of scans with masks and curves, and of a slide."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from torch.utils.tensorboard import SummaryWriter

from pipeline.comparison import Arm, Run, read_runs
from pipeline.data import (
    GREY_SLIDE,
    SLIDE_INTENSITY,
    Case,
    Dataset,
    IntensityRule,
    write_dataset_json,
    write_png,
)
from pipeline.networks import build_network, save_model
from tests.comparison.run_folders import make_scan_run, make_slide_run, taught_by
from tests.preprocessing import tile_preprocessing

LABELS = {0: "background", 1: "liver", 2: "spleen"}
CASES = ("case_1", "case_2")


def a_run(seed: int = 0, method: str | None = None, network: str = "ENet", **scores: dict[str, float]) -> Run:
    """Return a run without files, with the Dice of each case and organ."""
    rows = [(case, organ, dice) for case, organs in scores.items() for organ, dice in organs.items()]
    table = pd.DataFrame(rows, columns=["case", "organ", "dice"])
    here = Path("nowhere")
    return Run(here, network, method, seed, "m", None, "scans", "toy", 1, table, {}, here, here, here / "tensorboard")


def an_arm(*runs: Run, role: str = "alone") -> Arm:
    """Return an arm of some runs, a student alone by default."""
    return Arm(role, runs[0].network, runs[0].method, runs)


def write_finished(folder: Path) -> Path:
    """Write `data` and the runs `teacher`, `alone` and `graph` into a folder, with curves, and masks of one error."""
    dataset = write_scans(folder / "data")
    dice = {case: {"liver": 0.9, "spleen": 0.5} for case in CASES}
    teacher = make_scan_run(folder / "teacher", dice)
    alone = make_scan_run(folder / "alone", dice, network="erfnet")
    graph = taught_by(teacher, "graph_flow")
    for path in (teacher, alone, make_scan_run(folder / "graph", dice, network="erfnet", distillation=graph)):
        add_masks(path, dataset)
        with SummaryWriter(str(path / "tensorboard")) as writer:
            for step in (1, 2):
                writer.add_scalar("total", 1 / step, step)
                writer.add_scalar("val_mean_dice", step / 4, step)
    return folder


def copied_runs(finished: Path, folder: Path) -> dict[str, Path]:
    """Return copies of the runs of `write_finished` by name, the teacher first."""
    return {name: shutil.copytree(finished / name, folder / name) for name in ("teacher", "alone", "graph")}


def write_scans(folder: Path) -> Dataset:
    """Write two scans (12, 10, 4) with a liver and, in slice 2 alone, a spleen."""
    folder.mkdir()
    cases = []
    for number, name in enumerate(CASES):
        label = np.zeros((12, 10, 4), np.uint8)
        label[1:6, 2:8, 1:3] = 1
        label[8:11, 2:6, 2] = 2
        image = np.random.default_rng(number).normal(100 * label, 5).astype(np.int16)
        for kind, array in (("image", image), ("label", label)):
            nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 3.0, 1.0])), folder / f"{name}_{kind}.nii.gz")
        cases.append(Case(name, name, folder / f"{name}_image.nii.gz", folder / f"{name}_label.nii.gz"))
    rule = IntensityRule("window", 0, 200)
    dataset = Dataset("toy", folder, "MR", LABELS, rule, (), (), tuple(cases))
    write_dataset_json(folder, dataset)
    return dataset


def add_masks(run: Path, dataset: Dataset) -> None:
    """Write masks that are the label but for a square of liver."""
    folder = run / "report" / "predictions"
    folder.mkdir()
    for case in dataset.test:
        label = nib.load(case.label)
        mask = np.asarray(label.dataobj).copy()
        mask[8:12, 6:10] = 1
        nib.save(nib.Nifti1Image(mask, label.affine), folder / f"{case.case}.nii.gz")


def slide_run(folder: Path) -> tuple[Dataset, Run]:
    """Return a dataset of one slide of 40 x 40 pixels and a run with a model of random weights."""
    label = np.zeros((40, 40), np.uint8)
    label[:10, :10] = 1
    image = np.random.default_rng(0).integers(0, 200, (40, 40), np.uint8)
    data = folder / "data"
    for name, pixels in (("image", image), ("label", label)):
        data.mkdir(parents=True, exist_ok=True)
        write_png(data / f"{name}.png", pixels)
    case = Case("a", "a", data / "image.png", data / "label.png")
    labels = {0: "background", 1: "cancer"}
    dataset = Dataset("tissue", data, GREY_SLIDE, labels, SLIDE_INTENSITY, (), (), (case,), False, 32)
    (run,) = read_runs([make_slide_run(folder / "run", {"a": (label, label)}, {1: "cancer"})])
    torch.manual_seed(0)
    arguments = {"labels": labels, "modality": GREY_SLIDE, "tile_px": 32}
    preprocessing = tile_preprocessing(SLIDE_INTENSITY)
    save_model(folder / "model.pt", build_network("enet"), preprocessing=preprocessing, size=32, **arguments)
    return dataset, replace(run, checkpoint=folder / "model.pt")
