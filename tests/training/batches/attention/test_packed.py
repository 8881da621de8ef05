"""The packed attention function against attention one query at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.random_cases import cases
from tests.reference.one_sequence_a_forward import attention
from tests.training.batches.tiny import Sequence, batches, model

from manytune.training.batches import builder, packed_attention
from manytune.training.batches.attention import cpu as cpu_attention
from manytune.training.batches.attention.packed import packed_attention_forward
from manytune.training.batches.layout import build_layout


def visible_rows(sequences, batch, window):
    """For each packed row, the rows of the tokens before it, found by walking every sequence through the batch."""
    tokens = batch.input_ids[0].tolist()
    row_of, visible = {(): None}, [None] * len(tokens)
    rows = iter(range(len(tokens)))
    for sequence in sorted((s.prompt_ids + s.completion_ids)[:-1] for s in sequences):
        path = []
        for end in range(1, len(sequence) + 1):
            if sequence[:end] not in row_of:
                row_of[sequence[:end]] = next(rows)
            path.append(row_of[sequence[:end]])
            assert tokens[path[-1]] == sequence[end - 1]
            visible[path[-1]] = path[-(window or end) :]
    return visible


@given(
    batches(),
    st.sampled_from([None, 1, 3, 40]),
    st.sampled_from([None, 0.7]),
    st.sampled_from([(4, 4), (4, 2), (3, 1)]),
    st.sampled_from([2, 64]),  # so that some rectangles take several calls
    st.sampled_from([8, 6]),  # values as wide as keys, which the CPU's own kernel asks for, and narrower
)
@settings(max_examples=cases(25), deadline=None)
def test_each_row_attends_along_its_own_path(sequences, window, softcap, heads, queries, value_dim):
    batch = builder("shared-prefix")(sequences, pad_id=0)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(count, batch.tokens_computed, dim, dtype=torch.float64, generator=generator)
        for count, dim in ((heads[0], 8), (heads[1], 8), (heads[1], value_dim))
    )
    query, key, value = (tensor.requires_grad_() for tensor in (query, key, value))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_attention, "_QUERIES", queries)
        found, weights = packed_attention_forward(
            torch.nn.Module(),
            query[None],
            key[None],
            value[None],
            None,
            scaling=0.3,
            sliding_window=window,
            softcap=softcap,
            manytune_layout=batch.layout,
        )
    expected = attention(
        query, key, value, visible_rows(sequences, batch, window), scaling=0.3, softcap=softcap
    )
    torch.testing.assert_close(found[0], expected, atol=1e-12, rtol=0)
    assert weights is None
    weight = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    leaves = (query, key, value)
    for gradient, reference in zip(
        torch.autograd.grad((found[0] * weight).sum(), leaves),
        torch.autograd.grad((expected * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(gradient, reference, atol=1e-11, rtol=0)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 300)), min_size=1, max_size=30))
@settings(max_examples=cases(20), deadline=None)
def test_each_row_is_a_query_of_one_rectangle(sizes):
    starts = np.array([start for start, _ in sizes])
    lengths = starts + np.array([own for _, own in sizes])
    paths = np.zeros((len(sizes), int(lengths.max())), dtype=np.int64)
    first_rows = np.cumsum(lengths - starts) - (lengths - starts)
    for path, start, length, row in zip(paths, starts, lengths, first_rows, strict=True):
        path[start:length] = row + np.arange(length - start)
    layout = build_layout(paths, starts, lengths)
    queries = torch.cat([rectangle.query_rows.flatten() for rectangle in layout.rectangles])
    assert queries[layout.slots].tolist() == list(range(int((lengths - starts).sum())))


def test_blocks_of_one_size_share_a_rectangle_and_very_unlike_ones_do_not():
    lengths = np.array([20, 20, 20, 2000])
    paths = np.zeros((4, 2000), dtype=np.int64)
    shapes = [
        tuple(rectangle.query_rows.shape)
        for rectangle in build_layout(paths, np.zeros_like(lengths), lengths).rectangles
    ]
    assert sorted(shapes) == [(1, 2000), (3, 20)]


def test_whole_sequences_need_no_mask_unless_a_window_is_narrower():
    batch = builder("padding-free")([Sequence((1, 2, 3), (4, 5))], pad_id=0)
    (rectangle,) = batch.layout.rectangles
    assert rectangle.mask(None) is None
    assert rectangle.mask(4) is None
    assert rectangle.mask(2)[0, 0].tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [False, True, True, False],
        [False, False, True, True],
    ]


def test_a_mask_is_computed_once_for_all_layers():
    batch = builder("padding-free")([Sequence((1, 2, 3), (4, 5))], pad_id=0)
    (rectangle,) = batch.layout.rectangles
    assert rectangle.mask(2) is rectangle.mask(2)


def test_all_layers_share_what_was_found_out_about_a_layout():
    batch = builder("shared-prefix")([Sequence((1, 2, 3), (4, 5)), Sequence((1, 2), (6, 7))], pad_id=0)
    query = torch.randn(batch.tokens_computed, 2, 8)
    for _ in range(2):
        cpu_attention.attend(query, query, query, batch.layout, 1.0, None)
    known = cpu_attention._PROBLEMS[batch.layout.query_positions]
    (first,) = known.values()
    cpu_attention.attend(query, query, query, batch.layout, 1.0, 2)
    assert len(known) == 2 and known[None, 2, torch.float32] is first


def test_kernels_that_may_not_know_grouped_heads_do_not_get_them(monkeypatch):
    monkeypatch.setattr(cpu_attention, "_GROUPED", False)
    query, key = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8)
    assert not cpu_attention.suits(query, key, key)
    assert cpu_attention.suits(query, query, query)
    assert not cpu_attention.suits(query, query, query[..., :6])


def test_queries_are_not_multiplied_with_keys_that_come_after_all_of_them(monkeypatch):
    monkeypatch.setattr(cpu_attention, "_QUERIES", 4)
    sequences = [Sequence((1, 2, 3), tuple(range(10, 20))), Sequence((1, 2, 3), tuple(range(30, 39)))]
    batch = builder("shared-prefix")(sequences, pad_id=0)
    query = torch.randn(batch.tokens_computed, 2, 8)
    cpu_attention.attend(query, query, query, batch.layout, 1.0, None)
    (problems,) = cpu_attention._PROBLEMS[batch.layout.query_positions].values()
    parts = [problem for problem in problems if problem.mask is not None]
    assert len({part.keys for part in parts}) > 1
    for part in parts:
        assert part.mask.shape[2:] == (part.queries.stop - part.queries.start, part.keys)
        assert part.mask[..., -1].isfinite().any()  # the last key is seen by one of them


@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"
)  # torch's own, in its compiler
def test_compiled_code_holds_attention_whole_for_any_number_of_rectangles():
    def run(query, layout):
        return cpu_attention.attend(2 * query, 3 * query, query, layout, 0.5, None).square().sum()

    compiled = torch.compile(run, dynamic=True, fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()
    sizes = ([(9, 4)], [(9, 4), (300, 9)], [(7, 3), (90, 5), (400, 8)])
    counts = []
    for count, size in enumerate(sizes):
        sequences = [Sequence(tuple(range(n)), tuple(range(100, 100 + m))) for n, m in size]
        batch = builder("padding-free")(sequences, pad_id=0)
        counts.append(len(batch.layout.rectangles))
        query = torch.randn(batch.tokens_computed, 2, 8, dtype=torch.float64).requires_grad_()
        # The first two are compiled (one without a size known to vary, one with it), the third must not be.
        with torch.compiler.set_stance("fail_on_recompile" if count == 2 else "default"):
            (found,) = torch.autograd.grad(compiled(query, batch.layout), query)
        (expected,) = torch.autograd.grad(run(query, batch.layout), query)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert counts == [1, 2, 3]


def test_the_models_own_attention_returns_after_the_context():
    llama = model("llama")
    with packed_attention(llama):
        with packed_attention(llama):
            assert llama.config._attn_implementation == "manytune-packed"
        assert llama.config._attn_implementation == "manytune-packed"
    assert llama.config._attn_implementation == "sdpa"


def test_the_models_own_attention_returns_after_an_error():
    llama = model("llama")
    with pytest.raises(KeyError), packed_attention(llama):
        raise KeyError
    assert llama.config._attn_implementation == "sdpa"


def test_a_forward_without_a_layout_says_how_to_go_on():
    llama = model("llama")
    with (
        packed_attention(llama),
        pytest.raises(RuntimeError, match="this forward has none; leave `packed_att"),
    ):
        llama(input_ids=torch.tensor([[1, 2]]))


@pytest.mark.parametrize(
    ("asked", "named"), [({"dropout": 0.1}, "attention dropout 0.1"), ({"s_aux": torch.zeros(1)}, "s_aux")]
)
def test_a_term_that_is_not_computed_is_refused(asked, named):
    layout = builder("padding-free")([Sequence((1,), (2,))], pad_id=0).layout
    x = torch.zeros(1, 1, 1, 4)
    with pytest.raises(RuntimeError, match=f"Module asks for {named}, which packed batches don't compute"):
        packed_attention_forward(torch.nn.Module(), x, x, x, None, manytune_layout=layout, **asked)
