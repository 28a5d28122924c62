# SPDX-License-Identifier: Apache-2.0
"""The page of a report: what it says, that it stands alone, and that names from files are only text."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from pipeline.evaluation import FULL, MM, TRANSUNET, score_case, score_image, write_report
from pipeline.evaluation.page import page_html
from pipeline.evaluation.provenance import describe_run

ORGANS = {1: "liver", 2: "<b>spleen</b> & co"}


def cube(value: int, start: int = 2) -> np.ndarray:
    labels = np.zeros((10, 9, 8), dtype=np.uint8)
    labels[start : start + 4, 2:6, 2:6] = value
    return labels


def scores(score=score_case, **more):
    """Liver of a: 0.75, of b: 1; spleen of a: absent, of b: missed."""
    label = cube(1)
    label[8:, 8:, 7:] = 2
    pairs = {"a": (cube(1, start=3), cube(1)), "b": (cube(1), label)}
    return [row for case, pair in pairs.items() for row in score(case, *pair, ORGANS, (1.0, 1.0, 1.0), **more)]


def page(protocol=MM, rows=None, **description) -> str:
    rows = scores() if rows is None else rows
    return page_html(protocol, rows, protocol.summarise(rows), description)


class Elements(HTMLParser):
    """Collects tags and text, and the tags that are not closed in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "circle", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag != "circle":
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_what_it_says_by_hand():
    text = page(dataset="toy")
    assert "<h1>Scores of 2 cases of toy</h1>" in text
    # Liver (0.75 + 1) / 2 = 0.875, spleen 0 in its only case; the mean of both is 0.4375.
    assert "Mean Dice 0.438 over 2 organs" in text
    assert "Weakest: &lt;b&gt;spleen&lt;/b&gt; &amp; co, 0.000. Missed 1 time: &lt;b&gt;spleen" in text
    assert re.search(r'<circle cx="75\.00%" [^>]*><title>a: 0\.750</title>', text)
    assert re.search(r'class="median" x1="87\.50%"', text)
    rows = re.findall(r'<tr><th scope="row">([ab])</th><td>([^<]*)</td><td>([a-z ]+)</td><td>([\d.]+)</td></tr>', text)
    assert [(case, status, dice) for case, _, status, dice in rows] == [
        ("b", "missed", "0.000"),
        ("a", "in both", "0.750"),
        ("b", "in both", "1.000"),
    ]


def test_names_are_text_and_the_page_needs_nothing_else():
    elements = Elements(
        page(predictions="<script>", labels="x", missing_predictions=["c"], predictions_without_label=[])
    )
    assert elements.open == []
    tags = {tag for tag, _ in elements.tags}
    assert not tags & {"script", "link", "img", "iframe", "b"}
    assert all(value.startswith("#") for _, found in elements.tags for key, value in found.items() if key == "href")
    assert ORGANS[2] in elements.texts


def test_every_link_has_its_place():
    found = Elements(page()).tags
    targets = {attributes["href"][1:] for tag, attributes in found if tag == "a"}
    assert targets == {attributes["id"] for tag, attributes in found if tag == "section"}


def test_where_the_figures_come_from():
    text = page(
        checkpoint={"path": "runs/model.pt", "sha256": "ab" * 32},
        **{key: value for key, value in describe_run().items() if key != "checkpoint"},
    )
    assert "runs/model.pt" in text
    assert "abababababab" in text
    assert "nibabel" in text


@pytest.mark.parametrize("protocol", [MM, TRANSUNET])
def test_each_protocol_has_a_page_of_its_own(tmp_path, protocol):
    rows = [row for case in ("a", "b") for row in protocol.score(case, cube(1), cube(1), ORGANS, (1.0, 1.0, 1.0))]
    write_report(tmp_path, protocol, rows, {})
    text = (tmp_path / protocol.page_name).read_text(encoding="utf-8")
    assert "Scores of 2 cases" in text
    assert protocol.file_names()[0] in text
    if protocol is MM:
        assert "no case has it" in text  # the spleen


def test_pages_of_slides_speak_of_images_and_classes():
    rows = [row for case in ("a", "b") for row in score_image(case, cube(1)[..., 3], cube(1, 3)[..., 3], {1: "cancer"})]
    text = page(FULL, rows)
    assert "Scores of 2 images" in text
    assert "Mean Dice 0.750 over 1 class" in text
    assert "ACC " in text


def test_thousands_of_cases_make_no_large_page():
    many = [
        row for index in range(1000) for row in score_case(f"c{index:04}", cube(1, index % 5), cube(1), ORGANS, None)
    ]
    text = page(rows=many)
    assert "<summary>" not in text
    assert text.count("<circle") == 300
    assert len(text) < 100_000
    lowest = min(row.dice for row in many if not math.isnan(row.dice))
    assert f'cx="{100 * lowest:.2f}%"' in text
