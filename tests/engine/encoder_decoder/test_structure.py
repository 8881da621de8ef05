"""Which encoder-decoders the engine runs, each as transformers does; and what it says of the others."""

import pytest
import torch
import transformers
from tests.engine.adapters import END, VOCABULARY, attached, in_memory
from tests.engine.encoder_decoder.bases import bart, t5, varied
from tests.reference.single_adapter import answer

from manytune.engine.encoder_decoder.structure import FAMILIES
from manytune.engine.engine import Engine
from manytune.engine.request import Request, SamplingParams
from manytune.engine.support import unsupported_reason
from manytune.errors import ConfigError
from manytune.methods.lora.config import LoraConfig

LIKE_T5 = {"mt5": "MT5", "umt5": "UMT5"}
LIKE_BART = {
    "mbart": "MBart",
    "plbart": "PLBart",
    "marian": "Marian",
    "pegasus": "Pegasus",
    "blenderbot": "Blenderbot",
    "blenderbot-small": "BlenderbotSmall",
}
PROMPTS = [(5, 6, 7, 8, 9), tuple(range(10, 22))]


def build(kind):
    """A tiny model of a family, of the same sizes as the tiny T5 or BART."""
    torch.manual_seed(5)
    if kind in LIKE_T5:
        sizes, name, head = t5().config, LIKE_T5[kind], "ForConditionalGeneration"
        spread = 0.15
    else:
        sizes, name, spread = bart().config, LIKE_BART[kind], 0.3
        head = "MTModel" if kind == "marian" else "ForConditionalGeneration"
    given = {
        key: value for key, value in sizes.to_dict().items() if key not in ("model_type", "architectures")
    }
    config = getattr(transformers, f"{name}Config")(**given)
    model = varied(getattr(transformers, f"{name}{head}")(config).eval(), spread=spread)
    model.generation_config.forced_eos_token_id = None
    return model


def test_every_named_family_is_tried():
    assert {*LIKE_T5, *LIKE_BART, "t5", "bart"} == set(FAMILIES)


@pytest.mark.parametrize("kind", [*LIKE_T5, *LIKE_BART])
def test_a_family_answers_as_in_transformers_with_and_without_an_adapter(kind, tokenizer):
    targets = ["q", "v", "wo"] if kind in LIKE_T5 else ["q_proj", "v_proj", "fc1"]
    tuned = attached(build(kind), LoraConfig(r=2, target_modules=targets, task_type="SEQ_2_SEQ_LM"), seed=1)
    plain = build(kind)
    engine = Engine(plain, tokenizer)
    engine.add_adapter("lora", in_memory(tuned))
    params = SamplingParams(max_new_tokens=4, logprobs=VOCABULARY)
    asked = [(name, prompt) for name in (None, "lora") for prompt in PROMPTS]
    found = engine.generate(
        Request(str(place), prompt, params, name) for place, (name, prompt) in enumerate(asked)
    )
    for (name, prompt), one in zip(asked, found, strict=True):
        tokens, logprobs = answer(tuned if name else plain, prompt, max_new_tokens=4, end_id=END)
        assert [entry.token_id for entry in one.logprobs] == tokens
        for entry, expected in zip(one.logprobs, logprobs, strict=True):
            ids, values = zip(*entry.top, strict=True)
            torch.testing.assert_close(torch.tensor(values), expected[list(ids)], atol=1e-5, rtol=0)


def test_other_encoder_decoders_are_refused_by_name(tokenizer):
    config = transformers.LEDConfig(
        vocab_size=VOCABULARY, d_model=16, encoder_layers=1, decoder_layers=1, attention_window=4
    )
    with pytest.raises(ConfigError, match="of type led: of these the engine runs t5, mt5"):
        Engine(transformers.LEDForConditionalGeneration(config), tokenizer)


def test_a_model_without_a_start_token_is_refused():
    model = t5(decoder_start_token_id=None)
    model.generation_config.decoder_start_token_id = None
    assert unsupported_reason(model) == "its generation settings name no decoder_start_token_id"
