"""Micro-batches hold every text once, within the budget, and describe each slot rightly."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bgem3.runtime.packing import MAX_MASKED_SCORES, pack, plan_batches, position_ids
from bgem3.runtime.tokenizer import TokenizedTexts

PAD_ID = 1
lengths_lists = st.lists(st.integers(2, 8192), min_size=1, max_size=60)


@given(lengths=lengths_lists, token_budget=st.integers(1, 20000))
def test_a_plan_holds_every_text_once_and_keeps_to_the_budget(lengths: list[int], token_budget: int) -> None:
    batches = list(plan_batches(np.array(lengths), token_budget))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        of_batch = [lengths[i] for i in batch]
        assert len(batch) == 1 or sum(of_batch) <= token_budget


@given(lengths=lengths_lists)
def test_padded_micro_batches_keep_attention_scores_bounded(lengths: list[int]) -> None:
    for batch in plan_batches(np.array(lengths), token_budget=1 << 30):
        of_batch = [lengths[i] for i in batch]
        is_padded = len(set(of_batch)) > 1
        assert not is_padded or len(batch) * max(of_batch) ** 2 <= MAX_MASKED_SCORES


def test_texts_of_one_length_run_together_up_to_the_budget() -> None:
    assert [len(batch) for batch in plan_batches(np.full(10, 100), token_budget=400)] == [4, 4, 2]


def test_no_texts_give_no_micro_batches() -> None:
    assert list(plan_batches(np.empty(0, np.int64), token_budget=100)) == []


@given(data=st.data(), lengths=st.lists(st.integers(2, 9), min_size=1, max_size=6))
def test_packed_arrays_equal_a_plain_loop(data: st.DataObject, lengths: list[int]) -> None:
    token_ids = np.array(data.draw(st.lists(st.integers(0, 5), min_size=sum(lengths), max_size=sum(lengths))))
    offsets = np.cumsum([0, *lengths])
    texts = TokenizedTexts(token_ids=token_ids, offsets=offsets, truncated=np.zeros(len(lengths), np.bool_))
    text_index = np.array(data.draw(st.permutations(range(len(lengths)))))
    batch = pack(texts, text_index, PAD_ID)
    expected_positions = []
    for i, text in enumerate(text_index):
        ids = token_ids[offsets[text] : offsets[text + 1]].tolist()
        assert batch.token_ids[batch.cu_seqlens[i] : batch.cu_seqlens[i + 1]].tolist() == ids
        assert batch.token_ids[batch.padded_index[i, : len(ids)]].tolist() == ids
        assert batch.key_mask[i].tolist() == [1] * len(ids) + [0] * (max(lengths) - len(ids))
        counted = 0
        for token_id in ids:
            counted += token_id != PAD_ID
            expected_positions.append(counted + PAD_ID if token_id != PAD_ID else PAD_ID)
    assert batch.position_ids.tolist() == expected_positions
    slots = batch.padded_index.reshape(-1)[batch.packed_index]
    assert slots.tolist() == list(range(len(token_ids)))


def test_a_literal_pad_token_takes_position_one_and_does_not_advance_the_count() -> None:
    found = position_ids(np.array([0, 7, 1, 8, 2, 0, 2]), np.array([0, 5, 7]), pad_id=1)
    assert found.tolist() == [2, 3, 1, 4, 5, 2, 3]
