"""Embeddings: the encoder's outputs for a list of texts, from which every score is computed."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array, vstack

from bgem3.scoring.array_files import read_npz, write_npz
from bgem3.scoring.atomic_files import whole_file
from bgem3.scoring.payloads import milvus_rows, qdrant_points, vespa_documents
from bgem3.scoring.storage import load_parts, locked_folder, save_parts
from bgem3.scoring.stored_arrays import DAMAGED, FLOATS, INTEGERS, StoredArrays
from bgem3.scoring.token_vectors import MultiVectors, ranges

Output = TypeVar("Output")
KIND = "embeddings"


class Embeddings:
    """The embeddings of N texts, in the order of the texts.

    Reading an output that was not encoded raises AttributeError. An empty text has two tokens (CLS and EOS), a dense
    vector, no sparse weights and one multi-vector. ``embeddings[2:5]``, ``embeddings[[7, 3]]`` and ``embeddings[mask]``
    are the embeddings of those texts, in that order; ``embeddings[7]`` has that one text.

    Attributes
    ----------
    n_tokens : int32 array (N,)
        Tokens per text, special tokens included.
    truncated : bool array (N,)
        True where a text was longer than ``max_length`` and lost its end.
    dense : float32 array (N, D)
        L2-normalized CLS states.
    sparse : float32 csr_array (N, V)
        One weight per distinct token id, without CLS, PAD, EOS and UNK.
    multivector : MultiVectors of N float32 arrays (tokens_i - 1, M)
        L2-normalized token states, without CLS and with EOS.
    lexical_weights : list of N dicts {str: float32}
        The rows of ``sparse`` by token id, in the order in which a text first weights each: FlagEmbedding's form.
    """

    def __init__(
        self,
        *,
        n_tokens: NDArray[np.int32],
        truncated: NDArray[np.bool_],
        dense: NDArray[np.float32] | None = None,
        sparse: csr_array | None = None,
        first_seen: NDArray[np.int64] | None = None,
        multivector: MultiVectors | None = None,
    ) -> None:
        self.n_tokens = n_tokens
        self.truncated = truncated
        self._dense = dense
        self._sparse = sparse
        self._first_seen = first_seen  # positions (nnz,) in sparse.data, row by row in text order
        self._multivector = multivector

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs that were encoded."""
        return tuple(name for name in ("dense", "sparse", "multivector") if getattr(self, f"_{name}") is not None)

    @property
    def dense(self) -> NDArray[np.float32]:
        return _encoded(self._dense, "dense")

    @property
    def sparse(self) -> csr_array:
        return _encoded(self._sparse, "sparse")

    @property
    def multivector(self) -> MultiVectors:
        return _encoded(self._multivector, "multivector")

    @cached_property
    def lexical_weights(self) -> list[dict[str, np.float32]]:
        sparse = self.sparse
        order = self._text_order
        token_ids, weights = sparse.indices[order].astype(str).tolist(), sparse.data[order]
        return [dict(zip(token_ids[a:b], weights[a:b], strict=True)) for a, b in pairwise(sparse.indptr.tolist())]

    @classmethod
    def concatenate(cls, parts: Sequence["Embeddings"]) -> "Embeddings":
        """Return the texts of all parts, part after part, or raise ValueError if outputs or widths differ."""
        outputs = {part.outputs for part in parts}
        if len(outputs) != 1:
            raise ValueError(f"embeddings to concatenate must have the same outputs, found {sorted(outputs)}")
        arrays: dict[str, Any] = {}
        if parts[0]._dense is not None:
            arrays["dense"] = np.concatenate([part.dense for part in parts])
        if parts[0]._sparse is not None:
            arrays["sparse"] = csr_array(vstack([part.sparse for part in parts], format="csr"))
            starts = np.cumsum([0, *(part.sparse.nnz for part in parts[:-1])])
            arrays["first_seen"] = np.concatenate([p._text_order + n for p, n in zip(parts, starts, strict=True)])
        if parts[0]._multivector is not None:
            arrays["multivector"] = MultiVectors.concatenate([part.multivector for part in parts])
        return cls(
            n_tokens=np.concatenate([part.n_tokens for part in parts]),
            truncated=np.concatenate([part.truncated for part in parts]),
            **arrays,
        )

    def save(self, path: str | Path) -> None:
        """Save to one .npz file if the name ends so, else to a folder that :meth:`load` opens memory-mapped.

        What was there is replaced in one step, or stays as it was if the save is stopped. When this method returns, all
        is on disk. Processes that save to one folder wait for each other.

        Raises
        ------
        ValueError
            If ``path`` is a folder with something else.
        OSError
            If the disk is full or not writable; new files are then removed.
        """
        path, arrays = Path(path), self._arrays()
        if path.suffix == ".npz":
            with whole_file(path) as file:
                write_npz(file, arrays)
        else:
            with locked_folder(path, KIND) as folder:
                save_parts(folder, KIND, [arrays], {"outputs": list(self.outputs)})

    @classmethod
    def load(cls, path: str | Path) -> "Embeddings":
        """Load what :meth:`save` or ``bgem3 encode`` wrote, bit for bit: an .npz file into memory, a folder mapped.

        Raises
        ------
        FileNotFoundError
            If there is nothing at ``path``.
        ValueError
            If there is something else, or it is damaged.
        """
        path = Path(path)
        facts: dict[str, Any] = {}
        if path.suffix == ".npz":
            arrays = read_npz(path)
        else:
            parts, facts = load_parts(path, KIND)
            if len(parts) != 1:
                raise ValueError(f"{path}: embeddings must have one part, found {len(parts)}; {DAMAGED}")
            (arrays,) = parts.values()
        embeddings = cls._from_arrays(StoredArrays(arrays, path))
        outputs = list(embeddings.outputs)
        if facts.get("outputs", outputs) != outputs:  # indexes of earlier versions do not list them
            raise ValueError(f"{path}: its index lists {facts['outputs']!r:.80}, its part has {outputs}; {DAMAGED}")
        return embeddings

    def to_flag(self) -> dict[str, Any]:
        """Return FlagEmbedding's form: ``dense_vecs``, ``lexical_weights`` and ``colbert_vecs``, None if not encoded.

        Each text's lexical weights are a dict of token id (str) to weight, which gives 0 for any other key.
        """
        lexical: Any = None if self._sparse is None else [defaultdict(int, row) for row in self.lexical_weights]
        vectors = None if self._multivector is None else list(self._multivector)
        return {"dense_vecs": self._dense, "lexical_weights": lexical, "colbert_vecs": vectors}

    def to_qdrant(self, ids: Iterable[int | str] | None = None) -> list[dict[str, Any]]:
        """Return one point per text; see :func:`bgem3.scoring.payloads.qdrant_points`."""
        return qdrant_points(self, ids)

    def to_milvus(self, ids: Iterable[int | str] | None = None) -> list[dict[str, Any]]:
        """Return one row per text; see :func:`bgem3.scoring.payloads.milvus_rows`."""
        return milvus_rows(self, ids)

    def to_vespa(self, ids: Iterable[int | str] | None = None) -> list[dict[str, Any]]:
        """Return one document per text; see :func:`bgem3.scoring.payloads.vespa_documents`."""
        return vespa_documents(self, ids)

    @property
    def _text_order(self) -> NDArray[np.int64]:
        """The positions in ``sparse.data``, row by row in text order; in stored order if the text order is unknown."""
        return np.arange(self.sparse.nnz) if self._first_seen is None else self._first_seen

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that :meth:`_from_arrays` reads, by their names in files."""
        arrays: dict[str, NDArray[Any]] = {"n_tokens": self.n_tokens, "truncated": self.truncated}
        if self._dense is not None:
            arrays["dense"] = self._dense
        if self._sparse is not None:
            arrays |= {f"sparse_{part}": getattr(self._sparse, part) for part in ("data", "indices", "indptr")}
            arrays |= {"sparse_shape": np.array(self._sparse.shape), "sparse_first_seen": self._text_order}
        if self._multivector is not None:
            arrays |= self._multivector.without_gaps().arrays()
        self._from_arrays(StoredArrays(arrays, "these embeddings cannot be saved", "loading would refuse it"))
        return arrays

    @classmethod
    def _from_arrays(cls, stored: StoredArrays) -> "Embeddings":
        """Return the embeddings of stored arrays, or raise ValueError if an array is missing or does not fit."""
        n_tokens = stored.take("n_tokens", INTEGERS, (None,))
        n_texts, sparse, first_seen = len(n_tokens), None, None
        if stored.has_output("sparse"):
            sparse = stored.lexical_weights(n_texts)
            if "sparse_first_seen" in stored:
                first_seen = stored.order_within_rows("sparse_first_seen", sparse.indptr)
        return cls(
            n_tokens=n_tokens,
            truncated=stored.take("truncated", ("bool",), (n_texts,)),
            dense=stored.take("dense", FLOATS, (n_texts, None)) if stored.has_output("dense") else None,
            sparse=sparse,
            first_seen=first_seen,
            multivector=MultiVectors.from_arrays(stored, n_texts) if stored.has_output("multivector") else None,
        )

    def __getitem__(self, index: int | slice | ArrayLike) -> "Embeddings":
        texts = np.arange(len(self))[index]  # type: ignore[index]  # negative indices and IndexError as for arrays
        texts = np.atleast_1d(texts)
        arrays: dict[str, Any] = {}
        if self._dense is not None:
            arrays["dense"] = self._dense[texts]
        if self._sparse is not None:
            starts = self._sparse.indptr[texts].astype(np.int64)
            lengths = self._sparse.indptr[texts + 1] - starts
            entries, indptr = ranges(starts, lengths)
            columns = (self._sparse.data[entries], self._sparse.indices[entries], indptr)
            arrays["sparse"] = csr_array(columns, shape=(len(texts), self._sparse.shape[1]))
            arrays["first_seen"] = self._text_order[entries] + np.repeat(indptr[:-1] - starts, lengths)
        if self._multivector is not None:
            arrays["multivector"] = self._multivector.take(texts)
        return Embeddings(n_tokens=self.n_tokens[texts], truncated=self.truncated[texts], **arrays)

    def __len__(self) -> int:
        return len(self.n_tokens)

    def __repr__(self) -> str:
        return f"Embeddings({len(self)} texts, {self.n_tokens.sum()} tokens: {', '.join(self.outputs)})"


def _encoded(output: Output | None, name: str) -> Output:
    """Return an output, or raise AttributeError if it was not encoded."""
    if output is None:
        raise AttributeError(
            f"these embeddings have no {name!r}: it was not asked for, or the model was exported without it; "
            f"encode with outputs=({name!r}, ...) and a model that has this output"
        )
    return output
