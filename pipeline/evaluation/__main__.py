# SPDX-License-Identifier: Apache-2.0
"""Score label maps that any tool wrote, of scans (Dice, HD95 in mm, volumes) or slides (ACC, mIoU, Dice, HD95)."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.command_line import CommandLine
from pipeline.data.dataset.dataset import SCANS, SLIDES
from pipeline.data.scans.slicer import read_named_label, uncropped
from pipeline.data.scans.volumes import on_grid_of
from pipeline.errors import InputError, run_command
from pipeline.evaluation.masks.files import read_mask
from pipeline.evaluation.masks.matching import CasePair, Matching, match_cases
from pipeline.evaluation.masks.organs import ScoredOrgans, organs_given, organs_of_files
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.provenance import describe_case, describe_run
from pipeline.evaluation.report import PROTOCOLS, check_output_folder, protocol_named, write_report
from pipeline.evaluation.slides.protocols import PAPER

_logger = logging.getLogger(__name__)
_MOST_LISTED = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Score what the command line names; returns exit code 0."""
    options = parser().parse_args(arguments)
    started = time.perf_counter()
    named = organs_given(options.organs, options.dataset)
    protocol = _protocol(options.protocol, named.kind)
    matching = match_cases(Path(options.predictions), Path(options.labels), options.allow_missing, named.kind)
    check_output_folder(options.output)
    organs = named.organs or _organs_of(matching)
    scores, cases = score_pairs(matching.pairs, organs, protocol, named.spacing_known)
    rows = write_report(
        options.output,
        protocol,
        scores,
        {
            **_inputs(options, named, matching),
            **describe_run(),
            "cases": cases,
            "timings": {"total_seconds": round(time.perf_counter() - started, 3)},
        },
    )
    _warn_of_gaps(matching, named)
    print(protocol.table(rows))
    print(f"cases scored: {len(matching.pairs)}; report in {Path(options.output) / protocol.page_name}")
    return 0


def _organs_of(matching: Matching) -> dict[int, str]:
    pairs = matching.pairs
    return organs_of_files([pair.prediction for pair in pairs], [pair.label for pair in pairs])


def score_pairs(
    pairs: Sequence[CasePair], organs: dict[int, str], protocol: Protocol, spacing_known: bool = True
) -> tuple[list[Any], list[dict[str, Any]]]:
    """Return the score rows of all cases and their entries in the summary.

    Raises one `InputError` that lists every case that cannot be scored: unreadable, on another grid than its label, or
    with values that name no organ.
    """
    scores: list[Any] = []
    cases: list[dict[str, Any]] = []
    problems: list[str] = []
    for pair in pairs:
        try:
            rows, entry = _score_pair(pair, organs, protocol, spacing_known)
        except InputError as error:
            problems.append(f"case {pair.case}: {error}")
            continue
        scores += rows
        cases.append(entry)
    if problems:
        more = f"; and {len(problems) - _MOST_LISTED} more" if len(problems) > _MOST_LISTED else ""
        raise InputError(
            f"{len(problems)} of {len(pairs)} cases cannot be scored: {'; '.join(problems[:_MOST_LISTED])}{more}"
        )
    return scores, cases


def _score_pair(
    pair: CasePair, organs: dict[int, str], protocol: Protocol, spacing_known: bool
) -> tuple[list[Any], dict[str, Any]]:
    started = time.perf_counter()
    prediction, label, spacing_mm = (_read_masks if protocol.kind == SLIDES else _read_volumes)(pair, organs)
    spacing_mm = spacing_mm if spacing_known else None
    read = time.perf_counter()
    rows = protocol.score(pair.case, prediction, label, organs, spacing_mm)
    seconds = {"reading": read - started, "scoring": time.perf_counter() - read}
    return rows, describe_case(pair.case, label.shape, spacing_mm, **seconds)


def _read_volumes(pair: CasePair, organs: dict[int, str]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return prediction, label and the steps of the grid of a scan."""
    label, prediction = read_named_label(pair.label, organs), read_named_label(pair.prediction, organs)
    label = uncropped(label, like=prediction)
    return on_grid_of(label, uncropped(prediction, like=label)).array, label.array, label.steps_mm


def _read_masks(pair: CasePair, organs: dict[int, str]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return prediction and label of a slide, which is measured in pixels."""
    known = {0, *organs}
    label = read_mask(pair.label, known)
    return read_mask(pair.prediction, known, label.shape), label, None


def _protocol(name: str | None, kind: str) -> Protocol:
    """Return the protocol that a command can follow: `paper` needs the network, not only its masks."""
    protocol = protocol_named(name, kind)
    if protocol is PAPER:
        raise InputError(
            "protocol 'paper' crops images before the network sees them, which finished masks cannot follow; score "
            "masks with full, and run the bundle's evaluate.yaml with --protocol paper"
        )
    return protocol


def _inputs(options: argparse.Namespace, named: ScoredOrgans, matching: Matching) -> dict[str, Any]:
    return {
        "dataset": named.dataset,
        "predictions": options.predictions,
        "labels": options.labels,
        "missing_predictions": list(matching.missing),
        "predictions_without_label": list(matching.extra),
    }


def _warn_of_gaps(matching: Matching, named: ScoredOrgans) -> None:
    if matching.missing or matching.extra:
        _logger.warning(
            "not scored: %d labels without prediction (%s), %d predictions without label (%s)",
            len(matching.missing),
            ", ".join(matching.missing) or "none",
            len(matching.extra),
            ", ".join(matching.extra) or "none",
        )
    if named.kind == SCANS and not named.spacing_known:
        _logger.warning("dataset %s has no voxel size: distances in mm and volumes in ml stay empty", named.dataset)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    command = CommandLine(prog="python -m pipeline.evaluation", description=__doc__)
    command.add_argument(
        "--predictions",
        required=True,
        metavar="DIR_OR_FILE",
        help="label maps: CASE.nii.gz of scans, CASE.tif or CASE.png of slides",
    )
    command.add_argument("--labels", required=True, metavar="DIR_OR_FILE", help="true label maps of the same names")
    command.add_argument("--organs", metavar="NAMES", help='names of the labels 1, 2, …: "liver,spleen"')
    command.add_argument(
        "--dataset",
        metavar="JSON_OR_DIR",
        help="instead: dataset.json of this project, Decathlon or nnU-Net, of which the labels count; slides need it",
    )
    command.add_argument("--output", required=True, metavar="DIR", help="folder for the tables and the summary")
    command.add_argument(
        "--protocol",
        choices=tuple(PROTOCOLS),
        help="of scans mm (the default) or transunet, the published Synapse convention; of slides full",
    )
    command.add_argument("--allow-missing", action="store_true", help="score the cases that have both files")
    return command


if __name__ == "__main__":
    run_command(main)
