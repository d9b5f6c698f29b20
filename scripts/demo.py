"""Export a checkpoint, and show its four scores for two queries and two passages.

usage: python scripts/demo.py [CHECKPOINT]

Without a checkpoint, the demo makes a small one. It shows how everything works, not BGE-M3's quality. A named
checkpoint is exported once, into the user's cache.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bgem3.runtime import BGEM3Model
from bgem3.runtime.export_cache import find_or_export

sys.path.insert(0, str(Path(__file__).parent.parent))

QUERIES = ["What is BGE M3?", "Defination of BM25"]
PASSAGES = [
    "BGE M3 is an embedding model supporting dense retrieval, lexical matching and multi-vector interaction.",
    "BM25 is a bag-of-words retrieval function that ranks a set of documents based on the query terms appearing "
    "in each document",
]


def main() -> None:
    """Export the checkpoint, and print texts and scores."""
    console = Console(width=max(80, Console().width))
    source = sys.argv[1] if len(sys.argv) > 1 else None
    print(f"exporting {source or 'the built-in checkpoint'}")
    with tempfile.TemporaryDirectory() as folder:
        artifact = find_or_export(source, "fp16") if source else export_built_in(Path(folder))
        with BGEM3Model.load(artifact, device="cpu") as model:
            for name, text in zip(("q0", "q1", "p0", "p1"), QUERIES + PASSAGES, strict=True):
                console.print(f"[bold]{name}[/bold]  {text}")
            console.print(score_table(model))
    if source is None:
        print("The built-in checkpoint does not have BGE-M3's quality. To see the real one:")
        print("    make demo CHECKPOINT=BAAI/bge-m3")


def export_built_in(folder: Path) -> Path:
    """Make the built-in checkpoint and export it; return the artifact folder."""
    from bgem3.export import export_model  # here, because torch takes seconds to import
    from scripts.make_demo_checkpoint import make_demo_checkpoint

    artifact = folder / "artifact"
    export_model(make_demo_checkpoint(folder / "checkpoint"), artifact)
    return artifact


def score_table(model: BGEM3Model) -> Table:
    """Return each query's scores with each passage, and the tokens that both have."""
    queries, passages = model.encode(QUERIES), model.encode(PASSAGES)
    scores = model.score(QUERIES, PASSAGES, weights=(1, 1, 1))
    table = Table("pair", "dense", "lexical", "shared tokens", "multi-vector", "hybrid", "rank")
    ranks = (-scores.hybrid).argsort(axis=1).argsort(axis=1) + 1
    for i, j in np.ndindex(scores.dense.shape):
        shared = queries.lexical_weights[i].keys() & passages.lexical_weights[j].keys()
        tokens = " ".join(sorted(model.tokenizer.token(int(token_id)) for token_id in shared))
        dense, lexical, multivector, hybrid = (
            f"{each[i, j]:.4f}" for each in (scores.dense, scores.sparse, scores.multivector, scores.hybrid)
        )
        table.add_row(f"q{i} p{j}", dense, lexical, tokens, multivector, hybrid, str(ranks[i, j]))
    return table


if __name__ == "__main__":
    main()
