"""Embeddings keep their values through slicing, joining, saving, and the forms of other libraries."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgem3.scoring import Embeddings, MultiVectors
from tests.scoring.corpus import make_embeddings

FOLDER_AND_FILE = pytest.mark.parametrize("name", ["saved", "saved.npz"])
quick = settings(max_examples=20, deadline=None)


def assert_same_texts(found: Embeddings, expected: Embeddings, texts: list[int]) -> None:
    """Compare with the texts of other embeddings, bit by bit."""
    assert found.outputs == expected.outputs
    assert found.n_tokens.tolist() == expected.n_tokens[texts].tolist()
    assert found.truncated.tolist() == expected.truncated[texts].tolist()
    np.testing.assert_array_equal(found.dense, expected.dense[texts])
    np.testing.assert_array_equal(found.sparse.toarray(), expected.sparse.toarray()[texts])
    assert [list(row.items()) for row in found.lexical_weights] == [
        list(expected.lexical_weights[i].items()) for i in texts
    ]
    for vectors, i in zip(found.multivector, texts, strict=True):
        np.testing.assert_array_equal(vectors, expected.multivector[i])


@given(seed=st.integers(0, 99), n_texts=st.integers(0, 9), data=st.data())
@quick
def test_slices_and_their_concatenation_hold_the_same_texts(seed: int, n_texts: int, data: st.DataObject) -> None:
    embeddings = make_embeddings(seed, n_texts)
    numbers = list(range(n_texts))
    part = data.draw(st.slices(n_texts))
    assert_same_texts(embeddings[part], embeddings, numbers[part])
    chosen = data.draw(st.lists(st.sampled_from(numbers), max_size=9)) if numbers else []
    assert_same_texts(embeddings[np.array(chosen, int)], embeddings, chosen)
    assert_same_texts(Embeddings.concatenate([embeddings[part], embeddings]), embeddings, numbers[part] + numbers)
    for i in numbers:
        assert_same_texts(embeddings[i], embeddings, [i])
    mask = np.arange(n_texts) % 2 == 0
    assert_same_texts(embeddings[mask], embeddings, numbers[::2])
    with pytest.raises(IndexError):
        embeddings[n_texts]


@FOLDER_AND_FILE
@given(seed=st.integers(0, 99), n_texts=st.integers(0, 9))
@quick
def test_saved_embeddings_load_as_the_same_bits(
    tmp_path_factory: pytest.TempPathFactory, name: str, seed: int, n_texts: int
) -> None:
    path = tmp_path_factory.mktemp("embeddings") / name
    make_embeddings(seed + 1, 3).save(path)
    embeddings = make_embeddings(seed, n_texts)
    embeddings.save(path)
    loaded = Embeddings.load(path)
    assert_same_texts(loaded, embeddings, list(range(n_texts)))
    loaded.save(path)  # onto the files that it is mapped from
    assert_same_texts(Embeddings.load(path), embeddings, list(range(n_texts)))


@FOLDER_AND_FILE
def test_outputs_not_held_are_not_saved_and_compressed_vectors_stay_compressed(tmp_path: Path, name: str) -> None:
    full = make_embeddings(0, 5)
    vectors, _ = full.multivector.stored_as("int8")
    Embeddings(n_tokens=full.n_tokens, truncated=full.truncated, multivector=vectors).save(tmp_path / name)
    loaded = Embeddings.load(tmp_path / name)
    assert loaded.outputs == ("multivector",)
    assert loaded.to_qdrant()[3]["vector"].keys() == {"multivector"}
    assert loaded.to_flag()["lexical_weights"] is None
    assert loaded.multivector.storage == "int8"
    np.testing.assert_array_equal(loaded.multivector[3], vectors[3])


def test_loading_refuses_what_is_missing_or_lacks_an_output(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for path in (folder, tmp_path / "no.npz"):
        with pytest.raises(FileNotFoundError, match=path.name):
            Embeddings.load(path)
    make_embeddings(0, 4).save(folder)
    (dense,) = folder.glob("*/dense.npy")
    dense.write_bytes(dense.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"dense.npy is damaged .* save it again"):
        Embeddings.load(folder)
    dense.unlink()
    with pytest.raises(ValueError, match=r"its index lists \['dense', .*its part has \['sparse', 'multivector'\]"):
        Embeddings.load(folder)


def test_concatenation_refuses_parts_that_do_not_belong_together() -> None:
    full = make_embeddings(0, 2)
    dense = Embeddings(n_tokens=full.n_tokens, truncated=full.truncated, dense=full.dense)
    for parts in ([full, dense], []):
        with pytest.raises(ValueError, match="same outputs, found"):
            Embeddings.concatenate(parts)
    with pytest.raises(ValueError, match=r"one storage and width, found .*float16"):
        MultiVectors.concatenate([full.multivector, full.multivector.stored_as("float16")[0]])


def test_payloads_hold_every_output_as_plain_numbers() -> None:
    texts = make_embeddings(2, 9)
    texts = texts[int(np.argmax(np.diff(texts.sparse.indptr)))]
    dense, vectors = texts.dense[0].tolist(), texts.multivector[0].tolist()
    lexical = dict(zip(texts.sparse.indices.tolist(), texts.sparse.data.tolist(), strict=True))
    assert len(lexical) > 1
    sparse = {"indices": list(lexical), "values": list(lexical.values())}
    assert texts.to_qdrant([7]) == [
        {"id": 7, "vector": {"dense": dense, "sparse": sparse, "multivector": vectors}, "payload": {}}
    ]
    assert texts.to_milvus([7]) == [
        {"id": 7, "dense": dense, "sparse": lexical, "multivector": [{"vector": vector} for vector in vectors]}
    ]
    fields = {
        "dense": {"values": dense},
        "sparse": {"cells": {str(token): weight for token, weight in lexical.items()}},
        "multivector": {"blocks": {str(i): vector for i, vector in enumerate(vectors)}},
    }
    assert json.loads(json.dumps(texts.to_vespa([7]))) == [{"id": "7", "fields": fields}]
