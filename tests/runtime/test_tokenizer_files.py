"""Tokenizer files: stored padding and truncation never matter, and one that is not the model's is refused."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bgem3.export import export_model
from bgem3.runtime import ArtifactError, BGEM3Model
from bgem3.runtime.artifact import MANIFEST, read_artifact
from bgem3.runtime.tokenizer import TextTokenizer
from tests.runtime.damage import list_file
from tests.runtime.flagembedding.comparison import assert_same

TEXTS = ["", "a", "What is BM25?", "Die Brücke ist gesperrt. " * 40, "<pad> and \u0378"]
PADDING = {"pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"}
STORED: dict[str, dict[str, Any]] = {
    "padded_to_64": {"padding": PADDING | {"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": 8}},
    "padded_and_cut_left": {
        "padding": PADDING | {"strategy": {"Fixed": 16}, "direction": "Left", "pad_id": 7, "pad_token": "[PAD]"},
        "truncation": {"direction": "Left", "max_length": 16, "strategy": "OnlyFirst", "stride": 1},
    },
}


def edit_tokenizer(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change tokenizer.json in an artifact's or a checkpoint's folder."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    edit(tokenizer)
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    if (folder / MANIFEST).is_file():
        list_file(folder, path.name)


def encode(folder: Path) -> dict[str, Any]:
    with BGEM3Model.load(folder, "cpu", "fp32", n_threads=1) as model:
        return model.encode(TEXTS, max_length=100).to_flag()


@pytest.mark.parametrize("name", STORED)
def test_padding_and_truncation_stored_in_a_tokenizer_never_matter(
    random_artifact: Path, artifact_copy: Path, name: str
) -> None:
    edit_tokenizer(artifact_copy, lambda tokenizer: tokenizer.update(STORED[name]))
    assert_same(encode(artifact_copy), encode(random_artifact), 0)


def test_padding_and_truncation_stored_in_a_checkpoint_never_matter(
    random_artifact: Path, checkpoint_copy: Path, tmp_path: Path
) -> None:
    edit_tokenizer(checkpoint_copy, lambda tokenizer: tokenizer.update(STORED["padded_and_cut_left"]))
    export_model(checkpoint_copy, tmp_path / "exported", ("fp32",))
    assert_same(encode(tmp_path / "exported"), encode(random_artifact), 0)


def swap_around(tokenizer: dict[str, Any]) -> None:
    single = tokenizer["post_processor"]["single"]
    single[0], single[2] = single[2], single[0]


def swap_tokens(one: int, other: int) -> Callable[[dict[str, Any]], None]:
    """Exchange two tokens' ids, wherever they are written."""

    def edit(tokenizer: dict[str, Any]) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
        ids = {one: other, other: one}
        tokenizer["model"]["unk_id"] = ids.get(tokenizer["model"]["unk_id"], tokenizer["model"]["unk_id"])
        for token in tokenizer["added_tokens"]:
            token["id"] = ids.get(token["id"], token["id"])
        for special in tokenizer["post_processor"]["special_tokens"].values():
            special["ids"] = [ids.get(i, i) for i in special["ids"]]

    return edit


def larger_vocabulary(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["vocab"] += [[f"w{i}", -20.0] for i in range(99)]


def word_level(ids: dict[str, int]) -> Callable[[dict[str, Any]], None]:
    """Replace the tokenizer's model by one whose ids are written one by one."""

    def edit(tokenizer: dict[str, Any]) -> None:
        tokenizer["model"] = {"type": "WordLevel", "vocab": ids, "unk_token": "<unk>"}
        tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] in ids]

    return edit


def without_unknown(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["unk_id"] = None


SPECIAL = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (swap_around, r"puts the tokens \[2, 0\] around a text, the manifest says CLS 0 and EOS 2"),
        (swap_tokens(1, 3), "has <pad> as token 3, the manifest says 1"),
        (swap_tokens(3, 9), "has <unk> as token 9, the manifest says 3"),
        (larger_vocabulary, r"has token ids up to \d+, the model embeds"),
        (word_level(SPECIAL | {"bread": 10**6}), "has token ids up to 1000000, the model embeds"),
        (without_unknown, "cannot encode a text"),
    ],
)
def test_a_tokenizer_that_is_not_the_models_is_refused(
    artifact_copy: Path, edit: Callable[[dict[str, Any]], object], words: str
) -> None:
    edit_tokenizer(artifact_copy, edit)
    with pytest.raises(ArtifactError, match=f"tokenizer.json {words}.*; export the checkpoint again"):
        BGEM3Model.load(artifact_copy, "cpu", "fp32")


def test_a_tokenizer_of_fewer_tokens_or_of_another_kind_is_taken(artifact_copy: Path) -> None:
    edit_tokenizer(artifact_copy, word_level(SPECIAL | {"bread": 900}))
    with BGEM3Model.load(artifact_copy, "cpu", "fp32") as model:
        assert model.encode(["bread"]).n_tokens.tolist() == [3]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_tokenizer_file_is_refused_or_gives_ids_that_the_model_has(
    random_artifact: Path, tmp_path: Path, data: st.DataObject
) -> None:
    tokenizer = json.loads((random_artifact / "tokenizer.json").read_text(encoding="utf-8"))
    parts = [(), ("model",), ("post_processor",), ("pre_tokenizer",), ("added_tokens", 0), ("post_processor", "single")]
    target: Any = tokenizer
    for step in data.draw(st.sampled_from(parts)):
        target = target[step]
    key = data.draw(st.sampled_from(list(target) if isinstance(target, dict) else list(range(len(target)))))
    numbers = st.integers(-2, 2**33)
    empty: st.SearchStrategy[object] = st.sampled_from([[], {}])
    target[key] = data.draw(st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=3), empty))
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    spec = read_artifact(random_artifact).spec
    with contextlib.suppress(ArtifactError):
        ids = TextTokenizer(path, spec)(TEXTS, 128).token_ids
        assert ((ids >= 0) & (ids < spec.vocab_size)).all()
