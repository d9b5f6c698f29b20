"""FlagEmbedding's class over the bgem3 runtime: change the import, keep the code."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from bgem3.runtime.device import require_cuda
from bgem3.runtime.export_cache import find_or_export
from bgem3.runtime.flagembedding.arguments import (
    Devices,
    check_fixed,
    check_settings,
    stored_precision,
    target_devices,
)
from bgem3.runtime.flagembedding.parts import FlagTokenizer, InnerModel
from bgem3.runtime.heads import OUTPUTS, Output
from bgem3.runtime.model import check_whole_number, split_pairs
from bgem3.runtime.tokenizer import check_texts
from bgem3.scoring import Scores, hybrid, multivector_pair_scores
from bgem3.scoring.hybrid import check_weights

LexicalWeights: TypeAlias = Mapping[str, float]
DEFAULT_LENGTH = 512  # tokens that encode_single_device keeps, whatever the constructor says, as in FlagEmbedding
KEYS: dict[Output, str] = {"dense": "dense_vecs", "sparse": "lexical_weights", "multivector": "colbert_vecs"}


class BGEM3FlagModel:
    """Drop-in for ``FlagEmbedding.BGEM3FlagModel`` (1.4): same arguments, output keys and types.

    Differences, all on purpose: every text is encoded once and alone in effect, so results do not depend on
    the batch; an empty list gives empty results; a ``max_length`` beyond the model's is an error (in the
    constructor it means the model's); and a passage's MaxSim is over its own vectors only (FlagEmbedding lets padding
    put a floor of 0 under it).

    Parameters
    ----------
    model_name_or_path : an artifact folder, a checkpoint folder, or a hub id. A checkpoint is exported on
        first use (needs the export extra) and kept in the user's cache.
    use_fp16 : use the fp16 weights (True) or the fp32 ones; on CPU both compute in float32
    query_instruction_for_retrieval, query_instruction_format : put before each text by :meth:`encode_queries`
    passage_instruction_for_retrieval, passage_instruction_format : likewise by :meth:`encode_corpus`
    devices : None for the best there is, "cpu", "cuda", "cuda:N", N, or a list of one of these. One model serves a
        list that repeats one device, as ["cpu", "cpu"]; a list of several devices is an error.
    cache_dir : where downloads and exports are kept
    batch_size : a list at least this long shows a progress bar; micro-batches are planned by tokens
    query_max_length, passage_max_length : tokens kept per text, CLS and EOS included; at most the model's maximum
    return_dense, return_sparse, return_colbert_vecs : the outputs that the encode methods give by default
    truncate_dim : keep the first dimensions of dense and multi-vectors, and normalise again
    normalize_embeddings, use_bf16, pooling_method, colbert_dim : taken only with the values that BGE-M3's
        graphs compute (True, False, "cls", -1 or the heads' own width); anything else raises
    trust_remote_code : no effect; no code of the checkpoint is ever run
    precision : "fp16", "fp32" or "int8", the weights to use; None for what ``use_fp16`` says. "int8" runs on CPU.
    n_threads : compute threads on CPU, None for as many as the process may use CPUs
    convert_to_numpy : no effect, as in FlagEmbedding: arrays are NumPy's
    device : must be None; FlagEmbedding's name for it is ``devices``

    Attributes
    ----------
    model : the `BGEM3Model`, with ``model.config``, ``sparse_linear`` and ``colbert_linear`` for their sizes
    tokenizer : the checkpoint's, with what callers use of transformers' tokenizers
    target_devices : the device's name, as often as ``devices`` has it

    Raises
    ------
    ValueError
        If an argument asks for something that would change the results and is not supported.
    ArtifactError, CheckpointError, ImportError, RuntimeError
        If the model or the device cannot be had; the message says what to do.
    """

    def __init__(
        self,
        model_name_or_path: str | Path,
        normalize_embeddings: bool = True,
        use_fp16: bool = True,
        use_bf16: bool = False,
        query_instruction_for_retrieval: str | None = None,
        query_instruction_format: str = "{}{}",
        devices: Devices = None,
        pooling_method: str = "cls",
        trust_remote_code: bool = False,
        cache_dir: str | Path | None = None,
        colbert_dim: int = -1,
        batch_size: int = 256,
        query_max_length: int = 512,
        passage_max_length: int = 512,
        return_dense: bool = True,
        return_sparse: bool = False,
        return_colbert_vecs: bool = False,
        truncate_dim: int | None = None,
        passage_instruction_for_retrieval: str | None = None,
        passage_instruction_format: str = "{}{}",
        *,
        precision: str | None = None,
        n_threads: int | None = None,
        convert_to_numpy: bool = True,
        device: None = None,
    ) -> None:
        check_fixed(normalize_embeddings=normalize_embeddings, use_bf16=use_bf16, pooling_method=pooling_method)
        names = target_devices(devices, device)
        precision = stored_precision(precision, use_fp16)
        check_whole_number("n_threads", n_threads)
        if names[0].startswith("cuda"):
            if precision == "int8":
                raise ValueError(f"precision='int8' runs on CPU alone, found devices={devices!r}; use devices='cpu'")
            require_cuda(names[0])
        folder = find_or_export(model_name_or_path, precision, cache_dir)
        model = InnerModel.load(folder, device=names[0], precision=precision, n_threads=n_threads)
        self.model = cast(InnerModel, model)
        spec = self.model.spec
        if colbert_dim not in (-1, 0, spec.multivector_size):
            raise ValueError(f"colbert_dim must be -1 or the head's {spec.multivector_size}, found {colbert_dim!r}")
        if truncate_dim is not None and truncate_dim not in range(1, spec.hidden_size + 1):
            raise ValueError(f"truncate_dim must be from 1 to {spec.hidden_size} or None, found {truncate_dim!r}")
        self.tokenizer = FlagTokenizer(self.model.tokenizer.backend, spec)
        self.target_devices = [self.model.device for _ in names]
        self.model_name_or_path = model_name_or_path
        self.normalize_embeddings, self.pooling_method = normalize_embeddings, pooling_method
        self.use_fp16, self.use_bf16 = use_fp16, use_bf16
        self.convert_to_numpy = convert_to_numpy
        self.query_instruction_for_retrieval = query_instruction_for_retrieval
        self.query_instruction_format = query_instruction_format
        self.passage_instruction_for_retrieval = passage_instruction_for_retrieval
        self.passage_instruction_format = passage_instruction_format
        self.batch_size = batch_size
        self.query_max_length = min(query_max_length, spec.max_length)
        self.passage_max_length = min(passage_max_length, spec.max_length)
        self.return_dense = return_dense
        self.return_sparse = return_sparse
        self.return_colbert_vecs = return_colbert_vecs
        self.truncate_dim = truncate_dim

    def encode(
        self,
        sentences: list[str] | str,
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """Encode N texts; None means the value given to the constructor.

        Parameters
        ----------
        settings : ``instruction`` and ``instruction_format``, put before each text, and keywords that FlagEmbedding
            hands to its tokenizer, such as ``convert_to_numpy``, which are taken where they change no result

        Returns
        -------
        ``dense_vecs`` (N, D) float32 array, ``lexical_weights`` N dicts of token id (str) to weight in order
        of first occurrence (0 for any other key), ``colbert_vecs`` N float32 arrays (tokens - 1, M); None for
        what is not asked for. A single str gives its values without the list around them.

        Raises
        ------
        TypeError, ValueError
            As `BGEM3Model.encode`, and for a keyword that is unknown or would change results.
        """
        instruction, template = settings.pop("instruction", None), settings.pop("instruction_format", "{}{}")
        check_settings("encode", settings)
        sentences = _instruct(sentences, instruction, template)
        texts = check_texts([sentences] if isinstance(sentences, str) else sentences)
        defaults = (self.return_dense, self.return_sparse, self.return_colbert_vecs)
        asked = (return_dense, return_sparse, return_colbert_vecs)
        is_wanted = [default if flag is None else flag for flag, default in zip(asked, defaults, strict=True)]
        outputs = [name for name, wanted in zip(KEYS, is_wanted, strict=True) if wanted]
        if not outputs:
            raise ValueError("return_dense, return_sparse and return_colbert_vecs are all False; set one to True")
        show_progress = len(texts) >= (self.batch_size if batch_size is None else batch_size)
        max_length = self.passage_max_length if max_length is None else max_length
        encoded = self.model.encode(texts, outputs, max_length, show_progress)
        result = encoded.to_flag()
        if "dense" in outputs:
            result["dense_vecs"] = self._truncate(result["dense_vecs"])
        if "multivector" in outputs:
            result["colbert_vecs"] = [self._truncate(vectors) for vectors in result["colbert_vecs"]]
        if isinstance(sentences, str):
            return {key: None if values is None else values[0] for key, values in result.items()}
        return result

    def encode_queries(
        self,
        queries: list[str] | str,
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """Encode queries, each after the query instruction if there is one; otherwise as :meth:`encode`."""
        check_settings("encode_queries", settings)
        instructed = _instruct(queries, self.query_instruction_for_retrieval, self.query_instruction_format)
        max_length = self.query_max_length if max_length is None else max_length
        return self.encode(instructed, batch_size, max_length, return_dense, return_sparse, return_colbert_vecs)

    def encode_corpus(
        self,
        corpus: list[str] | str,
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """Encode passages, each after the passage instruction if there is one; otherwise as :meth:`encode`."""
        check_settings("encode_corpus", settings)
        instructed = _instruct(corpus, self.passage_instruction_for_retrieval, self.passage_instruction_format)
        return self.encode(instructed, batch_size, max_length, return_dense, return_sparse, return_colbert_vecs)

    def encode_single_device(
        self,
        sentences: list[str] | str,
        batch_size: int = 256,
        max_length: int | None = None,
        return_dense: bool = True,
        return_sparse: bool = False,
        return_colbert_vecs: bool = False,
        device: str | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """Encode as :meth:`encode`, with FlagEmbedding's defaults instead of the constructor's values.

        Parameters
        ----------
        max_length : tokens kept per text; None for 512, or the model's maximum where that is less
        device : None or the model's own device
        """
        if device not in (None, *self.target_devices):
            raise ValueError(f"this model is on {self.model.device}, found device={device!r}; make one on that device")
        limit = min(DEFAULT_LENGTH, self.model.spec.max_length) if max_length is None else max_length
        wanted = (return_dense, return_sparse, return_colbert_vecs)
        return self.encode(sentences, batch_size, limit, *wanted, **settings)

    def compute_score(
        self,
        sentence_pairs: Sequence[tuple[str, str]] | tuple[str, str],
        batch_size: int | None = None,
        max_query_length: int | None = None,
        max_passage_length: int | None = None,
        weights_for_different_modes: Sequence[float] | None = None,
        **settings: Any,
    ) -> dict[str, list[float]] | dict[str, float] | list[float]:
        """Score pairs; each distinct text is encoded once.

        Parameters
        ----------
        sentence_pairs : N (query, passage) pairs, or one pair
        weights_for_different_modes : of dense, sparse and multi-vector, None for equal ones
        settings : as in :meth:`encode`

        Returns
        -------
        N floats under each of ``colbert``, ``sparse``, ``dense``, ``sparse+dense`` and
        ``colbert+sparse+dense``; single floats for one pair; ``[]`` for an empty list. ``sparse+dense`` is
        NaN where the dense and sparse weights sum to 0.
        """
        check_settings("compute_score", settings)
        is_one_pair = isinstance(sentence_pairs, (list, tuple)) and isinstance(next(iter(sentence_pairs), None), str)
        queries, passages = split_pairs([sentence_pairs] if is_one_pair else sentence_pairs)  # type: ignore[arg-type, list-item]
        if not queries:
            return []
        weights = check_weights((1.0, 1.0, 1.0) if weights_for_different_modes is None else weights_for_different_modes)
        lengths = (
            self.query_max_length if max_query_length is None else max_query_length,
            self.passage_max_length if max_passage_length is None else max_passage_length,
        )
        show_progress = len(queries) >= (self.batch_size if batch_size is None else batch_size)
        scores = self._score_pairs(queries, passages, lengths, weights, show_progress)
        w_dense, w_sparse, _ = (np.float32(w) for w in weights)
        with np.errstate(invalid="ignore", divide="ignore"):
            sparse_dense = (w_sparse * scores.sparse + w_dense * scores.dense) / (w_sparse + w_dense)
        result = {
            "colbert": scores.multivector.tolist(),
            "sparse": scores.sparse.tolist(),
            "dense": scores.dense.tolist(),
            "sparse+dense": sparse_dense.tolist(),
            "colbert+sparse+dense": scores.hybrid.tolist(),
        }
        return {key: values[0] for key, values in result.items()} if is_one_pair else result

    def compute_lexical_matching_score(
        self,
        lexical_weights_1: LexicalWeights | Sequence[LexicalWeights],
        lexical_weights_2: LexicalWeights | Sequence[LexicalWeights],
    ) -> float | NDArray[np.floating]:
        """Sum ``w_1 · w_2`` over shared tokens: a number for two dicts, a matrix for two lists of dicts.

        Raises
        ------
        ValueError
            If the two are not both dicts or both lists.
        """
        if isinstance(lexical_weights_1, Mapping) and isinstance(lexical_weights_2, Mapping):
            weights_2 = lexical_weights_2
            return sum(weight * weights_2[token] for token, weight in lexical_weights_1.items() if token in weights_2)
        if isinstance(lexical_weights_1, list) and isinstance(lexical_weights_2, list):
            rows = [[self.compute_lexical_matching_score(a, b) for b in lexical_weights_2] for a in lexical_weights_1]
            return np.array(rows)
        raise ValueError(
            "lexical weights must be two dicts or two lists of dicts, found "
            f"{type(lexical_weights_1).__name__} and {type(lexical_weights_2).__name__}"
        )

    def colbert_score(self, q_reps: NDArray[np.floating], p_reps: NDArray[np.floating]) -> np.float32:
        """Return the MaxSim score of two texts' multi-vectors, (N, M) and (P, M), as a NumPy scalar."""
        return np.float32(multivector_pair_scores([q_reps], [p_reps])[0])

    def convert_id_to_token(
        self, lexical_weights: LexicalWeights | Sequence[LexicalWeights]
    ) -> dict[str, float] | list[dict[str, float]]:
        """Replace token ids by the tokens' texts; one dict, or a list of one, gives one dict."""
        rows = [lexical_weights] if isinstance(lexical_weights, Mapping) else lexical_weights
        named = [{self.model.tokenizer.token(int(i)): weight for i, weight in row.items()} for row in rows]
        return named[0] if len(named) == 1 else named

    def stop_self_pool(self) -> None:
        """Do nothing: there is no pool of processes to stop. :meth:`close` releases the model's memory."""

    def close(self) -> None:
        """Release the model's memory."""
        self.model.close()

    def _score_pairs(
        self,
        queries: list[str],
        passages: list[str],
        lengths: tuple[int, int],
        weights: tuple[float, float, float],
        show_progress: bool,
    ) -> Scores:
        """Encode the distinct texts of both sides, together where one length holds for both."""
        if lengths[0] == lengths[1]:
            pairs = list(zip(queries, passages, strict=True))
            return self.model.score_pairs(pairs, weights, lengths[0], show_progress)
        sides = []
        for texts, max_length in zip((queries, passages), lengths, strict=True):
            place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
            encoded = self.model.encode(list(place), OUTPUTS, max_length, show_progress)
            sides.append((encoded, [place[text] for text in texts]))
        return hybrid.score_pairs(*sides[0], *sides[1], weights)

    def _truncate(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.truncate_dim is None:
            return vectors
        kept = vectors[:, : self.truncate_dim]
        return np.asarray(kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-12))


def _instruct(texts: list[str] | str, instruction: str | None, template: str) -> list[str] | str:
    if instruction is None:
        return texts
    template = template.replace("\\n", "\n")
    if isinstance(texts, str):
        return template.format(instruction, *check_texts([texts]))
    return [template.format(instruction, text) for text in check_texts(texts)]
