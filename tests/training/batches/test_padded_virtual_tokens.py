"""A padded batch on a model with a soft prompt: the loss of each sequence alone."""

from dataclasses import dataclass

import pytest
import torch
from tests.methods import prompts
from tests.methods.tiny_models import LLAMA

from manytune.training.batches import padded


@dataclass(frozen=True)
class Sequence:
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    source: str = "test"
    row: int = 1
    given: tuple[tuple[int, int], ...] = ()


SEQUENCES = [Sequence((5, 6, 7, 8), (9, 10)), Sequence((11,), (12, 13, 14)), Sequence((15, 16), (17,))]


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
@pytest.mark.parametrize("all_logits", [False, True], ids=["kept logits", "all logits"])
def test_the_loss_is_the_sum_of_the_losses_alone(method: str, all_logits: bool) -> None:
    model, _ = prompts.both(method, prompts.livelier(LLAMA.build()), "CAUSAL_LM")
    batch = padded.build(SEQUENCES, pad_id=0)
    inputs = batch.model_inputs(model)
    if all_logits:
        del inputs["logits_to_keep"]
    expected = 0.0
    for sequence in SEQUENCES:
        ids = torch.tensor([sequence.prompt_ids + sequence.completion_ids])
        scores = prompts.logits(model, input_ids=ids)[0, -ids.shape[1] :].log_softmax(-1)
        start = len(sequence.prompt_ids)
        for column in range(start, ids.shape[1]):
            expected -= float(scores[column - 1, ids[0, column]])
    with torch.no_grad():
        found = float(batch.loss_sum(model(**inputs).logits))
    assert found == pytest.approx(expected, rel=1e-9)
