"""The portable graph, run with plain ONNX Runtime as another runtime would run it."""

import sys

import numpy as np
from tqdm import tqdm

from bgem3.runtime.artifact import TOKENIZER_FILE, Artifact
from bgem3.runtime.cpus import available_cpus
from bgem3.runtime.graph_file import check_locations
from bgem3.runtime.ort import open_cpu_session
from bgem3.runtime.packing import pack, padded_ids
from bgem3.runtime.results import ResultArrays
from bgem3.runtime.tokenizer import TextTokenizer
from bgem3.scoring import Embeddings

MAX_TOKENS = 512  # per text: standard operators store every head's score matrix, 4 GiB a layer at 8192 tokens
TEXTS_PER_BATCH = 8


def encode_portable(artifact: Artifact, texts: list[str], *, show_progress: bool = False) -> Embeddings:
    """Encode texts with the graph over standard operators, padded in batches."""
    spec, path = artifact.spec, artifact.folder / artifact.graph("fp32", "cpu", "standard").file
    tokenized = TextTokenizer(artifact.folder / TOKENIZER_FILE, spec)(texts, spec.max_length)
    check_locations(artifact, path)
    session = open_cpu_session(path, available_cpus())
    result = ResultArrays(spec, artifact.outputs)
    result.extend(tokenized)
    starts = range(0, len(texts), TEXTS_PER_BATCH)
    for start in tqdm(starts, desc="portable", unit="batch") if show_progress and sys.stderr else starts:
        batch = pack(tokenized, np.arange(start, min(start + TEXTS_PER_BATCH, len(texts))), spec.pad_id)
        input_ids, is_token = padded_ids(batch, spec.pad_id)
        feeds = {"input_ids": input_ids, "attention_mask": is_token.astype(np.int64)}
        arrays = dict(zip(artifact.outputs, session.run(list(artifact.outputs), feeds), strict=True))
        is_vector = is_token.copy()
        is_vector[:, 0] = False  # CLS
        for name, rows in (("sparse", is_token), ("multivector", is_vector)):
            if name in arrays:
                arrays[name] = arrays[name][rows]
        result.add(batch, arrays)
    return result.embeddings()
