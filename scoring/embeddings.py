"""What the encoder gives for a list of texts: the input of every score."""

from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from bgem3.scoring.multivector import MultiVectors

Output = TypeVar("Output")


class Embeddings:
    """The embeddings of N texts, in the order the texts were given.

    Attributes
    ----------
    n_tokens : (N,) int32 array, tokens encoded per text, special tokens included
    truncated : (N,) bool array, True where a text was longer than ``max_length`` and lost its end
    dense : (N, D) float32 array, L2-normalised CLS states
    sparse : (N, V) float32 csr_array, one weight per distinct token id, CLS, PAD, EOS and UNK left out
    multivector : N float32 arrays (tokens_i - 1, M), L2-normalised, CLS dropped and EOS kept
    lexical_weights : the rows of ``sparse`` as dicts of token id (str) to weight, in the order in which
        the text first gives a token a weight: FlagEmbedding's form

    An empty text has two tokens (CLS and EOS), a dense vector, no sparse weights and one multi-vector.
    Reading an output that was not asked for raises AttributeError.
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
        self._first_seen = first_seen  # (sparse.nnz,) positions in sparse.data, row by row in text order
        self._multivector = multivector

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs these embeddings hold."""
        held = {"dense": self._dense, "sparse": self._sparse, "multivector": self._multivector}
        return tuple(name for name, values in held.items() if values is not None)

    @property
    def dense(self) -> NDArray[np.float32]:
        return _asked_for(self._dense, "dense")

    @property
    def sparse(self) -> csr_array:
        return _asked_for(self._sparse, "sparse")

    @property
    def multivector(self) -> MultiVectors:
        return _asked_for(self._multivector, "multivector")

    @cached_property
    def lexical_weights(self) -> list[dict[str, np.float32]]:
        sparse = self.sparse
        order = np.arange(sparse.nnz) if self._first_seen is None else self._first_seen
        token_ids, weights = sparse.indices[order].astype(str).tolist(), sparse.data[order]
        rows = zip(sparse.indptr[:-1].tolist(), sparse.indptr[1:].tolist(), strict=True)
        return [dict(zip(token_ids[a:b], weights[a:b], strict=True)) for a, b in rows]

    def __len__(self) -> int:
        return len(self.n_tokens)

    def __repr__(self) -> str:
        return f"Embeddings({len(self)} texts, {self.n_tokens.sum()} tokens: {', '.join(self.outputs)})"


def _asked_for(output: Output | None, name: str) -> Output:
    if output is None:
        raise AttributeError(
            f"these embeddings have no {name!r}, because it was not asked for; encode with outputs=({name!r}, ...)"
        )
    return output
