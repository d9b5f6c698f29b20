"""Micro-batches hold every text once, within the budget, and describe each slot rightly."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bgem3.runtime.packing import cpu_layout, cuda_layout, pack, plan_batches, position_ids
from bgem3.runtime.tokenizer import TokenizedTexts

PAD_ID = 1
lengths_lists = st.lists(st.integers(2, 8192), min_size=1, max_size=60)


@given(lengths=lengths_lists, token_budget=st.integers(1, 20000))
def test_a_plan_holds_every_text_once_and_keeps_to_the_budget(lengths: list[int], token_budget: int) -> None:
    batches = list(plan_batches(np.array(lengths), token_budget, lambda longest: (1 << 22) // longest))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        of_batch = [lengths[i] for i in batch]
        assert len(batch) == 1 or sum(of_batch) <= token_budget


@given(lengths=lengths_lists)
def test_padded_micro_batches_hold_no_more_texts_than_may_be_padded(lengths: list[int]) -> None:
    for batch in plan_batches(np.array(lengths), 1 << 30, lambda longest: 10000 // longest):
        of_batch = [lengths[i] for i in batch]
        is_padded = len(set(of_batch)) > 1
        assert not is_padded or len(batch) * max(of_batch) <= 10000


def test_texts_of_one_length_run_together_up_to_the_budget() -> None:
    assert [len(batch) for batch in plan_batches(np.full(10, 100), 400, lambda longest: 1)] == [4, 4, 2]


def test_no_texts_give_no_micro_batches() -> None:
    assert list(plan_batches(np.empty(0, np.int64), 100, lambda longest: 1)) == []


@given(data=st.data(), lengths=st.lists(st.integers(2, 9), min_size=1, max_size=6))
def test_packed_arrays_equal_a_plain_loop(data: st.DataObject, lengths: list[int]) -> None:
    token_ids = np.array(data.draw(st.lists(st.integers(0, 5), min_size=sum(lengths), max_size=sum(lengths))))
    offsets = np.cumsum([0, *lengths])
    texts = TokenizedTexts(token_ids=token_ids, offsets=offsets, truncated=np.zeros(len(lengths), np.bool_))
    text_index = np.array(data.draw(st.permutations(range(len(lengths)))))
    batch = pack(texts, text_index, PAD_ID)
    cpu, cuda = cpu_layout(batch.cu_seqlens), cuda_layout(batch.cu_seqlens)
    slot_of_token: list[int] = []
    expected_positions = []
    for i, text in enumerate(text_index):
        ids = token_ids[offsets[text] : offsets[text + 1]].tolist()
        assert batch.token_ids[batch.cu_seqlens[i] : batch.cu_seqlens[i + 1]].tolist() == ids
        assert batch.token_ids[cpu["padded_index"][i, : len(ids)]].tolist() == ids
        assert cpu["key_mask"][i].tolist() == [1] * len(ids) + [0] * (max(lengths) - len(ids))
        slot_of_token += range(i * max(lengths), i * max(lengths) + len(ids))
        counted = 0
        for token_id in ids:
            counted += token_id != PAD_ID
            expected_positions.append(counted + PAD_ID if token_id != PAD_ID else PAD_ID)
    assert batch.position_ids.tolist() == expected_positions
    assert cpu["packed_index"].tolist() == slot_of_token
    n_slots = len(lengths) * max(lengths)
    padding = sorted(set(range(n_slots)) - set(slot_of_token))
    assert cuda["token_offset"].shape == (len(lengths), max(lengths))
    assert cuda["token_offset"].reshape(-1).tolist() == slot_of_token + padding
    assert cuda["cu_seqlens"].tolist() == batch.cu_seqlens.tolist()
    assert {layout.dtype for layout in (*cpu.values(), *cuda.values())} == {np.dtype(np.int32)}


@given(lengths=st.lists(st.integers(2, 9), min_size=2, max_size=6), data=st.data())
def test_a_part_of_a_micro_batch_is_what_packing_that_part_gives(lengths: list[int], data: st.DataObject) -> None:
    offsets = np.cumsum([0, *lengths])
    texts = TokenizedTexts(
        token_ids=np.arange(offsets[-1]), offsets=offsets, truncated=np.zeros(len(lengths), np.bool_)
    )
    start, stop = sorted(data.draw(st.lists(st.integers(0, len(lengths)), min_size=2, max_size=2, unique=True)))
    found = pack(texts, np.arange(len(lengths)), PAD_ID, first=7).texts(start, stop)
    expected = pack(texts, np.arange(start, stop), PAD_ID, first=7)
    for name, values in vars(expected).items():
        assert vars(found)[name].tolist() == values.tolist()


def test_a_literal_pad_token_takes_position_one_and_does_not_advance_the_count() -> None:
    found = position_ids(np.array([0, 7, 1, 8, 2, 0, 2]), np.array([0, 5, 7]), pad_id=1)
    assert found.tolist() == [2, 3, 1, 4, 5, 2, 3]
