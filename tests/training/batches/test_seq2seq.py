"""Encoder-decoder batches against transformers' own loss, and the adapter's whole life on a tiny T5 and BART."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.random_cases import some
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from typer.testing import CliRunner

from manytune.cli.main import build_app
from manytune.data.encoding.encode import Encoder
from manytune.data.encoding.encoded import Encoded
from manytune.data.templates import Example, Segment
from manytune.engine.likelihood import completion_nll
from manytune.engine.static_batch import generate_batch
from manytune.errors import RunError
from manytune.training.batches.seq2seq import builder_for
from manytune.training.loop.loss import mean_loss
from manytune.training.speed.chunked_cross_entropy import loss_sum

ROOT = Path(__file__).parents[3]
SEQUENCES = [
    Encoded((5, 6, 7, 1), (8, 9, 1), "rows", 1),
    Encoded((6, 1), (9, 7, 6, 5, 1), "rows", 2),
    Encoded((9, 9, 5, 5, 4, 1), (4, 1), "rows", 3),
]


def t5(vocabulary: int = 16) -> PreTrainedModel:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=vocabulary,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        initializer_factor=2.0,
    )
    return T5ForConditionalGeneration(config).eval()


def bart() -> PreTrainedModel:
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=16,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=32,
        init_std=0.3,
        dropout=0.0,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        decoder_start_token_id=1,
        forced_eos_token_id=1,
    )
    return BartForConditionalGeneration(config).eval()


def by_transformers(model: PreTrainedModel, sequence: Encoded) -> float:
    """The summed loss of one sequence, from `labels`."""
    labels = torch.tensor([sequence.completion_ids])
    with torch.no_grad():
        loss = model(input_ids=torch.tensor([sequence.prompt_ids]), labels=labels).loss
    return float(loss) * labels.numel()


def tokenizer(words: list[str], *, begins: bool = False) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if begins else "$A </s>", special_tokens=[("<s>", 2), ("</s>", 1)]
    )
    bos = {"bos_token": "<s>"} if begins else {}
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", **bos)


@pytest.mark.parametrize("make", [t5, bart])
def test_a_batch_has_the_loss_of_its_sequences_one_by_one(make: Any) -> None:
    model = make()
    expected = [by_transformers(model, sequence) for sequence in SEQUENCES]
    build = builder_for(model)
    batch = build(SEQUENCES, pad_id=0)
    assert batch.targets == 10
    assert batch.tokens_in == 4 + 2 + 6 + 10
    with torch.no_grad():
        assert loss_sum(model, batch.to("cpu")).item() == pytest.approx(sum(expected), rel=1e-5)
    mean = mean_loss(model, SEQUENCES, build, batch_size=2, pad_id=0)
    assert mean == pytest.approx(sum(expected) / 10, rel=1e-5)
    for (nll, tokens), own, sequence in zip(
        completion_nll(model, SEQUENCES), expected, SEQUENCES, strict=True
    ):
        assert nll == pytest.approx(own, rel=1e-5)
        assert tokens == len(sequence.completion_ids)


@pytest.mark.parametrize("make", [t5, bart])
def test_answers_in_a_batch_are_those_of_one_step_at_a_time(make: Any) -> None:
    model = make()
    words = ["<pad>", "</s>", "<s>", "<unk>", *(f"w{n}" for n in range(12))]
    found = generate_batch(
        model, tokenizer(words), [s.prompt_ids for s in SEQUENCES], max_new_tokens=6, batch_size=3
    )
    forced = model.generation_config.forced_eos_token_id  # of the last position, BART's for example
    for sequence, generation in zip(SEQUENCES, found, strict=True):
        decoded = [model.config.decoder_start_token_id]
        while len(decoded) < 7:
            with torch.no_grad():
                logits = model(
                    input_ids=torch.tensor([sequence.prompt_ids]), decoder_input_ids=torch.tensor([decoded])
                ).logits
            decoded.append(int(logits[0, -1].argmax()))
            if decoded[-1] == 1:
                break
        if forced is not None and len(decoded) == 7:
            decoded[-1] = forced
        assert list(generation.token_ids) == [token for token in decoded[1:] if token not in (1, forced)]


def test_a_model_without_a_start_token_is_refused() -> None:
    model = t5()
    model.config.decoder_start_token_id = None
    with pytest.raises(RunError, match="has no decoder_start_token_id"):
        builder_for(model)


def test_prompt_and_completion_begin_and_end_as_the_tokenizer_has_it() -> None:
    words = ["<pad>", "</s>", "<s>", "<unk>", "hot", "cold"]
    example = Example((Segment("user", "hot"),), "cold", "rows", 1)
    like_t5 = Encoder(tokenizer(words), max_length=None, encoder_decoder=True).encode(example)
    assert (like_t5.prompt_ids, like_t5.completion_ids) == ((4, 1), (5, 1))
    like_bart = Encoder(tokenizer(words, begins=True), max_length=None, encoder_decoder=True).encode(example)
    assert (like_bart.prompt_ids, like_bart.completion_ids) == ((2, 4, 1), (2, 5, 1))


def manytune(*arguments: str) -> Any:
    result = CliRunner().invoke(build_app(), [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def with_settings(settings: list[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples next to a tiny T5 that knows their words, in `base`."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", "examples")
    rows = [json.loads(line) for line in Path("examples/dialogues.jsonl").read_text().splitlines()]
    text = " ".join(f"{row['dialogue']} {row['summary']}" for row in rows) + " Summarize the dialogue."
    words = ["<pad>", "</s>", "<unk>", *sorted(set(text.split()))]
    t5(len(words)).save_pretrained("base")
    tokenizer(words).save_pretrained("base")


@pytest.mark.slow
@pytest.mark.usefixtures("example")
def test_the_example_trains_evaluates_and_answers_with_a_t5() -> None:
    settings = [
        "base=base",
        "training.learning_rate=0.02",
        "training.epochs=12",
        "method.target_modules=all-linear",
    ]
    trained = manytune("train", *with_settings(settings), "examples/dialogue-t5.yaml")
    log = [json.loads(line) for line in Path("runs/dialogue-t5/log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert sum(losses[-5:]) < 0.65 * sum(losses[:5])  # the base is random, and frozen
    assert trained["train_rows"] == 24
    config = json.loads(Path("runs/dialogue-t5/adapter/adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_2_SEQ_LM"

    scored = manytune("evaluate", "runs/dialogue-t5", "--max-new-tokens", "20")
    assert scored["items"] == 4
    base, adapter = ({s["metric"]: s["value"] for s in found["scores"]} for found in scored["results"])
    assert adapter["perplexity"] < base["perplexity"]
    assert 0 <= adapter["rouge1"] <= 1

    answers = manytune(
        "generate", "--adapter", "runs/dialogue-t5", "--field", "dialogue=Mia: Hi.", "--max-new-tokens", "20"
    )
    assert answers[0]["answers"][0]["text"]


@pytest.mark.slow
@pytest.mark.usefixtures("example")
@pytest.mark.parametrize(
    "method", some(["prompt-tuning", "p-tuning", "prefix-tuning"], "p-tuning", "prefix-tuning")
)
def test_a_soft_prompt_trains_evaluates_and_answers_with_a_t5(method: str) -> None:
    settings = [
        "base=base",
        f"method={{name: {method}, num_virtual_tokens: 4}}",
        "training.learning_rate=0.03",
        "training.epochs=12",
    ]
    trained = manytune("train", *with_settings(settings), "examples/dialogue-t5.yaml")
    assert trained["train_rows"] == 24
    scored = manytune("evaluate", "runs/dialogue-t5", "--max-new-tokens", "8")
    base, adapter = ({s["metric"]: s["value"] for s in found["scores"]} for found in scored["results"])
    assert adapter["perplexity"] < base["perplexity"]
    answers = manytune(
        "generate", "--adapter", "runs/dialogue-t5", "--field", "dialogue=Mia: Hi.", "--max-new-tokens", "8"
    )
    assert answers[0]["answers"]
