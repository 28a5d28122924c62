# SPDX-License-Identifier: Apache-2.0
"""An evaluation protocol: how one case is scored, how all cases are summarised, and how the report is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.tables import ShownTable, columns_of


@dataclass(frozen=True)
class Protocol:
    """How cases are scored and classes summarised, and what the files and their columns are called.

    `score(case, prediction, label, organs, spacing_mm)` returns score rows with `case` and `label`; `summarise(rows)`
    returns `summary_row`s with the row `mean` last; `shown(summary rows)` turns them into a table. `pooled(rows,
    summary rows)`, if there is one, returns the figures of all cases together, for `summary.json`. `kind` is what the
    protocol is for, "scans" or "slides". The tables are `files` (cases, classes); `suffix` is part of every file name.
    `definitions` explains the figures in the summary.
    """

    name: str
    kind: str
    score: Callable[..., list[Any]]
    summarise: Callable[[Sequence[Any]], list[Any]]
    shown: Callable[[Sequence[Any]], ShownTable]
    summary_row: type
    per_case_columns: tuple[str, ...]
    definitions: Mapping[str, str]
    files: tuple[str, str] = ("per_case", "per_organ")
    suffix: str = ""
    pooled: Callable[[Sequence[Any], Sequence[Any]], dict[str, Any]] | None = None

    @property
    def per_organ_columns(self) -> tuple[str, ...]:
        """Names of the columns of the table of classes: all that a summary row has."""
        return columns_of(self.summary_row)

    @property
    def page_name(self) -> str:
        """Name of the page of a report."""
        return f"report{self.suffix}.html"

    def table(self, rows: Sequence[Any]) -> str:
        """Return summary rows as a table for the console."""
        return self.shown(rows).text()

    def file_names(self) -> tuple[str, str, str]:
        """Return the names of the case table, the organ table and the summary."""
        cases, classes = self.files
        return f"{cases}{self.suffix}.csv", f"{classes}{self.suffix}.csv", f"summary{self.suffix}.json"
