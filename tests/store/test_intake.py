"""What others wrote is taken in as far as it is the adapter's; what would change its prompts is refused by name."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.store.adapters_made import make_adapter
from tests.store.peft_made import save_peft, train_with_trainer
from tests.store.tiny import save_tiny_base, tiny_tokenizer

from manytune.errors import DamagedError, StoreError
from manytune.store import servability
from manytune.store.adapters import open_adapter
from manytune.store.base import Base, load_base
from manytune.store.contents import contents_of
from manytune.store.store import AdapterStore

CHAT = (
    "{% for m in messages %}{{ m.role }} {{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "store")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Base) -> Path:
    return train_with_trainer(tmp_path_factory.mktemp("trainer") / "out", tiny_base.tokenizer)


@pytest.mark.parametrize("inside", [".", "checkpoint-1"])
def test_of_what_trainer_wrote_the_adapter_is_taken_and_the_rest_is_left(
    inside: str, trained: Path, store: AdapterStore, tiny_base: Base
) -> None:
    others = contents_of(trained / inside).others
    assert "training_args.bin" in others
    assert ("checkpoint-1/" in others) == (inside == ".")
    assert ("optimizer.pt" in others) == (inside == "checkpoint-1")
    entry = store.add(trained / inside, base=tiny_base)
    kept = {file.name for file in entry.path.iterdir()}
    assert kept == {"adapter_config.json", "adapter_model.safetensors", "README.md", "manifest.json"}
    assert open_adapter(entry.path, base=tiny_base).note is None


def test_what_trainer_wrote_can_be_opened_where_it_is(trained: Path, tiny_base: Base) -> None:
    assert open_adapter(trained, base=tiny_base).path == trained
    assert open_adapter(trained / "checkpoint-1").manifest is None


def test_a_directory_of_checkpoints_without_an_adapter_of_its_own_names_the_newest(tmp_path: Path) -> None:
    for step in (500, 1000):
        save_peft(tmp_path / "out" / f"checkpoint-{step}")
    with pytest.raises(
        StoreError, match=r"hold adapters \(checkpoint-500, checkpoint-1000\); name one.*-1000"
    ):
        open_adapter(tmp_path / "out")


def test_weights_in_a_pickle_are_refused_and_one_next_to_safetensors_is_left(
    tmp_path: Path, store: AdapterStore, tiny_base: Base
) -> None:
    made = save_peft(tmp_path / "made")
    (made / "adapter_model.bin").write_bytes(pickle.dumps({"weight": [1.0]}))
    assert contents_of(made).others == ("adapter_model.bin",)
    assert not (store.add(made, base=tiny_base).path / "adapter_model.bin").exists()
    (made / "adapter_model.safetensors").unlink()
    with pytest.raises(DamagedError, match=r"adapter_model\.bin: this is a pickle"):
        store.add(made, base=tiny_base)


def test_the_bases_own_tokenizer_next_to_an_adapter_is_none_of_its_own(
    tmp_path: Path, store: AdapterStore, tiny_base: Base
) -> None:
    made = save_peft(tmp_path / "made")
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "<unk>"  # chosen for a training, and never read by the model
    tokenizer.save_pretrained(made)
    assert "tokenizer.json" in contents_of(made).tokenizer
    assert store.add(made, base=tiny_base).manifest.method == "lora"


def with_template_file(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text(CHAT)


def with_template_in_config(directory: Path) -> None:
    tiny_tokenizer().save_pretrained(directory)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": CHAT}))


def with_added_tokens_file(directory: Path) -> None:
    (directory / "added_tokens.json").write_text(json.dumps({"<tool>": 29}))


def with_added_tokens(directory: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<tool>"], special_tokens=True)
    tokenizer.save_pretrained(directory)


def with_another_end(directory: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "z"
    tokenizer.save_pretrained(directory)


def with_other_rules(directory: Path) -> None:
    tiny_tokenizer().save_pretrained(directory)
    content = json.loads((directory / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Lowercase"}
    (directory / "tokenizer.json").write_text(json.dumps(content))


TOKENIZERS: dict[Any, str] = {
    with_added_tokens_file: r"added_tokens\.json has tokens that the base's hasn't.*'<tool>'",
    with_added_tokens: r"its tokenizer has tokens that the base's hasn't.*'<tool>'",
    with_another_end: r"its eos_token is 'z', the base's '<end>'",
    with_other_rules: r"tokenizer\.json cuts text into tokens by other rules",
}


@pytest.mark.parametrize("change", TOKENIZERS, ids=lambda change: change.__name__)
def test_a_tokenizer_that_is_not_the_bases_is_refused_by_what_differs(
    change: Any, tmp_path: Path, store: AdapterStore, tiny_base: Base
) -> None:
    made = save_peft(tmp_path / "made")
    change(made)
    with pytest.raises(StoreError, match=TOKENIZERS[change]) as caught:
        store.add(made, base=tiny_base)
    assert "--base-tokenizer" in str(caught.value)
    with pytest.raises(StoreError, match=TOKENIZERS[change]):
        open_adapter(made, base=tiny_base)  # generate, evaluate, merge and verify ask so
    assert store.add(made, base=tiny_base, base_tokenizer=True).manifest.method == "lora"


@pytest.mark.parametrize("change", [with_template_file, with_template_in_config])
def test_a_chat_template_of_its_own_is_kept(
    change: Any, tmp_path: Path, store: AdapterStore, tiny_base: Base
) -> None:
    made = save_peft(tmp_path / "made")
    change(made)
    assert open_adapter(made, base=tiny_base).chat_template == CHAT
    entry = store.add(made, base=tiny_base)
    assert entry.manifest.encoding == "chat"
    assert entry.manifest.encoding_options == {"chat_template": CHAT}
    plain = store.add(made, base=tiny_base, base_tokenizer=True)
    assert plain.manifest.encoding_options is None
    assert plain.digest != entry.digest


def test_a_chat_template_next_to_a_manifest_that_says_plain_is_not_used(
    tmp_path: Path, store: AdapterStore, tiny_base: Base
) -> None:
    made = make_adapter(tmp_path / "made", tiny_base)
    with_template_file(made)
    assert store.add(made, base=tiny_base).manifest.encoding == "plain"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}", r"chat_template\.jinja: the adapter's chat template can't write.*Syntax"),
        ("{{ raise_exception('no') }}", "can't write a message and its answer"),
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}Q{{ add_generation_prompt }}",
            "once it is answered",
        ),
        (" " * (2 << 20), "2,097,152 characters; expected 1,048,576 at most"),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_refused_when_it_is_added(
    template: str, message: str, tmp_path: Path, store: AdapterStore, tiny_base: Base
) -> None:
    made = save_peft(tmp_path / "made")
    (made / "chat_template.jinja").write_text(template)
    with pytest.raises(StoreError, match=message):
        store.add(made, base=tiny_base)


def test_another_template_than_the_bases_is_kept_and_the_same_one_is_not(
    tmp_path: Path, store: AdapterStore
) -> None:
    directory = save_tiny_base(tmp_path / "base")
    (directory / "chat_template.jinja").write_text(CHAT)
    base = load_base(str(directory))
    made = save_peft(tmp_path / "made")
    with_template_file(made)
    assert store.add(made, base=base).manifest.encoding_options is None
    other = CHAT.replace("<end>", "<end> ")
    (made / "chat_template.jinja").write_text(other)
    assert store.add(made, base=base).manifest.encoding_options == {"chat_template": other}


def test_a_tokenizer_that_cannot_be_read_is_named(
    tmp_path: Path, store: AdapterStore, tiny_base: Base
) -> None:
    made = save_peft(tmp_path / "made")
    for name, content in (("added_tokens.json", "[]"), ("tokenizer.json", "{")):
        (made / name).write_text(content)
        with pytest.raises(DamagedError):
            store.add(made, base=tiny_base)
        (made / name).unlink()
    shutil.rmtree(made)


def test_options_that_only_their_method_cannot_read_are_refused(
    tmp_path: Path, store: AdapterStore, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TypeError("'float' object is not iterable")

    monkeypatch.setattr(servability, "why_not_served", fail)
    with pytest.raises(DamagedError, match=r"made/adapter_config\.json: .*'float' object is not iterable"):
        store.add(save_peft(tmp_path / "made"), base=tiny_base)
