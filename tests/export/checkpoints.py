"""Edits of a checkpoint's folder, and checks of what is loaded from it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bgem3.export.checkpoint import Checkpoint
from bgem3.export.reference import SENTENCES, last_states

Tensors = dict[str, torch.Tensor]
Edit = Callable[[Path], object]
HEADS = ("sparse_linear.pt", "colbert_linear.pt")
TOKENIZER = "tokenizer.json"
QUERY = "encoder.layer.0.attention.self.query.weight"


def write(name: str, content: str | bytes | dict[str, Any] | list[Any]) -> Edit:
    """Return a function that writes a file into a folder."""

    def edit(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, (str, bytes)) else json.dumps(content)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    return edit


def remove(*names: str) -> Edit:
    def edit(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return edit


def move(old: str, new: str) -> Edit:
    return lambda folder: (folder / old).rename(folder / new)


def steps(*edits: Edit) -> Edit:
    return lambda folder: [edit(folder) for edit in edits]


def edited(file: str, change: Callable[[dict[str, Any]], object]) -> Edit:
    """Return a function that changes the values in a JSON file."""

    def edit(folder: Path) -> None:
        values = json.loads((folder / file).read_text(encoding="utf-8"))
        change(values)
        write(file, values)(folder)

    return edit


def settings(file: str = "config.json", /, **values: Any) -> Edit:
    """Return a function that changes settings in a JSON file."""
    return edited(file, lambda found: found.update(values))


def unname(token: str) -> Edit:
    """Return a function that gives a special token of the tokenizer another text."""

    def change(values: dict[str, Any]) -> None:
        values["added_tokens"] = [added for added in values["added_tokens"] if added["content"] != token]
        values["model"]["vocab"] = [["?" if name == token else name, score] for name, score in values["model"]["vocab"]]

    return edited(TOKENIZER, change)


def stored(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


def store(folder: Path, tensors: Tensors, name: str = "model.safetensors") -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name, metadata={"format": "pt"})


def weights(change: Callable[[Tensors], Tensors]) -> Edit:
    """Return a function that stores what ``change`` makes of the weights."""
    return lambda folder: store(folder, change(stored(folder)))


def prefixed(*prefixes: str) -> Edit:
    """Return a function that stores the weights once under each prefix."""
    return weights(lambda t: {prefix + name: t[name].clone() for prefix in prefixes for name in t})


def as_bin(change: Callable[[Tensors], object] = lambda tensors: tensors) -> Edit:
    """Return a function that stores the weights as torch.save does."""
    return steps(
        lambda folder: torch.save(change(stored(folder)), folder / "pytorch_model.bin"), remove("model.safetensors")
    )


def in_parts(folder: Path) -> None:
    """Store the weights in two files with an index, as transformers does with large models."""
    tensors = stored(folder)
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    place = {key: names[i % 2] for i, key in enumerate(sorted(tensors))}
    for name in names:
        store(folder, {key: tensors[key] for key in place if place[key] == name}, name)
    write("model.safetensors.index.json", {"metadata": {}, "weight_map": place})(folder)


def head(name: str, change: Callable[[Tensors], object]) -> Edit:
    """Return a function that stores what ``change`` makes of a head."""
    return lambda folder: torch.save(change(torch.load(folder / name)), folder / name)


def assert_same(found: Checkpoint, expected: Checkpoint) -> None:
    """Check that two checkpoints compute the same."""
    assert found.spec == expected.spec
    ours, theirs = found.model.state_dict(), expected.model.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    (ids, states), (expected_ids, expected_states) = (last_states(one, SENTENCES[0]) for one in (found, expected))
    assert ids == expected_ids
    assert torch.equal(states, expected_states)
