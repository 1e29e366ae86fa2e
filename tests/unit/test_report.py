# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports: reading result files strictly, tables, Markdown, and what the command refuses."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from fastsocket.bench.modes import Mode
from fastsocket.bench.scenarios import SCENARIOS
from fastsocket.cli.report import command
from fastsocket.errors import ConflictError, FastsocketError, UsageError
from fastsocket.report.chart import Bar, Interval, Series, bar_chart, interval_chart, line_chart
from fastsocket.report.chart import ticks as chart_ticks
from fastsocket.report.metrics import HEADLINES, compare, interval, number
from fastsocket.report.metrics import SCENARIOS as HEADINGS
from fastsocket.report.results import load_results
from fastsocket.report.sections import result_sections
from fastsocket.report.tables import Cell, Table, markdown, metric_table, mode_order

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parents[1] / "golden" / "report"


def document(name: str) -> Any:
    """Return a made-up result file, of the shape that bench writes, for a test to change."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])


def written(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    files = [
        written(tmp_path, "short.json", document("short")),
        written(tmp_path, "scale.json", document("scale")),
        written(tmp_path, "crash.json", document("crash")),
    ]
    out = tmp_path / "out.html"
    result = run(*files, "-o", out, "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["sections"][0] == "Short connections: nginx"
    page = out.read_text()
    assert "default-src 'none'" in page
    for reference in ("http://", "https://", "<script", "<link", "@import", "url("):
        assert reference not in page
    assert "Connections lost" in page
    assert page.count("<svg") == page.count("<figure")
    assert page.count('role="img"') == page.count("<svg")


def test_names_from_a_result_file_cannot_become_markup(tmp_path: Path) -> None:
    hostile = document("short")
    hostile["host"]["model"] = "<img src=x onerror=alert(1)>"
    hostile["modes"]["<b>mode</b>"] = hostile["modes"]["stock"]
    out = tmp_path / "out.html"
    assert run(written(tmp_path, "short.json", hostile), "-o", out).exit_code == 0
    page = out.read_text()
    assert "<img" not in page
    assert "<b>" not in page
    assert "&lt;img src=x" in page


def test_each_scenario_and_mode_has_its_place() -> None:
    assert HEADINGS.keys() == SCENARIOS.keys()
    assert HEADLINES.keys() == SCENARIOS.keys() - {"scale", "lean"}
    assert all(name in SCENARIOS[scenario].metrics for scenario, name in HEADLINES.items())
    order = mode_order(["other", *sorted(Mode)])
    assert order[0] == "stock"
    assert order[-2:] == ["fastsocket", "other"]
    assert order.index("no-skb-defer") < order.index("fastsocket")


def test_figures_reach_the_table_with_interval_and_verdict(tmp_path: Path) -> None:
    (result,) = load_results(written(tmp_path, "short.json", document("short")))
    table = metric_table(result)
    rows = {row[0].text: row for row in table.rows}
    assert list(table.header) == [
        "Metric",
        "stock",
        "reuseport",
        "fastsocket",
        "fastsocket / stock",
    ]
    cps = rows["Connections per second"]
    assert cps[1] == Cell("21,000", "[20,000–22,000]")
    assert cps[4] == Cell("1.25×", "[1.20–1.31]", "better")
    assert rows["CPU time per connection"][4].tone == "better"
    assert rows["Latency, median"][4].tone == "no difference shown"
    assert rows["Lock contentions per 1,000 connections"][1].text == "needs root"


def test_notes_interruption_and_call_sites_are_shown(tmp_path: Path) -> None:
    stopped = {**document("short"), "interrupted": True}
    section = result_sections(load_results(written(tmp_path, "short.json", stopped)))[0]
    assert "interrupted" in section.text[0]
    assert section.text[1] == "The load generator shared the CPUs with the server."
    sites = section.tables[1]
    assert [row[0].text for row in sites.rows] == ["inet_csk_accept", "__inet_lookup_established"]
    assert [cell.text for cell in sites.rows[0]] == ["inet_csk_accept", "140", "0.400"]
    woken = section.tables[2]
    assert woken.caption.startswith("Reschedule interrupts per 1,000 connections by woken task")
    assert [[cell.text for cell in row] for row in woken.rows] == [
        ["nginx", "210", "0"],
        ["rcu_preempt", "2.10", "1.20"],
    ]


def test_a_host_that_all_results_share_stands_once(tmp_path: Path) -> None:
    other = document("crash")
    alike = [document("short"), document("crash")]
    (tmp_path / "both.json").write_text(json.dumps({"results": alike}))
    sections = result_sections(load_results(tmp_path / "both.json"))
    assert [section.key for section in sections] == ["result-0", "result-1", "crash", "host"]
    other["host"]["kernel"] = "6.12.0"
    (tmp_path / "both.json").write_text(json.dumps({"results": [document("short"), other]}))
    sections = result_sections(load_results(tmp_path / "both.json"))
    assert [section.key for section in sections] == ["result-0", "result-1", "crash"]
    assert ("Kernel", "6.12.0") in sections[1].facts


def test_losses_are_summed_over_rounds_and_servers(tmp_path: Path) -> None:
    one, other = document("crash"), document("crash")
    other["server"] = "haproxy"
    del other["modes"]["reuseport"]
    (tmp_path / "both.json").write_text(json.dumps({"results": [one, other]}))
    (table,) = result_sections(load_results(tmp_path / "both.json"))[-2].tables
    lost = table.header.index("Connections lost")
    sums = {(row[0].text, row[1].text): row[lost].text for row in table.rows}
    each = {mode: sum(metrics["lost"]["samples"]) for mode, metrics in one["modes"].items()}
    assert sums["haproxy", "stock"] == f"{each['stock']:,.0f}"
    assert sums["all", "stock"] == f"{2 * each['stock']:,.0f}"
    assert sums["all", "reuseport"] == f"{each['reuseport']:,.0f}"
    assert each["reuseport"] > 0
    assert ("haproxy", "reuseport") not in sums


def test_markdown_has_the_tables_of_the_page(tmp_path: Path) -> None:
    path = written(tmp_path, "scale.json", document("scale"))
    result = run(path, "--markdown")
    assert result.exit_code == 0
    assert "| 24 | 143,000 [140,000–146,000] |" in result.stdout
    assert "| stock | refused: 5 core counts" in result.stdout
    out = tmp_path / "evaluation.md"
    assert run(path, "--markdown", "-o", out).exit_code == 0
    assert out.read_text() == result.stdout
    assert result.stdout.startswith("# Fastsocket: measured\n")
    # Written again, it is known as a report and replaced.
    assert run(path, "--markdown", "--title", "Anew", "-o", out).exit_code == 0
    assert out.read_text().startswith("# Anew\n")


def test_markdown_cells_cannot_break_their_table() -> None:
    table = Table("", ["a", "b"], [[Cell("x|y"), Cell("1\n2", "[0–3]", "worse")]])
    assert markdown(table).splitlines()[2] == "| x\\|y | 1 2 [0–3], worse |"


def without(*path: str) -> dict[str, Any]:
    whole = document("short")
    at = whole
    for key in path[:-1]:
        at = at[key]
    del at[path[-1]]
    return dict(whole)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "cut short"),
        ('{"scenario": "short", "host": {"kern', "cut short"),
        ("[1, 2]", "not a result file of this version"),
        (without("host", "kernel"), "`kernel`"),
        (without("modes"), "`modes`"),
        (without("modes", "stock", "cps", "unit"), "`unit`"),
        ({**document("short"), "modes": {}}, "no finished round"),
        ({**document("short"), "format": 2}, "written by another version"),
        ({"results": 3}, "not a result file of this version"),
    ],
)
def test_bad_files_get_one_clear_line_and_nothing_is_overwritten(
    tmp_path: Path, content: Any, said: str
) -> None:
    good, out = written(tmp_path, "good.json", document("short")), tmp_path / "out.html"
    assert run(good, "-o", out).exit_code == 0
    before = out.read_bytes()
    bad = written(tmp_path, "bad.json", content)
    result = run(good, bad, "-o", out)
    assert isinstance(result.exception, UsageError)
    assert said in str(result.exception)
    assert "bad.json" in str(result.exception)
    assert "\n" not in str(result.exception)
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.json", "good.json", "out.html"]


def test_a_file_that_is_no_report_is_never_overwritten(tmp_path: Path) -> None:
    good = written(tmp_path, "good.json", document("short"))
    before = good.read_bytes()
    result = run(good, "-o", good)
    assert isinstance(result.exception, ConflictError)
    assert good.read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [[], ["missing.json", "-o", "x.html"], ["x.json"], ["x.json", "--markdown", "--json"]],
)
def test_usage_errors_are_one_line(words: list[str]) -> None:
    result = run(*words)
    assert isinstance(result.exception, FastsocketError)
    assert "\n" not in str(result.exception)


def test_output_folder_must_exist(tmp_path: Path) -> None:
    good = written(tmp_path, "good.json", document("short"))
    result = run(good, "-o", tmp_path / "none" / "out.html")
    assert isinstance(result.exception, UsageError)
    assert "there is no folder" in str(result.exception)


@pytest.mark.parametrize("place", [Path("/dev/null"), Path("/tmp")])
def test_devices_and_folders_are_never_replaced(tmp_path: Path, place: Path) -> None:
    result = run(written(tmp_path, "good.json", document("short")), "-o", place)
    assert isinstance(result.exception, UsageError)
    assert "no regular file" in str(result.exception)
    assert not place.is_file()


@given(st.floats(1e-6, 1e12))
def test_ticks_start_at_zero_reach_the_top_and_are_few(top: float) -> None:
    steps = chart_ticks(top)
    assert steps[0] == 0
    assert steps[-1] >= top * (1 - 1e-9)
    assert 3 <= len(steps) <= 8


def test_numbers_keep_the_digits_that_matter() -> None:
    values = (None, 0, 12345.6, 412.3, 41.54, 7.007, 0.1, 0.01362)
    texts = ["–", "0", "12,346", "412", "41.5", "7.01", "0.100", "0.0136"]
    assert [number(value) for value in values] == texts
    assert interval(1.0, 1.0) == ""
    assert interval(None, 2.0) == ""


def test_comparison_claims_nothing_that_the_interval_does_not_show() -> None:
    assert compare("cps", 1.01, 1.2, 6) == "better"
    assert compare("cps", 0.8, 0.99, 6) == "worse"
    assert compare("p99_us", 0.8, 0.99, 6) == "better"
    assert compare("cps", 0.99, 1.2, 6) == "no difference shown"
    assert compare("cps", 1.01, 1.2, 5) == "too few rounds for a claim"
    assert compare("kills", 2, 3, 6) == ""
    assert compare("cps", None, None, 6) == ""


def test_two_rounds_claim_nothing_on_the_page(tmp_path: Path) -> None:
    few = {**document("short"), "rounds": 2}
    out = tmp_path / "out.html"
    assert run(written(tmp_path, "short.json", few), "-o", out).exit_code == 0
    page = out.read_text()
    assert "too few rounds for a claim" in page
    assert 'class="tone better"' not in page


def test_ratios_of_few_rounds_claim_nothing_and_say_of_how_many(tmp_path: Path) -> None:
    short = document("short")
    short["ratios"]["fastsocket/stock"]["cps"]["pairs"] = 3
    (result,) = load_results(written(tmp_path, "short.json", short))
    row = next(row for row in metric_table(result).rows if row[0].text == "Connections per second")
    assert row[-1].interval.endswith(f"in 3 of {short['rounds']} rounds")
    assert row[-1].tone == "too few rounds for a claim"


def test_rounds_are_counted_where_the_file_does_not_say(tmp_path: Path) -> None:
    bare = document("short")
    del bare["rounds"]
    (result,) = load_results(written(tmp_path, "short.json", bare))
    assert result.round_count() == 3


def test_labels_of_lines_that_end_together_do_not_overlap() -> None:
    series = [
        Series(name, "other", [(1, 1, None, None), (2, 50 + k, None, None)])
        for k, name in enumerate("abc")
    ]
    chart = line_chart("t", "d", series, x_label="", x_ticks=[1, 2], write_x=str, write_y=str)
    heights = sorted(
        float(text.get("y", "")) for text in chart.iter("text") if "name" in text.get("class", "")
    )
    assert all(after - before >= 14.9 for before, after in pairwise(heights))


def test_charts_say_in_words_what_they_show() -> None:
    bars = bar_chart(
        "Use",
        "2 CPUs",
        [Bar("0", [("rest", 30)]), Bar("1", [("rest", 60)])],
        x_label="CPU",
        write_y=str,
        top=100,
    )
    rows = interval_chart(
        "Ratio", "one row", [Interval("cps", "fastsocket", 1.2, 1.1, 1.3, "1.20×")]
    )
    for chart, words in ((bars, "Use. 2 CPUs"), (rows, "Ratio. one row")):
        assert chart.get("role") == "img"
        assert chart.get("aria-label") == words
    sizes = [float(bar.get("height", "")) for bar in bars.iter("rect")]
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=1e-3)
