"""One process of two that train tiny models together, on a CPU over gloo; and the same training in one process.

`main` is what each of the two processes calls: the findings of every case go to `found.pt` in a directory, what a case
wrote into a folder with its name.
"""

from __future__ import annotations

import gc
import traceback
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.integration.sharded_trainers import LIBRARIES, trained
from tests.random_cases import DEEP
from tests.training.tiny_run import sequences
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

import manytune
from manytune import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from manytune.training.batches import padded
from manytune.training.distributed.processes import Processes
from manytune.training.speed.chunked_cross_entropy import loss_sum

PROCESSES = 2
VOCABULARY = 32
#: Steps of the methods that train for longer.
MANY = 20 if DEEP else 6
#: Steps of each method.
METHODS: dict[str, tuple[int, Callable[[], Any]]] = {
    "lora": (MANY, lambda: manytune.LoraConfig(r=3, target_modules="all-linear")),
    "dora": (MANY, lambda: manytune.LoraConfig(r=2, use_dora=True, target_modules=["q_proj", "down_proj"])),
    "ia3": (MANY, lambda: manytune.IA3Config()),
    "prefix": (MANY, lambda: manytune.PrefixTuningConfig(num_virtual_tokens=3)),
    "bottleneck": (MANY, lambda: manytune.BottleneckConfig()),
    "full": (MANY, lambda: manytune.FullConfig()),
    "projected prefix": (
        3,
        lambda: manytune.PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True),
    ),
    "prompt": (3, lambda: manytune.PromptTuningConfig(num_virtual_tokens=3)),
    "p-tuning": (3, lambda: manytune.PromptEncoderConfig(num_virtual_tokens=3)),
    "bias": (3, lambda: manytune.SelectiveConfig()),
    "vera": (3, lambda: manytune.VeraConfig(r=4, target_modules=["q_proj"])),
    "trained head": (3, lambda: manytune.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])),
}
#: Every method in FSDP2, and those of many steps under DistributedDataParallel, too: in `make test` two of them, since
#: `tests/training/test_distributed_equality.py` has all of these with manytune's own loop.
WITH_DDP = [
    name for name, (steps, _) in METHODS.items() if steps == MANY and (DEEP or name in ("lora", "full"))
]
WRAPPED = [(name, mode) for name in METHODS for mode in ("ddp", "fsdp") if mode == "fsdp" or name in WITH_DDP]
#: Heads for the loss in chunks: an adapter's options, and whether the base's embeddings are tied.
HEADS: dict[str, tuple[dict[str, Any], bool]] = {
    "tied": ({"target_modules": ["q_proj"]}, True),
    "untied": ({"target_modules": ["q_proj"]}, False),
    "adapted": ({"target_modules": ["q_proj", "lm_head"]}, False),
    "trained": ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False),
}


def base(*, tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention_bias=True,
        initializer_range=0.3,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).double()


def adapted(config: Any, *, tied: bool = False) -> PeftModel:
    model = base(tied=tied)
    torch.manual_seed(1)
    config.task_type = "CAUSAL_LM"
    return manytune.get_peft_model(model, config).double()


def rows(step: int) -> tuple[Tensor, Tensor]:
    """Four rows with their labels, of which the later ones bear fewer: 10 targets, and 3."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(3, VOCABULARY, (4, 6), generator=generator)
    labels = ids.clone()
    labels[2:, :4] = -100
    labels[3, 4] = -100
    return ids, labels


def targets(step: int) -> int:
    return int((rows(step)[1][:, 1:] != -100).sum())


def loss_of(model: nn.Module, step: int, rank: int | None) -> Tensor:
    """A rank's share of the mean over the global batch, as transformers' `num_items_in_batch` makes it."""
    ids, labels = rows(step)
    own = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
    found: Tensor = model(
        input_ids=ids[own], labels=labels[own], use_cache=False, num_items_in_batch=targets(step)
    ).loss
    return found


def sharded(model: PeftModel) -> PeftModel:
    for layer in model.get_base_model().model.layers:  # type: ignore[union-attr,operator]
        fully_shard(layer)
    fully_shard(model)
    return model


def wrapped(model: PeftModel, mode: str) -> nn.Module:
    if mode == "fsdp":
        return sharded(model)
    return DistributedDataParallel(model) if mode == "ddp" else model


def train(
    model: PeftModel, mode: str, steps: int, rank: int | None
) -> tuple[nn.Module, torch.optim.Optimizer, list[float]]:
    """Train, with a look at the base between two steps as DPO has it."""
    whole = wrapped(model, mode)
    whole.train()
    optimizer = torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for step in range(steps):
        if step == 1:
            with torch.no_grad(), model.disable_adapter():
                losses.append(summed(loss_of(whole, step, rank), rank))
        loss = loss_of(whole, step, rank)
        # Both kinds of data parallelism average gradients over the processes.
        (loss if rank is None else loss * PROCESSES).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(summed(loss, rank))
    return whole, optimizer, losses


def summed(loss: Tensor, rank: int | None) -> float:
    value = loss.detach().clone()
    if rank is not None:
        distributed.all_reduce(value)
    return value.item()


def evaluated(model: nn.Module, rank: int | None) -> float:
    model.eval()
    with torch.no_grad():
        found = summed(loss_of(model, 99, rank), rank)
    model.train()
    return found


def method(name: str, mode: str, rank: int, directory: Path) -> dict[str, Any]:
    steps, config = METHODS[name]
    model = adapted(config())
    kept = weakref.ref(model.get_base_model().lm_head.weight)  # type: ignore[union-attr]
    whole, _, losses = train(model, mode, steps, rank)
    gc.collect()
    found = {"losses": losses, "base_released": kept() is None, "trained": evaluated(whole, rank)}
    target = directory / f"{name} {mode}"
    model.save_pretrained(target, is_main_process=mode == "fsdp" or rank == 0)
    distributed.barrier()
    before = {key: t.clone() for key, t in get_peft_model_state_dict(whole).items()}
    found["by_state_dict"] = mode == "ddp" or by_state_dict(model, before)
    computed = name in ("p-tuning", "projected prefix")
    if not computed:
        # The outermost unit still holds whole weights after the evaluation, which is when values may be lost.
        set_peft_model_state_dict(whole, {key: 1.5 * t for key, t in before.items()})
        found["changed"] = evaluated(whole, rank)
        after = get_peft_model_state_dict(whole)
        found["set"] = all(torch.equal(after[key], 1.5 * t) for key, t in before.items())
        model.load_adapter(target, "default", is_trainable=True)
    found["restored"] = evaluated(whole, rank)
    with model.disable_adapter():
        found["disabled"] = evaluated(whole, rank)
    found["enabled"] = evaluated(whole, rank)
    with model.using("__base__"):
        found["by_name"] = evaluated(whole, rank)
    found["used"] = evaluated(whole, rank)
    return found


def by_state_dict(model: PeftModel, expected: dict[str, Tensor]) -> bool:
    """Whether the main process gets the same from a state dict that was gathered for it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    gathered = get_model_state_dict(model, options=options)
    if distributed.get_rank():
        return True
    found = get_peft_model_state_dict(model, gathered)
    return found.keys() == expected.keys() and all(torch.equal(found[k], t) for k, t in expected.items())


def chunked(head: str, mode: str, rank: int | None) -> dict[str, Any]:
    """The loss in chunks of a head, and the gradients."""
    options, tied = HEADS[head]
    model = adapted(manytune.LoraConfig(r=2, **options), tied=tied)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(3))
    whole: nn.Module = model
    if mode == "tail":  # as accelerate does it
        inner: Any = model.get_base_model()
        lm_head, embeddings = inner.get_output_embeddings(), inner.get_input_embeddings()
        tail = [inner.model.norm, embeddings, lm_head] if tied else [inner.model.norm, lm_head]
        fully_shard(tail, reshard_after_forward=False)
        whole = sharded(model)
    elif mode != "alone":
        whole = wrapped(model, mode)
    everything = sequences(4)
    own = everything if rank is None else everything[2 * rank : 2 * rank + 2]
    found = []
    for _ in range(2):
        loss = loss_sum(whole, padded.build(own, pad_id=0), chunk_logits=100)
        (loss if rank is None else loss * PROCESSES).backward()
        found.append(summed(loss, rank))
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {
        "losses": found,
        "gradients": {
            n: (g.full_tensor() if hasattr(g, "full_tensor") else g).clone() for n, g in gradients.items()
        },
    }


def refused(rank: int, directory: Path) -> dict[str, str]:
    """What is said to what can't be done to a sharded model."""
    model = adapted(manytune.LoraConfig(target_modules=["q_proj"]))
    inner = model.get_base_model()
    sharded(model)
    other: Any = manytune.LoraConfig(target_modules=["v_proj"], task_type="CAUSAL_LM")
    calls: dict[str, Callable[[], Any]] = {
        "merge_adapter": model.merge_adapter,
        "merge_and_unload": model.merge_and_unload,
        "unload": model.unload,
        "using merged": lambda: model.using("default", merged=True),
        "add_adapter": lambda: model.add_adapter("other", other),
        "delete_adapter": lambda: model.delete_adapter("default"),
        "add_weighted_adapter": lambda: model.add_weighted_adapter(["default"], [1.0], "sum"),
        "adapter_names": lambda: model.eval()(torch.ones(1, 3, dtype=torch.long), adapter_names=["default"]),
        "get_peft_model": lambda: manytune.get_peft_model(sharded_base(), other),
        "state_dict of a wrapper": lambda: model.save_pretrained(
            directory / "no", state_dict={"module.x": torch.zeros(1)}
        ),
        "state_dict of parts": lambda: model.save_pretrained(directory / "no", state_dict=model.state_dict()),
        "p-tuning": lambda: load_computed(directory),
        "adalora": lambda: loss_of(sharded(adapted(adalora())), 0, rank),
    }
    assert inner is model.get_base_model()
    return {name: said(call) for name, call in calls.items()}


def sharded_base() -> nn.Module:
    return fully_shard(base())


def adalora() -> Any:
    return manytune.AdaLoraConfig(total_step=30, target_modules=["q_proj"])


def load_computed(directory: Path) -> None:
    model = sharded(adapted(METHODS["p-tuning"][1]()))
    model.load_adapter(directory / "p-tuning fsdp", "default", is_trainable=True)


def said(call: Callable[[], Any]) -> str:
    try:
        call()
    except manytune.ManytuneError as error:
        return str(error)
    return ""


def main(processes: Processes, directory: Path) -> None:
    warnings.simplefilter("default")  # of torch's own, and as users have them
    rank = processes.rank
    found: dict[str, Any] = {}
    cases: dict[str, Callable[[], Any]] = {
        f"{name} {mode}": lambda n=name, m=mode: method(n, m, rank, directory)  # type: ignore[misc]
        for name, mode in WRAPPED
    }
    cases |= {
        f"chunked {head} {mode}": lambda h=head, m=mode: chunked(h, m, rank)  # type: ignore[misc]
        for head in HEADS
        for mode in ("ddp", "fsdp", "tail")
    }
    cases |= {
        f"trainer {library} {mode}": lambda lib=module, n=library, m=mode: trained(  # type: ignore[misc]
            lib, m, directory / f"trainer {n} {m}"
        )
        for library, module in LIBRARIES.items()
        for mode in ("ddp", "fsdp")
    }
    cases["refused"] = lambda: refused(rank, directory)
    for name, case in cases.items():
        try:
            found[name] = case()
        except Exception:
            found[name] = {"error": traceback.format_exc()}
            print(name, found[name]["error"], flush=True)
    if rank == 0:
        torch.save(found, directory / "found.pt")
