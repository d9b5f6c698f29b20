"""Does an artifact compute what the checkpoint computes? The reference outputs, and the comparison."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from bgem3.runtime import cuda_session as cuda
from bgem3.runtime import custom_ops as native
from bgem3.runtime.artifact import Artifact, ArtifactError
from bgem3.runtime.custom_ops import NATIVE_GRAPH
from bgem3.runtime.device import open_encoder
from bgem3.runtime.model import BGEM3Model
from bgem3.scoring import Embeddings

REFERENCE_FILE = "reference.npz"

BOUNDS = {
    "fp32": {
        "dense_max_difference": 1e-4,
        "sparse_max_difference": 1e-4,
        "multivector_max_difference": 1e-4,
    },
    "int8": {  # on odd texts too, and of odd lengths; the quality gate of the export is the narrower one
        "dense_min_cosine": 0.99,
        "sparse_max_difference": 0.1,
        "multivector_min_cosine": 0.9,
    },
    "fp16": {
        "dense_min_cosine": 0.9999,
        "sparse_max_difference": 1e-2,
        "multivector_min_cosine": 0.999,
    },
}
"""What each precision must keep to; keys as in the report of :func:`compare`."""


class ParityError(ValueError):
    """An artifact's outputs are further from the reference than its precision allows."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the checkpoint gives for N texts in PyTorch float32, each text alone.

    Attributes
    ----------
    texts : N texts
    n_tokens : (N,) int32 array
    dense : (N, D) float32 array
    sparse : (N, V) float32 csr_array
    multivector : (K, M) float32 array, a sample of the texts' vectors
    multivector_rows : (K,) int64 array, which vectors of the N texts' packed ones the sample holds
    """

    texts: list[str]
    n_tokens: NDArray[np.int32]
    dense: NDArray[np.float32]
    sparse: csr_array
    multivector: NDArray[np.float32]
    multivector_rows: NDArray[np.int64]

    def save(self, folder: Path) -> None:
        """Write the reference into an artifact folder."""
        np.savez_compressed(
            folder / REFERENCE_FILE,
            texts=np.frombuffer(json.dumps(self.texts).encode(), np.uint8),
            n_tokens=self.n_tokens,
            dense=self.dense,
            sparse_data=self.sparse.data,
            sparse_indices=self.sparse.indices,
            sparse_indptr=self.sparse.indptr,
            sparse_shape=self.sparse.shape,
            multivector=self.multivector,
            multivector_rows=self.multivector_rows,
        )

    def head(self, max_tokens: int) -> "Reference":
        """Return the leading texts, up to the first of more than ``max_tokens`` tokens."""
        is_long = self.n_tokens > max_tokens
        n_texts = int(is_long.argmax()) if is_long.any() else len(self.texts)
        n_rows = int(np.searchsorted(self.multivector_rows, (self.n_tokens[:n_texts] - 1).sum()))
        return Reference(
            texts=self.texts[:n_texts],
            n_tokens=self.n_tokens[:n_texts],
            dense=self.dense[:n_texts],
            sparse=self.sparse[:n_texts],
            multivector=self.multivector[:n_rows],
            multivector_rows=self.multivector_rows[:n_rows],
        )

    @classmethod
    def load(cls, folder: Path) -> "Reference":
        """Read the reference of an artifact folder; ArtifactError if it is not there or not one."""
        path = folder / REFERENCE_FILE
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; copy the whole artifact folder again or export it again")
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                reference = cls._from_arrays(arrays)
        except Exception as error:  # NumPy and zipfile raise nearly every kind there is for a damaged file
            raise ArtifactError(
                f"{path} is not a reference that an export wrote ({error!r:.200}); copy the artifact folder again or "
                "export it again"
            ) from None
        return reference

    @classmethod
    def _from_arrays(cls, arrays: Any) -> "Reference":
        """Read the arrays of a file; KeyError, TypeError or ValueError if they are not those of a reference."""
        texts = json.loads(arrays["texts"].tobytes())
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise TypeError("texts is not a list of texts")
        n_tokens = _array(arrays, "n_tokens", "i", (len(texts),))
        dense = _array(arrays, "dense", "f", (len(texts), None))
        vectors = _array(arrays, "multivector", "f", (None, None))
        rows = _array(arrays, "multivector_rows", "i", (len(vectors),))
        n_vectors = int(n_tokens.sum()) - len(texts)
        if (n_tokens < 2).any() or (np.diff(rows) <= 0).any() or not ((rows >= 0) & (rows < n_vectors)).all():
            raise ValueError("n_tokens and multivector_rows do not belong together")
        shape = tuple(int(n) for n in _array(arrays, "sparse_shape", "i", (2,)))
        parts = (("sparse_data", "f"), ("sparse_indices", "i"), ("sparse_indptr", "i"))
        sparse = csr_array(tuple(_array(arrays, name, kind, (None,)) for name, kind in parts), shape=shape)
        sparse.check_format(full_check=True)
        if shape[0] != len(texts):
            raise ValueError(f"sparse has {shape[0]} rows, expected {len(texts)}")
        return cls(
            texts=texts, n_tokens=n_tokens, dense=dense, sparse=sparse, multivector=vectors, multivector_rows=rows
        )


def _array(arrays: Any, name: str, kind: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """Return an array of a file; TypeError if it is not of this kind of numbers and shape (None: any length)."""
    array: NDArray[Any] = arrays[name]
    has_shape = array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
    if array.dtype.kind != kind or not has_shape:
        raise TypeError(f"{name} is {array.dtype} {array.shape}, expected {kind} {shape}")
    return array


def compare(found: Embeddings, reference: Reference) -> dict[str, Any]:
    """Measure how far embeddings of the reference's texts are from the reference.

    Returns
    -------
    ``n_texts``, ``n_tokens``, ``tokens_equal`` (the tokenizers agree); of the outputs that were found, for ``dense``
    and ``multivector`` ``_max_difference`` (absolute) and ``_min_cosine``; ``sparse_max_difference`` as a share of the
    largest reference weight.
    """
    report: dict[str, Any] = {
        "n_texts": len(reference.texts),
        "n_tokens": int(reference.n_tokens.sum()),
        "tokens_equal": bool((found.n_tokens == reference.n_tokens).all()),
    }
    _check_widths(found, reference)
    if not report["tokens_equal"]:
        return report
    pairs: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {"dense": (found.dense, reference.dense)}
    if "multivector" in found.outputs:
        pairs["multivector"] = (found.multivector.packed[reference.multivector_rows], reference.multivector)
    for name, (ours, theirs) in pairs.items():
        cosines = np.einsum("nd,nd->n", ours, theirs, dtype=np.float64)
        report[f"{name}_max_difference"] = float(np.abs(ours - theirs).max())
        report[f"{name}_min_cosine"] = float(np.nan_to_num(cosines, nan=-1.0).min())
    if "sparse" not in found.outputs:
        return report
    largest = float(reference.sparse.data.max(initial=np.finfo(np.float32).tiny))
    difference = abs(found.sparse - reference.sparse)
    report["sparse_max_difference"] = float(difference.data.max(initial=0.0)) / largest
    return report


def _check_widths(found: Embeddings, reference: Reference) -> None:
    """Raise ArtifactError if embeddings and reference are not of one model."""
    for name in found.outputs:
        is_packed = name == "multivector"
        ours, theirs = found.multivector.packed if is_packed else getattr(found, name), getattr(reference, name)
        if ours.shape[1] != theirs.shape[1]:
            raise ArtifactError(
                f"{REFERENCE_FILE} has {name} rows of {theirs.shape[1]} numbers, the model gives {ours.shape[1]}: they "
                "are not of one artifact; copy the artifact folder again or export it again"
            )


def missed_bounds(report: dict[str, Any], bounds: dict[str, float]) -> list[str]:
    """Say, in words, which bounds a report of :func:`compare` misses."""
    if not report["tokens_equal"]:
        return ["the tokenizer splits texts otherwise than the reference"]
    missed = []
    for name, bound in bounds.items():
        is_kept = report[name] >= bound if name.endswith("cosine") else report[name] <= bound  # NaN keeps none
        if not is_kept:
            missed.append(f"{name} is {report[name]:.3g}, its bound {bound:g}")
    return missed


def check_graphs(
    artifact: Artifact,
    check: Callable[[BGEM3Model], dict[str, Any]],
    *,
    precision: str | None = None,
    n_threads: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Check every graph of a precision, or all, on its device; both graphs of those that a CPU has two of.

    Returns
    -------
    The reports of ``check`` by the graph's file. A graph whose device is not there, or cannot be used, gets a report
    with the reason as ``not_run``.
    """
    reports: dict[str, dict[str, Any]] = {}
    for held, device, file, kernels, why_not in _graphs(artifact):
        if precision not in (None, held):
            continue
        if why_not:
            reports[file] = {"not_run": why_not, "missed": []}
            continue
        try:
            session = open_encoder(artifact, device=device, precision=held, n_threads=n_threads, kernels=kernels)
        except RuntimeError as error:  # a device that is there and cannot be used, not a graph that is wrong
            reports[file] = {"not_run": str(error), "missed": []}
            continue
        with BGEM3Model(artifact, session) as model:
            del session  # its memory must be free before the next one is made
            reports[file] = check(model)
    return reports


def _graphs(artifact: Artifact) -> Iterator[tuple[str, str, str, str, str | None]]:
    """Yield each graph's precision, device, file, kernels, and why it cannot run here."""
    why_no_cuda, why_no_kernels = cuda.why_unavailable(), native.why_unavailable()
    for (precision, device), file in artifact.graphs.items():
        yield precision, device, file, "none", why_no_cuda if device == "cuda" else None
        beside = str(PurePosixPath(file).with_name(NATIVE_GRAPH))
        if device == "cpu" and (artifact.folder / beside).is_file():
            yield precision, device, beside, "auto", why_no_kernels


def check_parity(model: BGEM3Model, reference: Reference, *, show_progress: bool = False) -> dict[str, Any]:
    """Encode the reference's texts; return the report, the bounds of the model's precision and the ``missed`` ones."""
    return judge(model.encode(reference.texts, show_progress=show_progress), reference, model.precision)


def judge(found: Embeddings, reference: Reference, precision: str) -> dict[str, Any]:
    """Return the report of :func:`compare` with the precision's ``bounds`` and those ``missed``, in words."""
    report = compare(found, reference)
    bounds = {name: bound for name, bound in BOUNDS[precision].items() if name.partition("_")[0] in found.outputs}
    return report | {"bounds": bounds, "missed": missed_bounds(report, bounds)}
