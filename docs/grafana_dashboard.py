"""Write docs/grafana-dashboard.json: the server's Prometheus metrics as a dashboard for Grafana.

    python docs/grafana_dashboard.py

The panels are listed here, so that the file is made rather than edited. `tests/integration/test_grafana.py` compares
the two, and looks for every metric among those that the server has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("grafana-dashboard.json")

_TTFT = "manytune_time_to_first_token_seconds"
_BETWEEN = "manytune_inter_token_seconds"


def _rate(metric: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({metric}[$__rate_interval]))"


def _quantile(share: float, metric: str) -> str:
    return f"histogram_quantile({share}, {_rate(f'{metric}_bucket', 'le')})"


#: Title, unit of Grafana's, and lines: what each is called, and its query.
PANELS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("Requests by adapter", "reqps", {"{{model}}": _rate("manytune_requests_total", "model")}),
    ("Requests by outcome", "reqps", {"{{outcome}}": _rate("manytune_requests_total", "outcome")}),
    ("Refused requests by status", "reqps", {"{{status}}": _rate("manytune_refusals_total", "status")}),
    (
        "Tokens",
        "short",
        {
            "generated": _rate("manytune_completion_tokens_total"),
            "read": _rate("manytune_prompt_tokens_total"),
            "read, from cached prefixes": _rate("manytune_prefix_cached_tokens_total"),
            "guessed and read": _rate("manytune_drafted_tokens_total"),
            "guessed rightly": _rate("manytune_accepted_tokens_total"),
        },
    ),
    (
        "Time to first token",
        "s",
        {"median": _quantile(0.5, _TTFT), "95%": _quantile(0.95, _TTFT), "99%": _quantile(0.99, _TTFT)},
    ),
    ("Time between tokens", "s", {"median": _quantile(0.5, _BETWEEN), "95%": _quantile(0.95, _BETWEEN)}),
    (
        "Mean time to first token by adapter",
        "s",
        {"{{model}}": f"{_rate(f'{_TTFT}_sum', 'model')} / {_rate(f'{_TTFT}_count', 'model')}"},
    ),
    (
        "Queue",
        "short",
        {"running": "sum(manytune_running_requests)", "waiting": "sum(manytune_waiting_requests)"},
    ),
    (
        "KV cache",
        "percentunit",
        {"in use": "sum(manytune_kv_tokens) / sum(manytune_kv_budget_tokens)"},
    ),
    (
        "Memory",
        "bytes",
        {
            "process": "sum(manytune_memory_bytes)",
            "adapters": "sum(manytune_adapter_bytes)",
            "limit of adapters": "sum(manytune_adapter_budget_bytes)",
        },
    ),
    (
        "Adapters",
        "short",
        {
            "in memory": "sum(manytune_adapters_resident)",
            "pinned or in use": "sum(manytune_adapters_pinned)",
            "in the batch": "sum(manytune_adapters_in_batch)",
        },
    ),
    (
        "Loads of adapters",
        "ops",
        {
            "found in memory": _rate("manytune_adapter_hits_total"),
            "loaded": _rate("manytune_adapter_loads_total"),
            "evicted": _rate("manytune_adapter_evictions_total"),
        },
    ),
    ("Requests by key", "reqps", {"{{key}}": _rate("manytune_key_requests_total", "key")}),
    ("Tokens by key", "short", {"{{key}}": _rate("manytune_key_tokens_total", "key")}),
)

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    return {
        "uid": "manytune",
        "title": "manytune",
        "tags": ["manytune"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
            ]
        },
        "panels": [_panel(place, *panel) for place, panel in enumerate(PANELS)],
    }


def _panel(place: int, title: str, unit: str, lines: dict[str, str]) -> dict[str, Any]:
    return {
        "id": place + 1,
        "type": "timeseries",
        "title": title,
        "datasource": _SOURCE,
        "gridPos": {"x": 12 * (place % 2), "y": 8 * (place // 2), "w": 12, "h": 8},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {"tooltip": {"mode": "multi"}, "legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": _SOURCE, "expr": query, "legendFormat": name}
            for number, (name, query) in enumerate(lines.items())
        ],
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=2) + "\n", encoding="utf-8")
