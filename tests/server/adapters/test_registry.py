"""Adapters between the store and the engine: damaged ones are refused, terms are computed once, memory is limited."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient
from tests.server.admin import ask, listed
from tests.server.api_client import ROOT, ROOT_HEADERS
from tests.server.world import app_of
from tests.store.adapters_made import make_adapter
from tests.store.peft_made import save_peft
from tests.store.tiny import save_tiny_base

from manytune.server.access.auth import Keys
from manytune.store.base import load_base
from manytune.store.digests import sha256_file
from manytune.store.resident import read_resident


def test_terms_are_computed_once_for_requests_and_the_engine(admin):
    service = admin.app.state.service
    assert admin.post("/v1/adapters/one/load").status_code == 200
    model = service.adapters.acquire("one")
    assert ask(admin).status_code == 200
    assert service.loop._engine._slots.snapshot(model.digest).terms is model.terms
    service.adapters.release(model)
    again = service.adapters.acquire("one")
    assert again.terms is model.terms
    service.adapters.release(again)


def test_terms_leave_memory_with_their_adapter(admin):
    service = admin.app.state.service
    first = service.adapters.acquire("one")
    service.adapters.release(first)
    assert admin.post("/v1/adapters/one/unload").json()["unloaded"]
    second = service.adapters.acquire("one")
    assert second.terms is not first.terms
    service.adapters.release(second)


def rewrite(directory, change):
    """Change an adapter's tensors, and its manifest with them, as somebody would who means harm."""
    file = directory / "adapter_model.safetensors"
    tensors = change(load_file(file))
    file.unlink()
    save_file(tensors, file)
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"][file.name] = sha256_file(file)
    (directory / "manifest.json").write_text(json.dumps(manifest))


def with_nan(tensors):
    next(iter(tensors.values()))[0, 0] = float("nan")
    return tensors


def with_other_shape(tensors):
    return {
        name: torch.cat([tensor, tensor], 1) if "lora_A" in name else tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    ("change", "message"), [(with_nan, "are NaN or Inf"), (with_other_shape, "expected|shape|fit")]
)
def test_an_adapter_that_would_break_others_is_refused_and_the_others_answer(
    admin, base, own_store, tmp_path, change, message
):
    bad = tmp_path / "bad"
    shutil.copytree(own_store.path("one"), bad)
    rewrite(bad, change)
    own_store.add(bad, name="bad")
    before = ask(admin, "two").json()["choices"]
    response = ask(admin, "bad")
    error = response.json()["error"]
    assert response.status_code == 409 and error["code"] == "adapter_unusable"
    assert re.search(message, error["message"]) and str(tmp_path) not in response.text
    assert admin.app.state.service.adapters.cache.counters().pinned == 0
    assert ask(admin, "two").json()["choices"] == before


def test_files_changed_in_the_store_are_refused(admin, own_store):
    rewrite(own_store.path("one"), lambda tensors: {name: tensor + 1 for name, tensor in tensors.items()})
    response = ask(admin)
    assert response.status_code == 409 and "manifest was changed" in response.json()["error"]["message"]
    assert str(own_store.root) not in response.text
    assert admin.app.state.service.adapters.cache.counters().pinned == 0
    assert ask(admin, "two").status_code == 200


def test_links_out_of_the_store_are_refused(admin, own_store, tmp_path):
    directory = own_store.path("one")
    elsewhere = tmp_path / "elsewhere.safetensors"
    (directory / "adapter_model.safetensors").rename(elsewhere)
    (directory / "adapter_model.safetensors").symlink_to(elsewhere)
    assert "symbolic link" in ask(admin).json()["error"]["message"]
    (own_store.root / "names" / "linked").symlink_to(own_store.root / "names" / "two")
    assert ask(admin, "linked").status_code == 404


def test_an_adapter_of_another_base_is_refused(admin, own_store, tmp_path):
    other = load_base(str(save_tiny_base(tmp_path / "other", seed=5)))
    own_store.add(make_adapter(tmp_path / "foreign", other), name="foreign")
    response = ask(admin, "foreign")
    assert response.status_code == 409 and "another base" in response.json()["error"]["message"]


def test_an_adapter_that_does_not_fit_into_memory_next_to_those_in_use_is_refused_for_now(base, own_store):
    size = read_resident(own_store.path("one")).nbytes
    with TestClient(
        app_of(base, own_store, Keys([ROOT]), adapter_memory=size), headers=ROOT_HEADERS
    ) as admin:
        assert admin.post("/v1/adapters/one/pin").status_code == 200
        refused = ask(admin, "two")
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "adapter_memory_full"
        assert listed(admin, "two")["errors"] == 0  # not its fault
        admin.post("/v1/adapters/one/unpin")
        assert ask(admin, "two").status_code == 200


UNSERVABLE = {
    "changed-base": ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
    "two-forms": (
        {"method": "bottleneck", "bottleneck_size": 4, "modules_to_save": ["lm_head"]},
        "PeftModel.from_pretrained",
    ),
    "finder of answers": ({"task_type": "QUESTION_ANS"}, "AutoPeftModelForQuestionAnswering"),
}


@pytest.mark.parametrize("case", UNSERVABLE)
def test_an_adapter_that_cannot_be_served_is_no_model_and_every_route_gives_the_verdict_of_add(
    admin, base, own_store, tmp_path, case
):
    options, way_out = UNSERVABLE[case]
    if case == "finder of answers":
        made = save_peft(tmp_path / "made", **options)
    else:
        made = make_adapter(tmp_path / "made", base, **options)
    verdict = own_store.add(made, name="odd", base=base).manifest.unservable
    assert way_out in verdict
    assert [one["id"] for one in admin.get("/v1/models").json()["data"]] == ["base", "one", "two"]
    for refused in (admin.get("/v1/models/odd"), ask(admin, "odd"), admin.post("/v1/adapters/odd/load")):
        assert refused.status_code == 409
        assert refused.json()["error"]["message"] == verdict
    assert listed(admin, "odd")["unservable"] == verdict
    assert admin.post("/v1/adapters/odd/verify").json()["unservable"] == verdict
    assert listed(admin, "one")["unservable"] is None


def test_an_adapter_of_another_base_is_no_model(admin, own_store, tmp_path):
    other = load_base(str(save_tiny_base(tmp_path / "other", seed=5)))
    own_store.add(make_adapter(tmp_path / "foreign", other), name="foreign")
    admin.post("/v1/adapters/reload")
    assert "foreign" not in [one["id"] for one in admin.get("/v1/models").json()["data"]]
    assert "another base" in listed(admin, "foreign")["unservable"]


def test_what_a_request_finds_wrong_is_no_model_until_it_is_verified(admin, own_store):
    file = own_store.path("one") / "adapter_model.safetensors"
    sound = file.read_bytes()
    admin.get("/v1/models")  # by then the adapters have been looked at
    file.chmod(0o644)
    file.write_bytes(sound[:-4] + b"\0\0\0\0")
    assert "one" in [one["id"] for one in admin.get("/v1/models").json()["data"]]  # hashes take a request
    assert ask(admin, "one").status_code == 409
    assert "one" not in [one["id"] for one in admin.get("/v1/models").json()["data"]]
    file.write_bytes(sound)
    assert admin.post("/v1/adapters/one/verify").status_code == 200
    assert "one" in [one["id"] for one in admin.get("/v1/models").json()["data"]]
