"""Runs the portable graph with plain ONNX Runtime, as another runtime would, to compare it with the reference."""

import sys
from typing import Any

import numpy as np
from tqdm import tqdm

from bgem3.runtime.artifact import Artifact
from bgem3.runtime.cpu_session import open_session
from bgem3.runtime.cpus import available_cpus
from bgem3.runtime.graph_file import check_locations
from bgem3.runtime.packing import pack, padded_ids
from bgem3.runtime.parity import Reference, judge
from bgem3.runtime.results import Assembly
from bgem3.runtime.tokenizer import TextTokenizer
from bgem3.scoring import Embeddings

PORTABLE = "portable/model.onnx"
MAX_TOKENS = 512  # standard operators hold every head's score matrix: 4 GiB a layer at 8192 tokens
TEXTS_PER_BATCH = 8


def check_portable(artifact: Artifact, reference: Reference, *, show_progress: bool = False) -> dict[str, Any]:
    """Compare the portable graph of an artifact folder with the reference's texts of up to 512 tokens.

    Returns
    -------
    The report of `bgem3.runtime.parity.judge`, with the bounds of fp32.
    """
    short = reference.head(MAX_TOKENS)
    return judge(encode_portable(artifact, short.texts, show_progress=show_progress), short, "fp32")


def encode_portable(artifact: Artifact, texts: list[str], *, show_progress: bool = False) -> Embeddings:
    """Encode texts with portable/model.onnx, padded in batches."""
    spec = artifact.spec
    tokenized = TextTokenizer(artifact.folder / "tokenizer.json", spec)(texts, spec.max_length)
    check_locations(artifact, artifact.folder / PORTABLE)
    session = open_session(artifact.folder / PORTABLE, available_cpus())
    outputs = artifact.outputs
    result = Assembly(spec, outputs)
    result.extend(tokenized)
    starts = range(0, len(texts), TEXTS_PER_BATCH)
    for start in tqdm(starts, desc="portable", unit="batch") if show_progress and sys.stderr else starts:
        batch = pack(tokenized, np.arange(start, min(start + TEXTS_PER_BATCH, len(texts))), spec.pad_id)
        input_ids, is_token = padded_ids(batch, spec.pad_id)
        feeds = {"input_ids": input_ids, "attention_mask": is_token.astype(np.int64)}
        arrays = dict(zip(outputs, session.run(list(outputs), feeds), strict=True))
        is_vector = is_token.copy()
        is_vector[:, 0] = False  # CLS
        for name, rows in (("sparse", is_token), ("multivector", is_vector)):
            if name in arrays:
                arrays[name] = arrays[name][rows]
        result.add(batch, arrays)
    return result.embeddings()
