"""Routes, metrics and deployments in docs/serving.md are those of the program."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from tests.server.world import routes_of
from tests.test_docs import blocks, mistakes

from manytune.server.middleware import KEY_PATHS, PUBLIC_PATHS

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
CODE = re.compile(r"`([^`]+)`")


def first_cells(heading: str) -> list[str]:
    """The code in the first column of the table under a heading of columns."""
    lines = PAGE.read_text().splitlines()
    rows = lines[lines.index(heading) + 2 :]
    end = next(place for place, line in enumerate(rows) if not line.startswith("|"))
    return [name for row in rows[:end] for name in CODE.findall(row.split("|")[1])]


def test_every_metric_is_explained_with_its_labels_and_no_other_is(client: TestClient) -> None:
    asked = {"model": "one", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
    assert client.post("/v1/chat/completions", json=asked).status_code == 200
    client.post("/v1/chat/completions", json={})
    exported = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        if family.name.endswith("_created"):  # the format's own: when a count began
            continue
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        exported[name] = labels
    explained = {}
    for cell in first_cells("| metric | meaning |"):
        name, _, labels = cell.rstrip("}").partition("{")
        explained[name] = set(labels.split(",")) - {""}
    assert explained == exported


def test_every_route_is_listed_with_who_may_use_it(client: TestClient) -> None:
    rows = [line.split("|")[1:3] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    listed = {}
    for cell, who in rows:
        routes = [one.split() for one in CODE.findall(cell)]
        for route in routes:
            if route[0] in ("GET", "POST"):
                path, method = route[1], route[0]
            elif routes[0][0] == "POST":  # further verbs of the route before
                path, method = f"{routes[0][1].rpartition('/')[0]}/{route[0]}", "POST"
            else:
                continue
            listed[method, path.replace("NAME", "one")] = who.strip()
    assert set(routes_of(client.app)) - {("GET", "/openapi.json")} == set(listed)
    for (_, path), who in listed.items():
        assert (who == "everybody") == (path in PUBLIC_PATHS), path
        assert (who == "every key") == bool(KEY_PATHS.fullmatch(path)), path


def test_the_units_images_and_pods_shown_start_it_with_options_that_it_has() -> None:
    (unit,) = blocks(PAGE, "ini")
    (image,) = blocks(PAGE, "dockerfile")
    (pod,) = (block for block in blocks(PAGE, "yaml") if "containers" in block)
    found = re.search(r"^ExecStart=\S*/(manytune .*)$", unit, re.MULTILINE)
    assert found is not None
    entry, usual = (
        json.loads(line.split(maxsplit=1)[1])
        for line in image.splitlines()
        if line.startswith(("ENTRYPOINT", "CMD"))
    )
    (container,) = yaml.safe_load(pod)["containers"]
    for command in (found[1], shlex.join(entry + usual), shlex.join(entry + container["args"])):
        assert command.startswith("manytune serve ") and mistakes(command) == []
    paths = {container[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")}
    assert paths <= PUBLIC_PATHS
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    wanted = [word for word in entry + container["args"] if word.startswith("/")]
    assert wanted and all(any(word.startswith(one) for one in mounted) for word in wanted)
