"""Weighted sums of adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.parity.calls.call import added, attached, call, differs, logits
from tests.parity.observed import Seen

KINDS = ("linear", "cat", "svd", "ties", "ties_svd", "magnitude_prune", "magnitude_prune_svd")


def two(peft: Any, **options: Any) -> Any:
    return added(peft, attached(peft, **options), "other", **options)


def weigh(
    peft: Any, model: Any, seen: Seen, name: str, weights: Any, kind: str = "linear", **options: Any
) -> None:
    """Note what a sum gives, and that it fails."""
    names = ["default", "other"]
    add = model.add_weighted_adapter
    seen.attempt(f"add {name}", lambda: add(names, weights, name, combination_type=kind, **options))
    if name in model.peft_config:
        model.set_adapter(name)
        seen.note(f"{name} gives", [logits(model), model.peft_config[name].r])


@call
def every_kind_of_sum(peft: Any, directory: Path, seen: Seen) -> None:
    model = two(peft)
    for kind in KINDS:
        density = {} if kind in ("linear", "cat", "svd") else {"density": 0.5}
        weigh(peft, model, seen, kind, [0.7, 0.4], kind, **density)


@call
def odd_weights(peft: Any, directory: Path, seen: Seen) -> None:
    model = two(peft)
    for name, weights in {"negative": [1.0, -0.5], "zero": [0.0, 0.0], "large": [100, 3]}.items():
        weigh(peft, model, seen, name, weights, "cat")
    seen.attempt(
        "one", lambda: model.add_weighted_adapter(["other"], [2.0], "one", combination_type="linear")
    )
    model.set_adapter("one")
    seen.note("one gives", logits(model))


@call
def sums_that_can_not_be(peft: Any, directory: Path, seen: Seen) -> None:
    model = added(peft, attached(peft), "other", r=3)
    weigh(peft, model, seen, "ranks", [1.0, 1.0], "linear")
    weigh(peft, model, seen, "kind", [1.0, 1.0], "average")
    weigh(peft, model, seen, "svd of ranks", [1.0, 1.0], "svd")
    weigh(peft, model, seen, "cat of ranks", [1.0, 1.0], "cat")
    weigh(peft, model, seen, "smaller svd", [1.0, 1.0], "svd", svd_rank=1)
    seen.attempt(
        "nobody",
        lambda: model.add_weighted_adapter(["default", "nobody"], [1, 1], "x", combination_type="cat"),
    )
    seen.attempt("none", lambda: model.add_weighted_adapter([], [], "y", combination_type="cat"))


@call
def sums_of_modules_trained_in_full(peft: Any, directory: Path, seen: Seen) -> None:
    model = two(peft, modules_to_save=["norm"])
    weigh(peft, model, seen, "heads", [1.0, 1.0])


@differs(sum_weights="*too few*")
def a_weight_too_few(peft: Any, directory: Path, seen: Seen) -> None:
    weigh(peft, two(peft), seen, "too few", [1.0])


@differs(sum_taken="add other")
def a_sum_whose_name_is_taken(peft: Any, directory: Path, seen: Seen) -> None:
    weigh(peft, two(peft), seen, "other", [1.0, 1.0])


@differs(sum_rslora="rslora gives")
def a_sum_with_rank_stabilised_scaling(peft: Any, directory: Path, seen: Seen) -> None:
    weigh(peft, two(peft, use_rslora=True), seen, "rslora", [0.5, 0.5], "svd")


@differs(sum_of_more=("add *", "* gives"))
def sums_of_adapters_that_add_more_than_a_product(peft: Any, directory: Path, seen: Seen) -> None:
    for name, options in {
        "dora": {"use_dora": True},
        "lora_bias": {"lora_bias": True},
        "pissa": {"init_lora_weights": "pissa"},
    }.items():
        weigh(peft, two(peft, **options), seen, name, [0.5, 0.5], "cat")


@call
def sums_of_other_methods(peft: Any, directory: Path, seen: Seen) -> None:
    import torch
    from tests.parity.bases import LLAMA
    from tests.parity.session import scatter

    options = {"target_modules": ["q_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    model = peft.get_peft_model(LLAMA.build(), peft.IA3Config(**options))
    scatter(model)
    torch.manual_seed(4)
    model.add_adapter("other", peft.IA3Config(**options))
    model.set_adapter("other")
    scatter(model, 8)
    seen.attempt("IA3", lambda: model.add_weighted_adapter(["default", "other"], [0.3, 0.7], "sum"))
    model.set_adapter("sum")
    seen.note("IA3 gives", logits(model.eval()))
