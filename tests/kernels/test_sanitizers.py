"""The CPU operators under AddressSanitizer and UBSan, in a program that stands in for ONNX Runtime."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.paths import ROOT

SOURCES = ROOT / "runtime" / "kernels"
HARNESS = Path(__file__).with_name("kernels_harness.c")
FLAGS = ["-std=gnu11", "-O1", "-g1", "-ffp-contract=off", "-Wno-psabi"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
COUNTED = [f"-D{name}=counted_{name}" for name in ("malloc", "calloc", "realloc", "aligned_alloc", "free")]
"""The harness counts what the operators allocate, and lets allocations fail."""


def call(*command: object) -> str:
    """Run a command; return its output, or raise AssertionError with it."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (
        f"{command[0]} ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    )
    return done.stdout


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the harness, compiled with the operators and sanitizers; skip where that cannot be done."""
    compiler = next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), "gcc", "cc", "clang")))), None)
    if compiler is None:
        pytest.skip("no C compiler was found")
    folder = tmp_path_factory.mktemp("sanitized")
    (folder / "empty.c").write_text("int main(void) { return 0; }\n")
    try:
        call(compiler, *SANITIZERS, folder / "empty.c", "-o", folder / "empty")
        call(folder / "empty")
    except AssertionError as error:
        pytest.skip(f"the C compiler has no sanitizers that run: {error}")

    def compile_source(source: Path) -> Path:
        names = COUNTED if source.parent == SOURCES else []
        made = folder / f"{source.stem}.o"
        call(compiler, *FLAGS, *SANITIZERS, *names, f"-I{SOURCES}", "-c", source, "-o", made)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_source, [*SOURCES.glob("*.c"), HARNESS]))
    call(compiler, *SANITIZERS, *objects, "-lm", "-o", folder / "harness")
    return folder / "harness"


def check(harness: Path, seed: int, n_cases: int) -> None:
    printed = call(harness, seed, n_cases)
    counts = {name: [int(n) for n in re.findall(r"\d+", rest)] for name, rest in re.findall(r"(.+): (.+)\n", printed)}
    assert counts.keys() == {"portable", "AVX2", "AVX-512 VNNI"}
    n_products, n_attentions, n_refusals, n_failures = counts["portable"]
    assert n_products == n_attentions == n_cases
    assert n_refusals >= n_cases
    assert n_failures > 0
    assert all(other in (counts["portable"][:3], [0, 0, 0]) for other in (found[:3] for found in counts.values()))


def test_operators_of_any_shape_stay_within_their_memory_and_refuse_what_does_not_fit(harness: Path) -> None:
    check(harness, seed=1, n_cases=64)


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(2, 6))
def test_thousands_of_operators_stay_within_their_memory(harness: Path, seed: int) -> None:
    check(harness, seed, n_cases=500)
