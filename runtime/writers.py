"""Embeddings to files: JSON lines, .npz or .parquet."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from scipy.sparse import vstack

from bgem3.scoring import Embeddings

SUFFIXES = (".jsonl", ".npz", ".parquet")


def write_jsonl(chunks: Iterable[Embeddings], file: TextIO) -> None:
    """Write one JSON object per text: ``n_tokens``, ``truncated`` and the outputs there are.

    ``sparse`` is an object of token id to weight, ``multivector`` a list of vectors.
    """
    for chunk in chunks:
        for row in _rows(chunk):
            file.write(json.dumps(row) + "\n")


def write_file(chunks: Iterable[Embeddings], path: Path) -> None:
    """Write embeddings in the format of the path's suffix; the file appears whole or not at all.

    .npz holds ``n_tokens``, ``truncated``, ``dense``, ``sparse_data/indices/indptr/shape`` (CSR), and
    ``multivector`` (packed) with ``multivector_offsets``; .parquet one row per text, written as it is encoded.

    Raises
    ------
    ValueError
        If the suffix is none of .jsonl, .npz and .parquet.
    ImportError
        If .parquet is asked for and pyarrow is not installed.
    """
    check_suffix(path)
    with _whole_file(path) as partial:
        if path.suffix == ".jsonl":
            with partial.open("w", encoding="utf-8") as file:
                write_jsonl(chunks, file)
        elif path.suffix == ".npz":
            _write_npz(list(chunks), partial)
        else:
            _write_parquet(chunks, partial)


def check_suffix(path: Path) -> None:
    """Raise ValueError if no format has the path's suffix."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"cannot tell the format of {path}; name the file with one of {', '.join(SUFFIXES)}")


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _rows(chunk: Embeddings) -> Iterator[dict[str, Any]]:
    lexical_weights = chunk.lexical_weights if "sparse" in chunk.outputs else []
    for i in range(len(chunk)):
        row: dict[str, Any] = {"n_tokens": int(chunk.n_tokens[i]), "truncated": bool(chunk.truncated[i])}
        if "dense" in chunk.outputs:
            row["dense"] = chunk.dense[i].tolist()
        if "sparse" in chunk.outputs:
            row["sparse"] = {token_id: float(weight) for token_id, weight in lexical_weights[i].items()}
        if "multivector" in chunk.outputs:
            row["multivector"] = chunk.multivector[i].tolist()
        yield row


def _write_npz(chunks: list[Embeddings], path: Path) -> None:
    arrays: dict[str, Any] = {
        "n_tokens": np.concatenate([chunk.n_tokens for chunk in chunks]),
        "truncated": np.concatenate([chunk.truncated for chunk in chunks]),
    }
    outputs = chunks[0].outputs
    if "dense" in outputs:
        arrays["dense"] = np.concatenate([chunk.dense for chunk in chunks])
    if "sparse" in outputs:
        sparse = vstack([chunk.sparse for chunk in chunks], format="csr")
        arrays |= {f"sparse_{part}": getattr(sparse, part) for part in ("data", "indices", "indptr", "shape")}
    if "multivector" in outputs:
        arrays["multivector"] = np.concatenate([chunk.multivector.packed for chunk in chunks])
        arrays["multivector_offsets"] = np.concatenate([[0], np.cumsum(arrays["n_tokens"].astype(np.int64) - 1)])
    with path.open("wb") as file:
        np.savez(file, **arrays)


def _write_parquet(chunks: Iterable[Embeddings], path: Path) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("writing .parquet needs pyarrow: `pip install 'bgem3[parquet]'`, or write .jsonl") from error
    types = {
        "dense": pyarrow.list_(pyarrow.float32()),
        "sparse": pyarrow.map_(pyarrow.string(), pyarrow.float32()),
        "multivector": pyarrow.list_(pyarrow.list_(pyarrow.float32())),
    }
    fields = {"n_tokens": pyarrow.int32(), "truncated": pyarrow.bool_()}
    writer = None
    for chunk in chunks:
        schema = pyarrow.schema(fields | {name: types[name] for name in chunk.outputs})
        rows = [row | ({"sparse": list(row["sparse"].items())} if "sparse" in row else {}) for row in _rows(chunk)]
        writer = writer or pyarrow.parquet.ParquetWriter(path, schema)
        writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
    if writer is not None:
        writer.close()
