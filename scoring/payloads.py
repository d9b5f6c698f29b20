"""Embeddings in the forms that vector databases take, as plain dicts: no client library is needed here."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bgem3.scoring.ids import check_range, one_kind, plain_ids

if TYPE_CHECKING:
    from bgem3.scoring.embeddings import Embeddings

UINT64 = range(2**64)


def qdrant_points(embeddings: "Embeddings", ids: Iterable[int | str] | None = None) -> list[dict[str, Any]]:
    """Return a point per text, with named vectors ``dense``, ``sparse`` and ``multivector``, those that are held.

    Each point is what ``qdrant_client.models.PointStruct(**point)`` takes, and Qdrant's REST API as JSON. The
    collection's vectors compare by ``Distance.DOT`` (COSINE is the same for unit vectors), the multi-vectors with
    ``MultiVectorConfig(comparator=MultiVectorComparator.MAX_SIM)``, which is the *sum* over the query's vectors:
    divide its weight by their number to get the mean that the multi-vector score is.

    Parameters
    ----------
    embeddings : N texts
    ids : N whole numbers from 0 to 2**64 - 1, or UUIDs; any iterable, None for 0 to N - 1. NumPy's and pandas' values
        become plain ints and strs, a ``uuid.UUID`` its string.

    Raises
    ------
    ValueError
        If the number of ids differs, or one is neither; the message names its position.
    """
    plain = plain_ids(ids, len(embeddings))
    check_range(plain, UINT64)
    return [
        {"id": text_id, "vector": vectors, "payload": {}}
        for text_id, vectors in zip(plain, _qdrant_vectors(embeddings), strict=True)
    ]


def milvus_rows(embeddings: "Embeddings", ids: Iterable[int | str] | None = None) -> list[dict[str, Any]]:
    """Return a row per text for ``MilvusClient.insert``: ``id``, and ``dense``, ``sparse``, ``multivector`` if held.

    ``dense`` is for a FLOAT_VECTOR field, ``sparse`` ({token id: weight}) for a SPARSE_FLOAT_VECTOR one, both with
    metric IP. ``multivector`` is for an ARRAY of STRUCT (Milvus 2.6) with one FLOAT_VECTOR ``vector``; leave it out
    where the server has no such field. A text without lexical weights, such as an empty one, has an empty ``sparse``,
    which Milvus Lite 3.2 refuses: leave such rows out there.

    Parameters, Raises
    ------------------
    As :func:`qdrant_points`; ids are all INT64 or all VARCHAR.
    """
    rows: list[dict[str, Any]] = [{"id": text_id} for text_id in one_kind(plain_ids(ids, len(embeddings)))]
    for i, row in enumerate(rows):
        if "dense" in embeddings.outputs:
            row["dense"] = embeddings.dense[i].tolist()
        if "sparse" in embeddings.outputs:
            token_ids, weights = _entries(embeddings, i)
            row["sparse"] = dict(zip(token_ids.tolist(), weights.tolist(), strict=True))
        if "multivector" in embeddings.outputs:
            row["multivector"] = [{"vector": vector} for vector in embeddings.multivector[i].tolist()]
    return rows


def vespa_documents(embeddings: "Embeddings", ids: Iterable[int | str] | None = None) -> list[dict[str, Any]]:
    """Return a document per text for pyvespa's ``feed_iterable``: ``id`` (str), ``fields`` with what is held.

    The fields' types, D and M being the widths: ``dense`` tensor<float>(x[D]), ``sparse`` tensor<float>(token{}),
    ``multivector`` tensor<float>(vector{}, x[M]).

    Parameters, Raises
    ------------------
    As :func:`qdrant_points`; ids are any whole numbers or strings.
    """
    documents = []
    for i, text_id in enumerate(plain_ids(ids, len(embeddings))):
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
