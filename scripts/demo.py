"""The main job, start to end: checkpoint -> export -> the tutorial's four scores, as tables.

usage: python scripts/demo.py [CHECKPOINT]

Without a checkpoint it makes the small built-in one, whose scores make sense by construction; it shows the
machinery, not BGE-M3's quality. A checkpoint that is given is exported once into the user's cache.
"""

import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from bgem3.runtime import BGEM3Model
from bgem3.runtime.export_cache import find_or_export

QUERIES = ["What is BGE M3?", "Defination of BM25"]
PASSAGES = [
    "BGE M3 is an embedding model supporting dense retrieval, lexical matching and multi-vector interaction.",
    "BM25 is a bag-of-words retrieval function that ranks a set of documents based on the query terms appearing "
    "in each document",
]


def main() -> None:
    """Export the checkpoint and print what the model gives."""
    console = Console(width=max(80, Console().width))
    source = sys.argv[1] if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as folder:
        print(f"exporting {source or 'the built-in checkpoint'}")
        artifact = find_or_export(source, "fp16") if source else export_built_in(Path(folder))
        show(artifact, console)
    if source is None:
        print("The built-in checkpoint shows the machinery, not BGE-M3's quality. For the real one:")
        print("    make demo CHECKPOINT=BAAI/bge-m3")


def show(artifact: Path, console: Console) -> None:
    """Print the texts and their scores."""
    with BGEM3Model.load(artifact, device="cpu") as model:
        for name, text in zip(("q0", "q1", "p0", "p1"), QUERIES + PASSAGES, strict=True):
            console.print(f"[bold]{name}[/bold]  {text}")
        console.print(four_scores(model))


def export_built_in(folder: Path) -> Path:
    """Make the built-in checkpoint and export it; return the artifact folder."""
    from make_demo_checkpoint import make_demo_checkpoint

    from bgem3.export import export_model  # here, because torch takes seconds to import

    artifact = folder / "artifact"
    export_model(make_demo_checkpoint(folder / "checkpoint"), artifact)
    return artifact


def four_scores(model: BGEM3Model) -> Table:
    """Return one table: every query with every passage, by each score and what it is made of."""
    queries, passages = model.encode(QUERIES), model.encode(PASSAGES)
    scores = model.score(QUERIES, PASSAGES, weights=(1, 1, 1))
    columns = ("pair", "dense", "lexical", "shared tokens", "multi-vector", "shapes", "hybrid", "rank")
    table = Table(*(Column(name, no_wrap=name != "shared tokens") for name in columns))
    for i in range(len(QUERIES)):
        ranks = (-scores.hybrid[i]).argsort().argsort() + 1
        for j in range(len(PASSAGES)):
            shared = queries.lexical_weights[i].keys() & passages.lexical_weights[j].keys()
            table.add_row(
                f"q{i} p{j}",
                f"{scores.dense[i, j]:.4f}",
                f"{scores.sparse[i, j]:.4f}",
                " ".join(sorted(model.tokenizer.token(int(token_id)) for token_id in shared)),
                f"{scores.multivector[i, j]:.4f}",
                f"{queries.multivector[i].shape}\n{passages.multivector[j].shape}",
                f"{scores.hybrid[i, j]:.4f}",
                str(ranks[j]),
            )
    return table


if __name__ == "__main__":
    main()
