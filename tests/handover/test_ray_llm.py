"""What ray.serve.llm is given."""

from __future__ import annotations

import json

import pytest
import yaml

from manytune.errors import ServeError
from manytune.handover.base import EmptyBase
from manytune.handover.ray_llm import write_for_ray
from manytune.handover.vllm_engine import HandoverSettings, check_store
from manytune.handover.vllm_rules import VllmVerdicts


@pytest.fixture
def write(base, store, tmp_path):
    def write(remote="s3://bucket/adapters", **settings):
        verdicts = VllmVerdicts(store, base, patterns=True)
        checked = check_store(store, verdicts, ())
        return write_for_ray(
            tmp_path / "ray",
            remote,
            EmptyBase(base, "hub/tiny"),
            verdicts,
            checked,
            HandoverSettings(base_name="tiny", **settings),
        )

    return write


def test_the_configuration_has_the_fields_of_rays_llmconfig_and_its_adapters_name_the_base(write, tmp_path):
    said = write()
    assert str(tmp_path / "ray" / "serve.yaml") in said and "s3://bucket/adapters/" in said
    (application,) = yaml.safe_load((tmp_path / "ray" / "serve.yaml").read_text())["applications"]
    assert application["import_path"] == "ray.serve.llm:build_openai_app"
    (config,) = application["args"]["llm_configs"]
    assert config["model_loading_config"] == {"model_id": "tiny", "model_source": "hub/tiny"}
    assert config["lora_config"]["dynamic_lora_loading_path"] == "s3://bucket/adapters"
    kwargs = config["engine_kwargs"]
    assert kwargs["enable_lora"] and kwargs["max_lora_rank"] == 16 and kwargs["max_loras"] == 2
    for name in ("one", "two"):
        options = json.loads((tmp_path / "ray" / "adapters" / name / "adapter_config.json").read_text())
        assert options["base_model_name_or_path"] == "hub/tiny"


def test_what_ray_cannot_load_from_is_refused(write):
    with pytest.raises(ServeError, match="expected a place that begins with s3://"):
        write("/mnt/adapters")


def test_options_of_vllm_are_not_dropped_in_silence(write):
    with pytest.raises(ServeError, match="write vLLM's options into engine_kwargs"):
        write(more=("--max-loras", "3"))
