"""BGEM3Model: an artifact folder opened for encoding and scoring."""

import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, NoReturn

import numpy as np
from tqdm import tqdm

from bgem3.runtime.artifact import Artifact, ArtifactError, ModelSpec, read_artifact
from bgem3.runtime.cpu_session import CLOSED, OUTPUTS, Arrays, Finish, Output
from bgem3.runtime.device import EncoderSession, open_encoder
from bgem3.runtime.forks import check_process
from bgem3.runtime.packing import PackedBatch, pack, plan_batches
from bgem3.runtime.results import Assembly
from bgem3.runtime.texts import check_texts, cut_texts, rows_of
from bgem3.runtime.tokenizer import TextTokenizer
from bgem3.scoring import (
    Embeddings,
    Scores,
    Weights,
    dense_pair_scores,
    dense_scores,
    hybrid_scores,
    multivector_pair_scores,
    multivector_scores,
    sparse_pair_scores,
    sparse_scores,
)
from bgem3.scoring.hybrid import check_weights

DEFAULT_WEIGHTS: Weights = (0.4, 0.2, 0.4)
CHARACTERS_PER_CHUNK = 250_000  # tokenized at once: several micro-batches of any device


class BGEM3Model:
    """All three heads of BGE-M3 over one ONNX Runtime session.

    Make one with :meth:`load`; close it with :meth:`close` or a ``with`` block. Every method may be
    called from many threads at once: they share the session's thread pool. An interrupt (Ctrl-C) ends only the call
    of its own thread. A signal handler may encode too; on CUDA that raises RuntimeError if the handler interrupts
    encode itself.

    A model stays in its process: pickling or copying it raises TypeError, and in a process that was forked after the
    model was loaded, encoding raises RuntimeError. Load the model in each process that needs one. A program that
    imports onnxruntime itself, before it loads a model, and forks should set ``ORT_DISABLE_TELEMETRY=1``: otherwise
    the forked processes hang when they exit, because ONNX Runtime (1.29 and later) waits for its telemetry thread.

    Attributes
    ----------
    spec : the model's dimensions and special ids
    device, precision : what it runs on, and how its weights are stored
    outputs : what it can give; all three, unless the artifact was exported without some
    """

    def __init__(self, artifact: Artifact, session: EncoderSession) -> None:
        self.spec: ModelSpec = artifact.spec
        self.outputs = artifact.outputs
        self.device = session.device
        self.precision = session.precision
        self._session: EncoderSession | None = session
        self._process = os.getpid()
        try:
            self.tokenizer = TextTokenizer(artifact.folder / "tokenizer.json", artifact.spec)
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
        device : "auto", "cpu", "cuda" or "cuda:N"; "auto" logs what it chose
        precision : "fp16" or "fp32" as stored; None takes the artifact's first in that order. CUDA computes in it,
            CPU always in float32.
        n_threads : compute threads on CPU, None for as many as the process may use CPUs
        token_budget : most tokens in one micro-batch (a longer text runs alone); changes speed and memory,
            never results. None takes what suits the device and, on CUDA, its free memory.
        device_memory_limit : most bytes of a CUDA device's memory to take, weights included; None for what is free
        cuda_graphs : on CUDA, capture short single texts' kernels in graphs, which answers them sooner; micro-batches
            then run one after another, which costs throughput. This and the memory limit are refused with
            ``device="cpu"``, and of no effect where "auto" takes the CPU.
        check_hashes : compare the SHA-256 of every file with the manifest first

        Raises
        ------
        ArtifactError
            If the folder is not a whole artifact, or has no graph for the precision and device.
        ValueError
            If an argument is not one of the values above.
        RuntimeError
            If the device cannot be had; the message gives the reason and the fix.
        DeviceMemoryError
            If the weights do not fit the device's free memory.
        """
        whole_numbers = {
            "n_threads": n_threads,
            "token_budget": token_budget,
            "device_memory_limit": device_memory_limit,
        }
        for name, value in whole_numbers.items():
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
        outputs : any of "dense", "sparse", "multivector"; "all" for those that the artifact has
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
        wanted = self.outputs if outputs == "all" else _check_outputs(outputs, self.outputs)
        limit = self.spec.max_length if max_length is None else max_length
        self.tokenizer.check_max_length(limit)
        checked = check_texts(texts)
        result = Assembly(self.spec, wanted)
        batches = self._batches(session, checked, limit, result)
        if show_progress and sys.stderr is not None:
            with tqdm(total=len(checked), unit="text") as progress:
                session.run_all(batches, wanted, _and_progress(result.add, progress))
        else:  # without tqdm, which an interrupt can leave locked for every thread
            session.run_all(batches, wanted, result.add)
        return result.embeddings()

    def _batches(
        self, session: EncoderSession, texts: list[str], max_length: int, result: Assembly
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
        weights : of the dense, sparse and multi-vector score in the hybrid; divided by their sum
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
        dense = dense_scores(query.dense, passage.dense)
        sparse = sparse_scores(query.sparse, passage.sparse)
        multivector = multivector_scores(query.multivector, passage.multivector)
        hybrid = hybrid_scores(dense, sparse, multivector, weights)
        return Scores(dense=dense, sparse=sparse, multivector=multivector, hybrid=hybrid)

    def score_pairs(
        self,
        pairs: Iterable[tuple[str, str]],
        weights: Weights = DEFAULT_WEIGHTS,
        max_length: int | None = None,
        show_progress: bool = False,
    ) -> Scores:
        """Score (query, passage) pairs one by one; each distinct text is encoded once.

        Parameters
        ----------
        pairs : N pairs of texts
        weights, max_length, show_progress : as in :meth:`score`

        Returns
        -------
        Scores of (N,) float32 arrays

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As :meth:`score`, and ValueError for something that is not a pair.
        """
        weights = check_weights(weights)
        queries, passages = split_pairs(pairs)
        place = {text: i for i, text in enumerate(dict.fromkeys(queries + passages))}
        encoded = self.encode(list(place), OUTPUTS, max_length, show_progress)
        query_index, passage_index = ([place[text] for text in texts] for texts in (queries, passages))
        return pair_scores(encoded, query_index, encoded, passage_index, weights)

    def close(self) -> None:
        """Release the session's memory; encoding afterwards raises RuntimeError.

        Calls that other threads have begun end with their present micro-batch: each returns its embeddings if that was
        the last one, and raises RuntimeError otherwise. The memory is released when they have ended.
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_session(self) -> EncoderSession:
        session = self._session
        if session is None:
            raise RuntimeError(CLOSED)
        check_process(self._process)
        return session


def check_whole_number(name: str, value: object) -> None:
    """Raise ValueError unless an argument is None or a whole number of at least 1."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{name} must be a whole number of at least 1 or None, found {value!r}")


def split_pairs(pairs: Iterable[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Return the queries and the passages of a list of pairs, or raise naming the pair or text that is none."""
    if isinstance(pairs, str):
        raise TypeError("pairs must be a list of (query, passage), found one str")
    queries, passages = [], []
    column = "zip(table['query'], table['passage'])"
    for i, row in enumerate(rows_of(pairs, "pairs", "(query, passage)", n_dims=(1, 2), column=column)):
        pair = row.tolist() if isinstance(row, np.ndarray) else row
        if isinstance(pair, (str, bytes, bytearray)) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise ValueError(f"pair {i} must be (query, passage), two texts, found {pair!r:.80}")
        queries.append(pair[0])
        passages.append(pair[1])
    return check_texts(queries, "query"), check_texts(passages, "passage")


def pair_scores(
    queries: Embeddings,
    query_index: list[int],
    passages: Embeddings,
    passage_index: list[int],
    weights: Weights,
) -> Scores:
    """Score the N pairs (query_index[i], passage_index[i]) of encoded texts; Scores of (N,) arrays."""
    dense = dense_pair_scores(queries.dense[query_index], passages.dense[passage_index])
    sparse = sparse_pair_scores(queries.sparse[query_index], passages.sparse[passage_index])
    multivector = multivector_pair_scores(
        [queries.multivector[i] for i in query_index], [passages.multivector[i] for i in passage_index]
    )
    hybrid = hybrid_scores(dense, sparse, multivector, weights)
    return Scores(dense=dense, sparse=sparse, multivector=multivector, hybrid=hybrid)


def _and_progress(finish: Finish, progress: "tqdm[NoReturn]") -> Finish:
    """Return a function that finishes a micro-batch, from any thread, and moves a progress bar by its texts."""
    lock = threading.Lock()

    def finish_and_show(batch: PackedBatch, arrays: Arrays) -> None:
        finish(batch, arrays)
        with lock:
            progress.update(len(batch.text_index))

    return finish_and_show


def _check_outputs(outputs: Sequence[Output], held: tuple[Output, ...]) -> tuple[Output, ...]:
    wanted = tuple(outputs) if isinstance(outputs, Iterable) and not isinstance(outputs, str) else (outputs,)
    unknown = [name for name in wanted if name not in OUTPUTS]
    if unknown or not wanted:
        raise ValueError(f"outputs must be one or more of {OUTPUTS}, found {outputs!r}")
    missing = [name for name in OUTPUTS if name in wanted and name not in held]
    if missing:
        raise ValueError(
            f"this artifact was exported without {' and '.join(missing)}, it gives {' and '.join(held)} alone; export "
            "the checkpoint again with all outputs, and with heads_from='BAAI/bge-m3' (--heads-from) if it has no "
            "heads of its own"
        )
    return tuple(name for name in OUTPUTS if name in wanted)
