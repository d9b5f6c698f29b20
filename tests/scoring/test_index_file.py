"""A damaged index of a folder is refused, by saving too, and nothing that it names is deleted."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgem3.scoring import HybridSearcher
from bgem3.scoring.storage import INDEX
from tests.scoring.corpus import make_embeddings
from tests.scoring.damage import outcome, use_searcher

PART = "part-0123456789ab"
INDEX_VALUES: dict[str, list[Any]] = {
    "format": [None, "1", True, 99],
    "kind": [None, 1, "embeddings"],
    "parts": [None, {}, PART, [], [1], [[PART]], [""], [".."], ["victim"], ["/etc"], [PART + "/.."], [PART, PART]],
    "n_passages": [None, "9", True, 8, 10**30],
}
CONTENTS = [b"", b"[]", b"null", b"\xff\xfe", bytes(9), b"[" * 100_000, b"1" * 10_000, b"{}" * 2]


def make_searcher() -> HybridSearcher:
    return HybridSearcher.build(make_embeddings(1, 9))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of a saved searcher, with a folder beside it that nobody may delete."""
    folder = tmp_path_factory.mktemp("saved") / "searcher"
    make_searcher().save(folder)
    for victim in (folder.parent / "victim", folder / "victim"):
        victim.mkdir()
    return folder / INDEX


def test_an_index_with_a_value_that_does_not_fit_is_refused_and_nothing_is_deleted(index: Path) -> None:
    whole, before = index.read_text(), sorted(index.parent.parent.rglob("*"))
    changed = [json.loads(whole) | {name: value} for name, values in INDEX_VALUES.items() for value in values]
    changed += [{key: value for key, value in json.loads(whole).items() if key != name} for name in INDEX_VALUES]
    for content in [*CONTENTS, *(json.dumps(values).encode() for values in changed)]:
        index.write_bytes(content)
        found = outcome(use_searcher, index.parent)
        assert found.startswith(f"ValueError: {index.parent}"), found
        if "index.json is damaged" in found:  # saving refuses it, too
            assert outcome(make_searcher().save, index.parent).startswith("ValueError: ")
        index.write_text(whole)
    assert sorted(index.parent.parent.rglob("*")) == before


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_changed_bytes_are_refused_by_a_value_error_or_searched(index: Path, data: st.DataObject) -> None:
    folder = index.parent
    file = data.draw(st.sampled_from([index, *sorted(folder.glob("part-*/*.npy"))]))
    before = file.read_bytes()
    places = st.integers(0, min(len(before), 128) - 1)  # the index, or the header of an array
    changed = bytearray(before)
    for place, value in data.draw(st.dictionaries(places, st.integers(0, 255), min_size=1, max_size=3)).items():
        changed[place] = value
    file.unlink()  # it may be mapped
    file.write_bytes(changed)
    try:
        found = HybridSearcher.open(folder).search(make_embeddings(2, 5), 3)
        assert found.ids.shape == found.scores.hybrid.shape == (5, 3)
    except ValueError:
        pass
    finally:
        file.unlink()
        file.write_bytes(before)
