"""Each family's chat template is read back: what it writes of a call is what its reader finds."""

import pytest
from tests.chat_templates import FAMILIES, tokenizer_of
from tests.server.tools.test_hermes import TOOLS
from tests.server.tools.test_response_template import TEMPLATE

from manytune.data.encoding.encode import Encoder
from manytune.server.tools.choice import format_of

WRITTEN = {"llama3": "llama3", "qwen3": "hermes", "qwen3-no-thinking": "hermes", "mistral": "mistral"}
LATER_MISTRAL = FAMILIES["mistral"].template.replace(
    FAMILIES["mistral"].template[
        FAMILIES["mistral"].template.index('{{- "[TOOL_CALLS] ["') : FAMILIES["mistral"].template.index(
            '{%- elif message["role"] == "assistant" %}'
        )
    ],
    '{%- for call in message.tool_calls %}{{- "[TOOL_CALLS]" + call.function.name + "[ARGS]" }}'
    "{{- call.function.arguments | tojson }}{%- endfor %}{{- eos_token }}",
)
PLAIN = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% else %}{{ m.content }}{% endif %}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRANGE = PLAIN.replace("m.tool_calls[0].function | tojson", "'call ' + m.tool_calls[0].function.name")


def form(template: str, **options):
    tokenizer = tokenizer_of(None)
    tokenizer.chat_template = template
    for name, value in options.items():
        setattr(tokenizer, name, value)
    return format_of(Encoder(tokenizer, max_length=None))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_template_is_recognised_and_one_without_tools_has_them_as_text(family: str) -> None:
    encoder = Encoder(tokenizer_of(family), max_length=None, chat_template_kwargs=FAMILIES[family].options)
    found = format_of(encoder)
    assert found is not None and found.name == WRITTEN.get(family, "hermes")
    assert encoder.writes_tools == (family in WRITTEN)


def test_other_templates_are_recognised_by_what_they_write() -> None:
    later, plain = form(LATER_MISTRAL), form(PLAIN)
    assert later is not None and later.name == "mistral" and "add[ARGS]" in rules_of(later)
    assert plain is not None and plain.name == "plain JSON"
    assert form(STRANGE) is None


def test_a_response_template_goes_before_the_family() -> None:
    found = form(FAMILIES["qwen3"].template, response_template=TEMPLATE)
    assert found is not None and found.name == "the tokenizer's response template"
    assert "<tool_call>" in rules_of(found)


def rules_of(found) -> str:
    rules = found.rules(TOOLS, {}, several=True, strict=True)
    return f"{rules.calls} {rules.rules}"
