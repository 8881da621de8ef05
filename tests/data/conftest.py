"""A tiny tokenizer, trained on the spot."""

from collections.abc import Callable

import pytest
from tests.chat_templates import SMOLLM2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]


@pytest.fixture(scope="session")
def smollm2_template() -> str:
    return SMOLLM2


@pytest.fixture(scope="session")
def make_tokenizer() -> MakeTokenizer:
    """Makes byte-level BPE tokenizers of 320 tokens, so that any text survives a round trip."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    corpus = ["the quick brown fox jumps over the lazy dog", "Summarize the following text.", "a b c d e f g"]
    trained.train_from_iterator(corpus, trainer)
    blueprint = trained.to_str()

    def make(
        *, chat_template: str | None = None, eos: str | None = "</s>", adds_bos_and_eos: bool = False
    ) -> PreTrainedTokenizerFast:
        tokenizer = Tokenizer.from_str(blueprint)
        if adds_bos_and_eos:
            tokenizer.post_processor = processors.TemplateProcessing(
                single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
            )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token="<s>",
            eos_token=eos,
            additional_special_tokens=["<|im_start|>", "<|im_end|>"],
            chat_template=chat_template,
            clean_up_tokenization_spaces=False,
        )

    return make
