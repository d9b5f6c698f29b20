"""BGEM3Model: an artifact folder, opened for encoding and scoring."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NoReturn

from tqdm import tqdm

from bgem3.runtime.arguments import check_outputs, check_whole_number, split_pairs
from bgem3.runtime.artifact import TOKENIZER_FILE, Artifact, ArtifactError, read_artifact
from bgem3.runtime.device import open_encoder
from bgem3.runtime.encoder_session import CLOSED, EncoderSession
from bgem3.runtime.forks import check_process
from bgem3.runtime.manifest import OUTPUTS, ModelSpec, Output
from bgem3.runtime.packing import PackedBatch, pack, plan_batches
from bgem3.runtime.results import ResultArrays
from bgem3.runtime.texts import check_texts, cut_texts
from bgem3.runtime.tokenizer import TextTokenizer
from bgem3.scoring import Embeddings, Scores, Weights, hybrid
from bgem3.scoring.hybrid import DEFAULT_WEIGHTS, check_weights

CHARACTERS_PER_CHUNK = 250_000  # tokenized at once; enough for several micro-batches on any device


class BGEM3Model:
    """BGE-M3 with its three heads, over one ONNX Runtime session.

    :meth:`load` opens a model; :meth:`close` or a ``with`` block closes it. Many threads may call every method at once:
    they share the session's thread pool. An interrupt (Ctrl-C) ends only the call of its own thread. A signal handler
    may encode, too; on CUDA that raises RuntimeError if the handler interrupts encode itself.

    A model stays in its process. Pickling or copying it raises TypeError. Encoding raises RuntimeError in a process
    that was forked after the model was loaded, so load the model in each process. A program that imports onnxruntime
    before it loads a model, and forks, should set ``ORT_DISABLE_TELEMETRY=1``. Otherwise the forked processes hang when
    they exit, because ONNX Runtime (1.29 and later) waits for its telemetry thread.

    Attributes
    ----------
    spec : the model's dimensions and special token ids
    device : "cpu" or "cuda:N"
    precision : "fp16", "fp32" or "int8", in which the weights are stored
    outputs : the outputs that the artifact was exported with
    """

    def __init__(self, artifact: Artifact, session: EncoderSession) -> None:
        self.spec: ModelSpec = artifact.spec
        self.outputs = artifact.outputs
        self.device = session.device
        self.precision = session.precision
        self._session: EncoderSession | None = session
        self._process = os.getpid()
        try:
            self.tokenizer = TextTokenizer(artifact.folder / TOKENIZER_FILE, artifact.spec)
        except ArtifactError:
            self.close()
            raise

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str = "auto",
        precision: str | None = None,
        n_threads: int | None = None,
        *,
        token_budget: int | None = None,
        device_memory_limit: int | None = None,
        cuda_graphs: bool = False,
        check_hashes: bool = False,
    ) -> "BGEM3Model":
        """Open an artifact folder.

        Parameters
        ----------
        folder : written by `bgem3.export.export_model` or `bgem3 export`
        device : "auto", "cpu", "cuda" or "cuda:N"; "auto" logs its choice
        precision : "fp16", "fp32" or "int8", in which the weights are stored; None takes the first of these that the
            artifact has. CUDA computes in it, the CPU in float32.
        n_threads : compute threads on the CPU; None takes every CPU that the process may use
        token_budget : most tokens in a micro-batch; a longer text runs alone. It changes speed and memory, never
            results. None takes what suits the device and, on CUDA, its free memory.
        device_memory_limit : most bytes of a CUDA device's memory, weights included; None for what is free
        cuda_graphs : on CUDA, capture the kernels of short single texts in CUDA graphs. This lowers their latency, and
            the throughput of all others, because micro-batches then run one at a time. ``device="cpu"`` refuses this
            and the memory limit; "auto" ignores them where it takes the CPU.
        check_hashes : compare the SHA-256 of every file with the manifest first

        Raises
        ------
        ArtifactError
            If the folder is not a whole artifact, or has no graph for the precision and device.
        ValueError
            If an argument is not one of the values above.
        RuntimeError
            If the device cannot be used; the message gives the reason and the fix.
        DeviceMemoryError
            If the weights do not fit the device's free memory.
        """
        limits = {"n_threads": n_threads, "token_budget": token_budget, "device_memory_limit": device_memory_limit}
        for name, value in limits.items():
            check_whole_number(name, value)
        artifact = read_artifact(folder, check_hashes=check_hashes)
        session = open_encoder(
            artifact,
            device=device,
            precision=precision,
            n_threads=n_threads,
            token_budget=token_budget,
            device_memory_limit=device_memory_limit,
            cuda_graphs=cuda_graphs,
        )
        return cls(artifact, session)

    def encode(
        self,
        texts: Iterable[str],
        outputs: Sequence[Output] | Literal["all"] = "all",
        max_length: int | None = None,
        show_progress: bool = False,
    ) -> Embeddings:
        """Encode texts, each in one forward pass; only the outputs asked for are computed.

        Parameters
        ----------
        texts : any iterable of str; an empty one gives embeddings of 0 texts
        outputs : any of "dense", "sparse", "multivector"; "all" for every one that the artifact has
        max_length : tokens kept per text, CLS and EOS included; None for the model's maximum (8192 for BGE-M3).
            A longer text loses its end, keeps EOS and is marked in ``Embeddings.truncated``.
        show_progress : show a progress bar on standard error, if the process has one

        Returns
        -------
        Embeddings, in the order of ``texts``. A text's values do not depend on the other texts.

        Raises
        ------
        TypeError
            If ``texts`` is a single str or holds something that is not a str.
        ValueError
            If a text is not valid Unicode, ``outputs`` or ``max_length`` is out of range, or the artifact was exported
            without an output.
        RuntimeError
            If the model is closed, or was loaded before this process was forked.
        """
        session = self._open_session()
        wanted = self.outputs if outputs == "all" else check_outputs(outputs, self.outputs)
        limit = self.spec.max_length if max_length is None else max_length
        self.tokenizer.check_max_length(limit)
        checked = check_texts(texts)
        # How texts become arrays:
        # 1. `_batches` tokenizes the texts chunk by chunk, and makes room for each chunk in the result.
        # 2. It cuts each chunk into micro-batches of similar lengths, which the session runs.
        # 3. `result.add` copies the outputs of each micro-batch to the rows of its texts.
        # There is a tqdm object only for a progress bar: an interrupt can leave its lock taken for every thread.
        progress = tqdm(total=len(checked), unit="text") if show_progress and sys.stderr is not None else None
        result = ResultArrays(self.spec, wanted, progress.update if progress is not None else None)
        with contextlib.nullcontext() if progress is None else progress:
            session.run_all(self._batches(session, checked, limit, result), wanted, result.add)
        return result.embeddings()

    def _batches(
        self, session: EncoderSession, texts: list[str], max_length: int, result: ResultArrays
    ) -> Iterator[PackedBatch]:
        """Tokenize texts chunk by chunk, make room for them in the result, and cut them into micro-batches."""
        for chunk in cut_texts(texts, CHARACTERS_PER_CHUNK):
            tokenized = self.tokenizer(chunk, max_length)
            first = result.extend(tokenized)
            for text_index in plan_batches(tokenized.lengths, session.token_budget, session.most_padded):
                yield pack(tokenized, text_index, self.spec.pad_id, first)

    def score(
        self,
        queries: Iterable[str],
        passages: Iterable[str],
        weights: Weights = DEFAULT_WEIGHTS,
        max_length: int | None = None,
        show_progress: bool = False,
    ) -> Scores:
        """Score every query with every passage.

        Parameters
        ----------
        queries, passages : Q and P texts
        weights : of the dense, sparse and multi-vector score in the hybrid score, which divides by their sum
        max_length, show_progress : as in :meth:`encode`

        Returns
        -------
        Scores of (Q, P) float32 arrays

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As :meth:`encode`, and ValueError for weights that are not three finite numbers or sum to 0.
        """
        weights = check_weights(weights)
        sides = check_texts(queries, "query"), check_texts(passages, "passage")
        query, passage = (self.encode(texts, OUTPUTS, max_length, show_progress) for texts in sides)
        return hybrid.score_matrix(query, passage, weights)

    def score_pairs(
        self,
        pairs: Iterable[tuple[str, str]],
        weights: Weights = DEFAULT_WEIGHTS,
        max_length: int | None = None,
        show_progress: bool = False,
    ) -> Scores:
        """Score N (query, passage) pairs one by one, and return Scores of (N,) float32 arrays.

        Each distinct text is encoded once. The other parameters and the errors are those of :meth:`score`; something
        that is not a pair raises ValueError.
        """
        weights = check_weights(weights)
        queries, passages = split_pairs(pairs)
        position = {text: i for i, text in enumerate(dict.fromkeys(queries + passages))}
        encoded = self.encode(list(position), OUTPUTS, max_length, show_progress)
        query_index, passage_index = ([position[text] for text in texts] for texts in (queries, passages))
        return hybrid.score_pairs(encoded, query_index, encoded, passage_index, weights)

    def close(self) -> None:
        """Release the session's memory; encoding afterwards raises RuntimeError.

        A call of another thread ends with its present micro-batch: it returns its embeddings if that was the last one,
        and raises RuntimeError otherwise. The memory is released when all calls have ended.
        """
        session, self._session = self._session, None
        if session is not None and self._process == os.getpid():  # a forked process cannot destroy it
            session.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a model cannot be pickled or copied, since it is an open ONNX Runtime session; call BGEM3Model.load in "
            "the process that uses it, or share the model among threads"
        )

    def __enter__(self) -> "BGEM3Model":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open_session(self) -> EncoderSession:
        session = self._session
        if session is None:
            raise RuntimeError(CLOSED)
        check_process(self._process)
        return session
