"""One history and one audit of many replicas."""

from manytune.replicas.histories import merge_audits, merge_histories
from manytune.replicas.operators import is_for_all


def sample(time, requests, wait, **rows):
    return {"time": time, "requests": requests, "first_token_p95": wait, "device_bytes": None, "models": rows}


def history(*samples):
    return {"seconds": 10, "kv_budget_tokens": 100, "adapter_budget_bytes": 7, "data": list(samples)}


def test_counts_are_added_up_by_time_and_of_waits_the_longest_counts():
    merged = merge_histories(
        [
            history(sample(10, 1, 0.5, one=[1, 2]), sample(20, 2, None)),
            history(sample(20, 3, 0.25, one=[3, 4]), sample(10, 4, 2.0, one=[5, 6], two=[7, 8])),
        ]
    )
    assert merged["data"] == [sample(10, 5, 2.0, one=[6, 8], two=[7, 8]), sample(20, 5, 0.25, one=[3, 4])]
    assert (merged["seconds"], merged["kv_budget_tokens"], merged["adapter_budget_bytes"]) == (10, 200, 14)


def test_an_action_of_all_replicas_is_listed_once_with_what_it_changed():
    def action(identity, time, status=200, detail=None):
        return {"request_id": identity, "time": time, "status": status, "detail": detail}

    merged = merge_audits(
        [
            {"data": [action("b", "2"), action("a", "1")]},
            {"data": [action("c", "3"), action("b", "2", 409), action("a", "1", detail="x to y")]},
        ]
    )
    assert merged["data"] == [action("c", "3"), action("b", "2", 409), action("a", "1", detail="x to y")]


def test_all_replicas_are_asked_for_what_each_keeps():
    assert is_for_all("GET", "/v1/history") and is_for_all("GET", "/v1/audit")
    assert is_for_all("POST", "/v1/adapters/one/rollback")
    assert not is_for_all("GET", "/v1/adapters/one/versions")
