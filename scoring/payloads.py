"""Embeddings as the plain dicts that vector databases take; no client library is needed here."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from bgem3.scoring.ids import check_range, one_kind, plain_ids

UINT64 = range(2**64)


class Encoded(Protocol):
    """The part of :class:`bgem3.scoring.Embeddings` that payloads are made from."""

    @property
    def outputs(self) -> tuple[str, ...]: ...
    @property
    def dense(self) -> NDArray[np.float32]: ...
    @property
    def sparse(self) -> csr_array: ...
    @property
    def multivector(self) -> Sequence[NDArray[np.float32]]: ...
    def __len__(self) -> int: ...


def qdrant_points(embeddings: Encoded, ids: Iterable[int | str] | None = None) -> list[dict[str, Any]]:
    """Return a Qdrant point per text, whose named vectors are the outputs: ``dense``, ``sparse``, ``multivector``.

    Each point is what ``qdrant_client.models.PointStruct(**point)`` and, as JSON, Qdrant's REST API take. Configure
    the vectors with ``Distance.DOT`` (COSINE is the same for unit vectors), and the multi-vectors also with
    ``MultiVectorConfig(comparator=MultiVectorComparator.MAX_SIM)``. Qdrant's MAX_SIM is a sum over the query's
    vectors. Divide its weight by their number to get the mean, which is the multi-vector score.

    Parameters
    ----------
    embeddings : Embeddings
        N texts.
    ids : iterable of N ints or strs
        Whole numbers from 0 to 2**64 - 1, or UUIDs; None for 0 to N - 1. NumPy's and pandas' values become plain ints
        and strs, and a ``uuid.UUID`` becomes a string.

    Raises
    ------
    ValueError
        If there are not N ids, or an id is neither; the message names its position.
    """
    plain = plain_ids(ids, len(embeddings))
    check_range(plain, UINT64)
    vectors = _fields(embeddings, sparse=lambda token_ids, weights: {"indices": token_ids, "values": weights})
    return [{"id": text_id, "vector": named, "payload": {}} for text_id, named in zip(plain, vectors, strict=True)]


def milvus_rows(embeddings: Encoded, ids: Iterable[int | str] | None = None) -> list[dict[str, Any]]:
    """Return a row per text for ``MilvusClient.insert``: ``id`` and the outputs.

    ``dense`` fits a FLOAT_VECTOR field and ``sparse`` ({token id: weight}) a SPARSE_FLOAT_VECTOR field, both with
    metric IP. ``multivector`` fits an ARRAY of STRUCT (Milvus 2.6) with one FLOAT_VECTOR ``vector``; remove it for a
    server without such fields. A text without lexical weights, such as an empty text, has an empty ``sparse``.
    Milvus Lite 3.2 refuses such rows: remove them there.

    Parameters
    ----------
    embeddings : Embeddings
        N texts.
    ids : iterable of N ints or strs
        All INT64 or all VARCHAR, else ValueError is raised; None for 0 to N - 1.
    """
    plain = one_kind(plain_ids(ids, len(embeddings)))
    fields = _fields(
        embeddings,
        sparse=lambda token_ids, weights: dict(zip(token_ids, weights, strict=True)),
        multivector=lambda vectors: [{"vector": vector} for vector in vectors],
    )
    return [{"id": text_id, **row} for text_id, row in zip(plain, fields, strict=True)]


def vespa_documents(embeddings: Encoded, ids: Iterable[int | str] | None = None) -> list[dict[str, Any]]:
    """Return a document per text for pyvespa's ``feed_iterable``: ``id`` (str) and ``fields``, the outputs.

    With D and M as the widths, the fields' types are ``dense`` tensor<float>(x[D]), ``sparse`` tensor<float>(token{})
    and ``multivector`` tensor<float>(vector{}, x[M]).

    Parameters
    ----------
    embeddings : Embeddings
        N texts.
    ids : iterable of N ints or strs
        Whole numbers and strings, else ValueError is raised; None for 0 to N - 1.
    """
    documents = _fields(
        embeddings,
        dense=lambda vector: {"values": vector},
        sparse=lambda token_ids, weights: {"cells": dict(zip(map(str, token_ids), weights, strict=True))},
        multivector=lambda vectors: {"blocks": {str(i): vector for i, vector in enumerate(vectors)}},
    )
    plain = plain_ids(ids, len(embeddings))
    return [{"id": str(text_id), "fields": fields} for text_id, fields in zip(plain, documents, strict=True)]


def _fields(
    embeddings: Encoded,
    sparse: Callable[[list[int], list[float]], Any],
    dense: Callable[[list[float]], Any] = lambda vector: vector,
    multivector: Callable[[list[list[float]]], Any] = lambda vectors: vectors,
) -> Iterator[dict[str, Any]]:
    """Yield the outputs of each text as plain lists, each in the form that its function gives."""
    for i in range(len(embeddings)):
        fields = {}
        if "dense" in embeddings.outputs:
            fields["dense"] = dense(embeddings.dense[i].tolist())
        if "sparse" in embeddings.outputs:
            entries = slice(embeddings.sparse.indptr[i], embeddings.sparse.indptr[i + 1])
            fields["sparse"] = sparse(
                embeddings.sparse.indices[entries].tolist(), embeddings.sparse.data[entries].tolist()
            )
        if "multivector" in embeddings.outputs:
            fields["multivector"] = multivector(embeddings.multivector[i].tolist())
        yield fields
