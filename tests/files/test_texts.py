# SPDX-License-Identifier: Apache-2.0
"""Text as editors and spreadsheets leave it: marks, line ends, separators."""

from __future__ import annotations

import codecs
import csv

import pytest

from pipeline.files.texts import read_cells, read_json, read_text

TABLE = [["case", "patient"], ["a", "Müller, Anna"], ["b", ""]]


@pytest.mark.parametrize(
    "content",
    [
        "ä\nb\n".encode(),
        codecs.BOM_UTF8 + "ä\r\nb\r\n".encode(),
        "ä\rb\r".encode(),
        codecs.BOM_UTF16_LE + "ä\r\nb\r\n".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "ä\nb\n".encode("utf-16-be"),
    ],
)
def test_marks_and_line_ends(tmp_path, content):
    (tmp_path / "text").write_bytes(content)
    assert read_text(tmp_path / "text") == "ä\nb\n"


def test_json_behind_a_mark(tmp_path):
    (tmp_path / "x.json").write_bytes(codecs.BOM_UTF8 + b'{"a":\r\n 1}')
    assert read_json(tmp_path / "x.json") == {"a": 1}


@pytest.mark.parametrize(
    "text",
    [
        'case,patient\na,"Müller, Anna"\nb,\n',
        "case;patient\r\na;Müller, Anna\r\nb;\r\n",
        "case\tpatient\na\tMüller, Anna\nb\t",
        "sep=;\r\ncase;patient\r\n\r\na;Müller, Anna\r\nb;\r\n;\r\n",
    ],
)
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_separators(tmp_path, text, mark):
    (tmp_path / "x.csv").write_bytes(mark + text.encode())
    assert read_cells(tmp_path / "x.csv") == TABLE


def test_a_cell_of_two_lines(tmp_path):
    (tmp_path / "x.csv").write_bytes(b'a;b\r\n"1\r\n2";3\r\n')
    assert read_cells(tmp_path / "x.csv") == [["a", "b"], ["1\n2", "3"]]


def test_one_column_has_no_separator(tmp_path):
    (tmp_path / "x.csv").write_text("case\na\n")
    assert read_cells(tmp_path / "x.csv") == [["case"], ["a"]]


def test_an_empty_file(tmp_path):
    (tmp_path / "x.csv").write_text("")
    assert read_cells(tmp_path / "x.csv") == []


@pytest.mark.parametrize(("content", "error"), [("ä".encode("latin-1"), UnicodeDecodeError), (b'a\n"b\n', csv.Error)])
def test_what_is_no_text_or_no_table(tmp_path, content, error):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(error):
        read_cells(tmp_path / "x.csv")
