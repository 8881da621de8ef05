"""The dashboard for Grafana is the one that its script makes, and draws metrics that the server has."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

SCRIPT = Path(__file__).parents[2] / "docs" / "grafana_dashboard.py"


def test_every_metric_in_it_exists_with_the_labels_that_it_is_grouped_by(client: TestClient) -> None:
    spec = importlib.util.spec_from_file_location("grafana_dashboard", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = json.loads(module.FILE.read_text())
    assert written == module.dashboard(), "run: python docs/grafana_dashboard.py"
    asked = {"model": "one", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
    assert client.post("/v1/chat/completions", json=asked).status_code == 200
    client.post("/v1/chat/completions", json={})
    known: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            known.setdefault(sample.name, set()).update(sample.labels)
    queries = [target["expr"] for panel in written["panels"] for target in panel["targets"]]
    assert len(queries) > 20
    for query in queries:
        names = re.findall(r"manytune_\w+", query)
        labels = {one for group in re.findall(r"by \(([^)]*)\)", query) for one in group.split(", ")}
        assert names and all(name in known and labels <= known[name] for name in names), query
