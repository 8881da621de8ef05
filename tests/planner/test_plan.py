"""A plan as a whole."""

import json
import subprocess
import sys

from tests.planner.configs import llama

from manytune.planner.hardware import Hardware
from manytune.planner.plan import Plan, make_plan
from manytune.planner.recipe import plan_from


def test_a_plan_is_json_with_its_ranges() -> None:
    found = make_plan(plan_from({"model": llama(), "training": {}, "serving": {"adapters": 5}}))
    content = json.loads(json.dumps(found.to_dict()))
    assert content["training"]["memory"]["low"] < content["training"]["memory"]["high"]
    assert content["serving"]["replicas"]["expected"] == 1
    assert content["model"]["kv_numbers"] == 256 and content["notes"] == []


def test_this_machine_is_measured_in_the_products_of_the_plan() -> None:
    asked = []

    def measure(model: object, dtype: str) -> Hardware:
        asked.append(dtype)
        return Hardware(memory_gib=8, bandwidth_gb_s=10, tflops={"float32": 0.1}, kind="cpu", measured=True)

    training = {"weights": "float32"}
    found = make_plan(
        plan_from({"model": llama(), "hardware": "this-machine", "training": training}), measure=measure
    )
    assert asked == ["float32"] and found.hardware.measured


def test_a_price_of_the_command_line_is_used() -> None:
    found = make_plan(plan_from({"model": llama(), "training": {}}), price=2.0)
    assert found.training is not None and found.training.cost is not None


def test_what_is_left_out_is_said() -> None:
    mixture = llama(model_type="mixtral", num_local_experts=8, num_experts_per_tok=2)
    (note,) = make_plan(plan_from({"model": mixture, "training": {}})).notes
    assert note.startswith("A token uses 2 of 8 experts")
    (note,) = make_plan(
        plan_from({"model": llama(), "method": {"name": "full"}, "serving": {"adapters": 2}})
    ).notes
    assert "each of them is counted as large as the base" in note


def test_what_manytune_does_not_shard_is_said_and_not_proposed() -> None:
    """As `training/distributed/sharding.py` refuses it."""

    def planned(**training: object) -> Plan:
        return make_plan(plan_from({"model": llama(), "training": training}))

    (weights, optimizer) = planned(sharded=True, weights="nf4", optimizer="adafactor").notes
    assert weights.startswith("manytune doesn't shard with weights: nf4") and "bfloat16" in weights
    assert optimizer.startswith("manytune doesn't shard with optimizer: adafactor")
    assert not planned(sharded=True).notes and not planned(weights="nf4").notes
    assert "weights: nf4" not in planned(sharded=True).savings
    assert "sharded: true on several devices" not in planned(weights="nf4").savings
    assert {"weights: nf4", "sharded: true on several devices"} <= set(planned().savings)


def test_planning_imports_no_torch() -> None:
    program = (
        "import sys; from manytune.planner.recipe import plan_from; from manytune.planner.plan import Plan, make_plan; "
        f"make_plan(plan_from({{'model': {llama()!r}, 'training': {{}}, 'serving': {{}}}})); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
