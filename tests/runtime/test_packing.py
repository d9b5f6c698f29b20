"""Micro-batches hold every text once, within the budget, and describe each slot rightly."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bgem3.runtime.packing import cpu_layout, cuda_layout, join, pack, plan_batches, position_ids
from bgem3.runtime.tokenizer import TokenizedTexts

PAD_ID = 1
short_lengths = st.lists(st.integers(2, 9), min_size=1, max_size=6)


def texts_of(lengths: list[int], token_ids: Sequence[int] | None = None) -> TokenizedTexts:
    return TokenizedTexts(
        token_ids=np.array(token_ids if token_ids is not None else range(sum(lengths))),
        offsets=np.cumsum([0, *lengths]),
        truncated=np.zeros(len(lengths), np.bool_),
    )


@given(
    lengths=st.lists(st.integers(2, 8192), max_size=60),
    token_budget=st.integers(1, 40000),
    max_slots=st.integers(1, 40000),
)
def test_a_plan_holds_every_text_once_and_keeps_to_both_budgets(
    lengths: list[int], token_budget: int, max_slots: int
) -> None:
    batches = list(plan_batches(np.array(lengths, np.int64), token_budget, lambda longest: max_slots // longest))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        in_batch = [lengths[i] for i in batch]
        assert len(batch) == 1 or sum(in_batch) <= token_budget
        assert len(set(in_batch)) == 1 or len(batch) * max(in_batch) <= max_slots


def test_texts_of_one_length_run_together_up_to_the_budget() -> None:
    assert [len(batch) for batch in plan_batches(np.full(10, 100), 400, lambda longest: 1)] == [4, 4, 2]


@given(data=st.data(), lengths=short_lengths)
def test_packed_arrays_equal_a_plain_loop(data: st.DataObject, lengths: list[int]) -> None:
    token_ids = data.draw(st.lists(st.integers(0, 5), min_size=sum(lengths), max_size=sum(lengths)))
    texts = texts_of(lengths, token_ids)
    text_index = np.array(data.draw(st.permutations(range(len(lengths)))))
    batch = pack(texts, text_index, PAD_ID)
    cpu, cuda = cpu_layout(batch.cu_seqlens), cuda_layout(batch.cu_seqlens)
    slot_of_token: list[int] = []
    expected_positions = []
    for i, text in enumerate(text_index):
        ids = token_ids[texts.offsets[text] : texts.offsets[text + 1]]
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
    padding = sorted(set(range(len(lengths) * max(lengths))) - set(slot_of_token))
    assert cuda["token_offset"].shape == (len(lengths), max(lengths))
    assert cuda["token_offset"].reshape(-1).tolist() == slot_of_token + padding
    assert cuda["cu_seqlens"].tolist() == batch.cu_seqlens.tolist()
    assert {layout.dtype for layout in (*cpu.values(), *cuda.values())} == {np.dtype(np.int32)}


@given(lengths=short_lengths, data=st.data())
def test_parts_of_a_micro_batch_are_what_packing_them_gives_and_join_to_the_whole(
    lengths: list[int], data: st.DataObject
) -> None:
    texts = texts_of(lengths)
    whole = pack(texts, np.arange(len(lengths)), PAD_ID, first=7)
    limits = sorted({0, len(lengths), *data.draw(st.lists(st.integers(0, len(lengths))))})
    parts = [whole.texts(start, stop) for start, stop in pairwise(limits)]
    packed = [pack(texts, np.arange(start, stop), PAD_ID, first=7) for start, stop in pairwise(limits)]
    for found, expected in zip([*parts, join(parts)], [*packed, whole], strict=True):
        for name, values in vars(expected).items():
            assert vars(found)[name].tolist() == values.tolist()


def test_a_literal_pad_token_takes_position_one_and_does_not_advance_the_count() -> None:
    found = position_ids(np.array([0, 7, 1, 8, 2, 0, 2]), np.array([0, 5, 7]), pad_id=1)
    assert found.tolist() == [2, 3, 1, 4, 5, 2, 3]
