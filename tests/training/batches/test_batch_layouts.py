"""What each layout puts into a batch, on examples small enough to write out."""

import pytest
import torch
from hypothesis import given, settings
from tests.random_cases import cases
from tests.training.batches.tiny import Sequence, batches

from manytune.errors import DataError, RecipeError
from manytune.training.batches import BUILDERS, TokenCounts, builder

#   1 2 ┬ 3 | 4 5
#       └ 6 ┬ | 7
#           └ | 8
TREE = [Sequence((1, 2, 3), (4, 5)), Sequence((1, 2, 6), (7,)), Sequence((1, 2, 6), (8,))]


def test_padded_rows_end_together_and_keep_only_the_columns_that_predict():
    batch = builder("padded")([Sequence((1, 2, 3), (4, 5)), Sequence((6,), (7,))], pad_id=9)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4], [9, 9, 9, 6]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 0, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [0, 0, 0, 1]]
    assert batch.logit_positions.tolist() == [2, 3]
    assert batch.target_rows.tolist() == [0, 1, 3]
    assert batch.labels.tolist() == [4, 5, 7]


def test_padding_free_rows_follow_one_another():
    batch = builder("padding-free")(TREE, pad_id=9)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 1, 2, 6, 1, 2, 6]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1, 2]]
    assert batch.logit_positions.tolist() == [2, 3, 6, 9]
    assert batch.labels.tolist() == [4, 5, 7, 8]
    assert batch.attention_mask is None


def test_shared_prefixes_are_computed_once():
    batch = builder("shared-prefix")(TREE, pad_id=9)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 6]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert batch.logit_positions.tolist() == [2, 3, 4]
    assert list(zip(batch.target_rows.tolist(), batch.labels.tolist(), strict=True)) == [
        (0, 4),
        (1, 5),
        (2, 7),
        (2, 8),
    ]


def test_a_target_on_several_paths_weighs_as_often_as_it_occurs():
    batch = builder("shared-prefix")([Sequence((1, 2), (3, 4)), Sequence((1, 2), (3, 5))] * 2, pad_id=0)
    assert batch.input_ids.tolist() == [[1, 2, 3]]
    assert batch.labels.tolist() == [3, 4, 5]
    assert batch.weights.tolist() == [4, 2, 2]
    assert batch.targets == 8


def test_a_token_may_be_a_target_of_one_sequence_and_the_prompt_of_another():
    batch = builder("shared-prefix")([Sequence((1,), (2, 3)), Sequence((1, 2), (3,))], pad_id=0)
    assert batch.labels.tolist() == [2, 3]
    assert batch.weights.tolist() == [1, 2]


@given(batches())
@settings(max_examples=cases(30), deadline=None)
def test_a_trie_has_one_row_for_each_distinct_prefix(sequences):
    prefixes = set()
    targets = 0
    for s in sequences:
        tokens = s.prompt_ids + s.completion_ids
        prefixes |= {tokens[:end] for end in range(1, len(tokens))}
        targets += len(s.completion_ids)
    batch = builder("shared-prefix")(sequences, pad_id=0)
    assert batch.tokens_computed == batch.input_ids.numel() == len(prefixes)
    assert batch.targets == targets
    assert batch.pad_tokens == 0


@pytest.mark.parametrize("layout", BUILDERS)
def test_a_batch_moves_to_another_device_whole(layout):
    batch = builder(layout)(TREE, pad_id=0).to("meta")
    tensors = [value for value in batch.model_inputs().values() if isinstance(value, torch.Tensor)]
    tensors += [batch.labels, batch.target_rows, batch.weights]
    if batch.layout is not None:
        tensors.append(batch.layout.slots)
        for rectangle in batch.layout.rectangles:
            tensors += [rectangle.query_rows, rectangle.key_rows, rectangle.mask(2)]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_counts_say_what_padding_and_sharing_would_have_cost():
    counts = {layout: TokenCounts.of(builder(layout)(TREE, pad_id=0)) for layout in BUILDERS}
    assert counts["padded"] == TokenCounts(10, 12, 12, 2, 4)
    assert counts["padding-free"] == TokenCounts(10, 12, 10, 0, 4)
    assert counts["shared-prefix"] == TokenCounts(10, 12, 5, 0, 4)
    assert counts["padded"].saved_by_padding == counts["padded"].saved_by_sharing == 0
    assert counts["padding-free"].saved_by_padding == pytest.approx(2 / 12)
    assert counts["padding-free"].saved_by_sharing == 0
    assert counts["shared-prefix"].saved_by_sharing == pytest.approx(5 / 10)
    assert counts["shared-prefix"].saved == pytest.approx(7 / 12)


def test_counts_of_batches_add_up():
    one = TokenCounts.of(builder("shared-prefix")(TREE, pad_id=0))
    assert one + one == TokenCounts(20, 24, 10, 0, 8)
    assert TokenCounts().saved == TokenCounts().saved_by_padding == TokenCounts().saved_by_sharing == 0


@pytest.mark.parametrize("layout", BUILDERS)
@pytest.mark.parametrize(
    ("sequence", "part"),
    [(Sequence((), (1,), "b.jsonl", 3), "prompt"), (Sequence((1,), (), "b.jsonl", 3), "completion")],
)
def test_an_empty_prompt_or_completion_is_refused_with_its_row(layout, sequence, part):
    with pytest.raises(DataError, match=f"b.jsonl:3: the {part} has no tokens"):
        builder(layout)([sequence], pad_id=0)


@pytest.mark.parametrize("layout", BUILDERS)
def test_an_empty_batch_is_refused(layout):
    with pytest.raises(DataError, match="at least one sequence"):
        builder(layout)([], pad_id=0)


def test_an_unknown_layout_names_the_nearest():
    with pytest.raises(RecipeError, match=r"found 'shared-prefixes'; did you mean 'shared-prefix'"):
        builder("shared-prefixes")
