"""Tables and charts say what the reports say, and the published ones are current."""

import doctest
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import charts, report, tables
from benchmarks.tables import Report
from tests.paths import ROOT

ALL = ["dense", "sparse", "multivector"]
SCENARIOS = {"query 16": "query", "clients 4": "clients", "rerank 20": "rerank", "1x128": "shapes", "mix": "bulk"}
FASTER = {"bgem3 int8": 1.0, "bgem3 fp32": 2.0, "bge-m3-lite int8": 1.25, "OpenVINO fp32": 0.5, "OpenVINO int8": 4.0}
FASTER |= {"optimum ONNX fp32": 2.5, "FlagEmbedding fp32": 8.0}


@pytest.fixture
def sample() -> Report:
    """A report in which each encoder takes a multiple of a second a call, on texts of 100 tokens."""
    encoders: dict[str, Any] = {}
    for label, seconds in FASTER.items():
        cell = {"seconds": [[seconds, seconds * 1.2], [seconds]], "wall_s": [seconds, seconds]}
        name = label.rpartition(" ")[0]
        encoders[label] = {
            "kind": name,
            "scenarios": dict.fromkeys(SCENARIOS, cell),
            "versions": {name: "1.2"},
            "disk_bytes": 57e7,
            "cold_start_s": [1.5, 9.9, 1.6],
            "peak_rss_bytes": 1e9 * seconds,
            "agreement": {"dense_min_cosine": 0.9991},
        }
    encoders["OpenVINO int8"]["scenarios"] |= {"rerank 20": {"not_run": "no answer within 600 s"}}
    encoders["a|b fp32"] = {"kind": "a|b", "not_run": "no GPU", "scenarios": {}}
    settings = {"model": {"n_layers": 24, "hidden_size": 1024}, "weights": "random", "n_turns": 2, "note": "A note."}
    return {
        "environment": {"processor": "A Processor", "n_threads": 2, "versions": {"bgem3": "0.1.0"}},
        "settings": settings,
        "scenarios": {
            name: {
                "group": group,
                "outputs": ALL,
                "is_single": group in ("query", "clients"),
                "n_clients": 4 if group == "clients" else 1,
                "n_texts": 2,
                "n_tokens": 200,
            }
            for name, group in SCENARIOS.items()
        },
        "encoders": encoders,
        "cpus_used_by_others": [0.01, None, 0.5],
    }


def rows(table: str) -> list[list[str]]:
    """Return a table's cells, without the line below its titles."""
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines if "---" not in line[0]]


def test_seconds_become_medians_rates_and_ratios_to_bgem3(sample: Report) -> None:
    mix, clients = (tables.timings(sample, name)["OpenVINO int8"] for name in ("mix", "clients 4"))
    assert (mix.p50, mix.turns) == (4.0, [pytest.approx(4.4), 4.0])
    assert mix.tokens_per_s == 200 / 4.0
    assert clients.tokens_per_s == 100 * 3 / 8.0, "three calls of one text in eight seconds on the wall"
    assert tables.ratios(sample, "mix")["bgem3 fp32"] == [2.0, 2.0]


def test_the_readmes_table_has_bgem3_and_the_best_of_its_rivals(sample: Report) -> None:
    head, *body = rows(tables.readme(sample))
    assert head == ["encoder", "query 16", "rerank 20", "mix, tokens/s", "bgem3 int8 is", "cold start", "peak memory"]
    rivals = ["OpenVINO fp32", "bge-m3-lite int8", "bgem3 fp32", "optimum ONNX fp32", "FlagEmbedding fp32"]
    assert [row[0] for row in body] == ["bgem3 int8", *rivals]
    assert body[0][1:] == ["1.00 s", "1.00 s", "200", "", "**1.60 s**", "1.00 GB"]
    assert body[1][1:] == ["**500 ms**", "**500 ms**", "**400**", "0.50x as fast", "**1.60 s**", "**0.50 GB**"]


def test_a_page_says_once_what_did_not_run_and_how_the_rest_was_measured(sample: Report) -> None:
    page = report.page({"cpu": sample})
    assert page.endswith("- cpu.json: OpenVINO int8, rerank 20: no answer within 600 s\n- cpu.json: a|b fp32: no GPU\n")
    assert page.count("no answer within 600 s") == page.count("no GPU") == 1
    assert next(row for row in rows(page) if row[0] == "OpenVINO int8")[2] == "–"
    for title in ("One query at a time", "Several clients at once", "Batches of one length", "Disk, start and memory"):
        assert f"### {title}" in page
    said = "A Processor, 2 threads; 24 layers of 1024, random weights; medians of up to 2 interleaved turns; other"
    assert f"{said} processes used up to 0.50 CPUs meanwhile; bgem3 0.1.0, bgem3 1.2, bge-m3-lite 1.2" in page
    assert "A note." in page
    assert "| import |" not in page, "what was not measured has no column"


def test_a_chart_holds_the_reports_figures_and_is_the_same_bytes_each_time(sample: Report, tmp_path: Path) -> None:
    chart = charts.throughput(sample)
    assert chart["bars"] == {label: 200 / seconds for label, seconds in FASTER.items()}
    paths = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for path in paths:
        charts.draw(chart, path)
        assert charts.data_of(path) == chart
    one, two = (path.read_text(encoding="utf-8") for path in paths)
    assert one == two
    assert "<dc:date>" not in one
    assert ">OpenVINO int8</text>" in one
    assert charts.data_of(tmp_path / "none.svg") is None


def test_a_documents_block_is_replaced_and_the_rest_stays(sample: Report) -> None:
    filled = report.fill("before\n\n<!-- bench:shapes -->\nold\n<!-- /bench -->\nafter\n", sample)
    assert filled.startswith("before\n\n<!-- bench:shapes -->\n\n| encoder | 1x128, tokens/s |\n")
    assert filled.endswith(" |\n\n<!-- /bench -->\nafter\n")
    assert report.fill(filled, sample) == filled
    for text in ("<!-- bench:readme -->\n", "<!-- bench:speed -->\n\n<!-- /bench -->\n"):
        with pytest.raises(ValueError, match=r"is not closed by|there is no table 'speed'; there are readme"):
            report.fill(text, sample)


def test_numbers_are_written_as_their_examples_say() -> None:
    assert doctest.testmod(tables, raise_on_error=True).attempted > 0


def test_the_published_tables_and_charts_are_current() -> None:
    stale = [str(path.relative_to(ROOT)) for path in report.stale_files()]
    assert stale == [], "run `make render`"
