# SPDX-License-Identifier: Apache-2.0
"""The page of a comparison: nothing from elsewhere, nothing for those who see it left unsaid, narrow screens too."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from pipeline.comparison import Comparison, arrange, read_runs
from pipeline.comparison.page import NO_IMAGES, page_html, write_page
from pipeline.comparison.pictures.style import Picture
from pipeline.comparison.tables.rows import ComparisonRow, comparison_rows
from pipeline.errors import InputError
from tests.comparison.run_folders import make_scan_run, taught_by

EVIL = "<script>alert('1')</script> & \"co\""
EVIL_ORGAN = "liver <img src=x>"
# Elements without an end tag.
VOID = ("meta", "img", "br", "link", "hr", "input")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BROWSER_SECONDS = 120


class Page(HTMLParser):
    """What a test asks of a page: its elements in order, texts by element, and whether tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.wrong: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        if not self._open or self._open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        if data.strip():
            self.texts.append((tuple(self._open), data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text_in(self, tag: str) -> str:
        return " ".join(text for path, text in self.texts if tag in path)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> tuple[Comparison, list[ComparisonRow]]:
    """A teacher, a student and one method on seven cases, of which the method changes nothing for certain."""
    folder = tmp_path_factory.mktemp("runs")
    alone = {f"case_{index}": {EVIL_ORGAN: 0.5 + 0.05 * index, "spleen": 0.6} for index in range(7)}
    shifts = (0.1, -0.1, 0.05, -0.05, 0.02, -0.02, 0.0)
    changed = {
        case: {organ: dice + shift for organ, dice in organs.items()}
        for (case, organs), shift in zip(alone.items(), shifts, strict=True)
    }
    teacher = make_scan_run(folder / "teacher", alone, dataset=EVIL)
    paths = [
        teacher,
        make_scan_run(folder / "alone", alone, dataset=EVIL, network="erfnet"),
        make_scan_run(folder / "kd", changed, dataset=EVIL, network="erfnet", distillation=taught_by(teacher)),
    ]
    arranged = arrange(read_runs(paths))
    return arranged, comparison_rows(arranged)


@pytest.fixture
def pictures(tmp_path) -> list[Picture]:
    """A wide picture with SVG and one without, whose words hold markup."""
    Image.new("RGB", (1500, 300), "white").save(tmp_path / "wide.png")
    Image.new("RGB", (300, 300), "white").save(tmp_path / "small.png")
    (tmp_path / "wide.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 5 1"></svg>')
    return [
        Picture("Wide", "A caption", "An alternative", tmp_path / "wide.png", tmp_path / "wide.svg"),
        Picture(EVIL, EVIL, EVIL, tmp_path / "small.png"),
    ]


@pytest.fixture
def text(comparison, pictures) -> str:
    return page_html(*comparison, pictures)


@pytest.fixture
def page(text) -> Page:
    return Page(text)


def test_tags_are_closed_in_order_and_the_page_has_what_browsers_ask_for(text, page):
    assert text.startswith("<!DOCTYPE html>")
    assert page.wrong == []
    assert page.all("html") == [{"lang": "en"}]
    assert {"charset": "utf-8"} in page.all("meta")
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert len(page.all("title")) == len(page.all("h1")) == len(page.all("main")) == 1


def test_nothing_is_fetched_from_elsewhere_and_nothing_runs(text, page):
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.elements}
    addresses = [
        value for _, attributes in page.elements for key, value in attributes.items() if key in ("src", "href")
    ]
    assert addresses
    assert all(value.startswith(("#", "data:image/")) for value in addresses)
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    assert not re.search(r"@import|url\(", page.text_in("style"))


def test_pictures_have_alternatives_sizes_and_captions(page):
    wide, small = page.all("img")
    assert wide["alt"] == "An alternative"
    assert (wide["width"], wide["height"]) == ("960", "192")  # 1500 x 300 pixels at 150 a CSS inch of 96
    assert "min-width:720px" in wide["style"]
    assert small["alt"] == EVIL
    assert "A caption" in page.text_in("figcaption")


def test_the_svg_is_taken_unless_there_is_none_or_a_large_one(comparison, pictures, page, tmp_path):
    wide, small = (image["src"] for image in page.all("img"))
    kind, _, content = wide.partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(content) == (tmp_path / "wide.svg").read_bytes()
    kind, _, content = small.partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content) == (tmp_path / "small.png").read_bytes()
    (tmp_path / "wide.svg").write_bytes(b" " * 400_000)
    assert Page(page_html(*comparison, pictures[:1])).all("img")[0]["src"].startswith("data:image/png")


def test_tables_have_captions_and_named_rows_and_columns(page):
    tables = page.all("table")
    assert len(tables) == len(page.all("caption")) >= 4
    assert {cell["scope"] for cell in page.all("th")} == {"col", "row"}


def test_names_from_files_stay_text(text, page):
    assert EVIL.split(" ")[0] not in text
    assert f"{EVIL}: 7 cases, 1 seed" in "".join(data for path, data in page.texts if path[-1] == "h1")
    assert EVIL_ORGAN in page.text_in("th")
    assert EVIL in page.text_in("figcaption")


def test_marks_of_no_difference_are_explained(page):
    assert "n.s." in page.text_in("td")
    assert "n.s.: the interval includes zero" in page.text_in("li")


def test_every_link_leads_somewhere_and_no_place_has_two_names(page):
    places = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(places)) == len(places)
    assert {link["href"].removeprefix("#") for link in page.all("a")} <= set(places)
    assert len(page.all("a")) == 4 + 2


def test_how_it_was_made(page, comparison):
    made = page.text_in("dd")
    assert "torch" in made
    assert sys.orig_argv[0] in made  # the command that runs now
    runs = page.text_in("td")
    for arm in comparison[0].arms:
        assert arm.runs[0].model_sha256[:12] in runs


def test_pages_for_dark_rooms(page):
    assert {"name": "color-scheme", "content": "light dark"} in page.all("meta")
    assert "@media (prefers-color-scheme: dark)" in page.text_in("style")


@pytest.mark.parametrize("images", [True, False])
def test_what_is_left_out_is_said_with_the_option_to_give(comparison, images):
    assert (NO_IMAGES in page_html(*comparison, [], images)) is not images
    assert "--dataset" in NO_IMAGES


def test_page_is_written_whole_or_not_at_all(comparison, pictures, tmp_path):
    pictures[1].png.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"small\.png"):
        write_page(tmp_path / "page.html", *comparison, pictures)
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here; install the package chromium to run this test")
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_itself_never_scrolls_sideways(text, tmp_path, width):
    # Headless Chromium has no window narrower than 500 pixels, an iframe is as narrow as it is told.
    measure = "document.title = 'width ' + frame.contentDocument.documentElement.scrollWidth"
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    (tmp_path / "outer.html").write_text(
        f'<iframe id="frame" src="page.html" width="{width}" height="800" style="border:0" onload="{measure}"></iframe>'
    )
    shown = run_browser(tmp_path, "--allow-file-access-from-files", "--dump-dom", (tmp_path / "outer.html").as_uri())
    found = re.search(r"<title>width (\d+)</title>", shown)
    assert found, shown[:500]
    assert int(found[1]) <= width


def run_browser(profile: Path, *arguments: str) -> str:
    """Return what headless Chromium prints."""
    command = [BROWSER, "--headless", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile / 'profile'}"]
    command += ["--no-sandbox"] if os.geteuid() == 0 else []
    return subprocess.run(
        [*command, "--virtual-time-budget=5000", *arguments],
        capture_output=True,
        text=True,
        timeout=BROWSER_SECONDS,
        check=True,
    ).stdout
