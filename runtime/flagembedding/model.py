"""FlagEmbedding's class over the bgem3 runtime: change the import, keep the code."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from bgem3.runtime.arguments import check_whole_number, split_pairs
from bgem3.runtime.device import require_cuda
from bgem3.runtime.export_cache import find_or_export
from bgem3.runtime.flagembedding.arguments import (
    Devices,
    check_fixed,
    check_sizes,
    check_tokenizer_keywords,
    instruct,
    stored_precision,
    target_devices,
)
from bgem3.runtime.flagembedding.inner_model import InnerModel
from bgem3.runtime.flagembedding.scores import LexicalWeights, lexical_matching_score, named_scores
from bgem3.runtime.flagembedding.tokenizer import FlagTokenizer
from bgem3.runtime.manifest import OUTPUTS
from bgem3.runtime.texts import check_texts
from bgem3.scoring import Scores, multivector_pair_scores
from bgem3.scoring.hybrid import Weights, check_weights, score_pairs

DEFAULT_LENGTH = 512  # tokens per text in encode_single_device, as in FlagEmbedding


class BGEM3FlagModel:
    """Drop-in for ``FlagEmbedding.BGEM3FlagModel`` (1.4): same arguments, output keys and types.

    Four differences are intended. A text's results do not depend on its batch. An empty list gives empty results. A
    ``max_length`` beyond the model's raises ValueError (in the constructor it means the model's). MaxSim compares a
    passage's own vectors only; FlagEmbedding's padding raises negative scores to 0.

    Parameters that are not listed mean what they mean in FlagEmbedding.

    Parameters
    ----------
    model_name_or_path : str or Path
        An artifact folder, a checkpoint folder, or a hub id. A checkpoint is exported on first use, which needs the
        export extra, and the export stays in the user's cache or in ``cache_dir``.
    normalize_embeddings, use_bf16, pooling_method, colbert_dim
        Accepted with the values that BGE-M3's graphs compute: True, False, "cls", and -1 or the head's width.
    use_fp16 : bool
        Use the fp16 weights (True) or the fp32 ones. On CPU both compute in float32.
    devices : str, int, sequence or None
        None for the best device, "cpu", "cuda", "cuda:N", N, or a list that repeats one of these.
    trust_remote_code, convert_to_numpy : bool
        No effect: no code of a checkpoint is run, and arrays are NumPy's.
    batch_size : int
        A list at least this long shows a progress bar.
    precision : str or None
        "fp16", "fp32" or "int8" (CPU only), the weights to use; None takes what ``use_fp16`` says.
    n_threads : int or None
        Compute threads on CPU; None takes one for each CPU that the process may use.

    Attributes
    ----------
    model : `BGEM3Model`, with ``model.config``, ``sparse_linear`` and ``colbert_linear`` for their sizes
    tokenizer : `FlagTokenizer`

    Raises
    ------
    ValueError
        If an argument asks for something that would change the results.
    ArtifactError, CheckpointError, ImportError, RuntimeError
        If the model or the device is not available; the message says what to do.
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
        if names[0].startswith("cuda"):  # what an export could not help is refused before it
            if precision == "int8":
                raise ValueError(f"precision='int8' runs on CPU alone, found devices={devices!r}; use devices='cpu'")
            require_cuda(names[0])
        folder = find_or_export(model_name_or_path, precision, cache_dir)
        model = InnerModel.load(folder, device=names[0], precision=precision, n_threads=n_threads)
        self.model = cast(InnerModel, model)
        check_sizes(model.spec, colbert_dim, truncate_dim)
        self.tokenizer = FlagTokenizer(model.tokenizer.backend, model.spec)
        self.target_devices = [model.device for _ in names]
        self.model_name_or_path = model_name_or_path
        self.normalize_embeddings, self.pooling_method = normalize_embeddings, pooling_method
        self.use_fp16, self.use_bf16 = use_fp16, use_bf16
        self.convert_to_numpy = convert_to_numpy
        self.query_instruction_for_retrieval = query_instruction_for_retrieval
        self.query_instruction_format = query_instruction_format
        self.passage_instruction_for_retrieval = passage_instruction_for_retrieval
        self.passage_instruction_format = passage_instruction_format
        self.batch_size = batch_size
        self.query_max_length = min(query_max_length, model.spec.max_length)
        self.passage_max_length = min(passage_max_length, model.spec.max_length)
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
        """Encode N texts. None means the value given to the constructor.

        ``settings`` are ``instruction`` and ``instruction_format``, put before each text, and keywords of
        FlagEmbedding's tokenizer. One that is unknown, or would change results, raises TypeError or ValueError.

        Returns
        -------
        dict
            ``dense_vecs`` float32 array (N, D), ``lexical_weights`` N dicts of token id (str) to weight in order of
            first occurrence, ``colbert_vecs`` N float32 arrays (tokens - 1, M). None stands for an output not asked
            for. A single str gives its values without the list around them.
        """
        instruction, template = settings.pop("instruction", None), settings.pop("instruction_format", "{}{}")
        check_tokenizer_keywords("encode", settings)
        sentences = instruct(sentences, instruction, template)
        texts = check_texts([sentences] if isinstance(sentences, str) else sentences)
        defaults = (self.return_dense, self.return_sparse, self.return_colbert_vecs)
        asked = zip(OUTPUTS, (return_dense, return_sparse, return_colbert_vecs), defaults, strict=True)
        outputs = [name for name, flag, default in asked if (default if flag is None else flag)]
        if not outputs:
            raise ValueError("return_dense, return_sparse and return_colbert_vecs are all False; set one to True")
        max_length = self.passage_max_length if max_length is None else max_length
        result = self.model.encode(texts, outputs, max_length, self._has_progress(texts, batch_size)).to_flag()
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
        """Encode queries as `encode` does, each after the query instruction."""
        check_tokenizer_keywords("encode_queries", settings)
        instructed = instruct(queries, self.query_instruction_for_retrieval, self.query_instruction_format)
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
        """Encode passages as `encode` does, each after the passage instruction."""
        check_tokenizer_keywords("encode_corpus", settings)
        instructed = instruct(corpus, self.passage_instruction_for_retrieval, self.passage_instruction_format)
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
        """Encode as `encode` does, with FlagEmbedding's defaults instead of the constructor's values.

        ``max_length`` None means 512 tokens, or the model's maximum if it is smaller. ``device`` must be the model's
        own.
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
        """Score N (query, passage) pairs, or one pair; each distinct text is encoded once.

        ``weights_for_different_modes`` are those of the dense, sparse and multi-vector score; None means equal ones.

        Returns
        -------
        dict or list
            N floats under each of ``colbert``, ``sparse``, ``dense``, ``sparse+dense`` and ``colbert+sparse+dense``;
            single floats for one pair; ``[]`` for an empty list. ``sparse+dense`` is
            ``(w_s·sparse + w_d·dense) / (w_s + w_d)``: NaN or infinite if these two weights sum to 0.
        """
        check_tokenizer_keywords("compute_score", settings)
        is_one_pair = isinstance(sentence_pairs, (list, tuple)) and isinstance(next(iter(sentence_pairs), None), str)
        queries, passages = split_pairs([sentence_pairs] if is_one_pair else sentence_pairs)  # type: ignore[arg-type, list-item]
        if not queries:
            return []
        weights = check_weights((1.0, 1.0, 1.0) if weights_for_different_modes is None else weights_for_different_modes)
        query_length = self.query_max_length if max_query_length is None else max_query_length
        passage_length = self.passage_max_length if max_passage_length is None else max_passage_length
        show_progress = self._has_progress(queries, batch_size)
        scores = self._score(queries, passages, query_length, passage_length, weights, show_progress)
        result = named_scores(scores, weights)
        return {key: values[0] for key, values in result.items()} if is_one_pair else result

    compute_lexical_matching_score = staticmethod(lexical_matching_score)

    def colbert_score(self, q_reps: NDArray[np.floating], p_reps: NDArray[np.floating]) -> np.float32:
        """Return the MaxSim score of two texts' multi-vectors, (N, M) and (P, M)."""
        return np.float32(multivector_pair_scores([q_reps], [p_reps])[0])

    def convert_id_to_token(
        self, lexical_weights: LexicalWeights | Sequence[LexicalWeights]
    ) -> dict[str, float] | list[dict[str, float]]:
        """Replace token ids by the tokens' texts; one dict, or a list of one, gives one dict."""
        rows = [lexical_weights] if isinstance(lexical_weights, Mapping) else lexical_weights
        named = [{self.model.tokenizer.token(int(i)): weight for i, weight in row.items()} for row in rows]
        return named[0] if len(named) == 1 else named

    def stop_self_pool(self) -> None:
        """Do nothing: there is no pool of processes. `close` releases the model's memory."""

    def close(self) -> None:
        """Release the model's memory."""
        self.model.close()

    def _has_progress(self, texts: Sequence[str], batch_size: int | None) -> bool:
        return len(texts) >= (self.batch_size if batch_size is None else batch_size)

    def _score(
        self,
        queries: list[str],
        passages: list[str],
        query_length: int,
        passage_length: int,
        weights: Weights,
        show_progress: bool,
    ) -> Scores:
        if query_length == passage_length:
            pairs = list(zip(queries, passages, strict=True))
            return self.model.score_pairs(pairs, weights, query_length, show_progress)
        sides = []
        for texts, max_length in ((queries, query_length), (passages, passage_length)):
            place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
            encoded = self.model.encode(list(place), OUTPUTS, max_length, show_progress)
            sides.append((encoded, [place[text] for text in texts]))
        return score_pairs(*sides[0], *sides[1], weights)

    def _truncate(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.truncate_dim is None:
            return vectors
        cut = vectors[:, : self.truncate_dim]
        return np.asarray(cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-12))
