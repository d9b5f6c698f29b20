"""Writers of embeddings: JSON lines, .npz and .parquet."""

import codecs
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
from numpy.typing import NDArray

from bgem3.scoring import Embeddings
from bgem3.scoring.array_files import write_npz
from bgem3.scoring.atomic_files import whole_file

SUFFIXES = (".jsonl", ".npz", ".parquet")


def write_jsonl(chunks: Iterable[Embeddings], file: TextIO | codecs.StreamWriter) -> None:
    """Write one JSON object per text: ``n_tokens``, ``truncated`` and the outputs that were computed.

    ``sparse`` is an object of token id to weight, ``multivector`` a list of vectors.
    """
    for chunk in chunks:
        lexical_weights = chunk.lexical_weights if "sparse" in chunk.outputs else []
        for i in range(len(chunk)):
            row: dict[str, Any] = {"n_tokens": int(chunk.n_tokens[i]), "truncated": bool(chunk.truncated[i])}
            if "dense" in chunk.outputs:
                row["dense"] = chunk.dense[i].tolist()
            if "sparse" in chunk.outputs:
                row["sparse"] = {token_id: float(weight) for token_id, weight in lexical_weights[i].items()}
            if "multivector" in chunk.outputs:
                row["multivector"] = chunk.multivector[i].tolist()
            file.write(json.dumps(row) + "\n")


def write_file(chunks: Iterable[Embeddings], path: Path) -> None:
    """Write embeddings in the format that the path's suffix names. The file appears whole or not at all.

    An existing file keeps its mode. A link stays, and the file that it points to is replaced.

    .npz is what ``Embeddings.load`` takes. .parquet has one row per text, and needs pyarrow.
    """
    check_suffix(path)
    with whole_file(path) as file:
        if path.suffix == ".jsonl":
            write_jsonl(chunks, codecs.getwriter("utf-8")(file))
        elif path.suffix == ".npz":
            write_npz(file, Embeddings.concatenate(list(chunks))._arrays())
        else:
            _write_parquet(chunks, file)


def check_suffix(path: Path) -> None:
    """Raise ValueError if the path's suffix names no format."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"cannot tell the format of {path}; name the file with one of {', '.join(SUFFIXES)}")


def _write_parquet(chunks: Iterable[Embeddings], file: BinaryIO) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("writing .parquet needs pyarrow: `pip install 'bgem3[parquet]'`, or write .jsonl") from error
    writer = None
    try:
        for chunk in chunks:
            table = pyarrow.table(_arrow_columns(chunk, pyarrow))
            writer = writer or pyarrow.parquet.ParquetWriter(file, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _arrow_columns(chunk: Embeddings, pyarrow: Any) -> dict[str, Any]:
    """Return Arrow columns of the embeddings' arrays, without a Python object for each number."""

    def lists(offsets: NDArray[np.integer], values: Any) -> Any:
        return pyarrow.ListArray.from_arrays(pyarrow.array(offsets, pyarrow.int32()), values)

    def rows(matrix: NDArray[np.float32]) -> Any:
        n_rows, n_dims = matrix.shape
        return lists(np.arange(n_rows + 1) * n_dims, pyarrow.array(matrix.ravel()))

    columns = {"n_tokens": pyarrow.array(chunk.n_tokens), "truncated": pyarrow.array(chunk.truncated)}
    if "dense" in chunk.outputs:
        columns["dense"] = rows(chunk.dense)
    if "sparse" in chunk.outputs:
        token_ids = [token_id for row in chunk.lexical_weights for token_id in row]
        weights = [weight for row in chunk.lexical_weights for weight in row.values()]
        offsets = pyarrow.array(chunk.sparse.indptr, pyarrow.int32())
        keys, items = pyarrow.array(token_ids, pyarrow.string()), pyarrow.array(weights, pyarrow.float32())
        columns["sparse"] = pyarrow.MapArray.from_arrays(offsets, keys, items)
    if "multivector" in chunk.outputs:
        vectors = chunk.multivector
        columns["multivector"] = lists(vectors.offsets, rows(vectors.rows(0, len(vectors.packed))))
    return columns
