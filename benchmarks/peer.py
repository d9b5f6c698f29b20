"""Peer: an encoder that can be measured, and what it returns.

Peers run in Python environments without bgem3: this module and those in `peers/` import the standard library and NumPy
alone, and everything else inside functions.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

ALL_HEADS = ("dense", "sparse", "multivector")
BATCH_SIZES = (1, 4, 8, 16, 32)
TORCH = ("torch==2.13.0", "transformers==4.57.6", "tokenizers", "numpy")

Settings = dict[str, Any]
"""The settings that the process of a peer gets.

``artifact``, ``checkpoint``, ``portable`` and ``files`` are folders: bgem3's artifact, the checkpoint, the portable
graph, and a place for what the peer prepares. ``device``, ``precision`` and ``threads`` say how to run; the fields of
`ModelSpec` and ``special_ids`` describe the model; ``calibration`` are texts for quantization.
"""


class Encoded(NamedTuple):
    """Outputs for N texts; None for heads that were not asked for.

    Attributes
    ----------
    dense : (N, D) float array, rows of unit length
    lexical : returns each text's positive weights by token id, without special ids
    multivector : N float arrays (tokens - 1, M), rows of unit length
    """

    dense: NDArray[Any] | None = None
    lexical: Callable[[], Iterable[dict[Any, float]]] | None = None
    multivector: Sequence[NDArray[Any]] | None = None


Encode = Callable[[list[str], tuple[str, ...], int], Encoded]
"""Encodes texts: takes the texts, the heads asked for in the order of ALL_HEADS, and a batch size."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """An encoder that can be measured.

    Attributes
    ----------
    name, label : the name on the command line, and in tables
    environment : the name of its Python environment; "" for the one that runs the benchmark
    packages : what pip installs into that environment
    modules : imported to measure the import time
    precisions, outputs : what it offers
    needs : the settings, of "checkpoint" and "portable", that it cannot run without
    batch_sizes : the ones to try, in ascending order
    is_thread_safe : whether several threads may call it at once; otherwise they take turns
    prepare : writes what it loads into the folder ``settings["files"]``; what is there is taken as it is
    open : opens it; raises RuntimeError if this machine cannot run it
    files : lists what it loads, for its size on disk
    """

    name: str
    label: str
    environment: str = ""
    packages: tuple[str, ...]
    modules: tuple[str, ...]
    precisions: tuple[str, ...] = ("fp32",)
    outputs: tuple[str, ...] = ALL_HEADS
    needs: tuple[str, ...] = ("checkpoint",)
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    is_thread_safe: bool = True
    prepare: Callable[[Settings], None] = lambda _: None
    open: Callable[[Settings], Encode]
    files: Callable[[Settings], Iterable[Path]]


def checkpoint_files(settings: Settings) -> list[Path]:
    """List the checkpoint's files."""
    return [path for path in Path(settings["checkpoint"]).rglob("*") if path.is_file()]


def cpu_flags() -> set[str]:
    """Return this CPU's instruction sets by Linux's names; nothing on other systems."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return {flag for line in lines if line.startswith("flags") for flag in line.split(":")[1].split()}


def require_bf16(settings: Settings) -> None:
    """Raise RuntimeError if bf16 is asked for on a CPU that only imitates it."""
    is_asked = settings["precision"] == "bf16" and settings["device"] == "cpu"
    if is_asked and not {"avx512_bf16", "amx_bf16"} & cpu_flags():
        raise RuntimeError("this CPU has no instructions for bf16")
