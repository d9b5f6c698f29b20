"""Embeddings in the forms that vector databases take, as plain dicts: no client library is needed here."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from bgem3.scoring.embeddings import Embeddings


def qdrant_points(embeddings: "Embeddings", ids: Sequence[int | str] | None = None) -> list[dict[str, Any]]:
    """Return a point per text, with named vectors ``dense``, ``sparse`` and ``multivector``, those that are held.

    Each point is what ``qdrant_client.models.PointStruct(**point)`` takes, and Qdrant's REST API as JSON. The
    collection's vectors compare by ``Distance.DOT`` (COSINE is the same for unit vectors), the multi-vectors with
    ``MultiVectorConfig(comparator=MultiVectorComparator.MAX_SIM)``, which is the *sum* over the query's vectors:
    divide its weight by their number to get the mean that the multi-vector score is.

    Parameters
    ----------
    embeddings : N texts
    ids : N whole numbers or UUIDs; None for 0 to N - 1

    Raises
    ------
    ValueError
        If the number of ids differs.
    """
    return [
        {"id": text_id, "vector": vectors, "payload": {}}
        for text_id, vectors in zip(check_ids(ids, len(embeddings)), _qdrant_vectors(embeddings), strict=True)
    ]


def milvus_rows(embeddings: "Embeddings", ids: Sequence[int | str] | None = None) -> list[dict[str, Any]]:
    """Return a row per text for ``MilvusClient.insert``: ``id``, and ``dense``, ``sparse``, ``multivector`` if held.

    ``dense`` is for a FLOAT_VECTOR field, ``sparse`` ({token id: weight}) for a SPARSE_FLOAT_VECTOR one, both with
    metric IP. ``multivector`` is for an ARRAY of STRUCT (Milvus 2.6) with one FLOAT_VECTOR ``vector``; leave it out
    where the server has no such field. A text without lexical weights, such as an empty one, has an empty ``sparse``,
    which Milvus Lite 3.2 refuses: leave such rows out there.

    Parameters, Raises
    ------------------
    As :func:`qdrant_points`; ids are INT64 or VARCHAR.
    """
    rows: list[dict[str, Any]] = [{"id": text_id} for text_id in check_ids(ids, len(embeddings))]
    for i, row in enumerate(rows):
        if "dense" in embeddings.outputs:
            row["dense"] = embeddings.dense[i].tolist()
        if "sparse" in embeddings.outputs:
            token_ids, weights = _entries(embeddings, i)
            row["sparse"] = dict(zip(token_ids.tolist(), weights.tolist(), strict=True))
        if "multivector" in embeddings.outputs:
            row["multivector"] = [{"vector": vector} for vector in embeddings.multivector[i].tolist()]
    return rows


def vespa_documents(embeddings: "Embeddings", ids: Sequence[int | str] | None = None) -> list[dict[str, Any]]:
    """Return a document per text for pyvespa's ``feed_iterable``: ``id`` (str), ``fields`` with what is held.

    The fields' types, D and M being the widths: ``dense`` tensor<float>(x[D]), ``sparse`` tensor<float>(token{}),
    ``multivector`` tensor<float>(vector{}, x[M]).

    Parameters, Raises
    ------------------
    As :func:`qdrant_points`.
    """
    documents = []
    for i, text_id in enumerate(check_ids(ids, len(embeddings))):
        fields: dict[str, Any] = {}
        if "dense" in embeddings.outputs:
            fields["dense"] = {"values": embeddings.dense[i].tolist()}
        if "sparse" in embeddings.outputs:
            token_ids, weights = _entries(embeddings, i)
            fields["sparse"] = {"cells": dict(zip(map(str, token_ids.tolist()), weights.tolist(), strict=True))}
        if "multivector" in embeddings.outputs:
            vectors = embeddings.multivector[i].tolist()
            fields["multivector"] = {"blocks": {str(place): vector for place, vector in enumerate(vectors)}}
        documents.append({"id": str(text_id), "fields": fields})
    return documents


def check_ids(ids: Sequence[int | str] | None, n_texts: int) -> Sequence[int | str]:
    """Return ids of texts, 0 to N - 1 for None; ValueError if their number is not N."""
    if ids is None:
        return range(n_texts)
    if len(ids) != n_texts:
        raise ValueError(f"ids must be one per text, found {len(ids)} for {n_texts} texts")
    return ids


def _qdrant_vectors(embeddings: "Embeddings") -> list[dict[str, Any]]:
    vectors: list[dict[str, Any]] = [{} for _ in range(len(embeddings))]
    for i, named in enumerate(vectors):
        if "dense" in embeddings.outputs:
            named["dense"] = embeddings.dense[i].tolist()
        if "sparse" in embeddings.outputs:
            token_ids, weights = _entries(embeddings, i)
            named["sparse"] = {"indices": token_ids.tolist(), "values": weights.tolist()}
        if "multivector" in embeddings.outputs:
            named["multivector"] = embeddings.multivector[i].tolist()
    return vectors


def _entries(embeddings: "Embeddings", i: int) -> tuple[NDArray[np.integer], NDArray[np.float32]]:
    """Return text i's token ids and their weights."""
    sparse = embeddings.sparse
    entries = slice(sparse.indptr[i], sparse.indptr[i + 1])
    return sparse.indices[entries], sparse.data[entries]
