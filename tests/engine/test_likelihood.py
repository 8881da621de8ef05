"""Likelihoods in padded batches are those of one token at a time."""

from dataclasses import dataclass

import pytest
from tests.engine.systems import END, MODELS, VOCABULARY, llama, with_lora
from tests.reference.one_at_a_time import negative_log_likelihood

from manytune.engine.likelihood import completion_nll
from manytune.errors import DataError


@dataclass(frozen=True)
class Sequence:
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    given: tuple[tuple[int, int], ...] = ()


SEQUENCES = [
    Sequence((5, 6, 7), (8, 9, END)),
    Sequence((8,), (30, END)),
    Sequence((9, 10, 11, 12, 13, 14, 15), (END,)),
    Sequence((16, 17), (18, 19, 20, 21, 22, END)),
    Sequence((40, 41, 42, 43), (2, 2, 2)),
]


@pytest.fixture(params=list(MODELS))
def model(request):
    return MODELS[request.param]()


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batched_likelihoods_are_those_of_one_token_at_a_time(model, batch_size):
    results = completion_nll(model, SEQUENCES, batch_size=batch_size)
    assert [tokens for _, tokens in results] == [3, 2, 1, 6, 3]
    for (nll, _), sequence in zip(results, SEQUENCES, strict=True):
        expected = negative_log_likelihood(model, sequence.prompt_ids, sequence.completion_ids)
        assert nll == pytest.approx(expected, rel=1e-5)


def test_only_the_completions_columns_reach_the_head():
    model, shapes = llama(), []
    model.lm_head.register_forward_hook(lambda _module, _args, output: shapes.append(tuple(output.shape)))
    completion_nll(model, SEQUENCES)
    assert shapes == [(5, 7, VOCABULARY)]


def test_modes_of_all_modules_are_restored_even_after_an_error():
    model = with_lora(llama()).train()
    frozen = model.get_base_model().model.norm
    frozen.eval()
    completion_nll(model, SEQUENCES)
    with pytest.raises(IndexError):
        completion_nll(model, [Sequence((VOCABULARY + 3,), (END,))])
    assert model.training and not frozen.training
    assert all(module.training for module in model.modules() if module is not frozen)


def test_no_sequences_give_no_results():
    assert completion_nll(llama(), []) == []


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        (Sequence((3,), ()), "sequence 0 has no completion tokens"),
        (Sequence((), (3,)), "prompt 0 has no tokens"),
        (Sequence((3,) * 60, (4,) * 5), "sequence 0 has 65 tokens, but the model has 64 positions"),
    ],
)
def test_what_cannot_be_computed_is_an_error_that_says_why(sequence, message):
    with pytest.raises(DataError, match=message):
        completion_nll(llama(), [sequence])
