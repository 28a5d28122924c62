# SPDX-License-Identifier: Apache-2.0
"""The look of arms in every picture of a comparison, and saving of pictures so that equal figures are equal files.

Colours are Okabe and Ito's, which colour-blind people can tell apart. Each arm also has its own marker, line and hatch,
so that pictures can be read without colours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from pipeline.comparison.arms import ALONE, METHOD, TEACHER, Arm, Comparison
from pipeline.files.atomic import replace_when_complete

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Counts without a common divisor: 6 x 7 methods before a pair of colour and marker comes again.
_MARKERS = ("s", "D", "^", "v", "P", "X", "h")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_HATCHES = ("//", "\\\\", "xx", "..", "++")
# Marker, line and hatch of the student alone, and of further ways to train it without a teacher.
_ALONE = (("o", (0, (4, 2)), ""), ("p", (0, (1, 1)), "||"), ("<", (0, (8, 2)), "--"), ("8", (0, (2, 4)), "oo"))
_BLACK, _GREY = "#000000", "#6E6E6E"
PNG_DPI = 150
_SETTINGS = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "comparison",  # else ids within an SVG differ from run to run
    "svg.fonttype": "path",  # the reader need not have the font
}


@dataclass(frozen=True)
class ArmStyle:
    """Colour, marker, line and hatch of one arm."""

    colour: str
    marker: str
    line: str | tuple[int, tuple[int, ...]]
    hatch: str


@dataclass(frozen=True)
class Picture:
    """One picture of a comparison as files.

    Attributes:
        title: a few words.
        caption: what is shown and how it was chosen.
        alt: what a reader who cannot see the picture should know.
        png: the picture.
        svg: the same without pixels, None where there is none.
    """

    title: str
    caption: str
    alt: str
    png: Path
    svg: Path | None = None


def arm_styles(comparison: Comparison) -> dict[str, ArmStyle]:
    """Return the style of each arm by its label: teachers black, students alone grey, methods coloured.

    A method has the same colour and marker whichever student network it was used on; so has a way of training alone.
    """
    alone = list(dict.fromkeys(arm.method for arm in comparison.arms if arm.role == ALONE))
    methods = list(dict.fromkeys(arm.method for arm in comparison.arms if arm.role == METHOD))
    return {arm.label: _style(arm, alone if arm.role == ALONE else methods) for arm in comparison.arms}


def _style(arm: Arm, names: list[str | None]) -> ArmStyle:
    if arm.role == TEACHER:
        return ArmStyle(_BLACK, "*", "-", "")
    index = names.index(arm.method)
    if arm.role == ALONE:
        marker, line, hatch = _ALONE[index % len(_ALONE)]
        return ArmStyle(_GREY, marker, line, hatch)
    return ArmStyle(*(values[index % len(values)] for values in (_COLOURS, _MARKERS, _LINES, _HATCHES)))


def families(comparison: Comparison) -> list[tuple[str, list[Arm]]]:
    """Return for each student network its name and its arms, the teachers first."""
    teachers = [arm for arm in comparison.arms if arm.role == TEACHER]
    students = [arm for arm in comparison.arms if arm.role != TEACHER]
    networks = dict.fromkeys(arm.network for arm in students)
    return [(network, teachers + [arm for arm in students if arm.network == network]) for network in networks]


@contextmanager
def picture_style() -> Iterator[None]:
    """Draw and save within this: one look for all pictures, whatever the user's matplotlib is set to."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def save_picture(figure: Figure, path: Path) -> tuple[Path, Path]:
    """Write `path` with the endings .png and .svg, without dates, and return both; call it within `picture_style`."""
    png, svg = path.with_name(f"{path.name}.png"), path.with_name(f"{path.name}.svg")
    with replace_when_complete(png) as temporary:
        figure.savefig(temporary, dpi=PNG_DPI, metadata={"Software": None})
    with replace_when_complete(svg) as temporary:
        figure.savefig(temporary, dpi=PNG_DPI, metadata={"Date": None, "Creator": None})
    return png, svg
