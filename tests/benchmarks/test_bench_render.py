"""Tables and plots of benchmarks: what stands in them, that it is the reports' alone, and that they are current."""

import copy
import doctest
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.bench_sample import TOKENS_PER_S, sample_report
from tests.paths import ROOT

WHITE, DARK = "#ffffff", "#0d1117"  # GitHub's pages
DOCUMENT = """# Title

<!-- bench:speed -->
old
<!-- /bench -->

Text.

<!-- bench:footprint other -->
<!-- /bench -->
"""

Report = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Any:
    """Let scripts/ be imported from, as it is when one of them runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        yield


@pytest.fixture(scope="module")
def render(scripts: None) -> ModuleType:
    return importlib.import_module("render_benchmarks")


@pytest.fixture(scope="module")
def chart(scripts: None) -> ModuleType:
    return importlib.import_module("svg_chart")


@pytest.fixture
def report() -> Report:
    return sample_report()


@pytest.fixture
def workplace(tmp_path: Path, report: Report, render: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a document and two reports, in which the script runs."""
    (tmp_path / "README.md").write_text(DOCUMENT, encoding="utf-8")
    (tmp_path / "benchmarks").mkdir()
    save(tmp_path, report)
    save(tmp_path, report, "other")
    monkeypatch.setattr(render, "ROOT", tmp_path)
    return tmp_path


def save(folder: Path, report: Report, name: str = "cpu") -> None:
    (folder / "benchmarks" / f"{name}.json").write_text(json.dumps(report), encoding="utf-8")


def run(render: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["render_benchmarks.py", *arguments])
    status: int = render.main()
    return status


def rows(text: str) -> list[list[str]]:
    """Return a table's cells, without the line below its head."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [lines[0], *lines[2:]]


def drawn(render: ModuleType, report: Report) -> dict[str, str]:
    return {name: draw(report) for name, draw in render.PLOTS.items()}


def shapes(svg: str, kind: str) -> list[ElementTree.Element]:
    return ElementTree.fromstring(svg).findall(f".//{{*}}{kind}")


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2.2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_speed_table_has_ours_first_then_the_fastest_and_the_best_in_bold_whosever_it_is(
    render: ModuleType, report: Report
) -> None:
    head, *body = rows(render.speed(report, "cpu.json"))
    assert head == [
        *("encoder", "query of 16 tokens", "rerank 20 passages", "mix, tokens/s", "bgem3 int8 is"),
        *("cold start", "peak memory"),
    ]
    assert body == [
        ["bgem3 int8", "64.0 ms", "**2.86 s**", "**430**", "", "**1.55 s**", "**0.82 GB**"],
        ["bgem3 fp32", "100 ms", "4.80 s", "253", "1.7x as fast", "**1.55 s**", "**0.82 GB**"],
        ["OpenVINO int8", "**50.0 ms**", "5.58 s", "215", "2.0x as fast", "6.10 s", "4.90 GB"],
    ]


def test_a_faster_peer_is_said_to_be_faster(render: ModuleType, report: Report) -> None:
    report["encoders"]["OpenVINO int8"]["scenarios"]["mix"] |= {"tokens_per_s": 600.0, "times_first": {"median": 0.717}}
    body = rows(render.speed(report, "cpu.json"))[1:]
    assert [row[0] for row in body] == ["bgem3 int8", "OpenVINO int8", "bgem3 fp32"]
    assert [row[3] for row in body] == ["430", "**600**", "253"]
    assert body[1][4] == "0.72x as fast"
    assert "bgem3 int8 is 0.72x as fast" in drawn(render, report)["throughput"]


def test_the_dense_table_compares_those_with_the_dense_head_alone(render: ModuleType, report: Report) -> None:
    table = render.dense(report, "cpu.json")
    assert [row[0] for row in rows(table)[1:]] == ["bgem3 int8", "bgem3 fp32", "OpenVINO int8", "TEI fp32"]
    assert rows(table)[4] == ["TEI fp32", "114 ms", "200", "2.2x as fast"]
    assert "TEI fp32" not in "\n".join(",".join(row) for row in rows(render.speed(report, "cpu.json")))
    assert "- TEI fp32 is not here: gives dense vectors alone" in render.speed(report, "cpu.json")


def test_a_group_has_a_column_for_each_of_its_scenarios(render: ModuleType, report: Report) -> None:
    tables = {name: rows(render.group(report, "cpu.json", name)) for name in render.groups_of(report)}
    assert tables["query"][0] == ["encoder", "query 8", "query 16", "query 16 dense"]
    assert tables["query"][2] == ["OpenVINO int8", "53.3 ms", "**50.0 ms**", "**48.5 ms**"]
    assert tables["query"][4] == ["TEI fp32", "–", "–", "114 ms"]
    assert tables["clients"][0] == ["encoder", "clients 4, p50", "clients 4, tokens/s"]
    assert tables["clients"][1] == ["bgem3 int8", "**213 ms**", "**300**"]
    assert tables["shapes"][1] == ["bgem3 int8", "**400**", "**390**", "**450**"]
    assert tables["long"] == [["encoder", "long 2048"], ["bgem3 int8", "**5.85 s**"], ["bgem3 fp32", "10.2 s"]]


def test_the_detail_has_every_measurement_of_every_encoder(render: ModuleType, report: Report) -> None:
    detail = render.detail(report, "cpu.json")
    parts = re.split(r"^\*\*(.*?)\*\*: ", detail, flags=re.MULTILINE)[1:]
    tables = {name: rows(text) for name, text in zip(parts[::2], parts[1::2], strict=True)}
    assert list(tables) == list(report["scenarios"])
    for name, table in tables.items():
        ran = [label for label, e in report["encoders"].items() if "not_run" not in e.get("scenarios", e).get(name, e)]
        assert sorted(row[0] for row in table[1:]) == sorted(label for label in ran if label != "bge-m3-lite fp16")
    assert tables["mix"][3] == [
        *("OpenVINO int8", "2.33 s", "2.34 s", "0.1%", "215", "38%"),
        *("2.00x (1.98 to 2.02)", "8, default"),
    ]
    assert "(4 texts, 64 tokens, all heads, 4 clients)" in detail


def test_a_page_says_all_that_did_not_run_and_why(render: ModuleType, report: Report) -> None:
    page = render.page(report, "cpu.json")
    assert "- bge-m3-lite fp16 did not run: it needs a GPU" in page
    assert "- OpenVINO int8 is not here: time limit" in page.split("### Long texts")[1].split("###")[0]
    assert "- OpenVINO int8 did not run long 2048: time limit" in page.split("### Everything")[1]
    report["encoders"]["OpenVINO int8"]["scenarios"]["mix"] = {"not_run": "OSError: a pipe | broke"}
    assert "- OpenVINO int8 did not run mix: OSError: a pipe | broke" in render.page(report, "cpu.json")
    assert rows(render.speed(report, "cpu.json"))[3][3:5] == ["–", "–"]


def test_what_a_report_has_nothing_of_is_said_with_the_reason_that_it_gives(render: ModuleType, report: Report) -> None:
    encoders = report["encoders"]
    tei = encoders["TEI fp32"]["scenarios"]
    encoders["TEI fp32"]["scenarios"] = {name: cell for name, cell in tei.items() if "not_run" not in cell}
    del encoders["OpenVINO int8"]["scenarios"]["rerank 20"]
    speed = render.speed(report, "cpu.json")
    assert "- TEI fp32 is not here: it gives no sparse, no multivector" in speed
    assert "- OpenVINO int8 did not run rerank 20: not measured" in speed


def test_nothing_is_shown_of_an_encoder_that_broke_in_a_later_turn(render: ModuleType, report: Report) -> None:
    report["encoders"]["OpenVINO int8"]["not_run"] = "it ended with status 9"
    page, *_ = render.page(report, "cpu.json").split("### Where the time goes")
    assert "OpenVINO int8" not in [row[0] for row in rows(page)]
    assert "- OpenVINO int8 did not run: it ended with status 9" in page
    assert "OpenVINO" not in "".join(drawn(render, report).values())


def test_the_smaller_operators_are_one_in_the_plot_and_each_in_the_table(render: ModuleType, report: Report) -> None:
    spent = report["breakdown"]["bgem3 int8"]
    spent["mix"] |= {f"tiny {i}": 0.001 for i in range(9)}
    spent["long 2048"] = {"not_run": "time limit"}
    report["breakdown"]["bgem3 fp32"] = {"not_run": "time limit"}
    table = rows(render.breakdown(report, "cpu.json"))
    assert table[0] == ["bgem3 int8", "query 16", "mix"]
    assert table[1] == ["products", "42.0 ms, 70%", "700 ms, 69%"]
    assert len(table) == 1 + 4 + 9 + 1
    names = [element.text for element in shapes(drawn(render, report)["breakdown"], "text")]
    assert sum(name is not None and name.startswith("tiny") for name in names) == 8 - 3
    assert names.count("other") == 1
    report["breakdown"] = {"not_run": "on CPU only"}
    assert render.breakdown(report, "cpu.json") == drawn(render, report)["breakdown"] == ""


def test_the_conditions_name_machine_versions_command_and_how_busy_it_was(render: ModuleType, report: Report) -> None:
    report["settings"]["command"] = "bgem3 bench --turns 3"
    report["cpus_used_by_others"] = [0.01, 0.31]
    report["environment"]["versions"]["onnx"] = "not installed"
    line = render.conditions(report, "benchmarks/cpu.json")
    assert "not installed" not in line
    for said in (
        *(
            "A Processor, 2 threads",
            "24 layers of 1024, random weights",
            "up to 3 interleaved turns",
            "up to 0.31 CPUs",
        ),
        *("bgem3 0.1.0, onnxruntime 1.27.0", "openvino 1.2.3", "fp32 180 GFLOP/s, int8 340 GFLOP/s"),
        *("`bgem3 bench --turns 3`", "[cpu.json](benchmarks/cpu.json)"),
    ):
        assert said in line
    assert "\n" not in line
    assert "quick" not in line
    assert "(quick)" in render.conditions(report | {"settings": report["settings"] | {"quick": True}}, "cpu.json")


@pytest.mark.parametrize(
    ("path", "changed"),
    [
        (("encoders", "OpenVINO int8", "scenarios", "mix", "tokens_per_s"), {"throughput"}),
        (("encoders", "OpenVINO int8", "scenarios", "mix dense", "tokens_per_s"), {"throughput_dense"}),
        (("encoders", "bgem3 fp32", "scenarios", "1x128", "p50_s"), {"latency"}),
        (("encoders", "bgem3 fp32", "scenarios", "8x128", "tokens_per_s"), {"batches"}),
        (("breakdown", "bgem3 int8", "mix", "attention"), {"breakdown"}),
        (("encoders", "bgem3 fp32", "disk_bytes"), set()),
    ],
)
def test_another_number_in_the_report_is_another_in_the_page_and_in_its_plot(
    render: ModuleType, report: Report, path: tuple[str, ...], changed: set[str]
) -> None:
    other = copy.deepcopy(report)
    place = other
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] *= 1.3
    assert render.page(other, "cpu.json") != render.page(report, "cpu.json")
    before, after = drawn(render, report), drawn(render, other)
    assert {name for name in before if before[name] != after[name]} == changed


def test_tables_are_put_between_markers_and_nothing_else_is_touched(
    workplace: Path, render: ModuleType, report: Report
) -> None:
    report["encoders"]["bgem3 int8"]["disk_bytes"] = 123_000_000_000
    save(workplace, report, "other")
    text = render.render(workplace, ["README.md"])[workplace / "README.md"]
    speed, footprint = render.speed(report, "benchmarks/cpu.json"), render.footprint(report, "benchmarks/other.json")
    assert text == (
        f"# Title\n\n<!-- bench:speed -->\n\n{speed}\n\n<!-- /bench -->\n\nText.\n\n"
        f"<!-- bench:footprint other -->\n\n{footprint}\n\n<!-- /bench -->\n"
    )
    assert "123.00 GB" in footprint
    (workplace / "README.md").write_text(text, encoding="utf-8")
    assert render.render(workplace, ["README.md"])[workplace / "README.md"] == text


def test_links_lead_from_the_document_to_the_report_and_the_plots(workplace: Path, render: ModuleType) -> None:
    page = workplace / "benchmarks/README.md"
    page.write_text("<!-- bench:page -->\n<!-- /bench -->\n", encoding="utf-8")
    files = render.render(workplace, ["README.md", "benchmarks/README.md"])
    found = [(path.parent, link) for path in files for link in re.findall(r"\]\((.*?)\)", files[path])]
    assert len(found) == 7  # a report each, and five plots
    for folder, link in found:
        assert (folder / link).resolve() in files or (folder / link).is_file(), link


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- bench:speeed -->\n<!-- /bench -->", "README.md: there is no table 'speeed', only speed, dense"),
        ("<!-- bench:speed -->\n", "README.md: a marker is not closed"),
        ("<!-- bench:speed --> <!-- /bench -->", "README.md: a marker is not closed, or not on a line of its own"),
        ("<!-- bench:speed gpu -->\n<!-- /bench -->", "there is no gpu.json in benchmarks"),
    ],
)
def test_a_marker_that_cannot_be_filled_is_refused(workplace: Path, render: ModuleType, text: str, said: str) -> None:
    (workplace / "README.md").write_text(text, encoding="utf-8")
    with pytest.raises(render.RenderError, match=re.escape(said)):
        render.render(workplace, ["README.md"])


def test_check_fails_until_everything_is_written_and_when_anything_changes(
    workplace: Path, render: ModuleType, report: Report, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert run(render, monkeypatch, "--check") == 1
    assert not list(workplace.glob("benchmarks/*.svg"))
    assert "old" in (workplace / "README.md").read_text(encoding="utf-8")
    assert run(render, monkeypatch) == 0
    assert len(list(workplace.glob("benchmarks/*.svg"))) == 10
    assert run(render, monkeypatch, "--check") == 0
    capsys.readouterr()
    for name in ("README.md", "benchmarks/cpu_latency.svg"):
        text = (workplace / name).read_text(encoding="utf-8")
        (workplace / name).write_text(text.replace("bgem3 int8", "bgem3 int4"), encoding="utf-8")
        assert run(render, monkeypatch, "--check") == 1
        assert capsys.readouterr().out == f"{name} is not what the reports give\n"
        assert run(render, monkeypatch) == 0
        assert (workplace / name).read_text(encoding="utf-8") == text
        capsys.readouterr()
    report["encoders"]["bgem3 int8"]["scenarios"]["mix"]["tokens_per_s"] = 99.0
    save(workplace, report)
    assert run(render, monkeypatch, "--check") == 1


def test_a_plot_without_numbers_is_removed(
    workplace: Path, render: ModuleType, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(render, monkeypatch)
    del report["breakdown"]
    save(workplace, report)
    assert run(render, monkeypatch, "--check") == 1
    run(render, monkeypatch)
    assert not (workplace / "benchmarks/cpu_breakdown.svg").exists()
    assert (workplace / "benchmarks/other_breakdown.svg").exists()
    assert run(render, monkeypatch, "--check") == 0


def test_a_report_with_little_in_it_gives_what_there_is(render: ModuleType, report: Report) -> None:
    kept = ("query 16", "mix")
    report["scenarios"] = {name: report["scenarios"][name] for name in kept}
    report["encoders"] = {"bgem3 int8": report["encoders"]["bgem3 int8"]}
    cells = report["encoders"]["bgem3 int8"]["scenarios"]
    report["encoders"]["bgem3 int8"]["scenarios"] = {name: cells[name] for name in kept}
    del report["breakdown"], report["matrix_rate"], report["cpus_used_by_others"]
    assert {name for name, svg in drawn(render, report).items() if svg} == {"throughput"}
    page = render.page(report, "cpu.json")
    titles = ["encoder", "query of 16 tokens", "mix, tokens/s", "cold start", "peak memory"]
    assert rows(render.speed(report, "cpu.json"))[0] == titles
    assert "Dense alone" not in page
    assert "latency.svg" not in page


def test_plots_are_the_same_bytes_in_every_process(render: ModuleType, report: Report, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    code = "import json, sys; from benchmark_plots import PLOTS\n"
    code += "print(*(draw(json.load(open(sys.argv[1]))) for draw in PLOTS.values()), sep='', end='')"
    expected = "".join(drawn(render, report).values())
    for seed in ("1", "2"):
        found = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "report.json")],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT / "scripts")},
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout == expected


def test_each_plot_names_the_encoders_that_it_shows(render: ModuleType, report: Report) -> None:
    svgs = drawn(render, report)
    all_heads = {f"{label} {precision}" for label, precision in TOKENS_PER_S} - {"TEI fp32"}
    for name, labels in {"throughput": all_heads, "latency": all_heads, "batches": all_heads}.items():
        texts = {element.text for element in shapes(svgs[name], "text")}
        assert texts & {*report["encoders"]} == labels, name
    dense = {element.text for element in shapes(svgs["throughput_dense"], "text")}
    assert dense >= {*all_heads, "TEI fp32"}
    assert "bgem3 int8, query 16" in svgs["breakdown"]


def test_plots_are_small_and_stand_out_from_white_and_dark_pages(render: ModuleType, report: Report) -> None:
    for name, svg in drawn(render, report).items():
        assert len(svg) < 40_000
        root = ElementTree.fromstring(svg)
        width, height = (float(root.attrib[side]) for side in ("width", "height"))
        for box in shapes(svg, "rect"):
            assert float(box.attrib["width"]) < width or float(box.attrib["height"]) < height, "no background"
        fills = {*re.findall(r"#[0-9a-f]{6}", svg)}
        in_bars = {e.attrib["fill"] for e in shapes(svg, "text") if e.attrib.get("fill") == WHITE}
        assert bool(in_bars) == (name == "breakdown")
        for colour in fills - in_bars:
            assert contrast(colour, WHITE) >= 3, colour
            assert contrast(colour, DARK) >= 3, colour


def test_text_in_bars_and_on_pages_can_be_read(chart: ModuleType) -> None:
    assert min(contrast(chart.INK, page) for page in (WHITE, DARK)) >= 4
    assert min(contrast(WHITE, colour) for colour in (*chart.PALETTE, chart.OURS, chart.INK)) >= 3


def test_all_text_is_within_its_plot(render: ModuleType, report: Report) -> None:
    long = "An encoder with a name that is rather long fp32, batch 256"
    report["encoders"][long] = copy.deepcopy(report["encoders"]["OpenVINO int8"])
    for svg in filter(None, drawn(render, report).values()):
        root = ElementTree.fromstring(svg)
        width, height = (float(root.attrib[side]) for side in ("width", "height"))
        texts = shapes(svg, "text")
        assert len(texts) > 5
        for element in texts:
            size = float(element.attrib.get("font-size", 13))
            room = 0.5 * size * len(element.text or "")
            x, y = (float(element.attrib[side]) for side in ("x", "y"))
            start = x - {"start": 0.0, "middle": room / 2, "end": room}[element.attrib.get("text-anchor", "start")]
            assert start >= -1, element.text
            assert start + room <= width + 1, element.text
            assert size <= y + 4, element.text
            assert y <= height, element.text


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12))
def test_labels_keep_their_order_and_distance_within_the_limits(places: list[float]) -> None:
    chart = importlib.import_module("svg_chart")
    moved = chart.apart(places, 7, 0, 100)
    assert min(moved) >= -1e-6
    assert max(moved) <= 100 + 1e-6
    order = sorted(range(len(places)), key=lambda i: places[i])
    for before, after in itertools.pairwise(order):
        assert moved[after] - moved[before] >= 7 - 1e-6


@pytest.mark.parametrize("name", ["benchmark_report", "svg_chart"])
def test_the_scripts_examples_run(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted
    assert not results.failed


def test_the_documents_and_plots_are_what_the_reports_give(render: ModuleType) -> None:
    documents = [name for name in render.DOCUMENTS if (ROOT / name).is_file()]
    files = render.render(ROOT, documents)
    assert {path: path.read_text(encoding="utf-8") if path.is_file() else "" for path in files} == files
