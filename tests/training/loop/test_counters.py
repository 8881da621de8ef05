"""What a batch, and a whole training, computes."""

from __future__ import annotations

import pytest
from tests.training.tiny_run import as_rows, lora, sequences, settings

from manytune.data.encoding.encoded import Encoded
from manytune.training.batches import BUILDERS, builder
from manytune.training.loop.counters import Counters
from manytune.training.loop.train import train_model

# 1 2 3 | 4 5 and 1 2 6 | 7: inputs 1234 and 126, as a trie 1 2 3 4 6
TWO = [Encoded((1, 2, 3), (4, 5), "x", 1), Encoded((1, 2, 6), (7,), "x", 2)]


@pytest.mark.parametrize(
    ("layout", "computed", "pairs", "logit_rows"),
    [
        ("padded", 8, (1 + 2 + 3 + 4) + (1 + 2 + 3), 3),
        ("padding-free", 7, (1 + 2 + 3 + 4) + (1 + 2 + 3), 3),
        ("shared-prefix", 5, (1 + 2 + 3 + 4) + 3, 3),
    ],
)
def test_a_batch_is_counted_without_its_pad_tokens(
    layout: str, computed: int, pairs: int, logit_rows: int
) -> None:
    counters = Counters.of(builder(layout)(TWO, pad_id=0))
    assert (counters.tokens.tokens_computed, counters.pairs, counters.logit_rows) == (
        computed,
        pairs,
        logit_rows,
    )
    assert (counters + counters).pairs == 2 * pairs


@pytest.mark.parametrize("layout", BUILDERS)
def test_a_result_has_the_sum_of_its_batches(layout: str) -> None:
    rows = sequences(9)
    result = train_model(
        lora(), as_rows(rows), settings(batching=layout, epochs=1.0, batch_size=9, warmup=0.0)
    )
    assert result.counters == Counters.of(builder(layout)(rows, pad_id=0))
