"""The repository is built as DESIGN.md draws it: folders, import directions, imports at run time, the wheel."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.paths import ROOT

DESIGN = (ROOT / "DESIGN.md").read_text(encoding="utf-8")
PRODUCT = ("export", "runtime", "scoring")
SOURCE_SUFFIXES = {".py", ".c", ".md", ".svg"}
NOT_SOURCE = {"build", "dist", "scratch", "__pycache__"}
HEAVY = {"torch", "transformers", "optimum", "onnx", "pyarrow", "matplotlib"}


def import_name(path: Path) -> str:
    """Return the dotted name that a source file is imported by."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(("bgem3", *parts) if parts[0] in PRODUCT else parts)


def source_files(folder: str) -> list[Path]:
    """List a folder's Python files, in nested folders too."""
    return [path for path in (ROOT / folder).rglob("*.py") if not NOT_SOURCE & set(path.parts)]


def module_level(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run when a module is imported."""
    for node in ast.iter_child_nodes(tree):
        skipped = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not skipped and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from module_level(node)


def imports(path: Path, *, inside_functions: bool) -> set[str]:
    """List the dotted names that a file imports: modules, and what is taken from them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree) if inside_functions else module_level(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def drawn_folders() -> set[str]:
    """Read the folders of DESIGN.md's tree."""
    tree = re.search(r"^    bgem3/\n((?:    .*\n)+)", DESIGN, flags=re.MULTILINE)
    assert tree, "DESIGN.md has no tree"
    folders, parents = set(), [""]
    for line in tree[1].splitlines():
        match = re.match(r"    ((?:│   |    )*)[├└]── ([\w-]+)/", line)
        assert match, f"this line of DESIGN.md's tree names no folder: {line}"
        parents[len(match[1]) // 4 + 1 :] = [f"{parents[len(match[1]) // 4]}{match[2]}/"]
        folders.add(parents[-1])
    return folders


def real_folders(parent: Path = ROOT) -> set[str]:
    """List the folders that hold source files, without those of tests, which mirror the others."""
    found = set()
    for folder in parent.iterdir():
        is_hidden = folder.name.startswith(".") or folder.name in NOT_SOURCE or (folder / "pyvenv.cfg").is_file()
        if folder.is_dir() and not is_hidden:
            nested = real_folders(folder) if folder.name != "tests" else set()
            if nested or any(file.suffix in SOURCE_SUFFIXES for file in folder.iterdir()):
                found |= nested | {f"{folder.relative_to(ROOT).as_posix()}/"}
    return found


def allowed_imports(folder: str) -> tuple[set[str], set[str]]:
    """Read DESIGN.md's table of folders: the folders of ours, and the libraries, that one may import."""
    row = re.search(rf"^\| `{folder}/` \| (.*?) \| (.*?) \|$", DESIGN, flags=re.MULTILINE)
    assert row, f"DESIGN.md's table has no row for {folder}/"
    ours, libraries = (set(re.findall(r"`(\w+)`", cell)) for cell in row.groups())
    return ours, libraries


def test_the_tree_in_the_design_names_every_folder_and_no_other() -> None:
    assert drawn_folders() == real_folders()


def test_folders_of_tests_mirror_the_source_folders() -> None:
    folders = {path.parent.relative_to(ROOT / "tests").as_posix() for path in source_files("tests")}
    sources = {folder.rstrip("/") for folder in drawn_folders()}
    sources |= {folder.rpartition("/")[2] for folder in sources}
    assert folders - sources == {".", "integrations"}


@pytest.mark.parametrize("folder", [*PRODUCT, "benchmarks", "scripts"])
def test_imports_go_only_where_the_design_lists_them(folder: str) -> None:
    names = set().union(*(imports(path, inside_functions=True) for path in source_files(folder)))
    found = {name.removeprefix("bgem3.").partition(".")[0] for name in names}
    ours, libraries = allowed_imports(folder)
    folders = {"benchmarks", "scripts", "tests", *PRODUCT}
    assert found & folders - {folder} <= ours
    if libraries:  # where the table does not say "any"
        assert found - folders - set(sys.stdlib_module_names) == libraries


def test_no_package_has_an_import_cycle() -> None:
    files = [path for folder in (*PRODUCT, "benchmarks", "scripts", "tests") for path in source_files(folder)]
    names = {import_name(path) for path in files}
    graph = {}
    for path in files:
        found = imports(path, inside_functions=False)
        graph[import_name(path)] = {name if name in names else name.rpartition(".")[0] for name in found} & names
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("name", ["bgem3.runtime", "bgem3.runtime.cli", "bgem3.scoring"])
def test_importing_the_engine_loads_no_heavy_library(name: str) -> None:
    code = f"import sys, {name}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert name in loaded
    assert not HEAVY & set(loaded)


def test_the_wheel_holds_every_module_of_the_product_and_nothing_else() -> None:
    pytest.importorskip("setuptools", "77", reason="an older setuptools cannot read pyproject.toml")
    code = """
import setuptools, warnings
warnings.simplefilter("ignore")
distribution = setuptools.Distribution({"script_name": "setup.py"})
distribution.parse_config_files()
command = distribution.get_command_obj("build_py")
command.ensure_finalized()
print(*command.get_outputs(include_bytecode=False), sep="\\n")
"""
    listed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    packed = {line.partition("/bgem3/")[2] for line in listed.splitlines()}
    files = [path for folder in PRODUCT for path in (*source_files(folder), *(ROOT / folder).glob("*.json"))]
    expected = {path.relative_to(ROOT).as_posix() for path in files} | {f"{folder}/py.typed" for folder in PRODUCT}
    assert packed == expected
