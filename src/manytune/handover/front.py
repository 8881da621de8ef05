"""The parts of what is before a vLLM, for its routes."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from manytune.handover.versions import Versions
from manytune.handover.vllm_client import VllmClient
from manytune.server.access.tenant_quotas import TenantQuotas
from manytune.server.http_errors import HttpError
from manytune.server.metrics import Metrics


@dataclass(frozen=True, kw_only=True)
class FrontSettings:
    """Limits and behaviour of what is before a vLLM.

    Attributes:
        base_name: The base's name in requests.
        of_tenant: Answers that one tenant may have waiting or running.
        answer_tokens: The longest answer.
        most_answers: Answers to one request.
        max_body_bytes: Size of the largest request body.
        watch_seconds: Interval at which the store is checked for new versions.
    """

    base_name: str
    of_tenant: int
    answer_tokens: int = 1024
    most_answers: int = 16
    max_body_bytes: int = 1 << 20
    watch_seconds: float = 2.0


@dataclass(frozen=True, kw_only=True)
class Front:
    """The parts of it, for its routes.

    Attributes:
        settings: Limits and behaviour.
        versions: Names to versions.
        client: Reaches vLLM.
        metrics: Counts and times.
        quotas: How many answers each tenant may have waiting or running.
        failure: How vLLM ended; None while it runs.
        has_keys: Whether there are API keys, and so tenants.
        secret: What tenants' salts are made with.
    """

    settings: FrontSettings
    versions: Versions
    client: VllmClient
    metrics: Metrics
    quotas: TenantQuotas
    failure: Callable[[], str | None]
    has_keys: bool
    secret: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)

    def check_running(self) -> None:
        """Refuse a request once vLLM has ended.

        Raises:
            HttpError: 503.
        """
        if self.failure() is not None:
            raise HttpError(503, "the engine has failed; the server must be restarted.", code="unavailable")
