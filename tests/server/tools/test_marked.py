"""Whatever a model writes, well formed or not: it is read in the same way however it comes, and nothing is lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.random_cases import cases
from tests.server.tools.reading import read

from manytune.server.tools.hermes import Hermes
from manytune.server.tools.llama3 import Llama3
from manytune.server.tools.mistral import Mistral
from manytune.server.tools.plain import Plain

PIECES = [
    *(
        "<tool_call>",
        "</tool_call>",
        "<tool_",
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]abcdefghi",
        "<|python_tag|>",
    ),
    *(" ", "\n", "[", "]", "{", "}", ";", ",", '"', "\\", "add", "Well", "é🎈", '{"a": 1}'),
    *('{"name": "add", "arguments": {"a": "}"}}', '{"name":"clock","parameters":{}}', '{"name": "clock"}'),
    *('{"arguments": {"a": 1}, "name": "add"}', '[{"name": "add", "arguments": {}}, {"name": "clock"}]'),
]
FORMS = [Hermes(), Mistral(named=False), Llama3(), Plain()]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@given(pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=8), data=st.data())
@settings(max_examples=cases(25), deadline=None)
def test_parts_make_no_difference_and_what_is_no_call_is_text(form, pieces, data) -> None:
    text = "".join(pieces)
    places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=3)))
    some = [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]
    whole, *others = (read(form, parts) for parts in ([text], list(text), some))
    assert all((one.text, one.calls) == (whole.text, whole.calls) for one in others)
    if not whole.calls:
        assert whole.text.strip() == text.strip()
