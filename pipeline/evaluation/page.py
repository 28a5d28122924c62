# SPDX-License-Identifier: Apache-2.0
"""The page of a report: what one model, or any tool's masks, scored; it opens offline and needs no other file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.dataset.dataset import SCANS, SLIDES
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.scores import ABSENT, FALSE_POSITIVE, MISSED, OK, STATUSES
from pipeline.evaluation.summaries import by_organ
from pipeline.evaluation.tables import ShownTable, row_content, text_interval, text_number
from pipeline.pages.render import render

TEMPLATE = Path(__file__).with_name("page.html.j2")
_WORDS = {OK: "in both", MISSED: "missed", FALSE_POSITIVE: "invented", ABSENT: "absent"}
# What `summary.json` may say of where the figures come from.
_DESCRIBED = ("checkpoint", "predictions", "labels", "missing_predictions", "predictions_without_label", "command")
_DESCRIBED += ("versions", "machine")
_COUNTS = 1 + len(STATUSES)  # columns: cases, and those of each status
_MOST_WEAK, _MOST_CASES = 10, 100
# With more cases, those of evenly spaced ranks are drawn: the picture looks the same, and the page stays small.
_MOST_POINTS = 300


@dataclass(frozen=True)
class Nouns:
    """The page's words for cases and classes of scans or slides."""

    case: str
    cases: str
    organ: str
    organs: str


_NOUNS = {SCANS: Nouns("case", "cases", "organ", "organs"), SLIDES: Nouns("image", "images", "class", "classes")}


@dataclass(frozen=True)
class DiceStrip:
    """Dice of one organ in all cases that have it: `(case, Dice, height)` points, heights 0..1, and the median."""

    organ: str
    points: tuple[tuple[str, float, float], ...]
    median: float


def page_html(protocol: Protocol, scores: Sequence[Any], rows: Sequence[Any], description: Mapping[str, Any]) -> str:
    """Return the page of a report as text.

    Args:
        protocol: the one by which the cases were scored.
        scores: rows of all cases, sorted by case and label value.
        rows: the summary rows, the mean last.
        description: as in `summary.json`: dataset, command, versions, machine, as far as they are known.
    """
    organs, nouns = by_organ(scores), _NOUNS[protocol.kind]
    return render(
        TEMPLATE,
        title=_title(scores, description, nouns),
        verdict=_verdict(rows[-1], organs, nouns),
        shown=_figures_first(protocol.shown(rows)),
        strips=[_strip(mine) for mine in organs],
        weakest=_weakest(scores),
        cases=_case_table(organs, nouns),
        files=protocol.file_names(),
        definitions=protocol.definitions,
        nouns=nouns,
        description={**dict.fromkeys(_DESCRIBED), **description},
    )


def _figures_first(table: ShownTable) -> ShownTable:
    """Return the table with its counts last: a phone shows only the first columns."""

    def turned(cells: tuple[str, ...]) -> tuple[str, ...]:
        """Return a row with its name, the figures, and then the counts."""
        return (cells[0], *cells[1 + _COUNTS :], *cells[1 : 1 + _COUNTS])

    return ShownTable(turned(table.header), tuple(map(turned, table.rows)), table.notes)


def _title(scores: Sequence[Any], description: Mapping[str, Any], nouns: Nouns) -> str:
    cases = _count(len({score.case for score in scores}), nouns.case, nouns.cases)
    dataset = description.get("dataset")
    return f"Scores of {cases}" + (f" of {dataset}" if dataset else "")


def _verdict(mean: Any, organs: Sequence[Sequence[Any]], nouns: Nouns) -> str:
    """Return what the figures say in a few sentences: mean Dice, the weakest organ, what was missed or invented."""
    told = f"Mean Dice {text_number(mean.dice_mean, 3)} over {_count(len(organs), nouns.organ, nouns.organs)}"
    low, high = getattr(mean, "dice_ci95_low", math.nan), getattr(mean, "dice_ci95_high", math.nan)
    told += "." if math.isnan(low) else f" (95% interval {text_interval(low, high, 3)})."
    means = {_organ(mine[0]): np.nanmean(dice) for mine in organs if (dice := _dice(mine))}
    if len(means) > 1:
        weakest = min(means, key=means.__getitem__)
        told += f" Weakest: {weakest}, {means[weakest]:.3f}."
    for status, count in ((MISSED, mean.n_missed), (FALSE_POSITIVE, mean.n_false_positive)):
        if count:
            names = sorted({_organ(score) for mine in organs for score in mine if score.status == status})
            told += f" {_WORDS[status].capitalize()} {_count(count, 'time', 'times')}: {', '.join(names)}."
    return told


def _strip(scores: Sequence[Any]) -> DiceStrip:
    ranked = sorted((score.dice, score.case) for score in scores if not math.isnan(score.dice))
    kept = np.unique(np.linspace(0, len(ranked) - 1, min(len(ranked), _MOST_POINTS)).round().astype(int))
    # Multiples of the golden section spread evenly for any number of points.
    points = tuple((ranked[index][1], ranked[index][0], float(index * 0.618034 % 1)) for index in kept)
    return DiceStrip(_organ(scores[0]), points, float(np.median(_dice(scores))) if ranked else math.nan)


def _weakest(scores: Sequence[Any]) -> list[tuple[str, ...]]:
    """Return the lowest Dice of all cases and organs: case, organ, what happened, Dice."""
    ranked = sorted((score for score in scores if not math.isnan(score.dice)), key=lambda score: score.dice)
    return [(score.case, _organ(score), _WORDS[score.status], f"{score.dice:.3f}") for score in ranked[:_MOST_WEAK]]


def _case_table(organs: Sequence[Sequence[Any]], nouns: Nouns) -> tuple[tuple[str, ...], list[tuple[str, ...]]] | None:
    """Return header and rows of Dice by case and organ; None where there are too many for a page."""
    cases: dict[str, list[str]] = {}
    for mine in organs:
        for score in mine:
            cases.setdefault(score.case, []).append(text_number(score.dice, 3))
    if len(cases) > _MOST_CASES:
        return None
    return (nouns.case, *(_organ(mine[0]) for mine in organs)), [(case, *dice) for case, dice in cases.items()]


def _dice(scores: Sequence[Any]) -> list[float]:
    return [score.dice for score in scores if not math.isnan(score.dice)]


def _organ(score: Any) -> str:
    content = row_content(score)
    return content.get("organ") or content["class"]


def _count(number: int, noun: str, plural: str) -> str:
    return f"{number} {noun if number == 1 else plural}"
