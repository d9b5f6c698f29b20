"""What the documents say is run: README commands and snippets, docstring examples, public names."""

import doctest
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.paths import ROOT

MODULES = [
    f"bgem3.{folder}.{path.stem}"
    for folder in ("export", "runtime", "scoring")
    for path in (ROOT / folder).glob("*.py")
]
PUBLIC = ["bgem3.export", "bgem3.runtime", "bgem3.scoring"]


def blocks(language: str) -> list[str]:
    """List the README's code blocks in a language."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def workplace(tmp_path: Path, demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where BAAI/bge-m3 is the demo checkpoint, a fine-tune has no heads, and the user's cache is empty."""
    shutil.copytree(demo_checkpoint, tmp_path / "BAAI/bge-m3")
    shutil.copytree(demo_checkpoint, tmp_path / "my-fine-tune", ignore=shutil.ignore_patterns("*_linear.pt"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_every_readme_snippet_and_command_runs_in_order(workplace: Path) -> None:
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    snippets = blocks("python")
    assert len(snippets) + len(blocks("bash")) <= 10
    bgem3_commands = [line for line in commands if "bgem3 " in line]
    others = set(commands) - set(bgem3_commands)
    assert others == {"make demo", *(f'pip install ".[{extras}]"' for extras in ("cpu", "gpu", "cpu,export"))}
    export, *rest = bgem3_commands
    subprocess.run(export, shell=True, check=True, capture_output=True)
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)
    assert names["best"] == 0, "the README's hybrid score must rank the right passage first"
    for command in rest:
        subprocess.run(command, shell=True, check=True, capture_output=True)
    assert (workplace / "vectors.npz").is_file()


def test_the_readmes_pip_commands_resolve(workplace: Path) -> None:
    for command in (line for block in blocks("bash") for line in block.splitlines() if line.startswith("pip")):
        dry_run = command.replace("pip install", f"{sys.executable} -m pip install --dry-run --no-deps --quiet")
        subprocess.run(dry_run, shell=True, check=True, capture_output=True, cwd=ROOT)


def test_make_demo_ranks_the_right_passage_first(tmp_path: Path) -> None:
    """Run what `make demo` runs, on a copy, so that the working tree's own demo folder is left alone."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    demo = [sys.executable, str(tmp_path / "scripts/demo.py")]
    printed = subprocess.run(demo, capture_output=True, text=True, check=True).stdout
    assert "scripts/demo.py" in (ROOT / "Makefile").read_text(encoding="utf-8")
    rank = {tuple(row[0].split()): row[-1] for row in re.findall(r"│ (q\d p\d) .*│ (\d)\s+│", printed)}
    assert rank == {("q0", "p0"): "1", ("q0", "p1"): "2", ("q1", "p0"): "2", ("q1", "p1"): "1"}
    assert "CHECKPOINT=BAAI/bge-m3" in printed


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0


def test_every_scoring_function_has_an_example() -> None:
    scoring = importlib.import_module("bgem3.scoring")
    functions = [name for name in scoring.__all__ if name.endswith("_scores")]
    assert len(functions) == 7
    for name in functions:
        assert ">>>" in getattr(scoring, name).__doc__, name


@pytest.mark.parametrize("name", PUBLIC)
def test_all_lists_the_public_names_and_each_has_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    assert sorted(module.__all__) == list(module.__all__)
    for public in module.__all__:
        assert getattr(module, public).__doc__


def test_every_module_is_packaged_typed_and_has_a_docstring() -> None:
    assert f"packages = {json.dumps(PUBLIC)}" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for folder in ("export", "runtime", "scoring"):
        assert (ROOT / folder / "py.typed").is_file()
        assert not list((ROOT / folder).glob("*/**/*.py"))  # setuptools leaves nested packages out
    for name in MODULES:
        assert importlib.import_module(name).__doc__, name


def test_the_changelog_names_the_version_or_what_is_unreleased() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{version('bgem3')}]" in text or "## [Unreleased]" in text


def test_the_designs_retrieval_table_is_what_was_measured_and_equals_flagembeddings() -> None:
    text = (ROOT / "DESIGN.md").read_text(encoding="utf-8")
    files = json.loads((ROOT / "benchmarks/retrieval.json").read_text(encoding="utf-8"))["files"]
    for score in ("dense", "sparse", "multivector", "equal", "tuned"):
        values = [report["bgem3"]["held_out"][score] for report in files.values()]
        cells = [", ".join(f"{v[metric]:.3f}" for metric in ("recall@1", "mrr@10", "ndcg@10")) for v in values]
        assert f"| {score} | {' | '.join(cells)} |" in text
    for report in files.values():
        assert report["bgem3"] == report["FlagEmbedding"]


def test_the_designs_speed_of_scores_is_what_the_benchmark_measured() -> None:
    text = (ROOT / "DESIGN.md").read_text(encoding="utf-8")
    report = json.loads((ROOT / "benchmarks/search_cpu.json").read_text(encoding="utf-8"))
    for name in ("FlagEmbedding", "torch, padded", "bgem3", "bgem3, float16", "bgem3, int8"):
        cells = [
            f"{1e3 * m['seconds'][name]:,.1f} ms, {m['share_of_sgemm'][name]:.0%}" for m in report["maxsim"].values()
        ]
        assert re.search(rf"\| {name} \| {cells[0]}.* \| {cells[1]}", text), name
    for found in report["search"].values():
        both = [f"{1e3 * seconds:.0f} ms" for seconds in found["seconds_per_query"]["both"].values()]
        assert f"| {' | '.join(both)} |" in text
