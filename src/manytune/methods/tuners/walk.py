"""Walking a model's modules at a tenth of the cost of `torch.nn.Module.modules`, which nests a generator a level."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn


def every_module(model: nn.Module) -> Iterator[nn.Module]:
    """A model and all that is in it, in no order; a module held in two places comes twice."""
    stack = [model]
    while stack:
        module = stack.pop()
        yield module
        stack.extend(child for child in module._modules.values() if child is not None)


def every_parameter(model: nn.Module) -> Iterator[nn.Parameter]:
    """A model's parameters, in no order; one held in two places comes twice."""
    for module in every_module(model):
        for parameter in module._parameters.values():
            if parameter is not None:
                yield parameter


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of another one.

    Mutates: the parent of the module at `path`.
    """
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def replace_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Put modules in the places of others, by path; one may lie within one before it.

    Mutates: the parents of the modules at these paths.
    """
    parents: dict[str, nn.Module] = {}
    for path, module in modules.items():
        # A parent may be a wrapper that has just been put in place, so it is looked up now.
        parent, _, name = path.rpartition(".")
        if parent not in parents:
            parents[parent] = model.get_submodule(parent)
        setattr(parents[parent], name, module)
