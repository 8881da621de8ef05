"""What is read of the methods' sources is what is registered when they are imported."""

import dataclasses

from manytune.methods.outline import method_outline
from manytune.methods.registry import method_options, methods


def test_the_outline_has_every_method_with_every_option() -> None:
    registered = {
        method.name: {field.name for field in dataclasses.fields(method.config)}
        for method in methods().values()
        if method.config.__module__.startswith("manytune.")
    }
    assert method_outline() == registered
    assert list(method_options()) == sorted(methods())
