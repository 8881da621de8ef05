"""Adapters that are named by their paths are asked as they were trained."""

from pathlib import Path

from tests.store.peft_made import save_peft
from tests.store.tiny import save_tiny_base

from manytune.cli.chosen import choose, load_common_base
from manytune.data.templates import Segment

OWN = (
    "{% for m in messages %}{{ 'q' if m.role == 'user' else 'a' }}{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}a{% endif %}"
)


def test_a_chat_template_next_to_an_adapter_makes_its_prompts(tmp_path: Path) -> None:
    base = str(save_tiny_base(tmp_path / "base"))
    for name, template in (("own", OWN), ("none", None)):
        made = save_peft(tmp_path / name)
        if template is not None:
            (made / "chat_template.jinja").write_text(template)
    loaded, chosen = load_common_base(
        choose([str(tmp_path / "own"), str(tmp_path / "none")], tmp_path / "store"), base
    )
    encoders = [one.encoder(loaded, new_tokens=4) for one in chosen]
    prompts = [encoder.prompt_ids([Segment("user", "hi")]) for encoder in encoders]
    assert prompts == [
        tuple(loaded.tokenizer.convert_tokens_to_ids(tokens))
        for tokens in (["q", "h", "i", "<end>", "a"], ["h", "i"])
    ]
    assert [encoder.mode for encoder in encoders] == ["chat", "plain"]
