"""Parity: the comparison of an artifact's graphs with the outputs of its checkpoint."""

from typing import Any

import numpy as np

from bgem3.runtime import cuda_runtime, custom_ops
from bgem3.runtime.artifact import COPY_AGAIN, REFERENCE_FILE, Artifact, ArtifactError
from bgem3.runtime.device import open_encoder
from bgem3.runtime.model import BGEM3Model
from bgem3.runtime.portable_graph import MAX_TOKENS, encode_portable
from bgem3.runtime.published_values import TOLERANCE, compare_published, missed_published
from bgem3.runtime.reference import Reference
from bgem3.scoring import Embeddings

BOUNDS = {
    "fp32": {"dense_max_difference": 1e-4, "sparse_max_difference": 1e-4, "multivector_max_difference": 1e-4},
    # On odd texts too, and of odd lengths; the quality gate of the export is narrower.
    "int8": {"dense_min_cosine": 0.99, "sparse_max_difference": 0.1, "multivector_min_cosine": 0.9},
    "fp16": {"dense_min_cosine": 0.9999, "sparse_max_difference": 1e-2, "multivector_min_cosine": 0.999},
}
"""Bounds of each precision for the figures of :func:`compare`."""


class ParityError(ValueError):
    """An artifact's outputs are further from the reference than its precision allows."""


def check_graphs(
    artifact: Artifact,
    reference: Reference,
    *,
    precision: str | None = None,
    n_threads: int | None = None,
    has_published_values: bool = False,
    show_progress: bool = False,
) -> dict[str, dict[str, Any]]:
    """Compare every graph of a precision with the reference; None takes all, and the portable graph too.

    ``has_published_values`` compares with the values that BGE-M3's authors published, too.

    Returns
    -------
    The reports of :func:`judge` by the graph's file. A graph that cannot run here has the reason as ``not_run``.
    """
    reports: dict[str, dict[str, Any]] = {}
    why_not = {"cuda": cuda_runtime.why_unavailable(), "bgem3": custom_ops.why_unavailable()}
    for graph in artifact.graphs:
        if precision is not None and (precision != graph.precision or graph.operators == "standard"):
            continue
        if graph.operators == "standard":
            short = reference.head(MAX_TOKENS)
            found = encode_portable(artifact, short.texts, show_progress=show_progress)
            reports[graph.file] = judge(found, short, graph.precision)
            continue
        try:
            reason = why_not.get(graph.device) or why_not.get(graph.operators)
            if reason:
                raise RuntimeError(reason)
            session = open_encoder(
                artifact,
                device=graph.device,
                precision=graph.precision,
                n_threads=n_threads,
                kernels="auto" if graph.operators == "bgem3" else "none",
            )
        except RuntimeError as error:  # the device cannot be used; a wrong graph raises ArtifactError
            reports[graph.file] = {"not_run": str(error), "missed": []}
            continue
        with BGEM3Model(artifact, session) as model:
            found = model.encode(reference.texts, show_progress=show_progress)
            reports[graph.file] = judge(found, reference, model.precision)
            if has_published_values and model.precision in TOLERANCE:
                published = compare_published(model)
                reports[graph.file]["published"] = published
                reports[graph.file]["missed"] += missed_published(published, model.precision)
        del session, model  # their memory must be free before the next one is opened
    return reports


def judge(found: Embeddings, reference: Reference, precision: str) -> dict[str, Any]:
    """Return the report of :func:`compare` with the precision's ``bounds``, and the ``missed`` ones, in words."""
    report = compare(found, reference)
    bounds = {name: bound for name, bound in BOUNDS[precision].items() if name.partition("_")[0] in found.outputs}
    return report | {"bounds": bounds, "missed": missed_bounds(report, bounds)}


def compare(found: Embeddings, reference: Reference) -> dict[str, Any]:
    """Measure how far embeddings of the reference's texts are from the reference.

    Returns
    -------
    n_texts, n_tokens : numbers of the reference
    tokens_equal : whether the tokenizers agree; if not, there are no further entries
    dense_max_difference, multivector_max_difference : absolute
    dense_min_cosine, multivector_min_cosine : of any vector
    sparse_max_difference : as a share of the largest reference weight
    """
    report: dict[str, Any] = {
        "n_texts": len(reference.texts),
        "n_tokens": int(reference.n_tokens.sum()),
        "tokens_equal": bool((found.n_tokens == reference.n_tokens).all()),
    }
    for name in found.outputs:
        ours: Any = found.multivector.packed if name == "multivector" else getattr(found, name)
        theirs: Any = getattr(reference, name)
        if ours.shape[1] != theirs.shape[1]:
            raise ArtifactError(
                f"{REFERENCE_FILE} has {name} rows of {theirs.shape[1]} numbers, the model gives {ours.shape[1]}: they "
                f"are not of one artifact; {COPY_AGAIN}"
            )
        if not report["tokens_equal"]:
            continue
        if name == "sparse":
            largest = float(theirs.data.max(initial=np.finfo(np.float32).tiny))
            report["sparse_max_difference"] = float(abs(ours - theirs).data.max(initial=0.0)) / largest
            continue
        if name == "multivector":
            ours = ours[reference.multivector_rows]
        cosines = np.einsum("nd,nd->n", ours, theirs, dtype=np.float64)
        report[f"{name}_max_difference"] = float(np.abs(ours - theirs).max())
        report[f"{name}_min_cosine"] = float(np.nan_to_num(cosines, nan=-1.0).min())
    return report


def missed_bounds(report: dict[str, Any], bounds: dict[str, float]) -> list[str]:
    """Return, in words, the bounds that a report of :func:`compare` misses."""
    if not report["tokens_equal"]:
        return ["the tokenizer splits texts otherwise than the reference"]
    missed = []
    for name, bound in bounds.items():
        is_within = report[name] >= bound if name.endswith("cosine") else report[name] <= bound  # NaN never is
        if not is_within:
            missed.append(f"{name} is {report[name]:.3g}, its bound {bound:g}")
    return missed
