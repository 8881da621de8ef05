"""A store as Ray Serve's LLM application takes it: its configuration, and the adapters to put where it names them.

    DIRECTORY/serve.yaml             for `serve run`, an LLMConfig of ray.serve.llm
    DIRECTORY/adapters/NAME/         to be copied to the place that the configuration names

Ray calls an adapter BASE:NAME, and keeps what it has loaded under that name for as long as a replica lives: a new
version needs a new name, or new replicas.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from manytune.atomic import atomic_directory
from manytune.errors import ServeError
from manytune.handover.adapter_copies import write_copy
from manytune.handover.base import EmptyBase
from manytune.handover.vllm_engine import Checked, HandoverSettings, vllm_options
from manytune.handover.vllm_options import NEUTRAL_SAMPLING
from manytune.handover.vllm_rules import VllmVerdicts

_SCHEMES = ("s3://", "gs://", "abfss://", "azure://")


def write_for_ray(
    target: Path,
    remote: str,
    base: EmptyBase,
    verdicts: VllmVerdicts,
    checked: Sequence[Checked],
    settings: HandoverSettings,
) -> str:
    """Write the configuration and the adapters that vLLM can serve.

    Args:
        target: The new directory, which must not exist.
        remote: Where Ray will find the adapters.
        base: What vLLM loads.
        verdicts: With the rank that was decided.
        checked: The store's adapters.
        settings: How they are handed over; vLLM's own options aren't among what is written.

    Returns:
        What is left to do, as commands.

    Raises:
        ServeError: Ray loads no adapters from there, a name can't be one there, or vLLM's options were given.
        StoreError: An adapter is damaged, or the target exists.
    """
    if not remote.startswith(_SCHEMES):
        raise ServeError(f"--ray-adapters {remote}: expected a place that begins with {', '.join(_SCHEMES)}.")
    if settings.more:
        raise ServeError(
            f"{settings.more[0]}: write vLLM's options into engine_kwargs of the configuration, where Ray reads them."
        )
    named = {name: one for one in checked if one.reason is None for name in one.entry.names}
    nested = next((name for name in named if "/" in name), None)
    if nested is not None:
        raise ServeError(f"{nested!r}: Ray's adapters have no slash in their names. Give it another name.")
    config = llm_config(remote, base, verdicts, checked, settings)
    with atomic_directory(target) as temporary:
        for name, one in named.items():
            write_copy(one.entry.path, temporary / "adapters" / name, base=base.location)
        (temporary / "serve.yaml").write_text(
            yaml.safe_dump(_application(config), sort_keys=False), encoding="utf-8"
        )
    return (
        f"copy {target / 'adapters'}/* to {remote.rstrip('/')}/, then run: serve run {target / 'serve.yaml'}"
    )


def llm_config(
    remote: str,
    base: EmptyBase,
    verdicts: VllmVerdicts,
    checked: Sequence[Checked],
    settings: HandoverSettings,
) -> dict[str, Any]:
    """The `LLMConfig`; arguments as for `write_for_ray`."""
    options = vllm_options(base, verdicts, checked, settings, socket=Path(), copies=Path())
    return {
        "model_loading_config": {"model_id": settings.base_name, "model_source": base.location},
        "engine_kwargs": {
            "enable_lora": True,
            "max_lora_rank": options.rank,
            "max_loras": options.in_batch,
            "max_cpu_loras": options.in_memory,
            "override_generation_config": {**NEUTRAL_SAMPLING, "max_new_tokens": settings.answer_tokens},
        },
        "lora_config": {
            "dynamic_lora_loading_path": remote.rstrip("/"),
            "max_num_adapters_per_replica": options.in_memory,
        },
        "deployment_config": {"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}},
    }


def _application(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "applications": [
            {
                "name": "manytune",
                "route_prefix": "/",
                "import_path": "ray.serve.llm:build_openai_app",
                "args": {"llm_configs": [config]},
            }
        ]
    }
