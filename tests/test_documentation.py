"""What the documents say is run or looked up: README's commands and snippets, docstring examples, links, figures."""

import doctest
import importlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import metadata, requires, version
from pathlib import Path

import pytest

from bgem3.runtime.cli import main
from tests.paths import ROOT
from tests.test_structure import PRODUCT, import_name, source_files

README, CHANGELOG, MAKEFILE = (ROOT / name for name in ("README.md", "CHANGELOG.md", "Makefile"))
DOCUMENTS = [README, CHANGELOG, ROOT / "DESIGN.md", ROOT / "benchmarks/README.md", *(ROOT / "docs").glob("*.md")]
MODULES = sorted(import_name(path) for folder in PRODUCT for path in source_files(folder))


def read(path: Path) -> str:
    """Return a document's text."""
    return path.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """List the README's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", read(README), flags=re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[str]:
    """List the README's command lines that run a program."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if f"{program} " in line]


@pytest.fixture
def workplace(tmp_path: Path, demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where BAAI/bge-m3 is the demo checkpoint, a fine-tune has no heads, and the user's cache is empty."""
    shutil.copytree(demo_checkpoint, tmp_path / "BAAI/bge-m3")
    shutil.copytree(demo_checkpoint, tmp_path / "my-fine-tune", ignore=shutil.ignore_patterns("*_linear.pt"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bgem3.runtime.export_cache.user_cache_path", lambda name: tmp_path / name)
    return tmp_path


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command line of bgem3 in this process; what stands before a pipe becomes its standard input."""
    before, _, line = command.rpartition("| ")
    piped = subprocess.run(before, shell=True, capture_output=True, check=True).stdout
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped)))
    program, *arguments = shlex.split(line)
    assert (program, main(arguments)) == ("bgem3", 0), command


def test_every_readme_snippet_and_command_runs_in_order(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export, *others = commands("bgem3")
    run(export, monkeypatch)
    names: dict[str, object] = {}
    for snippet in blocks("python"):
        exec(compile(snippet, "README.md", "exec"), names)
    assert list(names["best"]) == [0, 1], "the README's scores must rank the right passages first"  # type: ignore[call-overload]
    for command in others:
        run(command, monkeypatch)
    assert (workplace / "vectors.npz").is_file()


def test_the_readmes_other_commands_exist() -> None:
    installs = commands("pip")
    assert len(commands("bgem3")) + len(installs) == sum(block.count("\n") for block in blocks("bash"))
    extras = [extra for command in installs for extra in re.findall(r"[\w-]+", command.partition("[")[2])]
    assert set(extras) <= set(metadata("bgem3").get_all("Provides-Extra") or [])
    targets = {target for path in DOCUMENTS for target in re.findall(r"`make ([a-z-]+)", read(path))}
    assert targets <= set(re.findall(r"^([a-z-]+):", read(MAKEFILE), flags=re.MULTILINE))


def test_the_readme_shows_installing_python_and_one_table_on_its_first_screen() -> None:
    lines = read(README).splitlines()
    assert lines.index("```bash") < 25
    assert lines.index("```python") < 40
    block = read(README).partition("<!-- bench:readme -->")[2].partition("<!-- /bench -->")[0]
    rows = [line for line in block.splitlines() if line.startswith("|")]
    assert len(rows) <= 2 + 6, "a heading, a rule and six rows"


def test_the_readme_names_every_library_that_the_runtime_needs() -> None:
    needed = [re.split(r"[^\w-]", line)[0] for line in requires("bgem3") or [] if "extra ==" not in line]
    said = read(README).partition("**Small runtime.**")[2].partition("\n\n")[0].lower()
    assert [name for name in (*needed, "onnx runtime") if name.lower() not in said] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", read(path)):
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), f"{path.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", read(linked), flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{path.name} links to {target}"


def test_make_demo_ranks_the_right_passage_first() -> None:
    recipe = re.search(r"^demo:.*\n\t\$\(BIN\)/python (.*) \$\(CHECKPOINT\)$", read(MAKEFILE), flags=re.MULTILINE)
    assert recipe
    demo = [sys.executable, *shlex.split(recipe[1])]
    printed = subprocess.run(demo, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    rank = {tuple(row[0].split()): row[-1] for row in re.findall(r"│ (q\d p\d) .*│ (\d)\s+│", printed)}
    assert rank == {("q0", "p0"): "1", ("q0", "p1"): "2", ("q1", "p0"): "2", ("q1", "p1"): "1"}
    assert "CHECKPOINT=BAAI/bge-m3" in printed


@pytest.mark.parametrize("name", MODULES)
def test_modules_have_docstrings_whose_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("folder", PRODUCT)
def test_all_lists_the_public_names_and_each_has_a_docstring(folder: str) -> None:
    module = importlib.import_module(f"bgem3.{folder}")
    assert sorted(module.__all__) == list(module.__all__)
    for public in module.__all__:
        docstring = getattr(module, public).__doc__
        assert docstring
        assert ">>>" in docstring or not public.endswith("_scores"), f"{public} needs an example"


def test_the_changelog_names_the_version_or_what_is_unreleased() -> None:
    assert f"## [{version('bgem3')}]" in read(CHANGELOG) or "## [Unreleased]" in read(CHANGELOG)


def test_the_retrieval_table_is_what_was_measured_and_equals_flagembeddings() -> None:
    text = read(ROOT / "docs/measurements.md")
    files = json.loads(read(ROOT / "benchmarks/results/retrieval.json"))["files"]
    for score in ("dense", "sparse", "multivector", "equal", "tuned"):
        values = [report["bgem3"]["held_out"][score] for report in files.values()]
        cells = [", ".join(f"{v[metric]:.3f}" for metric in ("recall@1", "mrr@10", "ndcg@10")) for v in values]
        assert f"| {score} | {' | '.join(cells)} |" in text
    for report in files.values():
        assert report["bgem3"] == report["FlagEmbedding"]


def test_the_speed_of_scores_is_what_was_measured() -> None:
    text = read(ROOT / "docs/measurements.md")
    report = json.loads(read(ROOT / "benchmarks/results/search_cpu.json"))
    for name in ("FlagEmbedding", "torch, padded", "bgem3", "bgem3, float16", "bgem3, int8"):
        cells = [
            f"{1e3 * m['seconds'][name]:,.1f} ms, {m['share_of_sgemm'][name]:.0%}" for m in report["maxsim"].values()
        ]
        assert re.search(rf"\| {name} \| {cells[0]}.* \| {cells[1]}", text), name
    for found in report["search"].values():
        both = [f"{1e3 * seconds:.0f} ms" for seconds in found["seconds_per_query"]["both"].values()]
        assert f"| {' | '.join(both)} |" in text
