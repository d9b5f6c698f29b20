"""The CPU operators in other builds: under AddressSanitizer and UBSan, and with other sizes of tiles."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bgem3.export.quantization import INPUTS_PER_BLOCK
from tests.kernels.operators import BLOCK, needs_library
from tests.paths import ROOT

SOURCES = ROOT / "runtime" / "kernels"
TESTS = Path(__file__).parent
COMPILER = next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), "gcc", "cc", "clang")))), None)
FLAGS = ["-std=gnu11", "-O1", "-g1", "-ffp-contract=off", "-fPIC", "-Wno-psabi", "-Wall", "-Wextra", "-Werror"]
COUNTED = [f"-D{name}=counted_{name}" for name in ("malloc", "calloc", "realloc", "aligned_alloc", "free")]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-D_Thread_local="]
"""Sanitizers see the ends of `scratch` only if it is not thread-local; tests then run one thread."""

PRODUCTS = ("test_linear.py", "test_attention.py")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler was found")

SIZES = {
    "MAX_ROWS": (4, 8),
    "ROWS_PER_TASK": (13, 45),
    "KEYS_PER_CHUNK": (100, 288),
    "QUERIES_PER_TASK": (50, 200),
    "PART_BYTES": (3000, 50000),
    "STRIPS_AT_ONCE": (1, 3),
    "SCRATCH_BYTES": (500000, 1 << 20),
    "MAX_HEAD_SIZE": (130, 140),
    "MAX_INPUTS": (8200, 9000),
    "MAX_OUTPUTS": (200, 5000),
    "MAX_THREADS": (8, 1024),
    "INPUTS_PER_BLOCK": (64, 256),
    "N_VECTORS": (1, 3),
}
"""Two other values of every size, which all fit each other."""

MISFITS = {
    "MAX_ROWS": 9,
    "ROWS_PER_TASK": 96,
    "KEYS_PER_CHUNK": 512,
    "QUERIES_PER_TASK": 256,
    "PART_BYTES": 0,
    "STRIPS_AT_ONCE": 0,
    "SCRATCH_BYTES": 1 << 18,
    "MAX_HEAD_SIZE": 192,
    "MAX_INPUTS": 1 << 14,
    "INPUTS_PER_BLOCK": 100,
    "GROUP": 8,
}
"""A value of each size that does not fit the others."""


def call(*command: object, environment: Mapping[str, str] | None = None, cwd: Path = ROOT) -> str:
    """Run a command; return its output, or raise AssertionError with it."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
    )
    assert done.returncode == 0, f"{command}: {done.returncode}: {done.stdout[-3000:]}{done.stderr[:3000]}"
    return done.stdout.strip()


def change(folder: Path, sizes: dict[str, int]) -> Path:
    """Copy the sources to a folder, with other sizes."""
    shutil.copytree(SOURCES, folder)
    for name, value in sizes.items():
        n_changes = 0
        for path in folder.iterdir():
            pattern = rf"^(#define {name} |    {name} = )[^,\n]+"
            text, n = re.subn(pattern, rf"\g<1>{value}", path.read_text(), flags=re.MULTILINE)
            path.write_text(text)
            n_changes += n
        assert n_changes > 0, f"{name} was not found"
    return folder


def build(sources: Path, *flags: str) -> Path:
    """Compile a library that counts allocations, beside its sources."""

    def compile_source(source: Path) -> Path:
        names = COUNTED if source.parent == sources else []
        target = sources / f"{source.stem}.o"
        call(COMPILER, *FLAGS, *flags, *names, "-c", source, "-o", target)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_source, [*sources.glob("*.c"), TESTS / "allocations.c"]))
    call(COMPILER, "-shared", *flags, *objects, "-lm", "-o", sources / "operators.so")
    return sources / "operators.so"


def run_tests(library: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
    """Run tests of this folder on a library, in a process of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-s", "--noconftest", "-p", "no:cacheprovider", *arguments]
    paths = {"BGEM3_TEST_LIBRARY": str(library), "PYTHONPATH": str(ROOT)}
    call(*command, environment={**paths, **(environment or {})}, cwd=TESTS)


@pytest.fixture(scope="session")
def sanitized() -> dict[str, str]:
    """Return the environment in which Python loads a sanitized library; skip where there is none."""
    libraries = [call(COMPILER, f"-print-file-name={name}") for name in ("libasan.so", "libstdc++.so.6")]
    environment = {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}  # Python never frees all
    done = subprocess.run([sys.executable, "-c", "import numpy"], env={**os.environ, **environment}, check=False)
    if done.returncode != 0 or not all(Path(library).is_absolute() for library in libraries):
        pytest.skip("the C compiler has no AddressSanitizer that runs in Python")
    return environment


def run_sanitized(sources: Path, environment: dict[str, str], *arguments: str) -> None:
    run_tests(build(sources, *SANITIZERS), "-k", "not any_number_of_threads", *arguments, environment=environment)


@pytest.mark.parametrize("n_examples", [4, pytest.param(500, marks=pytest.mark.stress)])
def test_operators_stay_within_their_memory(sanitized: dict[str, str], tmp_path: Path, n_examples: int) -> None:
    files = ("test_linear.py", "test_attention.py", "test_refusals.py", "out_of_memory.py")
    run_sanitized(change(tmp_path / "sources", {}), {**sanitized, "BGEM3_TEST_EXAMPLES": str(n_examples)}, *files)


@pytest.mark.parametrize(("choice", "n_examples"), [(0, 4), pytest.param(1, 20, marks=pytest.mark.stress)])
def test_other_sizes_give_the_same_results(choice: int, n_examples: int, tmp_path: Path) -> None:
    sources = change(tmp_path / "sources", {name: values[choice] for name, values in SIZES.items()})
    environment = {"BGEM3_TEST_EXAMPLES": str(n_examples)}
    run_tests(build(sources), *PRODUCTS, "-k", "formula or sums or each_text or alone", environment=environment)


@pytest.mark.parametrize(("name", "value"), MISFITS.items())
def test_a_size_that_does_not_fit_is_refused_by_the_compiler(name: str, value: int, tmp_path: Path) -> None:
    sources = change(tmp_path / "sources", {name: value})
    with pytest.raises(AssertionError, match=rf"static assertion failed: \"[^\n]*{name}"):
        call(COMPILER, *FLAGS, "-fsyntax-only", sources / "plain.c")


@pytest.mark.stress
@pytest.mark.parametrize(("name", "value"), [(name, value) for name in SIZES for value in SIZES[name]])
def test_each_other_size_stays_within_its_memory(
    name: str, value: int, sanitized: dict[str, str], tmp_path: Path
) -> None:
    sizes = {name: value} | ({"SCRATCH_BYTES": 1 << 20} if name.startswith("MAX_") else {})
    run_sanitized(change(tmp_path / "sources", sizes), sanitized, *PRODUCTS)


@needs_library
def test_export_rounds_for_blocks_of_the_kernels_size() -> None:
    assert BLOCK == INPUTS_PER_BLOCK
