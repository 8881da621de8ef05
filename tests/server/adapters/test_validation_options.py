"""Which options of a foreign adapter a server compares with its base."""

from __future__ import annotations

from typing import Any

import pytest
from tests.methods.tuners.test_patterns import ENDLESS

from manytune.errors import ConfigError
from manytune.methods.registry import peft_config_from
from manytune.server.adapters.validation import check_options


def lora(**options: Any) -> Any:
    return peft_config_from("lora", **{"target_modules": ["q_proj"], **options})


@pytest.mark.parametrize("pattern", [*ENDLESS, r".*\.layers\.(1|2|3)\..*(q|k|v)_proj", "(.*)*(.*)*"])
@pytest.mark.parametrize("where", ["target_modules", "exclude_modules", "layers_pattern", "rank_pattern"])
def test_expressions_that_are_matched_in_linear_time_are_taken(pattern: str, where: str) -> None:
    value: Any = {pattern: 4} if where == "rank_pattern" else pattern
    check_options(
        lora(**{where: value}, **({"layers_to_transform": [0]} if where == "layers_pattern" else {}))
    )


@pytest.mark.parametrize(
    "pattern", [r"(?!a)((.*)*)*x", r"(.*)*\1", ".?" * 600, "(a+){1500}+", "((a{99}){99}){99}+"]
)
def test_what_is_not_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"RE2 takes.*Save the adapter with a list of modules"):
        check_options(lora(target_modules=pattern))
    with pytest.raises(ConfigError, match="RE2 takes"):
        check_options(lora(alpha_pattern={pattern: 4}))


def test_numbers_of_expressions_and_names_are_bounded() -> None:
    check_options(lora(target_modules=[f"model.layers.{number}.q_proj" for number in range(50_000)]))
    with pytest.raises(ConfigError, match="1,000 expressions"):
        check_options(lora(rank_pattern={f".+.+.+.+.+[QR]{number}": 4 for number in range(1_000)}))
    with pytest.raises(ConfigError, match=r"200,\d+ names in all; a server takes up to 64 and 100,000"):
        check_options(lora(target_modules=[f"layers.{number}" for number in range(200_000)]))
