"""schemathesis makes requests of the schema that the server gives, valid and invalid ones: none makes it fail.

    MANYTUNE_CASES=20000 pytest -s tests/integration/test_served_schema.py

makes so many; the default is small.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from tests.random_cases import cases
from tests.server.api_client import ROOT
from tests.server.live import live
from tests.server.world import app_of, fill_store

from manytune.server.access.auth import Keys
from manytune.store.base import Base

CASES = int(os.environ.get("MANYTUNE_CASES", cases(40)))
NAMES = st.sampled_from(["base", "one", "two", "three"])
#: Half of the requests name somebody who is there, and most are for short answers: the rest would all end at once.
SHORT = st.integers(1, 3)


@pytest.mark.slow
@pytest.mark.timeout(max(900, CASES))
def test_no_request_of_the_schema_makes_the_server_fail(base: Base, tmp_path: Path) -> None:
    warnings.simplefilter("ignore")  # of schemathesis' own dependencies
    counts: Counter[str] = Counter()
    with live(app_of(base, fill_store(tmp_path, base), Keys([ROOT]))) as server:
        address = f"http://127.0.0.1:{server.port}"
        authorization = {"Authorization": "Bearer root"}
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json", headers=authorization)
        operations = [found.ok() for found in schema.get_all_operations()]
        # Operations with a body have much to vary, the others little.
        weights = [8 if operation.body else 1 for operation in operations]
        each = min(50, -(-CASES // (2 * sum(weights))))

        def run(
            operation: schemathesis.schemas.APIOperation, mode: GenerationMode, count: int, turn: int
        ) -> None:
            @seed(turn)
            @settings(
                max_examples=count,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(
                case=operation.as_strategy(generation_mode=mode), name=NAMES, known=st.booleans(), short=SHORT
            )
            def one(case: schemathesis.Case, name: str, known: bool, short: int) -> None:
                if known and "name" in case.path_parameters:
                    case.path_parameters["name"] = name
                if known and isinstance(case.body, dict):
                    for key, value in {"model": name, "models": [name], "max_tokens": short}.items():
                        if key in case.body or key == "max_tokens":
                            case.body[key] = value
                response = case.call(headers=authorization, timeout=120)  # a busy machine is no failure
                case.validate_response(response, checks=[not_a_server_error])
                if response.status_code >= 400:
                    assert response.json()["error"]["message"], response.text
                elif response.text.startswith("data: "):
                    assert "internal_error" not in response.text
                counts["requests"] += 1
                counts[f"  {response.status_code}"] += 1

            with suppress(Unsatisfiable):  # where nothing is to be sent there is nothing wrong to send
                one()

        turn = 0
        while counts["requests"] < CASES:  # there are few ways to ask for a list of adapters
            for operation, weight in zip(operations, weights, strict=True):
                for mode in GenerationMode:
                    run(operation, mode, each * weight, turn)
            turn += 1
        response = schema["/healthz"]["GET"].Case().call()
        assert response.status_code == 200
    print("\n" + "\n".join(f"{name}: {count}" for name, count in sorted(counts.items())))
