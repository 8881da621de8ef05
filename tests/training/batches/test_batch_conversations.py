"""Conversations: several answers in one sequence, or one sequence an answer, with the same loss and gradients."""

import pytest
import torch
from tests.chat_templates import FAMILIES, tokenizer_of
from tests.reference.one_sequence_a_forward import loss_and_gradients
from tests.training.batches.test_batch_exactness import GRADIENT, LOSS, assert_same, run
from tests.training.batches.tiny import Sequence, model

from manytune.data.conversation.conversation import Message
from manytune.data.encoding.encode import Encoder
from manytune.data.encoding.encoded import Encoded, rows_of
from manytune.data.templates import Example
from manytune.engine.likelihood import completion_nll
from manytune.errors import DataError
from manytune.training.batches import BUILDERS, builder
from manytune.training.batches.grouping import plan_batches
from manytune.training.loop.rows import TrainingRows

# Two conversations of three and two answers, each as one sequence; the second answer of the first bears no loss.
JOINED = [
    Sequence((1, 2), (3, 1, 0, 2, 2, 3, 1, 0, 3, 3), given=((2, 4), (4, 7))),
    Sequence((1, 2, 2), (3, 0, 1, 1), given=((1, 3),)),
]
AN_ANSWER_EACH = [
    Sequence((1, 2), (3, 1)),
    Sequence((1, 2, 3, 1, 0, 2, 2, 3, 1), (0, 3, 3)),
    Sequence((1, 2, 2), (3,)),
    Sequence((1, 2, 2, 3, 0, 1), (1,)),
]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gpt2"])
@pytest.mark.parametrize("layout", BUILDERS)
@pytest.mark.parametrize("sequences", [JOINED, AN_ANSWER_EACH], ids=["one sequence", "an answer each"])
def test_every_layout_equals_one_answer_at_a_time(kind: str, layout: str, sequences: list[Sequence]) -> None:
    expected = loss_and_gradients(model(kind), AN_ANSWER_EACH)
    assert_same(run(model(kind), layout, sequences), expected, loss=LOSS, gradient=GRADIENT)


def test_an_answer_each_computes_no_token_twice_in_a_shared_prefix_batch() -> None:
    together = builder("shared-prefix")(JOINED, pad_id=0)
    apart = builder("shared-prefix")(AN_ANSWER_EACH, pad_id=0)
    assert apart.tokens_computed == together.tokens_computed
    assert apart.targets == together.targets == 7


def test_tokens_that_are_given_are_not_scored() -> None:
    llama = model("llama").eval()
    joined = completion_nll(llama, JOINED)
    apart = completion_nll(llama, AN_ANSWER_EACH)
    assert [tokens for _, tokens in joined] == [5, 2]
    assert joined[0][0] == pytest.approx(apart[0][0] + apart[1][0], rel=1e-5)
    assert joined[1][0] == pytest.approx(apart[2][0] + apart[3][0], rel=1e-5)


@pytest.mark.parametrize("layout", BUILDERS)
def test_a_sequence_that_is_all_given_has_nothing_to_learn(layout: str) -> None:
    with pytest.raises(DataError, match="there is nothing to learn from it"):
        builder(layout)([Sequence((1,), (2, 3), given=((0, 2),))], pad_id=0)


def test_the_answers_of_a_conversation_stay_in_one_batch() -> None:
    rows = [Encoded((n,), (1, 2), "x", n, follows=n % 3 != 0) for n in range(30)]
    training = TrainingRows(train=rows, pad_id=0)
    assert training.rows_per_epoch == 10
    for options in ({"batch_size": 2}, {"token_budget": 15, "layout": "padding-free"}):
        plan = plan_batches(rows_of(rows), seed=0, **options)
        assert sorted(row for batch in plan for row in batch) == list(range(10))
        for batch in plan:
            assert len(training.sequences(batch)) == 3 * len(batch)
            assert sum(len(one.input_ids) - 1 for one in training.sequences(batch)) <= 15


def dialogues(count: int) -> list[Example]:
    """Six turns each, three questions and three answers, of lengths as in DialogSum."""
    generator = torch.Generator().manual_seed(0)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "what", "is", "it"]

    def said() -> str:
        length = int(torch.randint(5, 30, (1,), generator=generator))
        return " ".join(
            words[int(torch.randint(len(words), (1,), generator=generator))] for _ in range(length)
        )

    found = []
    for row in range(count):
        roles = ["user", "assistant"] * 3
        messages = [Message(role, said()) for role in roles]  # type: ignore[arg-type]
        found.append(Example(tuple(messages[:-1]), messages[-1].text, "chat.jsonl", row, earlier=(1, 3)))
    return found


@pytest.mark.parametrize(
    ("family", "most"), [("smollm2", 1.0), ("llama3", 1.0), ("gemma", 1.0), ("qwen3", 1.5), ("mistral", 1.0)]
)
def test_six_turns_cost_close_to_one_pass(family: str, most: float) -> None:
    """One pass reads a conversation once; Qwen3's history lacks the empty block, so its answers are read twice."""
    encoder = Encoder(tokenizer_of(family), max_length=None, chat_template_kwargs=FAMILIES[family].options)
    examples = dialogues(16)
    one_pass = sum(len(encoder.encode(example).input_ids) - 1 for example in examples)
    kept = encoder.encode_all(examples).kept
    computed = sum(builder("shared-prefix")(row, pad_id=0).tokens_computed for row in rows_of(kept))
    assert computed <= most * one_pass
    # The least there can be: a token's activations depend on all tokens before it, so each distinct prefix counts once.
    prefixes = [
        {sequence.input_ids[:end] for sequence in row for end in range(1, len(sequence.input_ids))}
        for row in rows_of(kept)
    ]
    assert computed == sum(map(len, prefixes))
    padded = sum(len(sequence.input_ids) - 1 for sequence in kept)
    assert computed <= padded
