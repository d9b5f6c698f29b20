"""`bgem3 bench --compare`: what counts as a change, what is noise, what is the machine's, what is said of the rest."""

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bgem3.runtime import cli
from bgem3.runtime.bench_change import COLD_START, PEAK_MEMORY, uncertainty
from bgem3.runtime.bench_compare import Comparison, compare_reports
from bgem3.runtime.bench_compare_table import comparison_table
from tests.benchmarks.bench_sample import SCENARIOS, sample_report, set_seconds

Report = dict[str, Any]


@pytest.fixture
def old() -> Report:
    return sample_report()


@pytest.fixture
def new(old: Report) -> Report:
    return copy.deepcopy(old)


def slow_down(report: Report, encoder: str, scenario: str, factor: float) -> None:
    """Make every call of an encoder take so many times as long."""
    turns = report["encoders"][encoder]["scenarios"][scenario]["seconds"]
    set_seconds(report, encoder, scenario, [[factor * seconds for seconds in turn] for turn in turns])


def slow_everything_down(report: Report, factor: float) -> None:
    for label, encoder in report["encoders"].items():
        for name, cell in encoder.get("scenarios", {}).items():
            if "not_run" not in cell:
                slow_down(report, label, name, factor)


def regressed(comparison: Comparison) -> list[tuple[str, str]]:
    return [(change.encoder, change.measure) for change in comparison.regressions]


def printed(comparison: Comparison) -> str:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(comparison_table(comparison))
    return console.export_text()


def test_a_report_compared_with_itself_has_no_change_and_nothing_to_say(old: Report, new: Report) -> None:
    comparison = compare_reports(old, new)
    assert {change.ratio for change in comparison.changes} == {1.0}
    assert {change.verdict for change in comparison.changes} == {""}
    assert comparison.warnings == comparison.unmatched == comparison.lost == []
    measured = [(change.encoder, change.measure) for change in comparison.ours]
    both = [*SCENARIOS, COLD_START, PEAK_MEMORY]
    assert measured == [(label, name) for label in ("bgem3 int8", "bgem3 fp32") for name in both]
    assert len(comparison.control) == len(SCENARIOS) - 1 + 2 + 2 + 2


def test_ours_being_slower_is_a_regression_and_a_peer_being_slower_is_not(old: Report, new: Report) -> None:
    slow_down(new, "bgem3 int8", "mix", 1.08)
    slow_down(new, "OpenVINO int8", "mix", 1.5)
    comparison = compare_reports(old, new)
    assert regressed(comparison) == [("bgem3 int8", "mix")]
    assert comparison.regressions[0].ratio == pytest.approx(1.08)
    assert comparison.regressions[0].old_tokens_per_s == pytest.approx(430)
    assert comparison.regressions[0].new_tokens_per_s == pytest.approx(430 / 1.08)
    (control,) = [change for change in comparison.control if change.verdict]
    assert (control.encoder, control.measure, control.verdict) == ("OpenVINO int8", "mix", "worse")


def test_ours_being_faster_is_an_improvement(old: Report, new: Report) -> None:
    slow_down(new, "bgem3 fp32", "1x128", 1 / 1.2)
    comparison = compare_reports(old, new)
    assert [(change.encoder, change.measure) for change in comparison.improvements] == [("bgem3 fp32", "1x128")]
    assert comparison.regressions == []


def test_a_change_within_the_threshold_is_none(old: Report, new: Report) -> None:
    slow_down(new, "bgem3 int8", "mix", 1.04)
    assert compare_reports(old, new).regressions == []
    assert regressed(compare_reports(old, new, threshold=0.03)) == [("bgem3 int8", "mix")]


@pytest.mark.parametrize("noisy", ["old", "new"])
def test_a_change_within_the_noise_of_either_side_is_none(old: Report, new: Report, noisy: str) -> None:
    quiet = [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    apart = [[0.9, 0.9], [1.0, 1.0], [1.1, 1.1]]  # turns that differ by more than their calls
    for report, name, factor in ((old, "old", 1.0), (new, "new", 1.1)):
        turns = apart if name == noisy else quiet
        set_seconds(report, "bgem3 int8", "mix", [[factor * seconds for seconds in turn] for turn in turns])
    comparison = compare_reports(old, new)
    (change,) = [c for c in comparison.ours if (c.encoder, c.measure) == ("bgem3 int8", "mix")]
    assert change.ratio == pytest.approx(1.1)
    assert change.noise == pytest.approx(0.2)
    assert comparison.regressions == []
    set_seconds(new, "bgem3 int8", "mix", [[1.3 * seconds for seconds in turn] for turn in quiet])
    assert regressed(compare_reports(old, new)) == [("bgem3 int8", "mix")]


def test_more_calls_make_the_same_spread_less_noise() -> None:
    few, many = uncertainty([[1.0, 1.2, 1.4]]), uncertainty([[1.0, 1.2, 1.4] * 100])
    assert few == pytest.approx(0.2 / 3**0.5 / 1.2)
    assert many < few / 4


def test_what_was_measured_once_is_taken_to_be_uncertain(old: Report, new: Report) -> None:
    for report, seconds in ((old, 1.0), (new, 1.1)):
        set_seconds(report, "bgem3 int8", "mix", [[seconds]])
    assert compare_reports(old, new).regressions == []
    set_seconds(new, "bgem3 int8", "mix", [[1.2]])
    assert regressed(compare_reports(old, new)) == [("bgem3 int8", "mix")]


def test_a_slower_machine_is_said_and_taken_out(old: Report, new: Report) -> None:
    slow_everything_down(new, 1.25)
    for rate in new["matrix_rate"].values():
        rate["flop_per_s"] /= 1.25
    slow_down(new, "bgem3 int8", "mix", 1.2)
    comparison = compare_reports(old, new)
    assert regressed(comparison) == [("bgem3 int8", "mix")]
    assert comparison.regressions[0].ratio == pytest.approx(1.5)
    assert comparison.regressions[0].own_ratio == pytest.approx(1.2)
    assert [warning for warning in comparison.warnings if "int8 run at 0.80 of the old rate (340 and 272" in warning]
    assert "machine aside" in printed(comparison)
    assert "machine aside" not in printed(compare_reports(old, old))


def test_a_machine_that_differs_within_its_noise_is_the_same(old: Report, new: Report) -> None:
    new["matrix_rate"]["int8"] = {"flop_per_s": 320e9, "seconds": [0.02, 0.027, 0.034]}
    comparison = compare_reports(old, new)
    assert comparison.warnings == []
    assert {change.machine for change in comparison.changes} == {1.0}


def test_what_is_taken_out_for_the_machine_adds_its_noise(old: Report, new: Report) -> None:
    new["matrix_rate"]["int8"] = {"flop_per_s": 170e9, "seconds": [0.045, 0.05, 0.055]}
    comparison = compare_reports(old, new)
    noise = {change.encoder: change.noise for change in comparison.ours if change.measure == "mix"}
    assert noise["bgem3 int8"] > 10 * noise["bgem3 fp32"]
    assert noise["bgem3 int8"] == pytest.approx(2 * comparison.rates["int8"].uncertainty, rel=0.02)


def test_a_rate_that_one_report_lacks_is_left_out(old: Report, new: Report) -> None:
    new["matrix_rate"]["int8"] = {"not_run": "OSError: no"}
    assert list(compare_reports(old, new).rates) == ["fp32"]
    del new["matrix_rate"]
    assert compare_reports(old, new).rates == {}


def test_cold_start_and_memory_are_compared(old: Report, new: Report) -> None:
    new["encoders"]["bgem3 int8"]["cold_start_s"] = [2.5, 2.6, 2.55]
    new["encoders"]["bgem3 fp32"]["peak_rss_bytes"] = 900_000_000
    comparison = compare_reports(old, new)
    assert regressed(comparison) == [("bgem3 int8", COLD_START), ("bgem3 fp32", PEAK_MEMORY)]
    assert "0.82 GB" in printed(comparison)


@pytest.mark.parametrize(
    ("part", "name", "value", "said"),
    [
        ("environment", "processor", "Another", "the machines differ: processor A Processor and Another"),
        ("environment", "n_threads", 4, "the machines differ: n_threads 2 and 4"),
        ("settings", "model", {"n_layers": 2}, "the settings differ: model"),
        ("settings", "weights", "checkpoint", "the settings differ: weights random and checkpoint"),
    ],
)
def test_other_machines_and_settings_are_warned_of(
    old: Report, new: Report, part: str, name: str, value: Any, said: str
) -> None:
    new[part][name] = value
    comparison = compare_reports(old, new)
    assert len(comparison.warnings) == 1
    assert said in comparison.warnings[0]
    assert said in printed(comparison)


def test_where_random_weights_were_made_is_no_difference(old: Report, new: Report) -> None:
    new["settings"]["source"] = "another folder"
    assert compare_reports(old, new).warnings == []
    old["settings"]["weights"] = new["settings"]["weights"] = "checkpoint"
    assert compare_reports(old, new).warnings == ["the settings differ: source random and another folder"]


def test_a_comparison_is_described_in_json(old: Report, new: Report) -> None:
    slow_down(new, "bgem3 int8", "mix", 1.5)
    described = json.loads(json.dumps(compare_reports(old, new).described()))
    (change,) = [change for change in described["changes"] if change["verdict"]]
    assert (change["encoder"], change["measure"], change["verdict"]) == ("bgem3 int8", "mix", "worse")
    assert change["ratio"] == pytest.approx(1.5)
    assert described["rates"]["fp32"]["old"] == 180e9


def test_a_busy_machine_and_other_versions_are_warned_of(old: Report, new: Report) -> None:
    old["cpus_used_by_others"][1] = 0.8
    new["encoders"]["OpenVINO int8"]["versions"]["openvino"] = "1.2.4"
    assert compare_reports(old, new).warnings == [
        "OpenVINO int8: openvino 1.2.3 and 1.2.4",
        "other processes used up to 0.8 CPUs while the old report was made",
    ]


def test_what_only_one_report_has_is_listed(old: Report, new: Report) -> None:
    del old["encoders"]["bgem3 fp32"], old["scenarios"]["8x16"], new["encoders"]["TEI fp32"]
    new["encoders"]["OpenVINO int8"]["scenarios"]["mix"] = {"not_run": "OSError: no"}
    comparison = compare_reports(old, new)
    assert comparison.unmatched == [
        "encoders in the old report alone: TEI fp32",
        "encoders in the new report alone: bgem3 fp32",
        "scenarios in the new report alone: 8x16",
        "OpenVINO int8, mix: not run in the new report: OSError: no",
    ]
    assert not {change.encoder for change in comparison.changes} & {"bgem3 fp32", "TEI fp32"}
    assert "8x16" not in {change.measure for change in comparison.changes}
    assert comparison.lost == []


def test_what_ours_can_no_longer_do_is_lost(old: Report, new: Report) -> None:
    reason = {"not_run": "RuntimeError: out of memory"}
    new["encoders"]["bgem3 int8"]["scenarios"]["long 2048"] = reason
    new["encoders"]["bgem3 fp32"] = {"kind": "bgem3", "label": "bgem3", "precision": "fp32"} | reason
    lost = compare_reports(old, new).lost
    assert lost == [
        f"{name}: not run in the new report: {reason['not_run']}" for name in ("bgem3 int8, long 2048", "bgem3 fp32")
    ]
    comparison = compare_reports(new, old)
    assert comparison.lost == []
    assert comparison.unmatched == [line.replace("new", "old") for line in lost]


@pytest.mark.parametrize(
    ("field", "value", "said"), [("n_tokens", 600, "500 and 600"), ("outputs", ["dense"], "['dense']")]
)
def test_a_scenario_that_is_not_the_same_work_is_not_compared(
    old: Report, new: Report, field: str, value: Any, said: str
) -> None:
    new["scenarios"]["mix"][field] = value
    slow_down(new, "bgem3 int8", "mix", 2)
    comparison = compare_reports(old, new)
    assert comparison.regressions == []
    assert len(comparison.unmatched) == 1
    assert f"mix is not the same work in both: {field}" in comparison.unmatched[0]
    assert said in comparison.unmatched[0]


def test_the_table_has_ours_in_full_and_the_control_in_short(old: Report, new: Report) -> None:
    slow_down(new, "bgem3 int8", "mix", 1.1)
    slow_down(new, "OpenVINO int8", "1x128", 1.3)
    lines = printed(compare_reports(old, new)).splitlines()
    assert "bgem3: 1 worse, 0 better of 26; the control took 1.00x (1.00 to 1.30) as long" in lines[0]
    assert [" ".join(line.split()) for line in lines if "worse │" in line] == [
        "│ bgem3 int8 │ mix │ 1.16 s │ 1.28 s │ 430 → 391 │ 1.10x │ ±1% │ worse │",
        "│ OpenVINO int8 │ 1x128 │ 533 ms │ 693 ms │ 240 → 185 │ 1.30x │ ±1% │ worse │",
    ]
    assert len([line for line in lines if "│ bgem3" in line]) == 26
    assert len([line for line in lines if "│ OpenVINO" in line]) == 2
    assert [line for line in lines if "TEI fp32" in line and "all 3 (control)" in line and "1.00x (1.00 to" in line]


def test_another_kind_of_report_is_refused(old: Report) -> None:
    with pytest.raises(ValueError, match=r"the new file is no report .* it has no encoders, scenarios"):
        compare_reports(old, {"environment": {}, "latency": {}})


def test_the_command_compares_two_files_and_its_status_tells_of_regressions(
    old: Report, new: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "old.json", tmp_path / "new.json"]
    paths[0].write_text(json.dumps(old), encoding="utf-8")
    paths[1].write_text(json.dumps(new), encoding="utf-8")
    command = ["bench", "--compare", *map(str, paths)]
    assert cli.main(command) == 0
    assert "0 worse, 0 better" in capsys.readouterr().out
    slow_down(new, "bgem3 int8", "mix", 2.0)
    paths[1].write_text(json.dumps(new), encoding="utf-8")
    assert cli.main([*command, "--json"]) == 1
    changes = json.loads(capsys.readouterr().out)["changes"]
    assert [change["measure"] for change in changes if change["verdict"] == "worse"] == ["mix"]
    paths[1].write_text("{", encoding="utf-8")
    assert cli.main(command) == 2
