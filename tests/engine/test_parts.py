"""Without OpenVINO, torch runs the model and says so."""

import importlib.util
import logging
import re

from tests.engine.adapters import llama

from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams


def test_a_missing_library_is_named_with_how_to_get_it(tokenizer, caplog, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        engine = Engine(llama(), tokenizer, EngineOptions(runtime="openvino"))
    assert engine.runtime == "torch"
    assert re.search(r"OpenVINO isn't installed; pip install .*\[openvino\]' brings it", caplog.text)
    assert engine.generate([Request("one", (5, 6), SamplingParams(max_new_tokens=2))])[0].token_ids
