# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from pipeline.comparison import Comparison, Run, arrange, read_runs
from pipeline.comparison.cost import Cost, image_shape, latency_ms
from pipeline.comparison.page import page_html
from pipeline.comparison.tables.csv_file import comparison_csv
from pipeline.comparison.tables.rows import ComparisonRow, comparison_rows
from pipeline.comparison.tables.table import (
    comparison_markdown,
    comparison_tables,
    legend,
    notes,
)
from pipeline.networks import build_network, load_model
from tests.comparison.run_folders import make_scan_run, make_slide_run, taught_by

CASES = [f"case_{index}" for index in range(8)]


def dice_of(shift: float, liver: float = 0.5) -> dict[str, dict[str, float]]:
    """Eight cases: the liver alike in all but for `shift`, the spleen missed in the first case."""
    return {
        case: {"liver": liver + shift, "spleen": 0.0 if index == 0 else 0.4 + shift} for index, case in enumerate(CASES)
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    """Teacher 0.2 above the student, kd 0.1 above, graph_flow as it is."""
    folder = tmp_path_factory.mktemp("runs")
    teacher = make_scan_run(folder / "teacher", dice_of(0.2), hd95_mm=1, network="fanet", width=0.0625)
    paths = {
        "teacher": teacher,
        "alone": make_scan_run(folder / "alone", dice_of(0.0)),
        "kd": make_scan_run(folder / "kd", dice_of(0.1), hd95_mm=2, distillation=taught_by(teacher)),
        "graph": make_scan_run(folder / "graph", dice_of(0.0), distillation=taught_by(teacher, "graph_flow")),
    }
    return dict(zip(paths, read_runs(paths.values()), strict=True))


@pytest.fixture(scope="module")
def comparison(runs) -> Comparison:
    return arrange(list(runs.values()))


@pytest.fixture(scope="module")
def rows(comparison) -> list[ComparisonRow]:
    return comparison_rows(comparison)


@pytest.fixture
def measured(monkeypatch) -> None:
    """Costs that take no time."""
    monkeypatch.setattr(
        "pipeline.comparison.tables.rows.costs_of", lambda arms: [Cost(1_000_000, 2_000_000_000, 3.0) for _ in arms]
    )


def cells(comparison: Comparison, rows: list[ComparisonRow]) -> dict[str, dict[str, str]]:
    read = csv.DictReader(io.StringIO(comparison_csv(comparison, rows)))
    return {row["label"]: row for row in read}


class TestRows:
    def test_figures_of_arms(self, rows):
        teacher, alone, _, kd = rows
        # Liver 0.5; spleen seven times 0.4 and once 0.
        assert alone.metrics["dice"].mean == pytest.approx((0.5 + 0.35) / 2)
        assert teacher.metrics["dice"].mean == pytest.approx((0.7 + 7 * 0.6 / 8) / 2)
        assert math.isnan(alone.metrics["dice"].sd)
        assert alone.organs["spleen"].dice_mean == pytest.approx(0.35)
        # Seven times 3 mm and once the diagonal of 10 mm.
        assert alone.organs["spleen"].hd95_penalised == pytest.approx(31 / 8)
        assert alone.metrics["hd95_penalised_mm"].mean == pytest.approx((3 + 31 / 8) / 2)
        assert (alone.organs["spleen"].hd95_median, alone.hd95_median) == (3.0, 3.0)
        assert (alone.organs["spleen"].n_missed, alone.n_missed, kd.n_missed) == (1, 1, 1)
        assert alone.metrics["dice"].difference is None
        assert [row.arm.label for row in rows] == [
            "teacher FANet 0.0625",
            "ENet alone",
            "ENet + graph_flow",
            "ENet + kd",
        ]

    def test_what_a_method_changes(self, rows):
        kd = rows[3].metrics["dice"]
        assert kd.difference.value == pytest.approx((0.1 + 7 * 0.1 / 8) / 2)
        assert kd.difference.low > 0
        # Eight differences on one side: 2 / 2**8, corrected for one method, since the other has no p.
        assert kd.difference.p == pytest.approx(2 / 256)
        assert kd.p_holm == pytest.approx(2 / 256)
        assert (kd.gap.share, kd.gap.note, kd.test_note) == (pytest.approx(0.5), "", "")
        assert rows[3].metrics["hd95_penalised_mm"].gap.share == pytest.approx(0.5)

    def test_a_method_that_changes_nothing(self, rows):
        graph = rows[2].metrics["dice"]
        assert (graph.difference.value, graph.difference.includes_zero) == (0, True)
        assert math.isnan(graph.p_holm)
        assert graph.test_note == "only 0 of 8 cases differ at all"
        assert graph.gap.share == 0

    @pytest.mark.usefixtures("measured")
    def test_holm_counts_all_methods_of_a_metric(self, runs):
        again = [runs["teacher"], runs["alone"], runs["kd"], replace(runs["kd"], method="other")]
        rows = comparison_rows(arrange(again))
        assert [row.metrics["dice"].p_holm for row in rows[2:]] == pytest.approx([4 / 256, 4 / 256])

    @pytest.mark.usefixtures("measured")
    def test_seeds(self, runs):
        other = replace(runs["alone"], seed=1, scores=runs["kd"].scores)
        (row, _) = comparison_rows(arrange([runs["alone"], other, runs["graph"]]))
        one, two = (0.5 + 0.35) / 2, (0.6 + 7 * 0.5 / 8) / 2
        assert row.metrics["dice"].mean == pytest.approx((one + two) / 2)
        assert row.metrics["dice"].sd == pytest.approx(abs(one - two) / math.sqrt(2))
        assert row.organs["liver"].dice_sd == pytest.approx(0.1 / math.sqrt(2))

    @pytest.mark.usefixtures("measured")
    @pytest.mark.parametrize(
        ("names", "reason"),
        [(("alone", "kd"), "its teacher is not among the runs"), (("teacher", "kd"), "no run of ENet alone")],
    )
    def test_no_gap_without_teacher_or_student_alone(self, runs, names, reason):
        comparison = arrange([runs[name] for name in names])
        rows = comparison_rows(comparison)
        score = rows[-1].metrics["dice"]
        assert math.isnan(score.gap.share)
        assert score.gap.note == reason
        assert any(reason in note for note in notes(comparison, rows))

    @pytest.mark.usefixtures("measured")
    def test_few_cases_have_a_note_in_place_of_p(self, runs):
        few = [replace(run, scores=run.scores[run.scores["case"] < "case_3"]) for run in runs.values()]
        comparison = arrange(few)
        rows = comparison_rows(comparison)
        assert rows[3].metrics["dice"].test_note == "3 cases: fewer than 6 can never reach p < 0.05"
        table = comparison_tables(comparison, rows)[1]
        assert table.rows[1][1].endswith(" too few")
        assert table.rows[1][2] == "-"

    @pytest.mark.usefixtures("measured")
    def test_distances_stay_empty_where_voxels_have_no_size(self, runs):
        """As in the prepared copy of Synapse, whose reports have no millimetres."""
        empty = dict.fromkeys(("hd95_mm", "hd95_penalised_mm"), math.nan)
        comparison = arrange([replace(run, scores=run.scores.assign(**empty)) for run in runs.values()])
        rows = comparison_rows(comparison)
        assert math.isnan(rows[3].metrics["hd95_penalised_mm"].mean)
        assert rows[3].metrics["hd95_penalised_mm"].difference is None
        assert rows[3].metrics["dice"].gap.share == pytest.approx(0.5)
        assert cells(comparison, rows)["ENet + kd"]["hd95_mm_median"] == ""
        assert "-, -" in comparison_markdown(comparison, rows)


class TestCost:
    def test_costs_are_of_the_network_at_the_run_size(self, rows):
        network = build_network("enet", out_channels=3)
        assert rows[1].cost.parameters == sum(parameter.numel() for parameter in network.parameters())
        assert rows[1].cost is rows[2].cost
        assert 0 < rows[1].cost.multiply_adds < rows[0].cost.multiply_adds
        assert rows[1].cost.latency_ms_cpu_1thread > 0

    def test_sizes_are_padded_to_what_the_network_takes(self, runs):
        model = load_model(runs["alone"].checkpoint)
        assert image_shape(model) == (1, 32, 32)
        assert image_shape(replace(model, size=30)) == (1, 32, 32)

    def test_latency_leaves_the_threads_as_they_were(self, monkeypatch):
        import torch

        used = []
        monkeypatch.setattr(torch, "set_num_threads", used.append)
        assert latency_ms(torch.nn.Conv2d(1, 1, 3, padding=1), (1, 8, 8)) > 0
        assert used == [1, torch.get_num_threads()]


class TestCsv:
    def test_one_row_an_arm_with_long_decimals(self, comparison, rows):
        table = cells(comparison, rows)
        assert list(table) == [arm.label for arm in comparison.arms]
        kd, alone = table["ENet + kd"], table["ENet alone"]
        assert (kd["role"], kd["network"], kd["method"], kd["n_seeds"], kd["seeds"]) == (
            "method",
            "ENet",
            "kd",
            "1",
            "0",
        )
        assert float(kd["dice_difference"]) == pytest.approx((0.1 + 7 * 0.1 / 8) / 2)
        assert (kd["dice_interval_includes_zero"], kd["dice_wilcoxon_p"]) == ("false", "0.0078125")
        assert (alone["dice_difference"], alone["dice_interval_includes_zero"], alone["dice_sd"]) == ("", "", "")
        assert float(kd["dice_gap_closed"]) == pytest.approx(0.5)
        assert float(alone["dice_mean_spleen"]) == pytest.approx(0.35)
        assert alone["n_missed_spleen"] == "1"
        assert float(alone["latency_ms_cpu_1thread"]) > 0
        assert "only 0 of 8 cases differ" in table["ENet + graph_flow"]["test_note"]

    @pytest.mark.usefixtures("measured")
    @pytest.mark.parametrize("name", ["=1+1", "+x", "-x", "@x"])
    def test_names_do_not_become_formulas(self, runs, name):
        renamed = [replace(runs["alone"], network=name), replace(runs["kd"], network=name)]
        comparison = arrange(renamed)
        text = comparison_csv(comparison, comparison_rows(comparison))
        written = {cell for line in csv.reader(io.StringIO(text)) for cell in line}
        assert f"'{name}" in written
        assert not [cell for cell in written if cell[:1] in "=+@" and cell]

    def test_an_organ_named_like_a_formula_is_inside_a_column_name(self, comparison, rows):
        odd = [replace(row, organs={"=liver": row.organs["liver"]}) for row in rows]
        header = comparison_csv(comparison, odd).splitlines()[0].split(",")
        assert "dice_mean_=liver" in header
        assert not [name for name in header if name.startswith("=")]


class Tables(HTMLParser):
    """Collects captions, cells and abbreviations."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.found = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.found.append((self.open[-1] if self.open else "", data))


class TestText:
    def test_markdown_is_aligned(self, comparison, rows):
        blocks = comparison_markdown(comparison, rows).split("\n\n")
        tables = [block.splitlines() for block in blocks if block.startswith("|")]
        assert len(tables) == 6
        for lines in tables:
            assert len({len(line) for line in lines}) == 1
            assert len(lines) == 2 + (2 if "change of" in lines[0] else 4)

    def test_marks(self, comparison, rows):
        text = comparison_markdown(comparison, rows)
        graph = next(line for line in text.splitlines() if line.startswith("| ENet + graph_flow") and " to " in line)
        kd = next(line for line in text.splitlines() if line.startswith("| ENet + kd") and " to " in line)
        assert "0.000 (0.000 to 0.000) n.s." in graph
        assert "n.s." not in kd
        assert "50 %" in kd
        assert "0.008" in kd
        assert "- n.s.: the interval includes zero, no difference is shown." in text

    def test_lower_is_better_has_a_true_minus(self, comparison, rows):
        kd = comparison_tables(comparison, rows)[1].rows[1]
        assert kd[4].startswith("−0.9")

    def test_html_says_the_same_as_the_tables(self, comparison, rows):
        tables = comparison_tables(comparison, rows)
        parsed = Tables(page_html(comparison, rows, []))
        captions = [data for tag, data in parsed.found if tag == "caption"]
        assert captions == [*(table.caption for table in tables), "Runs"]
        told = "".join(data for tag, data in parsed.found if tag in ("td", "abbr"))
        assert told.startswith("".join(cell for table in tables for line in table.rows for cell in line[1:]))
        assert [data for tag, data in parsed.found if tag == "abbr"] == ["n.s.", "n.s."]

    @pytest.mark.usefixtures("measured")
    def test_names_stay_text(self, runs):
        comparison = arrange([replace(runs[name], network="<b>|*x*") for name in ("alone", "kd")], "<script>a|b")
        rows = comparison_rows(comparison)
        markdown = comparison_markdown(comparison, rows)
        assert "<script>" not in markdown
        assert "&lt;b>\\|\\*x\\* alone" in markdown
        assert markdown.startswith("# &lt;script>a\\|b\n")
        page = page_html(comparison, rows, [])
        assert "<b>" not in page
        assert "&lt;b&gt;|*x* alone" in page

    def test_the_legend_says_what_latency_is(self, comparison):
        assert "one thread" in legend(comparison)[-1]
        assert "mIoU" not in " ".join(legend(comparison))


def squares(shift: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    maps = {}
    for index in range(7):
        label, prediction = np.zeros((2, 12, 12), dtype=np.uint8)
        label[2:8, 2 : 4 + index] = 1
        prediction[2 + shift : 8 + shift, 2 : 4 + index] = 1
        maps[f"image_{index}"] = (prediction, label)
    return maps


@pytest.mark.usefixtures("measured")
def test_slides(tmp_path):
    alone = make_slide_run(tmp_path / "alone", squares(2), {1: "cancer"})
    kd = make_slide_run(tmp_path / "kd", squares(1), {1: "cancer"}, distillation=taught_by("ab"))
    comparison = arrange(read_runs([alone, kd]))
    rows = comparison_rows(comparison)
    # Two of six rows are wrong on each side: columns 2 to 8, 2 * 2 * 35 of 7 * 144 pixels.
    assert rows[0].metrics["accuracy"].mean == pytest.approx(1 - 4 * 35 / (7 * 144))
    assert rows[0].metrics["dice"].mean == pytest.approx(4 / 6)
    assert rows[1].metrics["accuracy"].difference.value == pytest.approx(2 * 35 / (7 * 144))
    assert rows[1].metrics["dice"].difference.low == pytest.approx(1 / 6, abs=1e-6)
    assert set(rows[1].metrics) == {"accuracy", "miou", "dice", "hd95_penalised_px"}
    assert rows[1].organs == {}
    header = cells(comparison, rows)["ENet + kd"]
    assert {"accuracy_mean", "miou_wilcoxon_p_holm", "hd95_penalised_px_mean", "hd95_px_median"} <= set(header)
    assert len(comparison_tables(comparison, rows)) == 3
    assert any("mIoU are of all pixels together" in line for line in legend(comparison))
