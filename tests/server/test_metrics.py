"""What the metrics count."""

from tests.server.admin import ask


def test_tokens_requests_and_loads_are_counted(admin):
    ask(admin)
    ask(admin, "base")
    text = admin.get("/metrics").text
    assert 'manytune_requests_total{model="one",outcome="length"} 1.0' in text
    assert 'manytune_prompt_tokens_total{model="one"} 1.0' in text
    assert 'manytune_completion_tokens_total{model="base"} 2.0' in text
    assert 'manytune_time_to_first_token_seconds_count{model="one"} 1.0' in text
    assert 'manytune_inter_token_seconds_count{model="one"} 1.0' in text
    assert "manytune_drafted_tokens_total 0.0" in text and "manytune_accepted_tokens_total 0.0" in text
    assert "manytune_adapter_loads_total 1.0" in text and "manytune_running_requests 0.0" in text
